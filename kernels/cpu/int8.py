"""Products with weights in int8: four numbers in the place of one.

A word (``bfloat16.py``) has four bytes that follow each other along the inner axis: whole numbers
between -127 and 127, as ``kernels/quantisation.py`` says, which has the arithmetic. Sums are int32.

    A, a row       words ... | scale        in the panel, or the line, behind the last word
    B, a panel     words ... | starts       a row of integers that sums begin with
                             | scales       a row of float32, one for each column

AVX-512 VNNI and AVX-VNNI multiply unsigned bytes with signed ones: there A has numbers + 128, and
the starts are -128 times the sums of B's columns. ARM's dot product takes signed ones. Elsewhere
words are taken apart into 16 or 32 bits, in which no product saturates. AMX takes what AVX-512 VNNI
takes (``amx.py``).
"""

from llvmlite import ir
from numba.core import types

from .kernel_abi import arguments, emits
from .panels import Rounding
from .simd import (
    VECTOR_BYTES,
    VectorType,
    emit_call,
    emit_load,
    emit_load_part,
    lanes_of,
    splat,
)
from .target import int8_instruction as _instruction
from .target import int8_unsigned as unsigned

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))


def has_dot_product() -> bool:
    """Whether one instruction adds up the products of a word."""
    return any(part in _instruction()[0] for part in ("vpdpbusd", "sdot"))


# ---- at LLVM level; vectors of words have the type of vectors of float32


def _parts(builder, vector, words, bits, lane):
    """Words as vectors of so many bits, whose lanes have ``lane`` bits."""
    count = 512 // bits
    whole = builder.bitcast(words, ir.VectorType(_I32, vector.lanes))
    kind = ir.VectorType(ir.IntType(lane), bits // lane)
    for part in range(count):
        order = [part * bits // 32 + k for k in range(bits // 32)]
        places = ir.Constant(ir.VectorType(_I32, len(order)), order)
        yield builder.bitcast(builder.shuffle_vector(whole, whole, places), kind)


def _joined(builder, vectors):
    while len(vectors) > 1:
        lanes = 2 * vectors[0].type.count
        order = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [builder.shuffle_vector(a, b, order) for a, b in pairs]
    return vectors[0]


def emit_dot(builder, vector, a, b, total):
    """total + a * b, where each lane of a and b has four numbers; total has integers."""
    name, bits = _instruction()
    if not name:
        return _emit_dot_of_words(builder, vector, a, b, total)
    if "pmadd" in name:
        return _emit_dot_of_halves(builder, vector, a, b, total)
    lane = 8 if "sdot" in name else 32
    parts = (_parts(builder, vector, words, bits, lane) for words in (a, b))
    totals = _parts(builder, vector, total, bits, 32)
    each = zip(totals, *parts, strict=True)
    return _joined(builder, [emit_call(builder, name, t.type, [t, x, y]) for t, x, y in each])


def _emit_dot_of_halves(builder, vector, a, b, total):
    """The same in 16 bits: the first and third number of each word, the second and fourth."""
    name, bits = _instruction()
    results = []
    parts = (_parts(builder, vector, words, bits, 16) for words in (a, b))
    for t, *words in zip(_parts(builder, vector, total, bits, 32), *parts, strict=True):
        eight = ir.Constant(words[0].type, [8] * words[0].type.count)
        odd = [builder.ashr(word, eight) for word in words]
        even = [builder.ashr(builder.shl(word, eight), eight) for word in words]
        for pair in (even, odd):
            t = builder.add(t, emit_call(builder, name, t.type, pair))
        results.append(t)
    return _joined(builder, results)


def _emit_dot_of_words(builder, vector, a, b, total):
    """The same in 32 bits."""
    words = [builder.bitcast(word, total.type) for word in (a, b)]
    high = ir.Constant(total.type, [24] * vector.lanes)
    for k in range(4):
        place = ir.Constant(total.type, [24 - 8 * k] * vector.lanes)
        x, y = (builder.ashr(builder.shl(word, place), high) for word in words)
        total = builder.add(total, builder.mul(x, y))
    return total


def emit_starts(builder, vector, b_ends):
    """The integers that sums begin with, for each vector of a tile."""
    integers = ir.VectorType(_I32, vector.lanes)
    return [builder.bitcast(emit_load(builder, vector, end), integers) for end in b_ends]


def emit_scaled(builder, vector, sums, a_ends, b_ends):
    """A tile's sums as float32: times the scale of the column, times that of the row."""
    scales = [emit_load(builder, vector, builder.add(end, _I64(VECTOR_BYTES))) for end in b_ends]
    results = []
    for r, end in enumerate(a_ends):
        place = builder.inttoptr(end, vector.llvm.element.as_pointer())
        of_row = splat(builder, builder.load(place), vector.llvm)
        for v, scale in enumerate(scales):
            total = builder.sitofp(sums[r * len(scales) + v], vector.llvm)
            results.append(builder.fmul(of_row, builder.fmul(scale, total)))
    return results


# ---- a kernel


def quantise_columns(ctx):
    """A kernel, which takes a ``Rounding``: four panels become one of words, with scales.

    ``to`` may be a quarter of a line, or more of them, behind its start.
    """
    p = arguments(ctx, Rounding)
    W, part = lanes_of(ctx), VECTOR_BYTES // 4
    first, panels = p.to // part % 4, (p.columns + W - 1) // W
    for r in range(p.rows):
        source, to = p.source + r * p.source_row, p.to - first * part + r * p.to_row
        factor, scale = _bounded_scale(ctx)
        if not p.bounded:
            most = _no_numbers(ctx)
            for panel in range(panels):
                most = _larger(ctx, most, source + panel * p.source_panel, p.columns - panel * W)
            factor, scale = _scale(ctx, most)
        for panel in range(panels):
            place = panel + first
            _store_bytes(
                ctx, source + panel * p.source_panel, p.columns - panel * W, factor,
                to + place // 4 * p.to_panel + place % 4 * part,
            )  # fmt: skip
        if p.scale:
            _store_number(ctx, scale, p.scale + r * p.to_row)


_PAIR = types.UniTuple(types.float32, 2)
_FLOAT = ir.FloatType()


@emits(_PAIR)
def _bounded_scale(builder, ctx):
    return [_FLOAT(127.0), builder.fdiv(_FLOAT(1.0), _FLOAT(127.0))]


@emits(lambda ctx: VectorType(ctx.dtype))
def _no_numbers(builder, ctx):
    return ir.Constant(VectorType(ctx.dtype).llvm, [0.0] * VectorType(ctx.dtype).lanes)


@emits(lambda ctx, most, source, lanes: most)
def _larger(builder, ctx, most, source, lanes):
    """The larger magnitudes; as integers, whose order has NaN at the end."""
    vector = VectorType(ctx.dtype)
    value = builder.bitcast(emit_load_part(builder, vector, source, lanes), vector.llvm_bits)
    value = builder.and_(value, ir.Constant(value.type, [0x7FFFFFFF] * vector.lanes))
    before = builder.bitcast(most, value.type)
    larger = builder.icmp_signed(">", value, before)
    return builder.bitcast(builder.select(larger, value, before), vector.llvm)


@emits(lambda ctx, most: _PAIR)
def _scale(builder, ctx, most):
    """The factor of a row and its scale, from the largest of its magnitudes in lanes."""
    vector = VectorType(ctx.dtype)
    bits = builder.bitcast(most, vector.llvm_bits)
    lanes = vector.lanes
    while lanes > 1:
        lanes //= 2
        order = ir.Constant(bits.type, [(k + lanes) % vector.lanes for k in range(vector.lanes)])
        other = builder.shuffle_vector(bits, bits, order)
        bits = builder.select(builder.icmp_signed(">", bits, other), bits, other)
    largest = builder.bitcast(builder.extract_element(bits, _I32(0)), _FLOAT)
    finite = builder.fcmp_ordered("<", largest, _FLOAT(float("inf")))
    enough = builder.fcmp_ordered(">=", largest, _FLOAT(2.0**-100))
    some = builder.and_(finite, enough)
    zero, most_, nothing = _FLOAT(0.0), _FLOAT(127.0), _FLOAT(float("nan"))
    factor = builder.select(some, builder.fdiv(most_, largest), zero)
    scale = builder.select(finite, zero, nothing)
    return [factor, builder.select(some, builder.fdiv(largest, most_), scale)]


@emits(types.void)
def _store_bytes(builder, ctx, source, lanes, factor, to):
    """Numbers times a factor as bytes: to the nearest, not beyond 127; NaN is -127."""
    vector = VectorType(ctx.dtype)

    def all_lanes(number):
        return ir.Constant(vector.llvm, [number] * vector.lanes)

    value = emit_load_part(builder, vector, source, lanes)
    value = builder.fmul(value, splat(builder, factor, vector.llvm))
    name = f"llvm.nearbyint.{vector.llvm_name}"
    value = emit_call(builder, name, vector.llvm, [value])
    for sign, limit in ((">", -127.0), ("<", 127.0)):
        inside = builder.fcmp_ordered(sign, value, all_lanes(limit))
        value = builder.select(inside, value, all_lanes(limit))
    whole = builder.fptosi(value, vector.llvm_bits)
    whole = builder.add(whole, ir.Constant(whole.type, [128 * unsigned()] * vector.lanes))
    small = builder.trunc(whole, ir.VectorType(_I8, vector.lanes))
    builder.store(small, builder.inttoptr(to, small.type.as_pointer()), align=vector.lanes)


@emits(types.void)
def _store_number(builder, ctx, number, to):
    builder.store(number, builder.inttoptr(to, _FLOAT.as_pointer()))
