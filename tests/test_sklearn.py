"""The estimators for scikit-learn: its own checks, what they learn, and what they are given."""

import functools
import io
import os
import pickle
import re
import runpy
import signal
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression
from sklearn.metrics import log_loss, mean_squared_error, r2_score, recall_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fake_device import use_fake_device
from helpers import central_differences, relative_error, run_python
from numba_rnn import Stream, cell, cells, use_backend
from numba_rnn.functions import tanh
from numba_rnn.kernels.cpu import launch, threads
from numba_rnn.sklearn import RNNClassifier, RNNForecaster, RNNRegressor, SequenceScaler
from numba_rnn.sklearn.network import Network
from numba_rnn.sklearn.sequences import pad, warn_of_scale
from numba_rnn.sklearn.transform import Transform
from numba_rnn.training import AdamW, TrainingDiverged

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"
SMALL = {"cell": "rnn", "hidden_size": 5, "max_epochs": 3, "random_state": 0}
# a forecaster that takes numbers as they are
RAW = {"scaling": None, "differencing": None, "log": False, "lags": 1, "early_stopping": False}
EARLY = {**RAW, "early_stopping": True}


def ragged(count, longest, features, seed=0):
    """Sequences (T_i, D) of different lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    return [rng.standard_normal((length, features)) for length in lengths]


def sums_sign(xs):
    return np.array(["up" if x.sum() > 0 else "down" for x in xs])


# ---- scikit-learn's checks


@pytest.fixture
def _array_api(monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # else one check is left out


@pytest.mark.usefixtures("_array_api")
@pytest.mark.filterwarnings("ignore:.*unit scale")  # as 100 and more is not, which they take
@pytest.mark.filterwarnings("ignore:X. taken as")  # their tables are long and narrow
@parametrize_with_checks(  # in one batch weights count as copies do: else these are in others
    [RNNClassifier(batch_size=64), RNNRegressor(batch_size=64), RNNForecaster(), SequenceScaler()]
)
def test_scikit_learns_checks(estimator, check):
    if check.func.__name__.endswith("multilabel_output_format_decision_function"):
        assert not hasattr(estimator, "decision_function")  # else it is skipped
        return
    check(estimator)


# ---- they learn


def test_a_classifier_learns_the_sign_of_a_sum():
    xs, more = ragged(600, 12, 3), ragged(200, 12, 3, seed=1)
    model = RNNClassifier("gru", max_epochs=15, random_state=0).fit(xs, sums_sign(xs))
    base = DummyClassifier().fit(np.zeros((600, 1)), sums_sign(xs))
    assert base.score(np.zeros((200, 1)), sums_sign(more)) < 0.6
    assert model.score(more, sums_sign(more)) > 0.9
    assert model.classes_.tolist() == ["down", "up"]
    said = model.predict_proba(more)
    np.testing.assert_allclose(said.sum(axis=1), 1)
    assert (model.classes_[said.argmax(axis=1)] == model.predict(more)).all()
    assert model.loss_curve_[-1] < 0.5 * model.loss_curve_[0]


def test_a_classifier_of_steps_learns_the_sign_of_the_sum_so_far():
    xs, more = ragged(200, 9, 2), ragged(100, 9, 2, seed=1)
    ys, wanted = ([x.sum(axis=1).cumsum() > 0 for x in part] for part in (xs, more))
    model = RNNClassifier("gru", per_step=True, max_epochs=30, random_state=0).fit(xs, ys)
    said = model.predict(more)
    assert [row.shape for row in said] == [row.shape for row in wanted]
    right = np.concatenate(said) == np.concatenate(wanted)
    assert model.score(more, wanted) == right.mean() > 0.9
    assert [row.shape for row in model.predict_proba(more)] == [(len(x), 2) for x in more]
    weights = np.arange(100)
    spread = np.repeat(weights, [len(x) for x in more])
    assert model.score(more, wanted, weights) == pytest.approx(np.average(right, weights=spread))


@pytest.mark.parametrize("numbers", [1, 2])
def test_a_regressor_of_steps_remembers(numbers):
    """The sum so far, of which a linear model of each step alone knows little."""
    xs, more = ragged(200, 9, 2), ragged(100, 9, 2, seed=1)

    def targets(sequences):
        sums = [x.cumsum(axis=0) / 3 for x in sequences]
        return sums if numbers == 2 else [row[:, 0] for row in sums]

    model = RNNRegressor("gru", per_step=True, max_epochs=30, random_state=0)
    model.fit(xs, targets(xs))
    flat = np.concatenate(more), np.concatenate(targets(more))
    assert LinearRegression().fit(*flat).score(*flat) < 0.6
    said = model.predict(more)
    assert [row.shape for row in said] == [row.shape for row in targets(more)]
    assert model.score(more, targets(more)) == r2_score(flat[1], np.concatenate(said)) > 0.95


def test_a_regressor_says_several_numbers_of_a_sequence():
    xs = np.random.default_rng(0).standard_normal((200, 7, 2))
    y = np.stack([xs.mean(axis=(1, 2)), xs[:, -1, 0], xs[:, 0, 1]], axis=1)
    model = RNNRegressor("lstm", bidirectional=True, max_epochs=60, random_state=0).fit(xs, y)
    assert model.predict(xs[:9]).shape == (9, 3)
    assert model.score(xs, y) > 0.9


def waves(count, steps, seed=0):
    """(N, T, 1): sums of two sines, each with phases of its own."""
    phases = np.random.default_rng(seed).uniform(0, 7, (2, count, 1))
    at = np.arange(steps)
    return (np.sin(at / 3 + phases[0]) + np.sin(at / 5 + phases[1]))[:, :, None] / 2


def error_of(model, series, **given):
    said = model.predict(series[:, : -model.horizon], **given)
    return mean_squared_error(series[:, -model.horizon :].ravel(), said.ravel())


def test_a_forecaster_is_better_than_the_last_value():
    series, horizon = waves(40, 60), 4
    model = RNNForecaster("gru", horizon=horizon, max_epochs=60, random_state=0).fit(series)
    more = waves(30, 60, seed=1)
    naive = np.repeat(more[:, -horizon - 1], horizon, axis=1)
    of_naive = mean_squared_error(more[:, -horizon:, 0], naive)
    assert error_of(model, more) < 0.05 * of_naive
    said = model.predict(more[:, :-horizon])
    assert said.shape == (30, horizon, 1)
    want = r2_score(more[:, -horizon:].reshape(-1, 1), said.reshape(-1, 1))
    assert model.score(more) == pytest.approx(want)
    assert want > 0.9


def test_one_long_series_in_windows():
    series = waves(1, 500)[0]
    model = RNNForecaster("gru", window=30, stride=3, max_epochs=10, random_state=0, **RAW)
    model.fit([series[:400]])
    for end in (400, 450, 499):
        said = model.predict([series[:end]])
        assert abs(said[0, 0] - series[end]) < 0.1
        np.testing.assert_array_equal(said, model.predict([series[end - 30 : end]]))


def test_exogenous_inputs_foretell_what_the_series_cannot():
    """Two channels; what happens next is decided by inputs that are known beforehand."""
    rng = np.random.default_rng(0)
    known = rng.standard_normal((60, 30, 1))
    series = np.stack([known[:, :, 0], -0.5 * known[:, :, 0]], axis=2)
    series[:, 1:] += 0.5 * series[:, :-1]
    model = RNNForecaster("gru", horizon=2, max_epochs=40, random_state=0)
    blind = clone(model).fit(series[:40])
    model.fit(series[:40], exogenous=known[:40])
    assert blind.score(series[40:]) < 0.3
    assert model.score(series[40:], exogenous=known[40:]) > 0.9
    assert error_of(model, series[40:], exogenous=known[40:]) < 0.1
    np.testing.assert_array_equal(
        model.predict(series[40:, :-2], exogenous=list(known[40:])),
        model.predict(list(series[40:, :-2]), exogenous=known[40:]),
    )
    for wrong in (known[40:, :-2], known[40:, :, [0, 0]], known[40:50], None):
        with pytest.raises(ValueError, match=r"exogenous(\[0\])?: expected"):
            model.predict(series[40:, :-2], exogenous=wrong)


@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(st.integers(4, 15), min_size=1, max_size=3),
    horizon=st.integers(1, 3),
    window=st.one_of(st.none(), st.integers(1, 9)),
    stride=st.integers(1, 4),
    channels=st.integers(1, 2),
    known=st.integers(0, 2),
)
def test_windows_hold_what_they_should(steps, horizon, window, stride, channels, known):
    series = [np.arange(T * channels).reshape(T, channels) + 1000.0 * k
              for k, T in enumerate(steps)]  # fmt: skip
    more = [np.arange(T * known).reshape(T, known) - 1e6 * (k + 1) for k, T in enumerate(steps)]
    model = RNNForecaster(horizon=horizon, window=window, stride=stride, **RAW)
    data = list(zip(series, more, strict=True))
    model._take(data, Transform())
    made = model._examples(data)
    place = 0
    for values, future in zip(series, more, strict=True):
        last = len(values) - horizon  # steps with all of their future
        width = min(window or last, last)
        for start in sorted(range(last - width, -1, -stride)):
            xs, ts = made.xs[place], made.ts[place]
            for k in range(width):
                at = start + k
                ahead = slice(at + 1, at + 1 + horizon)
                assert xs[k].tolist() == [*values[at], *future[ahead].T.ravel()]
                assert ts[k].tolist() == values[ahead].ravel().tolist()
            assert len(xs) == len(ts) == width
            place += 1
    assert place == len(made)


# ---- sequences in all their shapes


def parameters(model):
    """Those that are trained."""
    arrays = model.network_.arrays()
    return [array for name, array in arrays.items() if name not in ("mean", "scale")]


def test_a_list_an_array_and_a_table_are_the_same():
    xs = np.random.default_rng(0).standard_normal((20, 4, 3))
    y = xs.sum(axis=(1, 2))
    model = RNNRegressor(**SMALL).fit(xs, y)
    want = model.predict(xs)
    shelf = np.empty(20, object)
    shelf[:] = list(xs)
    for same in (list(xs), [pd.DataFrame(x) for x in xs], xs.tolist(), shelf):
        again = clone(model).fit(same, y)
        np.testing.assert_array_equal(again.predict(same), want)
        np.testing.assert_array_equal(again.predict(xs), want)
    assert model.n_features_in_ == 3
    names = [f"{feature}{t}" for t in range(4) for feature in "abc"]
    table = pd.DataFrame(xs.reshape(20, 12), columns=names)
    for same in (table, xs.reshape(20, 12)):
        again = clone(model).set_params(step_features=3).fit(same, pd.Series(y))
        np.testing.assert_array_equal(again.predict(same), want)
        assert again.n_features_in_ == 12
    assert clone(model).fit(table, y).feature_names_in_.tolist() == names
    narrow = model.set_params(step_features=1).fit(xs[:, :, 0], y)
    np.testing.assert_array_equal(narrow.predict(xs[:, :, 0]), model.fit(xs[:, :, :1], y).predict(
        xs[:, :, :1]))  # fmt: skip


def test_a_forecast_of_a_table_is_a_table():
    series = np.random.default_rng(0).standard_normal((6, 8))
    model = RNNForecaster(**SMALL, horizon=2).fit(series)
    same = clone(model).fit(series[:, :, None])
    np.testing.assert_array_equal(model.predict(series), same.predict(series[:, :, None])[:, :, 0])
    model.fit(series, exogenous=series + 1)
    assert model.predict(series, exogenous=np.ones((6, 10))).shape == (6, 2)
    wide = clone(model).set_params(step_features=4, horizon=1).fit(series)
    assert wide.predict(series).shape == (6, 4)


@settings(deadline=None, max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    per_step=st.booleans(),
    D=st.integers(1, 3),
)
def test_a_sequence_is_read_alike_alone_and_among_others(
    lengths, layers, bidirectional, per_step, D
):
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((T, D)) for T in lengths]
    y = [x[:, 0] if per_step else x[0, 0] for x in xs]
    model = RNNRegressor(
        "gru", hidden_size=3, layers=layers, bidirectional=bidirectional, max_epochs=1,
        per_step=per_step, random_state=0,
    ).fit(xs, y)  # fmt: skip
    together = model.predict(xs)
    for x, among in zip(xs, together, strict=True):
        np.testing.assert_allclose(model.predict(x[None])[0], among, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    per_step=st.booleans(),
    cell=st.sampled_from(["gru", "lstm"]),
)
def test_the_networks_gradients(lengths, layers, bidirectional, per_step, cell):
    rng = np.random.default_rng(0)
    xs, found = pad([rng.standard_normal((T, 2)) for T in lengths])
    network = Network(
        2, 3, cell=cell, hidden_size=3, layers=layers, bidirectional=bidirectional, dropout=0.0,
        per_step=per_step, dtype="float64", rng=rng,
    )  # fmt: skip
    weights = rng.standard_normal((len(lengths), max(lengths) if per_step else 1, 3))

    def loss():
        return float((network.forward(xs, found) * weights).sum())

    loss()
    network.backward(weights)
    for param, grad in zip(network.params, [g.copy() for g in network.grads], strict=True):
        assert relative_error(grad, central_differences(loss, param)) < 1e-6


# ---- every cell, every optimiser


@pytest.mark.parametrize("name", cells.names())
def test_any_cell(name):
    xs = ragged(12, 5, 2)
    with use_backend("numpy"):
        model = RNNClassifier(name, hidden_size=4, layers=2, bidirectional=True, dropout=0.2,
                              max_epochs=2, random_state=0).fit(xs, sums_sign(xs))  # fmt: skip
        assert np.isfinite(model.predict_proba(xs)).all()
        assert [layer.cell.name for layer in model.network_.recurrent.recurrent] == [name] * 4


@cell(recurrence="elementwise", weights="u")
def diagonal(a, u, h):
    return tanh(a + u * h)


def test_a_cell_of_ones_own():
    xs = ragged(12, 5, 2)
    with use_backend("numpy"):
        y = [x.sum() for x in xs]
        model = RNNRegressor(diagonal, max_epochs=1, random_state=0).fit(xs, y)
        for same in (clone(model).fit(xs, y), pickle.loads(pickle.dumps(model))):
            np.testing.assert_array_equal(same.predict(xs), model.predict(xs))


@pytest.mark.parametrize(
    "optimiser",
    ["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw",
     functools.partial(AdamW, weight_decay=0.1)],
)  # fmt: skip
def test_any_optimiser(optimiser):
    xs = np.random.default_rng(0).standard_normal((60, 5, 2))
    model = RNNRegressor("rnn", optimiser=optimiser, max_epochs=20, clip=None, random_state=0)
    model.fit(xs, xs[:, -1, 0])
    assert model.loss_curve_[-1] < 0.8 * model.loss_curve_[0]


# ---- the same numbers again


MODELS = [
    RNNClassifier(dropout=0.3, layers=2, early_stopping=True, **SMALL),
    RNNClassifier(per_step=True, class_weight="balanced", **SMALL),
    RNNRegressor(bidirectional=True, dtype="float32", **SMALL),
    RNNForecaster(horizon=2, window=3, **SMALL),
]
XS = np.random.default_rng(0).standard_normal((40, 6, 2))


def fitted(model):
    """A copy, trained on something that fits."""
    y = XS.sum(axis=2).cumsum(axis=1)
    y = y if getattr(model, "per_step", False) else y[:, -1]
    return clone(model).fit(XS, y > 0 if isinstance(model, RNNClassifier) else y)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_a_seed_decides_all(model):
    first, other = fitted(model), fitted(clone(model).set_params(random_state=1))
    again = fitted(clone(model).set_params(random_state=np.random.RandomState(0)))
    for want, same, different in zip(*map(parameters, (first, again, other)), strict=True):
        np.testing.assert_array_equal(same, want)
        assert not np.array_equal(different, want)
    assert again.loss_curve_ == first.loss_curve_


@pytest.mark.parametrize("protocol", [4, 5])  # the defaults before Python 3.14, and from there on
@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_a_pickle_says_the_same_and_holds_no_layers(model, protocol):
    first = fitted(model)
    data, needed = pickle.dumps(first, protocol), set()

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            needed.add(f"{module}.{name}")
            return super().find_class(module, name)

    again = Reader(io.BytesIO(data)).load()
    np.testing.assert_array_equal(again.predict(XS), first.predict(XS))
    own = {f"{type(model).__module__}.{type(model).__name__}"}
    labels = {"numpy.ndarray", "numpy.dtype"} | {
        f"numpy.{core}.{name}"
        for core in ("_core", "core")
        for name in ("multiarray._reconstruct", "numeric._frombuffer")
    }
    assert needed <= own | (labels if isinstance(model, RNNClassifier) else set())
    np.testing.assert_array_equal(pickle.loads(data).predict(XS), first.predict(XS))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": None}, "damaged"),
        ({"parameters": b"abc"}, "damaged"),
        ({"parameters": None}, "damaged"),
        ({"random": {"bit_generator": "PCG64"}}, "damaged"),
        ({"optimiser": 3}, "damaged"),
        ({"hidden_size": 2**31}, "hidden_size: expected it to fit the parameters, got 2147483648"),
        ({"layers": 2**31}, "layers: expected it to fit the parameters"),
        ({"input_size": -1}, "input_size: expected it to fit the parameters"),
    ],
)
def test_a_damaged_pickle_is_refused(change, says):
    state = fitted(RNNRegressor(**SMALL)).__getstate__()
    saved = state["_saved"]
    config = {name: change.get(name, value) for name, value in saved["config"].items()}
    state["_saved"] = {**saved, "config": config, **change}
    with pytest.raises(ValueError, match=f"RNNRegressor: expected the pickle of .*{says}"):
        RNNRegressor.__new__(RNNRegressor).__setstate__(state)


def test_training_goes_on_in_a_pickle():
    """The optimiser's memory, the order of the rows and dropout's numbers are in it."""
    xs, y = XS, XS.sum(axis=(1, 2))
    first = RNNRegressor(dropout=0.3, layers=2, **SMALL).partial_fit(xs, y).partial_fit(xs, y)
    again = pickle.loads(pickle.dumps(first))
    first.partial_fit(xs, y)
    again.partial_fit(xs, y)
    for want, same in zip(parameters(first), parameters(again), strict=True):
        np.testing.assert_array_equal(same, want)
    assert again.loss_curve_ == first.loss_curve_
    unfitted = pickle.loads(pickle.dumps(RNNRegressor(**SMALL)))
    assert unfitted.get_params() == RNNRegressor(**SMALL).get_params()


def test_several_threads_may_ask_at_once():
    model = RNNRegressor("gru", layers=2, max_epochs=1, random_state=0).fit(XS, XS.sum(axis=(1, 2)))
    parts = [XS[k : k + 20] for k in range(20)]
    wanted = [model.predict(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for said, want in zip(pool.map(model.predict, parts * 5), wanted * 5, strict=True):
            np.testing.assert_array_equal(said, want)


# ---- in parts, and further


@pytest.mark.parametrize("estimator", [RNNRegressor, RNNClassifier, RNNForecaster])
def test_a_refused_partial_fit_changes_nothing(estimator):
    xs, more = ragged(6, 9, 2, seed=1), {}
    xs = [np.concatenate([x, x, x, x]) for x in xs]
    args = (xs,) if estimator is RNNForecaster else (xs, np.arange(6) % 2)
    if estimator is RNNClassifier:
        more["classes"] = [0, 1]
    new = estimator(**{**SMALL, "optimiser": "best"})
    before = dict(vars(new))
    with pytest.raises(ValueError, match="optimiser: expected one of"):
        new.partial_fit(*args, **more)
    assert vars(new) == before
    trained = estimator(**SMALL).partial_fit(*args, **more)
    said = trained.predict(xs[:2])
    with pytest.raises(ValueError, match="X has 3 features"):
        trained.partial_fit([np.ones((40, 3))] * 6, *args[1:])
    np.testing.assert_array_equal(trained.predict(xs[:2])[0], said[0])


def test_partial_fit_is_an_epoch():
    xs, y = ragged(20, 6, 2), np.arange(20) % 3
    whole = RNNClassifier(**SMALL, schedule="constant").fit(xs, y)
    parts = RNNClassifier(**SMALL).partial_fit(xs, y, classes=[0, 1, 2])
    for _ in range(2):
        parts.partial_fit(xs, y)
    for want, same in zip(parameters(whole), parameters(parts), strict=True):
        np.testing.assert_array_equal(same, want)
    assert parts.loss_curve_ == whole.loss_curve_
    series = RNNForecaster(**SMALL, **RAW).fit(xs := XS)
    same = RNNForecaster(**SMALL, **RAW).partial_fit(xs).partial_fit(xs).partial_fit(xs)
    np.testing.assert_array_equal(series.predict(xs), same.predict(xs))


def test_partial_fit_knows_its_classes():
    xs = ragged(6, 4, 2)
    with pytest.raises(ValueError, match="classes: expected all labels at the first call"):
        RNNClassifier().partial_fit(xs, [0, 1, 0, 1, 0, 1])
    model = RNNClassifier(**SMALL).partial_fit(xs[:2], ["a", "a"], classes=["a", "b", "c"])
    assert model.predict_proba(xs).shape == (6, 3)
    with pytest.raises(ValueError, match="unseen labels"):
        model.partial_fit(xs[:1], ["d"])
    with pytest.raises(ValueError, match="classes: expected"):
        model.partial_fit(xs[:1], ["a"], classes=["a", "b"])
    with pytest.raises(ValueError, match=r"class_weight: .*balanced"):
        RNNClassifier(class_weight="balanced").partial_fit(xs[:1], ["a"], classes=["a", "b"])


def test_warm_start_goes_on():
    y = XS.sum(axis=(1, 2))
    model = RNNRegressor(**SMALL, warm_start=True).fit(XS, y)
    before = model.loss_curve_
    assert model.fit(XS, y).loss_curve_[0] < before[0]
    with pytest.raises(ValueError, match="hidden_size: expected 5, as in the network"):
        model.set_params(hidden_size=6).fit(XS, y)
    labels = RNNClassifier(**SMALL, warm_start=True).fit(XS, y > 0)
    with pytest.raises(ValueError, match="classes: expected"):
        labels.fit(XS, np.where(y > 0, "a", "b"))


# ---- early stopping


@pytest.mark.parametrize("model", [RNNClassifier(), RNNRegressor(),
                                   RNNForecaster(window=4, **RAW)],
                         ids=lambda m: type(m).__name__)  # fmt: skip
def test_early_stopping_ends_with_the_best_parameters(model):
    rng = np.random.default_rng(0)  # noise, of which nothing can be learned
    xs = rng.standard_normal((40, 30, 1))
    y = rng.integers(0, 2, 40)
    model.set_params(cell="rnn", early_stopping=True, validation_fraction=0.25, patience=3,
                     lr=0.02, random_state=0)  # fmt: skip
    held = []
    evaluate = type(model)._evaluate

    def look(self, examples):
        held.append(examples)
        return evaluate(self, examples)

    with mock.patch.object(type(model), "_evaluate", look):
        model.fit(xs, y)
    curve = model.validation_curve_
    assert len(curve) == len(model.loss_curve_) == np.argmin(curve) + 1 + 3 < 100
    assert evaluate(model, held[0]) == min(curve) < curve[-1]


def test_what_is_held_out_is_not_trained_on():
    xs = np.arange(40.0)[:, None, None]
    labels = np.repeat([0, 1], [32, 8])
    model = RNNClassifier(**SMALL, early_stopping=True, validation_fraction=0.25)
    seen = []
    with (
        mock.patch.object(RNNClassifier, "_train", lambda self, e, *_: seen.append(e) or 1.0),
        mock.patch.object(RNNClassifier, "_evaluate", lambda self, e: seen.append(e) or 1.0),
    ):
        model.fit(xs, labels)
        train, valid = ({float(x.item()) for x in part.xs} for part in seen[:2])
        assert (len(train), len(valid), train & valid) == (30, 10, set())
        assert sum(x >= 32 for x in valid) == 2  # its share of the rarer class
    seen = []
    series = np.arange(40.0)[:, None] / 8
    with (
        mock.patch.object(RNNForecaster, "_train", lambda self, e, *_: seen.append(e) or 1.0),
        mock.patch.object(RNNForecaster, "_evaluate", lambda self, e: seen.append(e) or 1.0),
    ):
        RNNForecaster(window=3, **EARLY).fit([series, series])
    train, valid = seen[:2]
    assert 8 * np.concatenate([*train.xs, *train.ts]).max() == 35
    ts, mask = valid.targets()
    assert sorted(8 * ts[mask].ravel()) == [36, 36, 37, 37, 38, 38, 39, 39]


@pytest.mark.parametrize("window", [None, 5, 50])
@pytest.mark.parametrize("horizon", [1, 4])
def test_what_is_held_out_is_foretold_as_predict_does(window, horizon):
    """By all that comes before it, or a window of it: not from a state of zeros."""
    rng = np.random.default_rng(0)
    series = [rng.standard_normal((T, 2)) for T in (30, 41)]
    known = [rng.standard_normal((len(values), 1)) for values in series]
    model = RNNForecaster("gru", horizon=horizon, window=window, validation_fraction=0.2,
                          max_epochs=3, random_state=0, **EARLY)  # fmt: skip
    model.fit(series, exogenous=known)
    wrong = [
        model.predict([values[:end]], exogenous=[more[: end + horizon]])[0]
        - values[end : end + horizon]
        for values, more, held in zip(series, known, (6, 8), strict=True)
        for end in range(len(values) - held, len(values) - horizon + 1)
    ]
    assert np.square(wrong).mean() == pytest.approx(min(model.validation_curve_), rel=1e-6)


def test_a_long_horizon_is_judged_by_what_came_before():
    """One forecast at least is judged, and it has read all but what is held out."""
    series = np.sin(np.arange(60) / 3)[:, None]
    model = RNNForecaster(horizon=20, max_epochs=1, random_state=0, **EARLY)
    model._take([(series, np.zeros((60, 0)))], Transform())
    _, valid = model._split_ends([(series, np.zeros((60, 0)))])
    ts, mask = valid.targets()
    assert mask.sum() == 2  # 21 steps are held out
    assert np.flatnonzero(mask[0]).tolist() == [38, 39]
    np.testing.assert_array_equal(ts[mask], [series[39:59, 0], series[40:60, 0]])


# ---- weights of classes


@pytest.mark.parametrize(
    "weights",
    [{0: -1, 1: 1}, {0: 0, 1: 0}, {0: np.nan, 1: 1}, {1: np.inf}, {0: 0.0, 1: -0.0}],
    ids=str,
)
def test_class_weights_that_train_nothing_or_the_opposite_are_refused_by_name(weights):
    model = RNNClassifier(class_weight=weights, **SMALL)
    for fit in (model.fit, functools.partial(model.partial_fit, classes=[0, 1])):
        with pytest.raises(ValueError, match=r"class_weight: expected .* none below 0 .*got \{"):
            fit(XS[:12], np.arange(12) % 2)
    RNNClassifier(class_weight={0: 0, 1: 1}, **SMALL).fit(XS[:12], np.arange(12) % 2)


@pytest.mark.parametrize("per_step", [False, True])
def test_class_weights_weigh_the_loss(per_step):
    xs = ragged(9, 5, 2)
    y = [np.arange(len(x)) % 3 for x in xs] if per_step else np.arange(9) % 3
    weights = {0: 0.5, 1: 3.0, 2: 1.0}
    model = RNNClassifier(class_weight=weights, per_step=per_step, **SMALL).fit(xs, y)
    flat = np.concatenate(y) if per_step else y
    said = np.concatenate(model.predict_proba(xs)) if per_step else model.predict_proba(xs)
    of_each = [weights[label] for label in flat]
    want = log_loss(flat, said, sample_weight=of_each, labels=[0, 1, 2])
    examples, _ = model._labelled(xs, flat, None)
    scores = model.network_.forward(*pad(xs))
    value, gradient = model._loss(scores, *examples.targets())
    assert value == pytest.approx(want, rel=1e-10)
    numeric = central_differences(lambda: model._loss(scores, *examples.targets())[0], scores)
    assert relative_error(gradient, numeric) < 1e-6


def test_balanced_classes_find_the_rare_one():
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((300, 5, 1))
    y = (xs.mean(axis=(1, 2)) + 0.5 * rng.standard_normal(300) > 0.9).astype(int)
    assert 0.02 < y.mean() < 0.1
    plain, balanced = (
        recall_score(y, RNNClassifier("rnn", class_weight=weight, max_epochs=10, random_state=0)
                     .fit(xs, y).predict(xs))
        for weight in (None, "balanced")
    )  # fmt: skip
    assert balanced > plain + 0.3


# ---- in scikit-learn's hands


def test_a_pipeline_and_cross_validation():
    X = np.random.default_rng(0).standard_normal((120, 6)) * 100 + 1000
    y = (X - 1000).sum(axis=1) > 0
    model = make_pipeline(StandardScaler(), RNNClassifier("gru", max_epochs=15, random_state=0))
    assert cross_val_score(model, X, y, cv=3).mean() > 0.8


def test_cross_validation_of_lists():
    xs = ragged(30, 6, 2)
    steps = RNNRegressor(**SMALL, per_step=True)
    scores = cross_val_score(steps, xs, [x.cumsum(axis=0) for x in xs], cv=KFold(3))
    assert np.isfinite(scores).all()
    forecasts = cross_val_score(RNNForecaster(**SMALL), [x for x in xs if len(x) > 2], cv=3)
    assert np.isfinite(forecasts).all()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_another_thread_predicts_can_predict():
    """The lock that it copies is held by a thread that it does not have."""
    model = RNNRegressor(**SMALL).fit(XS, np.zeros((len(XS), 1)))
    want = model.predict(XS)
    with model.network_.lock:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(not np.array_equal(model.predict(XS), want))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", ["loky", "multiprocessing", "threading"])
def test_a_grid_search_in_two_processes_finds_what_one_finds(workers):
    """Also where the engine's threads are at work already."""
    xs = ragged(60, 8, 2)
    grid = {"cell": ["rnn", "lstm"], "layers": [1, 2]}
    with (
        mock.patch.object(launch, "choose_partition", return_value=(2, False)),
        use_backend("numba"),
    ):
        alone = GridSearchCV(RNNClassifier(**SMALL), grid, cv=2).fit(xs, sums_sign(xs))
    assert threads.team.threads >= 1
    with parallel_config(backend=workers):
        both = GridSearchCV(RNNClassifier(**SMALL), grid, cv=2, n_jobs=2).fit(xs, sums_sign(xs))
    np.testing.assert_array_equal(
        both.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"]
    )
    np.testing.assert_array_equal(both.predict_proba(xs), alone.predict_proba(xs))


def test_digits_row_by_row():
    """A smaller grid than the example's, two folds instead of three."""
    search = runpy.run_path(str(EXAMPLE))["search"]
    found, accuracy = search({"cell": ["gru", "mgu"]}, folds=2)
    assert accuracy >= 0.97
    assert len(found.cv_results_["params"]) == 2


def test_on_a_device():
    y = XS.sum(axis=(1, 2))
    models = [
        (RNNClassifier(**SMALL, class_weight="balanced"), y > 0),
        (RNNRegressor(**SMALL, bidirectional=True, layers=2, early_stopping=True), y),
        (RNNForecaster(**SMALL, window=4), None),
    ]
    for model, targets in models:
        with use_backend("numpy"):
            want = clone(model).fit(XS, targets).predict(XS)
        with use_fake_device():
            model.fit(XS, targets)
            said, data = model.predict(XS), pickle.dumps(model)
        assert type(said) is np.ndarray
        np.testing.assert_allclose(said, want, rtol=1e-9)
        with use_backend("numpy"):
            np.testing.assert_allclose(pickle.loads(data).predict(XS), want, rtol=1e-9)


def test_verbose_shows_the_loss(capsys):
    RNNRegressor(**SMALL).fit(XS, XS[:, 0, 0])
    assert capsys.readouterr().err == ""
    RNNRegressor(**SMALL, verbose=True).fit(XS, XS[:, 0, 0])
    bar = capsys.readouterr().err
    for part in ("RNNRegressor", "3/3", "loss="):
        assert part in bar


def test_the_bar_does_not_time_the_first_batch(monkeypatch, capsys):
    """It takes compilation."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    plain = Network.backward

    def backward(network, dscores):
        now[0] += 40 if now[0] == 1000 else 1
        return plain(network, dscores)

    monkeypatch.setattr(Network, "backward", backward)
    RNNRegressor(**SMALL, batch_size=10, verbose=True).fit(XS, XS[:, 0, 0])  # 3 epochs of 4
    assert "3/3 [00:11<00:00" in capsys.readouterr().err


# ---- what they refuse


def fits(model, X, y):
    return lambda: model.fit(X, y)


Y = np.arange(40) % 2
LATER = RNNRegressor(**SMALL)
AHEAD = RNNForecaster(**SMALL)
REFUSED = {
    "rows of different lengths": (
        fits(RNNRegressor(), [np.ones(3), np.ones(4)], [1, 2]), "X: expected arrays.*x.:, None."),
    "other features": (
        fits(RNNRegressor(), [np.ones((3, 2)), np.ones((2, 1))], [1, 2]),
        r"X: expected sequences \(steps, 2\).*\(2, 1\) in X\[1\]"),
    "steps last": (
        fits(RNNRegressor(), [np.ones((3, 5)), np.ones((3, 7))], [1, 2]), r"\(3, 7\) in .*; x\.T"),
    "words": (fits(RNNRegressor(), [[["a"]], [["b"]]], [1, 2]), "X: expected numbers; .*'a'"),
    "one series with a y": (
        fits(RNNForecaster(), np.ones(9), Y[:9]), r"X: .* fit\(\[X\]\).*\(9,\)\. Resh"),
    "one series after a table": (
        lambda: RNNForecaster(**SMALL).fit(XS[:, :, 0]).predict(np.ones(9)), r"\(9,\)\. Resh"),
    "one sequence": (fits(RNNRegressor(), np.ones(200), Y), r"^X: expected a table.*\(200,\)\. Re"),
    "a number": (fits(RNNRegressor(), np.float64(3), Y), r"^X: expected a table.*got shape \(\)\."),
    "a short table": (
        fits(RNNForecaster(horizon=6), XS[:, :, 0], None), "required by RNNForecaster: horizon"),
    **{
        f"{X!r:.20}": (fits(model, X, None), f"^X: expected a table.* got {got}$")
        for model in (RNNForecaster(), RNNClassifier())
        for X, got in (
            (None, "None"), ("x", "str"), (3, "int"), ({1}, "set"),
            (iter([XS[0]]), "list_iterator"),
        )
    },
    "exogenous by name": (
        lambda: RNNForecaster().fit(XS, exogenous={"a": XS}),
        "^exogenous: expected a table.* got dict"),
    "nothing to hold out": (
        fits(RNNClassifier(early_stopping=True), XS[:12], list("abcdefghijkl")),
        "early_stopping: expected enough sequences to hold out 2 of them"),
    "no steps": (
        fits(RNNRegressor(), [np.ones((3, 2)), np.ones((0, 2))], [1, 2]), r"\(0, 2\) in X\[1\]"),
    "no steps at all": (fits(RNNRegressor(), np.ones((2, 0, 2)), [1, 2]), r"X: .*\(2, 0, 2\)"),
    "NaN": (
        fits(RNNForecaster(), [[[np.nan]] * 9], None),
        r"X\[0\]: expected values in each channel, got none in channel 0",
    ),
    "NaN alone": (
        fits(RNNRegressor(), [[[np.nan]], [[1.0]]], [1, 2]), "X: expected a value .* alone at 0"),
    "infinity": (fits(RNNRegressor(), [[[np.inf]], [[1.0]]], [1, 2]), "X contains infinity"),
    "too large": (
        fits(RNNRegressor(dtype="float32"), np.full((2, 2, 2), 1e300), [1, 2]), "float32"),
    "fewer targets": (fits(RNNRegressor(), XS, Y[1:]), "inconsistent numbers of samples"),
    "no targets": (fits(RNNRegressor(), XS, None), "requires y"),
    "a target too few": (
        fits(RNNRegressor(per_step=True), XS, XS[:, 1:, 0]), "y: expected 6 targets.*sequence 0"),
    "sequences of targets too few": (
        fits(RNNRegressor(per_step=True), XS, np.ones((39, 6))), "y: expected targets for 40"),
    "labels for sequences, not for steps": (
        fits(RNNClassifier(per_step=True), XS, Y), "y: expected 6 targets"),
    "labels for steps, not for sequences": (
        fits(RNNClassifier(), XS, XS[:, :, :1] > 0), "Found array with dim 3|y should be|Unknown"),
    "numbers as labels": (fits(RNNClassifier(), XS, XS[:, 0, 0]), "Unknown label type"),
    "columns that are no steps": (
        fits(RNNRegressor(step_features=4), XS.reshape(40, -1)[:, :6], Y), "step_features: .* 6"),
    "a series too short": (
        fits(RNNForecaster(horizon=6), XS, None), r"^X.0.: expected at least 7 .*predict\(hor"),
    "a series too short to hold out": (
        fits(RNNForecaster(horizon=3, **EARLY), XS, None), "series of at least 8"),
    "cell": (fits(RNNRegressor("lst"), XS, Y), "cell: expected one of"),
    "optimiser": (fits(RNNRegressor(optimiser="adams"), XS, Y), "optimiser: expected one of"),
    "no optimiser": (fits(RNNRegressor(optimiser=dict), XS, Y), "optimiser: expected it to return"),
    **{
        name: (fits(RNNRegressor(**{name: value}), XS, Y), f"{name}: expected")
        for name, value in {
            "hidden_size": 0, "layers": 1.5, "dropout": 1.0, "lr": -1, "batch_size": 0,
            "max_epochs": 0, "clip": 0, "patience": 0, "dtype": "float16", "step_features": 0,
        }.items()
    },
    "validation_fraction": (
        fits(RNNRegressor(early_stopping=True, validation_fraction=1.5), XS, Y),
        "validation_fraction: expected"),
    "horizon": (fits(RNNForecaster(horizon=0), XS, None), "horizon: expected"),
    "window": (fits(RNNForecaster(window=0), XS, None), "window: expected"),
    "stride": (fits(RNNForecaster(stride=0), XS, None), "stride: expected"),
    "exogenous of other length": (
        lambda: RNNForecaster().fit(XS, exogenous=XS[:, 1:]),
        r"exogenous\[0\]: expected 6 steps, the 6 of X\[0\], got 5"),
    "exogenous without the future": (
        lambda: AHEAD.fit(XS, exogenous=XS).predict(XS, exogenous=XS),
        r"exogenous\[0\]: expected 7 steps, the 6 of X\[0\] and the 1 to come, got 6"),
    "no exogenous later": (
        lambda: AHEAD.fit(XS, exogenous=XS).predict(XS), "exogenous: expected inputs .*, got None"),
    "a table after sequences": (
        lambda: LATER.fit(XS, Y).predict(XS[:, 0]), r"X: expected sequences .*as in fit.*table"),
    "sequences after a table": (
        lambda: LATER.fit(XS[:, 0], Y).predict(XS), r"X: expected a table .*as in fit"),
    "other features later": (
        lambda: LATER.fit(XS, Y).predict(XS[:, :, :1]), "X has 1 features, .* expecting 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input(case):
    call, message = REFUSED[case]
    with np.errstate(over="ignore"), pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_loss_that_is_not_finite_is_an_error():
    model = RNNRegressor("rnn", optimiser="sgd", lr=1e30, clip=None, max_epochs=9)
    with (
        np.errstate(all="ignore"),
        pytest.raises(TrainingDiverged, match="lr 1e\\+30; a lower lr or clip helps"),
    ):
        model.set_params(dtype="float32").fit(XS, XS[:, 0, 0])


def test_scikit_learn_is_loaded_on_demand_and_named_where_it_is_missing():
    run_python("""
        import sys
        import numba_rnn

        assert "sklearn" not in sys.modules
        sys.modules["sklearn"] = None
        try:
            numba_rnn.sklearn
        except ImportError as error:
            assert 'pip install "numba-rnn[sklearn]"' in str(error)
        else:
            raise AssertionError("no error")
        del sys.modules["sklearn"]
        assert numba_rnn.sklearn.RNNClassifier.__name__ == "RNNClassifier"
    """)


# ---- tables that are not what they seem


def frames(columns="ab", times=60, index=None):
    values = np.random.default_rng(0).standard_normal((times, len(columns)))
    return pd.DataFrame(values, columns=list(columns), index=index)


def test_a_table_of_times_is_one_series_and_no_table():
    days = pd.date_range("2026-01-01", periods=60)
    one = frames(index=days)
    model = RNNForecaster(max_epochs=1, random_state=0).fit(one)
    same = RNNForecaster(max_epochs=1, random_state=0).fit([one])
    np.testing.assert_array_equal(model.predict(one).to_numpy(), same.predict([one])[0])
    with pytest.raises(ValueError, match=r"exogenous: .* each time: exogenous=\[exogenous\]"):
        RNNForecaster(max_epochs=1).fit([one], exogenous=one)
    with pytest.warns(UserWarning, match="taken as 60 series"):
        model.fit(frames())  # a table, now
    with pytest.raises(ValueError, match=r"X: .* a table of times \(DatetimeIndex\).*fit\(\[X\]\)"):
        model.predict(one)


def test_a_narrow_table_is_told_from_one_series():
    with pytest.raises(ValueError, match=r"minimum of 7 .* a row for each time: fit\(\[X\]\)"):
        RNNForecaster(horizon=6, max_epochs=1).fit(frames())


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((200, 5), {}, "200 series of 5 steps. If it is one series of 5 channels, use fit([X])"),
        (
            (200, 6),
            {"step_features": 2},
            "200 series of 3 steps. If it is one series of 6 channels",
        ),
        ((60, 30), {"window": 31}, "60 series of 30 steps. If it is one series of 30 channels"),
        ((40, 5), {}, None),
        ((1, 20), {"window": 25}, None),
        ((300, 20), {}, None),
        ((200, 5, 1), {}, None),
    ],
)
def test_a_table_that_may_be_one_series_is_named(shape, options, says):
    X = np.random.default_rng(0).standard_normal(shape)
    model = RNNForecaster(**{**SMALL, "max_epochs": 1}, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X).predict(X)
    assert [w.filename for w in caught] == [__file__] * (says is not None)
    for warning in caught:
        assert warning.category is UserWarning
        assert f"X: taken as {says}" in str(warning.message)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_fitted_network_is_streamed(layers):
    wave = np.sin(np.arange(60) / 4)[:, None]
    model = RNNForecaster(**SMALL, **RAW, layers=layers, dropout=0.3, horizon=2).fit([wave])
    stream = Stream(model.network_)
    ahead = stream.step_many(wave)
    np.testing.assert_allclose(ahead[-1], model.predict([wave])[0, :, 0], rtol=1e-6)
    both = RNNRegressor(**SMALL, bidirectional=True, pooling="last").fit(XS, XS[:, 0, 0])
    with pytest.raises(TypeError, match=r"layers: expected .* read forwards.* got Bidirectional"):
        Stream(both.network_)


def test_columns_are_those_of_fit():
    series, known = frames(), frames("uv", 61)
    model = RNNForecaster(max_epochs=1, random_state=0).fit([series], exogenous=[known[:60]])
    assert list(model.feature_names_in_) == ["a", "b"]
    model.predict([series], exogenous=[known])
    model.predict([series.to_numpy()], exogenous=[known.to_numpy()])
    with pytest.raises(ValueError, match="X: expected the columns a, b, in this order, got b, a"):
        model.predict([series[["b", "a"]]], exogenous=[known])
    with pytest.raises(ValueError, match="exogenous: expected the columns u, v"):
        model.predict([series], exogenous=[known[["v", "u"]]])
    with pytest.raises(ValueError, match=r"X\[1\]: expected the columns a, b"):
        model.fit([series, series[["b", "a"]]])


@pytest.mark.parametrize("columns", [[0, 1], [5, 3], [("a", 1), ("a", 0)], [0.5, "b"]], ids=str)
def test_columns_are_those_of_fit_whatever_they_are(columns):
    xs, known = ([frames(times=n).set_axis(columns, axis=1)] * 2 for n in (60, 61))
    turned = [[x[columns[::-1]] for x in some] for some in (xs, known)]
    model = RNNForecaster(max_epochs=1, random_state=0)
    want = model.fit(xs, exogenous=xs).predict(xs, exogenous=known)
    plain = [[x.to_numpy() for x in some] for some in (xs, known)]
    np.testing.assert_array_equal(model.predict(plain[0], exogenous=plain[1]), want)
    model = pickle.loads(pickle.dumps(model))
    with pytest.raises(ValueError, match=r"X: expected the columns .*, in this order, got "):
        model.predict(turned[0], exogenous=known)
    with pytest.raises(ValueError, match=r"exogenous: expected the columns .*, in this order, got"):
        model.predict(xs, exogenous=turned[1])
    with pytest.raises(ValueError, match=r"X\[1\]: expected the columns"):
        model.fit([xs[0], turned[0][0]])
    classifier = RNNClassifier(**SMALL).fit(xs, [0, 1])
    assert not hasattr(classifier, "feature_names_in_")
    with pytest.raises(ValueError, match=r"X: expected the columns .*, in this order, got "):
        classifier.predict(turned[0])


def test_columns_without_names_may_be_those_of_names():
    xs = [frames(), frames()]
    plain = [x.set_axis(range(2), axis=1) for x in xs]
    RNNForecaster(max_epochs=1).fit(xs).predict(plain)
    RNNForecaster(max_epochs=1).fit(plain).predict(xs)


DAYS = pd.date_range("2026-01-01", periods=60)
BUSY = pd.bdate_range("2026-01-01", periods=60)
TIMES_IN_ORDER = {
    "days": DAYS,
    "days without freq": pd.DatetimeIndex(list(DAYS)),
    "working days": pd.DatetimeIndex(list(BUSY)),
    "months": pd.DatetimeIndex(list(pd.date_range("2020-01-31", periods=60, freq="ME"))),
    "days over a change of the clock": pd.DatetimeIndex(
        list(pd.date_range("2026-03-01", periods=60, tz="Europe/Berlin"))
    ),
    "periods": pd.period_range("2020-01", periods=60, freq="M"),
    "durations": pd.timedelta_range("0s", periods=60, freq="10s"),
    "thirds of hours, rounded": DAYS[0] + pd.to_timedelta(np.arange(60) / 3, unit="h"),
    "a clock that is not exact": DAYS[0]
    + pd.to_timedelta(np.arange(60) * 1000 + np.arange(60) % 3, unit="ms"),
    "dates of Python": pd.Index([day.date() for day in DAYS], dtype=object),
    "dates in text": DAYS.strftime("%Y-%m-%d"),
    "months in text": pd.period_range("2020-01", periods=60, freq="M").strftime("%Y-%m"),
    "dates as in Germany": DAYS.strftime("%d.%m.%Y"),
    "dates with the day first": DAYS.strftime("%d/%m/%Y"),
    "dates with the month first": DAYS.strftime("%m/%d/%Y"),
    "months with the day first": pd.period_range("2020-01", periods=60, freq="M").strftime(
        "01/%m/%Y"
    ),
    "minutes in text": pd.date_range("2026-01-01", periods=60, freq="min").strftime(
        "%d.%m.%Y %H:%M"
    ),
    "categories": pd.CategoricalIndex(DAYS.strftime("%Y-%m-%d")),
    "intervals": pd.interval_range(DAYS[0], periods=60),
    "years": pd.RangeIndex(1960, 2020),
    "years in text": pd.RangeIndex(1960, 2020).astype(str),
    "numbers in text": pd.RangeIndex(60).astype(str),
    "tens": pd.RangeIndex(0, 600, 10),
    "months of another day": pd.DatetimeIndex(
        [pd.Timestamp("2020-01-15") + pd.DateOffset(months=k) for k in range(60)]
    ),
    "names": pd.Index([f"row {k}" for k in range(60)][::-1]),
}


@pytest.mark.parametrize("index", TIMES_IN_ORDER)
def test_times_in_order_are_taken(index):
    index = TIMES_IN_ORDER[index]
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    frame = frames(index=index)
    want = model.fit([frame.to_numpy()]).predict([frame.to_numpy()])
    np.testing.assert_array_equal(model.fit([frame]).predict([frame]), want)


NOT_IN_ORDER = {
    "newest first": (lambda index: index[::-1], "steps in the order of time"),
    "shuffled": (lambda index: index[np.r_[:30, 31, 30, 32:60]], "steps in the order of time"),
    "one twice": (lambda index: index[np.r_[:59, 58]], "every time once, got .* twice"),
}
UNEVEN = {
    "a day is missing": (DAYS.delete(20)[:50], "evenly spaced times, got .*-22.* after .*-20"),
    "a month is missing": (
        pd.period_range("2020-01", periods=60, freq="M").delete(20),
        "evenly spaced times, got 2021-10 after 2021-08",
    ),
    "a duration is missing": (
        pd.timedelta_range("0s", periods=60, freq="10s").delete(20), "evenly spaced times"),
    "a date in text is missing": (
        DAYS.delete(20).strftime("%Y-%m-%d"), r"evenly spaced times, .*set_axis"),
    "a date as in Germany is missing": (
        DAYS.delete(20).strftime("%d.%m.%Y"), r"evenly spaced times, got 22.*set_axis"),
    "a category is missing": (
        pd.CategoricalIndex(DAYS.delete(20).strftime("%Y-%m-%d")), "evenly spaced times"),
    "an interval is missing": (
        pd.interval_range(DAYS[0], periods=60).delete(20), r"evenly spaced times.*index\.left"),
    "a date is missing": (
        pd.Index([day.date() for day in DAYS.delete(20)], dtype=object), "evenly spaced times"),
    "the 15th of a month is missing": (
        TIMES_IN_ORDER["months of another day"].delete(20), "evenly spaced times.*resample.'MS'"),
    "the 15th of a quarter is missing": (
        TIMES_IN_ORDER["months of another day"][::3].delete(9), "evenly spaced.*resample.'QS'"),
    "a holiday": (BUSY.delete(20), "evenly spaced times.*resample.'B'"),
    "a number is missing": (pd.Index([1, 2, 5]), r"evenly spaced numbers, got 5 after 2"),
    "a year in text is missing": (
        pd.RangeIndex(1960, 2020).delete(7).astype(str), "evenly spaced times.*resample.'YS'"),
}  # fmt: skip


OF_TIME = [index for index in TIMES_IN_ORDER if index != "names"]


@pytest.mark.parametrize("index", OF_TIME)
@pytest.mark.parametrize("case", NOT_IN_ORDER)
def test_steps_that_are_not_in_order_are_refused_by_name(index, case):
    change, says = NOT_IN_ORDER[case]
    good, bad = (frames(index=i) for i in (TIMES_IN_ORDER[index], change(TIMES_IN_ORDER[index])))
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    with pytest.raises(ValueError, match=rf"X\[1\]: expected {says}.*X\[1\]\.reset_index"):
        model.fit([good, bad])
    model.fit([good])
    with pytest.raises(ValueError, match=rf"X\[0\]: expected {says}"):
        model.predict([bad])
    with pytest.raises(ValueError, match=rf"X\[0\]: expected {says}"):
        model.fit([bad["a"]])  # a Series
    with pytest.raises(ValueError, match=rf"exogenous\[0\]: expected {says}"):
        model.fit([good.to_numpy()], exogenous=[bad])
    model.fit([bad.reset_index(drop=True)])


@pytest.mark.parametrize("index", OF_TIME)
def test_the_remedy_in_the_error_puts_steps_in_order(index):
    frame = frames(index=TIMES_IN_ORDER[index])
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    for X, columns in ([frame[::-1]], False), (frame.T.iloc[:, ::-1], True):
        with pytest.raises(ValueError, match="in the order of time") as caught:
            model.fit(X)
        (remedy,) = re.findall(r"; (X.*) puts them in order", str(caught.value))
        mended = eval(remedy, {"X": X, "pd": pd})
        pd.testing.assert_frame_equal(mended, frame.T if columns else frame, check_freq=False)


@pytest.mark.parametrize("case", UNEVEN)
def test_missing_times_are_refused_by_name(case):
    index, says = UNEVEN[case]
    frame = frames(index=index, times=len(index))
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    with pytest.raises(ValueError, match=rf"X\[0\]: expected {says}") as caught:
        model.fit([frame])
    (remedy,) = re.findall(r"; (X.*) fills in what is missing", str(caught.value))
    mended = eval(remedy, {"X": [frame], "pd": pd})
    assert len(frame) < len(mended) < 70
    assert mended.notna().all(axis=None)
    model.fit([mended])
    model.fit([frame.reset_index(drop=True)])


def test_a_tables_times_are_its_columns():
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    table = frames(index=DAYS).T
    model.fit(table).predict(table)
    with pytest.raises(ValueError, match=r"X: expected steps in the order.*sort_index\(axis=1\)"):
        model.predict(table.iloc[:, ::-1])
    with pytest.raises(ValueError, match=r"X: .*evenly spaced.*X\.T\.resample\(.*\)\.T fills"):
        model.fit(table.drop(columns=DAYS[20]))
    panel = pd.concat({"a": frames(), "b": frames()})
    with pytest.raises(ValueError, match=r"X: .* a MultiIndex; .*groupby\(level=0\)"):
        model.fit(panel)
    with pytest.raises(ValueError, match=r"X\[0\]: expected one series, .* a MultiIndex"):
        model.fit([panel])
    model.fit([series for _, series in panel.groupby(level=0)])
    with pytest.raises(ValueError, match=r"X\[1\]: expected steps in the order"):
        model.fit([series[:: -k or 1] for k, (_, series) in enumerate(panel.groupby(level=0))])


@pytest.mark.parametrize("index", OF_TIME)
@pytest.mark.parametrize("case", NOT_IN_ORDER)
def test_columns_of_a_table_are_in_order_for_every_estimator(index, case):
    change, says = NOT_IN_ORDER[case]
    good, bad = (frames(index=i).T for i in (TIMES_IN_ORDER[index], change(TIMES_IN_ORDER[index])))
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    with pytest.raises(ValueError, match=rf"X: expected {says}.*X\.to_numpy"):
        model.fit(bad)
    with pytest.raises(ValueError, match=rf"exogenous: expected {says}"):
        model.fit(good.to_numpy(), exogenous=bad)
    model.fit(good, exogenous=good)
    if case != "one twice":
        with pytest.raises(ValueError, match=rf"X: expected {says}.*X\.to_numpy"):
            RNNRegressor(**SMALL).fit(bad, [0, 1])
    RNNRegressor(**SMALL).fit(good, [0, 1])


def test_columns_of_two_tables_are_the_same_times():
    table = frames("ab", index=DAYS).T
    other = table.set_axis(DAYS + pd.Timedelta("1D"), axis=1)
    named = table.set_axis(range(60), axis=1)
    model = RNNRegressor(**SMALL, per_step=True)
    for ts in table, named, table.to_numpy():
        model.fit(table, ts)
    with pytest.raises(ValueError, match=r"y: expected steps in the order of time, got 2026"):
        model.fit(table, table.iloc[:, ::-1])
    with pytest.raises(ValueError, match=r"y: expected the index of X, .* X has 2026-01-01"):
        model.fit(table, other)
    with pytest.raises(ValueError, match=r"y: expected steps in the order of time, got 58 after"):
        model.fit(table, named.iloc[:, ::-1])
    forecaster = RNNForecaster(max_epochs=1, random_state=0).fit(table, exogenous=table)
    with pytest.raises(
        ValueError, match=r"exogenous: expected the index of X, .* X has 2026-01-01"
    ):
        forecaster.fit(table, exogenous=other)


def test_columns_of_several_features_are_in_order_by_steps():
    values = np.random.default_rng(0).standard_normal((4, 12))
    model = RNNRegressor(**SMALL, step_features=2)
    model.fit(pd.DataFrame(values), values[:, 0])
    with pytest.raises(ValueError, match="X: expected steps in the order of time, got 9 after 11"):
        model.fit(pd.DataFrame(values, columns=range(11, -1, -1)), values[:, 0])


def test_dates_in_text_are_rows_of_one_series():
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    for form in ("%Y-%m-%d", "%d.%m.%Y"):
        one = frames("abcde", index=DAYS.strftime(form))
        same = model.fit([one]).predict([one])[0]
        np.testing.assert_array_equal(model.fit(one).predict(one), same)
        with pytest.warns(UserWarning, match="taken as 60 series"):
            model.fit(one.reset_index(drop=True))
    with pytest.warns(UserWarning, match="taken as 60 series"):  # of which these are names
        model.fit(frames("abcde", index=map(str, range(2001, 2061))))


FREQUENCIES = {
    "days": pd.date_range("2026-01-01", periods=60),
    "two days": pd.date_range("2026-01-01", periods=60, freq="2D"),
    "weeks": pd.date_range("2026-01-01", periods=60, freq="7D"),
    "hours in text": pd.date_range("2026-01-01", periods=60, freq="h").strftime("%Y-%m-%d %H:%M"),
    "periods of months": pd.period_range("2020-01", periods=60, freq="M"),
    "durations": pd.timedelta_range("0s", periods=60, freq="10s"),
    "intervals": pd.interval_range(pd.Timestamp(2026, 1, 1), periods=60, freq="3h"),
    "working days": BUSY,
}


@pytest.mark.parametrize("fitted", FREQUENCIES)
def test_the_frequency_is_that_of_fit(fitted):
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    good = frames(index=FREQUENCIES[fitted])
    model.fit([good, good.to_numpy()]).predict([good[20:23]])
    data = pickle.dumps(model)
    assert b"frames" not in data
    model = pickle.loads(data)
    for name, index in FREQUENCIES.items():
        if name == fitted:
            continue
        other = frames(index=index)
        with pytest.raises(
            ValueError, match=r"X\[1\]: expected steps of .*, as in fit, got .*resample"
        ):
            model.predict([good, other])
        with pytest.raises(ValueError, match=r"X\[0\]: expected steps of .*, as in fit, got"):
            model.partial_fit([other])
        with pytest.raises(ValueError, match=r"X\[2\]: expected steps of .*, as in X\[1\], got"):
            model.fit([good[:10], good, other])
        model.predict([other.to_numpy()])
        model.fit(good.T).predict(good.T)
        if fitted != "hours in text" != name:  # whose names scikit-learn compares
            with pytest.raises(ValueError, match=r"X: expected steps of .*, as in fit, got"):
                model.predict(other.T)
        model.fit([good])


@pytest.mark.parametrize(
    ("fitted", "later"),
    [
        (pd.date_range("2020-01-01", periods=60, freq="MS"),
         pd.period_range("2026-02", periods=2, freq="M")),
        (pd.date_range("2019-01-31", periods=3, freq="ME"),
         pd.date_range("2020-01-31", periods=60, freq="ME")),
        (BUSY, BUSY[4:9]),
        (BUSY[4:9], BUSY),
        (DAYS, pd.date_range("2026-03-28", periods=3, tz="Europe/Berlin")),
        (pd.date_range("2000", periods=9, freq="YS"), pd.period_range("2025", periods=2, freq="Y")),
    ],
    ids=range(6),
)  # fmt: skip
def test_frequencies_of_the_calendar_are_one(fitted, later):
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    fitted, later = (frames(index=index, times=len(index)) for index in (fitted, later))
    model.fit([fitted]).predict([later])
    model.fit([fitted, later])


def test_exogenous_inputs_have_the_labels_of_their_series():
    days = pd.date_range("2026-01-01", periods=61, tz="UTC")
    series, known = frames(index=days[:60]), frames("uv", 61, days)
    model = RNNForecaster(max_epochs=1, random_state=0, cell="rnn", hidden_size=3)
    model.fit([series], exogenous=[known[:60]])
    want = model.predict([series], exogenous=[known])
    for same in (known.tz_convert("Asia/Seoul"), known.to_numpy()):
        np.testing.assert_array_equal(model.predict([series], exogenous=[same]), want)
    later = known.set_axis(days + pd.Timedelta("1D"))
    for other in (later, known.tz_localize(None), known.reset_index(drop=True)):
        with pytest.raises(
            ValueError, match=r"exogenous\[0\]: expected the index of X\[0\], got .* where"
        ):
            model.predict([series], exogenous=[other])
    table, more = frames(times=4), frames("uvw", times=4)
    model.fit(table, exogenous=more.iloc[:, :2])
    with pytest.raises(
        ValueError, match=r"exogenous: expected the index of X, got 3 where X has 0"
    ):
        model.predict(table, exogenous=more[::-1])


def test_steps_of_frames_are_in_order_for_every_estimator():
    xs = [frames(index=DAYS), frames(index=DAYS.delete(20)[:50], times=50)]  # events may have gaps
    model = RNNClassifier(**SMALL).fit(xs, [0, 1])
    with pytest.raises(ValueError, match=r"X\[1\]: expected steps in the order of time"):
        model.predict([xs[0], xs[1][::-1]])
    ts = [x["a"] for x in xs]
    model = RNNRegressor(**SMALL, per_step=True).fit(xs, ts)
    with pytest.raises(ValueError, match=r"y\[0\]: expected the index of X\[0\]"):
        model.fit(xs, [ts[0][::-1], ts[1]])
    with pytest.raises(ValueError, match=r"y\[0\]: expected the index of X\[0\]"):
        model.score(xs, [ts[0][::-1], ts[1]])
    panel = pd.concat({"a": xs[0], "b": xs[1]})
    with pytest.raises(ValueError, match="X: expected 2 sequences, got 110 rows of a MultiIndex"):
        RNNClassifier(**SMALL).fit(panel, [0, 1])
    RNNClassifier(**SMALL).fit([x for _, x in panel.groupby(level=0)], [0, 1])
    shelf = np.empty(2, object)
    shelf[:] = [x[["b", "a"]] for x in xs]
    with pytest.raises(ValueError, match="X: expected the columns a, b, in this order, got b, a"):
        model.predict(shelf)


# ---- scale


WAVE = np.sin(np.arange(60.0) / 3)[:, None]


@pytest.mark.parametrize("values", [WAVE, 3 + 2 * WAVE, 0.1 * WAVE, 0 * WAVE, 0 * WAVE + 1])
def test_numbers_of_about_unit_scale_are_taken_without_a_word(values):
    RNNForecaster(max_epochs=1, **RAW).fit([values], exogenous=[values])


@pytest.mark.parametrize(
    ("values", "mean"), [(300 + 50 * WAVE, "3e"), (1e-4 * WAVE, ""), (5 + 0.1 * WAVE, "5")]
)
def test_series_that_are_far_from_unit_scale_are_named(values, mean):
    model = RNNForecaster(max_epochs=1, **RAW)
    with pytest.warns(UserWarning, match=f"X: expected numbers of about unit scale, .* {mean}"):
        model.fit([values])
    frame = pd.DataFrame({"wave": WAVE[:, 0], "raw": values[:, 0]})
    with pytest.warns(UserWarning, match="X: .*unit scale, .* in 'raw'"):
        model.fit([frame])


def test_other_numbers_that_are_far_from_unit_scale_are_named():
    far = pd.DataFrame({"u": WAVE[:, 0], "v": 1e200 * WAVE[:, 0]})
    with pytest.warns(UserWarning, match="exogenous: .*unit scale, .*e\\+19.* in 'v'"):
        RNNForecaster(max_epochs=1, dtype="float64").fit([WAVE], exogenous=[far])
    with pytest.warns(UserWarning, match="X: .*unit scale, .* in feature 1"):
        RNNClassifier(**SMALL, standardise=False).fit(XS * [1, 1000], Y)
    with pytest.warns(UserWarning, match="y: .*unit scale"):
        RNNRegressor(**SMALL).fit(XS, 1000 * XS[:, 0, 0])
    with pytest.warns(UserWarning, match="y: .*unit scale"):
        RNNRegressor(**SMALL).partial_fit(XS, 1000 * XS[:, 0, 0])


def test_to_judge_the_scale_of_much_takes_little_memory():
    many = np.random.default_rng(0).standard_normal((100_000, 20, 2), np.float32)
    tracemalloc.start()
    warn_of_scale("X", many)
    assert tracemalloc.get_traced_memory()[1] < many.nbytes
    tracemalloc.stop()
    with pytest.warns(UserWarning, match=r"X: .* a mean of 3e\+02 .* in feature 1"):
        warn_of_scale("X", many + np.float32([0, 300]))


# ---- nothing to predict


@pytest.mark.parametrize("empty", [[], (), np.empty(0, object), np.empty((0, 6, 2))],
                         ids=["list", "tuple", "objects", "array"])  # fmt: skip
def test_no_sequences_at_all_are_refused_as_scikit_learn_does(empty):
    for model in (RNNClassifier(**SMALL), RNNRegressor(**SMALL), RNNForecaster(max_epochs=1)):
        model.fit(XS, Y)
        calls = [model.predict, lambda X: model.fit(X, []), lambda X: model.score(X, [])]  # noqa: B023
        for call in (*calls, getattr(model, "predict_proba", model.predict)):
            with pytest.raises(ValueError, match=r"Found array with 0 sample\(s\)"):
                call(empty)


def test_exogenous_inputs_are_no_targets():
    with pytest.raises(
        TypeError, match="y: a forecaster takes no targets; pass known inputs as exogenous"
    ):
        RNNForecaster(max_epochs=1).fit([frames()], [frames()])


def test_a_refused_fit_leaves_the_estimator_as_it_was():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((12, 5, 2)), np.arange(12) % 2
    for model in RNNClassifier(max_epochs=1), RNNRegressor(max_epochs=1):
        model.set_params(warm_start=True, random_state=0)
        want = model.fit(X, y).predict(X)
        with pytest.raises(ValueError, match="input_size"):
            model.fit(rng.standard_normal((12, 5, 3)), y)
        with pytest.raises(ValueError, match="NaN"):
            model.fit(np.full((12, 5, 2), np.nan), y)
        np.testing.assert_array_equal(model.predict(X), want)


def test_the_horizon_is_that_of_fit():
    model = RNNForecaster(horizon=4, max_epochs=1, random_state=0).fit([frames()])
    with pytest.raises(ValueError, match="horizon: expected 4, as in fit, got 2"):
        model.set_params(horizon=2).predict([frames()])
    assert model.fit([frames()]).predict([frames()]).shape == (1, 2, 2)
