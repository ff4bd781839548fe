"""The book's ``common/layers.py``: layers of one step, x (N, D).

Each has ``params`` and ``grads``, ``forward`` and ``backward`` as the book has them. N rows, D
inputs, M outputs, V classes or words.
"""

from typing import Any

import numpy as np

from .. import layers as ours
from ..backend import engine_for
from ..checks import Array, accept, any_shape, expect_float
from ..layers import TimeSigmoidWithLoss as SigmoidWithLoss  # the mean over x of any shape
from ..layers.base import Layer
from .functions import cross_entropy_error, sigmoid, softmax

__all__ = [
    "Affine", "Dropout", "Embedding", "MatMul", "Sigmoid", "SigmoidWithLoss", "Softmax",
    "SoftmaxWithLoss", "cross_entropy_error", "np", "softmax",
]  # fmt: skip


def labels_of(ts: Array, axes: int) -> Array:
    """Labels with so many axes, from labels or from one-hot vectors along one axis more.

    Raises ValueError for vectors that are not one-hot.
    """
    if np.ndim(ts) != axes + 1:
        return ts
    if not ((ts == 0) | (ts == 1)).all() or not (ts.sum(axis=-1) == 1).all():
        raise ValueError("ts: expected labels or one-hot vectors, got vectors that are not one-hot")
    return ts.argmax(axis=-1)


class MatMul(Layer):
    """y = x W: W (D, M), x (N, D), y (N, M).

    dx = dy Wᵀ,  dW = xᵀ dy
    """

    param_names = ("W",)

    def __init__(self, W: Array) -> None:
        super().__init__(accept("W", W, ("D", "M"), None, engine_for(W)))

    def forward(self, x: Array) -> Array:
        """x (N, D) -> (N, M)."""
        (W,), here = self.params, self._engine()
        x = accept("x", x, ("N", len(W)), self.dtype, here)
        self._tape = here, x
        return here.product(x, W)

    def backward(self, dout: Array) -> Array:
        """dout (N, M) -> dx (N, D); fills ``grads``."""
        (W,), (dW,), (here, x) = self.params, self.grads, self._recall()
        dout = accept("dout", dout, (len(x), W.shape[1]), self.dtype, here)
        dW[...] = here.product(x.T, dout)
        return here.product(dout, W.T)


class Affine(ours.TimeAffine):
    """y = x W + b: W (D, M), b (M,), x (N, D), y (N, M); TimeAffine of one step.

    dx = dy Wᵀ,  dW = xᵀ dy,  db = the sum of dy's rows
    """

    def forward(self, x: Array) -> Array:
        """x (N, D) -> (N, M)."""
        return super().forward(x[:, None])[:, 0]

    def backward(self, dout: Array) -> Array:
        """dout (N, M) -> dx (N, D); fills ``grads``."""
        return super().backward(dout[:, None])[:, 0]


class Embedding(ours.TimeEmbedding):
    """y = W[idx]: W (V, D), idx (N,), y (N, D); TimeEmbedding of one step.

    dW[idx] += dy, rows that are named several times adding up
    """

    def forward(self, idx: Array) -> Array:
        """idx (N,), integers from 0 to V - 1 -> (N, D)."""
        return super().forward(idx[:, None])[:, 0]

    def backward(self, dout: Array) -> None:
        """dout (N, D); fills ``grads``."""
        super().backward(dout[:, None])


class Softmax(Layer):
    """y = exp(x) / sum(exp(x)) along the rows: x and y (N, V).

    dx = y (dy - sum(y dy))

    out   y of the last forward, or None
    """

    out: Array | None = None

    def forward(self, x: Array) -> Array:
        """x (N, V) -> (N, V), rows that sum to 1."""
        here = engine_for(x)
        self.out = softmax(accept("x", x, ("N", "V"), None, here))
        self._tape = here, self.out
        return self.out

    def backward(self, dout: Array) -> Array:
        """dout (N, V) -> dx (N, V)."""
        here, y = self._recall()
        dout = accept("dout", dout, y.shape, y.dtype, here)
        return y * (dout - (y * dout).sum(axis=1, keepdims=True))


class SoftmaxWithLoss(ours.TimeSoftmaxWithLoss):
    """loss = -log(softmax(x) of the right class), the mean over the rows: x (N, V).

    dx = (softmax(x) - one-hot t) / N
    """

    def forward(self, x: Array, t: Array) -> Any:
        """x (N, V), t (N,) labels or (N, V) one-hot -> the loss."""
        return super().forward(x[:, None], labels_of(t, 1)[:, None])

    def backward(self, dout: float = 1) -> Array:
        """dout times the gradient by x, (N, V)."""
        return super().backward(dout)[:, 0]


class Sigmoid(Layer):
    """y = 1 / (1 + exp(-x)), any shape.

    dx = dy y (1 - y)

    out   y of the last forward, or None
    """

    out: Array | None = None

    def forward(self, x: Array) -> Array:
        """x, any shape -> the same shape."""
        here = engine_for(x)
        self.out = sigmoid(accept("x", x, any_shape(x), None, here))
        self._tape = here, self.out
        return self.out

    def backward(self, dout: Array) -> Array:
        """dout, the shape of x -> dx."""
        here, y = self._recall()
        return accept("dout", dout, y.shape, y.dtype, here) * y * (1 - y)


class Dropout(Layer):
    """y = x mask in training, x (1 - dropout_ratio) after it, any shape; dx = dy mask.

    The mask is np.random.rand(*x.shape) > dropout_ratio, so that ``np.random.seed`` decides it.

    mask   of the last forward in training, or None
    """

    def __init__(self, dropout_ratio: float = 0.5) -> None:
        super().__init__()
        self.dropout_ratio = expect_float("dropout_ratio", dropout_ratio, 0, 1)
        self.mask: Array | None = None

    def forward(self, x: Array, train_flg: bool = True) -> Array:
        """x, any shape -> the same shape and dtype."""
        here = engine_for(x)
        x = accept("x", x, any_shape(x), None, here)
        if not train_flg:
            return x * x.dtype.type(1 - self.dropout_ratio)
        keep = np.random.rand(*x.shape) > self.dropout_ratio  # noqa: NPY002 (the book's)
        self.mask = here.to_device(keep)
        self._tape = here, self.mask, x.dtype
        return x * self.mask

    def backward(self, dout: Array) -> Array:
        """dout, the shape of x -> dx."""
        here, mask, dtype = self._recall()
        return accept("dout", dout, mask.shape, dtype, here) * mask
