"""Gates, states and gradients of a layer, step by step.

    hs = layer.forward(xs, trace=True)
    layer.trace.gates["f"]                 (N, T, H), how far the forget gate was open
    layer.backward(dhs)
    layer.trace.gradients["c"]             (N, T, H), the gradient that reached every memory cell

Forward keeps the states for backward anyway, so a trace costs next to nothing until somebody reads
it. Then gates and pre-activations are computed again from the states before every step, for all
steps at once. ``numba_rnn.diagnostics`` measures and draws them.
"""

from collections.abc import Sequence
from typing import Any

from ..backend import Engine, to_host
from ..kernels.cells import Cell
from ..kernels.once import cached_property
from ..kernels.step_options import StepOptions
from ..typing import Array

Named = dict[str, Array]


class Trace:
    """Gates, states and gradients of one block of time, as NumPy arrays (N, T, H) by name.

    A layer makes it: ``layer.forward(xs, trace=True)`` sets ``layer.trace``. It has copies of xs
    and of the parameters.

    Parameters
    ----------
    cell : Cell
        The cell of the layer.
    engine : Engine
        The engine that ran it.
    xs : (N, T, D) array
        The inputs.
    params : sequence of arrays
        The parameters.
    steps : StepOptions
        The options of the steps.
    saved
        The engine's memory for backward.

    Attributes
    ----------
    cell : Cell
        The cell of the layer.
    mask : (N, T) bool array or None
        True at the steps that were not left out; None: all of them.
    resets : (N, T) bool array or None
        True at the steps before which the state was reset; None: none.
    """

    def __init__(
        self,
        cell: Cell,
        engine: Engine,
        xs: Array,
        params: Sequence[Array],
        steps: StepOptions,
        saved: Any,
    ) -> None:
        self.cell, self.mask, self.resets = cell, steps.mask, steps.resets
        self._engine, self._xs, self._steps, self._saved = engine, xs, steps, saved
        self._params = params
        self._gradients: Array | None = None

    def __repr__(self) -> str:
        N, T, _ = self._xs.shape
        names = ", ".join(self.gate_names)
        return (
            f"Trace(cell {self.cell.name}, N {N}, T {T}; gates {names}; "
            f"states {', '.join(self.cell.states)})"
        )

    @property
    def gate_names(self) -> list[str]:
        """The names of the numbers that the cell computes from its pre-activations."""
        return list(self.cell.gate_names)

    @property
    def pre_activations(self) -> Named:
        """The arguments of the gates' activation functions, x Wx + h Wh + b, arrays by name.

        For a gate with layer normalisation it is the normalised value.
        """
        return self._inside[0]

    @property
    def gates(self) -> Named:
        """The gates after their activation functions, arrays by the names in ``gate_names``.

        For a cell of your own: every named value of its function except the states.
        """
        return self._inside[1]

    @property
    def states(self) -> Named:
        """The states after every step, (N, T, H) arrays by name."""
        return self._inside[2]

    @property
    def before(self) -> Named:
        """The states before every step, as the step read them, (N, T, H) arrays by name."""
        return dict(zip(self.cell.states, map(to_host, self._before), strict=True))

    @property
    def gradients(self) -> Named:
        """The gradient of the loss with respect to each state, (N, T, H) arrays by name.

        It is the whole gradient after every step: from the output of the step and from all later
        steps.

        Raises
        ------
        RuntimeError
            If backward has not run.
        """
        if self._gradients is None:
            raise RuntimeError("gradients: call backward first")
        found, sizes = to_host(self._gradients), (state.shape[2] for state in self._before)
        named = enumerate(zip(self.cell.states, sizes, strict=True))
        return {name: found[:, :, k, :size] for k, (name, size) in named}

    @cached_property
    def _before(self) -> tuple[Array, ...]:
        """On the engine, which has a use for them there."""
        return tuple(self._engine.states_before(self.cell, self._saved))

    @cached_property
    def _inside(self) -> tuple[Named, Named, Named]:
        cell = self.cell
        found, inside, after = self._engine.recompute(
            cell, self._xs, self._params, self._steps, self._before
        )
        return (
            dict(zip(cell.gates, found, strict=True)),
            dict(zip(cell.gate_names, inside, strict=True)),
            dict(zip(cell.states, after, strict=True)),
        )
