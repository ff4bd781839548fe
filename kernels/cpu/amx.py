"""Products of words by AMX, whose registers hold a matrix each: 16 rows of 64 bytes.

Intel's Xeons have it from Sapphire Rapids on. One instruction multiplies two registers of words
(``bfloat16.py``, ``int8.py``):

    sums[m, n]  +=  A[m, k] * B[k, n]      for 16 words k; 16 rows m, 16 columns n

A's register takes a line of each row, B's 16 rows of a panel, both as they lie (``gemm.py``). A
tile is four registers of sums:

    32 rows by 2 vectors                  16 rows by 4 vectors

                  B: 6   7                       B: 6   7   6   7
        A: 4         0   1                A: 4      0   1   2   3
           5         2   3

Registers are given as many rows as there are: no other is read. Of an inner axis that does not fill
the last line, the words there are copied, with zeros behind. A^T is transposed, 16 words at a time.
Sums go through memory once, at the end, where they are scaled (int8) and added to C.

How many rows registers have is the state of a thread. A product sets it and leaves none, as a
caller may expect of a function: by the ABI no register of these is kept for it.

In bfloat16 the instruction adds up the first numbers of its 16 words and the second ones apart,
then both to the sum: in another order than AVX512_BF16, always the same one. Denormal numbers count
as zero, whatever the thread's control register says. In int8 sums are those of any other way.

Nothing of this has been measured yet: the least rows (``target.py``), the configuration for each
product and products without prefetching are guesses.
"""

from llvmlite import ir
from numba.core import cgutils, types

from . import int8
from .kernel_abi import emits, jitted, load_i64
from .panels import transpose
from .simd import (
    VECTOR_BYTES,
    VectorType,
    emit_load,
    emit_load_part,
    emit_store_part,
    load_part,
    store,
)

_I8, _I64 = ir.IntType(8), ir.IntType(64)

ROWS = 16  # of a register; also the words in one of its rows
_REGISTER = ROWS * VECTOR_BYTES
# the memory of a product: how many rows registers have, its sums, lines of A and rows of B
_SUMS = VECTOR_BYTES
_A = _SUMS + 4 * _REGISTER
_B = _A + 2 * _REGISTER
_SIZE = _B + 4 * _REGISTER


# ---- instructions, which a test may emulate

_OPERANDS = {  # r: the number of a register, a: an address, s: the bytes from row to row
    "ldtilecfg": "a", "tilerelease": "", "tilezero": "r", "tileloadd64": "ras",
    "tilestored64": "ras", "tdpbf16ps": "rrr", "tdpbusd": "rrr",
}  # fmt: skip


def emit_instruction(builder, name, *operands):
    """An instruction; addresses are integers (LLVM level)."""
    as_llvm = {
        "r": _I8, "a": lambda value: builder.inttoptr(value, _I8.as_pointer()), "s": lambda s: s,
    }  # fmt: skip
    values = [as_llvm[kind](v) for kind, v in zip(_OPERANDS[name], operands, strict=True)]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}")
    builder.call(function, values, attrs=("convergent",))  # or LLVM would unroll loops of it


# ---- a product


@emits(types.int64)
def begin(builder):
    """The memory of a product, on the stack of the kernel that calls this."""
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(_I64, _SIZE // 8))
        memory.align = VECTOR_BYTES
    bytes_of_a_row = VECTOR_BYTES * 0x0001000100010001  # 16 bits for each of four registers
    for k, word in enumerate((1, 0, bytes_of_a_row, bytes_of_a_row, 0, 0, 0, 0)):
        builder.store(_I64(word), builder.gep(memory, [_I64(0), _I64(k)]))
    return builder.ptrtoint(memory, _I64)


@emits(types.void)
def end(builder):
    """Leave no register in use."""
    emit_instruction(builder, "tilerelease")


@jitted
def _configure(memory, rows):
    """Give registers as many rows as a tile has, unless they have them already."""
    first, second = min(rows, ROWS), rows - ROWS if rows > ROWS else rows
    of_sums = first * 0x0101 | second * 0x01010000  # 8 bits for each register
    words = of_sums | first << 32 | second << 40 | ROWS << 48 | ROWS << 56
    if load_i64(memory, 6) != words:  # for it takes long
        _load_configuration(memory, words)


@emits(types.void)
def _load_configuration(builder, memory, words):
    place = builder.inttoptr(builder.add(memory, _I64(48)), _I64.as_pointer())
    builder.store(words, place)
    emit_instruction(builder, "ldtilecfg", memory)


@emits(types.void)
def _clear_sums(builder):
    for number in range(4):
        emit_instruction(builder, "tilezero", number)


@emits(types.void)
def _store_sums(builder, memory):
    for number in range(4):
        place = builder.add(memory, _I64(_SUMS + number * _REGISTER))
        emit_instruction(builder, "tilestored64", number, place, _I64(VECTOR_BYTES))


def _emit_line(builder, name, deep, wide, a, a_row, b, b_vector):
    """The products of a line of each row: one or two registers of A, up to four of B."""
    for r in range(deep):
        start = builder.add(a, builder.mul(a_row, _I64(r * ROWS)))
        emit_instruction(builder, "tileloadd64", 4 + r, start, a_row)
    for v in range(wide):
        of_b = 6 + v % 2
        start = builder.add(b, builder.mul(b_vector, _I64(v)))
        emit_instruction(builder, "tileloadd64", of_b, start, _I64(VECTOR_BYTES))
        for r in range(deep):
            emit_instruction(builder, name, 2 * r + v, 4 + r, of_b)


@jitted
def widest(rows):
    """The most vectors of a tile of so many rows."""
    return 2 if rows > ROWS else 4


def tile_of(transposed, word):
    """A function that multiplies a tile: up to 32 rows of A, or 16 of A^T."""
    name = {2: "tdpbf16ps", 4: "tdpbusd"}[word]

    @emits(types.void)
    def add_lines(builder, deep, wide, a, a_row, a_segment, b, b_vector, lines):
        done = builder.append_basic_block("done")
        choice = builder.switch(builder.add(builder.mul(deep, _I64(8)), wide), done)
        for R, V in ((1, 1), (1, 2), (1, 3), (1, 4)) + ((2, 1), (2, 2)) * (not transposed):
            block = builder.append_basic_block(f"registers_{R}x{V}")
            choice.add_case(_I64(8 * R + V), block)
            builder.position_at_end(block)
            with cgutils.for_range(builder, lines) as loop:
                a_now = builder.add(a, builder.mul(loop.index, a_segment))
                b_now = builder.add(b, builder.mul(loop.index, _I64(_REGISTER)))
                _emit_line(builder, name, R, V, a_now, a_row, b_now, b_vector)
            builder.branch(done)
        builder.position_at_end(done)

    @emits(types.void)
    def finish(builder, ctx, sums, a_end, b_end, c, lanes, add):
        vector = VectorType(ctx.dtype)
        total = emit_load(builder, vector, sums)
        if word == 4:
            starts = int8.emit_starts(builder, vector, [b_end])
            whole = builder.add(builder.bitcast(total, starts[0].type), starts[0])
            (total,) = int8.emit_scaled(builder, vector, [whole], [a_end], [b_end])
        adding = builder.icmp_signed("!=", add, _I64(0))
        before = emit_load_part(builder, vector, c, builder.select(adding, lanes, _I64(0)))
        total = builder.select(adding, builder.fadd(before, total), total)
        emit_store_part(builder, vector, total, c, lanes)

    @jitted
    def multiply_tile(ctx, rows, vectors, p, memory):
        deep, a_lines, b_rows = (rows + ROWS - 1) // ROWS, memory + _A, memory + _B
        _configure(memory, rows)
        _clear_sums()
        as_they_lie = 0 if transposed else p.inner // ROWS
        for g in range(p.groups):
            a, b = p.a + g * p.a_group, p.b + g * p.inner * VECTOR_BYTES
            add_lines(deep, vectors, a, p.a_row, p.a_segment, b, p.b_vector, as_they_lie)
            for line in range(as_they_lie, (p.inner + ROWS - 1) // ROWS):
                words, a_line = min(p.inner - line * ROWS, ROWS), a + line * p.a_segment
                if transposed:
                    transpose(ctx, a_line, VECTOR_BYTES, words, a_lines, rows)
                else:
                    for r in range(rows):
                        numbers = load_part(ctx, a_line + r * p.a_row, words)
                        store(ctx, numbers, a_lines + r * VECTOR_BYTES)
                b_line, b_vector = b + line * _REGISTER, p.b_vector
                if words < ROWS:
                    for v in range(vectors):
                        for k in range(ROWS):
                            row = b_line + v * p.b_vector + k * VECTOR_BYTES
                            numbers = load_part(ctx, row, ROWS if k < words else 0)
                            store(ctx, numbers, b_rows + v * _REGISTER + k * VECTOR_BYTES)
                    b_line, b_vector = b_rows, _REGISTER
                add_lines(deep, vectors, a_lines, VECTOR_BYTES, 0, b_line, b_vector, 1)
        _store_sums(memory)
        a_end = p.a + (p.inner + ROWS - 1) // ROWS * p.a_segment
        b_end = p.b + p.inner * VECTOR_BYTES
        for r in range(rows):
            for v in range(vectors):
                register = 2 * (r // ROWS) + v
                finish(
                    ctx, memory + _SUMS + register * _REGISTER + r % ROWS * VECTOR_BYTES,
                    a_end + r * p.a_row, b_end + v * p.b_vector,
                    p.c + r * p.c_row + v * p.c_vector, p.columns - v * ROWS, p.add,
                )  # fmt: skip

    return multiply_tile
