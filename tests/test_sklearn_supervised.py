"""RNNClassifier and RNNRegressor: pooling, standardisation, and what else there is to say of y."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from fake_device import use_fake_device
from helpers import central_differences, relative_error
from numba_rnn import Stream, cells, use_backend
from numba_rnn.sklearn import RNNClassifier, RNNRegressor, SequenceScaler
from numba_rnn.sklearn.network import Network
from numba_rnn.sklearn.pooling import POOLINGS
from numba_rnn.sklearn.sequences import SequenceDataset, moments, pad

SMALL = {"cell": "rnn", "hidden_size": 5, "max_epochs": 3, "random_state": 0}


def ragged(lengths, features=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, features)) for length in lengths]


XS = np.random.default_rng(0).standard_normal((40, 6, 2))


# ---- pooling


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    pooling=st.sampled_from(POOLINGS),
    standardise=st.booleans(),
)
def test_gradients_of_pooled_networks(lengths, layers, bidirectional, pooling, standardise):
    rng = np.random.default_rng(0)
    xs, found = pad(ragged(lengths))
    network = Network(
        2, 3, cell="gru", hidden_size=3, layers=layers, bidirectional=bidirectional, dropout=0.0,
        per_step=False, dtype="float64", rng=rng, pooling=pooling, standardise=standardise,
    )  # fmt: skip
    for param in network.params:  # the query, too, whose start is 0
        param[...] = rng.standard_normal(param.shape) / 2
    if standardise:
        network.mean[:], network.scale[:] = [0.5, -0.3], [2, 0.7]
    weights = rng.standard_normal((len(lengths), 1, 3))

    def loss():
        return float((network.forward(xs, found) * weights).sum())

    loss()
    network.backward(weights)
    for param, grad in zip(network.params, [g.copy() for g in network.grads], strict=True):
        assert relative_error(grad, central_differences(loss, param)) < 1e-6


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_is_pooled(pooling):
    """By hand, from the outputs of each sequence alone."""
    xs, y = ragged([4, 1, 6, 3]), [0.0, 1.0, 2.0, 1.5]
    model = RNNRegressor(pooling=pooling, standardise=False, **SMALL).fit(xs, y)
    (layer,), affine = model.network_.recurrent.recurrent, model.network_.affine
    for x, predicted in zip(xs, model.predict(xs), strict=True):
        hs = layer.forward(x[None])[0]
        if pooling == "attention":
            scores = np.exp(hs @ model.network_.pooling.params[0])
            row = scores @ hs / scores.sum()
        else:
            row = {"last": hs[-1], "mean": hs.mean(axis=0), "max": hs.max(axis=0)}[pooling]
        assert predicted == pytest.approx((row @ affine.params[0] + affine.params[1]).item())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_learns_and_is_the_same_on_a_device(pooling):
    y = XS.sum(axis=(1, 2))
    model = RNNRegressor("gru", pooling=pooling, max_epochs=60, random_state=0).fit(XS, y)
    assert model.score(XS, y) > 0.8
    model.set_params(max_epochs=2)
    with use_backend("numpy"):
        want = clone(model).fit(XS, y).predict(XS)
    with use_fake_device():
        model.fit(XS, y)
        predicted, data = model.predict(XS), pickle.dumps(model)
    assert type(predicted) is np.ndarray
    np.testing.assert_allclose(predicted, want, rtol=1e-9)
    with use_backend("numpy"):
        np.testing.assert_allclose(pickle.loads(data).predict(XS), want, rtol=1e-9)


def test_pooling_is_named_where_it_is_wrong():
    with pytest.raises(ValueError, match="pooling: expected one of last, mean, max, attention"):
        RNNRegressor(pooling="first").fit(XS, XS[:, 0, 0])


# ---- standardisation


def test_moments_are_those_of_all_steps():
    xs = ragged([3, 9, 1, 6], features=4)
    for x in xs:
        x *= [1, 1e-3, 1e200, 0]
        x += [0, 7, 0, 5]
    flat = np.concatenate(xs)[:, [0, 1, 3]]
    mean, scale = moments(SequenceDataset(xs, xs))
    np.testing.assert_allclose(mean[[0, 1, 3]], flat.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(scale[:2], flat.std(axis=0)[:2], rtol=1e-8)
    assert scale[3] == 1
    assert 1e199 < scale[2] < 1e201
    weights = np.array([2, 0, 1, 3])
    mean, scale = moments(SequenceDataset(xs, xs, weights=weights[:, None]))
    again = np.concatenate([x for x, times in zip(xs, weights, strict=True) for _ in range(times)])
    np.testing.assert_allclose(mean, again.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(scale[:2], again[:, :2].std(axis=0), rtol=1e-8)


@pytest.mark.parametrize("per_step", [False, True])
def test_units_do_not_matter(per_step):
    y = XS.sum(axis=2).cumsum(axis=1)
    y = y if per_step else y[:, -1]
    model = RNNRegressor(per_step=per_step, **SMALL)
    want = model.fit(XS, y).predict(XS)
    other = 1000 + XS * [1e-6, 1e6]
    np.testing.assert_allclose(clone(model).fit(other, y).predict(other), want, rtol=1e-3)
    np.testing.assert_allclose(model.mean_, XS.mean(axis=(0, 1)))
    np.testing.assert_allclose(model.scale_, XS.std(axis=(0, 1)))
    plain = clone(model).set_params(standardise=False)
    standard = (XS - model.mean_) / model.scale_
    np.testing.assert_allclose(plain.fit(standard, y).predict(standard), want)
    assert not hasattr(plain, "mean_")
    assert not hasattr(RNNClassifier(), "scale_")


def test_statistics_belong_to_the_network():
    """They are pickled, and training goes on with those of its start."""
    y = XS[:, 0, 0]
    model = RNNRegressor(warm_start=True, **SMALL).fit(XS, y)
    mean = model.mean_.copy()
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.mean_, mean)
    np.testing.assert_array_equal(again.scale_, model.scale_)
    np.testing.assert_array_equal(again.fit(XS + 1, y).mean_, mean)
    np.testing.assert_array_equal(again.partial_fit(XS + 2, y).mean_, mean)
    assert not np.array_equal(model.set_params(warm_start=False).fit(XS + 1, y).mean_, mean)
    with pytest.raises(ValueError, match="pooling: expected 'last', as in the network"):
        again.set_params(pooling="mean").fit(XS, y)


def test_a_pickle_of_version_0_2_is_read():
    model = RNNRegressor(pooling="last", standardise=False, **SMALL).fit(XS, XS[:, 0, 0])
    state = model.__getstate__()
    for name in ("pooling", "standardise"):
        del state[name], state["_saved"]["config"][name]
    old = RNNRegressor.__new__(RNNRegressor)
    old.__setstate__(state)
    np.testing.assert_array_equal(old.predict(XS), model.predict(XS))
    assert old.get_params() == model.get_params()


@pytest.mark.parametrize("name", cells.names())
def test_a_stream_reads_what_is_not_standardised(name):
    xs = 5 + 3 * XS
    with use_backend("numpy"):
        model = RNNRegressor(name, pooling="mean", hidden_size=4, layers=2, max_epochs=1)
        model.fit(xs, xs[:, 0, 0])
        if name == "gru_reset_after":
            with pytest.raises(
                TypeError, match="standardise: expected False for a stream of gru_r"
            ):
                Stream(model.network_)
            return
        outputs = Stream(model.network_).step_many(xs[3])
    np.testing.assert_allclose(np.mean(outputs), model.predict(xs[3:4])[0], rtol=1e-9)


def test_a_stream_has_no_pooling_over_steps():
    model = RNNRegressor(pooling="max", **SMALL).fit(XS, XS[:, 0, 0])
    with pytest.raises(TypeError, match=r"pooling: expected 'last' .* for a stream, .* got 'max'"):
        Stream(model.network_)


# ---- weights of sequences


def weighted(make, y, per_step=False):
    """Two models: on sequences with weights, and on as many copies, all in one batch."""
    xs, weights = ragged([4, 6, 1, 3, 5, 2]), np.array([2, 0, 1, 3, 1, 1])
    order = np.repeat(np.arange(6), weights)
    options = {**SMALL, "per_step": per_step, "batch_size": 32}
    y = [y[k] if not per_step else np.repeat(y[k], len(xs[k])) for k in range(6)]
    first = make(**options).fit(xs, y, sample_weight=weights)
    second = make(**options).fit([xs[k] for k in order], [y[k] for k in order])
    return first, second, xs, y, weights, order


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("make", [RNNClassifier, RNNRegressor])
def test_a_weight_counts_as_copies_do(make, per_step):
    """Of steps no copies are made: all of a sequence have its weight."""
    y = np.array([0, 1, 1, 0, 1, 0]) if make is RNNClassifier else np.linspace(0, 1, 6)
    first, second, xs, y, weights, order = weighted(make, y, per_step)
    for a, b in zip(first.predict(xs), second.predict(xs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_allclose(first.loss_curve_, second.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(first.mean_, second.mean_)
    again = first.score([xs[k] for k in order], [y[k] for k in order])
    assert first.score(xs, y, weights) == pytest.approx(again)


@pytest.mark.parametrize("make", [RNNClassifier, RNNRegressor])
def test_a_weight_of_0_is_removal_in_any_number_of_batches(make):
    y, keep = np.arange(40) % 2, np.arange(40) % 5 > 0
    options = {**SMALL, "batch_size": "auto"}
    first = make(**options).fit(XS, y, sample_weight=keep * 1.0)
    second = make(**options).fit(XS[keep], y[keep])
    np.testing.assert_allclose(first.loss_curve_, second.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(first.predict(XS), second.predict(XS), rtol=1e-9)


def test_weights_of_classes_and_of_sequences_are_multiplied():
    y = np.arange(40) % 2
    both = RNNClassifier(class_weight={0: 2.0}, **SMALL).fit(XS, y, np.arange(1, 41))
    one = RNNClassifier(**SMALL).fit(XS, y, np.where(y == 0, 2, 1) * np.arange(1, 41))
    np.testing.assert_allclose(both.predict_proba(XS), one.predict_proba(XS))


@pytest.mark.parametrize("weights", [np.zeros(40), -np.ones(40), np.full(40, np.nan), np.ones(39)])
def test_weights_that_are_none_are_refused(weights):
    for model in (RNNClassifier(**SMALL), RNNRegressor(**SMALL)):
        with pytest.raises(ValueError, match=r"[Ss]ample.weight"):
            model.fit(XS, np.arange(40) % 2, sample_weight=weights)


# ---- several labels


def test_flags_are_learned_each_for_itself():
    y = (XS.cumsum(axis=1)[:, -1] > 0).astype(int)
    y = np.column_stack([y, XS[:, 0, 0] > 0])
    model = RNNClassifier(random_state=0).fit(XS, y)
    assert model.score(XS, y) > 0.9
    assert model.predict(XS).shape == model.predict_proba(XS).shape == (40, 3)
    np.testing.assert_array_equal(model.predict(XS), model.predict_proba(XS) > 0.5)
    assert model.classes_.tolist() == [0, 1, 2]
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(XS), model.predict(XS))
    parts = RNNClassifier(**SMALL).partial_fit(XS, y, classes=[0, 1, 2]).partial_fit(XS[:3], y[:3])
    assert parts.predict_proba(XS).shape == (40, 3)
    with pytest.raises(ValueError, match="classes: expected"):
        parts.partial_fit(XS, y[:, :2])


def test_several_outputs_have_classes_of_their_own():
    y = np.column_stack([np.where(XS[:, -1, 0] > 0, "up", "down"), np.digitize(XS[:, 0, 1], [0])])
    y[:5, 1] = "2"
    model = RNNClassifier(random_state=0).fit(XS, y)
    assert model.score(XS, y) > 0.8
    assert [c.tolist() for c in model.classes_] == [["down", "up"], ["0", "1", "2"]]
    shares = model.predict_proba(XS)
    assert [p.shape for p in shares] == [(40, 2), (40, 3)]
    np.testing.assert_allclose(shares[1].sum(axis=1), 1)
    predicted = model.predict(XS)
    np.testing.assert_array_equal(predicted[:, 1], model.classes_[1][shares[1].argmax(axis=1)])
    parts = RNNClassifier(**SMALL).partial_fit(XS, y, classes=[["up", "down"], ["0", "1", "2"]])
    assert parts.partial_fit(XS[:2], y[:2]).predict(XS).shape == (40, 2)
    with pytest.raises(ValueError, match="class_weight: expected None where y has several labels"):
        RNNClassifier(class_weight="balanced", **SMALL).fit(XS, y)


@pytest.mark.parametrize("kind", ["flags", "outputs"])
def test_gradients_of_several_labels(kind):
    rng = np.random.default_rng(0)
    xs = ragged([3, 1, 4])
    y = [rng.integers(0, 2 if kind == "flags" else 3, (len(x), 2)) for x in xs]
    y[0][:3, 1] = y[1][:1] = 0 if kind == "flags" else 2
    weights = np.array([1.0, 3.0, 0.5])
    model = RNNClassifier(per_step=True, **SMALL).fit(xs, y, sample_weight=weights)
    assert model._kind == kind
    assert [row.shape for row in model.predict(xs)] == [(3, 2), (1, 2), (4, 2)]
    examples, _ = model._labelled(xs, model._codes(np.concatenate(y), None, True), weights)
    scores = model.network_.forward(*pad(xs))
    _, gradient = model._loss(scores, *examples.targets())
    numeric = central_differences(lambda: model._loss(scores, *examples.targets())[0], scores)
    assert relative_error(gradient, numeric) < 1e-6


def test_labels_of_steps_without_per_step_are_named():
    with pytest.warns(UserWarning, match="y: taken as 6 labels of each .* use per_step=True"):
        RNNClassifier(**SMALL).fit(XS, (XS[:, :, 0] > 0).astype(int))


# ---- values that are missing


@pytest.mark.parametrize("make", [RNNClassifier, RNNRegressor])
def test_steps_without_values_are_left_out(make):
    """Also those behind the end, as tables of sequences of different lengths have them."""
    xs, y = ragged([4, 6, 2, 3]), [0, 1, 1, 0]
    padded = np.full((4, 9, 2), np.nan)
    for row, x in zip(padded, xs, strict=True):
        row[1 : 2 * len(x) : 2][: len(x)] = x[: len(row[1 : 2 * len(x) : 2])]
    dense = [row[~np.isnan(row).any(axis=1)] for row in padded]
    model, want = make(**SMALL).fit(padded, y), make(**SMALL).fit(dense, y)
    np.testing.assert_array_equal(model.predict(padded), want.predict(dense))
    np.testing.assert_array_equal(model.predict(dense), want.predict(dense))
    table = make(**SMALL, step_features=2).fit(padded.reshape(4, 18), y)
    np.testing.assert_array_equal(table.predict(padded.reshape(4, 18)), want.predict(dense))


@pytest.mark.parametrize("per_step", [False, True])
def test_a_missing_value_is_the_last_one_or_the_mean(per_step):
    holes = XS.copy()
    holes[3, 2:4, 0] = holes[5, 0, 1] = np.nan
    y = XS[:, :, 0] if per_step else XS[:, 0, 0]
    model = RNNRegressor(per_step=per_step, **SMALL).fit(holes, y)
    filled = holes.copy()
    filled[3, 2:4, 0] = holes[3, 1, 0]
    filled[5, 0, 1] = model.mean_[1]
    np.testing.assert_allclose(model.predict(holes), model.predict(filled))
    np.testing.assert_allclose(model.mean_[0], filled[:, :, 0].mean())


def test_labels_of_steps_without_values_are_kept():
    holes = XS.copy()
    holes[3, 2:] = np.nan
    assert RNNRegressor(per_step=True, **SMALL).fit(holes, XS[:, :, 0]).predict(holes).shape == (
        40,
        6,
    )
    holes[3] = np.nan
    with pytest.raises(
        ValueError, match="X: expected a value in each sequence, got NaN alone at 3"
    ):
        RNNRegressor(**SMALL).fit(holes, XS[:, 0, 0])


# ---- features before steps


def test_features_before_steps():
    y, turned = XS[:, 0, 0], XS.swapaxes(1, 2)
    want = RNNRegressor(**SMALL).fit(XS, y).predict(XS)
    model = RNNRegressor(layout="ndt", **SMALL).fit(turned, y)
    for same in (turned, list(turned), [x.tolist() for x in turned]):
        np.testing.assert_array_equal(model.predict(same), want)
    table = RNNRegressor(layout="ndt", step_features=2, **SMALL)
    np.testing.assert_allclose(table.fit(turned.reshape(40, 12), y).predict(
        turned.reshape(40, 12)), want)  # fmt: skip
    xs, few = ragged([4, 1, 3]), [0, 1, 1]
    want = RNNClassifier(**SMALL).fit(xs, few).predict_proba(xs)
    columns = [x.T for x in xs]
    model = RNNClassifier(layout="ndt", **SMALL).fit(columns, few)
    np.testing.assert_array_equal(model.predict_proba(columns), want)
    with pytest.raises(ValueError, match=r'x\.T swaps .*, and so does layout="ndt"'):
        RNNClassifier(**SMALL).fit(columns, few)
    with pytest.raises(ValueError, match="layout: expected 'ntd', 'ndt' or None, got 'nct'"):
        RNNClassifier(layout="nct", **SMALL).fit(XS, np.arange(40) % 2)


@pytest.mark.parametrize("features", [1, 3])
def test_arrays_that_seem_to_have_features_first_are_refused_by_name(features):
    X = np.random.default_rng(0).standard_normal((9, features, 30)).cumsum(axis=2)
    with pytest.raises(ValueError, match=rf'X: .*layout="ndt" takes it as 30 steps of {features}'):
        RNNRegressor(**SMALL).fit(X, X[:, 0, -1])
    with pytest.raises(ValueError, match=rf'X: .*layout="ndt" takes it as 30 steps of {features}'):
        RNNRegressor(**SMALL).fit(list(X), X[:, 0, -1])
    for layout in ("ntd", "ndt"):
        RNNRegressor(layout=layout, **SMALL).fit(X, X[:, 0, -1])
    RNNRegressor(**SMALL).fit(X.swapaxes(1, 2), X[:, 0, -1])
    noise = np.random.default_rng(0).standard_normal((99, features, 30))
    RNNRegressor(**SMALL).fit(noise, noise[:, 0, 0])


# ---- early stopping, learning rates


@pytest.mark.parametrize("counts", [(20, 19, 1), (20, 1, 1), (2,) * 20, (1,) * 5 + (35,)])
def test_rare_classes_do_not_end_early_stopping(counts):
    y = np.repeat([f"class {k}" for k in range(len(counts))], counts)
    model = RNNClassifier(early_stopping=True, **SMALL).fit(XS[: len(y)], y)
    assert len(model.classes_) == len(counts)
    assert len(model.validation_curve_) == 3


def test_the_learning_rate_falls_along_a_cosine(monkeypatch):
    seen = []
    train = RNNRegressor._train

    def look(self, examples, optimiser, *bar):
        seen.append(optimiser.lr)
        return train(self, examples, optimiser, *bar)

    monkeypatch.setattr(RNNRegressor, "_train", look)
    RNNRegressor(**SMALL | {"max_epochs": 4}).fit(XS, XS[:, 0, 0])
    np.testing.assert_allclose(seen, 0.005 * (1 + np.cos(np.pi * np.arange(4) / 4)))
    seen.clear()
    RNNRegressor(schedule="constant", **SMALL).fit(XS, XS[:, 0, 0])
    assert seen == [0.01] * 3
    with pytest.raises(ValueError, match="schedule: expected one of cosine, constant"):
        RNNRegressor(schedule="step", **SMALL).fit(XS, XS[:, 0, 0])


def test_a_learning_rate_is_found():
    y = XS.sum(axis=(1, 2)) / 3
    model = RNNRegressor(lr="auto", hidden_size=16, max_epochs=30, random_state=0).fit(XS, y)
    assert 1e-4 < model.lr_ < 0.2
    assert model.loss_curve_[-1] < 0.3 * model.loss_curve_[0]
    same = clone(model).fit(XS, y)
    assert same.lr_ == model.lr_
    np.testing.assert_array_equal(same.predict(XS), model.predict(XS))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(XS), model.predict(XS))
    RNNClassifier(lr="auto", **SMALL).partial_fit(XS, y > 0, classes=[False, True])


# ---- the learning curve


@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_learning_curve_is_drawn(early_stopping):
    from matplotlib.figure import Figure

    model = RNNRegressor(early_stopping=early_stopping, **SMALL)
    with pytest.raises(NotFittedError):
        model.plot_learning_curve()
    model.fit(XS, XS[:, 0, 0])
    ax = Figure().subplots()
    assert model.plot_learning_curve(ax) is ax
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert drawn["training"] == model.loss_curve_
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3]
    if early_stopping:
        assert drawn["held out"] == model.validation_curve_
        assert drawn.keys() - {"training", "held out"} == {"kept"}
    else:
        assert drawn.keys() == {"training"}


# ---- a scaler of sequences


@pytest.mark.parametrize("layout", ["ntd", "ndt"])
def test_sequences_are_scaled_and_scaled_back(layout):
    xs = [5 + 3 * x for x in ragged([4, 6, 1, 3], features=3)]
    xs[0][1, 2] = np.nan
    flat = np.concatenate(xs)
    given = xs if layout == "ntd" else [x.T for x in xs]
    scaler = SequenceScaler(layout=layout).fit(given)
    np.testing.assert_allclose(scaler.mean_, np.nanmean(flat, axis=0))
    np.testing.assert_allclose(scaler.scale_, np.nanstd(flat, axis=0))
    made = scaler.transform(given)
    for row, x in zip(made, given, strict=True):
        assert row.shape == x.shape
    axis = 0 if layout == "ntd" else 1
    np.testing.assert_allclose(np.nanmean(np.concatenate(made, axis=axis), axis=axis), 0, atol=1e-9)
    for row, x in zip(scaler.inverse_transform(made), given, strict=True):
        np.testing.assert_allclose(row, x)
    with pytest.raises(ValueError, match="X has 2 features, but SequenceScaler is expecting 3"):
        scaler.set_params(layout="ntd").transform(ragged([2]))


def test_a_table_and_an_array_are_scaled_alike():
    want = SequenceScaler().fit_transform(XS)
    table = SequenceScaler(step_features=2).fit_transform(XS.reshape(40, 12))
    np.testing.assert_array_equal(table, want.reshape(40, 12))
    turned = SequenceScaler(step_features=2, layout="ndt")
    columns = XS.swapaxes(1, 2).reshape(40, 12)
    np.testing.assert_allclose(turned.fit_transform(columns), want.swapaxes(1, 2).reshape(40, 12))
    single = SequenceScaler().fit_transform(XS.astype(np.float32))
    assert single.dtype == np.float32
    plain = SequenceScaler(with_mean=False, with_std=False).fit_transform(XS)
    np.testing.assert_array_equal(plain, XS)
    y = XS[:, 0, 0]
    pipeline = make_pipeline(SequenceScaler(), RNNRegressor(standardise=False, **SMALL)).fit(XS, y)
    np.testing.assert_allclose(pipeline.predict(XS), RNNRegressor(**SMALL).fit(XS, y).predict(XS))


def test_pickles_find_the_classes_where_they_were():
    from numba_rnn.sklearn import supervised

    assert (supervised.RNNClassifier, supervised.RNNRegressor) == (RNNClassifier, RNNRegressor)
    with pytest.raises(AttributeError, match="'RNNForecaster'"):
        supervised.RNNForecaster  # noqa: B018
