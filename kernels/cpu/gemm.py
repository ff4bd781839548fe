"""Matrix products, made for matrices that are too small for a BLAS call.

All numbers that the engine keeps for itself lie in *panels*: 64 bytes wide strips of a matrix,
so that a row of a panel is one aligned vector (W = 16 float32 or 8 float64 numbers).

    a matrix (rows, columns)             its panels
    +----------+----------+-----+        panel 0     panel 1     panel 2
    | row 0    |          |     |        row 0 ...   row 0 ...   row 0 ... (padded)
    | row 1    |          |     |   ->   row 1 ...   row 1 ...   row 1 ...
    | ...      |          |     |        ...         ...         ...
    +----------+----------+-----+
      W columns  W columns  rest         one after the other, an odd number of rows apart

(An even number, say 64, would put the same row of all panels into one set of the cache.)

A product's output is cut into tiles of a few rows by a few vectors, one from each panel. A tile's
sums stay in registers while the inner axis runs: every vector of B serves all rows, every number
of A all vectors.

    sums[r][v]  +=  A[row r, k] * B[k, panel v]           for k along the inner axis

A's numbers may lie anywhere: along rows (``multiply``) or along the rows of a panel, which makes
it A^T (``multiply_transposed``, for the weight gradients: x^T dgates). Every sum adds up in the
order of k whatever the tile's shape, so results do not depend on how a product is shared out.
"""

from typing import NamedTuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .kernel_abi import arguments, emits, jitted
from .simd import (
    VECTOR_BYTES,
    VectorType,
    emit_fma,
    emit_load,
    emit_load_part,
    emit_prefetch,
    emit_store,
    emit_store_part,
    lanes_of,
    load,
    load_part,
    splat,
    store,
    store_part,
    vector_registers,
)

_I64 = ir.IntType(64)


# Tiles whose sums, and what is added to them, fit the registers (counted in compiled loops, which
# test_tiles.py does; the fastest of those by llvm-mca). Six rows of four vectors are 24 registers
# of AVX-512; where a vector takes two registers (AVX) or four (NEON, SSE), a tile is one wide.
DEEPEST_TILE, WIDEST_TILE, WIDEST_FOR_ONE_ROW = {
    (32, 512): (6, 4, 8),
    (16, 256): (6, 1, 4),
    (32, 128): (4, 1, 3),
    (16, 128): (2, 1, 2),
}[vector_registers()]
_DEPTHS, _WIDTHS = range(1, DEEPEST_TILE + 1), {2, 3, 4, WIDEST_FOR_ONE_ROW}
TILES = {(rows, width) for rows in _DEPTHS for width in (1, 2, 4) if width <= WIDEST_TILE}
TILES_OF_ONE_ROW = {(1, width) for width in _WIDTHS if width <= WIDEST_FOR_ONE_ROW}  # not for A^T
AHEAD = 16 * VECTOR_BYTES  # how far ahead a product of one row asks for B (measured)


PLAIN, TRANSPOSED, BFLOAT16 = range(3)  # kinds of products


class Product(NamedTuple):
    """The arguments of ``multiply``: C = A B, or C += A B.

    A is (rows, groups * inner), B (groups * inner, columns). The inner axis runs through groups, in
    each through segments of W numbers that lie side by side; columns are vectors of W numbers.
    Strides are in bytes.
    """

    a: int
    a_row: int
    a_segment: int
    a_group: int
    groups: int
    inner: int
    b: int
    b_vector: int
    c: int
    c_row: int
    c_vector: int
    rows: int
    columns: int
    add: int  # whether C is added to
    then: int  # from the last tile's B to that of the next product, to ask for it; 0 if unknown


# ---- a tile


def emit_loop(builder, count, carried, body):
    """for _ in range(count): carried = body(*carried); returns carried (LLVM level)."""
    before = builder.block
    head, after = (builder.append_basic_block(name) for name in ("loop", "after"))
    builder.cbranch(builder.icmp_signed(">", count, _I64(0)), head, after)

    builder.position_at_end(head)
    turn = builder.phi(_I64)
    now = [builder.phi(value.type) for value in carried]
    new = body(*now)
    next_turn, end = builder.add(turn, _I64(1)), builder.block
    builder.cbranch(builder.icmp_signed("<", next_turn, count), head, after)
    for phi, first, later in zip([turn, *now], [_I64(0), *carried], [next_turn, *new], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, end)

    builder.position_at_end(after)
    results = [builder.phi(value.type) for value in carried]
    for phi, first, later in zip(results, carried, new, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, end)
    return results


def _emit_multiply_add(builder, vector, depth, kind, sums, a_rows, b_vectors, ahead):
    """sums[r][v] += A[r, k] * B[k, v] for ``depth`` numbers k.

    Meanwhile lines of B are asked for that lie ``ahead``: for one row, whose vectors serve but
    once, those that come soon (or the same, where all is in the first cache anyway), and in the
    widest tile all at once, lest LLVM orders them by chance; for many rows, a line of the next
    tile at a time.
    """
    size, new, rows = vector.dtype.bitwidth // 8, list(sums), len(a_rows)
    load_b = emit_load_bfloat16 if kind == BFLOAT16 else emit_load
    places = [_I64(k * _b_row(kind)) for k in range(depth)]

    def ask_for(b, place, cache):
        emit_prefetch(builder, builder.add(builder.add(b, ahead), place), cache)

    all_at_once = rows == 1 and len(b_vectors) == WIDEST_FOR_ONE_ROW
    if all_at_once:
        for b in b_vectors:
            for place in places:
                ask_for(b, place, cache=1)
    for k, at_k in enumerate(places):
        if rows == 1 and not all_at_once:
            for b in b_vectors:
                ask_for(b, at_k, cache=1)
        if rows > 3:
            ask_for(b_vectors[0], at_k, cache=2)
        row = [load_b(builder, vector, builder.add(b, at_k)) for b in b_vectors]
        for r, a in enumerate(a_rows):
            place = builder.add(a, _I64(k * (VECTOR_BYTES if kind == TRANSPOSED else size)))
            pointer = builder.inttoptr(place, vector.llvm.element.as_pointer())
            number = splat(builder, builder.load(pointer), vector.llvm)
            for v, numbers in enumerate(row):
                k_sum = r * len(row) + v
                new[k_sum] = emit_fma(builder, vector, number, numbers, new[k_sum])
    return new


def emit_load_bfloat16(builder, vector, address):
    """A vector from numbers of two bytes each: the upper halves of float32 (LLVM level)."""
    halves = ir.VectorType(ir.IntType(16), vector.lanes)
    stored = builder.load(
        builder.inttoptr(address, halves.as_pointer()), align=vector.alignment // 2
    )
    bits = builder.zext(stored, vector.llvm_bits)
    places = ir.Constant(vector.llvm_bits, [16] * vector.lanes)
    return builder.bitcast(builder.shl(bits, places), vector.llvm)


def _b_row(kind):
    return VECTOR_BYTES // 2 if kind == BFLOAT16 else VECTOR_BYTES


def _emit_tile(builder, vector, rows, vectors, kind, p):
    """One tile: p is a ``Product`` of LLVM values, which asks for B ``then`` bytes ahead."""
    size, W = vector.dtype.bitwidth // 8, vector.lanes
    a_row = _I64(size) if kind == TRANSPOSED else p.a_row
    a_offsets = [builder.mul(a_row, _I64(r)) for r in range(rows)]
    b_offsets = [builder.mul(p.b_vector, _I64(v)) for v in range(vectors)]
    places = []
    for r in range(rows):
        c_now = builder.add(p.c, builder.mul(p.c_row, _I64(r)))
        for v in range(vectors):
            lanes = builder.sub(p.columns, _I64(v * W)) if v == vectors - 1 else _I64(W)
            places.append((builder.add(c_now, builder.mul(p.c_vector, _I64(v))), lanes))

    def products(depth, a_step):
        """The body of a loop: ``depth`` products, then on to the next."""

        def body(a, b, *sums):
            a_rows = [builder.add(a, offset) for offset in a_offsets]
            b_vectors = [builder.add(b, offset) for offset in b_offsets]
            new = _emit_multiply_add(builder, vector, depth, kind, sums, a_rows, b_vectors, p.then)
            return builder.add(a, a_step), builder.add(b, _I64(depth * _b_row(kind))), *new

        return body

    one = VECTOR_BYTES if kind == TRANSPOSED else size  # from one of A's numbers to the next
    # more, and LLVM loads all of B before it begins, into registers that it does not have
    most = 16 // size if WIDEST_TILE == 1 else W
    depth = most if rows * vectors <= 8 else 4

    def segment(start, b, *sums):
        _, b, *sums = emit_loop(
            builder, _I64(W // depth), [start, b, *sums], products(depth, _I64(depth * one))
        )
        return builder.add(start, p.a_segment), b, *sums

    def group(start, b, *sums):
        whole, rest = builder.sdiv(p.inner, _I64(W)), builder.srem(p.inner, _I64(W))
        a_k, b, *sums = emit_loop(builder, whole, [start, b, *sums], segment)
        _, b, *sums = emit_loop(builder, rest, [a_k, b, *sums], products(1, _I64(one)))
        return builder.add(start, p.a_group), b, *sums

    adding = builder.icmp_signed("!=", p.add, _I64(0))

    def added(values):
        """The values, and what C holds where that is to be added to."""
        start = builder.block
        with builder.if_then(adding):
            totals = [
                builder.fadd(emit_load_part(builder, vector, *place), value)
                for value, place in zip(values, places, strict=True)
            ]
            end = builder.block
        results = [builder.phi(vector.llvm) for _ in places]
        for phi, value, total in zip(results, values, totals, strict=True):
            phi.add_incoming(value, start)
            phi.add_incoming(total, end)
        return results

    late = kind == TRANSPOSED  # sums over many rows: those that begin large are rounded roughly
    with builder.if_then(adding):
        for place, _ in places:  # wanted next: by this tile at its end, or the one below
            wanted = place if late else builder.add(place, builder.mul(p.c_row, _I64(rows)))
            emit_prefetch(builder, wanted, cache=1, for_writing=True)
    sums = [ir.Constant(vector.llvm, [0.0] * vector.lanes)] * len(places)
    sums = sums if late else added(sums)
    _, _, *sums = emit_loop(builder, p.groups, [p.a, p.b, *sums], group)
    for value, place in zip(added(sums) if late else sums, places, strict=True):
        emit_store_part(builder, vector, value, *place)


@intrinsic(prefer_literal=True)
def _multiply_tile(typing, ctx, kind, rows, vectors, p):
    """The tile of that shape, one of TILES."""
    vector = VectorType(ctx.dtype)

    def codegen(context, builder, signature, args):
        _, _, rows_, vectors_, p_ = args
        tile = Product._make(builder.extract_value(p_, k) for k in range(len(p)))
        done = builder.append_basic_block("done")
        choice = builder.switch(builder.add(builder.mul(rows_, _I64(16)), vectors_), done)
        transposed = kind.literal_value == TRANSPOSED
        for R, V in sorted(TILES if transposed else TILES | TILES_OF_ONE_ROW):
            block = builder.append_basic_block(f"tile_{R}x{V}")
            choice.add_case(_I64(16 * R + V), block)
            builder.position_at_end(block)
            _emit_tile(builder, vector, R, V, kind.literal_value, tile)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(ctx, kind, types.int64, types.int64, p), codegen


# ---- products


def _product(name, kind):
    """A kernel that multiplies, made for a kind of products.

    No other function calls its tiles: LLVM would optimise all of them once more in that one.
    """

    def kernel(ctx):
        p = arguments(ctx, Product)
        rows, columns, b, c, W = p.rows, p.columns, p.b, p.c, lanes_of(ctx)
        next_row = VECTOR_BYTES // W if kind == TRANSPOSED else p.a_row
        blocks = (rows + DEEPEST_TILE - 1) // DEEPEST_TILE
        # one group after the other where its part of B serves several blocks of rows from the cache
        turns, groups = (p.groups, 1) if blocks > 1 else (1, p.groups)
        b_group = p.inner * (VECTOR_BYTES // 2 if kind == BFLOAT16 else VECTOR_BYTES)
        in_second_cache = b_group * groups * ((columns + W - 1) // W) > 32768
        while columns > 0:
            wide = _tile_width(rows == 1 and kind != TRANSPOSED, (columns + W - 1) // W)
            next_tile = wide * p.b_vector if columns > wide * W else p.then
            for turn in range(turns):
                a_block, b_block, c_block = p.a + turn * p.a_group, b + turn * b_group, c
                next_b = b_group if turn < turns - 1 else next_tile - turn * b_group
                add = p.add if turn == 0 else 1
                for block in range(blocks):  # of nearly the same number of rows
                    deep = rows if blocks == 1 else (rows + blocks - 1 - block) // blocks
                    ahead = next_b + block * p.b_vector if block < wide else 0
                    if rows == 1:
                        ahead = AHEAD if in_second_cache else 0
                    tile = Product(
                        a=a_block, a_row=p.a_row, a_segment=p.a_segment, a_group=p.a_group,
                        groups=groups, inner=p.inner, b=b_block, b_vector=p.b_vector,
                        c=c_block, c_row=p.c_row, c_vector=p.c_vector,
                        rows=deep, columns=min(columns, wide * W), add=add, then=ahead,
                    )  # fmt: skip
                    _multiply_tile(ctx, kind, deep, wide, tile)
                    a_block += deep * next_row
                    c_block += deep * p.c_row
            columns -= wide * W
            b += wide * p.b_vector
            c += wide * p.c_vector

    kernel.__name__ = kernel.__qualname__ = name
    return kernel


# Each takes a ``Product``. A^T is given as one panel, whose W numbers are A's rows; the panels of a
# B in bfloat16 are half as wide (32 bytes).
multiply = _product("multiply", PLAIN)
multiply_transposed = _product("multiply_transposed", TRANSPOSED)
multiply_bfloat16 = _product("multiply_bfloat16", BFLOAT16)


@jitted
def _tile_width(one_row, vectors):
    """How many vectors wide the next tile is, where that many are to go."""
    if one_row:
        return WIDEST_FOR_ONE_ROW if vectors >= WIDEST_FOR_ONE_ROW else min(vectors, 4)
    return WIDEST_TILE if vectors >= WIDEST_TILE else min(vectors, WIDEST_TILE, 2)


# ---- to panels and back


class Packing(NamedTuple):
    """A matrix (rows, columns) to be packed, and where its panels begin; strides in bytes."""

    source: int
    source_row: int
    rows: int
    columns: int
    to: int
    to_row: int
    to_panel: int


class Unpacking(NamedTuple):
    """Panels, and the matrix (rows, columns) that they become."""

    source: int
    source_row: int
    source_panel: int
    rows: int
    columns: int
    to: int
    to_row: int


class ColumnSums(NamedTuple):
    """Panels (rows, columns), and where the sum of each column goes."""

    panels: int
    panel: int  # bytes from one panel to the next
    rows: int
    columns: int
    out: int
    add: int  # whether it is added to what is there


def pack(ctx):
    """A kernel: panels of a matrix; padding is zero."""
    p = arguments(ctx, Packing)
    W = lanes_of(ctx)
    for start in range(0, p.rows, 8):  # few rows at a time: their lines stay in the cache
        for panel in range((p.columns + W - 1) // W):
            source, to = p.source + panel * VECTOR_BYTES, p.to + panel * p.to_panel
            for r in range(start, min(start + 8, p.rows)):
                numbers = load_part(ctx, source + r * p.source_row, p.columns - panel * W)
                store(ctx, numbers, to + r * p.to_row)


def unpack(ctx):
    """A kernel: a matrix from its panels."""
    p = arguments(ctx, Unpacking)
    W = lanes_of(ctx)
    for panel in range((p.columns + W - 1) // W):
        source, to = p.source + panel * p.source_panel, p.to + panel * VECTOR_BYTES
        for r in range(p.rows):
            numbers = load(ctx, source + r * p.source_row)
            store_part(ctx, numbers, to + r * p.to_row, p.columns - panel * W)


def pack_transposed(ctx):
    """A kernel: panels of the transpose of a matrix, without gaps in them; padding is zero."""
    p = arguments(ctx, Packing)
    W = lanes_of(ctx)
    for panel in range((p.rows + W - 1) // W):
        for start in range(0, p.columns, W):
            square = p.source + panel * W * p.source_row + start * (VECTOR_BYTES // W)
            place = p.to + panel * p.to_panel + start * VECTOR_BYTES
            rows, columns = p.rows - panel * W, p.columns - start
            _transpose(ctx, square, p.source_row, rows, place, columns)


def column_sums(ctx):
    """A kernel: ``ColumnSums``."""
    p = arguments(ctx, ColumnSums)
    W = lanes_of(ctx)
    for k in range((p.columns + W - 1) // W):
        panel, out, lanes = p.panels + k * p.panel, p.out + k * VECTOR_BYTES, p.columns - k * W
        total = load_part(ctx, out, lanes * p.add)
        for start in range(0, p.rows, 32):  # the sum of a few rows is added to that of the others
            part = load_part(ctx, out, 0)
            for r in range(start, min(start + 32, p.rows)):
                part = part + load(ctx, panel + r * VECTOR_BYTES)
            total = total + part
        store_part(ctx, total, out, lanes)


@emits(types.void)
def _transpose(builder, ctx, source, source_row, rows, to, columns):
    """A square of W rows (as far as there are that many) and W columns, transposed.

    Log2(W) rounds, each of which swaps halves, quarters ... between pairs of rows.
    """
    vector = VectorType(ctx.dtype)
    W = vector.lanes
    lines = []
    for r in range(W):
        exists = builder.icmp_signed("<", _I64(r), rows)
        lanes = builder.select(exists, columns, _I64(0))
        place = builder.add(source, builder.mul(source_row, _I64(r)))
        lines.append(emit_load_part(builder, vector, place, lanes))
    distance = W // 2
    while distance:
        index = ir.VectorType(ir.IntType(32), W)
        low = [k if not k & distance else W + k - distance for k in range(W)]
        high = [k + distance if not k & distance else W + k for k in range(W)]
        new = list(lines)
        for r in range(W):
            if not r & distance:
                pair = lines[r], lines[r + distance]
                new[r] = builder.shuffle_vector(*pair, ir.Constant(index, low))
                new[r + distance] = builder.shuffle_vector(*pair, ir.Constant(index, high))
        lines, distance = new, distance // 2
    for r in range(W):
        with builder.if_then(builder.icmp_signed("<", _I64(r), columns), likely=True):
            emit_store(builder, vector, lines[r], builder.add(to, _I64(r * VECTOR_BYTES)))
