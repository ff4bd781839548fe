"""Runs a plain function once, on numbers that write down what is done with them.

The function's code runs as it is, but with other globals: in place of the functions of
``functions.py`` it finds counterparts that record the call. Plain functions that it calls are
treated likewise. So every operation is known, and a function that does what a cell cannot do is
stopped at the line that does it.
"""

import ast
import inspect
import linecache
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from types import CellType, CodeType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any, NoReturn

from .. import functions
from .graph import (
    COMPARISON,
    DIFFERENCE,
    INPUT,
    LARGEST_WHOLE,
    NEGATIVE,
    PRODUCT,
    QUOTIENT,
    SUM,
    Graph,
    Node,
)

# recorded as they are; other functions of functions.py are plain arithmetic, which is traced
PRIMITIVES = (
    "sigmoid", "tanh", "relu", "exp", "softplus", "sqrt", "maximum", "minimum", "absolute",
    "where", "drelu",
)  # fmt: skip
OTHER_NAMES = {"max": "maximum", "min": "minimum", "abs": "absolute", "fabs": "absolute"}
FUNCTIONS = "numba_rnn.functions"  # where users find them


class CellError(ValueError):
    """The user's function does something that a cell cannot do."""


@dataclass(frozen=True)
class TraceResult:
    """The result of a function, where it was returned, and the local variables then."""

    result: Any
    local: dict[str, Node]
    place: str


class Tracer:
    """Runs functions of a cell, all on one graph."""

    def __init__(self, cell: str) -> None:
        self.cell = cell
        self.graph = Graph()
        self._codes: set[CodeType] = set()  # of the user's functions
        self._replaced: dict[Any, Any] = {}
        self._primitives = {
            getattr(functions, name): name for name in PRIMITIVES if hasattr(functions, name)
        }

    def run(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> TraceResult:
        """Call it with these nodes, by name; or tuples of nodes, or what is no number at all."""
        traced = self._function(function)
        found: dict[str, Any] = {}
        place = ""
        before = sys.getprofile()

        def at_return(frame: FrameType, event: str, _: Any) -> None:
            nonlocal place
            if event == "return" and frame.f_code is traced.__code__:
                found.update(frame.f_locals)
                place = _place(frame.f_code, frame.f_lineno)

        sys.setprofile(at_return)
        try:
            result = traced(**{name: self._argument(value) for name, value in arguments.items()})
        except TypeError as error:
            sys.setprofile(before)
            self._explain(error)
            raise
        finally:
            sys.setprofile(before)
        local = {name: value._node for name, value in found.items() if isinstance(value, Number)}
        return TraceResult(result, local, place)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Node):
            condition = value.kind == INPUT and value.label[0] == "condition"
            return (Comparison if condition else Number)(self, value)
        if isinstance(value, tuple):
            return getattr(type(value), "_make", tuple)(map(self._argument, value))
        return value

    # ---- errors

    def error(self, why: str, place: str) -> CellError:
        return CellError(f"cell {self.cell!r}: {why}\n{place}")

    def refuse(self, why: str | Callable[[str], str]) -> NoReturn:
        """Raise for what the user's line now does; ``why`` may take the source of the call."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code not in self._codes:
            if frame.f_globals is vars(functions):  # one of them as it is, not our counterpart
                why = (
                    f"{frame.f_code.co_name}: import it at the head of the module rather than in "
                    "the function, and call it from plain functions rather than methods"
                )
            frame = frame.f_back
        if frame is None:
            raise CellError(f"cell {self.cell!r}: {why('') if callable(why) else why}")
        source = _segment(frame.f_code, frame.f_lasti)
        raise self.error(
            why(source) if callable(why) else why, _place(frame.f_code, frame.f_lineno)
        )

    def _explain(self, error: TypeError) -> None:
        """Raise with the user's line where it is that line which cannot be done with numbers."""
        last: TracebackType | None = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is not None and last.tb_frame.f_code in self._codes:
            place = _place(last.tb_frame.f_code, last.tb_lineno)
            why = f"{error}; a cell may use + - * / and the functions of {FUNCTIONS}"
            raise self.error(why, place) from error

    # ---- the user's functions, with other globals

    def _function(self, function: Any, of_user: bool = True) -> Any:
        if function in self._replaced:
            return self._replaced[function]
        code = function.__code__
        if of_user:
            self._codes |= set(_codes(code))
        outer = dict(function.__globals__)
        names = {name for inner in _codes(code) for name in inner.co_names}
        closure = tuple(CellType() for _ in function.__closure__ or ())
        made = FunctionType(code, outer, function.__name__, function.__defaults__, closure)
        made.__kwdefaults__ = function.__kwdefaults__
        self._replaced[function] = made  # before its globals, among which it may be itself
        for name in sorted(names & set(outer)):
            outer[name] = self._replace(outer[name])
        for ours, theirs in zip(closure, function.__closure__ or (), strict=True):
            try:
                ours.cell_contents = self._replace(theirs.cell_contents)
            except ValueError:  # not filled yet
                continue
        return made

    def _replace(self, value: Any) -> Any:
        """The object that the traced code finds instead of a value."""
        value = getattr(value, "py_func", value)  # of what Numba compiled, or another cell
        if isinstance(value, ModuleType):
            return _Members(value, self._replace)
        if not inspect.isfunction(value):
            return value
        if value in self._primitives:
            return self._recording(value)
        return self._function(value, of_user=value.__module__ != functions.__name__)

    def _recording(self, function: Any) -> Callable[..., Any]:
        name, signature = self._primitives[function], inspect.signature(function)

        def record(*args: Any, **named: Any) -> Any:
            try:
                values = tuple(signature.bind(*args, **named).arguments.values())
            except TypeError as error:
                self.refuse(f"{name}({', '.join(signature.parameters)}): {error}")
            if name == "where":
                condition, *values = values  # type: ignore[assignment]
                if isinstance(condition, bool):
                    return values[0] if condition else values[1]
                if not isinstance(condition, Comparison):
                    self.refuse(f"where: expected a comparison like a > 0, got {condition!r}")
                if not any(isinstance(value, Number) for value in values):
                    self.refuse(  # it would have no dtype
                        "where: expected at least one choice that the cell computes, got "
                        f"{values[0]!r} and {values[1]!r}: write where(a > 0, 1.0, 0.0 * a)"
                    )
                nodes = [condition._node, *(self._operand(value) for value in values)]
            else:
                nodes = [self._operand(value) for value in values]
                if not any(isinstance(value, Number) for value in values):
                    return float(function(*(node.label for node in nodes)))
            return Number(self, self.graph.call(name, *nodes))

        return record

    # ---- what numbers do

    def _operand(self, value: Any) -> Node:
        if isinstance(value, Number):
            return value._node
        if not isinstance(value, Real) or isinstance(value, bool):
            self.refuse(_no_number(value))
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond all floats
            number = math.inf
        if not math.isfinite(number):
            self.refuse(f"expected a finite number, got {number!r}")
        whole = isinstance(value, int) and abs(value) < LARGEST_WHOLE
        return self.graph.constant(int(number) if whole else number)

    def operation(self, kind: str, a: Any, b: Any) -> "Number":
        return Number(self, self.graph.node(kind, None, self._operand(a), self._operand(b)))

    def comparison(self, sign: str, a: Any, b: Any) -> "Comparison":
        node = self.graph.node(COMPARISON, sign, self._operand(a), self._operand(b))
        return Comparison(self, node)


class _Traced:
    """The stand-in for an array in the user's function."""

    __slots__ = ("_node", "_trace")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, trace: Tracer, node: Node) -> None:
        self._trace, self._node = trace, node

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} of cell {self._trace.cell!r}>"

    def __bool__(self) -> NoReturn:
        self._trace.refuse(_about_a_branch)

    def __float__(self) -> NoReturn:
        self._trace.refuse(_about_a_call)

    __int__ = __index__ = __float__

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self._trace.refuse(_about_a_call)

    def __array_function__(self, function: Any, *_: Any) -> NoReturn:
        self._trace.refuse(_instead_of(f"np.{function.__name__}"))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._trace.refuse(f"a number in a cell has no attribute {name!r}")

    def __getitem__(self, _: Any) -> NoReturn:
        self._trace.refuse(
            "a number in a cell is that of one unit: it has no length, index or members"
        )

    __iter__ = __len__ = lambda self: self[0]

    def __eq__(self, _: Any) -> NoReturn:
        self._trace.refuse("== and != are not allowed in a cell; use < <= > >=")

    __ne__ = __eq__


class Comparison(_Traced):
    """The outcome of a comparison, for where."""

    __slots__ = ()

    def _refuse(self, *_: Any) -> NoReturn:
        self._trace.refuse(
            "a comparison can only be the condition of where(a > 0, ..., ...); "
            "nest one where in another"
        )

    __and__ = __or__ = __xor__ = __rand__ = __ror__ = __rxor__ = __invert__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = _refuse
    __truediv__ = __rtruediv__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __array_ufunc__ = _refuse


class Number(_Traced):
    """A number of one unit at one step."""

    __slots__ = ()

    def __add__(self, other: Any) -> "Number":
        return self._trace.operation(SUM, self, other)

    def __radd__(self, other: Any) -> "Number":
        return self._trace.operation(SUM, other, self)

    def __sub__(self, other: Any) -> "Number":
        return self._trace.operation(DIFFERENCE, self, other)

    def __rsub__(self, other: Any) -> "Number":
        return self._trace.operation(DIFFERENCE, other, self)

    def __mul__(self, other: Any) -> "Number":
        return self._trace.operation(PRODUCT, self, other)

    def __rmul__(self, other: Any) -> "Number":
        return self._trace.operation(PRODUCT, other, self)

    def __truediv__(self, other: Any) -> "Number":
        if isinstance(other, Real) and other == 0:
            self._trace.refuse("division by 0")
        return self._trace.operation(QUOTIENT, self, other)

    def __rtruediv__(self, other: Any) -> "Number":
        return self._trace.operation(QUOTIENT, other, self)

    def __neg__(self) -> "Number":
        return Number(self._trace, self._trace.graph.node(NEGATIVE, None, self._node))

    def __pos__(self) -> "Number":
        return self

    def __abs__(self) -> "Number":
        return self._call("absolute")

    def __pow__(self, power: Any, modulo: Any = None) -> Any:
        exact = isinstance(power, Real) and modulo is None
        if exact and power == 1:
            return self
        if exact and power == 2:
            return self * self
        if exact and power == -1:
            return 1 / self
        if exact and power == 0.5:
            return self._call("sqrt")
        return self._trace.refuse(f"**: expected the exponent 2, 1, -1 or 0.5, got {power!r}")

    def __rpow__(self, base: Any) -> NoReturn:
        self._trace.refuse(
            f"{base!r} ** x in a cell: write exp(c * x), where c is the logarithm of {base!r}"
        )

    def _call(self, function: str) -> "Number":
        return Number(self._trace, self._trace.graph.call(function, self._node))

    def __lt__(self, other: Any) -> Comparison:
        return self._trace.comparison("<", self, other)

    def __le__(self, other: Any) -> Comparison:
        return self._trace.comparison("<=", self, other)

    def __gt__(self, other: Any) -> Comparison:
        return self._trace.comparison(">", self, other)

    def __ge__(self, other: Any) -> Comparison:
        return self._trace.comparison(">=", self, other)

    def _no_such_operator(self, _: Any) -> NoReturn:
        self._trace.refuse("a cell may only use the operators + - * / and < <= > >=")

    __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = __divmod__ = __rdivmod__ = _no_such_operator
    __matmul__ = __rmatmul__ = __and__ = __rand__ = __or__ = __ror__ = _no_such_operator

    def __round__(self, _: Any = None) -> NoReturn:
        self._trace.refuse(_about_a_call)

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **named: Any) -> Any:
        """NumPy's operators come here where the other operand is a number of NumPy's."""
        kind = _OF_NUMPY.get(ufunc.__name__)
        if kind is not None and method == "__call__" and not named:
            a, b = args
            if kind in (SUM, DIFFERENCE, PRODUCT, QUOTIENT):
                return self._trace.operation(kind, a, b)
            return self._trace.comparison(kind, a, b)
        return self._trace.refuse(_instead_of(f"np.{ufunc.__name__}"))


_OF_NUMPY = {
    "add": SUM, "subtract": DIFFERENCE, "multiply": PRODUCT, "divide": QUOTIENT,
    "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=",
}  # fmt: skip


class _Members:
    """A module as the traced code sees it."""

    def __init__(self, module: ModuleType, replace: Callable[[Any], Any]) -> None:
        self._of = module, replace

    def __getattr__(self, name: str) -> Any:
        module, replace = self._of
        return replace(getattr(module, name))


# ---- what to say


def _instead_of(call: str) -> str:
    """Advice for a call of a function that a cell cannot call."""
    name = call.rpartition(".")[2]
    name = OTHER_NAMES.get(name, name)
    if hasattr(functions, name) and not name.startswith("_") and name != "np":
        return f"{call} can be neither compiled nor differentiated: use {FUNCTIONS}.{name}"
    return f"{call} can be neither compiled nor differentiated: use the functions of {FUNCTIONS}"


def _about_a_call(source: str) -> str:
    """Some function wanted a Python number."""
    called = _called(source)
    if called:
        return _instead_of(called)
    return f"a number in a cell cannot become a Python number: use the functions of {FUNCTIONS}"


def _about_a_branch(source: str) -> str:
    """Python wanted to know which way to go."""
    called = _called(source)
    if called in ("max", "min"):
        return _instead_of(called)
    return (
        "`if` on a number that differs from unit to unit is not allowed in a cell (nor while, and, "
        "or, not, a < b < c): write where(a > 0, ..., ...)"
    )


def _called(source: str) -> str:
    """The name of the function, where the source is a call of a name."""
    try:
        expression = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return ""
    return ast.unparse(expression.func) if isinstance(expression, ast.Call) else ""


def _place(code: CodeType, line: int) -> str:
    text = linecache.getline(code.co_filename, line).strip()
    return f'  File "{code.co_filename}", line {line}' + (f"\n    {text}" if text else "")


def _segment(code: CodeType, instruction: int) -> str:
    """The source of what an instruction computes; "" where it is not known."""
    first, last, start, end = list(code.co_positions())[instruction // 2]
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [
        linecache.getline(code.co_filename, line).encode() for line in range(first, last + 1)
    ]  # bytes, which positions count
    if not all(lines):
        return ""
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return b"".join(lines).decode()


def place_of(function: Any) -> str:
    """Where a function is defined."""
    code = function.__code__
    lines = linecache.getlines(code.co_filename)
    first = code.co_firstlineno
    for line in range(first, len(lines) + 1):  # decorators come first
        if lines[line - 1].lstrip().startswith("def "):
            return _place(code, line)
    return _place(code, first)


def _codes(code: CodeType) -> list[CodeType]:
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return [code, *(found for c in inner for found in _codes(c))]


def _no_number(value: Any) -> str:
    """Advice for a value that is no number."""
    if callable(value):
        name = getattr(value, "__name__", repr(value))
        return f"expected a number, got the function {name}: call it, {name}(...)"
    if hasattr(value, "shape"):
        return (
            f"expected a number, got {value!r}: use a float for a number that all units share, a "
            "weight (weights=...) for one that differs from unit to unit"
        )
    if value is None:
        return "expected a number, got None: is a return missing?"
    return f"expected a number, got {value!r}"
