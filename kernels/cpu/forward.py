"""The forward pass, for any cell: a shard's work, phase by phase. Its picture: ``schedule.py``."""

from .gemm import Product
from .kernel_abi import arguments_address, call, jitted, load_i64
from .panels import Packing, Rounding
from .plan import read_plan
from .schedule import (
    END,
    HALF_STEP,
    START,
    STEPS,
    StepArguments,
    begin,
    end,
    from_byte,
    from_number,
    panel_of,
    panels_in,
    rows_and_units,
    rows_of,
    run_phase,
    shard_range,
    state_at,
    step_at,
    step_panels,
    steps_in,
    unpack_states,
)
from .simd import VECTOR_BYTES


@jitted
def gates_gemm(plan, a, a_row, a_segment, inner, weights, gates, u0, u1, out, out_row, M):
    """out[gate, unit-panel] = A (M rows, ``inner`` words) @ weights, for units u0..u1 of gates.

    A tile is some panels of all gates, or four gates of one unit-panel, or some unit-panels of
    one gate: whatever is there to fill it.
    """
    weight, W = panel_of(inner + plan.scale_lines), VECTOR_BYTES // plan.size
    calls, vectors, stride, next_tile = gates, u1 - u0, 1, plan.units
    if u1 - u0 == plan.units:
        calls, vectors = 1, gates * plan.units
    elif gates == 4:
        calls, vectors, stride, next_tile = u1 - u0, gates, plan.units, 1
    for k in range(calls):
        first = u0 + k * next_tile
        call(plan.multiply, Product(
            a=a, a_row=a_row, a_segment=a_segment, a_group=0, groups=1, inner=inner,
            b=weights + first * weight, b_vector=stride * weight,
            c=out.start + first * out.panel, c_row=out_row, c_vector=stride * out.panel,
            rows=M, columns=vectors * W, add=0, then=next_tile * weight,
        ))  # fmt: skip


@jitted
def _pack(plan, shard):
    """The weights of a shard's units as panels, and the state to start from."""
    u0, u1 = shard_range(plan.units, shard, plan.shards)
    if u0 == u1:
        return
    H_bytes, W = plan.H * plan.size, VECTOR_BYTES // plan.size
    columns = min(plan.H, u1 * W) - u0 * W
    skip = u0 * VECTOR_BYTES
    if not plan.packed:
        for g in range(plan.x_gates):
            source = plan.Wx + load_i64(plan.x_blocks, g) * H_bytes + skip
            to = plan.pWx + (g * plan.units + u0) * panel_of(plan.D_words)
            _pack_weights(plan, source, plan.Wx_row, plan.D, columns, to, plan.D_words)
        for g in range(plan.early):
            source = plan.Wh + load_i64(plan.h_blocks, g) * H_bytes + skip
            to = plan.pWh + (g * plan.units + u0) * panel_of(plan.P_words)
            _pack_weights(plan, source, plan.Wh_row, plan.P, columns, to, plan.P_words)
        for g in range(plan.late):
            block = (load_i64(plan.h_blocks, plan.early + g) - plan.early) * plan.P * plan.size
            to = plan.pWr + (g * plan.units + u0) * panel_of(plan.H_words)
            late_columns = min(plan.P, u1 * W) - u0 * W
            _pack_weights(
                plan, plan.Wr + block + skip, plan.Wr_row, plan.H, late_columns, to, plan.H_words
            )
    state = state_at(plan, 0, 0, 0)
    for s in range(plan.kept_states):
        call(plan.pack, Packing(
            source=plan.state_in + s * plan.state_step + skip, source_row=H_bytes,
            source_panel=VECTOR_BYTES, rows=plan.N, columns=columns,
            to=from_number(state, s).start + u0 * state.panel,
            to_row=VECTOR_BYTES, to_panel=state.panel,
        ))  # fmt: skip


@jitted
def _round_first_h(plan, shard):
    """A shard's rows of what h Wh multiplies at first, as words."""
    n0, n1 = shard_range(plan.N, shard, plan.shards)
    if plan.early and plan.word > 1:
        words, row = _h_words(plan, 0, n0), plan.H * plan.size
        scale = words.start + panels_in(plan, plan.P_words) * words.panel
        call(plan.round_columns, Rounding(
            source=plan.state_in + plan.h_slot * plan.state_step + n0 * row, source_row=row,
            source_panel=VECTOR_BYTES, rows=n1 - n0, columns=plan.P, to=words.start,
            to_row=VECTOR_BYTES, to_panel=words.panel,
            scale=scale if plan.scale_panels else 0, bounded=plan.h_bounded,
        ))  # fmt: skip


@jitted
def _pack_weights(plan, source, source_row, rows, columns, to, words):
    """Some columns of a gate's weights as panels."""
    call(plan.pack_weights, Packing(
        source=source, source_row=source_row, source_panel=VECTOR_BYTES, rows=rows,
        columns=columns, to=to, to_row=VECTOR_BYTES, to_panel=panel_of(words),
    ))  # fmt: skip


@jitted
def _h_words(plan, t, n):
    """The panels of h before step t in words, from row n on: those of two steps in turn."""
    panels = panels_in(plan, plan.P_words) + plan.scale_panels
    return step_panels(plan, plan.h_words + t % 2 * panels * panel_of(plan.N), n)


@jitted
def _store_h(plan, t, h, n, rows, u0, u1):
    """What h Wh multiplies at step t, as words: rows from n on, of units u0..u1."""
    if plan.early and plan.word > 1:
        words = _h_words(plan, t, n)
        _store_words(plan, h, plan.P, words, plan.P_words, rows, u0, u1, plan.h_bounded)


@jitted
def _store_words(plan, numbers, columns, words, count, rows, u0, u1, bounded):
    """Rows of panels u0..u1 as words, in panels that begin at ``words``: so many of a row."""
    part, W, scale = VECTOR_BYTES // plan.word, VECTOR_BYTES // plan.size, 0
    if plan.scale_panels and u0 == 0:
        scale = words.start + panels_in(plan, count) * words.panel
    call(plan.round_columns, Rounding(
        source=numbers.start + u0 * numbers.panel, source_row=VECTOR_BYTES,
        source_panel=numbers.panel, rows=rows, columns=min(columns, u1 * W) - u0 * W,
        to=words.start + u0 // plan.word * words.panel + u0 % plan.word * part,
        to_row=VECTOR_BYTES, to_panel=words.panel, scale=scale, bounded=bounded,
    ))  # fmt: skip


@jitted
def _x_words(plan, x, x_row, rows, shard):
    """Rows of xs as products take them: where they are, and the bytes from one to the next."""
    if plan.word == 1:
        return x, x_row
    lines = panels_in(plan, plan.D_words)
    row = panel_of(lines + plan.scale_panels)
    to = plan.x_words + shard * max(plan.N, plan.steps) * row
    scale = to + lines * VECTOR_BYTES if plan.scale_panels else 0
    call(plan.round_columns, Rounding(
        source=x, source_row=x_row, source_panel=VECTOR_BYTES, rows=rows, columns=plan.D,
        to=to, to_row=row, to_panel=VECTOR_BYTES, scale=scale, bounded=0,
    ))  # fmt: skip
    return to, row


@jitted
def _project(plan, chunk, n0, n1, u0, u1, shard):
    """x Wx for a chunk."""
    t, count = chunk * plan.steps, steps_in(plan, chunk)
    outer, inner, x_outer, x_inner, p_outer, p_inner = rows_of(
        n0, n1, 0, count, plan.xs_row, plan.xs_time, n1 - n0
    )
    side = step_at(plan, chunk, 0, n0, n1, u0, u1).x_proj
    for k in range(outer):
        start = plan.xs + t * plan.xs_time + n0 * plan.xs_row + k * x_outer
        x, x_row = _x_words(plan, start, x_inner, inner, shard)
        gates_gemm(
            plan, x, x_row, VECTOR_BYTES, plan.D_words, plan.pWx, plan.x_gates, u0, u1,
            from_byte(side, k * p_outer), p_inner, inner,
        )  # fmt: skip


@jitted
def _early_step(plan, chunk, k, n0, n1, u0, u1):
    """h Wh, and what the second product multiplies."""
    if plan.early:
        step = step_at(plan, chunk, k, n0, n1, u0, u1)
        h = from_number(step.state, plan.h_slot)
        if plan.word > 1:
            h = _h_words(plan, step.t, n0)
        gates_gemm(
            plan, h.start, VECTOR_BYTES, h.panel, plan.P_words, plan.pWh, plan.early, u0, u1,
            step.h_proj, VECTOR_BYTES, step.rows,
        )  # fmt: skip
    if plan.normalised_early:
        call(plan.early_numbers, StepArguments(plan, chunk, k, n0, n1, 0, plan.units))
    if plan.late or plan.operand_gate:
        call(plan.operand_kernel, StepArguments(plan, chunk, k, n0, n1, u0, u1))
    if plan.late and plan.word > 1:
        step = step_at(plan, chunk, k, n0, n1, u0, u1)
        words = step_panels(plan, plan.operand_words, n0)
        bounded = plan.operand_bounded
        _store_words(plan, step.operand, plan.H, words, plan.H_words, step.rows, u0, u1, bounded)


@jitted
def _late_step(plan, chunk, k, n0, n1, u0, u1):
    """The second product, and the state after the step."""
    end = min(u1, panels_in(plan, plan.P))
    if plan.late and u0 < end:
        step = step_at(plan, chunk, k, n0, n1, u0, u1)
        operand = step.operand
        if plan.word > 1:
            operand = step_panels(plan, plan.operand_words, n0)
        gates_gemm(
            plan, operand.start, VECTOR_BYTES, operand.panel, plan.H_words,
            plan.pWr, plan.late, u0, end, step.op_proj, VECTOR_BYTES, step.rows,
        )  # fmt: skip
    if plan.normalised_late:
        call(plan.late_numbers, StepArguments(plan, chunk, k, n0, n1, 0, plan.units))
    call(plan.gates_kernel, StepArguments(plan, chunk, k, n0, n1, u0, u1))


@jitted
def _end_step(plan, chunk, k, n0, n1, u0, u1):
    """What the next step multiplies, as its product takes it."""
    if plan.early and plan.word > 1:
        step = step_at(plan, chunk, k, n0, n1, u0, u1)
        h = from_number(step.after, plan.h_slot)
        _store_h(plan, step.t + 1, h, n0, step.rows, u0, u1)


@jitted
def _step(plan, chunk, k, n0, n1, u0, u1):
    """A whole step; with one product a few units at a time, whose gates then find what the
    product has written in the first cache."""
    few = u1 - u0 if plan.late else plan.units_at_once
    for u in range(u0, u1, few):
        _early_step(plan, chunk, k, n0, n1, u, min(u + few, u1))
        _late_step(plan, chunk, k, n0, n1, u, min(u + few, u1))
    _end_step(plan, chunk, k, n0, n1, u0, u1)


@jitted
def _work(plan, what, chunk, k, shard):
    """The work of a shard in a phase."""
    if what == START:
        _pack(plan, shard)
        _round_first_h(plan, shard)
        return
    n0, n1, u0, u1 = rows_and_units(plan, shard)
    if n0 == n1 or u0 == u1:
        return
    if what == END:
        unpack_states(plan, plan.last_state, plan.states, n0, n1, u0, u1)
    elif plan.no_barrier:
        for chunk_ in range(plan.chunks):
            _project(plan, chunk_, n0, n1, u0, u1, shard)
            for k_ in range(steps_in(plan, chunk_)):
                _step(plan, chunk_, k_, n0, n1, u0, u1)
    elif what == HALF_STEP:
        _late_step(plan, chunk, k, n0, n1, u0, u1)
        _end_step(plan, chunk, k, n0, n1, u0, u1)
    else:
        if k == 0:
            _project(plan, chunk, n0, n1, u0, u1, shard)
        if plan.late:
            _early_step(plan, chunk, k, n0, n1, u0, u1)
        else:
            _step(plan, chunk, k, n0, n1, u0, u1)


def forward(ctx):
    """A kernel: all steps, and the state after the last."""
    plan = read_plan(arguments_address(ctx))
    denormals, phase = begin(plan, ctx), 0
    in_place = plan.state == plan.state_in  # a stream's state, which is in panels as it is
    if not in_place:
        phase = run_phase(plan, _work, phase, START, 0, 0)
    if plan.T == 1 and plan.shards == 1:  # the shortest way
        _project(plan, 0, 0, plan.N, 0, plan.units, 0)
        _step(plan, 0, 0, 0, plan.N, 0, plan.units)
    elif plan.no_barrier:
        phase = run_phase(plan, _work, phase, STEPS, 0, 0)
    else:
        for chunk in range(plan.chunks):
            for k in range(steps_in(plan, chunk)):
                phase = run_phase(plan, _work, phase, STEPS, chunk, k)
                if plan.late:
                    phase = run_phase(plan, _work, phase, HALF_STEP, chunk, k)
    if not in_place:
        run_phase(plan, _work, phase, END, 0, 0)
    end(plan, denormals)
