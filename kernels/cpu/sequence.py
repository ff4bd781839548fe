"""The pass over a sequence, for any cell: forward and backward.

Time is cut into chunks of a few steps, so that what a chunk computes is still in the cache when it
is needed again:

    forward,  chunk by chunk                          backward, chunk by chunk from the end
      x_side = x Wx             for all its rows        for each step, from the last:
      for each step:                                      delta = cell.backward(...)
        e_side = h Wh    for a few units                  through_h = delta WhT
        gates, state     for these units                dxs = delta WxT        for all its rows
        (h for the next step, and hs for the caller)    dWx += xT delta,  dWh += hT delta

A *row* is a time and a member of the batch: row t * N + n within a chunk. The numbers of a chunk
are panels with that many rows (``products.py``), so the h of a step, W units wide and N rows deep,
is at once what the next step multiplies by Wh and what dWh is made of:

    state, unit-panel u:   row 0..N-1   h before step 0  <- the state that was given
                           row N..2N-1  h after step 0 = h before step 1
                           ...          (after a chunk's last step: row 0 of the next chunk)

The pass is cut into phases and shards (``threads.py``): a shard has some rows of the batch and
all units (``by_rows``: it never waits within a chunk), or all rows and some units (then all meet
after every step, since h Wh needs every unit's h).
"""

from typing import NamedTuple

from .frames import address_of, call, part_of_a_piece, record, word
from .simd import VECTOR_BYTES
from .threads import (
    claim,
    close_job,
    finished,
    flush_denormals,
    open_job,
    restore_denormals,
    wait_for_all,
)


class Plan(NamedTuple):
    """What a pass works on: addresses, and sizes in numbers or (strides) in bytes."""

    driver: int  # the address of this pass's piece
    here: int  # the plan's own address
    thread: int
    job: int
    shards: int
    team: int
    by_rows: int
    # sizes: batch, time, inputs, units; unit-panels; steps in a chunk, chunks; bytes of a number
    N: int
    T: int
    D: int
    H: int
    units: int
    steps: int
    chunks: int
    units_at_once: int
    size: int
    # gates that x Wx, h Wh and the second product feed; states; saved numbers that are stored
    gates: int
    x_gates: int
    early: int
    late: int
    states: int
    stored: int
    # pieces
    multiply: int
    multiply_transposed: int
    pack: int
    pack_transposed: int
    unpack: int
    add_up: int
    gates_piece: int
    operand_piece: int
    # the caller's arrays
    xs: int
    xs_row: int
    xs_time: int
    Wx: int
    Wx_row: int
    Wh: int
    Wh_row: int
    b: int
    b_row: int
    state_in: int
    state_out: int
    state_step: int  # from one state to the next in state_in and state_out
    in_panels: int  # whether the state stays in ``state`` and ``end``
    hs: int  # backward: dhs
    hs_row: int
    hs_time: int
    dxs: int
    dWx: int
    dWh: int
    db: int
    x_blocks: int
    h_blocks: int
    packed: int  # whether the weights are packed already
    keep: int  # whether every chunk is kept, for backward
    weight_row: int  # bytes of a row of a panel of packed weights
    # ours, in panels: packed weights (for backward transposed), a chunk's numbers ...
    pWx: int
    pWh: int
    x_side: int
    e_side: int
    l_side: int
    delta: int
    dstate: int
    doperand: int
    x_panels: int
    # ... and what is kept for backward
    state: int
    end: int
    saved: int
    operand: int


_read_plan = record(Plan)


# ---- where things are


@part_of_a_piece
def panel_of(rows):
    """Bytes from one panel to the next: an odd number of rows."""
    return (rows | 1) * VECTOR_BYTES


@part_of_a_piece
def _share_of(count, shard, shards):
    return count * shard // shards, count * (shard + 1) // shards


@part_of_a_piece
def _rows_and_units(plan, shard):
    """The rows of the batch and the units that a shard works on."""
    n0, n1, u0, u1 = 0, plan.N, 0, plan.units
    if plan.by_rows:
        n0, n1 = _share_of(plan.N, shard, plan.shards)
    else:
        u0, u1 = _share_of(plan.units, shard, plan.shards)
    return n0, n1, u0, u1


@part_of_a_piece
def _chunk(plan, start, panels, chunk):
    """Where a chunk begins among all chunks that are kept."""
    return start + plan.keep * chunk * panels * panel_of(plan.steps * plan.N)


@part_of_a_piece
def _steps_in(plan, chunk):
    return min(plan.steps, plan.T - chunk * plan.steps)


@part_of_a_piece
def _state_at(plan, chunk, k):
    """The state before step k of a chunk: its first row, and the bytes between its panels."""
    if chunk * plan.steps + k == plan.T:
        return plan.end, panel_of(plan.N)
    if k == plan.steps:
        chunk, k = chunk + 1, 0
    start = _chunk(plan, plan.state, plan.states * plan.units, chunk)
    return start + k * plan.N * VECTOR_BYTES, panel_of(plan.steps * plan.N)


@part_of_a_piece
def _rows_of(plan, n0, n1, t0, t1):
    """How to go through rows n0..n1 of steps t0..t1, the longer way inside.

    (outer count, inner count), then the bytes from one to the next, outer and inner: in the
    caller's xs, in panels.
    """
    if n1 - n0 >= t1 - t0:
        return (
            t1 - t0, n1 - n0, plan.xs_time, plan.xs_row, plan.N * VECTOR_BYTES, VECTOR_BYTES,
        )  # fmt: skip
    return n1 - n0, t1 - t0, plan.xs_row, plan.xs_time, VECTOR_BYTES, plan.N * VECTOR_BYTES


# ---- products


@part_of_a_piece
def _to_gates(plan, a, a_row, a_segment, inner, weights, gates, u0, u1, out, out_row, out_panel, M):
    """out[gate, unit-panel] = A (M rows) @ weights, for units u0..u1 of some gates.

    A tile is some panels of all gates, or four gates of one unit-panel, or some unit-panels of
    one gate: whatever is there to fill it.
    """
    weight = (inner | 1) * plan.weight_row
    calls, vectors, stride, next_tile = gates, u1 - u0, 1, plan.units
    if u1 - u0 == plan.units:
        calls, vectors = 1, gates * plan.units
    elif gates == 4:
        calls, vectors, stride, next_tile = u1 - u0, gates, plan.units, 1
    for k in range(calls):
        first = u0 + k * next_tile
        call(plan.multiply, (
            a, a_row, a_segment, 0, 1, inner,
            weights + first * weight, stride * weight,
            out + first * out_panel, out_row, stride * out_panel,
            M, vectors, VECTOR_BYTES, 0, next_tile * weight,
        ))  # fmt: skip


@part_of_a_piece
def _from_gates(plan, delta, gates, weights, p0, p1, out, out_row, out_panel, columns, M):
    """out (M rows, columns of panels p0..p1) = delta's gates @ transposed weights."""
    rows_panel = panel_of(plan.steps * plan.N)
    weight = panel_of(gates * plan.H)
    call(plan.multiply, (
        delta, VECTOR_BYTES, rows_panel, plan.units * rows_panel, gates, plan.H,
        weights + p0 * weight, weight, out + p0 * out_panel, out_row, out_panel,
        M, p1 - p0, columns - (p1 - 1) * (VECTOR_BYTES // plan.size), 0, 0,
    ))  # fmt: skip


@part_of_a_piece
def _panels(plan, columns):
    W = VECTOR_BYTES // plan.size
    return (columns + W - 1) // W


# ---- forward


@part_of_a_piece
def _pack_forward(plan, shard):
    """The weights of a shard's units as panels, and the state to start from."""
    u0, u1 = _share_of(plan.units, shard, plan.shards)
    if u0 == u1:
        return
    H_bytes, columns = plan.H * plan.size, min(plan.H, u1 * VECTOR_BYTES // plan.size)
    columns -= u0 * VECTOR_BYTES // plan.size
    skip = u0 * VECTOR_BYTES
    if not plan.packed:
        for g in range(plan.x_gates):
            call(plan.pack, (
                plan.Wx + word(plan.x_blocks, g) * H_bytes + skip, plan.Wx_row, plan.D, columns,
                plan.pWx + (g * plan.units + u0) * panel_of(plan.D), VECTOR_BYTES,
                panel_of(plan.D),
            ))  # fmt: skip
        for g in range(plan.early + plan.late):
            call(plan.pack, (
                plan.Wh + word(plan.h_blocks, g) * H_bytes + skip, plan.Wh_row, plan.H, columns,
                plan.pWh + (g * plan.units + u0) * panel_of(plan.H), VECTOR_BYTES,
                panel_of(plan.H),
            ))  # fmt: skip
    if plan.in_panels:
        return
    state, panel = _state_at(plan, 0, 0)
    for s in range(plan.states):
        call(plan.pack, (
            plan.state_in + s * plan.state_step + skip, H_bytes, plan.N, columns,
            state + (s * plan.units + u0) * panel, VECTOR_BYTES, panel,
        ))  # fmt: skip


@part_of_a_piece
def _project(plan, chunk, n0, n1, u0, u1):
    """x Wx for a chunk."""
    t, count = chunk * plan.steps, _steps_in(plan, chunk)
    outer, inner, x_outer, x_inner, p_outer, p_inner = _rows_of(plan, n0, n1, 0, count)
    for k in range(outer):
        _to_gates(
            plan, plan.xs + t * plan.xs_time + n0 * plan.xs_row + k * x_outer, x_inner,
            VECTOR_BYTES, plan.D, plan.pWx, plan.x_gates, u0, u1,
            plan.x_side + n0 * VECTOR_BYTES + k * p_outer, p_inner,
            panel_of(plan.steps * plan.N), inner,
        )  # fmt: skip


@part_of_a_piece
def _early_step(plan, chunk, k, n0, n1, u0, u1):
    """h Wh, and what the second product multiplies."""
    rows_panel, step_panel = panel_of(plan.steps * plan.N), panel_of(plan.N)
    skip = n0 * VECTOR_BYTES
    state, panel = _state_at(plan, chunk, k)
    _to_gates(
        plan, state + skip, VECTOR_BYTES, panel, plan.H, plan.pWh, plan.early,
        u0, u1, plan.e_side + skip, VECTOR_BYTES, step_panel, n1 - n0,
    )  # fmt: skip
    if plan.late:
        row = k * plan.N * VECTOR_BYTES + skip
        operand = _chunk(plan, plan.operand, plan.units, chunk)
        call(plan.operand_piece, (
            u0, u1, plan.units, plan.H, n1 - n0, plan.x_side + row, rows_panel,
            plan.e_side + skip, step_panel, plan.b, plan.b_row,
            state + skip, panel, operand + row, rows_panel,
        ))  # fmt: skip


@part_of_a_piece
def _late_step(plan, chunk, k, n0, n1, u0, u1):
    """The second product, and the state after the step."""
    rows_panel, step_panel = panel_of(plan.steps * plan.N), panel_of(plan.N)
    skip = n0 * VECTOR_BYTES
    row = k * plan.N * VECTOR_BYTES + skip
    if plan.late:
        _to_gates(
            plan, _chunk(plan, plan.operand, plan.units, chunk) + row, VECTOR_BYTES, rows_panel,
            plan.H, plan.pWh + plan.early * plan.units * (plan.H | 1) * plan.weight_row, plan.late,
            u0, u1, plan.l_side + skip, VECTOR_BYTES, step_panel, n1 - n0,
        )  # fmt: skip
    state, panel = _state_at(plan, chunk, k)
    after, after_panel = _state_at(plan, chunk, k + 1)
    saved = _chunk(plan, plan.saved, plan.stored * plan.units, chunk) + row
    call(plan.gates_piece, (
        u0, u1, plan.units, plan.H, n1 - n0, plan.x_side + row, rows_panel,
        plan.e_side + skip, step_panel, plan.l_side + skip, step_panel, plan.b, plan.b_row,
        state + skip, panel, after + skip, after_panel,
        saved if plan.keep else 0, rows_panel,
        plan.hs + (chunk * plan.steps + k) * plan.hs_time + n0 * plan.hs_row, plan.hs_row,
    ))  # fmt: skip


@part_of_a_piece
def _step(plan, chunk, k, n0, n1, u0, u1):
    """A whole step; with one product a few units at a time, whose gates then find what the
    product has written in the first cache."""
    few = u1 - u0 if plan.late else plan.units_at_once
    for u in range(u0, u1, few):
        _early_step(plan, chunk, k, n0, n1, u, min(u + few, u1))
        _late_step(plan, chunk, k, n0, n1, u, min(u + few, u1))


@part_of_a_piece
def _unpack(plan, source, states, n0, n1, u0, u1):
    """States (N, H) each for the caller, from panels."""
    panel = panel_of(plan.N)
    columns = min(plan.H, u1 * VECTOR_BYTES // plan.size) - u0 * VECTOR_BYTES // plan.size
    for s in range(states):
        call(plan.unpack, (
            source + (s * plan.units + u0) * panel + n0 * VECTOR_BYTES, VECTOR_BYTES, panel,
            n1 - n0, columns,
            plan.state_out + s * plan.state_step + n0 * plan.H * plan.size + u0 * VECTOR_BYTES,
            plan.H * plan.size,
        ))  # fmt: skip


START, STEPS, HALF_STEP, GRADIENTS, END = range(5)  # phases


@part_of_a_piece
def _forward_work(plan, what, chunk, k, shard):
    """What a shard does in a phase."""
    if what == START:
        _pack_forward(plan, shard)
        return
    n0, n1, u0, u1 = _rows_and_units(plan, shard)
    if n0 == n1 or u0 == u1:
        return
    if what == END:
        if not plan.in_panels:
            _unpack(plan, plan.end, plan.states, n0, n1, u0, u1)
    elif plan.by_rows:
        for chunk_ in range(plan.chunks):
            _project(plan, chunk_, n0, n1, u0, u1)
            for k_ in range(_steps_in(plan, chunk_)):
                _step(plan, chunk_, k_, n0, n1, u0, u1)
    elif what == HALF_STEP:
        _late_step(plan, chunk, k, n0, n1, u0, u1)
    else:
        if k == 0:
            _project(plan, chunk, n0, n1, u0, u1)
        if plan.late:
            _early_step(plan, chunk, k, n0, n1, u0, u1)
        else:
            _step(plan, chunk, k, n0, n1, u0, u1)


@part_of_a_piece
def _forward_phase(plan, phase, what, chunk, k):
    """All shards of a phase; returns the number of the next."""
    if plan.shards == 1:
        _forward_work(plan, what, chunk, k, 0)
        return phase + 1
    for turn in range(plan.shards):
        shard = (plan.thread + turn) % plan.shards
        if claim(plan.team, plan.job, phase, shard):
            _forward_work(plan, what, chunk, k, shard)
            finished(plan.team)
    wait_for_all(plan.team, plan.job, (phase + 1) * plan.shards)
    return phase + 1


def forward(frame):
    """A piece: all steps, and the state after the last."""
    plan = _read_plan(frame)
    denormals = flush_denormals()
    if plan.shards > 1 and plan.thread == 0:
        open_job(plan.team, address_of(frame), plan.shards)
    phase = _forward_phase(plan, 0, START, 0, 0)
    if plan.by_rows:
        phase = _forward_phase(plan, phase, STEPS, 0, 0)
    else:
        for chunk in range(plan.chunks):
            for k in range(_steps_in(plan, chunk)):
                phase = _forward_phase(plan, phase, STEPS, chunk, k)
                if plan.late:
                    phase = _forward_phase(plan, phase, HALF_STEP, chunk, k)
    _forward_phase(plan, phase, END, 0, 0)
    if plan.shards > 1 and plan.thread == 0:
        close_job(plan.team)
    restore_denormals(denormals)


# ---- backward


@part_of_a_piece
def _pack_backward(plan, shard):
    """The transposed weights of a shard's columns, and the gradient to start from."""
    W = VECTOR_BYTES // plan.size
    H_bytes = plan.H * plan.size
    late_weights = plan.pWh + plan.units * panel_of(plan.early * plan.H)
    p0, p1 = _share_of(_panels(plan, plan.D), shard, plan.shards)
    if p1 > p0:
        panel = panel_of(plan.x_gates * plan.H)
        for g in range(plan.x_gates):
            call(plan.pack_transposed, (
                plan.Wx + p0 * W * plan.Wx_row + word(plan.x_blocks, g) * H_bytes, plan.Wx_row,
                min(plan.D, p1 * W) - p0 * W, plan.H,
                plan.pWx + p0 * panel + g * plan.H * VECTOR_BYTES, panel,
            ))  # fmt: skip
    u0, u1 = _share_of(plan.units, shard, plan.shards)
    if u1 == u0:
        return
    columns = min(plan.H, u1 * W) - u0 * W
    for g in range(plan.early + plan.late):
        gates, place, start = plan.early, g, plan.pWh
        if g >= plan.early:
            gates, place, start = plan.late, g - plan.early, late_weights
        panel = panel_of(gates * plan.H)
        call(plan.pack_transposed, (
            plan.Wh + u0 * W * plan.Wh_row + word(plan.h_blocks, g) * H_bytes, plan.Wh_row,
            columns, plan.H,
            start + u0 * panel + place * plan.H * VECTOR_BYTES, panel,
        ))  # fmt: skip
    panel = panel_of(plan.N)
    for s in range(plan.states + 1):  # the last: what came through h Wh, as yet 0
        call(plan.pack, (
            plan.state_in + s * plan.state_step + u0 * VECTOR_BYTES, H_bytes, plan.N, columns,
            plan.dstate + (s * plan.units + u0) * panel, VECTOR_BYTES, panel,
        ))  # fmt: skip


@part_of_a_piece
def _pack_inputs(plan, chunk, shard):
    """A shard's columns of a chunk's xs, as panels."""
    W = VECTOR_BYTES // plan.size
    p0, p1 = _share_of(_panels(plan, plan.D), shard, plan.shards)
    if p0 == p1:
        return
    t, count, panel = chunk * plan.steps, _steps_in(plan, chunk), panel_of(plan.steps * plan.N)
    outer, inner, x_outer, x_inner, p_outer, p_inner = _rows_of(plan, 0, plan.N, 0, count)
    for k in range(outer):
        call(plan.pack, (
            plan.xs + t * plan.xs_time + p0 * VECTOR_BYTES + k * x_outer, x_inner, inner,
            min(plan.D, p1 * W) - p0 * W,
            plan.x_panels + p0 * panel + k * p_outer, p_inner, panel,
        ))  # fmt: skip


@part_of_a_piece
def _delta_at(plan, k, gate):
    """The gradients of step k of the chunk, from a gate on."""
    panel = panel_of(plan.steps * plan.N)
    return plan.delta + k * plan.N * VECTOR_BYTES + gate * plan.units * panel


@part_of_a_piece
def _through_h(plan, k, n0, n1, u0, u1):
    """What of the gradient before step k comes back through its h Wh."""
    skip, panel = n0 * VECTOR_BYTES, panel_of(plan.N)
    _from_gates(
        plan, _delta_at(plan, k, plan.gates - plan.early - plan.late) + skip, plan.early, plan.pWh,
        u0, u1, plan.dstate + plan.states * plan.units * panel + skip, VECTOR_BYTES, panel,
        plan.units * VECTOR_BYTES // plan.size, n1 - n0,
    )  # fmt: skip


@part_of_a_piece
def _gates_back(plan, chunk, k, n0, n1, u0, u1):
    """The gradient of a step's gates, and of the state before it but for what h Wh adds."""
    skip, rows_panel, panel = n0 * VECTOR_BYTES, panel_of(plan.steps * plan.N), panel_of(plan.N)
    if chunk * plan.steps + k < plan.T - 1:
        _through_h(plan, k + 1 if k + 1 < plan.steps else 0, n0, n1, u0, u1)
    row = k * plan.N * VECTOR_BYTES + skip
    state, state_panel = _state_at(plan, chunk, k)
    after, after_panel = _state_at(plan, chunk, k + 1)
    call(plan.gates_piece, (
        u0, u1, plan.units, plan.H, n1 - n0,
        plan.hs + (chunk * plan.steps + k) * plan.hs_time + n0 * plan.hs_row, plan.hs_row,
        plan.dstate + skip, panel, plan.dstate + plan.states * plan.units * panel + skip,
        state + skip, state_panel, after + skip, after_panel,
        _chunk(plan, plan.saved, plan.stored * plan.units, chunk) + row, rows_panel,
        _delta_at(plan, k, 0) + skip, rows_panel, plan.N * VECTOR_BYTES, plan.hs_time,
    ))  # fmt: skip


@part_of_a_piece
def _operand_back(plan, chunk, k, n0, n1, u0, u1):
    """The same through the second product."""
    skip, rows_panel, panel = n0 * VECTOR_BYTES, panel_of(plan.steps * plan.N), panel_of(plan.N)
    row = k * plan.N * VECTOR_BYTES + skip
    _from_gates(
        plan, _delta_at(plan, k, plan.gates - plan.late) + skip, plan.late,
        plan.pWh + plan.units * panel_of(plan.early * plan.H),
        u0, u1, plan.doperand + skip, VECTOR_BYTES, panel,
        plan.units * VECTOR_BYTES // plan.size, n1 - n0,
    )  # fmt: skip
    state, state_panel = _state_at(plan, chunk, k)
    after, after_panel = _state_at(plan, chunk, k + 1)
    call(plan.operand_piece, (
        u0, u1, plan.units, n1 - n0, plan.doperand + skip, panel,
        plan.dstate + skip, panel, state + skip, state_panel, after + skip, after_panel,
        _chunk(plan, plan.saved, plan.stored * plan.units, chunk) + row, rows_panel,
        _delta_at(plan, k, 0) + skip, rows_panel,
    ))  # fmt: skip


@part_of_a_piece
def _input_gradients(plan, chunk, shard):
    """A shard's rows of dxs, for a chunk."""
    t, count = chunk * plan.steps, _steps_in(plan, chunk)
    n0, n1, t0, t1 = 0, plan.N, 0, count
    if plan.N >= count:
        n0, n1 = _share_of(plan.N, shard, plan.shards)
    else:
        t0, t1 = _share_of(count, shard, plan.shards)
    if n0 == n1 or t0 == t1:
        return
    outer, inner, x_outer, x_inner, p_outer, p_inner = _rows_of(plan, n0, n1, t0, t1)
    rows_panel, D_bytes = panel_of(plan.steps * plan.N), plan.D * plan.size
    # dxs is (N, T, D) without gaps, whatever xs is
    if inner == n1 - n0 and p_inner == VECTOR_BYTES:
        x_outer, x_inner = D_bytes, plan.T * D_bytes
    else:
        x_outer, x_inner = plan.T * D_bytes, D_bytes
    start = plan.delta + (t0 * plan.N + n0) * VECTOR_BYTES
    for k in range(outer):
        weight = panel_of(plan.x_gates * plan.H)
        panels = _panels(plan, plan.D)
        call(plan.multiply, (
            start + k * p_outer, p_inner, rows_panel, plan.units * rows_panel,
            plan.x_gates, plan.H, plan.pWx, weight,
            plan.dxs + (n0 * plan.T + t + t0) * D_bytes + k * x_outer, x_inner, VECTOR_BYTES,
            inner, panels, plan.D - (panels - 1) * (VECTOR_BYTES // plan.size), 0, 0,
        ))  # fmt: skip


@part_of_a_piece
def _weight_gradients(plan, chunk, shard):
    """A shard's columns of dWx, dWh and db: the chunk's part is added."""
    rows, add = _steps_in(plan, chunk) * plan.N, 1 if chunk < plan.chunks - 1 else 0
    blocks = (plan.units + 3) // 4
    x_items = plan.x_gates * blocks
    first, end = _share_of(x_items + (plan.early + plan.late) * blocks, shard, plan.shards)
    for item in range(first, end):
        if item < x_items:
            _x_item(plan, item // blocks, item % blocks, rows, add)
        else:
            _h_item(plan, chunk, (item - x_items) // blocks, item % blocks, rows, add)


@part_of_a_piece
def _x_item(plan, g, block, rows, add):
    """dWx and db of a gate, for four unit-panels."""
    column = word(plan.x_blocks, g) * plan.H * plan.size + block * 4 * VECTOR_BYTES
    row_bytes = plan.x_gates * plan.H * plan.size
    _outer(plan, plan.x_panels, plan.D, g, block, plan.dWx + column, row_bytes, rows, add)
    _bias_item(plan, g, block, plan.db + column, rows, add)


@part_of_a_piece
def _h_item(plan, chunk, g, block, rows, add):
    """dWh (and the second row of db) of a gate, for four unit-panels."""
    recurrent = plan.early + plan.late
    column = word(plan.h_blocks, g) * plan.H * plan.size + block * 4 * VECTOR_BYTES
    row_bytes = recurrent * plan.H * plan.size
    gate = plan.gates - recurrent + g
    a = _chunk(plan, plan.state, plan.states * plan.units, chunk)
    if g >= plan.early:
        a = _chunk(plan, plan.operand, plan.units, chunk)
    _outer(plan, a, plan.H, gate, block, plan.dWh + column, row_bytes, rows, add)
    if plan.b_row:
        _bias_item(plan, gate, block, plan.db + plan.b_row + column, rows, add)


@part_of_a_piece
def _outer(plan, a, a_columns, gate, block, out, out_row, rows, add):
    """out = A^T delta of a gate's four unit-panels, A in panels; or out += it."""
    W = VECTOR_BYTES // plan.size
    panel = panel_of(plan.steps * plan.N)
    delta = plan.delta + (gate * plan.units + block * 4) * panel
    units = min(4, plan.units - block * 4)
    last = plan.H - (block * 4 + units - 1) * W
    for p in range(_panels(plan, a_columns)):
        call(plan.multiply_transposed, (
            a + p * panel, 0, W * VECTOR_BYTES, 0, 1, rows, delta, panel,
            out + p * W * out_row, out_row, VECTOR_BYTES,
            min(W, a_columns - p * W), units, last, add, 0,
        ))  # fmt: skip


@part_of_a_piece
def _bias_item(plan, gate, block, out, rows, add):
    """db = the sum of delta's rows, for four unit-panels of a gate; or db += it."""
    panel = panel_of(plan.steps * plan.N)
    units = min(4, plan.units - block * 4)
    last = plan.H - (block * 4 + units - 1) * (VECTOR_BYTES // plan.size)
    call(plan.add_up, (
        plan.delta + (gate * plan.units + block * 4) * panel, panel, rows, out, last, add, units,
    ))  # fmt: skip


@part_of_a_piece
def _backward_work(plan, what, chunk, k, shard):
    """What a shard does in a phase."""
    if what == START:
        _pack_backward(plan, shard)
        return
    if what == GRADIENTS:
        _input_gradients(plan, chunk, shard)
        _weight_gradients(plan, chunk, shard)
        return
    n0, n1, u0, u1 = _rows_and_units(plan, shard)
    if what == STEPS and k == 0:
        _pack_inputs(plan, chunk, shard)
    if n0 == n1 or u0 == u1:
        return
    if what == END:
        _through_h(plan, 0, n0, n1, u0, u1)
        _unpack(plan, plan.dstate, plan.states + 1, n0, n1, u0, u1)
    elif plan.by_rows:
        for k_ in range(_steps_in(plan, chunk) - 1, -1, -1):
            _gates_back(plan, chunk, k_, n0, n1, u0, u1)
            if plan.late:
                _operand_back(plan, chunk, k_, n0, n1, u0, u1)
    elif what == HALF_STEP:
        _operand_back(plan, chunk, k, n0, n1, u0, u1)
    else:
        _gates_back(plan, chunk, k, n0, n1, u0, u1)


@part_of_a_piece
def _backward_phase(plan, phase, what, chunk, k):
    """All shards of a phase; returns the number of the next."""
    if plan.shards == 1:
        _backward_work(plan, what, chunk, k, 0)
        return phase + 1
    for turn in range(plan.shards):
        shard = (plan.thread + turn) % plan.shards
        if claim(plan.team, plan.job, phase, shard):
            _backward_work(plan, what, chunk, k, shard)
            finished(plan.team)
    wait_for_all(plan.team, plan.job, (phase + 1) * plan.shards)
    return phase + 1


def backward(frame):
    """A piece: all steps back, and the gradients of inputs, weights and the state before."""
    plan = _read_plan(frame)
    denormals = flush_denormals()
    if plan.shards > 1 and plan.thread == 0:
        open_job(plan.team, address_of(frame), plan.shards)
    phase = _backward_phase(plan, 0, START, 0, 0)
    for chunk in range(plan.chunks - 1, -1, -1):
        if plan.by_rows:
            phase = _backward_phase(plan, phase, STEPS, chunk, 0)
        else:
            for k in range(_steps_in(plan, chunk) - 1, -1, -1):
                phase = _backward_phase(plan, phase, STEPS, chunk, k)
                if plan.late:
                    phase = _backward_phase(plan, phase, HALF_STEP, chunk, k)
        phase = _backward_phase(plan, phase, GRADIENTS, chunk, 0)
    _backward_phase(plan, phase, END, 0, 0)
    if plan.shards > 1 and plan.thread == 0:
        close_job(plan.team)
    restore_denormals(denormals)
