"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    f = sigmoid(x_t Wx[f] + h_{t-1} Wh[f] + b[f])     forget gate
    g =    tanh(x_t Wx[g] + h_{t-1} Wh[g] + b[g])     new memory
    i = sigmoid(x_t Wx[i] + h_{t-1} Wh[i] + b[i])     input gate
    o = sigmoid(x_t Wx[o] + h_{t-1} Wh[o] + b[o])     output gate

    c_t = f * c_{t-1} + g * i
    h_t = o * tanh(c_t)

The four weights are gathered along one axis in the order f, g, i, o, so that all four
pre-activations come out of one affine transformation.
"""

from types import MappingProxyType

from ..functions import dsigmoid, dtanh, sigmoid, tanh
from .cell import Cell


def forward(gates, state):
    f, g, i, o = gates
    _, c = state

    f, g, i, o = sigmoid(f), tanh(g), sigmoid(i), sigmoid(o)
    c = f * c + g * i
    h = o * tanh(c)
    return (h, c), (f, g, i, o)


def backward(dstate, saved, state):
    dh, dc = dstate
    f, g, i, o = saved
    _, c_prev = state

    tanh_c = tanh(f * c_prev + g * i)  # cheaper to compute again than to store
    do = dh * tanh_c
    dc = dc + dh * o * dtanh(tanh_c)
    df, dg, di = dc * c_prev, dc * i, dc * g

    dgates = df * dsigmoid(f), dg * dtanh(g), di * dsigmoid(i), do * dsigmoid(o)
    return dgates, (None, dc * f)  # None: h_{t-1} acts through the gates alone


LSTM = Cell(
    name="lstm",
    gates=("f", "g", "i", "o"),
    states=("h", "c"),
    saved=("f", "g", "i", "o"),
    forward=forward,
    backward=backward,
    # remember at first (Jozefowicz et al. 2015, section 2.2)
    bias_start=MappingProxyType({"f": 1.0}),
)
