"""The masks of ``counter_rng.py`` in compiled code: its functions, run on LLVM's values."""

from collections.abc import Callable
from typing import Any

from . import counter_rng


def _operator(instruction: str) -> Callable[["Emitted", Any], "Emitted"]:
    def emit(self: "Emitted", other: Any) -> "Emitted":
        if isinstance(other, int):
            kind = self.value.type
            count = getattr(kind, "count", 0)  # of a vector
            other = Emitted(self.builder, kind([other] * count if count else other))
        return Emitted(self.builder, getattr(self.builder, instruction)(self.value, other.value))

    return emit


class Emitted:
    """An integer in compiled code, or a vector of them; its operators emit instructions."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    __add__, __mul__, __xor__, __rshift__ = map(_operator, ("add", "mul", "xor", "lshr"))


def emit_drawn(builder: Any, kind: Any, seed: Any, threshold: Any, counter: Any, first: Any) -> Any:
    """Whether the units from ``first`` on are drawn, in the row at a counter.

    kind    i32 for one unit, a vector of them for several; the result is an i1, or a vector of them

    The others are values of 64 bits.
    """
    number, count = getattr(kind, "element", kind), getattr(kind, "count", 0)

    def narrow(wide: Emitted) -> Emitted:
        value = builder.trunc(wide.value, number)
        if count:
            value = builder.insert_element(kind(None), value, number(0))
            value = builder.shuffle_vector(value, value, kind(None))
        return Emitted(builder, value)

    seed, threshold, counter, first = (
        Emitted(builder, value) for value in (seed, threshold, counter, first)
    )
    key, multiples = counter_rng.key(seed, counter), narrow(first * counter_rng.GOLDEN32)
    if count:
        each = [k * counter_rng.GOLDEN32 & 0xFFFFFFFF for k in range(count)]
        multiples += Emitted(builder, kind(each))
    bits = counter_rng.bits(narrow(key), narrow(key >> 32), multiples)
    return builder.icmp_unsigned("<", bits.value, narrow(threshold).value)
