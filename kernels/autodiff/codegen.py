"""From what tracing wrote down to the sources of a cell's functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .gradient import differentiate, to_save
from .graph import (
    CALL,
    COMPARISON,
    CONSTANT,
    DIFFERENCE,
    INPUT,
    NEGATIVE,
    SUM,
    Graph,
    Node,
    reachable,
)
from .source import Argument, NodeNames, base_name, function_source


@dataclass(frozen=True)
class TracedCell:
    """A cell's arithmetic. Values before the step are by name, weights after the gates.

    new    the states after the step
    local  what the user's functions called other values
    """

    graph: Graph
    gates: dict[str, Node]
    weights: dict[str, Node]
    state: dict[str, Node]
    new: dict[str, Node]
    operand: Node | None
    local: dict[str, Node]

    @property
    def inputs(self) -> list[Node]:
        """The nodes in the tuple ``gates``."""
        return [*self.gates.values(), *self.weights.values()]

    @property
    def outputs(self) -> list[Node]:
        return [*self.new.values(), *([self.operand] if self.operand else [])]


def names_of(traced: TracedCell) -> NodeNames:
    """Names of values: the user's; a_f for the pre-activation of gate f; c_prev for state c."""
    names = NodeNames()
    for name, node in traced.new.items():
        if node.kind != INPUT:
            names.give(node, name)
    for name, node in traced.weights.items():
        names.give(node, name)
    for name, node in traced.state.items():
        names.give(node, f"{name}_prev")
    rebound = {name for name, node in traced.local.items() if node.kind != INPUT}
    for name, node in traced.gates.items():
        is_one = name.rstrip("0123456789") == "a" or name.startswith("a_")
        own = is_one and name not in rebound and names.is_free(name)
        names.give(node, name if own else f"a_{name}")
    values = reachable(traced.outputs)
    for name, node in traced.local.items():
        if node in values and node.kind != INPUT:
            names.give(node, name)
    for name, gate in traced.gates.items():  # g for tanh(a_g), where nothing else is g
        activations = [n for n in values if n.kind == CALL and gate in n.operands]
        if len(activations) == 1 and names.is_free(name):
            names.give(activations[0], name)
    return names


def forward_source(traced: TracedCell, saved: Sequence[Node], names: NodeNames) -> str:
    arguments = [("gates", traced.inputs), ("state", list(traced.state.values()))]
    return function_source("forward", arguments, (list(traced.new.values()), saved), names)


def show_source(traced: TracedCell) -> tuple[str, tuple[str, ...]]:
    """The source of what computes all values that have a name, and the names, gates first.

    But for the states after the step, unless nothing else has one.
    """
    names, values = names_of(traced), reachable(traced.outputs)
    named = [n for n in values if n in names.of and n.kind not in (INPUT, CONSTANT, COMPARISON)]
    others = [node for node in named if node not in traced.new.values()]
    order = [*traced.gates, *(name for name in names.of.values() if name not in traced.gates)]
    shown = sorted(others or named, key=lambda node: order.index(names.of[node]))
    arguments = [("gates", traced.inputs), ("state", list(traced.state.values()))]
    source = function_source("show", arguments, (shown, []), names)
    return source, tuple(names.of[node] for node in shown)


def operand_source(traced: TracedCell, names: NodeNames) -> str:
    assert traced.operand is not None
    arguments = [("gates", traced.inputs), ("state", list(traced.state.values()))]
    return function_source("operand", arguments, traced.operand, names)


def derived_sources(traced: TracedCell) -> tuple[dict[str, str], tuple[str, ...]]:
    """The sources of all functions, by their names in ``Cell``, and the names of what is saved."""
    graph, names = traced.graph, names_of(traced)
    values = reachable(traced.outputs)
    named = [*traced.new.values(), *(node for node in traced.local.values() if node in values)]
    before = [*traced.inputs, *traced.state.values()]

    outputs = list(traced.new.values())
    incoming = {name: graph.input("gradient", f"d{name}") for name in traced.new}
    seeds = [(traced.new[name], incoming[name]) for name in traced.new]
    found = differentiate(graph, seeds, named)
    gradients = [found.get(node) for node in before]
    roots = [*filter(None, gradients)]

    completed: dict[Node, Node] = {}
    through: dict[Node, Node] = {}
    if traced.operand is not None:
        doperand = graph.input("gradient", "doperand")
        through = differentiate(graph, [(traced.operand, doperand)], named)
        partial = {node: graph.input("gradient", f"partial {node.index}") for node in before}
        completed = {node: _sum(graph, partial[node], through.get(node)) for node in before}
        roots += completed.values()

    state, weights = list(traced.state.values()), list(traced.weights.values())
    saved = to_save(roots, [*state, *weights], values, traced.new.values())
    reached = reachable(roots, stop=[*saved, *state])
    order = list(traced.gates)  # as far as they are activations of gates
    saved.sort(key=lambda node: order.index(names.of[node]) if names.of.get(node) in order else 99)
    saved += [node for node in weights if node in reached]
    for node in saved:
        names.give(node, base_name(node, names))

    sources = {"forward": forward_source(traced, saved, names)}
    count = len(traced.inputs)

    ours = names.copy()
    for name, node in incoming.items():
        ours.give(node, f"d{name}")
    alone = {n: incoming[name] for name, n in traced.new.items() if outputs.count(n) == 1}
    _name_gradients(ours, names, found, alone)
    arguments: list[Argument] = [
        ("dstate", list(incoming.values())),
        ("saved", saved),
        ("state", state),
    ]
    results = gradients[:count], gradients[count:]
    sources["backward"] = function_source("backward", arguments, results, ours)

    if traced.operand is not None:
        sources["operand"] = operand_source(traced, names)
        ours = names.copy()
        for node, sum_so_far in partial.items():
            ours.give(sum_so_far, f"d{names.of[node]}")
        _name_gradients(ours, names, through, {})
        dbefore, last = list(partial.values()), list(completed.values())
        arguments = [
            ("doperand", doperand),
            ("dgates", dbefore[:count]),
            ("dstate", dbefore[count:]),
            *arguments[1:],
        ]
        sources["operand_backward"] = function_source(
            "operand_backward", arguments, (last[:count], last[count:]), ours
        )
    return sources, tuple(names.of[node] for node in saved)


def _sum(graph: Graph, first: Node, second: Node | None) -> Node:
    if second is None:
        return first
    if second.kind == NEGATIVE:
        return graph.node(DIFFERENCE, None, first, second.operands[0])
    return graph.node(SUM, None, first, second)


def _name_gradients(
    ours: NodeNames, values: NodeNames, found: Mapping[Node, Node], incoming: Mapping[Node, Node]
) -> None:
    """The gradient of what has a name is a statement: df for f.

    That of a state after the step takes the name of what comes in for it, which is in no other
    statement.
    """
    for node, gradient in sorted(found.items(), key=lambda pair: pair[0].index):
        if node.kind not in (INPUT, CONSTANT) and node in values.of and not gradient.is_leaf:
            if node in incoming:
                ours.give(gradient, ours.of[incoming[node]], again=True)
            else:
                ours.give(gradient, f"d{values.of[node]}")
    for node, gradient in found.items():  # the gradient of a_f is printed where it is returned
        if node.kind == INPUT and not gradient.is_leaf:
            ours.hints.setdefault(gradient, f"d{values.of[node]}")
