"""Layers and problems with weights in int8, for several modules of tests."""

from typing import Any

import numpy as np

from helpers import Array
from numba_rnn import (
    Reversed,
    Stacked,
    TimeAffine,
    TimeBiGRU,
    TimeBiLSTM,
    TimeDropout,
    TimeGRU,
    TimeLSTM,
    TimePooling,
    TimeProjectedLSTM,
    TimeRecurrent,
    TimeRNN,
    TimeSoftmaxWithLoss,
    cells,
)
from numba_rnn.kernels.quantisation import quantise
from numba_rnn.models import Sequential

ENGINES = ("numpy", "numba")  # those that run weights in int8


def quantised_problem(
    name: str, N: int, T: int, D: int, H: int, seed: int = 0
) -> tuple[cells.Cell, Array, tuple[Array, ...], list[Any]]:
    """A cell, xs, the state, and parameters whose weights are in int8."""
    cell, rng = cells.get(name), np.random.default_rng(seed)
    P = max(1, H - 1) if cell.projected else None
    shapes = cell.shapes(D, H, P)
    params: list[Any] = [
        (rng.standard_normal(shape) / max(1, shape[0]) ** 0.5).astype(np.float32)
        for shape in shapes.values()
    ]
    if N:
        params[0][:, 0] = 0  # a column of zeros
    params = [
        quantise(param) if key in cell.weight_names else param
        for key, param in zip(shapes, params, strict=True)
    ]
    xs = rng.standard_normal((N, T, D)).astype(np.float32)
    if N > 1:
        xs[1, 0] = 0  # a row of zeros
    state = tuple(
        np.tanh(rng.standard_normal((N, size))).astype(np.float32) + (k > 0)
        for k, size in enumerate(cell.state_sizes(H, P or H))
    )
    return cell, xs, state, params


def made(name: str) -> Any:
    """Layers of every kind that has weights of products, and a model of some."""
    options: dict[str, Any] = {"rng": 0}
    return {
        "rnn": lambda: TimeRNN.create(3, 5, **options),
        "lstm": lambda: TimeLSTM.create(3, 5, **options),
        "gru": lambda: TimeGRU.create(3, 5, **options),
        "projected": lambda: TimeProjectedLSTM.create(3, 6, proj_size=4, **options),
        "recurrent": lambda: TimeRecurrent.create(3, 5, cell="lstm_layer_norm", **options),
        "initial": lambda: TimeGRU.create(3, 5, **options).learn_initial_state(),
        "bidirectional": lambda: TimeBiLSTM.create(3, 5, **options),
        "reversed": lambda: Reversed(TimeLSTM.create(3, 5, **options)),
        "stacked": lambda: Stacked.create(3, 5, layers=2, layer=TimeBiGRU, **options),
        "affine": lambda: TimeAffine.create(3, 5, **options),
        "sequential": lambda: Sequential(
            TimeGRU.create(3, 5, **options), TimeDropout(0.5), TimePooling("last"),
            TimeAffine.create(5, 2, **options), loss=TimeSoftmaxWithLoss(),
        ),
    }[name]()  # fmt: skip


XS = np.random.default_rng(1).standard_normal((2, 7, 3)).astype(np.float32)
