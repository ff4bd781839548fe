"""The GPU's instructions that Numba does not know, one line each.

All pointers are to float32, but for ``counters`` (uint32); ``index`` counts their numbers, a wide
access starts at a multiple of its width. Several numbers travel as a tuple.

    load4, load2, load1                16, 8 or 4 bytes at once, as a tuple
    write(pointer, index, numbers)     as many at once
    red_release(counters, index)       add 1, after all that the block wrote before
    load_acquire(counters, index)      read; what was written before those arrivals is there after
                                       it
    load4_volatile(pointer, index)     16 bytes that another block wrote, after ``load_acquire``
    tf32(numbers)                      rounded to TF32, as bits
    tf32_residual_bits(numbers, bits)  what that rounding left off, as bits
    tf32_bits(numbers)                 as tf32, but with ``tf32_residual_bits`` in three
                                       instructions instead of seven: NaN is in
                                       ``tf32_residual_bits``, which the tensor cores cut off at
                                       TF32
    bfloat16(numbers)                  rounded, two to a register, as bits
    bits(numbers), numbers(bits)       the same bits
    mma_tf32(a, b, c), mma_bfloat16(a, b, c)     c + a b by a warp, 16 x 8 numbers

The tensor cores' fragments, lane = 4 g + q (PTX ISA, "Matrix Fragments for mma"):

    c   rows g, g, g + 8, g + 8,  columns 2 q, 2 q + 1, 2 q, 2 q + 1
    TF32, k = 8        a   rows g, g + 8, g, g + 8,  k = q, q, q + 4, q + 4
                       b   k = q, q + 4,  column g
    bfloat16, k = 16   a   the same rows, k = 2 q and 2 q + 1 twice, then those + 8
                       b   k = 2 q and 2 q + 1, then those + 8,  column g
"""

import numpy as np
from llvmlite import ir

from .numba_cuda_compat import intrinsic, types

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_LLVM = {"f": _FLOAT, "r": _INT32, "l": _INT64}


def _parts(builder, values):
    """The members of tuples, one after the other."""
    return [builder.extract_value(v, k) for v in values for k in range(v.type.count)]


def _returned(context, builder, kind, values):
    """Values as Numba has them: a tuple, a number or nothing."""
    if kind == types.void:
        return context.get_dummy_value()
    return context.make_tuple(builder, kind, values) if hasattr(kind, "count") else values[0]


def _assembly(builder, code, outs, values, memory=False):
    """Run one instruction; its results in a list."""
    result = _LLVM[outs] if len(outs) == 1 else ir.LiteralStructType([_LLVM[c] for c in outs])
    letters = {str(kind): letter for letter, kind in _LLVM.items()}
    ins = [letters[str(value.type)] for value in values]
    constraints = [*("=" + c for c in outs), *ins, *(["~{memory}"] if memory else [])]
    function = ir.FunctionType(result if outs else ir.VoidType(), [value.type for value in values])
    inline = ir.InlineAsm(function, code, ",".join(constraints), side_effect=memory)
    # of a whole warp, some of them: never to be moved into a branch
    made = builder.call(inline, values, attrs=("convergent",))
    if len(outs) == 1:
        return [made]
    return [builder.extract_value(made, k) for k in range(len(outs))]


# ---- memory


def _loading(count):
    @intrinsic
    def load(typing, pointer, index):
        kind = types.UniTuple(types.float32, count)

        def codegen(context, builder, signature, args):
            wide = ir.VectorType(_FLOAT, count)
            place = builder.bitcast(builder.gep(args[0], [args[1]]), wide.as_pointer())
            value = builder.load(place, align=4 * count)
            numbers = [builder.extract_element(value, _INT32(k)) for k in range(count)]
            return context.make_tuple(builder, kind, numbers)

        return kind(pointer, index), codegen

    return load


load1, load2, load4 = _loading(1), _loading(2), _loading(4)


@intrinsic
def write(typing, pointer, index, numbers):
    """Numbers side by side."""

    def codegen(context, builder, signature, args):
        wide = ir.VectorType(_FLOAT, args[2].type.count)
        value = ir.Constant(wide, ir.Undefined)
        for k, number in enumerate(_parts(builder, args[2:])):
            value = builder.insert_element(value, number, _INT32(k))
        place = builder.bitcast(builder.gep(args[0], [args[1]]), wide.as_pointer())
        builder.store(value, place, align=4 * wide.count)
        return context.get_dummy_value()

    return types.void(pointer, index, numbers), codegen


def _accessing(code, outs, result):
    """An instruction at an address: function(pointer, index)."""

    @intrinsic
    def access(typing, pointer, index):
        def codegen(context, builder, signature, args):
            place = builder.ptrtoint(builder.gep(args[0], [args[1]]), _INT64)
            made = _assembly(builder, code, outs, [place], memory=True)
            return _returned(context, builder, result, made)

        return result(pointer, index), codegen

    return access


# Nothing moves this load to before the thread, or its block at a barrier, has seen the arrival;
# from then on it finds the numbers by the rules of the memory model, in whatever cache they are.
load4_volatile = _accessing(
    "ld.global.v4.f32 {$0,$1,$2,$3}, [$4];", "ffff", types.UniTuple(types.float32, 4)
)
# Whoever sees it sees what this thread and, through a barrier, its block wrote before.
red_release = _accessing("red.release.gpu.global.add.u32 [$0], 1;", "", types.void)
load_acquire = _accessing("ld.acquire.gpu.global.u32 $0, [$1];", "r", types.uint32)


# ---- numbers


def _instruction(code, outs):
    return lambda builder, *values: _assembly(builder, code, outs, values)[0]


def _converting(result, emit, at_once=1):
    """A function of a tuple: emit(builder, *numbers) makes a member of every ``at_once`` of it."""

    @intrinsic
    def convert(typing, given):
        kind = types.UniTuple(result, len(given) // at_once)

        def codegen(context, builder, signature, args):
            numbers = _parts(builder, args)
            groups = (numbers[k : k + at_once] for k in range(0, len(numbers), at_once))
            return context.make_tuple(builder, kind, [emit(builder, *group) for group in groups])

        return kind(given), codegen

    return convert


@intrinsic
def tf32_residual_bits(typing, numbers, rounded):
    """The rest of numbers that were rounded to these bits, as bits."""

    def codegen(context, builder, signature, args):
        pairs = zip(*(_parts(builder, [arg]) for arg in args), strict=True)
        left = (builder.fsub(x, builder.bitcast(r, _FLOAT)) for x, r in pairs)
        return context.make_tuple(builder, rounded, [builder.bitcast(x, _INT32) for x in left])

    return rounded(numbers, rounded), codegen


def _nearest(builder, x):
    """The nearest TF32; the default NaN becomes 0."""
    half, mask = _INT32(0x1000), _INT32(0xFFFFE000)
    return builder.and_(builder.add(builder.bitcast(x, _INT32), half), mask)


numbers = _converting(types.float32, lambda builder, x: builder.bitcast(x, _FLOAT))
bits = _converting(types.uint32, _instruction("mov.b32 $0, $1;", "r"))
tf32 = _converting(types.uint32, _instruction("cvt.rna.tf32.f32 $0, $1;", "r"))
# the second number goes to the upper half
bfloat16 = _converting(types.uint32, _instruction("cvt.rn.bf16x2.f32 $0, $2, $1;", "r"), at_once=2)
tf32_bits = _converting(types.uint32, _nearest)


def _multiplying(shape):
    code = (
        f"mma.sync.aligned.{shape}.f32 "
        "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
    )

    @intrinsic
    def multiply(typing, a, b, c):
        def codegen(context, builder, signature, args):
            made = _assembly(builder, code, "ffff", _parts(builder, args))
            return context.make_tuple(builder, c, made)

        return c(a, b, c), codegen

    return multiply


mma_tf32 = _multiplying("m16n8k8.row.col.f32.tf32.tf32")
mma_bfloat16 = _multiplying("m16n8k16.row.col.f32.bf16.bf16")

INSTRUCTIONS = {
    "red_release": red_release, "bfloat16": bfloat16, "bits": bits,
    "load4_volatile": load4_volatile, "load1": load1,
    "load2": load2, "load4": load4, "mma_bfloat16": mma_bfloat16, "mma_tf32": mma_tf32,
    "tf32_bits": tf32_bits, "numbers": numbers, "tf32_residual_bits": tf32_residual_bits,
    "load_acquire": load_acquire, "tf32": tf32, "write": write,
    "ZERO": np.float32(0),
}  # fmt: skip
