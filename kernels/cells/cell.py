"""A cell: two plain functions on tuples of numbers, and a few names.

A recurrent network is two kinds of work: large matrix products, which are the same for every
cell, and a little arithmetic between them, which is the cell. A cell states that arithmetic for
**one unit at one time step** and nothing else; time, batch, products, threads and devices belong
to the engines.

Notation (N batch, T time, D input size, H hidden size)::

    a_g = x Wx[g] + h Wh[g] + b[g]                 pre-activation of gate g, one number a unit
    forward(gates, state)            -> new_state, saved
    backward(dstate, saved, state)   -> dgates, dstate

``gates`` are the pre-activations in the order of ``Cell.gates``. ``state`` is the state *before*
the step, in the order of ``Cell.states``; its first member is the hidden state ``h``, the cell's
output. ``saved`` holds the numbers that ``backward`` needs, in the order of ``Cell.saved``.
``backward`` receives the gradient of the state after the step. It returns the gradient of every
pre-activation and the *direct* part of the gradient of the state before the step; the engine adds
the part that flows through ``h Wh``. ``None`` in place of a gradient stands for zero. All of these
are tuples, with one member for each name.

Cell functions are straight-line arithmetic, since they run on NumPy arrays, on SIMD vectors and
on GPU threads alike. They may use ``+ - * /``, the functions of ``functions.py`` (whose derivatives
take the *output*: ``dtanh(tanh(a))``), constants of the module and plain functions made of the
same. In place of an ``if`` there is ``where(condition, a, b)``; the condition compares two numbers
with ``< <= > >=``, and at least one of them is not a constant. No ``**``, no ``if``, no ``np.*``.
``rnn.py`` is the smallest cell to start from.

How the products enter a cell, and more, is declared by its options: ``numba_rnn.cell`` documents
them, ``options.py`` has their rules. The last of ``gates`` may be ``weights``, which see neither
product: ``backward`` returns their gradient like a gate's, and the engine sums it. Of a gate in
``normalised`` it returns the gradient of the normalised value, and the engine continues from there
to a.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isfunction
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import deprecated, functions
from ..once import cached_property
from .options import IN_BOTH, conflicts, problems, problems_of_names

Numbers = tuple[Any, ...]
Starts = Mapping[str, float | tuple[float, float]]


@deprecated.fields(second="second_product", fed="operand_gate", joined="coupled")
@dataclass(frozen=True, eq=False)
class Cell:
    """The gate arithmetic of one kind of recurrent cell.

    Lists of names are tuples of str. The head of ``kernels/cells/cell.py`` has the notation.

    Parameters
    ----------
    name : str
        The name for users.
    gates : names
        The pre-activations, in the order of the fused weight axis; after them those of ``weights``.
    states : names
        The states carried from step to step; the first one is the output h.
    saved : names
        The numbers that ``forward`` keeps for ``backward``.
    forward : callable
        (gates, state) -> (new_state, saved)
    backward : callable
        (dstate, saved, state) -> (dgates, dstate)
    input_only, recurrent_only, second_product, operand_gate, normalised, coupled : names
        As in ``numba_rnn.cell``.
    projected : bool
        As in ``numba_rnn.cell``.
    biases : {1, 2}
        As in ``numba_rnn.cell``.
    bias_start, weight_start : mapping of str to float or (low, high)
        As in ``numba_rnn.cell``.
    operand : callable
        (gates, state) -> the number in the place of h. The gates in ``second_product`` still lack
        their recurrent part.
    operand_backward : callable
        (doperand, dgates, dstate, saved, state) -> (dgates, dstate), both with the gradient that
        flows back through ``operand`` added. A None of ``backward`` arrives as 0, and a result must
        not be None.
    weights : names
        The last of ``gates``: parameters, one number for each unit.
    shown : names
        The values inside a step for traces, if they are not those that are saved.
    show : callable
        (gates, state) -> those values.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: tuple[str, ...]
    forward: Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]
    backward: Callable[[Numbers, Numbers, Numbers], tuple[Numbers, Numbers]]
    input_only: tuple[str, ...] = ()
    recurrent_only: tuple[str, ...] = ()
    second_product: tuple[str, ...] = ()
    operand: Callable[[Numbers, Numbers], Any] | None = None
    operand_backward: Callable[..., tuple[Numbers, Numbers]] | None = None
    operand_gate: tuple[str, ...] = ()
    normalised: tuple[str, ...] = ()
    coupled: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    projected: bool = False
    biases: int = 1
    shown: tuple[str, ...] = ()
    show: Callable[[Numbers, Numbers], Numbers] | None = None
    bias_start: Starts = field(default_factory=lambda: MappingProxyType({}))
    weight_start: Starts = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for why in self._problems():
            raise self._refuse(why)
        try:
            self._check_functions()
        except ValueError as error:
            if not self.projected or "broadcast" not in str(error):
                raise
            narrow = ", ".join((self.states[0], *self.second_product))
            raise self._refuse(
                f"projected: expected functions in which {narrow} meet no other numbers: they are "
                "P numbers, the others H"
            ) from error

    def _refuse(self, why: str) -> ValueError:
        return ValueError(f"cell {self.name!r}: {why}")

    def _problems(self) -> Iterator[str]:
        for role in ("gates", "states", "saved", "weights"):
            yield from problems_of_names(role, getattr(self, role))
        for role in ("gates", "states"):
            if not getattr(self, role):
                yield f"{role}: expected at least one name, got none"
        gates = self.gates[: len(self.gates) - len(self.weights)]
        if gates + self.weights != self.gates or not gates:
            yield (
                f"weights: expected the last of {', '.join(self.gates)}, after at least one gate, "
                f"got {', '.join(self.weights)}"
            )
        given = {name: getattr(self, name) for name in IN_BOTH}
        yield from problems(given, {"gates": gates, "states": self.states, "weights": self.weights})
        functions = self.operand, self.operand_backward
        if any(
            (function is None) == bool(self.second_product + self.operand_gate)
            for function in functions
        ):
            yield (
                "second_product (or operand_gate), operand and operand_backward: expected all or "
                "none of them"
            )
        yield from conflicts(gates, {**given, "operand": self.operand})

    def _check_functions(self) -> None:
        """Call the functions once, on a few numbers, to check that they keep to the contract."""

        narrow = {self.states[0], *self.second_product} if self.projected else set()

        def some(names: tuple[str, ...]) -> Numbers:
            return tuple(np.full(2 if n in narrow else 3, 0.5, np.float32) for n in names)

        def expect(function: str, what: str, names: tuple[str, ...], got: Any, zero: bool) -> None:
            if not isinstance(got, tuple) or len(got) != len(names):
                count = f"{len(got)} members" if isinstance(got, tuple) else type(got).__name__
                raise self._refuse(
                    f"{function}: expected {what} as a tuple of {len(names)}, for "
                    f"{', '.join(names) or 'no names'}; got {count}"
                )
            for name, value in zip(names, got, strict=True):
                if not (value is None and zero) and getattr(value, "dtype", None) != np.float32:
                    raise self._refuse(
                        f"{function}: expected {what} {name} to be computed from the arguments, "
                        f"in their dtype; got {value!r}"
                    )

        with np.errstate(all="ignore"):
            gates, state = some(self.gates), some(self.states)
            new_state, saved = self.forward(gates, state)
            expect("forward", "the state", self.states, new_state, zero=False)
            expect("forward", "the saved", self.saved, saved, zero=False)
            dgates, dstate = self.backward(new_state, saved, state)
            expect("backward", "the gradient of gate", self.gates, dgates, zero=True)
            expect("backward", "the gradient of state", self.states, dstate, zero=True)
            if self.operand is not None and self.operand_backward is not None:
                operand = self.operand(gates, state)
                expect("operand", "the number", ("operand",), (operand,), zero=False)
                dgates, dstate = (
                    tuple(0 * x if d is None else d for d, x in zip(gradients, like, strict=True))
                    for gradients, like in ((dgates, gates), (dstate, state))
                )
                dgates, dstate = self.operand_backward(operand, dgates, dstate, saved, state)
                expect("operand_backward", "the gradient of gate", self.gates, dgates, zero=False)
                expect("operand_backward", "the gradient of state", self.states, dstate, zero=False)

    @cached_property
    def param_names(self) -> tuple[str, ...]:
        """The names of the parameters, in their order."""
        return tuple(self.shapes(1, 1))

    @cached_property
    def input_gates(self) -> tuple[int, ...]:
        """The positions of the gates that have a block of columns in Wx."""
        without = {*self.recurrent_only, *self.operand_gate, *self.weights}
        return tuple(g for g, name in enumerate(self.gates) if name not in without)

    @cached_property
    def recurrent_gates(self) -> tuple[int, ...]:
        """The positions of the gates that have a block of columns in Wh."""
        without = {*self.input_only, *self.operand_gate, *self.weights}
        return tuple(g for g, name in enumerate(self.gates) if name not in without)

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The names of the parameters that are weights of products: Wx, Wh, Wr."""
        return tuple(name for name in self.param_names if name in ("Wx", "Wh", "Wr"))

    @cached_property
    def bounded(self) -> tuple[bool, bool]:
        """Whether h, and the operand of the second product, stay between -1 and 1.

        h does if it cannot leave that range, whatever the gates and the other states are: found by
        computing a step at the corners of what they may be, and at some thousand points between.
        No such point need find the narrow peak that other functions than sigmoid and tanh can make:
        what uses them counts as unbounded.
        """
        used = (self.forward,) if self.operand is None else (self.forward, self.operand)
        if not all(map(_uses_sigmoids_alone, used)):
            return False, False
        names, h = self.gates + self.states, len(self.gates)
        count = len(names)
        corner = np.arange(2 ** min(count, 12))[:, None] >> np.arange(count) % 12 & 1
        spread = np.arange(1, 4097)[:, None] * np.sqrt(np.arange(2.0, count + 2)[None] + 0.5) % 1
        points = np.concatenate([2.0 * corner - 1, 2 * spread - 1])
        # far beyond where sigmoid and tanh are level, and between; h itself is in range
        values = np.sign(points) * np.expm1(9 * np.abs(points))
        values[:, h] = points[:, h]
        numbers = tuple(values.T)
        gates, state = numbers[:h], numbers[h:]
        with np.errstate(all="ignore"):
            found = [self.forward(gates, state)[0][0]]
            found += [] if self.operand is None else [self.operand(gates, state)]
            fit = [bool((np.abs(values) <= 1 + 1e-6).all()) for values in found]
        return fit[0], fit[-1]

    def shapes(
        self, input_size: int, hidden_size: int, output_size: int | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters, in their order.

        Parameters
        ----------
        input_size : int
            D, the number of features of an input.
        hidden_size : int
            H, the number of units.
        output_size : int or None, default None
            P, the number of outputs of a ``projected`` cell. None: H, as of other cells.

        Returns
        -------
        dict of str to tuple of int
            The shapes of Wx, Wh (if there is a recurrent product), b, w (if there are
            ``weights``), and Wr (if the cell is ``projected``).

        Examples
        --------
        >>> from numba_rnn.kernels import cells
        >>> cells.get("lstm").shapes(3, 5)
        {'Wx': (3, 20), 'Wh': (5, 20), 'b': (20,)}
        """
        H, P, second = hidden_size, output_size or hidden_size, len(self.second_product)
        columns, recurrent = len(self.input_gates) * H, len(self.recurrent_gates) * H
        if self.projected:
            recurrent -= second * H
        return {
            "Wx": (input_size, columns),
            **({"Wh": (P, recurrent)} if recurrent else {}),
            "b": (columns,) if self.biases == 1 else (2, columns),
            **({"w": (len(self.weights), H)} if self.weights else {}),
            **({"Wr": (H, second * P)} if self.projected else {}),
        }

    def hidden_size(self, params: Sequence[Any]) -> int:
        """Return H, the number of units.

        Parameters
        ----------
        params : sequence of arrays
            The parameters, in the order of ``shapes``.

        Returns
        -------
        int
            H.
        """
        return int(params[0].shape[1]) // len(self.input_gates)

    def output_size(self, params: Sequence[Any]) -> int:
        """Return P, the number of outputs: H, unless the cell is ``projected``.

        Parameters
        ----------
        params : sequence of arrays
            The parameters, in the order of ``shapes``.

        Returns
        -------
        int
            P.
        """
        if not self.projected:
            return self.hidden_size(params)
        return int(params[-1].shape[1]) // len(self.second_product)

    def state_sizes(self, hidden_size: int, output_size: int) -> tuple[int, ...]:
        """Return how many numbers each state has.

        Parameters
        ----------
        hidden_size : int
            H, the number of units.
        output_size : int
            P, the number of outputs.

        Returns
        -------
        tuple of int
            P for h, H for the others.
        """
        return (output_size, *(hidden_size,) * (len(self.states) - 1))

    def complete(self, params: Sequence[Any]) -> tuple[Any, Any, Any, Any, Any]:
        """Return all five parameters; those that the cell lacks are empty arrays.

        Parameters
        ----------
        params : sequence of arrays
            The parameters, in the order of ``shapes``.

        Returns
        -------
        Wx : (D, Gx H) array
            The input weights.
        Wh : (P, Gh H) array
            The recurrent weights.
        b : (Gx H,) or (2, Gx H) array
            The biases.
        w : (number of weights, H) array
            The weights.
        Wr : (H, Gs P) array
            The operand's weights: the last columns of Wh, unless the cell is ``projected``.

        Notes
        -----
        Weights in int8 (QuantisedWeight) come back as such.
        """
        Wx, *rest = params
        H = self.hidden_size(params)
        none = rest[1 if self.recurrent_gates else 0][..., :0]  # of b: Wx need not be an array
        Wh = rest.pop(0) if self.recurrent_gates else none.reshape(H, 0)
        Wr = rest[-1] if self.projected else Wh[:, Wh.shape[1] - len(self.second_product) * H :]
        return Wx, Wh, rest[0], rest[1] if self.weights else none.reshape(0, H), Wr

    def own(self, dWx: Any, dWh: Any, db: Any, dw: Any, dWr: Any = None) -> tuple[Any, ...]:
        """Return the gradients of the parameters that the cell has: the inverse of ``complete``.

        Parameters
        ----------
        dWx, dWh, db, dw, dWr : array
            The gradients of all five; dWr is read if the cell is ``projected``.

        Returns
        -------
        tuple of arrays
            The gradients, in the order of ``shapes``.
        """
        Wh, w = (dWh,) if self.recurrent_gates else (), (dw,) if self.weights else ()
        return (dWx, *Wh, db, *w, *((dWr,) if self.projected else ()))

    def widened(self, xp: Any, state: Numbers, hidden_size: int) -> Numbers:
        """Return the states with zeros behind h, which is as wide as the others then.

        Parameters
        ----------
        xp : module
            NumPy or CuPy, whose arrays they are.
        state : tuple of (..., P) and (..., H) arrays
            The states.
        hidden_size : int
            H, the number of units.

        Returns
        -------
        tuple of (..., H) arrays
            The states; of a cell that is not ``projected`` they are the same arrays.
        """
        h = state[0]
        if h.shape[-1] == hidden_size:
            return state
        behind = xp.zeros((*h.shape[:-1], hidden_size - h.shape[-1]), h.dtype)
        return (xp.concatenate([h, behind], axis=-1), *state[1:])

    def narrowed(self, state: Numbers, output_size: int) -> Numbers:
        """Return the states with the first P numbers of h: the inverse of ``widened``.

        Parameters
        ----------
        state : tuple of (..., H) arrays
            The states.
        output_size : int
            P, the number of outputs.

        Returns
        -------
        tuple of arrays
            The states; of a cell that is not ``projected`` they are the same arrays.
        """
        h = state[0]
        if h.shape[-1] == output_size:
            return state
        return (h[..., :output_size].copy(), *state[1:])

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The names of the values that ``inside`` returns."""
        return self.shown or tuple(name for name in self.saved if name not in self.weights)

    def inside(self, gates: Numbers, state: Numbers) -> Numbers:
        """Return the values inside a step, usually the gates after their activation functions.

        Parameters
        ----------
        gates : tuple
            The pre-activations.
        state : tuple
            The state before the step.

        Returns
        -------
        tuple
            The values, in the order of ``gate_names``.
        """
        if self.show is not None:
            return self.show(gates, state)
        _, saved = self.forward(gates, state)
        return tuple(saved[self.saved.index(name)] for name in self.gate_names)

    # a cell is immutable: its copies are the cell itself

    def __copy__(self) -> "Cell":
        return self

    def __deepcopy__(self, memo: Any) -> "Cell":
        return self

    def __repr__(self) -> str:
        return f"<cell {self.name}: gates {' '.join(self.gates)}; states {' '.join(self.states)}>"


_SIGMOIDS = {"sigmoid", "tanh", "hard_sigmoid", "hard_tanh"}


def _uses_sigmoids_alone(function: Any) -> bool:
    """Whether a cell's function, with those that it calls, uses no other of ``functions.py``."""
    names = set(function.__code__.co_names)
    if names & (set(functions.__all__) - _SIGMOIDS):
        return False
    called = [function.__globals__.get(name) for name in names - _SIGMOIDS]
    called += [cell.cell_contents for cell in function.__closure__ or ()]
    return all(map(_uses_sigmoids_alone, filter(isfunction, called)))
