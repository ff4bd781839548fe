"""Long short-term memory whose output is a projection of what the units hold."""

from typing import Any, Self

import numpy as np

from ..kernels import cells
from ..kernels.cells import Cell
from ..typing import Array, MaybeNone
from ..validation import expect_int
from .initialisers import Seed
from .recurrent import TimeRecurrent


class TimeProjectedLSTM(TimeRecurrent):
    """Long short-term memory with a projection, torch.nn.LSTM(..., proj_size=P), over time.

        h_t = (o * tanh(c_t)) Wr

    The equations and their derivatives are in ``kernels/cells/lstm_projected.py``. See
    ``TimeRecurrent`` for attributes and methods; h, hs and their gradients have P numbers a step, c
    and its gradient H.

    Parameters
    ----------
    Wx : (D, 4H) array, float32 or float64
        The input weights, gates in the order f, g, i, o.
    Wh : (P, 4H) array
        The recurrent weights, P at most H.
    b : (4H,) array
        The biases.
    Wr : (H, P) array
        The projection.
    stateful : bool, default False
        Whether the state after a block is the state before the next one.

    Notes
    -----
    A learnable initial state is (2, H); the first P numbers of its first row count. ``weight_drop``
    drops entries of Wr as of Wh, ``recurrent_dropout`` units of o * tanh(c) as of h.

    Examples
    --------
    >>> layer = TimeProjectedLSTM.create(3, 8, proj_size=5, rng=0)
    >>> layer.forward(np.ones((2, 7, 3), np.float32)).shape, layer.h.shape, layer.c.shape
    ((2, 7, 5), (2, 5), (2, 8))
    """

    def __init__(self, Wx: Array, Wh: Array, b: Array, Wr: Array, stateful: bool = False) -> None:
        super().__init__(Wx, Wh, b, Wr, stateful=stateful, cell="lstm_projected")

    @staticmethod
    def _select(options: dict[str, Any]) -> Cell:
        return cells.get("lstm_projected")

    @classmethod
    def create(
        cls,
        input_size: int,
        hidden_size: int,
        *,
        proj_size: Any = None,
        rng: Seed = None,
        dtype: Any = np.float32,
        init: str = "orthogonal",
        **options: Any,
    ) -> Self:
        """Create a layer from its sizes.

        Parameters
        ----------
        input_size : int
            D, the number of features of an input.
        hidden_size : int
            H, the number of memory cells.
        proj_size : int
            P, the number of outputs, from 1 to H. It must be given.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed.
        dtype : dtype, default float32
            float32 or float64.
        init : {"orthogonal", "book"}
            How the parameters start; see ``TimeLSTM.create``. Wh and Wr start as parts of (H, H)
            matrices; with "orthogonal" their rows and columns are orthonormal.
        **options
            The constructor's other arguments, such as stateful=True.

        Returns
        -------
        Self
            The new layer.

        Raises
        ------
        ValueError
            If proj_size is larger than hidden_size.
        """
        options["proj_size"] = expect_int("proj_size", proj_size)
        sizes = input_size, hidden_size
        return super().create(*sizes, rng=rng, dtype=dtype, init=init, **options)

    def __repr__(self) -> str:
        D, H, P = self.input_size, self.hidden_size, self.output_size
        return f"{type(self).__name__}(D {D}, H {H}, P {P}, {self._kind})"

    @property
    def c(self) -> Array | MaybeNone:
        """The memory cell, (N, H), after the last step."""
        return None if self.state is None else self.state[1]

    @property
    def dc(self) -> Array | MaybeNone:
        """The gradient of the memory cell, (N, H), before the first step."""
        return None if self.dstate is None else self.dstate[1]
