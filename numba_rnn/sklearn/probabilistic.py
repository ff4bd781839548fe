"""Quantiles, intervals and samples of forecasts."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, t
from sklearn.utils import check_random_state

from ..typing import Array
from ..validation import expect_float, expect_int
from .heads import FAR, expect_quantiles

ENOUGH = 30  # held-out values, to judge a distribution by
LEAST_SPREAD, MOST_SPREAD = 0.7, 3.0  # of a distribution that is used
TOGETHER = 10  # errors of all next steps that weigh as much as those of one
ROWS = 20_000  # that say how the errors of the next steps go together


class Spread(NamedTuple):
    """How far held-out values are from their forecasts.

    size   by how much wider they are spread than the distribution said; a list for each of the
           next steps and each channel, where these differ
    held   how many there are; a value that is forecast at several horizons is one
    plain  whether the distribution is not used: ``size`` is the deviation from the median, in units
           of the series
    """

    size: Any = 1.0
    held: int = 0
    plain: bool = False

    def quantile(self, q: Any, horizon: int) -> Any:
        """The quantile q: of a deviation that few values tell, that of Student's t."""
        few = self.plain or 0 < self.held < ENOUGH
        size = np.reshape(self.size, (horizon, -1)) if np.ndim(self.size) else self.size
        return size * (t.ppf(q, self.held) if few else norm.ppf(q))


NOTHING_HELD = Spread()


def spread_of(scores: Array, errors: Array | None) -> Spread:
    """The spread of held-out values.

    Of ``ENOUGH`` the ninth in ten decides, so that a few that are far off do not: of m values the
    quantile of m + 1, as in split conformal prediction (Lei et al. 2018, *Distribution-free
    predictive inference for regression*). Fewer do not tell a distribution's shape, and a network
    that learnt from as few does not know it: their errors are taken as normal ones.

    scores  (rows, horizon * C) normal scores
    errors  the same, from medians; None: of counts, whose scores stand for them
    """
    found = np.abs(scores[np.isfinite(scores)])
    count = int(np.isfinite(scores).sum(axis=0).max(initial=0))
    if not count:
        return NOTHING_HELD
    if count >= ENOUGH:
        size = float(np.quantile(found, 0.9 * (1 + 1 / len(found))) / norm.ppf(0.95))
        if errors is None or size < MOST_SPREAD:
            return Spread(max(size, LEAST_SPREAD), count)
    if errors is None:
        return Spread(float(np.sqrt(np.nanmean(scores**2))), count)
    with warnings.catch_warnings():  # a channel without values has the mean of the others
        warnings.simplefilter("ignore", RuntimeWarning)
        each, whole = np.nanmean(errors**2, axis=0), np.nanmean(errors**2)
    share = count / (count + TOGETHER)
    each = share * np.where(np.isfinite(each), each, whole) + (1 - share) * whole
    return Spread(np.sqrt(each).tolist(), count, True)


def correlation_of(scores: Array) -> list[list[float]]:
    """How normal scores (rows, M) of M targets go together, as far as so many rows can say."""
    rows = scores[np.isfinite(scores).all(axis=1)]
    size = scores.shape[1]
    if len(rows) < 3:
        return np.eye(size).tolist()
    deviation = rows.std(axis=0)
    rows = (rows - rows.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    share = len(rows) / (len(rows) + size)  # towards independence, which is always valid
    found = share * (rows.T @ rows) / len(rows)
    np.fill_diagonal(found, 1)
    return found.tolist()


class ProbabilisticForecasts:
    """The methods of a forecaster whose loss is one of a distribution."""

    def predict_quantiles(
        self,
        X: Any = None,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        *,
        exogenous: Any = None,
        static: Any = None,
    ) -> Any:
        """Predict quantiles of the next ``horizon`` steps.

        Parameters
        ----------
        X : series, optional
            As for ``predict``.
        quantiles : sequence of float
            Numbers between 0 and 1, in order.
        exogenous : list of (T_i + horizon, E) arrays or similar, optional
            As for ``predict``.
        static : (N, S) array, DataFrame or dict, optional
            As for ``predict``.

        Returns
        -------
        forecasts : (N, horizon, C, Q) array
            For a table (N, horizon * C, Q). For one array (horizon, Q), for a Series or a DataFrame
            a DataFrame with a column for each quantile, of each channel; for a dict a dict.

        Raises
        ------
        ValueError
            If ``loss`` says nothing of quantiles.
        """
        found = expect_quantiles("quantiles", quantiles)
        return self._quantiles_in_shape(X, found, found.tolist(), exogenous, static)

    def predict_interval(
        self, X: Any = None, coverage: float = 0.9, *, exogenous: Any = None, static: Any = None
    ) -> Any:
        """Predict intervals that hold so large a share of what comes at each step.

        Held-out values say how wide they are. Fewer than 30 are taken as normal ones, whose
        intervals are those of Student's t; a UserWarning names so few that none of them is likely
        to be outside.

        Parameters
        ----------
        X : series, optional
            As for ``predict``.
        coverage : float, default 0.9
            The share, between 0 and 1.
        exogenous : list of (T_i + horizon, E) arrays or similar, optional
            As for ``predict``.
        static : (N, S) array, DataFrame or dict, optional
            As for ``predict``.

        Returns
        -------
        intervals : (N, horizon, C, 2) array
            The lower and the upper ends; in shape as quantiles, with columns "lower" and "upper".

        Raises
        ------
        ValueError
            If ``loss`` says nothing of quantiles.
        """
        share = expect_float("coverage", coverage, 0, 1, low_open=True)
        ends = np.array([(1 - share) / 2, (1 + share) / 2])
        return self._quantiles_in_shape(X, ends, ["lower", "upper"], exogenous, static)

    def sample(
        self,
        X: Any = None,
        count: int = 100,
        *,
        exogenous: Any = None,
        static: Any = None,
        random_state: Any = None,
    ) -> Any:
        """Draw possible futures.

        A future's steps go together as the errors of forecasts did in training (a Gaussian copula),
        so that sums over steps have the right spread, too.

        Parameters
        ----------
        X : series, optional
            As for ``predict``.
        count : int, default 100
            The number of futures of each series.
        exogenous : list of (T_i + horizon, E) arrays or similar, optional
            As for ``predict``.
        static : (N, S) array, DataFrame or dict, optional
            As for ``predict``.
        random_state : int, RandomState or None, default None
            The same seed draws the same futures.

        Returns
        -------
        futures : (N, horizon, C, count) array
            In shape as quantiles, with a column for each future.

        Raises
        ------
        ValueError
            If ``loss`` says nothing of quantiles.
        """
        number = expect_int("count", count)
        said, shapes = self._distribution(X, exogenous, static)
        self._warn_of_few(0.9)
        N, horizon, C = said[0][2].shape
        root = np.linalg.cholesky(np.array(self._correlation) + 1e-9 * np.eye(horizon * C))
        drawn = check_random_state(random_state).standard_normal((number, N, horizon * C))
        drawn = (drawn @ root.T).reshape(number, N, horizon, C)
        futures = [self._mean_quantile(norm.cdf(one), said) for one in drawn]
        return self._in_shape(np.stack(futures, axis=-1), shapes, list(range(number)))

    # ---- what the forecaster has

    _correlation: list[list[float]]
    _horizon: int
    _spread: Any
    _still: Any
    members_: list[Any]
    _quantile: Any
    _value: Any
    _in_shape: Any
    _head: Any
    early_stopping: Any
    loss: str
    _asked: Any
    _said: Any

    def _calibrated(self, q: Any, scores: Array, naive: Array, unit: Array) -> Array:
        """The quantile q (N, horizon, C) of what comes, as far as held-out values tell."""
        spread = Spread(*self._spread)
        far = spread.quantile(q, self._horizon)
        if spread.plain:
            return self._value(self._head.quantile(scores, 0.5) + far, q, naive, unit)
        return self._quantile(norm.cdf(np.clip(far, -FAR, FAR)), scores, naive, unit)

    def _quantiles_in_shape(
        self, X: Any, found: Array, labels: list[Any], exogenous: Any, static: Any
    ) -> Any:
        said, shapes = self._distribution(X, exogenous, static)
        self._warn_of_few(np.abs(2 * found - 1).max())
        parts = [self._mean_quantile(q, said) for q in found]
        return self._in_shape(np.stack(parts, axis=-1), shapes, labels)

    def _warn_of_few(self, level: float) -> None:
        """Warns of an interval that is wider than held-out values can say.

        The next value is beyond all of m with a probability of 1 / (m + 1).
        """
        count = Spread(*self._spread).held
        if count + 1e-9 >= level / (1 - level) or (self._still is not None and np.all(self._still)):
            return
        if count:
            text = (
                f"{count} held-out values tell one of {count / (count + 1):.2g} at most, beyond "
                "which it is Student's t"
            )
        else:
            text = "no values were held out, so that intervals are those of training, too narrow"
        warnings.warn(
            f"an interval of {level:.2g} is wider than the data of fit tell: {text}; fit a longer "
            f"series, or more of them{'' if self.early_stopping else ', with early_stopping=True'}",
            stacklevel=4,
        )

    def _distribution(self, X: Any, exogenous: Any, static: Any) -> tuple[Any, Any]:
        """The forecasts of each member for X, and the shape in which they are returned."""
        if self._head is None:
            raise ValueError(
                f"loss: expected 'quantile', 'normal', 'student_t' or 'negative_binomial' in fit "
                f"for intervals, quantiles and samples, got {self.loss!r}; "
                f"{type(self).__name__}(loss='normal') has them"
            )
        series, known, shapes = self._asked(X, exogenous, static, None)
        return [(one, *one._said(series, known)) for one in (self, *self.members_)], shapes

    def _mean_quantile(self, q: Any, said: list[Any]) -> Array:
        """The mean of what all members say."""
        return np.mean([one._calibrated(q, *rest) for one, *rest in said], axis=0)
