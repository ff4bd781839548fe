"""The remedy for exploding gradients."""

from collections.abc import Sequence

import numpy as np

from ..backend import engine_of_param
from ..kernels.sparse_rows import SparseRows, numbers_of
from ..typing import Array, Scalar
from ..validation import expect_array, expect_float, expect_writable


def clip_grads(grads: Sequence[Array | SparseRows], max_norm: float) -> Scalar:
    """Scale all gradients together so that their global norm is at most ``max_norm``.

    The global norm is the Euclidean norm of all numbers of all gradients in one vector.

    Parameters
    ----------
    grads : list of arrays or SparseRows
        The gradients, scaled in place. They stay as they are if the norm is infinite or NaN.
    max_norm : float
        The largest norm.

    Returns
    -------
    norm : float or 0-d array
        The norm before clipping, which may be infinite or NaN. For gradients on a GPU it is a 0-d
        array there: ``float(norm)`` waits for the device, ``clip_grads`` does not.

    References
    ----------
    - Pascanu et al. 2013, *On the difficulty of training recurrent neural networks*.

    Examples
    --------
    >>> import numpy as np
    >>> grads = [np.array([3.0]), np.array([4.0])]
    >>> clip_grads(grads, max_norm=1.0)
    5.0
    """
    limit = expect_float("max_norm", max_norm, 0, low_open=True)
    if not grads:
        return 0.0
    grads = numbers_of(grads)
    engine = engine_of_param(grads[0])
    for k, grad in enumerate(grads):
        expect_array(f"grads[{k}]", grad, np.shape(grad), None, engine)
        expect_writable(f"grads[{k}]", grad)
    return engine.clip_norm(grads, limit)


def global_norm(grads: Sequence[Array | SparseRows]) -> Scalar:
    """The Euclidean norm of all the gradients' numbers in one vector, as ``clip_grads`` has it."""
    grads = numbers_of(grads)
    return engine_of_param(grads[0]).norm(grads) if grads else 0.0
