"""Attention: every step of one sequence looks at all steps of another.

    scores   = hs_dec hs_encᵀ                 (N, T, S)
    weights  = softmax(scores)                over the S steps of the encoder
    contexts = weights hs_enc                 (N, T, H)

N rows, S steps of the encoder, T of the decoder, H units in both.
"""

from typing import Any

import numpy as np

from ..backend import engine_for_input
from ..typing import Array, BoolArray, Flags, Integers
from ..validation import validate_array, validate_mask
from .base import Layer


class TimeAttention(Layer):
    """Dot-product attention of a decoder over the states of an encoder.

    The context of a step is a mean of the encoder's states, weighted by how well each of them
    agrees with the decoder's state. The layer has no parameters.

    Attributes
    ----------
    attention_weights : (N, T, S) array or None
        The weights of the last forward: how much each step of the decoder looked at each step of
        the encoder. The weights of a step sum to 1. Do not change them: backward reads them.

    Notes
    -----
    This is the attention of section 8.1 of *Deep Learning from Scratch 2*. The book's classes for
    a single step are in ``numba_rnn.book``.

    References
    ----------
    - Luong, Pham & Manning 2015, the score "dot".

    Examples
    --------
    >>> hs_enc, hs_dec = np.ones((2, 7, 5), np.float32), np.ones((2, 4, 5), np.float32)
    >>> attention = TimeAttention()
    >>> contexts = attention.forward(hs_enc, hs_dec, lengths=[7, 5])
    >>> contexts.shape, attention.attention_weights.shape
    ((2, 4, 5), (2, 4, 7))
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention_weights: Array | None = None

    def forget(self) -> None:
        """Free the memory that forward keeps for backward, and the weights."""
        super().forget()
        self.attention_weights = None

    def forward(
        self,
        hs_enc: Array,
        hs_dec: Array,
        *,
        lengths: Integers | None = None,
        mask: Flags | None = None,
    ) -> Array:
        """Compute the context of every step of the decoder.

        Parameters
        ----------
        hs_enc : (N, S, H) array, float32 or float64
            The states of the encoder.
        hs_dec : (N, T, H) array, of the dtype of hs_enc
            The states of the decoder.
        lengths : (N,) integers, optional
            The number of steps in each row of hs_enc, from 0 to S.
        mask : (N, S) bool array, optional
            May be given instead of lengths. Steps of hs_enc where it is False are ignored, whatever
            they hold.

        Returns
        -------
        contexts : (N, T, H) array
            A row without any step gets weights and contexts of 0.

        Notes
        -----
        hs_enc and hs_dec must not change until backward has run.
        """
        engine = engine_for_input(hs_enc)
        xp, hs_enc = engine.xp, validate_array("hs_enc", hs_enc, ("N", "S", "H"), None, engine)
        N, S, H = hs_enc.shape
        hs_dec = validate_array("hs_dec", hs_dec, (N, "T", H), hs_enc.dtype, engine)
        present = validate_mask(lengths, mask, (N, S), engine)
        if present is not None:
            present = engine.to_device(present)
            hs_enc = xp.where(present[:, :, None], hs_enc, hs_enc.dtype.type(0))
            present = present[:, None, :]
        weights = _softmax(xp, engine.product(hs_dec, hs_enc.transpose(0, 2, 1)), present)
        self._tape = engine, weights, hs_enc, hs_dec
        self.attention_weights = weights
        return engine.product(weights, hs_enc)

    def backward(self, dout: Array) -> tuple[Array, Array]:
        """Compute the gradients of both inputs.

        Parameters
        ----------
        dout : (N, T, H) array
            The gradient of the contexts.

        Returns
        -------
        dhs_enc : (N, S, H) array
            The gradient of the encoder's states.
        dhs_dec : (N, T, H) array
            The gradient of the decoder's states.

        Raises
        ------
        RuntimeError
            If forward has not run.
        """
        engine, weights, hs_enc, hs_dec = self._saved()
        dout = validate_array("dout", dout, hs_dec.shape, hs_dec.dtype, engine)
        dweights = engine.product(dout, hs_enc.transpose(0, 2, 1))
        dscores = weights * (dweights - (weights * dweights).sum(axis=2, keepdims=True))
        dhs_enc = engine.product(weights.transpose(0, 2, 1), dout)
        dhs_enc += engine.product(dscores.transpose(0, 2, 1), hs_dec)
        return dhs_enc, engine.product(dscores, hs_enc)


def _softmax(xp: Any, scores: Array, present: BoolArray | None) -> Array:
    """Shares that sum to 1 along the last axis, 0 where nothing is there."""
    if present is not None:
        scores = xp.where(present, scores, scores.dtype.type(np.finfo(scores.dtype).min))
    with np.errstate(over="ignore"):  # towards -inf, whose share is 0
        exps = xp.exp(scores - scores.max(axis=2, keepdims=True))
    if present is not None:
        exps = xp.where(present, exps, exps.dtype.type(0))
    total = exps.sum(axis=2, keepdims=True)  # at least 1, the largest's own; 0 of nothing
    return exps / xp.maximum(total, exps.dtype.type(1))
