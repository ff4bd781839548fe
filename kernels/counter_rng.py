"""Random masks that are computed where they are needed.

Whether a unit is drawn depends on (seed, t, n, unit) alone: a hash of them, not the next number of
a sequence. So every engine draws the same, whatever it shares out to whom, backward draws again
what forward drew, and a process with some rows of a batch draws what one with all rows draws there.

    counter              64 bits: t and n side by side
    key(seed, counter)   64 bits: SplitMix64's finaliser (Steele, Lea & Flood 2014) of the seed and
                         of the finalised counter
    bits(key, unit)      32 bits: two rounds of a 32-bit finaliser (Wellons' hash-prospector), the
                         first of the unit and one half of the key, the second of that and the other
    drawn                bits < rate * 2^32
    uniform              the upper 53 bits of a key, as a fraction

These definitions are the specification. Their integers wrap around: they are NumPy's, or in the
compiled engines those of ``emitted_draws.py``, which emits these very functions as instructions.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

GOLDEN64, GOLDEN32 = 0x9E3779B97F4A7C15, 0x9E3779B1
_WORD = 0xFFFFFFFFFFFFFFFF


def _mix64(z: Any) -> Any:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


def _mix32(x: Any) -> Any:
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


def key(seed: Any, counter: Any) -> Any:
    """The key of a row at a step: 64 bits of integers of 64 bits."""
    return _mix64(_mix64(counter) ^ seed)


def bits(low: Any, high: Any, multiple: Any) -> Any:
    """The 32 bits of a unit, whose ``multiple`` is unit * GOLDEN32, and a key in two halves."""
    return _mix32(_mix32(multiple + low) ^ high)


def seeds_of(seed: int, *things: int) -> tuple[int, ...]:
    """A seed for each of some things, by their numbers, that are drawn from the same seed."""
    counters = np.array([seed + (thing + 1) * GOLDEN64 & _WORD for thing in things], np.uint64)
    return tuple(_mix64(counters).tolist())


def threshold(rate: float) -> int:
    """Bits below this are drawn, for a rate from 0 up to but not including 1."""
    return int(rate * 2.0**32)


def counter(t: int, n: int) -> int:
    """The counter of row n at step t; counters of later steps and rows follow by addition."""
    return (t << 32) + n


def uniform(seed: int, count: int) -> Any:
    """Numbers from 0 up to but not including 1, float64, by their counters."""
    keys = key(np.uint64(seed & _WORD), np.arange(count, dtype=np.uint64))
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def drawn(seed: int, shape: Sequence[int], rate: float, t: int = 0, row_offset: int = 0) -> Any:
    """Which units are drawn, from a step and a row on.

    shape   (N, H), or with steps (N, ..., H); the result is a bool array of that shape
    """
    steps = np.arange(math.prod(shape[1:-1]), dtype=np.uint64) << np.uint64(32)
    rows = np.arange(shape[0], dtype=np.uint64)[:, None] + np.uint64(counter(t, row_offset))
    keys = key(np.uint64(seed & _WORD), rows + steps)[:, :, None]
    low, high = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    multiples = np.arange(shape[-1], dtype=np.uint32) * np.uint32(GOLDEN32)
    found = bits(low, high, multiples) < np.uint32(threshold(rate))
    return found.reshape(shape)
