"""The forward pass, for any cell: a shard's work, phase by phase. Its picture: ``sequence.py``."""

from .frames import call, frame_address, part_of_a_piece, word
from .sequence import (
    END,
    HALF_STEP,
    START,
    STEPS,
    begin,
    chunk_at,
    end,
    normalised_at,
    own_panels,
    panel_of,
    read_plan,
    rows_and_units,
    rows_of,
    run_phase,
    share_of,
    state_at,
    steps_in,
    unpack_states,
)
from .simd import VECTOR_BYTES


@part_of_a_piece
def to_gates(plan, a, a_row, a_segment, inner, weights, gates, u0, u1, out, out_row, out_panel, M):
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
def _pack(plan, shard):
    """The weights of a shard's units as panels, and the state to start from."""
    u0, u1 = share_of(plan.units, shard, plan.shards)
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
    state, panel = state_at(plan, 0, 0)
    for s in range(plan.kept_states):
        call(plan.pack, (
            plan.state_in + s * plan.state_step + skip, H_bytes, plan.N, columns,
            state + (s * plan.units + u0) * panel, VECTOR_BYTES, panel,
        ))  # fmt: skip


@part_of_a_piece
def _project(plan, chunk, n0, n1, u0, u1):
    """x Wx for a chunk."""
    t, count = chunk * plan.steps, steps_in(plan, chunk)
    outer, inner, x_outer, x_inner, p_outer, p_inner = rows_of(
        n0, n1, 0, count, plan.xs_row, plan.xs_time, n1 - n0
    )
    x_side, x_panel = own_panels(plan.x_side, plan.x_gates * plan.units, plan.steps, n0, n1)
    for k in range(outer):
        to_gates(
            plan, plan.xs + t * plan.xs_time + n0 * plan.xs_row + k * x_outer, x_inner,
            VECTOR_BYTES, plan.D, plan.pWx, plan.x_gates, u0, u1,
            x_side + k * p_outer, p_inner, x_panel, inner,
        )  # fmt: skip


@part_of_a_piece
def _sides(plan, k, n0, n1):
    """x_side, e_side and l_side of a step: where each begins, bytes between its panels."""
    x_side, x_panel = own_panels(plan.x_side, plan.x_gates * plan.units, plan.steps, n0, n1)
    e_side, panel = own_panels(plan.e_side, plan.early * plan.units, 1, n0, n1)
    l_side, _ = own_panels(plan.l_side, (plan.late + plan.fed) * plan.units, 1, n0, n1)
    return x_side + k * (n1 - n0) * VECTOR_BYTES, x_panel, e_side, panel, l_side, panel


@part_of_a_piece
def _normalise(plan, chunk, k, n0, n1, piece, side, side_panel, first, count):
    """Some normalised gates, from what fed them beside x Wx, some rows at a time."""
    x_side, x_panel, _, _, _, _ = _sides(plan, k, n0, n1)
    out, panel = normalised_at(plan, chunk, k, 0)
    begin, _ = normalised_at(plan, chunk, k, first)
    for n in range(n0, n1, plan.rows_at_once):
        rows, skip, own = min(plan.rows_at_once, n1 - n), n * VECTOR_BYTES, (n - n0) * VECTOR_BYTES
        call(piece, (
            plan.units, plan.H, rows, x_side + own, x_panel, side + own, side_panel,
            plan.b, plan.b_row, out + skip, panel,
        ))  # fmt: skip
        call(
            plan.standardise,
            (begin + skip, panel, count, plan.units, plan.H, rows, plan.N * VECTOR_BYTES),
        )


@part_of_a_piece
def _early_step(plan, chunk, k, n0, n1, u0, u1):
    """h Wh, and what the second product multiplies."""
    x_side, x_panel, e_side, e_panel, l_side, l_panel = _sides(plan, k, n0, n1)
    skip = n0 * VECTOR_BYTES
    state, panel = state_at(plan, chunk, k)
    if plan.early:
        to_gates(
            plan, state + plan.multiplied * plan.units * panel + skip, VECTOR_BYTES, panel,
            plan.H, plan.pWh, plan.early,
            u0, u1, e_side, VECTOR_BYTES, e_panel, n1 - n0,
        )  # fmt: skip
    if plan.normalised_early:
        _normalise(
            plan, chunk, k, n0, n1, plan.early_numbers, e_side, e_panel, 0, plan.normalised_early
        )
    if plan.late or plan.fed:
        out, out_panel = l_side, l_panel
        if plan.late:
            out = chunk_at(plan, plan.operand, plan.units, chunk) + k * plan.N * VECTOR_BYTES + skip
            out_panel = panel_of(plan.steps * plan.N)
        given, given_panel = normalised_at(plan, chunk, k, 0)
        call(plan.operand_piece, (
            u0, u1, plan.units, plan.H, n1 - n0, x_side, x_panel, e_side, e_panel,
            plan.b, plan.b_row, state + skip, panel,
            out, out_panel, plan.options, chunk * plan.steps + k, n0,
            given + skip, given_panel,
        ))  # fmt: skip


@part_of_a_piece
def _late_step(plan, chunk, k, n0, n1, u0, u1):
    """The second product, and the state after the step."""
    x_side, x_panel, e_side, e_panel, l_side, l_panel = _sides(plan, k, n0, n1)
    rows_panel, skip = panel_of(plan.steps * plan.N), n0 * VECTOR_BYTES
    row = k * plan.N * VECTOR_BYTES + skip
    if plan.late:
        to_gates(
            plan, chunk_at(plan, plan.operand, plan.units, chunk) + row, VECTOR_BYTES, rows_panel,
            plan.H, plan.pWh + plan.early * plan.units * (plan.H | 1) * plan.weight_row, plan.late,
            u0, u1, l_side, VECTOR_BYTES, l_panel, n1 - n0,
        )  # fmt: skip
    if plan.normalised_late:
        _normalise(
            plan, chunk, k, n0, n1, plan.late_numbers, l_side, l_panel,
            plan.normalised_early, plan.normalised_late,
        )  # fmt: skip
    given, given_panel = normalised_at(plan, chunk, k, 0)
    state, panel = state_at(plan, chunk, k)
    after, after_panel = state_at(plan, chunk, k + 1)
    saved = chunk_at(plan, plan.saved, plan.stored * plan.units, chunk) + row
    call(plan.gates_piece, (
        u0, u1, plan.units, plan.H, n1 - n0,
        x_side, x_panel, e_side, e_panel, l_side, l_panel, plan.b, plan.b_row,
        state + skip, panel, after + skip, after_panel,
        saved if plan.keep else 0, rows_panel,
        plan.hs + (chunk * plan.steps + k) * plan.hs_time + n0 * plan.hs_row, plan.hs_row,
        plan.options, chunk * plan.steps + k, n0, given + skip, given_panel,
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
def _work(plan, what, chunk, k, shard):
    """What a shard does in a phase."""
    if what == START:
        _pack(plan, shard)
        return
    n0, n1, u0, u1 = rows_and_units(plan, shard)
    if n0 == n1 or u0 == u1:
        return
    if what == END:
        unpack_states(plan, plan.last_state, plan.states, n0, n1, u0, u1)
    elif plan.apart:
        for chunk_ in range(plan.chunks):
            _project(plan, chunk_, n0, n1, u0, u1)
            for k_ in range(steps_in(plan, chunk_)):
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


def forward(frame):
    """A piece: all steps, and the state after the last."""
    plan = read_plan(frame_address(frame))
    denormals = begin(plan, frame)
    if plan.in_panels and plan.shards == 1:  # a step of half a microsecond: the shortest way
        _project(plan, 0, 0, 1, 0, plan.units)
        _step(plan, 0, 0, 0, 1, 0, plan.units)
        end(plan, denormals)
        return
    phase = 0
    if not plan.in_panels:
        phase = run_phase(plan, _work, phase, START, 0, 0)
    if plan.apart:
        phase = run_phase(plan, _work, phase, STEPS, 0, 0)
    else:
        for chunk in range(plan.chunks):
            for k in range(steps_in(plan, chunk)):
                phase = run_phase(plan, _work, phase, STEPS, chunk, k)
                if plan.late:
                    phase = run_phase(plan, _work, phase, HALF_STEP, chunk, k)
    if not plan.in_panels:
        run_phase(plan, _work, phase, END, 0, 0)
    end(plan, denormals)
