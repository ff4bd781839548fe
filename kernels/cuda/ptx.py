"""The GPU's instructions that Numba does not know, one line each.

All pointers are to float32, but for ``counters`` (uint32); ``index`` counts their numbers, a wide
access starts at a multiple of its width. Several numbers travel as a tuple.

    shared()                        this block's dynamic shared memory
    put(x, pointer, index)          one number
    load4, load2, load1             16, 8 or 4 bytes at once, as a tuple
    write(pointer, index, numbers)  as many at once
    arrive(counters, index)         add 1, after all that the block wrote before
    seen(counters, index)           read; what was written before those arrivals is there after it
    fresh4(pointer, index)          16 bytes that another block wrote, after ``seen``
    tf32(numbers)                   rounded to TF32, as bits
    rest(numbers, bits)             what that rounding left off
    near(numbers), off(numbers, bits)    the same in three instructions instead of seven, for both:
                                    NaN is in the second, which the tensor cores cut off at TF32
    bfloat16(numbers)               rounded, two to a register, as bits
    bits(numbers), numbers(bits)    the same bits
    mma_tf32(a, b, c), mma_bfloat16(a, b, c)     c + a b by a warp, 16 x 8 numbers

The tensor cores' fragments, lane = 4 g + q (PTX ISA, "Matrix Fragments for mma"):

    c   rows g, g, g + 8, g + 8,  columns 2 q, 2 q + 1, 2 q, 2 q + 1
    TF32, k = 8        a   rows g, g + 8, g, g + 8,  k = q, q, q + 4, q + 4
                       b   k = q, q + 4,  column g
    bfloat16, k = 16   a   the same rows, k = 2 q and 2 q + 1 twice, then those + 8
                       b   k = 2 q and 2 q + 1, then those + 8,  column g
"""

from llvmlite import ir

from .target import intrinsic, types

NAMES = (
    "arrive", "bfloat16", "bits", "fresh4", "load1", "load2", "load4", "mma_bfloat16", "mma_tf32",
    "near", "numbers", "off", "put", "rest", "seen", "shared", "tf32", "write",
)  # fmt: skip

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_LLVM = {"f": _FLOAT, "r": _INT32, "l": _INT64}
_NUMBA = {"f": types.float32, "r": types.uint32}


def _tuple(context, builder, kind, values):
    return context.make_tuple(builder, kind, list(values))


def _parts(builder, value, count):
    return [builder.extract_value(value, k) for k in range(count)]


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
    return [made] if len(outs) == 1 else _parts(builder, made, len(outs))


# ---- memory


@intrinsic
def shared(typing):
    """A pointer to the block's dynamic shared memory."""
    kind = types.CPointer(types.float32)

    def codegen(context, builder, signature, args):
        name = "numba_rnn_shared"
        memory = builder.module.globals.get(name)
        if memory is None:
            memory = ir.GlobalVariable(builder.module, ir.ArrayType(_FLOAT, 0), name, addrspace=3)
            memory.linkage, memory.align = "external", 16
        start = builder.gep(memory, [_INT32(0), _INT32(0)])
        return builder.addrspacecast(start, _FLOAT.as_pointer())

    return kind(), codegen


def _loading(count):
    @intrinsic
    def load(typing, pointer, index):
        kind = types.UniTuple(types.float32, count)

        def codegen(context, builder, signature, args):
            wide = ir.VectorType(_FLOAT, count)
            place = builder.bitcast(builder.gep(args[0], [args[1]]), wide.as_pointer())
            value = builder.load(place, align=4 * count)
            numbers = (builder.extract_element(value, _INT32(k)) for k in range(count))
            return _tuple(context, builder, kind, numbers)

        return kind(pointer, index), codegen

    return load


load1, load2, load4 = _loading(1), _loading(2), _loading(4)


@intrinsic
def write(typing, pointer, index, numbers):
    """Numbers side by side."""

    def codegen(context, builder, signature, args):
        count = len(signature.args[2])
        wide = ir.VectorType(_FLOAT, count)
        value = ir.Constant(wide, ir.Undefined)
        for k, number in enumerate(_parts(builder, args[2], count)):
            value = builder.insert_element(value, number, _INT32(k))
        place = builder.bitcast(builder.gep(args[0], [args[1]]), wide.as_pointer())
        builder.store(value, place, align=4 * count)
        return context.get_dummy_value()

    return types.void(pointer, index, numbers), codegen


@intrinsic
def put(typing, x, pointer, index):
    """One number."""

    def codegen(context, builder, signature, args):
        builder.store(args[0], builder.gep(args[1], [args[2]]), align=4)
        return context.get_dummy_value()

    return types.void(x, pointer, index), codegen


def _address(builder, pointer, index):
    return builder.ptrtoint(builder.gep(pointer, [index]), _INT64)


@intrinsic
def fresh4(typing, pointer, index):
    """Four numbers side by side that another block may have written.

    Nothing moves this load to before the thread, or its block at a barrier, has seen the arrival;
    from then on it finds them by the rules of the memory model, in whatever cache they are.
    """
    kind = types.UniTuple(types.float32, 4)

    def codegen(context, builder, signature, args):
        code = "ld.global.v4.f32 {$0,$1,$2,$3}, [$4];"
        place = _address(builder, *args)
        return _tuple(context, builder, kind, _assembly(builder, code, "ffff", [place], True))

    return kind(pointer, index), codegen


@intrinsic
def arrive(typing, counters, index):
    """Count one more; whoever sees it sees what this thread and, through a barrier, its block
    wrote before."""

    def codegen(context, builder, signature, args):
        code = "red.release.gpu.global.add.u32 [$0], 1;"
        _assembly(builder, code, "", [_address(builder, *args)], True)
        return context.get_dummy_value()

    return types.void(counters, index), codegen


@intrinsic
def seen(typing, counters, index):
    """How many have arrived."""

    def codegen(context, builder, signature, args):
        code = "ld.acquire.gpu.global.u32 $0, [$1];"
        return _assembly(builder, code, "r", [_address(builder, *args)], True)[0]

    return types.uint32(counters, index), codegen


# ---- numbers


def _converting(code, emit):
    """A function from a tuple of float32 to one of bits."""

    @intrinsic
    def convert(typing, numbers):
        count = len(emit(range(len(numbers))))
        kind = types.UniTuple(types.uint32, count)

        def codegen(context, builder, signature, args):
            groups = emit(_parts(builder, args[0], len(signature.args[0])))
            made = [_assembly(builder, code, "r", list(group))[0] for group in groups]
            return _tuple(context, builder, kind, made)

        return kind(numbers), codegen

    return convert


tf32 = _converting("cvt.rna.tf32.f32 $0, $1;", lambda numbers: [(x,) for x in numbers])
bits = _converting("mov.b32 $0, $1;", lambda numbers: [(x,) for x in numbers])
bfloat16 = _converting(  # the second number goes to the upper half
    "cvt.rn.bf16x2.f32 $0, $1, $2;",
    lambda numbers: [(numbers[k + 1], numbers[k]) for k in range(0, len(numbers), 2)],
)


@intrinsic
def numbers(typing, bits):
    """The numbers of these bits."""
    kind = types.UniTuple(types.float32, len(bits))

    def codegen(context, builder, signature, args):
        values = (builder.bitcast(x, _FLOAT) for x in _parts(builder, args[0], len(bits)))
        return _tuple(context, builder, kind, values)

    return kind(bits), codegen


@intrinsic
def near(typing, numbers):
    """The nearest TF32, as bits; the default NaN becomes 0."""
    kind = types.UniTuple(types.uint32, len(numbers))

    def codegen(context, builder, signature, args):
        patterns = (builder.bitcast(x, _INT32) for x in _parts(builder, args[0], len(numbers)))
        half, mask = _INT32(0x1000), _INT32(0xFFFFE000)
        rounded = (builder.and_(builder.add(x, half), mask) for x in patterns)
        return _tuple(context, builder, kind, rounded)

    return kind(numbers), codegen


@intrinsic
def off(typing, numbers, rounded):
    """What is left of them, as bits."""

    def codegen(context, builder, signature, args):
        pairs = zip(*(_parts(builder, arg, len(numbers)) for arg in args), strict=True)
        left = (builder.fsub(x, builder.bitcast(r, _FLOAT)) for x, r in pairs)
        return _tuple(context, builder, rounded, [builder.bitcast(x, _INT32) for x in left])

    return rounded(numbers, rounded), codegen


@intrinsic
def rest(typing, numbers, rounded):
    """What rounding left off."""

    def codegen(context, builder, signature, args):
        count = len(signature.args[0])
        pairs = zip(*(_parts(builder, arg, count) for arg in args), strict=True)
        left = [builder.fsub(x, builder.bitcast(r, _FLOAT)) for x, r in pairs]
        return _tuple(context, builder, signature.args[0], left)

    return numbers(numbers, rounded), codegen


def _multiplying(shape):
    code = (
        f"mma.sync.aligned.{shape}.f32 "
        "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
    )

    @intrinsic
    def multiply(typing, a, b, c):
        def codegen(context, builder, signature, args):
            values = [
                x for arg, count in zip(args, (4, 2, 4), strict=True)
                for x in _parts(builder, arg, count)
            ]  # fmt: skip
            return _tuple(context, builder, c, _assembly(builder, code, "ffff", values))

        return c(a, b, c), codegen

    return multiply


mma_tf32 = _multiplying("m16n8k8.row.col.f32.tf32.tf32")
mma_bfloat16 = _multiplying("m16n8k16.row.col.f32.bf16.bf16")
