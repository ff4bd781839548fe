"""The engine's calls of CuPy: the real one needs a GPU, the one here writes them down."""

import importlib
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from numba_rnn import cells
from numba_rnn.kernels.cuda import build, gates, persistent, tiling
from numba_rnn.kernels.cuda.kernel import DeviceLimits

NAME = "numba_rnn.kernels.cuda.cupy_gpu"


class CuPy:
    """Answers as an H200 would, and keeps what it was asked."""

    __name__ = "cupy"

    def __init__(self):
        self.asked, self.current, self.compute_type, self.resident = [], 0, 1, 1
        ask = self.ask
        attributes = {
            "MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448,
            "CooperativeLaunch": 1,
        }  # fmt: skip
        device = SimpleNamespace(
            id=0, attributes=attributes, compute_capability="90", mem_info=(0, 141 * 2**30)
        )
        self._core = SimpleNamespace(
            get_compute_type=lambda dtype: self.compute_type,
            set_compute_type=lambda dtype, kind: setattr(self, "compute_type", kind),
        )

        class Function:
            ptr = 7

            def __call__(self, grid, block, args, shared_mem=0, enable_cooperative_groups=False):
                ask("launch", grid, block, len(args), shared_mem, enable_cooperative_groups)

        class Module:
            def load(self, code):
                ask("load", type(code))

            def get_function(self, name):
                ask("function", name)
                return Function()

        self.cuda = SimpleNamespace(
            Device=lambda: device,
            Module=Module,
            get_device_id=lambda: self.current,
            runtime=SimpleNamespace(getDeviceProperties=lambda number: {"name": b"NVIDIA H200"}),
            driver=SimpleNamespace(
                funcSetAttribute=lambda *given: ask("attribute", *given),
                occupancyMaxActiveBlocksPerMultiprocessor=lambda *given: (
                    ask("occupancy", *given) or self.resident
                ),
            ),
        )

    def ask(self, *what):
        self.asked.append(what)


@pytest.fixture
def cupy():
    fake = CuPy()
    with (
        mock.patch.dict(sys.modules),  # put back afterwards, the module included
        mock.patch.dict(sys.modules, cupy=fake),
        mock.patch.object(build, "binary", return_value=build.Binary(b"cubin", "entry")),
    ):
        sys.modules.pop(NAME, None)
        fake.gpu = importlib.import_module(NAME).CupyGpu()
        yield fake


def persistent_kernel():
    plan, _ = tiling.plan(cells.get("lstm"), 20, 650, True, "float32", DeviceLimits(132, 232448))
    return persistent.kernel(cells.get("lstm"), plan.tiling, plan.tiles), plan


def test_the_device_says_what_there_is_room_for(cupy):
    assert cupy.gpu.device == DeviceLimits(132, 232448)
    assert cupy.gpu.capability == (9, 0)
    assert cupy.gpu.describe() == "NVIDIA H200, 132 multiprocessors, 141 GiB"


def test_a_kernel_is_loaded_once_and_launched_as_it_says(cupy):
    kernel = gates.kernel(cells.get("rnn"), "forward_gates", 1, 128)
    arguments = [np.zeros(1, np.float32)] * 7 + [0, 1, 2, 3]
    for _ in range(2):
        cupy.gpu.launch(kernel, (5, 2), arguments)
    launch = ("launch", (5, 2), (128,), 11, 0, False)
    assert cupy.asked == [("load", bytes), ("function", "entry"), launch, launch]


def test_room_is_asked_for_before_anybody_wants_to_know_whether_it_is_there(cupy):
    kernel, plan = persistent_kernel()
    blocks = plan.tiling.blocks * plan.groups
    assert cupy.gpu.fits(kernel, blocks)
    cupy.gpu.launch(kernel, (plan.tiling.blocks, plan.groups), [np.zeros(1, np.float32)])
    assert kernel.shared > 48 * 1024
    assert cupy.asked[2:] == [
        ("attribute", 7, 8, kernel.shared),
        ("occupancy", 7, kernel.threads, kernel.shared),
        ("launch", (plan.tiling.blocks, plan.groups), (kernel.threads,), 1, kernel.shared, True),
    ]
    assert not cupy.gpu.fits(kernel, 133)


def test_a_grid_that_cupy_would_shrink_is_refused(cupy):
    """Blocks would wait for ever for those that were not started."""
    kernel, plan = persistent_kernel()
    cupy.resident = 0
    assert not cupy.gpu.fits(kernel, 1)
    with pytest.raises(RuntimeError, match=r"_forward: \d+ blocks cannot run at once on this GPU"):
        cupy.gpu.launch(kernel, (plan.tiling.blocks, 1), [np.zeros(1, np.float32)])
    assert not any(what == "launch" for what, *_ in cupy.asked)


def test_another_device_is_refused(cupy):
    cupy.current = 1
    kernel = gates.kernel(cells.get("rnn"), "forward_gates", 1, 128)
    with pytest.raises(RuntimeError, match=r"runs on GPU 0, .* is 1; .* CUDA_VISIBLE_DEVICES"):
        cupy.gpu.launch(kernel, (1, 1), [np.zeros(1, np.float32)])


@pytest.mark.parametrize(("precision", "within"), [("float32", 1), ("tf32", 7), ("bfloat16", 7)])
def test_the_setting_for_products_is_put_back(cupy, precision, within):
    cupy.compute_type = 5  # somebody's
    with cupy.gpu.products(precision):
        assert cupy.compute_type == within
        with cupy.gpu.products("tf32"):
            assert cupy.compute_type == 7
        assert cupy.compute_type == within

    def fail():
        with cupy.gpu.products(precision):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert cupy.compute_type == 5
