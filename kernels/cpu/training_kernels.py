"""The kernels of training around the cells (``training.py``), and of masks (``dropout.py``)."""

import math

from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

from ..emitted_draws import emit_drawn
from ..functions import exp
from .dropout import Mask
from .kernel_abi import arguments_address, emits, jitted, load_i64, record
from .parallel_kernels import read_items
from .simd import (
    VECTOR_BYTES,
    VectorType,
    emit_load_part,
    emit_store_part,
    lanes_of,
    load_part,
    maximum,
    of_ctx,
    splat,
    store_part,
)
from .training import BLOCK, GROUP, Blocks, Rows, Segments
from .tuple_io import compilable

_I64 = ir.IntType(64)


# ---- blocks of arrays


_read_blocks = record(Blocks)


@jitted
def _block(ctx, table, width, parameter, block):
    """The parameter that a block is of, where it begins in its arrays, in bytes, and its numbers.

    parameter  one that does not come after it
    """
    while block >= load_i64(table, (parameter + 1) * width):
        parameter += 1
    start = (block - load_i64(table, parameter * width)) * BLOCK
    count = min(load_i64(table, parameter * width + 1) - start, BLOCK)
    return parameter, start * (VECTOR_BYTES // lanes_of(ctx)), count


# ---- an optimiser's rule


def _apply_rule(ctx, values, numbers):
    raise NotImplementedError("this function exists only as compiled code")


@overload(_apply_rule, strict=False)
def _(ctx, values, numbers):
    rule = compilable(ctx.rule.function)
    if len(numbers):
        return lambda ctx, values, numbers: rule(*(values + numbers))
    return lambda ctx, values, numbers: rule(*values)


def _vectors(count):
    """The type of a tuple of vectors; ``count`` finds how many from a rule."""
    return lambda ctx, *rest: types.UniTuple(VectorType(ctx.dtype), count(ctx.rule))


@emits(_vectors(lambda rule: rule.numbers + 1))
def _load_numbers(builder, ctx, address):
    """The numbers of a rule, and the factor of the gradient, in all lanes."""
    vector = VectorType(ctx.dtype)
    start = builder.inttoptr(address, vector.llvm.element.as_pointer())
    count = range(ctx.rule.numbers + 1)
    return [splat(builder, builder.load(builder.gep(start, [_I64(k)])), vector.llvm) for k in count]


def _addresses(builder, table, at, count):
    """The addresses in a row of a table, ``at`` bytes on (LLVM level)."""
    row = builder.inttoptr(table, _I64.as_pointer())
    return [builder.add(builder.load(builder.gep(row, [_I64(2 + k)])), at) for k in range(count)]


@emits(_vectors(lambda rule: rule.arrays + 1))
def _load_values(builder, ctx, row, at, left, factor):
    """The numbers of the arrays and of the gradient, that one times its factor."""
    vector = VectorType(ctx.dtype)
    places = _addresses(builder, row, at, ctx.rule.arrays + 1)
    *values, gradient = (emit_load_part(builder, vector, place, left) for place in places)
    return [*values, builder.fmul(gradient, factor)]


@intrinsic
def _store_values(typing, ctx, values, row, at, left):
    vector, arrays = VectorType(ctx.dtype), ctx.rule.arrays
    if not isinstance(values, types.BaseTuple) or tuple(values) != (vector,) * arrays:
        raise TypingError(f"a rule of {arrays} arrays returned {values}")

    def codegen(context, builder, signature, args):
        _, values, row, at, left = args
        for k, place in enumerate(_addresses(builder, row, at, arrays)):
            value = builder.extract_value(values, k)
            emit_store_part(builder, vector, value, place, left)
        return context.get_dummy_value()

    return types.void(ctx, values, row, at, left), codegen


@emits(types.int64)
def _row_width(builder, ctx):
    return _I64(2 + ctx.rule.arrays + 1)


def update_blocks(ctx):
    """A kernel: new arrays = rule(*arrays, gradient, *numbers), for ``Blocks``."""
    items = read_items(arguments_address(ctx))
    given, width, parameter, W = _read_blocks(items.given), _row_width(ctx), 0, lanes_of(ctx)
    numbers = _load_numbers(ctx, given.numbers)
    for block in range(items.begin, items.end):
        parameter, start, count = _block(ctx, given.table, width, parameter, block)
        row = given.table + parameter * width * 8
        for k in range(0, count, W):
            at = start + k * (VECTOR_BYTES // W)
            values = _load_values(ctx, row, at, count - k, numbers[0])
            _store_values(ctx, _apply_rule(ctx, values, numbers[1:]), row, at, count - k)


# ---- norms


def _folding(combine):
    """An intrinsic that combines a vector's lanes in pairs, to a number in float64."""

    @emits(types.float64)
    def fold(builder, ctx, value):
        vector = VectorType(ctx.dtype)
        index = ir.VectorType(ir.IntType(32), vector.lanes)
        distance = vector.lanes // 2
        while distance:
            order = ir.Constant(index, [(k + distance) % vector.lanes for k in range(vector.lanes)])
            value = combine(builder, value, builder.shuffle_vector(value, value, order))
            distance //= 2
        number = builder.extract_element(value, ir.IntType(32)(0))
        return number if ctx.dtype == types.float64 else builder.fpext(number, ir.DoubleType())

    return fold


def _larger(builder, a, b):
    return builder.select(builder.fcmp_unordered(">", a, b), a, b)  # a, where either is NaN


_sum_of, _largest_of = _folding(ir.IRBuilder.fadd), _folding(_larger)


def _accessors(kind_of):
    """Intrinsics that load and store a number, as float64; in memory it is of a kind."""

    @emits(types.float64)
    def load(builder, ctx, address, index):
        kind = kind_of(ctx)
        number = builder.load(builder.gep(builder.inttoptr(address, kind.as_pointer()), [index]))
        return number if kind == ir.DoubleType() else builder.fpext(number, ir.DoubleType())

    @emits(types.void)
    def store(builder, ctx, address, index, number):
        kind = kind_of(ctx)
        number = number if kind == ir.DoubleType() else builder.fptrunc(number, kind)
        builder.store(number, builder.gep(builder.inttoptr(address, kind.as_pointer()), [index]))

    return load, store


_load_number, _store_number = _accessors(lambda ctx: VectorType(ctx.dtype).llvm.element)
_load_f64, _store_f64 = _accessors(lambda ctx: ir.DoubleType())


def squares_of_blocks(ctx):
    """A kernel: the sum of the squares of each block, for ``Blocks``."""
    items = read_items(arguments_address(ctx))
    given, parameter, W = _read_blocks(items.given), 0, lanes_of(ctx)
    for block in range(items.begin, items.end):
        parameter, start, count = _block(ctx, given.table, 3, parameter, block)
        address = load_i64(given.table, parameter * 3 + 2) + start
        a = b = load_part(ctx, address, 0)
        for k in range(0, count, 2 * W):
            place = address + k * (VECTOR_BYTES // W)
            x, y = (
                load_part(ctx, place, count - k),
                load_part(ctx, place + VECTOR_BYTES, count - k - W),
            )
            a, b = a + x * x, b + y * y
        _store_f64(ctx, given.out, block, _sum_of(ctx, a + b))


# ---- softmax and its loss


_read_rows = record(Rows)


@emits(of_ctx)
def _load_scores(builder, ctx, address, lanes, rest):
    """The first ``lanes`` lanes, at any address; the others are ``rest``."""
    vector = VectorType(ctx.dtype)
    return emit_load_part(builder, vector, address, lanes, _narrowed(builder, vector, rest))


def _narrowed(builder, vector, number):
    """A float64 in all lanes of a vector (LLVM level)."""
    kind = vector.llvm.element
    number = number if kind == ir.DoubleType() else builder.fptrunc(number, kind)
    return splat(builder, number, vector.llvm)


@emits(of_ctx)
def _in_all_lanes(builder, ctx, number):
    return _narrowed(builder, VectorType(ctx.dtype), number)


def log_sums(ctx):
    """A kernel: largest and log_sums of ``Rows``."""
    items = read_items(arguments_address(ctx))
    given, W = _read_rows(items.given), lanes_of(ctx)
    size, V = VECTOR_BYTES // W, given.V
    for row in range(items.begin, items.end):
        scores = given.scores + row * V * size
        first = _load_number(ctx, scores, 0)
        peak = _in_all_lanes(ctx, first)
        for k in range(0, V, W):
            peak = maximum(peak, _load_scores(ctx, scores + k * size, V - k, first))
        largest, total = _largest_of(ctx, peak), 0.0
        peak = _in_all_lanes(ctx, largest)
        for block in range(0, V, BLOCK):
            part = load_part(ctx, scores, 0)
            for k in range(block, min(block + BLOCK, V), W):
                part = part + exp(_load_scores(ctx, scores + k * size, V - k, -math.inf) - peak)
            total += _sum_of(ctx, part)
        _store_f64(ctx, given.largest, row, largest)
        _store_f64(ctx, given.log_sums, row, math.log(total))


def softmax_gradients(ctx):
    """A kernel: the gradient of ``Rows``; 0 where the weight is 0."""
    items = read_items(arguments_address(ctx))
    given, W = _read_rows(items.given), lanes_of(ctx)
    size, V = VECTOR_BYTES // W, given.V
    for row in range(items.begin, items.end):
        scores, out = given.scores + row * V * size, given.gradient + row * V * size
        weight, label = _load_f64(ctx, given.weights, row), load_i64(given.labels, row)
        if weight == 0.0:
            for k in range(0, V, W):
                store_part(ctx, load_part(ctx, scores, 0), out + k * size, V - k)
            continue
        largest = _in_all_lanes(ctx, _load_f64(ctx, given.largest, row))
        factor = _in_all_lanes(ctx, weight * math.exp(-_load_f64(ctx, given.log_sums, row)))
        for k in range(0, V, W):
            numbers = load_part(ctx, scores + k * size, V - k)
            store_part(ctx, exp(numbers - largest) * factor, out + k * size, V - k)
        if label >= 0:
            _store_number(ctx, out, label, _load_number(ctx, out, label) - weight)


# ---- the gradient of an embedding


_read_segments = record(Segments)


def add_segments(ctx):
    """A kernel: ``Segments``. Equal rows are added up in their order, some before the rest."""
    items = read_items(arguments_address(ctx))
    given, W = _read_segments(items.given), lanes_of(ctx)
    row_bytes, columns = given.D * (VECTOR_BYTES // W), GROUP // VECTOR_BYTES * W
    for item in range(items.begin, items.end):
        left, start, k = given.D - item * columns, item * GROUP, 0
        while k < given.length:
            row = load_i64(given.rows, k)
            out = given.out + row * row_bytes + start
            totals = _load_group(ctx, out, left)
            while k < given.length and load_i64(given.rows, k) == row:
                end, parts = min(k + 32, given.length), _load_group(ctx, out, 0)
                while k < end and load_i64(given.rows, k) == row:
                    place = given.values + load_i64(given.order, k) * row_bytes + start
                    parts = _add_groups(ctx, parts, _load_group(ctx, place, left))
                    k += 1
                totals = _add_groups(ctx, totals, parts)
            _store_group(ctx, totals, out, left)


def _group(ctx, *rest):
    return types.UniTuple(VectorType(ctx.dtype), GROUP // VECTOR_BYTES)


def _places(builder, ctx, address, left):
    """The address of each vector of a group, and how many lanes it has (LLVM level)."""
    for k in range(GROUP // VECTOR_BYTES):
        lanes = builder.sub(left, _I64(k * VectorType(ctx.dtype).lanes))
        yield builder.add(address, _I64(k * VECTOR_BYTES)), lanes


@emits(_group)
def _load_group(builder, ctx, address, left):
    vector = VectorType(ctx.dtype)
    return [emit_load_part(builder, vector, *at) for at in _places(builder, ctx, address, left)]


@emits(types.void)
def _store_group(builder, ctx, values, address, left):
    for k, at in enumerate(_places(builder, ctx, address, left)):
        emit_store_part(builder, VectorType(ctx.dtype), builder.extract_value(values, k), *at)


@emits(_group)
def _add_groups(builder, ctx, a, b):
    pairs = (
        [builder.extract_value(group, k) for group in (a, b)] for k in range(GROUP // VECTOR_BYTES)
    )
    return [builder.fadd(*pair) for pair in pairs]


# ---- dropout


_read_mask = record(Mask)


@emits(types.boolean)
def _is_drawn(builder, seed, threshold, place, unit):
    return emit_drawn(builder, ir.IntType(32), seed, threshold, place, unit)


@emits(types.void)
def _store_factor(builder, ctx, address, index, gone, left):
    kind = VectorType(ctx.dtype).llvm.element
    left = left if kind == ir.DoubleType() else builder.fptrunc(left, kind)
    place = builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])
    builder.store(builder.select(gone, kind(0.0), left), place)


def dropout_mask(ctx):
    """A kernel: ``Mask``, a loop that LLVM makes vectors of."""
    given = _read_mask(arguments_address(ctx))
    left, at = _load_number(ctx, given.left, 0), 0
    for n in range(given.N):
        for t in range(given.T):
            for k in range(given.H):
                gone = _is_drawn(given.seed, given.threshold, given.place + (t << 32) + n, k)
                _store_factor(ctx, given.out, at + k, gone, left)
            at += given.H
