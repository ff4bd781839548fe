"""A step as one function: the steps of one sequence through one layer, for a layer or a stream.

The loop over time, the products, the cell's own arithmetic and the state are one compiled function
for each cell, whose sizes are arguments; only the state goes through memory. A step is cut into
*strips* of units, whose gates stay in registers from the bias to the new state:

    | wide | wide | ... | 64 bytes | ... | 32 bytes |       H units

A wide strip keeps as many sums going as the processor can; the last takes a rest of H that fits.
Sums are made in the order of ``forward.py``, b + x Wx, then + h Wh, each along its inner axis: so
bits do not depend on which of the two runs. What backward needs is kept in that file's panels.
Weights are packed strip by strip in the order in which they are read; of a strip of W units:

    biases (gates, W)    Wx (input gates, D, W)    Wh (early gates, P, W)    Wr (late gates, H, W)

with the cell's weights among the biases. Each gate's rows follow on from each other, those of a
wide strip 64 bytes at a time, so that as many runs of memory are read side by side as there are
sums, which the second cache serves faster than one run; an odd number of rows puts them into
different sets of the first. Every other step begins with the last wide strip, whose
weights are still in the first cache. A cell with an operand takes two sweeps over the strips,
between which its gates are in rows.

Where there are many inputs, x Wx is made for some steps at once, by ``gemm.py``, which reads Wx but
once for all of them: so Wx is in panels of 64 bytes even where the strip is half as wide.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import overload

from ..layout import layout
from . import simd, tuple_io
from .gemm import Product, emit_loop
from .kernel_abi import arguments_address, call, call_at, emits, inlined, jitted
from .option_io import end_step, load_options
from .plan_kernels import read_plan, read_record
from .schedule import chunk_panels, state_at
from .simd import (
    VECTOR_BYTES,
    lanes_of,
    load,
    load_part,
    of_ctx,
    splat,
    store,
    store_part,
)
from .strips import strips_of, wide_bytes
from .thread_kernels import flush_denormals, restore_denormals

_I64 = ir.IntType(64)


# ---- in compiled code


_strips = inlined(strips_of)


def _resized(size):
    """An intrinsic for the ctx of vectors of another size, which ``size`` finds from the cell."""

    @emits(lambda ctx: ctx.with_vectors(size(ctx.cell)))
    def resized(builder, ctx):
        return ir.Constant(_I64.as_pointer(), None)

    return resized


_wide, _half = _resized(wide_bytes), _resized(lambda cell: VECTOR_BYTES // 2)


@emits(types.UniTuple(types.int64, 7))
def _constants(builder, ctx):
    """Bytes of a strip's biases, and of a row of Wx and of other weights; gates in all, and of Wx,
    Wh and Wr."""
    at, size, whole = layout(ctx.cell), ctx.vector_bytes, max(ctx.vector_bytes, VECTOR_BYTES)
    gates = len(at.order), at.x_gates, at.early, at.late
    return [_I64(count) for count in (gates[0] * whole, whole, size, *gates)]


def _emit_products(builder, ctx, gates, weights, row, rows, numbers, count, depth, known=None):
    """Numbers (count,) times weights (gates, rows, W), so many numbers in a turn of the loop.

    known  where sums are that they are added to, and the bytes from one to the next
    """
    vector = simd.VectorType(ctx.dtype, min(ctx.vector_bytes, VECTOR_BYTES))
    parts = ctx.vector_bytes // VECTOR_BYTES or 1
    length = builder.mul(builder.or_(rows, _I64(1)), _I64(row))
    starts = [builder.mul(length, _I64(j)) for j in range(gates * parts)]
    kind, size = vector.llvm.element.as_pointer(), vector.dtype.bitwidth // 8

    def turns(several):
        def turn(a, w, *now):
            sums = list(now)
            for k in range(several):
                number = builder.load(builder.inttoptr(builder.add(a, _I64(k * size)), kind))
                number = splat(builder, number, vector.llvm)
                for j, start in enumerate(starts):
                    place = builder.add(builder.add(w, start), _I64(k * row))
                    line = simd.emit_load(builder, vector, place)
                    sums[j] = simd.emit_fma(builder, vector, number, line, sums[j])
            behind = builder.add(w, _I64(several * row))
            return builder.add(a, _I64(several * size)), behind, *sums

        return turn

    sums = [ir.Constant(vector.llvm, [0.0] * vector.lanes)] * len(starts)
    if known:
        places = (tuple_io.member_address(builder, known, j) for j in range(len(starts)))
        sums = [simd.emit_load(builder, vector, place) for place in places]
    now = [numbers, weights, *sums]
    if gates and depth > 1:
        now = emit_loop(builder, builder.sdiv(count, _I64(depth)), now, turns(depth))
        count = builder.srem(count, _I64(depth))
    sums = emit_loop(builder, count, now, turns(1))[2:] if gates else []
    return [_emit_joined(builder, sums[j : j + parts]) for j in range(0, len(sums), parts)]


def _emit_joined(builder, vectors):
    """One vector of some, a power of two (LLVM level)."""
    while len(vectors) > 1:
        lanes = 2 * vectors[0].type.count
        order = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(lanes)))
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [builder.shuffle_vector(a, b, order) for a, b in pairs]
    return vectors[0]


def _emit_gates(builder, ctx, load_gate, *products):
    """Gates, and products (places of the gates, sums) added to them.

    LLVM makes one rounding of a product and a sum; of which product in a * b + c * d depends on the
    order of what they come from. So it is that of ``gates.py``: weights, then the layout's order.
    """
    at = layout(ctx.cell)
    own = len(at.order) - at.weights
    gates = {g: load_gate(builder, g) for g in (*at.order[own:], *at.order[:own])}
    for places, sums in products:
        for g, total in zip(places, sums, strict=True):
            gates[g] = builder.fadd(gates[g], total)
    return [gates[g] for g in range(len(gates))]


def _gates(ctx, *rest):
    return types.UniTuple(of_ctx(ctx), len(ctx.cell.gates))


@emits(_gates)
def _first_gates(builder, ctx, weights, known, x, count, D, x_weights, h, P, h_weights):
    """b + x Wx, then + h Wh; x Wx of what is known and of ``count`` numbers."""
    x_gates, h_gates = ctx.cell.input_gates, ctx.cell.recurrent_gates[: layout(ctx.cell).early]
    row = min(ctx.vector_bytes, VECTOR_BYTES)
    x_sums = _emit_products(
        builder, ctx, len(x_gates), x_weights, VECTOR_BYTES, D, x, count, 1, known
    )
    h_sums = _emit_products(builder, ctx, len(h_gates), h_weights, row, P, h, P, 8)

    def bias(builder, g):
        place = builder.add(weights, _I64(g * max(ctx.vector_bytes, VECTOR_BYTES)))
        return simd.emit_load(builder, of_ctx(ctx), place)

    return _emit_gates(builder, ctx, bias, (x_gates, x_sums), (h_gates, h_sums))


@emits(_gates)
def _last_gates(builder, ctx, place, operand, H, weights):
    """The gates from their rows, then + operand Wr."""
    late = ctx.cell.recurrent_gates[layout(ctx.cell).early :]
    row = min(ctx.vector_bytes, VECTOR_BYTES)
    sums = _emit_products(builder, ctx, len(late), weights, row, H, operand, H, 8)

    def kept(builder, g):
        address = tuple_io.member_address(builder, place, g)
        return simd.emit_load(builder, of_ctx(ctx), address)

    return _emit_gates(builder, ctx, kept, (late, sums))


@emits(lambda ctx, gates, number: gates)
def _add_operand(builder, ctx, gates, number):
    """Add the operand to the gate that it feeds itself."""
    fed = [name in ctx.cell.operand_gate for name in ctx.cell.gates]
    values = [builder.extract_value(gates, g) for g in range(len(fed))]
    return [builder.fadd(v, number) if f else v for v, f in zip(values, fed, strict=True)]


@inlined
def _line(ctx, plan):
    """Bytes of the weights of 64 bytes of units."""
    biases, _, row, _, x_gates, early, late = _constants(ctx)
    rows = (plan.D | 1) * x_gates + (plan.P | 1) * early + (plan.H | 1) * late
    return biases + row * rows


@inlined
def _strips_of(ctx, plan):
    """How many strips are wide, how many vectors each has, and how many halves of one are left."""
    W, times = lanes_of(ctx), lanes_of(_wide(ctx)) // lanes_of(ctx)
    many, rest = _strips((2 * plan.H + W - 1) // W, times)
    return many, times, rest


@inlined
def _project(ctx, plan):
    """x Wx for the steps of a block, strip by strip."""
    biases, _, row, _, x_gates, _, _ = _constants(ctx)
    many, times, rest = _strips_of(ctx, plan)
    panel = plan.ahead_panel
    for k in range(many + (rest + 1) // 2):
        width, u = (times, k * times) if k < many else (1, many * times + k - many)
        call(plan.multiply, Product(
            a=plan.xs + plan.first * plan.xs_time, a_row=plan.xs_time, a_segment=VECTOR_BYTES,
            a_group=0, groups=1, inner=plan.D, b=plan.pWx + u * _line(ctx, plan) + width * biases,
            b_vector=(plan.D | 1) * row,
            c=plan.x_proj + u * x_gates * panel, c_row=VECTOR_BYTES, c_vector=panel,
            rows=min(plan.block, plan.T - plan.first),
            columns=width * x_gates * lanes_of(ctx), add=0, then=0,
        ))  # fmt: skip


@inlined
def _in_panels(panels, u):
    """Where byte u of rows is in panels: what functions that store in panels take."""
    return panels.start + u // VECTOR_BYTES * panels.panel, panels.number, panels.panel


@jitted
def _kept(plan, start, numbers, t, u):
    """Where backward looks for numbers of step t."""
    chunk = t // plan.steps
    return _in_panels(chunk_panels(plan, start, numbers, chunk, t - chunk * plan.steps, 0), u)


@jitted
def _kept_state(plan, t, u):
    """Where backward looks for the state before step t."""
    chunk = t // plan.steps
    return _in_panels(state_at(plan, chunk, t - chunk * plan.steps, 0), u)


def _sweep(begins, ends):
    """A function that runs a step for all strips, or one of two parts of it.

    begins  it adds up the gates of the first product; else it finds them in rows
    ends    it runs the cell; else it computes the operand, and leaves the gates in rows
    """

    @inlined
    def strip(ctx, plan, t, now, after, weights, u):  # u: bytes from a row's start
        biases, x_row, row, _, x_gates, early, _ = _constants(ctx)
        x_weights = weights + biases
        h_weights = x_weights + (plan.D | 1) * x_gates * x_row
        left = plan.P - u // plan.size
        if begins:
            panel = plan.ahead_panel
            ahead = plan.x_proj + (t - plan.first) * plan.ahead_step
            ahead += u // VECTOR_BYTES * x_gates * panel
            gates = _first_gates(
                ctx, weights, (ahead, panel), plan.xs + t * plan.xs_time, plan.x_inner, plan.D,
                x_weights, now, plan.P, h_weights,
            )  # fmt: skip
        else:
            inner = plan.H if left > 0 else 0  # h may have fewer units
            r_weights = h_weights + (plan.P | 1) * early * row
            gates = _last_gates(
                ctx, (plan.gate_rows + u, plan.row), plan.operand_row, inner, r_weights
            )
        before = tuple_io.load_states(ctx, (now + u, plan.row))
        if ends:
            new, saved = tuple_io.forward(ctx, gates, before)
            if plan.keep:
                tuple_io.store_saved(ctx, saved, _kept(plan, plan.saved, plan.n_stored, t, u))
            options = load_options(ctx, read_record(plan.options), 0, 0, 0, 0, 0)
            new, _, _ = end_step(ctx, new, before, options)
            tuple_io.store_states(ctx, new, (after + u, plan.row))
            if plan.keep:
                tuple_io.store_states(ctx, new, _kept_state(plan, t + 1, u))
        else:
            number = tuple_io.operand(ctx, gates, before)
            store(ctx, number, plan.operand_row + u)
            if plan.keep and plan.late:
                tuple_io.store_operand(ctx, (number,), _kept(plan, plan.operand, 1, t, u))
            gates = _add_operand(ctx, gates, number)
            tuple_io.store_gates(ctx, gates, (plan.gate_rows + u, plan.row))

    @inlined
    def sweep(ctx, plan, t, now, after):
        line, (many, times, rest) = _line(ctx, plan), _strips_of(ctx, plan)
        for j in range(many):
            k = (many - 1 - j if t & 1 else j) * times
            strip(_wide(ctx), plan, t, now, after, plan.pWx + k * line, k * VECTOR_BYTES)
        k = many * times
        for _ in range(rest // 2):
            strip(ctx, plan, t, now, after, plan.pWx + k * line, k * VECTOR_BYTES)
            k += 1
        if rest % 2:
            strip(_half(ctx), plan, t, now, after, plan.pWx + k * line, k * VECTOR_BYTES)

    return sweep


_whole, _begin, _end = _sweep(True, True), _sweep(True, False), _sweep(False, True)


def _step(ctx, plan, t, now, after):
    raise NotImplementedError("this function exists only as compiled code")


@overload(_step, strict=False)
def _step_of_cell(ctx, plan, t, now, after):
    if ctx.cell.operand is None:
        return lambda ctx, plan, t, now, after: _whole(ctx, plan, t, now, after)

    def in_two(ctx, plan, t, now, after):
        _begin(ctx, plan, t, now, after)
        _end(ctx, plan, t, now, after)

    return in_two


def fused_steps(ctx):
    """A kernel: a block of steps of one sequence through one layer, from the state ``now`` to
    there."""
    plan = read_plan(arguments_address(ctx))
    denormals = flush_denormals()
    now, after, end = plan.now, plan.next, min(plan.T, plan.first + plan.block)
    for t in range(plan.first, end):
        _step(ctx, plan, t, now, after)
        now, after = after, now
        for u in range(0, plan.row, VECTOR_BYTES):  # only now: x may be what hs was
            lanes = plan.P - u * lanes_of(ctx) // VECTOR_BYTES
            store_part(ctx, load(ctx, now + u), plan.hs + t * plan.hs_time + u, lanes)
    if now != plan.now:
        for u in range(0, plan.states * plan.row, VECTOR_BYTES):
            store(ctx, load(ctx, now + u), after + u)
    restore_denormals(denormals)


def projected_steps(ctx):
    """A kernel: all blocks, each after its x Wx.

    (Measured: within the kernel above it would cost each call for a single step 50 ns.)
    """
    address = arguments_address(ctx)
    plan = read_plan(address)
    for first in range(0, plan.T, plan.block):
        plan.first = first
        _project(ctx, plan)
        call_at(plan.gates_kernel, address)
    plan.first = 0


def sequence(ctx):
    """A kernel: a forward pass, from the caller's state to the caller's."""
    address = arguments_address(ctx)
    plan = read_plan(address)
    denormals = flush_denormals()
    _pack(ctx, plan)
    for s in range(plan.states):
        given, now = plan.state_in + s * plan.state_step, plan.now + s * plan.row
        kept, number, panel = _in_panels(state_at(plan, 0, 0, 0), 0)
        for u in range(0, plan.row, VECTOR_BYTES):
            numbers = load_part(ctx, given + u, plan.H - u // plan.size)
            store(ctx, numbers, now + u)
            if plan.keep:
                store(ctx, numbers, kept + s * number + u // VECTOR_BYTES * panel)
    call_at(plan.steps_kernel, address)
    for s in range(plan.states):
        to, now = plan.state_out + s * plan.state_step, plan.now + s * plan.row
        for u in range(0, plan.row, VECTOR_BYTES):
            store_part(ctx, load(ctx, now + u), to + u, plan.H - u // plan.size)
    restore_denormals(denormals)


# ---- weights, strip by strip


@inlined
def _pack_matrix(ctx, plan, source, source_row, rows, gates, columns, u, size, to):
    """``size`` bytes of each gate's columns from byte u on, zeros where there are none.

    Returns where the next matrix begins."""
    width = lanes_of(ctx) * plan.size
    for g in range(gates):
        block = source + g * columns * plan.size
        for start in range(0, rows, 8):  # few rows at a time: their lines stay in the cache
            for k in range(0, size, width):
                place, left = to + k * (rows | 1), columns - (u + k) // plan.size
                for r in range(start, min(start + 8, rows)):
                    numbers = load_part(ctx, block + u + k + r * source_row, left)
                    store(ctx, numbers, place + r * width)
        to += size * (rows | 1)
    return to


@inlined
def _pack_strip(ctx, narrow, plan, u, size, to):
    """The weights of ``size`` bytes of units, from byte u on."""
    gates, _, _, _, x_gates, early, late = _constants(ctx)
    whole, gate = max(size, VECTOR_BYTES), plan.H * plan.size
    for k in range(0, whole, VECTOR_BYTES):
        left = plan.H - (u + k) // plan.size
        biases = tuple_io.load_bias(ctx, (plan.b + u + k, gate), plan.b_row, left)
        tuple_io.store_gates(ctx, biases, (to + k, whole))
    to += gates // VECTOR_BYTES * whole
    to = _pack_matrix(ctx, plan, plan.Wx, plan.Wx_row, plan.D, x_gates, plan.H, u, whole, to)
    to = _pack_matrix(narrow, plan, plan.Wh, plan.Wh_row, plan.P, early, plan.H, u, size, to)
    _pack_matrix(narrow, plan, plan.Wr, plan.Wr_row, plan.H, late, plan.P, u, size, to)


@inlined
def _pack(ctx, plan):
    line, (many, times, rest) = _line(ctx, plan), _strips_of(ctx, plan)
    k = 0
    for _ in range(many):
        _pack_strip(ctx, ctx, plan, k * VECTOR_BYTES, times * VECTOR_BYTES, plan.pWx + k * line)
        k += times
    for _ in range(rest // 2):
        _pack_strip(ctx, ctx, plan, k * VECTOR_BYTES, VECTOR_BYTES, plan.pWx + k * line)
        k += 1
    if rest % 2:
        _pack_strip(ctx, _half(ctx), plan, k * VECTOR_BYTES, VECTOR_BYTES // 2, plan.pWx + k * line)


def pack(ctx):
    """A kernel: the weights of a layer."""
    plan = read_plan(arguments_address(ctx))
    _pack(ctx, plan)
