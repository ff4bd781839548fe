"""sLSTM: exponential gates, kept in range by a state of their own (Beck et al. 2024, xLSTM).

c is the memory, n adds up the input gates that went into it, and both are kept divided by
exp(m), where m is the largest exponent so far. Where n is 0 nothing has gone in yet: m starts at
the first input gate's exponent, as in the authors' code, however small it is. n is then 1 at once
and never less, so that c / n is finite, and so is its gradient.
"""

from ..functions import exp, log_sigmoid, maximum, sigmoid, tanh, where
from .decorator import cell


@cell(states="h c n m", coupled="c n m", bias_start={"f": 1.0})
def slstm(f, i, z, o, h, c, n, m):
    log_f = where(n > 0, log_sigmoid(f) + m, i)
    m = maximum(log_f, i)
    f, i = exp(log_f - m), exp(i - m)
    z, o = tanh(z), sigmoid(o)
    c = f * c + i * z
    n = f * n + i
    h = o * (c / n)
    return h, c, n, m
