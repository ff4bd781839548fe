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
from ..backend import engine_for_input
from ..layers.base import Layer
from ..typing import Array
from ..validation import validate_array
from .layers import Softmax

__all__ = ["Attention", "AttentionWeight", "Softmax", "TimeAttention", "WeightSum", "np"]


class WeightSum(Layer):
    """The weighted sum of attention: c = sum over t of a_t hs_t.

    The gradients are dhs_t = a_t dc and da_t = hs_t dc.
    """

    def forward(self, hs: Array, a: Array) -> Array:
        """Compute the sum.

        Parameters
        ----------
        hs : (N, T, H) array
            The states of the encoder.
        a : (N, T) array
            The weights.

        Returns
        -------
        c : (N, H) array
            The context.
        """
        engine = engine_for_input(hs)
        hs = validate_array("hs", hs, ("N", "T", "H"), None, engine)
        a = validate_array("a", a, hs.shape[:2], hs.dtype, engine)
        self._tape = engine, hs, a
        return (a[:, None] @ hs)[:, 0]

    def backward(self, dc: Array) -> tuple[Array, Array]:
        """Compute the gradients.

        Parameters
        ----------
        dc : (N, H) array
            The gradient of the context.

        Returns
        -------
        dhs : (N, T, H) array
            The gradient of hs.
        da : (N, T) array
            The gradient of a.
        """
        engine, hs, a = self._saved()
        dc = validate_array("dc", dc, (len(hs), hs.shape[2]), hs.dtype, engine)
        return a[:, :, None] * dc[:, None], (hs @ dc[:, :, None])[:, :, 0]


class AttentionWeight(Layer):
    """The weights of attention: a = softmax(s), s_t = hs_t h.

    The gradients are dhs_t = ds_t h and dh = sum over t of ds_t hs_t.
    """

    def __init__(self) -> None:
        super().__init__()
        self.softmax = Softmax()

    def forward(self, hs: Array, h: Array) -> Array:
        """Compute the weights.

        Parameters
        ----------
        hs : (N, T, H) array
            The states of the encoder.
        h : (N, H) array
            The state of the decoder.

        Returns
        -------
        a : (N, T) array
            The weights; those of a row sum to 1.
        """
        engine = engine_for_input(hs)
        hs = validate_array("hs", hs, ("N", "T", "H"), None, engine)
        h = validate_array("h", h, (len(hs), hs.shape[2]), hs.dtype, engine)
        self._tape = hs, h
        return self.softmax.forward((hs @ h[:, :, None])[:, :, 0])

    def backward(self, da: Array) -> tuple[Array, Array]:
        """Compute the gradients.

        Parameters
        ----------
        da : (N, T) array
            The gradient of the weights.

        Returns
        -------
        dhs : (N, T, H) array
            The gradient of hs.
        dh : (N, H) array
            The gradient of h.
        """
        hs, h = self._saved()
        ds = self.softmax.backward(da)
        return ds[:, :, None] * h[:, None], (ds[:, None] @ hs)[:, 0]


class Attention(Layer):
    """Attention for one step of a decoder: AttentionWeight, then WeightSum.

    Attributes
    ----------
    attention_weight : (N, T) array or None
        The weights of the last forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention_weight_layer, self.weight_sum_layer = AttentionWeight(), WeightSum()
        self.attention_weight: Array | None = None

    def forward(self, hs: Array, h: Array) -> Array:
        """Compute the context.

        Parameters
        ----------
        hs : (N, T, H) array
            The states of the encoder.
        h : (N, H) array
            The state of the decoder.

        Returns
        -------
        c : (N, H) array
            The context.
        """
        self.attention_weight = self.attention_weight_layer.forward(hs, h)
        return self.weight_sum_layer.forward(hs, self.attention_weight)

    def backward(self, dc: Array) -> tuple[Array, Array]:
        """Compute the gradients.

        Parameters
        ----------
        dc : (N, H) array
            The gradient of the context.

        Returns
        -------
        dhs : (N, T, H) array
            The gradient of hs.
        dh : (N, H) array
            The gradient of h.
        """
        dhs, da = self.weight_sum_layer.backward(dc)
        more, dh = self.attention_weight_layer.backward(da)
        return dhs + more, dh


class TimeAttention(ours.TimeAttention):
    """Attention for every step of a decoder.

    Attributes
    ----------
    attention_weights : list of L (N, T) arrays, or None
        The weights of the last forward, as the book's pictures use them. In ``numba_rnn`` they are
        one (N, L, T) array.
    """

    def forward(self, hs_enc: Array, hs_dec: Array) -> Array:  # type: ignore[override]
        """Compute the context of every step.

        Parameters
        ----------
        hs_enc : (N, T, H) array
            The states of the encoder.
        hs_dec : (N, L, H) array
            The states of the decoder.

        Returns
        -------
        contexts : (N, L, H) array
            The contexts.
        """
        contexts = super().forward(hs_enc, hs_dec)
        self.attention_weights = list(self.attention_weights.transpose(1, 0, 2))  # type: ignore[assignment, union-attr]
        return contexts
