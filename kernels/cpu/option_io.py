"""The options of a step in compiled code: their values, loaded, and ``kernels/step.py``, compiled.

Each gate kernel is compiled for a set of features (``option_memory.compiled_features``). Arguments:
step t, row n of the batch, unit-panel u, how many units are left from there.

Random masks are hashes, computed for 16 or 8 units at a time: ``kernels/counter_rng.py`` defines
them.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload, register_jitable

from .. import step
from ..emitted_draws import emit_drawn
from ..step_options import VALUE_KINDS, StepValues
from .kernel_abi import emits, inlined, load_i64
from .plan import OptionRecord
from .schedule import first_row, place_of, step_panels
from .simd import (
    VECTOR_BYTES,
    MaskType,
    all_lanes,
    emit_load_part,
    emit_store_part,
    load_part,
    of_ctx,
    splat,
    store,
)
from .tuple_io import load_states, member_address, store_states

_I8, _I64 = ir.IntType(8), ir.IntType(64)


def _step_function(function):
    """A function of ``kernels/step.py``, compiled for the features of a kernel; calls pass the ctx
    as an additional first argument.
    """

    def of_step(ctx, *args):
        raise NotImplementedError("this function exists only as compiled code")

    @overload(of_step, strict=False)
    def _(ctx, *args):
        sizes = tuple(len(a) for a in args if not isinstance(a, types.NamedTuple))
        made = step.specialised(function, ctx.features, len(ctx.cell.states), sizes)
        made = register_jitable(made)
        return lambda ctx, *args: made(*args)

    return of_step


end_step = _step_function(step.end_step)
begin_backward = _step_function(step.begin_backward)
end_backward = _step_function(step.end_backward)
select_live = _step_function(step.select_live)
add_states = _step_function(step.add_states)


def _only_with(feature):
    """Compile a function in kernels that have a feature; in others it does nothing and returns its
    last argument, unchanged.
    """

    def decorate(function):
        def of_feature(ctx, *args):
            raise NotImplementedError("this function exists only as compiled code")

        @overload(of_feature, strict=False)
        def _(ctx, *args):
            if feature not in ctx.features:
                return lambda ctx, *args: args[-1]
            compiled = inlined(function)
            return lambda ctx, *args: compiled(ctx, *args)

        return of_feature

    return decorate


@inlined
def flags_of(plan, t):
    """The place of the flags of a step's first row, and how far it is from one row to the next."""
    return (first_row(plan, t), 1) if plan.firsts else (t, plan.T)


@_only_with("zoneout")
def draw_of(ctx, draws, t, n):
    """Find the number that row n of step t adds to the counter of random masks."""
    return (t << 32) + (load_i64(draws, n) if draws else n)


@intrinsic
def load_options(typing, ctx, record, flag, draw, u, left, row_bytes):
    """The options of a step as ``StepValues``, from an ``OptionRecord``.

    flag, draw  the place of its flags (``flags_of``) and its counter of random masks (``draw_of``)
    row_bytes   bytes of a row of H numbers
    """
    vector, S = of_ctx(ctx), len(ctx.cell.states)
    of_kind = {
        "flag": MaskType(vector.lanes), "mask per state": types.UniTuple(MaskType(vector.lanes), S),
        "row per state": types.UniTuple(vector, S), "scalar": vector,
        "scalar per state": types.UniTuple(vector, S),
    }  # fmt: skip
    kinds = [
        of_kind[kind] if name in ctx.features else types.none for name, kind in VALUE_KINDS.items()
    ]
    result = types.NamedTuple(kinds, StepValues)

    def codegen(context, builder, signature, args):
        _, record, place_of_flags, draw, u, left, row_bytes = args

        def field(name):
            place = _I64(OptionRecord._fields.index(name))
            return builder.load(builder.gep(record, [place]))

        def number(name, k, kind):
            start = builder.inttoptr(field(name), kind.as_pointer())
            return builder.load(builder.gep(start, [_I64(k)]))

        def flag(name):
            address = builder.add(field(name), place_of_flags)
            byte = builder.load(builder.inttoptr(address, _I8.as_pointer()))
            # in every lane: LLVM may make a branch of a single flag, and then rounds differently
            lanes = ir.VectorType(ir.IntType(32), vector.lanes)
            byte = splat(builder, builder.zext(byte, lanes.element), lanes)
            return builder.icmp_unsigned("!=", byte, lanes(None))

        def rows(name):
            start = builder.add(field(name), builder.mul(u, _I64(VECTOR_BYTES)))
            rows = (builder.add(start, builder.mul(row_bytes, _I64(k))) for k in range(S))
            return [emit_load_part(builder, vector, row, left) for row in rows]

        def scalar(name, k=0):
            kind = vector.llvm
            return splat(builder, number(name, k, kind.element), kind)

        def scalars(name):
            return [scalar(name, k) for k in range(S)]

        def masks(name):
            first = builder.mul(u, _I64(vector.lanes))
            counter = builder.add(field("first_counter"), draw)
            seeds = [(number("seeds", k, _I64), number("thresholds", k, _I64)) for k in range(S)]
            words = ir.VectorType(ir.IntType(32), vector.lanes)
            return [emit_drawn(builder, words, *seed, counter, first) for seed in seeds]

        loaders = {
            "flag": flag, "scalar": scalar, "scalar per state": scalars, "row per state": rows,
            "mask per state": masks,
        }  # fmt: skip
        members = []
        for (name, kind), member in zip(VALUE_KINDS.items(), kinds, strict=True):
            if member == types.none:
                members.append(context.get_dummy_value())
                continue
            value = loaders[kind](name)
            is_tuple = isinstance(value, list)
            members.append(context.make_tuple(builder, member, value) if is_tuple else value)
        return context.make_tuple(builder, result, members)

    return result(ctx, record, *[types.int64] * 5), codegen


@_only_with("recurrent_mask")
def times_recurrent_mask(ctx, plan, record, n, u, left, value):
    """h, or its gradient, times the factor with which h enters products."""
    if record.recurrent_mask:
        row = record.recurrent_mask + n * plan.H * plan.size
        value = value * load_part(ctx, row + u * VECTOR_BYTES, left)
    return value


# ---- results


@_only_with("recurrent_mask")
def store_masked_h(ctx, plan, record, n, u, left, h, address):
    """Store the scaled h for the next products, if there is a factor."""
    if record.recurrent_mask:
        store(ctx, times_recurrent_mask(ctx, plan, record, n, u, left, h), address)


@_only_with("resets")
def add_dinitial(ctx, plan, record, n, u, is_reset, dinitial):
    """Add the gradient that a reset stops to that of ``initial``."""
    if all_lanes(is_reset):
        place = place_of(step_panels(plan, record.dinitial, n), u, 0)
        store_states(ctx, add_states(ctx, load_states(ctx, place), dinitial), place)


@_only_with("trace")
def store_trace(ctx, plan, record, flag, u, left, dstate):
    if record.trace:
        row, step = plan.H * plan.size, flag * len(dstate)
        store_rows(ctx, dstate, (record.trace + step * row + u * VECTOR_BYTES, row), left)


@emits(types.void)
def store_rows(builder, ctx, values, place, left):
    """Store states in rows of H numbers."""
    for k in range(len(ctx.cell.states)):
        address, value = member_address(builder, place, k), builder.extract_value(values, k)
        emit_store_part(builder, of_ctx(ctx), value, address, left)
