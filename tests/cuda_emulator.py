"""CUDA kernels run by Python: all blocks alive at once, in any order, every access checked.

A thread is a greenlet that runs until it has to wait: for its block at ``syncthreads``, for its
warp at a tensor-core instruction, for other blocks when it looks at a counter. Which one goes on
is drawn by lot. Errors, where a GPU would go wrong without a word: an access outside an array or
not aligned, a number that another block wrote and that is not read afresh, or before the arrival
that says so is seen, two blocks writing one
number, two warps at one number of shared memory without a barrier between, threads that wait for
ever. It cannot see memory that other threads see late.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet
from numpy.lib.stride_tricks import as_strided

from numba_rnn.kernels import counter_rng
from numba_rnn.kernels.cuda.kernel import DeviceLimits, Kernel

NOBODY = -1
STRIDED = {"source"}  # arguments that may have gaps between their rows


class EmulationError(RuntimeError):
    """A mistake that a GPU would make without a word."""


class Pointer:
    """An array's numbers one after the other, as a kernel sees them."""

    def __init__(self, array: np.ndarray, name: str) -> None:
        gaps = name in STRIDED and array.strides[-1] == array.itemsize
        if not (array.flags.c_contiguous or gaps):
            raise EmulationError(f"{name}: an array of strides {array.strides} was launched on")
        reach = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
        self.numbers = as_strided(array, (reach // array.itemsize + 1,), (array.itemsize,))
        self.name = name
        self.writer = np.full(self.numbers.size, NOBODY)  # the block
        self.thread = np.zeros(self.numbers.size, int)  # of it
        self.passed = np.zeros(self.numbers.size, int)  # barriers, when it wrote
        self.touched: dict[int, tuple[int, int, bool]] = {}  # warp, barriers passed, written

    def __getitem__(self, index: int) -> Any:
        return self.numbers[self.at(int(index), 1)][0]

    def __setitem__(self, index: int, value: Any) -> None:
        self.numbers[self.at(int(index), 1)] = value

    def at(self, index: int, count: int) -> slice:
        if index % count:
            raise EmulationError(f"{self.name}: {count} numbers at {index}: not aligned")
        if not 0 <= index <= self.numbers.size - count:
            raise EmulationError(f"{self.name}: {count} numbers at {index} of {self.numbers.size}")
        return slice(index, index + count)


class _Group:
    """Threads that wait for each other: a block, or a warp."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.meetings = 0
        self.made_from, self.made = None, None
        self.given: dict[int, Any] = {}  # by those who wait
        self.threads: dict[int, Any] = {}

    def meet(self, machine: "_Machine", member: int, kind: str, value: Any = None) -> Any:
        """Wait until all have come; returns what all gave."""
        self.given[member], self.threads[member] = (kind, value), machine.current
        if len(self.given) < self.size:
            machine.wait(kind)
        else:
            kinds = {k for k, _ in self.given.values()}
            if len(kinds) > 1:
                raise EmulationError(f"threads of a warp at different instructions: {kinds}")
            self.meetings += 1
            self.result = [self.given[k][1] for k in range(self.size)]
            machine.ready += [t for m, t in self.threads.items() if m != member]
            self.given, self.threads = {}, {}
        return self.result

    def once(self, given: Any, make: Callable[[], Any]) -> Any:
        """The result of ``make``, which the first member that comes calls."""
        if self.made_from is not given:
            self.made_from, self.made = given, make()
        return self.made


class _Machine:
    def __init__(self, seed: int) -> None:
        self.random, self.ready, self.waiting = random.Random(seed), [], Counter()
        self.hub, self.current = getcurrent(), None
        self.arrivals: dict[int, list[tuple[int, int]]] = {}  # a block's: barriers passed, thread
        self.counted: dict[int, dict[int, int]] = {}  # at a counter: of each block so many
        self.looks = 0  # at counters, since something else happened

    def wait(self, kind: str) -> None:
        self.looks = 0
        self.waiting[kind] += 1
        self.hub.switch()
        self.waiting[kind] -= 1

    def look_again_later(self) -> None:
        self.looks += 1
        if self.looks > 20_000:
            raise EmulationError("threads wait for ever: for an arrival")
        self.ready.append(self.current)
        self.hub.switch()

    def run(self) -> None:
        while self.ready:
            k = self.random.randrange(len(self.ready))
            self.ready[k], self.ready[-1] = self.ready[-1], self.ready[k]
            self.current = self.ready.pop()
            self.current.context.enter()
            self.current.switch()
        stuck = {kind: count for kind, count in self.waiting.items() if count}
        if stuck:
            raise EmulationError(f"threads wait for ever: {stuck}")


def _rounded(x: Any, kept: int) -> np.ndarray:
    """float32 rounded to so many bits of its pattern, ties away from zero (tf32) or to even."""
    pattern = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    drop = 32 - kept
    tie = (pattern >> drop) & 1 if kept == 16 else 1
    half = (1 << (drop - 1)) - 1 + tie
    return (((pattern + half) >> drop) << drop).astype(np.uint32)


def _floats(patterns: Any) -> np.ndarray:
    return np.array(patterns, np.uint32).view(np.float32).astype(np.float64)


def _cut_off(patterns: Any) -> np.ndarray:
    """Numbers as tensor cores read them: of float32's bits those that TF32 has."""
    return _floats([int(x) & 0xFFFFE000 for x in patterns])


def _multiply(kind: str, given: list[tuple[Any, Any, Any]]) -> list[tuple[Any, ...]]:
    """The part of c + a b that each lane of a warp gets."""
    deep = 8 if kind == "mma_tf32" else 16
    a, b, c = np.zeros((16, deep)), np.zeros((deep, 8)), np.zeros((16, 8))
    for lane, (a_, b_, c_) in enumerate(given):
        g, q = divmod(lane, 4)
        if kind == "mma_tf32":
            a[[g, g + 8, g, g + 8], [q, q, q + 4, q + 4]] = _cut_off(a_)
            b[[q, q + 4], g] = _cut_off(b_)
        else:
            low, high = (_floats([(x << s) & 0xFFFF0000 for x in a_]) for s in (16, 0))
            rows, start = [g, g + 8, g, g + 8], np.array([2 * q, 2 * q, 2 * q + 8, 2 * q + 8])
            a[rows, start], a[rows, start + 1] = low, high
            low, high = (_floats([(x << s) & 0xFFFF0000 for x in b_]) for s in (16, 0))
            b[[2 * q, 2 * q + 8], g], b[[2 * q + 1, 2 * q + 9], g] = low, high
        c[[g, g, g + 8, g + 8], [2 * q, 2 * q + 1] * 2] = c_
    out = (c + a @ b).astype(np.float32)
    return [
        tuple(out[[g, g, g + 8, g + 8], [2 * q, 2 * q + 1] * 2]) for g in range(8) for q in range(4)
    ]


def _latest(known: list[dict[int, int]]) -> dict[int, int]:
    """The most that any of some threads knows of each block's arrivals."""
    return {b: max(k.get(b, 0) for k in known) for b in set().union(*known)}


class _Instructions:
    """The instructions that kernels call, for the thread whose turn it is."""

    def __init__(self, machine: _Machine, dtype: Any) -> None:
        self.machine, self.dtype = machine, dtype

    @property
    def thread(self) -> Any:
        return self.machine.current.context

    def _race(self, pointer: Pointer, at: slice, writes: bool) -> None:
        """Two warps of a block at one number of shared memory, no barrier between, one writes."""
        thread = self.thread
        if pointer is not thread.block.memory:
            return
        warp, passed = thread.number // 32, thread.block.meetings
        for place in range(at.start, at.stop):
            other, when, wrote = pointer.touched.get(place, (warp, passed, False))
            if other != warp and when == passed and (writes or wrote):
                raise EmulationError(f"warps {other} and {warp} race at {place} of shared memory")
            if writes or when != passed or not wrote:  # of several reads the last is remembered
                pointer.touched[place] = warp, passed, writes

    def _read(self, pointer: Pointer, index: int, count: int, fresh: bool) -> np.ndarray:
        at = pointer.at(int(index), count)
        self._race(pointer, at, writes=False)
        writers = set(pointer.writer[at]) - {NOBODY, self.thread.block.number}
        if writers and not fresh:
            raise EmulationError(f"{pointer.name}: {index} is of block {writers}, read stale")
        if fresh:
            self._known(pointer, at)
        return pointer.numbers[at].copy()

    def _known(self, pointer: Pointer, at: slice) -> None:
        """Check that all that is read was written before an arrival that the reader, or its block
        at a barrier since, has seen; and before a barrier, where the block is the reader's own."""
        me = self.thread
        for place in range(at.start, at.stop):
            block, thread, passed = (
                int(x[place]) for x in (pointer.writer, pointer.thread, pointer.passed)
            )
            if block == NOBODY or (block == me.block.number and thread // 32 == me.number // 32):
                continue
            if block == me.block.number:
                before = passed < me.block.meetings
            else:
                arrivals = self.machine.arrivals.get(block, [])[: me.known.get(block, 0)]
                before = any(then > passed or by == thread for then, by in arrivals[-1:])
            if not before:
                raise EmulationError(f"{pointer.name}: {place} is read before its arrival is seen")

    def _write(self, value: Any, pointer: Pointer, index: int, count: int) -> None:
        at, block = pointer.at(int(index), count), self.thread.block.number
        self._race(pointer, at, writes=True)
        if set(pointer.writer[at]) - {NOBODY, block}:
            raise EmulationError(f"{pointer.name}: two blocks wrote {index}")
        pointer.numbers[at], pointer.writer[at] = value, block
        pointer.thread[at], pointer.passed[at] = self.thread.number, self.thread.block.meetings

    @staticmethod
    def _drawn(like: np.ndarray, seed: int, threshold: int, place: int, j: int) -> np.ndarray:
        key = counter_rng.key(*(np.array([int(x) % 2**64], np.uint64) for x in (seed, place)))
        units = np.arange(int(j), int(j) + like.size, dtype=np.uint32)
        halves = (key >> half for half in (np.uint64(0), np.uint64(32)))
        low, high = (half.astype(np.uint32) for half in halves)
        return counter_rng.bits(low, high, units * np.uint32(counter_rng.GOLDEN32)) < int(threshold)

    def functions(self, count: int) -> dict[str, Callable[..., Any]]:
        def store(value: np.ndarray, pointer: Pointer, index: int) -> None:
            if value.dtype != pointer.numbers.dtype:
                raise EmulationError(f"{value.dtype} stored among {pointer.numbers.dtype}")
            self._write(value, pointer, index, count)

        def bfloat16(numbers: Any) -> tuple[int, ...]:
            halves = [int(_rounded(x, 16)) >> 16 for x in numbers]
            return tuple(
                low | high << 16 for low, high in zip(halves[::2], halves[1::2], strict=True)
            )

        def red_release(counters: Pointer, index: int) -> None:
            thread = self.thread
            counters.numbers[counters.at(index, 1)] += 1
            made = self.machine.arrivals.setdefault(thread.block.number, [])
            made.append((thread.block.meetings, thread.number))
            self.machine.counted.setdefault(index, {})[thread.block.number] = len(made)

        def load_acquire(counters: Pointer, index: int) -> int:
            self.machine.look_again_later()
            self.thread.known |= self.machine.counted.get(index, {})
            return int(counters.numbers[index])

        def multiply(kind: str) -> Callable[..., Any]:
            def run(*given: Any) -> Any:
                thread = self.thread
                all_given = thread.warp.meet(self.machine, thread.lane, kind, given)
                return thread.warp.once(all_given, lambda: _multiply(kind, all_given))[thread.lane]

            return run

        def wide(count: int, fresh: bool = False) -> Callable[..., Any]:
            return lambda pointer, index: tuple(self._read(pointer, index, count, fresh))

        return {
            "load": lambda pointer, index: self._read(pointer, index, count, False),
            "store": store,
            "where": np.where,
            "drawn": self._drawn,
            "shared_of": lambda pointer: self.thread.block.memory,
            "load1": wide(1),
            "load2": wide(2),
            "load4": wide(4),
            "load4_volatile": wide(4, fresh=True),
            "write": lambda pointer, index, x: self._write(x, pointer, index, len(x)),
            "red_release": red_release,
            "load_acquire": load_acquire,
            "tf32": lambda numbers: tuple(int(_rounded(x, 19)) for x in numbers),
            "tf32_bits": lambda numbers: tuple(int(_rounded(x, 19)) for x in numbers),
            "tf32_residual_bits": lambda numbers, rounded: tuple(
                int(np.float32(x - r).view(np.uint32))
                for x, r in zip(numbers, _floats(rounded), strict=True)
            ),
            "bits": lambda numbers: tuple(int(x.view(np.uint32)) for x in numbers),
            "numbers": lambda bits: tuple(_floats(bits).astype(np.float32)),
            "bfloat16": bfloat16,
            "mma_tf32": multiply("mma_tf32"),
            "mma_bfloat16": multiply("mma_bfloat16"),
        }


def emulate(
    kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any], count: int, seed: int = 0
) -> None:
    """Run a kernel's threads in an order drawn by lot."""
    given = [
        Pointer(a, name) if isinstance(a, np.ndarray) else a
        for name, a in zip(kernel.takes, arguments, strict=True)
    ]
    machine = _Machine(seed)
    fake = SimpleNamespace(
        blockDim=SimpleNamespace(x=kernel.threads), gridDim=SimpleNamespace(x=grid[0], y=grid[1])
    )
    functions = _Instructions(machine, np.float32).functions(count)
    outer = {**kernel.function.__globals__, **functions, "cuda": fake}
    run = FunctionType(kernel.function.__code__, outer)

    def syncthreads() -> None:
        thread = machine.current.context
        known = thread.block.meet(machine, thread.number, "syncthreads", thread.known)
        thread.known = dict(thread.block.once(known, lambda: _latest(known)))

    fake.syncthreads = syncthreads

    class Thread:
        def __init__(self, block: Any, number: int, x: int, y: int) -> None:
            self.block, self.number, self.lane = block, number, number % 32
            self.warp, self.known = block.warps[number // 32], {}
            self.place = SimpleNamespace(x=x, y=y), SimpleNamespace(x=number)

        def enter(self) -> None:
            fake.blockIdx, fake.threadIdx = self.place

    kinds = {a.dtype for a in arguments if isinstance(a, np.ndarray)}
    dtype = np.dtype(np.float64 if np.dtype(np.float64) in kinds else np.float32)
    for number, (x, y) in enumerate(np.ndindex(*grid)):
        block = _Group(kernel.threads)
        block.number = number
        block.warps = [_Group(32) for _ in range(-(-kernel.threads // 32))]
        memory = np.full(kernel.shared // dtype.itemsize, np.nan, dtype)
        block.memory = Pointer(memory, "shared memory")
        for k in range(kernel.threads):
            thread = greenlet(lambda: run(*given))
            thread.context = Thread(block, k, x, y)
            machine.ready.append(thread)
    with np.errstate(over="ignore"):
        machine.run()


class EmulatedGpu:
    """Takes the place of a GPU for the engine: NumPy, with new memory full of NaN.

    change   from a kernel to the one that is run in its place: to plant faults
    launched the names of the kernels run so far
    """

    def __init__(
        self,
        device: DeviceLimits,
        seed: int = 0,
        change: Callable[[Kernel], Kernel] = lambda kernel: kernel,
        xp: Any = None,
    ) -> None:
        self.device, self.seed, self.change = device, seed, change
        self.xp = Poisoned() if xp is None else xp
        self.launched: list[str] = []

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        if 0 in grid:  # as CUDA: "invalid argument"
            raise EmulationError(f"{kernel.name}: a grid of {grid} blocks was launched")
        self.seed += 1
        self.launched.append(kernel.name)
        kernel = self.change(kernel)
        count = kernel.count
        emulate(kernel, grid, arguments, count, self.seed)

    def fits(self, kernel: Kernel, blocks: int) -> bool:
        return blocks <= self.device.multiprocessors

    def address(self, array: Any) -> int:
        interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
        return int(interface["data"][0])

    @contextmanager
    def products(self, precision: str) -> Iterator[None]:
        before, self.xp.precision = getattr(self.xp, "precision", "float32"), precision
        yield
        self.xp.precision = before

    def describe(self) -> str:
        return "an emulated GPU"


class Poisoned:
    """NumPy as CuPy would be, with uninitialised memory filled with NaN.

    precision  of products, anything but "float32": factors rounded to TF32
    """

    precision = "float32"

    def matmul(self, a: np.ndarray, b: np.ndarray, out: Any = None) -> np.ndarray:
        if self.precision != "float32" and a.dtype == np.float32:
            a, b = (_rounded(x, 19).view(np.float32) for x in (a, b))
        return np.matmul(a, b, out=out)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def empty(shape: Any, dtype: Any) -> np.ndarray:
        return np.full(shape, np.nan, dtype)

    @staticmethod
    def argsort(array: np.ndarray) -> np.ndarray:
        return np.argsort(array, kind="stable")

    @staticmethod
    def asnumpy(array: np.ndarray) -> np.ndarray:
        return array
