"""The pictures of the guide, each from a run: python docs/tools/pictures.py (half a minute)."""

from pathlib import Path

import numpy as np
from learn import english_model
from matplotlib.figure import Figure

from numba_rnn import TimeRNN, viz

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SENTENCE = "a class is a way to keep data and functions together.\n"


def backward() -> None:
    """The backward pass through a step of an RNN, as a film."""
    layer = TimeRNN.create(2, 2, rng=0)
    xs = np.random.default_rng(0).standard_normal((1, 3, 2)).astype(np.float32)
    viz.animate_backward(layer, ASSETS / "backward.gif", xs, dpi=70)


def unrolled() -> None:
    """An RNN over time, and where truncated BPTT cuts."""
    layer = TimeRNN.create(2, 2, rng=0)
    viz.unrolled(layer, T=6, truncated=3).savefig(ASSETS / "unrolled.png", dpi=80)


def gates() -> None:
    """The gates of a small LSTM that has learnt to write English, over a sentence."""
    vocabulary, model = english_model()
    model.reset_state()
    model.predict(vocabulary.encode(SENTENCE)[None], trace=True)
    figure = Figure(figsize=(14, 5), layout="constrained")
    viz.gates(model.recurrent[0].trace, gates=["f", "o"], labels=list(SENTENCE), figure=figure)
    figure.savefig(ASSETS / "gates.png", dpi=80)


if __name__ == "__main__":
    backward()
    unrolled()
    gates()
