"""The numbers of a thread: some side by side, as a Numba type.

A thread works on 16 bytes at a time, 4 float32 or 2 float64, or on one number where H is no
multiple of that. Cell functions compile to either unchanged, as they do to the CPU's vectors:

    x = load(pointer, index)            ``load``: one of LOADS, by how many numbers
    store(x, pointer, index)
    x + y, 1 - x, -x, x * 2.0           a Python number takes the dtype of what it meets

(Plain scalars would not do: Numba makes ``1 - x`` a float64.)

For float32 all that rests on exp uses the special function unit: 2^x to 2 units in the last place.
"""

from llvmlite import ir

from .. import functions, vectors
from ..emitted_draws import emit_drawn
from ..vectors import MaskType, Operators
from . import numba_cuda_compat
from .numba_cuda_compat import intrinsic, types

_I32, _F32 = ir.IntType(32), ir.FloatType()


class VectorType(vectors.VectorType):
    """The numbers of a thread."""


# ---- memory


def _loading(count):
    @intrinsic
    def load(typing, pointer, index):
        kind = VectorType(pointer.dtype, count)

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
        builder.store(args[0], place, align=value.lanes * value.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(value, pointer, index), codegen


@intrinsic
def shared_of(typing, pointer):
    """A pointer to the block's dynamic shared memory, to numbers like those of the other one."""
    kind = types.CPointer(pointer.dtype)

    def codegen(context, builder, signature, args):
        number, name = VectorType(pointer.dtype, 1).llvm, "numba_rnn_shared"
        memory = builder.module.globals.get(name)
        if memory is None:
            memory = ir.GlobalVariable(builder.module, ir.ArrayType(number, 0), name, addrspace=3)
            memory.linkage, memory.align = "external", 16
        start = builder.gep(memory, [_I32(0), _I32(0)])
        return builder.addrspacecast(start, number.as_pointer())

    return kind(pointer), codegen


@intrinsic
def drawn(typing, like, seed, threshold, place, j):
    """Which of the units from j on are drawn, as many as ``like`` has numbers
    (``counter_rng.py``)."""
    kind = MaskType(like.lanes)

    def codegen(context, builder, signature, args):
        given = zip(args[1:], signature.args[1:], strict=True)
        seed, threshold, place, j = (context.cast(builder, x, k, types.int64) for x, k in given)
        units = _I32 if kind.lanes == 1 else ir.VectorType(_I32, kind.lanes)
        return emit_drawn(builder, units, seed, threshold, place, j)

    return kind(like, seed, threshold, place, j), codegen


# ---- arithmetic

_operators = Operators(
    VectorType,
    numba_cuda_compat,
    negative=lambda builder, a: builder.fsub(ir.Constant(a.type, None), a),
)
where = _operators.where


def _each(builder, kind, emit, *values):
    """A value whose every number is emit(the values' numbers there)."""
    if kind.lanes == 1:
        return emit(*values)
    result = ir.Constant(kind.llvm, ir.Undefined)
    for k in range(kind.lanes):
        number = emit(*(builder.extract_element(value, _I32(k)) for value in values))
        result = builder.insert_element(result, number, _I32(k))
    return result


# ---- functions


def _assembly(instruction, operands=1):
    """Emits a float32 instruction for each number."""
    registers = ", ".join(f"${k}" for k in range(operands + 1))
    function = ir.FunctionType(_F32, [_F32] * operands)
    constraints = ",".join(["=f"] + ["f"] * operands)
    assembly = ir.InlineAsm(function, f"{instruction} {registers};", constraints)

    def emit(builder, kind, *values):
        return _each(builder, kind, lambda *numbers: builder.call(assembly, numbers), *values)

    return emit


def _library(name):
    """Emits a call of CUDA's library (libdevice) for each float64 number."""

    def emit(builder, kind, a):
        double = ir.DoubleType()
        function = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(double, [double]), name
        )
        return _each(builder, kind, lambda number: builder.call(function, [number]), a)

    return emit


_power_of_two = _operators.unary(_assembly("ex2.approx.ftz.f32"))
_reciprocal = _operators.unary(_assembly("rcp.approx.ftz.f32"))
_magnitude32, _magnitude64 = map(_operators.unary, (_assembly("abs.f32"), _library("__nv_fabs")))
_sqrt32, _sqrt64 = map(_operators.unary, (_assembly("sqrt.rn.f32"), _library("__nv_sqrt")))
_exp64, _tanh64 = map(_operators.unary, (_library("__nv_exp"), _library("__nv_tanh")))
_log_of_one_plus64 = _operators.unary(_library("__nv_log1p"))
_emit_fma = _assembly("fma.rn.f32", operands=3)


@intrinsic
def _fma32(typing, a, b, c):
    """a * b + c in one rounding, for each float32 number."""
    return _operators.lanewise(_emit_fma)(a, b, c)


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


def _exp_float32(x):
    """2^(x / ln 2), corrected by what x / ln 2 has lost where it was rounded."""
    power = x * 1.44269502  # and 1.92596299e-8
    lost = _fma32(x, 1.44269502, -power) + x * 1.92596299e-8
    y = _power_of_two(power)
    right = _fma32(y, lost * 0.693147181, y)
    return where(_magnitude32(power) < 128.0, right, y)  # else it is 0, inf or NaN


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


_versions = _operators.register_versions
_versions(functions.sigmoid, _sigmoid_float32, _sigmoid_float64)
_versions(functions.tanh, _tanh_float32, lambda x: _tanh64(x))
_versions(functions.relu, lambda x: where(x < 0.0, 0.0, x))
_versions(functions.drelu, lambda x: where(x > 0.0, 1.0, x * 0.0))
_versions(functions.exp, _exp_float32, lambda x: _exp64(x))
_versions(functions.softplus, _softplus_float32, _softplus_float64)
_versions(functions.absolute, lambda x: _magnitude32(x), lambda x: _magnitude64(x))
_versions(functions.sqrt, lambda x: _sqrt32(x), lambda x: _sqrt64(x))
for _composite in functions.COMPOSITES:
    _versions(_composite, _composite)
_operators.register(functions.maximum, _operators.maximum)
_operators.register(functions.minimum, _operators.minimum)
_operators.register_where(functions.where)


def instructions(count):
    """The functions that kernels call, by name, for threads of so many numbers."""
    return {
        "load": LOADS[count], "store": store, "where": where, "drawn": drawn,
        "shared_of": shared_of, "COUNT": count,
    }  # fmt: skip
