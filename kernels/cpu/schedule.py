"""The pass over a sequence, for any cell: what forward and backward have in common.

Time is cut into chunks of a few steps, so that what a chunk computes is still in the cache when it
is needed again:

    forward.py, chunk by chunk                        backward.py, chunk by chunk from the end
      x_proj = x Wx             for all its rows        for each step, from the last:
      for each step:                                      dgates = cell.backward(...)
        h_proj = h Wh    for a few units                  through_h = dgates WhT
        gates, state     for these units                dxs = dgates WxT       for all its rows
        (h for the next step, and hs for the caller)    dWx += xT dgates,  dWh += hT dgates

A *row* is a time and a member of the batch: row t * N + n within a chunk. The numbers of a chunk
are panels with that many rows (``gemm.py``), so the h of a step, W units wide and N rows deep,
is at once what the next step multiplies by Wh and what dWh is made of:

    state, unit-panel u:   row 0..N-1   h before step 0  <- the state that was given
                           row N..2N-1  h after step 0 = h before step 1
                           ...          (after a chunk's last step: row 0 of the next chunk;
                                         after the last of all: ``last_state``)

Where members differ in length (``ragged.py``) the longest come first, and step t works on the first
``rows_at(t)`` of them. Rows of later steps move up:

    state, unit-panel u:   row 0..3     h before step 0, of members 0 1 2 3
                           row 4..6     h before step 1, of members 0 1 2
                           row 7        h before step 2, of member  0
    last_state             row 0..3     what came after the last step of each member

xs and hs lie like that, too: the rows of a step side by side, then those of the next. Chunks have
as many rows as those of a dense batch, and so differ in steps.

The pass is cut into phases and shards (``threads.py``). In the phases of time a shard has

    split_batch some rows of the batch, all units: forward meets the others at the end of the pass,
                backward at the end of each chunk, before its weight gradients; where members differ
                in length, both at the end of each chunk, which shares its own members
    otherwise   all rows, some units: all meet after every step, since h Wh needs every unit's h
                (twice where there is a second product; not where there is none at all)

Words:

    panel       W numbers wide (64 bytes), so many rows deep; unit-panel u: units u W .. u W + W - 1
    chunk       some steps of a pass, whose numbers are in panels together
    shard       the share of a thread: rows or units
    segment     some chunks between two states that forward keeps, with gradient checkpointing
    plan        the addresses and sizes of a pass, in memory (``plan.py``)
    kernel      a compiled function that is called by address (``kernel_abi.py``)
    place       the address of a tuple's first number, and the bytes from one number to the next
    early, late gates that h Wh feeds, and those that the second product feeds (``layout.py``)

Normalised gates (``layer_norm.py``) take all units of a row: such a cell is shared by rows only.

Either way START and the packing of a chunk's xs are shared out by columns, GRADIENTS by rows of
dxs and by items of dWx and dWh (a panel of rows by four unit-panels of a gate each).
"""

from typing import Any, NamedTuple

from .kernel_abi import arguments, arguments_address, call, inlined, jitted, load_i64
from .panels import Unpacking
from .plan_kernels import read_plan
from .simd import VECTOR_BYTES, lanes_of
from .thread_kernels import (
    claim,
    close_job,
    finished,
    flush_denormals,
    open_job,
    restore_denormals,
    wait_for_all,
)

# ---- where things are


@inlined
def panel_of(rows):
    """Bytes from one panel to the next: an odd number of rows."""
    return (rows | 1) * VECTOR_BYTES


@jitted
def shard_range(count, shard, shards):
    if shards == 1:  # a division takes as long as a short product
        return 0, count
    return count * shard // shards, count * (shard + 1) // shards


@jitted
def rows_and_units(plan, rows, shard):
    """The rows of the batch, of the first so many, and the units that a shard works on."""
    n0, n1, u0, u1 = 0, rows, 0, plan.units
    if plan.split_batch:
        n0, n1 = shard_range(rows, shard, plan.shards)
    else:
        u0, u1 = shard_range(plan.units, shard, plan.shards)
    return n0, n1, u0, u1


@inlined
def first_row(plan, t):
    """How many rows the steps before step t have."""
    return load_i64(plan.firsts, t) if plan.firsts else t * plan.N


@inlined
def rows_at(plan, t):
    """How many members of the batch have a step t."""
    if plan.firsts:
        return load_i64(plan.firsts, t + 1) - load_i64(plan.firsts, t)
    return plan.N if t < plan.T else 0


@inlined
def chunk_start(plan, chunk):
    """The first step of a chunk."""
    return load_i64(plan.chunk_starts, chunk) if plan.firsts else chunk * plan.steps


@jitted
def steps_in(plan, chunk):
    start = chunk_start(plan, chunk)
    end = chunk_start(plan, chunk + 1) if plan.firsts else min(start + plan.steps, plan.T)
    return end - start


@inlined
def row_in_chunk(plan, chunk, k):
    """The row of a chunk at which its step k begins."""
    if plan.firsts:
        start = chunk_start(plan, chunk)
        return first_row(plan, start + k) - first_row(plan, start)
    return k * plan.N


@inlined
def rows_in(plan, chunk):
    """How many rows a chunk has."""
    return row_in_chunk(plan, chunk, steps_in(plan, chunk))


@inlined
def chunk_panel(plan, chunk):
    """Bytes from one panel of a chunk that may be kept to the next."""
    return panel_of(rows_in(plan, chunk) if plan.firsts and plan.keep else plan.rows)


@inlined
def chunk_at(plan, start, panels, chunk):
    """Where a chunk begins among all chunks that are kept."""
    lines = chunk * (plan.rows | 1)
    if plan.firsts:  # a line more for each panel before, which has an odd number of rows
        lines = first_row(plan, chunk_start(plan, chunk)) + chunk
    return start + plan.keep * lines * panels * VECTOR_BYTES


@inlined
def at_step(plan, t, row, time):
    """Bytes from the caller's step 0 to step t; ``row`` and ``time`` from a row or step to the
    next.
    """
    return first_row(plan, t) * row if plan.firsts else t * time


@inlined
def hs_at(plan, t):
    """Where the hs of step t begin; those of row n are ``row_of_hs`` away."""
    if plan.firsts and not plan.hs_padded:
        return plan.hs + first_row(plan, t) * plan.hs_row
    return plan.hs + t * plan.hs_time


@inlined
def row_of_hs(n, hs_row, members, padded):
    return n * hs_row + load_i64(members, n * padded)


class Panels(NamedTuple):
    """Where tuples of numbers lie: the first row of the first number's first unit-panel."""

    start: int
    panel: int  # bytes from one unit-panel to the next
    number: int  # bytes from one number of a tuple to the next


@inlined
def place_of(panels, u, row):
    """Where a tuple begins, and the bytes from one of its numbers to the next."""
    return panels.start + u * panels.panel + row, panels.number


@inlined
def from_byte(panels, skip):
    """The same from a later byte on."""
    return Panels(panels.start + skip, panels.panel, panels.number)


@inlined
def from_number(panels, number):
    """The same from another number of the tuples on."""
    return from_byte(panels, number * panels.number)


@inlined
def chunk_panels(plan, start, numbers, chunk, k, n):
    """Panels of a chunk, with so many numbers in a tuple, from row n of step k on."""
    panel = chunk_panel(plan, chunk)
    start = chunk_at(plan, start, numbers * plan.units, chunk)
    row = row_in_chunk(plan, chunk, k) + n
    return Panels(start + row * VECTOR_BYTES, panel, plan.units * panel)


@inlined
def scratch_panels(plan, start, chunk, k, n):
    """The same of numbers that no chunk keeps for itself."""
    panel, row = panel_of(plan.rows), row_in_chunk(plan, chunk, k) + n
    return Panels(start + row * VECTOR_BYTES, panel, plan.units * panel)


@inlined
def step_panels(plan, start, n):
    """Panels of one step alone, from row n on."""
    panel = panel_of(plan.N)
    return Panels(start + n * VECTOR_BYTES, panel, plan.units * panel)


@inlined
def state_at(plan, chunk, k, n):
    """The state before step k of a chunk; of members that do not have it, their last one."""
    if n >= rows_at(plan, chunk_start(plan, chunk) + k):
        return step_panels(plan, plan.last_state, n)
    if k == steps_in(plan, chunk):
        chunk, k = chunk + 1, 0
    return chunk_panels(plan, plan.state, plan.kept_states, chunk, k, n)


@inlined
def shard_panels(plan, start, numbers, steps, k, n0, n1):
    """A shard's own panels, of the rows n0..n1 of some steps, from step k on, in a dense batch.

    They lie apart from the other shards', lest a processor that fetches ahead takes their lines.
    """
    panel = panel_of(steps * (n1 - n0))
    start += (n0 * (steps + 1) * numbers * plan.units + k * (n1 - n0)) * VECTOR_BYTES
    return Panels(start, panel, plan.units * panel)


class Step(NamedTuple):
    """Rows n0..n1 of the batch and units u0..u1 of a step, and where their numbers lie."""

    t: int
    n0: int
    rows: int
    u0: int
    u1: int
    b: Panels
    weights: Panels
    x_proj: Panels  # x Wx
    h_proj: Panels  # h Wh
    op_proj: Panels  # the second product, or the operand where that is a gate itself
    operand: Panels
    normalised: Panels
    state: Panels  # before the step
    after: Panels  # the state after it
    saved: Panels
    dgates: Panels  # the gradients of the gates
    dstate: Panels
    doperand: Panels


@inlined
def step_at(plan, chunk, k, n0, n1, u0, u1):
    """Step k of a chunk."""
    gate = plan.H * plan.size
    if plan.firsts:  # some of a shard's rows may end, so that n1 is no measure
        x_proj = scratch_panels(plan, plan.x_proj, chunk, k, n0)
        h_proj = step_panels(plan, plan.h_proj, n0)
        op_proj = step_panels(plan, plan.op_proj, n0)
    else:
        x_proj = shard_panels(plan, plan.x_proj, plan.x_gates, plan.steps, k, n0, n1)
        h_proj = shard_panels(plan, plan.h_proj, plan.early, 1, 0, n0, n1)
        op_proj = shard_panels(plan, plan.op_proj, plan.late + plan.operand_gate, 1, 0, n0, n1)
    operand = chunk_panels(plan, plan.operand, 1, chunk, k, n0)
    dgates = scratch_panels(plan, plan.dgates, chunk, k, n0)
    doperand = step_panels(plan, plan.doperand, n0)
    if plan.operand_gate:
        operand, doperand = op_proj, from_number(dgates, plan.gates - plan.weights - 1)
    count, panel = plan.units + 1, chunk_panel(plan, chunk)  # one more: 1 / deviation
    normalised = (plan.normalised_early + plan.normalised_late) * count
    normalised = chunk_at(plan, plan.normalised, normalised, chunk)
    normalised += (row_in_chunk(plan, chunk, k) + n0) * VECTOR_BYTES
    return Step(
        chunk_start(plan, chunk) + k,
        n0,
        n1 - n0,
        u0,
        u1,
        Panels(plan.b, VECTOR_BYTES, gate),
        Panels(plan.b + plan.x_gates * gate, VECTOR_BYTES, gate),
        x_proj,
        h_proj,
        op_proj,
        operand,
        Panels(normalised, panel, count * panel),
        state_at(plan, chunk, k, n0),
        state_at(plan, chunk, k + 1, n0),
        chunk_panels(plan, plan.saved, plan.n_stored, chunk, k, n0),
        dgates,
        step_panels(plan, plan.dstate, n0),
        doperand,
    )


class StepArguments(NamedTuple):
    """The arguments of a step's kernels: rows n0..n1 and units u0..u1 of step k of a chunk."""

    plan: Any  # where it is called the record, in the kernel its address
    chunk: int
    k: int
    n0: int
    n1: int
    u0: int
    u1: int


@inlined
def read_step(ctx):
    """The plan and the step that a kernel is called with."""
    p = arguments(ctx, StepArguments)
    plan = read_plan(p.plan)
    return plan, step_at(plan, p.chunk, p.k, p.n0, p.n1, p.u0, p.u1)


@jitted
def call_by_ends(plan, kernel, step, u0, u1):
    """Call a step's kernel, which uses the state after it: once for the rows that go on, and once
    for those that end, whose state then lies elsewhere.
    """
    chunk, k, n0, n1 = step
    going = max(n0, min(n1, rows_at(plan, chunk_start(plan, chunk) + k + 1)))
    if n0 < going:
        call(kernel, StepArguments(plan, chunk, k, n0, going, u0, u1))
    if going < n1:
        call(kernel, StepArguments(plan, chunk, k, going, n1, u0, u1))


@inlined
def units_from(ctx, plan, u):
    """How many units there are from a unit-panel on."""
    return plan.H - u * lanes_of(ctx)


@jitted
def rows_of(n0, n1, t0, t1, row, time, members):
    """How to go through rows n0..n1 of steps t0..t1, the longer way inside.

    (outer count, inner count), then the bytes from one to the next, outer and inner: in an array
    of the caller's, with those from one row and time to the next; in panels of so many members.
    """
    if n1 - n0 >= t1 - t0:
        return t1 - t0, n1 - n0, time, row, members * VECTOR_BYTES, VECTOR_BYTES
    return n1 - n0, t1 - t0, row, time, VECTOR_BYTES, members * VECTOR_BYTES


@jitted
def panels_in(plan, columns):
    W = VECTOR_BYTES // plan.size
    return (columns + W - 1) // W


@jitted
def unpack_states(plan, source, states, n0, n1, u0, u1):
    """States (N, H) each for the caller, from panels."""
    panel = panel_of(plan.N)
    columns = min(plan.H, u1 * VECTOR_BYTES // plan.size) - u0 * VECTOR_BYTES // plan.size
    for s in range(states):
        call(plan.unpack, Unpacking(
            source=source + (s * plan.units + u0) * panel + n0 * VECTOR_BYTES,
            source_row=VECTOR_BYTES, source_panel=panel, rows=n1 - n0, columns=columns,
            to=plan.state_out + s * plan.state_step + n0 * plan.H * plan.size + u0 * VECTOR_BYTES,
            to_row=plan.H * plan.size,
        ))  # fmt: skip


# ---- phases

START, STEPS, HALF_STEP, PAIRS, GRADIENTS, END = range(6)


@jitted
def begin(plan, ctx):
    """Set this thread up for a pass; returns what ``end`` wants."""
    denormals = flush_denormals()
    if plan.shards > 1 and plan.thread == 0:
        open_job(plan.team, arguments_address(ctx), plan.shards)
    return denormals


@jitted
def run_phase(plan, work, phase, what, chunk, k):
    """All shards of a phase, of which this thread does what it can; the number of the next."""
    if plan.shards == 1:
        work(plan, what, chunk, k, 0)
        return phase + 1
    for turn in range(plan.shards):
        shard = (plan.thread + turn) % plan.shards
        if claim(plan.team, plan.job, phase, shard):
            work(plan, what, chunk, k, shard)
            finished(plan.team)
    wait_for_all(plan.team, plan.job, (phase + 1) * plan.shards)
    return phase + 1


@jitted
def end(plan, denormals):
    """Leave the thread as it was."""
    if plan.shards > 1 and plan.thread == 0:
        close_job(plan.team)
    restore_denormals(denormals)
