"""The GPU as CuPy reaches it: its arrays, what it has room for, how kernels start on it.

A kernel starts on CuPy's current stream, through CuPy's own launch: Numba's costs ten times that.
Nothing here waits for the GPU.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cupy
import numpy as np

from . import build
from .kernel import DeviceLimits, Kernel

_MAX_DYNAMIC_SHARED_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_FLOAT32, _TF32 = 1, 7  # of cupy._core.set_compute_type


class CupyGpu:
    """The current device."""

    xp = cupy

    def __init__(self) -> None:
        device = cupy.cuda.Device()
        self.number = device.id
        attributes, capability = device.attributes, device.compute_capability
        self.name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
        self.memory = device.mem_info[1]
        self.capability = int(capability[:-1]), int(capability[-1])
        self.device = DeviceLimits(
            attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"],
            cooperative=bool(attributes["CooperativeLaunch"]),
        )  # fmt: skip
        self._one_at_a_time = threading.RLock()
        self._loaded: dict[tuple[Kernel, Any], Any] = {}
        self._resident: dict[Kernel, int] = {}  # blocks that can run at once

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        """Start a kernel on arrays and whole numbers."""
        function, blocks = self._function(kernel, arguments[0].dtype), grid[0] * grid[1]
        if kernel.cooperative and not self.fits(kernel, blocks):  # CuPy would start fewer
            raise RuntimeError(f"{kernel.name}: {blocks} blocks cannot run at once on this GPU")
        function(
            grid, (kernel.threads,), arguments,
            shared_mem=kernel.shared, enable_cooperative_groups=kernel.cooperative,
        )  # fmt: skip

    def fits(self, kernel: Kernel, blocks: int) -> bool:
        """Whether so many blocks can run at once."""
        if kernel not in self._resident:
            function = self._function(kernel, np.dtype(np.float32))
            each = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
                function.ptr, kernel.threads, kernel.shared
            )
            self._resident[kernel] = each * self.device.multiprocessors
        return blocks <= self._resident[kernel]

    def _function(self, kernel: Kernel, dtype: Any) -> Any:
        if cupy.cuda.get_device_id() != self.number:
            raise RuntimeError(
                f"the engine runs on GPU {self.number}, where it was first used, but the current "
                f"GPU is {cupy.cuda.get_device_id()}; choose one GPU with CUDA_VISIBLE_DEVICES"
            )
        function = self._loaded.get((kernel, dtype))
        if function is None:
            function = self._load(build.binary(kernel, dtype, self.capability))
            if kernel.shared > 48 * 1024:  # more has to be asked for
                cupy.cuda.driver.funcSetAttribute(
                    function.ptr, _MAX_DYNAMIC_SHARED_MEMORY, kernel.shared
                )
            self._loaded[kernel, dtype] = function
        return function

    def describe(self) -> str:
        """The device in words."""
        memory = self.memory / 2**30
        return f"{self.name}, {self.device.multiprocessors} multiprocessors, {memory:.0f} GiB"

    def _load(self, binary: build.Binary) -> Any:
        module = cupy.cuda.Module()
        module.load(binary.code)
        return module.get_function(binary.entry)

    def address(self, array: Any) -> int:
        """Where an array starts."""
        return int(array.data.ptr)

    @contextmanager
    def products(self, precision: str) -> Iterator[None]:
        """CuPy's float32 products in float32, or in TF32 for another precision.

        CuPy has one setting for all threads: they wait for each other here, and another thread's
        own products are as rough meanwhile.
        """
        wanted = _FLOAT32 if precision == "float32" else _TF32
        with self._one_at_a_time:
            before = cupy._core.get_compute_type(np.float32)
            cupy._core.set_compute_type(np.float32, wanted)
            try:
                yield
            finally:
                cupy._core.set_compute_type(np.float32, before)
