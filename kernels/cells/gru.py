"""The gated recurrent unit, with the reset gate before or after the recurrent product.

Both:

    z = sigmoid(x_t Wx[z] + h_{t-1} Wh[z] + b[z])     update gate
    r = sigmoid(x_t Wx[r] + h_{t-1} Wh[r] + b[r])     reset gate
    h_t = (1 - z) * h_{t-1} + z * h~                  z is the share of the new

Reset before (Cho et al. 2014; Deep Learning from Scratch 2): the gate scales h, then the product.

    h~ = tanh(x_t Wx[h] + (r * h_{t-1}) Wh[h] + b[h])

Reset after (cuDNN, PyTorch; Keras with reset_after=True): the product, then the gate scales it.
The bias has two rows, b[0] beside x Wx and b[1] beside h Wh.

    h~ = tanh(x_t Wx[h] + b[0][h] + r * (h_{t-1} Wh[h] + b[1][h]))

PyTorch and Keras call (1 - z) what is z here.
"""

from ..functions import dsigmoid, dtanh, sigmoid, tanh
from .cell import Cell

# ---- reset before: two products, h Wh[z, r] and then (r * h) Wh[h]


def reset(gates, state):
    """The part of h that the candidate sees: r * h."""
    _, r, _ = gates
    (h,) = state
    return sigmoid(r) * h


def forward(gates, state):
    z, r, a = gates
    (h,) = state

    z, r, new = sigmoid(z), sigmoid(r), tanh(a)
    h = (1 - z) * h + z * new
    return (h,), (z, r, new)


def backward(dstate, saved, state):
    (dh,) = dstate
    z, _, new = saved
    (h_prev,) = state

    dz, dnew = dh * (new - h_prev), dh * z
    dgates = dz * dsigmoid(z), None, dnew * dtanh(new)  # r acts through reset alone
    return dgates, (dh * (1 - z),)


def reset_backward(dreset, dgates, dstate, saved, state):
    dz, _, dnew = dgates
    (dh_prev,) = dstate
    _, r, _ = saved
    (h_prev,) = state

    dr = dreset * h_prev
    return (dz, dr * dsigmoid(r), dnew), (dh_prev + dreset * r,)


GRU = Cell(
    name="gru",
    gates=("z", "r", "h"),
    states=("h",),
    saved=("z", "r", "h"),
    forward=forward,
    backward=backward,
    second_product=("h",),
    operand=reset,
    operand_backward=reset_backward,
)


# ---- reset after: one product; the candidate's two sides are kept apart


def after_forward(gates, state):
    z, r, a, u = gates  # a = x Wx[h] + b[0][h],  u = h Wh[h] + b[1][h]
    (h,) = state

    z, r = sigmoid(z), sigmoid(r)
    new = tanh(a + r * u)
    h = (1 - z) * h + z * new
    return (h,), (z, r, new, u)


def after_backward(dstate, saved, state):
    (dh,) = dstate
    z, r, new, u = saved
    (h_prev,) = state

    dz, dnew = dh * (new - h_prev), dh * z
    da = dnew * dtanh(new)
    dr, du = da * u, da * r
    return (dz * dsigmoid(z), dr * dsigmoid(r), da, du), (dh * (1 - z),)


GRU_RESET_AFTER = Cell(
    name="gru_reset_after",
    gates=("z", "r", "h", "h_recurrent"),
    states=("h",),
    saved=("z", "r", "h", "h_recurrent"),
    forward=after_forward,
    backward=after_backward,
    input_only=("h",),
    recurrent_only=("h_recurrent",),
    biases=2,
)
