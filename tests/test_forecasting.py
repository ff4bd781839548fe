"""RNNForecaster on series: differences, scales, seasons, kinds, probabilities."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.base import clone

from fake_device import use_fake_device
from helpers import central_differences, relative_error
from numba_rnn import use_backend
from numba_rnn.sklearn import RNNForecaster
from numba_rnn.sklearn.backtest import crps, mase, seasonal_naive, smape
from numba_rnn.sklearn.calendar_features import calendar_features
from numba_rnn.sklearn.choosing import wanders
from numba_rnn.sklearn.heads import NegativeBinomial, Normal, Quantiles, StudentT, softplus
from numba_rnn.sklearn.network import Network
from numba_rnn.sklearn.transform import Transform, filled, find_season

ROOT = Path(__file__).parents[1]
FAST = {"cell": "rnn", "hidden_size": 5, "max_epochs": 5, "random_state": 0}
RNG = np.random.default_rng(0)
SWING = np.tile([0.0, 3.0, 5.0, 1.0], 15)  # a season of four
SALES = 100 + 2.0 * np.arange(60) + 4 * SWING + RNG.standard_normal(60)


def mean_error(said, came):
    return abs(np.asarray(said) - came).mean()


# ---- differences


@pytest.mark.parametrize("differencing", [None, "first", "seasonal", "both"])
def test_naive_forecasts_are_those_of_random_walks(differencing):
    """Step by step: the next difference is 0, and what came of it is read as if it had happened."""
    levels, m, horizon = RNG.standard_normal((30, 2)), 4, 10
    transform = Transform(differencing, season=m, scaling="standard")
    centre, _ = transform.measured(levels)
    made = transform.naive(levels, horizon, centre)
    assert made.shape == (30 - transform.lost, horizon, 2)
    for row, now in enumerate(range(transform.lost, 30)):
        walk = list(levels[: now + 1])
        for _ in range(horizon):
            walk.append({
                None: lambda y: centre,
                "first": lambda y: y[-1],
                "seasonal": lambda y: y[-m],
                "both": lambda y: y[-m] + y[-1] - y[-m - 1],
            }[differencing](walk))  # fmt: skip
        np.testing.assert_allclose(made[row], walk[now + 1 :], rtol=1e-9)


def test_what_is_read_are_scaled_differences_and_those_before():
    levels = RNG.standard_normal((20, 2)).cumsum(axis=0)
    for scaling, of in (("standard", np.std), ("mean_abs", lambda x, axis: abs(x).mean(axis))):
        transform = Transform("first", scaling=scaling, lags=3)
        centre, scale = transform.measured(levels)
        moves = np.diff(levels, axis=0)
        np.testing.assert_allclose(scale, of(moves, axis=0))
        np.testing.assert_allclose(centre, moves.mean(axis=0) * (scaling == "standard"), atol=1e-12)
        inputs = transform.inputs(levels, centre, scale)
        assert inputs.shape == (19, 6)
        want = (moves - centre) / scale
        np.testing.assert_allclose(inputs[5], want[[5, 4, 3]].ravel())
        assert not inputs[0, 2:].any()
    flat, huge = np.ones((9, 1)), 1e300 * RNG.standard_normal((9, 1))
    assert Transform(scaling="standard").measured(flat, otherwise=7.0)[1] == 7
    assert np.isfinite(Transform(scaling="standard").measured(huge)[1])


def test_missing_levels_are_filled_from_before():
    levels = np.array([np.nan, 1, 2, 3, np.nan, 5, np.nan, np.nan])[:, None]
    assert filled(levels).ravel().tolist() == [1, 1, 2, 3, 3, 5, 5, 5]
    assert filled(levels, 3).ravel().tolist() == [1, 1, 2, 3, 1, 5, 3, 1]
    assert not filled(np.full((3, 1), np.nan)).any()


def test_seasons_are_found_where_there_are_some():
    t, noise = np.arange(240), RNG.standard_normal(240)
    assert find_season(np.sin(2 * np.pi * t / 12) + 0.3 * noise + 0.05 * t) == 12
    assert find_season((t % 7 > 4) + 0.2 * noise) == 7
    assert find_season(SALES) == 4
    for plain in (noise, noise.cumsum(), 3.0 * t, np.ones(240), noise[:5]):
        assert find_season(plain) == 0


# ---- with the defaults


def test_the_defaults_beat_the_seasonal_naive_forecast():
    model = RNNForecaster(horizon=4, random_state=0).fit(SALES[:56])
    naive = mean_error(SALES[52:56], SALES[56:])
    assert mean_error(model.predict(SALES[:56]), SALES[56:]) < 0.7 * naive
    assert model.season_ == 4
    assert {trial["differencing"] for trial in model.trials_} == {None, "first", "seasonal", "both"}
    best = min(model.trials_, key=lambda trial: trial["error"])
    assert best["error"] >= 0.9 * min(trial["error"] for trial in model.trials_)


def test_the_unit_of_a_series_changes_nothing():
    model = RNNForecaster(horizon=3, log=False, **FAST)
    want = clone(model).fit(SALES).predict(SALES)
    for scale, shift in ((1000, 0), (1e-6, 5), (1, -1e4)):
        series = scale * SALES + shift
        said = (clone(model).fit(series).predict(series) - shift) / scale
        np.testing.assert_allclose(said, want, rtol=1e-4)


def test_the_choice_is_made_of_what_comes_before_and_of_no_seed():
    first = RNNForecaster(horizon=2, random_state=0).fit(SALES[:40])
    other = RNNForecaster(horizon=2, random_state=1).fit(SALES[:40].copy())
    assert first.trials_ == other.trials_
    assert first.predict(SALES[:40]).tolist() != other.predict(SALES[:40]).tolist()


def test_forecasts_are_the_mean_of_the_choices_that_are_nearly_the_best():
    model = RNNForecaster(horizon=4, random_state=0).fit(SALES)
    least = min(trial["error"] for trial in model.trials_)
    near = [trial for trial in model.trials_ if trial["error"] < 1.5 * least]
    chosen = model.differencing_, model.log_, model.lags_
    assert len(model.members_) == len(near) - (chosen in [
        (trial["differencing"], trial["log"], trial["lags"]) for trial in near]) > 0  # fmt: skip
    alone = RNNForecaster(horizon=4, random_state=0, combine=False).fit(SALES)
    assert alone.members_ == []
    want = np.mean([one._forecast([SALES[:, None]], [np.zeros((64, 0))])[0, :, 0]
                    for one in (alone, *model.members_)], axis=0)  # fmt: skip
    np.testing.assert_allclose(model.predict(SALES), want)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(), model.predict())
    same = RNNForecaster(horizon=4, random_state=np.random.RandomState(0)).fit(SALES)
    np.testing.assert_array_equal(same.predict(), model.predict())
    model.update(SALES[:4])
    np.testing.assert_array_equal(model.predict(), model.predict(np.r_[SALES, SALES[:4]]))
    assert model.partial_fit(SALES).members_ == []


def test_a_series_that_goes_far_in_small_steps_is_not_forecast_from_its_mean():
    far = np.cumsum(1 + 0.3 * RNG.standard_normal(80))
    model = RNNForecaster(horizon=4, **FAST).fit(far)
    assert None not in {trial["differencing"] for trial in model.trials_}
    assert not wanders([(SALES[:, None] % 5, None)])
    assert wanders([(far[:, None], None)])


def test_refit_learns_all_the_data_for_the_best_number_of_epochs():
    fixed = {"differencing": "first", "log": False, "lags": 1, "random_state": 0, "horizon": 2}
    model = RNNForecaster(**fixed).fit(SALES)
    (trial,) = model.trials_
    assert len(model.loss_curve_) == trial["epochs"] < 100
    same = RNNForecaster(**fixed, early_stopping=False, max_epochs=trial["epochs"]).fit(SALES)
    np.testing.assert_array_equal(model.predict(SALES), same.predict(SALES))
    assert same.trials_ == model.validation_curve_ == []


def test_series_too_short_for_trials_are_taken_as_they_are():
    model = RNNForecaster(**FAST).fit(SALES[:4])
    assert (model.differencing_, model.log_, model.trials_) == (None, False, [])
    assert len(model.loss_curve_) == 5


def test_logarithms_are_taken_where_they_are_better_and_of_positive_numbers_only():
    grown = np.exp(0.05 * np.arange(80) + 0.3 * np.tile([0, 1, 2, 1], 20))
    model = RNNForecaster(horizon=4, random_state=0, differencing="both").fit(grown)
    assert model.log_
    with pytest.raises(ValueError, match="log: expected numbers above 0, got -1 in X"):
        model.predict(np.r_[grown, -1])
    assert not RNNForecaster(**FAST).fit(grown - 5).log_


def test_a_pickle_of_everything_found_says_the_same():
    model = RNNForecaster(horizon=3, **FAST).fit(SALES)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(SALES), model.predict(SALES))


def test_partial_fit_and_warm_start_keep_what_was_chosen():
    model = RNNForecaster(horizon=2, warm_start=True, **FAST).fit(SALES)
    chosen = model.differencing_, model.trials_
    before = model.loss_curve_[-1]
    model.fit(SALES)
    assert (model.differencing_, model.trials_) == chosen
    assert model.loss_curve_[-1] < before
    parts = RNNForecaster(horizon=2, **FAST).partial_fit(SALES).partial_fit(SALES)
    assert parts.predict(SALES).shape == (2,)
    assert len(parts.loss_curve_) == 2


# ---- horizons


def test_the_horizon_may_be_another_at_predict_time():
    model = RNNForecaster(horizon=4, **FAST).fit(SALES)
    four = model.predict(SALES)
    np.testing.assert_array_equal(model.predict(SALES, horizon=2), four[:2])
    ten = model.predict(SALES, horizon=10)
    np.testing.assert_array_equal(ten[:4], four)
    np.testing.assert_array_equal(ten[4:8], model.predict(np.r_[SALES, four]))
    with pytest.raises(ValueError, match="horizon: expected at least 1, got 0"):
        model.predict(SALES, horizon=0)


def test_a_longer_horizon_reads_what_is_known_of_it():
    known = RNG.standard_normal((70, 1))
    model = RNNForecaster(horizon=4, **FAST).fit([SALES[:, None]], exogenous=[known[:60]])
    ten = model.predict([SALES[:, None]], exogenous=[known], horizon=10)
    first = model.predict([SALES[:, None]], exogenous=[known[:64]])
    np.testing.assert_array_equal(ten[:, :4], first)
    longer = np.concatenate([SALES[:, None], first[0]])
    then = model.predict([longer], exogenous=[known[:68]])
    np.testing.assert_array_equal(ten[:, 4:8], then)
    with pytest.raises(ValueError, match=r"exogenous\[0\]: expected 70 steps"):
        model.predict([SALES[:, None]], exogenous=[known[:64]], horizon=10)


# ---- kinds of series

INDICES = {
    "days": pd.date_range("2026-01-01", periods=63),
    "months": pd.date_range("2020-01-31", periods=63, freq="ME"),
    "working days": pd.bdate_range("2026-01-01", periods=63),
    "hours": pd.date_range("2026-01-01", periods=63, freq="h", tz="Europe/Berlin"),
    "quarters": pd.period_range("2001Q1", periods=63, freq="Q"),
    "durations": pd.timedelta_range("0s", periods=63, freq="10s"),
    "years": pd.Index(range(1900, 1963), name="year"),
    "numbers": pd.RangeIndex(63),
}


@pytest.mark.parametrize("name", INDICES)
def test_the_index_of_a_forecast_goes_on(name):
    index = INDICES[name]
    series = pd.Series(SALES, index[:60], name="sales")
    model = RNNForecaster(horizon=3, **FAST).fit(series)
    said = model.predict(series)
    assert isinstance(said, pd.Series)
    assert said.name == "sales"
    assert said.index.equals(index[60:])
    assert said.index.name == index.name
    plain = RNNForecaster(horizon=3, **FAST).fit(SALES).predict(SALES)
    np.testing.assert_array_equal(said.to_numpy(), plain)
    loose = pd.Series(SALES, index[:60].copy(), name="sales")
    if hasattr(loose.index, "freq") and name != "quarters":
        loose.index.freq = None
    assert model.predict(loose).index.equals(index[60:])


def every(months, day):
    """Dates so many months apart, on a day that not every month has."""
    start = pd.Timestamp(2001, 1, day)
    return pd.DatetimeIndex([start + pd.DateOffset(months=months * k) for k in range(63)])


PLAIN = {"differencing": None, "log": False, "lags": 1, "early_stopping": False}
REGULAR = {
    **{freq: pd.date_range("2001-01-01", periods=63, freq=freq)
       for freq in ("MS", "ME", "QS", "QE", "YS", "YE", "BME", "W-WED", "B", "D", "h")},
    "the 15th": every(1, 15), "the 30th": every(1, 30), "quarters": every(3, 15),
    "years": every(12, 15), "pandas' own": pd.date_range("2001-01-15", periods=63,
                                                         freq=pd.DateOffset(months=1)),
    "summer time": pd.date_range("2026-03-01", periods=63, tz="Europe/Berlin"),
    "tens": pd.RangeIndex(0, 630, 10), "shares": pd.Index(np.arange(63) / 4),
    "durations": pd.timedelta_range("0s", periods=63, freq="10s"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:an interval of 0.9 is wider")  # nothing is held out
@pytest.mark.parametrize("name", REGULAR)
def test_a_short_series_goes_on_by_the_frequency_of_fit(name):
    index = REGULAR[name]
    model = RNNForecaster(horizon=3, loss="normal", **FAST, **PLAIN)
    model.fit(pd.Series(SALES, index[:60]))
    assert list(model.predict().index) == list(index[60:])
    for steps in (1, 2, 3):
        short = pd.Series(SALES[:steps], index[60 - steps : 60])
        loose = pd.Series(SALES[:steps], pd.Index(list(short.index)))
        for one in (short, loose):
            for said in (model.predict(one), model.predict_interval(one), model.sample(one)):
                assert list(said.index) == list(index[60:])
            (named,) = model.predict({"a": one.to_frame("b")}).values()
            assert list(named.index) == list(index[60:])
    model.update(pd.Series(SALES[:1], index[60:61]))
    assert list(model.predict(horizon=2).index) == list(index[61:])


def test_a_short_series_among_longer_ones_goes_on_as_they_do():
    index = REGULAR["MS"]
    shop = {"long": pd.Series(SALES, index[:60]), "short": pd.Series(SALES[:2], index[58:60])}
    model = RNNForecaster(horizon=1, **FAST, **PLAIN).fit(shop)
    assert model.predict()["short"].index == index[60:61]
    model = RNNForecaster(horizon=1, calendar=True, window=5, **FAST, **PLAIN).fit(shop)
    model.update({name: [1.0] for name in shop})
    assert model.predict()["short"].index == index[61:62]


def test_labels_beside_the_frequency_of_fit_keep_their_day():
    series = pd.Series(SALES, REGULAR["the 15th"][:60])
    model = RNNForecaster(horizon=2, **FAST, **PLAIN).fit(series)
    for day, then in (
        ("2009-01-31", ["2009-02-28", "2009-03-31"]), ("2009-01-20", ["2009-02-20", "2009-03-20"])
    ):  # fmt: skip
        said = model.predict(pd.Series([100.0], pd.DatetimeIndex([day])))
        assert said.index.strftime("%Y-%m-%d").tolist() == then
    later = pd.Series([1.0, 2.0], pd.date_range("2009-02-27", periods=2, freq="ME"))
    assert model.predict(later).index[0] == pd.Timestamp("2009-04-30")


@pytest.mark.parametrize(
    ("fitted", "given", "says"),
    [
        ("MS", pd.date_range("2026-01-01", periods=2), "steps of 1 month, as in fit, got 1 d"),
        ("MS", pd.date_range("2026-01-01", periods=5, freq="30D"), "steps of 1 month, .* got 30 d"),
        ("MS", pd.date_range("2026-01-01", periods=2, freq="2MS"), "of 1 month.* got 2 months"),
        ("quarters", REGULAR["the 15th"][:9], "steps of 3 months, as in fit, got 1 month;"),
        ("D", pd.bdate_range("2026-01-01", periods=5), "steps of 1 d, as in fit, got 1.5 d"),
    ],
)
def test_another_frequency_than_that_of_fit_is_refused_by_name(fitted, given, says):
    model = RNNForecaster(**FAST, **PLAIN).fit(pd.Series(SALES, REGULAR[fitted][:60]))
    short = pd.Series(SALES[: len(given)], given)
    for call in (model.predict, model.score):
        with pytest.raises(ValueError, match=f"^X: expected.* {says}"):
            call(short)
    with pytest.raises(ValueError, match=rf"^X\['a'\]: .*{says}"):
        model.predict({"a": short})


def test_a_label_that_is_missing_is_named_with_its_place():
    dates = pd.DatetimeIndex(["2026-01-01", None, "2026-01-03", "2026-01-04"])
    series = pd.Series(SALES[:4], dates)
    model = RNNForecaster(**FAST, **PLAIN)
    with pytest.raises(ValueError, match=r"X: .*NaT at step 1; X\[X.index.notna\(\)\] drops it"):
        model.fit(series)
    model.fit(series[series.index.notna()].asfreq("D"))
    table = pd.DataFrame(SALES.reshape(15, 4), columns=dates)
    with pytest.raises(ValueError, match=r"NaT at step 1; X.loc\[:, X.columns.notna\(\)\] drops"):
        model.fit(table)


def test_dates_in_text_go_on_as_dates():
    index = INDICES["months"].strftime("%Y-%m-%d")
    series = pd.Series(SALES, index[:60])
    said = RNNForecaster(horizon=3, **FAST).fit(series).predict(series)
    assert said.index.strftime("%Y-%m-%d").tolist() == index[60:].tolist()
    assert said.index.tz is None
    table = series.rename_axis("month").reset_index(name="sales")
    for dates in (table, table.assign(month=pd.to_datetime(table["month"]))):
        with pytest.raises(ValueError, match=r"X: .* in the column 'month'; X.set_index\('mo"):
            RNNForecaster(**FAST).fit(dates)


def test_a_frame_of_times_is_one_series_of_several_channels():
    index = INDICES["days"]
    frame = pd.DataFrame({"a": SALES, "b": SWING}, index[:60])
    model = RNNForecaster(horizon=3, **FAST).fit(frame)
    said = model.predict(frame)
    assert said.columns.tolist() == ["a", "b"]
    assert said.index.equals(index[60:])
    np.testing.assert_array_equal(said.to_numpy(), model.predict([frame])[0])
    known = pd.Series(SWING, index[:60])
    later = pd.Series(np.tile(SWING[:3], 21), index)
    model.fit(frame, exogenous=known)
    assert model.predict(frame, exogenous=later).shape == (3, 2)


def test_series_by_name_come_back_by_name():
    index = INDICES["days"]
    shop = {"north": pd.Series(SALES, index[:60]), "south": pd.Series(SALES[:40] + 9, index[:40])}
    model = RNNForecaster(horizon=2, **FAST).fit(shop)
    said = model.predict(shop)
    assert list(said) == ["north", "south"]
    assert said["south"].index.equals(index[40:42])
    alone = model.predict(shop["south"])
    pd.testing.assert_series_equal(said["south"], alone, rtol=1e-6)
    arrays = {"a": SALES, "b": np.stack([SALES], axis=1)}
    said = RNNForecaster(horizon=2, **FAST).fit(arrays).predict(arrays)
    assert said["a"].shape == (2,)
    assert said["b"].shape == (2, 1)
    with pytest.raises(ValueError, match="exogenous: expected a dict with the names in X, a, b"):
        RNNForecaster(**FAST).fit(arrays, exogenous={"a": SALES})


def test_numbers_in_a_list_and_an_array_are_one_series():
    model = RNNForecaster(horizon=2, **FAST).fit(SALES)
    np.testing.assert_array_equal(model.predict(SALES.tolist()), model.predict(SALES))
    np.testing.assert_array_equal(model.predict([SALES[:, None]])[0, :, 0], model.predict(SALES))


def test_a_list_of_series_of_different_lengths_is_taken():
    several = [SALES, SALES[:40]]
    model = RNNForecaster(horizon=2, **FAST).fit(several)
    want = model.predict([x[:, None] for x in several])
    np.testing.assert_array_equal(model.predict(several), want)
    np.testing.assert_array_equal(model.predict([pd.Series(x) for x in several]), want)


# ---- missing values


def test_a_target_that_is_missing_counts_nothing():
    model = RNNForecaster(**FAST)
    scores = RNG.standard_normal((3, 4, 2))
    ts = RNG.standard_normal((3, 4, 2))
    there = RNG.random((3, 4, 2)) < 0.6
    mask = RNG.random((3, 4)) < 0.7
    for counts, given in ((there, None), (there & mask[:, :, None], mask)):
        loss, gradient = model._loss(scores, np.where(there, ts, np.nan), given)
        assert loss == pytest.approx(((scores - ts)[counts] ** 2).mean())
        want = np.where(counts, 2 * (scores - ts) / counts.sum(), 0)
        np.testing.assert_allclose(gradient, want, atol=1e-15)
    loss, gradient = model._loss(scores, ts * np.nan, None)
    assert loss == 0 == abs(gradient).max()


def test_series_with_gaps_are_forecast():
    gaps = SALES.copy()
    gaps[[3, 17, 18, 19, 40, 55]] = np.nan
    model = RNNForecaster(horizon=4, random_state=0).fit(gaps[:56])
    assert mean_error(model.predict(gaps[:56]), SALES[56:]) < 1.5 * mean_error(
        SALES[52:56], SALES[56:]
    )
    assert np.isfinite(model.score(gaps[:56]))
    assert np.isfinite(RNNForecaster(**FAST).fit(SALES).predict(gaps)).all()
    with pytest.raises(ValueError, match="X: expected values in each channel, got none in"):
        RNNForecaster(**FAST).fit(SALES * np.nan)
    with pytest.raises(
        ValueError, match=r"X: expected finite numbers, got inf at step 3; .*infinity"
    ):
        model.predict(np.where(np.isnan(gaps), np.inf, gaps))


def test_whatever_pandas_says_is_missing_is():
    series = pd.Series(SALES, INDICES["days"][:60])
    gaps = series.mask(series.index.isin(series.index[[3, 40]]))
    model = RNNForecaster(horizon=2, **FAST, **PLAIN)
    want = model.fit(gaps).predict().to_numpy()
    words = gaps.astype(object)
    words.iloc[3], words.iloc[40] = None, pd.NA
    kinds = words, words.to_numpy(), list(words), gaps.astype("Float64"), words.to_frame("a")
    for kind in kinds:
        said = clone(model).fit(kind).predict()
        np.testing.assert_array_equal(np.asarray(said).ravel(), want)
    assert np.isfinite(model.backtest(words, windows=2).scores["RNNForecaster"]["MASE"])
    np.testing.assert_array_equal(model.fit(series[:30]).update(words[30:]).predict(words),
                                  model.predict(gaps))  # fmt: skip
    with pytest.raises(TypeError, match="X: expected numbers, NaN where one is missing"):
        model.fit(pd.DataFrame(words.to_numpy().reshape(3, 20)))


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scaling": "minmax"}, "scaling: expected one of standard, mean_abs, got 'minmax'"),
        ({"differencing": "second"}, "differencing: expected one of auto, first"),
        ({"differencing": "both", "season": None}, "season: expected the number of steps"),
        ({"season": 1}, "season: expected at least 2, got 1"),
        ({"log": "yes"}, "log: expected True, False or 'auto', got 'yes'"),
        ({"early_stopping": "no"}, "early_stopping: expected True, False or 'refit', got 'no'"),
        ({"lags": 0}, "lags: expected at least 1, got 0"),
        ({"loss": "mae"}, "loss: expected one of mse, quantile, normal"),
        ({"loss": "quantile", "quantiles": (0.1, 1.0)}, "quantiles: expected numbers between"),
        ({"quantiles": (0.5, 0.1)}, "quantiles: expected numbers in order"),
        ({"loss": "negative_binomial"}, "X: expected whole numbers from 0 for loss="),
        ({"loss": "negative_binomial", "log": True}, "loss: 'negative_binomial' takes counts as"),
        ({"differencing": "seasonal", "season": 59}, "X: expected at least 61 steps with diff"),
    ],
)
def test_choices_that_are_none_are_refused_by_name(options, says):
    with pytest.raises(ValueError, match=says):
        RNNForecaster(**FAST, **options).fit(SALES)


def test_a_series_shorter_than_its_differences_is_refused_by_name():
    model = RNNForecaster(**FAST, differencing="both", season=4).fit(SALES)
    with pytest.raises(ValueError, match=r"at least 6 steps, of which differences .* got 5"):
        model.predict(SALES[:5])


THREE = {"north": SALES, "south": SALES, "west": SALES}
FITTED = {}


def fitted(X):
    """A forecaster that has learnt X; the same for all cases."""
    key = "three" if X is THREE else "one"
    if key not in FITTED:
        FITTED[key] = RNNForecaster(horizon=2, **FAST, **PLAIN).fit(X)
    return FITTED[key]


def changed(step, value):
    return np.where(np.arange(60) == step, value, SALES)


EARLY = {"early_stopping": True, "horizon": 3}
NAMED = {
    "infinity": (lambda: RNNForecaster(**FAST).fit({**THREE, "west": changed(7, np.inf)}),
                 r"^X\['west'\]: expected finite numbers, got inf at step 7"),
    "infinity in a table": (lambda: RNNForecaster(**FAST).fit(changed(21, -np.inf).reshape(3, 20)),
                            r"^X\[1\]: expected finite numbers, got -inf at step 1"),
    "infinity in an array": (
        lambda: RNNForecaster(**FAST).fit(changed(21, -np.inf).reshape(3, 20, 1)),
        r"^X\[1\]: expected finite numbers, got -inf at step 1"),
    "infinity in an update": (lambda: fitted(THREE).update({**THREE, "south": [np.inf]}),
                              r"^X\['south'\]: expected finite numbers, got inf at step 0"),
    "infinity in what is known": (
        lambda: RNNForecaster(**FAST).fit(THREE, exogenous={**THREE, "west": changed(7, np.inf)}),
        r"^exogenous\['west'\]: expected finite numbers, got inf at step 7"),
    "names": (lambda: fitted(THREE).update({"south": [1.0]}),
              "X: .* names in fit, north, south, west; missing: north, west$"),
    "more names": (lambda: fitted(THREE).update({**THREE, "east": SALES}), "; unknown: east$"),
    "no names": (lambda: fitted(THREE).update(SALES), "X: expected a dict .* got ndarray$"),
    "names of what is known": (lambda: RNNForecaster(**FAST).fit(THREE, exogenous={"west": SALES}),
                               "exogenous: .* names in X, .*; missing: north, south$"),
    "a long horizon": (lambda: RNNForecaster(horizon=60, **FAST).fit(SALES),
                       r"^X: expected at least 61 .* got 60; .*predict\(horizon=\.\.\.\)"),
    "a long horizon of one": (
        lambda: RNNForecaster(horizon=40, **FAST).fit({**THREE, "west": SALES[:30]}),
        r"^X\['west'\]: expected at least 41 steps"),
    "no series": (lambda: RNNForecaster().fit({}), "X: .* at least one series, got an empty dict"),
    "an empty frame": (lambda: RNNForecaster().fit(pd.DataFrame()), "got an empty DataFrame"),
    "no columns": (lambda: RNNForecaster().fit(pd.DataFrame(index=[1, 2])), "an empty DataFrame"),
    "an empty Series": (lambda: fitted(SALES).predict(pd.Series(dtype=float)), "an empty Series"),
    "no backtest": (lambda: RNNForecaster().backtest([]), "at least one series, got an empty list"),
    "a number": (lambda: fitted(SALES).update(300.0), r"^X: expected series, got 300.0; a list"),
    "a number by name": (lambda: RNNForecaster().fit({"a": 3.0}), r"^X\['a'\]: .* got 3.0$"),
    "too many axes": (lambda: RNNForecaster().fit({"a": np.ones((2, 3, 4))}),
                      r"^X\['a'\]: .* got shape \(2, 3, 4\)"),
    "a column of gaps": (
        lambda: RNNForecaster(**FAST).fit(
            {"a": pd.DataFrame({"x": SALES, "y": np.nan}, INDICES["days"][:60])}),
        r"^X\['a'\]: expected values in each channel, got none in the column 'y'"),
    "no counts": (lambda: RNNForecaster(loss="negative_binomial", **FAST).fit({"a": SALES}),
                  r"^X\['a'\]: expected whole numbers from 0 for loss=.*at step 0"),
    "short ends": (lambda: RNNForecaster(**EARLY, **FAST).fit({"a": SALES[:7], "b": SALES[:6]}),
                   r"early_stopping: .* got 7 in X\['a'\]; early_stopping='refit' or False"),
    "order": (
        lambda: RNNForecaster(**FAST).fit({"a": pd.Series(SALES, INDICES["days"][:60])[::-1]}),
        r"^X\['a'\]: expected steps in the order .*; X\['a'\]\.sort_index\(\) puts"),
    "order of one": (lambda: fitted(SALES).predict(pd.Series(SALES, INDICES["days"][:60])[::-1]),
                     r"^X: expected steps in the order .*; X\.sort_index\(\) puts"),
    "steps of what is known": (lambda: RNNForecaster(**FAST).fit(SALES, exogenous=SALES[:50]),
                               "^exogenous: expected 60 steps, the 60 of X, got 50"),
    "a tail of gaps": (
        lambda: RNNForecaster(**FAST).backtest({"a": np.r_[SALES, [np.nan] * 4]}, windows=2),
        r"^X\['a'\]: expected values to judge forecasts by, got NaN alone at the steps 62 to 62"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", NAMED)
def test_errors_call_series_as_the_user_does(case):
    call, says = NAMED[case]
    with pytest.raises((TypeError, ValueError), match=says):
        call()


# ---- losses

HEADS = [Quantiles([0.1, 0.5, 0.9]), Normal(), StudentT(), NegativeBinomial()]


def scored(head):
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((2, 5, 3 * head.parameters))
    ts = rng.poisson(2.0, (2, 5, 3)) + (0.0 if head.counts else 0.37)
    return scores, ts, np.array([0.5, 2.0, 4.0])


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_gradients_of_losses_are_central_differences(head):
    scores, ts, scale = scored(head)
    ts[0, 1, 2] = np.nan
    mask = np.arange(5) > np.array([[0], [2]])
    if head.counts:
        ts = np.stack([ts, np.broadcast_to(scale, ts.shape)], axis=-1).reshape(2, 5, 6)
    head.forward(scores, ts, mask)
    gradient = head.backward()
    assert not gradient[0, 0].any()
    assert not gradient[0, 1, 2 * head.parameters :].any()
    numeric = central_differences(lambda: head.forward(scores, ts, mask), scores)
    assert relative_error(gradient, numeric) < 1e-6


@pytest.mark.parametrize(
    ("head", "distribution"),
    [
        (Normal(), lambda s, _: stats.norm(s[..., 0], softplus(s[..., 1]) + 1e-4)),
        (StudentT(), lambda s, _: stats.t(
            softplus(s[..., 2]) + 2.0001, s[..., 0], softplus(s[..., 1]) + 1e-4)),
        (NegativeBinomial(), lambda s, scale: stats.nbinom(
            1 / (softplus(s[..., 1]) + 1e-4),
            1 / (1 + (softplus(s[..., 1]) + 1e-4) * scale * (softplus(s[..., 0]) + 1e-4)))),
    ],
    ids=lambda x: getattr(x, "name", ""),
)  # fmt: skip
def test_losses_and_quantiles_are_those_of_scipys_distributions(head, distribution):
    scores, ts, scale = scored(head)
    scores = scores.reshape(*ts.shape, head.parameters)
    known = distribution(scores, scale)
    logs = known.logpmf(ts) if head.counts else known.logpdf(ts)
    np.testing.assert_allclose(head.losses(scores, ts, scale)[0], -logs, rtol=1e-9)
    for q in (0.05, 0.5, 0.9):
        np.testing.assert_allclose(head.quantile(scores, q, scale), known.ppf(q), rtol=1e-9)


def test_quantiles_between_and_beyond_those_that_were_learnt():
    q = np.array([0.1, 0.3, 0.5, 0.8])
    scores = stats.norm.ppf(q, 3, 2)  # of a normal distribution: all others are its, too
    head = Quantiles(q)
    for other in (0.01, 0.1, 0.2, 0.65, 0.8, 0.99):
        assert head.quantile(scores[::-1], other) == pytest.approx(stats.norm.ppf(other, 3, 2))
    assert Quantiles([0.5]).quantile(np.array([2.0]), 0.9) == 2
    wrong = np.array([1.0]) - scores
    loss, _ = head.losses(scores, np.array(1.0))
    assert loss == pytest.approx(np.maximum(q * wrong, (q - 1) * wrong).mean())


def test_a_softplus_does_not_overflow():
    x = np.array([-1e4, 0.0, 1e4])
    np.testing.assert_allclose(softplus(x), [0, np.log(2), 1e4])
    np.testing.assert_allclose(expit(x), [0, 0.5, 1])


@pytest.mark.parametrize("loss", ["quantile", "normal", "student_t"])
def test_probabilistic_losses_forecast_as_well(loss):
    model = RNNForecaster(horizon=4, loss=loss, random_state=0).fit(SALES[:56])
    naive = mean_error(SALES[52:56], SALES[56:])
    assert mean_error(model.predict(SALES[:56]), SALES[56:]) < naive


def test_counts_are_forecast_as_counts():
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.tile([2.0, 40.0], 100))
    model = RNNForecaster("gru", horizon=2, loss="negative_binomial", random_state=0).fit(counts)
    low, high = model.predict(counts)
    assert (model.differencing_, model.log_) == (None, False)
    assert low == int(low) < 6
    assert 30 < high == int(high) < 50


# ---- quantiles, intervals, samples

AHEAD = {"horizon": 4, "random_state": 0}


def walks(steps, rng):
    """A process whose next steps are known in distribution: y' = 0.8 y + noise."""
    values = np.zeros(steps)
    for t in range(1, steps):
        values[t] = 0.8 * values[t - 1] + rng.standard_normal()
    return values


@pytest.mark.parametrize("loss", ["quantile", "normal", "student_t"])
def test_intervals_hold_what_they_say(loss):
    rng = np.random.default_rng(1)
    series = 50 + 3 * walks(1500, rng)
    model = RNNForecaster("gru", loss=loss, hidden_size=16, window=50, stride=10, **AHEAD)
    model.fit(series[:900])
    ends = range(900, 1490, 3)
    pasts = [series[:end, None] for end in ends]
    came = np.stack([series[end : end + 4] for end in ends])
    for share in (0.5, 0.9):
        bands = model.predict_interval(pasts, share)[:, :, 0]
        assert bands.shape == (len(came), 4, 2)
        inside = (came >= bands[..., 0]) & (came <= bands[..., 1])
        assert abs(inside.mean() - share) < 0.08
    widths = (bands[..., 1] - bands[..., 0]).mean(axis=0)
    want = 2 * 1.645 * 3 * np.sqrt(np.cumsum(0.8 ** (2 * np.arange(4))))
    assert widths.mean() == pytest.approx(want.mean(), rel=0.3)
    assert widths[0] < widths[-1]


def test_counts_have_intervals_of_counts():
    rng = np.random.default_rng(0)
    counts = [rng.negative_binomial(2, 0.25, 300) * scale for scale in (1, 1, 1)]
    model = RNNForecaster("gru", loss="negative_binomial", hidden_size=8, **AHEAD)
    model.fit({"a": counts[0], "b": counts[1], "c": counts[2]})
    bands = model.predict_interval(coverage=0.8)
    found = np.stack(list(bands.values()))
    assert (found == found.round()).all()
    low, high = stats.nbinom.ppf([0.1, 0.9], 2, 0.25)
    assert abs(found[..., 0] - low).mean() <= 1.5
    assert abs(found[..., 1] - high).mean() <= 0.25 * high


@pytest.mark.parametrize("loss", ["quantile", "normal", "student_t"])
def test_samples_have_the_quantiles_and_hang_together(loss):
    rng = np.random.default_rng(1)
    series = walks(900, rng).cumsum()
    model = RNNForecaster("gru", loss=loss, hidden_size=8, window=40, stride=10, **AHEAD)
    model.fit(series)
    futures = model.sample(count=3000, random_state=0)
    assert futures.shape == (4, 3000)
    np.testing.assert_array_equal(futures, model.sample(count=3000, random_state=0))
    said = model.predict_quantiles(quantiles=(0.1, 0.5, 0.9))
    assert said.shape == (4, 3)
    width = said[:, 2] - said[:, 0]
    found = np.quantile(futures, [0.1, 0.5, 0.9], axis=1).T
    assert (abs(found - said) < 0.1 * width[:, None]).all()
    assert stats.spearmanr(*futures[:2]).statistic > 0.6  # of sums


@pytest.mark.parametrize("loss", ["quantile", "normal", "student_t"])
def test_intervals_of_short_series_are_honest(loss):
    options = {"differencing": None, "log": False, "lags": 1, "hidden_size": 8, "max_epochs": 30}
    inside = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        steps = (12, 20)[seed % 2]
        series = 50 + 3 * rng.standard_normal(steps + 2)
        model = RNNForecaster("rnn", loss=loss, horizon=2, random_state=0, **options)
        bands = model.fit(series[:steps]).predict_interval(coverage=0.8)
        inside.append((series[steps:] >= bands[:, 0]) & (series[steps:] <= bands[:, 1]))
    assert 0.72 < np.mean(inside) < 0.95


def test_an_interval_that_held_out_values_do_not_tell_is_named():
    model = RNNForecaster(loss="normal", **FAST).fit(SALES[:12])
    with pytest.warns(UserWarning, match=r"interval of 0.95 is .* 6 held-out .* longer series"):
        far = np.diff(model.predict_interval(coverage=0.95))
    near = np.diff(model.predict_interval(coverage=0.5))
    assert far / near == pytest.approx(stats.t.ppf(0.975, 6) / stats.t.ppf(0.75, 6))
    model.fit(SALES[:4])
    for call in (model.predict_interval, model.predict_quantiles, model.sample):
        with pytest.warns(UserWarning, match="no values were held out"):
            call()
    RNNForecaster(loss="normal", **FAST).fit(SALES).predict_interval()


@pytest.mark.parametrize("loss", ["quantile", "normal", "student_t"])
@pytest.mark.parametrize("series", [np.full(40, 7.0), 50 + SWING, 1e6 + 0 * SWING])
def test_a_series_that_always_came_back_is_in_its_interval(loss, series):
    model = RNNForecaster(loss=loss, horizon=2, **FAST).fit(series)
    bands = model.predict_interval(coverage=0.5)
    assert (bands[:, 0] < series[:2]).all()
    assert (bands[:, 1] > series[:2]).all()
    np.testing.assert_array_equal(model.predict(), series[:2])
    np.testing.assert_array_equal(clone(model).set_params(loss="mse").fit(series).predict(),
                                  series[:2])  # fmt: skip
    beside = RNG.standard_normal(len(series))  # has its errors alone
    alone = clone(model).fit(beside)._spread
    held = clone(model).fit([np.c_[series, beside]])._spread[1]
    assert held == alone[1]
    model.partial_fit(SALES)  # moves: the network has its say again
    with pytest.warns(UserWarning, match="no values were held out"):  # that moved
        assert np.ptp(model.predict_interval(SALES, coverage=0.5)) > 0.01


def test_a_warm_start_keeps_units():
    model = RNNForecaster(differencing="first", horizon=2, warm_start=True, **FAST)
    assert model.fit(SALES)._steps is not None
    assert model._steps == model.fit(SALES)._steps


def test_quantiles_come_in_kind():
    index = INDICES["days"]
    series = pd.Series(SALES, index[:60], name="sales")
    model = RNNForecaster(loss="normal", **FAST, horizon=3).fit(series)
    said = model.predict_quantiles(quantiles=(0.2, 0.5))
    assert said.columns.tolist() == [0.2, 0.5]
    assert said.index.equals(index[60:])
    np.testing.assert_array_equal(said[0.5], model.predict())
    assert model.predict_interval().columns.tolist() == ["lower", "upper"]
    assert model.sample(count=5).shape == (3, 5)
    frame = pd.DataFrame({"a": SALES, "b": SWING}, index[:60])
    said = clone(model).fit(frame).predict_interval()
    assert said.columns.tolist() == [("a", "lower"), ("a", "upper"), ("b", "lower"), ("b", "upper")]
    table = SALES.reshape(4, 15)
    assert clone(model).fit(table).predict_quantiles(table).shape == (4, 3, 3)
    wide = clone(model).set_params(step_features=3).fit(table)
    with pytest.warns(UserWarning, match="no values were held out"):  # of series of five steps
        assert wide.predict_quantiles(table).shape == (4, 9, 3)
    several = clone(model).fit({"x": SALES, "y": SALES[:30]}).predict_interval(coverage=0.5)
    assert several["y"].shape == (3, 2)


def test_quantiles_need_a_loss_that_says_them_and_are_named_where_they_are_none():
    model = RNNForecaster(**FAST).fit(SALES)
    for call in (model.predict_quantiles, model.predict_interval, model.sample):
        with pytest.raises(ValueError, match=r"loss: expected 'quantile', .* got 'mse'"):
            call(SALES)
    with pytest.raises(
        ValueError, match=r"intervals, .* 'mse'; RNNForecaster\(loss='normal'\) has"
    ):
        model.predict_interval()
    with pytest.raises(ValueError, match="coverage: expected"):
        model.predict_interval(SALES, 1.0)
    with pytest.raises(
        ValueError, match=r"quantiles: expected a sequence .* \(0.1, 0.5, 0.9\), got"
    ):
        model.predict_quantiles(SALES, 0.5)
    with pytest.raises(ValueError, match=r"quantiles: expected a sequence of numbers .* got 0.5"):
        RNNForecaster(loss="quantile", quantiles=0.5).fit(SALES)
    with pytest.raises(ValueError, match=r"quantiles: expected numbers between 0 and 1, got \(2"):
        model.predict_quantiles(SALES, (2,))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_normal_scores_are_those_of_quantiles(head):
    scores, ts, scale = scored(head)
    scores = np.sort(scores.reshape(*ts.shape, head.parameters), axis=-1)
    for q in (0.2, 0.5, 0.8):
        there = head.quantile(scores, q, scale)
        found = head.normal_scores(scores, there, scale)
        if head.counts:
            below = head.normal_scores(scores, there - 1, scale)
            assert (below < stats.norm.ppf(q)).all()
            assert (found > below).all()
        else:
            np.testing.assert_allclose(found, stats.norm.ppf(q), atol=1e-6)


# ---- update


def test_after_an_update_forecasts_are_those_of_the_longer_series():
    index = INDICES["days"]
    series = pd.Series(SALES, index[:60])
    for options in ({}, {"window": 20}):
        model = RNNForecaster(horizon=3, **FAST, **options).fit(series[:50])
        pd.testing.assert_series_equal(model.predict(), model.predict(series[:50]))
        network = model.network_.arrays()
        assert model.update(series[50:57]) is model
        model.update(series[57:])
        said = model.predict()
        assert said.index.equals(index[60:])
        pd.testing.assert_series_equal(said, model.predict(series))
        for name, array in model.network_.arrays().items():
            np.testing.assert_array_equal(array, network[name])
        again = pickle.loads(pickle.dumps(model))
        pd.testing.assert_series_equal(again.predict(), said)
    with pytest.raises(ValueError, match=r"X: .* go on from 2026-03-02.*got 2026-02-20"):
        model.update(series[50:])


def test_series_of_every_kind_are_updated():
    model = RNNForecaster(horizon=2, **FAST).fit(SALES[:50]).update(SALES[50:].tolist())
    np.testing.assert_array_equal(model.predict(), model.predict(SALES))
    names = {"a": SALES[:50], "b": SALES[:30]}
    model.fit(names).update({"b": SALES[30:40], "a": SALES[50:]})
    want = model.predict({"a": SALES, "b": SALES[:40]})
    for name, said in model.predict().items():
        np.testing.assert_array_equal(said, want[name])
    with pytest.raises(ValueError, match="X: expected a dict with the names in fit, a, b"):
        model.update({"a": SALES})
    table = SALES.reshape(4, 15)
    said = model.fit(table[:, :12]).update(table[:, 12:]).predict()
    assert said.shape == (4, 2)
    whole = [row[:, None] for row in table]
    same = RNNForecaster(horizon=2, **FAST).fit([row[:12] for row in whole])
    np.testing.assert_array_equal(said, same.predict(whole)[:, :, 0])
    model.fit([SALES[:50, None], SALES[:40, None]])
    with pytest.raises(ValueError, match="X: expected 2 series, as in fit, got 1"):
        model.update([SALES[50:, None]])
    with pytest.raises(ValueError, match="X: expected 1 channels, as in fit, got 2"):
        model.update([np.ones((2, 2)), np.ones((2, 2))])


def test_what_is_known_of_new_steps_is_given_with_them():
    known = RNG.standard_normal((64, 1))
    series = SALES[:, None]
    model = RNNForecaster(horizon=4, **FAST).fit([series[:50]], exogenous=[known[:50]])
    first = model.predict(exogenous=[known[50:54]])
    want = model.predict([series[:50]], exogenous=[known[:54]])
    np.testing.assert_array_equal(first, want)
    model.update([series[50:]], exogenous=[known[50:60]])
    want = model.predict([series], exogenous=[known])
    np.testing.assert_array_equal(model.predict(exogenous=known[60:]), want)
    for wrong in (None, known[:3], known[:4, [0, 0]]):
        with pytest.raises(ValueError, match=r"exogenous.*: expected the 4 steps to come of 1"):
            model.predict(exogenous=wrong)


# ---- backtests


def test_measures_are_those_of_the_books():
    past, came, said = (
        np.arange(8.0)[:, None] ** 2,
        np.array([[70.0], [80]]),
        np.array([[60.0], [90]]),
    )
    assert mase(came, said, past, 1) == pytest.approx(10 / np.diff(past[:, 0]).mean())
    assert mase(came, said, past, 3) == pytest.approx(10 / (past[3:] - past[:-3]).mean())
    assert smape(came, said) == pytest.approx((20 / 130 + 20 / 170) / 2)
    assert smape(came * 0, said * 0) == 0
    assert crps(came, said[..., None], np.array([0.5])) == pytest.approx(10)
    levels = np.arange(1, 1000) / 1000
    spread = stats.norm.ppf(levels, 3, 2)[None, None]
    z = (4.5 - 3) / 2  # the closed form of a normal distribution (Gneiting et al. 2005)
    want = 2 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert crps(np.array([[4.5]]), spread, levels) == pytest.approx(want, rel=0.01)


def test_a_backtest_forecasts_windows_from_what_came_before():
    model = RNNForecaster(horizon=4, loss="normal", **FAST)
    series = pd.Series(SALES, INDICES["days"][:60])
    found = model.backtest(series, windows=3, stride=5)
    assert not hasattr(model, "network_")
    assert [one.end for one in found.windows] == [46, 51, 56]
    for one in found.windows:
        past = clone(model).fit(SALES[: one.end])
        np.testing.assert_array_equal(one.said[:, 0], past.predict())
        np.testing.assert_array_equal(one.came[:, 0], SALES[one.end : one.end + 4])
        np.testing.assert_array_equal(one.naive[:, 0], SALES[one.end - 4 : one.end])
        bands = past.predict_interval(coverage=0.8)
        np.testing.assert_allclose(np.c_[one.lower, one.upper], bands)
        assert one.scores["seasonal naive"]["MASE"] == mase(
            one.came, one.naive, SALES[: one.end, None], 4
        )
    scores = found.scores
    assert list(scores) == ["RNNForecaster", "seasonal naive"]
    mean = np.mean([one.scores["RNNForecaster"]["CRPS"] for one in found.windows])
    assert scores["RNNForecaster"]["CRPS"] == pytest.approx(mean)
    assert f"{mean:9.3g}" in str(found)
    assert "mean of 3 forecasts" in str(found)
    figure = found.plot()
    assert [text.get_text() for text in figure.axes[0].get_legend().texts] == [
        "series", "seasonal naive", "RNNForecaster"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="series: expected one of 0, got 'x'"):
        found.plot("x")


def test_a_backtest_without_refitting_reads_what_came_since():
    model = RNNForecaster(horizon=3, **FAST)
    known = RNG.standard_normal((60, 1))
    shop = {"a": SALES, "b": SALES[:50]}
    more = {"a": known, "b": known[:50]}
    found = model.backtest(shop, exogenous=more, windows=2, refit=False)
    first = clone(model).fit({"a": SALES[:54], "b": SALES[:44]},
                             exogenous={"a": known[:54], "b": known[:44]})  # fmt: skip
    assert [(one.series, one.end) for one in found.windows] == [
        ("a", 54), ("b", 44), ("a", 57), ("b", 47)
    ]  # fmt: skip
    want = first.predict({"a": SALES[:57], "b": SALES[:47]}, exogenous=more)
    np.testing.assert_array_equal(found.windows[2].said[:, 0], want["a"])
    assert found.windows[0].lower is None
    assert len(found.plot("b").axes[0].lines) == 5
    table = SALES.reshape(3, 20)
    assert len(model.backtest(table, windows=2).windows) == 6
    assert model.set_params(step_features=2).backtest(table, windows=2).windows[0].end == 4
    with pytest.raises(ValueError, match="windows: expected so few that 4 steps at least come"):
        model.backtest(SALES, windows=20)


@pytest.mark.filterwarnings("error")
def test_gaps_do_not_make_scores_nan_and_a_backtest_shows_as_its_table():
    gaps = SALES.copy()
    gaps[[40, 44, 45, 46, 47, 57, 59]] = np.nan
    found = RNNForecaster(horizon=4, **FAST, **PLAIN).backtest(gaps, windows=3)
    assert np.isfinite([list(scores.values()) for scores in found.scores.values()]).all()
    assert repr(found) == str(found)
    assert len(repr(found)) < 300


# ---- calendar, static features, embeddings


def test_the_calendar_has_the_cycles_that_steps_can_show():
    hours = calendar_features("X", pd.date_range("2026-01-01", periods=400, freq="h"), 3600)
    assert hours.shape == (400, 6)  # year, week, day
    np.testing.assert_allclose(hours[24:, 4:], hours[:-24, 4:], atol=1e-9)
    np.testing.assert_allclose(hours[168:, 2:4], hours[:-168, 2:4], atol=1e-9)
    monday = calendar_features("X", pd.DatetimeIndex(["2026-01-05"]), 86400)  # at midnight
    np.testing.assert_allclose(monday[0, 2:], [0, 1], atol=1e-9)
    months = calendar_features("X", pd.period_range("2020-01", periods=36, freq="M"), 30.4 * 86400)
    assert months.shape == (36, 2)
    np.testing.assert_allclose(months[12:], months[:-12], atol=0.03)
    here = calendar_features("X", pd.date_range("2026-01-01", periods=9, tz="Asia/Tokyo"), 86400)
    there = calendar_features("X", pd.date_range("2026-01-01", periods=9), 86400)
    np.testing.assert_array_equal(here, there)


def test_the_calendar_tells_what_the_past_does_not():
    """Tuesdays are high, of which a window of one step knows nothing."""
    days = pd.date_range("2024-01-01", periods=300)
    rng = np.random.default_rng(0)
    values = pd.Series(10.0 * (days.day_of_week == 1) + rng.standard_normal(300), days)
    options = {"horizon": 1, "differencing": None, "season": None, "lags": 1, "random_state": 0}
    model = RNNForecaster("rnn", calendar=True, window=1, **options).fit(values[:297])
    blind = RNNForecaster("rnn", window=1, **options).fit(values[:297])
    ends = range(279, 300)
    errors = [
        np.mean([abs(one.predict(values[:end]).iloc[0] - values.iloc[end]) for end in ends])
        for one in (model, blind)
    ]
    assert errors[0] < 1.2 < 2 < errors[1]


def test_the_calendar_goes_on_with_the_series():
    index = INDICES["days"]
    series = pd.Series(SALES, index[:60])
    model = RNNForecaster(calendar=True, horizon=3, **FAST).fit(series[:50])
    pd.testing.assert_series_equal(model.predict(), model.predict(series[:50]))
    later = model.predict(series[:50], horizon=7)
    pd.testing.assert_series_equal(model.predict(horizon=7), later)
    model.update(series[50:])
    pd.testing.assert_series_equal(model.predict(), model.predict(series))
    pd.testing.assert_series_equal(pickle.loads(pickle.dumps(model)).predict(), model.predict())
    plain = RNNForecaster(calendar=True, horizon=3, **FAST).fit(series[:50])
    plain.update(SALES[50:])
    pd.testing.assert_series_equal(plain.predict(), model.predict(), check_freq=False)
    assert len(model.backtest(series, windows=2).windows) == 2
    with pytest.raises(ValueError, match="calendar: expected X with an index of dates, got none"):
        model.fit(SALES)
    with pytest.raises(ValueError, match="calendar: expected X with an index of dates"):
        RNNForecaster(calendar=True, **FAST).fit(series).predict(SALES)


def test_a_static_feature_tells_series_apart():
    rng = np.random.default_rng(0)
    signs = np.repeat([1.0, -1.0], 20)
    noise = rng.standard_normal((40, 30))
    series = signs[:, None] * np.abs(noise)  # the size is chance, the sign is not
    names = [f"s{k}" for k in range(40)]
    options = {"window": 1, "differencing": None, "lags": 1, "random_state": 0, "scaling": None}
    model = RNNForecaster("rnn", **options).fit(series[:, :29], static=signs)
    said = model.predict(np.zeros((40, 29)), static=signs)
    assert (np.sign(said[:, 0]) == signs).all()
    shop = dict(zip(names, series, strict=True))
    frame = pd.DataFrame({"sign": signs}, index=names)
    by_name = RNNForecaster("rnn", **options).fit(shop, static=frame.iloc[::-1])
    some = {name: shop[name] for name in ("s39", "s0")}
    want = by_name.predict(shop, static=dict(zip(names, signs, strict=True)))
    got = by_name.predict(some, static=frame)
    np.testing.assert_allclose(got["s39"], want["s39"], rtol=1e-6)
    np.testing.assert_array_equal(by_name.predict()["s0"], want["s0"])
    by_name.update({name: values[:2] for name, values in shop.items()})
    assert len(by_name.backtest(some, static=frame, windows=2).windows) == 4
    for wrong, says in (
        (None, "static: expected the features of each series, as in fit, got None"),
        (frame.iloc[:1], "static: expected a row for each series, got none for s39"),
        ({"s0": 1}, "static: expected a dict with the names in X"),
        (np.ones((2, 3)), r"static: expected 2 rows of 1, one for each series, got shape \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=says):
            by_name.predict(some, static=wrong)


def test_an_embedding_learns_what_series_are():
    rng = np.random.default_rng(0)
    names = "abcdef"
    levels = dict(zip(names, [1, -1, 1, -1, 1, -1], strict=True))
    shop = {
        name: levels[name] * abs(rng.standard_normal(60 + 5 * k)) for k, name in enumerate(names)
    }
    options = {"window": 1, "differencing": None, "lags": 1, "random_state": 0, "scaling": None}
    model = RNNForecaster("rnn", embedding=2, log=False, **options).fit(shop)
    nothing = {name: np.zeros(5) for name in reversed(names)}
    said = model.predict(nothing)
    assert {name: int(np.sign(one[0])) for name, one in said.items()} == levels
    assert model.network_.embedding.W.shape == (6, 2)
    again = pickle.loads(pickle.dumps(model))
    assert again.predict(nothing)["c"] == said["c"]
    assert model.predict({"d": np.zeros(5)})["d"] == pytest.approx(said["d"])
    model.update({name: np.zeros(3) for name in names})
    assert model.predict()["d"] == pytest.approx(said["d"])
    with pytest.raises(ValueError, match=r"embedding: .* in fit, a, b.*got x"):
        model.predict({"x": np.zeros(5)})
    listed = RNNForecaster("rnn", embedding=2, **options).fit([x[:, None] for x in shop.values()])
    with pytest.raises(ValueError, match="embedding: expected the 6 series of fit, got 1; give"):
        listed.predict([np.zeros((5, 1))])
    assert len(model.backtest(shop, windows=2).windows) == 12


def test_gradients_of_an_embedding_are_central_differences():
    rng = np.random.default_rng(0)
    network = Network(
        5, 2, cell="gru", hidden_size=3, layers=2, bidirectional=False, dropout=0.0, per_step=True,
        dtype="float64", rng=rng, embedding=(4, 2),
    )  # fmt: skip
    xs = rng.standard_normal((3, 4, 4))
    xs[:, :, -1] = [[0], [3], [0]]
    lengths = np.array([4, 2, 3])
    weights = rng.standard_normal((3, 4, 2)) * (np.arange(4)[:, None] < lengths[:, None, None])

    def loss():
        return float((network.forward(xs, lengths) * weights).sum())

    loss()
    network.backward(weights)
    for param, grad in zip(network.params, network.grads, strict=True):
        assert relative_error(grad, central_differences(loss, param)) < 1e-6
    assert not network.grads[-1][1:3].any()


@pytest.mark.parametrize("loss", ["mse", "normal"])
def test_gaps_distributions_and_embeddings_on_a_device(loss):
    gaps = np.where(np.arange(60) % 9 == 4, np.nan, SALES)
    shop = {"a": gaps, "b": SALES[:40]}
    model = RNNForecaster(horizon=2, loss=loss, embedding=2, **FAST)
    with use_backend("numpy"):
        want = clone(model).fit(shop).predict()
    with use_fake_device():
        said = model.fit(shop).predict()
    for name in shop:
        np.testing.assert_allclose(said[name], want[name], rtol=1e-7)


# ---- the benchmark


def test_the_benchmarks_numbers_are_those_of_the_example_and_its_naive_forecast_is_ours():
    forecasting = pytest.importorskip("benchmarks.forecasting")
    numbers = np.array(forecasting.AIRLINE.split(), float)
    assert numbers.shape == (144,)
    table = pd.read_csv(ROOT / "examples" / "airline.csv", index_col=0, parse_dates=True)
    assert table["passengers"].tolist() == numbers.tolist()
    assert pd.DatetimeIndex(table.index, freq="infer").freqstr == "MS"
    past = numbers[:50]
    want = seasonal_naive(past[:, None], 12, 30)[:, 0]
    np.testing.assert_array_equal(forecasting.seasonal_naive(past, 12, 30), want)
    assert want[12] == past[38]


def test_labels_of_what_is_appended_or_to_come_are_not_dropped():
    days, rng = pd.date_range("2026-01-01", periods=63), np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal([10, 1000], 1, (63, 2)), days, ["a", "b"])
    model = RNNForecaster(horizon=2, max_epochs=1, random_state=0).fit(frame[:60])
    with pytest.raises(ValueError, match="X: expected the columns a, b, in this order, got b, a"):
        model.update(frame[60:][["b", "a"]])
    model.fit(frame["a"][:60])
    with pytest.raises(ValueError, match=r"X: .*go on from 2026-03-02.*got RangeIndex from 0"):
        model.update(frame["a"][60:].reset_index(drop=True))

    known = pd.DataFrame(rng.integers(0, 2, (62, 2)) * 1.0, days[:62], ["promo", "rain"])
    series = 100 + known["promo"][:60] * 50 - known["rain"][:60] * 20
    model = RNNForecaster(horizon=2, max_epochs=1, random_state=0)
    model.fit(series, exogenous=known[:60])
    future = known[60:]
    want = model.predict(exogenous=future)
    np.testing.assert_array_equal(model.predict(exogenous=future.to_numpy()), want)
    for wrong, got in ((future[::-1], "2026-03-03"), (known[:2], "2026-01-01")):
        with pytest.raises(ValueError, match=f"exogenous.* go on from 2026-03-02.*got {got}"):
            model.predict(exogenous=wrong)
    with pytest.raises(ValueError, match="exogenous: expected the columns promo, rain"):
        model.predict(exogenous=future[["rain", "promo"]])


def test_the_name_of_a_series_is_that_of_no_column():
    days = pd.date_range("2026-01-01", periods=60)
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), days, ["a", "b"])
    model = RNNForecaster(horizon=2, max_epochs=1, random_state=0)
    named = model.fit({name: frame[name] for name in frame}).predict()
    assert [series.name for series in named.values()] == ["a", "b"]
    assert model.fit(frame["a"]).predict(frame["b"]).name == "b"
    with pytest.raises(ValueError, match="X: expected numbers, got times"):
        model.fit(pd.Series(days, days))


def test_held_out_ends_are_judged_in_the_units_of_the_beginnings():
    """Where differences are taken, too: the naive forecast of a line is far off at all horizons."""
    line = 1.5 * np.arange(150) + 6 * np.random.default_rng(0).standard_normal(150)
    model = RNNForecaster(
        horizon=12, differencing="first", season=None, log=False, lags=1, early_stopping=True,
        random_state=0,
    ).fit(line)  # fmt: skip
    best = int(np.argmin(model.validation_curve_))
    assert model.validation_curve_[best] < 2 * model.loss_curve_[best]


@pytest.mark.parametrize("loss", ["normal", "quantile"])
def test_intervals_of_a_trend_are_those_of_its_noise(loss):
    """Those of 90 % are 3.3 deviations wide, and less than twice as wide as they need be."""
    widths, right = [], []
    for seed in range(6):
        values = 1.5 * np.arange(312) + 6 * np.random.default_rng(seed).standard_normal(312)
        model = RNNForecaster(horizon=12, loss=loss, random_state=0).fit(values[:300])
        ends = np.asarray(model.predict_interval(coverage=0.9))
        widths.append(ends[:, 1] - ends[:, 0])
        right.append((values[300:] >= ends[:, 0]) & (values[300:] <= ends[:, 1]))
    assert 0.8 < np.mean(right) < 1
    assert 0.8 * 3.3 * 6 < np.mean(widths) < 2 * 3.3 * 6


def test_an_update_that_repeats_what_was_read_is_told_what_is_new():
    months = pd.date_range("2001-01-01", periods=60, freq="MS")
    series = pd.Series(SALES, months)
    model = RNNForecaster(horizon=2, **FAST).fit(series[:50])
    with pytest.raises(ValueError, match=r"X\.loc\['2005-03-01 00:00:00':\] is what is new"):
        model.update(series[40:])
    model.update(series.loc["2005-03-01 00:00:00":])
    assert model.predict().index[0] == pd.Timestamp("2006-01-01")


def test_exogenous_inputs_that_are_left_out_are_asked_for():
    model = RNNForecaster(horizon=2, **FAST).fit(SALES, exogenous=[SWING[:, None]])
    with pytest.raises(ValueError, match="exogenous: expected the 2 steps to come of 1"):
        model.predict()
