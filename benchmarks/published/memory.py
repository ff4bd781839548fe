"""Memory over long sequences: the adding problem and copy memory."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.published import Options, Row
from numba_rnn import TimeAffine, TimeMSE, TimePooling, TimeRecurrent, TimeSoftmaxWithLoss, cell
from numba_rnn.functions import sigmoid, tanh
from numba_rnn.models import Sequential
from numba_rnn.training import Adam

H, BATCH = 128, 50
Draw = Callable[[int], tuple[Any, Any]]


@cell(input_only="z a", recurrent_only="r")
def antisymmetric(z, a, r, h):
    """Antisymmetric RNN with a gate (Chang et al. 2019); ``train`` keeps Wh antisymmetric."""
    return h + 0.1 * sigmoid(z + r) * tanh(a + r)


def stack(name: str, D: int, T: int) -> list[TimeRecurrent]:
    """The recurrent layers, which start as the papers have them."""
    count, rng = (2 if name == "indrnn" else 1), np.random.default_rng(0)
    kind = antisymmetric if name == "antisymmetric" else name.removeprefix("chrono ")
    layers = [TimeRecurrent.create(H if k else D, H, cell=kind, rng=k) for k in range(count)]
    for k, layer in enumerate(layers):
        Wx, *more = layer.params
        if name == "indrnn":  # Li et al. 2018: the last layer's units all remember for T steps
            Wx[...] = rng.normal(0, 0.001, Wx.shape)
            more[1][...] = rng.uniform(0.5 ** (1 / T) if k else 0, 2 ** (1 / T), more[1].shape)
        elif name == "antisymmetric":
            more[0] -= more[0].T.copy()
            more[0][...] -= 0.01 * np.eye(H)
        elif name == "chrono lstm":  # Tallec & Ollivier 2018: units remember for 1 to T steps
            f, _, i, _ = more[1].reshape(4, H)
            f[...] = np.log(rng.uniform(1, T - 1, H))
            i[...] = -f
    return layers


def train(name: str, T: int, model: Sequential, draw: Draw, iterations: int, lr: float) -> float:
    """The loss on 1,000 new sequences."""
    optimiser, recent = Adam(lr), []
    recurrent = [layer for layer in model.layers if isinstance(layer, TimeRecurrent)]
    for k in range(iterations):
        recent.append(model.forward(*draw(BATCH)))
        model.backward()
        for layer in recurrent if name == "antisymmetric" else ():
            layer.grads[1] -= layer.grads[1].T.copy()
        optimiser.update(model.params, model.grads, max_norm=None if name == "indrnn" else 1.0)
        for layer in recurrent if name == "indrnn" else ():
            np.clip(layer.params[2], -(2 ** (1 / T)), 2 ** (1 / T), out=layer.params[2])
        if (k + 1) % (iterations // 6) == 0:
            mean = np.mean(recent[-iterations // 12 :])
            print(f"  {name}, T {T}, iteration {k + 1}: {mean:.5f}", flush=True)
    return float(np.mean([model.evaluate(*draw(BATCH))[0] for _ in range(1000 // BATCH)]))


def adding_sequences(T: int) -> Draw:
    """Numbers, of which two are marked; their sum."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[Any, Any]:
        xs = np.zeros((count, T, 2), np.float32)
        xs[:, :, 0] = rng.random((count, T))
        rows = np.arange(count)
        for start, stop in (0, T // 2), (T // 2, T):
            xs[rows, rng.integers(start, stop, count), 1] = 1
        return xs, xs.prod(axis=2).sum(axis=1).reshape(count, 1, 1)

    return draw


def adding(options: Options) -> Iterator[Row]:
    """The adding problem."""
    for name, T, iterations, published in (
        ("lstm", 100, 6000, "solved (Arjovsky et al. 2016)"),
        ("gru", 100, 6000, "none"),
        ("indrnn", 100, 6000, "solved (Li et al. 2018)"),
        ("antisymmetric", 100, 6000, "none"),
        ("lstm", 200, 6000, "solved (Arjovsky et al. 2016)"),
        ("gru", 600, 3000, "0.000053 (Bai et al. 2018)"),
        ("indrnn", 400, 6000, "solved (Li et al. 2018)"),
        ("indrnn", 1000, 9000, "solved (Li et al. 2018)"),
    ):
        begun, layers = time.perf_counter(), stack(name, 2, T)
        model = Sequential(
            *layers, TimePooling("last"), TimeAffine.create(H, 1, rng=9), loss=TimeMSE()
        )
        lr = 2e-4 if name == "indrnn" else 0.002
        error = train(name, T, model, adding_sequences(T), iterations, lr)
        row = f"adding, {name}, T {T}"
        yield row, published, f"{error:.6f}", time.perf_counter() - begun


def copy_sequences(T: int) -> Draw:
    """Ten symbols to be repeated T steps after they were read (Arjovsky et al. 2016)."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[Any, Any]:
        xs, ts = np.zeros((2, count, T + 20), int)
        xs[:, :10] = ts[:, -10:] = rng.integers(1, 9, (count, 10))
        xs[:, -11] = 9  # now
        return np.eye(10, dtype=np.float32)[xs], ts

    return draw


def copy(options: Options) -> Iterator[Row]:
    """Copy memory."""
    for name, T, iterations, published in (
        ("lstm", 100, 3000, "0.173 (Arjovsky et al. 2016)"),  # which is the baseline
        ("chrono lstm", 100, 10_000, "below 0.173 (Tallec et al. 2018)"),
        ("indrnn", 100, 3000, "none"),
        ("antisymmetric", 100, 3000, "none"),
        ("gru", 1000, 2000, "0.0197 (Bai et al. 2018)"),
    ):
        begun, layers = time.perf_counter(), stack(name, 10, T)
        model = Sequential(*layers, TimeAffine.create(H, 9, rng=9), loss=TimeSoftmaxWithLoss())
        error = train(name, T, model, copy_sequences(T), iterations, 0.002)
        baseline = 10 * math.log(8) / (T + 20)
        print(f"  copy memory, {name}, T {T}: {error:.5f}, baseline {baseline:.5f}", flush=True)
        row = f"copy memory, {name}, T {T}"
        yield row, published, f"{error:.5f}", time.perf_counter() - begun
