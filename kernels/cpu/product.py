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
from .kernel_cache import compiled
from .packing import pack_quantised_matrix
from .parallel_for import parallel_for, shards_for
from .plans import address_of, aligned
from .target import TILES_OF, VECTOR_BYTES, in_tiles, vector_registers

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


_KERNELS = (
    "panels.pack", "panels.pack_transposed", "gemm.multiply", "gemm.multiply_transposed",
)  # fmt: skip
_OF_PAIRS = (
    "bfloat16.pair_rows", "bfloat16.pair_transposed", "gemm.multiply_pairs",
    "gemm.multiply_transposed_pairs",
)  # fmt: skip


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
    *kernels, multiply, multiply_transposed = _OF_PAIRS if word > 1 else _KERNELS
    kernels += [in_tiles(multiply, word, M), in_tiles(multiply_transposed, word)]
    lanes, dtype = VECTOR_BYTES // size, a.dtype.name
    _, widest, _ = TILES_OF[vector_registers()]
    blocks, strips = -(-M // ROWS), -(-P // (widest * lanes))
    packed = (widest + 1) * (min(PART, K) + lanes + 1) * VECTOR_BYTES
    share = packed + ROWS * widest * VECTOR_BYTES
    shards = shards_for(strips * blocks, M * P)
    scratch = aligned(shards * share, a.dtype)
    out = np.empty((M, P), a.dtype) if out is None else out
    given = Matrices(
        address_of(a), a.strides[1 if a_transposed else 0], address_of(b),
        b.strides[1 if b_transposed else 0], address_of(out), out.strides[0],
        0 if bias is None else address_of(bias), 0 if sums is None else address_of(sums),
        size, word, M, K, P, a_transposed, b_transposed, blocks, scratch[1], share,
        compiled("bfloat16.pair_columns", dtype) if word > 1 else 0,
        *(compiled(kernel, dtype) for kernel in (*kernels, "panels.column_sums")),
    )  # fmt: skip
    panels_of_a = -(-M // lanes) * (-(-K // word) | 1) * VECTOR_BYTES if a_transposed else 0
    memory = aligned(panels_of_a, a.dtype)
    if a_transposed:
        packing = given._replace(memory=memory[1])
        kernel = compiled("product_kernels.pack_columns", dtype)
        parallel_for(kernel, packing, -(-M // lanes), shards)
        given = given._replace(a=memory[1])
    elif word > 1:
        memory, given = _rows_in_words(given, dtype, shards)
    kernel = compiled("product_kernels.multiply_strips", dtype)
    parallel_for(kernel, given, strips * blocks, shards)
    return out


def _rows_in_words(given: Matrices, dtype: str, shards: int) -> tuple[Any, Matrices]:
    """The rows of A as words: their memory, and the product with them."""
    lanes = VECTOR_BYTES // given.size
    words = -(-given.K // given.word)
    row = (-(-words // lanes) + (given.word == 4) | 1) * VECTOR_BYTES
    memory = aligned(given.M * row, np.dtype(dtype))
    rounding = given._replace(memory=memory[1], share=row)
    kernel = compiled("product_kernels.round_row_blocks", dtype)
    parallel_for(kernel, rounding, given.blocks, shards)
    return memory, given._replace(a=memory[1], a_row=row)


def quantised_product(a: Array, weight: QuantisedWeight, bias: Array | None = None) -> Array:
    """A (M, K) in float32, whose rows lie side by side, times a weight (K, P) in int8."""
    (M, K), P, dtype = a.shape, weight.shape[1], "float32"
    out = np.empty((M, P), np.float32)
    _, b = pack_quantised_matrix(weight)
    lanes = VECTOR_BYTES // 4
    _, widest, _ = TILES_OF[vector_registers()]
    blocks, strips = -(-M // ROWS), -(-P // (widest * lanes))
    shards = shards_for(strips * blocks, M * P)
    given = Matrices(
        a=address_of(a), a_row=a.strides[0], b=b, b_row=(-(-K // 4) + 2 | 1) * VECTOR_BYTES,
        c=address_of(out), c_row=out.strides[0], bias=0 if bias is None else address_of(bias),
        sums=0, size=4, word=4, M=M, K=K, P=P, a_transposed=0, b_transposed=0, blocks=blocks,
        memory=0, share=0, round_columns=compiled("int8.quantise_columns", dtype), pack=0,
        pack_transposed=0, multiply=compiled(in_tiles("gemm.multiply_int8", 4, M), dtype),
        multiply_transposed=0, column_sums=0,
    )  # fmt: skip
    _memory, given = _rows_in_words(given, dtype, shards)
    kernel = compiled("product_kernels.multiply_packed", dtype)
    parallel_for(kernel, given, strips * blocks, shards)
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
