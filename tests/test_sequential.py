"""Layers in a row: gradients, files, and training of any such model."""

import copy
import pickle

import numpy as np
import pytest

import numba_rnn as rnn
from fake_device import use_fake_device
from helpers import BACKENDS, central_differences, relative_error
from numba_rnn import use_backend
from numba_rnn.models import Sequential
from numba_rnn.training import CheckpointError, load_checkpoint, save_checkpoint

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
        rnn.TimeEmbedding.create(V, D, **options(1)),
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
