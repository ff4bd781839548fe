"""A cell's step as lines of a kernel: what a thread loads, computes and stores.

A thread has one row n of the batch and ``count`` units from j on; ``t`` is the step. ``here`` says
where its numbers lie in these arrays, the gates in the order of the cell's ``Layout``:

    x_side (T, N, x_gates H)       x Wx of all steps
    b                              the biases, and behind them the cell's weights
    states (T + 1, states, N, H)   before and after every step
    saved (T, stored, N, H)        what backward finds again
    hs, dhs (N, T, H)
    dgates (T, N, gates H)         gradients of the pre-activations
    dstate (states, N, H)          on the way from step to step, in place
    normalised (T, N, K, H)        what the K normalised gates became (``normalising.py``)

and, where steps have options (``kernels/step_options.py``; ``Form`` says which):

    mask, resets (N, T); initial (states, H); scale (N, H)
    shares, seeds, thresholds      of zoneout, a number for each state
    dinitial (states, N, H)        what resets stopped, added up
    trace (T, states, N, H)        gradients of the state after every step

What a product gives is named by who asks for the lines: ``side(k)`` is the text for the number of
the k-th recurrent gate (the early ones, then the late ones), ``through`` for what comes back
through h Wh. All names end in ``mark``, so that a thread may have several rows or units.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..layout import layout
from ..step_options import NO_OPTIONS, StepOptions


class Form(NamedTuple):
    """What of the steps decides the lines."""

    particular: bool = False
    mask: bool = False
    resets: bool = False
    scale: bool = False
    zoneout: str = ""  # "drawn", "expected"
    trace: bool = False

    @classmethod
    def of(cls, steps: StepOptions) -> "Form":
        """The form of these steps."""
        zoneout = ("expected" if steps.seed is None else "drawn") if any(steps.zoneout) else ""
        given = steps.mask is not None, steps.resets is not None, steps.scale is not None
        return cls(steps is not NO_OPTIONS, *given, zoneout, steps.trace)

    def takes(self, backward: bool) -> tuple[str, ...]:
        """The arrays that its lines read and write, beside those of plain steps."""
        drawn = {"": (), "drawn": ("seeds", "thresholds"), "expected": ("shares",)}
        return (
            *(("mask",) if self.mask else ()),
            *(("resets", "dinitial" if backward else "initial") if self.resets else ()),
            *(("scale",) if self.scale else ()),
            *drawn[self.zoneout],
            *(("trace",) if self.trace and backward else ()),
        )


class Step:
    """The lines of one step of a cell."""

    def __init__(self, cell: Cell, mark: str = "", form: Form = Form()) -> None:  # noqa: B008
        self.cell, self.at, self.mark = cell, layout(cell, form.particular), mark
        self.form = form

    # ---- where

    def here(self) -> list[str]:
        """Where the thread's numbers lie, from t, n and j."""
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
        """What is there before the step's products: the input's side, the biases, the state."""
        m, cell, lines = self.mark, self.cell, []
        S = len(cell.states)
        for g, name in enumerate(cell.gates):
            terms = self._known(g)
            if terms and name not in cell.normalised:
                lines.append(f"known_{g}{m} = {' + '.join(terms)}  # {name}")
        lines.append(f"state{m} = {self._members('states', 'before', S)}")
        return [*lines, f"nothing{m} = where(state{m}[0] < state{m}[0], state{m}[0], 0.0)"]

    def _known(self, g: int) -> list[str]:
        """What of a gate is there before the step's products, to be added up."""
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
        """All of a gate, before it is normalised; it needs ``x`` of ``here``."""
        sides = [side(self._fed.index(g))] if g in self._fed else []
        return " + ".join([*self._known(g), *sides])

    @property
    def _fed(self) -> tuple[int, ...]:
        """The gates that products feed, or the operand itself: the late ones are the last."""
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
        """The state after the step, and what is saved."""
        m = self.mark
        gates = self._gates(side, late=True)
        lines = [f"new{m}, keep{m} = forward({gates}, state{m})"]
        return lines + (self._settle() if self.form.particular else [])

    def _settle(self) -> list[str]:
        """From what the cell made to the state after the step, and the output."""
        m, form = self.mark, self.form
        old, new, initial = f"state{m}[{{k}}]", f"new{m}[{{k}}]", f"load(initial, {{k}} * H + j{m})"
        lines = []
        if form.zoneout == "drawn":
            lines.append(f"new{m} = {self._states(f'where({self._lot()}, {old}, {new})')}")
        elif form.zoneout == "expected":
            lines.append(f"new{m} = {self._states(f'{new} + ({old} - {new}) * shares[{{k}}]')}")
        lines.append(f"out_{m} = new{m}[0]")
        if form.mask:
            lines += [
                f"if mask[n{m} * T + t] == 0:",
                f"    new{m} = state{m}",
                f"    out_{m} = nothing{m}",
            ]
        if form.resets:
            lines += [f"if {self._reset_after()}:", f"    new{m} = {self._states(initial)}"]
        return lines

    def _states(self, member: str) -> str:
        """A tuple with a member for each state, whose number is {k}."""
        members = (member.format(k=k) for k in range(len(self.cell.states)))
        return f"({', '.join(members)},)"

    def _lot(self) -> str:
        m = self.mark
        return f"drawn(state{m}[0], seeds[{{k}}], thresholds[{{k}}], t, n{m}, j{m})"

    def _reset_after(self) -> str:
        return f"t + 1 < T and resets[n{self.mark} * T + t + 1] != 0"

    def scaled(self, number: str) -> str:
        """The number, times what h is scaled by on its way into products."""
        return f"{number} * load(scale, p{self.mark})" if self.form.scale else number

    def operand(self, side: Callable[[int], str]) -> list[str]:
        """What the second product multiplies."""
        m = self.mark
        number = f"operand({self._gates(side, False)}, state{m})"
        if self.form.mask:  # 0 where a step is left out: it takes part in the gradient of Wh
            zero = f"state{m}[0] - state{m}[0]"
            number = f"({number} if mask[n{m} * T + t] != 0 else {zero})"
        return [f"factor{m} = {number if self.cell.fed else self.scaled(number)}"]

    def store_forward(self) -> list[str]:
        """Write them down."""
        m = self.mark
        lines = [
            f"store(new{m}[{k}], states, after{m} + {k} * N * H)"
            for k in range(len(self.cell.states))
        ]
        stored = (k for k, where in enumerate(self.at.found) if where is None)
        lines += [f"store(keep{m}[{k}], saved, kept{m} + {i} * N * H)"
                  for i, k in enumerate(stored)]  # fmt: skip
        output = f"out_{m}" if self.form.particular else f"new{m}[0]"
        return [*lines, f"store({output}, hs, out{m})"]

    # ---- backward

    def found(self) -> list[str]:
        """What forward left: keep, and the state before the step."""
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
        """The gradients of the state after the step, but for what comes through h Wh."""
        m, S = self.mark, len(self.cell.states)
        return [
            f"incoming{m} = {self._members('dstate', 'p', S)}",
            f"dh{m} = incoming{m}[0] + load(dhs, out{m})",
        ]

    def backward(self, through: str) -> list[str]:
        """The gradients of the gates, and of the state before the step."""
        m = self.mark
        if self.form.particular:
            return self._backward_particular(through)
        others = "".join(f"incoming{m}[{k}], " for k in range(1, len(self.cell.states)))
        lines = [
            f"dh{m} = dh{m} + {through}",
            f"dpre{m}, dold{m} = backward((dh{m}, {others}), keep{m}, state{m})",
        ]
        zero_gates, zero_states = zero_gradients(self.cell)
        if zero_gates or zero_states:
            lines.append(f"zero{m} = where(dh{m} < dh{m}, dh{m}, 0.0)")
        return lines

    def _backward_particular(self, through: str) -> list[str]:
        m, form = self.mark, self.form
        others = "".join(f"incoming{m}[{k}], " for k in range(1, len(self.cell.states)))
        dnew = f"dnew{m}[{{k}}]"
        lines = [
            f"zero{m} = where(dh{m} < dh{m}, dh{m}, 0.0)",
            f"total{m} = (incoming{m}[0] + {self.scaled(f'({through})')}, {others})",
            f"lost{m} = total{m}",
        ]
        if form.resets:
            lines += [f"if {self._reset_after()}:", f"    total{m} = {self._states(f'zero{m}')}"]
        lines += [
            f"held{m} = {self._states(f'zero{m}')}",
            f"dnew{m} = {self._states(f'total{m}[{{k}}]')}",
            f"more{m} = load(dhs, out{m})",
        ]
        if form.mask:
            lines += [
                f"if mask[n{m} * T + t] == 0:",
                f"    held{m}, dnew{m}, more{m} = total{m}, held{m}, zero{m}",
            ]
        first = f"dnew{m}[0] + more{m}, " + "".join(
            f"dnew{m}[{k}], " for k in range(1, len(self.cell.states))
        )
        lines += [
            f"dnew{m} = ({first})",
            f"reached{m} = {self._states(f'{dnew} + held{m}[{{k}}]')}",
        ]
        if form.zoneout == "drawn":
            share = f"where({self._lot()}, {dnew}, zero{m})"
        elif form.zoneout == "expected":
            share = f"{dnew} * shares[{{k}}]"
        if form.zoneout:
            lines += [
                f"share{m} = {self._states(share)}",
                f"held{m} = {self._states(f'held{m}[{{k}}] + share{m}[{{k}}]')}",
                f"dnew{m} = {self._states(f'{dnew} - share{m}[{{k}}]')}",
            ]
        return [*lines, f"dpre{m}, dold{m} = backward(dnew{m}, keep{m}, state{m})"]

    def dgate(self, g: int) -> str:
        """The gradient of a gate, after ``backward``."""
        zero = g in zero_gradients(self.cell)[0]
        return f"zero{self.mark}" if zero else self._only_live(f"dpre{self.mark}[{g}]")

    def _only_live(self, value: str) -> str:
        """0 where a step is left out: the cell's derivative may be infinite there."""
        m = self.mark
        return f"({value} if mask[n{m} * T + t] != 0 else zero{m})" if self.form.mask else value

    def store_backward(self) -> list[str]:
        """Write them down."""
        m, zero = self.mark, zero_gradients(self.cell)[1]
        S, lines = len(self.cell.states), []
        for k in range(S):
            through_cell = f"zero{m}" if k in zero else self._only_live(f"dold{m}[{k}]")
            past = f" + held{m}[{k}]" if self.form.particular else ""
            lines.append(f"store({through_cell}{past}, dstate, p{m} + {k} * N * H)")
        if self.form.trace:
            lines += [
                f"store(reached{m}[{k}], trace, (t * {S} + {k}) * N * H + p{m})" for k in range(S)
            ]
        if self.form.resets:
            lines.append(f"if {self._reset_after()}:")
            for k in range(S):
                place = f"dinitial, p{m} + {k} * N * H"
                lines.append(f"    store(load({place}) + lost{m}[{k}], {place})")
        return lines + [
            f"store({self.dgate(g)}, dgates, d{m} + {self.at.order.index(g)} * H)"
            for g in range(len(self.at.order))
        ]

    def operand_backward(self, doperand: str) -> list[str]:
        """Complete both by what comes back through the operand, and write them down."""
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
        if not self.form.mask:
            return lines
        return [f"if mask[n{m} * T + t] != 0:", *("    " + line for line in lines)]


def zero_gradients(cell: Cell) -> tuple[set[int], set[int]]:
    """Which gradients Cell.backward gives as None: of gates, of states."""

    def some(names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(np.full(1, 0.5, np.float32) for _ in names)

    dgates, dold = cell.backward(some(cell.states), some(cell.saved), some(cell.states))
    return (
        {k for k, d in enumerate(dgates) if d is None},
        {k for k, d in enumerate(dold) if d is None},
    )
