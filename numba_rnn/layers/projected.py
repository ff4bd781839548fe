"""Long short-term memory whose output is a projection of what the units hold."""

from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Engine, engine_for
from ..checks import accept, expect_int, spell
from ..kernels import cells
from ..typing import Array, MaybeNone
from . import initialisers
from .base import Layer
from .initialisers import Seed
from .recurrent import TimeRecurrent


class TimeProjectedLSTM(TimeRecurrent):
    """Long short-term memory with a projection, torch.nn.LSTM(..., proj_size=P), over time.

        h_t = (o * tanh(c_t)) Wr

    See ``TimeRecurrent`` for attributes and the other methods.

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

    Attributes
    ----------
    state : tuple of arrays or None
        The states h (N, P) and c (N, H) after the last step.

    Notes
    -----
    The equations and their derivatives are in ``kernels/cells/lstm_projected.py``.

    The layer runs H wide: h, and the weights that read or make it, are padded with zeros from P to
    H. A step costs as much as with P = H: 5 H² multiplications in recurrent products instead of
    5 P H, and every forward copies Wh and Wr. The projection saves parameters, and work in the
    layer above. A learnable initial state is (2, H); the first P numbers of its first row count.
    ``weight_drop`` drops entries of Wr as of Wh, ``recurrent_dropout`` units of o * tanh(c) as of
    h. The layer has no streams.

    Examples
    --------
    >>> layer = TimeProjectedLSTM.create(3, 8, proj_size=5, rng=0)
    >>> layer.forward(np.ones((2, 7, 3), np.float32)).shape, layer.h.shape, layer.c.shape
    ((2, 7, 5), (2, 5), (2, 8))
    """

    def __init__(self, Wx: Array, Wh: Array, b: Array, Wr: Array, stateful: bool = False) -> None:
        here = engine_for(Wx)
        Wx = accept("Wx", Wx, ("D", "4H"), None, here)
        H = Wx.shape[1] // 4
        if Wx.shape[1] % 4:
            raise ValueError(f"Wx: expected shape (D, 4H), got {spell(Wx.shape)}")
        Wr = accept("Wr", Wr, (H, "P"), Wx.dtype, here)
        P = Wr.shape[1]
        if P > H:
            raise ValueError(f"Wr: expected shape (H, P) with P at most H, got {spell(Wr.shape)}")
        Wh = accept("Wh", Wh, (P, 4 * H), Wx.dtype, here)
        b = accept("b", b, (4 * H,), Wx.dtype, here)
        wide = Wx, _wide_weights(here, Wh, Wr), b
        super().__init__(*wide, stateful=stateful, cell="lstm_projected")
        Layer.__init__(self, Wx, Wh, b, Wr)  # its own parameters in place of those
        self.param_names = ("Wx", "Wh", "b", "Wr")

    def in_stream(self) -> list[Any]:
        """Raise TypeError: there are none."""
        raise TypeError(
            "layers: expected layers as wide outside as inside, got TimeProjectedLSTM, which has "
            "no streams; step(x) of a stateful one does one step"
        )

    @classmethod
    def create(
        cls,
        input_size: int,
        hidden_size: int,
        *,
        proj_size: Any = None,
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
        H, P = expect_int("hidden_size", hidden_size), expect_int("proj_size", proj_size)
        if P > H:
            raise ValueError(f"proj_size: expected at most hidden_size, {H}, got {P}")
        cell = cells.get("lstm_projected")
        Wx, wide, b = initialisers.recurrent(cell, input_size, H, rng, dtype, init)
        Wh, Wr = _own_weights(wide, H, P)
        return cls(Wx, Wh.copy(), b, Wr.copy(), **options)

    def __repr__(self) -> str:
        D, H, P = self.input_size, self.hidden_size, self.output_size
        return f"{type(self).__name__}(D {D}, H {H}, P {P}, {self.dtype})"

    @property
    def output_size(self) -> int:
        """P, the number of outputs."""
        return int(self.params[3].shape[1])

    @property
    def cell_params(self) -> list[Array]:
        """The parameters of the cell: a copy, padded with zeros."""
        Wx, Wh, b, Wr = self.params[:4]
        return [Wx, _wide_weights(self._engine(), Wh, Wr), b]

    @property
    def c(self) -> Array | MaybeNone:
        """The memory cell, (N, H), after the last step."""
        return None if self.state is None else self.state[1]

    @property
    def dc(self) -> Array | MaybeNone:
        """The gradient of the memory cell, (N, H), before the first step."""
        return None if self.dstate is None else self.dstate[1]

    # ---- h is (N, P) outside, and (N, H) where the cell runs

    def _widened(self, h: Array, here: Engine) -> Array:
        """h (..., P), or (..., H) already, as (..., H)."""
        if h.shape[-1] == self.hidden_size:
            return h
        wide = here.xp.zeros((*h.shape[:-1], self.hidden_size), self.dtype)
        wide[..., : self.output_size] = h
        return wide

    def _cut(self, state: tuple[Array, ...] | None) -> tuple[Array, ...] | None:
        """The states with h (N, P)."""
        return None if state is None else (state[0][:, : self.output_size].copy(), *state[1:])

    def _accepted(
        self, spelling: str, given: tuple[Array | None, ...], batch: int | str, here: Engine
    ) -> tuple[Array | None, ...]:
        """Check h (N, P) and c (N, H), and widen h."""
        sizes = self.output_size, self.hidden_size
        h, c = (
            None
            if value is None
            else accept(spelling.format(name), value, (batch, size), self.dtype, here)
            for name, value, size in zip(self.cell.states, given, sizes, strict=True)
        )
        return None if h is None else self._widened(h, here), c

    def _state_before(self, name: str, N: int, here: Engine) -> tuple[Array, ...]:
        h, c = super()._state_before(name, N, here)
        return self._widened(h, here), c

    def _cell_grads(self) -> None:
        """Nowhere: the engine's weights are wider than the layer's."""

    def _fill_grads(self, gradients: Any) -> None:
        dWx, wide, db, *dinitial = gradients
        dWh, dWr = _own_weights(wide, self.hidden_size, self.output_size)
        super()._fill_grads([dWx, dWh, db, dWr, *dinitial])

    def set_state(self, *state: Array | None) -> None:
        """Set the state from which the next forward starts.

        Parameters
        ----------
        *state : array or None
            h (N, P), then c (N, H); see ``TimeRecurrent.set_state``.
        """
        super().set_state(*state)
        self.state = self._cut(self.state)

    def step(self, x: Array) -> Array:
        """Run one step of a stateful layer without memory for backward.

        Parameters
        ----------
        x : (N, D) array
            The input.

        Returns
        -------
        h : (N, P) array
            A copy of the output after the step.
        """
        h = super().step(x)[:, : self.output_size]
        self.state = self._cut(self.state)
        return h

    def forward(self, xs: Array, **steps: Any) -> Array:
        """Run the layer over a block of time.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs.
        **steps
            lengths, mask, resets and trace, as in ``TimeRecurrent.forward``. A trace is H wide:
            beyond P the numbers of h are 0.

        Returns
        -------
        hs : (N, T, P) array
            The output of every step.
        """
        hs = super().forward(xs, **steps)[:, :, : self.output_size].copy()
        self.state = self._cut(self.state)
        self._shape = hs.shape
        return hs

    @overload
    def backward(
        self, dhs: Array, *dstate: Array | None, inputs: Literal[True] = True
    ) -> Array: ...
    @overload
    def backward(self, dhs: Array, *dstate: Array | None, inputs: bool) -> Array | None: ...
    def backward(self, dhs: Array, *dstate: Array | None, inputs: bool = True) -> Array | None:
        """Compute the gradients, fill ``grads`` and set ``dstate``.

        Parameters
        ----------
        dhs : (N, T, P) array
            The gradient of the outputs.
        *dstate : array or None
            The gradient of the last state, dh (N, P) and dc (N, H); zeros if left out.
        inputs : bool, default True
            False skips the gradient of xs; see ``TimeRecurrent.backward``.

        Returns
        -------
        dxs : (N, T, D) array or None
            The gradient of xs; None with inputs=False.
        """
        self._recall()
        here = self._engine()
        dhs = accept("dhs", dhs, self._shape, self.dtype, here)
        dxs = super().backward(self._widened(dhs, here), *dstate, inputs=inputs)
        self.dstate = self._cut(self.dstate)
        return dxs


def _wide_weights(here: Engine, Wh: Array, Wr: Array) -> Array:
    """The cell's Wh (H, 5H) of Wh (P, 4H) and Wr (H, P)."""
    H, P = Wr.shape
    wide = here.xp.zeros((H, 5 * H), Wr.dtype)
    wide[:P, : 4 * H] = Wh
    wide[:, 4 * H : 4 * H + P] = Wr
    return wide


def _own_weights(wide: Array, H: int, P: int) -> tuple[Array, Array]:
    """Wh (P, 4H) and Wr (H, P) out of the cell's (H, 5H)."""
    return wide[:P, : 4 * H], wide[:, 4 * H : 4 * H + P]
