"""The options of a pass's steps, as arrays on the GPU."""

from collections.abc import Sequence
from typing import Any

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
        arrays = steps.arrays(dtype).items()
        self._arrays = {name: xp.ascontiguousarray(xp.asarray(array)) for name, array in arrays}

    def to(self, names: Sequence[str]) -> list[Array]:
        """The arrays of these names."""
        for name in names:
            if name not in self._arrays:
                self._arrays[name] = self._made(name)
        return [self._arrays[name] for name in names]

    def _made(self, name: str) -> Array:
        """An array that the kernels fill; or zeros, which are where resets begin by default."""
        N, T, H = self.sizes
        if name == "trace":
            return self._xp.empty((T, self._states, N, H), self.dtype)
        shape = (self._states, N, H) if name == "dinitial" else (self._states, H)
        return self._xp.zeros(shape, self.dtype)

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
        return self._arrays["trace"].transpose(2, 0, 1, 3) if self.steps.trace else None
