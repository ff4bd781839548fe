"""Helpers of several test files."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from numba_rnn import cells
from numba_rnn.kernels import functions as f
from numba_rnn.kernels.reference import NumpyEngine

BACKENDS = ("numpy", "numba")  # what layers are tested on; on a GPU's arrays: test_device.py
ENGINES = ("numba", "cuda")  # every engine but the reference: a new one is added here, and tested
ALL_ENGINES = ("numpy", *ENGINES)
DTYPES = (np.float32, np.float64)
# every form that a cell can have: one product or two, or the second alone, or none; gates of x or
# of h alone; weights of its own; gates that are normalised, before the operand and after it, fed
# by the second product or by the operand itself. Tests try these in all sizes, the others in a few
REPRESENTATIVES = (
    "gru", "gru2", "gru_reset_after", "indrnn", "jordan", "lstm", "lstm_layer_norm", "rnn",
)  # fmt: skip
OTHER_CELLS = tuple(name for name in cells.names() if name not in REPRESENTATIVES)
# every cell in float32, every form in float64 too: half of the time is the compiler's
CELLS_AND_DTYPES = [
    *((name, np.float32) for name in cells.names()),
    *((name, np.float64) for name in REPRESENTATIVES)
]  # fmt: skip
# how the numba engine's work may be shared: shards, and whether by rows of the batch or by units
PARTITIONS = [(1, True), (2, True), (2, False), (3, True), (3, False), (5, False)]

Array = np.ndarray


def relative_error(a: Array, b: Array) -> float:
    """max|a - b| / max|b|: 0 where both are exactly 0, infinite where a NaN is anywhere."""
    a, b = np.asarray(a, np.longdouble), np.asarray(b, np.longdouble)
    assert a.shape == b.shape
    if np.isnan(a).any() or np.isnan(b).any():
        return float("inf")
    difference, size = np.abs(a - b).max(), np.abs(b).max()
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(difference / size)


def central_differences(loss: Callable[[], float], array: Array, step: float = 1e-5) -> Array:
    """The gradient of loss() by every number of a float64 array, which is changed in place."""
    gradient = np.empty(array.shape)
    for place in np.ndindex(array.shape):
        here = array[place]
        array[place] = here + step
        above = loss()
        array[place] = here - step
        below = loss()
        array[place] = here
        gradient[place] = (above - below) / (2 * step)
    return gradient


@dataclass(frozen=True)
class Problem:
    """A cell with everything that forward and backward take."""

    cell: cells.Cell
    xs: Array
    state: tuple[Array, ...]
    params: tuple[Array, ...]
    dhs: Array
    dstate: tuple[Array, ...]

    def map(self, *changes: Callable[[Array], Array]) -> "Problem":
        """Every array changed: by one function, or by one each for the fields in their order."""
        xs, state, params, dhs, dstate = changes if len(changes) > 1 else changes * 5
        return Problem(
            self.cell,
            xs(self.xs),
            tuple(map(state, self.state)),
            tuple(map(params, self.params)),
            dhs(self.dhs),
            tuple(map(dstate, self.dstate)),
        )

    def arrays(self) -> Iterator[Array]:
        yield from (self.xs, *self.state, *self.params, self.dhs, *self.dstate)


def outcome(engine: NumpyEngine, p: Problem) -> dict[str, Array]:
    """Everything an engine computes, by name, as NumPy arrays."""
    p = p.map(engine.to_device)
    hs, state, saved = engine.forward(p.cell, p.xs, p.state, p.params)
    dxs, dstate, dparams, *_ = engine.backward(p.cell, p.dhs, p.dstate, saved)
    stepped = engine.step(p.cell, p.xs[:, 0], p.state, p.params)
    names = p.cell.states
    found = {
        "hs": hs,
        **_named("{} at the end", names, state),
        "dxs": dxs,
        **_named("d{} at the start", names, dstate),
        **_named("d{}", tuple(p.cell.shapes(1, 1)), dparams),
        **_named("{} by step", names, stepped),
    }
    return {name: engine.to_host(array) for name, array in found.items()}


def _named(pattern: str, names: Sequence[str], arrays: Sequence[Array]) -> dict[str, Array]:
    return {pattern.format(name): array for name, array in zip(names, arrays, strict=True)}


def problem(
    cell: str | cells.Cell,
    N: int,
    T: int,
    D: int,
    H: int,
    dtype: Any = np.float64,
    *,
    seed: int = 0,
    margin: float = 1e-6,
) -> Problem:
    """Random numbers of moderate size, and a problem that is well conditioned.

    No pre-activation is within ``margin`` of 0, where relu has its kink, and no result is what is
    left of numbers that cancel, for that would be rounding errors.
    """
    rng = np.random.default_rng(seed)
    for _ in range(100):
        made = random_problem(cell, N, T, D, H, dtype, rng=rng)
        if _distance_to_kink(made) > margin and _amplification(made) < 10:
            return made
    raise AssertionError(f"{cell} of N {N}, T {T}, D {D}, H {H}: no problem is well conditioned")


def random_problem(
    cell: str | cells.Cell,
    N: int,
    T: int,
    D: int,
    H: int,
    dtype: Any = np.float64,
    *,
    rng: Any = 0,
) -> Problem:
    """Random numbers of moderate size."""
    cell, rng = cells.get(cell), np.random.default_rng(rng)

    def uniform(limit: float, shape: tuple[int, ...]) -> Array:
        return rng.uniform(-limit, limit, shape).astype(dtype)

    P = (H + 1) // 2 if cell.projected else H
    sizes = dict.fromkeys(cell.states, H) | {cell.states[0]: P}

    def states() -> tuple[Array, ...]:
        return tuple(uniform(1, (N, size)) + start(cell, name) for name, size in sizes.items())

    limits = {"Wx": 1 / np.sqrt(D), "Wh": 1 / np.sqrt(H), "b": 0.5, "w": 0.5, "Wr": 1 / np.sqrt(H)}
    params = tuple(uniform(limits[name], shape) for name, shape in cell.shapes(D, H, P).items())
    xs = uniform(1, (N, T, D))
    dstate = tuple(uniform(1, (N, size)) for size in sizes.values())
    return Problem(cell, xs, states(), params, uniform(1, (N, T, P)), dstate)


def cancels(cell: str | cells.Cell, H: int) -> bool:
    """Whether gradients are what is left of numbers that cancel, whatever the numbers are.

    Normalised, two units are 1 and -1: nearly nothing depends on the numbers that they come from.
    """
    return bool(cells.get(cell).normalised) and H in (2, 3)


def start(cell: cells.Cell, state: str) -> Any:
    """The centre of random states: sLSTM divides by n, a sum of positive numbers."""
    return np.float32(1.5 if (cell.name, state) == ("slstm", "n") else 0)


def _distance_to_kink(p: Problem) -> float:
    """The smallest pre-activation of the whole run."""
    smallest = []

    def forward(gates: tuple[Array, ...], state: tuple[Array, ...]) -> Any:
        plain = [
            np.abs(gate).min()  # of a single unit, what is normalised is 0
            for name, gate in zip(p.cell.gates, gates, strict=True)
            if name not in p.cell.normalised
        ]
        smallest.append(min(plain, default=np.inf))
        return p.cell.forward(gates, state)

    NumpyEngine().forward(replace(p.cell, forward=forward), p.xs, p.state, p.params)
    return min(smallest)


def _amplification(p: Problem) -> float:
    """How many times larger than a relative error of what goes in is that of what comes out."""
    noise, rng = 1e-6, np.random.default_rng(0)
    exact = p.map(lambda array: array.astype(np.float64))
    want = outcome(NumpyEngine(), exact)

    def shaken(array: Array) -> Array:
        return array * (1 + noise * rng.choice([-1, 1], array.shape))

    return max(
        relative_error(got, want[name]) / noise
        for _ in range(2)
        for name, got in outcome(NumpyEngine(), exact.map(shaken)).items()
    )


def _calling_all(x: Any) -> Any:
    """Every function that cells may call, once at least, without jumps."""
    y = f.sigmoid(x) - f.tanh(x) + f.relu(x) + f.dsigmoid(x) + f.dtanh(x)
    y = y + f.exp(x) - f.softplus(3 * x) + f.log_sigmoid(x) * f.silu(2 * x)
    y = y + f.hard_sigmoid(4 * x) * f.hard_tanh(2 * x) + f.absolute(x) / f.sqrt(1 + x * x)
    y = y + f.maximum(x, -0.25) * f.minimum(0.25, x) + f.maximum(x, 1 - x) * f.minimum(-x, x)
    y = y + f.where(x < 0.1, x - 0.1, 0.0) + f.where(x >= -0.1, 0, 2 * x + 0.2)
    return y + f.where(x <= y, y, x) + f.where(x > 0.2, x, 0.2) + f.drelu(f.absolute(x) + 1)


def _forward_of_all(gates: Any, state: Any) -> Any:
    (a,), (h,) = gates, state
    new = 0.1 * _calling_all(a) + 0.5 * h
    return (new,), (new, a)


def _backward_of_all(dstate: Any, saved: Any, state: Any) -> Any:
    """Not forward's gradient: it is there to be compared, engine with engine."""
    (dh,), (_, a) = dstate, saved
    return (0.1 * dh * f.where(a < 0, f.exp(a), 1) * f.silu(a),), (0.5 * dh,)


CALLING_ALL = cells.Cell(
    name="calling_all",
    gates=("a",),
    states=("h",),
    saved=("h", "a"),
    forward=_forward_of_all,
    backward=_backward_of_all,
)


class StopAt:
    """A model that asks the trainer to stop at a batch, as Ctrl-C would."""

    def __init__(self, model: Any, batch: int, number: int = signal.SIGINT) -> None:
        self.model, self.left, self.number = model, batch, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def backward(self) -> None:
        self.model.backward()
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)


def run_python(
    code: str, env: Mapping[str, str] | None = None, cwd: Path = Path(__file__).parent
) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh Python, which must end well; ours are its only NUMBA_RNN_ variables.

    Warnings are errors there too, unless the program says otherwise.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_RNN_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**inherited, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
