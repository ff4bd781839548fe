"""The place where items run: a GPU, its emulator, or a list of the kernels that would run."""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

from numba_rnn.kernels.cuda import build
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.cuda.kernel import DeviceLimits, Kernel

from .first import waited

Call = Callable[[], Any]
Choose = Callable[..., Any]

POLLS = 1 << 21  # looks at a counter, some two seconds, after which a block waits no more
TESTS = Path(__file__).resolve().parents[2] / "tests"


def from_tests(name: str) -> Any:
    """A module of the tests: problems and how they are compared, the emulator."""
    import importlib

    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    return importlib.import_module(name)


@dataclass
class Machine:
    """Where items run.

    base      the CUDA engine in float32
    emulated  there is no GPU; times mean nothing
    tiny      few and small cases, as under a sanitizer or in the emulator
    """

    base: CudaEngine
    emulated: bool = False
    tiny: bool = False

    def __post_init__(self) -> None:
        blocks = self.gpu.device.multiprocessors
        self.report = self.base.xp.zeros(4 * max(1, blocks), np.uint32)
        for precision in ("float32", "tf32", "bfloat16"):
            engine = self.base.with_precision(precision)
            engine.polls, engine.report = POLLS, self.report

    def never_persistent(self) -> None:
        """Steps go one by one from now on."""
        for precision in ("float32", "tf32", "bfloat16"):
            self.base.with_precision(precision).plan = step_by_step  # type: ignore[method-assign]

    def waited(self) -> str | None:
        """The blocks that waited in vain since this was asked for."""
        found = waited(self.base.to_host(self.report))
        if found:
            self.report[...] = 0
        return found

    @property
    def gpu(self) -> Any:
        """The GPU on which the engine starts its kernels."""
        return self.base.gpu

    def engine(self, precision: str = "float32") -> CudaEngine:
        """The engine; in float64 there is no choice of precision."""
        return self.base.with_precision("float32" if precision == "float64" else precision)

    def synchronise(self) -> None:
        """Wait for all that was started."""
        if not self.emulated:
            self.gpu.xp.cuda.Device().synchronize()

    def healthy(self) -> bool:
        """Whether the device still answers: after some errors a process never reaches it again."""
        try:
            array = self.base.xp.zeros(4, np.float32)
            self.base.to_host(array + 1.0)
            self.synchronise()
        except Exception:
            return False
        return True

    # ---- time

    def elapsed(self, call: Call, repeats: int) -> tuple[float, float]:
        """Microseconds a call by the device's clock, and until the host has started it."""
        if self.emulated:
            start = time.perf_counter()
            call()
            took = 1e6 * (time.perf_counter() - start)
            return took, took
        cuda = self.gpu.xp.cuda
        begin, end = cuda.Event(), cuda.Event()
        self.synchronise()
        start = time.perf_counter()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        host = 1e6 * (time.perf_counter() - start) / repeats
        end.synchronize()
        return 1e3 * cuda.get_elapsed_time(begin, end) / repeats, host

    def cost(self, call: Call, repeats: int = 200) -> dict[str, float]:
        """The cost of a call that is made again and again: medians of seven."""
        for _ in range(0 if self.emulated else 20):
            call()
        rounds = [self.elapsed(call, repeats) for _ in range(1 if self.emulated else 7)]
        device, host = (median(times) for times in zip(*rounds, strict=True))
        return {"device_us": device, "host_us": host}

    def medians(self, calls: dict[str, Call], rounds: int = 7) -> dict[str, float]:
        """Microseconds of each call, measured in turn: A B A B ..."""
        if self.emulated:
            return {name: self.elapsed(call, 1)[0] for name, call in calls.items()}
        repeats = {}
        for name, call in calls.items():
            for _ in range(3):
                call()
            took = self.elapsed(call, 1)[0]
            repeats[name] = int(min(20, max(1, 3000 / took)))
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                found[name].append(self.elapsed(call, repeats[name])[0])
        return {name: median(times) for name, times in found.items()}

    # ---- layouts

    @contextmanager
    def launched(self) -> Iterator[list[str]]:
        """The names of the kernels that run in the block."""
        names: list[str] = []
        launch = self.gpu.launch

        def note(kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
            names.append(kernel.name)
            launch(kernel, grid, arguments)

        with mock.patch.object(self.gpu, "launch", note):
            yield names

    # ---- torch

    def torch(self) -> Any:
        """torch, where it is installed and reaches the device; raises Absent."""
        try:
            import torch
        except Exception as error:  # whatever a broken installation raises
            raise Absent(f"torch cannot be imported ({error})") from error
        if not self.emulated and not torch.cuda.is_available():
            raise Absent("torch does not reach the GPU")
        return torch

    @property
    def torch_device(self) -> str:
        """Where torch computes."""
        return "cpu" if self.emulated else "cuda"


class Absent(Exception):  # noqa: N818 (no error: there is nothing to compare with)
    """Something that the benchmark can do without is not installed."""


@contextmanager
def forced(engine: CudaEngine, choose: Choose) -> Iterator[None]:
    """The engine's steps run as ``choose`` says, called as ``CudaEngine.plan`` is."""
    before = vars(engine).get("plan")
    engine.plan = choose  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine.plan
        if before is not None:
            engine.plan = before  # type: ignore[method-assign]


def step_by_step(*_: Any, **__: Any) -> Any:
    """A layout: never persistent."""
    return None, "asked for"


@contextmanager
def stand_in(asked: str | None, item: str) -> Iterator[None]:
    """Something goes wrong in an item, as it may on a GPU: ``hang=ITEM,crash=ITEM``.

    Its first kernel hangs, or takes the process with it. With ``no-compiler`` there is none.
    """
    emulator = from_tests("cuda_emulator") if asked else None
    wrong = dict(pair.partition("=")[::2] for pair in (asked or "").split(","))
    if emulator is None:
        yield
        return

    def emulate(*_: Any, **__: Any) -> None:
        if wrong.get("hang") == item:
            time.sleep(1000)
        os._exit(139)

    def missing(*_: Any, **__: Any) -> Any:
        raise OSError("libnvvm.so: cannot open shared object file")

    with ExitStack() as changes:
        if item in (wrong.get("hang"), wrong.get("crash")):
            changes.enter_context(mock.patch.object(emulator, "emulate", emulate))
        if "no-compiler" in wrong:
            changes.enter_context(mock.patch.object(build, "ptx", missing))
            changes.enter_context(mock.patch.object(build, "link", missing))
        yield


@contextmanager
def opened(emulate: bool, tiny: bool = False) -> Iterator[Machine]:
    """The machine; raises BackendError where there is no GPU."""
    from numba_rnn.backend import engine_by_name

    if not emulate:
        yield Machine(engine_by_name("cuda"), tiny=tiny)  # type: ignore[arg-type]
        return
    fake = from_tests("fake_device")
    with fake.fake_device(functools.partial(fake.EmulatedEngine, 6)) as engine:
        yield Machine(engine, emulated=True, tiny=True)


# ---- the kernels that would have run


class Recorder:
    """Takes note of kernels instead of running them; a ``Gpu`` on NumPy arrays."""

    def __init__(self, device: DeviceLimits) -> None:
        self.device, self.xp = device, _Numpy()
        self.found: dict[tuple[Kernel, Any], None] = {}

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        self.found[kernel, arguments[0].dtype] = None

    def fits(self, kernel: Kernel, blocks: int) -> bool:
        self.found[kernel, np.dtype(np.float32)] = None
        return True

    def address(self, array: Any) -> int:
        return 0  # CuPy's arrays start where 16 bytes can be read at once

    def products(self, precision: str) -> Any:
        return nullcontext()

    def describe(self) -> str:
        return "a recorder"


class _Numpy:
    asnumpy = staticmethod(np.asarray)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)
