"""The work of threads for each other in compiled code: claim shards, wait (``threads.py``)."""

import platform

from llvmlite import ir
from numba.core import cgutils, types

from .kernel_abi import arguments, call_at, emits, jitted
from .plan_kernels import read_plan
from .threads import (
    ASLEEP,
    BORROWED,
    CLAIMS,
    COPIES,
    COPY,
    DONE,
    FIRST_NAP,
    JOB,
    LAST_JOB,
    LATER_NAP,
    LINE,
    MOST_THREADS,
    PHASES,
    PLAN,
    PLAN_WORDS,
    SENT_BACK,
    SPIN,
    YIELDS,
    Serving,
    ServingOnce,
)

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
        _write(team + CLAIMS + shard * LINE, job * PHASES)
    _write(team + JOB, job)


@jitted
def close_job(team):
    """Thread 0, after the last phase: nobody may join any more."""
    _write(team + JOB, 0)


@jitted
def claim(team, job, phase, shard):
    """Whether this thread is the one to work on a shard."""
    now = job * PHASES + phase
    place = team + CLAIMS + shard * LINE
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


def worker_loop(ctx):
    """A kernel: what a thread of the team does until nothing has happened for a while."""
    team, thread, patience = arguments(ctx, Serving)
    mine = team + COPIES + thread * COPY
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
    _write(mine + ASLEEP, 1)


def openmp_worker(ctx):
    """A kernel: what borrowed threads do. The first to come is thread 0; the others help it."""
    team, shards, kernel, plan = arguments(ctx, ServingOnce)
    thread = _add(team + BORROWED, 1)
    if thread == 0:
        call_at(kernel, plan)
        _write(team + SENT_BACK, 1)
        return
    mine = team + COPIES + (MOST_THREADS + thread) * COPY
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
