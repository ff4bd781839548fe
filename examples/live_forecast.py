"""Forecasts of a series while it comes in.

    python examples/live_forecast.py                     a made-up sensor
    some-program | python examples/live_forecast.py -    a number a line, from anywhere

A GRU learns from the first numbers, then goes on step by step: before every number it says what
comes next, and with ``--ahead`` also what comes after that. For this it rolls on with its own
forecasts and then goes back to where it was (``snapshot`` and ``restore``). A gap in the series (an
empty line) is filled with its own forecast.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated

import numpy as np
import typer
from tqdm import trange

from numba_rnn import Stream, TimeAffine, TimeGRU, TimeMSE
from numba_rnn.training import Adam, TruncatedBPTT, clip_grads


def sensor(count: int, seed: int = 0) -> Iterator[float]:
    """A day's and an hour's rhythm, a drift and noise; a gap now and then."""
    rng, drift = np.random.default_rng(seed), 0.0
    for t in range(count):
        drift = 0.99 * drift + 0.05 * rng.standard_normal()
        value = 20 + 4 * math.sin(t / 24) + 1.5 * math.sin(t / 3.7) + drift
        yield math.nan if rng.random() < 0.002 else value + 0.1 * rng.standard_normal()


def numbers(lines: Iterable[str]) -> Iterator[float]:
    """A number a line, NaN for an empty one."""
    for k, line in enumerate(lines, 1):
        try:
            yield float(line) if line.strip() else math.nan
        except ValueError:
            raise typer.BadParameter(f"line {k}: expected a number, got {line!r}") from None


def train(series: np.ndarray, hidden: int, epochs: int) -> list[TimeGRU | TimeAffine]:
    """Layers that say by how much the next number differs from this one."""
    steps = np.diff(series)
    xs = np.stack([series[:-1], np.r_[0, steps[:-1]]], axis=1).astype(np.float32)
    blocks = TruncatedBPTT(xs, 8, 32, targets=steps[:, None].astype(np.float32))
    gru, affine = (
        TimeGRU.create(2, hidden, rng=0, stateful=True),
        TimeAffine.create(hidden, 1, rng=1),
    )
    loss, adam = TimeMSE(), Adam(0.005)
    for _ in trange(epochs, unit="epoch", file=sys.stderr):
        blocks.rewind()
        gru.reset_state()
        for block, ts in blocks:
            loss.forward(affine.forward(gru.forward(block)), ts)
            gru.backward(affine.backward(loss.backward()))
            grads = gru.grads + affine.grads
            clip_grads(grads, max_norm=1.0)
            adam.update(gru.params + affine.params, grads)
    return [gru, affine]


class Forecaster:
    """Reads a number at a time; ``next`` is what it expects then.

    mean, scale   of the numbers that it learnt from: it works in units of ``scale``
    """

    def __init__(self, layers: list[TimeGRU | TimeAffine], mean: float, scale: float) -> None:
        self._stream, self._mean, self._scale = Stream(layers), mean, scale
        self._x = np.zeros(2, np.float32)
        self.next = mean

    def read(self, value: float) -> None:
        """The number that came; NaN: none did."""
        value = (self.next if math.isnan(value) else value) - self._mean
        value /= self._scale
        self._x[:] = value, value - self._x[0]
        self.next = self._mean + self._scale * (value + float(self._stream.step(self._x)[0]))

    def ahead(self, count: int) -> list[float]:
        """The next numbers as far as can be said now; where the series is stays as it is."""
        before = self._stream.snapshot(), self._x.copy(), self.next
        found = []
        for _ in range(count):
            found.append(self.next)
            self.read(self.next)
        state, self._x, self.next = before
        self._stream.restore(state)
        return found


def main(
    source: Annotated[str, typer.Argument(help="- reads numbers from standard input.")] = "",
    learn: Annotated[int, typer.Option(help="How many numbers are learnt from first.")] = 3000,
    hidden: Annotated[int, typer.Option(help="Units of the GRU.")] = 24,
    epochs: Annotated[int, typer.Option(help="Passes over what is learnt from.")] = 30,
    ahead: Annotated[int, typer.Option(help="Steps of the longer forecasts.")] = 10,
    every: Annotated[int, typer.Option(help="Print a line after so many numbers.")] = 200,
) -> None:
    """Learn from the beginning of a series, then forecast it live."""
    series = numbers(sys.stdin) if source == "-" else sensor(learn + 2000)
    first = np.array([value for value in islice(series, learn) if not math.isnan(value)])
    if len(first) < 300:
        raise typer.BadParameter(f"expected at least 300 numbers to learn from, got {len(first)}")
    mean, scale = float(first.mean()), float(first.std()) or 1.0
    forecaster = Forecaster(train((first - mean) / scale, hidden, epochs), mean, scale)
    for value in first:
        forecaster.read(float(value))

    last, errors, naive = float(first[-1]), [0.0], [0.0]
    for count, value in enumerate(series, 1):
        if not math.isnan(value):
            errors.append(abs(forecaster.next - value))
            naive.append(abs(last - value))
            last = value
        forecaster.read(value)
        if count % every == 0:
            later = ", ".join(f"{x:.1f}" for x in forecaster.ahead(ahead))
            print(f"{count:6d}  now {last:.2f}  next {forecaster.next:.2f}  then {later}")
    print(
        f"mean error one step ahead {np.mean(errors[1:]):.3f}; of saying 'as now' "
        f"{np.mean(naive[1:]):.3f}"
    )


if __name__ == "__main__":
    typer.run(main)
