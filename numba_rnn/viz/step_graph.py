"""The computation graph of one step of a cell: nodes, their values, and gradients node by node.

The elementwise part is the cell's own function, traced; the products are those that the cell
declares. Nodes are few enough for a picture: a gathered weight is one parameter, and a single gate
has its products and its sum spelled out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..kernels import deprecated
from ..kernels.autodiff import graph as traced
from ..kernels.autodiff.tracing import Tracer
from ..kernels.cells import Cell
from ..typing import Array
from ..validation import expect_choice
from .operations import Operation, is_simple, normalise, normalised_back

INPUT, PARAMETER, OUTPUT = "input", "parameter", "output"
PRODUCT, SUM, AFFINE, SLICE = "MatMul", "sum", "Affine", "slice"
OPERATION, NORMALISED = "operation", "normalised"
LONGEST = 8  # letters of an expression that names a node; longer ones are u1, u2 ...
PASSING = SUM, OUTPUT


@dataclass(frozen=True, eq=False)
class Use:
    """An edge: a value of one node as another one uses it.

    name    of what travels along it
    blocks  which blocks of H columns it is; None: all
    """

    source: "StepNode"
    name: str
    blocks: tuple[int, ...] | None = None


@dataclass(eq=False)
class StepNode:
    """One node of the graph.

    kind       one of the names above
    label      what stands in it
    name       of what it computes
    uses       its operands
    products   of an Affine: how many pairs (operand, weight) come first; biases follow
    operation  of an OPERATION: the arithmetic
    """

    kind: str
    label: str
    name: str
    uses: tuple[Use, ...] = ()
    products: int = 0
    operation: Operation | None = None
    users: list["StepNode"] = field(default_factory=list, repr=False)

    @property
    def is_source(self) -> bool:
        return self.kind in (INPUT, PARAMETER)

    @property
    def is_of_weights(self) -> bool:
        """Whether it is a weight or made of weights alone: the same for all rows."""
        made = bool(self.uses) and all(use.source.is_of_weights for use in self.uses)
        return self.kind == PARAMETER or made

    @property
    def passes(self) -> bool:
        """Whether it hands its gradient on as it is."""
        return self.kind in PASSING or (
            self.operation is not None and self.operation.kind == traced.SUM
        )

    @property
    def delta(self) -> str:
        """The name of the gradient that arrives at it."""
        user = self.users[0] if len(self.users) == 1 and not self.is_source else None
        if user and user.passes and self.is_of_weights == user.is_of_weights:
            return user.delta
        return f"d{self.name}" if is_simple(self.name) else f"d({self.name})"


Edge = tuple[StepNode, int]  # a node, and which of its uses


def affine_option(name: str) -> str:
    """The option ``affine`` of pictures, checked; "fused" was "gathered"."""
    if name == "gathered":
        deprecated.warn('affine="gathered"', 'affine="fused"')
        name = "fused"
    return expect_choice("affine", name, ("fused", "apart"))


class StepGraph:
    """The graph of one step.

    affine  "fused": gates that see the same share one Affine, "apart": each has its own

    nodes    all, each after those that it uses
    inputs   x and the states before the step, by name
    params   the parameters, by name; of weights one for each
    outputs  the states after the step, by name
    """

    def __init__(self, cell: Cell, affine: str = "fused") -> None:
        self.cell, self.nodes = cell, list[StepNode]()
        self._fused = affine == "fused"
        self.inputs = {"x": self._add(INPUT, "x_t", "x")}
        self.params: dict[str, StepNode] = {}
        trace = Tracer(cell.name)
        gates = [trace.graph.input("gate", name) for name in cell.gates]
        states = [trace.graph.input("state", name) for name in cell.states]
        for name in cell.states:
            self.inputs[f"{name}_prev"] = self._add(INPUT, f"{name}_prev", f"{name}_prev")
        new, saved = _traced(trace, cell.forward, gates, states)
        self._operand = (
            None if cell.operand is None else _traced(trace, cell.operand, gates, states)
        )
        self._names = self._named(new, dict(zip(saved, cell.saved, strict=True)))
        self._made: dict[traced.Node, Use] = {}
        self._affine_of: dict[int, Use] = {}
        self.numbered: set[str] = set()  # names made up for what is too long to be written
        self._groups = self._grouped()
        self.outputs = {}
        outputs = [self._convert(node) for node in new]
        for state, use in zip(cell.states, outputs, strict=True):
            name = f"{state}_next"
            self.outputs[name] = self._add(OUTPUT, name, name, (use,))
        self._settle()

    @property
    def edges(self) -> list[Edge]:
        """All of them, in the order of the nodes."""
        return [(node, k) for node in self.nodes for k in range(len(node.uses))]

    # ---- making it

    def _add(
        self, kind: str, label: str, name: str, uses: Sequence[Use] = (), **more: Any
    ) -> StepNode:
        node = StepNode(kind, label, name, tuple(uses), **more)
        self.nodes.append(node)
        return node

    def _settle(self) -> None:
        """Drop what leads nowhere, and note who uses what."""
        used = {use.source for node in self.nodes for use in node.uses}
        kept = {*used, *self.outputs.values(), *self.inputs.values()}
        self.nodes = [node for node in self.nodes if node in kept]
        for node in self.nodes:
            for use in node.uses:
                use.source.users.append(node)
        for node in self.nodes:  # h = tanh(t) is h_next itself
            if not node.is_source and [user.kind for user in node.users] == [OUTPUT]:
                node.name = node.users[0].name

    def _named(
        self, new: Sequence[traced.Node], saved: Mapping[traced.Node, str]
    ) -> dict[traced.Node, str]:
        """Names from the cell: of what it saves, and of the states."""
        states = dict(zip(new, self.cell.states, strict=True))
        names = {
            node: f"{name}~" if name in self.cell.states else name for node, name in saved.items()
        }
        return {**names, **states}

    def _grouped(self) -> dict[int, tuple[int, ...]]:
        """For every gate the gates that its Affine computes."""
        cell = self.cell
        groups: dict[Any, list[int]] = {}
        for g, name in enumerate(cell.gates):
            if name not in cell.weights and name not in cell.operand_gate:
                sees = g in cell.input_gates, g in cell.recurrent_gates, name in cell.second_product
                groups.setdefault(sees if self._fused else g, []).append(g)
        return {g: tuple(group) for group in groups.values() for g in group}

    def _convert(self, node: traced.Node) -> Use:
        if node not in self._made:
            self._made[node] = self._use_of(node)
        return self._made[node]

    def _use_of(self, node: traced.Node) -> Use:
        if node.kind == traced.INPUT:
            role, name = node.label
            if role == "state":
                return self._use(self.inputs[f"{name}_prev"])
            return self._gate(self.cell.gates.index(name))
        fixed = {
            k: operand.label
            for k, operand in enumerate(node.operands)
            if operand.kind == traced.CONSTANT
        }
        uses = [self._convert(o) for k, o in enumerate(node.operands) if k not in fixed]
        operation = Operation(node.kind, node.label, fixed)
        name = self._names.get(node) or operation.expression([use.name for use in uses])
        if len(name) > LONGEST:
            name = f"u{len(self.numbered) + 1}"
            self.numbered.add(name)
        made = self._add(OPERATION, operation.label, name, uses, operation=operation)
        return self._use(made)

    def _use(self, node: StepNode) -> Use:
        return Use(node, node.name)

    def _param(self, name: str) -> StepNode:
        if name not in self.params:
            self.params[name] = self._add(PARAMETER, name, name)
        return self.params[name]

    # ---- gates

    def _gate(self, g: int) -> Use:
        name = self.cell.gates[g]
        if name in self.cell.weights:
            return self._use(self._param(name))
        if name in self.cell.operand_gate:
            assert self._operand is not None
            use = self._convert(self._operand)
        else:
            if g not in self._affine_of:
                self._affine_of |= self._affine(self._groups[g])
            use = self._affine_of[g]
        if name not in self.cell.normalised:
            return use
        return self._use(self._add(NORMALISED, "norm", f"n_{name}", (use,)))

    def _affine(self, group: tuple[int, ...]) -> dict[int, Use]:
        """The pre-activations of a group's gates."""
        pairs, biases = self._terms(group)
        gates = [self.cell.gates[g] for g in group]
        if len(self._groups) == 1:
            return {group[0]: self._use(self._spelled(pairs, biases))}
        name = f"a_{gates[0]}" if len(group) == 1 else "A"
        uses = [use for pair in pairs for use in pair] + biases
        label = f"Affine {' '.join(gates)}"
        made = self._use(self._add(AFFINE, label, name, uses, products=len(pairs)))
        if len(group) == 1:
            return {group[0]: made}
        cut = self._add(SLICE, "slice", name, (made,))
        return {g: Use(cut, f"a_{gates[k]}", (k,)) for k, g in enumerate(group)}

    def _spelled(self, pairs: Sequence[tuple[Use, Use]], biases: Sequence[Use]) -> StepNode:
        """x Wx and h Wh as nodes, and one sum of all."""
        products = [self._add(PRODUCT, "MatMul", f"{a.name} {b.name}", (a, b)) for a, b in pairs]
        return self._add(SUM, "+", "t", [*map(self._use, products), *biases])

    def _terms(self, group: tuple[int, ...]) -> tuple[list[tuple[Use, Use]], list[Use]]:
        """The terms of the sum in a group's gates: pairs to be multiplied, and biases."""
        cell, g = self.cell, group[0]
        two = cell.biases == 2
        pairs, biases = [], []
        if g in cell.input_gates:
            columns = _blocks(cell.input_gates, group)
            pairs.append((self._use(self.inputs["x"]), self._columns("Wx", columns)))
            biases.append(self._columns("b[0]" if two else "b", columns))
        if g in cell.recurrent_gates:
            seen, name = self._use(self.inputs[f"{cell.states[0]}_prev"]), "Wh"
            if cell.gates[g] in cell.second_product:
                assert self._operand is not None
                seen, name = self._convert(self._operand), "Wr" if cell.projected else "Wh"
            pairs.append((seen, self._columns(name, _blocks(self._gates_of(name), group))))
            if two:
                biases.append(self._columns("b[1]", _blocks(cell.recurrent_gates, group)))
        return pairs, biases

    def _gates_of(self, name: str) -> tuple[int, ...]:
        """The gates that a parameter has blocks of columns for."""
        if name not in ("Wh", "Wr", "b[1]"):
            return self.cell.input_gates
        gates = self.cell.recurrent_gates
        if self.cell.projected:  # the others are those of Wr
            early = len(gates) - len(self.cell.second_product)
            return gates[early:] if name == "Wr" else gates[:early]
        return gates

    def _columns(self, name: str, blocks: tuple[int, ...]) -> Use:
        whole = blocks == tuple(range(len(self._gates_of(name))))
        return Use(self._param(name), name, None if whole else blocks)


def _blocks(gates: Sequence[int], group: Sequence[int]) -> tuple[int, ...]:
    return tuple(gates.index(g) for g in group)


def _traced(
    trace: Tracer, function: Callable[..., Any], gates: Sequence[Any], states: Sequence[Any]
) -> Any:
    """The results of a cell's function of gates and state, as nodes."""

    def call(**numbers: Any) -> Any:
        given = list(numbers.values())
        return function(tuple(given[: len(gates)]), tuple(given[len(gates) :]))

    named = {f"number {k}": node for k, node in enumerate((*gates, *states))}
    return _nodes(trace.run(call, named).result)


def _nodes(result: Any) -> Any:
    return tuple(map(_nodes, result)) if isinstance(result, tuple) else result._node


# ---- numbers


class StepValues:
    """A graph's values and gradients, for given inputs and gradients of its outputs.

    inputs  x (N, D) and the states before, (N, H), by the names of ``graph.inputs``
    params  the cell's parameters, as ``cell.shapes`` says
    dnext   the gradients of the states after the step, (N, H) each, in their order

    values     by node: what it computed
    edges      by edge: the gradient that flows back along it
    gradients  by node: the sum of those, what arrives at it
    """

    def __init__(
        self,
        graph: StepGraph,
        inputs: Mapping[str, Array],
        params: Sequence[Array],
        dnext: Sequence[Array],
    ) -> None:
        self.graph = graph
        self._H, self._P = graph.cell.hidden_size(params), graph.cell.output_size(params)
        self.values: dict[StepNode, Array] = {graph.inputs[name]: a for name, a in inputs.items()}
        whole = _named_params(graph.cell, params)
        self.values |= {node: whole[name] for name, node in graph.params.items()}
        for node in graph.nodes:
            if not node.is_source:
                self.values[node] = self._forward(node)
        self.edges: dict[Edge, Array] = {}
        self.gradients = {
            node: np.zeros_like(value) for node, value in self.values.items() if value.dtype != bool
        }
        for node, d in zip(graph.outputs.values(), dnext, strict=True):
            self.gradients[node] = d
        for node in reversed(graph.nodes):
            if not node.is_source and node in self.gradients:
                self._backward(node)

    def seen(self, use: Use) -> Array:
        """The value that travels along an edge."""
        value = self.values[use.source]
        return value if use.blocks is None else value[..., self._places(use)]

    def _places(self, use: Use) -> Array:
        """The columns of the blocks that an edge takes."""
        width = self._P if use.source is self.graph.params.get("Wr") else self._H
        return np.concatenate([np.arange(k * width, (k + 1) * width) for k in use.blocks or ()])

    def _forward(self, node: StepNode) -> Array:
        seen = [self.seen(use) for use in node.uses]
        if node.kind in (PRODUCT, AFFINE):
            count = node.products if node.kind == AFFINE else 1
            pairs = zip(seen[: 2 * count : 2], seen[1 : 2 * count : 2], strict=True)
            return sum((a @ W for a, W in pairs), start=_total(seen[2 * count :]))
        if node.operation is not None:
            return node.operation.value(seen)
        if node.kind == NORMALISED:
            return normalise(seen[0])[0]
        return _total(seen)

    def _backward(self, node: StepNode) -> None:
        d = self.gradients[node]
        for k, (use, gradient) in enumerate(zip(node.uses, self._back(node, d), strict=True)):
            if gradient is None:
                continue
            shape = self.seen(use).shape
            if gradient.ndim > len(shape):  # what is the same for all rows adds up over them
                gradient = gradient.sum(axis=0)
            self.edges[node, k] = gradient = np.broadcast_to(gradient, shape)
            places = ... if use.blocks is None else (..., self._places(use))
            self.gradients[use.source][places] += gradient

    def _back(self, node: StepNode, d: Array) -> Sequence[Array | None]:
        seen = [self.seen(use) for use in node.uses]
        if node.kind in (PRODUCT, AFFINE):
            count = 2 * (node.products if node.kind == AFFINE else 1)
            pairs = zip(seen[:count:2], seen[1:count:2], strict=True)
            return [*(g for a, W in pairs for g in (d @ W.T, a.T @ d)), *(d for _ in seen[count:])]
        if node.operation is not None:
            return node.operation.gradients(d, seen, self.values[node])
        if node.kind == NORMALISED:
            return [normalised_back(d, seen[0])]
        return [d] * len(seen)


def _total(arrays: Sequence[Array]) -> Any:
    """Their sum; the one itself where there is one."""
    return sum(arrays[1:], start=arrays[0]) if len(arrays) else 0


def _named_params(cell: Cell, params: Sequence[Array]) -> dict[str, Array]:
    """By the names of the graph's parameters."""
    named = dict(zip(cell.shapes(1, 1), params, strict=True))
    named |= dict(zip(cell.weights, named.pop("w", ()), strict=True))
    if cell.biases == 2:
        first, second = named.pop("b")
        named |= {"b[0]": first, "b[1]": second}
    return named
