"""A team of threads that share a pass over a sequence.

The work is cut into *phases*, one after the other (``schedule.py``: a step in time, say), and a
phase into *shards* that do not depend on each other (some rows of the batch, or some units). The
threads meet at the end of every phase, thousands of times a second:

    thread 0   claim shard 0, work | all done? | claim shard 0, work | ...
    thread 1   claim shard 1, work | all done? | claim shard 1, work | ...

A thread first claims its own shard, then any that nobody has begun. So a thread that is late, or
asleep, or was never started (after a fork), or is kept off the processor by other programs costs
time only while it holds a shard it has claimed; who works on a shard makes no difference to its
result. Threads nap where the wait gets long (a thread that yields instead loses its turns on a
busy machine).

The calling thread is thread 0. The others are Python threads that run compiled code without the
GIL; between two passes they look out for the next one for a moment, then sleep. One pass at a
time has the team: a pass that finds it busy runs on its own thread alone.

Where another library's OpenMP runtime has threads in the process that were busy a moment ago, these
look out for more work on the very processors that the team would run on. ``ThreadPool.borrow``
takes them for a pass instead of our own.
"""

import ctypes
import os
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types

from .. import cpu_info
from .kernel_abi import arguments, call_at, compiled, emits, jitted
from .plan import PLACES, read_plan

# Places of the words that threads write for each other, in bytes from the start of the team's
# memory. Words that different threads write lie on cache lines of their own.
JOB = 0  # the number of the pass that is under way, or 0
LAST_JOB = 64  # the number of the last pass that has begun
DONE = 128  # how many shards have been finished in it
PLAN = 256  # a copy of its plan
BORROWED = 1408  # how many borrowed threads have come
SENT_BACK = 1536  # 1: they may go
CLAIMS = 2048  # for each shard: which phase of which job was claimed last
_LINE, _COPY, _ASLEEP = 128, 2048, 1920
MOST_THREADS = 192
# for each thread its copy of the plan, and whether it sleeps; then for borrowed ones
COPIES = CLAIMS + MOST_THREADS * _LINE
PLAN_WORDS = 128  # whatever its fields need
_SHARDS, _TEAM = PLACES["shards"], PLACES["team"]
PHASES = 1 << 24  # of one job
SPIN = 4000  # pauses that a thread waits for others before it naps (measured: 0.1 ms)
YIELDS = 1000  # naps without sleep, where sleep is long
# How long naps are: the first ones and those after YIELDS, in microseconds. Windows has
# milliseconds, and sleeps up to fifteen: it first lets others run, for no time, which costs a core.
FIRST_NAP, LATER_NAP = (0, 1) if os.name == "nt" else (50, 50)

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))


# ---- what Numba has no words for


def _word(builder, address):
    return builder.inttoptr(address, _I64.as_pointer())


@emits(types.int64)
def _read(builder, address):
    return builder.load_atomic(_word(builder, address), "seq_cst", 8)


@emits(types.void)
def _write(builder, address, value):
    builder.store_atomic(value, _word(builder, address), "seq_cst", 8)


@emits(types.void)
def _copy_plan(builder, source, to):
    """Copy a plan's words, after all that came before and before all that comes after."""
    builder.fence("seq_cst")
    source, to = _word(builder, source), _word(builder, to)
    with cgutils.for_range(builder, _I64(PLAN_WORDS)) as loop:
        word = builder.load_atomic(builder.gep(source, [loop.index]), "monotonic", 8)
        builder.store_atomic(word, builder.gep(to, [loop.index]), "monotonic", 8)
    builder.fence("seq_cst")


@emits(types.int64)
def _add(builder, address, value):
    return builder.atomic_rmw("add", _word(builder, address), value, "seq_cst")


@emits(types.boolean)
def _replace(builder, address, old, new):
    """Write ``new`` where ``old`` stands; whether it did stand there."""
    pair = builder.cmpxchg(_word(builder, address), old, new, "seq_cst", "seq_cst")
    return builder.extract_value(pair, 1)


def _calling(name, result, *given):
    """Call a function of LLVM's or the system's (LLVM level)."""

    def emit(builder, *args):
        kind = ir.FunctionType(result, given)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return emit


_X86 = platform.machine().lower() in ("x86_64", "amd64")
_ARM = platform.machine().lower() in ("aarch64", "arm64")
_VOID = ir.VoidType()


@emits(types.void)
def _pause(builder):
    """Tell the processor that this is a loop that waits."""
    if _X86:
        _calling("llvm.x86.sse2.pause", _VOID)(builder)
    elif _ARM:
        _calling("llvm.aarch64.hint", _VOID, _I32)(builder, _I32(1))


def _find_system_functions() -> None:
    """Register the system's functions that yield the processor and that sleep with LLVM."""
    if os.name == "nt":
        kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
        functions = {"yield": kernel.SwitchToThread, "sleep": kernel.Sleep}  # milliseconds
    else:
        system = ctypes.CDLL(None)
        functions = {"yield": system.sched_yield, "sleep": system.usleep}  # microseconds
    for name, function in functions.items():
        address = ctypes.cast(function, ctypes.c_void_p).value or 0
        binding.add_symbol(f"numba_rnn_{name}", address)


_find_system_functions()


@emits(types.void)
def _yield_processor(builder):
    _calling("numba_rnn_yield", _I32)(builder)


@emits(types.void)
def _nap(builder, length):
    """Sleep for so many microseconds, on Windows milliseconds."""
    _calling("numba_rnn_sleep", _I32, _I32)(builder, builder.trunc(length, _I32))


def _control_register(builder):
    """Memory for x86's MXCSR: its place, and its address as the instructions want it."""
    place = cgutils.alloca_once(builder, _I32)
    return place, builder.bitcast(place, _I8.as_pointer())


@emits(types.int64)
def flush_denormals(builder):
    """Let this thread take numbers below the smallest normal one for 0; returns how it was.

    Where a gradient dies out over time it goes through these numbers, which take the processor a
    hundred times longer.
    """
    if _ARM:
        old = _calling("llvm.aarch64.get.fpcr", _I64)(builder)
        new = builder.or_(old, _I64(1 << 24))
        _calling("llvm.aarch64.set.fpcr", _VOID, _I64)(builder, new)
        return old
    if _X86:
        place, pointer = _control_register(builder)
        _calling("llvm.x86.sse.stmxcsr", _VOID, pointer.type)(builder, pointer)
        old = builder.load(place)
        builder.store(builder.or_(old, _I32(0x8040)), place)
        _calling("llvm.x86.sse.ldmxcsr", _VOID, pointer.type)(builder, pointer)
        return builder.zext(old, _I64)
    return _I64(0)


@emits(types.void)
def restore_denormals(builder, old):
    """Set this thread's way with small numbers as it was."""
    if _ARM:
        _calling("llvm.aarch64.set.fpcr", _VOID, _I64)(builder, old)
    elif _X86:
        place, pointer = _control_register(builder)
        builder.store(builder.trunc(old, _I32), place)
        _calling("llvm.x86.sse.ldmxcsr", _VOID, pointer.type)(builder, pointer)


# ---- in a pass


@jitted
def open_job(team, address, shards):
    """Thread 0: let the others join in the plan at an address."""
    plan = read_plan(address)
    job = _read(team + LAST_JOB) + 1
    _write(team + LAST_JOB, job)
    plan.job = job
    _copy_plan(address, team + PLAN)
    _write(team + DONE, 0)
    for shard in range(shards):
        _write(team + CLAIMS + shard * _LINE, job * PHASES)
    _write(team + JOB, job)


@jitted
def close_job(team):
    """Thread 0, after the last phase: nobody may join any more."""
    _write(team + JOB, 0)


@jitted
def claim(team, job, phase, shard):
    """Whether this thread is the one to work on a shard."""
    now = job * PHASES + phase
    place = team + CLAIMS + shard * _LINE
    return _read(place) == now and _replace(place, now, now + 1)


@jitted
def finished(team):
    """A claimed shard's work is done."""
    _add(team + DONE, 1)


@jitted
def wait_for_all(team, job, shards_done):
    """Wait until that many shards are done in this job, or the job is over."""
    turns = 0
    while _read(team + DONE) < shards_done and _read(team + JOB) == job:
        _pause()
        turns += 1
        if turns > SPIN:  # someone's processor is busy with other work: let him have this one
            _nap(FIRST_NAP if turns <= SPIN + YIELDS else LATER_NAP)


@jitted
def _join(team, thread, mine, last):
    """Work on the pass that is under way, if it is not the last one; the last one's number then."""
    job = _read(team + JOB)
    if job == 0 or job == last:
        return last
    _copy_plan(team + PLAN, mine)
    if _read(team + JOB) != job:
        return last  # it was over before the copy was made
    plan = read_plan(mine)
    plan.thread = thread
    call_at(plan.entry, mine)
    return job


class Serving(NamedTuple):
    """The arguments of ``worker_loop``; ``patience``: after how many idle turns it returns."""

    team: int
    thread: int
    patience: int


class ServingOnce(NamedTuple):
    """The arguments of ``openmp_worker``: a kernel, and the address of its own."""

    team: int
    shards: int
    kernel: int
    arguments: int


def worker_loop(ctx):
    """A kernel: what a thread of the team does until nothing has happened for a while."""
    team, thread, patience = arguments(ctx, Serving)
    mine = team + COPIES + thread * _COPY
    idle, last = 0, 0
    while idle < patience:
        job = _join(team, thread, mine, last)
        if job != last:
            last, idle = job, 0
            continue
        _pause()
        idle += 1
        if idle % 128 == 0:
            _yield_processor()
    _write(mine + _ASLEEP, 1)


def openmp_worker(ctx):
    """A kernel: what borrowed threads do. The first to come is thread 0; the others help it."""
    team, shards, kernel, plan = arguments(ctx, ServingOnce)
    thread = _add(team + BORROWED, 1)
    if thread == 0:
        call_at(kernel, plan)
        _write(team + SENT_BACK, 1)
        return
    mine = team + COPIES + (MOST_THREADS + thread) * _COPY
    idle, last = 0, 0
    while thread < shards and _read(team + SENT_BACK) == 0:
        job = _join(team, thread, mine, last)
        if job != last:
            last = job
            continue
        _pause()
        idle += 1
        if idle % 128 == 0:
            _yield_processor()


# ---- the team


class ThreadPool:
    """The threads of this process, started when they are first needed."""

    def __init__(self) -> None:
        memory = np.zeros((COPIES + 2 * MOST_THREADS * _COPY) // 8 + 8, np.int64)
        start = -(memory.ctypes.data // 8) % 8
        self._memory = memory[start:]
        self.address = self._memory.ctypes.data
        self._busy = threading.Lock()
        self._wake: list[threading.Lock] = []
        self._lender = threading.local()
        self.may_borrow = True

    @property
    def threads(self) -> int:
        """How many threads have been started beside the callers'."""
        return len(self._wake)

    @property
    def lent(self) -> tuple[int, int]:
        """The ``count`` and ``parallel`` of the ``borrow`` that this thread is in."""
        return getattr(self._lender, "now", (MOST_THREADS, 0))

    def run(self, kernel: int, arguments: int, shards: int, plans: Sequence[np.ndarray]) -> None:
        """Call a kernel that runs plans with the team's help, or alone where the team is busy."""
        shards = min(shards, MOST_THREADS)
        helped = shards > 1 and self._busy.acquire(blocking=False)
        try:
            for plan in plans:
                plan[_SHARDS], plan[_TEAM] = (shards, self.address) if helped else (1, 0)
            lent, parallel = self.lent
            if helped and parallel:
                self._call_borrowed(parallel, lent, shards, kernel, arguments)
                return
            for thread in range(1, shards if helped else 0):
                self._call(thread)
            call_kernel(kernel, arguments)
        finally:
            if helped:
                self._busy.release()

    @contextmanager
    def borrow(self, parallel: int, count: int) -> Iterator[None]:
        """In this thread, let passes use threads of an OpenMP runtime instead of our own.

        parallel  the address of the runtime's ``GOMP_parallel``; 0: our own threads work
        count     how many threads it has: passes use no more, ours neither
        """
        before = self.lent
        self._lender.now = count, parallel if count > 1 and self.may_borrow else 0
        try:
            yield
        finally:
            self._lender.now = before

    def _call_borrowed(
        self, parallel: int, count: int, shards: int, kernel: int, arguments: int
    ) -> None:
        """Call a kernel on all threads that a runtime has; it keeps those that it always calls."""
        self._memory[[BORROWED // 8, SENT_BACK // 8]] = 0
        words = np.array(ServingOnce(self.address, shards, kernel, arguments), np.int64)
        _as_parallel(parallel)(compiled(openmp_worker), words.ctypes.data, count, 0)

    def _call(self, thread: int) -> None:
        """Start a thread, or wake it up if it sleeps."""
        if thread > len(self._wake):
            kernel = compiled(worker_loop)  # here, for a daemon may not compile while Python ends
            self._wake.append(threading.Lock())
            name = f"numba_rnn-{thread}"
            arguments = thread, kernel
            threading.Thread(target=self._run, args=arguments, name=name, daemon=True).start()
            return
        asleep = (COPIES + thread * _COPY + _ASLEEP) // 8
        if self._memory[asleep]:
            self._memory[asleep] = 0
            self._wake[thread - 1].release()

    def _run(self, thread: int, kernel: int) -> None:
        wake = self._wake[thread - 1]
        wake.acquire()  # it is asleep when it is locked
        words = np.array(Serving(self.address, thread, patience=20_000), np.int64)
        while True:
            call_kernel(kernel, words.ctypes.data)
            wake.acquire()


_as_function = cache(ctypes.CFUNCTYPE(None, ctypes.c_void_p))
_as_parallel = cache(
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
)


def call_kernel(kernel: int, arguments: int) -> None:
    """Call the kernel at an address with arguments at another, without the GIL."""
    _as_function(kernel)(arguments)


def available() -> int:
    """How many threads a pass may use.

    As many as NUMBA_NUM_THREADS and numba.set_num_threads say, but no more than
    ``ThreadPool.borrow`` and ``cpu_info.most_threads`` allow.
    """
    try:
        numba.threading_layer()
    except ValueError:  # Numba has not started its threads. To ask it for their number would, and
        count = numba.config.NUMBA_NUM_THREADS  # that sets the number in other OpenMP runtimes
    else:
        count = numba.get_num_threads()
    return min(count, team.lent[0], cpu_info.most_threads or count, MOST_THREADS)


team = ThreadPool()


def _after_fork() -> None:
    """A child has none of its parent's threads; an OpenMP runtime there waits for them forever."""
    global team
    team = ThreadPool()
    team.may_borrow = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
