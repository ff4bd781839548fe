"""The derivative of a graph, and what forward has to save so that backward can compute it.

The graph is cut where functions are called, where the user has given a name and where a value is
used more than once. Between the cuts it is a polynomial, which SymPy differentiates; from cut to
cut the gradients are carried backwards, so that nothing grows. SymPy's results become nodes
again, in an order that depends on nothing but the graph.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from .graph import (
    CALL,
    COMPARISON,
    CONSTANT,
    DIFFERENCE,
    INPUT,
    LARGEST_WHOLE,
    NEGATIVE,
    PRODUCT,
    QUOTIENT,
    SUM,
    SUMS,
    Graph,
    Node,
    reachable,
    uses,
)

REMEDY = 'pip install "numba-rnn[cells]"'


def sympy() -> Any:
    """The module SymPy.

    Raises ImportError, naming the remedy, where it is not installed.
    """
    try:
        import sympy
    except ImportError as error:
        raise ImportError(
            f"deriving the backward function of a cell needs SymPy, which is missing: {REMEDY}"
        ) from error
    return sympy


def _as_written() -> AbstractContextManager[Any]:
    """SymPy then leaves 2 * (1 - z), which 2 - 2 * z would be less exact than."""
    return sympy().core.parameters.distribute(False)


# ---- the derivative


def differentiate(
    graph: Graph, seeds: Iterable[tuple[Node, Node]], named: Iterable[Node]
) -> dict[Node, Node]:
    """The gradient of every cut and input, by node; nothing where it is zero.

    seeds  (a value, the gradient that comes in for it)
    named  where the graph is cut besides
    """
    seeds, named = list(seeds), set(named)
    cuts = _cuts([value for value, _ in seeds], named)
    algebra = _Algebra(graph, cuts)
    symbol = algebra.symbol
    terms: dict[Node, list[Any]] = defaultdict(list)  # of a cut's gradient, as SymPy has them
    found: dict[Node, Node] = {}
    with _as_written():
        for value, gradient in seeds:
            terms[value].append(symbol(gradient))
        for node in sorted(cuts, key=lambda node: -node.index):
            total = sympy().Add(*terms[node])
            if total == 0:
                continue
            found[node] = algebra.node(total)
            # one symbol from here on; where it has no name, its sign may meet with others
            number = 1 if node in named or total.is_Add else _coefficient(total)
            dy = number * symbol(algebra.node(total / number))
            if node.kind == CALL:
                for operand, part in _of_call(algebra, node, dy):
                    terms[operand].append(part)
            elif node.kind == QUOTIENT and node.operands[1].kind != CONSTANT:
                above, below = node.operands  # by the quotient: below may be small
                part = symbol(graph.node(QUOTIENT, None, algebra.node(dy), below))
                terms[above].append(part)
                terms[below].append(-part * symbol(node))
            elif node.kind != INPUT:
                inside = algebra.expression(node)
                for variable in sorted(inside.free_symbols, key=lambda symbol: symbol.name):
                    slope = sympy().diff(inside, variable)
                    terms[algebra.nodes[variable]].append(dy * slope)
    return found


def _of_call(algebra: "_Algebra", node: Node, dy: Any) -> list[tuple[Node, Any]]:
    """(operand, its gradient) for the operands of a call; gradients as SymPy has them."""
    graph = algebra.graph

    def chosen(condition: Node, a: Node, b: Node) -> Any:
        return algebra.symbol(graph.call("where", condition, a, b))

    gradient, zero = algebra.node(dy), graph.constant(0.0)
    if node.label in ("where", "maximum", "minimum"):
        condition, a, b = _choice(graph, node)
        return [(a, chosen(condition, gradient, zero)), (b, chosen(condition, zero, gradient))]
    (x,) = node.operands
    if node.label == "absolute":
        below, above = (graph.node(COMPARISON, sign, x, graph.constant(0)) for sign in "<>")
        negative = graph.call("where", below, algebra.node(-dy), zero)  # 0 at 0
        return [(x, chosen(above, gradient, negative))]
    if node.label == "sqrt":
        half = graph.node(PRODUCT, None, graph.constant(0.5), gradient)
        return [(x, algebra.symbol(graph.node(QUOTIENT, None, half, node)))]
    if node.label == "drelu":  # it has steps only
        return []
    return [(x, dy * algebra.symbol(_SLOPES[node.label](graph, x, node)))]


# (graph, x, y = f(x)) -> the derivative of f, of its output where that serves
_SLOPES: dict[str, Callable[[Graph, Node, Node], Node]] = {
    "sigmoid": lambda graph, x, y: graph.call("dsigmoid", y),
    "tanh": lambda graph, x, y: graph.call("dtanh", y),
    "relu": lambda graph, x, y: graph.call("drelu", y),
    "exp": lambda graph, x, y: y,
    "softplus": lambda graph, x, y: graph.call("sigmoid", x),
}


def _choice(graph: Graph, node: Node) -> tuple[Node, Node, Node]:
    """A call that chooses, as where(condition, a, b); of equal numbers b is chosen."""
    if node.label == "where":
        condition, a, b = node.operands
        return condition, a, b
    sign = ">" if node.label == "maximum" else "<"
    a, b = node.operands
    if a.kind == CONSTANT:
        a, b = b, a
    # max(a, b) > b where a is; the result may be at hand where a is not
    larger = node if b.kind == CONSTANT else a
    return graph.node(COMPARISON, sign, larger, b), a, b


def _cuts(roots: list[Node], named: Iterable[Node]) -> set[Node]:
    """Where the graph is cut."""
    nodes = reachable(roots)
    cuts = {node for node in nodes if node.kind in (INPUT, CALL)} | set(roots)
    cuts |= set(named) & set(nodes)
    users: dict[Node, list[Node]] = defaultdict(list)
    for user, operand in uses(nodes):
        users[operand].append(user)
    for node in nodes:
        divided = node.kind == QUOTIENT and node.operands[1].kind != CONSTANT
        if divided:
            cuts.add(node)
        for operand in node.operands:
            called = node.kind in (CALL, COMPARISON) or divided
            # SymPy would make one sum of two, and rounding depends on the order
            of_sums = node.kind in SUMS and operand.kind in SUMS
            if called or of_sums or len(users[operand]) > 1:
                cuts.add(operand)
    return {node for node in cuts if node.kind not in (COMPARISON, CONSTANT)}


class _Algebra:
    """Nodes as SymPy's expressions, and back."""

    def __init__(self, graph: Graph, cuts: set[Node]) -> None:
        self.graph, self._cuts = graph, cuts
        self.nodes: dict[Any, Node] = {}  # by symbol

    def symbol(self, node: Node) -> Any:
        """The node as one symbol, whatever it is made of, or as the number it is."""
        if node.kind == CONSTANT:
            return sympy().Rational(node.label)  # exact, so 0.1 comes back as 0.1
        symbol = sympy().Symbol(f"n{node.index:06}", real=True)  # names sort as indices do
        self.nodes[symbol] = node
        return symbol

    def expression(self, node: Node) -> Any:
        """The node as an expression of the next cuts below it."""
        parts = [
            self.symbol(operand)
            if operand.is_leaf or operand in self._cuts
            else self.expression(operand)
            for operand in node.operands
        ]
        if node.kind == SUM:
            return parts[0] + parts[1]
        if node.kind == DIFFERENCE:
            return parts[0] - parts[1]
        if node.kind == PRODUCT:
            return parts[0] * parts[1]
        if node.kind == QUOTIENT:
            return parts[0] / parts[1]
        assert node.kind == NEGATIVE
        return -parts[0]

    def node(self, expression: Any) -> Node:
        """The expression as a node."""
        graph = self.graph
        if expression.is_Symbol:
            return self.nodes[expression]
        if expression.is_Number:
            number = float(expression)
            whole = number.is_integer() and abs(number) < LARGEST_WHOLE
            return graph.constant(int(number) if whole else number)
        if expression.is_Add:
            total: Node | None = None
            for term in sorted(expression.args, key=self._term_order):
                negative = total is not None and _coefficient(term) < 0
                part = self.node(-term if negative else term)
                if total is None:
                    total = part
                else:
                    total = graph.node(DIFFERENCE if negative else SUM, None, total, part)
            assert total is not None
            return total
        coefficient = _coefficient(expression)
        if coefficient == -1:
            return graph.node(NEGATIVE, None, self.node(-expression))
        factors = self._factors(expression)
        product = None if coefficient == 1 else self.node(coefficient)
        for factor in factors:
            part = self.node(factor)
            product = part if product is None else graph.node(PRODUCT, None, product, part)
        assert product is not None
        return product

    def _factors(self, expression: Any) -> list[Any]:
        """Of a product without its number, powers written out."""
        factors: list[Any] = []
        for factor in expression.as_coeff_mul()[1]:
            base, power = factor.as_base_exp()
            assert power.is_Integer, factor  # quotients are cut
            assert power > 0, factor
            factors += [base] * int(power)
        return sorted(factors, key=self._factor_order)

    def _factor_order(self, factor: Any) -> Any:
        """Gradients first, then values, derivatives, sums."""
        if not factor.is_Symbol:
            return 3, 0, sympy().default_sort_key(factor)
        node = self.nodes[factor]
        derivative = node.kind == CALL and node.label in ("dsigmoid", "dtanh", "drelu")
        return 0 if node.gradient else 2 if derivative else 1, node.index, ()

    def _term_order(self, term: Any) -> Any:
        """Positive first, numbers before products, and as the factors are."""
        if term.is_Number:
            return bool(term < 0), 0, []
        return bool(_coefficient(term) < 0), 1, [self._factor_order(f) for f in self._factors(term)]


def _coefficient(term: Any) -> Any:
    """The number of a product."""
    return term.as_coeff_mul()[0] if not term.is_Number else term


# ---- what to save


def to_save(
    roots: Iterable[Node], free: Iterable[Node], values: Iterable[Node], states: Iterable[Node]
) -> list[Node]:
    """The fewest values from which, and from the free ones, the roots can be computed.

    free    at hand in backward anyway
    values  of the forward pass: what may be saved
    states  after the step: cost nothing to save

    It is a smallest cut between the gates and what backward needs. Of equal ones it is the last:
    the output of a function rather than its argument.
    """
    free, values, states = set(free), set(values), set(states)
    nodes = reachable(roots, stop=free)
    wanted = {operand for user, operand in uses(nodes) if user.gradient}
    nodes = [n for n in nodes if not n.gradient and n not in free and n.kind != CONSTANT]

    def cost(node: Node) -> int:
        if node in states:
            return 1
        if node not in values or node.kind == COMPARISON:
            return NEVER
        return STORED if node.kind in (CALL, INPUT) else STORED + 1

    network = _Network({node: cost(node) for node in nodes})
    saved = network.cut(
        [node for node in nodes if node.kind == INPUT], [node for node in nodes if node in wanted]
    )
    computed = [n for n in reachable(roots, stop=[*free, *saved]) if n not in saved]
    times = Counter(operand for _, operand in uses(computed))
    return saved + [n for n in computed if n in states and _is_costly(n, set(computed), times)]


def _is_costly(node: Node, computed: set[Node], times: Counter[Node]) -> bool:
    """Whether to compute it, and what is computed for it alone, takes more than a few operations.

    A state after the step is then better read again.
    """
    if node.kind == QUOTIENT or (node.kind == CALL and node.label not in _CHEAP):
        return True
    return any(
        operand in computed and times[operand] == 1 and _is_costly(operand, computed, times)
        for operand in node.operands
    )


STORED = 10**6  # so much more than anything else: what counts first is how many are stored
NEVER = 10**12
_CHEAP = "where", "maximum", "minimum", "absolute", "relu", "drelu"


class _Network:
    """A network whose nodes have capacities; a node is two, from "in" to "out"."""

    def __init__(self, capacity: Mapping[Node, int]) -> None:
        self._room: dict[Any, dict[Any, int]] = defaultdict(dict)
        self._capacity = capacity
        for node, room in capacity.items():
            self._edge((node, "in"), (node, "out"), room)
            for operand in node.operands:
                if operand in capacity:
                    self._edge((operand, "out"), (node, "in"), NEVER)

    def _edge(self, a: Any, b: Any, room: int) -> None:
        self._room[a][b] = room
        self._room[b].setdefault(a, 0)

    def cut(self, sources: Iterable[Node], sinks: Iterable[Node]) -> list[Node]:
        """The nodes of the smallest cut, the last of the smallest (Ford & Fulkerson 1956)."""
        for node in sources:
            self._edge("source", (node, "in"), NEVER)
        for node in sinks:
            self._edge((node, "out"), "sink", NEVER)
        while path := self._path():
            least = min(self._room[a][b] for a, b in path)
            for a, b in path:
                self._room[a][b] -= least
                self._room[b][a] += least
        reaching: set[Any] = {"sink"}  # what could still send more to the sink
        waiting: list[Any] = ["sink"]
        while waiting:
            b = waiting.pop()
            for a in self._room[b]:
                if self._room[a][b] > 0 and a not in reaching:
                    reaching.add(a)
                    waiting.append(a)
        return [n for n in self._capacity if (n, "out") in reaching and (n, "in") not in reaching]

    def _path(self) -> list[tuple[Any, Any]]:
        """A shortest way with room from the source to the sink; empty where there is none."""
        came: dict[Any, Any] = {"source": None}
        waiting: list[Any] = ["source"]
        for here in waiting:
            for there, room in self._room[here].items():
                if room > 0 and there not in came:
                    came[there] = here
                    waiting.append(there)
        path: list[tuple[Any, Any]] = []
        place: Any = "sink" if "sink" in came else "source"
        while came[place] is not None:
            path.append((came[place], place))
            place = came[place]
        return path[::-1]
