"""The masks of ``draws.py`` in compiled code: its functions, run on LLVM's values."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from . import draws

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _operator(instruction: str) -> Callable[["Emitted", Any], "Emitted"]:
    def emit(self: "Emitted", other: Any) -> "Emitted":
        if isinstance(other, int):
            kind = self.value.type
            many = [other] * kind.count if isinstance(kind, ir.VectorType) else other
            other = Emitted(self.builder, ir.Constant(kind, many))
        return Emitted(self.builder, getattr(self.builder, instruction)(self.value, other.value))

    return emit


class Emitted:
    """An integer in compiled code, or a vector of them; its operators emit instructions."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    __add__, __mul__, __xor__, __rshift__ = map(_operator, ("add", "mul", "xor", "lshr"))


def emit_drawn(
    builder: Any, seed: Any, threshold: Any, place: Any, first: Any, count: int = 0
) -> Any:
    """Whether unit ``first`` of the row at a place is drawn, or which of ``count`` from there on.

    The values have 64 bits; the result is an i1, or with a count a vector of them.
    """

    def narrow(value: Any) -> Any:
        value = builder.trunc(value, _I32)
        if not count:
            return value
        vector = ir.VectorType(_I32, count)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
        return builder.shuffle_vector(one, one, ir.Constant(vector, None))

    key = draws.key(Emitted(builder, seed), Emitted(builder, place))
    low, high = (Emitted(builder, narrow(half.value)) for half in (key, key >> 32))
    multiples = Emitted(builder, narrow((Emitted(builder, first) * draws.GOLDEN32).value))
    if count:
        each = [k * draws.GOLDEN32 & 0xFFFFFFFF for k in range(count)]
        multiples += Emitted(builder, ir.Constant(multiples.value.type, each))
    bits = draws.bits(low, high, multiples)
    return builder.icmp_unsigned("<", bits.value, narrow(threshold))
