"""The step of a cell as lines of a kernel: what a thread loads, computes and stores.

A thread has one row n of the batch and ``count`` units from j on; ``t`` is the step. The lines of
``offsets`` compute where its numbers lie in these arrays; gates are in the order of the cell's
``Layout``:

    x_proj (T, N, x_gates H)       x Wx of all steps
    b                              the biases, and behind them the cell's weights
    states (T + 1, states, N, H)   before and after every step
    saved (T, stored, N, H)        the numbers that backward needs
    hs, dhs (N, T, H)
    dgates (T, N, gates H)         gradients of the pre-activations
    dstate (states, N, H)          the gradient of the state, updated in place at every step
    normalised (T, N, K, H)        the K normalised gates (``layer_norm.py``)

and, if steps have options (``StepOptions.arrays``):

    mask, resets (N, T); initial (states, H); recurrent_mask (N, H)
    zoneout_rates, seeds, thresholds   zoneout's, a number for each state
    clip                           one number
    first_counter                  one number: where random masks begin
    dinitial (states, N, H)        the gradient that resets stopped, added up
    trace (T, states, N, H)        gradients of the state after every step

The caller says where the results of products are: ``product(k)`` is the text for the number of the
k-th recurrent gate (the early ones, then the late ones), ``h_grad`` the text for the gradient that
came back through h Wh. The names of variables end in the number of the thread's row and unit: it
may have several.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import step
from ..cells import Cell
from ..layout import layout
from ..step_options import VALUE_KINDS


class StepCode:
    """The lines of one step of a cell.

    end        of the names of variables
    functions  what the lines call: the cell's functions, and those of ``kernels/step.py``
    """

    def __init__(self, cell: Cell, features: frozenset[str] = frozenset(), number: int = 0) -> None:
        self.cell, self.layout, self.suffix = cell, layout(cell, features), f"_{number}"
        self.features = features
        names = "forward", "backward", "operand", "operand_backward"
        own = {name: getattr(cell, name) for name in names}
        self.functions = {name: function for name, function in own.items() if function is not None}

    def _call(self, function: Callable[..., Any], *arguments: str, sizes: Iterable[int]) -> str:
        """The text of a call of a function of ``kernels/step.py``.

        arguments  texts of tuples; that of the options is added
        sizes      of the tuples
        """
        sizes, S = tuple(sizes), len(self.cell.states)
        title = "_".join([function.__name__, *map(str, sizes)])
        self.functions[title] = step.specialised(function, self.features, S, sizes)
        return f"{title}({', '.join(arguments)}, options{self.suffix})"

    def _each(self, member: str) -> str:
        """The text of a tuple, a member for each state with its number in the place of {k}."""
        return _tuple(member.format(k=k) for k in range(len(self.cell.states)))

    def _options(self) -> list[str]:
        """Lines: the options of the step, as ``StepValues``."""
        i, found, seed = self.suffix, [], "seeds[{k}], thresholds[{k}]"
        for name, kind in VALUE_KINDS.items():
            of_kind = {
                "flag": f"{name}[n{i} * T + t] != 0",
                "row per state": self._each(f"load({name}, {{k}} * H + j{i})"),
                "scalar": f"{name}[0] + zero{i}",
                "scalar per state": self._each(f"{name}[{{k}}] + zero{i}"),
                "mask per state": self._each(f"drawn(zero{i}, {seed}, counter{i}, j{i})"),
            }
            found.append(of_kind[kind] if name in self.features else "None")
        counter = [f"counter{i} = first_counter[0] + (t << 32) + n{i}"]
        counter = counter if "zoneout" in self.features else []
        return [*counter, f"options{i} = StepValues({', '.join(found)})"]

    # ---- addresses

    def offsets(self) -> list[str]:
        """Lines: where the thread's numbers lie, from t, n and j."""
        i, S, K = self.suffix, len(self.cell.states), len(self.layout.normalised)
        return [
            f"unit{i} = n{i} * H + j{i}",
            f"x_proj_at{i} = (t * N + n{i}) * {self.layout.x_gates} * H + j{i}",
            f"dgates_at{i} = (t * N + n{i}) * {len(self.layout.order)} * H + j{i}",
            f"hs_at{i} = (n{i} * T + t) * H + j{i}",
            f"old_at{i} = t * {S} * N * H + unit{i}",
            f"new_at{i} = old_at{i} + {S} * N * H",
            f"saved_at{i} = t * {self.layout.n_stored} * N * H + unit{i}",
            *([f"normalised_at{i} = (t * N + n{i}) * {K} * H + j{i}"] if K else []),
        ]

    def _members(self, array: str, start: str) -> str:
        return self._each(f"load({array}, {start}{self.suffix} + {{k}} * N * H)")

    # ---- forward

    def load_inputs(self) -> list[str]:
        """Lines: what does not wait for the step's products: x Wx, the biases, the state."""
        i, cell, lines = self.suffix, self.cell, []
        for g, name in enumerate(cell.gates):
            terms = self._first_terms(g)
            if terms and name not in cell.normalised:
                lines.append(f"gate_{g}{i} = {' + '.join(terms)}  # {name}")
        lines.append(f"old{i} = {self._members('states', 'old_at')}")
        return [*lines, f"zero{i} = where(old{i}[0] < old{i}[0], old{i}[0], 0.0)"]  # of its type

    def _first_terms(self, g: int) -> list[str]:
        """The terms of a gate that do not wait for the step's products."""
        i, cell, terms = self.suffix, self.cell, []
        if g in cell.input_gates:
            terms.append(f"load(x_proj, x_proj_at{i} + {self.layout.order.index(g)} * H)")
            terms.append(f"load(b, {cell.input_gates.index(g)} * H + j{i})")
        if g in cell.recurrent_gates and cell.biases == 2:
            k = len(cell.input_gates) + cell.recurrent_gates.index(g)
            terms.append(f"load(b, {k} * H + j{i})")
        if cell.gates[g] in cell.weights:
            terms.append(self._weight(cell.weights.index(cell.gates[g])))
        return terms

    def pre_activation(self, g: int, product: Callable[[int], str]) -> str:
        """The text of a gate's whole pre-activation, not normalised; it needs ``x_proj_at`` of
        ``offsets``."""
        products = [product(self._fed.index(g))] if g in self._fed else []
        return " + ".join([*self._first_terms(g), *products])

    @property
    def _fed(self) -> tuple[int, ...]:
        """The gates that the step's products or the operand feed; the late ones are the last."""
        return self.layout.h_order + tuple(
            self.cell.gates.index(name) for name in self.cell.operand_gate
        )

    def _weight(self, k: int) -> str:
        biases = len(self.cell.input_gates) * self.cell.biases
        return f"load(b, {biases + k} * H + j{self.suffix})"

    def _gates(self, product: Callable[[int], str], late: bool) -> str:
        i, cell, gates = self.suffix, self.cell, []
        fed = self._fed if late else self._fed[: self.layout.early]
        for g, name in enumerate(cell.gates):
            terms = [f"gate_{g}{i}"] if self._first_terms(g) else []
            terms += [product(fed.index(g))] if g in fed else []
            if name in cell.normalised:
                k = self.layout.normalised.index(self.layout.order.index(g))
                known = late or k < len(self.layout.normalised_early)
                terms = [f"load(normalised, normalised_at{i} + {k} * H)"] if known else []
            gates.append(" + ".join(terms) or f"zero{i}")
        return _tuple(gates)

    def forward(self, product: Callable[[int], str]) -> list[str]:
        """Lines: the state after the step, and the saved numbers."""
        i, S = self.suffix, len(self.cell.states)
        ended = self._call(step.end_step, f"new{i}", f"old{i}", sizes=(S, S))
        return [
            f"new{i}, saved{i} = forward({self._gates(product, late=True)}, old{i})",
            *self._options(),
            f"new{i}, out{i}, extra{i} = {ended}",
        ]

    def times_recurrent_mask(self, number: str) -> str:
        """The text of a number, times the factor with which h enters products."""
        used = "recurrent_mask" in self.features
        return f"{number} * load(recurrent_mask, unit{self.suffix})" if used else number

    def operand(self, product: Callable[[int], str]) -> list[str]:
        """Lines: the operand of the second product."""
        i = self.suffix
        number = f"(operand({self._gates(product, False)}, old{i}),)"
        live = self._call(step.select_live, number, f"(zero{i},)", sizes=(1, 1))
        number = f"{live}[0]"  # it enters the gradient of Wh
        number = number if self.cell.operand_gate else self.times_recurrent_mask(number)
        return [*self._options(), f"operand{i} = {number}"]

    def store_forward(self) -> list[str]:
        """Lines: store the results of ``forward``."""
        i = self.suffix
        lines = [
            f"store(new{i}[{k}], states, new_at{i} + {k} * N * H)"
            for k in range(len(self.cell.states))
        ]
        stored = [f"saved{i}[{k}]" for k, at in enumerate(self.layout.saved_from) if at is None]
        stored += [f"extra{i}[{k}]" for k in range(self.layout.extra)]
        lines += [
            f"store({number}, saved, saved_at{i} + {k} * N * H)" for k, number in enumerate(stored)
        ]
        return [*lines, f"store(out{i}[0], hs, hs_at{i})"]

    # ---- backward

    def load_saved(self) -> list[str]:
        """Lines: load the saved numbers, and the state before the step."""
        i, terms = self.suffix, []
        stored = (f"load(saved, saved_at{i} + {k} * N * H)" for k in range(self.layout.n_stored))
        for where in self.layout.saved_from:
            if where is None:
                terms.append(next(stored))
            elif where[0] == "state":
                terms.append(f"load(states, new_at{i} + {where[1]} * N * H)")
            elif where[0] == "normalised":
                terms.append(f"load(normalised, normalised_at{i} + {where[1]} * H)")
            else:
                terms.append(self._weight(where[1]))
        return [
            f"saved{i}, extra{i} = {_tuple(terms)}, {_tuple(stored)}",
            f"old{i} = {self._members('states', 'old_at')}",
            f"zero{i} = where(old{i}[0] < old{i}[0], old{i}[0], 0.0)",
        ]

    def load_grads(self) -> list[str]:
        """Lines: load the gradients of the state after the step, without the part through h Wh."""
        i = self.suffix
        return [
            f"dstate{i} = {self._members('dstate', 'unit')}",
            f"dout{i} = load(dhs, hs_at{i})",
        ]

    def backward(self, h_grad: str) -> list[str]:
        """Lines: the gradients of the gates, and of the state before the step."""
        i, S, gates = self.suffix, len(self.cell.states), len(self.cell.gates)
        begun = self._call(
            step.begin_backward, f"dstate{i}", f"({self.times_recurrent_mask(h_grad)},)",
            f"(dout{i},)", f"extra{i}", sizes=(S, 1, 1, self.layout.extra),
        )  # fmt: skip
        no_gates, no_states = zero_gradients(self.cell)
        dgates = _tuple(f"zero{i}" if g in no_gates else f"dgates{i}[{g}]" for g in range(gates))
        dold = _tuple(f"zero{i}" if k in no_states else f"dold{i}[{k}]" for k in range(S))
        sizes = gates, S, self._skips
        ended = self._call(step.end_backward, dgates, dold, f"dskip{i}", sizes=sizes)
        return [
            *self._options(),
            f"dnew{i}, dskip{i}, dinitial{i}, dstate{i} = {begun}",
            f"dgates{i}, dold{i} = backward(dnew{i}, saved{i}, old{i})",
            f"dgates{i}, dold{i} = {ended}",
        ]

    @property
    def _skips(self) -> int:
        """How many gradients of the old state skip the cell."""
        S, one = len(self.cell.states), np.float32(1)
        options = step.step_values(self.features, S, lambda name, kind: one)
        return len(step.options_backward((one,) * S, (one,) * self.layout.extra, options)[1])

    def store_backward(self) -> list[str]:
        """Lines: store the results of ``backward``."""
        i, S = self.suffix, len(self.cell.states)
        lines = [f"store(dold{i}[{k}], dstate, unit{i} + {k} * N * H)" for k in range(S)]
        if "trace" in self.features:
            lines += [
                f"store(dstate{i}[{k}], trace, (t * {S} + {k}) * N * H + unit{i})" for k in range(S)
            ]
        if "resets" in self.features:
            lines.append(f"if options{i}.resets:")
            for k in range(S):
                place = f"dinitial, unit{i} + {k} * N * H"
                lines.append(f"    store(load({place}) + dinitial{i}[{k}], {place})")
        return lines + [
            f"store(dgates{i}[{g}], dgates, dgates_at{i} + {self.layout.order.index(g)} * H)"
            for g in range(len(self.layout.order))
        ]

    def operand_backward(self, doperand: str) -> list[str]:
        """Lines: add the gradients that come back through the operand, and store both."""
        doperand = doperand if self.cell.operand_gate else self.times_recurrent_mask(doperand)
        i, order = self.suffix, self.layout.order
        S, gates = len(self.cell.states), range(len(order))
        half = _tuple(f"load(dgates, dgates_at{i} + {order.index(g)} * H)" for g in gates)
        both = f"{doperand}, dgates{i}, dold{i}, saved{i}, old{i}"
        lines = [
            f"dgates{i}, dold{i} = {half}, {self._members('dstate', 'unit')}",
            f"dgates{i}, dold{i} = operand_backward({both})",
        ]
        lines += [f"store(dold{i}[{k}], dstate, unit{i} + {k} * N * H)" for k in range(S)]
        lines += [
            f"store(dgates{i}[{g}], dgates, dgates_at{i} + {order.index(g)} * H)"
            for g in gates
            if g not in self._fed[self.layout.early :]
        ]
        if "mask" not in self.features:
            return lines
        return [f"if mask[n{i} * T + t] != 0:", *("    " + line for line in lines)]


def _tuple(members: Iterable[str]) -> str:
    return f"({''.join(f'{member}, ' for member in members)})"


def zero_gradients(cell: Cell) -> tuple[set[int], set[int]]:
    """The gradients that Cell.backward returns as None: those of gates, those of states."""

    def some(names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(np.full(1, 0.5, np.float32) for _ in names)

    dgates, dold = cell.backward(some(cell.states), some(cell.saved), some(cell.states))
    return (
        {k for k, d in enumerate(dgates) if d is None},
        {k for k, d in enumerate(dold) if d is None},
    )
