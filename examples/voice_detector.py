"""A voice detector whose recurrent part runs here, as a stream.

    pip install "numba-rnn[onnx]" onnxruntime silero-vad
    python examples/voice_detector.py                  made-up audio
    python examples/voice_detector.py --wav talk.wav   16 kHz, 16 bits a sample

Silero VAD says for every 32 ms of audio how likely somebody speaks. Its file, which the package
silero-vad brings, is an ONNX graph: convolutions, an LSTM of 128 units, one more convolution.
ONNX Runtime runs what is before the LSTM and what is behind it; the LSTM is read with
``from_onnx(..., only="recurrent")`` and runs as a ``Stream``, which keeps its state and could be
trained on. The whole graph in ONNX Runtime is the check: the probabilities are the same.
"""

import time
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from numba_rnn import Stream
from numba_rnn.bridges import from_onnx

RATE, STEP, CONTEXT = 16_000, 512, 64  # samples a second, a step; those of the step before


def file_of_silero() -> Path:
    """The graph of the installed package that reads whole sequences, without importing it."""
    spec = find_spec("silero_vad")
    if spec is None or find_spec("onnxruntime") is None:
        raise typer.BadParameter(
            'expected silero-vad and ONNX Runtime: pip install "numba-rnn[onnx]" onnxruntime '
            "silero-vad"
        )
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"


def session_of(model: Any) -> Any:
    """ONNX Runtime on one thread, as the stream."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class Detector:
    """Reads 512 samples at a time and says how likely somebody speaks in them."""

    def __init__(self, model: Any) -> None:
        import onnx

        ((name, lstm),) = from_onnx(model, only="recurrent").items()
        node = next(node for node in model.graph.node if node.name == name)
        parts = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
        ends = [[model.graph.input[0].name], [node.input[0]]], [
            [node.output[0]], [model.graph.output[0].name],
        ]  # fmt: skip
        self._before, self._behind = (session_of(parts.extract_model(*pair)) for pair in ends)
        self._names = [pair[0][0] for pair in ends]
        self.lstm, self._stream = lstm, Stream(lstm)
        self._frame = np.zeros((1, CONTEXT + STEP), np.float32)

    def read(self, samples: np.ndarray) -> float:
        """The probability for these samples, after all that came before."""
        self._frame[:, :CONTEXT] = self._frame[:, -CONTEXT:]
        self._frame[:, CONTEXT:] = samples
        (x,) = self._before.run(None, {self._names[0]: self._frame})
        h = self._stream.step(x.reshape(-1))
        (probability,) = self._behind.run(None, {self._names[1]: h.reshape(1, 1, 1, -1)})
        return float(probability.reshape(()))

    def reset(self) -> None:
        """Begin anew, with other audio."""
        self._stream.reset()
        self._frame[...] = 0


def whole(model: Any, samples: np.ndarray) -> np.ndarray:
    """The probabilities by the whole graph in ONNX Runtime, all steps in one call."""
    steps = samples.reshape(-1, STEP)
    before = np.concatenate([np.zeros((1, CONTEXT), np.float32), steps[:-1, -CONTEXT:]])
    x, h, c = (value.name for value in model.graph.input)
    zeros = np.zeros((1, 1, 128), np.float32)
    frames = np.concatenate([before, steps], axis=1)
    return session_of(model).run(None, {x: frames, h: zeros, c: zeros})[0].reshape(-1)


def made_up(seconds: float = 6, seed: int = 0) -> np.ndarray:
    """Noise, and in every other second a voice of sorts: pulses through three resonances."""
    rng, count = np.random.default_rng(seed), int(seconds * RATE)
    t = np.arange(count) / RATE
    pitch = 120 + 15 * np.sin(2 * np.pi * 3 * t) + 10 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = np.zeros(count)
    for k in range(1, 30):
        formants = (
            700 + 200 * np.sin(2 * np.pi * 2 * t),
            1200 + 400 * np.sin(2 * np.pi * 1.5 * t),
            2600,
        )
        gain = sum(np.exp(-(((k * pitch - f) / 180) ** 2)) for f in formants)
        voice += gain * np.sin(k * phase) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
    speaks = (t % 2 >= 1) * 0.2
    return (speaks * voice + 0.003 * rng.standard_normal(count)).astype(np.float32)


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


def main(
    wav: Annotated[Path | None, typer.Option(help="Audio to read; made up if left out.")] = None,
    threshold: Annotated[float, typer.Option(help="Probability from which it is speech.")] = 0.5,
) -> None:
    """Find speech in audio, 32 ms at a time."""
    path = file_of_silero()
    samples = made_up() if wav is None else read(wav)
    if len(samples) < STEP:
        raise typer.BadParameter(f"expected at least {STEP} samples, got {len(samples)}")
    import onnx

    model = onnx.load(path)
    detector = Detector(model)
    steps = samples[: len(samples) // STEP * STEP].reshape(-1, STEP)
    detector.read(steps[0])  # what is compiled is compiled now
    detector.reset()
    start = time.perf_counter()
    found = np.array([detector.read(step) for step in steps])
    seconds = time.perf_counter() - start
    print(
        f"{detector.lstm}: {len(steps)} steps of 32 ms, {1e6 * seconds / len(steps):.0f} us each; "
        f"largest difference from the whole graph {np.abs(found - whole(model, steps)).max():.0e}"
    )
    edges = np.flatnonzero(np.diff(np.r_[0, found >= threshold, 0]))
    for begin, end in edges.reshape(-1, 2) * STEP / RATE:
        print(f"speech from {begin:.2f} s to {end:.2f} s")
    print(f"speech in {(found >= threshold).mean():.0%} of the steps")


if __name__ == "__main__":
    typer.run(main)
