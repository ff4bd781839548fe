"""The arrays of a pass on the GPU."""

from typing import Any

from ..cells import Cell
from ..engine import Array, State
from ..step_options import StepOptions


class PassArrays:
    """The arrays and sizes of a pass, by the names that kernels have for them
    (``step_codegen.py``).

    From the start there are those of the steps' options, and the sizes.

    sizes     N, T, H
    backward  whether it is a backward pass
    """

    def __init__(
        self,
        cell: Cell,
        steps: StepOptions,
        xp: Any,
        sizes: tuple[int, int, int],
        dtype: Any,
        backward: bool = False,
    ) -> None:
        self.cell, self.sizes, self.dtype, self.features = cell, sizes, dtype, steps.features
        self._steps, self._xp, (N, T, H) = steps, xp, sizes
        self.by_name: dict[str, Any] = {"T": T, "N": N, "H": H}
        options = steps.arrays(dtype).items()
        self.add(**{name: xp.ascontiguousarray(xp.asarray(array)) for name, array in options})
        S = len(cell.states)
        if steps.resets is not None and backward:
            self.add(dinitial=xp.zeros((S, N, H), dtype))
        if steps.trace and backward:
            self.add(trace=self.empty(T, S, N, H))

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]

    def add(self, **arrays: Array) -> None:
        """More arrays."""
        self.by_name |= arrays

    def empty(self, *shape: int) -> Array:
        """An array that is not initialised."""
        return self._xp.empty(shape, self.dtype)

    # ---- operations outside of kernels

    def times_recurrent_mask(self, h: Array) -> Array:
        """h, or its gradient, times the scale with which h enters products."""
        return h * self["recurrent_mask"] if "recurrent_mask" in self.features else h

    def reset_at_first(self, state: State) -> State:
        """The state that the first step reads: after a reset, if any."""
        if self._steps.resets is None:
            return state
        initial = self.by_name.get("initial", self._xp.zeros((len(state), 1), self.dtype))
        pairs = zip(initial, state, strict=True)
        return tuple(self._xp.where(self._reset_at_first, start, s) for start, s in pairs)

    def dreset_at_first(self, dstate: Array) -> tuple[Array, Array | None]:
        """The gradient of the state before the first step, and ``initial``'s (None: no resets)."""
        if self._steps.resets is None:
            return dstate, None
        again, nothing = self._reset_at_first, self._xp.zeros_like(dstate)
        dinitial = (self["dinitial"] + self._xp.where(again, dstate, nothing)).sum(axis=1)
        return self._xp.where(again, nothing, dstate), dinitial

    @property
    def _reset_at_first(self) -> Array:
        """(N, 1): whether the state is reset before the first step."""
        return self._xp.asarray(self._steps.resets[:, :1])

    def trace(self) -> Array | None:
        """The gradients (N, T, states, H) of the state after every step, or None."""
        return self["trace"].transpose(2, 0, 1, 3) if "trace" in self.features else None
