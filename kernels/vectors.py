"""Vectors as a Numba type, with Python's operators, so that cell functions compile to vector code.

Each compiled engine has a vector type of its own, derived from ``VectorType``: 64 bytes on a CPU
(``cpu/simd.py``), the numbers of a thread on a GPU (``cuda/vector_type.py``). ``Operators`` gives
it

    v + w, 1 - v, -v, v * 2.0           a number becomes a vector of what it meets
    v < w                               a mask
    where(v < w, v, 0.0)                also with one boolean for all lanes
    maximum(v, w), minimum(v, w)        NaN where either is

and makes more functions of vectors from functions that emit their LLVM code.
"""

import operator

from llvmlite import ir
from numba.core import types

_ARITHMETIC = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul"}
_COMPARISONS = {operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">="}


class VectorType(types.Type):
    """``lanes`` numbers of float32 or float64; of a single lane the number itself."""

    def __init__(self, dtype, lanes):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"{type(self).__name__}({dtype} x {lanes})")

    @property
    def llvm(self):
        number = ir.FloatType() if self.dtype == types.float32 else ir.DoubleType()
        return number if self.lanes == 1 else ir.VectorType(number, self.lanes)


class MaskType(types.Type):
    """The outcome of comparing two vectors, lane by lane."""

    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(name=f"mask({lanes})")

    @property
    def llvm(self):
        return ir.IntType(1) if self.lanes == 1 else ir.VectorType(ir.IntType(1), self.lanes)


def splat(builder, scalar, llvm_type):
    """A vector with the same scalar in every lane (LLVM level)."""
    if scalar.type == llvm_type:
        return scalar
    undefined = ir.Constant(llvm_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), llvm_type.count), None)
    return builder.shuffle_vector(first, undefined, zeros)


class Operators:
    """The operators of an engine's vectors, registered with Numba, and a maker of functions.

    kind       the engine's class of vectors
    extending  where Numba's decorators for the engine are: ``numba.extending`` or its like
    negative   emits the LLVM code of -v: negative(builder, v)
    flags      what LLVM may do to sums, differences and products
    """

    def __init__(self, kind, extending, negative, flags=()):
        self._kind, self._extending = kind, extending
        for each in (kind, MaskType):
            self._register_model(each)
        for function, name in _ARITHMETIC.items():
            self.register(function, self.binary(_instruction(name, flags=flags)))
        self.register(operator.truediv, self.binary(_instruction("fdiv")))
        for function, sign in _COMPARISONS.items():
            compare = self.binary(_comparison(sign), result=lambda vector: MaskType(vector.lanes))
            self.register(function, compare)
        self._register_negative(self.unary(lambda builder, vector, a: negative(builder, a)))
        self.maximum, self.minimum = self.binary(_extreme(">")), self.binary(_extreme("<"))
        self.where = self._where()

    def lanewise(self, emit, result=lambda vector: vector):
        """A function that types and emits a call on vectors and numbers, as an intrinsic does.

        emit    emit(builder, type, *values) emits the LLVM code, of values of that type
        result  the type of the result, from that of the vectors
        """

        def make(*given):
            vector = self._common(*given)
            if vector is None:
                return None

            def codegen(context, builder, signature, args):
                pairs = zip(args, signature.args, strict=True)
                return emit(
                    builder, vector, *(_as_vector(context, builder, *p, vector) for p in pairs)
                )

            return result(vector)(*given), codegen

        return make

    def unary(self, emit):
        """A function of a vector."""
        make = self.lanewise(emit)

        @self._extending.intrinsic
        def apply(typing, a):
            return make(a)

        return apply

    def binary(self, emit, result=lambda vector: vector):
        """A function of two vectors, or of a vector and a number."""
        make = self.lanewise(emit, result)

        @self._extending.intrinsic
        def apply(typing, a, b):
            return make(a, b)

        return apply

    def register(self, function, apply):
        """Vectors, and numbers that meet one: function(a, b) is apply(a, b)."""

        @self._extending.overload(function)
        def implementation(a, b):
            if self._common(a, b) is not None:
                return lambda a, b: apply(a, b)
            return None

    def register_versions(self, function, float32, float64=None):
        """function(v) is one of these plain functions, by the dtype of v; or one for both."""

        @self._extending.overload(function, strict=False)
        def implementation(v, *more):
            if isinstance(v, self._kind):
                return float32 if v.dtype == types.float32 else float64 or float32
            return None

    def register_where(self, function):
        """function(mask, a, b) is ``where``."""
        where = self.where

        @self._extending.overload(function)
        def implementation(condition, a, b):
            if isinstance(condition, MaskType | types.Boolean):
                return lambda condition, a, b: where(condition, a, b)
            return None

    def _common(self, *given):
        """The one type of vectors among operands, if the others are numbers."""
        vectors = {g for g in given if isinstance(g, self._kind)}
        rest = [g for g in given if not isinstance(g, self._kind)]
        if len(vectors) == 1 and all(isinstance(g, (types.Float, types.Integer)) for g in rest):
            return vectors.pop()
        return None

    def _register_model(self, kind):
        """Numba holds a vector as LLVM does."""

        @self._extending.register_model(kind)
        class _Model(self._extending.models.PrimitiveModel):  # type: ignore[name-defined]
            def __init__(self, manager, vector):
                super().__init__(manager, vector, vector.llvm)

    def _register_negative(self, apply):
        @self._extending.overload(operator.neg)
        def implementation(a):
            if isinstance(a, self._kind):
                return lambda a: apply(a)
            return None

    def _where(self):
        @self._extending.intrinsic
        def where(typing, mask, a, b):
            """a where the mask holds, else b; the mask may be one boolean for all lanes."""
            vector = self._common(a, b)
            if vector is None or mask not in (MaskType(vector.lanes), types.boolean):
                return None

            def codegen(context, builder, signature, args):
                pairs = zip(args[1:], signature.args[1:], strict=True)
                a, b = (_as_vector(context, builder, *pair, vector) for pair in pairs)
                return builder.select(args[0], a, b)

            return vector(mask, a, b), codegen

        return where


def _as_vector(context, builder, value, given, vector):
    if given == vector:
        return value
    return splat(builder, context.cast(builder, value, given, vector.dtype), vector.llvm)


def _instruction(name, **options):
    return lambda builder, vector, a, b: getattr(builder, name)(a, b, **options)


def _comparison(sign):
    return lambda builder, vector, a, b: builder.fcmp_ordered(sign, a, b)


def _extreme(sign):
    """LLVM's own llvm.maximum has no code for every machine in the older releases."""

    def emit(builder, vector, a, b):
        chosen = builder.select(builder.fcmp_ordered(sign, a, b), a, b)  # b, where it is NaN
        return builder.select(builder.fcmp_unordered("uno", a, a), a, chosen)

    return emit
