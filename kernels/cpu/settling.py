"""What is particular about steps (``kernels/step_options.py``), in gate arithmetic.

Gate pieces are compiled for PLAIN steps, where all of this comes to nothing, and for ANYTHING:
masks, resets, zoneout, a scale of h, a trace, whatever a pass has of them. Then a piece's
``particular`` is the address of a ``Particular``; for plain steps it is 0, and not looked at. (A
third time for backward of steps that are TRACED and have nothing else.)

    forward     gates -> the cell -> settle -> state after, hs        then mark_scaled
    backward    dhs, dstate, through_h -> unsettle -> the cell -> only_live, and what passes the
                cell by -> resettle

Random masks are hashes, 16 or 8 units at a time: ``kernels/draws.py`` defines them.
"""

from typing import NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload, register_jitable

from .. import draws
from .frames import ANYTHING, TRACED, record_at
from .lowering import emit_members, member_address, operand, tuple_of_states
from .simd import (
    MaskType,
    VectorType,
    emit_load,
    emit_load_part,
    emit_store,
    emit_store_part,
    load_part,
    splat,
    store,
)

_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
DRAWN, EXPECTED = 1, 2  # zoneout


class Particular(NamedTuple):
    """What is particular about the steps of a pass: addresses; 0 where there is nothing."""

    T: int
    first: int  # the number of the first step, for draws
    row: int  # bytes of H numbers
    mask: int  # (N, T) bytes
    resets: int  # (N, T) bytes
    initial: int  # (S, H)
    scale: int  # (N, H)
    zoneout: int  # DRAWN, EXPECTED or 0
    shares: int  # a number for each state
    thresholds: int  # a word for each state
    seeds: int
    dinitial: int  # panels: S states, all unit-panels, N rows
    dinitial_panel: int  # bytes between them
    dinitial_state: int  # bytes between states
    trace: int  # (N, T, S, H)


_read = record_at(Particular)
inlined = register_jitable(error_model="numpy")


def settle(frame, particular, t, n, u, lanes, new, old):
    """The state after a step, and its output: t and n as the caller counts, u a unit-panel."""
    raise NotImplementedError("it exists as compiled code only")


@overload(settle, strict=False)
def _(frame, particular, t, n, u, lanes, new, old):
    if frame.particular == ANYTHING:
        return _settle
    return lambda frame, particular, t, n, u, lanes, new, old: (new, new[0])


def _settle(frame, particular, t, n, u, lanes, new, old):
    here = _read(particular)
    if here.zoneout == DRAWN:
        drawn = draw(frame, here.seeds, here.thresholds, here.first + t, n, u)
        new = choose(drawn, old, new)
    elif here.zoneout == EXPECTED:
        new = blend(frame, here.shares, old, new)
    out = new[0]
    if _left_out(here, t, n):
        new = old
        out = no_state(frame)[0]
    if _reset_before(here, t + 1, n):
        new = no_state(frame)
        if here.initial:
            new = load_rows(frame, here.initial + u * 64, here.row, lanes)
    return new, out


def mark_scaled(frame, particular, n, u, lanes, h, address):
    """Write down what h enters the next products as, if that is another number."""
    raise NotImplementedError("it exists as compiled code only")


@overload(mark_scaled, strict=False)
def _(frame, particular, n, u, lanes, h, address):
    if frame.particular != ANYTHING:
        return lambda frame, particular, n, u, lanes, h, address: None

    def mark(frame, particular, n, u, lanes, h, address):
        if _read(particular).scale:
            store(scaled(frame, particular, n, u, lanes, h), address)

    return mark


def scaled(frame, particular, n, u, lanes, value):
    """h, or the gradient by it, times what it is scaled by on its way into products."""
    raise NotImplementedError("it exists as compiled code only")


@overload(scaled, strict=False)
def _(frame, particular, n, u, lanes, value):
    if frame.particular != ANYTHING:
        return lambda frame, particular, n, u, lanes, value: value

    def scale(frame, particular, n, u, lanes, value):
        here = _read(particular)
        if here.scale:
            value = value * load_part(frame, here.scale + n * here.row + u * 64, lanes)
        return value

    return scale


def scaled_operand(frame, particular, n, u, lanes, value):
    """The same of the operand, where that enters a product."""
    raise NotImplementedError("it exists as compiled code only")


@overload(scaled_operand, strict=False)
def _(frame, particular, n, u, lanes, value):
    if frame.cell.fed:
        return lambda frame, particular, n, u, lanes, value: value
    return lambda frame, particular, n, u, lanes, value: scaled(
        frame, particular, n, u, lanes, value
    )


def unsettle(frame, particular, t, n, u, lanes, dh, through, dstate):
    """From the gradients of a step's output and of the state after it to those of the new state.

    dh is the output's, through what came back through h Wh, dstate all else; returns the gradient
    of what the cell made, and of the old state past the cell.
    """
    raise NotImplementedError("it exists as compiled code only")


@overload(unsettle, strict=False)
def _(frame, particular, t, n, u, lanes, dh, through, dstate):
    if frame.particular == ANYTHING:
        return _unsettle

    def plain(frame, particular, t, n, u, lanes, dh, through, dstate):
        return add_to_first(dstate, dh + through), dstate

    def traced(frame, particular, t, n, u, lanes, dh, through, dstate):
        dnew = add_to_first(dstate, dh + through)
        trace(frame, _read(particular), t, n, u, lanes, dnew)
        return dnew, dstate

    return traced if frame.particular == TRACED else plain


def _unsettle(frame, particular, t, n, u, lanes, dh, through, dstate):
    here = _read(particular)
    through = scaled(frame, particular, n, u, lanes, through)
    if _reset_before(here, t + 1, n):
        place = here.dinitial + u * here.dinitial_panel + n * 64
        total = add_to_first(load_tuple(frame, place, here.dinitial_state), through)
        store_tuple(frame, add(total, dstate), place, here.dinitial_state)
        dstate = no_state(frame)
        through = dstate[0]
    held = no_state(frame)
    if _left_out(here, t, n):
        held = add_to_first(dstate, through)
        dstate = no_state(frame)
        trace(frame, here, t, n, u, lanes, held)
    else:
        dstate = add_to_first(dstate, dh + through)
        trace(frame, here, t, n, u, lanes, dstate)
        if here.zoneout == DRAWN:
            drawn = draw(frame, here.seeds, here.thresholds, here.first + t, n, u)
            held = choose(drawn, dstate, no_state(frame))
            dstate = choose(drawn, no_state(frame), dstate)
        elif here.zoneout == EXPECTED:
            held = blend(frame, here.shares, dstate, no_state(frame))
            dstate = blend(frame, here.shares, no_state(frame), dstate)
    return dstate, held


def only_live(frame, particular, t, n, values, otherwise):
    """Gradients that came through the cell; where a step is left out, what else there is.

    What the cell made there counts for nothing, and its derivative may be infinite.
    """
    raise NotImplementedError("it exists as compiled code only")


@overload(only_live, strict=False)
def _(frame, particular, t, n, values, otherwise):
    if frame.particular != ANYTHING:
        return lambda frame, particular, t, n, values, otherwise: values

    def select(frame, particular, t, n, values, otherwise):
        return choose_all(_left_out(_read(particular), t, n), otherwise, values)

    return select


def operand_if_live(frame, particular, t, n, gates, state):
    """The operand; 0 where a step is left out, as it takes part in the gradient of Wh."""
    raise NotImplementedError("it exists as compiled code only")


@overload(operand_if_live, strict=False)
def _(frame, particular, t, n, gates, state):
    if frame.particular != ANYTHING:
        return lambda frame, particular, t, n, gates, state: operand(frame, gates, state)

    def select(frame, particular, t, n, gates, state):
        found, none = (operand(frame, gates, state),), (no_state(frame)[0],)
        return choose_all(_left_out(_read(particular), t, n), none, found)[0]

    return select


def resettle(frame, dold, held):
    """The gradient of the old state, from what came through the cell and what passed it by."""
    raise NotImplementedError("it exists as compiled code only")


@overload(resettle, strict=False)
def _(frame, dold, held):
    if frame.particular == ANYTHING:
        return lambda frame, dold, held: add(tuple_of_states(frame, dold), held)
    return lambda frame, dold, held: dold


@inlined
def _left_out(here, t, n):
    return here.mask != 0 and byte(here.mask + n * here.T + t) == 0


@inlined
def _reset_before(here, t, n):
    return here.resets != 0 and t < here.T and byte(here.resets + n * here.T + t) != 0


@inlined
def trace(frame, here, t, n, u, lanes, dstate):
    if here.trace:
        step = (n * here.T + t) * len(dstate)
        store_rows(dstate, here.trace + step * here.row + u * 64, here.row, lanes)


# ---- tuples of vectors, one for each state


@intrinsic
def byte(typing, address):
    """The byte at an address."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], _I8.as_pointer())
        return builder.zext(builder.load(place), _I64)

    return types.int64(types.int64), codegen


@intrinsic
def no_state(typing, frame):
    """Zeros."""
    kind = types.UniTuple(VectorType(frame.dtype), len(frame.cell.states))

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(frame), codegen


@intrinsic
def no_gradients(typing, frame):
    """Zeros, one for each gate."""
    kind = types.UniTuple(VectorType(frame.dtype), len(frame.cell.gates))

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(frame), codegen


def _on_members(emit, *others):
    """An intrinsic that makes a tuple from the members of two, and from what comes before them."""

    def make(typing, *given):
        *rest, a, b = given
        if not (isinstance(a, types.UniTuple) and a == b):
            return None

        def codegen(context, builder, signature, args):
            members = []
            for k in range(a.count):
                x, y = (builder.extract_value(tuple_, k) for tuple_ in args[-2:])
                members.append(emit(builder, a.dtype, k, x, y, *args[: len(rest)]))
            return context.make_tuple(builder, a, members)

        return a(*given), codegen

    return make


_add = _on_members(lambda builder, vector, k, x, y: builder.fadd(x, y))
_choose = _on_members(
    lambda builder, vector, k, x, y, masks: builder.select(builder.extract_value(masks, k), x, y)
)


def _emit_blend(builder, vector, k, old, new, frame, shares):
    width = vector.dtype.bitwidth
    start = builder.inttoptr(shares, vector.llvm.element.as_pointer())
    share = builder.load(builder.gep(start, [_I64(k)]), align=width // 8)
    rest = builder.fsub(vector.llvm.element(1.0), share)
    share, rest = (splat(builder, number, vector.llvm) for number in (share, rest))
    return builder.fadd(builder.fmul(share, old), builder.fmul(rest, new))


_blend = _on_members(_emit_blend)


@intrinsic
def add(typing, a, b):
    """a + b, member by member."""
    return _add(typing, a, b)


@intrinsic
def choose(typing, masks, a, b):
    """a where the mask of its member holds, else b."""
    return _choose(typing, masks, a, b)


@intrinsic
def choose_all(typing, condition, a, b):
    """a if the condition holds, else b, tuples of one length; None is zero."""
    vector = next(kind for kind in (*a, *b) if isinstance(kind, VectorType))
    kind = types.UniTuple(vector, len(b))

    def codegen(context, builder, signature, args):
        condition, *tuples = args
        one, other = (
            emit_members(builder, vector, given, members)
            for given, members in zip((a, b), tuples, strict=True)
        )
        chosen = [builder.select(condition, x, y) for x, y in zip(one, other, strict=True)]
        return context.make_tuple(builder, kind, chosen)

    return kind(types.boolean, a, b), codegen


@intrinsic
def blend(typing, frame, shares, a, b):
    """share * a + (1 - share) * b, each member with its share."""
    return _blend(typing, frame, shares, a, b)


@intrinsic
def add_to_first(typing, values, more):
    """The tuple with ``more`` added to its first member."""

    def codegen(context, builder, signature, args):
        first = builder.fadd(builder.extract_value(args[0], 0), args[1])
        return builder.insert_value(args[0], first, 0)

    return values(values, more), codegen


def _transfer(emit, loading):
    """An intrinsic that loads or stores a tuple, ``stride`` bytes from member to member."""

    def codegen_for(kind):
        def codegen(context, builder, signature, args):
            given, start, stride, *rest = args
            found = []
            for k in range(kind.count):
                place = member_address(builder, start, stride, k)
                value = [] if loading else [builder.extract_value(given, k)]
                found.append(emit(builder, kind.dtype, *value, place, *rest))
            if loading:
                return context.make_tuple(builder, kind, found)
            return context.get_dummy_value()

        return codegen

    return codegen_for


_i = types.int64


@intrinsic
def load_tuple(typing, frame, start, stride):
    """The states in panels."""
    kind = types.UniTuple(VectorType(frame.dtype), len(frame.cell.states))
    return kind(frame, _i, _i), _transfer(emit_load, True)(kind)


@intrinsic
def load_rows(typing, frame, start, stride, lanes):
    """The states in rows of H numbers."""
    kind = types.UniTuple(VectorType(frame.dtype), len(frame.cell.states))
    return kind(frame, _i, _i, _i), _transfer(emit_load_part, True)(kind)


@intrinsic
def store_tuple(typing, frame, values, start, stride):
    """Write states in panels."""
    transfer = _transfer(emit_store, False)(values)

    def codegen(context, builder, signature, args):
        return transfer(context, builder, signature, args[1:])

    return types.void(frame, values, _i, _i), codegen


@intrinsic
def store_rows(typing, values, start, stride, lanes):
    """Write states in rows of H numbers."""
    return types.void(values, _i, _i, _i), _transfer(emit_store_part, False)(values)


# ---- draws


def _emit_mix(builder, z, mixing, last):
    constant = lambda number: ir.Constant(z.type, _repeated(z.type, number))  # noqa: E731
    for shift, factor in mixing:
        z = builder.mul(builder.xor(z, builder.lshr(z, constant(shift))), constant(factor))
    return builder.xor(z, builder.lshr(z, constant(last)))


def _repeated(kind, number):
    return [number] * kind.count if isinstance(kind, ir.VectorType) else number


@intrinsic
def draw(typing, frame, seeds, thresholds, t, n, u):
    """For each state which units of a unit-panel are drawn."""
    W = VectorType(frame.dtype).lanes
    kind = types.UniTuple(MaskType(W), len(frame.cell.states))
    vector = ir.VectorType(_I32, W)

    def codegen(context, builder, signature, args):
        _, seeds, thresholds, t, n, u = args
        place = builder.or_(builder.shl(t, _I64(32)), n)
        place = _emit_mix(builder, place, draws.MIXING64, draws.LAST_SHIFT64)
        first = builder.mul(builder.trunc(u, _I32), _I32(W * draws.GOLDEN32 & 0xFFFFFFFF))
        units = ir.Constant(vector, [k * draws.GOLDEN32 & 0xFFFFFFFF for k in range(W)])
        units = builder.add(units, splat(builder, first, vector))
        masks = []
        for k in range(kind.count):
            seed, threshold = (
                builder.load(builder.gep(builder.inttoptr(words, _I64.as_pointer()), [_I64(k)]))
                for words in (seeds, thresholds)
            )
            mixing64 = draws.MIXING64, draws.LAST_SHIFT64
            key = _emit_mix(builder, builder.xor(seed, place), *mixing64)
            high = builder.trunc(builder.lshr(key, _I64(32)), _I32)
            low, high, limit = (
                splat(builder, number, vector)
                for number in (builder.trunc(key, _I32), high, builder.trunc(threshold, _I32))
            )
            mixing32 = draws.MIXING32, draws.LAST_SHIFT32
            bits = _emit_mix(builder, builder.add(units, low), *mixing32)
            bits = _emit_mix(builder, builder.xor(bits, high), *mixing32)
            masks.append(builder.icmp_unsigned("<", bits, limit))
        return context.make_tuple(builder, kind, masks)

    return kind(frame, _i, _i, _i, _i, _i), codegen
