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
use. ``..derivation`` makes a ``Cell``'s functions from it when ``.cell`` is first accessed, which
requires SymPy.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import update_wrapper
from math import isfinite
from numbers import Real
from types import MappingProxyType
from typing import Any

from ..derivation import cell_functions, extremes
from ..derivation.graph import CONSTANT, Node, reachable
from ..derivation.source import Names as NodeNames
from ..derivation.source import make_function
from ..derivation.tracing import CellError, Number, Run, Trace, place_of
from ..once import LOCK
from .cell import Cell

Names = str | tuple[str, ...]
FUNCTIONS = "forward", "backward", "operand", "operand_backward"
RECURRENCES = "product", "elementwise"


OPTIONS: Mapping[str, Any] = MappingProxyType({  # of ``cell``, with their defaults
    "states": "h", "weights": (), "input_only": (), "recurrent_only": (), "second": (), "fed": (),
    "operand": None, "normalised": (), "joined": (), "recurrence": "product", "biases": 1,
    "bias_start": None, "weight_start": None, "backward": None, "saved": None, "name": None,
})  # fmt: skip


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

    def __init__(self, function: Any, **options: Any) -> None:
        if not inspect.isfunction(function):
            raise TypeError(f"cell: expected a function, got {function!r}")
        update_wrapper(self, function)
        self._function = function
        unknown = ", ".join(sorted(options.keys() - OPTIONS.keys()))
        if unknown:
            raise TypeError(f"cell: expected some of {', '.join(OPTIONS)}, got {unknown}")
        self._options = {**OPTIONS, **options}
        self._made: tuple[Cell, dict[str, str]] | None = None
        self._check_options()

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
        there = [name for name in FUNCTIONS if "operand" not in name or self._options["operand"]]
        if function not in there:
            raise ValueError(f"function: expected one of {', '.join(there)}, got {function!r}")
        cell, sources = self._derived()
        return sources.get(function) or inspect.getsource(getattr(cell, function))

    def without_gradient(self) -> list[str]:
        """Find quotients that may be 0 / 0 and roots that may be of 0; their gradients are NaN.

        Returns
        -------
        list of str
            A description of each, with an example.
        """
        traced, given = self._trace()[0], self._options
        return extremes.without_gradient(traced, given["normalised"], given["fed"])

    # ---- options

    def _refuse(self, why: str) -> CellError:
        return CellError(f"cell {self.name!r}: {why}\n{place_of(self._function)}")

    def _check_options(self) -> None:
        given = self._options
        self.name = self._function.__name__ if given["name"] is None else given["name"]
        if not isinstance(self.name, str) or not self.name.isidentifier():  # as kernels' names are
            raise ValueError(f"cell: name: expected letters, digits and _, got {self.name!r}")
        some = "input_only", "recurrent_only", "second", "fed", "normalised"
        for role in ("states", "weights", *some, "joined"):
            given[role] = self._names(role, given[role])
        self.states, self.weights = given["states"], given["weights"]
        if not self.states:
            raise self._refuse("states: expected at least one name, got none")

        arguments = self._arguments(self._function)
        for role in ("states", "weights"):
            missing = [name for name in given[role] if name not in arguments]
            if missing:
                raise self._refuse(
                    f"{role}: expected some of the arguments {', '.join(arguments)}, "
                    f"got {', '.join(missing)}"
                )
        both = [name for name in self.weights if name in self.states]
        if both:
            raise self._refuse(f"weights: expected none of states, got {', '.join(both)}")
        self.gates = tuple(a for a in arguments if a not in self.states + self.weights)
        if not self.gates:
            raise self._refuse(
                f"expected a gate: an argument beside {', '.join(self.states + self.weights)}"
            )
        for role in some:
            self._among(role, given[role], self.gates, "gates")
        self._among("joined", given["joined"], self.states, "states")
        given["bias_start"] = self._numbers("bias_start", self.gates, "gates")
        given["weight_start"] = self._numbers("weight_start", self.weights, "weights")
        if given["biases"] not in (1, 2) or isinstance(given["biases"], bool):
            raise self._refuse(f"biases: expected 1 or 2, got {given['biases']!r}")
        self._check_recurrence()
        self._check_functions()

    def _check_recurrence(self) -> None:
        given = self._options
        if given["recurrence"] not in RECURRENCES:
            raise self._refuse(
                f"recurrence: expected one of {', '.join(RECURRENCES)}, got {given['recurrence']!r}"
            )
        if given["recurrence"] == "elementwise":
            for role, default in (("recurrent_only", ()), ("second", ()), ("biases", 1)):
                if given[role] != default:
                    raise self._refuse(
                        f"{role}: an elementwise recurrence has no h Wh, got {given[role]!r}"
                    )
            given["input_only"] = tuple(g for g in self.gates if g not in given["fed"])

    def _check_functions(self) -> None:
        given = self._options
        operand, second, fed = given["operand"], given["second"], given["fed"]
        operand = given["operand"] = getattr(operand, "py_func", operand)
        if fed and (second or len(fed) > 1):
            raise self._refuse(
                f"fed: expected one gate, and no second beside it, got {', '.join(fed + second)}"
            )
        if (operand is None) != (not second + fed):
            raise self._refuse(
                "second (or fed) and operand go together: the gates of the second product, and a "
                "function of what it multiplies; or the gate that is fed by that function itself"
            )
        products = [g for g in fed if g in given["input_only"] + given["recurrent_only"]]
        if products:
            raise self._refuse(
                f"fed: expected a gate without any product, got {', '.join(products)} of "
                "input_only or recurrent_only"
            )
        if len(fed) == len(self.gates):
            raise self._refuse(f"fed: expected another gate beside it, got {', '.join(fed)} alone")
        if operand is not None:
            if not inspect.isfunction(operand):
                raise self._refuse(f"operand: expected a function, got {operand!r}")
            early = tuple(gate for gate in self.gates if gate not in second + fed)
            allowed = early + self.states + self.weights
            but = "arguments but second's" if second else "arguments but fed's"
            self._among("operand", self._arguments(operand), allowed, but)
        backward, saved = given["backward"], given["saved"]
        if backward is not None and not inspect.isfunction(backward):
            raise self._refuse(f"backward: expected a function, got {backward!r}")
        if (backward is None) != (saved is None):
            raise self._refuse("backward and saved go together: what forward keeps for backward")
        if backward is not None:
            given["saved"] = self._names("saved", saved)
            if operand is not None:
                raise self._refuse("backward: with an operand, write a Cell of your own")

    def _names(self, role: str, given: Any) -> tuple[str, ...]:
        names = tuple(given.replace(",", " ").split()) if isinstance(given, str) else given
        if isinstance(names, list):
            names = tuple(names)
        if not isinstance(names, tuple) or not all(isinstance(n, str) for n in names):
            raise self._refuse(f"{role}: expected names, in a string or a tuple, got {given!r}")
        if len(set(names)) != len(names):
            raise self._refuse(f"{role}: expected each name once, got {given!r}")
        return names

    def _among(self, role: str, given: Iterable[str], allowed: Iterable[str], what: str) -> None:
        unknown = [name for name in given if name not in allowed]
        if unknown:
            raise self._refuse(
                f"{role}: expected some of the {what} {', '.join(allowed)}, "
                f"got {', '.join(map(str, unknown))}"
            )

    def _numbers(self, role: str, allowed: tuple[str, ...], what: str) -> Mapping[str, Any]:
        given = self._options[role]
        if given is None:
            return MappingProxyType({})
        if not isinstance(given, Mapping):
            raise self._refuse(f"{role}: expected a mapping from name to number, got {given!r}")
        self._among(role, given, allowed, what)
        for name, number in given.items():
            ends = number if isinstance(number, tuple) and len(number) == 2 else (number,)
            if not all(map(_is_finite, ends)) or ends[0] > ends[-1]:
                raise self._refuse(
                    f"{role}: {name}: expected a finite number, or (low, high), got {number!r}"
                )
        return MappingProxyType(dict(given))

    def _arguments(self, function: Any) -> list[str]:
        parameters = inspect.signature(function).parameters.values()
        for p in parameters:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise self._refuse(f"argument {p}: expected names, one for each gate and state")
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
        given = self._options
        traced, run = self._trace()
        backward, operand_backward = given["backward"], None
        if backward is None:
            sources, saved = cell_functions.derived_sources(traced)
        else:
            names = cell_functions.names_of(traced)
            sources = {"forward": self._forward_of(traced, run, names)}
            saved = given["saved"]
        sources["show"], shown = cell_functions.show_source(traced)
        made = {
            name: make_function(source, f"{self.name}: {name}") for name, source in sources.items()
        }
        for name, function in made.items():
            function.__qualname__ = f"{self.name}.{name}"
        operand, operand_backward = made.get("operand"), made.get("operand_backward")
        found = Cell(
            name=self.name,
            gates=self.gates + self.weights,
            states=self.states,
            saved=saved,
            forward=made["forward"],
            backward=made.get("backward", backward),
            input_only=given["input_only"],
            recurrent_only=given["recurrent_only"],
            second=given["second"],
            fed=given["fed"],
            normalised=given["normalised"],
            joined=given["joined"],
            operand=operand,
            operand_backward=operand_backward,
            biases=given["biases"],
            bias_start=given["bias_start"],
            shown=shown,
            show=lambda gates, state: made["show"](gates, state)[0],
            weights=self.weights,
            weight_start=given["weight_start"],
        )
        return found, sources

    def _trace(self) -> tuple[cell_functions.Traced, Run]:
        """Run the user's functions, and check what they return."""
        trace = Trace(self.name)
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
        traced = cell_functions.Traced(
            trace.graph, gates, weights, state, new, operand, {**local, **run.local}
        )
        reached = reachable(traced.outputs)
        for role, nodes in (("gate", gates), ("weight", weights)):
            for name, node in nodes.items():
                if node not in reached:
                    raise self._refuse(f"{role} {name}: nothing that is returned depends on it")
        return traced, run

    def _new_states(self, trace: Trace, run: Run) -> dict[str, Node]:
        names, result = self.states, run.result
        members = result if isinstance(result, (tuple, list)) else (result,)
        if len(members) != len(names):
            raise trace.error(
                f"expected {len(names)} returned, the states {', '.join(names)} after the step; "
                f"got {len(members)}",
                run.place,
            )
        return {
            name: self._number(trace, run, member, f"state {name}")
            for name, member in zip(names, members, strict=True)
        }

    def _number(self, trace: Trace, run: Run, value: Any, what: str) -> Node:
        if not isinstance(value, Number):
            raise trace.error(
                f"{what}: expected a number computed from the arguments, got {value!r}", run.place
            )
        assert value._node.kind != CONSTANT
        return value._node

    def _forward_of(self, traced: cell_functions.Traced, run: Run, names: NodeNames) -> str:
        """The forward function that saves what the user's backward function needs."""
        saved = self._options["saved"]
        self._among("saved", saved, run.local, "numbers at return")
        nodes = [run.local[name] for name in saved]
        for name, node in zip(saved, nodes, strict=True):
            names.give(node, name)
        return cell_functions.forward_source(traced, nodes, names)


def cell(function: Any = None, /, **options: Any) -> Any:
    """Make a cell from its step, a plain function; its gradient is derived. A decorator.

    ``numba_rnn.cell`` is the public form, which derives the cell at once and documents the options.

    Parameters
    ----------
    function : callable, optional
        The step. If it is left out, the result is a decorator.
    **options
        Those of ``numba_rnn.cell``.

    Returns
    -------
    WrittenCell
        The cell.

    Raises
    ------
    ValueError, TypeError
        If the options are not those of a cell. The function itself is checked when the cell is
        derived; errors then name the line.
    """
    if function is None:
        return lambda function: WrittenCell(function, **options)
    return WrittenCell(function, **options)


def _is_finite(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, Real):
        return False
    try:
        return isfinite(number)
    except OverflowError:  # an int beyond the largest float
        return False
