"""A cell's step between products that its caller makes, on rows that lie as the caller has them.

A row of gx holds the blocks of gates that x Wx feeds, H numbers each, a row of gh those that h Wh
feeds, in the caller's order (``gate_rows.py``). Numbers are dense; nothing is in panels.
"""

from typing import NamedTuple

from llvmlite import ir
from numba.core import types

from .gate_rows import Call
from .kernel_abi import (
    arguments,
    arguments_address,
    array_at,
    as_object,
    call_at,
    emits,
    load_i64,
    record,
)
from .plan_kernels import integer
from .simd import (
    VECTOR_BYTES,
    emit_load_part,
    emit_store_part,
    lanes_of,
    of_ctx,
    splat,
)
from .tuple_io import backward, forward, zeros_for_none

_I64 = ir.IntType(64)
_read_call = record(Call)
_ARGUMENTS = 8 * (len(Call._fields) - 1)  # where a kernel's arguments begin: with ``blocks``


@emits(types.void)
def _store_i64(builder, address, index, value):
    start = builder.inttoptr(address, _I64.as_pointer())
    builder.store(value, builder.gep(start, [index]))


def enter(ctx, objects, count):
    """Called by Python with integers: hands them to the kernel of the call."""
    address = array_at(arguments_address(ctx)).data
    me = _read_call(address)
    for k in range(count):
        _store_i64(address + _ARGUMENTS + 8, k, integer(load_i64(objects, k)))
    call_at(me.kernel, address + _ARGUMENTS)
    return as_object(me, True)


# ---- rows of the caller


def _block(builder, blocks, index):
    """A number of the table ``blocks``."""
    start = builder.inttoptr(blocks, _I64.as_pointer())
    return builder.load(builder.gep(start, [_I64(index)]))


def _sides(cell, g):
    """Whether a gate has a block in gx, and one in gh."""
    return g in cell.input_gates, g in cell.recurrent_gates


def _sign(builder, vector, blocks, g):
    """Of a gate in the caller's rows: 1 or -1."""
    number = builder.sitofp(_block(builder, blocks, 3 * g + 2), vector.llvm.element)
    return splat(builder, number, vector.llvm)


@emits(lambda ctx, *rest: types.UniTuple(of_ctx(ctx), len(ctx.cell.gates)))
def _load_gates(builder, ctx, blocks, gx, gh, block, left):
    vector, gates = of_ctx(ctx), []
    for g in range(len(ctx.cell.gates)):
        terms = []
        for side, (there, start) in enumerate(zip(_sides(ctx.cell, g), (gx, gh), strict=True)):
            if there:
                skip = builder.mul(_block(builder, blocks, 3 * g + side), block)
                terms.append(emit_load_part(builder, vector, builder.add(start, skip), left))
        total = terms[0] if len(terms) == 1 else builder.fadd(*terms)
        gates.append(builder.fmul(total, _sign(builder, vector, blocks, g)))
    return gates


@emits(types.void)
def _store_gates(builder, ctx, gates, blocks, gx, gh, block, left):
    """Gradients of gates; gh is not written where all gates have both sides: it is gx."""
    vector, cell = of_ctx(ctx), ctx.cell
    apart = bool(cell.input_only or cell.recurrent_only)
    for g in range(len(cell.gates)):
        value = builder.extract_value(gates, g)
        value = builder.fmul(value, _sign(builder, vector, blocks, g))
        for side, (there, start) in enumerate(zip(_sides(cell, g), (gx, gh), strict=True)):
            if there and (side == 0 or apart):
                skip = builder.mul(_block(builder, blocks, 3 * g + side), block)
                emit_store_part(builder, vector, value, builder.add(start, skip), left)


@emits(lambda ctx, *rest: types.UniTuple(of_ctx(ctx), len(ctx.cell.states)))
def _load_states(builder, ctx, addresses, skip, left):
    """A vector of every state; zeros where its address is 0."""
    loaded = []
    for k in range(len(ctx.cell.states)):
        start = _block(builder, addresses, k)
        lanes = builder.select(builder.icmp_signed("==", start, _I64(0)), _I64(0), left)
        loaded.append(emit_load_part(builder, of_ctx(ctx), builder.add(start, skip), lanes))
    return loaded


@emits(types.void)
def _store_states(builder, ctx, states, addresses, skip, left):
    for k in range(len(ctx.cell.states)):
        place = builder.add(_block(builder, addresses, k), skip)
        value = builder.extract_value(states, k)
        emit_store_part(builder, of_ctx(ctx), value, place, left)


@emits(types.void)
def _store_saved(builder, ctx, values, start, block, left):
    """Store what the cell saves and no state holds: a block for each."""
    stored = 0
    for k, where in enumerate(ctx.layout.saved_from):
        if where is None:
            place = builder.add(start, builder.mul(block, _I64(stored)))
            value = builder.extract_value(values, k)
            emit_store_part(builder, of_ctx(ctx), value, place, left)
            stored += 1


@emits(lambda ctx, *rest: types.UniTuple(of_ctx(ctx), len(ctx.layout.saved_from)))
def _load_saved(builder, ctx, start, block, after, skip, left):
    stored, members = 0, []
    for where in ctx.layout.saved_from:
        if where is None:
            place = builder.add(start, builder.mul(block, _I64(stored)))
            stored += 1
        else:
            place = builder.add(_block(builder, after, where[1]), skip)
        members.append(emit_load_part(builder, of_ctx(ctx), place, left))
    return members


@emits(types.UniTuple(types.int64, 3))
def _counts(builder, ctx):
    """Blocks in a row of gx, of gh, and states."""
    cell = ctx.cell
    return [_I64(len(c)) for c in (cell.input_gates, cell.recurrent_gates, cell.states)]


# ---- kernels


class Forward(NamedTuple):
    """Behind them the addresses of the states before the step, and of those after it."""

    blocks: int
    N: int
    H: int
    gx: int
    gh: int
    saved: int
    saved_row: int


class Backward(NamedTuple):
    """Behind them addresses, for each state: of its gradient, of the state before the step and
    after it, and of the gradient before it."""

    blocks: int
    N: int
    H: int
    dgx: int
    dgh: int
    saved: int
    saved_row: int


_BEHIND = 8 * len(Forward._fields)


def forward_rows(ctx):
    """A kernel: from the products of a step to the state after it."""
    p, states = arguments(ctx, Forward), arguments_address(ctx) + _BEHIND
    x_blocks, h_blocks, count = _counts(ctx)
    block, W = p.H * VECTOR_BYTES // lanes_of(ctx), lanes_of(ctx)
    for n in range(p.N):
        gx, gh = p.gx + n * x_blocks * block, p.gh + n * h_blocks * block
        kept = p.saved + n * p.saved_row * block
        for k in range((p.H + W - 1) // W):
            left, u = p.H - k * W, k * VECTOR_BYTES
            skip = n * block + u
            gates = _load_gates(ctx, p.blocks, gx + u, gh + u, block, left)
            new, saved = forward(ctx, gates, _load_states(ctx, states, skip, left))
            _store_saved(ctx, saved, kept + u, block, left)
            _store_states(ctx, zeros_for_none(ctx, new), states + 8 * count, skip, left)


def backward_rows(ctx):
    """A kernel: from the gradient of the state after a step to those of its products and of the
    state before it, but for what comes through h Wh."""
    p, states = arguments(ctx, Backward), arguments_address(ctx) + _BEHIND
    x_blocks, h_blocks, count = _counts(ctx)
    block, W, before = p.H * VECTOR_BYTES // lanes_of(ctx), lanes_of(ctx), states + 8 * count
    for n in range(p.N):
        dgx, dgh = p.dgx + n * x_blocks * block, p.dgh + n * h_blocks * block
        kept = p.saved + n * p.saved_row * block
        for k in range((p.H + W - 1) // W):
            left, u = p.H - k * W, k * VECTOR_BYTES
            skip = n * block + u
            after = before + 8 * count
            saved = _load_saved(ctx, kept + u, block, after, skip, left)
            dnew = _load_states(ctx, states, skip, left)
            dgates, dold = backward(ctx, dnew, saved, _load_states(ctx, before, skip, left))
            _store_gates(ctx, zeros_for_none(ctx, dgates), p.blocks, dgx + u, dgh + u, block, left)
            _store_states(ctx, zeros_for_none(ctx, dold), after + 8 * count, skip, left)
