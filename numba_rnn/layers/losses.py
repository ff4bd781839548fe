"""Losses: the last layer, a number to minimise and its gradient.

A loss runs where its scores xs are. In host memory it returns a float; on a device an array
without axes, of which ``float(loss)`` makes one, waiting for the device. Targets in host memory are
checked there and then copied; to check targets on a device is to wait for it.

A loss is a mean, weighted where there are weights. Over a batch of no rows it is NaN, as NumPy's
and PyTorch's is, and the gradient is as empty as xs. Where there are rows, and a mask, weights or
labels say that none counts, the loss and the gradient are 0.
"""

import math
from typing import Any

import numpy as np

from ..backend import Engine, engine_for_work, to_host
from ..kernels.functions import sigmoid
from ..typing import AnyArray, Array, Flags, IntArray, Scalar
from ..validation import (
    any_shape,
    as_array,
    expect_array,
    expect_finite,
    expect_float,
    from_dlpack,
    validate_array,
    validate_flags,
    validate_ids,
)
from .base import Layer


def perplexity_of(loss: float) -> float:
    """exp of a mean loss in nats; beyond 700 nats, where it would overflow, exp(700)."""
    return math.exp(min(loss, 700.0))


def spell_perplexity(perplexity: float) -> str:
    """Three decimals, or three digits of what is very large."""
    return f"{perplexity:.3f}" if perplexity < 1e6 else f"{perplexity:.3g}"


class _Loss(Layer):
    """A loss without parameters."""

    count = 0.0

    def backward(self, dout: float = 1.0) -> Array:
        """Compute the gradient of dout * loss with respect to xs.

        Parameters
        ----------
        dout : float, default 1.0
            The factor of the loss.

        Returns
        -------
        dxs : array
            The gradient, in the shape of xs.
        """
        return self._gradient(expect_float("dout", dout, -math.inf), *self._saved())

    def _gradient(self, dout: float, *tape: Any) -> Array:
        raise NotImplementedError


class TimeSoftmaxWithLoss(_Loss):
    """Softmax and cross-entropy, the mean over all labels that are not ``ignore_label``.

    Attributes
    ----------
    ignore_label : int
        -1. A step with this label counts neither in the loss nor in the gradient. If all labels are
        ignored, the loss is 0.
    count : float
        How much counted in the last mean: the number of labels, or the sum of their weights.

    Notes
    -----
    The loss is in nats, exp(loss) is the perplexity.
    """

    ignore_label = -1

    def forward(self, xs: Array, ts: IntArray, *, weights: AnyArray | None = None) -> Scalar:
        """Compute the loss.

        Parameters
        ----------
        xs : (N, T, V) array, float32 or float64
            Scores before the softmax. They must not change before ``backward``.
        ts : (N, T) integers
            Labels from 0 to V - 1, or -1 for a step that does not count.
        weights : (N, T) array, optional
            How much each step counts, 0 or more; the loss is the weighted mean.

        Returns
        -------
        loss : float or 0-d array
            The mean loss in nats; a float in host memory, a 0-d array on a GPU.

        Raises
        ------
        ValueError
            If ts is not (N, T), as one-hot labels are not, or holds another label; if a weight is
            negative or not finite.
        """
        engine = engine_for_work(xs)
        xs = validate_array("xs", xs, ("N", "T", "V"), None, engine)
        N, T, V = xs.shape
        labels, each, self.count = counted_labels(ts, weights, xs, V, self.ignore_label, engine)
        count = divisor(self.count, xs)
        scores, xp = xs.reshape(N * T, V), engine.xp
        log_sums = engine.log_sum_exp(scores)
        of_label = scores[xp.arange(N * T), xp.maximum(labels, 0)] - log_sums[0]
        losses = log_sums[1] - of_label
        self._tape = engine, scores, log_sums, labels, each, count, xs.shape
        return engine.to_scalar(xp.where(each != 0, losses * each, 0.0).sum() / count)

    def _gradient(self, dout: float, *tape: Any) -> Array:
        engine, scores, log_sums, labels, each, count, shape = tape
        weights = each * (dout / count)
        return engine.softmax_gradient(scores, log_sums, labels, weights).reshape(shape)


def counted_labels(
    ts: Any, weights: Any, xs: Array, V: int, ignore_label: int, engine: Engine
) -> tuple[Any, Any, float]:
    """Labels (N T,) in int64, -1 where they do not count; how much each counts, in float64, and all
    together."""
    N, T = xs.shape[:2]
    ts = from_dlpack(ts, engine)
    if np.shape(ts) == (N, T, V):
        raise ValueError(
            f"ts: expected labels (N, T), got shape {np.shape(ts)}; "
            "ts.argmax(axis=2) converts one-hot labels"
        )
    on_device = validate_ids("ts", ts, (N, T), V, engine, ignore=ignore_label)
    counts = to_host(ts != ignore_label).reshape(-1)  # of ts as given: nothing to wait for
    each = counts.astype(np.float64)
    if weights is not None:
        each = np.where(counts, _weights(weights, (N, T)).reshape(-1), 0)
    count = float(each.sum())
    each = engine.to_device(each)
    labels = engine.xp.where(each != 0, on_device.reshape(-1).astype(np.int64), -1)
    return labels, each, count


def _weights(weights: Any, shape: tuple[int, int]) -> AnyArray:
    """Weights (N, T) in float64, in host memory."""
    found = as_array("weights", weights)
    if found.shape != shape or found.dtype.kind not in "iuf":
        raise ValueError(
            f"weights: expected numbers of shape {shape}, got {found.dtype} of {found.shape}"
        )
    found = found.astype(np.float64)
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise ValueError("weights: expected finite numbers, none below 0")
    return found


def divisor(count: float, xs: Array) -> float:
    """The divisor that makes a sum over xs, of which so many numbers count, their mean."""
    return count or (1 if xs.size else math.nan)


def _counted(
    mask: Any, weights: Any, xs: Array, ts: Any, engine: Engine
) -> tuple[Any, Any, Any, float]:
    """ts with 0 at steps that do not count, a mask for xs or None, the weights of its numbers or
    None, and how much all of them count."""
    if mask is None and weights is None:
        return ts, None, None, xs.size
    if xs.ndim < 2:
        name, given = ("weights", "weights") if mask is None else ("mask", "a mask")
        raise ValueError(f"{name}: expected xs of shape (N, T, ...) with {given}, got {xs.shape}")
    each = None if weights is None else _weights(weights, xs.shape[:2])
    flags: Any = each
    if mask is not None:
        flags = validate_flags("mask", mask, xs.shape[:2], engine)
        if each is not None:
            flags = to_host(flags) & (each > 0)
    elif each is not None:
        flags = each > 0
    wide = flags.reshape(*flags.shape, *(1,) * (xs.ndim - 2))
    total = int(flags.sum()) if each is None else float(each[to_host(flags)].sum())
    at_home = np if isinstance(ts, np.ndarray) else engine.xp
    ts = at_home.where(wide if at_home is np else engine.to_device(wide), ts, ts.dtype.type(0))
    factor = None if each is None else engine.to_device(each.reshape(wide.shape).astype(xs.dtype))
    return ts, engine.to_device(wide), factor, total * math.prod(xs.shape[2:])


class TimeSigmoidWithLoss(_Loss):
    """Sigmoid and binary cross-entropy, the mean over all numbers that count.

    Attributes
    ----------
    count : float
        How many numbers counted in the last mean, or the sum of their weights.
    """

    def forward(
        self,
        xs: Array,
        ts: AnyArray,
        mask: Flags | None = None,
        *,
        weights: AnyArray | None = None,
    ) -> Scalar:
        """Compute the loss.

        Parameters
        ----------
        xs : array of any shape, float32 or float64
            Scores before the sigmoid.
        ts : array
            Targets from 0 to 1, or bool, in the shape of xs.
        mask : (N, T) bool array, optional
            For xs of shape (N, T, ...): steps where it is False count neither in the loss nor in
            the gradient. If no step counts, the loss is 0.
        weights : (N, T) array, optional
            How much each step counts, 0 or more; the loss is the weighted mean.

        Returns
        -------
        loss : float or 0-d array
            The mean loss in nats; a float in host memory, a 0-d array on a GPU.

        Raises
        ------
        ValueError
            If a target is not between 0 and 1.
        """
        engine = engine_for_work(xs)
        xp, xs = engine.xp, validate_array("xs", xs, any_shape(xs), None, engine)
        ts = from_dlpack(ts, engine)
        kind = getattr(getattr(ts, "dtype", None), "kind", "f")
        expect_array("ts", ts, xs.shape, ts.dtype if kind in "iub" else xs.dtype, engine)
        ts, counted, factor, self.count = _counted(mask, weights, xs, ts, engine)
        count = divisor(self.count, xs)
        expect_finite("ts", ts)
        if ts.size and (ts.min() < 0 or ts.max() > 1):
            raise ValueError(f"ts: expected numbers from 0 to 1, got {ts.min()} to {ts.max()}")
        targets = validate_array("ts", ts, xs.shape, ts.dtype, engine).astype(xs.dtype)
        self._tape = xs.copy(), targets, counted, factor, count, xp
        # -t log y - (1 - t) log(1 - y), with y = sigmoid(x), in a form without overflow
        losses = xp.maximum(xs, 0) - xs * targets + xp.log1p(xp.exp(-xp.abs(xs)))
        losses = losses if counted is None else xp.where(counted, losses, losses.dtype.type(0))
        losses = losses if factor is None else losses * factor
        return engine.to_scalar(losses.sum(dtype=np.float64) / count)

    def _gradient(self, dout: float, *tape: Any) -> Array:
        xs, targets, counted, factor, count, xp = tape
        gradient = (sigmoid(xs) - targets) * xs.dtype.type(dout / count)
        gradient = gradient if factor is None else gradient * factor
        return gradient if counted is None else xp.where(counted, gradient, xs.dtype.type(0))


class TimeMSE(_Loss):
    """Mean squared error, the mean over all numbers that count.

    Attributes
    ----------
    count : float
        How many numbers counted in the last mean, or the sum of their weights.
    """

    def forward(
        self,
        xs: Array,
        ts: Array,
        mask: Flags | None = None,
        *,
        weights: AnyArray | None = None,
    ) -> Scalar:
        """Compute the loss.

        Parameters
        ----------
        xs : array of any shape, float32 or float64
            Outputs.
        ts : array
            Targets, in the shape and dtype of xs.
        mask : (N, T) bool array, optional
            For xs of shape (N, T, ...): steps where it is False count neither in the loss nor in
            the gradient. If no step counts, the loss is 0.
        weights : (N, T) array, optional
            How much each step counts, 0 or more; the loss is the weighted mean.

        Returns
        -------
        loss : float or 0-d array
            The mean of (xs - ts)²; a float in host memory, a 0-d array on a GPU.
        """
        engine = engine_for_work(xs)
        xs = validate_array("xs", xs, any_shape(xs), None, engine)
        ts = from_dlpack(ts, engine)
        expect_array("ts", ts, xs.shape, xs.dtype, engine)
        ts, counted, factor, self.count = _counted(mask, weights, xs, ts, engine)
        count = divisor(self.count, xs)
        expect_finite("ts", ts)
        difference = xs - validate_array("ts", ts, xs.shape, xs.dtype, engine)
        if counted is not None:
            difference = engine.xp.where(counted, difference, xs.dtype.type(0))
        self._tape = difference, factor, count
        squares = engine.xp.square(difference, dtype=np.float64)
        squares = squares if factor is None else squares * factor
        return engine.to_scalar(squares.sum() / count)

    def _gradient(self, dout: float, *tape: Any) -> Array:
        difference, factor, count = tape
        gradient = difference * difference.dtype.type(2 * dout / count)
        return gradient if factor is None else gradient * factor
