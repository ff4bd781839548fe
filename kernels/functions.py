"""The functions that cells are written with.

These definitions work on NumPy arrays; they are the specification.

Primitives   A compiled engine registers its own version of each (``cpu/vector_functions.py``,
             ``cuda/lanes.py``), so a cell function that calls ``sigmoid(a)`` runs unchanged on
             whatever numbers that engine uses.
Composites   These are made of primitives and ``+ - * /``, and serve every engine as they stand.

Each derivative takes the function's *output*, as in the lecture: backward then needs no
pre-activations, only what forward has already stored.

NaN stays NaN in all of them. Of several arguments some may be Python numbers, but not all: the
result has the dtype of the others. Both choices of a ``where`` are computed in every place, so no
finite number draws a warning: exp that overflows is inf, sqrt of a negative number NaN.

To add a composite, define it here and name it in ``COMPOSITES``. To add a primitive, define it here
and register its versions in those two.
"""

import numpy as np

__all__ = [
    "absolute", "drelu", "dsigmoid", "dtanh", "exp", "hard_sigmoid", "hard_tanh", "log_sigmoid",
    "maximum", "minimum", "relu", "sigmoid", "silu", "softplus", "sqrt", "tanh", "where",
]  # fmt: skip

# ---- primitives


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow for any finite x.

    exp only ever sees -|x|, so it cannot overflow; the two branches are the same
    quotient, multiplied through by exp(x) where x is negative.
    """
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def tanh(x):
    """Hyperbolic tangent."""
    return np.tanh(x)


def relu(x):
    """max(x, 0)."""
    return np.maximum(x, 0)


def drelu(y):
    """Derivative of relu at the point where it gave y: 1 where y > 0, else 0."""
    return np.heaviside(y, 0)


def exp(x):
    """e to the power of x; inf where that is too large."""
    with np.errstate(over="ignore"):
        return np.exp(x)


def softplus(x):
    """log(1 + exp(x)), without overflow for any finite x; exp(x) where x is very negative."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def maximum(a, b):
    """The larger of a and b; NaN if either is."""
    return np.maximum(a, b)


def minimum(a, b):
    """The smaller of a and b; NaN if either is."""
    return np.minimum(a, b)


def absolute(x):
    """|x|."""
    return np.abs(x)


def sqrt(x):
    """The square root; NaN where x is negative."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(x)


def where(condition, a, b):
    """a where the condition holds, else b; the condition is made with ``< <= > >=``.

    No comparison with NaN holds: there it is b. One of a and b may be a Python number. Two would
    not say which dtype the result has: write ``where(x > 0, y, 0.0)``, not
    ``where(x > 0, 1.0, 0.0) * y``.

    Both are computed everywhere, and so are their gradients: where a root or a quotient has none,
    keep it from what it cannot take, ``where(x > 0, sqrt(where(x > 0, x, 1.0)), 0.0)``.
    """
    if not (hasattr(a, "dtype") or hasattr(b, "dtype")):
        raise TypeError(f"where: expected a number of the cell as a or b, got {a!r} and {b!r}")
    return np.where(condition, a, b)


# ---- composites


def dsigmoid(y):
    """Derivative of sigmoid at the point where it gave y."""
    return y * (1 - y)


def dtanh(y):
    """Derivative of tanh at the point where it gave y: 1 - y²."""
    return 1 - y * y


def hard_sigmoid(x):
    """x / 6 + 1/2, kept from 0 to 1: as in PyTorch and Keras 3."""
    return minimum(maximum(x / 6 + 0.5, 0), 1)


def hard_tanh(x):
    """x, kept from -1 to 1."""
    return minimum(maximum(x, -1), 1)


def log_sigmoid(x):
    """log(sigmoid(x)), without overflow for any finite x; x where x is very negative."""
    return -softplus(-x)


def silu(x):
    """x sigmoid(x), also called swish."""
    return x * sigmoid(x)


COMPOSITES = dsigmoid, dtanh, hard_sigmoid, hard_tanh, log_sigmoid, silu
