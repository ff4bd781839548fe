"""Series in, their next steps out."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike
from scipy.stats import norm
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted

from ..kernels.cells import Cell, WrittenCell
from ..training import Optimiser
from ..typing import Array
from ..validation import expect_int, format_shape
from .backtest import Backtesting
from .base import all_or_nothing
from .calendar_features import calendar_features
from .choosing import Data
from .frames import (
    Named,
    are_times,
    called,
    columns_of,
    expect_columns,
    index_of,
    like,
)
from .history import Past, expect_next, followed, longer, packed, unpacked
from .known import calendar_after
from .probabilistic import ProbabilisticForecasts, Spread
from .sequences import (
    Sequences,
    lengths_of,
    listed,
    read_sequences,
)
from .series import (
    Shape,
    column_of,
    columns_by_name,
    expect_names,
    in_shape,
    is_one,
    shape_of,
    shapes_of,
)
from .series_learning import SeriesLearning
from .series_reader import expect_no_sequences

QUANTILES = 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975


class RNNForecaster(ProbabilisticForecasts, Backtesting, SeriesLearning):
    """Recurrent forecaster of time series.

    Parameters
    ----------
    cell : str or cell, default "lstm"
        A name in ``numba_rnn.cells.names()``, or a cell of your own. For n_jobs and for pickle your
        cell must be in a module that other processes can import.
    horizon : int, default 1
        The number of steps of a forecast; they are predicted all at once.
    window : int or None, default None
        The number of steps that are read. In training every window of so many steps of every series
        is an example, and every step of it predicts the next ``horizon`` steps; a forecast reads
        the last ``window`` steps. None: series are read whole.
    stride : int, default 1
        The number of steps from one window to the next. The last window ends with the series.
    scaling : {"standard", "mean_abs"} or None, default "standard"
        The scale of each series: the standard deviation of its differences, or their mean size;
        None: 1. With a window it is that of the window.
    differencing : {"auto", "first", "seasonal", "both"} or None, default "auto"
        The naive forecast that the network corrects, and the differences that it reads: "first"
        from the last value, "seasonal" from the value a season before, "both" from the latter with
        what was gained in a season; None: from the mean. "auto": what is best in trials.
    season : int, "auto" or None, default "auto"
        The number of steps of a season; "auto" looks for the largest autocorrelation.
    log : bool or "auto", default "auto"
        Whether logarithms are forecast, for positive series whose swings grow with their level.
    lags : int or "auto", default "auto"
        How many of the last differences are read at each step: one, or with "auto" those of a
        season, if trials say so.
    loss : str, default "mse"
        What training minimises: "mse", the mean squared error, or for forecasts of quantiles
        "quantile", "normal", "student_t" or, for counts, "negative_binomial".
    quantiles : tuple of float
        The quantiles that loss="quantile" learns; others lie between them.
    calendar : bool, default False
        Whether each step reads where in the year, the week and the day it is, from the dates of the
        series: sine and cosine of the cycles that are longer than two steps.
    embedding : int, default 0
        The size of a vector that is learnt for each series of ``fit``, and read at each step; 0:
        none. Only those series can be forecast then, by their names or all in their order.
    combine : bool, default True
        Whether forecasts with loss="mse" are the mean of those of all choices that are nearly the
        best in trials, each of which has a network of its own.
    hidden_size : int, default 32
        H, the number of units of each recurrent layer (in each direction).
    layers : int, default 1
        The number of recurrent layers.
    dropout : float, default 0.0
        The share of numbers dropped between layers and before the output.
    optimiser : str or callable, default "adam"
        "adam", "adamw", "rmsprop", "adagrad", "momentum" or "sgd", or a callable that takes lr and
        returns an optimiser, such as ``functools.partial(AdamW, weight_decay=0.1)``.
    lr : float, default 0.01
        The learning rate.
    batch_size : int, default 32
        The number of sequences in a batch.
    max_epochs : int, default 100
        The number of times that all sequences are read.
    clip : float or None, default 1.0
        The largest global norm of the gradient; None: no clipping.
    early_stopping : bool or "refit", default "refit"
        If True, the ends of the series are held out. Training ends when the loss on them has not
        fallen for ``patience`` epochs, and the parameters with the lowest such loss are kept.
        "refit": that says how many epochs are best; then all the data are learnt for so many.
        False: ``max_epochs``.
    validation_fraction : float, default 0.1
        The share that early_stopping holds out, and trials: these at least a horizon, or two.
    patience : int, default 10
        The number of epochs without improvement that early_stopping allows.
    warm_start : bool, default False
        If True, ``fit`` continues from the parameters of the last fit.
    step_features : int, default 1
        The number of features of a step in a table (N, F); see ``numba_rnn.sklearn``.
    dtype : {"float32", "float64"} or None, default None
        The dtype of parameters, arithmetic and results; float32 is faster. None: the dtype of X in
        fit, or float64 if X has another dtype.
    verbose : bool, default False
        Whether to show a progress bar on stderr.
    random_state : int, RandomState or None, default None
        The same seed gives the same numbers, bit for bit on one engine and machine.

    Attributes
    ----------
    n_features_in_ : int
        The number of features of a table, or of channels.
    network_ : Network
        The layers: ``network_.recurrent``, a Stacked, and ``network_.affine``.
    loss_curve_ : list of float
        The loss of each epoch in training.
    validation_curve_ : list of float
        The same for the data that ``early_stopping=True`` holds out.
    differencing_, season_, log_, lags_ : str or None, int, bool, int
        What was chosen.
    members_ : list of RNNForecaster
        The forecasters of the other choices, of which forecasts are the mean with this one's.
    trials_ : list of dict
        What was tried: the choice, the best number of epochs, and the mean absolute error of
        forecasts of the held-out ends, in units of the mean step of the series.

    Raises
    ------
    ValueError, TypeError
        If parameters or data do not fit.
    TrainingDiverged
        If the loss is no longer finite.

    Notes
    -----
    X is one series or several. One is a 1-d array, a Series, or a DataFrame with a row for each
    time and a column for each channel; forecasts have its kind, and an index that goes on. Several
    are a dict of those, a list of (T_i, C) arrays or DataFrames, an (N, T, C) array, or a table
    with one series in each row (a UserWarning names a table that may be one series).
    ``numba_rnn.Stream(model.network_)`` runs the network step by step.

    At each step the network reads differences, scaled, and says by how much each of the next steps
    differs from a naive forecast of it. Values that are missing (NaN) are filled for reading with
    what was a season or a step before, an input says so, and no loss counts them.

    What is "auto" is decided by trials, which see nothing but the data of ``fit``: each is trained
    on the beginnings of the series and judged by forecasts of their ends that have read the steps
    before. Less simple choices must be better by a tenth. With ``combine`` those whose error is
    less than half above the least take part in forecasts. Of more than 32 series, or 2000 steps,
    some are tried, and the best alone forecasts. Series that are too short for trials are taken
    without differences for ``max_epochs``. The choice does not depend on ``random_state``.

    The index of a DataFrame or a Series must have its times or numbers in order, each once and
    evenly spaced, as months are, and so must the columns of a table. All series have one frequency,
    in ``predict`` that of ``fit``, by which short ones go on. Exogenous inputs have the same
    labels. Otherwise a ValueError names the place. To ignore times, drop the index:
    ``frame.reset_index(drop=True)``.

    ``exogenous`` inputs are known for the future as well, such as the calendar. Give one sequence
    (T_i, E) for each series, for ``predict`` with the ``horizon`` steps to come: (T_i + horizon,
    E). A table has one such input at each step. They are not scaled.

    Examples
    --------
    >>> wave = 100 + 5 * np.sin(np.arange(200) / 4)
    >>> model = RNNForecaster("gru", horizon=3, window=25, random_state=0).fit(wave[:150])
    >>> model.predict(wave[:150]).shape
    (3,)
    >>> bool(abs(model.predict(wave[:150]) - wave[150:153]).max() < 0.2)
    True
    """

    _even = True
    _may_miss = True
    _ends: list[Shape]  # where the dates of each series end
    _past: Past  # what forecasts without X read
    _shapes: Any  # how they are given back

    def __init__(
        self,
        cell: str | Cell | WrittenCell = "lstm",
        *,
        horizon: int = 1,
        window: int | None = None,
        stride: int = 1,
        scaling: str | None = "standard",
        differencing: str | None = "auto",
        season: int | str | None = "auto",
        log: bool | str = "auto",
        lags: int | str = "auto",
        loss: str = "mse",
        quantiles: tuple[float, ...] = QUANTILES,
        calendar: bool = False,
        embedding: int = 0,
        combine: bool = True,
        hidden_size: int = 32,
        layers: int = 1,
        dropout: float = 0.0,
        optimiser: str | Callable[..., Optimiser] = "adam",
        lr: float = 0.01,
        batch_size: int = 32,
        max_epochs: int = 100,
        clip: float | None = 1.0,
        early_stopping: bool | str = "refit",
        validation_fraction: float = 0.1,
        patience: int = 10,
        warm_start: bool = False,
        step_features: int = 1,
        dtype: DTypeLike | None = None,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            cell, hidden_size=hidden_size, layers=layers, bidirectional=False,
            dropout=dropout, optimiser=optimiser, lr=lr, batch_size=batch_size,
            max_epochs=max_epochs, clip=clip, early_stopping=early_stopping,  # type: ignore[arg-type]
            validation_fraction=validation_fraction, patience=patience, warm_start=warm_start,
            per_step=True, step_features=step_features, dtype=dtype, verbose=verbose,
            random_state=random_state,
        )  # fmt: skip
        self.horizon = horizon
        self.window = window
        self.stride = stride
        self.scaling = scaling
        self.differencing = differencing
        self.season = season
        self.log = log
        self.lags = lags
        self.loss = loss
        self.quantiles = quantiles
        self.calendar = calendar
        self.embedding = embedding
        self.combine = combine

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        tags.input_tags.allow_nan = True
        return tags

    # ---- training

    @all_or_nothing
    def fit(self, X: Any, y: Any = None, *, exogenous: Any = None, static: Any = None) -> Self:
        """Train on series.

        Parameters
        ----------
        X : (T,) array, Series, DataFrame, dict or list of those, (N, T, C) array or (N, T) table
            One series or several.
        y : ignored
            scikit-learn passes it.
        exogenous : list of (T_i, E) arrays, (N, T, E) array or (N, T) table, optional
            Exogenous inputs, as long as the series.
        static : (N, S) array, DataFrame or dict, optional
            Features of each series that do not change; by name where X is a dict.

        Returns
        -------
        Self
            The estimator.
        """
        expect_no_sequences("y", y)
        self._expect_options()
        X, exogenous, shapes = self._as_lists(X, exogenous, y, table=False)
        series = self._read_series(X, reset=True)
        known = self._read_known(exogenous, static, X, series, shapes, 0, reset=True)
        data = like(X, zip(series, known, strict=True))
        if self.warm_start and hasattr(self, "network_"):
            self._learn(data, self._transform, epochs=self.max_epochs, spread=Spread(*self._spread))
            self.members_ = []
        else:
            choice = self._chosen(data)
            self.trials_, epochs = choice.trials, choice.epochs
            if not self.early_stopping:
                epochs = self.max_epochs
            if self.early_stopping is True:
                epochs = None
            self._learn(data, choice.transform, epochs=epochs, spread=choice.spread)
            together = self.combine and self.early_stopping == "refit" and self.loss == "mse"
            others = choice.others if together else []
            self.members_ = [self._member(data, other) for other in others]
        return self._remember(data, X, shapes)

    @all_or_nothing
    def partial_fit(
        self, X: Any, y: Any = None, *, exogenous: Any = None, static: Any = None
    ) -> Self:
        """Train on series for one epoch.

        Parameters
        ----------
        X : series
            As ``fit`` takes them.
        y : ignored
            scikit-learn passes it.
        exogenous : list of (T_i, E) arrays, (N, T, E) array or (N, T) table, optional
            Exogenous inputs, as long as the series.
        static : (N, S) array, DataFrame or dict, optional
            Features of each series that do not change; by name where X is a dict.

        Returns
        -------
        Self
            The estimator.
        """
        expect_no_sequences("y", y)
        anew = not hasattr(self, "network_")
        self._expect_options()
        X, exogenous, shapes = self._as_lists(X, exogenous, y, table=not anew and self._table)
        series = self._read_series(X, reset=anew)
        known = self._read_known(exogenous, static, X, series, shapes, 0, reset=anew)
        data = like(X, zip(series, known, strict=True))
        if anew:
            choice = self._chosen(data)
            self.trials_, self._spread = choice.trials, tuple(choice.spread)
            self._take(data, choice.transform)
            self._measure(data)
        self._still = None  # what comes may move
        self.members_ = []
        examples = self._examples(data)
        self._partial_fit(examples, self._outputs)
        self._relate(examples)
        return self._remember(data, X, shapes)

    @all_or_nothing
    def update(self, X: Any, *, exogenous: Any = None) -> Self:
        """Append new values to the series of ``fit``, without training.

        ``predict()`` then forecasts what follows them.

        Parameters
        ----------
        X : series
            The values after those of ``fit`` or the last update, of each series and in its kind.
        exogenous : list of (T_i, E) arrays or similar, optional
            Exogenous inputs of these steps, if fit had them.

        Returns
        -------
        Self
            The estimator.

        Raises
        ------
        ValueError
            If times are not the next, or series are missing.
        """
        check_is_fitted(self)
        if np.ndim(X) == 0 and not isinstance(X, Mapping):
            raise TypeError(
                f"X: expected series, got {X}; a list [{X}] has one value of one series"
            )
        if self._table:  # of as many columns as there are new steps
            X = np.asarray(X)
            X = list(X.reshape(len(X), -1, expect_int("step_features", self.step_features)))
        given = X
        if isinstance(self._shapes, dict):
            expect_names("X", given, self._shapes, "fit")
            given = {name: given[name] for name in self._shapes}
        X, exogenous, _ = self._as_lists(given, exogenous, None, table=False)
        if len(X) != len(self._past):
            raise ValueError(f"X: expected {len(self._past)} series, as in fit, got {len(X)}")
        series = read_sequences("X", X, self.network_.dtype, missing=True)
        expect_columns("X", columns_of("X", X), self._columns)
        if series[0].shape[1] != self._channels:
            raise ValueError(
                f"X: expected {self._channels} channels, as in fit, got {series[0].shape[1]}"
            )
        known = self._read_exogenous(exogenous, X, series, 0, reset=False)
        known = [
            np.concatenate([one, np.repeat(past[-1:, one.shape[1] :], len(one), axis=0)], axis=1)
            for one, (_, past) in zip(known, self._past, strict=True)
        ]
        if self.calendar:
            for k, (one, x) in enumerate(zip(known, X, strict=True)):
                found = self._calendar_after(k, called("X", X, k), x, len(one))
                one[:, self._known_features :][:, : found.shape[1]] = found
        news = list(zip(series, known, strict=True))
        if self._shapes is not None:
            ends = self._followed(shapes_of(self._shapes), X)
            names = isinstance(self._shapes, dict)
            self._shapes = dict(zip(self._shapes, ends, strict=True)) if names else ends
        self._ends = self._followed(self._ends, X)
        self._past = longer(self._past, news, self._kept)
        return self

    def _followed(self, ends: list[Shape], X: Any) -> list[Shape]:
        """The ends of series with new values behind them."""
        return [
            followed(called("X", X, k), end, x, self._fit_step)
            for k, (end, x) in enumerate(zip(ends, X, strict=True))
        ]

    @property
    def _kept(self) -> int | None:
        """How many of the last steps forecasts read; None: all."""
        lost = max(one._transform.lost for one in (self, *self.members_))
        return self._window + lost if self._window else None

    def _calendar_after(self, k: int, name: str, x: Any, count: int) -> Array:
        """The calendar of the next steps of a series, in x if it has dates."""
        index = index_of(x)
        if index is not None and are_times(index):
            return calendar_features(name, index, self._seconds)
        return calendar_after(self._ends[k], count, self._seconds, self._fit_step)

    def _remember(self, data: Data, X: Any, shapes: Any) -> Self:
        """Keep what forecasts without X read."""
        self._ends = [shape_of(x) for x in X] if self.calendar else [{}] * len(data)
        empty = [(values[:0], known[:0]) for values, known in data]
        self._past, self._shapes = longer(data, empty, self._kept), shapes
        return self

    # ---- use

    def predict(
        self,
        X: Any = None,
        *,
        exogenous: Any = None,
        static: Any = None,
        horizon: int | None = None,
    ) -> Any:
        """Predict the steps after the end of each series.

        Parameters
        ----------
        X : series, optional
            As ``fit`` takes them. Default: those of ``fit``, and what ``update`` appended.
        exogenous : list of (T_i + horizon, E) arrays or similar, optional
            Exogenous inputs, if fit had them: for all steps of the series and those to come;
            without X those to come, (horizon, E).
        static : (N, S) array, DataFrame or dict, optional
            Features of each series, if fit had them; not without X.
        horizon : int, optional
            The number of steps; None: that of fit. Forecasts of more steps read those of the first.

        Returns
        -------
        forecasts : (N, horizon, C) array
            For a table a table (N, horizon * C). For one series (horizon,), a Series or a
            DataFrame, whose index goes on where that of X ends; for a dict a dict of those.
        """
        series, known, shapes = self._asked(X, exogenous, static, horizon)
        ahead = self._horizon if horizon is None else horizon
        return self._in_shape(self._forecast_on(series, known, ahead), shapes)

    def _asked(
        self, X: Any, exogenous: Any, static: Any, horizon: int | None
    ) -> tuple[Any, Any, Any]:
        """Series, the inputs that are known of them and of the horizon, and how they were given."""
        check_is_fitted(self)
        ahead = self._horizon if horizon is None else expect_int("horizon", horizon)
        if X is None:
            series = [values for values, _ in self._past]
            return series, self._future(exogenous, ahead), self._shapes
        X, exogenous, shapes = self._as_lists(X, exogenous, None, table=self._table)
        series = self._read_series(X, reset=False)
        known = self._read_known(exogenous, static, X, series, shapes, ahead, reset=False)
        self._expect_past(X, series)
        return series, known, shapes

    def _expect_past(self, X: Any, series: Sequences) -> None:
        """Raises ValueError for series that are too short to be read."""
        for model in (self, *getattr(self, "members_", ())):
            least = model._transform.lost + 1
            for k, values in enumerate(series):
                if len(values) < least:
                    raise ValueError(
                        f"{called('X', X, k)}: expected at least {least} steps, of which "
                        f"differences are taken (differencing_ {model.differencing_!r}, season_ "
                        f"{model.season_}), got {len(values)}"
                    )

    def _future(self, exogenous: Any, ahead: int) -> Sequences:
        """The known inputs of the past, and those of the steps to come."""
        count = len(self._past)
        if exogenous is None and self._known_features:
            raise ValueError(
                f"exogenous: expected the {ahead} steps to come of {self._known_features} "
                "features, which fit had, got None"
            )
        if exogenous is None:
            more: Any = [np.zeros((ahead, 0))] * count
        elif isinstance(exogenous, Mapping):
            names = self._shapes if isinstance(self._shapes, dict) else range(count)
            exogenous = {name: exogenous[name] for name in names if name in exogenous}
            expect_names("exogenous", exogenous, names, "fit")
            more = columns_by_name("exogenous", exogenous, names)
        elif is_one(exogenous) or (count == 1 and np.ndim(exogenous) == 2):
            more = Named([column_of("exogenous", exogenous)], None)
        else:
            more = [column_of(f"exogenous[{k}]", one) for k, one in enumerate(listed(exogenous))]
        expect_columns("exogenous", columns_of("exogenous", more), self._known_names)
        for k, (inputs, shape) in enumerate(zip(more, shapes_of(self._shapes), strict=False)):
            expect_next(called("exogenous", more, k), shape, inputs, self._fit_step)
        found = [np.asarray(one, values.dtype) for one, (values, _) in
                 zip(more, self._past, strict=False)]  # fmt: skip
        for k, one in enumerate(found):
            if len(more) != count or one.shape != (ahead, self._known_features):
                raise ValueError(
                    f"{called('exogenous', more, k)}: expected the {ahead} steps to come of "
                    f"{self._known_features} features for {count} series, got shape "
                    f"{format_shape(one.shape)} for {len(more)}"
                )
        longer = []
        for k, ((_, known), one) in enumerate(zip(self._past, found, strict=True)):
            now = np.repeat(known[-1:, self._known_features :], ahead, axis=0)
            if self.calendar:
                dates = calendar_after(self._ends[k], ahead, self._seconds, self._fit_step)
                now[:, : dates.shape[1]] = dates
            longer.append(np.concatenate([known, np.concatenate([one, now], axis=1)]))
        return longer

    def _in_shape(self, forecast: Array, shapes: Any, labels: Any = None) -> Any:
        """Forecasts (N, horizon, C), or with labels (N, horizon, C, L), as X was given."""
        step = self._fit_step
        if isinstance(shapes, dict):
            pairs = zip(shapes.items(), forecast, strict=True)
            return {name: in_shape(one, shape, labels, step) for (name, shape), one in pairs}
        if shapes is not None:
            return in_shape(forecast[0], shapes[0], labels, step)
        if not self._table:
            return forecast
        return forecast.reshape(len(forecast), -1, *forecast.shape[3:])

    def score(self, X: Any, y: Any = None, *, exogenous: Any = None, static: Any = None) -> float:
        """Return R² of forecasts of the last ``horizon`` steps of each series from those before.

        Parameters
        ----------
        X : series
            As ``fit`` takes them.
        y : ignored
            scikit-learn passes it.
        exogenous : list of (T_i, E) arrays, (N, T, E) array or (N, T) table, optional
            Exogenous inputs, if fit had them.
        static : (N, S) array, DataFrame or dict, optional
            Features of each series, if fit had them.

        Returns
        -------
        float
            R², the mean over channels. Values that are missing do not count.
        """
        check_is_fitted(self)
        X, exogenous, shapes = self._as_lists(X, exogenous, None, table=self._table)
        series = self._read_series(X, reset=False)
        known = self._read_known(exogenous, static, X, series, shapes, 0, reset=False)
        self._expect_steps(X, series)
        self._expect_past(X, [values[: -self.horizon] for values in series])
        forecast = self._forecast([values[: -self.horizon] for values in series], known)
        came = np.stack([values[-self.horizon :] for values in series])
        channels = came.shape[2]
        came, forecast = came.reshape(-1, channels), forecast.reshape(-1, channels)
        there = np.isfinite(came).all(axis=1)
        return float(r2_score(came[there], forecast[there]))

    def _forecast_on(self, series: Sequences, known: Sequences, ahead: int) -> Array:
        """(N, ahead, C): beyond the horizon each forecast reads the one before."""
        found: list[Array] = []
        series = list(series)
        for start in range(0, ahead, self._horizon):
            used = [more[: len(values) + self._horizon] for values, more in
                    zip(series, known, strict=True)]  # fmt: skip
            used = [
                np.pad(more, ((0, len(values) + self._horizon - len(more)), (0, 0)), mode="edge")
                for values, more in zip(series, used, strict=True)
            ]  # a horizon that ends before the last: what is not known counts nothing
            found.append(self._forecast(series, used))
            if start + self._horizon < ahead:
                series = [np.concatenate([a, b]) for a, b in zip(series, found[-1], strict=True)]
        return np.concatenate(found, axis=1)[:, :ahead]

    def _forecast(self, series: Sequences, known: Sequences) -> Array:
        """(N, horizon, C), from series (T_i, C) and exogenous inputs (T_i + horizon, E)."""
        members = (self, *getattr(self, "members_", ()))
        return np.mean(
            [one._quantile(0.5, *one._said(series, known)) for one in members], axis=0
        ).astype(self.network_.dtype)

    def _quantile(self, q: Any, scores: Array, naive: Array, unit: Array) -> Array:
        """The quantile (N, horizon, C) of what the network says; of one number, that number."""
        head = self._head
        if head is None:
            found = scores[..., 0]
        elif head.counts:
            return head.quantile(scores, q, unit).astype(self.network_.dtype)
        else:
            found = head.quantile(scores, q)
        return self._value(found, q, naive, unit)

    def _value(self, found: Array, q: Any, naive: Array, unit: Array) -> Array:
        """Values, of quantiles q in units; where nothing moved, the naive forecast and rounding."""
        if self._still is not None:
            found = np.where(self._still, norm.ppf(q), found)
        return self._transform.values(naive + found * unit).astype(self.network_.dtype)

    def _said(self, series: Sequences, known: Sequences) -> tuple[Array, Array, Array]:
        """The network's scores (N, horizon, C, P), the naive forecasts and the units."""
        lost, horizon, width = self._transform.lost, self.horizon, self._window
        found = [
            self._prepared(
                values[-width - lost :] if width else values,
                more[-width - lost - horizon :] if width else more,
                last=True,
            )
            for values, more in zip(series, known, strict=True)
        ]
        xs, naive, unit = zip(*found, strict=True)
        ends = np.cumsum(lengths_of(xs)) - 1
        scores = self._scores(list(xs))[ends].reshape(len(xs), horizon, self._channels, -1)
        return scores, np.stack([one[-1] for one in naive]), np.stack(unit)

    # ---- pickle

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_past" in state:
            state["_past"] = packed(state["_past"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "_past"):
            try:
                self._past = unpacked(self._past)  # type: ignore[arg-type]
            except Exception as error:
                raise ValueError(
                    f"{type(self).__name__}: expected the pickle of a fitted one, got one that is "
                    f"damaged ({error!r})"
                ) from error
