"""A cell as compiled code sees it: its functions, and its numbers.

A cell's functions take and return tuples, one member for each gate, state or saved number. Here
such a tuple is a tuple of vectors, W units at a time; its members lie in memory a stride apart.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload, register_jitable

from ..fingerprint import with_callees
from . import vector_functions  # noqa: F401 (it registers them)
from .kernel_abi import emits
from .simd import VectorType, emit_load, emit_load_part, emit_prefetch, emit_store, of_ctx

_I64 = ir.IntType(64)

# ---- the cell's functions


@cache
def compilable(function: Any) -> Any:
    """The function, known to Numba together with the functions that it calls."""
    for callee in with_callees(function):
        register_jitable(callee)
    return function


def _cell_function(name):
    """A function of the cell that a kernel is compiled for; it is called with the ctx first."""

    def of_cell(ctx, *args):
        raise NotImplementedError("this function exists only as compiled code")

    @overload(of_cell, strict=False)
    def _(ctx, *args):
        function = compilable(getattr(ctx.cell, name))
        return lambda ctx, *args: function(*args)

    return of_cell


forward = _cell_function("forward")
backward = _cell_function("backward")
operand = _cell_function("operand")
operand_backward = _cell_function("operand_backward")


# ---- the cell's numbers: tuples in panels, a member at a place, the next a stride further


def member_address(builder, place, index):
    """The address of a tuple's member number ``index``; a place is (address, stride)."""
    start, stride = (builder.extract_value(place, k) for k in range(2))
    return builder.add(start, builder.mul(stride, stride.type(index)))


def _sum(builder, terms):
    """The sum of vectors, None standing for zero."""
    terms = [term for term in terms if term is not None]
    total = terms[0]
    for term in terms[1:]:
        total = builder.fadd(total, term)
    return total


def _tuple_of(count):
    """The type of a tuple of vectors; ``count`` finds how many from a kernel's layout."""
    return lambda ctx, *rest: types.UniTuple(of_ctx(ctx), count(ctx.layout))


@emits(_tuple_of(lambda at: len(at.cell.gates)))
def load_bias(builder, ctx, place, b_row, left):
    """The bias of every gate, of b or of its two rows, ``b_row`` bytes apart.

    A cell's weights lie behind the biases, and are loaded likewise.
    """
    cell, vector, count = ctx.cell, of_ctx(ctx), len(ctx.cell.gates)
    input_side = cell.input_gates + tuple(range(count - len(cell.weights), count))
    members = []
    for g in range(count):
        blocks = [(_I64(0), input_side)]
        if cell.biases == 2:
            blocks.append((b_row, cell.recurrent_gates))
        terms = [ir.Constant(vector.llvm, [0.0] * vector.lanes)]
        for row, gates in blocks:
            if g in gates:
                address = builder.add(member_address(builder, place, gates.index(g)), row)
                terms.append(emit_load_part(builder, vector, address, left))
        members.append(_sum(builder, terms[1:] or terms))
    return members


def _same_gates(ctx, gates, *rest):
    return gates


def _add_to_gates(part):
    """An intrinsic that adds a product's columns to the gates that it feeds."""

    @emits(_same_gates)
    def add(builder, ctx, gates, side):
        order = ctx.layout.order
        new = [builder.extract_value(gates, g) for g in range(len(order))]
        for k, place in enumerate(part(ctx.layout)):
            address = member_address(builder, side, k)
            numbers = emit_load(builder, of_ctx(ctx), address)
            new[order[place]] = builder.fadd(new[order[place]], numbers)
        return new

    return add


add_x_proj = _add_to_gates(lambda at: range(at.x_gates))
add_h_proj = _add_to_gates(lambda at: range(at.first_early, at.first_early + at.early))
add_op_proj = _add_to_gates(lambda at: at.after_operand)


def _replacing(part):
    """An intrinsic that puts normalised gates in their places (``layer_norm.py``)."""

    @emits(_same_gates)
    def replace(builder, ctx, gates, normalised):
        at = ctx.layout
        for k, place in enumerate(at.normalised):
            if place in part(at):
                address = member_address(builder, normalised, k)
                number = emit_load(builder, of_ctx(ctx), address)
                gates = builder.insert_value(gates, number, at.order[place])
        return gates

    return replace


insert_normalised_early = _replacing(lambda at: at.normalised_early)
insert_normalised = _replacing(lambda at: at.normalised)


def _loading(choose):
    """An intrinsic that loads a tuple of vectors; ``choose`` says where each of them is."""

    @emits(_tuple_of(lambda at: len(choose(at))))
    def load_members(builder, ctx, place):
        addresses = (member_address(builder, place, k) for k in choose(ctx.layout))
        return [emit_load(builder, of_ctx(ctx), address) for address in addresses]

    return load_members


def _state_places(at):
    return range(len(at.cell.states))


def _gate_places(at):
    return [at.order.index(g) for g in range(len(at.order))]


def _extra_places(at):
    return range(at.n_stored - at.extra, at.n_stored)


load_states, load_gradients = _loading(_state_places), _loading(_gate_places)
load_extra = _loading(_extra_places)


@emits(_tuple_of(lambda at: len(at.saved_from)))
def load_saved(builder, ctx, saved, after, weights, left, normalised):
    """The numbers that the cell saved: stored, or found in the state after the step, in its
    weights, or among its normalised gates."""
    stored, members, vector = 0, [], of_ctx(ctx)
    places = {"state": after, "normalised": normalised, "weight": weights}
    for where in ctx.layout.saved_from:
        if where is None:
            address = member_address(builder, saved, stored)
            stored += 1
        else:
            address = member_address(builder, places[where[0]], where[1])
        if where is not None and where[0] == "weight":
            members.append(emit_load_part(builder, vector, address, left))
        else:
            members.append(emit_load(builder, vector, address))
    return members


@emits(types.void)
def prefetch_saved(builder, ctx, saved, state, normalised, back, dhs):
    """Ask for what ``load_saved`` and ``load_states`` will read, ``back`` bytes before these
    places, and for dhs."""
    emit_prefetch(builder, dhs)
    for place, count in (
        (saved, ctx.layout.n_stored),
        (normalised, len(ctx.layout.normalised)),
        (state, len(ctx.cell.states)),
    ):
        for k in range(count):
            emit_prefetch(builder, builder.sub(member_address(builder, place, k), back))


def emit_members(builder, vector, kinds, members):
    """A tuple's vectors, None being zero; what is no vector is refused."""
    for kind in kinds:
        if kind not in (vector, types.none):
            raise TypingError(f"a cell's function returned {kind}, not a number of its gates")
    zero = ir.Constant(vector.llvm, [0.0] * vector.lanes)
    return [
        builder.extract_value(members, k) if kind == vector else zero
        for k, kind in enumerate(kinds)
    ]


@emits(_tuple_of(lambda at: len(at.cell.states)))
def zeros_state(builder, ctx):
    """A state of zeros."""
    return [ir.Constant(of_ctx(ctx).llvm, None)] * len(ctx.cell.states)


@intrinsic
def zeros_for_none(typing, ctx, values):
    """A tuple as the cell returned it, with zeros for None."""
    kind = types.UniTuple(of_ctx(ctx), len(values))

    def codegen(context, builder, signature, args):
        members = emit_members(builder, kind.dtype, values, args[1])
        return context.make_tuple(builder, kind, members)

    return kind(ctx, values), codegen


def _storing(choose):
    """An intrinsic that stores members of a tuple; ``choose`` says of each where, or None.

    A place of three is for vectors of any width, cut into panels: the third number is the bytes
    from one unit-panel to the next.
    """

    @intrinsic
    def store_members(typing, ctx, values, place):
        vector = of_ctx(ctx)

        def codegen(context, builder, signature, args):
            members = emit_members(builder, vector, values, args[1])
            for member, number in zip(members, choose(ctx.layout), strict=True):
                if number is None:
                    continue
                address = member_address(builder, args[2], number)
                if len(place) == 2:
                    emit_store(builder, vector, member, address)
                else:
                    panel = builder.extract_value(args[2], 2)
                    _emit_store_in_panels(builder, vector, member, address, panel)
            return context.get_dummy_value()

        return types.void(ctx, values, place), codegen

    return store_members


def _emit_store_in_panels(builder, vector, value, address, panel):
    """Store a vector to unit-panels; behind half a panel are zeros (LLVM level)."""
    whole, zeros = VectorType(vector.dtype), ir.Constant(value.type, [0.0] * vector.lanes)
    for first in range(0, vector.lanes, whole.lanes):
        places = range(first, first + whole.lanes)
        order = ir.Constant(ir.VectorType(ir.IntType(32), whole.lanes), list(places))
        part = builder.shuffle_vector(value, zeros, order)
        emit_store(builder, whole, part, address)
        address = builder.add(address, panel)


def _stored_places(at):
    count = iter(range(at.n_stored))
    return [None if where is not None else next(count) for where in at.saved_from]


store_states, store_saved = _storing(_state_places), _storing(_stored_places)
store_gradients, store_extra = _storing(_gate_places), _storing(_extra_places)
store_gates, store_operand = _storing(lambda at: range(len(at.order))), _storing(lambda at: (0,))
store_gradients_but_late = _storing(
    lambda at: [None if k in at.after_operand else k for k in _gate_places(at)]
)


def _normalised_places(part):
    def choose(at):
        return [at.normalised.index(k) if k in part(at) else None for k in _gate_places(at)]

    return choose


store_early_numbers = _storing(_normalised_places(lambda at: at.normalised_early))
store_late_numbers = _storing(_normalised_places(lambda at: at.normalised_late))
