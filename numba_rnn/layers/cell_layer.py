"""The parameters of a cell: the base of all recurrent layers, of one step and over time."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Engine
from ..kernels import cells
from ..kernels.cells import Cell
from ..typing import Array
from ..validation import expect_choice, validate_array
from . import initialisers
from .base import Layer
from .initialisers import Seed
from .param_checks import validate_params


class CellLayer(Layer):
    """The parameters of a cell."""

    def __init__(self, params: Sequence[Array], cell: Cell) -> None:
        self.param_names: tuple[str, ...] = cell.param_names
        super().__init__(*validate_params(type(self).__name__, cell, params))
        self.cell = cell

    def __repr__(self) -> str:
        D, H = self.input_size, self.hidden_size
        return f"{type(self).__name__}(cell {self.cell.name}, D {D}, H {H}, {self._kind})"

    @property
    def _kind(self) -> str:
        """The dtype, and that of the weights where that is another."""
        return f"{self.dtype}, weights int8" if self.quantised else str(self.dtype)

    @property
    def _weight_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.cell.weight_names

    @staticmethod
    def _select(options: dict[str, Any]) -> Cell:
        """The cell that the constructor's options ask for."""
        raise NotImplementedError

    @classmethod
    def create(
        cls,
        input_size: int,
        hidden_size: int,
        *,
        rng: Seed = None,
        dtype: DTypeLike = np.float32,
        init: str = "orthogonal",
        **options: Any,
    ) -> Self:
        """Create a layer from its sizes.

        Parameters
        ----------
        input_size : int
            D, the number of features of an input.
        hidden_size : int
            H, the number of units.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed.
        dtype : dtype, default float32
            float32 or float64.
        init : {"orthogonal", "book"}
            "orthogonal": Wh orthogonal, Wx Glorot uniform, the bias of the LSTM's forget gate 1.
            "book": Wx ~ N(0, 1/D), Wh ~ N(0, 1/H), b = 0. See
            ``numba_rnn/layers/initialisers.py``.
        **options
            The constructor's other arguments, such as stateful=True; for a projected cell also
            proj_size, the number of outputs P, from 1 to H (the default).

        Returns
        -------
        Self
            The new layer.

        Examples
        --------
        >>> from numba_rnn import TimeLSTM
        >>> TimeLSTM.create(3, 5, rng=0).params[0].shape
        (3, 20)
        """
        cell = cls._select(options)
        P = options.pop("proj_size", None) if cell.projected else None
        params = initialisers.recurrent(cell, input_size, hidden_size, rng, dtype, init, P)
        return cls(*params, **options)  # type: ignore[arg-type]  # subclasses take them apart

    @property
    def input_size(self) -> int:
        """D, the number of features of an input."""
        return int(self.params[0].shape[0])

    @property
    def hidden_size(self) -> int:
        """H, the number of units."""
        return self.cell.hidden_size(self.params)

    @property
    def output_size(self) -> int:
        """P, the number of outputs a step: H, unless the cell is projected."""
        return self.cell.output_size(self.cell_params if self.cell.projected else self.params)

    @property
    def cell_params(self) -> list[Array]:
        """The parameters of the cell, as ``cell.shapes`` says."""
        return self.params[: len(self.cell.param_names)]

    @property
    def _state_sizes(self) -> tuple[int, ...]:
        """How many numbers each state has."""
        H, projected = self.hidden_size, self.cell.projected
        return self.cell.state_sizes(H, self.output_size if projected else H)

    def _zeros(self, batch: int, engine: Engine) -> tuple[Array, ...]:
        """A state of zeros; unless the cell is projected the same array for all."""
        if self.cell.projected:
            return tuple(engine.xp.zeros((batch, size), self.dtype) for size in self._state_sizes)
        return (engine.xp.zeros((batch, self.hidden_size), self.dtype),) * len(self.cell.states)

    def _accepted(
        self, spelling: str, arrays: tuple[Array | None, ...], batch: int | str, engine: Engine
    ) -> tuple[Array | None, ...]:
        """Check one array (N, H) for each state; ``spelling`` makes its name of the state's."""
        if all(value is None for value in arrays):
            return arrays
        return tuple(
            None
            if value is None
            else validate_array(spelling.format(name), value, (batch, size), self.dtype, engine)
            for name, value, size in zip(self.cell.states, arrays, self._state_sizes, strict=True)
        )

    def _fill_grads(self, gradients: Sequence[Array]) -> None:
        for grad, new in zip(self.grads, gradients, strict=True):
            if grad is not new:
                grad[...] = new


# ---- the cell that the name of a layer stands for


class _IsRNN:
    @staticmethod
    def _select(options: dict[str, Any]) -> Cell:
        name = options.get("activation", "tanh")
        expect_choice("activation", name, ("tanh", "relu"))
        return cells.get("rnn" if name == "tanh" else "rnn_relu")


class _IsLSTM:
    @staticmethod
    def _select(options: dict[str, Any]) -> Cell:
        return cells.get("lstm")


class _IsGRU:
    @staticmethod
    def _select(options: dict[str, Any]) -> Cell:
        return cells.get("gru_reset_after" if options.get("reset_after") else "gru")
