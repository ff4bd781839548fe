"""Python source from a graph: what a person would write, one statement for a name.

Operations are printed in the order and with the parentheses that they were recorded with, so the
source computes to the bit what the graph says.
"""

import linecache
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from .. import functions
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

WIDTH = 96
Members = Sequence[Node | None]
Argument = tuple[str, Members | Node | Mapping[Node, str]]
_SIGNS = {SUM: 1, DIFFERENCE: 1, PRODUCT: 2, QUOTIENT: 2}  # and how tightly they bind
_COMPARED, _UNARY, _ATOM = 0, 3, 4


class NodeNames:
    """Names of nodes, no two alike and none that of a function or an argument."""

    def __init__(self) -> None:
        ours = {name for name, value in vars(functions).items() if callable(value)}
        arguments = {"gates", "state", "saved", "dstate", "dgates", "doperand", "_"}
        self._taken = ours | arguments
        self.of: dict[Node, str] = {}
        self.hints: dict[Node, str] = {}  # for those that turn out to need a name

    def copy(self) -> "NodeNames":
        other = NodeNames()
        other._taken, other.of, other.hints = set(self._taken), dict(self.of), dict(self.hints)
        return other

    def is_free(self, name: str) -> bool:
        return name not in self._taken

    def give(self, node: Node, wanted: str, again: bool = False) -> None:
        """A name to a node that has none; ``again``: one that was another node's before."""
        if node in self.of or node.kind == CONSTANT:
            return
        name, count = wanted, 1
        while name in self._taken and not again:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        self.of[node] = name


def base_name(node: Node, names: NodeNames) -> str:
    """A name for a node that has none: tanh_c; t where nothing better is at hand."""
    if node in names.hints:
        return names.hints[node]
    first = names.of.get(node.operands[0], "") if node.operands else ""
    return f"{node.label}_{first}" if node.kind == CALL and first.isidentifier() else "t"


def function_source(
    name: str,
    arguments: Iterable[Argument],
    results: Node | tuple[Members, ...],
    names: NodeNames,
) -> str:
    """A function's source.

    arguments  the name of each and its members, or the one node that it is, or the nodes that are
               found in it and the text of each
    results    one node, or tuples
    names      of the arguments' members, and of what shall be a statement of its own
    """
    names = names.copy()
    arguments = list(arguments)
    given: set[Node] = set()
    for argument, members in arguments:
        if isinstance(members, Node):
            names.of[members] = argument
        if isinstance(members, Mapping):
            names.of |= members
        given |= set([members] if isinstance(members, Node) else filter(None, members))
    flat = [results] if isinstance(results, Node) else [n for members in results for n in members]
    roots = [node for node in flat if node is not None]
    body = [node for node in reachable(roots, stop=given) if node not in given]
    used, statements = _statements(body, roots, given, names)
    for node in statements:
        names.give(node, base_name(node, names))

    known = given | set(statements)
    lines = [f"def {name}({', '.join(argument for argument, _ in arguments)}):"]
    for argument, members in arguments:
        if not isinstance(members, Node | Mapping) and any(
            used[m] for m in members if m is not None
        ):
            shown = [names.of[m] if m is not None and used[m] else "_" for m in members]
            target = f"({shown[0]},)" if len(shown) == 1 else ", ".join(shown)
            lines.append(f"    {target} = {argument}")
    if len(lines) > 1 and statements:
        lines.append("")
    for node in statements:
        value = _Printer(names, known - {node}).print(node)
        lines.append(f"    {names.of[node]} = {value}")
    lines += _return(_Printer(names, known), results)
    return "\n".join(lines) + "\n"


def expression(node: Node, names: NodeNames) -> str:
    """The node's own source, of what has names."""
    return _Printer(names, set(names.of) - {node}).print(node)


def _statements(
    body: list[Node], roots: list[Node], given: set[Node], names: NodeNames
) -> tuple[Counter[Node], list[Node]]:
    """How often each node is printed, and the nodes that are statements of their own."""
    used = Counter(roots)
    statements = []
    for node in reversed(body):  # users come after what they use
        if node.kind == CONSTANT or not used[node]:
            continue
        simple = all(operand.is_leaf or operand in names.of for operand in node.operands)
        cheap = node.kind == NEGATIVE or any(o.kind == CONSTANT for o in node.operands)
        repeated = used[node] > 1 and not (simple and cheap and node.kind not in (CALL, QUOTIENT))
        if node in names.of or (repeated and node.kind != COMPARISON):
            statements.append(node)
            times = 1
        else:
            times = used[node]
        for operand in node.operands:
            used[operand] += times
    return used, statements[::-1]


class _Printer:
    """Prints nodes, with names for those that are known."""

    def __init__(self, names: NodeNames, known: set[Node]) -> None:
        self._names, self._known = names, known

    def print(self, node: Node | None, binding: int = _COMPARED) -> str:
        """The node, in parentheses where its parts would otherwise not stay together."""
        text, own = ("None", _ATOM) if node is None else self._text(node)
        return f"({text})" if own < binding else text

    def _text(self, node: Node) -> tuple[str, int]:
        if node in self._known:
            return self._names.of[node], _ATOM
        if node.kind == CONSTANT:
            return repr(node.label), _UNARY if repr(node.label).startswith("-") else _ATOM
        if node.kind == CALL:
            return f"{node.label}({', '.join(map(self.print, node.operands))})", _ATOM
        if node.kind == COMPARISON:
            left, right = (self.print(operand, 1) for operand in node.operands)
            return f"{left} {node.label} {right}", _COMPARED
        if node.kind == NEGATIVE:
            text, own = self._text(node.operands[0])
            # -(a * b) and -a * b are the same number
            return (f"-{text}", min(own, _UNARY)) if own in (2, _ATOM) else (f"-({text})", _UNARY)
        assert node.kind in _SIGNS, node
        own = _SIGNS[node.kind]
        a, b = node.operands
        return f"{self.print(a, own)} {node.kind} {self.print(b, own + 1)}", own

    def tuple(self, members: Members) -> list[str]:
        return [self.print(member) for member in members]


def _return(printer: _Printer, results: Node | tuple[Members, ...]) -> list[str]:
    """The lines that return the results."""
    if isinstance(results, Node):
        return [f"    return {printer.print(results)}"]
    first, *others = (printer.tuple(members) for members in results)
    line = f"    return {', '.join(map(_tuple, (first, *others)))}"
    short = len(line) <= WIDTH and (len(first) < 4 or all(text.isidentifier() for text in first))
    if short or len(others) != 1:
        return [line]
    lines = [f"    dgates = {', '.join(first) if len(first) > 1 else _tuple(first)}"]
    if len(lines[0]) > WIDTH:
        lines = ["    dgates = (", *(f"        {text}," for text in first), "    )"]
    return ["", *lines, f"    return dgates, {_tuple(others[0])}"]


def _tuple(texts: list[str]) -> str:
    return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"


def make_function(source: str, title: str) -> Callable[..., Any]:
    """The function that the source defines, which tracebacks and inspect find the source of.

    It refers to nothing but functions of functions.py.
    """
    code = compile(source, "<cell>", "exec")
    used = {name for inner in code.co_consts for name in getattr(inner, "co_names", ())}
    ours = [name for name in sorted(used) if hasattr(functions, name)]
    space: dict[str, Any] = {name: getattr(functions, name) for name in ours}
    # compiled code that is found in the cache imports the module of its functions: not the user's,
    # which may be a program (nor functions.py, which is for those that engines know)
    space["__name__"] = __name__
    digest = sha256(source.encode()).hexdigest()[:8]
    file = f"<cell {title} {digest}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    before = set(space)
    exec(compile(source, file, "exec"), space)
    (name,) = set(space) - before - {"__builtins__"}
    return space[name]
