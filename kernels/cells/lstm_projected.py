"""Long short-term memory with a projection (Sak et al. 2014; PyTorch's proj_size).

    f, g, i, o, c_t   as in ``lstm.py``
    h_t = (o * tanh(c_t)) Wr                          r, the projection

The four gates see h, a projection of what the units hold, and h goes out. The projection is the
second product: its operand is o * tanh(c_t), its gate r is h itself. Wr is (H, P), Wh (P, 4H): h
may have fewer numbers than there are units.
"""

from types import MappingProxyType

from ..functions import dsigmoid, dtanh, sigmoid, tanh
from .cell import Cell


def output(gates, state):
    """The numbers that are projected: o * tanh(c)."""
    f, g, i, o, _ = gates
    _, c = state
    return sigmoid(o) * tanh(sigmoid(f) * c + tanh(g) * sigmoid(i))


def forward(gates, state):
    f, g, i, o, r = gates
    _, c = state

    f, g, i, o = sigmoid(f), tanh(g), sigmoid(i), sigmoid(o)
    return (r, f * c + g * i), (f, g, i, o)


def through_memory(dc, saved, c_prev):
    """The gradients of f, g, i and of c before the step, of that of c after it."""
    f, g, i, _ = saved
    dgates = dc * c_prev * dsigmoid(f), dc * i * dtanh(g), dc * g * dsigmoid(i)
    return dgates, dc * f


def backward(dstate, saved, state):
    dh, dc = dstate
    _, c_prev = state

    (df, dg, di), dc_prev = through_memory(dc, saved, c_prev)
    return (df, dg, di, None, dh), (None, dc_prev)  # o acts through the projection alone


def output_backward(doutput, dgates, dstate, saved, state):
    df, dg, di, _, dr = dgates
    dh_prev, dc_prev = dstate
    f, g, i, o = saved
    _, c_prev = state

    tanh_c = tanh(f * c_prev + g * i)
    do = doutput * tanh_c * dsigmoid(o)
    more, dc_more = through_memory(doutput * o * dtanh(tanh_c), saved, c_prev)
    return (df + more[0], dg + more[1], di + more[2], do, dr), (dh_prev, dc_prev + dc_more)


LSTM_PROJECTED = Cell(
    name="lstm_projected",
    gates=("f", "g", "i", "o", "r"),
    states=("h", "c"),
    saved=("f", "g", "i", "o"),
    forward=forward,
    backward=backward,
    recurrent_only=("r",),
    second_product=("r",),
    projected=True,
    operand=output,
    operand_backward=output_backward,
    bias_start=MappingProxyType({"f": 1.0}),
)
