"""How good forecasts of the past would have been, beside the seasonal naive one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from ..optional_deps import optional_import
from ..typing import AnyArray, Array
from ..validation import expect_int
from .choosing import season_of
from .frames import called, like
from .known import static_features
from .sequences import as_array, is_table
from .series import expect_some
from .transform import filled

MEASURES = "MASE", "sMAPE", "CRPS"
LEVELS = np.arange(1, 20) / 20  # the quantiles of which CRPS is made
NAIVE = "seasonal naive"


def mase(came: Array, said: Array, past: Array, season: int) -> float:
    """The mean absolute error over that of the seasonal naive forecasts of the past, of one step.

    Hyndman and Koehler (2006), *Another look at measures of forecast accuracy*. All are (T, C);
    what is missing (NaN) does not count.
    """
    moves = np.abs(past[season:] - past[:-season])
    size = np.nansum(moves, axis=0) / np.maximum(np.isfinite(moves).sum(axis=0), 1)
    return float(np.nanmean(np.abs(came - said) / np.where(size > 0, size, 1)))


def smape(came: Array, said: Array) -> float:
    """The mean of 2 |came - said| / (|came| + |said|), from 0 to 2."""
    size = np.abs(came) + np.abs(said)
    return float(np.nanmean(2 * np.abs(came - said) / np.where(size > 0, size, 1)))


def crps(came: Array, quantiles: Array, levels: AnyArray) -> float:
    """The continuous ranked probability score, of quantiles (T, C, Q): twice their pinball loss.

    Of one forecast without a distribution it is the mean absolute error.
    """
    wrong = came[..., None] - quantiles
    return float(2 * np.nanmean(np.maximum(levels * wrong, (levels - 1) * wrong)))


def seasonal_naive(past: Array, season: int, horizon: int) -> Array:
    """The last season, again and again: (horizon, C)."""
    return past[len(past) - season + np.arange(horizon) % season]


@dataclass(frozen=True)
class Window:
    """One forecast of one series.

    Attributes
    ----------
    series : str
        The name or the number of the series.
    end : int
        The number of steps that were known.
    came, said, naive : (horizon, C) array
        What came, and the two forecasts of it.
    lower, upper : (horizon, C) array or None
        The interval that was to hold 0.8 of what comes.
    scores : dict of dict of float
        MASE, sMAPE and CRPS of the forecaster and of the seasonal naive forecast.
    """

    series: str
    end: int
    came: Array
    said: Array
    naive: Array
    lower: Array | None
    upper: Array | None
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True, repr=False)
class Backtest:
    """The result of ``RNNForecaster.backtest``; print it for a table.

    Attributes
    ----------
    name : str
        The forecaster's.
    windows : list of Window
        All forecasts.
    values : dict of (T, C) arrays
        The series.
    """

    name: str
    windows: list[Window]
    values: dict[str, Array]

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Mean MASE, sMAPE and CRPS of the forecaster and of the seasonal naive forecast."""
        return {
            who: {
                measure: float(np.mean([one.scores[who][measure] for one in self.windows]))
                for measure in MEASURES
            }
            for who in (self.name, NAIVE)
        }

    def __str__(self) -> str:
        wide = max(len(self.name), len(NAIVE)) + 2
        lines = [" " * wide + "".join(f"{measure:>9}" for measure in MEASURES)]
        for who, scores in self.scores.items():
            lines.append(f"{who:{wide}}" + "".join(f"{scores[m]:>9.3g}" for m in MEASURES))
        return "\n".join([*lines, f"mean of {len(self.windows)} forecasts"])

    __repr__ = __str__  # of thousands of numbers

    def plot(self, series: str | None = None, channel: int = 0, ax: Any = None) -> Any:
        """Draw a series, and the forecasts of it with the intervals that were to hold 0.8.

        Parameters
        ----------
        series : str, optional
            The name or the number of the series; default: the first.
        channel : int, default 0
            Which of its channels.
        ax : matplotlib Axes, optional
            Where to draw; default: a new figure.

        Returns
        -------
        figure : matplotlib Figure
            ``figure.savefig("backtest.png")`` writes it.
        """
        with optional_import("matplotlib", "plots of backtests"):
            from matplotlib.figure import Figure

        name = next(iter(self.values)) if series is None else str(series)
        if name not in self.values:
            raise ValueError(f"series: expected one of {', '.join(self.values)}, got {series!r}")
        ax = Figure(figsize=(9, 4), layout="constrained").add_subplot() if ax is None else ax
        shown = [one for one in self.windows if one.series == name]
        first = max(min(one.end for one in shown) - 4 * len(shown[0].came), 0)
        values = self.values[name][:, channel]
        ax.plot(np.arange(first, len(values)), values[first:], color="0.3", label="series")
        for k, one in enumerate(shown):
            at = np.arange(one.end, one.end + len(one.said))
            ax.plot(at, one.naive[:, channel], color="C1", lw=1, label="" if k else NAIVE)
            ax.plot(at, one.said[:, channel], color="C0", label="" if k else self.name)
            if one.lower is not None and one.upper is not None:
                band = one.lower[:, channel], one.upper[:, channel]
                ax.fill_between(at, *band, color="C0", alpha=0.25, lw=0)
        ax.set_xlabel("step")
        ax.legend(frameon=False)
        return ax.figure


def cut(sequence: Any, end: int) -> Any:
    """The first steps of an array or a DataFrame."""
    return sequence.iloc[:end] if hasattr(sequence, "iloc") else sequence[:end]


class Backtesting:
    """The method of a forecaster that looks back."""

    horizon: int
    step_features: int
    _as_lists: Any
    _head: Any

    def backtest(
        self,
        X: Any,
        *,
        exogenous: Any = None,
        static: Any = None,
        windows: int = 4,
        stride: int | None = None,
        refit: bool = True,
    ) -> Backtest:
        """Forecast windows of the past, each from what came before it.

        The estimator itself stays as it is: copies are fitted.

        Parameters
        ----------
        X : series
            As ``fit`` takes them.
        exogenous : list of (T_i, E) arrays or similar, optional
            Exogenous inputs of all steps.
        static : (N, S) array, DataFrame or dict, optional
            Features of each series.
        windows : int, default 4
            The number of windows of ``horizon`` steps; the last ends with the series.
        stride : int, optional
            The steps from one to the next; default: ``horizon``.
        refit : bool, default True
            Whether each window is forecast by a copy that was fitted on all before it. False: by
            one that was fitted before the first, and reads what came since.

        Returns
        -------
        Backtest
            Its ``scores`` are MASE, sMAPE and CRPS beside those of the seasonal naive forecast; it
            prints as a table, and ``plot()`` draws it.

        Raises
        ------
        ValueError
            If series are too short for so many windows.
        """
        horizon = expect_int("horizon", self.horizon)
        count = expect_int("windows", windows)
        step = horizon if stride is None else expect_int("stride", stride)
        X, known, shapes = self._as_lists(X, exogenous, None, table=False)
        named = list(shapes) if isinstance(shapes, dict) else None
        if not hasattr(X, "__len__"):
            raise TypeError(f"X: expected series, got {X!r}")
        expect_some("X", X)
        names = list(map(str, named or range(len(X))))
        if static is not None:
            static = static_features(static, named, len(X), None)
        if is_table("X", X):
            X = as_array(X).reshape(len(X), -1, expect_int("step_features", self.step_features))
        series = [as_array(x).astype(np.float64) for x in X]
        known = None if known is None else list(known)
        found, model, title = [], None, type(self).__name__
        origins = [[len(x) - horizon - step * k for x in series] for k in reversed(range(count))]
        if min(origins[0]) < horizon + 1:
            raise ValueError(
                f"windows: expected so few that {horizon + 1} steps at least come before the "
                f"first, got {windows} for a series of {min(map(len, series))} steps"
            )
        for ends in origins:
            for row, (x, end) in enumerate(zip(series, ends, strict=True)):
                if np.isnan(x[end : end + horizon]).all():
                    raise ValueError(
                        f"{called('X', X, row)}: expected values to judge forecasts by, got NaN "
                        f"alone at the steps {end} to {end + horizon - 1}; cut the series after "
                        "its last value, or take fewer windows or another stride"
                    )
        for ends in origins:
            pasts = like(X, (cut(x, end) for x, end in zip(X, ends, strict=True)))
            before = after = None
            if known is not None:
                before = like(X, (cut(x, end) for x, end in zip(known, ends, strict=True)))
                after = like(X, (cut(x, end + horizon) for x, end in zip(known, ends, strict=True)))
            if model is None or refit:
                model = clone(self).fit(pasts, exogenous=before, static=static)
            said = model.predict(pasts, exogenous=after, static=static)
            spread = None
            if self._head is not None:
                spread = model.predict_quantiles(pasts, LEVELS, exogenous=after, static=static)
            data = [(x[:end], None) for x, end in zip(series, ends, strict=True)]
            season = model.season_ or season_of(data) or 1
            for row, (name, x, end) in enumerate(zip(names, series, ends, strict=True)):
                quantiles = None if spread is None else spread[row]
                found.append(judged(title, name, x, end, season, said[row], quantiles))
        return Backtest(title, found, dict(zip(names, series, strict=True)))


def judged(
    who: str,
    name: str,
    values: Array,
    end: int,
    season: int,
    said: Array,
    quantiles: Array | None,
) -> Window:
    """One forecast (horizon, C) of values (T, C), of which ``end`` were known."""
    past, came = values[:end], values[end : end + len(said)]
    season = season if season < end else 1
    naive = seasonal_naive(filled(past, season), season, len(said))
    scores = {}
    for whose, one, spread in ((who, said, quantiles), (NAIVE, naive, None)):
        of = LEVELS if spread is not None else np.array([0.5])
        spread = one[..., None] if spread is None else spread
        scores[whose] = dict(
            zip(
                MEASURES,
                (mase(came, one, past, season), smape(came, one), crps(came, spread, of)),
                strict=True,
            )
        )
    lower, upper = (None, None) if quantiles is None else (quantiles[..., 1], quantiles[..., -2])
    return Window(name, end, came, said, naive, lower, upper, scores)
