"""The activation functions that cells are written with, and their derivatives.

These definitions work on NumPy arrays; they are the specification. A compiled engine registers
its own version of each (``cpu/vector_functions.py``, ``cuda/lanes.py``), so a cell function that
calls ``sigmoid(a)`` runs unchanged on whatever numbers that engine uses.

Each derivative takes the function's *output*, as in the lecture: backward then needs no
pre-activations, only what forward has already stored.

To add a function, define it here and register its versions in those two. ``sqrt`` is for optimisers
(``ReferenceEngine.update``) and has none for the CPU.
"""

import numpy as np

__all__ = ["drelu", "dsigmoid", "dtanh", "relu", "sigmoid", "tanh"]


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow for any finite x.

    exp only ever sees -|x|, so it cannot overflow; the two branches are the same
    quotient, multiplied through by exp(x) where x is negative.
    """
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def dsigmoid(y):
    """Derivative of sigmoid at the point where it gave y."""
    return y * (1 - y)


def tanh(x):
    """Hyperbolic tangent."""
    return np.tanh(x)


def dtanh(y):
    """Derivative of tanh at the point where it gave y: 1 - y²."""
    return 1 - y * y


def relu(x):
    """max(x, 0); NaN stays NaN."""
    return np.maximum(x, 0)


def drelu(y):
    """Derivative of relu at the point where it gave y: 1 where y > 0, else 0."""
    return np.heaviside(y, 0)


def sqrt(x):
    """The square root."""
    return np.sqrt(x)
