"""sLSTM: exponential gates, kept in range by a state of their own (Beck et al. 2024, xLSTM).

c is the memory, n adds up the input gates that went into it, and both are kept divided by
exp(m), where m is the largest exponent so far.
"""

from ..functions import exp, log_sigmoid, maximum, sigmoid, tanh
from .written import cell


@cell(states="h c n m", joined="c n m", bias_start={"f": 1.0})
def slstm(f, i, z, o, h, c, n, m):
    log_f = log_sigmoid(f) + m
    m = maximum(log_f, i)
    f, i = exp(log_f - m), exp(i - m)
    z, o = tanh(z), sigmoid(o)
    c = f * c + i * z
    n = f * n + i
    h = o * (c / n)
    return h, c, n, m
