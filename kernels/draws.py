"""Random masks that are computed where they are needed, and never stored.

Whether a unit is drawn depends on (seed, t, n, unit) alone: a hash of them, not the next number of
a sequence. So every engine draws the same, whatever it shares out to whom, and backward draws
again what forward drew.

    key(seed, t, n)      64 bits: SplitMix64's finaliser (Steele, Lea & Flood 2014) of the seed and
                         of t and n side by side
    bits(key, unit)      32 bits: two rounds of a 32-bit finaliser (Wellons' hash-prospector), the
                         first of the unit and one half of the key, the second of that and the other
    drawn                bits < rate * 2^32

These definitions are the specification; compiled engines have the same in their own terms.
"""

from typing import Any

import numpy as np

GOLDEN64, MIXING64 = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
GOLDEN32, MIXING32 = 0x9E3779B1, ((16, 0x21F0AAAD), (15, 0x735A2D97))
LAST_SHIFT64, LAST_SHIFT32 = 31, 15
_WORD = 0xFFFFFFFFFFFFFFFF


def mix64(z: int) -> int:
    """SplitMix64's finaliser of a whole number."""
    z &= _WORD
    for shift, factor in MIXING64:
        z = ((z ^ (z >> shift)) * factor) & _WORD
    return z ^ (z >> LAST_SHIFT64)


def seed_of(seed: int, what: int) -> int:
    """A seed for one of several things that are drawn from the same seed."""
    return mix64(seed + (what + 1) * GOLDEN64)


def threshold(rate: float) -> int:
    """Bits below this are drawn, for a rate from 0 up to but not including 1."""
    return int(rate * 2.0**32)


def keys(seed: int, t: int, N: int) -> Any:
    """The keys of the rows 0 .. N - 1 of a step, (N,) uint64."""
    place = (np.uint64(t) << np.uint64(32)) | np.arange(N, dtype=np.uint64)
    return _mix64(np.uint64(seed & _WORD) ^ _mix64(place))


def _mix64(z: Any) -> Any:
    for shift, factor in MIXING64:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(LAST_SHIFT64))


def _mix32(x: Any) -> Any:
    for shift, factor in MIXING32:
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(LAST_SHIFT32))


def drawn(seed: int, t: int, N: int, H: int, rate: float) -> Any:
    """Which units of step t are drawn, (N, H) bool."""
    rows = keys(seed, t, N)[:, None]
    low, high = rows.astype(np.uint32), (rows >> np.uint64(32)).astype(np.uint32)
    units = np.arange(H, dtype=np.uint32) * np.uint32(GOLDEN32)
    bits = _mix32(_mix32(units + low) ^ high)
    return bits < np.uint32(threshold(rate))
