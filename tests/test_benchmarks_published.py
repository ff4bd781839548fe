"""Published results, trained again: their data, their models, their twins in PyTorch."""

import importlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from numba_rnn import TimeAffine, TimeLSTM, TimeMSE, TimePooling, TimeSoftmaxWithLoss
from numba_rnn.models import Rnnlm, Sequential
from numba_rnn.training import Adam, Batches, TruncatedBPTT

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def published(monkeypatch):
    """Imports a program; they are part of the checkout, not of what is installed."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.published.{name}")


def test_two_numbers_are_marked_one_in_each_half(published):
    xs, ts = published("memory").adding_sequences(11)(7)
    assert xs.shape == (7, 11, 2)
    assert ts.shape == (7, 1, 1)
    for x, t in zip(xs, ts, strict=True):
        first, second = np.flatnonzero(x[:, 1])
        assert first < 5 <= second
        np.testing.assert_allclose(t, x[first, 0] + x[second, 0], rtol=1e-6)


def test_symbols_are_to_be_copied_after_the_signal(published):
    xs, ts = published("memory").copy_sequences(30)(4)
    assert xs.shape == (4, 50, 10)
    assert ts.shape == (4, 50)
    read = xs.argmax(axis=2)
    assert (read[:, :10] == ts[:, 40:]).all()
    assert (ts[:, 40:] >= 1).all()
    assert ts.max() <= 8
    assert (read[:, 39] == 9).all()
    assert not read[:, 10:39].any()
    assert not read[:, 40:].any()
    assert not ts[:, :40].any()


@pytest.mark.parametrize("name", ["indrnn", "antisymmetric", "chrono lstm"])
def test_weights_keep_what_the_papers_ask_for(published, name):
    memory, T = published("memory"), 8
    model = Sequential(
        *memory.stack(name, 2, T),
        TimePooling("last"),
        TimeAffine.create(memory.H, 1, rng=0),
        loss=TimeMSE(),
    )
    memory.train(name, T, model, memory.adding_sequences(T), 6, 0.1)
    recurrent = model.layers[-3]
    if name == "indrnn":
        assert abs(recurrent.params[2]).max() <= np.float32(2 ** (1 / T))
    elif name == "antisymmetric":
        Wh = recurrent.params[1]
        np.testing.assert_array_equal(Wh - np.diag(np.diag(Wh)), -(Wh.T - np.diag(np.diag(Wh))))
        np.testing.assert_allclose(np.diag(Wh), -0.01, rtol=1e-5)
    assert all(np.isfinite(param).all() for param in model.params)


def test_twins_learn_the_same(published):
    twin, tokens = published("twin"), np.random.default_rng(0).integers(0, 11, 200)
    model, adam = Rnnlm(11, 4, 6, rng=0), Adam(0.01)
    other = twin.Twin([model.embedding, *model.recurrent, model.affine], 0.01)
    for k, (xs, ts) in enumerate(TruncatedBPTT(tokens, 3, 5)):
        loss = model.forward(xs, ts)
        model.backward()
        adam.update(model.params, model.grads, max_norm=1.0)
        theirs = other.iterate(xs, ts, stateful=True)
        # torch.nn.LSTM has its bias twice, which Adam therefore moves twice as far
        assert loss == pytest.approx(theirs, rel=1e-5 if k == 0 else 0.05)


def test_both_race(published):
    xs, ts = np.ones((12, 4, 2), np.float32), np.ones((12, 1), int)
    layers = TimeLSTM.create(2, 6, rng=0), TimePooling("last"), TimeAffine.create(6, 3, rng=1)
    model = Sequential(*layers, loss=TimeSoftmaxWithLoss())
    blocks = partial(Batches, xs, ts, 5)
    twin, made = published("twin").race(model, layers, blocks, 0.1, 0.01, stateful=False)
    assert min(made) > 10
    for outputs in model.predict(xs), twin.outputs(xs).detach().numpy():
        assert (outputs.argmax(axis=2) == ts).all()
