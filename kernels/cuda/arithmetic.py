"""The step of a cell as lines of a kernel: what a thread loads, computes and stores.

A thread has one row n of the batch and ``count`` units from j on; ``t`` is the step. The lines of
``here`` compute where its numbers lie in these arrays; gates are in the order of the cell's
``Layout``:

    x_side (T, N, x_gates H)       x Wx of all steps
    b                              the biases, and behind them the cell's weights
    states (T + 1, states, N, H)   before and after every step
    saved (T, stored, N, H)        the numbers that backward needs
    hs, dhs (N, T, H)
    dgates (T, N, gates H)         gradients of the pre-activations
    dstate (states, N, H)          the gradient of the state, updated in place at every step
    normalised (T, N, K, H)        the K normalised gates (``normalising.py``)

and, if steps have options (``kernels/step_options.py``; ``StepFeatures`` says which):

    mask, resets (N, T); initial (states, H); scale (N, H)
    rates, seeds, thresholds       zoneout's, a number for each state
    origin                         one number: where random masks begin
    dinitial (states, N, H)        the gradient that resets stopped, added up
    trace (T, states, N, H)        gradients of the state after every step

The caller says where the results of products are: ``side(k)`` is the text for the number of the
k-th recurrent gate (the early ones, then the late ones), ``through`` the text for the gradient that
came back through h Wh. All names end in ``mark``, so that a thread may have several rows or units.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import step
from ..cells import Cell
from ..layout import layout
from ..step_options import NO_OPTIONS, StepFeatures


def arrays_of(features: StepFeatures, backward: bool) -> tuple[str, ...]:
    """The names of the arrays that the lines of these options read and write."""
    drawn = {"": (), "sampled": ("seeds", "thresholds", "origin"), "mean": ("rates",)}
    return (
        *(("mask",) if features.mask else ()),
        *(("resets", "dinitial" if backward else "initial") if features.resets else ()),
        *(("scale",) if features.scale else ()),
        *drawn[features.zoneout],
        *(("trace",) if features.trace and backward else ()),
    )


class Step:
    """The lines of one step of a cell.

    functions  the functions of ``kernels/step.py`` that the lines call, by their names in the lines
    """

    def __init__(
        self, cell: Cell, mark: str = "", features: StepFeatures = NO_OPTIONS.features
    ) -> None:
        self.cell, self.at, self.mark = cell, layout(cell, features.changes_state), mark
        self.features = features
        self.functions: dict[str, Callable[..., Any]] = {}

    def _call(self, function: Callable[..., Any], **given: str | Sequence[str]) -> str:
        """The text of a call of a function of ``kernels/step.py``, with texts for its arguments."""
        sizes = tuple(None if isinstance(value, str) else len(value) for value in given.values())
        name = "_".join([function.__name__, *(str(size) for size in sizes if size is not None)])
        self.functions[name] = step.straight_line(function, self.features, sizes)
        texts = (v if isinstance(v, str) else f"({', '.join(v)},)" for v in given.values())
        return f"{name}({', '.join(texts)})"

    def _each(self, member: str, count: int = 0) -> list[str]:
        """A text for each state, with its number in the place of {k}."""
        return [member.format(k=k) for k in range(count or len(self.cell.states))]

    def _flags(self) -> list[str]:
        """Lines: the mask of the step, zoneout's units or rates, and the reset of the next step."""
        m, features, lines = self.mark, self.features, []
        if features.mask:
            lines.append(f"there{m} = mask[n{m} * T + t] != 0")
        if features.zoneout == "sampled":
            lot = f"drawn(state{m}[0], seeds[{{k}}], thresholds[{{k}}], place{m}, j{m})"
            lines.append(f"place{m} = origin[0] + (t << 32) + n{m}")
            lines.append(f"zoneout{m} = ({', '.join(self._each(lot))},)")
        elif features.zoneout == "mean":
            rates = self._each(f"rates[{{k}}] + (state{m}[0] - state{m}[0])")
            lines.append(f"zoneout{m} = ({', '.join(rates)},)")
        if features.resets:
            lines.append(f"is_reset{m} = t + 1 < T and resets[n{m} * T + t + 1] != 0")
        return lines

    def _given(self, feature: str, name: str) -> str:
        """An argument of a function of ``kernels/step.py``; 0 without that option."""
        return f"{name}{self.mark}" if getattr(self.features, feature) else "0"

    # ---- addresses

    def here(self) -> list[str]:
        """Lines: where the thread's numbers lie, from t, n and j."""
        m, S, K = self.mark, len(self.cell.states), len(self.at.normalised)
        return [
            f"p{m} = n{m} * H + j{m}",
            f"x{m} = (t * N + n{m}) * {self.at.x_gates} * H + j{m}",
            f"d{m} = (t * N + n{m}) * {len(self.at.order)} * H + j{m}",
            f"out{m} = (n{m} * T + t) * H + j{m}",
            f"before{m} = t * {S} * N * H + p{m}",
            f"after{m} = before{m} + {S} * N * H",
            f"kept{m} = t * {self.at.stored} * N * H + p{m}",
            *([f"given{m} = (t * N + n{m}) * {K} * H + j{m}"] if K else []),
        ]

    def _members(self, array: str, start: str, count: int) -> str:
        loads = (f"load({array}, {start}{self.mark} + {k} * N * H), " for k in range(count))
        return f"({''.join(loads)})"

    # ---- forward

    def known(self) -> list[str]:
        """Lines: what does not wait for the step's products: x Wx, the biases, the state."""
        m, cell, lines = self.mark, self.cell, []
        S = len(cell.states)
        for g, name in enumerate(cell.gates):
            terms = self._known(g)
            if terms and name not in cell.normalised:
                lines.append(f"known_{g}{m} = {' + '.join(terms)}  # {name}")
        lines.append(f"state{m} = {self._members('states', 'before', S)}")
        return [*lines, f"nothing{m} = where(state{m}[0] < state{m}[0], state{m}[0], 0.0)"]

    def _known(self, g: int) -> list[str]:
        """The terms of a gate that do not wait for the step's products."""
        m, cell, terms = self.mark, self.cell, []
        if g in cell.input_gates:
            terms.append(f"load(x_side, x{m} + {self.at.order.index(g)} * H)")
            terms.append(f"load(b, {cell.input_gates.index(g)} * H + j{m})")
        if g in cell.recurrent_gates and cell.biases == 2:
            k = len(cell.input_gates) + cell.recurrent_gates.index(g)
            terms.append(f"load(b, {k} * H + j{m})")
        if cell.gates[g] in cell.weights:
            terms.append(self._weight(cell.weights.index(cell.gates[g])))
        return terms

    def pre_activation(self, g: int, side: Callable[[int], str]) -> str:
        """The text of a gate's whole pre-activation, not normalised; it needs ``x`` of ``here``."""
        sides = [side(self._fed.index(g))] if g in self._fed else []
        return " + ".join([*self._known(g), *sides])

    @property
    def _fed(self) -> tuple[int, ...]:
        """The gates that the step's products or the operand feed; the late ones are the last."""
        return self.at.h_order + tuple(self.cell.gates.index(name) for name in self.cell.fed)

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
        return f"({', '.join(gates)},)"

    def forward(self, side: Callable[[int], str]) -> list[str]:
        """Lines: the state after the step, and the saved numbers."""
        m = self.mark
        cell, gates = self.cell, self._gates(side, late=True)
        lines = [f"new{m}, keep{m} = forward({gates}, state{m})"]
        if not self.features.changes_state:
            return lines
        S = len(cell.states)
        zoneout = self._each(f"zoneout{m}[{{k}}]") if self.features.zoneout else "0"
        new, old = self._each(f"new{m}[{{k}}]"), self._each(f"state{m}[{{k}}]")
        live = self._given("mask", "there")
        settled = self._call(step.apply_options, new=new, old=old, live=live, zoneout=zoneout)
        lines += [*self._flags(), f"new{m}, shown{m} = {settled}"]
        if self.features.resets:
            initial = self._each(f"load(initial, {{k}} * H + j{m})", S)
            after = self._call(
                step.apply_reset,
                state=self._each(f"new{m}[{{k}}]"),
                is_reset=f"is_reset{m}",
                initial=initial,
            )
            lines.append(f"new{m} = {after}[0]")
        return lines

    def scaled(self, number: str) -> str:
        """The text of a number, times the scale with which h enters products."""
        return f"{number} * load(scale, p{self.mark})" if self.features.scale else number

    def operand(self, side: Callable[[int], str]) -> list[str]:
        """Lines: the operand of the second product."""
        m = self.mark
        number = f"operand({self._gates(side, False)}, state{m})"
        if self.features.mask:  # it enters the gradient of Wh
            zero, there = [f"state{m}[0] - state{m}[0]"], f"mask[n{m} * T + t] != 0"
            number = (
                f"{self._call(step.select_live, values=[number], others=zero, live=there)}[0][0]"
            )
        return [f"factor{m} = {number if self.cell.fed else self.scaled(number)}"]

    def store_forward(self) -> list[str]:
        """Lines: store the results of ``forward``."""
        m = self.mark
        lines = [
            f"store(new{m}[{k}], states, after{m} + {k} * N * H)"
            for k in range(len(self.cell.states))
        ]
        stored = (k for k, where in enumerate(self.at.found) if where is None)
        lines += [f"store(keep{m}[{k}], saved, kept{m} + {i} * N * H)"
                  for i, k in enumerate(stored)]  # fmt: skip
        output = f"shown{m}[0]" if self.features.changes_state else f"new{m}[0]"
        return [*lines, f"store({output}, hs, out{m})"]

    # ---- backward

    def found(self) -> list[str]:
        """Lines: load the saved numbers, and the state before the step."""
        terms, stored = [], 0
        for where in self.at.found:
            if where is None:
                terms.append(f"load(saved, kept{self.mark} + {stored} * N * H), ")
                stored += 1
            elif where[0] == "state":
                terms.append(f"load(states, after{self.mark} + {where[1]} * N * H), ")
            elif where[0] == "normalised":
                terms.append(f"load(normalised, given{self.mark} + {where[1]} * H), ")
            else:
                terms.append(f"{self._weight(where[1])}, ")
        S = len(self.cell.states)
        return [
            f"keep{self.mark} = ({''.join(terms)})",
            f"state{self.mark} = {self._members('states', 'before', S)}",
        ]

    def arriving(self) -> list[str]:
        """Lines: load the gradients of the state after the step, without the part through h Wh."""
        m, S = self.mark, len(self.cell.states)
        return [
            f"incoming{m} = {self._members('dstate', 'p', S)}",
            f"dh{m} = incoming{m}[0] + load(dhs, out{m})",
        ]

    def backward(self, through: str) -> list[str]:
        """Lines: the gradients of the gates, and of the state before the step."""
        m = self.mark
        if self.features != NO_OPTIONS.features:
            return self._backward_with_options(through)
        others = "".join(f"incoming{m}[{k}], " for k in range(1, len(self.cell.states)))
        lines = [
            f"dh{m} = dh{m} + {through}",
            f"dpre{m}, dold{m} = backward((dh{m}, {others}), keep{m}, state{m})",
        ]
        zero_gates, zero_states = zero_gradients(self.cell)
        if zero_gates or zero_states:
            lines.append(f"zero{m} = where(dh{m} < dh{m}, dh{m}, 0.0)")
        return lines

    def _backward_with_options(self, through: str) -> list[str]:
        m, features, S = self.mark, self.features, len(self.cell.states)
        live = self._given("mask", "there")
        arriving = [*self._each(f"incoming{m}[{{k}}]"), f"through{m}"]
        lines = [
            f"zero{m} = where(dh{m} < dh{m}, dh{m}, 0.0)",
            *self._flags(),
            f"through{m} = {self.scaled(f'(zero{m} + {through})')}",
        ]
        if features.resets:
            kept = self._call(step.reset_backward, dstate=arriving, is_reset=f"is_reset{m}")
            lines.append(f"kept{m}_, lost{m} = {kept}")
            arriving = self._each(f"kept{m}_[{{k}}]", S + 1)
        reached = self._call(
            step.add_output_gradient,
            dout=f"load(dhs, out{m})",
            through=arriving[S],
            dstate=arriving[:S],
            live=live,
        )
        zoneout = self._each(f"zoneout{m}[{{k}}]") if features.zoneout else "0"
        dnew = self._call(
            step.options_backward,
            dstate=self._each(f"reached{m}[{{k}}]"),
            live=live,
            zoneout=zoneout,
        )
        lines += [
            f"reached{m} = {reached}[0]",
            f"dnew{m}, bypass{m} = {dnew}",
            f"dpre{m}, dold{m} = backward(dnew{m}, keep{m}, state{m})",
        ]
        no_gates, no_states = zero_gradients(self.cell)
        G, zero = len(self.cell.gates), f"zero{m}"
        dpre = [zero if g in no_gates else f"dpre{m}[{g}]" for g in range(G)]
        dold = [zero if k in no_states else f"dold{m}[{k}]" for k in range(S)]
        for name, values in (("dpre", dpre), ("dold", dold)):
            others = [zero] * len(values)
            chosen = self._call(step.select_live, values=values, others=others, live=live)
            lines.append(f"{name}{m} = {chosen}[0]")
        if features.mask or features.zoneout:
            both = self._call(
                step.add_bypass,
                dold=self._each(f"dold{m}[{{k}}]"),
                bypass=self._each(f"bypass{m}[{{k}}]"),
            )
            lines.append(f"dold{m} = {both}[0]")
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
        doperand = doperand if self.cell.fed else self.scaled(doperand)
        m, order = self.mark, self.at.order
        gates = (f"load(dgates, d{m} + {order.index(g)} * H), " for g in range(len(order)))
        S = len(self.cell.states)
        lines = [
            f"half{m} = ({''.join(gates)})",
            f"old{m} = {self._members('dstate', 'p', S)}",
            f"full{m}, old{m} = operand_backward({doperand}, half{m}, old{m}, keep{m}, state{m})",
        ]
        lines += [f"store(old{m}[{k}], dstate, p{m} + {k} * N * H)" for k in range(S)]
        lines += [
            f"store(full{m}[{g}], dgates, d{m} + {order.index(g)} * H)"
            for g in range(len(order))
            if g not in self._fed[self.at.early :]
        ]
        if not self.features.mask:
            return lines
        return [f"if mask[n{m} * T + t] != 0:", *("    " + line for line in lines)]


def zero_gradients(cell: Cell) -> tuple[set[int], set[int]]:
    """The gradients that Cell.backward returns as None: those of gates, those of states."""

    def some(names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(np.full(1, 0.5, np.float32) for _ in names)

    dgates, dold = cell.backward(some(cell.states), some(cell.saved), some(cell.states))
    return (
        {k for k, d in enumerate(dgates) if d is None},
        {k for k, d in enumerate(dold) if d is None},
    )
