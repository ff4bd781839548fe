"""Simple recurrent networks that remember longer (``rnn.py`` is the usual one)."""

from ..functions import sigmoid, tanh
from .decorator import cell


@cell(weights="leak")
def leaky_rnn(a, leak, h):
    """Leaky units: each keeps a share of its old value, which it learns (Jaeger et al. 2007)."""
    share, new = sigmoid(leak), tanh(a)
    return (1 - share) * h + share * new


def context(decay, h, s):
    return sigmoid(decay) * s + h


@cell(states="h s", weights="decay", second_product="a", operand=context)
def jordan(a, decay, h, s):
    """The product sees a context s that decays (Jordan 1986, with h in the output's place)."""
    s = sigmoid(decay) * s + h
    return tanh(a), s
