"""The arguments of the functions in ``kernels/step.py``, for some units of a row at a step.

Each gate piece is compiled for a set of features (``StepFeatures``): none, a trace alone, or all
of them, once for each kind of zoneout. With all of them, run-time checks of the plan's addresses
find out which options a pass has.

Random masks are hashes, computed for 16 or 8 units at a time: ``kernels/counter_rng.py`` defines
them.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload, register_jitable

from .. import step
from ..emitted_draws import emit_drawn
from .kernel_abi import emits, inlined
from .schedule import place_of, step_panels
from .simd import (
    VECTOR_BYTES,
    MaskType,
    VectorType,
    emit_load_part,
    emit_store_part,
    load,
    load_part,
    splat,
    store,
)
from .tuple_io import load_states, member_address, store_states, zeros_state

_I8, _I64 = ir.IntType(8), ir.IntType(64)


def _step_function(function):
    """A function of ``kernels/step.py``, compiled for the features of a piece; calls pass the frame
    as an additional first argument.
    """

    def of_step(frame, *args):
        raise NotImplementedError("this function exists only as compiled code")

    @overload(of_step, strict=False)
    def _(frame, *args):
        sizes = tuple(len(a) if isinstance(a, types.BaseTuple) else None for a in args)
        made = register_jitable(step.straight_line(function, frame.features, sizes))
        return lambda frame, *args: made(*args)

    return of_step


apply_options = _step_function(step.apply_options)
apply_reset = _step_function(step.apply_reset)
reset_backward = _step_function(step.reset_backward)
add_output_gradient = _step_function(step.add_output_gradient)
options_backward = _step_function(step.options_backward)
select_live = _step_function(step.select_live)
add_bypass = _step_function(step.add_bypass)


def _with(feature):
    """Compile a function in pieces that have a feature; in others it returns None."""

    def decorate(function):
        def of_feature(frame, *args):
            raise NotImplementedError("this function exists only as compiled code")

        @overload(of_feature, strict=False)
        def _(frame, *args):
            if not getattr(frame.features, feature):
                return lambda frame, *args: None
            compiled = inlined(function)
            return lambda frame, *args: compiled(frame, *args)

        return of_feature

    return decorate


# ---- loaders of flags, rows, units and random masks: step t, row n of the batch, unit-panel u


@_with("mask")
def load_live(frame, plan, n, t):
    return plan.mask == 0 or byte(plan.mask + n * plan.T + t) != 0


@_with("resets")
def load_is_reset(frame, plan, n, t):
    return plan.resets != 0 and t < plan.T and byte(plan.resets + n * plan.T + t) != 0


@_with("resets")
def load_initial(frame, plan, u, lanes, is_reset):
    start = zeros_state(frame)
    if is_reset and plan.initial:
        place = plan.initial + u * VECTOR_BYTES, plan.H * plan.size
        start = load_rows(frame, place, lanes)
    return start


def load_zoneout(frame, plan, n, t, u):
    raise NotImplementedError("this function exists only as compiled code")


@overload(load_zoneout, strict=False)
def _(frame, plan, n, t, u):
    def sampled(frame, plan, n, t, u):
        return draw(frame, plan.seeds, plan.thresholds, plan.origin + (t << 32) + n, u)

    def mean(frame, plan, n, t, u):
        return load_rates(frame, plan.rates)

    nothing = lambda frame, plan, n, t, u: None  # noqa: E731
    return {"sampled": sampled, "mean": mean, "": nothing}[frame.features.zoneout]


def scaled(frame, plan, n, u, lanes, value):
    """h, or its gradient, times the scale with which h enters products."""
    raise NotImplementedError("this function exists only as compiled code")


@overload(scaled, strict=False)
def _(frame, plan, n, u, lanes, value):
    if not frame.features.recurrent_mask:
        return lambda frame, plan, n, u, lanes, value: value

    def scale(frame, plan, n, u, lanes, value):
        if plan.recurrent_mask:
            row = plan.recurrent_mask + n * plan.H * plan.size
            value = value * load_part(frame, row + u * VECTOR_BYTES, lanes)
        return value

    return scale


def scaled_operand(frame, plan, n, u, lanes, value):
    """The same for the operand, if it enters a product."""
    raise NotImplementedError("this function exists only as compiled code")


@overload(scaled_operand, strict=False)
def _(frame, plan, n, u, lanes, value):
    if frame.cell.operand_gate:
        return lambda frame, plan, n, u, lanes, value: value
    return lambda frame, plan, n, u, lanes, value: scaled(frame, plan, n, u, lanes, value)


# ---- results


@_with("recurrent_mask")
def store_scaled(frame, plan, n, u, lanes, h, address):
    """Store the scaled h for the next products, if there is a scale."""
    if plan.recurrent_mask:
        store(frame, scaled(frame, plan, n, u, lanes, h), address)


@_with("resets")
def add_dreset(frame, plan, n, u, is_reset, dreset, h_grad):
    """Add the gradient that a reset stops to that of ``initial``."""
    if is_reset:
        place = place_of(step_panels(plan, plan.dinitial, n), u, 0)
        store(frame, load(frame, place[0]) + h_grad[0], place[0])
        store_states(frame, add_bypass(frame, load_states(frame, place), dreset)[0], place)


@_with("trace")
def store_trace(frame, plan, t, n, u, lanes, dstate):
    if plan.trace:
        row, step = plan.H * plan.size, (n * plan.T + t) * len(dstate)
        store_rows(frame, dstate, (plan.trace + step * row + u * VECTOR_BYTES, row), lanes)


@emits(types.int64)
def byte(builder, address):
    """The byte at an address."""
    return builder.zext(builder.load(builder.inttoptr(address, _I8.as_pointer())), _I64)


def _one_each(frame, *rest):
    """A tuple of a vector for each state."""
    return types.UniTuple(VectorType(frame.dtype), len(frame.cell.states))


@emits(_one_each)
def load_rates(builder, frame, start):
    """Zoneout's rate of each state, in every lane."""
    kind = VectorType(frame.dtype).llvm
    start = builder.inttoptr(start, kind.element.as_pointer())
    places = (builder.gep(start, [_I64(k)]) for k in range(len(frame.cell.states)))
    return [splat(builder, builder.load(place), kind) for place in places]


@emits(_one_each)
def load_rows(builder, frame, place, lanes):
    """Load states from rows of H numbers."""
    addresses = (member_address(builder, place, k) for k in range(len(frame.cell.states)))
    vector = VectorType(frame.dtype)
    return [emit_load_part(builder, vector, address, lanes) for address in addresses]


@emits(types.void)
def store_rows(builder, frame, values, place, lanes):
    """Store states in rows of H numbers."""
    for k in range(len(frame.cell.states)):
        address, value = member_address(builder, place, k), builder.extract_value(values, k)
        emit_store_part(builder, VectorType(frame.dtype), value, address, lanes)


# ---- random masks


@intrinsic
def draw(typing, frame, seeds, thresholds, place, u):
    """For each state, the mask of the units of a unit-panel that are drawn."""
    W = VectorType(frame.dtype).lanes
    kind = types.UniTuple(MaskType(W), len(frame.cell.states))
    vector = ir.VectorType(ir.IntType(32), W)

    def codegen(context, builder, signature, args):
        _, *words, place, u = args
        words = [builder.inttoptr(start, _I64.as_pointer()) for start in words]
        first, masks = builder.mul(u, _I64(W)), []
        for k in range(kind.count):
            seed, threshold = (builder.load(builder.gep(start, [_I64(k)])) for start in words)
            masks.append(emit_drawn(builder, vector, seed, threshold, place, first))
        return context.make_tuple(builder, kind, masks)

    return kind(frame, *[types.int64] * 4), codegen
