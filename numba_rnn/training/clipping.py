"""The remedy for exploding gradients."""

from typing import Any

import numpy as np

from ..backend import engine_of
from ..checks import Array, expect_array, expect_float, expect_writable


def clip_grads(grads: list[Array], max_norm: float) -> Any:
    """Scale all gradients together so that their global norm is at most ``max_norm``.

    The norm is that of all the gradients' numbers in one vector (Pascanu et al. 2013); the
    gradients are scaled in place. Returns the norm before clipping, which may be infinite or NaN;
    the gradients are then left as they are. It is a float; for gradients on a device an array
    there without axes, of which ``float`` makes one, and nothing waits for the device.

    >>> import numpy as np
    >>> grads = [np.array([3.0]), np.array([4.0])]
    >>> clip_grads(grads, max_norm=1.0)
    5.0
    """
    limit = expect_float("max_norm", max_norm, 0, low_open=True)
    if not grads:
        return 0.0
    here = engine_of(grads[0])
    for k, grad in enumerate(grads):
        expect_array(f"grads[{k}]", grad, np.shape(grad), None, here)
        expect_writable(f"grads[{k}]", grad)
    return here.clip(grads, limit)


def global_norm(grads: list[Array]) -> Any:
    """The Euclidean norm of all the gradients' numbers in one vector, as ``clip_grads`` has it."""
    return engine_of(grads[0]).norm(grads) if grads else 0.0
