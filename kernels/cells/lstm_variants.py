"""LSTMs with a little more, or a little less, than the usual one (``lstm.py``)."""

from ..functions import sigmoid, tanh
from .decorator import cell


@cell(states="h c", weights="p_f p_i p_o", bias_start={"f": 1.0})
def lstm_peephole(f, g, i, o, p_f, p_i, p_o, h, c):
    """Gates that see the memory cell through peepholes (Gers & Schmidhuber 2000)."""
    f, g, i = sigmoid(f + p_f * c), tanh(g), sigmoid(i + p_i * c)
    c = f * c + i * g
    o = sigmoid(o + p_o * c)
    h = o * tanh(c)
    return h, c


@cell(states="h c", bias_start={"f": 1.0})
def lstm_cifg(f, g, o, h, c):
    """Coupled input and forget gate: what is forgotten makes room (Greff et al. 2017)."""
    f, g, o = sigmoid(f), tanh(g), sigmoid(o)
    c = f * c + (1 - f) * g
    h = o * tanh(c)
    return h, c
