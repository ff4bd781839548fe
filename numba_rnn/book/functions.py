"""The book's ``common/functions.py``."""

import numpy as np

from ..kernels.functions import relu, sigmoid
from ..typing import Array

__all__ = ["cross_entropy_error", "np", "relu", "sigmoid", "softmax"]


def softmax(x: Array) -> Array:
    """Compute exp(x) / sum(exp(x)) along the last axis.

    Parameters
    ----------
    x : array of any shape
        Scores.

    Returns
    -------
    array
        Probabilities, in the shape of x.
    """
    exps = np.exp(x - x.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def cross_entropy_error(y: Array, t: Array) -> Array:
    """Compute the mean over the rows of -log(y of the right class + 1e-7).

    Parameters
    ----------
    y : (N, V) or (V,) array
        Probabilities.
    t : (N,) integers, or one-hot in the shape of y
        The labels.

    Returns
    -------
    0-d array
        The loss in nats.
    """
    y = y.reshape(-1, y.shape[-1])
    labels = t.reshape(y.shape).argmax(axis=1) if t.size == y.size else t.reshape(-1)
    return -np.log(y[np.arange(len(y)), labels] + 1e-7).mean()
