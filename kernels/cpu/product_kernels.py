"""The kernels of products of large matrices (``product.py``)."""

from .gemm import WIDEST_TILE, Product
from .kernel_abi import arguments_address, call, jitted, record
from .panels import ColumnSums, Packing, Rounding
from .parallel_kernels import read_items
from .product import PART, ROWS, Matrices
from .simd import VECTOR_BYTES, lanes_of, load_part, store_part

_read = record(Matrices)


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
