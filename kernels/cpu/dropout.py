"""Masks of dropout, drawn as ``kernels/counter_rng.py`` says: a loop that LLVM makes vectors of."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import from_dtype

from .. import counter_rng
from ..emitted_draws import emit_drawn
from ..engine import Array
from ..once import once
from .compilation import compiled_function


def dropout(seed: int, shape: Sequence[int], rate: float, dtype: Any, row_offset: int) -> Array:
    """The factors of numbers (N, ..., H): 0, or 1 / (1 - rate)."""
    out = np.empty(shape, dtype)
    rows = out.reshape(shape[0], math.prod(shape[1:-1]), shape[-1])
    seed = int(np.array(seed, np.uint64).view(np.int64))
    place, left = counter_rng.counter(0, row_offset), out.dtype.type(1 / (1 - rate))
    _filler(out.dtype.name)(rows, seed, counter_rng.threshold(rate), place, left)
    return out


@intrinsic
def _is_drawn(typing, seed, threshold, place, unit):
    def codegen(context, builder, signature, args):
        return emit_drawn(builder, ir.IntType(32), *args)

    return types.boolean(*[types.int64] * 4), codegen


@once
def _filler(dtype: str) -> Any:
    """A compiled function that fills a mask."""

    def fill(out, seed, threshold, place, left):
        for n in range(out.shape[0]):
            for t in range(out.shape[1]):
                for k in range(out.shape[2]):
                    gone = _is_drawn(seed, threshold, place + (t << 32) + n, k)
                    out[n, t, k] = 0.0 if gone else left

    number = from_dtype(np.dtype(dtype))
    return compiled_function(fill, types.void(number[:, :, ::1], *[types.int64] * 3, number))
