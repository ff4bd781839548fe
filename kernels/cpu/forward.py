"""The forward pass, for any cell: a shard's work, phase by phase. Its picture: ``schedule.py``."""

from typing import NamedTuple

from .gemm import Product, ProductInPlace
from .kernel_abi import arguments_address, call, inlined, jitted, load_i64
from .panels import Packing, Rounding
from .plan_kernels import read_plan
from .schedule import (
    END,
    HALF_STEP,
    START,
    STEPS,
    StepArguments,
    at_step,
    begin,
    call_by_ends,
    chunk_start,
    end,
    first_row,
    from_byte,
    from_number,
    panel_of,
    panels_in,
    rows_and_units,
    rows_at,
    rows_in,
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


class Weights(NamedTuple):
    """The weights of a product: a block of columns for each of some gates."""

    in_place: int  # whether they are read where the caller has them, or else in panels
    matrix: int
    row: int  # bytes from one row to the next
    blocks: int  # the address of the gates' blocks
    gates: int
    inner: int
    words: int  # that as many rows take
    columns: int  # of a gate
    panels: int


@inlined
def _x_weights(plan):
    return Weights(
        plan.x_in_place, plan.Wx, plan.Wx_row, plan.x_blocks, plan.x_gates, plan.D, plan.D_words,
        plan.H, plan.pWx,
    )  # fmt: skip


@inlined
def _h_weights(plan):
    return Weights(
        plan.h_in_place, plan.Wh, plan.Wh_row, plan.h_blocks, plan.early, plan.P, plan.P_words,
        plan.H, plan.pWh,
    )  # fmt: skip


@inlined
def _late_weights(plan):
    """Those of the second product, whose blocks are numbered after those of Wh."""
    matrix, blocks = plan.Wr - plan.early * plan.P * plan.size, plan.h_blocks + 8 * plan.early
    return Weights(
        plan.h_in_place, matrix, plan.Wr_row, blocks, plan.late, plan.H, plan.H_words, plan.P,
        plan.pWr,
    )  # fmt: skip


@jitted
def gates_gemm(plan, a, a_row, a_segment, weights, u0, u1, out, out_row, M):
    """out[gate, unit-panel] = A (M rows) @ weights, for units u0..u1 of gates.

    In panels a tile is some of all gates, or four gates of one unit-panel, or some unit-panels of
    one gate: whatever is there to fill it.
    """
    if weights.in_place:
        for g in range(weights.gates):
            source, columns = _block(plan, weights, g, u0, u1)
            call(plan.multiply_in_place, ProductInPlace(
                a=a, a_row=a_row, a_segment=a_segment, inner=weights.inner, b=source,
                b_row=weights.row, c=out.start + g * out.number + u0 * out.panel, c_row=out_row,
                c_vector=out.panel, rows=M, columns=columns,
            ))  # fmt: skip
        return
    gates, W = weights.gates, VECTOR_BYTES // plan.size
    weight = panel_of(weights.words + plan.scale_lines)
    calls, vectors, stride, next_tile = gates, u1 - u0, 1, plan.units
    if u1 - u0 == plan.units:
        calls, vectors = 1, gates * plan.units
    elif gates == 4:
        calls, vectors, stride, next_tile = u1 - u0, gates, plan.units, 1
    for k in range(calls):
        first = u0 + k * next_tile
        call(plan.multiply, Product(
            a=a, a_row=a_row, a_segment=a_segment, a_group=0, groups=1, inner=weights.words,
            b=weights.panels + first * weight, b_vector=stride * weight,
            c=out.start + first * out.panel, c_row=out_row, c_vector=stride * out.panel,
            rows=M, columns=vectors * W, add=0, then=next_tile * weight,
        ))  # fmt: skip


@jitted
def _block(plan, weights, g, u0, u1):
    """Units u0..u1 of a gate's block: where they begin, and how many columns they are."""
    start = weights.matrix + load_i64(weights.blocks, g) * weights.columns * plan.size
    columns = min(weights.columns, u1 * VECTOR_BYTES // plan.size) - u0 * VECTOR_BYTES // plan.size
    return start + u0 * VECTOR_BYTES, columns


@jitted
def _pack_weights(plan, weights, u0, u1):
    """Units u0..u1 of the gates' weights as panels."""
    if plan.packed or weights.in_place:
        return
    panel = panel_of(weights.words)
    for g in range(weights.gates):
        source, columns = _block(plan, weights, g, u0, u1)
        call(plan.pack_weights, Packing(
            source=source, source_row=weights.row, source_panel=VECTOR_BYTES, rows=weights.inner,
            columns=columns, to=weights.panels + (g * plan.units + u0) * panel,
            to_row=VECTOR_BYTES, to_panel=panel,
        ))  # fmt: skip


@jitted
def _pack(plan, shard):
    """The weights of a shard's units as panels, and the state to start from."""
    u0, u1 = shard_range(plan.units, shard, plan.shards)
    if u0 == u1:
        return
    for weights in (_x_weights(plan), _h_weights(plan), _late_weights(plan)):
        _pack_weights(plan, weights, u0, u1)
    rows = rows_at(plan, 0)
    _pack_states(plan, 0, rows, u0, u1)
    if rows < plan.N:  # those without steps
        _pack_states(plan, rows, plan.N, u0, u1)


@jitted
def _pack_states(plan, n0, n1, u0, u1):
    """The state to start from, of some rows."""
    W, state, row = VECTOR_BYTES // plan.size, state_at(plan, 0, 0, n0), plan.H * plan.size
    for s in range(plan.kept_states):
        call(plan.pack, Packing(
            source=plan.state_in + s * plan.state_step + n0 * row + u0 * VECTOR_BYTES,
            source_row=row, source_panel=VECTOR_BYTES, rows=n1 - n0,
            columns=min(plan.H, u1 * W) - u0 * W, to=from_number(state, s).start + u0 * state.panel,
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
def _h_words(plan, t, n):
    """The panels of h before step t in words, from row n on: those of two steps in turn."""
    panels = panels_in(plan, plan.P_words) + plan.scale_panels
    return step_panels(plan, plan.h_words + t % 2 * panels * panel_of(plan.N), n)


@jitted
def _store_h(plan, t, h, n, rows, u0, u1):
    """The left factor of h Wh at step t, as words: rows from n on, of units u0..u1."""
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
    to = plan.x_words + shard * plan.x_rows * row
    scale = to + lines * VECTOR_BYTES if plan.scale_panels else 0
    call(plan.round_columns, Rounding(
        source=x, source_row=x_row, source_panel=VECTOR_BYTES, rows=rows, columns=plan.D,
        to=to, to_row=row, to_panel=VECTOR_BYTES, scale=scale, bounded=0,
    ))  # fmt: skip
    return to, row


@jitted
def _project(plan, chunk, n0, n1, u0, u1, shard):
    """x Wx for a chunk."""
    t, count, row = chunk_start(plan, chunk), steps_in(plan, chunk), plan.xs_row
    start = plan.xs + at_step(plan, t, row, plan.xs_time) + n0 * row
    side = step_at(plan, chunk, 0, n0, n1, u0, u1).x_proj
    if not plan.firsts:
        order = rows_of(n0, n1, 0, count, row, plan.xs_time, n1 - n0)
        _project_rows(plan, start, side, order, u0, u1, shard)
        return
    members = rows_at(plan, t)
    if n0 == 0 and n1 >= members:  # all rows lie side by side
        order = (1, rows_in(plan, chunk), 0, row, 0, VECTOR_BYTES)
        _project_rows(plan, start, side, order, u0, u1, shard)
    elif rows_at(plan, t + count - 1) == members:
        order = rows_of(n0, n1, 0, count, row, members * row, members)
        _project_rows(plan, start, side, order, u0, u1, shard)
    else:
        for k in range(count):
            skip = first_row(plan, t + k) - first_row(plan, t)
            rows = max(0, min(n1, rows_at(plan, t + k)) - n0)
            order = (min(1, rows), rows, 0, row, 0, VECTOR_BYTES)
            place = from_byte(side, skip * VECTOR_BYTES)
            _project_rows(plan, start + skip * row, place, order, u0, u1, shard)


@jitted
def _project_rows(plan, start, side, order, u0, u1, shard):
    """x Wx for rows from ``start`` on, in the order of ``rows_of``."""
    outer, inner, x_outer, x_inner, p_outer, p_inner = order
    for k in range(outer):
        x, x_row = _x_words(plan, start + k * x_outer, x_inner, inner, shard)
        gates_gemm(
            plan, x, x_row, VECTOR_BYTES, _x_weights(plan), u0, u1, from_byte(side, k * p_outer),
            p_inner, inner,
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
            plan, h.start, VECTOR_BYTES, h.panel, _h_weights(plan), u0, u1, step.h_proj,
            VECTOR_BYTES, step.rows,
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
            plan, operand.start, VECTOR_BYTES, operand.panel, _late_weights(plan), u0, end,
            step.op_proj, VECTOR_BYTES, step.rows,
        )  # fmt: skip
    if plan.normalised_late:
        call(plan.late_numbers, StepArguments(plan, chunk, k, n0, n1, 0, plan.units))
    call_by_ends(plan, plan.gates_kernel, (chunk, k, n0, n1), u0, u1)


@jitted
def _end_step(plan, chunk, k, n0, n1, u0, u1):
    """The left factor of the next step's product, as that takes it."""
    if plan.early and plan.word > 1:
        step = step_at(plan, chunk, k, n0, n1, u0, u1)
        h, rows = from_number(step.after, plan.h_slot), min(n1, rows_at(plan, step.t + 1)) - n0
        if rows > 0:
            _store_h(plan, step.t + 1, h, n0, rows, u0, u1)


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
    rows = plan.N if what == END else rows_at(plan, chunk_start(plan, chunk))
    n0, n1, u0, u1 = rows_and_units(plan, rows, shard)
    if n0 == n1 or u0 == u1:
        return
    if what == END:
        unpack_states(plan, plan.last_state, plan.states, n0, n1, u0, u1)
        return
    if plan.no_barrier:
        for chunk_ in range(chunk, chunk + 1 if plan.firsts else plan.chunks):
            _project(plan, chunk_, n0, n1, u0, u1, shard)
            for k_ in range(steps_in(plan, chunk_)):
                n2 = min(n1, rows_at(plan, chunk_start(plan, chunk_) + k_))
                if n0 < n2:
                    _step(plan, chunk_, k_, n0, n2, u0, u1)
        return
    if what == STEPS and k == 0:
        _project(plan, chunk, n0, n1, u0, u1, shard)
    n1 = rows_at(plan, chunk_start(plan, chunk) + k)
    if what == HALF_STEP:
        _late_step(plan, chunk, k, n0, n1, u0, u1)
        _end_step(plan, chunk, k, n0, n1, u0, u1)
    elif plan.late:
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
        rows = rows_at(plan, 0)
        _project(plan, 0, 0, rows, 0, plan.units, 0)
        _step(plan, 0, 0, 0, rows, 0, plan.units)
    elif plan.no_barrier:
        for chunk in range(plan.chunks if plan.firsts else 1):
            phase = run_phase(plan, _work, phase, STEPS, chunk, 0)
    else:
        for chunk in range(plan.chunks):
            for k in range(steps_in(plan, chunk)):
                phase = run_phase(plan, _work, phase, STEPS, chunk, k)
                if plan.late:
                    phase = run_phase(plan, _work, phase, HALF_STEP, chunk, k)
    if not in_place:
        run_phase(plan, _work, phase, END, 0, 0)
    end(plan, denormals)
