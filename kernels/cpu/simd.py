"""A SIMD vector as a Numba type, so that plain cell functions compile to vector code.

A vector holds 64 bytes: 16 float32 or 8 float64 lanes. LLVM turns that into one AVX-512
register, two AVX registers or four NEON or SSE registers, whatever the machine has; nothing here
depends on the instruction set.

    v = load(frame, address)            64 bytes; the frame says of which dtype
    v = load_part(frame, address, 3)    three numbers, the other lanes 0
    store(frame, v, address), store_part(frame, v, address, 3)
    v + w, 1 - v, -v, fma(a, b, c), maximum(v, 0), where(x < y, a, b)

Addresses are integers; nothing checks them.
"""

import operator
import re
from functools import cache

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model

from .frames import emits

VECTOR_BYTES = 64
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


@cache
def vector_registers():
    """How many vector registers the code has that Numba compiles here, and their bits.

    LLVM says so: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may ask for less than this machine has.
    """
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    vector = f"<{VECTOR_BYTES // 4} x float>"
    add = f"define {vector} @f({vector} %a) {{ %b = fadd {vector} %a, %a ret {vector} %b }}"
    code = machine.emit_assembly(binding.parse_assembly(add))
    for name, registers in (("zmm", (32, 512)), ("ymm", (16, 256)), ("xmm", (16, 128))):
        if re.search(rf"\b{name}\d", code):
            return registers
    return 32, 128  # ARM's NEON


class VectorType(types.Type):
    """64 bytes of float32 or float64 lanes."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"vector({dtype} x {self.lanes})")

    @property
    def llvm(self):
        element = ir.FloatType() if self.dtype == types.float32 else ir.DoubleType()
        return ir.VectorType(element, self.lanes)

    @property
    def llvm_name(self):
        return f"v{self.lanes}f{self.dtype.bitwidth}"

    @property
    def llvm_bits(self):
        return ir.VectorType(ir.IntType(self.dtype.bitwidth), self.lanes)


class MaskType(types.Type):
    """The outcome of comparing two vectors, lane by lane."""

    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(name=f"mask({lanes})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, mask):
        super().__init__(manager, mask, ir.VectorType(ir.IntType(1), mask.lanes))


# ---- numbers become vectors where they meet one


def splat(builder, scalar, llvm_vector):
    """A vector with the same scalar in every lane (LLVM level)."""
    undefined = ir.Constant(llvm_vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), llvm_vector.count), None)
    return builder.shuffle_vector(first, undefined, zeros)


def _as_vector(context, builder, value, given, vector):
    if given == vector:
        return value
    return splat(builder, context.cast(builder, value, given, vector.dtype), vector.llvm)


def _common_vector(*given):
    """The one vector type among operands, if the others are numbers."""
    vectors = {g for g in given if isinstance(g, VectorType)}
    rest = [g for g in given if not isinstance(g, VectorType)]
    if len(vectors) == 1 and all(isinstance(g, (types.Float, types.Integer)) for g in rest):
        return vectors.pop()
    return None


def _lanewise(emit, result=lambda vector: vector):
    """An intrinsic on vectors and numbers, from a function that emits its LLVM code."""

    def make(*given):
        vector = _common_vector(*given)
        if vector is None:
            return None

        def codegen(context, builder, signature, args):
            pairs = zip(args, signature.args, strict=True)
            return emit(builder, vector, *(_as_vector(context, builder, *p, vector) for p in pairs))

        return result(vector)(*given), codegen

    return make


def _unary(emit):
    make = _lanewise(emit)

    @intrinsic
    def apply(typing, a):
        return make(a)

    return apply


def _binary(emit, result=lambda vector: vector):
    make = _lanewise(emit, result)

    @intrinsic
    def apply(typing, a, b):
        return make(a, b)

    return apply


def register(function, apply):
    """Vectors, and numbers that meet one: function(a, b) is apply(a, b)."""

    @overload(function)
    def implementation(a, b):
        if _common_vector(a, b) is not None:
            return lambda a, b: apply(a, b)
        return None


def _compare(sign):
    return _binary(
        lambda builder, vector, a, b: builder.fcmp_ordered(sign, a, b),
        result=lambda vector: MaskType(vector.lanes),
    )


# 'contract' lets LLVM fuse a product and a sum into one rounding; nothing else is relaxed.
_FLAGS = ("contract",)
register(operator.add, _binary(lambda builder, vector, a, b: builder.fadd(a, b, flags=_FLAGS)))
register(operator.sub, _binary(lambda builder, vector, a, b: builder.fsub(a, b, flags=_FLAGS)))
register(operator.mul, _binary(lambda builder, vector, a, b: builder.fmul(a, b, flags=_FLAGS)))
register(operator.truediv, _binary(lambda builder, vector, a, b: builder.fdiv(a, b)))
register(operator.lt, _compare("<"))
register(operator.le, _compare("<="))
register(operator.gt, _compare(">"))
register(operator.ge, _compare(">="))

_negative = _unary(lambda builder, vector, a: builder.fneg(a))


@overload(operator.neg)
def _neg(a):
    if isinstance(a, VectorType):
        return lambda a: _negative(a)
    return None


def _declare(builder, name, kind):
    """An LLVM intrinsic function, declared in the module at its first use."""
    return cgutils.get_or_insert_function(builder.module, kind, name)


def _llvm_intrinsic(name):
    def emit(builder, vector, *args):
        kind = ir.FunctionType(vector.llvm, [vector.llvm] * len(args))
        return builder.call(_declare(builder, f"{name}.{vector.llvm_name}", kind), args)

    return emit


def _emit_extreme(sign):
    """LLVM's own llvm.maximum has no code for every machine in the older releases."""

    def emit(builder, vector, a, b):
        chosen = builder.select(builder.fcmp_ordered(sign, a, b), a, b)  # b, where it is NaN
        return builder.select(builder.fcmp_unordered("uno", a, a), a, chosen)

    return emit


maximum, minimum = _binary(_emit_extreme(">")), _binary(_emit_extreme("<"))  # NaN if either is
magnitude = _unary(_llvm_intrinsic("llvm.fabs"))
square_root = _unary(_llvm_intrinsic("llvm.sqrt"))
with_sign_of = _binary(_llvm_intrinsic("llvm.copysign"))
emit_fma = _llvm_intrinsic("llvm.fmuladd")


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, in one rounding where the machine can."""
    return _lanewise(emit_fma)(a, b, c)


@intrinsic
def where(typing, mask, a, b):
    """a where the mask holds, else b; the mask may be one boolean for all lanes."""
    vector = _common_vector(a, b)
    if vector is None or mask not in (MaskType(vector.lanes), types.boolean):
        return None

    def codegen(context, builder, signature, args):
        a, b = (_as_vector(context, builder, args[k], signature.args[k], vector) for k in (1, 2))
        return builder.select(args[0], a, b)

    return vector(mask, a, b), codegen


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


exponent_from_low_bits = _unary(_emit_exponent)


# ---- memory, by address; ``frame`` says of which dtype (frames.py)


def _pointer(builder, vector, address):
    return builder.inttoptr(address, vector.llvm.as_pointer())


def emit_load(builder, vector, address):
    """Load a vector; the address is a multiple of 64 (LLVM level)."""
    return builder.load(_pointer(builder, vector, address), align=VECTOR_BYTES)


def emit_store(builder, vector, value, address):
    """Store a vector; the address is a multiple of 64 (LLVM level)."""
    builder.store(value, _pointer(builder, vector, address), align=VECTOR_BYTES)


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


def emit_load_part(builder, vector, address, lanes):
    """Load the first ``lanes`` lanes, at any address; the others are zero, and never read."""
    pointer, size = _pointer(builder, vector, address), vector.dtype.bitwidth // 8
    all_lanes = builder.icmp_signed(">=", lanes, _I64(vector.lanes))
    with builder.if_else(all_lanes, likely=True) as (then, otherwise):
        with then:
            whole = builder.load(pointer, align=size)
            then_block = builder.block
        with otherwise:
            zeros = ir.Constant(vector.llvm, [0.0] * vector.lanes)
            given = [pointer, _I32(size), emit_lanes_in_use(builder, vector, lanes), zeros]
            part = _masked(builder, vector, "load", vector.llvm, given)
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
def lanes_of(builder, frame):
    """How many numbers a vector holds."""
    return _I64(VectorType(frame.dtype).lanes)


def of_frame(frame, *rest):
    """The type of a frame's vectors: what a function that ``emits`` one returns."""
    return VectorType(frame.dtype)


def _if_vector(frame, value, *rest):
    return types.void if value == VectorType(frame.dtype) else None


@emits(of_frame)
def load(builder, frame, address):
    """A whole vector; the address is a multiple of 64."""
    return emit_load(builder, VectorType(frame.dtype), address)


@emits(of_frame)
def load_part(builder, frame, address, lanes):
    """A vector from any address: its first ``lanes`` lanes, the others zero and never read."""
    return emit_load_part(builder, VectorType(frame.dtype), address, lanes)


@emits(_if_vector)
def store(builder, frame, value, address):
    """Write a whole vector; the address is a multiple of 64."""
    emit_store(builder, VectorType(frame.dtype), value, address)


@emits(_if_vector)
def store_part(builder, frame, value, address, lanes):
    """Write a vector's first ``lanes`` lanes to any address."""
    emit_store_part(builder, VectorType(frame.dtype), value, address, lanes)
