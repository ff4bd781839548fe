"""A cell as Numba sees it.

Each cell becomes a Numba *type*, so that a function taking a cell is compiled once per cell, with
the cell's own functions in it. The type carries a fingerprint of the cell's source and of this
engine's; compiled code cached on disk is therefore found by every process that has the same
source and by no other.

Numbers of a cell lie in C-contiguous arrays, units last; a tuple of them (its gates, its states)
is read with a stride from one member to the next. Everywhere below: H units, u the first unit of
a vector, ``lanes`` how many of the vector's lanes are units that exist.
"""

import hashlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.extending import (
    NativeValue,
    intrinsic,
    models,
    overload,
    register_jitable,
    register_model,
    typeof_impl,
    unbox,
)

from .. import functions
from ..cells import Cell
from .simd import VectorType, emit_load, emit_store, pointer

_CELLS: dict[tuple[str, str], Cell] = {}  # by (name, fingerprint)


class CellType(types.Type):
    """The type of one cell."""

    def __init__(self, cell_name: str, fingerprint: str):
        self.cell_name = cell_name
        self.fingerprint = fingerprint
        super().__init__(name=f"cell({cell_name}, {fingerprint})")

    @property
    def cell(self) -> Cell:
        return _CELLS[self.cell_name, self.fingerprint]


@cache
def _engine_source() -> bytes:
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(functions.__file__)]
    return b"".join(file.read_bytes() for file in files)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions and comprehensions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _outer_values(function: Any) -> dict[str, Any]:
    """What a function takes from outside: globals, and names of the functions around it."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    found = {name: value for name, value in function.__globals__.items() if name in names}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        found[name] = cell.cell_contents
    return {name: getattr(value, "py_func", value) for name, value in found.items()}


def _with_callees(function: Any) -> list[Any]:
    """A function and the plain functions that it calls, but for those of functions.py."""
    found, waiting = [], [function]
    while waiting:
        function = waiting.pop()
        if function in found or function.__module__ == functions.__name__:
            continue
        found.append(function)
        waiting += [v for v in _outer_values(function).values() if inspect.isfunction(v)]
    return found


def _describe(function: Any) -> Iterator[str]:
    """Everything that decides what a function computes: its code and the values it refers to."""
    for callee in _with_callees(function):
        yield f"{callee.__qualname__} {callee.__defaults__} {callee.__kwdefaults__}"
        names = set()
        for code in _codes(callee.__code__):
            constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
            yield f"{code.co_code.hex()} {constants} {code.co_names} {code.co_varnames}"
            names |= set(code.co_names)
        for name, value in sorted(_outer_values(callee).items()):
            if inspect.isfunction(value):
                yield f"{name} is {value.__module__}.{value.__qualname__}"
            elif inspect.ismodule(value):
                members = {k: v for k, v in vars(value).items() if k in names and not callable(v)}
                yield f"{name} is {value.__name__} with {sorted(members.items())}"
            else:
                yield f"{name} is {value!r}"


@cache
def cell_type(cell: Cell) -> CellType:
    """The Numba type of a cell."""
    digest = hashlib.sha256(_engine_source())
    structure = cell.gates, cell.states, cell.saved, cell.input_gates, cell.recurrent_gates
    digest.update(repr((structure, cell.second)).encode())
    for function in (cell.forward, cell.backward, cell.operand, cell.operand_backward):
        if function is not None:
            digest.update("\n".join(_describe(function)).encode())
    kind = CellType(cell.name, digest.hexdigest()[:16])
    _CELLS[kind.cell_name, kind.fingerprint] = cell
    return kind


@cache
def _compilable(function: Any) -> Any:
    """The function, known to Numba together with the functions that it calls."""
    for callee in _with_callees(function):
        register_jitable(callee)
    return function


@typeof_impl.register(Cell)
def _typeof_cell(cell, context):
    return cell_type(cell)


register_model(CellType)(models.OpaqueModel)


@unbox(CellType)
def _unbox_cell(kind, value, context):
    return NativeValue(context.context.get_dummy_value())


# ---- the cell's functions


def forward(cell, gates, state):
    """Cell.forward, compiled."""


def backward(cell, dstate, saved, state):
    """Cell.backward, compiled."""


def operand(cell, gates, state):
    """Cell.operand, compiled."""


def operand_backward(cell, doperand, dgates, dstate, saved, state):
    """Cell.operand_backward, compiled."""


@overload(forward, strict=False)
def _(cell, gates, state):
    function = _compilable(cell.cell.forward)
    return lambda cell, gates, state: function(gates, state)


@overload(backward, strict=False)
def _(cell, dstate, saved, state):
    function = _compilable(cell.cell.backward)
    return lambda cell, dstate, saved, state: function(dstate, saved, state)


@overload(operand, strict=False)
def _(cell, gates, state):
    function = _compilable(cell.cell.operand)
    return lambda cell, gates, state: function(gates, state)


@overload(operand_backward, strict=False)
def _(cell, doperand, dgates, dstate, saved, state):
    function = _compilable(cell.cell.operand_backward)
    return lambda cell, doperand, dgates, dstate, saved, state: function(
        doperand, dgates, dstate, saved, state
    )


# ---- the cell's numbers


def _emit_tuple(context, builder, signature, array_type, array, index, stride, lanes):
    """Load the members of a uniform tuple of vectors, ``stride`` elements apart."""
    vector, members = signature.return_type.dtype, []
    for _ in range(signature.return_type.count):
        address = pointer(context, builder, array_type, array, index)
        members.append(emit_load(builder, vector, address, lanes))
        index = builder.add(index, stride)
    return context.make_tuple(builder, signature.return_type, members)


def _tuple_loader(count):
    """An intrinsic that loads as many vectors as ``count`` says of the cell."""

    @intrinsic
    def load_tuple(typing, cell, array, index, stride, lanes):
        def codegen(context, builder, signature, args):
            return _emit_tuple(context, builder, signature, array, *args[1:])

        kind = types.UniTuple(VectorType(array.dtype), count(cell.cell))
        return kind(cell, array, types.intp, types.intp, types.intp), codegen

    return load_tuple


load_states = _tuple_loader(lambda cell: len(cell.states))
load_saved = _tuple_loader(lambda cell: len(cell.saved))


def _expect_vectors(members: Any, vector: VectorType) -> None:
    """Refuse, while compiling, what can be neither stored nor taken for zero."""
    for member in members:
        if member not in (vector, types.none):
            raise TypingError(f"a cell's function returned {member}, not a number of its gates")


@intrinsic
def store_tuple(typing, values, array, index, stride, lanes):
    """Store the members of a tuple of vectors, ``stride`` elements apart; None is stored as 0."""
    vector = VectorType(array.dtype)
    _expect_vectors(values, vector)

    def codegen(context, builder, signature, args):
        members, array_, index, stride, lanes = args
        for k, kind in enumerate(values):
            value = ir.Constant(vector.llvm, [0.0] * vector.lanes)
            if kind == vector:
                value = builder.extract_value(members, k)
            address = pointer(context, builder, array, array_, index)
            emit_store(builder, vector, value, address, lanes)
            index = builder.add(index, stride)
        return context.get_dummy_value()

    return types.void(values, array, types.intp, types.intp, types.intp), codegen


def one_affine(cell: Cell) -> bool:
    """Whether x Wx and h Wh have the same columns, so that one array of gradients serves both."""
    return cell.input_gates == cell.recurrent_gates


def _places(cell: Cell) -> list[tuple[int | None, int | None]]:
    """For each gate its block of columns in x_side and in h_side, or None."""
    x, h = cell.input_gates, cell.recurrent_gates
    return [
        (x.index(g) if g in x else None, h.index(g) if g in h else None)
        for g in range(len(cell.gates))
    ]


def _emit_block(context, builder, array_type, array, index, block, H):
    """Address of a gate's block of columns."""
    return pointer(
        context, builder, array_type, array, builder.add(index, builder.mul(H, H.type(block)))
    )


@intrinsic
def load_gates(typing, cell, x_side, x_index, h_side, h_index, bias, u, H, lanes):
    """The pre-activations of one vector of units: x Wx + h Wh + b, of each the part it has."""
    vector = VectorType(x_side.dtype)
    kind = types.UniTuple(vector, len(cell.cell.gates))

    def codegen(context, builder, signature, args):
        _, x_side_, x_index, h_side_, h_index, bias_, u, H, lanes = args
        gates = []
        for g, (x_block, h_block) in enumerate(_places(cell.cell)):
            parts = [(bias, bias_, u, g)]
            if x_block is not None:
                parts.append((x_side, x_side_, x_index, x_block))
            if h_block is not None:
                parts.append((h_side, h_side_, h_index, h_block))
            terms = [
                emit_load(builder, vector, _emit_block(context, builder, *part, H), lanes)
                for part in parts
            ]
            total = terms[0]
            for term in terms[1:]:
                total = builder.fadd(total, term)
            gates.append(total)
        return context.make_tuple(builder, kind, gates)

    i = types.intp
    return kind(cell, x_side, i, h_side, i, bias, i, i, i), codegen


@intrinsic
def store_gradients(typing, cell, dgates, dx_side, x_index, dh_side, h_index, H, lanes):
    """Write each gate's gradient to its columns; with one affine dh_side is dx_side."""
    vector = VectorType(dx_side.dtype)
    _expect_vectors(dgates, vector)

    def codegen(context, builder, signature, args):
        _, dgates_, dx_side_, x_index, dh_side_, h_index, H, lanes = args
        for g, (x_block, h_block) in enumerate(_places(cell.cell)):
            value = ir.Constant(vector.llvm, [0.0] * vector.lanes)
            if dgates[g] == vector:
                value = builder.extract_value(dgates_, g)
            places = []
            if x_block is not None:
                places.append((dx_side, dx_side_, x_index, x_block))
            if h_block is not None and not one_affine(cell.cell):
                places.append((dh_side, dh_side_, h_index, h_block))
            for place in places:
                address = _emit_block(context, builder, *place, H)
                emit_store(builder, vector, value, address, lanes)
        return context.get_dummy_value()

    i = types.intp
    return types.void(cell, dgates, dx_side, i, dh_side, i, i, i), codegen


@intrinsic
def load_gradients(typing, cell, dx_side, x_index, dh_side, h_index, H, lanes):
    """The gates' gradients as ``store_gradients`` wrote them."""
    vector = VectorType(dx_side.dtype)
    kind = types.UniTuple(vector, len(cell.cell.gates))

    def codegen(context, builder, signature, args):
        _, dx_side_, x_index, dh_side_, h_index, H, lanes = args
        gates = []
        for x_block, h_block in _places(cell.cell):
            place = (dx_side, dx_side_, x_index, x_block)
            if x_block is None:
                place = (dh_side, dh_side_, h_index, h_block)
            address = _emit_block(context, builder, *place, H)
            gates.append(emit_load(builder, vector, address, lanes))
        return context.make_tuple(builder, kind, gates)

    i = types.intp
    return kind(cell, dx_side, i, dh_side, i, i, i), codegen
