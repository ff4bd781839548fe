"""The CUDA engine's host code: products by the array library, gate kernels between them.

Before the steps x Wx is one product for all of them, after them so are the gradients of the
weights and dxs; a step is a product and a launch, or two of each where the cell has a second
product:

    forward, step t                                backward, step t, from the last
      early   = h[t] Wh                              backward_gates -> dgates[t], dstate
      [operand_gates -> operand[t]; late = operand[t] Wh']
      forward_gates  -> h[t+1], saved[t], hs[:, t]   [doperand = dgates[t] Wh'T;
                                                      operand_backward_gates -> dgates[t], dstate]
                                                     through_h = dgates[t] WhT

What is kept for backward lies time first, so that a step's rows lie together: states (T+1, states,
N, H), saved (T, stored, N, H), operand (T, N, H).

``xp`` is the library of the arrays (CuPy), ``launch`` starts a kernel on them; tests put NumPy and
an emulator there.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..cells import Cell
from ..layout import layout
from ..reference import Array, ReferenceEngine, State, expect_consistent

# (cell, kernel's name, numbers a thread, arrays and integers, N, H) -> None
Launch = Callable[[Cell, str, int, Sequence[Any], int, int], None]


class CudaEngine(ReferenceEngine):
    """Forward and backward of any cell, on a GPU."""

    name = "cuda"

    def __init__(self, xp: Any, launch: Launch) -> None:
        self.xp, self._launch = xp, launch

    def forward(
        self, cell: Cell, xs: Array, state: State, params: Sequence[Array]
    ) -> tuple[Array, State, Any]:
        expect_consistent(cell, xs, state, params)
        xp, at = self.xp, layout(cell)
        N, T, _ = xs.shape
        H = params[1].shape[0]
        Wx, Wh, b = self._in_order(cell, params)
        run = partial(self._run, cell, N, H)

        x_side = xp.matmul(_time_first(xp, xs), Wx).reshape(T, N, at.x_gates * H)
        states = xp.empty((T + 1, len(cell.states), N, H), xs.dtype)
        states[0] = xp.stack(state)
        saved = xp.empty((T, at.stored, N, H), xs.dtype)
        operand = xp.empty((T, N, H) if at.late else (0, N, H), xs.dtype)
        hs = xp.empty((N, T, H), xs.dtype)
        early = xp.empty((N, at.early * H), xs.dtype)
        late = xp.empty((N, at.late * H), xs.dtype)
        for t in range(T):
            xp.matmul(states[t, 0], Wh[:, : at.early * H], out=early)
            if at.late:
                run("operand_gates", x_side[t], early, b, states[t], operand[t])
                xp.matmul(operand[t], Wh[:, at.early * H :], out=late)
            around = states[t], states[t + 1], saved[t]
            run("forward_gates", x_side[t], early, late, b, *around, hs, t * H, T * H)
        return hs, tuple(states[T].copy()), (xs, (Wx, Wh), params, states, saved, operand)

    def backward(
        self, cell: Cell, dhs: Array, dstate: State, saved: Any
    ) -> tuple[Array, State, tuple[Array, ...]]:
        xs, (Wx, Wh), params, states, saved_, operand = saved
        xp, at = self.xp, layout(cell)
        N, T, D = xs.shape
        H, G = params[1].shape[0], len(cell.gates)
        Wh_early, Wh_late = Wh[:, : at.early * H], Wh[:, at.early * H :]
        first_late = (G - at.late) * H
        early_columns = slice(first_late - at.early * H, first_late)
        run = partial(self._run, cell, N, H)

        dgates = xp.empty((T, N, G * H), xs.dtype)
        through_h, doperand = xp.zeros((N, H), xs.dtype), xp.empty((N, H), xs.dtype)
        dstate_, dhs = xp.stack(dstate), xp.ascontiguousarray(dhs)
        for t in reversed(range(T)):
            around = states[t], states[t + 1], saved_[t], dgates[t]
            run("backward_gates", dhs, t * H, T * H, through_h, dstate_, *around)
            if at.late:
                xp.matmul(dgates[t, :, first_late:], Wh_late.T, out=doperand)
                run("operand_backward_gates", doperand, dstate_, *around)
            xp.matmul(dgates[t, :, early_columns], Wh_early.T, out=through_h)
        dstate_[0] += through_h

        rows = dgates.reshape(T * N, G * H)
        x_rows, early_rows = rows[:, : at.x_gates * H], rows[:, early_columns]
        dWx = _time_first(xp, xs).T @ x_rows
        dWh = states[:T, 0].reshape(T * N, H).T @ early_rows
        if at.late:
            late = operand.reshape(T * N, H).T @ rows[:, first_late:]
            dWh = xp.concatenate([dWh, late], axis=1)
        db = [_cell_order(xp, x_rows.sum(axis=0)[None], at.x_blocks, H)]
        if cell.biases == 2:
            # such a cell has no second product: these are all gates that h Wh feeds
            db.append(_cell_order(xp, early_rows.sum(axis=0)[None], at.h_blocks, H))
        gradients = (
            _cell_order(xp, dWx, at.x_blocks, H),
            _cell_order(xp, dWh, at.h_blocks, H),
            xp.concatenate(db) if cell.biases == 2 else db[0][0],
        )
        dxs = xp.matmul(x_rows, Wx.T).reshape(T, N, D).transpose(1, 0, 2)
        return xp.ascontiguousarray(dxs), tuple(dstate_), gradients

    def step(self, cell: Cell, x: Array, state: State, params: Sequence[Array]) -> State:
        return self.forward(cell, x[:, None], state, params)[1]

    # ---- what both need

    def _in_order(self, cell: Cell, params: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Wx and Wh with their gates in the layout's order, and b without gaps."""
        Wx, Wh, b = params
        at, H, xp = layout(cell), Wh.shape[0], self.xp
        return (
            _layout_order(xp, Wx, at.x_blocks, H),
            _layout_order(xp, Wh, at.h_blocks, H),
            xp.ascontiguousarray(b),
        )

    def _run(self, cell: Cell, N: int, H: int, kernel: str, *arguments: Any) -> None:
        """Launch a gate kernel: 16 bytes a thread where that divides H, else a number."""
        wide = 16 // arguments[0].dtype.itemsize
        self._launch(cell, kernel, wide if H % wide == 0 else 1, arguments, N, H)


def _time_first(xp: Any, xs: Array) -> Array:
    """(N, T, D) as rows of the steps, (T N, D)."""
    N, T, D = xs.shape
    return xp.ascontiguousarray(xs.transpose(1, 0, 2)).reshape(T * N, D)


def _layout_order(xp: Any, W: Array, blocks: tuple[int, ...], H: int) -> Array:
    """The blocks of H columns in the layout's order; W itself where that is its own."""
    if blocks == tuple(range(len(blocks))):
        return W
    return xp.concatenate([W[:, block * H : (block + 1) * H] for block in blocks], axis=1)


def _cell_order(xp: Any, W: Array, blocks: tuple[int, ...], H: int) -> Array:
    """Back to the cell's own order."""
    return _layout_order(xp, W, tuple(blocks.index(k) for k in range(len(blocks))), H)
