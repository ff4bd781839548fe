"""The remedy for exploding gradients."""

import math

import numpy as np

from ..checks import Array, expect_float


def clip_grads(grads: list[Array], max_norm: float) -> float:
    """Scale all gradients together so that their global norm is at most ``max_norm``.

    The norm is that of all the gradients' numbers in one vector (Pascanu et al. 2013); the
    gradients are scaled in place. Returns the norm before clipping, which may be infinite or NaN;
    the gradients are then left as they are.

    >>> grads = [np.array([3.0]), np.array([4.0])]
    >>> clip_grads(grads, max_norm=1.0)
    5.0
    """
    limit = expect_float("max_norm", max_norm, 0, low_open=True)
    norm = global_norm(grads)
    if math.isfinite(norm) and norm > limit:
        for grad in grads:
            grad *= limit / norm
    return norm


def global_norm(grads: list[Array]) -> float:
    """The Euclidean norm of all the gradients' numbers in one vector."""
    with np.errstate(over="ignore"):
        norms = [float(np.linalg.norm(grad)) for grad in grads]
    if math.isinf(max(norms, default=0.0)):  # the squares overflowed, perhaps not the norm
        norms = [float(np.linalg.norm(grad.astype(np.float64))) for grad in grads]
    return math.hypot(*norms)
