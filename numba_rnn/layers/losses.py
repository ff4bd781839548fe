"""Losses: the last layer, a number to minimise and its gradient."""

import math

import numpy as np

from ..checks import Array, any_shape, expect_array, expect_finite, expect_float, expect_ids
from ..kernels.functions import sigmoid
from .base import ForwardFirst, Layer


class _Loss(Layer):
    """A loss without parameters; forward leaves the gradient of a loss of 1."""

    def __init__(self) -> None:
        super().__init__()
        self._gradient: Array | None = None

    def backward(self, dout: float = 1.0) -> Array:
        """The gradient of dout * loss by xs, the shape of xs."""
        if self._gradient is None:
            raise ForwardFirst(self)
        scale = expect_float("dout", dout, -math.inf)
        return self._gradient if scale == 1 else self._gradient * self._gradient.dtype.type(scale)


class TimeSoftmaxWithLoss(_Loss):
    """Softmax and cross-entropy, mean over all labels that are not ``ignore_label``.

    ignore_label  -1: such a place counts neither in the loss nor in the gradient. Where all are
                  ignored the loss is 0.

    exp(loss) is the perplexity.
    """

    ignore_label = -1

    def forward(self, xs: Array, ts: Array) -> float:
        """xs (N, T, V) scores before softmax, ts (N, T) labels from 0 to V - 1, or -1."""
        expect_array("xs", xs, ("N", "T", "V"))
        N, T, V = xs.shape
        expect_ids("ts", ts, (N, T), V, ignore=self.ignore_label)
        scores, labels = xs.reshape(N * T, V), ts.reshape(-1)
        rows = np.arange(N * T)
        counts = labels != self.ignore_label
        count = max(int(counts.sum()), 1)

        with np.errstate(over="ignore"):  # towards -inf, whose share is 0
            shifted = scores - scores.max(axis=1, keepdims=True)  # the largest is 0
        of_label = shifted[rows, labels]
        np.exp(shifted, out=shifted)
        total = shifted.sum(axis=1, keepdims=True)
        losses = np.log(total[:, 0].astype(np.float64)) - of_label

        gradient = shifted
        gradient /= total * count  # softmax / count
        gradient[rows, labels] -= xs.dtype.type(1 / count)
        gradient[~counts] = 0
        self._gradient = gradient.reshape(N, T, V)
        return float(losses[counts].sum() / count)


class TimeSigmoidWithLoss(_Loss):
    """Sigmoid and binary cross-entropy, mean over all places."""

    def forward(self, xs: Array, ts: Array) -> float:
        """xs, any shape: scores before sigmoid; ts, the same shape: from 0 to 1, or bool."""
        expect_array("xs", xs, any_shape(xs))
        dtype = ts.dtype if isinstance(ts, np.ndarray) and ts.dtype.kind in "iub" else xs.dtype
        expect_array("ts", ts, xs.shape, dtype)
        expect_finite("ts", ts)
        if ts.min() < 0 or ts.max() > 1:
            raise ValueError(f"ts: expected numbers from 0 to 1, got {ts.min()} to {ts.max()}")
        targets = ts.astype(xs.dtype)
        self._gradient = ((sigmoid(xs) - targets) / xs.size).astype(xs.dtype)
        # -t log y - (1 - t) log(1 - y), with y = sigmoid(x), in a form without overflow
        losses = np.maximum(xs, 0) - xs * targets + np.log1p(np.exp(-np.abs(xs)))
        return float(losses.mean(dtype=np.float64))


class TimeMSE(_Loss):
    """Mean squared error, mean over all numbers."""

    def forward(self, xs: Array, ts: Array) -> float:
        """xs and ts of the same shape and dtype: outputs and targets."""
        expect_array("xs", xs, any_shape(xs))
        expect_array("ts", ts, xs.shape, xs.dtype)
        expect_finite("ts", ts)
        difference = xs - ts
        self._gradient = difference * xs.dtype.type(2 / xs.size)
        return float(np.square(difference, dtype=np.float64).mean())
