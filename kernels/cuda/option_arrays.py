"""The options of a pass's steps, as arrays on the GPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import draws
from ..cells import Cell
from ..engine import Array, State
from ..step_options import StepOptions


class OptionArrays:
    """The arrays of step options by name, made when they are first asked for.

    sizes   N, T, H
    """

    def __init__(
        self, steps: StepOptions, cell: Cell, xp: Any, sizes: tuple[int, int, int], dtype: Any
    ) -> None:
        self.steps, self.sizes, self.dtype = steps, sizes, dtype
        self.features = steps.features
        self._xp, self._states = xp, len(cell.states)
        self._made: dict[str, Array] = {}

    def to(self, names: Sequence[str]) -> list[Array]:
        """The arrays with these names."""
        for name in names:
            if name not in self._made:
                self._made[name] = getattr(self, f"_{name}")()
        return [self._made[name] for name in names]

    def _flags(self, flags: Array) -> Array:
        return self._xp.asarray(np.ascontiguousarray(flags, np.uint8))

    def _mask(self) -> Array:
        return self._flags(self.steps.mask)

    def _resets(self) -> Array:
        return self._flags(self.steps.resets)

    def _initial(self) -> Array:
        if self.steps.initial is None:
            return self._xp.zeros((self._states, self.sizes[2]), self.dtype)
        return self._xp.ascontiguousarray(self.steps.initial)

    def _scale(self) -> Array:
        return self._xp.ascontiguousarray(self.steps.scale)

    def _rates(self) -> Array:
        return self._xp.asarray(np.array(self.steps.zoneout, self.dtype))

    def _seeds(self) -> Array:
        return self._xp.asarray(np.array(self.steps.seeds, np.uint64).view(np.int64))

    def _thresholds(self) -> Array:
        return self._xp.asarray(
            np.array([draws.threshold(r) for r in self.steps.zoneout], np.int64)
        )

    def _dinitial(self) -> Array:
        N, _, H = self.sizes
        return self._xp.zeros((self._states, N, H), self.dtype)

    def _trace(self) -> Array:
        N, T, H = self.sizes
        return self._xp.empty((T, self._states, N, H), self.dtype)

    # ---- operations outside of kernels

    def scaled(self, h: Array) -> Array:
        """h, or its gradient, times the scale with which h enters products."""
        return h if self.steps.scale is None else h * self.steps.scale

    def reset_at_first(self, state: State) -> State:
        """The state that the first step reads: after a reset, if any."""
        if self.steps.resets is None:
            return state
        again = self._xp.asarray(self.steps.resets[:, 0])[:, None]
        (initial,) = self.to(["initial"])
        return tuple(
            self._xp.where(again, start, s) for start, s in zip(initial, state, strict=True)
        )

    def stopped_at_first(self, dstate: Array) -> tuple[Array, Array | None]:
        """The gradient of the state before the first step, and ``initial``'s (None: no resets)."""
        if self.steps.resets is None:
            return dstate, None
        again = self._xp.asarray(self.steps.resets[:, 0])[:, None]
        (dinitial,) = self.to(["dinitial"])
        nothing = self._xp.zeros_like(dstate)
        dinitial = (dinitial + self._xp.where(again, dstate, nothing)).sum(axis=1)
        return self._xp.where(again, nothing, dstate), dinitial

    def trace(self) -> Array | None:
        """The gradients (N, T, states, H) of the state after every step, or None."""
        return self._made["trace"].transpose(2, 0, 1, 3) if self.steps.trace else None
