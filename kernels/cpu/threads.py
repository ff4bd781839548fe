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
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import NamedTuple

import numpy as np

from .. import cpu_info
from . import target
from .kernel_cache import compiled
from .plan import PLACES

# Places of the words that threads write for each other, in bytes from the start of the team's
# memory. Words that different threads write lie on cache lines of their own.
JOB = 0  # the number of the pass that is under way, or 0
LAST_JOB = 64  # the number of the last pass that has begun
DONE = 128  # how many shards have been finished in it
PLAN = 256  # a copy of its plan
BORROWED = 1408  # how many borrowed threads have come
SENT_BACK = 1536  # 1: they may go
CLAIMS = 2048  # for each shard: which phase of which job was claimed last
LINE, COPY, ASLEEP = 128, 2048, 1920
MOST_THREADS = 192
# for each thread its copy of the plan, and whether it sleeps; then for borrowed ones
COPIES = CLAIMS + MOST_THREADS * LINE
PLAN_WORDS = 144  # whatever its fields need
assert len(PLACES) <= PLAN_WORDS <= (BORROWED - PLAN) // 8
_SHARDS, _TEAM = PLACES["shards"], PLACES["team"]
PHASES = 1 << 24  # of one job
SPIN = 4000  # pauses that a thread waits for others before it naps (measured: 0.1 ms)
YIELDS = 1000  # naps without sleep, where sleep is long
# How long naps are: the first ones and those after YIELDS, in microseconds. Windows has
# milliseconds, and sleeps up to fifteen: it first lets others run, for no time, which costs a core.
FIRST_NAP, LATER_NAP = (0, 1) if os.name == "nt" else (50, 50)


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


# ---- the team


class ThreadPool:
    """The threads of this process, started when they are first needed."""

    def __init__(self) -> None:
        memory = np.zeros((COPIES + 2 * MOST_THREADS * COPY) // 8 + 8, np.int64)
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
        _as_parallel(parallel)(
            compiled("thread_kernels.openmp_worker"), words.ctypes.data, count, 0
        )

    def _call(self, thread: int) -> None:
        """Start a thread, or wake it up if it sleeps."""
        if thread > len(self._wake):
            kernel = compiled(
                "thread_kernels.worker_loop"
            )  # here, for a daemon may not compile while Python ends
            self._wake.append(threading.Lock())
            name = f"numba_rnn-{thread}"
            arguments = thread, kernel
            threading.Thread(target=self._run, args=arguments, name=name, daemon=True).start()
            return
        asleep = (COPIES + thread * COPY + ASLEEP) // 8
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


_cores = cache(cpu_info.cores)


def available() -> int:
    """How many threads a pass may use.

    As many as NUMBA_NUM_THREADS and numba.set_num_threads say, but no more than
    ``ThreadPool.borrow`` and ``cpu_info.most_threads`` allow.
    """
    count = target.setting("NUMBA_NUM_THREADS", _cores())
    numba = sys.modules.get("numba")
    # Numba may not have started its threads. To ask it for their number would, and that sets the
    # number in other OpenMP runtimes
    with suppress(AttributeError, ValueError):
        numba.threading_layer()  # type: ignore[union-attr]
        count = numba.get_num_threads()  # type: ignore[union-attr]
    return min(count, team.lent[0], cpu_info.most_threads or count, MOST_THREADS)


team = ThreadPool()


def _after_fork() -> None:
    """A child has none of its parent's threads; an OpenMP runtime there waits for them forever."""
    global team
    team = ThreadPool()
    team.may_borrow = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
