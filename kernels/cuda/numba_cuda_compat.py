"""The Numba that compiles for GPUs: NVIDIA's numba-cuda where it is installed, else Numba's own.

All in which they differ, and all that either needs on a machine without a GPU, is here.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np

from ..once import LOCK

if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it, NumPy 2.5 has it no more
    np.row_stack = np.vstack  # noqa: NPY201

with warnings.catch_warnings():  # numba-cuda's own, of NumPy 2.5
    warnings.simplefilter("ignore", DeprecationWarning)
    from numba import cuda, types

NVIDIA = getattr(cuda, "implementation", "Built-in") == "NVIDIA"

if NVIDIA:
    from numba.cuda.extending import intrinsic, models, overload, register_model
else:
    from numba.extending import intrinsic, models, register_model
    from numba.extending import overload as _overload

    def overload(function: Any, **options: Any) -> Any:
        """``numba.extending.overload`` for GPUs."""
        return _overload(function, target="cuda", **options)


__all__ = ["NVIDIA", "cuda", "intrinsic", "models", "overload", "ptx_of", "register_model", "types"]


class _Device:
    def __init__(self, capability: tuple[int, int]) -> None:
        self.compute_capability = capability


@contextlib.contextmanager
def _assumed_device(capability: tuple[int, int]) -> Iterator[None]:
    """Numba asks a device for its capability when it compiles device functions."""
    from numba.cuda import compiler, dispatcher

    def device() -> _Device:
        return _Device(capability)

    with (
        mock.patch.object(dispatcher, "get_current_device", device),
        mock.patch.object(compiler, "get_current_device", device),
    ):
        yield


def ptx_of(kernel: Any, takes: tuple[Any, ...], capability: tuple[int, int], threads: int) -> str:
    """A kernel's PTX, for arguments of these types and blocks of so many threads."""
    bounds = {"launch_bounds": (threads, 1)} if NVIDIA else {}
    with LOCK, _assumed_device(capability):
        ptx, _ = cuda.compile_ptx(kernel, types.void(*takes), cc=capability, **bounds)
    return str(ptx)
