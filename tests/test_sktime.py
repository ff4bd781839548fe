"""Classifier and forecaster for sktime: its own checks, and that they are ours."""

import re
from pathlib import Path
from textwrap import dedent

import numpy as np
import pandas as pd
import pytest
from sktime.forecasting.base import ForecastingHorizon
from sktime.utils.estimator_checks import check_estimator

from numba_rnn.sklearn import RNNClassifier, RNNForecaster
from numba_rnn.sktime import SktimeRNNClassifier, SktimeRNNForecaster

SMALL = {"hidden_size": 4, "max_epochs": 2, "early_stopping": False, "random_state": 0}
MONTHS = pd.period_range("2020-01", periods=60, freq="M")
Y = pd.DataFrame({"s": np.arange(60) + 10 * np.sin(np.arange(60) / 2)}, MONTHS)
X = pd.DataFrame({"a": np.sin(np.arange(60) / 3)}, MONTHS)


def wrapped(**options):
    return SktimeRNNForecaster(RNNForecaster(**SMALL, **options))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [SktimeRNNClassifier, SktimeRNNForecaster])
def test_the_checks_of_sktime(kind):
    results = check_estimator(kind, raise_exceptions=True, verbose=False)
    assert len(results) > 20
    assert set(results.values()) == {"PASSED"}


def test_it_is_the_classifier():
    rng = np.random.default_rng(0)
    series = rng.standard_normal((12, 2, 9)), np.arange(12) % 2
    plain = RNNClassifier(hidden_size=4, max_epochs=3, layout="ndt", random_state=0)
    want = plain.fit(*series)
    model = SktimeRNNClassifier(plain).fit(*series)
    np.testing.assert_allclose(model.predict_proba(series[0]), want.predict_proba(series[0]))
    np.testing.assert_array_equal(model.predict(series[0]), want.predict(series[0]))
    assert SktimeRNNClassifier().classifier is None


def test_it_is_the_forecaster():
    """Before and after an update, which may repeat what was read; of a horizon with gaps."""
    model = wrapped(loss="normal").fit(Y[:50], X=X[:50], fh=[1, 3])
    plain = RNNForecaster(horizon=3, loss="normal", **SMALL)
    plain.fit({"y": Y[:50]}, exogenous={"y": X[:50]})
    for now in (50, 55):
        if now == 55:
            model.update(Y[45:55], X=X[45:55])
            plain.update({"y": Y[50:55]}, exogenous={"y": X[50:55]})
        ahead, known = MONTHS[[now, now + 2]], {"y": X[now : now + 3]}
        pd.testing.assert_frame_equal(
            model.predict(X=X), plain.predict(exogenous=known)["y"].loc[ahead]
        )
        band = model.predict_interval(X=X, coverage=0.8)
        want = plain.predict_interval(coverage=0.8, exogenous=known)["y"].loc[ahead]
        np.testing.assert_allclose(band, want)
        found = model.predict_quantiles(X=X, alpha=[0.9, 0.1])
        np.testing.assert_allclose(found, band.to_numpy()[:, ::-1])
    assert SktimeRNNForecaster().forecaster is None


def test_an_absolute_horizon_comes_nearer_with_an_update():
    horizon = ForecastingHorizon(MONTHS[55:58], is_relative=False)
    model = wrapped(combine=False).fit(Y[:50], fh=horizon)
    assert model.forecaster_.horizon == 8
    model.update(Y[50:55])
    assert list(model.predict().index) == list(MONTHS[55:58])
    want = model.forecaster_.predict({"y": Y[:55]}, horizon=3)["y"]
    pd.testing.assert_frame_equal(model.predict(), want)


def test_intervals_need_a_loss_that_says_them():
    model = SktimeRNNForecaster()
    assert not model.get_tag("capability:pred_int")
    assert wrapped(loss="student_t").get_tag("capability:pred_int")
    model = wrapped().set_params(forecaster__loss="normal").fit(Y, fh=1)
    assert model.predict_interval().shape == (1, 2)


def test_steps_that_it_cannot_say_are_refused_by_name():
    with pytest.raises(NotImplementedError, match=r"in-sample prediction.*fh"):
        wrapped().fit(Y, fh=[-1, 1])
    model = wrapped().fit(Y[:50], X=X[:50], fh=[1, 2])
    with pytest.raises(ValueError, match=r"y: expected values after 2024-02, .* got them to"):
        model.update(Y[:40], X=X[:40])
    with pytest.raises(ValueError, match=r"exogenous.*expected the 2 steps to come"):
        model.predict(X=X[50:51])


@pytest.mark.parametrize("page", ["classification", "forecasting"])
def test_the_guides_example_runs(page):
    guide = Path(__file__).parents[1] / "docs" / "guide" / f"{page}.md"
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", guide.read_text("utf-8"), re.M)
    (code,) = (dedent(block) for block in blocks if "numba_rnn.sktime" in block)
    series = np.random.default_rng(0).standard_normal((12, 2, 9))
    given = {"X": series, "y": np.arange(12) % 2, "sales": Y["s"], "RNNClassifier": RNNClassifier}
    exec(code, given)
    assert given["model"].is_fitted
