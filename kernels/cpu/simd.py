"""A SIMD vector as a Numba type, so that plain cell functions compile to vector code.

A vector holds 64 bytes: 16 float32 or 8 float64 lanes. LLVM turns that into one AVX-512
register, two AVX registers or four NEON or SSE registers, whatever the machine has; nothing here
depends on the instruction set.

    v = load(ctx, address)            64 bytes; the ctx says of which dtype
    v = load_part(ctx, address, 3)    three numbers, the other lanes 0
    store(ctx, v, address), store_part(ctx, v, address, 3)
    v + w, 1 - v, -v, fma(a, b, c), maximum(v, 0), where(x < y, a, b)

Addresses are integers; nothing checks them.
"""

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.extending import intrinsic

from .. import vectors
from .kernel_abi import emits
from .target import VECTOR_BYTES as VECTOR_BYTES
from .target import vector_registers as vector_registers

MaskType, splat = vectors.MaskType, vectors.splat  # as for a GPU
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


class VectorType(vectors.VectorType):
    """64 bytes, or another power of two, of float32 or float64 lanes."""

    def __init__(self, dtype, size=VECTOR_BYTES):
        super().__init__(dtype, size * 8 // dtype.bitwidth)

    @property
    def llvm_name(self):
        return f"v{self.lanes}f{self.dtype.bitwidth}"

    @property
    def alignment(self):
        return min(self.lanes * self.dtype.bitwidth // 8, VECTOR_BYTES)

    @property
    def llvm_bits(self):
        return ir.VectorType(ir.IntType(self.dtype.bitwidth), self.lanes)


# 'contract' lets LLVM fuse a product and a sum into one rounding; nothing else is relaxed.
_operators = vectors.Operators(
    VectorType, extending, negative=lambda builder, a: builder.fneg(a), flags=("contract",)
)
register, register_where = _operators.register, _operators.register_where
register_versions, where = _operators.register_versions, _operators.where
maximum, minimum = _operators.maximum, _operators.minimum


def _declare(builder, name, kind):
    """An LLVM intrinsic function, declared in the module at its first use."""
    return cgutils.get_or_insert_function(builder.module, kind, name)


def emit_call(builder, name, result, args):
    """Call an LLVM intrinsic function by its whole name (LLVM level)."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(_declare(builder, name, kind), args)


def _llvm_intrinsic(name):
    def emit(builder, vector, *args):
        return emit_call(builder, f"{name}.{vector.llvm_name}", vector.llvm, args)

    return emit


magnitude = _operators.unary(_llvm_intrinsic("llvm.fabs"))
square_root = _operators.unary(_llvm_intrinsic("llvm.sqrt"))
with_sign_of = _operators.binary(_llvm_intrinsic("llvm.copysign"))
emit_fma = _llvm_intrinsic("llvm.fmuladd")


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, in one rounding where the machine can."""
    return _operators.lanewise(emit_fma)(a, b, c)


@intrinsic
def all_lanes(typing, mask):
    """Whether a mask holds in every lane."""
    if not isinstance(mask, MaskType):
        return None

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.lanes))
        return builder.icmp_signed("==", bits, bits.type(-1))

    return types.boolean(mask), codegen


def _emit_exponent(builder, vector, shifted):
    bits = builder.bitcast(shifted, vector.llvm_bits)
    mantissa = 23 if vector.dtype == types.float32 else 52
    places = ir.Constant(vector.llvm_bits, [mantissa] * vector.lanes)
    return builder.bitcast(builder.shl(bits, places), vector.llvm)


exponent_from_low_bits = _operators.unary(_emit_exponent)


# ---- memory, by address; ``ctx`` says of which dtype (kernel_abi.py)


def _pointer(builder, vector, address):
    return builder.inttoptr(address, vector.llvm.as_pointer())


def emit_load(builder, vector, address):
    """Load a vector; the address is a multiple of its size, or of 64 (LLVM level)."""
    return builder.load(_pointer(builder, vector, address), align=vector.alignment)


def emit_store(builder, vector, value, address):
    """Store a vector; the address is a multiple of its size, or of 64 (LLVM level)."""
    builder.store(value, _pointer(builder, vector, address), align=vector.alignment)


def _masked(builder, vector, name, result, arguments):
    """Call llvm.masked.load or store; pointers spell p0v16f32 before LLVM 15, which takes p0."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    full_name = f"llvm.masked.{name}.{vector.llvm_name}.p0{vector.llvm_name}"
    return builder.call(_declare(builder, full_name, kind), arguments)


def emit_lanes_in_use(builder, vector, lanes):
    """The mask of the first ``lanes`` lanes (LLVM level)."""
    order = ir.Constant(ir.VectorType(_I64, vector.lanes), list(range(vector.lanes)))
    return builder.icmp_signed("<", order, splat(builder, lanes, order.type))


def emit_prefetch(builder, address, cache=2, for_writing=False):
    """Ask for a line of memory, into the first or the second cache (LLVM level)."""
    line = builder.inttoptr(address, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [line.type, _I32, _I32, _I32])
    prefetch = _declare(builder, "llvm.prefetch.p0i8", kind)  # LLVM >= 15 reads it as p0
    builder.call(prefetch, [line, _I32(int(for_writing)), _I32(4 - cache), _I32(1)])


def emit_load_lanes(builder, vector, address, lanes, rest=None):
    """The same as ``emit_load_part``, made for fewer lanes than all."""
    pointer, size = _pointer(builder, vector, address), vector.dtype.bitwidth // 8
    rest = ir.Constant(vector.llvm, [0.0] * vector.lanes) if rest is None else rest
    given = [pointer, _I32(size), emit_lanes_in_use(builder, vector, lanes), rest]
    return _masked(builder, vector, "load", vector.llvm, given)


def emit_load_part(builder, vector, address, lanes, rest=None):
    """Load the first ``lanes`` lanes, at any address; the others are never read.

    rest  a vector with the others; None: they are zero
    """
    pointer, size = _pointer(builder, vector, address), vector.dtype.bitwidth // 8
    all_lanes = builder.icmp_signed(">=", lanes, _I64(vector.lanes))
    with builder.if_else(all_lanes, likely=True) as (then, otherwise):
        with then:
            whole = builder.load(pointer, align=size)
            then_block = builder.block
        with otherwise:
            part = emit_load_lanes(builder, vector, address, lanes, rest)
            otherwise_block = builder.block
    value = builder.phi(vector.llvm)
    value.add_incoming(whole, then_block)
    value.add_incoming(part, otherwise_block)
    return value


def emit_store_part(builder, vector, value, address, lanes):
    """Store the first ``lanes`` lanes, at any address (LLVM level)."""
    pointer, size = _pointer(builder, vector, address), vector.dtype.bitwidth // 8
    all_lanes = builder.icmp_signed(">=", lanes, _I64(vector.lanes))
    with builder.if_else(all_lanes, likely=True) as (then, otherwise):
        with then:
            builder.store(value, pointer, align=size)
        with otherwise:
            given = [value, pointer, _I32(size), emit_lanes_in_use(builder, vector, lanes)]
            _masked(builder, vector, "store", ir.VoidType(), given)


@emits(types.void)
def prefetch(builder, address):
    """Ask for a line of memory, into the first cache."""
    emit_prefetch(builder, address, cache=1)


@emits(types.void)
def prefetch_to_write(builder, address):
    """The same for a line that will be written."""
    emit_prefetch(builder, address, cache=1, for_writing=True)


@emits(types.int64)
def lanes_of(builder, ctx):
    """How many numbers a vector holds."""
    return _I64(of_ctx(ctx).lanes)


def of_ctx(ctx, *rest):
    """The type of a kernel's vectors (or of vectors of an array's dtype)."""
    return VectorType(ctx.dtype, getattr(ctx, "vector_bytes", VECTOR_BYTES))


def _if_vector(ctx, value, *rest):
    return types.void if value == of_ctx(ctx) else None


@emits(of_ctx)
def load(builder, ctx, address):
    """A whole vector; the address is a multiple of 64."""
    return emit_load(builder, of_ctx(ctx), address)


@emits(of_ctx)
def load_part(builder, ctx, address, lanes):
    """A vector from any address: its first ``lanes`` lanes, the others zero and never read."""
    return emit_load_part(builder, of_ctx(ctx), address, lanes)


@emits(_if_vector)
def store(builder, ctx, value, address):
    """Write a whole vector; the address is a multiple of 64."""
    emit_store(builder, of_ctx(ctx), value, address)


@emits(_if_vector)
def store_part(builder, ctx, value, address, lanes):
    """Write a vector's first ``lanes`` lanes to any address."""
    emit_store_part(builder, of_ctx(ctx), value, address, lanes)
