"""What a thread computes with: some numbers side by side, as a Numba type.

A thread works on 16 bytes at a time, 4 float32 or 2 float64, or on one number where H is no
multiple of that. Cell functions compile to either unchanged, as they do to the CPU's vectors:

    x = load(pointer, index)            ``load``: one of LOADS, by how many numbers
    store(x, pointer, index)
    x + y, 1 - x, -x, x * 2.0           a Python number takes the dtype of what it meets

(Plain scalars would not do: Numba makes ``1 - x`` a float64.)

For float32 all that rests on exp uses the special function unit: 2^x to 2 units in the last place.
"""

import operator

from llvmlite import ir

from .. import functions
from ..emitted_draws import emit_drawn
from .target import intrinsic, models, overload, register_model, types

_I32, _F32 = ir.IntType(32), ir.FloatType()


class LanesType(types.Type):
    """``count`` numbers of a dtype."""

    def __init__(self, dtype, count):
        self.dtype, self.count = dtype, count
        super().__init__(name=f"lanes({dtype} x {count})")

    @property
    def llvm(self):
        number = _F32 if self.dtype == types.float32 else ir.DoubleType()
        return number if self.count == 1 else ir.VectorType(number, self.count)


class MaskType(types.Type):
    """The outcome of comparing two of those."""

    def __init__(self, count):
        self.count = count
        super().__init__(name=f"lanes_mask({count})")

    @property
    def llvm(self):
        return ir.IntType(1) if self.count == 1 else ir.VectorType(ir.IntType(1), self.count)


@register_model(LanesType)
@register_model(MaskType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, kind.llvm)


# ---- memory


def _loading(count):
    @intrinsic
    def load(typing, pointer, index):
        kind = LanesType(pointer.dtype, count)

        def codegen(context, builder, signature, args):
            place = builder.bitcast(builder.gep(args[0], [args[1]]), kind.llvm.as_pointer())
            return builder.load(place, align=count * kind.dtype.bitwidth // 8)

        return kind(pointer, index), codegen

    return load


LOADS = {count: _loading(count) for count in (1, 2, 4)}  # a wide index is a multiple of count


@intrinsic
def store(typing, value, pointer, index):
    """Write numbers side by side; a wide index is a multiple of how many they are."""

    def codegen(context, builder, signature, args):
        place = builder.bitcast(builder.gep(args[1], [args[2]]), value.llvm.as_pointer())
        builder.store(args[0], place, align=value.count * value.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(value, pointer, index), codegen


@intrinsic
def shared_of(typing, pointer):
    """A pointer to the block's dynamic shared memory, to numbers like those of the other one."""
    kind = types.CPointer(pointer.dtype)

    def codegen(context, builder, signature, args):
        number, name = LanesType(pointer.dtype, 1).llvm, "numba_rnn_shared"
        memory = builder.module.globals.get(name)
        if memory is None:
            memory = ir.GlobalVariable(builder.module, ir.ArrayType(number, 0), name, addrspace=3)
            memory.linkage, memory.align = "external", 16
        start = builder.gep(memory, [_I32(0), _I32(0)])
        return builder.addrspacecast(start, number.as_pointer())

    return kind(pointer), codegen


@intrinsic
def drawn(typing, like, seed, threshold, place, j):
    """Which of the units from j on are drawn, as many as ``like`` has numbers (``draws.py``)."""
    kind = MaskType(like.count)

    def codegen(context, builder, signature, args):
        given = zip(args[1:], signature.args[1:], strict=True)
        seed, threshold, place, j = (context.cast(builder, x, k, types.int64) for x, k in given)
        units = _I32 if kind.count == 1 else ir.VectorType(_I32, kind.count)
        return emit_drawn(builder, units, seed, threshold, place, j)

    return kind(like, seed, threshold, place, j), codegen


# ---- arithmetic


def _splat(builder, number, kind):
    if kind.count == 1:
        return number
    value = ir.Constant(kind.llvm, ir.Undefined)
    for k in range(kind.count):
        value = builder.insert_element(value, number, _I32(k))
    return value


def _each(builder, kind, emit, *values):
    """A value whose every number is emit(the values' numbers there)."""
    if kind.count == 1:
        return emit(*values)
    result = ir.Constant(kind.llvm, ir.Undefined)
    for k in range(kind.count):
        number = emit(*(builder.extract_element(value, _I32(k)) for value in values))
        result = builder.insert_element(result, number, _I32(k))
    return result


def _common(*given):
    """The one type of lanes among operands, if the others are numbers."""
    kinds = {g for g in given if isinstance(g, LanesType)}
    rest = [g for g in given if not isinstance(g, LanesType)]
    if len(kinds) == 1 and all(isinstance(g, (types.Float, types.Integer)) for g in rest):
        return kinds.pop()
    return None


def _values(context, builder, kind, args, given):
    return [
        arg if g == kind else _splat(builder, context.cast(builder, arg, g, kind.dtype), kind)
        for arg, g in zip(args, given, strict=True)
    ]


def _lanewise(emit, result=lambda kind: kind):
    def make(*given):
        kind = _common(*given)
        if kind is None:
            return None

        def codegen(context, builder, signature, args):
            return emit(builder, kind, *_values(context, builder, kind, args, signature.args))

        return result(kind)(*given), codegen

    return make


def _binary(emit, result=lambda kind: kind):
    make = _lanewise(emit, result)

    @intrinsic
    def apply(typing, a, b):
        return make(a, b)

    return apply


def _unary(emit):
    make = _lanewise(emit)

    @intrinsic
    def apply(typing, a):
        return make(a)

    return apply


def _register(python_operator, apply):
    @overload(python_operator)
    def implementation(a, b):
        if _common(a, b) is not None:
            return lambda a, b: apply(a, b)
        return None


for _operator, _name in (
    (operator.add, "fadd"), (operator.sub, "fsub"),
    (operator.mul, "fmul"), (operator.truediv, "fdiv"),
):  # fmt: skip
    _register(
        _operator,
        _binary(lambda builder, kind, a, b, name=_name: getattr(builder, name)(a, b)),
    )
for _operator, _sign in (
    (operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="),
):  # fmt: skip
    _register(
        _operator,
        _binary(
            lambda builder, kind, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b),
            result=lambda kind: MaskType(kind.count),
        ),
    )

_negative = _unary(lambda builder, kind, a: builder.fsub(ir.Constant(a.type, None), a))


@overload(operator.neg)
def _(a):
    if isinstance(a, LanesType):
        return lambda a: _negative(a)
    return None


@intrinsic
def where(typing, mask, a, b):
    """a where the mask holds, else b; the mask may be one boolean for all."""
    kind = _common(a, b)
    if kind is None or mask not in (MaskType(kind.count), types.boolean):
        return None

    def codegen(context, builder, signature, args):
        values = _values(context, builder, kind, args[1:], signature.args[1:])
        return builder.select(args[0], *values)

    return kind(mask, a, b), codegen


def _extreme(sign):
    def emit(builder, kind, a, b):
        chosen = builder.select(builder.fcmp_ordered(sign, a, b), a, b)  # b, where it is NaN
        return builder.select(builder.fcmp_unordered("uno", a, a), a, chosen)

    return _binary(emit)


_register(functions.maximum, _extreme(">"))
_register(functions.minimum, _extreme("<"))


# ---- functions


def _by_assembly(code):
    """One float32 instruction for each number: $0 from $1."""

    def emit(builder, kind, a):
        function = ir.FunctionType(_F32, [_F32])
        assembly = ir.InlineAsm(function, f"{code} $0, $1;", "=f,f", side_effect=False)
        return _each(builder, kind, lambda number: builder.call(assembly, [number]), a)

    return _unary(emit)


def _by_library(name):
    """One call of CUDA's library (libdevice) for each float64 number."""

    def emit(builder, kind, a):
        double = ir.DoubleType()
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(double, [double]), name
        )
        return _each(builder, kind, lambda number: builder.call(function, [number]), a)

    return _unary(emit)


_power_of_two, _reciprocal = _by_assembly("ex2.approx.ftz.f32"), _by_assembly("rcp.approx.ftz.f32")
_exp64, _tanh64 = _by_library("__nv_exp"), _by_library("__nv_tanh")
_log_of_one_plus64 = _by_library("__nv_log1p")
_magnitude32, _sqrt32 = _by_assembly("abs.f32"), _by_assembly("sqrt.rn.f32")
_magnitude64, _sqrt64 = _by_library("__nv_fabs"), _by_library("__nv_sqrt")


@intrinsic
def _fma32(typing, a, b, c):
    """a * b + c in one rounding, for each float32 number."""
    function = ir.FunctionType(_F32, [_F32] * 3)
    assembly = ir.InlineAsm(function, "fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", side_effect=False)

    def emit(builder, kind, *values):
        return _each(builder, kind, lambda *given: builder.call(assembly, given), *values)

    return _lanewise(emit)(a, b, c)


def _sigmoid_float32(x):
    return _reciprocal(1.0 + _power_of_two(x * -1.4426950408889634))


def _sigmoid_float64(x):
    return 1.0 / (1.0 + _exp64(-x))


def _tanh_float32(x):
    z = x * x  # near 0, where 1 - 2 / (...) has lost its digits: Cephes
    small = x + x * z * (
        -3.33332819422e-1
        + z
        * (
            1.33314422036e-1
            + z * (-5.37397155531e-2 + z * (2.06390887954e-2 - z * 5.70498872745e-3))
        )
    )
    large = 1.0 - 2.0 * _reciprocal(1.0 + _power_of_two(x * 2.8853900817779268))
    return where(_magnitude32(x) < 0.625, small, large)


def _tanh_float64(x):
    return _tanh64(x)


def _exp_float32(x):
    """2^(x / ln 2), corrected by what x / ln 2 has lost where it was rounded."""
    power = x * 1.44269502  # and 1.92596299e-8
    lost = _fma32(x, 1.44269502, -power) + x * 1.92596299e-8
    y = _power_of_two(power)
    right = _fma32(y, lost * 0.693147181, y)
    return where(_magnitude32(power) < 128.0, right, y)  # else it is 0, inf or NaN


def _exp_float64(x):
    return _exp64(x)


def _softplus_float32(x):
    """max(x, 0) + log(1 + e) with e = exp(-|x|), and log(1 + e) = 2 atanh(t / 2).

    That is a polynomial, as on the CPU (``cpu/vector_functions.py``): the special function unit's
    logarithm loses its digits near 1.
    """
    e = functions.exp(-_magnitude32(x))
    t = e * _reciprocal(_fma32(e, 0.5, 1.0))
    z = t * t
    p = 8.33330203e-2 + z * (1.25067275e-2 + z * (2.18764039e-3 + z * 5.47109825e-4))
    return where(x > 0.0, x, 0.0) + _fma32(t * z, p, t)


def _softplus_float64(x):
    return where(x > 0.0, x, 0.0) + _log_of_one_plus64(_exp64(-_magnitude64(x)))


def _absolute_float32(x):
    return _magnitude32(x)


def _absolute_float64(x):
    return _magnitude64(x)


def _sqrt_float32(x):
    return _sqrt32(x)


def _sqrt_float64(x):
    return _sqrt64(x)


def _register_unary(stub, float32, float64=None):
    """One version for each dtype, or one for both."""

    @overload(stub, strict=False)
    def _(x):
        if isinstance(x, LanesType):
            return float32 if x.dtype == types.float32 else float64 or float32
        return None


_register_unary(functions.sigmoid, _sigmoid_float32, _sigmoid_float64)
_register_unary(functions.tanh, _tanh_float32, _tanh_float64)
_register_unary(functions.relu, lambda x: where(x < 0.0, 0.0, x))
_register_unary(functions.drelu, lambda x: where(x > 0.0, 1.0, x * 0.0))
_register_unary(functions.exp, _exp_float32, _exp_float64)
_register_unary(functions.softplus, _softplus_float32, _softplus_float64)
_register_unary(functions.absolute, _absolute_float32, _absolute_float64)
_register_unary(functions.sqrt, _sqrt_float32, _sqrt_float64)
for _composite in functions.COMPOSITES:
    _register_unary(_composite, _composite)


@overload(functions.where)
def _(condition, a, b):
    if isinstance(condition, MaskType | types.Boolean):
        return lambda condition, a, b: where(condition, a, b)
    return None
