"""The options of a cell: one table of defaults and rules, for ``Cell`` and ``cell`` alike.

``numba_rnn.cell`` says what each of them means, in this order. ``problems`` has the rules of one
option by itself, ``conflicts`` those between options; the first message is the error.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from inspect import isfunction
from numbers import Real
from types import MappingProxyType
from typing import Any, NamedTuple

NAMES, STARTS, FUNCTION = "names", "dict of str to float or (low, high)", "callable"
WORD, CHOICE, FLAG = "str", "choice", "bool"


class Option(NamedTuple):
    """An option: the kind of its value, and the value where the decorator does not name it."""

    kind: str  # spelled as in the documentation, except a choice
    default: Any = ()
    of: Any = None  # the values of a choice; names: whose, if not any
    in_both: bool = False  # ``Cell`` has the same option


OPTIONS: Mapping[str, Option] = MappingProxyType({
    "states": Option(NAMES, "h", of="arguments"),
    "weights": Option(NAMES, of="arguments"),
    "recurrence": Option(CHOICE, "product", of=("product", "elementwise")),
    "input_only": Option(NAMES, of="gates", in_both=True),
    "recurrent_only": Option(NAMES, of="gates", in_both=True),
    "second_product": Option(NAMES, of="gates", in_both=True),
    "operand_gate": Option(NAMES, of="gates", in_both=True),
    "operand": Option(FUNCTION, None),
    "normalised": Option(NAMES, of="gates", in_both=True),
    "coupled": Option(NAMES, of="states", in_both=True),
    "projected": Option(FLAG, False, in_both=True),
    "biases": Option(CHOICE, 1, of=(1, 2), in_both=True),
    "bias_start": Option(STARTS, None, of="gates", in_both=True),
    "weight_start": Option(STARTS, None, of="weights", in_both=True),
    "backward": Option(FUNCTION, None),
    "saved": Option(NAMES, None),
    "name": Option(WORD, None),
})  # fmt: skip
IN_BOTH = tuple(name for name, option in OPTIONS.items() if option.in_both)


def problems(given: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Messages for options that break their own rules; ``known``: arguments, gates and so on."""
    for name, value in given.items():
        kind, default, of, _ = OPTIONS[name]
        if value is None and default is None:
            continue
        if kind == NAMES:
            yield from problems_of_names(name, value)
        elif kind == STARTS and not isinstance(value, Mapping):
            yield f"{name}: expected a mapping from name to number, got {value!r}"
        elif kind == FUNCTION and not isfunction(value):
            yield f"{name}: expected a function, got {value!r}"
        elif kind == FLAG and not isinstance(value, bool):
            yield f"{name}: expected True or False, got {value!r}"
        elif kind == WORD and not (isinstance(value, str) and value.isidentifier()):
            yield f"{name}: expected letters, digits and _, got {value!r}"
        elif kind == CHOICE and (value not in of or isinstance(value, bool)):
            yield f"{name}: expected {' or '.join(map(repr, of))}, got {value!r}"
        if of in known:
            yield from strangers(name, value, known[of], of)
        for part, start in value.items() if kind == STARTS else ():
            ends = start if isinstance(start, tuple) and len(start) == 2 else (start,)
            if not all(map(_is_finite, ends)) or ends[0] > ends[-1]:
                yield f"{name}: {part}: expected a finite number, or (low, high), got {start!r}"


def problems_of_names(role: str, given: Any) -> Iterator[str]:
    if not isinstance(given, tuple) or not all(isinstance(name, str) for name in given):
        yield f"{role}: expected a tuple of names, got {given!r}"
    if len(set(given)) < len(given):
        yield f"{role}: expected each name once, got {', '.join(given)}"


def strangers(role: str, given: Iterable[str], allowed: Iterable[str], what: str) -> Iterator[str]:
    """The message for names that are not among those allowed."""
    if unknown := ", ".join(str(name) for name in given if name not in allowed):
        among = ", ".join(allowed) or "(there are none)"
        yield f"{role}: expected some of the {what} {among}, got {unknown}"


def conflicts(gates: tuple[str, ...], given: Mapping[str, Any]) -> Iterator[str]:
    """Messages for options that exclude each other; ``gates`` are those without the weights."""
    fed, second, no_x, no_h = (
        given[name] for name in ("operand_gate", "second_product", "recurrent_only", "input_only")
    )
    with_x = tuple(gate for gate in gates if gate not in no_x + fed)
    with_h = tuple(gate for gate in gates if gate not in no_h + fed)
    early = with_h[: len(with_h) - len(second)]
    mixed = {*second} & {*no_x} and {*second} - {*no_x} and {*early} & {*no_x}
    two, projected = given["biases"] == 2, given["projected"]
    if bool(fed + second) != (given["operand"] is not None):
        yield (
            "operand: expected it together with second_product or operand_gate: it computes what "
            "the second product multiplies (second_product), or the value of the gate itself "
            "(operand_gate)"
        )
    for wrong, got, why in (
        (fed and len(fed + second) > 1, fed + second,
         "operand_gate: expected one gate, and no second_product beside it"),
        ({*fed} & {*no_h, *no_x}, fed,
         "operand_gate: expected a gate without any product, of neither input_only nor "
         "recurrent_only"),
        (fed == gates, [f"only {', '.join(fed)}"],
         "operand_gate: expected at least one other gate"),
        ({*no_x} & {*no_h}, no_x, "recurrent_only: expected none of input_only"),
        (not with_x, no_x, "recurrent_only: expected at least one gate left with x Wx"),
        ({*given["bias_start"]} - {*with_x}, given["bias_start"],
         "bias_start: expected gates with an input side"),
        (early + second != with_h, second,
            f"second_product: expected the last of {', '.join(with_h)}"),
        (mixed, second, "second_product: expected all or none of its gates in recurrent_only"),
        (projected and not second, ["True"], "projected: expected False without a second product"),
        (projected and {*second} - {*no_x}, second,
         "second_product: expected gates in recurrent_only, since the cell is projected"),
        (projected and {*second} & {*given["normalised"]}, second,
         "normalised: expected none of second_product, since the cell is projected"),
        (two and second, "2", "biases: expected 1 with a second product"),
        (two and len(with_x) != len(with_h), "2",
         "biases: expected 1 where x Wx and h Wh differ in their number of gates"),
    ):  # fmt: skip
        if wrong:
            yield f"{why}, got {', '.join(got)}"


def _is_finite(number: Any) -> bool:
    real = isinstance(number, Real) and not isinstance(number, bool)
    return real and abs(number) <= sys.float_info.max  # an int may be beyond the largest float
