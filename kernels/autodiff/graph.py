"""Straight-line arithmetic as a graph, in which no operation stands twice."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

INPUT, CONSTANT, CALL, COMPARISON = "input", "constant", "call", "comparison"
SUM, DIFFERENCE, PRODUCT, QUOTIENT, NEGATIVE = "+", "-", "*", "/", "negative"
SUMS = SUM, DIFFERENCE
LARGEST_WHOLE = 2**31  # whole numbers from here on are floats: some compilers take none so large


@dataclass(frozen=True, eq=False)
class Node:
    """One operation.

    index     its place in the order in which operations were first done
    label     of an input (role, name), of a constant the number, of a call the function's name,
              of a comparison its sign
    gradient  whether it is made of gradients; other nodes are values of the forward pass
    """

    index: int
    kind: str
    label: Any
    operands: tuple["Node", ...]
    gradient: bool

    @property
    def is_leaf(self) -> bool:
        return self.kind in (INPUT, CONSTANT)


class Graph:
    """Makes nodes; asked for the same operation again, it gives the same node."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Node] = {}

    def node(self, kind: str, label: Any, *operands: Node, gradient: bool = False) -> Node:
        # repr tells 1 from 1.0 and 0.0 from -0.0
        key = kind, repr(label), *(operand.index for operand in operands)
        if key not in self._known:
            gradient = gradient or any(operand.gradient for operand in operands)
            self._known[key] = Node(len(self._known), kind, label, operands, gradient)
        return self._known[key]

    def input(self, role: str, name: str) -> Node:
        return self.node(INPUT, (role, name), gradient=role == "gradient")

    def constant(self, number: float) -> Node:
        return self.node(CONSTANT, number)

    def call(self, function: str, *arguments: Node) -> Node:
        return self.node(CALL, function, *arguments)


def reachable(roots: Iterable[Node], stop: Iterable[Node] = ()) -> list[Node]:
    """The roots and all that they are made of, in order, but not the operands of ``stop``."""
    stop = set(stop)
    found: set[Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += () if node in stop else node.operands
    return sorted(found, key=lambda node: node.index)


def uses(nodes: Iterable[Node]) -> Iterator[tuple[Node, Node]]:
    """(user, operand) for every operand of the nodes."""
    for node in nodes:
        for operand in node.operands:
            yield node, operand
