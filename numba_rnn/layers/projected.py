"""Long short-term memory whose output is a projection of what the units hold."""

from typing import Any, Self

import numpy as np

from ..backend import Engine, engine_for
from ..checks import Array, accept, expect_int, spell
from ..kernels import cells
from . import initialisers
from .base import Layer
from .initialisers import Seed
from .recurrent import TimeRecurrent


class TimeProjectedLSTM(TimeRecurrent):
    """Long short-term memory with a projection, torch.nn.LSTM(..., proj_size=P), over time.

        h_t = (o * tanh(c_t)) Wr

    Wx (D, 4H), Wh (P, 4H), b (4H,), Wr (H, P), P at most H; gates in the order f, g, i, o. The
    states are h (N, P) and c (N, H), the output is (N, T, P). The equations and their
    derivatives: ``kernels/cells/lstm_projected.py``. See TimeRecurrent for the rest.

    It runs H wide: h, and the weights that see it or make it, are padded by zeros from P to H. A
    step costs what it does with P = H, 5 H² multiplications in recurrent products instead of
    5 P H, and every forward copies Wh and Wr; what is saved is parameters, and work in what reads
    the output. A learnable initial state is (2, H), of whose first row the first P count.
    ``weight_drop`` drops entries of Wr as of Wh, ``recurrent_dropout`` units of
    o * tanh(c) as of h. It has no streams.

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
        dtype: Any = np.float32,
        init: str = "orthogonal",
        **options: Any,
    ) -> Self:
        """A layer from its sizes, P = proj_size; see TimeLSTM.create.

        Wh and Wr start as parts of the (H, H) matrices that ``init`` asks for: orthonormal rows
        and columns.
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
        """The parameters of the cell: padded by zeros, a copy."""
        Wx, Wh, b, Wr = self.params[:4]
        return [Wx, _wide_weights(self._engine(), Wh, Wr), b]

    @property
    def c(self) -> Array | None:
        """The memory cell (N, H) after the last step."""
        return None if self.state is None else self.state[1]

    @property
    def dc(self) -> Array | None:
        """The gradient (N, H) that leaves the block at its first step through the memory cell."""
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
        self, spelling: str, given: tuple[Array | None, ...], batch: int, here: Engine
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

    def _fill_grads(self, gradients: Any) -> None:
        dWx, wide, db, *dinitial = gradients
        dWh, dWr = _own_weights(wide, self.hidden_size, self.output_size)
        super()._fill_grads([dWx, dWh, db, dWr, *dinitial])

    def set_state(self, *state: Array | None) -> None:
        """Set what the next forward starts from: h (N, P), c (N, H); see TimeRecurrent."""
        super().set_state(*state)
        self.state = self._cut(self.state)

    def step(self, x: Array) -> Array:
        """One step x (N, D) -> h (N, P) of a stateful layer, nothing kept for backward."""
        super().step(x)
        self.state = self._cut(self.state)
        assert self.state is not None
        return self.state[0]

    def forward(self, xs: Array, **steps: Any) -> Array:
        """xs (N, T, D) -> hs (N, T, P); see TimeRecurrent.forward for lengths, mask, resets, trace.

        A trace is H wide: what lies beyond P in h is 0.
        """
        hs = super().forward(xs, **steps)[:, :, : self.output_size].copy()
        self.state = self._cut(self.state)
        self._shape = hs.shape
        return hs

    def backward(self, dhs: Array, *dstate: Array | None, inputs: bool = True) -> Array:
        """dhs (N, T, P), dstate dh (N, P), dc (N, H) -> dxs (N, T, D); see TimeRecurrent."""
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
