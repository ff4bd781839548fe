"""The arguments of the functions in ``kernels/step.py``, for some units of a row at a step.

Each gate piece is compiled for a set of features (``StepFeatures``): none, a trace alone, or all
of them, once for each kind of zoneout. With all of them, its ``options`` is the address of an
``OptionArrays``, and run-time checks find out which options a pass has.

Random masks are hashes, computed for 16 or 8 units at a time: ``kernels/draws.py`` defines them.
"""

from typing import NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload, register_jitable

from .. import step
from ..emitted_draws import emit_drawn
from .frames import emits, record
from .lowering import load_states, member_address, store_states, zeros_state
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

_I8, _I64 = ir.IntType(8), ir.IntType(64)


class OptionArrays(NamedTuple):
    """Addresses of the arrays of a pass's step options; 0 if there is none."""

    T: int
    origin: int  # the place of the first row at the first step, for random masks
    row: int  # bytes of H numbers
    mask: int  # (N, T) bytes
    resets: int  # (N, T) bytes
    initial: int  # (S, H)
    scale: int  # (N, H)
    rates: int  # zoneout's, a number for each state
    thresholds: int  # a word for each state
    seeds: int
    dinitial: int  # panels: S states, all unit-panels, N rows
    dinitial_panel: int  # bytes between unit-panels
    dinitial_state: int  # bytes between states
    trace: int  # (N, T, S, H)


_read = record(OptionArrays)
inlined = register_jitable(error_model="numpy")


def _step_function(function):
    """A function of ``kernels/step.py``, compiled for the features of a piece; calls pass the frame
    as an additional first argument.
    """

    def of_step(frame, *args):
        raise NotImplementedError("it exists as compiled code only")

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
            raise NotImplementedError("it exists as compiled code only")

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
def load_live(frame, options, n, t):
    here = _read(options)
    return here.mask == 0 or byte(here.mask + n * here.T + t) != 0


@_with("resets")
def load_is_reset(frame, options, n, t):
    here = _read(options)
    return here.resets != 0 and t < here.T and byte(here.resets + n * here.T + t) != 0


@_with("resets")
def load_initial(frame, options, u, lanes, is_reset):
    here, start = _read(options), zeros_state(frame)
    if is_reset and here.initial:
        start = load_rows(frame, (here.initial + u * VECTOR_BYTES, here.row), lanes)
    return start


def load_zoneout(frame, options, n, t, u):
    raise NotImplementedError("it exists as compiled code only")


@overload(load_zoneout, strict=False)
def _(frame, options, n, t, u):
    def sampled(frame, options, n, t, u):
        here = _read(options)
        return draw(frame, here.seeds, here.thresholds, here.origin + (t << 32) + n, u)

    def mean(frame, options, n, t, u):
        return load_rates(frame, _read(options).rates)

    nothing = lambda frame, options, n, t, u: None  # noqa: E731
    return {"sampled": sampled, "mean": mean, "": nothing}[frame.features.zoneout]


def scaled(frame, options, n, u, lanes, value):
    """h, or its gradient, times the scale with which h enters products."""
    raise NotImplementedError("it exists as compiled code only")


@overload(scaled, strict=False)
def _(frame, options, n, u, lanes, value):
    if not frame.features.scale:
        return lambda frame, options, n, u, lanes, value: value

    def scale(frame, options, n, u, lanes, value):
        here = _read(options)
        if here.scale:
            value = value * load_part(frame, here.scale + n * here.row + u * VECTOR_BYTES, lanes)
        return value

    return scale


def scaled_operand(frame, options, n, u, lanes, value):
    """The same for the operand, if it enters a product."""
    raise NotImplementedError("it exists as compiled code only")


@overload(scaled_operand, strict=False)
def _(frame, options, n, u, lanes, value):
    if frame.cell.fed:
        return lambda frame, options, n, u, lanes, value: value
    return lambda frame, options, n, u, lanes, value: scaled(frame, options, n, u, lanes, value)


# ---- results


@_with("scale")
def store_scaled(frame, options, n, u, lanes, h, address):
    """Store the scaled h for the next products, if there is a scale."""
    if _read(options).scale:
        store(frame, scaled(frame, options, n, u, lanes, h), address)


@_with("resets")
def add_stopped(frame, options, n, u, is_reset, stopped, through):
    """Add the gradient that a reset stops to that of ``initial``."""
    if is_reset:
        here = _read(options)
        start = here.dinitial + u * here.dinitial_panel + n * VECTOR_BYTES
        store(frame, load(frame, start) + through[0], start)
        place = start, here.dinitial_state
        store_states(frame, add_bypass(frame, load_states(frame, place), stopped)[0], place)


@_with("trace")
def store_trace(frame, options, t, n, u, lanes, dstate):
    here = _read(options)
    if here.trace:
        step = (n * here.T + t) * len(dstate)
        place = here.trace + step * here.row + u * VECTOR_BYTES, here.row
        store_rows(frame, dstate, place, lanes)


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
