"""Layer normalisation inside recurrent cells (Ba, Kiros & Hinton 2016).

Every gate is normalised over the units of its row, a step at a time: nothing depends on the other
rows, nor on how long a sequence is. Each has a gain and a shift of its own.
"""

from ..functions import sigmoid, tanh
from .decorator import cell


def memory(f, g, i, gain_f, gain_g, gain_i, shift_f, shift_g, shift_i, c):
    """The new memory cell, which the output sees normalised."""
    f, i = sigmoid(gain_f * f + shift_f), sigmoid(gain_i * i + shift_i)
    return f * c + i * tanh(gain_g * g + shift_g)


LSTM_GAINS = "gain_f gain_g gain_i gain_o gain_c"
LSTM_SHIFTS = "shift_f shift_g shift_i shift_o shift_c"


@cell(
    states="h c",
    weights=f"{LSTM_GAINS} {LSTM_SHIFTS}",
    normalised="f g i o c_hat",
    operand_gate="c_hat",
    operand=memory,
    weight_start=dict.fromkeys(LSTM_GAINS.split(), 1.0) | {"shift_f": 1.0},
)
def lstm_layer_norm(
    f, g, i, o, c_hat, gain_f, gain_g, gain_i, gain_o, gain_c,
    shift_f, shift_g, shift_i, shift_o, shift_c, h, c,
):  # fmt: skip
    """Layer-normalised LSTM: the four gates, and the memory cell on its way to the output."""
    f, g = sigmoid(gain_f * f + shift_f), tanh(gain_g * g + shift_g)
    i, o = sigmoid(gain_i * i + shift_i), sigmoid(gain_o * o + shift_o)
    c = f * c + i * g
    h = o * tanh(gain_c * c_hat + shift_c)
    return h, c


def reset(r, gain_r, shift_r, h):
    r = sigmoid(gain_r * r + shift_r)
    return r * h


@cell(
    weights="gain_z gain_r gain_a shift_z shift_r shift_a",
    normalised="z r a",
    second_product="a",
    operand=reset,
    weight_start=dict.fromkeys(("gain_z", "gain_r", "gain_a"), 1.0),
)
def gru_layer_norm(z, r, a, gain_z, gain_r, gain_a, shift_z, shift_r, shift_a, h):
    """Layer-normalised GRU, the reset gate before the product; z is the share of the new state."""
    z, new = sigmoid(gain_z * z + shift_z), tanh(gain_a * a + shift_a)
    return (1 - z) * h + z * new


@cell(weights="gain shift", normalised="a", weight_start={"gain": 1.0})
def rnn_layer_norm(a, gain, shift, h):
    """Layer-normalised tanh RNN."""
    return tanh(gain * a + shift)
