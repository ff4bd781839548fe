"""Where a compiled engine keeps a cell's numbers.

The gates are kept in an order of their own, in which every product
finds its gates side by side:

    one product     input side only | both sides | recurrent side only
                    [---------- x_gates --------]
                                    [------------- early -------------]

    two products    input side only | both sides (no gate is recurrent only)
                    [------------------ x_gates ------------------]
                                    [----- early -----][-- late --]
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from .cells import Cell


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a cell's numbers are kept."""

    cell: Cell

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The cell's gates, in this order."""
        x, h = self.cell.input_gates, self.cell.recurrent_gates
        return (
            *(g for g in x if g not in h),
            *(g for g in h if g in x),
            *(g for g in h if g not in x),
        )

    @property
    def x_gates(self) -> int:
        """How many gates x Wx feeds: the first ones."""
        return len(self.cell.input_gates)

    @property
    def late(self) -> int:
        """How many gates the second product feeds: the last ones."""
        return len(self.cell.second)

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
        first = len(self.order) - len(self.cell.recurrent_gates)
        return tuple(self.cell.recurrent_gates.index(g) for g in self.order[first:])

    @cached_property
    def found_in_state(self) -> tuple[int | None, ...]:
        """For each saved number the state that it is, after the step; None where it is another."""

        def ones(count: int) -> tuple[np.ndarray, ...]:  # an object each, to tell them apart
            return tuple(np.ones(1, np.float32) for _ in range(count))

        with np.errstate(all="ignore"):
            gates, states = ones(len(self.cell.gates)), ones(len(self.cell.states))
            state, saved = self.cell.forward(gates, states)
        return tuple(next((k for k, s in enumerate(state) if s is v), None) for v in saved)

    @property
    def stored(self) -> int:
        """How many saved numbers are stored: those that are no state."""
        return self.found_in_state.count(None)


@cache
def layout(cell: Cell) -> Layout:
    """The cell's layout."""
    return Layout(cell)
