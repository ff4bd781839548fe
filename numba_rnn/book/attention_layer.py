"""The book's ``ch08/attention_layer.py``: a decoder's step looks at the encoder's steps.

    s = hs h          (N, T)   how well each of the T states agrees with h
    a = softmax(s)    (N, T)   the weights, which sum to 1
    c = sum of a hs   (N, H)   the context

``AttentionWeight`` makes a of hs and h, ``WeightSum`` makes c of hs and a, ``Attention`` is both;
``TimeAttention`` does it for all steps of the decoder. hs (N, T, H) are the encoder's states,
h (N, H) is one of the decoder's.
"""

import numpy as np

from .. import layers as ours
from ..backend import engine_for
from ..checks import Array, accept
from ..layers.base import Layer
from .layers import Softmax

__all__ = ["Attention", "AttentionWeight", "Softmax", "TimeAttention", "WeightSum", "np"]


class WeightSum(Layer):
    """c = sum over t of a_t hs_t: hs (N, T, H), a (N, T), c (N, H).

    dhs_t = a_t dc,  da_t = hs_t dc
    """

    def forward(self, hs: Array, a: Array) -> Array:
        """hs (N, T, H), a (N, T) -> c (N, H)."""
        here = engine_for(hs)
        hs = accept("hs", hs, ("N", "T", "H"), None, here)
        a = accept("a", a, hs.shape[:2], hs.dtype, here)
        self._tape = here, hs, a
        return (a[:, None] @ hs)[:, 0]

    def backward(self, dc: Array) -> tuple[Array, Array]:
        """dc (N, H) -> dhs (N, T, H), da (N, T)."""
        here, hs, a = self._recall()
        dc = accept("dc", dc, (len(hs), hs.shape[2]), hs.dtype, here)
        return a[:, :, None] * dc[:, None], (hs @ dc[:, :, None])[:, :, 0]


class AttentionWeight(Layer):
    """a = softmax(s), s_t = hs_t h: hs (N, T, H), h (N, H), a (N, T).

    dhs_t = ds_t h,  dh = sum over t of ds_t hs_t
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = Softmax()

    def forward(self, hs: Array, h: Array) -> Array:
        """hs (N, T, H), h (N, H) -> a (N, T)."""
        here = engine_for(hs)
        hs = accept("hs", hs, ("N", "T", "H"), None, here)
        h = accept("h", h, (len(hs), hs.shape[2]), hs.dtype, here)
        self._tape = hs, h
        return self.softmax.forward((hs @ h[:, :, None])[:, :, 0])

    def backward(self, da: Array) -> tuple[Array, Array]:
        """da (N, T) -> dhs (N, T, H), dh (N, H)."""
        hs, h = self._recall()
        ds = self.softmax.backward(da)
        return ds[:, :, None] * h[:, None], (ds[:, None] @ hs)[:, 0]


class Attention(Layer):
    """AttentionWeight, then WeightSum: hs (N, T, H), h (N, H) -> c (N, H).

    attention_weight   a (N, T) of the last forward, or None
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention_weight_layer, self.weight_sum_layer = AttentionWeight(), WeightSum()
        self.attention_weight: Array | None = None

    def forward(self, hs: Array, h: Array) -> Array:
        """hs (N, T, H), h (N, H) -> c (N, H)."""
        self.attention_weight = self.attention_weight_layer.forward(hs, h)
        return self.weight_sum_layer.forward(hs, self.attention_weight)

    def backward(self, dc: Array) -> tuple[Array, Array]:
        """dc (N, H) -> dhs (N, T, H), dh (N, H)."""
        dhs, da = self.weight_sum_layer.backward(dc)
        more, dh = self.attention_weight_layer.backward(da)
        return dhs + more, dh


class TimeAttention(ours.TimeAttention):
    """Attention for every step of a decoder, hs_enc (N, T, H), hs_dec (N, L, H) -> (N, L, H).

    attention_weights   of the last forward, or None: a list of L arrays (N, T), as the book's
                        pictures want it; that of ``numba_rnn`` is one array (N, L, T)
    """

    def forward(self, hs_enc: Array, hs_dec: Array) -> Array:  # type: ignore[override]
        """hs_enc (N, T, H), hs_dec (N, L, H) -> contexts (N, L, H)."""
        contexts = super().forward(hs_enc, hs_dec)
        self.attention_weights = list(self.attention_weights.transpose(1, 0, 2))  # type: ignore[union-attr]
        return contexts
