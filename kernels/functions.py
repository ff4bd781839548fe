"""The functions that cells are written with.

These definitions work on NumPy arrays; they are the specification.

Primitives   A compiled engine registers its own version of each (``cpu/vector_functions.py``,
             ``cuda/vector_type.py``), so a cell function that calls ``sigmoid(a)`` runs unchanged
             on whatever numbers that engine uses.
Composites   These are made of primitives and ``+ - * /``, and serve every engine as they stand.

Each derivative takes the function's *output*, as in the lecture: backward then needs no
pre-activations, only what forward has already stored.

NaN stays NaN in all of them. Of several arguments some may be Python numbers, but not all: the
result has the dtype of the others. Both choices of a ``where`` are computed in every place, so no
finite number draws a warning: exp that overflows is inf, sqrt of a negative number NaN.

To add a composite, define it here and name it in ``COMPOSITES``. To add a primitive, define it here
and register its versions in those two.
"""

from typing import Any, TypeVar

import numpy as np

__all__ = [
    "absolute", "drelu", "dsigmoid", "dtanh", "exp", "hard_sigmoid", "hard_tanh", "log_sigmoid",
    "maximum", "minimum", "relu", "sigmoid", "silu", "softplus", "sqrt", "tanh", "where",
]  # fmt: skip

X = TypeVar("X", bound=Any)  # an array, a vector, a number of a trace: the result is of its kind

# ---- primitives


def sigmoid(x: X) -> X:
    """1 / (1 + exp(-x)), without overflow for any finite x.

    Parameters
    ----------
    x : number of a cell or array

    Notes
    -----
    exp only ever gets -abs(x), so it cannot overflow. The two branches are the same quotient,
    expanded by exp(x) where x is negative. (``abs`` and ``maximum`` have no slope at 0, which
    ``where`` has: dual numbers are differentiated as they are computed.)
    """
    e = np.exp(np.where(x >= 0, -x, x))
    return np.where(x >= 0, 1, e) / (1 + e)


def tanh(x: X) -> X:
    """Hyperbolic tangent.

    Parameters
    ----------
    x : number of a cell or array
    """
    return np.tanh(x)


def relu(x: X) -> X:
    """max(x, 0).

    Parameters
    ----------
    x : number of a cell or array
    """
    return np.maximum(x, 0)


def drelu(y: X) -> X:
    """Derivative of relu from its output: 1 where y > 0, otherwise 0.

    Parameters
    ----------
    y : number of a cell or array
        The output of relu.
    """
    return np.heaviside(y, 0)


def exp(x: X) -> X:
    """e to the power of x; inf if that is too large.

    Parameters
    ----------
    x : number of a cell or array
    """
    with np.errstate(over="ignore"):
        return np.exp(x)


def softplus(x: X) -> X:
    """log(1 + exp(x)), without overflow for any finite x; exp(x) where x is very negative.

    Parameters
    ----------
    x : number of a cell or array
    """
    above = x >= 0  # as in sigmoid
    return np.where(above, x, 0) + np.log1p(np.exp(np.where(above, -x, x)))


def maximum(a: Any, b: Any) -> Any:
    """The larger of a and b; NaN if one of them is NaN.

    Parameters
    ----------
    a, b : number of a cell or array
        One of them may be a Python number.
    """
    return np.maximum(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of a and b; NaN if one of them is NaN.

    Parameters
    ----------
    a, b : number of a cell or array
        One of them may be a Python number.
    """
    return np.minimum(a, b)


def absolute(x: X) -> X:
    """Absolute value of x.

    Parameters
    ----------
    x : number of a cell or array
    """
    return np.abs(x)


def sqrt(x: X) -> X:
    """Square root of x; NaN where x is negative.

    Parameters
    ----------
    x : number of a cell or array
    """
    with np.errstate(invalid="ignore"):
        return np.sqrt(x)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, otherwise b.

    Parameters
    ----------
    condition : comparison
        It is made with ``< <= > >=``. No comparison with NaN holds, so there the result is b.
    a, b : number of a cell or array
        One of them may be a Python number, but not both, since they determine the dtype: write
        ``where(x > 0, y, 0.0)``, not ``where(x > 0, 1.0, 0.0) * y``.

    Raises
    ------
    TypeError
        If both a and b are Python numbers.

    Notes
    -----
    Both are computed everywhere, and so are their gradients. If a root or a quotient is not defined
    everywhere, guard its argument: ``where(x > 0, sqrt(where(x > 0, x, 1.0)), 0.0)``.
    """
    if not (hasattr(a, "dtype") or hasattr(b, "dtype")):
        raise TypeError(
            f"where: expected at least one choice that the cell computes, got {a!r} and {b!r}"
        )
    return np.where(condition, a, b)


# ---- composites


def dsigmoid(y: X) -> X:
    """Derivative of sigmoid from its output: y (1 - y).

    Parameters
    ----------
    y : number of a cell or array
        The output of sigmoid.
    """
    return y * (1 - y)


def dtanh(y: X) -> X:
    """Derivative of tanh from its output: 1 - y².

    Parameters
    ----------
    y : number of a cell or array
        The output of tanh.
    """
    return 1 - y * y


def hard_sigmoid(x: X) -> X:
    """x / 6 + 1/2, limited to the range from 0 to 1, as in PyTorch and Keras 3.

    Parameters
    ----------
    x : number of a cell or array
    """
    return minimum(maximum(x / 6 + 0.5, 0), 1)


def hard_tanh(x: X) -> X:
    """x, limited to the range from -1 to 1.

    Parameters
    ----------
    x : number of a cell or array
    """
    return minimum(maximum(x, -1), 1)


def log_sigmoid(x: X) -> X:
    """log(sigmoid(x)), without overflow for any finite x; x where x is very negative.

    Parameters
    ----------
    x : number of a cell or array
    """
    return -softplus(-x)


def silu(x: X) -> X:
    """x sigmoid(x), also called swish.

    Parameters
    ----------
    x : number of a cell or array
    """
    return x * sigmoid(x)


COMPOSITES = dsigmoid, dtanh, hard_sigmoid, hard_tanh, log_sigmoid, silu
