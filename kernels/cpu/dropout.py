"""Masks of dropout, drawn as ``kernels/draws.py`` says: a loop that LLVM makes vectors of."""

from typing import Any

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from .. import draws
from ..engine import Array
from ..once import once
from .compilation import compiled_function

_MIXING, _LAST, _GOLDEN = draws.MIXING32, draws.LAST_SHIFT32, draws.GOLDEN32


def dropout(seed: int, shape: tuple[int, int], rate: float, dtype: Any) -> Array:
    """What numbers (N, H) are multiplied by: 0, or 1 / (1 - rate)."""
    out = np.empty(shape, dtype)
    keys, limit = draws.keys(seed, 0, shape[0]), np.uint32(draws.threshold(rate))
    _filler(out.dtype.name)(out, keys, limit, out.dtype.type(1 / (1 - rate)))
    return out


@once
def _filler(dtype: str) -> Any:
    """A compiled function that fills a mask."""
    (shift0, factor0), (shift1, factor1) = _MIXING
    last, golden = _LAST, _GOLDEN

    def fill(out, keys, limit, left):
        for n in range(out.shape[0]):
            low, high = np.uint32(keys[n]), np.uint32(keys[n] >> np.uint64(32))
            for k in range(out.shape[1]):
                bits = np.uint32(np.uint32(k) * np.uint32(golden)) + low
                for again in range(2):
                    bits = np.uint32(bits)
                    bits = np.uint32((bits ^ (bits >> np.uint32(shift0))) * np.uint32(factor0))
                    bits = np.uint32((bits ^ (bits >> np.uint32(shift1))) * np.uint32(factor1))
                    bits = np.uint32(bits ^ (bits >> np.uint32(last)))
                    if again == 0:
                        bits = np.uint32(bits ^ high)
                out[n, k] = 0.0 if bits < limit else left

    number = from_dtype(np.dtype(dtype))
    takes = number[:, ::1], types.uint64[::1], types.uint32, number
    return compiled_function(fill, types.void(*takes))
