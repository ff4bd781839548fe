"""Types for annotations: the arrays that layers take and give.

An array is NumPy's or, on the CUDA engine, CuPy's. CuPy's has the same interface but no types of
its own, so these aliases name NumPy's for both: code that is right for one is right for the other.
Shapes are in the docstrings.

    from numba_rnn.typing import Array

    def energy(hs: Array) -> float:
        return float((hs**2).sum())
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AnyArray", "Array", "BoolArray", "Flags", "IntArray", "Integers", "MaybeNone", "Scalar",
]  # fmt: skip

Array: TypeAlias = NDArray[np.floating[Any]]
"""An array of float32 or float64: inputs, states, parameters, gradients."""

IntArray: TypeAlias = NDArray[np.integer[Any]]
"""An array of any integer dtype: tokens, labels."""

BoolArray: TypeAlias = NDArray[np.bool_]
"""An array of bool: masks."""

AnyArray: TypeAlias = NDArray[Any]
"""An array of any dtype."""

Integers: TypeAlias = Sequence[int] | IntArray
"""Integers (N,), as an array or a list: the lengths of sequences."""

# a scalar, too: to NumPy's types the result of any(axis=2) may be one
Flags: TypeAlias = Sequence[Sequence[bool]] | BoolArray | np.bool_
"""Booleans (N, T), as an array or lists: masks and resets."""

MaybeNone: TypeAlias = Any
"""``Array | MaybeNone`` is None before the first pass; type checkers take it for an array."""

Scalar: TypeAlias = float | Any
"""A float; on a GPU an array without axes, for which ``float(scalar)`` waits."""
