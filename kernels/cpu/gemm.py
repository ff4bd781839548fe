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

Words may go through AMX's registers instead, whose tiles are larger (``amx.py``).

A matrix that serves but once need not be packed: ``multiply_in_place`` reads the rows of B where
the caller has them, some at a time, lest rows that are a power of two apart drive one another from
the cache.
"""

from typing import NamedTuple

from llvmlite import ir
from numba.core import types

from . import amx, bfloat16, int8
from .kernel_abi import arguments, emits, jitted
from .simd import (
    VECTOR_BYTES,
    VectorType,
    emit_fma,
    emit_load,
    emit_load_lanes,
    emit_load_part,
    emit_prefetch,
    emit_store_part,
    lanes_of,
    splat,
    vector_registers,
)
from .target import TILES_OF, has_bfloat16_product

_I64 = ir.IntType(64)


DEEPEST_TILE, WIDEST_TILE, WIDEST_FOR_ONE_ROW = TILES_OF[vector_registers()]
# the same for words that are taken apart, which takes registers
_OF_PARTS = {(32, 512): (4, 8), (16, 256): (4, 2), (32, 128): (2, 2), (16, 128): (1, 1)}
AHEAD = 16 * VECTOR_BYTES  # how far ahead a product of one row asks for B (measured)
IN_PLACE_DEPTH = 128  # rows of B that ``multiply_in_place`` takes at a time (measured)


class Kind(NamedTuple):
    """A kind of products."""

    transposed: bool = False  # A^T is given
    word: int = 1  # numbers in a word of the operands: 2 (``bfloat16.py``), 4 (``int8.py``)
    in_place: bool = False  # B is a matrix, of which no number behind a row's last is read
    amx: bool = False  # in its registers

    @property
    def most(self) -> tuple[int, int]:
        """The most rows of a tile, and the most vectors of one of a single row."""
        if self.amx:
            return amx.ROWS * (1 if self.transposed else 2), 4
        apart = {2: not has_bfloat16_product(), 4: not int8.has_dot_product()}
        if apart.get(self.word):
            return _OF_PARTS[vector_registers()]
        return DEEPEST_TILE, WIDEST_FOR_ONE_ROW

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """The shapes of its tiles: rows, vectors."""
        deepest, row = self.most
        made = {(rows, width) for rows in range(1, deepest + 1) for width in (1, 2, WIDEST_TILE)}
        made = {(rows, width) for rows, width in made if width <= WIDEST_TILE}
        if not self.transposed:
            made |= {(1, width) for width in (2, 3, 4, row) if width <= row}
        return sorted(made)


class Product(NamedTuple):
    """The arguments of ``multiply``: C = A B, or C += A B.

    A is (rows, groups * inner), B (groups * inner, columns). The inner axis runs through groups, in
    each through segments of W numbers that lie side by side; columns are vectors of W numbers.
    Strides are in bytes. Where operands are words, what is said of A's and B's numbers along the
    inner axis is so of words.
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


class ProductInPlace(NamedTuple):
    """The arguments of ``multiply_in_place``: the same, where B is a matrix (inner, columns).

    C's vectors are written whole: behind the columns are zeros.
    """

    a: int
    a_row: int
    a_segment: int
    inner: int
    b: int
    b_row: int
    c: int
    c_row: int
    c_vector: int
    rows: int
    columns: int


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


def _emit_multiply_add(builder, vector, depth, kind, sums, a_rows, b_vectors, b_row, load, ahead):
    """sums[r][v] += A[r, k] * B[k, v] for ``depth`` numbers k; load(v, address) is a vector of B.

    Meanwhile lines of B are asked for that lie ``ahead``: for one row, whose vectors serve but
    once, those that come soon (or the same, where all is in the first cache anyway), and in the
    widest tile all at once, lest LLVM orders them by chance; for many rows, a line of the next
    tile at a time.
    """
    size, new, rows = vector.dtype.bitwidth // 8, list(sums), len(a_rows)
    add_product = {1: emit_fma, 2: bfloat16.emit_dot, 4: int8.emit_dot}[kind.word]
    places = [builder.mul(b_row, _I64(k)) for k in range(depth)]

    def ask_for(b, place, cache):
        emit_prefetch(builder, builder.add(builder.add(b, ahead), place), cache)

    all_at_once = not kind.in_place and rows == 1 and len(b_vectors) == kind.most[1]
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
        row = [load(v, builder.add(b, at_k)) for v, b in enumerate(b_vectors)]
        for r, a in enumerate(a_rows):
            place = builder.add(a, _I64(k * (VECTOR_BYTES if kind.transposed else size)))
            pointer = builder.inttoptr(place, vector.llvm.element.as_pointer())
            number = splat(builder, builder.load(pointer), vector.llvm)
            for v, numbers in enumerate(row):
                k_sum = r * len(row) + v
                new[k_sum] = add_product(builder, vector, number, numbers, new[k_sum])
    return new


def _emit_tile(builder, vector, rows, vectors, kind, part, p, b_row):
    """One tile: p is a ``Product`` of LLVM values, which asks for B ``then`` bytes ahead.

    part  whether B is in place and its last vector has fewer lanes
    """
    size, W = vector.dtype.bitwidth // 8, vector.lanes
    a_row = _I64(size) if kind.transposed else p.a_row
    a_offsets = [builder.mul(a_row, _I64(r)) for r in range(rows)]
    b_offsets = [builder.mul(p.b_vector, _I64(v)) for v in range(vectors)]
    places, last = [], builder.sub(p.columns, _I64((vectors - 1) * W))
    for r in range(rows):
        c_now = builder.add(p.c, builder.mul(p.c_row, _I64(r)))
        for v in range(vectors):
            lanes = last if v == vectors - 1 and not kind.in_place else _I64(W)
            places.append((builder.add(c_now, builder.mul(p.c_vector, _I64(v))), lanes))

    def load(v, address):
        if part and v == vectors - 1:
            return emit_load_lanes(builder, vector, address, last)
        if kind.in_place:
            return emit_load_part(builder, vector, address, _I64(W))
        return emit_load(builder, vector, address)

    def products(depth, a_step):
        """The body of a loop: ``depth`` products, then on to the next."""

        def body(a, b, *sums):
            a_rows = [builder.add(a, offset) for offset in a_offsets]
            b_vectors = [builder.add(b, offset) for offset in b_offsets]
            new = _emit_multiply_add(
                builder, vector, depth, kind, sums, a_rows, b_vectors, b_row, load, p.then
            )
            return builder.add(a, a_step), builder.add(b, builder.mul(b_row, _I64(depth))), *new

        return body

    one = VECTOR_BYTES if kind.transposed else size  # from one of A's numbers to the next
    # more, and LLVM loads all of B before it begins, into registers that it does not have
    most = 16 // size if WIDEST_TILE == 1 else W
    depth = most if rows * vectors <= 8 and not kind.in_place else 4

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
            totals = [emit_load_part(builder, vector, *place) for place in places]
            if not kind.in_place:  # else a start, zero: no bit may depend on how B is cut
                totals = [builder.fadd(t, v) for t, v in zip(totals, values, strict=True)]
            end = builder.block
        results = [builder.phi(vector.llvm) for _ in places]
        for phi, value, total in zip(results, values, totals, strict=True):
            phi.add_incoming(value, start)
            phi.add_incoming(total, end)
        return results

    # sums over many rows: those that begin large are rounded roughly; sums of integers
    late = kind.transposed or kind.word == 4
    with builder.if_then(adding):
        for place, _ in places:  # wanted next: by this tile at its end, or the one below
            wanted = place if late else builder.add(place, builder.mul(p.c_row, _I64(rows)))
            emit_prefetch(builder, wanted, cache=1, for_writing=True)
    b_ends = [
        builder.add(p.b, builder.add(b, builder.mul(p.inner, _I64(VECTOR_BYTES))))
        for b in b_offsets
    ]
    sums = [ir.Constant(vector.llvm, [0.0] * vector.lanes)] * len(places)
    sums = sums if late else added(sums)
    if kind.word == 4:
        sums = int8.emit_starts(builder, vector, b_ends) * rows
    _, _, *sums = emit_loop(builder, p.groups, [p.a, p.b, *sums], group)
    if kind.word == 4:
        lines = builder.sdiv(builder.add(p.inner, _I64(W - 1)), _I64(W))
        a_end = builder.add(p.a, builder.mul(lines, p.a_segment))
        a_ends = [builder.add(a_end, offset) for offset in a_offsets]
        sums = int8.emit_scaled(builder, vector, sums, a_ends, b_ends)
    for value, place in zip(added(sums) if late else sums, places, strict=True):
        emit_store_part(builder, vector, value, *place)


def _tile_of(kind):
    """An intrinsic that multiplies a tile of one of a kind's shapes."""

    @emits(types.void)
    def multiply_tile(builder, ctx, rows, vectors, p, b_row):
        vector = VectorType(ctx.dtype)
        tile = Product._make(builder.extract_value(p, k) for k in range(len(Product._fields)))
        done = builder.append_basic_block("done")
        shape = builder.add(builder.mul(rows, _I64(16)), vectors)
        shapes = [(False, R, V) for R, V in kind.tiles]
        if kind.in_place:
            shapes += [(True, R, V) for R, V in kind.tiles]
            lanes = builder.mul(vectors, _I64(vector.lanes))
            part = builder.zext(builder.icmp_signed("<", tile.columns, lanes), _I64)
            shape = builder.add(shape, builder.mul(part, _I64(256)))
        choice = builder.switch(shape, done)
        for part, R, V in shapes:
            block = builder.append_basic_block(f"tile_{R}x{V}")
            choice.add_case(_I64(256 * part + 16 * R + V), block)
            builder.position_at_end(block)
            _emit_tile(builder, vector, R, V, kind, part, tile, b_row)
            builder.branch(done)
        builder.position_at_end(done)

    return multiply_tile


# ---- products


@jitted
def _begin():
    """Give tiles the bytes from row to row of B."""
    return VECTOR_BYTES


@jitted
def _end():
    """Nothing is left to be undone."""


def _product(name, kind):
    """A kernel that multiplies, made for a kind of products.

    No other function calls its tiles: LLVM would optimise all of them once more in that one.
    """
    transposed, by_groups, (deepest, widest_row) = kind.transposed, not kind.amx, kind.most

    @jitted
    def widest(rows):
        return widest_row * (rows == 1 and not transposed)

    multiply_tile, begin, end = _tile_of(kind), _begin, _end
    if kind.amx:
        multiply_tile, begin, end = amx.tile_of(transposed, kind.word), amx.begin, amx.end
        widest = amx.widest

    def kernel(ctx):
        p, given = arguments(ctx, Product), begin()
        rows, columns, b, c, W = p.rows, p.columns, p.b, p.c, lanes_of(ctx)
        next_row = VECTOR_BYTES // W if transposed else p.a_row
        blocks = (rows + deepest - 1) // deepest
        # one group after the other where its part of B serves several blocks of rows from the cache
        # (by AMX C would then be added to in another order, which must not depend on rows)
        turns, groups = (p.groups, 1) if blocks > 1 and by_groups else (1, p.groups)
        b_group = p.inner * VECTOR_BYTES
        in_second_cache = b_group * groups * ((columns + W - 1) // W) > 32768
        while columns > 0:
            wide = _tile_width(widest(rows), (columns + W - 1) // W)
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
                    multiply_tile(ctx, deep, wide, tile, given)
                    a_block += deep * next_row
                    c_block += deep * p.c_row
            columns -= wide * W
            b += wide * p.b_vector
            c += wide * p.c_vector
        end()

    kernel.__name__ = kernel.__qualname__ = name
    return kernel


# Each takes a ``Product``. A^T is given as one panel, whose W numbers are A's rows.
multiply = _product("multiply", Kind())
multiply_transposed = _product("multiply_transposed", Kind(transposed=True))
multiply_pairs = _product("multiply_pairs", Kind(word=2))
multiply_transposed_pairs = _product("multiply_transposed_pairs", Kind(True, word=2))
multiply_int8 = _product("multiply_int8", Kind(word=4))  # in one group
# the same by AMX, where ``target.in_tiles`` names them
multiply_pairs_amx = _product("multiply_pairs_amx", Kind(word=2, amx=True))
multiply_transposed_pairs_amx = _product("multiply_transposed_pairs_amx", Kind(True, 2, amx=True))
multiply_int8_amx = _product("multiply_int8_amx", Kind(word=4, amx=True))

_IN_PLACE = Kind(in_place=True)
_multiply_tile_in_place, (_DEEPEST, _WIDEST_ROW) = _tile_of(_IN_PLACE), _IN_PLACE.most


def multiply_in_place(ctx):
    """A kernel: ``ProductInPlace``."""
    p, W = arguments(ctx, ProductInPlace), lanes_of(ctx)
    blocks = (p.rows + _DEEPEST - 1) // _DEEPEST
    for start in range(0, p.inner, IN_PLACE_DEPTH):
        a_start, b, c = p.a + start // W * p.a_segment, p.b + start * p.b_row, p.c
        columns = p.columns
        while columns > 0:
            wide = _tile_width(_WIDEST_ROW * (p.rows == 1), (columns + W - 1) // W)
            a_block, c_block = a_start, c
            for block in range(blocks):
                deep = p.rows if blocks == 1 else (p.rows + blocks - 1 - block) // blocks
                ahead = wide + min(block, wide - 1)  # each asks for another line of the next tile
                tile = Product(
                    a=a_block, a_row=p.a_row, a_segment=p.a_segment, a_group=0,
                    groups=1, inner=min(p.inner - start, IN_PLACE_DEPTH), b=b,
                    b_vector=VECTOR_BYTES, c=c_block, c_row=p.c_row, c_vector=p.c_vector,
                    rows=deep, columns=min(columns, wide * W), add=min(start, 1),
                    then=ahead * VECTOR_BYTES,
                )  # fmt: skip
                _multiply_tile_in_place(ctx, deep, wide, tile, p.b_row)
                a_block += deep * p.a_row
                c_block += deep * p.c_row
            columns -= wide * W
            b += wide * VECTOR_BYTES
            c += wide * p.c_vector


@jitted
def _tile_width(widest_row, vectors):
    """How many vectors wide the next tile is, where that many are to go.

    widest_row  the most for one row, or for AMX; 0 where there are more rows
    """
    if widest_row:
        return widest_row if vectors >= widest_row else min(vectors, 4)
    return WIDEST_TILE if vectors >= WIDEST_TILE else min(vectors, WIDEST_TILE, 2)
