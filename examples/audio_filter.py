"""A recurrent network as an audio effect, in real time.

    python examples/audio_filter.py                          learn an effect, play made-up audio
    python examples/audio_filter.py --wav in.wav --out out.wav
    python examples/audio_filter.py --model amp.nam          a file for Neural Amp Modeler

A small LSTM learns what a valve amplifier does to a signal (here: a low-pass filter and a soft
clip; with recordings of a real device in their place this is how such devices are modelled, Wright
et al. 2019, "Real-time black-box modelling with recurrent neural networks"). Then a stream runs it
over blocks of samples as a sound card would hand them out: nothing is allocated, and what counts is
the slowest block, which must be done before the next one comes.
"""

import math
import time
import wave
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm import trange

from numba_rnn import Stream, TimeAffine, TimeLSTM, TimeMSE
from numba_rnn.bridges import AmpModel, to_amp
from numba_rnn.training import Adam, TruncatedBPTT, clip_grads

RATE = 48_000  # samples a second


def effect(x: np.ndarray) -> np.ndarray:
    """The effect to be learnt: a one-pole low-pass at 4 kHz, then a clip that is soft."""
    share, y, out = 1 - math.exp(-2 * math.pi * 4000 / RATE), 0.0, np.empty_like(x)
    for n, value in enumerate(x):
        y += share * (value - y)
        out[n] = y
    return np.tanh(3 * out, dtype=np.float32)


def made_up(seconds: float, seed: int) -> np.ndarray:
    """Plucked strings: decaying harmonics, another note every quarter of a second."""
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    since, note = t % 0.25, (t // 0.25).astype(int)
    pitch = rng.choice([110, 147, 196, 247, 330], note[-1] + 1)[note]
    harmonics = range(1, 9)
    parts = (np.sin(2 * np.pi * k * pitch * since) / k * np.exp(-5 * k * since) for k in harmonics)
    return (0.4 * sum(parts)).astype(np.float32)


def train(hidden: int, epochs: int, seed: int = 0) -> tuple[TimeLSTM, TimeAffine, float]:
    """The layers, and the share of the signal's energy that they get wrong on other audio."""
    x = made_up(4, seed)
    blocks = TruncatedBPTT(x[:, None], batch_size=32, time_size=100, targets=effect(x)[:, None])
    lstm = TimeLSTM.create(1, hidden, rng=seed, stateful=True)
    affine, loss, adam = TimeAffine.create(hidden, 1, rng=seed), TimeMSE(), Adam(0.01)
    layers = lstm, affine
    bar = trange(epochs, unit="epoch")
    for epoch in bar:
        blocks.rewind()
        lstm.reset_state()
        total = 0.0
        for xs, ts in blocks:
            total += loss.forward(affine.forward(lstm.forward(xs)), ts)
            lstm.backward(affine.backward(loss.backward()))
            params, grads = ([a for part in layers for a in getattr(part, name)]
                             for name in ("params", "grads"))  # fmt: skip
            clip_grads(grads, max_norm=1.0)
            adam.update(params, grads)
        adam.lr = 0.01 * 0.5 ** (epoch / max(epochs / 4, 1))
        bar.set_postfix_str(f"mean squared error {total / len(blocks):.1e}")
    new = made_up(1, seed + 1)
    want = effect(new)
    got = Stream(layers).step_many(new[:, None])[:, 0]
    return lstm, affine, float(((got - want) ** 2).sum() / (want**2).sum())


def play(stream: Stream, x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The output of the stream, and the seconds that every block took."""
    frames = x[: len(x) // block * block].reshape(-1, block, 1)
    out, seconds = np.empty_like(frames), np.empty(len(frames))
    for k, frame in enumerate(frames):
        start = time.perf_counter()
        stream.step_many(frame, out=out[k])
        seconds[k] = time.perf_counter() - start
    return out.ravel(), seconds


def read(path: Path) -> np.ndarray:
    """The first channel of a WAV file with 16 bits a sample, from -1 to 1."""
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2 or file.getframerate() != RATE:
            raise typer.BadParameter(
                f"expected 16 bits a sample at {RATE} Hz, got {8 * file.getsampwidth()} bits at "
                f"{file.getframerate()} Hz", param_hint="--wav",
            )  # fmt: skip
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return samples[:: file.getnchannels()].astype(np.float32) / 32768


def write(path: Path, x: np.ndarray) -> None:
    """One channel, 16 bits a sample."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(x, -1, 1) * 32767).astype("<i2").tobytes())


def main(
    hidden: Annotated[int, typer.Option(help="Units of the LSTM.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over four seconds of audio.")] = 20,
    block: Annotated[int, typer.Option(help="Samples that the sound card hands out at once.")] = 64,
    wav: Annotated[Path | None, typer.Option(help="Audio to play; made up if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the result goes, a WAV file.")] = None,
    model: Annotated[Path | None, typer.Option(help="Where the network goes, a .nam file.")] = None,
) -> None:
    """Learn an audio effect with a small LSTM, then run it block by block."""
    x = made_up(10, seed=2) if wav is None else read(wav)
    lstm, affine, wrong = train(hidden, epochs)
    print(f"learnt: {wrong:.2%} of the energy of audio it has not heard is wrong")
    y, seconds = play(Stream([lstm, affine]), x, block)
    due = block / RATE
    print(
        f"{len(y) / RATE:.1f} s of audio in blocks of {block}, one every {1e6 * due:.0f} us: "
        f"median {1e6 * np.median(seconds):.0f} us, 99.9 % within "
        f"{1e6 * np.quantile(seconds, 0.999):.0f} us, the slowest {1e6 * seconds.max():.0f} us; "
        f"{(seconds > due).sum()} of {len(seconds)} were late; "
        f"{len(y) / RATE / seconds.sum():.0f} times as fast as it plays"
    )
    if model is not None:
        to_amp(AmpModel([lstm, affine], RATE), model, format="nam")
    if out is not None:
        write(out, y)
        print(f"written {str(out)!a}")  # in letters that every terminal has


if __name__ == "__main__":
    typer.run(main)
