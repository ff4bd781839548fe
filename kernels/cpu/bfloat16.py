"""Operands of products in bfloat16: two numbers in the place of one.

A *word* is 32 bits of an operand: one float32, or two bfloat16 numbers that follow each other
along the inner axis of a product. Panels and rows of words lie like those of numbers (``gemm.py``),
but are half as long; the second number of the last word is zero where the inner axis is odd.

    inner axis                      A                               B
    D, H     x Wx, h Wh             columns of x, h in pairs        rows of Wx, Wh in pairs
    gates    dgates WxT, WhT        columns of dgates in pairs      columns of Wx, Wh in pairs
    rows     xT dgates, hT dgates   rows of x, h in pairs           rows of dgates in pairs

Numbers are rounded to the nearest (even). Sums are float32: a processor with AVX512_BF16 adds both
products of a word in one instruction; any other makes float32 of the halves, and two sums, which is
as fast as float32 for many rows, and faster for one. Denormal numbers count as zero on the former.
AMX multiplies 16 words at once (``amx.py``).
"""

from llvmlite import ir
from numba.core import types

from .kernel_abi import arguments, emits
from .panels import Packing, Rounding, emit_transpose
from .simd import (
    VECTOR_BYTES,
    VectorType,
    emit_call,
    emit_fma,
    emit_load_part,
    emit_store,
    lanes_of,
)
from .target import has_bfloat16_product

_I64 = ir.IntType(64)


# ---- on vectors of words, at LLVM level; they have the type of vectors of float32


def _bits(builder, vector, words):
    return builder.bitcast(words, vector.llvm_bits)


def emit_halves(builder, vector, words):
    """The first numbers of all words and the second ones, as float32."""
    bits = _bits(builder, vector, words)
    places = ir.Constant(bits.type, [16] * vector.lanes)
    upper = ir.Constant(bits.type, [0xFFFF0000] * vector.lanes)
    first, second = builder.shl(bits, places), builder.and_(bits, upper)
    return builder.bitcast(first, vector.llvm), builder.bitcast(second, vector.llvm)


def emit_dot(builder, vector, a, b, total):
    """total + a * b, where each lane has two numbers."""
    if has_bfloat16_product():
        words = [total, _bits(builder, vector, a), _bits(builder, vector, b)]
        return emit_call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", vector.llvm, words)
    (a0, a1), (b0, b1) = (emit_halves(builder, vector, words) for words in (a, b))
    return emit_fma(builder, vector, a0, b0, emit_fma(builder, vector, a1, b1, total))


def _emit_rounded(builder, vector, value):
    """float32 as bfloat16, in integers of 16 bits."""
    halves = ir.VectorType(ir.IntType(16), vector.lanes)
    if has_bfloat16_product():
        return emit_call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", halves, [value])

    def all_lanes(number):
        return ir.Constant(vector.llvm_bits, [number] * vector.lanes)

    bits, places = _bits(builder, vector, value), all_lanes(16)
    even = builder.and_(builder.lshr(bits, places), all_lanes(1))
    near = builder.add(bits, builder.add(even, all_lanes(0x7FFF)))
    quiet = builder.or_(bits, all_lanes(0x400000))  # NaN stays NaN
    bits = builder.select(builder.fcmp_unordered("uno", value, value), quiet, near)
    return builder.trunc(builder.lshr(bits, places), halves)


def _emit_side_by_side(builder, vector, low, high):
    """Two vectors that follow each other as one of words."""
    halves = [_emit_rounded(builder, vector, part) for part in (low, high)]
    lanes = 2 * vector.lanes
    order = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(lanes)))
    return builder.bitcast(builder.shuffle_vector(*halves, order), vector.llvm)


def _emit_interleaved(builder, vector, low, high):
    """Words of two vectors: the first number of each is from ``low``."""
    first, second = (
        builder.zext(_emit_rounded(builder, vector, part), vector.llvm_bits) for part in (low, high)
    )
    places = ir.Constant(vector.llvm_bits, [16] * vector.lanes)
    return builder.bitcast(builder.or_(first, builder.shl(second, places)), vector.llvm)


# ---- kernels, which make words of float32; the others take a ``Packing``


@emits(types.void)
def _store_halves(builder, ctx, source, lanes, to):
    """Some numbers as half a line of words, the others zero."""
    vector = VectorType(ctx.dtype)
    halves = _emit_rounded(builder, vector, emit_load_part(builder, vector, source, lanes))
    builder.store(halves, builder.inttoptr(to, halves.type.as_pointer()), align=VECTOR_BYTES // 2)


def pair_columns(ctx):
    """A kernel, which takes a ``Rounding``: words of columns that follow each other.

    Two panels become one. ``to`` may be the middle of a line: the first panel is then the second
    half of one.
    """
    p = arguments(ctx, Rounding)
    W, half = lanes_of(ctx), VECTOR_BYTES // 2
    odd = p.to // half % 2
    for panel in range((p.columns + W - 1) // W):
        source, place = p.source + panel * p.source_panel, panel + odd
        to = p.to - odd * half + (place // 2) * p.to_panel + (place % 2) * half
        for r in range(p.rows):
            _store_halves(ctx, source + r * p.source_row, p.columns - panel * W, to + r * p.to_row)


@emits(types.void)
def _store_interleaved(builder, ctx, source, source_row, lanes, more, to):
    """Two rows as a row of words; the second has ``more`` lanes."""
    vector = VectorType(ctx.dtype)
    low = emit_load_part(builder, vector, source, lanes)
    high = emit_load_part(builder, vector, builder.add(source, source_row), more)
    emit_store(builder, vector, _emit_interleaved(builder, vector, low, high), to)


def pair_rows(ctx):
    """A kernel: words of rows that follow each other, in panels; ``rows`` are those of float32."""
    p = arguments(ctx, Packing)
    W = lanes_of(ctx)
    for start in range(0, p.rows, 8):  # few rows at a time: their lines stay in the cache
        for panel in range((p.columns + W - 1) // W):
            source, to = p.source + panel * p.source_panel, p.to + panel * p.to_panel
            lanes = p.columns - panel * W
            for r in range(start, min(start + 8, p.rows), 2):
                more = lanes if r + 1 < p.rows else 0
                place, word = source + r * p.source_row, to + (r // 2) * p.to_row
                _store_interleaved(ctx, place, p.source_row, lanes, more, word)


@emits(types.void)
def _transpose_pairs(builder, ctx, source, source_row, rows, to, columns):
    """W rows and 2 W columns, transposed, in words of columns that follow each other."""
    vector = VectorType(ctx.dtype)

    def load_line(place, lanes):
        low = emit_load_part(builder, vector, place, lanes)
        more = builder.sub(lanes, _I64(vector.lanes))
        high = emit_load_part(builder, vector, builder.add(place, _I64(VECTOR_BYTES)), more)
        return _emit_side_by_side(builder, vector, low, high)

    words = builder.sdiv(builder.add(columns, _I64(1)), _I64(2))
    emit_transpose(builder, vector, load_line, source, source_row, rows, to, columns, words)


def pair_transposed(ctx):
    """A kernel: panels of the transpose of a matrix, in words of its columns, without gaps."""
    p = arguments(ctx, Packing)
    W = lanes_of(ctx)
    for panel in range((p.rows + W - 1) // W):
        for start in range(0, p.columns, 2 * W):
            square = p.source + panel * p.source_panel + start * (VECTOR_BYTES // W)
            place = p.to + panel * p.to_panel + start * (VECTOR_BYTES // 2)
            rows, columns = p.rows - panel * W, p.columns - start
            _transpose_pairs(ctx, square, p.source_row, rows, place, columns)
