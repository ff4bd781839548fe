"""What went on inside a layer, step by step.

    hs = layer.forward(xs, trace=True)
    layer.trace.gates["f"]                 (N, T, H), how far the forget gate was open
    layer.backward(dhs)
    layer.trace.gradients["c"]             (N, T, H), the gradient that reached every memory cell

Forward keeps what backward needs anyway, so a trace costs next to nothing until it is looked at:
then gates and pre-activations are computed anew from the states that every step saw, for all steps
at once. ``numba_rnn.diagnostics`` measures and draws what is in it.
"""

from collections.abc import Sequence
from typing import Any

from ..backend import Engine, to_host
from ..checks import Array
from ..kernels.cells import Cell
from ..kernels.once import cached_property
from ..kernels.step_options import StepOptions

Named = dict[str, Array]


class Trace:
    """A block of time of a layer, seen from inside; NumPy arrays (N, T, H) by name.

    xs and the parameters are the trace's own: copies of those that the layer was given.

    cell    the layer's
    mask    (N, T) bool, the steps that were there, or None: all
    resets  (N, T) bool, the steps before which the state was reset, or None: none
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
        self._gradients: Array = None

    def __repr__(self) -> str:
        N, T, _ = self._xs.shape
        names = ", ".join(self.gate_names)
        return (
            f"Trace(cell {self.cell.name}, N {N}, T {T}; gates {names}; "
            f"states {', '.join(self.cell.states)})"
        )

    @property
    def gate_names(self) -> list[str]:
        """Names of what the cell made of its pre-activations."""
        return list(self.cell.gate_names)

    @property
    def pre_activations(self) -> Named:
        """By the name of the gate: what its activation function was given, x Wx + h Wh + b.

        Of a gate that is normalised: what normalisation made of that.
        """
        return self._inside[0]

    @property
    def gates(self) -> Named:
        """By the names in ``cell.gate_names``: the gates after their activation functions.

        Of a cell of one's own: whatever has a name in its function, but for the states.
        """
        return self._inside[1]

    @property
    def states(self) -> Named:
        """By the name of the state: its value after every step."""
        return self._inside[2]

    @property
    def before(self) -> Named:
        """By the name of the state: its value before every step, as the step saw it."""
        return dict(zip(self.cell.states, map(to_host, self._before), strict=True))

    @property
    def gradients(self) -> Named:
        """By the name of the state: the gradient of the loss by its value after every step.

        All of it: what that step's output got, and what came back from the steps after it.
        Raises RuntimeError before backward.
        """
        if self._gradients is None:
            raise RuntimeError("gradients: there are none before backward; call it first")
        found = to_host(self._gradients)
        return {name: found[:, :, k] for k, name in enumerate(self.cell.states)}

    @cached_property
    def _before(self) -> tuple[Array, ...]:
        """On the engine, which has a use for them there."""
        return tuple(self._engine.before(self.cell, self._saved))

    @cached_property
    def _inside(self) -> tuple[Named, Named, Named]:
        cell = self.cell
        found, inside, after = self._engine.replay(
            cell, self._xs, self._params, self._steps, self._before
        )
        return (
            dict(zip(cell.gates, found, strict=True)),
            dict(zip(cell.gate_names, inside, strict=True)),
            dict(zip(cell.states, after, strict=True)),
        )
