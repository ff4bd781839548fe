"""The files that the benchmark needs, made on a machine without a GPU: ``--prepare FOLDER``.

    first.json, first.npz   the items of ``first.py``: launches, arguments, what has to come out
    KEY.cubin               a compiled kernel; the first line is the function's name

A kernel's key is made of its text, its functions' sources, dtype, capability of the device and the
source of the compiling modules, not of any version: one that was compiled by another Python is
found. ``installed`` lets the engine find these kernels, and says of others that nothing compiles
them where nothing does.
"""

import hashlib
import inspect
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from numba_rnn import cells
from numba_rnn.files import written_atomically
from numba_rnn.kernels.cuda import build, tiling
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.cuda.kernel import DeviceLimits, Kernel
from numba_rnn.kernels.fingerprint import of_engine, with_callees
from numba_rnn.kernels.layout import layout
from numba_rnn.kernels.reference import NumpyEngine

from . import first
from .machine import Absent, Machine, Recorder, forced, from_tests, step_by_step

H200 = DeviceLimits(132, 227 * 1024)
CAPABILITY = (9, 0)
LIMITS = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 2e-2}

# ---- kernels by key


def key_of(kernel: Kernel, dtype: Any, capability: tuple[int, int]) -> str:
    """The name of a compiled kernel's file."""
    sources = [
        inspect.getsource(callee)
        for name, function in sorted(kernel.functions.items())
        for callee in with_callees(function)
        if "<" not in callee.__code__.co_filename  # else its lines are in the kernel's text
    ]
    what = (kernel.name, kernel.text, kernel.count, kernel.threads, np.dtype(dtype).name)
    text = repr((what, sources, capability, of_engine("numba_rnn.kernels.cuda")))
    return (
        f"{re.sub(r'[^a-z0-9_]', '', kernel.name)}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    )


@contextmanager
def installed(folder: Path | None) -> Iterator[None]:
    """The engine finds the folder's kernels; the others are compiled, where that works."""
    compile_it = build.binary

    def binary(kernel: Kernel, dtype: Any, capability: tuple[int, int]) -> build.Binary:
        assert folder is not None
        try:
            content = (folder / f"{key_of(kernel, dtype, capability)}.cubin").read_bytes()
        except OSError:
            try:
                return compile_it(kernel, dtype, capability)
            except Exception as error:
                raise Absent(
                    f"{kernel.name} was not prepared, and {compiler_says(error)}"
                ) from error
        head, code = content.split(b"\n", 1)
        return build.Binary(code, head.decode())

    if folder is None:
        yield
    else:
        with mock.patch.object(build, "binary", binary):
            yield


def compiler_says(error: Exception) -> str:
    """Why nothing compiles here, in a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"nothing compiles here: {type(error).__name__}: {lines[0][:200]}"


_waiting: list[tuple[Kernel, Any, Path]] = []  # for the processes that compile


def _compile(k: int) -> str | None:
    kernel, dtype, place = _waiting[k]
    try:
        text = build.ptx(kernel, dtype, CAPABILITY)
        code, _ = build.link(text, CAPABILITY)
    except Exception as error:
        return f"{kernel.name}: {compiler_says(error)}"
    with written_atomically(place) as path:
        path.write_bytes(build.entry_of(text).encode() + b"\n" + code)
    return None


def compile_into(folder: Path, wanted: Sequence[tuple[Kernel, Any]], processes: int) -> list[str]:
    """Compile what is not there yet; returns what failed."""
    _waiting[:] = []
    for kernel, dtype in wanted:
        place = folder / f"{key_of(kernel, dtype, CAPABILITY)}.cubin"
        if not place.exists() and all(place != other for *_, other in _waiting):
            _waiting.append((kernel, dtype, place))
    every = range(len(_waiting))
    if processes == 1 or len(every) < 2:
        failed = list(map(_compile, every))
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            failed = pool.map(_compile, every, chunksize=1)
    return [why for why in failed if why]


# ---- the first items: launches as the engine makes them


class Tape(Recorder):
    """Keeps every launch with its arguments, as they were when it was made."""

    def __init__(self, device: DeviceLimits) -> None:
        super().__init__(device)
        self.launches: list[tuple[Kernel, tuple[int, int], list[Any]]] = []
        self.before: dict[int, Any] = {}  # arrays by their ids, as the first launch found them
        self.alive: list[Any] = []

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        super().launch(kernel, grid, arguments)
        self.launches.append((kernel, grid, list(arguments)))
        for array in arguments:
            if isinstance(array, np.ndarray):
                self.alive.append(array)
                self.before.setdefault(id(array), array.copy())

    def array(self, launch: int, name: str) -> int:
        """The number of an argument among all arrays."""
        kernel, _, arguments = self.launches[launch]
        return list(self.before).index(id(arguments[kernel.takes.index(name)]))

    def case(self, **more: Any) -> dict[str, Any]:
        """The launches for ``first.py``."""
        places = {name: k for k, name in enumerate(self.before)}
        launches, report, counters = [], set(), set()
        for kernel, grid, arguments in self.launches:
            for name, x in zip(kernel.takes, arguments, strict=True):
                if name in ("report", "counters"):
                    {"report": report, "counters": counters}[name].add(places[id(x)])
            launches.append({
                "kernel": key_of(kernel, np.float32, CAPABILITY), "grid": grid,
                "threads": kernel.threads, "shared": kernel.shared,
                "cooperative": kernel.cooperative,
                "arguments": [
                    {"array": places[id(x)]} if isinstance(x, np.ndarray) else {"int": int(x)}
                    for x in arguments
                ],
            })  # fmt: skip
        blocks = max(grid[0] * grid[1] for _, grid, _ in self.launches)
        return {"launches": launches, "report": sorted(report), "counters": sorted(counters),
                "blocks": blocks, **more}  # fmt: skip


def _coarse(random: Any, steps: int, *shape: int) -> Any:
    """Random numbers of few bits, which take little room in a compressed file."""
    return (random.integers(-steps, steps + 1, shape) / steps).astype(np.float32)


Sizes = tuple[int, int, int]  # T, N, H
CHECKS: dict[str, tuple[str, str, Sizes, int]] = {  # cell, precision, sizes, runs
    "check/gate kernels": ("lstm", "steps", (1, 3, 40), 1),
    "check/a lone block": ("lstm", "float32", (3, 3, 8), 1),
    "check/2 blocks": ("lstm", "float32", (3, 16, 16), 1),
    "check/32 blocks": ("lstm", "float32", (20, 16, 256), 2),
    "check/32 blocks, bfloat16": ("lstm", "bfloat16", (20, 16, 256), 2),
    "check/128 blocks, 700 steps": ("rnn", "float32", (700, 2, 1024), 5),
}
TINY_CHECKS = {
    "check/gate kernels": ("lstm", "steps", (1, 3, 8), 1),
    "check/a lone block": ("lstm", "float32", (2, 3, 8), 1),
    "check/3 blocks": ("rnn", "float32", (3, 2, 21), 2),
}
TIMES: list[Sizes] = [(128, 32, 256), (1024, 16, 768), (256, 64, 512), (512, 64, 1024)]
PARTS = "barrier", "exchange", "product"
DISSECTED = [
    ((1024, 16, 768), "bfloat16"), ((1024, 16, 768), "float32"), ((128, 32, 256), "float32"),
    ((512, 64, 1024), "bfloat16"),
]  # fmt: skip
WAYS = "forward", "backward"


def _narrow(engine: CudaEngine) -> Callable[..., Any]:
    """Blocks of 8 units, the smallest: as many blocks as there can be."""

    def choose(
        cell: Any, N: int, T: int, H: int, dtype: Any, forward: bool = True, *_: Any, **__: Any
    ) -> Any:
        wide = cell.gates if forward else ("h",)
        split_n = 2 if len(wide) % 2 == 0 and H > 8 else 1
        precision = engine.precision
        c = tiling.Tiling(
            H, layout(cell).early, forward, 8, 16, 4 if H > 8 else 2, split_n, precision
        )
        return tiling.LaunchPlan(c, 1, -(-N // 16), 0.0, 1e9), "asked for"

    return choose


def _check(
    device: DeviceLimits, name: str, how: str, sizes: Sizes, runs: int, given: str
) -> tuple[dict[str, Any], Tape, dict[str, Any]]:
    """An item that checks: the case, its tape, the arrays that are stored."""
    (T, N, H), D, random = sizes, 4, np.random.default_rng(0)
    cell, tape = cells.get(name), Tape(device)
    precision = "float32" if how == "steps" else how
    engine = Machine(CudaEngine(tape, precision)).engine(precision)
    size = len(cell.recurrent_gates)
    # few large weights: what went in long ago still matters, and nothing grows
    Wh = _coarse(random, 7, H, size * H) * np.float32(1 / np.sqrt(H))
    Wx, xs = _coarse(random, 8, D, len(cell.gates) * H) / 2, _coarse(random, 8, N, T, D)
    b, dhs = _coarse(random, 8, len(cell.gates) * H) / 4, _coarse(random, 8, N, T, H)
    state = tuple(_coarse(random, 8, N, H) for _ in cell.states)
    dstate = tuple(_coarse(random, 8, N, H) for _ in cell.states)
    params = Wx, Wh, b
    choose = step_by_step if how == "steps" else _narrow(engine)
    with forced(engine, choose), np.errstate(all="ignore"):
        hs, _, saved = engine.forward(cell, xs, state, params)
        engine.backward(cell, dhs, dstate, saved)
    wide = [array.astype(np.float64) for array in (xs, dhs, *state, *dstate, *params)]
    xs64, dhs64, *others = wide
    S, exact = len(state), NumpyEngine()
    hs, _, kept = exact.forward(cell, xs64, tuple(others[:S]), tuple(others[2 * S :]))
    dxs = exact.backward(cell, dhs64, tuple(others[S : 2 * S]), kept).xs
    last = min(T, 8)
    arrays = {
        f"{given}/hs": hs[:, -last:].astype(np.float32),
        f"{given}/dxs": dxs,
        f"{given}/Wx": Wx,
    }
    # as the kernels have it: with gates in the layout's order
    at = layout(cell)
    arrays[f"{given}/Wx"] = np.concatenate([Wx[:, k * H : (k + 1) * H] for k in at.x_blocks], 1)
    arrays |= {f"{given}/{k}": array for k, array in enumerate(tape.before.values())}
    limit = LIMITS[precision] * (3 if T > 100 else 1)
    want = [
        {"name": "hs", "array": tape.array(0, "hs"), "from": f"{given}/hs", "weights": None},
        {"name": "dxs", "array": tape.array(-1, "dgates"), "from": f"{given}/dxs",
         "weights": f"{given}/Wx"},
    ]  # fmt: skip
    from_ = [{"from": f"{given}/{k}"} for k in range(len(tape.before))]
    case = tape.case(
        kind="check", steps=T, runs=runs, limit=limit, want=want, arrays=from_
    )  # fmt: skip
    return case, tape, arrays


def _without(kernel: Kernel, part: str) -> Kernel:
    """A persistent kernel of which one part of the step is left."""
    lines, loads = [], r"load4_volatile\(exchange, .*\)$"
    for line in kernel.lines:
        if re.match(r" *(sum|left|right)\d+_\d+ = mma", line) and part != "product":
            continue
        if part == "barrier":
            line = re.sub(loads, "(zero, zero, zero, zero)", line)
        if part == "product":  # of a line that stays in the first cache
            line = re.sub(loads, "load4_volatile(exchange, 4 * lane)", line)
            line = re.sub(r"while seen < .* and looks", "while looks < 0 and looks", line)
            line = line.replace("red_release(counters, group * 32)", "pass")
            line = line.replace("seen = load_acquire(counters, group * 32)", "seen = counters[0]")
            line = line.replace(
                "seen, looks = load_acquire(counters, group * 32), looks + 1", "pass"
            )
        lines.append(line)
    return replace(kernel, lines=lines, name=f"{kernel.name}_{part}")


def _timed(
    device: DeviceLimits, sizes: Sizes, precision: str, way: str, part: str | None = None
) -> tuple[dict[str, Any], dict[str, Kernel]] | None:
    """An item that measures, and its kernel by key; None where the engine goes step by step."""
    (T, N, H), cell = sizes, cells.get("lstm")
    engine, tape = _launched(device, N, H, precision)
    plan, _ = engine.plan(cell, N, T, H, np.dtype(np.float32), way == "forward")
    if plan is None:
        return None
    whole, grid, arguments = next(x for x in tape.launches if x[0].name.endswith(f"nt_{way}"))
    steps, known = min(T, 256), dict(zip(whole.takes, arguments, strict=True))
    kernel = _without(whole, part) if part else whole
    values = {name: known[name] for name in kernel.takes}
    arrays, given = [], []
    for name, value in values.items():
        if not isinstance(value, np.ndarray):
            given.append({"int": steps if name == "T" else int(value)})
            continue
        shape = list(value.shape)
        if name in ("x_proj", "saved", "dgates"):
            shape[0] = steps
        elif name == "states":
            shape[0] = steps + 1
        elif name in ("hs", "dhs"):
            shape[1] = steps
        zero = name in ("counters", "report", "exchange")
        arrays.append({"shape": shape, "dtype": value.dtype.name, "zero": zero})
        given.append({"array": len(arrays) - 1})
    names = [name for name, value in values.items() if isinstance(value, np.ndarray)]
    launch = {
        "kernel": key_of(kernel, np.float32, CAPABILITY), "grid": grid, "threads": kernel.threads,
        "shared": kernel.shared, "cooperative": kernel.cooperative, "arguments": given,
    }  # fmt: skip
    case = {
        "kind": "time", "launches": [launch], "arrays": arrays, "steps": steps,
        "report": [k for k, name in enumerate(names) if name == "report"],
        "counters": [k for k, name in enumerate(names) if name == "counters"],
        "blocks": grid[0] * grid[1], "predicted_us": None if part else plan.microseconds,
    }  # fmt: skip
    return case, {launch["kernel"]: kernel}


@lru_cache(maxsize=2)
def _launched(device: DeviceLimits, N: int, H: int, precision: str) -> tuple[CudaEngine, Tape]:
    """An engine, and what it launches for an LSTM."""
    tape = Tape(device)
    engine = Machine(CudaEngine(tape, precision)).engine(precision)
    touch(engine, cells.get("lstm"), N, H, "float32")
    return engine, tape


def touch(engine: CudaEngine, cell: Any, N: int, H: int, dtype: str) -> None:
    """Run forward and backward for the kernels' sake, which do not depend on T and D.

    One step is run as one of many would be.
    """
    plan, cell = engine.plan, cells.get(cell)

    def of_many(
        cell: Any,
        N: int,
        T: int,
        H: int,
        dtype: Any,
        forward: bool = True,
        *more: Any,
        **named: Any,
    ) -> Any:
        return plan(cell, N, 1000, H, dtype, forward, *more, **named)

    def states() -> Any:
        return tuple(np.zeros((N, H), dtype) for _ in cell.states)

    params = tuple(np.zeros(shape, dtype) for shape in cell.shapes(1, H).values())
    for choose in (of_many, step_by_step):  # as a single step goes
        with forced(engine, choose), np.errstate(all="ignore"):
            hs, _, saved = engine.forward(cell, np.zeros((N, 1, 1), dtype), states(), params)
            engine.backward(cell, np.zeros_like(hs), states(), saved)


def first_items(device: DeviceLimits, tiny: bool = False) -> dict[str, tuple[Any, Any, Any]]:
    """Every item of ``first.py``: its case, its kernels by key, the arrays that it wants stored."""
    found: dict[str, tuple[Any, Any, Any]] = {}
    for item, given in (TINY_CHECKS if tiny else CHECKS).items():
        case, tape, arrays = _check(device, *given, item)
        found[item] = case, _by_key(tape), arrays
    sizes = [(4, 16, 24)] if tiny else TIMES
    plain = [
        (size, number, way, None) for size in sizes for number in tiling.PRECISIONS for way in WAYS
    ]
    cut = [((4, 16, 24), "float32")] if tiny else DISSECTED
    parts = [(*these, way, part) for these in cut for way in WAYS for part in PARTS]
    for size, number, way, part in [*plain, *parts]:
        timed = _timed(device, size, number, way, part)
        if timed is not None:
            name = f"{','.join(map(str, size))}/{number}/{way}"
            item = f"parts/{name}/{part}" if part else f"time/{name}"
            found[item] = *timed, {}
    return found


@lru_cache(maxsize=1)
def _first_items(device: DeviceLimits) -> dict[str, tuple[Any, Any, Any]]:
    return first_items(device, tiny=True)


def _by_key(tape: Tape) -> dict[str, Kernel]:
    return {key_of(kernel, dtype, CAPABILITY): kernel for kernel, dtype in tape.found}


class EmulatedDevice:
    """Takes the place of a GPU for ``first.py``: the tests' emulator runs the kernels."""

    def __init__(self, kernels: dict[str, Kernel]) -> None:
        self.kernels, self.launched = kernels, 0

    put = staticmethod(np.array)
    get = staticmethod(np.array)

    def filled(self, shape: list[int], dtype: str) -> Any:
        return np.full(shape, 0.01, dtype)

    def launch(self, launch: dict[str, Any], arguments: list[Any]) -> None:
        self.launched += 1
        kernel = self.kernels[launch["kernel"]]
        emulate = from_tests("cuda_emulator").emulate
        emulate(kernel, launch["grid"], arguments, kernel.count, self.launched)

    def microseconds(self, call: Any) -> tuple[float, int]:
        start = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - start), 1


def emulated_first(machine: Machine, item: str) -> dict[str, Any]:
    """An item of ``first.py`` in the emulator; of kernels with parts left out the construction."""
    case, kernels, stored = _first_items(machine.gpu.device)[item]
    if item.startswith("parts"):
        return {"steps": case["steps"], "blocks": case["blocks"], "note": "not run in emulation"}
    return first.run(EmulatedDevice(kernels), case, stored)


# ---- the folder


def prepare(
    folder: Path, wanted: Callable[[Machine], None] | None, say: Callable[[str], None] = print,
    device: DeviceLimits = H200,
) -> list[str]:  # fmt: skip
    """Fill the folder; ``wanted`` runs all that the other sections need on a recorder.

    Returns what does not compile. The kernels of the first items come first: what is there when
    this is stopped is of use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items = first_items(device)
    stored = {name: array for _, _, arrays in items.values() for name, array in arrays.items()}
    with written_atomically(folder / "first.npz") as path, open(path, "wb") as file:
        np.savez_compressed(file, **stored)
    with written_atomically(folder / "first.json") as path:
        path.write_text(json.dumps({item: case for item, (case, *_) in items.items()}), "utf-8")
    kernels = [
        (kernel, np.dtype(np.float32))
        for _, found, _ in items.values()
        for kernel in found.values()
    ]
    processes = max(1, min(16, os.cpu_count() or 1))
    failed = compile_into(folder, kernels, processes)
    say(f"{len(kernels)} kernels of the first minute, {len(failed)} of which do not compile")
    if wanted is not None:
        recorder = Recorder(device)
        with np.errstate(all="ignore"):  # of arrays that nothing has filled
            wanted(Machine(CudaEngine(recorder), emulated=True))
        say(f"compiling {len(recorder.found)} kernels of the other sections")
        failed += compile_into(folder, list(recorder.found), processes)
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"{len(list(folder.glob('*.cubin')))} cubins, {size / 2**20:.1f} MiB in all")
    return failed
