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

and, if steps have options (``kernels/step_options.py``; ``StepFeatures`` says which):

    mask, resets (N, T); initial (states, H); recurrent_mask (N, H)
    rates, seeds, thresholds       zoneout's, a number for each state
    origin                         one number: where random masks begin
    dinitial (states, N, H)        the gradient that resets stopped, added up
    trace (T, states, N, H)        gradients of the state after every step

The caller says where the results of products are: ``side(k)`` is the text for the number of the
k-th recurrent gate (the early ones, then the late ones), ``h_grad`` the text for the gradient that
came back through h Wh. All names end in ``mark``, so that a thread may have several rows or units.
"""

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import numpy as np

from .. import step
from ..cells import Cell
from ..layout import layout
from ..step_options import NO_OPTIONS, StepFeatures


class StepCode:
    """The lines of one step of a cell.

    functions  what the lines call: the cell's functions, and those of ``kernels/step.py``
    """

    def __init__(
        self, cell: Cell, mark: str = "", features: StepFeatures = NO_OPTIONS.features
    ) -> None:
        self.cell, self.at, self.mark = cell, layout(cell, features.changes_state), mark
        self.features = features
        names = "forward", "backward", "operand", "operand_backward"
        own = {name: getattr(cell, name) for name in names}
        self.functions = {name: function for name, function in own.items() if function is not None}

    def _call(self, function: Callable[..., Any], count: int = 0, **given: str) -> str:
        """The text of a call of a function of ``kernels/step.py``.

        count  of the members of its tuples; a member for each state, if it is not given
        given  texts of arguments; the others are the lines' variables of the same names
        """
        m, count = self.mark, count or len(self.cell.states)
        names = [name for name in signature(function).parameters if name != "features"]
        sizes = tuple(None if name in _NUMBERS else count for name in names)
        texts = {"old": f"state{m}", "live": f"there{m}", **given}
        title = f"{function.__name__}_{count}"
        self.functions[title] = step.straight_line(function, self.features, sizes)
        return f"{title}({', '.join(texts.get(name, f'{name}{m}') for name in names)})"

    def _each(self, member: str) -> str:
        """The text of a tuple, a member for each state with its number in the place of {k}."""
        return _tuple(member.format(k=k) for k in range(len(self.cell.states)))

    def _options(self) -> list[str]:
        """Lines: the mask of the step, zoneout's units or rates, and the reset of the next step."""
        m, features = self.mark, self.features
        lot = f"drawn(state{m}[0], seeds[{{k}}], thresholds[{{k}}], place{m}, j{m})"
        zoneout = {
            "": f"state{m}",  # no function reads it
            "sampled": self._each(lot),
            "mean": self._each(f"rates[{{k}}] + (state{m}[0] - state{m}[0])"),
        }
        next_reset = f"t + 1 < T and resets[n{m} * T + t + 1] != 0"
        drawn = [f"place{m} = origin[0] + (t << 32) + n{m}"]
        return [
            f"there{m} = {f'mask[n{m} * T + t] != 0' if features.mask else 'True'}",
            *(drawn if features.zoneout == "sampled" else ()),
            f"zoneout{m} = {zoneout[features.zoneout]}",
            f"is_reset{m} = {next_reset if features.resets else 'False'}",
        ]

    # ---- addresses

    def offsets(self) -> list[str]:
        """Lines: where the thread's numbers lie, from t, n and j."""
        m, S, K = self.mark, len(self.cell.states), len(self.at.normalised)
        return [
            f"p{m} = n{m} * H + j{m}",
            f"x{m} = (t * N + n{m}) * {self.at.x_gates} * H + j{m}",
            f"d{m} = (t * N + n{m}) * {len(self.at.order)} * H + j{m}",
            f"out{m} = (n{m} * T + t) * H + j{m}",
            f"before{m} = t * {S} * N * H + p{m}",
            f"after{m} = before{m} + {S} * N * H",
            f"kept{m} = t * {self.at.n_stored} * N * H + p{m}",
            *([f"given{m} = (t * N + n{m}) * {K} * H + j{m}"] if K else []),
        ]

    def _members(self, array: str, start: str) -> str:
        return self._each(f"load({array}, {start}{self.mark} + {{k}} * N * H)")

    # ---- forward

    def load_inputs(self) -> list[str]:
        """Lines: what does not wait for the step's products: x Wx, the biases, the state."""
        m, cell, lines = self.mark, self.cell, []
        for g, name in enumerate(cell.gates):
            terms = self._known(g)
            if terms and name not in cell.normalised:
                lines.append(f"known_{g}{m} = {' + '.join(terms)}  # {name}")
        lines.append(f"state{m} = {self._members('states', 'before')}")
        return [*lines, f"nothing{m} = where(state{m}[0] < state{m}[0], state{m}[0], 0.0)"]

    def _known(self, g: int) -> list[str]:
        """The terms of a gate that do not wait for the step's products."""
        m, cell, terms = self.mark, self.cell, []
        if g in cell.input_gates:
            terms.append(f"load(x_proj, x{m} + {self.at.order.index(g)} * H)")
            terms.append(f"load(b, {cell.input_gates.index(g)} * H + j{m})")
        if g in cell.recurrent_gates and cell.biases == 2:
            k = len(cell.input_gates) + cell.recurrent_gates.index(g)
            terms.append(f"load(b, {k} * H + j{m})")
        if cell.gates[g] in cell.weights:
            terms.append(self._weight(cell.weights.index(cell.gates[g])))
        return terms

    def pre_activation(self, g: int, side: Callable[[int], str]) -> str:
        """The text of a gate's whole pre-activation, not normalised; it needs ``x`` of
        ``offsets``."""
        sides = [side(self._fed.index(g))] if g in self._fed else []
        return " + ".join([*self._known(g), *sides])

    @property
    def _fed(self) -> tuple[int, ...]:
        """The gates that the step's products or the operand feed; the late ones are the last."""
        return self.at.h_order + tuple(
            self.cell.gates.index(name) for name in self.cell.operand_gate
        )

    def _weight(self, k: int) -> str:
        biases = len(self.cell.input_gates) * self.cell.biases
        return f"load(b, {biases + k} * H + j{self.mark})"

    def _gates(self, side: Callable[[int], str], late: bool) -> str:
        cell, gates = self.cell, []
        fed = self._fed if late else self._fed[: self.at.early]
        for g, name in enumerate(cell.gates):
            if name in cell.normalised:
                k = self.at.normalised.index(self.at.order.index(g))
                there = late or k < len(self.at.normalised_early)
                given = f"load(normalised, given{self.mark} + {k} * H)"
                gates.append(given if there else f"nothing{self.mark}")
                continue
            terms = [f"known_{g}{self.mark}"] if self._known(g) else []
            terms += [side(fed.index(g))] if g in fed else []
            gates.append(" + ".join(terms) or f"nothing{self.mark}")
        return _tuple(gates)

    def forward(self, side: Callable[[int], str]) -> list[str]:
        """Lines: the state after the step, and the saved numbers."""
        m = self.mark
        lines = [f"new{m}, keep{m} = forward({self._gates(side, late=True)}, state{m})"]
        if not self.features.changes_state:
            return lines
        lines += [*self._options(), f"new{m}, shown{m} = {self._call(step.apply_options)}"]
        if self.features.resets:
            initial = self._each(f"load(initial, {{k}} * H + j{m})")
            begun = self._call(step.apply_reset, state=f"new{m}", initial=initial)
            lines.append(f"new{m}, _ = {begun}")
        return lines

    def scaled(self, number: str) -> str:
        """The text of a number, times the scale with which h enters products."""
        return (
            f"{number} * load(recurrent_mask, p{self.mark})"
            if self.features.recurrent_mask
            else number
        )

    def operand(self, side: Callable[[int], str]) -> list[str]:
        """Lines: the operand of the second product."""
        m = self.mark
        number = f"operand({self._gates(side, False)}, state{m})"
        if self.features.mask:  # it enters the gradient of Wh
            zero, there = f"(state{m}[0] - state{m}[0],)", f"mask[n{m} * T + t] != 0"
            chosen = self._call(step.select_live, 1, values=f"({number},)", others=zero, live=there)
            number = f"{chosen}[0][0]"
        return [f"factor{m} = {number if self.cell.operand_gate else self.scaled(number)}"]

    def store_forward(self) -> list[str]:
        """Lines: store the results of ``forward``."""
        m = self.mark
        lines = [
            f"store(new{m}[{k}], states, after{m} + {k} * N * H)"
            for k in range(len(self.cell.states))
        ]
        stored = (k for k, where in enumerate(self.at.saved_from) if where is None)
        lines += [f"store(keep{m}[{k}], saved, kept{m} + {i} * N * H)"
                  for i, k in enumerate(stored)]  # fmt: skip
        output = f"shown{m}[0]" if self.features.changes_state else f"new{m}[0]"
        return [*lines, f"store({output}, hs, out{m})"]

    # ---- backward

    def load_saved(self) -> list[str]:
        """Lines: load the saved numbers, and the state before the step."""
        terms, stored = [], 0
        for where in self.at.saved_from:
            if where is None:
                terms.append(f"load(saved, kept{self.mark} + {stored} * N * H)")
                stored += 1
            elif where[0] == "state":
                terms.append(f"load(states, after{self.mark} + {where[1]} * N * H)")
            elif where[0] == "normalised":
                terms.append(f"load(normalised, given{self.mark} + {where[1]} * H)")
            else:
                terms.append(self._weight(where[1]))
        return [
            f"keep{self.mark} = {_tuple(terms)}",
            f"state{self.mark} = {self._members('states', 'before')}",
        ]

    def load_grads(self) -> list[str]:
        """Lines: load the gradients of the state after the step, without the part through h Wh."""
        m = self.mark
        return [
            f"incoming{m} = {self._members('dstate', 'p')}",
            f"dh{m} = incoming{m}[0] + load(dhs, out{m})",
        ]

    def backward(self, h_grad: str) -> list[str]:
        """Lines: the gradients of the gates, and of the state before the step."""
        m = self.mark
        if self.features != NO_OPTIONS.features:
            return self._backward_with_options(h_grad)
        others = (f"incoming{m}[{k}]" for k in range(1, len(self.cell.states)))
        arrived = _tuple([f"dh{m}", *others])
        lines = [
            f"dh{m} = dh{m} + {h_grad}",
            f"dpre{m}, dold{m} = backward({arrived}, keep{m}, state{m})",
        ]
        zero_gates, zero_states = zero_gradients(self.cell)
        if zero_gates or zero_states:
            lines.append(f"zero{m} = where(dh{m} < dh{m}, dh{m}, 0.0)")
        return lines

    def _backward_with_options(self, h_grad: str) -> list[str]:
        m, features, S = self.mark, self.features, len(self.cell.states)
        lines = [
            f"zero{m} = where(dh{m} < dh{m}, dh{m}, 0.0)",
            *self._options(),
            f"h_grad{m} = {self.scaled(f'(zero{m} + {h_grad})')}",
        ]
        if features.resets:
            arriving = f"incoming{m} + (h_grad{m},)"
            passed = self._call(step.reset_backward, S + 1, dstate=arriving)
            lines += [
                f"passed{m}, lost{m} = {passed}",
                f"incoming{m}, h_grad{m} = passed{m}[:{S}], passed{m}[{S}]",
            ]
        reached = self._call(
            step.add_output_gradient, dstate=f"incoming{m}", dout=f"load(dhs, out{m})"
        )
        dnew = self._call(step.options_backward, dstate=f"reached{m}")
        lines += [
            f"reached{m}, _ = {reached}",
            f"dnew{m}, bypass{m} = {dnew}",
            f"dpre{m}, dold{m} = backward(dnew{m}, keep{m}, state{m})",
        ]
        no_gates, no_states = zero_gradients(self.cell)
        for name, count, no in (("dpre", len(self.cell.gates), no_gates), ("dold", S, no_states)):
            zeros = [f"zero{m}"] * count
            values = [zeros[k] if k in no else f"{name}{m}[{k}]" for k in range(count)]
            both = {"values": _tuple(values), "others": _tuple(zeros)}
            lines.append(f"{name}{m}, _ = {self._call(step.select_live, count, **both)}")
        if features.mask or features.zoneout:
            lines.append(f"dold{m}, _ = {self._call(step.add_bypass)}")
        return lines

    def dgate(self, g: int) -> str:
        """The text of a gate's gradient, after ``backward``."""
        return f"zero{self.mark}" if g in zero_gradients(self.cell)[0] else f"dpre{self.mark}[{g}]"

    def store_backward(self) -> list[str]:
        """Lines: store the results of ``backward``."""
        m, zero = self.mark, zero_gradients(self.cell)[1]
        S, lines = len(self.cell.states), []
        plain = self.features == NO_OPTIONS.features
        for k in range(S):
            dold = f"zero{m}" if plain and k in zero else f"dold{m}[{k}]"
            lines.append(f"store({dold}, dstate, p{m} + {k} * N * H)")
        if self.features.trace:
            lines += [
                f"store(reached{m}[{k}], trace, (t * {S} + {k}) * N * H + p{m})" for k in range(S)
            ]
        if self.features.resets:
            lines.append(f"if is_reset{m}:")
            for k in range(S):
                place, lost = f"dinitial, p{m} + {k} * N * H", f"lost{m}[{k}]"
                lost = f"(lost{m}[0] + lost{m}[{S}])" if k == 0 else lost
                lines.append(f"    store(load({place}) + {lost}, {place})")
        return lines + [
            f"store({self.dgate(g)}, dgates, d{m} + {self.at.order.index(g)} * H)"
            for g in range(len(self.at.order))
        ]

    def operand_backward(self, doperand: str) -> list[str]:
        """Lines: add the gradients that come back through the operand, and store both."""
        doperand = doperand if self.cell.operand_gate else self.scaled(doperand)
        m, order = self.mark, self.at.order
        S, gates = len(self.cell.states), range(len(order))
        half = _tuple(f"load(dgates, d{m} + {order.index(g)} * H)" for g in gates)
        lines = [
            f"half{m} = {half}",
            f"old{m} = {self._members('dstate', 'p')}",
            f"full{m}, old{m} = operand_backward({doperand}, half{m}, old{m}, keep{m}, state{m})",
        ]
        lines += [f"store(old{m}[{k}], dstate, p{m} + {k} * N * H)" for k in range(S)]
        lines += [
            f"store(full{m}[{g}], dgates, d{m} + {order.index(g)} * H)"
            for g in gates
            if g not in self._fed[self.at.early :]
        ]
        if not self.features.mask:
            return lines
        return [f"if mask[n{m} * T + t] != 0:", *("    " + line for line in lines)]


_NUMBERS = {"live", "is_reset", "dout", "h_grad"}  # of the arguments of ``kernels/step.py``


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
