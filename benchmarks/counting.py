"""A cell's work, counted: what its equations ask for, by nobody's clock.

    products     floating-point operations of x Wx, h Wh and the second product, and twice as many
                 back: through the weights, and for their gradients
    arithmetic   operations of the cell's functions, forward and backward, all units and steps
    moved        numbers that are fetched or put away around the arithmetic

The arithmetic is counted by running the cell's own functions on numbers that keep a book of what
is done to them. An operation done twice to the same numbers counts once, as a compiler
has it.
"""

from collections.abc import Callable
from itertools import count
from types import FunctionType
from typing import Any, NamedTuple

from numba_rnn.kernels import functions
from numba_rnn.kernels.cells import Cell
from numba_rnn.kernels.layout import layout

# Vector operations of each, counted in kernels/cpu/vector_functions.py (float32). A division (or
# square root) takes a processor's vector unit about as long as eight additions.
DIVISION = 8
WEIGHTS = {
    "+": 1, "-": 1, "*": 1, "/": DIVISION, "negative": 1, "<": 1, "<=": 1, ">": 1, ">=": 1,
    "where": 1, "maximum": 2, "minimum": 2, "absolute": 1, "relu": 2, "drelu": 2,
    "sqrt": DIVISION, "sigmoid": 19 + DIVISION, "tanh": 21 + DIVISION, "exp": 24,
    "softplus": 27 + DIVISION,
}  # fmt: skip


def rebound(function: Any, replaced: dict[Any, Any]) -> Any:
    """A cell's function that calls others in place of those of ``kernels/functions.py``."""
    if function in replaced:
        return replaced[function]
    if not isinstance(function, FunctionType):
        return function
    used = {
        name: rebound(function.__globals__[name], replaced)
        for name in function.__code__.co_names
        if name in function.__globals__
    }
    used["__builtins__"] = function.__globals__["__builtins__"]
    return FunctionType(function.__code__, used, function.__name__, None, function.__closure__)


# ---- numbers that keep a book

_NUMBERS = count()


class Counted:
    """A number of which nothing is known but how it was made."""

    def __init__(self, book: "Book") -> None:
        self.book, self.number = book, next(_NUMBERS)

    def __neg__(self) -> "Counted":
        return self.book.made("negative", self)


def _operator(name: str, reflected: bool = False) -> Callable[[Counted, Any], Counted]:
    def operator(self: Counted, other: Any) -> Counted:
        return self.book.made(name, *((other, self) if reflected else (self, other)))

    return operator


for _name, _method in {"+": "add", "-": "sub", "*": "mul", "/": "truediv"}.items():
    setattr(Counted, f"__{_method}__", _operator(_name))
    setattr(Counted, f"__r{_method}__", _operator(_name, reflected=True))
for _name, _method in {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}.items():
    setattr(Counted, f"__{_method}__", _operator(_name))


class Book:
    """A record of the operations on numbers; ``operations`` weighs them."""

    def __init__(self) -> None:
        self._entries: dict[Any, Counted] = {}

    def made(self, name: str, *operands: Any) -> Counted:
        """The result of an operation, which is entered once for the same operands."""
        entry = name, *((x.number,) if isinstance(x, Counted) else x for x in operands)
        return self._entries.setdefault(entry, Counted(self))

    def numbers(self, names: tuple[str, ...]) -> tuple[Counted, ...]:
        """A number for each name."""
        return tuple(Counted(self) for _ in names)

    def counting(self, function: Any) -> Any:
        """A cell's function, to be run on such numbers."""
        primitives = {
            getattr(functions, name): (lambda *operands, name=name: self.made(name, *operands))
            for name in WEIGHTS
            if hasattr(functions, name)
        }
        return rebound(function, primitives)

    @property
    def operations(self) -> int:
        """All that was entered, weighed."""
        return sum(WEIGHTS[name] for name, *_ in self._entries)


# ---- a cell's work


class Work(NamedTuple):
    """The least work of forward and backward of a layer."""

    products: float  # floating-point operations
    arithmetic: int  # operations on single numbers, as many as fit a vector at once
    moved: int  # numbers fetched or put away


def arithmetic(cell: Cell) -> int:
    """Operations of one unit in one step, forward and backward."""
    ahead = Book()
    gates, state = ahead.numbers(cell.gates), ahead.numbers(cell.states)
    if cell.operand is not None:
        ahead.counting(cell.operand)(gates, state)
    ahead.counting(cell.forward)(gates, state)

    back = Book()
    dstate, saved, state = map(back.numbers, (cell.states, cell.saved, cell.states))
    dgates, dprev = back.counting(cell.backward)(dstate, saved, state)
    if cell.operand_backward is not None:
        (doperand,) = back.numbers(("operand",))
        dgates, dprev = (
            tuple(back.numbers(("zero",))[0] if d is None else d for d in gradients)
            for gradients in (dgates, dprev)
        )
        back.counting(cell.operand_backward)(doperand, dgates, dprev, saved, state)
    # a normalised gate: two sums, two differences, two products; back two sums, five more
    return ahead.operations + back.operations + (6 + 9) * len(cell.normalised)


def moved(cell: Cell) -> int:
    """Numbers that are fetched or put away around the arithmetic of one unit in one step.

    Forward: each side of every gate is put away by its product and fetched again, the state is
    fetched and put away, h goes out, and what backward needs is kept. Backward: that, the state,
    its gradient and dh are fetched, the gradients of state and gates are put away; those of the
    gates are fetched for db. The operand of a second product and its gradient are put away and
    fetched. A normalised gate is put away and fetched once more forward, and twice backward.
    """
    sides = len(cell.input_gates) + len(cell.recurrent_gates)
    states, kept, second = len(cell.states), layout(cell).n_stored, 2 * bool(cell.second_product)
    normalised = len(cell.normalised)
    ahead = 2 * sides + 2 * states + 1 + kept + second + 2 * normalised
    back = kept + 3 * states + 1 + 2 * len(cell.gates) + second + 4 * normalised
    return ahead + back


def work(cell: Cell, T: int, N: int, D: int, H: int) -> Work:
    """The work of forward and backward over a block of time.

    Of xs four numbers a feature are moved: fetched forward, fetched and packed backward, and dxs.
    """
    columns = len(cell.input_gates) * D + len(cell.recurrent_gates) * H
    rows = T * N
    return Work(
        6.0 * rows * H * columns, rows * H * arithmetic(cell), rows * (H * moved(cell) + 4 * D)
    )
