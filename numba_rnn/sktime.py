"""Classifier and forecaster as sktime has them: for its pipelines, tuning and benchmarks.

    from numba_rnn.sktime import SktimeRNNClassifier, SktimeRNNForecaster

They need sktime (``pip install "numba-rnn[sktime]"``), and pass sktime's ``check_estimator``.
"""

from typing import Any

from .optional_deps import optional_import

with optional_import("sktime", "numba_rnn.sktime"):
    from sktime.classification.base import BaseClassifier
    from sktime.forecasting.base import BaseForecaster

from sklearn.base import clone

from .sklearn import RNNClassifier, RNNForecaster
from .wrapped import SMALL, WrappedClassifier

__all__ = ["SktimeRNNClassifier", "SktimeRNNForecaster"]


class SktimeRNNClassifier(WrappedClassifier, BaseClassifier):
    """``numba_rnn.sklearn.RNNClassifier`` for sktime's panels of time series.

    Parameters
    ----------
    classifier : RNNClassifier or None, default None
        The classifier, which is cloned in ``fit``; None: one with all defaults.

    Attributes
    ----------
    classifier_ : RNNClassifier
        The fitted classifier.

    Notes
    -----
    X is any panel of sktime's, such as (N, D, T) arrays; lengths may differ, and values be missing.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn.sklearn import RNNClassifier
    >>> from numba_rnn.sktime import SktimeRNNClassifier
    >>> X = np.random.default_rng(0).standard_normal((20, 2, 9))  # 20 series of 2 channels
    >>> model = SktimeRNNClassifier(RNNClassifier(max_epochs=5, random_state=0))
    >>> model.fit(X, np.arange(20) % 2).predict(X).shape
    (20,)
    """

    _tags = {  # noqa: RUF012 (sktime's way)
        "X_inner_mtype": "df-list",
        "capability:missing_values": True,
        "capability:multivariate": True,
        "capability:predict_proba": True,
        "capability:unequal_length": True,
    }

    def _arrays(self, X: Any) -> list[Any]:
        return [x.to_numpy().T for x in X]  # DataFrames with a row for each step

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return parameters for sktime's checks.

        Parameters
        ----------
        parameter_set : str, default "default"
            Ignored.

        Returns
        -------
        list of dict
            The parameters.
        """
        return [{"classifier": RNNClassifier(cell, **SMALL)} for cell in ("gru", "rnn")]


class SktimeRNNForecaster(BaseForecaster):
    """``numba_rnn.sklearn.RNNForecaster`` for sktime's time series.

    Parameters
    ----------
    forecaster : RNNForecaster or None, default None
        The forecaster, which is cloned in ``fit``; None: one with all defaults. Its ``horizon`` is
        the largest step of ``fh``.

    Attributes
    ----------
    forecaster_ : RNNForecaster
        The fitted forecaster.

    Notes
    -----
    y is any series of sktime's, of one or several variables; values may be missing, those of X may
    not. Of a panel each series has a forecaster of its own. X has all steps to the last of ``fh``.
    Steps in the past are not predicted.

    ``predict_interval``, ``predict_quantiles`` and what follows from them need a ``loss`` that is
    one of quantiles or a distribution. ``update`` appends values and trains nothing, whatever
    ``update_params`` says; values that were read before do not change.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from numba_rnn.sklearn import RNNForecaster
    >>> from numba_rnn.sktime import SktimeRNNForecaster
    >>> months = pd.period_range("2020-01", periods=60, freq="M")
    >>> y = pd.Series(np.sin(np.arange(60) / 2), months)
    >>> model = SktimeRNNForecaster(RNNForecaster(max_epochs=5, loss="normal", random_state=0))
    >>> model.fit(y, fh=[1, 2, 3]).predict().index[-1]
    Period('2025-03', 'M')
    >>> model.predict_interval(coverage=0.9).shape
    (3, 2)
    """

    _tags = {  # noqa: RUF012 (sktime's way)
        "X_inner_mtype": "pd.DataFrame",
        "capability:categorical_in_X": False,
        "capability:exogenous": True,
        "capability:insample": False,
        "capability:missing_values": True,
        "capability:multivariate": True,
        "capability:non_contiguous_X": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:update": True,
        "requires-fh-in-fit": True,
        "y_inner_mtype": "pd.DataFrame",
    }

    def __init__(self, forecaster: RNNForecaster | None = None) -> None:
        self.forecaster = forecaster
        super().__init__()

    def __dynamic_tags__(self) -> None:
        loss = "mse" if self.forecaster is None else self.forecaster.loss
        self.set_tags(**{"capability:pred_int": loss != "mse"})

    def _fit(self, y: Any, X: Any, fh: Any) -> "SktimeRNNForecaster":
        self.__dynamic_tags__()  # set_params may have changed the loss
        model = RNNForecaster() if self.forecaster is None else clone(self.forecaster)
        self.forecaster_ = model.set_params(horizon=self._steps(fh))
        self.forecaster_.fit({"y": y}, exogenous=_rows(X, y.index))
        self._end = y.index[-1]
        return self

    def _update(self, y: Any, X: Any = None, update_params: bool = True) -> "SktimeRNNForecaster":
        new = y[y.index > self._end]
        if new.empty:
            raise ValueError(
                f"y: expected values after {self._end}, the last that was read, got them to "
                f"{y.index[-1]}; fit again to forecast from there"
            )
        self.forecaster_.update({"y": new}, exogenous=_rows(X, new.index))
        self._end = new.index[-1]
        return self

    def _predict(self, fh: Any, X: Any) -> Any:
        horizon = self._steps(fh)
        known = self._known(X, horizon)
        return self._picked(self.forecaster_.predict(exogenous=known, horizon=horizon), fh)

    def _predict_quantiles(self, fh: Any, X: Any, alpha: list[float]) -> Any:
        known, levels = self._known(X, self.forecaster_.horizon), sorted(set(alpha))
        found = self.forecaster_.predict_quantiles(quantiles=levels, exogenous=known)
        return self._picked(found, fh)[self._get_columns("predict_quantiles", alpha=alpha)]

    def _steps(self, fh: Any) -> int:
        """How many steps ahead a horizon ends."""
        return int(fh.to_relative(self.cutoff).to_pandas().max())

    def _known(self, X: Any, horizon: int) -> Any:
        """Exogenous inputs of the steps to come."""
        return None if X is None else {"y": X[X.index > self._end][:horizon]}

    def _picked(self, forecasts: Any, fh: Any) -> Any:
        """Those that a horizon has, with sktime's index."""
        found = forecasts["y"].iloc[fh.to_indexer(self.cutoff)]
        return found.set_axis(fh.to_absolute_index(self.cutoff))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return parameters for sktime's checks.

        Parameters
        ----------
        parameter_set : str, default "default"
            Ignored.

        Returns
        -------
        list of dict
            The parameters.
        """
        plain: dict[str, Any] = {**SMALL, "early_stopping": False, "differencing": "first"}
        return [{"forecaster": RNNForecaster(loss=loss, **plain)} for loss in ("mse", "normal")]


def _rows(X: Any, index: Any) -> Any:
    """Exogenous inputs of some steps."""
    return None if X is None else {"y": X.loc[index]}
