"""Quantiles, intervals and samples of forecasts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.utils import check_random_state

from ..typing import Array
from ..validation import expect_float, expect_int
from .heads import FAR, expect_quantiles

LEAST_SPREAD, MOST_SPREAD = 0.7, 3.0
ROWS = 20_000  # that say how the errors of the next steps go together


def spread_of(scores: Array) -> float:
    """By how much normal scores of held-out values are wider than the distribution said.

    Of the ninth in ten, so that a few that are far off do not decide.
    """
    found = np.abs(scores[np.isfinite(scores)])
    if not len(found):
        return 1.0
    return float(np.clip(np.quantile(found, 0.9) / norm.ppf(0.95), LEAST_SPREAD, MOST_SPREAD))


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
        N, horizon, C = said[0][2].shape
        root = np.linalg.cholesky(np.array(self._correlation) + 1e-9 * np.eye(horizon * C))
        drawn = check_random_state(random_state).standard_normal((number, N, horizon * C))
        drawn = (drawn @ root.T).reshape(number, N, horizon, C)
        futures = [self._mean_quantile(norm.cdf(one), said) for one in drawn]
        return self._in_shape(np.stack(futures, axis=-1), shapes, list(range(number)))

    # ---- what the forecaster has

    _correlation: list[list[float]]
    _spread: float
    members_: list[Any]
    _quantile: Any
    _in_shape: Any
    _head: Any
    loss: str
    _asked: Any
    _said: Any

    def _widened(self, q: Any) -> Any:
        """The quantiles of the distribution that are those of what comes."""
        return norm.cdf(np.clip(self._spread * norm.ppf(q), -FAR, FAR))

    def _quantiles_in_shape(
        self, X: Any, found: Array, labels: list[Any], exogenous: Any, static: Any
    ) -> Any:
        said, shapes = self._distribution(X, exogenous, static)
        parts = [self._mean_quantile(q, said) for q in found]
        return self._in_shape(np.stack(parts, axis=-1), shapes, labels)

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
        return np.mean([one._quantile(one._widened(q), *rest) for one, *rest in said], axis=0)
