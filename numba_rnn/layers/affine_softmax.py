"""An affine layer and the softmax loss in one, for large vocabularies."""

from typing import Any

import numpy as np

from ..typing import AnyArray, Array, IntArray, Scalar
from ..validation import expect_float, expect_int, validate_array
from .base import Layer
from .dense import TimeAffine, affine_of
from .losses import TimeSoftmaxWithLoss, counted_labels, divisor


class SoftmaxInBlocks(Layer):
    """The scores of an affine layer and the softmax loss, some words at a time."""

    block = 8192
    ignore_label = TimeSoftmaxWithLoss.ignore_label
    role_in_stream = None

    def _as_affine(self, arrays: list[Any]) -> tuple[Array, Array]:
        """W (D, V) and b, or their gradients, as an affine layer has them."""
        W, b = arrays
        return W, b

    def scores(self, xs: Array) -> Array:
        """Compute the scores before the softmax.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs.

        Returns
        -------
        (N, T, V) array
            The scores of every step.
        """
        return affine_of(self, xs, *self._as_affine(self.params))[2]

    def forward(self, xs: Array, ts: IntArray, *, weights: AnyArray | None = None) -> Scalar:
        """Compute the loss.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs.
        ts : (N, T) integers
            Labels from 0 to V - 1, or -1 for a step that does not count.
        weights : (N, T) array, optional
            How much each step counts, 0 or more; the loss is the weighted mean.

        Returns
        -------
        loss : float or 0-d array
            The mean loss in nats; a float in host memory, a 0-d array on a GPU.
        """
        W, _ = self._as_affine(self.params)
        engine = self._engine()
        xs = validate_array("xs", xs, ("N", "T", W.shape[0]), self.dtype, engine)
        labels, each, self.count = counted_labels(
            ts, weights, xs, W.shape[1], self.ignore_label, engine
        )
        count = divisor(self.count, xs)
        rows, xp = xs.reshape(-1, W.shape[0]), engine.xp
        sums, of_label = [], xp.zeros(len(rows), np.float64)
        for columns in self._blocks():
            scores, here = self._scores_of(rows, columns), _within(xp, labels, columns)
            sums.append(engine.log_sum_exp(scores))
            score = scores[xp.arange(len(rows)), xp.maximum(here, 0)]
            of_label = xp.where(here >= 0, score, of_label)
        log_sums = _together(xp, xp.stack(sums))
        losses = log_sums[1] - (of_label - log_sums[0])
        self._tape = engine, rows, log_sums, labels, each, count, xs.shape
        return engine.to_scalar(xp.where(each != 0, losses * each, 0.0).sum() / count)

    def backward(self, dout: float = 1.0) -> Array:
        """Compute the gradients of dout * loss, and fill ``grads``.

        Parameters
        ----------
        dout : float, default 1.0
            The factor of the loss.

        Returns
        -------
        dxs : (N, T, D) array
            The gradient of the inputs.
        """
        engine, rows, log_sums, labels, each, count, shape = self._saved()
        weights = each * (expect_float("dout", dout, -float("inf")) / count)
        W, _ = self._as_affine(self.params)
        (dW, db), dxs = self._as_affine(self.grads), engine.xp.zeros_like(rows)
        for columns in self._blocks():
            scores, here = self._scores_of(rows, columns), _within(engine.xp, labels, columns)
            gradient = engine.softmax_gradient(scores, log_sums, here, weights)
            dxs += engine.affine_backward(
                rows, W[:, columns], gradient, dW[:, columns], db[columns]
            )
        return dxs.reshape(shape)

    def _blocks(self) -> list[slice]:
        V, block = self.params[1].shape[0], expect_int("block", self.block)
        return [slice(start, min(start + block, V)) for start in range(0, V, block)]

    def _scores_of(self, rows: Array, columns: slice) -> Array:
        W, b = self._as_affine(self.params)
        return self._engine().affine(rows, W[:, columns], b[columns])


class TimeAffineSoftmaxWithLoss(SoftmaxInBlocks, TimeAffine):  # type: ignore[misc]
    """``TimeAffine`` and ``TimeSoftmaxWithLoss`` in one, whose scores are never whole in memory.

    Parameters
    ----------
    W : (D, V) array, float32 or float64
        The weights.
    b : (V,) array, of the dtype of W
        The bias.

    Attributes
    ----------
    block : int
        8192, the number of columns of W whose scores are in memory at a time.

    Notes
    -----
    Loss and gradients are those of the two layers, up to rounding. For N T steps the two hold
    (N T, V) scores and as many gradients; this one holds (N T, block) of each, and computes the
    scores once more in ``backward``. ``scores`` gives the scores themselves, for prediction.

    References
    ----------
    - Wijmans et al. 2025, *Cut your losses in large-vocabulary language models*.

    Examples
    --------
    >>> import numpy as np
    >>> layer = TimeAffineSoftmaxWithLoss.create(8, 50_000, rng=0)
    >>> xs, ts = np.ones((2, 3, 8), np.float32), np.arange(6).reshape(2, 3)
    >>> loss = layer.forward(xs, ts)
    >>> layer.backward().shape
    (2, 3, 8)
    """


def _within(xp: Any, labels: Array, columns: slice) -> Array:
    """Labels among some columns, counted from the first of these; -1 for the others."""
    inside = (labels >= columns.start) & (labels < columns.stop)
    return xp.where(inside, labels - columns.start, -1)


def _together(xp: Any, sums: Array) -> Array:
    """``log_sum_exp`` of all columns (2, R), from that of some each (blocks, 2, R)."""
    largest = sums[:, 0].max(axis=0)
    nothing = sums[:, 0] == -np.inf  # a block of words that none can be
    parts = xp.where(nothing, -np.inf, sums[:, 0] - largest + sums[:, 1])
    total = xp.exp(parts).sum(axis=0)
    return xp.stack([largest, xp.log(total)])
