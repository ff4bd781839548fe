"""Masks of dropout, drawn as ``kernels/counter_rng.py`` says."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import counter_rng
from ..engine import Array
from .kernel_cache import compiled
from .plans import address_of
from .threads import call_kernel


class Mask(NamedTuple):
    """The factors of numbers (N, T, H), and of those that are left the address."""

    out: int
    N: int
    T: int
    H: int
    seed: int
    threshold: int
    place: int  # the counter of the first number
    left: int


def dropout(seed: int, shape: Sequence[int], rate: float, dtype: Any, row_offset: int) -> Array:
    """The factors of numbers (N, ..., H): 0, or 1 / (1 - rate)."""
    out = np.empty(shape, dtype)
    left = np.array([1 / (1 - rate)], out.dtype)
    seed = int(np.array(seed, np.uint64).view(np.int64))
    given = np.array(Mask(
        address_of(out), shape[0], math.prod(shape[1:-1]), shape[-1], seed,
        counter_rng.threshold(rate), counter_rng.counter(0, row_offset), address_of(left),
    ), np.int64)  # fmt: skip
    call_kernel(compiled("training_kernels.dropout_mask", out.dtype.name), address_of(given))
    return out
