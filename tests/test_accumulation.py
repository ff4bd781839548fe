"""Gradients of several batches are those of one that is as large as all of them."""

import numpy as np
import pytest

import numba_rnn as rnn
from fake_device import no_waiting, use_fake_device
from helpers import BACKENDS, StopAt
from numba_rnn import use_backend
from numba_rnn.models import Rnnlm, Sequential
from numba_rnn.training import (
    AdaGrad,
    Adam,
    Batches,
    Momentum,
    Trainer,
    TruncatedBPTT,
    load_checkpoint,
    save_checkpoint,
)
from numba_rnn.training.accumulation import GradientMean

N, T, D, H, V = 22, 5, 3, 4, 6
DRAW = np.random.default_rng(0)
XS, NUMBERS = DRAW.standard_normal((N, T, D)), DRAW.standard_normal((N, T, 2))
LABELS = DRAW.integers(-1, V, (N, T))
LABELS[:3], LABELS[8] = -1, np.arange(5)  # rows of which none counts, one of which all do
LENGTHS = DRAW.integers(1, T + 1, N)
MASK = np.arange(T) < LENGTHS[:, None]
WEIGHTS = DRAW.random((N, T))


def model_of(loss, outputs):
    """Layers without anything random."""
    layer = rnn.TimeGRU.create(D, H, rng=1, dtype=np.float64)
    above = [rnn.TimeAffine.create(H, outputs, rng=2, dtype=np.float64)] if outputs else []
    return Sequential(layer, *above, loss=loss)


class RowMean(rnn.Layer):
    """A loss of a user's own, the mean over the rows, that does not say how much it counts."""

    def forward(self, xs, ts):
        self._tape = xs - ts
        return float((self._tape**2).sum() / len(xs))

    def backward(self, dout=1.0):
        return 2 * dout * self._tape / len(self._tape)


CASES = {
    "labels": (lambda: model_of(rnn.TimeSoftmaxWithLoss(), V), LABELS, {}),
    "weighted labels": (
        lambda: model_of(rnn.TimeSoftmaxWithLoss(), V), LABELS, {"weights": WEIGHTS},
    ),
    "in blocks": (
        lambda: model_of(rnn.TimeAffineSoftmaxWithLoss.create(H, V, rng=3, dtype=np.float64), 0),
        LABELS, {},
    ),
    "adaptive": (
        lambda: model_of(
            rnn.TimeAdaptiveSoftmaxWithLoss.create(H, V, cutoffs=(3,), rng=3, dtype=np.float64), 0
        ),
        np.where(LABELS < 0, 0, LABELS), {"weights": WEIGHTS},
    ),
    "numbers": (lambda: model_of(rnn.TimeMSE(), 2), NUMBERS, {}),
    "masked numbers": (
        lambda: model_of(rnn.TimeMSE(), 2), NUMBERS, {"lengths": LENGTHS, "mask": MASK},
    ),
    "flags": (
        lambda: model_of(rnn.TimeSigmoidWithLoss(), 2), (NUMBERS > 0) * 1.0,
        {"mask": MASK, "weights": WEIGHTS},
    ),
    "a loss of one's own": (lambda: model_of(RowMean(), 2), NUMBERS, {}),
}  # fmt: skip


def trained(name, batch_size, accumulate, epochs=2):
    make, ts, more = CASES[name]
    batches = Batches(XS, ts, batch_size, rng=0, **more)
    trainer = Trainer(
        make(), Momentum(0.1), batches, accumulate=accumulate, max_norm=0.3, progress=False
    )
    trainer.fit(epochs)
    return trainer


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_one_batch_so_many_times_as_large(name, backend):
    """The last iteration of an epoch has what is left: 6 rows of 22."""
    with use_backend(backend):
        want = trained(name, 8, 1)
        for batch_size, accumulate in ((4, 2), (2, 4)):
            got = trained(name, batch_size, accumulate)
            assert got.iteration == want.iteration == 6
            for ours, theirs in zip(got.model.params, want.model.params, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(got.history.train, want.history.train, rtol=1e-9)
            for ours, theirs in zip(got.history.epochs, want.history.epochs, strict=True):
                assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-9)


def test_where_nothing_counts_nothing_changes():
    model = model_of(rnn.TimeMSE(), 2)
    before = [param.copy() for param in model.params]
    batches = Batches(XS, NUMBERS, 4, rng=0, mask=MASK & False)
    history = Trainer(model, Momentum(0.1), batches, accumulate=3, progress=False).fit(1)
    assert history.train[0][1:] == [0, 0]
    for param, same in zip(model.params, before, strict=True):
        np.testing.assert_array_equal(param, same)


def language_model(folder=None, accumulate=4, **options):
    """15 blocks, of which the last iteration has three."""
    corpus = np.random.default_rng(0).integers(0, 11, 601)
    model = Rnnlm(11, 6, 9, layers=2, dropout=0.3, zoneout=0.1, weight_drop=0.2, rng=0)
    return Trainer(
        model, Adam(0.01), TruncatedBPTT(corpus, 4, 10), folder=folder, progress=False,
        valid=corpus[:101], eval_batch=2, eval_time=10, accumulate=accumulate, **options,
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_is_stopped_amid_a_group_resumes_bit_for_bit(tmp_path, backend):
    with use_backend(backend):
        whole = language_model(tmp_path / "whole", save_every=1)
        whole.fit(2)
        assert whole.iteration == 8
        for batch, iteration in ((2, 1), (8, 2), (14, 4), (15, 4), (17, 5)):
            folder = tmp_path / str(batch)
            first = language_model(folder)
            first.model = StopAt(first.model, batch)
            first.fit(2)
            assert first.stopped
            assert first.iteration == iteration  # that which was under way is finished
            second = language_model(folder)
            second.restore(folder / "last.safetensors")
            second.fit(2)
            assert second.history == whole.history
            for file in ("last.safetensors", "best.safetensors"):
                assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sparse_gradients_are_those_of_dense_ones(backend):
    corpus = np.random.default_rng(0).integers(0, 40, 241)

    def run(sparse):
        model = Rnnlm(40, 6, 9, rng=0, sparse_embedding=sparse, dtype=np.float64)
        blocks = TruncatedBPTT(corpus, 2, 6)
        trainer = Trainer(model, AdaGrad(0.1), blocks, accumulate=3, max_norm=0.2, progress=False)
        trainer.fit(2)
        return model

    with use_backend(backend):
        dense, sparse = run(False), run(True)
    assert 0 < len(sparse.grads[0].rows) < 40
    for a, b in zip(sparse.params, dense.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_sparse_gradients_on_a_device():
    def run():
        model = Rnnlm(40, 6, 9, rng=0, sparse_embedding=True, samples=9, dtype=np.float64)
        corpus = np.random.default_rng(0).integers(0, 40, 121)
        options = {"accumulate": 3, "max_norm": 0.2, "progress": False}
        return Trainer(model, AdaGrad(0.1), TruncatedBPTT(corpus, 2, 6), **options)

    want = run()
    want.fit(2)
    with use_fake_device():
        got = run()
        got.model.to("cuda")
        got.fit(2)
        got.model.to("cpu")
    for a, b in zip(got.model.params, want.model.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"accumulate: expected at most the 15 batches .*got 16"):
        language_model(accumulate=16)
    for wrong in (0, 1.5, "2"):
        with pytest.raises((TypeError, ValueError), match="accumulate: expected"):
            language_model(accumulate=wrong)
    language_model(tmp_path).fit(1)
    last = tmp_path / "last.safetensors"
    with pytest.raises(ValueError, match="accumulate: expected 2, got 4"):
        language_model(accumulate=2).restore(last)
    arrays, content = load_checkpoint(last)
    for name in ("accumulate", "average"):  # which checkpoints of version 0.1 have not
        del content["trainer"][name]
    save_checkpoint(tmp_path / "earlier.safetensors", arrays, content)
    language_model(accumulate=1).restore(tmp_path / "earlier.safetensors")


@pytest.mark.filterwarnings("ignore:overflow|invalid value:RuntimeWarning")
def test_one_batch_that_diverges_ends_the_run_before_anything_changes():
    trainer = language_model()
    backward, seen = trainer.model.backward, []

    def spoilt():
        backward()
        seen.append(trainer.model.grads[2])
        trainer.model.grads[2][0, 0] = np.nan if len(seen) == 2 else 0

    trainer.model.backward = spoilt
    before = [param.copy() for param in trainer.model.params]
    with pytest.raises(RuntimeError, match=r"iteration 1: loss .*, gradient norm nan"):
        trainer.fit(1)
    for param, same in zip(trainer.model.params, before, strict=True):
        np.testing.assert_array_equal(param, same)


def test_on_a_device_it_is_the_same_and_nothing_waits():
    want = language_model().fit(2)
    with use_fake_device():
        trainer = language_model()
        trainer.model.to("cuda")
        got = trainer.fit(2)
        mean, grads = GradientMean(), trainer.model.grads
        with no_waiting():
            mean.begin(grads)
            mean.add(grads, grads[0].sum(), 3.0)
            mean.take(grads)
    np.testing.assert_allclose(got.train, want.train, rtol=1e-4)
