"""Pooling: from the outputs of every step to one row of numbers for the whole sequence."""

from typing import Any

import numpy as np

from ..backend import engine_for_input
from ..typing import Array, Integers
from ..validation import expect_choice, validate_array, validate_mask
from .base import Layer

POOLINGS = ("last", "mean", "max")


class TimePooling(Layer):
    """One step of numbers for each sequence: its last one, the mean or the maximum over steps.

    Parameters
    ----------
    pooling : {"last", "mean", "max"}
        Which of these. The last step of a layer that reads in both directions has seen only one
        step backwards: take the mean or the maximum there.

    Notes
    -----
    Steps behind the end of a sequence count for nothing, whatever is there, and a sequence without
    steps gives 0. Steps that share a maximum share its gradient.

    Examples
    --------
    >>> hs = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    >>> TimePooling("last").forward(hs, lengths=[3, 1]).tolist()
    [[[4.0, 5.0]], [[6.0, 7.0]]]
    """

    def __init__(self, pooling: str = "last") -> None:
        super().__init__()
        self.pooling = expect_choice("pooling", pooling, POOLINGS)

    def __repr__(self) -> str:
        return f"TimePooling({self.pooling!r})"

    def forward(self, hs: Array, *, lengths: Integers | None = None) -> Array:
        """Compute one step for each sequence.

        Parameters
        ----------
        hs : (N, T, H) array
            The outputs of every step.
        lengths : (N,) integers, optional
            The number of steps in each row, from 0 to T.

        Returns
        -------
        pooled : (N, 1, H) array
            The last step of each sequence, or the mean or the maximum over its steps.
        """
        engine = engine_for_input(hs)
        hs = validate_array("hs", hs, ("N", "T", "H"), None, engine)
        xp, zero, (N, T, _) = engine.xp, hs.dtype.type(0), hs.shape
        mask = validate_mask(lengths, None, (N, T), engine)
        present: Any = None
        counts = np.full(N, T)
        if mask is not None:
            counts = mask.sum(axis=1)
            present = engine.to_device(mask)[:, :, None]
        if self.pooling == "max":
            seen = hs if present is None else xp.where(present, hs, hs.dtype.type(-np.inf))
            largest = seen.max(axis=1, keepdims=True)
            here = seen == largest
            if present is not None:
                here = here & present
                some = engine.to_device((counts > 0)[:, None, None])
                largest = xp.where(some, largest, zero)
            shares = here.astype(hs.dtype)
            # a maximum that is NaN is equal to nothing
            self._tape = engine, shares, xp.maximum(shares.sum(axis=1, keepdims=True), 1), hs.shape
            return largest
        if self.pooling == "last":
            places = np.arange(T) == (counts - 1)[:, None]
            present = engine.to_device(places)[:, :, None]
            counts = np.minimum(counts, 1)
        divisors = engine.to_device(np.maximum(counts, 1).astype(hs.dtype)[:, None, None])
        if present is None:
            shares = engine.to_device(np.ones((1, T, 1), hs.dtype))
        else:
            shares = present.astype(hs.dtype)
        self._tape = engine, shares, divisors, hs.shape
        seen = hs if present is None else xp.where(present, hs, zero)
        return seen.sum(axis=1, keepdims=True) / divisors

    def backward(self, dout: Array) -> Array:
        """Compute the gradient of hs.

        Parameters
        ----------
        dout : (N, 1, H) array
            The gradient of the pooled step.

        Returns
        -------
        dhs : (N, T, H) array
            The gradient of hs; 0 at steps that do not count.
        """
        engine, shares, divisors, (N, _, H) = self._saved()
        dout = validate_array("dout", dout, (N, 1, H), shares.dtype, engine)
        return shares * (dout / divisors)
