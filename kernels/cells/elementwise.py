"""Cells without a product over h: a unit sees its own state only, and units never wait.

All steps' x Wx is one product; what is left between the steps is a little arithmetic.
"""

from ..functions import log_sigmoid, relu, sigmoid
from .decorator import cell


@cell(recurrence="elementwise", weights="u", weight_start={"u": (0.0, 1.0)})
def indrnn(a, u, h):
    """Independently recurrent network (Li et al. 2018)."""
    return relu(a + u * h)


@cell(recurrence="elementwise", states="h c", weights="v_f v_r")
def sru(a, f, r, k, v_f, v_r, h, c):
    """Simple recurrent unit (Lei et al. 2018); k, a projection of x, is the highway."""
    f, r = sigmoid(f + v_f * c), sigmoid(r + v_r * c)
    c = f * c + (1 - f) * a
    h = r * c + (1 - r) * k
    return h, c


@cell(recurrence="elementwise")
def mingru(z, a, h):
    """minGRU (Feng et al. 2024)."""
    z = sigmoid(z)
    return (1 - z) * h + z * a


@cell(recurrence="elementwise", bias_start={"f": 1.0})
def minlstm(f, i, a, h):
    """minLSTM, its two gates made to sum to 1, f / (f + i) and i / (f + i) (Feng et al. 2024).

    By the logarithm of f / i, as in the paper's appendix: both gates may be as small as 0.
    """
    ratio = log_sigmoid(f) - log_sigmoid(i)
    f, i = sigmoid(ratio), sigmoid(-ratio)
    return f * h + i * a
