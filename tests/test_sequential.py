"""Layers in a row: gradients, files, and training of any such model."""

import copy
import io
import json
import pickle
import sys

import numpy as np
import pytest

import numba_rnn as rnn
from fake_device import use_fake_device
from helpers import BACKENDS, StopAt, central_differences, relative_error
from numba_rnn import use_backend
from numba_rnn.models import Rnnlm, Sequential
from numba_rnn.training import (
    SGD,
    Adam,
    Batches,
    CheckpointError,
    Trainer,
    TrainingDiverged,
    TruncatedBPTT,
    cosine,
    load_checkpoint,
    save_checkpoint,
)
from numba_rnn.training.distributed import SingleProcess
from numba_rnn.training.plot_loss import plot_loss

N, T, D, H, M, V = 3, 5, 2, 4, 3, 7
LENGTHS = [4, 5, 1]


def numbers(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


XS, IDS = numbers(N, T, D), np.random.default_rng(0).integers(0, V, (N, T))
LABELS, TAGS = np.array([[2], [0], [1]]), IDS % M


def options(seed, dtype=np.float64):
    return {"rng": seed, "dtype": dtype}


def classifier(dtype=np.float64, dropout=0.3, cell="lstm"):
    """Everything that can be stacked, with one row for each sequence."""
    stack = rnn.Stacked.create(H, H, 2, layer=rnn.TimeBiGRU, dropout=dropout, **options(3, dtype))
    layer = rnn.TimeRecurrent.create(D, H, cell=cell, **options(1, dtype))
    return Sequential(
        layer.regularise(zoneout=0.2, weight_drop=0.2), rnn.TimeDropout(dropout), stack,
        rnn.TimePooling("mean"), rnn.TimeAffine.create(2 * H, M, **options(4, dtype)),
        loss=rnn.TimeSoftmaxWithLoss(), rng=5,
    )  # fmt: skip


def tagger():
    return Sequential(
        rnn.TimeEmbedding.create(V, D, **options(1)).drop_words(0.2, rng=6),
        rnn.TimeLSTM.create(D, H, stateful=True, **options(2)).learn_initial_state(),
        loss=rnn.TimeAffineSoftmaxWithLoss.create(H, M, **options(3)),
    )


def regressor():
    return Sequential(
        rnn.Reversed(rnn.TimeGRU.create(D, H, **options(1))),
        rnn.TimeAffine.create(H, 1, **options(2)),
        loss=rnn.TimeMSE(),
    )


MASK = np.arange(T) < np.array(LENGTHS)[:, None]
CASES = {
    "classifier": (classifier, XS, LABELS, {"lengths": LENGTHS, "weights": [[1.0], [2.0], [0.5]]}),
    "tagger": (tagger, IDS, TAGS, {}),
    "regressor": (regressor, XS, numbers(N, T, 1, seed=1), {"lengths": LENGTHS, "mask": MASK}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_central_differences(case, backend):
    make, xs, ts, more = CASES[case]
    with use_backend(backend, strict=True):
        model = make()

        def loss():
            model.rng.bit_generator.state = start  # the same masks every time
            model.reset_state()
            return model.forward(xs, ts, **more)

        start = model.rng.bit_generator.state
        loss()
        dxs = model.backward(inputs=True)
        grads = [grad.copy() for grad in model.grads]
        assert len(model.params) == len(model.param_names) == len(grads)
        for name, param, grad in zip(model.param_names, model.params, grads, strict=True):
            assert relative_error(grad, central_differences(loss, param)) < 1e-7, name
        if case != "tagger":
            assert relative_error(dxs, central_differences(loss, xs)) < 1e-7
        loss()
        assert model.backward() is None
        assert all(np.array_equal(a, b) for a, b in zip(grads, model.grads, strict=True))


def test_it_computes_what_its_layers_compute():
    model = regressor()
    hs = model.layers[0].forward(XS)
    out = model.layers[1].forward(hs)
    assert np.array_equal(model.predict(XS), out)
    loss, outputs = model.evaluate(XS, XS[:, :, :1])
    assert np.array_equal(outputs, out)
    assert loss == rnn.TimeMSE().forward(out, XS[:, :, :1])
    model.predict(XS, train_flg=True)
    model.backward(numbers(N, T, 1, seed=2))
    model.layers[1].forward(hs)
    assert np.array_equal(model.layers[1].backward(numbers(N, T, 1, seed=2)).shape, hs.shape)


def test_dropout_is_for_training_alone():
    model = classifier()
    assert np.array_equal(model.predict(XS), model.predict(XS))
    losses = {model.forward(XS, LABELS) for _ in range(3)}
    assert len(losses) == 3
    assert model.forward(XS, LABELS, train_flg=False) == model.evaluate(XS, LABELS)[0]


def test_all_layers_share_one_generator():
    model = classifier()
    model.forward(XS, LABELS)
    assert [part.rng is model.rng for part in model._drawing()] == [True] * 3
    model = Sequential(rnn.TimeDropout(0.5, rng=8), rnn.TimeDropout(0.5, rng=9))
    assert model.rng is model.layers[0].rng
    model.predict(XS, train_flg=True)
    assert model.layers[1].rng is model.rng
    twin = copy.deepcopy(classifier())
    one, other = twin.forward(XS, LABELS), classifier().forward(XS, LABELS)
    assert one == other == pickle.loads(pickle.dumps(classifier())).forward(XS, LABELS)


def test_evaluation_leaves_the_state_as_it_was():
    model = tagger()
    model.forward(IDS, TAGS)
    before = model.arrays()
    fresh = tagger().evaluate(IDS, TAGS)
    loss, outputs = model.evaluate(IDS, TAGS)
    assert loss == fresh[0]
    assert outputs.shape == (N, T, M)
    assert all(np.array_equal(a, before[name]) for name, a in model.arrays().items())
    with pytest.raises(RuntimeError, match="call forward first"):
        model.backward()


@pytest.mark.parametrize("make", [classifier, tagger])
def test_a_model_on_a_device_computes_the_same(make):
    xs, ts = (XS, LABELS) if make is classifier else (IDS, TAGS)
    with use_backend("numpy"):
        model = make()
        want = float(model.forward(xs, ts)), model.backward()
        with use_fake_device():
            there = make().to("cuda")
            got = float(there.forward(xs, ts)), there.backward()
            assert got == pytest.approx(want)
            arrays = there.arrays()
            assert there.to("cpu").params[0].base is None
        model.load_arrays(arrays)


# ---- files


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_save_and_load(tmp_path, case, backend):
    make, xs, ts, more = CASES[case]
    path = tmp_path / "folder" / "model.safetensors"
    with use_backend(backend):
        model = make()
        model.forward(xs, ts, **more)
        model.save(path)
        again = make()
        for param in again.params:
            param[...] = 0
        assert again.load(path) is again
        assert all(np.array_equal(a, again.arrays()[n]) for n, a in model.arrays().items())
        assert np.array_equal(model.predict(xs), again.predict(xs))  # the state came along
    names = {"classifier": "2.1.backward.Wh", "tagger": "loss.W", "regressor": "0.backward.Wx"}
    assert names[case] in load_checkpoint(path)[0]


def test_what_does_not_fit_changes_nothing(tmp_path):
    path, model = tmp_path / "model.safetensors", tagger()
    model.forward(IDS, TAGS)
    model.save(path)
    arrays, content = load_checkpoint(path)
    spoilt = {
        "1.Wh": lambda a: a[:-1],
        "loss.b": lambda a: a.astype(np.float32),
        "state/1.c": lambda a: a[:-1],
        "cell/1": lambda a: a + 1,
        "0.W": None,
    }
    target = tagger()
    target.forward(IDS[:2], TAGS[:2])
    before = {name: array.copy() for name, array in target.arrays().items()}
    for name, change in spoilt.items():
        wrong = {k: v for k, v in arrays.items() if k != name or change}
        if change:
            wrong[name] = change(arrays[name])
        save_checkpoint(path, wrong, content)
        with pytest.raises(ValueError, match=rf"of this model, got one of .*\({name}: expected"):
            target.load(path)
    save_checkpoint(path, {**arrays, "2.W": arrays["0.W"]}, content)
    with pytest.raises(ValueError, match=r"arrays: expected 0.W, .*, got 2.W as well"):
        target.load(path)
    plain = Sequential(*tagger().layers[:1], rnn.TimeLSTM.create(D, H, **options(2)))
    with pytest.raises(ValueError, match=r"learn_initial_state\(\) makes a parameter"):
        plain.load_arrays({k: v for k, v in arrays.items() if not k.startswith("loss")})
    data = bytearray(path.read_bytes())
    for damaged in (bytes(data[:-9]), bytes(data[:-1]) + bytes([data[-1] ^ 1]), b"", b"pickle"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            target.load(path)
    with pytest.raises(FileNotFoundError):
        target.load(tmp_path / "none")
    after = target.arrays()
    assert before.keys() == after.keys()
    assert all(np.array_equal(array, after[name]) for name, array in before.items())


def test_a_checkpoint_of_another_cell_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    Sequential(rnn.TimeRNN.create(D, H)).save(path)
    with pytest.raises(ValueError, match=r"cell/0: expected parameters of 'rnn_relu'"):
        Sequential(rnn.TimeRNN.create(D, H, activation="relu")).load(path)


def test_a_stream_of_the_last_step_ends_the_sequence_at_each_step():
    layers = rnn.TimeGRU.create(D, H, rng=1), rnn.TimePooling("last"), rnn.TimeAffine.create(H, M)
    model, xs = Sequential(*layers), XS.astype(np.float32)
    got = model.stream(batch=N).step_many(xs)
    for t in range(T):
        np.testing.assert_allclose(got[:, t], model.predict(xs[:, : t + 1])[:, 0], rtol=1e-5)
    for pooling in "mean", "max":
        with pytest.raises(TypeError, match=r"layers: expected recurrent layers .*TimePooling"):
            Sequential(layers[0], rnn.TimePooling(pooling), layers[2]).stream()


def test_a_stream_is_the_model_step_by_step():
    layers = rnn.TimeGRU.create(D, H, **options(1)), rnn.TimeAffine.create(H, M, **options(2))
    model = Sequential(layers[0], rnn.TimeDropout(0.5), layers[1])
    got = model.stream(batch=N).step_many(XS)
    np.testing.assert_allclose(got, model.predict(XS), rtol=1e-12)


# ---- what one sees


def test_the_summary_counts():
    model = classifier(np.float32)
    lines = model.summary((N, T, D)).splitlines()
    assert len(lines) == 1 + 6 + 1
    assert lines[1].split() == ["0", "TimeRecurrent", "(3,", "5,", "4)", "112", "1.1", "kB"]
    assert lines[-1].split()[2] == f"{sum(p.size for p in model.params)}"
    assert "(3, 5, 2)" in tagger().summary((N, T))
    assert str(regressor()).startswith("Sequential(Reversed(")
    assert str(regressor()).endswith("loss=TimeMSE())")


def test_what_is_refused():
    affine = rnn.TimeAffine.create(2, 2)
    with pytest.raises(ValueError, match="layers: expected at least one layer, got none"):
        Sequential()
    with pytest.raises(ValueError, match="layers: expected each layer once"):
        Sequential(affine, affine)
    with pytest.raises(TypeError, match=r"layers\[0\]: expected a layer, got list; Sequential\("):
        Sequential([affine])
    with pytest.raises(TypeError, match=r"layers\[1\]: .* takes one array, got TimeMSE, .* loss="):
        Sequential(affine, rnn.TimeMSE())
    with pytest.raises(TypeError, match=r"layers\[0\]: .* takes one array, got TimeAttention"):
        Sequential(rnn.TimeAttention())
    with pytest.raises(TypeError, match=r"loss: .* takes outputs and targets, got TimeDropout"):
        Sequential(affine, loss=rnn.TimeDropout())
    with pytest.raises(TypeError, match="loss: expected a loss, got none"):
        Sequential(affine).forward(XS, XS)
    with pytest.raises(TypeError, match="lengths: expected none"):
        Sequential(affine).predict(XS, lengths=LENGTHS)


@pytest.mark.parametrize("name", ["last", "mean", "max"])
def test_pooling_is_that_of_each_sequence_alone(name):
    xs = XS.copy()
    xs[~MASK] = np.nan
    layer = rnn.TimePooling(name)
    pooled = layer.forward(xs, lengths=LENGTHS)
    dhs = layer.backward(numbers(N, 1, D, seed=1))
    for row, length in enumerate(LENGTHS):
        seen = XS[row, :length]
        want = {"last": seen[-1], "mean": seen.mean(axis=0), "max": seen.max(axis=0)}[name]
        np.testing.assert_allclose(pooled[row, 0], want)
        alone = rnn.TimePooling(name)
        alone.forward(seen[None])
        np.testing.assert_array_equal(
            dhs[row, :length], alone.backward(numbers(N, 1, D, seed=1)[row, None])[0]
        )
    assert not dhs[~MASK].any()


# ---- training

ROWS, STEPS = 22, 6
DATA = numbers(ROWS, STEPS, D, seed=3)
SIZES = np.random.default_rng(4).integers(1, STEPS + 1, ROWS)
KINDS = (DATA.sum(axis=(1, 2)) > 0).astype(int)[:, None] + (SIZES > 3)[:, None]
HELD = Batches(DATA[16:], KINDS[16:], 4, lengths=SIZES[16:])


def accuracy(outputs, ts):
    return (outputs.argmax(axis=2) == ts).mean()


def make(folder=None, **changes):
    batches = Batches(DATA[:16], KINDS[:16], 6, rng=0, lengths=SIZES[:16])  # of 6, 6 and 4 rows
    chosen = {"valid": HELD, "metrics": {"accuracy": accuracy}, "progress": False, **changes}
    return Trainer(
        chosen.pop("model", None) or classifier(), Adam(0.05), chosen.pop("blocks", batches),
        schedule=cosine(9, warm_up=2), folder=folder, max_norm=0.5, **chosen,
    )  # fmt: skip


def streams():
    """Frames of a long sequence, with the state carried from block to block."""
    layer = rnn.TimeLSTM.create(D, H, stateful=True, **options(1))
    layers = rnn.TimeDropout(0.2, rng=3), layer, rnn.TimeAffine.create(H, D, **options(2))
    model, frames = Sequential(*layers, loss=rnn.TimeMSE()), numbers(61, D)
    valid = numbers(5, T, D, seed=5), numbers(5, T, D, seed=6)
    return {"model": model, "blocks": TruncatedBPTT(frames, 3, 6), "valid": valid, "metrics": None}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("changes", [dict, streams], ids=["batches", "streams"])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, changes, backend):
    with use_backend(backend):
        whole = make(tmp_path / "whole", **changes())
        whole.fit(3)
        assert whole.iteration == 9
        for stop_at in (1, 3, 5):
            folder = tmp_path / str(stop_at)
            first = make(folder, **changes())
            first.model = StopAt(first.model, stop_at)
            first.fit(3)
            assert first.stopped
            second = make(folder, **changes())
            second.restore(folder / "last.safetensors")
            assert second.iteration == stop_at
            second.fit(3)
            for file in ("last.safetensors", "best.safetensors"):
                assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
            assert second.history == whole.history
        best = (changes().get("model") or classifier()).load(folder / "best.safetensors")
    assert best.params[0].shape == whole.model.params[0].shape


@pytest.mark.parametrize("changes", [dict, streams], ids=["batches", "streams"])
def test_training_on_a_device_is_that_on_the_host(tmp_path, changes):
    with use_backend("numpy"):
        want = make(**changes()).fit(2)
        with use_fake_device():
            trainer = make(tmp_path, **changes())
            trainer.model.to("cuda")
            got = trainer.fit(2)
    for one, other in zip(got.epochs, want.epochs, strict=True):
        assert one.pop("metrics") == pytest.approx(other.pop("metrics"))
        assert one == pytest.approx(other)


def test_it_learns_and_says_so():
    told, xs = [], numbers(64, 8, 1, dtype=np.float32)
    ts = (xs[:, -1:, 0] > 0).astype(int)
    layers = rnn.TimeGRU.create(1, 8, rng=0), rnn.TimePooling(), rnn.TimeAffine.create(8, 2, rng=1)
    model = Sequential(*layers, loss=rnn.TimeSoftmaxWithLoss())
    trainer = Trainer(
        model, Adam(0.05), Batches(xs, ts, 16, rng=0), valid=(xs[:20], ts[:20]),
        metrics={"accuracy": accuracy}, log=told.append, progress=False,
    )  # fmt: skip
    history = trainer.fit(8)
    last = history.epochs[-1]
    assert last["metrics"]["accuracy"] > 0.9
    assert history.best == min(entry["valid_loss"] for entry in history.epochs) < 0.4
    assert (
        history.scores[-1]
        == last["valid_loss"]
        == pytest.approx(model.evaluate(xs[:20], ts[:20])[0])
    )
    assert told[-1] == (
        f"epoch   8  train loss {last['train_loss']:>9.4g}  valid {last['valid_loss']:>9.4g}"
        f"  accuracy {last['metrics']['accuracy']:.4g}  lr {last['lr']:g}"
    )
    assert json.loads(json.dumps(history.epochs)) == history.epochs


def test_without_validation_the_training_loss_is_the_score(tmp_path):
    trainer = make(tmp_path, valid=None, metrics=None)
    history = trainer.fit(2)
    assert history.scores == [entry["train_loss"] for entry in history.epochs]
    assert [entry["valid_loss"] for entry in history.epochs] == [None, None]
    assert (tmp_path / "best.safetensors").exists()


def test_states_do_not_live_on_from_batch_to_batch():
    """One with zeros as learning rate, nearly: its losses are those of fresh states."""
    model, same = tagger(), np.repeat(IDS[:1], 4, axis=0)
    model.layers[0].drop_words(0)
    trainer = Trainer(
        model, SGD(1e-300), Batches(same, np.repeat(TAGS[:1], 4, axis=0), 2), progress=False
    )
    losses = {loss for _, loss, _ in trainer.fit(2).train}
    assert losses == {model.evaluate(same[:2], TAGS[[0, 0]])[0]}


def test_the_schedule_is_a_factor_of_the_learning_rate():
    seen = []

    class Spy(SGD):
        def update(self, params, grads, **options):
            seen.append(self.lr)
            return super().update(params, grads, **options)

    batches = Batches(DATA, KINDS, 11)
    trainer = Trainer(
        classifier(), Spy(0.5), batches, progress=False, schedule=lambda k: 1 / (k + 1)
    )
    trainer.fit(2)
    assert seen == [0.5, 0.25, pytest.approx(0.5 / 3), 0.125]
    assert trainer.optimiser.lr == 0.5
    assert [entry["lr"] for entry in trainer.history.epochs] == [0.5, 0.5]
    trainer.schedule = lambda k: 0
    with pytest.raises(ValueError, match=r"schedule\(4\): expected a finite number above 0, got 0"):
        trainer.fit(3)
    assert trainer.optimiser.lr == 0.5


def test_the_bar_counts_steps_and_says_the_loss(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    make(progress=True).fit(1)
    shown = sys.stderr.getvalue()
    assert "96.0/96.0" in shown
    assert "step" in shown
    assert "loss" in shown


def test_a_language_model_trains_on_rows_that_are_independent():
    ids = np.random.default_rng(0).integers(0, V, (10, 6))
    blocks = Batches(ids[:, :-1], ids[:, 1:], 4, rng=0)
    trainer = Trainer(
        Rnnlm(V, 4, 4, rng=0), Adam(), blocks, valid=ids.ravel(), eval_batch=2, eval_time=5,
        progress=False,
    )  # fmt: skip
    assert trainer.fit(2).epochs[-1]["valid_perplexity"] == trainer.history.scores[-1]


def test_a_loss_that_is_not_finite_is_divergence(tmp_path):
    trainer = make(tmp_path)
    trainer.model.evaluate = lambda *_, **__: (np.nan, np.zeros((4, 1, M)))
    with pytest.raises(TrainingDiverged, match="validation loss nan"):
        trainer.fit(1)
    trainer = make()
    trainer.model.params[-1][...] = np.nan
    with pytest.raises(TrainingDiverged, match=r"iteration 1: loss nan.*\(lr\).*\(max_norm\)"):
        trainer.fit(1)


def test_what_the_trainer_refuses(tmp_path):
    tokens = np.arange(9)
    for changes, says in [
        ({"valid": tokens, "metrics": None}, r"valid: expected \(xs, ts\) or Batches"),
        ({"valid": tokens}, r"metrics: expected valid=\(xs, ts\)"),
        ({"valid": (DATA,)}, r"valid: expected tokens or \(xs, ts\), got 1 arrays"),
        ({"valid": (DATA, KINDS[1:])}, "ts: expected 22 rows, as in xs, got 21"),
        ({"metrics": [accuracy]}, "metrics: expected a dict of functions, got list"),
        ({"metrics": {"accuracy": 0.5}}, r"metrics\['accuracy'\]: expected a function"),
        ({"valid": (DATA[0], KINDS[:6])}, r"valid: expected xs with .* axes.*; \(xs\[None\], ts\["),
        ({"blocks": (DATA, KINDS)}, r"blocks: expected Batches\(xs, ts, batch_size\) or Tr.*tuple"),
        ({"model": Rnnlm(V, 4, 4)}, r"valid: expected a model with evaluate.*got Rnnlm"),
    ]:
        with pytest.raises((TypeError, ValueError), match=says):
            make(**changes)
    with pytest.raises(TypeError, match="schedule: expected a function, got float"):
        Trainer(classifier(), Adam(), HELD, schedule=0.5)
    two = SingleProcess()
    two.size = 2
    with pytest.raises(TypeError, match="blocks: expected TruncatedBPTT, whose batches several"):
        make(ranks=two)
    with pytest.raises(TypeError, match=r"model: expected one that ranks can share .* Sequential"):
        make(**{**streams(), "ranks": two})
    make(tmp_path).fit(1)
    with pytest.raises(FileExistsError, match=r"resume it \(restore\(path\)\)"):
        make(tmp_path).fit(1)
    other = make(blocks=Batches(DATA, KINDS, 6, lengths=SIZES))
    with pytest.raises(ValueError, match="state: expected rows 22, got 16"):
        other.restore(tmp_path / "last.safetensors")
    arrays, content = load_checkpoint(tmp_path / "last.safetensors")
    content["trainer"]["history"]["epochs"][0]["metrics"] = {"accuracy": "1"}
    save_checkpoint(tmp_path / "spoilt.safetensors", arrays, content)
    with pytest.raises(ValueError, match="history: metrics: expected numbers"):
        make().restore(tmp_path / "spoilt.safetensors")


def test_errors_amid_a_run_name_the_argument(tmp_path):
    with pytest.raises(TypeError, match=r"metrics\['hits'\]: expected a function that returns"):
        make(metrics={"hits": lambda outputs, ts: outputs.argmax(axis=2) == ts}).fit(1)
    with pytest.raises(TypeError, match=r"mask: expected none, as TimeSoftmax.* labels of -1"):
        classifier().forward(DATA, KINDS, mask=KINDS > 0)
    make(tmp_path).fit(1)
    with pytest.raises(FileNotFoundError, match=r"got a folder; in .*: best.*, last\.safetensors"):
        make().restore(tmp_path)


def test_the_line_of_an_epoch_has_the_learning_rate_of_its_last_iteration():
    lines = []
    make(log=lines.append).fit(2)
    assert lines[-1].endswith(f"  lr {0.05 * cosine(9, warm_up=2)(5):.4g}")


def test_memory_that_runs_out_names_what_helps():
    def forward(xs, ts, **more):
        raise MemoryError("no room")

    trainer = make()
    trainer.model.forward = forward
    with pytest.raises(MemoryError, match=r"batch 6, time 6, .*; lower batch_size or .*\(no room"):
        trainer.fit(1)


def test_losses_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    history = make().fit(2)
    assert plot_loss(history, tmp_path / "loss.png").stat().st_size > 1000
