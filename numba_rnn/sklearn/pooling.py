"""Pooling: from the outputs of every step to one row of numbers for the whole sequence.

    last        the states at the end; of a layer that reads backwards, where it ends: at the start
    mean        the mean over steps
    max         the largest of each unit over steps
    attention   a mean over steps with weights softmax(hs q), where the query q is learned

Steps behind the end of a sequence do not count. "mean" and "max" are the layer ``TimePooling``;
"last" reads states, and is in ``numba_rnn/sklearn/network.py``.
"""

from typing import Any

import numpy as np

from ..backend import engine_of_param
from ..layers import TimeAttention, TimePooling
from ..layers.base import Layer
from ..typing import Array, IntArray

POOLINGS = ("last", "mean", "max", "attention")


class AttentionPooling(Layer):
    """A weighted mean; the query starts at 0, where all weights are equal.

    References: Raffel & Ellis 2015, *Feed-forward networks with attention can solve some long-term
    memory problems*.
    """

    param_names = ("query",)

    def __init__(self, query: Array) -> None:
        super().__init__(query)
        self._attention = TimeAttention()

    def forward(self, hs: Array, *, lengths: IntArray | None = None) -> Array:
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
    return TimePooling(name) if name != "last" else None
