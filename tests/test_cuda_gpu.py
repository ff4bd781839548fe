"""The engine's calls of CuPy: the real one needs a GPU, the one here writes them down."""

import importlib
import re
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from test_steps import FEATURES, random_options

from fake_device import DeviceArray, wrap, xp
from helpers import random_problem
from numba_rnn import cells
from numba_rnn.kernels.cuda import build, gates, persistent, tiling
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.cuda.kernel import INTEGERS, DeviceLimits
from numba_rnn.kernels.step_options import NO_OPTIONS
from numba_rnn.training import SGD, Adam

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


# ---- arguments, as the driver takes them: bytes, whatever they mean


class StrictCuPy(CuPy):
    """Checks what a kernel is launched on against the parameters of its PTX.

    CuPy passes an array as its address, a whole number as 8 bytes, a NumPy number as what it is.
    """

    def __init__(self):
        super().__init__()
        outer, self.launched = self, []

        class Function:
            ptr = 7

            def __init__(self, text):
                head = text[text.index(".entry") :]
                self.wanted = re.findall(r"\.param \.(\w+)", head[: head.index(")\n")])

            def __call__(self, grid, block, args, shared_mem=0, enable_cooperative_groups=False):
                given = [outer.kind(x) for x in args]
                assert given == self.wanted, (given, self.wanted)
                assert all(0 < n <= most for n, most in zip(grid, (2**31 - 1, 65535), strict=True))
                assert block[0] <= 1024
                outer.launched.append((grid, block, shared_mem))

        class Module:
            def load(self, code):
                self.text = code.decode()

            def get_function(self, name):
                assert f".entry {name}(" in self.text
                return Function(self.text)

        self.cuda.Module = Module

    @staticmethod
    def kind(x):
        if type(x) is int:
            return "u64"
        if isinstance(x, np.generic):
            return {"float32": "f32", "float64": "f64"}[x.dtype.name]
        return "u64" if isinstance(x, DeviceArray) else type(x).__name__

    def __getattr__(self, name):
        return getattr(xp, name)


def compiled_only(kernel, dtype, capability):
    """As PTX, in which the parameters can be read."""
    text = build.ptx(kernel, dtype, capability)
    return build.Binary(text.encode(), build.entry_of(text))


@pytest.fixture
def strict(monkeypatch):
    fake = StrictCuPy()
    monkeypatch.setitem(sys.modules, "cupy", fake)  # the others stay: Numba loads some late
    monkeypatch.setattr(build, "binary", compiled_only)
    monkeypatch.setattr(DeviceArray, "data", SimpleNamespace(ptr=512), raising=False)
    sys.modules.pop(NAME, None)
    fake.engine = CudaEngine(importlib.import_module(NAME).CupyGpu())
    with np.errstate(all="ignore"):
        yield fake
    del sys.modules[NAME]


needs_compiler = pytest.mark.skipif(sys.platform != "linux", reason="needs CUDA's compiler")


@needs_compiler
@pytest.mark.parametrize(
    ("name", "features", "polls"),
    [("lstm", FEATURES, 0), ("gru", FEATURES, 0), ("rnn", (), 9), ("lstm_layer_norm", (), 0)],
)
def test_kernels_are_launched_on_what_they_take(strict, name, features, polls):
    """No kernel runs; every launch of a pass has the arguments that the compiled code expects."""
    engine, given = strict.engine, random_problem(name, 3, 100, 4, 40, np.float32)
    engine.polls, engine.report = polls, wrap(np.zeros(4 * 132, np.uint32))
    steps = random_options(given, set(features)) if features else NO_OPTIONS
    p = given.map(wrap)
    _, _, saved = engine.forward(p.cell, p.xs, p.state, p.params, steps)
    engine.backward(p.cell, p.dhs, p.dstate, saved)
    several = name in ("gru", "lstm_layer_norm")
    assert len(strict.launched) > 100 if several else len(strict.launched) == 2


@needs_compiler
def test_the_kernels_of_training_are_launched_on_what_they_take(strict):
    engine, random = strict.engine, np.random.default_rng(0)
    param, gradient = (wrap(random.random(12).astype(np.float32)) for _ in range(2))
    for kind in (SGD, Adam):
        optimiser = kind()
        optimiser.updates = 1
        slots = [wrap(np.zeros(12, np.float32)) for _ in kind.slots]
        engine.update(kind.rule, [param, *slots], gradient, optimiser._numbers())
    engine.add_rows(wrap(np.zeros((5, 8), np.float32)), wrap(np.array([3, 1, 3])),
                    wrap(np.ones((3, 8), np.float32)))  # fmt: skip
    engine.dropout(7, (3, 4, 5), 0.25, np.float32)
    a, b = (wrap(np.zeros((2000, 1100), np.float32)) for _ in range(2))
    engine.product(a, b.T)
    assert len(strict.launched) > 6


@needs_compiler
def test_the_stand_in_refuses_what_the_driver_would_misread(strict):
    kernel = gates.kernel(cells.get("rnn"), "forward_gates", 1, 128)
    array = wrap(np.zeros(1, np.float32))
    count = sum(name not in INTEGERS for name in kernel.takes)
    right = [array] * count + [0] * (len(kernel.takes) - count)
    strict.engine.gpu.launch(kernel, (1, 1), right)
    for wrong in (right[:-1], [*right[:-1], np.float32(1)], [*right[:-1], 1.0]):
        with pytest.raises(AssertionError):
            strict.engine.gpu.launch(kernel, (1, 1), wrong)
