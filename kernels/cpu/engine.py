"""The Numba engine.

One BLAS product for all inputs before the loop, one each for dWx, dWh and dxs after it; between
them the loop over time, compiled (``sequence.py``). Its recurrent product is ours where it is
small, and NumPy's BLAS, called once a step, where it is large: see
``recurrent_product_by_blas``.
"""

import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numba.core import event
from numba.core.errors import NumbaError

from ..cells import Cell
from ..reference import Array, ReferenceEngine, State, expect_consistent
from . import sequence
from .lowering import one_affine
from .options import COMPILED
from .products import transpose


def recurrent_product_by_blas(N: int, T: int, H: int, columns: int) -> bool:
    """Whether a BLAS call each step beats the product in the compiled loop (measured).

    It does where several cores have enough to share, where one row meets weights too large for
    the cache (memory-bound, and the loop's backward reads them transposed by a copy), and where
    a single step cannot repay that copy.
    """
    weights = H * columns
    for_many_rows = N * weights >= 1 << 26
    for_one_row = N == 1 and weights >= 1 << 17
    for_one_step = T == 1 and weights >= 1 << 15
    return for_many_rows or for_one_row or for_one_step


class NumbaEngine(ReferenceEngine):
    """Forward and backward of any cell, compiled for this CPU."""

    name = "numba"

    def forward(
        self, cell: Cell, xs: Array, state: State, params: Sequence[Array]
    ) -> tuple[Array, State, Any]:
        expect_consistent(cell, xs, state, params)
        N, T, D = xs.shape
        Wx, Wh, b = params
        H, h_columns = Wh.shape
        early = h_columns - len(cell.second) * H
        dtype = xs.dtype

        x_side = np.matmul(xs.reshape(N * T, D), Wx).reshape(N, T, Wx.shape[1])
        in_place = len(cell.saved) == len(cell.input_gates)
        saved = x_side if in_place else np.empty((N, T, len(cell.saved) * H), dtype)
        states = np.empty((len(cell.states), N, T + 1, H), dtype)
        for s, before in enumerate(state):
            states[s, :, 0] = before
        operands = np.empty((N, T, H) if cell.second else (0, 0, 0), dtype)
        h_side = np.empty((N, h_columns), dtype)
        bias, Wh_ = _gate_bias(cell, b, H), _plain(Wh)

        by_blas = recurrent_product_by_blas(N, T, H, h_columns)
        with _announce_compilation(cell, "forward", dtype, by_blas):
            if by_blas:
                for t in range(T):
                    np.matmul(states[0, :, t], Wh_[:, :early], out=h_side[:, :early])
                    if cell.second:
                        sequence.operand_gates(cell, t, x_side, h_side, bias, states, operands)
                        np.matmul(operands[:, t], Wh_[:, early:], out=h_side[:, early:])
                    sequence.forward_gates(cell, t, x_side, h_side, bias, states, saved)
            elif cell.second:
                sequence.forward_two_products(
                    cell, x_side, h_side, bias, Wh_, early, states, saved, operands
                )
            else:
                sequence.forward(cell, x_side, h_side, bias, Wh_, early, states, saved)

        hs = states[0, :, 1:].copy()
        last = tuple(states[:, :, T].copy())
        return hs, last, (xs, states, saved, operands, params)

    def backward(
        self, cell: Cell, dhs: Array, dstate: State, saved: Any
    ) -> tuple[Array, State, tuple[Array, ...]]:
        xs, states, keep, operands, (Wx, Wh, _) = saved
        N, T, D = xs.shape
        H, h_columns = Wh.shape
        early = h_columns - len(cell.second) * H
        dtype = xs.dtype

        dhs = _plain(dhs)
        dstates = np.empty((len(cell.states), N, H), dtype)
        for s, after in enumerate(dstate):
            dstates[s] = after
        dh_gates = np.zeros((N, H), dtype)
        dx_side = np.empty((N, T, Wx.shape[1]), dtype)
        dh_side = dx_side if one_affine(cell) else np.empty((N, T, h_columns), dtype)
        doperand = np.empty((N, H), dtype)

        by_blas = recurrent_product_by_blas(N, T, H, h_columns)
        with _announce_compilation(cell, "backward", dtype, by_blas):
            if by_blas:
                for t in reversed(range(T)):
                    sequence.backward_gates(
                        cell, t, dhs, dstates, dh_gates, states, keep, dx_side, dh_side
                    )
                    if cell.second:
                        np.matmul(dh_side[:, t, early:], Wh[:, early:].T, out=doperand)
                        sequence.operand_backward_gates(
                            cell, t, doperand, dstates, states, keep, dx_side, dh_side
                        )
                    np.matmul(dh_side[:, t, :early], Wh[:, :early].T, out=dh_gates)
            else:
                WhT = transpose(_plain(Wh))
                loop = dhs, dstates, dh_gates, WhT, early, states, keep, dx_side, dh_side
                if cell.second:
                    sequence.backward_two_products(cell, *loop, doperand)
                else:
                    sequence.backward(cell, *loop)
        dstates[0] += dh_gates

        dx2, dh2 = dx_side.reshape(N * T, -1), dh_side.reshape(N * T, -1)
        h_prev = states[0, :, :T].reshape(N * T, H)
        dWx = xs.reshape(N * T, D).T @ dx2
        if cell.second:
            dWh = np.empty_like(Wh, order="C")
            np.matmul(h_prev.T, dh2[:, :early], out=dWh[:, :early])
            np.matmul(operands.reshape(N * T, H).T, dh2[:, early:], out=dWh[:, early:])
        else:
            dWh = h_prev.T @ dh2
        db = dx2.sum(axis=0)
        if cell.biases == 2:
            db = np.stack([db, dh2.sum(axis=0)])
        dxs = (dx2 @ Wx.T).reshape(N, T, D)
        return dxs, tuple(dstates), (dWx, dWh, db)

    def describe(self) -> dict[str, Any]:
        features = llvm.get_host_cpu_features()
        widths = {"avx512f": 512, "avx": 256, "sse2": 128, "neon": 128}
        simd_bits = max((bits for name, bits in widths.items() if features.get(name)), default=64)
        cache = "off: no folder can be written to; set NUMBA_CACHE_DIR"
        if COMPILED["cache"]:
            cache = sequence.forward.stats.cache_path
        return {**super().describe(), "simd_bits": simd_bits, "cache": cache}

    def step(self, cell: Cell, x: Array, state: State, params: Sequence[Array]) -> State:
        return self.forward(cell, x[:, None], state, params)[1]


def _plain(array: Array) -> Array:
    """C-contiguous and writable, by a copy if need be: the one kind that is compiled for."""
    return np.require(array, requirements=["C", "W"])


def _gate_bias(cell: Cell, b: Array, H: int) -> Array:
    """One block of bias for each gate: of its input side, its recurrent side, or their sum."""
    if cell.biases == 1:
        return _plain(b)
    bias = np.zeros((len(cell.gates), H), b.dtype)
    bias[list(cell.input_gates)] += b[0].reshape(-1, H)
    bias[list(cell.recurrent_gates)] += b[1].reshape(-1, H)
    return bias.reshape(-1)


_compiled: set[tuple[Any, ...]] = set()


@contextmanager
def _announce_compilation(
    cell: Cell, part: str, dtype: np.dtype[Any], by_blas: bool
) -> Iterator[None]:
    """Say so, on stderr, where the first call of its kind compiles for over two seconds."""
    key = (cell, part, dtype.str, by_blas)
    if key in _compiled:
        yield
        return
    message = (
        f"numba_rnn: compiling the {part} pass of {cell.name} ({dtype}) for this CPU; "
        "it is done once, later runs find it in the cache."
    )
    try:
        with event.install_listener("numba:compile", _SlowCompilation(message)):
            yield
    except NumbaError as error:
        raise TypeError(_compile_error(cell, part, str(error))) from error
    _compiled.add(key)


class _SlowCompilation(event.Listener):
    """Prints a message when a compilation has gone on for two seconds."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._depth = 0  # one compilation starts others
        self._timer: threading.Timer | None = None

    def on_start(self, event: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self._timer = threading.Timer(2.0, self._say)
            self._timer.daemon = True
            self._timer.start()

    def on_end(self, event: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._timer is not None:
            self._timer.cancel()

    def _say(self) -> None:
        print(self._message, file=sys.stderr, flush=True)


def _compile_error(cell: Cell, part: str, message: str) -> str:
    """Numba's message, led by what the cell's author needs of it."""
    file = Path(cell.forward.__code__.co_filename).name
    lines = [
        line
        for name, line in re.findall(r'File "([^"]*)", line (\d+)', message)
        if name.endswith(file)
    ]
    where = f", {file} line {lines[-1]}" if lines else ""
    return (
        f"cell {cell.name!r}, {part} pass{where}: does not compile; cell functions may use "
        f"+ - * / and the functions of functions.py (see kernels/cells/cell.py). Numba says:\n"
        f"{message}"
    )
