"""Losses: the last layer, a number to minimise and its gradient."""

import math
from typing import Any

import numpy as np

from ..checks import Array, any_shape, expect_array, expect_finite, expect_float, expect_ids
from ..kernels.functions import sigmoid
from .base import Layer


def perplexity_of(loss: float) -> float:
    """exp of a mean loss in nats; beyond 700 nats, where it would overflow, exp(700)."""
    return math.exp(min(loss, 700.0))


class _Loss(Layer):
    """A loss without parameters."""

    def backward(self, dout: float = 1.0) -> Array:
        """The gradient of dout * loss by xs, the shape of xs."""
        return self._gradient(expect_float("dout", dout, -math.inf), *self._recall())

    def _gradient(self, dout: float, *tape: Any) -> Array:
        raise NotImplementedError


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
        if np.shape(ts) == xs.shape:
            raise ValueError(
                f"ts: expected labels (N, T), got shape {np.shape(ts)}; one-hot labels become "
                "such by ts.argmax(axis=2)"
            )
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

        self._tape = shifted, total, labels, counts, count, xs.shape
        return float(losses[counts].sum() / count)

    def _gradient(self, dout: float, *tape: Any) -> Array:
        exps, total, labels, counts, count, shape = tape
        scale = exps.dtype.type(dout / count)
        gradient = exps * (scale / total)  # softmax
        gradient[np.arange(len(labels)), labels] -= scale
        gradient[~counts] = 0
        return gradient.reshape(shape)


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
        self._tape = xs.copy(), targets
        # -t log y - (1 - t) log(1 - y), with y = sigmoid(x), in a form without overflow
        losses = np.maximum(xs, 0) - xs * targets + np.log1p(np.exp(-np.abs(xs)))
        return float(losses.mean(dtype=np.float64))

    def _gradient(self, dout: float, *tape: Any) -> Array:
        xs, targets = tape
        return (sigmoid(xs) - targets) * xs.dtype.type(dout / xs.size)


class TimeMSE(_Loss):
    """Mean squared error, mean over all numbers."""

    def forward(self, xs: Array, ts: Array) -> float:
        """xs and ts of the same shape and dtype: outputs and targets."""
        expect_array("xs", xs, any_shape(xs))
        expect_array("ts", ts, xs.shape, xs.dtype)
        expect_finite("ts", ts)
        difference = xs - ts
        self._tape = (difference,)
        return float(np.square(difference, dtype=np.float64).mean())

    def _gradient(self, dout: float, *tape: Any) -> Array:
        (difference,) = tape
        return difference * difference.dtype.type(2 * dout / difference.size)
