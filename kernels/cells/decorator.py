"""Written cells: the step is a plain function, its gradient is derived.

    @cell(states="h c", bias_start={"f": 1.0})
    def lstm(f, g, i, o, h, c):
        f, i, o = sigmoid(f), sigmoid(i), sigmoid(o)
        c = f * c + i * tanh(g)
        h = o * tanh(c)
        return h, c

Arguments are found by their names. Those in ``states`` are the states before the step, those in
``weights`` are weights, one number for each unit; all others are pre-activations of gates. The
function returns the states after the step. It may use whatever the functions of a ``Cell`` may
use. ``..autodiff`` makes a ``Cell``'s functions from it when ``.cell`` is first accessed, which
requires SymPy.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import update_wrapper
from types import MappingProxyType
from typing import Any

from .. import deprecated
from ..autodiff import codegen, extremes
from ..autodiff.graph import CONSTANT, Node, reachable
from ..autodiff.source import NodeNames, make_function
from ..autodiff.tracing import CellError, Number, Tracer, TraceResult, place_of
from ..once import LOCK
from .cell import Cell
from .options import IN_BOTH, NAMES, OPTIONS, conflicts, problems, strangers

Names = str | tuple[str, ...]
FUNCTIONS = "forward", "backward", "operand", "operand_backward"


class WrittenCell:
    """A cell made from a plain function. Calling it calls that function.

    Parameters
    ----------
    function : callable
        The step.
    **options
        The options of ``cell``.

    Attributes
    ----------
    name : str
        The name of the cell.
    states, gates, weights : tuple of str
        The names of its states, gates and weights.
    check : method
        ``numba_rnn.custom.check``: compares the gradients with central differences.

    Examples
    --------
    >>> from numba_rnn.functions import tanh
    >>> @cell
    ... def elman(a, h):
    ...     return tanh(a)
    >>> elman.gates, elman.states
    (('a',), ('h',))
    >>> print(elman.source("forward").strip())
    def forward(gates, state):
        (a,) = gates
    <BLANKLINE>
        h = tanh(a)
        return (h,), (h,)
    """

    name: str
    states: tuple[str, ...]
    gates: tuple[str, ...]
    weights: tuple[str, ...]

    check: Callable[..., float]  # set by ``kernels/gradient_check.py``: this file imports no engine

    @deprecated.arguments(second="second_product", fed="operand_gate", joined="coupled")
    def __init__(self, function: Any, **options: Any) -> None:
        if not inspect.isfunction(function):
            raise TypeError(f"cell: expected a function, got {function!r}")
        update_wrapper(self, function)
        self._function = function
        unknown = ", ".join(sorted(options.keys() - OPTIONS.keys()))
        if unknown:
            raise TypeError(f"cell: expected some of {', '.join(OPTIONS)}, got {unknown}")
        self._options = {name: option.default for name, option in OPTIONS.items()} | options
        self._made: tuple[Cell, dict[str, str]] | None = None
        self.name = function.__name__ if self._options["name"] is None else self._options["name"]
        for why in self._problems():
            raise self._refuse(why)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._function(*args, **named)

    def __repr__(self) -> str:
        weights = f"; weights {' '.join(self.weights)}" if self.weights else ""
        return (
            f"<written cell {self.name}: gates {' '.join(self.gates)}{weights}; "
            f"states {' '.join(self.states)}>"
        )

    def __reduce__(self) -> str:
        return str(vars(self)["__qualname__"])  # pickled by reference, as functions are

    def __copy__(self) -> "WrittenCell":
        return self

    def __deepcopy__(self, memo: Any) -> "WrittenCell":
        return self

    @property
    def py_func(self) -> Any:
        """The plain function; a function compiled by Numba has it under the same name."""
        return self._function

    @property
    def cell(self) -> Cell:
        """The ``Cell`` for engines; it is derived when first accessed."""
        return self._derived()[0]

    def source(self, function: str) -> str:
        """Return the source of one of the cell's functions.

        Parameters
        ----------
        function : {"forward", "backward", "operand", "operand_backward"}
            The function; the last two exist if the cell has an ``operand``.

        Returns
        -------
        str
            The source.

        Raises
        ------
        ValueError
            If the cell has no such function.
        """
        derived = [name for name in FUNCTIONS if "operand" not in name or self._options["operand"]]
        if function not in derived:
            raise ValueError(f"function: expected one of {', '.join(derived)}, got {function!r}")
        cell, sources = self._derived()
        return sources.get(function) or inspect.getsource(getattr(cell, function))

    def without_gradient(self) -> list[str]:
        """Find quotients that may be 0 / 0 and roots that may be of 0; their gradients are NaN.

        Returns
        -------
        list of str
            A description of each, with an example.
        """
        traced, options = self._trace()[0], self._options
        return extremes.without_gradient(traced, options["normalised"], options["operand_gate"])

    # ---- options

    def _refuse(self, why: str) -> CellError:
        return CellError(f"cell {self.name!r}: {why}\n{place_of(self._function)}")

    def _problems(self) -> Iterator[str]:
        """Make names and mappings of what was given; yield what is wrong with it."""
        given = self._options
        for name, option in OPTIONS.items():
            if option.kind == NAMES and (given[name] is not None or option.default is not None):
                given[name] = self._names(name, given[name])
        given["operand"] = getattr(given["operand"], "py_func", given["operand"])
        operand, second, fed = given["operand"], given["second_product"], given["operand_gate"]
        states, weights = self.states, self.weights = given["states"], given["weights"]
        arguments = tuple(self._arguments(self._function))
        gates = self.gates = tuple(a for a in arguments if a not in states + weights)
        known = {"arguments": arguments, "gates": gates, "states": states, "weights": weights}
        yield from problems({**given, "name": self.name}, known)
        for name in ("bias_start", "weight_start"):
            given[name] = MappingProxyType(dict(given[name] or {}))
        if not states:
            yield "states: expected at least one name, got none"
        if both := [name for name in weights if name in states]:
            yield f"weights: expected none of states, got {', '.join(both)}"
        if not gates:
            yield f"expected a gate: an argument beside {', '.join(states + weights)}"
        if given["recurrence"] == "elementwise":
            for name in ("recurrent_only", "second_product", "biases"):
                if given[name] != OPTIONS[name].default:
                    yield (
                        f"{name}: expected {OPTIONS[name].default or 'none'}, since an elementwise "
                        f"recurrence has no h Wh, got {given[name]!r}"
                    )
            given["input_only"] = tuple(gate for gate in gates if gate not in fed)
        yield from conflicts(gates, given)
        if operand is not None:
            early = tuple(gate for gate in gates if gate not in second + fed)
            but = "arguments but second_product's" if second else "arguments but operand_gate's"
            yield from strangers("operand", self._arguments(operand), early + states + weights, but)
        if (given["backward"] is None) != (given["saved"] is None):
            yield (
                "backward and saved: expected both or neither; saved names what forward keeps for "
                "backward"
            )
        if given["backward"] is not None and operand is not None:
            yield "backward: not supported together with operand; define a Cell instead"

    def _names(self, option: str, value: Any) -> tuple[str, ...]:
        names = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) for n in names):
            raise self._refuse(f"{option}: expected names, in a string or a tuple, got {value!r}")
        return tuple(names)

    def _arguments(self, function: Any) -> list[str]:
        parameters = inspect.signature(function).parameters.values()
        for p in parameters:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise self._refuse(
                    f"argument {p}: expected a named argument for each gate and state"
                )
            if p.kind == p.POSITIONAL_ONLY or p.kind == p.KEYWORD_ONLY:
                raise self._refuse(f"argument {p.name}: expected no / and no * among the arguments")
            if p.default is not p.empty:
                raise self._refuse(f"argument {p.name}: expected no default, got {p.default!r}")
        return [p.name for p in parameters]

    # ---- derivation

    def _derived(self) -> tuple[Cell, dict[str, str]]:
        if self._made is None:
            with LOCK:
                self._made = self._made or self._derive()
        return self._made

    def _derive(self) -> tuple[Cell, dict[str, str]]:
        options = self._options
        traced, run = self._trace()
        if options["backward"] is None:
            sources, saved = codegen.derived_sources(traced)
        else:
            names = codegen.names_of(traced)
            sources = {"forward": self._forward_of(traced, run, names)}
            saved = options["saved"]
        sources["show"], shown = codegen.show_source(traced)
        functions = {
            name: make_function(source, f"{self.name}: {name}") for name, source in sources.items()
        }
        for name, function in functions.items():
            function.__qualname__ = f"{self.name}.{name}"
        result = Cell(
            name=self.name,
            gates=self.gates + self.weights,
            states=self.states,
            saved=saved,
            forward=functions["forward"],
            backward=functions.get("backward", options["backward"]),
            operand=functions.get("operand"),
            operand_backward=functions.get("operand_backward"),
            shown=shown,
            show=lambda gates, state: functions["show"](gates, state)[0],
            weights=self.weights,
            **{name: options[name] for name in IN_BOTH},
        )
        return result, sources

    def _trace(self) -> tuple[codegen.TracedCell, TraceResult]:
        """Run the user's functions, and check what they return."""
        trace = Tracer(self.name)
        gates, weights, state = (
            {name: trace.graph.input(role, name) for name in names}
            for role, names in (
                ("gate", self.gates),
                ("weight", self.weights),
                ("state", self.states),
            )
        )
        values = {**gates, **weights, **state}
        run = trace.run(self._function, {a: values[a] for a in self._arguments(self._function)})
        new = self._new_states(trace, run)
        operand, local = None, {}
        if self._options["operand"] is not None:
            function = self._options["operand"]
            other = trace.run(function, {a: values[a] for a in self._arguments(function)})
            operand, local = self._number(trace, other, other.result, "operand"), other.local
        traced = codegen.TracedCell(
            trace.graph, gates, weights, state, new, operand, {**local, **run.local}
        )
        reached = reachable(traced.outputs)
        for role, nodes in (("gate", gates), ("weight", weights)):
            for name, node in nodes.items():
                if node not in reached:
                    raise self._refuse(f"{role} {name}: no returned state depends on it")
        return traced, run

    def _new_states(self, trace: Tracer, run: TraceResult) -> dict[str, Node]:
        names, result = self.states, run.result
        members = result if isinstance(result, (tuple, list)) else (result,)
        if len(members) != len(names):
            raise trace.error(
                f"return values: expected {len(names)}, the states {', '.join(names)} after the "
                f"step; got {len(members)}",
                run.place,
            )
        return {
            name: self._number(trace, run, member, f"state {name}")
            for name, member in zip(names, members, strict=True)
        }

    def _number(self, trace: Tracer, run: TraceResult, value: Any, what: str) -> Node:
        if not isinstance(value, Number):
            raise trace.error(
                f"{what}: expected a number computed from the arguments, got {value!r}", run.place
            )
        assert value._node.kind != CONSTANT
        return value._node

    def _forward_of(self, traced: codegen.TracedCell, run: TraceResult, names: NodeNames) -> str:
        """The forward function that saves what the user's backward function needs."""
        saved = self._options["saved"]
        for why in strangers("saved", saved, run.local, "numbers at return"):
            raise self._refuse(why)
        nodes = [run.local[name] for name in saved]
        for name, node in zip(saved, nodes, strict=True):
            names.give(node, name)
        return codegen.forward_source(traced, nodes, names)


def cell(function: Any = None, /, **options: Any) -> Any:
    """A WrittenCell, or a decorator that makes one: ``numba_rnn.cell``, but derived when needed.

    The options are checked at once, the function when the cell is derived.
    """
    if function is None:
        return lambda function: WrittenCell(function, **options)
    return WrittenCell(function, **options)
