"""Compiled kernels, and how they call one another.

Numba compiles a function anew into everything that calls it. So that products are compiled once
for all cells, and a cell in a second, the engine is made of kernels that call one another by
address. A kernel takes one argument, its context ``ctx``: the address of its arguments, 64-bit
integers side by side, which are sizes, strides in bytes and addresses of numbers.

    class ColumnSums(NamedTuple): ...                      the arguments' names

    def column_sums(ctx):                                  a kernel
        p = arguments(ctx, ColumnSums)
    address = compiled("panels.column_sums", dtype)          in Python (``kernel_cache.py``)
    call(address, ColumnSums(panels=..., ...))             in another kernel

Many words that stay in memory are a record: ``plan = record(Plan)(address)``. The kernels of a step
take the plan, and which rows and units of which step (``schedule.StepArguments``).

The Numba *type* of ctx says for which dtype, cell and features the kernel is compiled.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_getattr_generic, lower_setattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_jitable, register_model

from ..cells import Cell
from ..layout import Layout, layout
from .kernel_cache import NO_FEATURES, Rule, Variant
from .target import VECTOR_BYTES

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)

jitted = register_jitable(error_model="numpy")  # no test for division by zero
inlined = register_jitable(error_model="numpy", forceinline=True)


class KernelContext(types.Type):
    """The address of a kernel's arguments; the dtype, cell and features it is compiled for, or the
    rule; and the bytes of its vectors.
    """

    def __init__(
        self,
        dtype: Any,
        cell_name: str | None,
        source: str,
        features: frozenset[str] = NO_FEATURES,
        vector_bytes: int = VECTOR_BYTES,
    ):
        self.dtype = dtype
        self.cell_name = cell_name
        self.source = source
        self.features = features
        self.vector_bytes = vector_bytes
        name = f"ctx({dtype}, {cell_name}, {source}, {sorted(features)}, {vector_bytes})"
        super().__init__(name=name)

    @classmethod
    def of(cls, dtype: Any, variant: Variant) -> "KernelContext":
        """That of a variant, whose dtype is Numba's."""
        source = variant.source
        if variant.cell is not None:
            _CELLS[source] = variant.cell
        if variant.rule is not None:
            _RULES[source] = variant.rule
        return cls(dtype, variant.name, source, variant.features)

    def with_vectors(self, size: int) -> "KernelContext":
        """The same for vectors of so many bytes."""
        return KernelContext(self.dtype, self.cell_name, self.source, self.features, size)

    @property
    def cell(self) -> Cell:
        return _CELLS[self.source]

    @property
    def rule(self) -> Rule:
        return _RULES[self.source]

    @property
    def layout(self) -> Layout:
        return layout(self.cell, self.features)


_CELLS: dict[str, Cell] = {}  # by KernelContext.source
_RULES: dict[str, Rule] = {}


@register_model(KernelContext)
class _AddressModel(models.PrimitiveModel):
    def __init__(self, manager, ctx):
        super().__init__(manager, ctx, _I64.as_pointer())


# ---- in compiled code


def emits(result: Any) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic, from a function of an LLVM builder and values that emits its code.

    result  the Numba type of what it returns, or a function that finds it from the arguments' types
            (None: it does not take these)

    The argument ``ctx`` comes as its Numba type. A tuple is returned as a list.
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        names = list(inspect.signature(emit).parameters)[1:]

        def define(typing, *given):
            given = tuple(types.int64 if isinstance(g, types.Integer) else g for g in given)
            returns = result if isinstance(result, types.Type) else result(*given)
            if returns is None:
                return None

            def codegen(context, builder, signature, args):
                named = zip(names, given, args, strict=True)
                values = (kind if name == "ctx" else value for name, kind, value in named)
                value = emit(builder, *values)
                if isinstance(value, list):
                    return context.make_tuple(builder, returns, value)
                return context.get_dummy_value() if value is None else value

            return returns(*given), codegen

        # Numba reads the arguments' names there
        define.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]
        define.__name__, define.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(define)

    return decorate


@intrinsic
def arguments(typing, ctx, fields):
    """The arguments of a kernel as a NamedTuple, whose class is ``fields``."""
    made = fields.instance_class
    kind = types.NamedUniTuple(types.int64, len(made._fields), made)

    def codegen(context, builder, signature, args):
        words = (builder.gep(args[0], [_I32(k)]) for k in range(kind.count))
        return context.make_tuple(builder, kind, list(map(builder.load, words)))

    return kind(ctx, fields), codegen


class RecordType(types.Type):
    """Integers in memory that have names, to be read and written."""

    def __init__(self, name: str, fields: tuple[str, ...]):
        self.fields = fields
        super().__init__(name=f"record({name}: {', '.join(fields)})")


register_model(RecordType)(_AddressModel)


def record(fields: Any) -> Any:
    """A function that takes the address of integers for a record with a NamedTuple's fields."""
    kind = RecordType(fields.__name__, fields._fields)

    @emits(kind)
    def record_at(builder, address):
        return builder.inttoptr(address, _I64.as_pointer())

    return record_at


@infer_getattr
class _RecordFields(AttributeTemplate):
    key = RecordType

    def generic_resolve(self, record, name):
        return types.int64 if name in record.fields else None


@lower_getattr_generic(RecordType)
def _load_field(context, builder, record, value, name):
    return builder.load(builder.gep(value, [_I32(record.fields.index(name))]))


@lower_setattr_generic(RecordType)
def _store_field(context, builder, signature, args, name):
    place = builder.gep(args[0], [_I32(signature.args[0].fields.index(name))])
    builder.store(args[1], place)


def _call(builder, address, ctx):
    kind = ir.FunctionType(ir.VoidType(), [_I64.as_pointer()])
    builder.call(builder.inttoptr(address, kind.as_pointer()), [ctx])


@intrinsic
def call(typing, address, values):
    """Call the kernel at an address with a tuple of integers, or of records, for arguments."""

    def codegen(context, builder, signature, args):
        block = cgutils.alloca_once(builder, ir.ArrayType(_I64, len(values)))
        for k, kind in enumerate(values):
            value = builder.extract_value(args[1], k)
            if isinstance(kind, RecordType):
                value = builder.ptrtoint(value, _I64)
            else:
                value = context.cast(builder, value, kind, types.int64)
            builder.store(value, builder.gep(block, [_I32(0), _I32(k)]))
        _call(builder, args[0], builder.bitcast(block, _I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, values), codegen


@emits(types.void)
def call_at(builder, kernel, address):
    """Call a kernel with arguments that lie in memory, by their addresses."""
    _call(builder, kernel, builder.inttoptr(address, _I64.as_pointer()))


@intrinsic
def arguments_address(typing, ctx):
    """The address of a kernel's arguments."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], _I64)

    return types.int64(ctx), codegen


@emits(types.int64)
def load_i64(builder, address, index):
    """The 64-bit integer number ``index`` from an address."""
    start = builder.inttoptr(address, _I64.as_pointer())
    return builder.load(builder.gep(start, [index]))


# ---- objects of Python's, in functions that Python calls


class ArrayObject(NamedTuple):
    """A NumPy array, as its C API lays it out (PyArrayObject), from its type on."""

    type: int
    data: int
    ndim: int  # in the lower half
    shape: int  # the addresses of integers
    strides: int
    base: int
    dtype: int
    flags: int  # in the lower half


class _Counted(NamedTuple):
    """An object before Python 3.12."""

    references: int


_read_array, _read_counted = record(ArrayObject), record(_Counted)
_TYPE = object.__basicsize__ - 8  # its type comes last there
_COUNTED = sys.version_info < (3, 12)  # since then True and False are immortal


@jitted
def array_at(address):
    """An object as an array, which nobody has checked that it is."""
    return _read_array(address + _TYPE)


@jitted
def is_array(me, x, ndim):
    """Whether an object is an array of these axes, and of the very dtype."""
    return x.type == me.array_type and x.dtype == me.dtype and x.ndim & 0xFFFFFFFF == ndim


@jitted
def as_object(me, value):
    """The object True or False, for Python."""
    found = me.true if value else me.false
    if _COUNTED:
        _read_counted(found + _TYPE - 8).references += 1
    return found


@emits(types.int64)
def release_gil(builder):
    """Let other threads of Python run; returns the state of this one."""
    kind = ir.FunctionType(ir.IntType(64), [])
    name = "numba_rnn_release_gil"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])


@emits(types.void)
def take_gil(builder, state):
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
    name = "numba_rnn_take_gil"
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [state])
