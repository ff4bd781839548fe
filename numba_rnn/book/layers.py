"""The book's ``common/layers.py``: layers of one step, x (N, D).

Each has ``params`` and ``grads``, ``forward`` and ``backward`` as the book has them. N rows, D
inputs, M outputs, V classes or words.
"""

import numpy as np

from .. import layers as ours
from ..backend import engine_for_input
from ..layers import TimeSigmoidWithLoss as SigmoidWithLoss  # the mean over x of any shape
from ..layers.base import Layer
from ..typing import AnyArray, Array, IntArray, Scalar
from ..validation import any_shape, expect_float, validate_array
from .functions import cross_entropy_error, sigmoid, softmax

__all__ = [
    "Affine", "Dropout", "Embedding", "MatMul", "Sigmoid", "SigmoidWithLoss", "Softmax",
    "SoftmaxWithLoss", "cross_entropy_error", "np", "softmax",
]  # fmt: skip


def labels_of(ts: AnyArray, axes: int) -> IntArray:
    """Labels with so many axes, from labels or from one-hot vectors along one axis more.

    Raises ValueError for vectors that are not one-hot.
    """
    if np.ndim(ts) != axes + 1:
        return ts
    if not ((ts == 0) | (ts == 1)).all() or not (ts.sum(axis=-1) == 1).all():
        raise ValueError("ts: expected labels or one-hot vectors, got vectors that are not one-hot")
    return ts.argmax(axis=-1)


class MatMul(Layer):
    """The product y = x W.

    The gradients are dx = dy Wᵀ and dW = xᵀ dy.

    Parameters
    ----------
    W : (D, M) array, float32 or float64
        The weights.
    """

    param_names = ("W",)

    def __init__(self, W: Array) -> None:
        super().__init__(validate_array("W", W, ("D", "M"), None, engine_for_input(W)))

    def forward(self, x: Array) -> Array:
        """Compute the product.

        Parameters
        ----------
        x : (N, D) array
            The input.

        Returns
        -------
        y : (N, M) array
            The output.
        """
        (W,), engine = self.params, self._engine()
        x = validate_array("x", x, ("N", len(W)), self.dtype, engine)
        self._tape = engine, x
        return engine.product(x, W)

    def backward(self, dout: Array) -> Array:
        """Compute the gradients and fill ``grads``.

        Parameters
        ----------
        dout : (N, M) array
            The gradient of the output.

        Returns
        -------
        dx : (N, D) array
            The gradient of the input.
        """
        (W,), (dW,), (engine, x) = self.params, self.grads, self._saved()
        dout = validate_array("dout", dout, (len(x), W.shape[1]), self.dtype, engine)
        dW[...] = engine.product(x.T, dout)
        return engine.product(dout, W.T)


class Affine(ours.TimeAffine):
    """The affine transformation y = x W + b; TimeAffine for one step.

    The gradients are dx = dy Wᵀ, dW = xᵀ dy and db = the sum of the rows of dy.

    Parameters
    ----------
    W : (D, M) array, float32 or float64
        The weights.
    b : (M,) array
        The bias.
    """

    def forward(self, x: Array) -> Array:
        """Compute the transformation.

        Parameters
        ----------
        x : (N, D) array
            The input.

        Returns
        -------
        y : (N, M) array
            The output.
        """
        return super().forward(x[:, None])[:, 0]

    def backward(self, dout: Array) -> Array:
        """Compute the gradients and fill ``grads``.

        Parameters
        ----------
        dout : (N, M) array
            The gradient of the output.

        Returns
        -------
        dx : (N, D) array
            The gradient of the input.
        """
        return super().backward(dout[:, None])[:, 0]


class Embedding(ours.TimeEmbedding):
    """Word vectors y = W[idx]; TimeEmbedding for one step.

    The gradient is dW[idx] += dy: rows that occur several times are summed.

    Parameters
    ----------
    W : (V, D) array, float32 or float64
        The vectors.
    """

    def forward(self, idx: IntArray) -> Array:
        """Look up the vectors.

        Parameters
        ----------
        idx : (N,) integers
            Word numbers from 0 to V - 1.

        Returns
        -------
        y : (N, D) array
            Their vectors.
        """
        return super().forward(idx[:, None])[:, 0]

    def backward(self, dout: Array) -> None:
        """Compute the gradient of W and fill ``grads``.

        Parameters
        ----------
        dout : (N, D) array
            The gradient of the vectors.
        """
        super().backward(dout[:, None])


class Softmax(Layer):
    """Softmax along the rows, y = exp(x) / sum(exp(x)).

    The gradient is dx = y (dy - sum(y dy)).

    Attributes
    ----------
    out : (N, V) array or None
        y of the last forward.
    """

    out: Array | None = None

    def forward(self, x: Array) -> Array:
        """Compute the softmax.

        Parameters
        ----------
        x : (N, V) array
            Scores.

        Returns
        -------
        y : (N, V) array
            Probabilities; each row sums to 1.
        """
        engine = engine_for_input(x)
        self.out = softmax(validate_array("x", x, ("N", "V"), None, engine))
        self._tape = engine, self.out
        return self.out

    def backward(self, dout: Array) -> Array:
        """Compute the gradient.

        Parameters
        ----------
        dout : (N, V) array
            The gradient of y.

        Returns
        -------
        dx : (N, V) array
            The gradient of x.
        """
        engine, y = self._saved()
        dout = validate_array("dout", dout, y.shape, y.dtype, engine)
        return y * (dout - (y * dout).sum(axis=1, keepdims=True))


class SoftmaxWithLoss(ours.TimeSoftmaxWithLoss):
    """Softmax and cross-entropy: the mean over the rows of -log(softmax(x) of the right class).

    The gradient is dx = (softmax(x) - one-hot t) / N.
    """

    def forward(self, x: Array, t: AnyArray, *, weights: AnyArray | None = None) -> Scalar:
        """Compute the loss.

        Parameters
        ----------
        x : (N, V) array
            Scores.
        t : (N,) integers or (N, V) one-hot array
            Labels.
        weights : (N,) array, optional
            How much each row counts.

        Returns
        -------
        loss : float
            The mean loss in nats.
        """
        each = None if weights is None else weights[:, None]
        return super().forward(x[:, None], labels_of(t, 1)[:, None], weights=each)

    def backward(self, dout: float = 1) -> Array:
        """Compute the gradient of dout * loss.

        Parameters
        ----------
        dout : float, default 1
            The factor of the loss.

        Returns
        -------
        dx : (N, V) array
            The gradient of x.
        """
        return super().backward(dout)[:, 0]


class Sigmoid(Layer):
    """The sigmoid y = 1 / (1 + exp(-x)), of any shape.

    The gradient is dx = dy y (1 - y).

    Attributes
    ----------
    out : array or None
        y of the last forward.
    """

    out: Array | None = None

    def forward(self, x: Array) -> Array:
        """Compute the sigmoid.

        Parameters
        ----------
        x : array of any shape
            The input.

        Returns
        -------
        y : array
            The output, in the shape of x.
        """
        engine = engine_for_input(x)
        self.out = sigmoid(validate_array("x", x, any_shape(x), None, engine))
        self._tape = engine, self.out
        return self.out

    def backward(self, dout: Array) -> Array:
        """Compute the gradient.

        Parameters
        ----------
        dout : array
            The gradient of y.

        Returns
        -------
        dx : array
            The gradient of x.
        """
        engine, y = self._saved()
        return validate_array("dout", dout, y.shape, y.dtype, engine) * y * (1 - y)


class Dropout(Layer):
    """Dropout: y = x mask in training, x (1 - dropout_ratio) after it, of any shape; dx = dy mask.

    The mask is ``np.random.rand(*x.shape) > dropout_ratio``, so that ``np.random.seed`` determines
    it.

    Parameters
    ----------
    dropout_ratio : float, default 0.5
        The share of numbers that is dropped.

    Attributes
    ----------
    mask : array or None
        The mask of the last forward in training.
    """

    def __init__(self, dropout_ratio: float = 0.5) -> None:
        super().__init__()
        self.dropout_ratio = expect_float("dropout_ratio", dropout_ratio, 0, 1)
        self.mask: Array | None = None

    def forward(self, x: Array, train_flg: bool = True) -> Array:
        """Drop numbers of x in training.

        Parameters
        ----------
        x : array of any shape
            The input.
        train_flg : bool, default True
            True in training.

        Returns
        -------
        y : array
            The output, in the shape and dtype of x.
        """
        engine = engine_for_input(x)
        x = validate_array("x", x, any_shape(x), None, engine)
        if not train_flg:
            return x * x.dtype.type(1 - self.dropout_ratio)
        keep = np.random.rand(*x.shape) > self.dropout_ratio  # noqa: NPY002 (the book's)
        self.mask = engine.to_device(keep)
        self._tape = engine, self.mask, x.dtype
        return x * self.mask

    def backward(self, dout: Array) -> Array:
        """Compute the gradient.

        Parameters
        ----------
        dout : array
            The gradient of y.

        Returns
        -------
        dx : array
            The gradient of x.
        """
        engine, mask, dtype = self._saved()
        return validate_array("dout", dout, mask.shape, dtype, engine) * mask
