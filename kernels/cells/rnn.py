"""The simple recurrent cell (Elman 1990), with tanh or relu.

h_t = tanh(x_t Wx + h_{t-1} Wh + b)
"""

from ..functions import drelu, dtanh, relu, tanh
from .cell import Cell


def forward(gates, state):
    (a,) = gates
    h = tanh(a)
    return (h,), (h,)


def backward(dstate, saved, state):
    (dh,) = dstate
    (h,) = saved
    da = dh * dtanh(h)  # dtanh = 1 - h²
    return (da,), (None,)  # None: h_{t-1} acts through the gate alone


def relu_forward(gates, state):
    (a,) = gates
    h = relu(a)
    return (h,), (h,)


def relu_backward(dstate, saved, state):
    (dh,) = dstate
    (h,) = saved
    da = dh * drelu(h)
    return (da,), (None,)


RNN = Cell(
    name="rnn", gates=("h",), states=("h",), saved=("h",), forward=forward, backward=backward
)

RNN_RELU = Cell(
    name="rnn_relu",
    gates=("h",),
    states=("h",),
    saved=("h",),
    forward=relu_forward,
    backward=relu_backward,
)
