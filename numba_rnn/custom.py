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

Most cells of the package are written this way: ``kernels/cells/lstm_variants.py``,
``kernels/cells/gru_variants.py``, ``kernels/cells/elementwise.py`` and others.
"""

from collections.abc import Callable
from typing import Any, overload

from .kernels import cells
from .kernels.cells import Cell, WrittenCell
from .kernels.cells.cell import Starts
from .kernels.cells.decorator import Names
from .kernels.gradient_check import check as check  # cells have it as a method
from .layers.recurrent import TimeRecurrent


@overload
def cell(function: Callable[..., Any], /) -> WrittenCell: ...


@overload
def cell(
    *,
    states: Names = "h",
    weights: Names = (),
    input_only: Names = (),
    recurrent_only: Names = (),
    second_product: Names = (),
    operand_gate: Names = (),
    operand: Callable[..., Any] | None = None,
    normalised: Names = (),
    coupled: Names = (),
    projected: bool = False,
    recurrence: str = "product",
    biases: int = 1,
    bias_start: Starts | None = None,
    weight_start: Starts | None = None,
    backward: Callable[..., Any] | None = None,
    saved: Names | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Any]], WrittenCell]: ...


def cell(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a cell from the step as a plain function; its gradient is derived. A decorator.

    The arguments of the function are found by name. Those in ``states`` are the states before the
    step, those in ``weights`` are weights, one number for each unit; all others are gates. A gate
    is its pre-activation, x Wx + h Wh + b. The function returns the states after the step, in the
    order of ``states``; the first one is the output.

    The function may use ``+ - * /``, ``x ** 2``, comparisons inside ``where``, the functions of
    ``numba_rnn.functions`` (sigmoid, tanh, relu, exp, softplus, hard_sigmoid, maximum, where and
    others), constants, and plain functions made of the same. Python's ``if`` on a per-unit value is
    not allowed: write ``where(a > 0, b, c)``.

    Parameters
    ----------
    function : callable, optional
        The step. If it is left out, the result is a decorator.
    **options
        The options below. Lists of names are strings, split at spaces or commas, or tuples.

    Other Parameters
    ----------------
    states : names, default "h"
        The names of the states.
    weights : names
        The names of the weights, such as an LSTM's peepholes.
    recurrence : {"product", "elementwise"}, default "product"
        "product": h Wh is added to every gate. "elementwise": there is no h Wh.
    input_only : names
        Gates that have x Wx alone.
    recurrent_only : names
        Gates that have h Wh alone, and so no bias (a weight can be one), unless ``biases=2``.
    second_product : names
        The last gates, if their recurrent product multiplies ``operand`` instead of h.
    operand_gate : names
        At most one gate, instead of second_product: it has no product and no bias, and its
        pre-activation is ``operand`` itself, such as a new memory cell that is to be normalised.
    operand : callable
        A function of other gates, states and weights, such as the GRU's
        ``def reset(r, h): return sigmoid(r) * h``.
    normalised : names
        Gates with layer normalisation over the H units of a row (Ba et al. 2016): (a - mean(a)) /
        sqrt(var(a) + 1e-5), each gate by itself, its biases inside. Gain and shift are weights:
        ``f = sigmoid(gain_f * f + shift_f)``.
    coupled : names
        States that have no meaning alone, such as sLSTM's c, n and the exponent m by which both are
        divided. Zoneout, which keeps or renews each state by itself, leaves them as they are.
    projected : bool, default False
        Whether h may have fewer numbers than there are units: P, as the gates in
        ``second_product``, to which the second product projects ``operand``. In the function these
        gates and h meet each other alone. Wh is (P, gates * H) then, and the projection Wr (H, P)
        the last parameter.
    biases : {1, 2}, default 1
        1: one bias, on the input side. 2: one on each side; b is (2, gates * H), as in a GRU whose
        reset gate scales h Wh.
    bias_start : dict of str to float or (low, high)
        The bias of a gate when a layer is created from sizes, 0 if not named: a number, or the
        range of a uniform distribution.
    weight_start : dict of str to float or (low, high)
        The initial value of a weight, in the same form.
    backward : callable
        (dstate, saved, state) -> (dgates, dstate), instead of a derived one; see
        ``kernels/cells/cell.py``.
    saved : names
        With ``backward``: the local variables of the function that it receives.
    name : str
        The name of the cell; that of the function if left out.

    Returns
    -------
    WrittenCell
        The cell. ``source("backward")`` shows the derived code; ``check()`` compares its gradients
        with finite differences and warns of quotients that may be 0 / 0; ``time_layer`` makes its
        layer.

    Raises
    ------
    ValueError, TypeError
        If the function cannot be a cell; the message names the line.
    ImportError
        Without SymPy (``pip install "numba-rnn[cells]"``).

    Examples
    --------
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
    result = WrittenCell(function, **options)
    cells.get(result)  # derived now, so that errors come where the cell is written
    return result


def time_layer(cell: str | Cell | WrittenCell) -> type[TimeRecurrent]:
    """Return the layer class of a cell, unrolled over time, as TimeLSTM is that of the LSTM.

    Parameters
    ----------
    cell : str, Cell or WrittenCell
        The cell, or its name.

    Returns
    -------
    type
        A subclass of TimeRecurrent. Its constructor takes the parameters that ``cell.shapes(D, H)``
        names, and ``stateful``. Every state and its gradient are attributes by their names
        (``layer.c``, ``layer.dc``), except names that every layer uses otherwise (``trace``,
        ``params`` and so on).

    Examples
    --------
    >>> import numpy as np
    >>> TimeMgu = time_layer("mgu")
    >>> TimeMgu.create(3, 5, rng=0).forward(np.ones((2, 7, 3), np.float32)).shape
    (2, 7, 5)
    """
    resolved = cells.get(cell)

    def init(self: Any, *params: Any, stateful: bool = False) -> None:
        TimeRecurrent.__init__(self, *params, stateful=stateful, cell=resolved)

    def part(of: str, k: int) -> property:
        arrays = f"{of}state"
        return property(lambda self: None if getattr(self, arrays) is None
                        else getattr(self, arrays)[k])  # fmt: skip

    def reduce(self: Any) -> Any:  # the class has no name by which pickle would find it
        if type(self) is not layer_class:
            return TimeRecurrent.__reduce__(self)
        return _made_again, (resolved,), self.__getstate__()

    members: dict[str, Any] = {}
    for k, state in enumerate(resolved.states):
        members |= {state: part("", k), f"d{state}": part("d", k)}
    # what every layer has, in __init__ too, keeps its name: such a state is in ``state`` alone
    taken = {*dir(TimeRecurrent), *vars(TimeRecurrent.create(1, 1, cell=resolved, rng=0))}
    members = {name: member for name, member in members.items() if name not in taken}
    params = ", ".join(f"{name} {shape}" for name, shape in resolved.shapes(1, 1).items())
    members |= {
        "__doc__": f"{resolved!r} over a block of time; parameters, for D 1 and H 1: {params}.",
        "__module__": __name__,
        "__init__": init,
        "__reduce__": reduce,
        "_select": staticmethod(lambda options: resolved),
    }
    name = "Time" + "".join(word.capitalize() for word in resolved.name.split("_"))
    layer_class = type(name, (TimeRecurrent,), members)
    return layer_class


def _made_again(cell: Cell) -> TimeRecurrent:
    """A layer of a cell, as yet without anything in it."""
    layer_class = time_layer(cell)
    return layer_class.__new__(layer_class)
