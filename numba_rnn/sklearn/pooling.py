"""Pooling: from the outputs of every step to one row of numbers for the whole sequence.

    last        the states at the end; of a layer that reads backwards, where it ends: at the start
    mean        the mean over steps
    max         the largest of each unit over steps
    attention   a mean over steps with weights softmax(hs q), where the query q is learned

Steps behind the end of a sequence do not count. All but "last" are classes with ``forward(hs,
lengths)``, from (N, T, H) to (N, 1, H), and ``backward``; "last" reads states, and is in
``numba_rnn/sklearn/network.py``.
"""

from typing import Any

import numpy as np

from ..backend import engine_for_input, engine_of_param
from ..layers import TimeAttention
from ..layers.base import Layer
from ..typing import Array, IntArray

POOLINGS = ("last", "mean", "max", "attention")


class MeanPooling(Layer):
    """The mean over the steps of each sequence; outputs behind its end are 0."""

    def forward(self, hs: Array, lengths: IntArray | None = None) -> Array:
        xp, T = engine_for_input(hs).xp, hs.shape[1]
        counts = np.full(len(hs), T) if lengths is None else np.asarray(lengths)
        counts = xp.asarray(counts.astype(hs.dtype)[:, None, None])
        self._tape = counts, xp.zeros((1, T, 1), hs.dtype)
        return hs.sum(axis=1, keepdims=True) / counts

    def backward(self, dout: Array) -> Array:
        counts, steps = self._saved()
        return dout / counts + steps


class MaxPooling(Layer):
    """The largest output of each unit; steps that share it share the gradient."""

    def forward(self, hs: Array, lengths: IntArray | None = None) -> Array:
        xp = engine_for_input(hs).xp
        if lengths is not None:
            behind = xp.asarray(np.arange(hs.shape[1]) >= np.asarray(lengths)[:, None])
            hs = xp.where(behind[:, :, None], hs.dtype.type(-np.inf), hs)
        largest = hs.max(axis=1, keepdims=True)
        self._tape = (hs == largest).astype(hs.dtype)
        return largest

    def backward(self, dout: Array) -> Array:
        here = self._saved()
        return dout * here / here.sum(axis=1, keepdims=True)


class AttentionPooling(Layer):
    """A weighted mean; the query starts at 0, where all weights are equal.

    References: Raffel & Ellis 2015, *Feed-forward networks with attention can solve some long-term
    memory problems*.
    """

    param_names = ("query",)

    def __init__(self, query: Array) -> None:
        super().__init__(query)
        self._attention = TimeAttention()

    def forward(self, hs: Array, lengths: IntArray | None = None) -> Array:
        (query,) = self.params
        queries = engine_of_param(query).xp.repeat(query[None, None], len(hs), axis=0)
        return self._attention.forward(hs, queries, lengths=lengths)

    def backward(self, dout: Array) -> Array:
        dhs, dqueries = self._attention.backward(dout)
        self.grads[0][...] = dqueries.sum(axis=(0, 1))
        return dhs

    def forget(self) -> None:
        super().forget()
        self._attention.forget()


def create(name: str, size: int, dtype: Any) -> Layer | None:
    """A pooling layer for so many units, None for "last"."""
    if name == "attention":
        return AttentionPooling(np.zeros(size, dtype))
    return {"mean": MeanPooling, "max": MaxPooling}[name]() if name != "last" else None
