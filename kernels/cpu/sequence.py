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

from .frames import arguments, call, part_of_a_piece, record, word
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
    thread: int
    shards: int
    team: int
    job: int
    by_rows: int
    # sizes: batch, time, inputs, units; unit-panels; steps in a chunk; bytes of a number
    N: int
    T: int
    D: int
    H: int
    units: int
    steps: int
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
def _chunk(plan, start, panels, t):
    """Where the chunk of step t begins among all chunks that are kept."""
    return start + plan.keep * (t // plan.steps) * panels * panel_of(plan.steps * plan.N)


@part_of_a_piece
def _state_at(plan, t):
    """The state before step t: where its first row is, and the bytes between its panels."""
    if t == plan.T:
        return plan.end, panel_of(plan.N)
    start = _chunk(plan, plan.state, plan.states * plan.units, t)
    row = (t % plan.steps) * plan.N
    return start + row * VECTOR_BYTES, panel_of(plan.steps * plan.N)


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

    A tile is four gates of one unit-panel, or some unit-panels of one gate.
    """
    weight = panel_of(inner)
    if gates == 4 and (M > 1 or u1 - u0 < 8):
        for u in range(u0, u1):
            call(plan.multiply, (
                a, a_row, a_segment, 0, 1, inner,
                weights + u * weight, plan.units * weight,
                out + u * out_panel, out_row, plan.units * out_panel,
                M, gates, VECTOR_BYTES, 0, weight if u < u1 - 1 else 0,
            ))  # fmt: skip
        return
    for g in range(gates):
        first = g * plan.units + u0
        call(plan.multiply, (
            a, a_row, a_segment, 0, 1, inner,
            weights + first * weight, weight,
            out + first * out_panel, out_row, out_panel,
            M, u1 - u0, VECTOR_BYTES, 0, 0,
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
    state, panel = _state_at(plan, 0)
    for s in range(plan.states):
        call(plan.pack, (
            plan.state_in + s * plan.N * H_bytes + skip, H_bytes, plan.N, columns,
            state + (s * plan.units + u0) * panel, VECTOR_BYTES, panel,
        ))  # fmt: skip


@part_of_a_piece
def _project(plan, t, n0, n1, u0, u1):
    """x Wx for the chunk that begins at step t."""
    count = min(plan.steps, plan.T - t)
    outer, inner, x_outer, x_inner, p_outer, p_inner = _rows_of(plan, n0, n1, 0, count)
    for k in range(outer):
        _to_gates(
            plan, plan.xs + t * plan.xs_time + n0 * plan.xs_row + k * x_outer, x_inner,
            VECTOR_BYTES, plan.D, plan.pWx, plan.x_gates, u0, u1,
            plan.x_side + n0 * VECTOR_BYTES + k * p_outer, p_inner,
            panel_of(plan.steps * plan.N), inner,
        )  # fmt: skip


@part_of_a_piece
def _early_step(plan, t, n0, n1, u0, u1):
    """h Wh, and what the second product multiplies."""
    rows_panel, step_panel = panel_of(plan.steps * plan.N), panel_of(plan.N)
    skip = n0 * VECTOR_BYTES
    state, panel = _state_at(plan, t)
    _to_gates(
        plan, state + skip, VECTOR_BYTES, panel, plan.H, plan.pWh, plan.early,
        u0, u1, plan.e_side + skip, VECTOR_BYTES, step_panel, n1 - n0,
    )  # fmt: skip
    if plan.late:
        row = (t % plan.steps) * plan.N * VECTOR_BYTES + skip
        operand = _chunk(plan, plan.operand, plan.units, t)
        call(plan.operand_piece, (
            u0, u1, plan.units, plan.H, n1 - n0, plan.x_side + row, rows_panel,
            plan.e_side + skip, step_panel, plan.b, plan.b_row,
            state + skip, panel, operand + row, rows_panel,
        ))  # fmt: skip


@part_of_a_piece
def _late_step(plan, t, n0, n1, u0, u1):
    """The second product, and the state after the step."""
    rows_panel, step_panel = panel_of(plan.steps * plan.N), panel_of(plan.N)
    skip = n0 * VECTOR_BYTES
    row = (t % plan.steps) * plan.N * VECTOR_BYTES + skip
    if plan.late:
        weights = plan.pWh + plan.early * plan.units * panel_of(plan.H)
        _to_gates(
            plan, _chunk(plan, plan.operand, plan.units, t) + row, VECTOR_BYTES, rows_panel, plan.H,
            weights, plan.late, u0, u1, plan.l_side + skip, VECTOR_BYTES, step_panel, n1 - n0,
        )  # fmt: skip
    state, panel = _state_at(plan, t)
    after, after_panel = _state_at(plan, t + 1)
    call(plan.gates_piece, (
        u0, u1, plan.units, plan.H, n1 - n0, plan.x_side + row, rows_panel,
        plan.e_side + skip, step_panel, plan.l_side + skip, step_panel, plan.b, plan.b_row,
        state + skip, panel, after + skip, after_panel,
        _chunk(plan, plan.saved, plan.stored * plan.units, t) + row, rows_panel,
        plan.hs + t * plan.hs_time + n0 * plan.hs_row, plan.hs_row,
    ))  # fmt: skip


@part_of_a_piece
def _units_at_once(plan, rows):
    """Unit-panels whose product and gates follow each other, so that the one finds the other's
    numbers in the first cache; a multiple of four."""
    room = 16384 // (rows * plan.early * VECTOR_BYTES)
    return max(4, room // 4 * 4)


@part_of_a_piece
def _step(plan, t, n0, n1, u0, u1):
    """A whole step."""
    if plan.late:
        _early_step(plan, t, n0, n1, u0, u1)
        _late_step(plan, t, n0, n1, u0, u1)
        return
    few = _units_at_once(plan, n1 - n0)
    for u in range(u0, u1, few):
        _early_step(plan, t, n0, n1, u, min(u + few, u1))
        _late_step(plan, t, n0, n1, u, min(u + few, u1))


@part_of_a_piece
def _unpack_state(plan, n0, n1, u0, u1):
    """The state after the last step, for the caller."""
    end, panel = _state_at(plan, plan.T)
    _unpack(plan, end, panel, plan.states, plan.state_out, n0, n1, u0, u1)


@part_of_a_piece
def _unpack(plan, source, panel, states, to, n0, n1, u0, u1):
    """States (N, H) each, from panels."""
    columns = min(plan.H, u1 * VECTOR_BYTES // plan.size) - u0 * VECTOR_BYTES // plan.size
    for s in range(states):
        call(plan.unpack, (
            source + (s * plan.units + u0) * panel + n0 * VECTOR_BYTES, VECTOR_BYTES, panel,
            n1 - n0, columns,
            to + (s * plan.N + n0) * plan.H * plan.size + u0 * VECTOR_BYTES, plan.H * plan.size,
        ))  # fmt: skip


@part_of_a_piece
def _forward_work(plan, phase, shard):
    """What a shard does in a phase."""
    if phase == 0:
        _pack_forward(plan, shard)
        return
    n0, n1, u0, u1 = _rows_and_units(plan, shard)
    if n0 == n1 or u0 == u1:
        return
    if plan.by_rows:
        for t in range(plan.T):
            if t % plan.steps == 0:
                _project(plan, t, n0, n1, u0, u1)
            _step(plan, t, n0, n1, u0, u1)
        _unpack_state(plan, n0, n1, u0, u1)
        return
    t, half = phase - 1, 0
    if plan.late:
        t, half = (phase - 1) // 2, (phase - 1) % 2
    if half == 0 and t % plan.steps == 0:
        _project(plan, t, n0, n1, u0, u1)
    if not plan.late:
        _step(plan, t, n0, n1, u0, u1)
    elif half == 0:
        _early_step(plan, t, n0, n1, u0, u1)
    else:
        _late_step(plan, t, n0, n1, u0, u1)
    if t == plan.T - 1 and half == (1 if plan.late else 0):
        _unpack_state(plan, n0, n1, u0, u1)


def forward(frame):
    """A piece: all steps, and the state after the last."""
    plan = _read_plan(frame)
    denormals = flush_denormals()
    if plan.by_rows:
        phases = 2
    else:
        phases = 1 + plan.T * (2 if plan.late else 1)
    if plan.shards > 1 and plan.thread == 0:
        open_job(plan.team, plan.job, plan.shards)
    for phase in range(phases):
        if plan.shards == 1:
            _forward_work(plan, phase, 0)
            continue
        for k in range(plan.shards):
            shard = (plan.thread + k) % plan.shards
            if claim(plan.team, plan.job, phase, shard):
                _forward_work(plan, phase, shard)
                finished(plan.team)
        wait_for_all(plan.team, plan.job, (phase + 1) * plan.shards)
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
            plan.state_in + s * plan.N * H_bytes + u0 * VECTOR_BYTES, H_bytes, plan.N, columns,
            plan.dstate + (s * plan.units + u0) * panel, VECTOR_BYTES, panel,
        ))  # fmt: skip


@part_of_a_piece
def _pack_inputs(plan, t, shard):
    """A shard's columns of the chunk's xs, as panels."""
    W = VECTOR_BYTES // plan.size
    p0, p1 = _share_of(_panels(plan, plan.D), shard, plan.shards)
    if p0 == p1:
        return
    count, panel = min(plan.steps, plan.T - t), panel_of(plan.steps * plan.N)
    outer, inner, x_outer, x_inner, p_outer, p_inner = _rows_of(plan, 0, plan.N, 0, count)
    for k in range(outer):
        call(plan.pack, (
            plan.xs + t * plan.xs_time + p0 * VECTOR_BYTES + k * x_outer, x_inner, inner,
            min(plan.D, p1 * W) - p0 * W,
            plan.x_panels + p0 * panel + k * p_outer, p_inner, panel,
        ))  # fmt: skip


@part_of_a_piece
def _delta_at(plan, t, gate):
    """The gradients of step t from a gate on."""
    panel = panel_of(plan.steps * plan.N)
    return plan.delta + (t % plan.steps) * plan.N * VECTOR_BYTES + gate * plan.units * panel


@part_of_a_piece
def _through_h(plan, t, n0, n1, u0, u1):
    """What of the gradient after step t - 1 comes back through h Wh of step t."""
    skip, panel = n0 * VECTOR_BYTES, panel_of(plan.N)
    _from_gates(
        plan, _delta_at(plan, t, plan.gates - plan.early - plan.late) + skip, plan.early, plan.pWh,
        u0, u1, plan.dstate + plan.states * plan.units * panel + skip, VECTOR_BYTES, panel,
        plan.units * VECTOR_BYTES // plan.size, n1 - n0,
    )  # fmt: skip


@part_of_a_piece
def _gates_back(plan, t, n0, n1, u0, u1):
    """The gradient of step t's gates, and of the state before it but for what h Wh adds."""
    if t < plan.T - 1:
        _through_h(plan, t + 1, n0, n1, u0, u1)
    skip, rows_panel, step_panel = n0 * VECTOR_BYTES, panel_of(plan.steps * plan.N), panel_of(plan.N)
    row = (t % plan.steps) * plan.N * VECTOR_BYTES + skip
    state, panel = _state_at(plan, t)
    after, after_panel = _state_at(plan, t + 1)
    call(plan.gates_piece, (
        u0, u1, plan.units, plan.H, n1 - n0,
        plan.hs + t * plan.hs_time + n0 * plan.hs_row, plan.hs_row,
        plan.dstate + skip, step_panel,
        plan.dstate + plan.states * plan.units * step_panel + skip,
        state + skip, panel, after + skip, after_panel,
        _chunk(plan, plan.saved, plan.stored * plan.units, t) + row, rows_panel,
        _delta_at(plan, t, 0) + skip, rows_panel, plan.N * VECTOR_BYTES, plan.hs_time,
    ))  # fmt: skip


@part_of_a_piece
def _operand_back(plan, t, n0, n1, u0, u1):
    """The same through the second product."""
    skip, rows_panel, step_panel = n0 * VECTOR_BYTES, panel_of(plan.steps * plan.N), panel_of(plan.N)
    row = (t % plan.steps) * plan.N * VECTOR_BYTES + skip
    _from_gates(
        plan, _delta_at(plan, t, plan.gates - plan.late) + skip, plan.late,
        plan.pWh + plan.units * panel_of(plan.early * plan.H),
        u0, u1, plan.doperand + skip, VECTOR_BYTES, step_panel,
        plan.units * VECTOR_BYTES // plan.size, n1 - n0,
    )  # fmt: skip
    state, panel = _state_at(plan, t)
    after, after_panel = _state_at(plan, t + 1)
    call(plan.operand_piece, (
        u0, u1, plan.units, n1 - n0, plan.doperand + skip, step_panel,
        plan.dstate + skip, step_panel, state + skip, panel, after + skip, after_panel,
        _chunk(plan, plan.saved, plan.stored * plan.units, t) + row, rows_panel,
        _delta_at(plan, t, 0) + skip, rows_panel,
    ))  # fmt: skip


@part_of_a_piece
def _input_gradients(plan, t, shard):
    """A shard's rows of dxs, for the chunk that begins at step t."""
    count = min(plan.steps, plan.T - t)
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
def _weight_gradients(plan, t, shard):
    """A shard's columns of dWx, dWh and db: the chunk's part is added."""
    count = min(plan.steps, plan.T - t)
    add = 1 if t + count < plan.T else 0
    blocks = (plan.units + 3) // 4
    x_items = plan.x_gates * blocks
    first, end = _share_of(x_items + (plan.early + plan.late) * blocks, shard, plan.shards)
    for item in range(first, end):
        if item < x_items:
            _x_item(plan, item // blocks, item % blocks, count * plan.N, add)
        else:
            _h_item(plan, t, (item - x_items) // blocks, item % blocks, count * plan.N, add)


@part_of_a_piece
def _x_item(plan, g, block, rows, add):
    """dWx and db of a gate, for four unit-panels."""
    column = word(plan.x_blocks, g) * plan.H * plan.size + block * 4 * VECTOR_BYTES
    row_bytes = plan.x_gates * plan.H * plan.size
    _outer(plan, plan.x_panels, plan.D, g, block, plan.dWx + column, row_bytes, rows, add)
    _bias_item(plan, g, block, plan.db + column, rows, add)


@part_of_a_piece
def _h_item(plan, t, g, block, rows, add):
    """dWh (and the second row of db) of a gate, for four unit-panels."""
    recurrent = plan.early + plan.late
    column = word(plan.h_blocks, g) * plan.H * plan.size + block * 4 * VECTOR_BYTES
    row_bytes = recurrent * plan.H * plan.size
    gate = plan.gates - recurrent + g
    a = _chunk(plan, plan.state, plan.states * plan.units, t)
    if g >= plan.early:
        a = _chunk(plan, plan.operand, plan.units, t)
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


STEPS, HALF_STEP, GRADIENTS, START, END = range(5)


@part_of_a_piece
def _backward_work(plan, what, t, shard):
    """What a shard does in a phase; t is the phase's step, or the first of its chunk."""
    if what == START:
        _pack_backward(plan, shard)
        return
    if what == GRADIENTS:
        _input_gradients(plan, t, shard)
        _weight_gradients(plan, t, shard)
        return
    n0, n1, u0, u1 = _rows_and_units(plan, shard)
    if what == STEPS:
        if plan.by_rows:
            _pack_inputs(plan, t, shard)
            if n1 > n0:
                for step in range(min(t + plan.steps, plan.T) - 1, t - 1, -1):
                    _gates_back(plan, step, n0, n1, u0, u1)
                    if plan.late:
                        _operand_back(plan, step, n0, n1, u0, u1)
            return
        if t % plan.steps == 0:
            _pack_inputs(plan, t, shard)
        if u1 > u0:
            _gates_back(plan, t, n0, n1, u0, u1)
    elif n1 > n0 and u1 > u0:
        if what == HALF_STEP:
            _operand_back(plan, t, n0, n1, u0, u1)
        else:
            _through_h(plan, 0, n0, n1, u0, u1)
            _unpack(
                plan, plan.dstate, panel_of(plan.N), plan.states + 1, plan.state_out, n0, n1, u0, u1
            )


@part_of_a_piece
def _backward_phase(plan, phase, what, t):
    """All shards of a phase; returns the number of the next."""
    if plan.shards == 1:
        _backward_work(plan, what, t, 0)
        return phase + 1
    for k in range(plan.shards):
        shard = (plan.thread + k) % plan.shards
        if claim(plan.team, plan.job, phase, shard):
            _backward_work(plan, what, t, shard)
            finished(plan.team)
    wait_for_all(plan.team, plan.job, (phase + 1) * plan.shards)
    return phase + 1


def backward(frame):
    """A piece: all steps back, and the gradients of inputs, weights and the state before."""
    plan = _read_plan(frame)
    denormals = flush_denormals()
    if plan.shards > 1 and plan.thread == 0:
        open_job(plan.team, plan.job, plan.shards)
    phase = _backward_phase(plan, 0, START, 0)
    chunks = (plan.T + plan.steps - 1) // plan.steps
    for chunk in range(chunks - 1, -1, -1):
        t = chunk * plan.steps
        if plan.by_rows:
            phase = _backward_phase(plan, phase, STEPS, t)
        else:
            for step in range(min(t + plan.steps, plan.T) - 1, t - 1, -1):
                phase = _backward_phase(plan, phase, STEPS, step)
                if plan.late:
                    phase = _backward_phase(plan, phase, HALF_STEP, step)
        phase = _backward_phase(plan, phase, GRADIENTS, t)
    _backward_phase(plan, phase, END, 0)
    if plan.shards > 1 and plan.thread == 0:
        close_job(plan.team)
    restore_denormals(denormals)
