"""Where a cell's arithmetic has no number, or no gradient: 0 / 0 and the root of 0.

Random numbers of moderate size do not find such places. Here gates are shut and wide open, which
is what inputs that nobody has scaled do, and states start at zeros, as those of layers do.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from .. import functions
from .codegen import TracedCell
from .graph import (
    CALL,
    COMPARISON,
    CONSTANT,
    DIFFERENCE,
    NEGATIVE,
    PRODUCT,
    QUOTIENT,
    SUM,
    Node,
    reachable,
)
from .source import NodeNames, expression

UNITS, STEPS = 4096, 3
# of which exp overflows and underflows in float32; no round numbers, which cells may well subtract
FAR = (-1009.7, -101.3, -1.1, 1.3, 103.7, 1013.3)
NORMALISED = (-7.9, -1.1, 1.3, 8.3)
Numbers = dict[Node, Any]

_OPERATIONS: dict[str, Callable[..., Any]] = {
    SUM: operator.add, DIFFERENCE: operator.sub, PRODUCT: operator.mul, QUOTIENT: operator.truediv,
    NEGATIVE: operator.neg,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def without_gradient(
    traced: TracedCell, normalised: Collection[str] = (), fed: Collection[str] = ()
) -> list[str]:
    """Quotients that come to 0 / 0 (or inf / inf) in float32, and roots of 0; each with an example.

    normalised, fed  names of gates, as a ``Cell`` has them
    """
    rng = np.random.default_rng(0)

    def drawn(choices: Any) -> Any:
        return rng.choice(np.array(choices, np.float32), UNITS)

    gates = {
        node: drawn(NORMALISED if name in normalised else FAR)
        for name, node in traced.gates.items()
    }
    weights = {node: drawn((-1.0, 1.0)) for node in traced.weights.values()}
    state = [np.zeros(UNITS, np.float32) for _ in traced.state]
    names, nodes = _names(traced), reachable(traced.outputs)
    found: dict[str, str] = {}
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            values = {**gates, **weights, **dict(zip(traced.state.values(), state, strict=True))}
            if traced.operand is not None:
                operand = _evaluated(reachable([traced.operand]), values)[traced.operand]
                values |= {traced.gates[name]: operand for name in fed}
            values = _evaluated(nodes, values)
            for node in nodes:
                units = np.flatnonzero(_has_none(node, values))
                if units.size:
                    here = (f"{n} {values[gate][units[0]]:g}" for n, gate in traced.gates.items())
                    what = "may be 0 / 0" if node.kind == QUOTIENT else "has no gradient at 0"
                    found.setdefault(expression(node, names), f"{what} (gates {', '.join(here)})")
            state = [values[node] for node in traced.new.values()]
    return [f"{text} {why}" for text, why in found.items()]


def _names(traced: TracedCell) -> NodeNames:
    """The names that values have in the user's function."""
    names = NodeNames()
    for named in (traced.gates, traced.weights, traced.state, traced.local):
        for name, node in named.items():
            names.give(node, name, again=True)
    return names


def _evaluated(nodes: Iterable[Node], given: Mapping[Node, Any]) -> Numbers:
    """The numbers of nodes, which come in the order in which they are computed."""
    values = dict(given)
    for node in nodes:
        if node not in values:
            operands = [values[operand] for operand in node.operands]
            if node.kind == CONSTANT:
                values[node] = node.label
            elif node.kind == CALL:
                values[node] = getattr(functions, node.label)(*operands)
            else:
                operation = _OPERATIONS[node.label if node.kind == COMPARISON else node.kind]
                values[node] = operation(*operands)
    return values


def _has_none(node: Node, values: Numbers) -> Any:
    """In which units the node itself is to blame."""
    if node.kind == QUOTIENT:
        above, below = (values[operand] for operand in node.operands)
        return np.isnan(values[node]) & ~np.isnan(above) & ~np.isnan(below)
    if node.kind == CALL and node.label == "sqrt":
        return values[node] == 0
    return False
