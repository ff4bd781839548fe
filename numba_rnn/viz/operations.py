"""One operation of a cell: its value, its gradients, and both in words.

Those that cells may be made of (``kernels/autodiff/tracing.py``), on NumPy arrays.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels import functions
from ..kernels.autodiff import graph as traced
from ..kernels.layout import EPSILON
from ..typing import Array

SIGNS = {traced.SUM: "+", traced.DIFFERENCE: "−", traced.PRODUCT: "×", traced.QUOTIENT: "÷"}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    traced.SUM: lambda a, b: a + b,
    traced.DIFFERENCE: lambda a, b: a - b,
    traced.PRODUCT: lambda a, b: a * b,
    traced.QUOTIENT: lambda a, b: a / b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
LABELS = {"sigmoid": "σ", "absolute": "|·|", "maximum": "max", "minimum": "min"}
WORDS = {
    traced.SUM: "addition node", traced.DIFFERENCE: "subtraction node",
    traced.PRODUCT: "multiplication node", traced.QUOTIENT: "division node",
    traced.NEGATIVE: "minus",
}  # fmt: skip

# of each operation: the gradient of every operand, of (d, operands, result), and how it is written
Back = Sequence[tuple[Callable[[Any, Sequence[Any], Any], Any], str]]
BACK: dict[str, Back] = {
    traced.SUM: [(lambda d, v, y: d, "{d}"), (lambda d, v, y: d, "{d}")],
    traced.DIFFERENCE: [(lambda d, v, y: d, "{d}"), (lambda d, v, y: -d, "−{d}")],
    traced.PRODUCT: [
        (lambda d, v, y: d * v[1], "{d} × {b}"),
        (lambda d, v, y: d * v[0], "{d} × {a}"),
    ],
    traced.QUOTIENT: [
        (lambda d, v, y: d / v[1], "{d} / {b}"),
        (lambda d, v, y: -d * y / v[1], "−{d} × {y} / {b}"),
    ],
    traced.NEGATIVE: [(lambda d, v, y: -d, "−{d}")],
    "sigmoid": [(lambda d, v, y: d * y * (1 - y), "{d} × {y} × (1 − {y})")],
    "tanh": [(lambda d, v, y: d * (1 - y * y), "{d} × (1 − {y}²)")],
    "relu": [(lambda d, v, y: d * (y > 0), "{d} × ({y} > 0)")],
    "drelu": [(lambda d, v, y: 0 * d, "0")],
    "exp": [(lambda d, v, y: d * y, "{d} × {y}")],
    "softplus": [(lambda d, v, y: d * functions.sigmoid(v[0]), "{d} × σ({a})")],
    "sqrt": [(lambda d, v, y: d / (2 * y), "{d} / (2 {y})")],
    "absolute": [(lambda d, v, y: d * np.sign(v[0]), "{d} × sign({a})")],
    "maximum": [
        (lambda d, v, y: d * (v[0] >= v[1]), "{d} × ({a} ≥ {b})"),
        (lambda d, v, y: d * (v[0] < v[1]), "{d} × ({a} < {b})"),
    ],
    "minimum": [
        (lambda d, v, y: d * (v[0] <= v[1]), "{d} × ({a} ≤ {b})"),
        (lambda d, v, y: d * (v[0] > v[1]), "{d} × ({a} > {b})"),
    ],
    "where": [
        (lambda d, v, y: None, ""),
        (lambda d, v, y: np.where(v[0], d, 0 * d), "{d} where {a}"),
        (lambda d, v, y: np.where(v[0], 0 * d, d), "{d} where not {a}"),
    ],
}


class Operation:
    """One operation, some of whose operands may be constants.

    kind, label  as those of the traced node
    fixed        the constants, by their place among the operands
    """

    def __init__(self, kind: str, label: Any, fixed: Mapping[int, float]) -> None:
        self.kind = kind
        self._of = str(label) if kind in (traced.CALL, traced.COMPARISON) else kind
        self._fixed = dict(fixed)
        self.compares = kind == traced.COMPARISON

    @property
    def label(self) -> str:
        """The text in the node: a sign or a function, with the constants."""
        if self._of == traced.NEGATIVE:
            return "−"
        sign = SIGNS.get(self._of, LABELS.get(self._of, self._of))
        before, after = (f"{self._fixed[k]:g}" if k in self._fixed else "" for k in (0, 1))
        if self._of in SIGNS or self.compares:
            return f"{before}{sign}{after}"
        return " ".join(filter(None, (sign, before, after)))

    @property
    def words(self) -> str:
        """The name of the step back through it."""
        return WORDS.get(self._of, f"d{self._of}")

    def expression(self, names: Sequence[str]) -> str:
        """Its formula, in terms of its operands' names."""
        terms = self._with_fixed(names, lambda number: f"{number:g}")
        if self._of == traced.NEGATIVE:
            return f"−{terms[0]}"
        if self._of in BINARY:
            sign = {"×": "·", "÷": "/"}.get(SIGNS.get(self._of, ""), SIGNS.get(self._of, self._of))
            return sign.join(map(_closed, terms))
        if len(terms) == 1 and is_simple(terms[0]):
            return f"{self._of}_{terms[0]}"
        return f"{self._of}({', '.join(terms)})"

    def value(self, operands: Sequence[Array]) -> Array:
        """The result."""
        values = self._with_fixed(operands, lambda number: number)
        if self._of == traced.NEGATIVE:
            return -values[0]
        if self._of in BINARY:
            return BINARY[self._of](*values)
        return getattr(functions, self._of)(*values)

    def gradients(self, d: Array, operands: Sequence[Array], result: Array) -> list[Array | None]:
        """The gradient of every operand that is no constant; None: it has none."""
        values = self._with_fixed(operands, lambda number: number)
        return [back(d, values, result) for back, _ in self._back()]

    def equations(self, d: str, names: Sequence[str], result: str) -> list[str]:
        """The same in words; "" where there is none."""
        terms = [_closed(name) for name in self._with_fixed(names, lambda number: f"{number:g}")]
        named = dict(zip("abc", terms, strict=False))
        return [text.format(d=d, y=_closed(result), **named) for _, text in self._back()]

    def _back(self) -> Back:
        if self.compares:
            return ()
        return [back for k, back in enumerate(BACK[self._of]) if k not in self._fixed]

    def _with_fixed(self, operands: Sequence[Any], spell: Callable[[float], Any]) -> list[Any]:
        rest = iter(operands)
        count = len(operands) + len(self._fixed)
        return [spell(self._fixed[k]) if k in self._fixed else next(rest) for k in range(count)]


def is_simple(name: str) -> bool:
    """Whether it is one name, like h_prev or h~, and no expression."""
    return all(letter.isalnum() or letter in "_~" for letter in name)


def _closed(name: str) -> str:
    """In parentheses where it is more than a name, a number or a call."""
    closed = is_simple(name.replace(".", "")) or re.fullmatch(r"\w+\([^()]*\)", name)
    return name if closed else f"({name})"


# ---- layer normalisation


def normalise(a: Array) -> tuple[Array, Array]:
    """a (N, H) normalised over each row, and the standard deviations (N, 1)."""
    d = a - a.mean(axis=1, keepdims=True)
    deviation = np.sqrt((d * d).mean(axis=1, keepdims=True) + a.dtype.type(EPSILON))
    return d / deviation, deviation


def normalised_back(d: Array, a: Array) -> Array:
    """The gradient by a of d, that by the normalised a."""
    normalised, deviation = normalise(a)
    mean, along = (x.mean(axis=1, keepdims=True) for x in (d, d * normalised))
    return (d - mean - normalised * along) / deviation
