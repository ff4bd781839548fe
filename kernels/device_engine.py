"""The base of engines whose arrays are on a device, in a library made after CuPy.

Nothing here waits for the device but ``to_host``: a number that is computed there stays there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .engine import Array
from .reference import NumpyEngine


class DeviceEngine(NumpyEngine):
    """Arrays of the library ``xp`` instead of NumPy's; a derived engine brings the kernels."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def to_host(self, array: Array) -> Array:
        return self.xp.asnumpy(array)

    def to_scalar(self, array: Array) -> Any:
        return array

    def norm(self, arrays: Sequence[Array]) -> Any:
        xp, arrays = self.xp, [array for array in arrays if array.size]
        if not arrays:
            return xp.zeros((), np.float64)
        if all(array.dtype == np.float32 for array in arrays):  # whose squares float64 can have
            squares = [xp.square(array, dtype=np.float64).sum() for array in arrays]
            return xp.sqrt(xp.stack(squares).sum())
        largest = xp.stack([xp.abs(array).max().astype(np.float64) for array in arrays]).max()
        scale = xp.where(xp.isfinite(largest) & (largest > 0), largest, 1.0)
        squares = [xp.square(array / scale, dtype=np.float64).sum() for array in arrays]
        return scale * xp.sqrt(xp.stack(squares).sum())

    def clip_factor(self, arrays: Sequence[Array], limit: float) -> tuple[Any, Any]:
        norm = self.norm(arrays)
        too_long = self.xp.isfinite(norm) & (norm > limit)
        return norm, self.xp.where(too_long, limit / norm, 1.0)

    def clip_norm(self, arrays: Sequence[Array], limit: float) -> Any:
        norm, factor = self.clip_factor(arrays, limit)
        factors = {dtype: factor.astype(dtype) for dtype in {array.dtype for array in arrays}}
        for array in arrays:
            array *= factors[array.dtype]
        return norm

    def _scaled(self, gradient: Array, factor: Any) -> Array:
        if isinstance(factor, float):
            return super()._scaled(gradient, factor)
        return gradient * factor.astype(gradient.dtype)  # to look at it would be to wait

    def update(
        self,
        rule: Callable[..., tuple[Array, ...]],
        arrays: Sequence[Array],
        gradient: Array,
        numbers: Sequence[float],
    ) -> None:
        for array, new in zip(arrays, rule(*arrays, gradient, *numbers), strict=True):
            array[...] = new
