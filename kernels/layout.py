"""Where a compiled engine keeps a cell's numbers.

The gates are kept in an order of their own, in which every product
finds its gates side by side:

    input side only | both sides | recurrent side only | fed | weights
    [--------- x_gates ---------]
                    [---- early ----- | ---- late ----]

``late`` are the gates of the second product. (They come before the early ones where some of them,
but not all of those, have an input side.) ``operand_gate`` is the gate that is fed by the operand
itself.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from . import step
from .cells import Cell
from .once import cached_property

EPSILON = 1e-5  # what normalisation adds to a variance


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a cell's numbers are kept.

    features  of the steps (``StepOptions.features``): they decide what is kept for backward
    """

    cell: Cell
    features: frozenset[str] = frozenset()

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The cell's gates, in this order."""
        cell, count = self.cell, len(self.cell.gates)
        x, h = set(cell.input_gates), set(cell.recurrent_gates)
        late = {g for g in h if cell.gates[g] in cell.second_product}
        early = [sorted((h - late) & x), sorted(h - late - x)]  # with an input side, without
        blocks = [*early, sorted(late & x), sorted(late - x)]
        if early[1] and late & x:
            blocks = [sorted(late), *early]
        fed = (cell.gates.index(name) for name in cell.operand_gate)
        weights = range(count - self.weights, count)
        return (*sorted(x - h), *(g for block in blocks for g in block), *fed, *weights)

    @property
    def weights(self) -> int:
        """How many of them are no gates but weights: the last ones."""
        return len(self.cell.weights)

    @cached_property
    def first_early(self) -> int:
        """The position of the first gate that h Wh feeds; 0 where there is none."""
        return self._first_of(self.cell.recurrent_gates[: self.early])

    @cached_property
    def first_late(self) -> int:
        """The position of the first gate that the second product feeds; 0 where there is none."""
        return self._first_of(self.cell.recurrent_gates[self.early :])

    def _first_of(self, gates: tuple[int, ...]) -> int:
        return min((self.order.index(g) for g in gates), default=0)

    @property
    def x_gates(self) -> int:
        """How many gates x Wx feeds: the first ones."""
        return len(self.cell.input_gates)

    @property
    def late(self) -> int:
        """How many gates the second product feeds."""
        return len(self.cell.second_product)

    @property
    def operand_gate(self) -> int:
        """How many gates the operand itself feeds: 0 or 1, before the weights."""
        return len(self.cell.operand_gate)

    @cached_property
    def after_operand(self) -> tuple[int, ...]:
        """The positions of gates that wait for the operand: of the late ones, or the fed one."""
        if self.operand_gate:
            return (len(self.order) - self.weights - 1,)
        return tuple(range(self.first_late, self.first_late + self.late))

    @cached_property
    def normalised_early(self) -> tuple[int, ...]:
        """The positions of the normalised gates that do not wait for the operand."""
        return tuple(p for p in self._normalised if p not in self.after_operand)

    @cached_property
    def normalised_late(self) -> tuple[int, ...]:
        """The positions of those that do."""
        return tuple(p for p in self._normalised if p in self.after_operand)

    @property
    def _normalised(self) -> list[int]:
        cell = self.cell
        return [p for p, g in enumerate(self.order) if cell.gates[g] in cell.normalised]

    @property
    def normalised(self) -> tuple[int, ...]:
        """The positions of all, in the order in which the numbers are kept for backward."""
        return self.normalised_early + self.normalised_late

    @property
    def early(self) -> int:
        """How many gates h Wh feeds: the ones before those."""
        return len(self.cell.recurrent_gates) - self.late

    @cached_property
    def x_blocks(self) -> tuple[int, ...]:
        """The block of columns in Wx for each of x_gates."""
        return tuple(self.cell.input_gates.index(g) for g in self.order[: self.x_gates])

    @cached_property
    def h_blocks(self) -> tuple[int, ...]:
        """The block of columns in Wh for each of the early gates, then of the late ones."""
        return tuple(self.cell.recurrent_gates.index(g) for g in self.h_order)

    @cached_property
    def h_order(self) -> tuple[int, ...]:
        """The cell's early gates, then the late ones, in this order."""
        early = self.order[self.first_early : self.first_early + self.early]
        return (*early, *self.order[self.first_late : self.first_late + self.late])

    @cached_property
    def saved_from(self) -> tuple[tuple[str, int] | None, ...]:
        """For each saved number where it is found: ("state", k), the state number k after the
        step; ("weight", k), the weight number k; ("normalised", k), the gate number k of
        ``normalised``; None where it is another number, to be stored.
        """
        return self._saved[0]

    @property
    def extra(self) -> int:
        """How many numbers the step's options keep; they are stored behind the saved ones."""
        return self._saved[1]

    @property
    def n_stored(self) -> int:
        """How many numbers are stored at a step."""
        return self.saved_from.count(None) + self.extra

    @cached_property
    def _saved(self) -> tuple[tuple[tuple[str, int] | None, ...], int]:
        def ones(count: int) -> tuple[np.ndarray, ...]:  # an object each, to tell them apart
            return tuple(np.ones(1, np.float32) for _ in range(count))

        with np.errstate(all="ignore"):
            gates, states = ones(len(self.cell.gates)), ones(len(self.cell.states))
            new, saved = self.cell.forward(gates, states)
            options = step.step_values(self.features, len(states), lambda name, kind: ones(1)[0])
            new, _, extra = step.apply_options(new, states, options)
            new = step.apply_reset(new, options)
        known = [("state", k, number) for k, number in enumerate(new)]
        weights = gates[len(gates) - self.weights :]
        known += [("weight", k, number) for k, number in enumerate(weights)]
        known += [("normalised", k, gates[self.order[p]]) for k, p in enumerate(self.normalised)]
        found = tuple(
            next(((kind, k) for kind, k, number in known if number is value), None)
            for value in saved
        )
        return found, len(extra)


@cache
def layout(cell: Cell, features: frozenset[str] = frozenset()) -> Layout:
    """The cell's layout."""
    return Layout(cell, features)
