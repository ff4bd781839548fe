"""Series in, their next steps out."""

import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike
from sklearn.metrics import r2_score
from sklearn.utils import check_array

from ..kernels.cells import Cell, WrittenCell
from ..training import Optimiser
from ..typing import Array
from ..validation import expect_float, expect_int
from .base import RecurrentEstimator, all_or_nothing
from .frames import (
    are_names,
    are_times,
    columns_of,
    expect_column_order,
    expect_columns,
    expect_order,
    expect_same_columns,
    expect_same_index,
    index_of,
)
from .sequences import (
    SequenceDataset,
    Sequences,
    is_table,
    lengths_of,
    listed,
    read_sequences,
    warn_of_scale,
)

ROWS_ARE_SERIES = "Each row of a table is a series; for a table with a row for each time: "
ONE_SERIES = f"{ROWS_ARE_SERIES}fit([X])"
FEW_STEPS = 20  # of a table with ten times as many rows, which might be one series


def expect_no_times(name: str, X: Any) -> None:
    """Raises ValueError for a DataFrame whose rows are times, which is one series and no table."""
    index = index_of(X)
    if getattr(index, "nlevels", 1) > 1:
        raise ValueError(
            f"{name}: expected series, got a table whose rows have a MultiIndex; a list of them is "
            f"[series for _, series in {name}.groupby(level=0)]"
        )
    if are_times(index):
        if getattr(index, "inferred_type", "") == "string" and all(map(str.isdecimal, index)):
            return  # "1980" may be a year, and the name of a series
        kind, remedy = type(index).__name__, "fit([X])" if name == "X" else f"{name}=[{name}]"
        raise ValueError(
            f"{name}: expected series, got a table of times ({kind}). {ROWS_ARE_SERIES}{remedy}; "
            f"{name}.reset_index(drop=True) takes every row as a series"
        )


def expect_no_sequences(name: str, y: Any) -> None:
    """Raises TypeError for targets that are series themselves: a forecaster has its own."""
    if isinstance(y, (list, tuple)) and y and np.ndim(y[0]) == 2:
        raise TypeError(
            f"{name}: a forecaster takes no targets; pass known inputs as exogenous=..."
        )


class RNNForecaster(RecurrentEstimator):
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
    early_stopping : bool, default False
        If True, a share of the data is held out. Training ends when the loss on it has not fallen
        for ``patience`` epochs, and the parameters with the lowest such loss are kept.
    validation_fraction : float, default 0.1
        The share that early_stopping holds out.
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
        The mean squared error of training of each epoch.
    validation_curve_ : list of float
        The same for the data that ``early_stopping`` holds out.

    Raises
    ------
    ValueError, TypeError
        If parameters or data do not fit.
    TrainingDiverged
        If the loss is no longer finite.

    Notes
    -----
    X is always a set of series: a list of (T_i, C) arrays of C channels, an (N, T, C) array, or a
    table with one series in each row (a UserWarning names a table that may be one series). ONE
    series is a list of one, ``fit([series])``, or a table of one row. A DataFrame with a row for
    each time and a column for each channel goes into a list, too.
    ``numba_rnn.Stream(model.network_)`` forecasts step by step.

    Training minimises the mean squared error. ``early_stopping`` holds out the end of every series
    and judges forecasts of it that have read the steps before. Scale series to a size of about 1 (a
    UserWarning names those that are not) and remove trends.

    The index of a DataFrame or a Series in a list must have its times in order, each once and
    evenly spaced, and so must the columns of a table. All series have one frequency, in ``predict``
    that of ``fit``, and exogenous inputs have the same labels; otherwise a ValueError names the
    place. To ignore times, drop the index: ``frame.reset_index(drop=True)``.

    ``exogenous`` inputs are known for the future as well, such as the calendar. Give one sequence
    (T_i, E) for each series, for ``predict`` with the ``horizon`` steps to come: (T_i + horizon,
    E). A table has one such input at each step.

    Examples
    --------
    >>> wave = np.sin(np.arange(200) / 4)[:, None]  # (steps, channels)
    >>> model = RNNForecaster("gru", horizon=3, window=25, max_epochs=10, random_state=0)
    >>> model.fit([wave[:150]]).predict([wave[:150]]).shape
    (1, 3, 1)
    >>> bool(abs(model.predict([wave[:150]])[0] - wave[150:153]).max() < 0.1)
    True
    """

    _even = True
    _known_features: int

    def __init__(
        self,
        cell: str | Cell | WrittenCell = "lstm",
        *,
        horizon: int = 1,
        window: int | None = None,
        stride: int = 1,
        hidden_size: int = 32,
        layers: int = 1,
        dropout: float = 0.0,
        optimiser: str | Callable[..., Optimiser] = "adam",
        lr: float = 0.01,
        batch_size: int = 32,
        max_epochs: int = 100,
        clip: float | None = 1.0,
        early_stopping: bool = False,
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
            max_epochs=max_epochs, clip=clip, early_stopping=early_stopping,
            validation_fraction=validation_fraction, patience=patience, warm_start=warm_start,
            per_step=True, step_features=step_features, dtype=dtype, verbose=verbose,
            random_state=random_state,
        )  # fmt: skip
        self.horizon = horizon
        self.window = window
        self.stride = stride

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags

    # ---- training

    @all_or_nothing
    def fit(self, X: Any, y: Any = None, *, exogenous: Any = None) -> Self:
        """Train on series.

        Parameters
        ----------
        X : list of (T_i, C) arrays, (N, T, C) array or (N, T) table
            The series.
        y : ignored
            scikit-learn passes it.
        exogenous : list of (T_i, E) arrays, (N, T, E) array or (N, T) table, optional
            Exogenous inputs, as long as the series.

        Returns
        -------
        Self
            The estimator.
        """
        expect_no_sequences("y", y)
        series = self._read_series(X, reset=True)
        known = self._read_exogenous(exogenous, X, series, 0, reset=True)
        train, valid = list(zip(series, known, strict=True)), None
        if self.early_stopping:
            train, valid = self._split_ends(train)
        return self._fit(self._examples(train), self._outputs, valid)

    @all_or_nothing
    def partial_fit(self, X: Any, y: Any = None, *, exogenous: Any = None) -> Self:
        """Train on series for one epoch.

        Parameters
        ----------
        X : list of (T_i, C) arrays, (N, T, C) array or (N, T) table
            The series.
        y : ignored
            scikit-learn passes it.
        exogenous : list of (T_i, E) arrays, (N, T, E) array or (N, T) table, optional
            Exogenous inputs, as long as the series.

        Returns
        -------
        Self
            The estimator.
        """
        expect_no_sequences("y", y)
        anew = not hasattr(self, "network_")
        series = self._read_series(X, reset=anew)
        known = self._read_exogenous(exogenous, X, series, 0, reset=anew)
        return self._partial_fit(
            self._examples(list(zip(series, known, strict=True))), self._outputs
        )

    def _split_ends(self, series: list[Any]) -> tuple[list[Any], SequenceDataset]:
        """The beginnings of the series; and forecasts of their ends, which are held out.

        Those are made as ``predict`` makes them: from all steps before, or from a window of them.
        """
        share = expect_float("validation_fraction", self.validation_fraction, 0, 1, low_open=True)
        least = self.horizon + 1
        early: list[Any] = []
        judged: list[SequenceDataset] = []
        for values, known in series:
            held = max(round(share * len(values)), least)
            if len(values) - held < least:
                raise ValueError(
                    f"early_stopping: expected series of at least {2 * least} steps, to hold out "
                    f"their ends, got one of {len(values)}"
                )
            early.append((values[:-held], known[:-held]))
            judged.append(self._judged(values, known, held - self.horizon + 1))
        return early, SequenceDataset(
            [xs for part in judged for xs in part.xs],
            [ts for part in judged for ts in part.ts],
            np.concatenate([part.last for part in judged]),
        )

    def _judged(self, values: Array, known: Array, count: int) -> SequenceDataset:
        """The last ``count`` forecasts whose targets are known."""
        inputs, targets = self._inputs_and_targets(values, known)
        if not self._window:
            return SequenceDataset([inputs], [targets], np.array([count]))
        ends = range(len(inputs) - count + 1, len(inputs) + 1)
        windows = [slice(max(end - self._window, 0), end) for end in ends]
        return SequenceDataset(
            [inputs[w] for w in windows], [targets[w] for w in windows], np.ones(count, int)
        )

    def _examples(self, series: list[Any]) -> SequenceDataset:
        """The windows of all series, and the targets of each of their steps."""
        xs: list[Array] = []
        ts: list[Array] = []
        for values, known in series:
            inputs, targets = self._inputs_and_targets(values, known)
            width = min(self._window or len(inputs), len(inputs))
            last, stride = len(inputs) - width, expect_int("stride", self.stride)
            for start in range(last % stride, last + 1, stride):
                xs.append(inputs[start : start + width])
                ts.append(targets[start : start + width])
        return SequenceDataset(xs, ts)

    def _inputs_and_targets(self, values: Array, known: Array) -> tuple[Array, Array]:
        """The inputs at the steps whose future is known, and that future: the targets."""
        inputs = self._inputs(values[: -self.horizon], known)
        ahead = sliding_window_view(values[1:], self.horizon, axis=0)  # (steps, C, horizon)
        return inputs, ahead.transpose(0, 2, 1).reshape(len(inputs), -1)

    # ---- use

    def predict(self, X: Any, *, exogenous: Any = None) -> Array:
        """Predict the ``horizon`` steps after the end of each series.

        Parameters
        ----------
        X : list of (T_i, C) arrays, (N, T, C) array or (N, T) table
            The series.
        exogenous : list of (T_i + horizon, E) arrays or similar, optional
            Exogenous inputs, if fit had them: for all steps of the series and those to come.

        Returns
        -------
        forecasts : (N, horizon, C) array
            For a table a table (N, horizon * C).
        """
        series = self._read_series(X, reset=False)
        known = self._read_exogenous(exogenous, X, series, self.horizon, reset=False)
        forecast = self._forecast(series, known)
        return forecast.reshape(len(forecast), -1) if self._table else forecast

    def score(self, X: Any, y: Any = None, *, exogenous: Any = None) -> float:
        """Return R² of forecasts of the last ``horizon`` steps of each series from those before.

        Parameters
        ----------
        X : list of (T_i, C) arrays, (N, T, C) array or (N, T) table
            The series.
        y : ignored
            scikit-learn passes it.
        exogenous : list of (T_i, E) arrays, (N, T, E) array or (N, T) table, optional
            Exogenous inputs, if fit had them.

        Returns
        -------
        float
            R², the mean over channels.
        """
        series = self._read_series(X, reset=False)
        known = self._read_exogenous(exogenous, X, series, 0, reset=False)
        self._expect_steps(series)
        forecast = self._forecast([values[: -self.horizon] for values in series], known)
        came = np.stack([values[-self.horizon :] for values in series])
        channels = came.shape[2]
        return float(r2_score(came.reshape(-1, channels), forecast.reshape(-1, channels)))

    def _forecast(self, series: Sequences, known: Sequences) -> Array:
        """(N, horizon, C), from series (T_i, C) and exogenous inputs (T_i + horizon, E)."""
        width = self._window
        xs = [
            self._inputs(
                values[-width:] if width else values,
                more[-width - self.horizon :] if width else more,
            )
            for values, more in zip(series, known, strict=True)
        ]
        ends = np.cumsum(lengths_of(xs)) - 1
        return self._scores(xs)[ends].reshape(len(xs), self.horizon, -1)

    def _inputs(self, values: Array, known: Array) -> Array:
        """The inputs of the network at each step: the channels (T, C), and the exogenous inputs
        (T + horizon, E) of the steps to be foretold; (T, C + horizon * E)."""
        ahead = sliding_window_view(known[1:], self.horizon, axis=0)
        return np.concatenate([values, ahead.reshape(len(values), -1)], axis=1)

    # ---- reading

    @property
    def _window(self) -> int:
        """The window, 0 where series are read whole."""
        return 0 if self.window is None else expect_int("window", self.window)

    def _read_series(self, X: Any, *, reset: bool) -> Sequences:
        horizon = expect_int("horizon", self.horizon)
        expect_no_times("X", X)
        try:
            series = self._read(X, reset=reset, least_steps=horizon + 1)
        except ValueError as error:
            if "feature(s)" in str(error):
                least = str(error).rstrip(".")
                raise ValueError(f"{least}: horizon + 1 steps. {ONE_SERIES}") from error
            if "Reshape" in str(error):
                raise ValueError(f"X: expected series, got one. {ONE_SERIES}. {error}") from error
            raise
        if reset:
            self._expect_steps(series)
            self._warn_of_table(series)
            names = None if self._table else getattr(self, "feature_names_in_", None)
            warn_of_scale("X", series, names, targets=True)
            self._horizon, self._outputs = horizon, horizon * series[0].shape[1]
        elif horizon != self._horizon:
            raise ValueError(f"horizon: expected {self._horizon}, as in fit, got {horizon}")
        return series

    def _expect_steps(self, series: Sequences) -> None:
        for k, values in enumerate(series):
            if len(values) <= self.horizon:
                raise ValueError(
                    f"X: expected series of at least {self.horizon + 1} steps for a horizon of "
                    f"{self.horizon}, got {len(values)} in series {k}"
                )

    def _warn_of_table(self, series: Sequences) -> None:
        """Warn of a table that may be one series: many short rows, or shorter than the window."""
        if not self._table:
            return
        N, T, D = series.shape
        if (T < FEW_STEPS and N >= 10 * T) or min(N, self._window) > T:
            warnings.warn(
                f"X: taken as {N} series of {T} steps. If it is one series of {T * D} channels, "
                f"use fit([X]); if not, fit(np.reshape(X, ({N}, {T}, {D}))) avoids this warning",
                stacklevel=5,
            )

    def _read_exogenous(
        self, exogenous: Any, X: Any, series: Sequences, ahead: int, *, reset: bool
    ) -> Sequences:
        """Exogenous inputs (T_i + ahead, E) of series X (T_i, C); E is 0 where there are none."""
        expect_no_times("exogenous", exogenous)
        expect_column_order("exogenous", exogenous, even=True)
        exogenous = listed(exogenous)
        dtype, lengths = series[0].dtype, lengths_of(series) + ahead
        if exogenous is None:
            if not reset and self._known_features:
                raise ValueError(
                    "exogenous: expected inputs for all steps of the series and those to come, as "
                    "in fit, got None"
                )
            blocks = [np.zeros((length, 0), dtype) for length in lengths]
        elif is_table("exogenous", exogenous):
            blocks = check_array(exogenous, dtype=dtype, input_name="exogenous")[:, :, None]
        else:
            blocks = read_sequences("exogenous", exogenous, dtype)
        names = columns_of("exogenous", exogenous)
        if reset:
            self._known_names = names
        else:
            expect_columns("exogenous", names, self._known_names)
        if len(blocks) != len(lengths):
            raise ValueError(
                f"exogenous: expected inputs for {len(lengths)} series, got {len(blocks)}"
            )
        for k, (more, length) in enumerate(zip(blocks, lengths, strict=True)):
            if len(more) != length:
                later = f" and the {ahead} to come" if ahead else ""
                raise ValueError(
                    f"exogenous[{k}]: expected {length} steps, the {length - ahead} of X[{k}]"
                    f"{later}, got {len(more)}"
                )
        self._expect_indices(exogenous, listed(X))
        features = blocks[0].shape[1]
        if reset and features:
            warn_of_scale("exogenous", blocks, names if are_names(names) else None)
        if reset:
            self._known_features = features
        elif features != self._known_features:
            raise ValueError(
                f"exogenous: expected {self._known_features} features, as in fit, got {features}"
            )
        return blocks

    def _expect_indices(self, exogenous: Any, X: Any) -> None:
        """Raises ValueError for inputs whose labels are out of order, or not those of X."""
        if not isinstance(exogenous, (list, tuple)):
            expect_same_index("exogenous", exogenous, "X", X)
            expect_same_columns("exogenous", exogenous, "X", X)
            return
        for k, more in enumerate(exogenous):
            expect_order(f"exogenous[{k}]", index_of(more), even=True)
            if isinstance(X, (list, tuple)):
                expect_same_index(f"exogenous[{k}]", more, f"X[{k}]", X[k])
