"""Products of large matrices, shared out to threads: C = A B, as BLAS has them.

C is cut into strips of columns, as wide as a tile, and these into blocks of rows: the items. The
part of B that a strip needs is packed, some rows of B at a time, into the second cache, and serves
all rows of A (``gemm.py``). Where A is a transposed view its panels are packed once, before.

    B (K, P)   | strip 0 | strip 1 | ...      K in parts of PART rows, which C adds up in order

In bfloat16 and int8 the rows of A are made words before, too (``bfloat16.py``, ``int8.py``). A B in
int8 is in panels already.
"""

from typing import Any, NamedTuple

import numpy as np

from ..engine import Array
from ..quantisation import QuantisedWeight
from . import panels
from .bfloat16 import pair_columns, pair_rows, pair_transposed
from .gemm import (
    WIDEST_TILE,
    Product,
    multiply,
    multiply_int8,
    multiply_pairs,
    multiply_transposed,
    multiply_transposed_pairs,
)
from .int8 import quantise_columns
from .kernel_abi import arguments_address, call, compiled, jitted, record
from .packing import pack_quantised_matrix
from .panels import ColumnSums, Packing, Rounding
from .parallel_for import parallel_for, read_items, shards_for
from .plans import address_of, aligned
from .simd import VECTOR_BYTES, lanes_of, load_part, store_part

PART = 1024  # rows of B that are packed at a time; even
ROWS = 96  # of a block: a multiple of the depth of all tiles
SMALL = 1 << 16  # multiplications that NumPy has done sooner


class Matrices(NamedTuple):
    """A product: addresses, sizes, bytes from row to row; and the kernels."""

    a: int  # of a transposed one: its panels; or its words
    a_row: int
    b: int
    b_row: int
    c: int
    c_row: int
    bias: int  # the address of a row that C's rows begin with, or 0
    sums: int  # where the sums of B's columns go, or 0
    size: int  # bytes of a number
    word: int  # numbers in a word of the operands
    M: int
    K: int
    P: int
    a_transposed: int
    b_transposed: int
    blocks: int  # of rows
    memory: int  # where B is packed
    share: int  # bytes of it for each thread; of a row of A's words
    round_columns: int
    pack: int
    pack_transposed: int
    multiply: int
    multiply_transposed: int
    column_sums: int


_read = record(Matrices)
_KERNELS = panels.pack, panels.pack_transposed, multiply, multiply_transposed
_OF_PAIRS = (
    pair_rows, pair_transposed, multiply_pairs,
    multiply_transposed_pairs,
)  # fmt: skip


@jitted
def _words(given, numbers):
    return numbers if given.word == 1 else (numbers + given.word - 1) // given.word


def pack_columns(ctx):
    """A kernel: the panels of A^T; an item is a panel."""
    items = read_items(arguments_address(ctx))
    given, W = _read(items.given), lanes_of(ctx)
    panel = (_words(given, given.K) | 1) * VECTOR_BYTES
    for k in range(items.begin, items.end):
        call(given.pack, Packing(
            source=given.a + k * VECTOR_BYTES, source_row=given.a_row, source_panel=VECTOR_BYTES,
            rows=given.K, columns=min(given.M - k * W, W), to=given.memory + k * panel,
            to_row=VECTOR_BYTES, to_panel=panel,
        ))  # fmt: skip


def round_row_blocks(ctx):
    """A kernel: the rows of A as words, in ``given.memory``; an item is a block of rows."""
    items = read_items(arguments_address(ctx))
    given = _read(items.given)
    first, W, row = items.begin * ROWS, lanes_of(ctx), given.share
    scale = given.memory + first * row + (_words(given, given.K) + W - 1) // W * VECTOR_BYTES
    call(given.round_columns, Rounding(
        source=given.a + first * given.a_row, source_row=given.a_row, source_panel=VECTOR_BYTES,
        rows=min(items.end * ROWS, given.M) - first, columns=given.K,
        to=given.memory + first * row, to_row=row, to_panel=VECTOR_BYTES,
        scale=scale if given.word == 4 else 0, bounded=0,
    ))  # fmt: skip


@jitted
def _multiply(given, memory, panel, first, start, inner, rows, columns, c, c_row, add):
    """Some rows of A times what is packed of B, of so many words."""
    call(given.multiply, Product(
        a=given.a + first * given.a_row + start // given.word * given.size, a_row=given.a_row,
        a_segment=VECTOR_BYTES, a_group=0, groups=1, inner=inner, b=memory, b_vector=panel, c=c,
        c_row=c_row, c_vector=VECTOR_BYTES, rows=rows, columns=columns, add=add, then=0,
    ))  # fmt: skip


def multiply_strips(ctx):
    """A kernel: some rows of some columns of C; an item is a block of rows of a strip."""
    items = read_items(arguments_address(ctx))
    given, W = _read(items.given), lanes_of(ctx)
    size, width, memory = (
        VECTOR_BYTES // W,
        WIDEST_TILE * W,
        given.memory + items.shard * given.share,
    )
    begin = items.begin
    while begin < items.end:
        strip = begin // given.blocks
        end = min(items.end, (strip + 1) * given.blocks)
        first, last = (begin - strip * given.blocks) * ROWS, (end - strip * given.blocks) * ROWS
        rows, column = min(last, given.M) - first, strip * width
        columns = min(width, given.P - column)
        c = given.c + first * given.c_row + column * size
        for start in range(0, given.K, PART):
            inner = min(PART, given.K - start)
            words = _words(given, inner)
            panel = ((words + W - 1) // W * W | 1) * VECTOR_BYTES
            source = given.b + start * given.b_row + column * size
            if given.b_transposed:
                call(given.pack_transposed, Packing(
                    source=given.b + column * given.b_row + start * size, source_row=given.b_row,
                    source_panel=W * given.b_row, rows=columns, columns=inner, to=memory,
                    to_row=VECTOR_BYTES, to_panel=panel,
                ))  # fmt: skip
            else:
                call(given.pack, Packing(
                    source=source, source_row=given.b_row, source_panel=VECTOR_BYTES, rows=inner,
                    columns=columns, to=memory, to_row=VECTOR_BYTES, to_panel=panel,
                ))  # fmt: skip
            add = 1 if start or given.bias else 0
            if given.sums and first == 0:
                numbers, row, next_panel = memory, VECTOR_BYTES, panel
                if given.word > 1:  # of the numbers themselves
                    numbers, row, next_panel = source, given.b_row, VECTOR_BYTES
                call(given.column_sums, ColumnSums(
                    source=numbers, row=row, panel=next_panel, rows=inner, columns=columns,
                    out=given.sums + column * size, add=1 if start else 0,
                ))  # fmt: skip
            if given.bias and start == 0:
                for r in range(rows):
                    for k in range(0, columns, W):
                        numbers = load_part(ctx, given.bias + (column + k) * size, columns - k)
                        store_part(ctx, numbers, c + r * given.c_row + k * size, columns - k)
            if given.a_transposed:
                a_panel = (_words(given, given.K) | 1) * VECTOR_BYTES
                for k in range(first // W, (first + rows + W - 1) // W):
                    call(given.multiply_transposed, Product(
                        a=given.a + k * a_panel + start // given.word * VECTOR_BYTES, a_row=0,
                        a_segment=W * VECTOR_BYTES, a_group=0, groups=1, inner=words, b=memory,
                        b_vector=panel, c=c + (k * W - first) * given.c_row, c_row=given.c_row,
                        c_vector=VECTOR_BYTES, rows=min(W, first + rows - k * W), columns=columns,
                        add=add, then=0,
                    ))  # fmt: skip
            elif start == 0:
                _multiply(
                    given, memory, panel, first, start, words, rows, columns, c, given.c_row, add
                )
            else:  # apart from the sum so far, lest every number is rounded to its size
                part = memory + given.share - ROWS * width * size
                for r in range(0, rows, ROWS):
                    some = min(ROWS, rows - r)
                    _multiply(
                        given, memory, panel, first + r, start, words, some, columns, part,
                        width * size, 0,
                    )  # fmt: skip
                    for n in range(some):
                        for k in range(0, columns, W):
                            place = c + (r + n) * given.c_row + k * size
                            more = load_part(ctx, part + (n * width + k) * size, columns - k)
                            whole = load_part(ctx, place, columns - k) + more
                            store_part(ctx, whole, place, columns - k)
        begin = end


def product(
    a: Array,
    b: Array,
    bias: Array | None = None,
    sums: Array | None = None,
    out: Array | None = None,
    bfloat16: bool = False,
) -> Array:
    """A (M, K) B (K, P); each has rows or columns whose numbers lie side by side.

    bias      (P,), added to each row
    sums      (P,), gets the sums of B's columns
    out       (M, P), gets the result; the numbers of a row lie side by side
    bfloat16  whether the operands, float32, are rounded to that
    """
    (M, K), P, size = a.shape, b.shape[1], a.itemsize
    if bfloat16 and sums is not None and _is_transposed(b):
        b = np.ascontiguousarray(b)  # its numbers are added up by rows
    a_transposed, b_transposed = _is_transposed(a), _is_transposed(b)
    word = 2 if bfloat16 and a.dtype == np.float32 else 1
    kernels = *(_OF_PAIRS if word > 1 else _KERNELS), panels.column_sums
    lanes, dtype = VECTOR_BYTES // size, a.dtype.name
    blocks, strips = -(-M // ROWS), -(-P // (WIDEST_TILE * lanes))
    packed = (WIDEST_TILE + 1) * (min(PART, K) + lanes + 1) * VECTOR_BYTES
    share = packed + ROWS * WIDEST_TILE * VECTOR_BYTES
    shards = shards_for(strips * blocks, M * P)
    scratch = aligned(shards * share, a.dtype)
    out = np.empty((M, P), a.dtype) if out is None else out
    given = Matrices(
        address_of(a), a.strides[1 if a_transposed else 0], address_of(b),
        b.strides[1 if b_transposed else 0], address_of(out), out.strides[0],
        0 if bias is None else address_of(bias), 0 if sums is None else address_of(sums),
        size, word, M, K, P, a_transposed, b_transposed, blocks, scratch[1], share,
        compiled(pair_columns, dtype) if word > 1 else 0,
        *(compiled(kernel, dtype) for kernel in kernels),
    )  # fmt: skip
    panels_of_a = -(-M // lanes) * (-(-K // word) | 1) * VECTOR_BYTES if a_transposed else 0
    memory = aligned(panels_of_a, a.dtype)
    if a_transposed:
        packing = given._replace(memory=memory[1])
        parallel_for(compiled(pack_columns, dtype), packing, -(-M // lanes), shards)
        given = given._replace(a=memory[1])
    elif word > 1:
        memory, given = _rows_in_words(given, dtype, shards)
    parallel_for(compiled(multiply_strips, dtype), given, strips * blocks, shards)
    return out


def _rows_in_words(given: Matrices, dtype: str, shards: int) -> tuple[Any, Matrices]:
    """The rows of A as words: their memory, and the product with them."""
    lanes = VECTOR_BYTES // given.size
    words = -(-given.K // given.word)
    row = (-(-words // lanes) + (given.word == 4) | 1) * VECTOR_BYTES
    memory = aligned(given.M * row, np.dtype(dtype))
    rounding = given._replace(memory=memory[1], share=row)
    parallel_for(compiled(round_row_blocks, dtype), rounding, given.blocks, shards)
    return memory, given._replace(a=memory[1], a_row=row)


def multiply_packed(ctx):
    """A kernel: some rows of some columns of C, B being in panels; an item as above."""
    items = read_items(arguments_address(ctx))
    given, W = _read(items.given), lanes_of(ctx)
    size, width = VECTOR_BYTES // W, WIDEST_TILE * W
    for item in range(items.begin, items.end):
        strip, block = item // given.blocks, item % given.blocks
        rows, columns = min(ROWS, given.M - block * ROWS), min(width, given.P - strip * width)
        c = given.c + block * ROWS * given.c_row + strip * width * size
        if given.bias:
            for r in range(rows):
                for k in range(0, columns, W):
                    numbers = load_part(ctx, given.bias + (strip * width + k) * size, columns - k)
                    store_part(ctx, numbers, c + r * given.c_row + k * size, columns - k)
        call(given.multiply, Product(
            a=given.a + block * ROWS * given.a_row, a_row=given.a_row, a_segment=VECTOR_BYTES,
            a_group=0, groups=1, inner=_words(given, given.K),
            b=given.b + strip * WIDEST_TILE * given.b_row, b_vector=given.b_row, c=c,
            c_row=given.c_row, c_vector=VECTOR_BYTES, rows=rows, columns=columns,
            add=1 if given.bias else 0, then=0,
        ))  # fmt: skip


def quantised_product(a: Array, weight: QuantisedWeight, bias: Array | None = None) -> Array:
    """A (M, K) in float32, whose rows lie side by side, times a weight (K, P) in int8."""
    (M, K), P, dtype = a.shape, weight.shape[1], "float32"
    out = np.empty((M, P), np.float32)
    _, b = pack_quantised_matrix(weight)
    lanes = VECTOR_BYTES // 4
    blocks, strips = -(-M // ROWS), -(-P // (WIDEST_TILE * lanes))
    shards = shards_for(strips * blocks, M * P)
    given = Matrices(
        a=address_of(a), a_row=a.strides[0], b=b, b_row=(-(-K // 4) + 2 | 1) * VECTOR_BYTES,
        c=address_of(out), c_row=out.strides[0], bias=0 if bias is None else address_of(bias),
        sums=0, size=4, word=4, M=M, K=K, P=P, a_transposed=0, b_transposed=0, blocks=blocks,
        memory=0, share=0, round_columns=compiled(quantise_columns, dtype), pack=0,
        pack_transposed=0, multiply=compiled(multiply_int8, dtype), multiply_transposed=0,
        column_sums=0,
    )  # fmt: skip
    _memory, given = _rows_in_words(given, dtype, shards)
    parallel_for(compiled(multiply_packed, dtype), given, strips * blocks, shards)
    return out


def _is_transposed(matrix: Array) -> bool:
    """Whether the numbers of a column lie side by side, and not those of a row."""
    return matrix.strides[1] != matrix.itemsize


def takes(a: Array, b: Array) -> bool:
    """Whether ``product`` takes these matrices, and is worth its call."""
    return (
        type(a) is type(b) is np.ndarray  # and not a weight in int8
        and a.ndim == b.ndim == 2
        and a.shape[0] * a.shape[1] * b.shape[1] > SMALL
        and a.dtype == b.dtype
        and a.dtype in (np.float32, np.float64)
        and a.dtype.isnative
        and all(_is_dense(matrix) for matrix in (a, b))
    )


def _is_dense(matrix: Array) -> bool:
    rows, columns = sorted(matrix.strides)
    return bool(rows == matrix.itemsize and columns >= rows and matrix.flags.aligned)
