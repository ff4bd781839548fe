"""The backward pass, for any cell: a shard's work, phase by phase. Its picture: ``schedule.py``."""

from .gemm import Product
from .kernel_abi import arguments_address, call, jitted, load_i64
from .layer_norm import Denormalising
from .panels import ColumnSums, Packing, Rounding
from .plan_kernels import read_plan
from .schedule import (
    END,
    GRADIENTS,
    HALF_STEP,
    PAIRS,
    START,
    STEPS,
    Panels,
    at_step,
    begin,
    call_by_ends,
    chunk_panel,
    chunk_panels,
    chunk_start,
    end,
    first_row,
    from_number,
    panel_of,
    panels_in,
    row_in_chunk,
    rows_and_units,
    rows_at,
    rows_in,
    rows_of,
    run_phase,
    scratch_panels,
    shard_range,
    step_at,
    steps_in,
    unpack_states,
)
from .simd import VECTOR_BYTES

SUMMED_AT_ONCE = 768  # rows, the most of a chunk but where a step has more; or words of them


@jitted
def gates_gemm_t(plan, dgates, gates, inner, weights, p0, p1, out, M):
    """out (M rows, panels p0..p1) = dgates (gates ``inner`` words wide) @ transposed weights."""
    weight = panel_of(gates * inner)
    call(plan.multiply, Product(
        a=dgates.start, a_row=VECTOR_BYTES, a_segment=dgates.panel, a_group=dgates.number,
        groups=gates, inner=inner, b=weights + p0 * weight, b_vector=weight,
        c=out.start + p0 * out.panel, c_row=VECTOR_BYTES, c_vector=out.panel, rows=M,
        columns=(p1 - p0) * (VECTOR_BYTES // plan.size), add=0, then=0,
    ))  # fmt: skip


@jitted
def _pack(plan, shard):
    """The transposed weights of a shard's columns, and the gradient to start from."""
    W = VECTOR_BYTES // plan.size
    H_bytes = plan.H * plan.size
    p0, p1 = shard_range(panels_in(plan, plan.D), shard, plan.shards)
    if p1 > p0 and plan.dxs:
        panel = panel_of(plan.x_gates * plan.H_words)
        for g in range(plan.x_gates):
            call(plan.pack_transposed, Packing(
                source=plan.Wx + p0 * W * plan.Wx_row + load_i64(plan.x_blocks, g) * H_bytes,
                source_row=plan.Wx_row, source_panel=W * plan.Wx_row,
                rows=min(plan.D, p1 * W) - p0 * W, columns=plan.H,
                to=plan.pWx + p0 * panel + g * plan.H_words * VECTOR_BYTES,
                to_row=VECTOR_BYTES, to_panel=panel,
            ))  # fmt: skip
    u0, u1 = shard_range(plan.units, shard, plan.shards)
    if u1 == u0:
        return
    columns, panel = min(plan.H, u1 * W) - u0 * W, panel_of(plan.early * plan.H_words)
    for g in range(plan.early):
        call(plan.pack_transposed, Packing(
            source=plan.Wh + u0 * W * plan.Wh_row + load_i64(plan.h_blocks, g) * H_bytes,
            source_row=plan.Wh_row, source_panel=W * plan.Wh_row,
            rows=min(plan.P, u1 * W) - u0 * W, columns=plan.H,
            to=plan.pWh + u0 * panel + g * plan.H_words * VECTOR_BYTES,
            to_row=VECTOR_BYTES, to_panel=panel,
        ))  # fmt: skip
    panel = panel_of(plan.late * plan.P_words)
    for g in range(plan.late):
        block = (load_i64(plan.h_blocks, plan.early + g) - plan.early) * plan.P * plan.size
        call(plan.pack_transposed, Packing(
            source=plan.Wr + u0 * W * plan.Wr_row + block, source_row=plan.Wr_row,
            source_panel=W * plan.Wr_row, rows=columns, columns=plan.P,
            to=plan.pWr + u0 * panel + g * plan.P_words * VECTOR_BYTES,
            to_row=VECTOR_BYTES, to_panel=panel,
        ))  # fmt: skip
    panel = panel_of(plan.N)
    for s in range(plan.states + 1):  # the last: what came through h Wh, as yet 0
        call(plan.pack, Packing(
            source=plan.state_in + s * plan.state_step + u0 * VECTOR_BYTES, source_row=H_bytes,
            source_panel=VECTOR_BYTES, rows=plan.N, columns=columns,
            to=plan.dstate + (s * plan.units + u0) * panel,
            to_row=VECTOR_BYTES, to_panel=panel,
        ))  # fmt: skip


@jitted
def _pack_inputs(plan, chunk, shard):
    """A shard's columns of a chunk's xs, as panels."""
    W = VECTOR_BYTES // plan.size
    p0, p1 = shard_range(panels_in(plan, plan.D), shard, plan.shards)
    if p0 == p1:
        return
    t, count, panel = chunk_start(plan, chunk), steps_in(plan, chunk), panel_of(plan.rows)
    outer, inner, x_outer, x_inner, p_outer, p_inner = rows_of(
        0, plan.N, 0, count, plan.xs_row, plan.xs_time, plan.N
    )
    if plan.firsts:
        outer, inner, x_inner, p_inner = 1, rows_in(plan, chunk), plan.xs_row, VECTOR_BYTES
    start = plan.xs + at_step(plan, t, plan.xs_row, plan.xs_time)
    for k in range(outer):
        call(plan.pack, Packing(
            source=start + p0 * VECTOR_BYTES + k * x_outer,
            source_row=x_inner, source_panel=VECTOR_BYTES, rows=inner,
            columns=min(plan.D, p1 * W) - p0 * W,
            to=plan.x_panels + p0 * panel + k * p_outer, to_row=p_inner, to_panel=panel,
        ))  # fmt: skip


@jitted
def _dgates_words(plan, chunk, k, n, first):
    """The gradients of gates from a first one on, of a step, as products take them."""
    panel = panel_of(plan.rows)
    panels = (plan.units + plan.word - 1) // plan.word
    start = plan.dgates_words + (row_in_chunk(plan, chunk, k) + n) * VECTOR_BYTES
    return from_number(Panels(start, panel, panels * panel), first)


@jitted
def _store_words(plan, chunk, k, n0, n1, u0, u1, first, end):
    """Write the gradients of some gates as words, if products take words."""
    if plan.word == 1:
        return
    step, half = step_at(plan, chunk, k, n0, n1, u0, u1), VECTOR_BYTES // plan.word
    W = VECTOR_BYTES // plan.size
    for gate in range(first, end):
        numbers, words = from_number(step.dgates, gate), _dgates_words(plan, chunk, k, n0, gate)
        call(plan.round_columns, Rounding(
            source=numbers.start + u0 * numbers.panel, source_row=VECTOR_BYTES,
            source_panel=numbers.panel, rows=step.rows, columns=min(plan.H, u1 * W) - u0 * W,
            to=words.start + u0 // plan.word * words.panel + u0 % plan.word * half,
            to_row=VECTOR_BYTES, to_panel=words.panel, scale=0, bounded=0,
        ))  # fmt: skip


@jitted
def _through_h(plan, chunk, k, n0, n1, u0, u1):
    """The part of the gradient before step k that comes back through its h Wh."""
    end = min(u1, panels_in(plan, plan.P))
    n1 = min(n1, rows_at(plan, chunk_start(plan, chunk) + k))
    if plan.early == 0 or u0 >= end or n0 >= n1:
        return
    step = step_at(plan, chunk, k, n0, n1, u0, u1)
    dgates, out = from_number(step.dgates, plan.first_early), from_number(step.dstate, plan.states)
    if plan.word > 1:
        dgates = _dgates_words(plan, chunk, k, n0, plan.first_early)
    gates_gemm_t(plan, dgates, plan.early, plan.H_words, plan.pWh, u0, end, out, step.rows)


@jitted
def _gates_back(plan, chunk, k, n0, n1, u0, u1):
    """The gradient of a step's gates, and of the state before it but for what h Wh adds."""
    if chunk_start(plan, chunk) + k < plan.T - 1:
        # after the chunk's last step: row 0 still holds dgates of the later chunk's first
        later = k + 1 == steps_in(plan, chunk)
        _through_h(plan, chunk + later, 0 if later else k + 1, n0, n1, u0, u1)
    call_by_ends(plan, plan.gates_kernel, (chunk, k, n0, n1), u0, u1)
    _denormalise(plan, chunk, k, n0, n1, plan.normalised_early, plan.normalised_late)
    _store_words(plan, chunk, k, n0, n1, u0, u1, plan.first_late, plan.first_late + plan.late)


@jitted
def _operand_back(plan, chunk, k, n0, n1, u0, u1):
    """The same through the operand: what comes from the second product, or the fed gate's own."""
    if plan.late:
        step = step_at(plan, chunk, k, n0, n1, u0, u1)
        dgates = from_number(step.dgates, plan.first_late)
        if plan.word > 1:
            dgates = _dgates_words(plan, chunk, k, n0, plan.first_late)
        inner = plan.P_words
        gates_gemm_t(plan, dgates, plan.late, inner, plan.pWr, u0, u1, step.doperand, step.rows)
    if plan.late or plan.operand_gate:
        call_by_ends(plan, plan.operand_kernel, (chunk, k, n0, n1), u0, u1)
    _denormalise(plan, chunk, k, n0, n1, 0, plan.normalised_early)
    _store_words(plan, chunk, k, n0, n1, u0, u1, 0, plan.first_late)
    first = plan.first_late + plan.late
    _store_words(plan, chunk, k, n0, n1, u0, u1, first, plan.gates - plan.weights)


@jitted
def _denormalise(plan, chunk, k, n0, n1, first, count):
    """The gradients of some normalised gates, from those by what the cell was given."""
    if count == 0:
        return
    step = step_at(plan, chunk, k, n0, n1, 0, plan.units)
    for gate in range(first, first + count):
        dgates = from_number(step.dgates, load_i64(plan.normalised_places, gate))
        given = from_number(step.normalised, gate)
        call(plan.denormalise, Denormalising(
            dgates=dgates.start, dgates_panel=dgates.panel, numbers=given.start, panel=given.panel,
            units=plan.units, H=plan.H, rows=step.rows, ahead=rows_at(plan, step.t) * VECTOR_BYTES,
        ))  # fmt: skip


@jitted
def _step_back(plan, chunk, k, n0, n1, u0, u1):
    """A whole step, for a shard that need not meet the others within it."""
    _gates_back(plan, chunk, k, n0, n1, u0, u1)
    _operand_back(plan, chunk, k, n0, n1, u0, u1)


@jitted
def _input_gradients(plan, chunk, shard):
    """A shard's rows of dxs, for a chunk."""
    t, count = chunk_start(plan, chunk), steps_in(plan, chunk)
    n0, n1, t0, t1 = 0, plan.N, 0, count
    if plan.firsts:  # side by side, as those of one step
        n0, n1 = shard_range(rows_in(plan, chunk), shard, plan.shards)
        t0, t1 = 0, 1
    elif count <= plan.N:
        n0, n1 = shard_range(plan.N, shard, plan.shards)
    else:
        t0, t1 = shard_range(count, shard, plan.shards)
    if n0 == n1 or t0 == t1:
        return
    D_bytes = plan.D * plan.size
    outer, inner, x_outer, x_inner, p_outer, p_inner = rows_of(
        n0,
        n1,
        t0,
        t1,
        plan.T * D_bytes,
        D_bytes,
        plan.N,  # dxs has no gaps, whatever xs has
    )
    dgates = scratch_panels(plan, plan.dgates, chunk, t0, n0)
    if plan.word > 1:
        dgates = _dgates_words(plan, chunk, t0, n0, 0)
    start = plan.dxs + (n0 * plan.T + t + t0) * D_bytes
    if plan.firsts:
        start = plan.dxs + (first_row(plan, t) + n0) * D_bytes
        outer, inner, x_inner, p_inner = 1, n1 - n0, D_bytes, VECTOR_BYTES
    for k in range(outer):
        weight = panel_of(plan.x_gates * plan.H_words)
        call(plan.multiply, Product(
            a=dgates.start + k * p_outer, a_row=p_inner, a_segment=dgates.panel,
            a_group=dgates.number, groups=plan.x_gates, inner=plan.H_words,
            b=plan.pWx, b_vector=weight,
            c=start + k * x_outer, c_row=x_inner,
            c_vector=VECTOR_BYTES, rows=inner, columns=plan.D, add=0, then=0,
        ))  # fmt: skip


@jitted
def _pairs_panel(plan):
    """Bytes from one panel of pairs of rows to the next."""
    return panel_of((plan.rows + 1) // 2)


@jitted
def _pair_rows(plan, source, panel, panels, rows, to, shard):
    """A shard's part of some panels of a chunk, in pairs of rows; ``panel`` bytes from one to the
    next.
    """
    p0, p1 = shard_range(panels, shard, plan.shards)
    to_panel = _pairs_panel(plan)
    call(plan.pair_rows, Packing(
        source=source + p0 * panel, source_row=VECTOR_BYTES, source_panel=panel, rows=rows,
        columns=(p1 - p0) * VECTOR_BYTES // plan.size, to=to + p0 * to_panel,
        to_row=VECTOR_BYTES, to_panel=to_panel,
    ))  # fmt: skip


@jitted
def _pair_chunk(plan, chunk, shard):
    """Both operands of the weights' gradients, in pairs of rows."""
    rows, scratch, kept = rows_in(plan, chunk), panel_of(plan.rows), chunk_panel(plan, chunk)
    _pair_rows(plan, plan.x_panels, scratch, panels_in(plan, plan.D), rows, plan.x_pairs, shard)
    if plan.early:
        _pair_rows(plan, _chunk_h(plan, chunk), kept, plan.units, rows, plan.h_pairs, shard)
    if plan.late:
        operand = chunk_panels(plan, plan.operand, 1, chunk, 0, 0).start
        _pair_rows(plan, operand, kept, plan.units, rows, plan.operand_pairs, shard)
    panels = (plan.gates - plan.weights) * plan.units
    _pair_rows(plan, plan.dgates, scratch, panels, rows, plan.dgates_pairs, shard)


@jitted
def _weight_gradients(plan, chunk, shard):
    """A shard's items of dWx, dWh, db and the weights' gradients: the chunk's part is added.

    An item is a panel of the rows of dWx or dWh, by four unit-panels of a gate; all of them are as
    much work, but for the sums, which are hardly any.
    """
    rows, add = rows_in(plan, chunk), 1 if chunk < plan.chunks - 1 else plan.add
    blocks, x_rows, h_rows = (plan.units + 3) // 4, panels_in(plan, plan.D), panels_in(plan, plan.P)
    late_blocks, late_rows = (h_rows + 3) // 4, plan.units
    x_items = plan.x_gates * blocks * x_rows
    h_items = x_items + plan.early * blocks * h_rows
    first, end = shard_range(h_items + plan.late * late_blocks * late_rows, shard, plan.shards)
    for item in range(first, end):
        if item < x_items:
            tile = item // x_rows
            _x_item(plan, tile // blocks, tile % blocks, item % x_rows, rows, add)
        elif item < h_items:
            tile, row = (item - x_items) // h_rows, (item - x_items) % h_rows
            _h_item(plan, chunk, tile // blocks, tile % blocks, row, rows, add)
        else:
            tile, row = (item - h_items) // late_rows, (item - h_items) % late_rows
            _operand_item(plan, chunk, tile // late_blocks, tile % late_blocks, row, rows, add)
    first, end = shard_range(plan.weights * blocks, shard, plan.shards)
    for item in range(first, end):  # of the last gates; their gradients lie behind db
        k, block = item // blocks, item % blocks
        bias = plan.db + (plan.x_gates + k) * plan.H * plan.size + block * 4 * VECTOR_BYTES
        _add_up(plan, plan.gates - plan.weights + k, block, bias, rows, add)


@jitted
def _x_item(plan, g, block, row, rows, add):
    """A panel of the rows of dWx, and with the first db, of a gate's four unit-panels."""
    column = load_i64(plan.x_blocks, g) * plan.H * plan.size + block * 4 * VECTOR_BYTES
    a, out = (plan.x_panels, panel_of(plan.rows), plan.x_pairs), plan.dWx + column
    _outer(plan, a, plan.D, g, block, plan.H, row, out, plan.Wx_row, rows, add)
    if row == 0:
        _add_up(plan, g, block, plan.db + column, rows, add)


@jitted
def _h_item(plan, chunk, g, block, row, rows, add):
    """A panel of the rows of dWh, and with the first db's second row, of four unit-panels."""
    column = load_i64(plan.h_blocks, g) * plan.H * plan.size + block * 4 * VECTOR_BYTES
    gate = plan.first_early + g
    a = _chunk_h(plan, chunk), chunk_panel(plan, chunk), plan.h_pairs
    out = plan.dWh + column
    _outer(plan, a, plan.P, gate, block, plan.H, row, out, plan.Wh_row, rows, add)
    if row == 0 and plan.b_row:
        _add_up(plan, gate, block, plan.db + plan.b_row + column, rows, add)


@jitted
def _operand_item(plan, chunk, g, block, row, rows, add):
    """A panel of the rows of dWr, of four unit-panels."""
    column = (load_i64(plan.h_blocks, plan.early + g) - plan.early) * plan.P * plan.size
    out, gate = plan.dWr + column + block * 4 * VECTOR_BYTES, plan.first_late + g
    operand = chunk_panels(plan, plan.operand, 1, chunk, 0, 0)
    a = operand.start, operand.panel, plan.operand_pairs
    _outer(plan, a, plan.H, gate, block, plan.P, row, out, plan.Wr_row, rows, add)


@jitted
def _chunk_h(plan, chunk):
    """The left factor of h Wh in a chunk."""
    state = chunk_panels(plan, plan.state, plan.kept_states, chunk, 0, 0)
    return from_number(state, plan.h_slot).start


@jitted
def _outer(plan, a, a_columns, gate, block, columns, p, out, out_row, rows, add):
    """out = A^T dgates of a gate's four unit-panels, A being panel p of several, or out += it.

    a  where A begins: its numbers, the bytes from one panel of them to the next, its pairs of rows
    """
    W, (numbers, a_panel, pairs) = VECTOR_BYTES // plan.size, a
    a, b, b_panel = numbers, plan.dgates, panel_of(plan.rows)
    if plan.word > 1:
        a, b, b_panel, rows = pairs, plan.dgates_pairs, _pairs_panel(plan), (rows + 1) // 2
        a_panel = b_panel
    b += (gate * plan.units + block * 4) * b_panel
    columns = min(4 * W, columns - block * 4 * W)
    for start in range(0, max(rows, 1), SUMMED_AT_ONCE):
        skip = start * VECTOR_BYTES
        call(plan.multiply_transposed, Product(
            a=a + p * a_panel + skip, a_row=0, a_segment=W * VECTOR_BYTES, a_group=0, groups=1,
            inner=min(rows - start, SUMMED_AT_ONCE), b=b + skip, b_vector=b_panel,
            c=out + p * W * out_row, c_row=out_row, c_vector=VECTOR_BYTES,
            rows=min(W, a_columns - p * W), columns=columns, add=max(add, min(start, 1)), then=0,
        ))  # fmt: skip


@jitted
def _add_up(plan, gate, block, out, rows, add):
    """out = the sum of the rows of a gate's four unit-panels, or out += it."""
    panel, W = panel_of(plan.rows), VECTOR_BYTES // plan.size
    source = plan.dgates + (gate * plan.units + block * 4) * panel
    columns = min(4 * W, plan.H - block * 4 * W)
    for start in range(0, max(rows, 1), SUMMED_AT_ONCE):
        call(plan.column_sums, ColumnSums(
            source=source + start * VECTOR_BYTES, row=VECTOR_BYTES, panel=panel,
            columns=columns, out=out,
            rows=min(rows - start, SUMMED_AT_ONCE), add=max(add, min(start, 1)),
        ))  # fmt: skip


@jitted
def _work(plan, what, chunk, k, shard):
    """The work of a shard in a phase."""
    if what == START:
        _pack(plan, shard)
        return
    if what == PAIRS:
        _pair_chunk(plan, chunk, shard)
        return
    if what == GRADIENTS:
        if plan.dxs:
            _input_gradients(plan, chunk, shard)
        _weight_gradients(plan, chunk, shard)
        return
    rows = plan.N if what == END else rows_at(plan, chunk_start(plan, chunk))
    n0, n1, u0, u1 = rows_and_units(plan, rows, shard)
    if what == STEPS and k == 0:
        _pack_inputs(plan, chunk, shard)
    if n0 == n1 or u0 == u1:
        return
    if what == END:
        _through_h(plan, 0, 0, n0, n1, u0, u1)
        unpack_states(plan, plan.dstate, plan.states + 1, n0, n1, u0, u1)
        return
    if plan.no_barrier:
        for k_ in range(steps_in(plan, chunk) - 1, -1, -1):
            n2 = min(n1, rows_at(plan, chunk_start(plan, chunk) + k_))
            if n0 < n2:
                _step_back(plan, chunk, k_, n0, n2, u0, u1)
        return
    n1 = rows_at(plan, chunk_start(plan, chunk) + k)
    if what == HALF_STEP:
        _operand_back(plan, chunk, k, n0, n1, u0, u1)
    elif plan.late:
        _gates_back(plan, chunk, k, n0, n1, u0, u1)
    else:
        _step_back(plan, chunk, k, n0, n1, u0, u1)


def backward(ctx):
    """A kernel: all steps back, and the gradients of inputs, weights and the state before."""
    plan = read_plan(arguments_address(ctx))
    denormals = begin(plan, ctx)
    phase = run_phase(plan, _work, 0, START, 0, 0)
    for chunk in range(plan.chunks - 1, -1, -1):
        if plan.no_barrier:
            phase = run_phase(plan, _work, phase, STEPS, chunk, 0)
        else:
            for k in range(steps_in(plan, chunk) - 1, -1, -1):
                phase = run_phase(plan, _work, phase, STEPS, chunk, k)
                if plan.late:
                    phase = run_phase(plan, _work, phase, HALF_STEP, chunk, k)
        if plan.word > 1:
            phase = run_phase(plan, _work, phase, PAIRS, chunk, 0)
        phase = run_phase(plan, _work, phase, GRADIENTS, chunk, 0)
    run_phase(plan, _work, phase, END, 0, 0)
    end(plan, denormals)
