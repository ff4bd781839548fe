"""Averages of weights: what they are, when they begin, and that a run resumes with them."""

import math

import numpy as np
import pytest

import numba_rnn as rnn
from fake_device import no_waiting, use_fake_device
from helpers import BACKENDS, StopAt
from numba_rnn import use_backend
from numba_rnn.models import Rnnlm, Sequential
from numba_rnn.training import (
    SGD,
    Adam,
    Batches,
    ExponentialAverage,
    NonMonotoneAverage,
    Trainer,
    TrainingDiverged,
    TruncatedBPTT,
    load_checkpoint,
    save_checkpoint,
)
from numba_rnn.training.averages import both_in_one, weights_and_average

CORPUS = np.random.default_rng(0).integers(0, 11, 401)
VALID = np.random.default_rng(1).integers(0, 11, 101)
DRAW = np.random.default_rng(2)
XS, TS = DRAW.standard_normal((12, 5, 3)), DRAW.standard_normal((12, 5, 2))


def make(folder=None, average=None, optimiser=None, **options):
    model = Rnnlm(11, 6, 9, layers=2, dropout=0.3, zoneout=0.1, weight_drop=0.2, tie=False, rng=0)
    options = {"valid": VALID, "eval_batch": 2, "eval_time": 10, "progress": False, **options}
    blocks = TruncatedBPTT(CORPUS, 4, 10)  # 10 blocks
    return Trainer(
        model, optimiser or Adam(0.01), blocks, folder=folder, average=average, max_norm=0.5,
        **options,
    )  # fmt: skip


def scored(trainer, scores):
    """Validation that says these, whatever the weights are."""
    coming = iter(scores)
    trainer.model.perplexity = lambda *_: next(coming)
    return trainer


def weights_after_updates(trainer):
    """A list that gets the weights after every update, in float64."""
    seen, iterate = [], trainer._iterate

    def spy(group):
        iterate(group)
        seen.append([param.astype(np.float64) for param in trainer.model.params])

    trainer._iterate = spy
    return seen


def inside(trainer):
    with trainer.averaged():
        return [param.copy() for param in trainer.model.params]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_an_exponential_average_is_a_weighted_mean(decay, backend):
    """With weight (1 - keep) of its own update, and keep of each one later."""
    with use_backend(backend):
        trainer = make(average=ExponentialAverage(decay))
        seen = weights_after_updates(trainer)
        trainer.fit(2)
        keep = np.minimum(decay, np.arange(20) / (np.arange(20) + 10))
        shares = (1 - keep) * np.append(np.cumprod(keep[:0:-1])[::-1], 1)
        assert shares.sum() == pytest.approx(1)
        assert trainer.average.updates == len(seen) == 20
        for k, mean in enumerate(inside(trainer)):
            want = np.average([weights[k] for weights in seen], axis=0, weights=shares)
            np.testing.assert_allclose(mean, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_non_monotone_average_is_the_mean_since_it_began(backend):
    """Of interval 2: epoch 4 is worse than the first, and neither of the two before counts."""
    with use_backend(backend):
        told = []
        trainer = make(average=NonMonotoneAverage(2), optimiser=SGD(0.5), log=told.append)
        seen = weights_after_updates(trainer)
        scored(trainer, [5.0, 4.0, 6.0, 5.5, 1.0, 2.0]).fit(6)
        assert [entry["averaged"] for entry in trainer.history.epochs] == 4 * [False] + 2 * [True]
        assert "the average of the weights begins after epoch 4" in told
        assert trainer.average.updates == 21  # the paper's T is among them
        for k, mean in enumerate(inside(trainer)):
            want = np.mean([weights[k] for weights in seen[39:]], axis=0)
            np.testing.assert_allclose(mean, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("interval", "scores", "epoch"),
    [
        (1, [3.0, 2.0, 2.5, 9.0], 4),  # 2.5 is better than the 3 of all but the last
        (1, [3.0, 2.0, 3.5], 3),
        (2, [3.0, 2.0, 3.5, 2.5, 3.0], 5),  # as good as the first, worse than the second
        (5, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 7),  # t > n: not before epoch n + 2
        (5, [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], None),
    ],
)
def test_the_trigger_is_that_of_the_paper(interval, scores, epoch):
    """v > min(logs[: t - n]) where t > n, for t the number of values before."""
    average, params = NonMonotoneAverage(interval), [np.zeros(3)]
    for t, v in enumerate(scores):
        logs = scores[:t]
        begins = t > interval and v > min(logs[: t - interval]) and average.waiting
        assert average.end_epoch(params, scores[: t + 1]) == begins
        if begins:
            assert t + 1 == epoch
    assert average.updates == (epoch is not None)


def test_the_run_waits_for_the_average_to_begin():
    """Neither does the learning rate fall before, nor does patience run out."""
    trainer = make(average=NonMonotoneAverage(5), optimiser=SGD(0.5), patience=3, decay=4)
    history = scored(trainer, [1.0] + 20 * [2.0]).fit(20)
    assert history.epochs[6]["averaged"] is False
    assert history.epochs[7]["averaged"] is True
    assert [entry["lr"] for entry in history.epochs] == 8 * [0.5] + [0.125, 0.03125]
    assert len(history.epochs) == 10  # three after the seventh, after which it began
    trainer = make(average=ExponentialAverage(), optimiser=SGD(0.5), patience=3)
    assert len(scored(trainer, [1.0] + 20 * [2.0]).fit(20).epochs) == 4


def test_validation_uses_the_average_and_training_the_weights(tmp_path):
    plain = make(valid=CORPUS)
    plain.fit(3)
    trainer = make(tmp_path, ExponentialAverage(0.9), valid=CORPUS)
    perplexity, validated = trainer.model.perplexity, []

    def spy(*args):
        validated.append([param.copy() for param in trainer.model.params])
        return perplexity(*args)

    trainer.model.perplexity = spy
    history = trainer.fit(3)
    for ours, theirs in zip(trainer.model.params, plain.model.params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert history.train == plain.history.train
    assert history.scores != plain.history.scores
    for mean, seen, raw in zip(inside(trainer), validated[-1], trainer.model.params, strict=True):
        np.testing.assert_array_equal(mean, seen)
        assert (mean != raw).any()
    assert history.scores[-1] == history.best
    best, last = (load_checkpoint(tmp_path / f"{name}.safetensors")[0] for name in ("best", "last"))
    for (name, layer, k), mean in zip(trainer.model._slots, validated[-1], strict=True):
        np.testing.assert_array_equal(best[f"param/{name}"], mean)
        np.testing.assert_array_equal(last[f"average/param/{name}"], mean)
        np.testing.assert_array_equal(best[f"raw/param/{name}"], layer.params[k])
        np.testing.assert_array_equal(last[f"param/{name}"], layer.params[k])


def test_load_takes_the_average_from_the_best_and_the_weights_from_the_last(tmp_path):
    def model():
        layers = rnn.TimeGRU.create(3, 4, rng=1), rnn.TimeAffine.create(4, 2, rng=2)
        return Sequential(*layers, loss=rnn.TimeMSE())

    xs, ts = XS.astype(np.float32), TS.astype(np.float32)
    trainer = Trainer(
        model(), Adam(0.02), Batches(xs, ts, 4, rng=0), valid=(xs, ts), folder=tmp_path,
        average=ExponentialAverage(0.8), progress=False,
    )  # fmt: skip
    history = trainer.fit(4)
    assert history.best == history.scores[-1]
    best = model().load(tmp_path / "best.safetensors")
    assert best.evaluate(xs, ts)[0] == history.best
    last = model().load(tmp_path / "last.safetensors")
    for ours, theirs in zip(last.params, trainer.model.params, strict=True):
        np.testing.assert_array_equal(ours, theirs)


AVERAGES = {"ema": lambda: ExponentialAverage(0.9), "nt": lambda: NonMonotoneAverage(1)}
SCORES = [5.0, 4.0, 6.0, 3.0, 2.0]  # the second kind begins after the third epoch


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", AVERAGES)
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, kind, backend):
    def run(folder, stop_at=None, file="last"):
        trainer = make(folder, AVERAGES[kind](), SGD(0.3), patience=0)
        if (folder / "last.safetensors").exists():
            trainer.restore(folder / f"{file}.safetensors")
        scored(trainer, SCORES[trainer.epoch :])
        if stop_at:
            trainer.model = StopAt(trainer.model, stop_at)
        trainer.fit(5)
        return trainer

    with use_backend(backend):
        whole = run(tmp_path / "whole")
        for stop_at in (1, 10, 25, 30, 31, 42):
            folder = tmp_path / str(stop_at)
            assert run(folder, stop_at).stopped
            second = run(folder)
            assert second.history == whole.history
            assert second.average.updates == whole.average.updates
            for file in ("last.safetensors", "best.safetensors"):
                assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_run_goes_on_from_its_best_checkpoint_too(tmp_path):
    trainer = make(tmp_path, ExponentialAverage(0.9))
    scored(trainer, [3.0, 2.0, 4.0]).fit(3)
    again = make(average=ExponentialAverage(0.9))
    again.restore(tmp_path / "best.safetensors")
    assert again.epoch == 2
    scored(again, [4.0]).fit(3)
    for ours, theirs in zip(again.model.params, trainer.model.params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(inside(again), inside(trainer), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_refused(tmp_path):
    for wrong, says in [
        ("ema", r"average: expected ExponentialAverage\(\) or NonMonotoneAverage\(\), got 'ema'"),
        (ExponentialAverage, "average: expected ExponentialAverage"),
    ]:
        with pytest.raises(TypeError, match=says):
            make(average=wrong)
    with pytest.raises(ValueError, match="valid: expected validation data, whose score decides"):
        make(average=NonMonotoneAverage(), valid=None)
    for decay in (1, -0.1, math.nan):
        with pytest.raises(ValueError, match="decay: expected a finite number from 0 and below 1"):
            ExponentialAverage(decay)
    with pytest.raises(ValueError, match="interval: expected at least 1"):
        NonMonotoneAverage(0)
    trainer = make(tmp_path, ExponentialAverage())
    trainer.fit(1)
    with pytest.raises(ValueError, match="average: expected a new one, got one of 10 updates"):
        make(average=trainer.average)
    last = tmp_path / "last.safetensors"
    for other in (None, ExponentialAverage(0.5), NonMonotoneAverage()):
        with pytest.raises(
            ValueError, match=r"average: expected .*, got Exp.*\(decay=0\.999\); a run"
        ):
            make(average=other).restore(last)
    make().fit(1)
    with pytest.raises(ValueError, match="params: expected those that the average has begun with"):
        trainer.average.update([np.zeros(3)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a * np.nan, "average/param/affine.b: expected finite numbers"),
        (lambda a: a[:-1], "average/param/affine.b: expected shape"),
        (lambda a: a.astype(np.float64), "average/param/affine.b: expected float32"),
    ],
)
def test_a_refused_restore_changes_nothing(tmp_path, change, says):
    make(tmp_path, ExponentialAverage()).fit(1)
    arrays, content = load_checkpoint(tmp_path / "last.safetensors")
    arrays["average/param/affine.b"] = change(arrays["average/param/affine.b"])
    save_checkpoint(tmp_path / "spoilt.safetensors", arrays, content)
    trainer = make(average=ExponentialAverage())
    trainer.fit(1)
    before = [*inside(trainer), *(param.copy() for param in trainer.model.params)]
    with pytest.raises((TypeError, ValueError), match=says):
        trainer.restore(tmp_path / "spoilt.safetensors")
    after = [*inside(trainer), *trainer.model.params]
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_average_that_another_run_has_used_meanwhile_is_refused():
    average = ExponentialAverage()
    first, second = make(average=average), make(average=average)
    first.fit(1)
    first.fit(2)
    with pytest.raises(ValueError, match="average: expected a new one, got one of 20 updates"):
        second.fit(1)


def test_what_is_no_number_on_both_sides_is_no_difference():
    """As results of a cell may be, by which a file recognises it."""
    weights = {"cell": np.array([np.nan, 1.0]), "param/W": np.ones(2)}
    means = {**weights, "param/W": np.zeros(2)}
    both = both_in_one(weights, means, average_first=False)
    assert both.keys() == {"cell", "param/W", "average/param/W"}
    assert [arrays["param/W"][0] for arrays in weights_and_average(both)] == [1, 0]


def test_an_average_that_is_not_finite_is_not_saved(tmp_path):
    trainer = make(tmp_path, ExponentialAverage())
    trainer.fit(1)
    before = (tmp_path / "last.safetensors").read_bytes()
    trainer.average._means[0][0] = np.inf
    with pytest.raises(TrainingDiverged, match="parameters that are not finite"):
        trainer._save("last")
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_an_error_in_validation_leaves_the_weights():
    trainer = make(average=ExponentialAverage(0.5))

    def fails(*_):
        raise KeyError

    trainer.model.perplexity, seen = fails, weights_after_updates(trainer)
    with pytest.raises(KeyError):
        trainer.fit(1)
    for ours, theirs in zip(trainer.model.params, seen[-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_on_a_device_it_is_the_same_and_nothing_waits(tmp_path):
    want = make(average=ExponentialAverage(0.9))
    want.fit(2)
    with use_fake_device():
        trainer = make(tmp_path, ExponentialAverage(0.9))
        trainer.model.to("cuda")
        trainer.fit(2)
        params = trainer.model.params
        with no_waiting():
            trainer.average.update(params)
            with trainer.averaged():
                pass
    assert trainer.history.scores == pytest.approx(want.history.scores, rel=1e-4)
    again = make(average=ExponentialAverage(0.9))  # on the host
    again.restore(tmp_path / "last.safetensors")
    for ours, theirs in zip(inside(again), inside(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
