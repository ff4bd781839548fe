"""Cells of your own: write the arithmetic of a step once, get a layer on every engine.

    from numba_rnn import cell, time_layer
    from numba_rnn.functions import sigmoid, tanh

    @cell(states="h c", weights="p")
    def peephole(f, g, i, o, p, h, c):
        f, i = sigmoid(f + p * c), sigmoid(i)
        c = f * c + i * tanh(g)
        return sigmoid(o) * tanh(c), c

    TimePeephole = time_layer(peephole)
    layer = TimePeephole.create(input_size=3, hidden_size=32, rng=0)

The zoo in ``kernels/cells/`` (``lstm_variants.py``, ``gru_variants.py``, ``elementwise.py`` ...) is
written this way.
"""

from collections.abc import Callable
from typing import Any

from .kernels import cells
from .kernels.cells import Cell, WrittenCell
from .kernels.gradient_check import check as check  # cells have it as a method
from .layers.recurrent import TimeRecurrent


def cell(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """A decorator: the step of a cell as a plain function -> the cell, its gradient derived.

    The function's arguments are found by name. Those in ``states`` are the states before the step,
    those in ``weights`` are weights, of which each unit has its own; all others are gates: a gate
    arrives as its pre-activation, x Wx + h Wh + b. The function returns the states after the step,
    in the order of ``states``; the first one is the output.

    It may use + - * /, x ** 2, comparisons inside ``where``, the functions of
    ``numba_rnn.functions`` (sigmoid, tanh, relu, exp, softplus, hard_sigmoid, maximum, where ...),
    constants, and plain functions made of the same. Python's ``if`` cannot look at numbers that
    differ from unit to unit: write ``where(a > 0, b, c)``.

    Lists of names are strings, split at spaces or commas, or tuples.

    states          names of the states, "h" if left out
    weights         names of the weights
    recurrence      "product" (h Wh feeds every gate), or "elementwise": no h Wh at all
    input_only      gates that see x Wx alone
    recurrent_only  gates that see h Wh alone, and so have no bias (a weight makes one)
    second          the last gates, if their product multiplies ``operand`` instead of h
    fed             in place of second: a gate without any product and bias, whose pre-activation
                    is ``operand`` itself, as the new memory cell that is to be normalised
    operand         a function of other gates, states and weights, as the GRU's
                    ``def reset(r, h): return sigmoid(r) * h``
    normalised      gates whose pre-activation arrives normalised over the H units of a row (layer
                    normalisation): (a - mean(a)) / sqrt(var(a) + 1e-5), each gate by itself.
                    Gain and shift are weights: ``f = sigmoid(gain_f * f + shift_f)``
    joined          states that mean something only together, as sLSTM's c, n and the exponent m
                    that both are divided by; zoneout leaves them alone
    biases          1: on the input side; 2: on both sides
    bias_start      where a gate's bias starts, by name: a number, or (low, high) to draw it from
    weight_start    where a weight starts, likewise
    backward        instead of a derivation: (dstate, saved, state) -> (dgates, dstate), see
                    ``kernels/cells/cell.py``
    saved           with ``backward``: the function's local variables that it is given
    name            the cell's name, the function's if left out

    Returns a ``WrittenCell``: ``source("backward")`` shows what was derived, ``check()`` compares
    its gradients with finite differences and warns of quotients that may be 0 / 0,
    ``time_layer(it)`` is its layer. Raises ValueError or
    TypeError, naming the line, for what no cell can be; ImportError without SymPy
    (``pip install "numba-rnn[cells]"``).

    >>> from numba_rnn.functions import tanh
    >>> @cell(weights="u", recurrence="elementwise")
    ... def diagonal(a, u, h):
    ...     return tanh(a + u * h)
    >>> print(diagonal.source("backward").strip())
    def backward(dstate, saved, state):
        (dh,) = dstate
        h, u = saved
        (h_prev,) = state
    <BLANKLINE>
        da = dh * dtanh(h)
        return (da, da * h_prev), (da * u,)
    >>> diagonal.check() < 1e-6
    True
    """
    if function is None:
        return lambda function: cell(function, **options)
    made = WrittenCell(function, **options)
    cells.get(made)  # derived now, so that errors come where the cell is written
    return made


def time_layer(cell: str | Cell | WrittenCell) -> type[TimeRecurrent]:
    """The layer of a cell, unrolled over time, as TimeLSTM is that of the LSTM.

    Its constructor takes the parameters that ``cell.shapes(D, H)`` names, and ``stateful``; every
    state and its gradient are attributes by their names (``layer.c``, ``layer.dc``), but for those
    whose name means something else in every layer (``trace``, ``params`` ...).

    >>> import numpy as np
    >>> TimeMgu = time_layer("mgu")
    >>> TimeMgu.create(3, 5, rng=0).forward(np.ones((2, 7, 3), np.float32)).shape
    (2, 7, 5)
    """
    found = cells.get(cell)

    def init(self: Any, *params: Any, stateful: bool = False) -> None:
        TimeRecurrent.__init__(self, *params, stateful=stateful, cell=found)

    def part(of: str, k: int) -> property:
        arrays = f"{of}state"
        return property(lambda self: None if getattr(self, arrays) is None
                        else getattr(self, arrays)[k])  # fmt: skip

    def reduce(self: Any) -> Any:  # the class has no name by which pickle would find it
        if type(self) is not made:
            return TimeRecurrent.__reduce__(self)
        return _made_again, (found,), self.__getstate__()

    members: dict[str, Any] = {}
    for k, state in enumerate(found.states):
        members |= {state: part("", k), f"d{state}": part("d", k)}
    # what every layer has, in __init__ too, keeps its name: such a state is in ``state`` alone
    taken = {*dir(TimeRecurrent), *vars(TimeRecurrent.create(1, 1, cell=found, rng=0))}
    members = {name: member for name, member in members.items() if name not in taken}
    params = ", ".join(f"{name} {shape}" for name, shape in found.shapes(1, 1).items())
    members |= {
        "__doc__": f"{found!r} over a block of time; parameters, for D 1 and H 1: {params}.",
        "__module__": __name__,
        "__init__": init,
        "__reduce__": reduce,
        "_select": staticmethod(lambda options: found),
    }
    name = "Time" + "".join(word.capitalize() for word in found.name.split("_"))
    made = type(name, (TimeRecurrent,), members)
    return made


def _made_again(cell: Cell) -> TimeRecurrent:
    """A layer of a cell, as yet without anything in it."""
    layer_class = time_layer(cell)
    return layer_class.__new__(layer_class)
