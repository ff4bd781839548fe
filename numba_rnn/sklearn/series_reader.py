"""The series of a forecaster: what it is given becomes arrays (T, C), and what is known of them."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.utils import check_array

from ..validation import expect_int
from .base import RecurrentEstimator
from .calendar_features import step_of
from .choosing import Data
from .frames import (
    Named,
    TimeStep,
    are_names,
    are_times,
    called,
    columns_of,
    expect_column_order,
    expect_columns,
    expect_order,
    expect_same_columns,
    expect_same_index,
    index_of,
)
from .known import calendars, numbers_of, static_features
from .sequences import (
    Sequences,
    is_table,
    lengths_of,
    listed,
    read_sequences,
    warn_of_scale,
)
from .series import (
    Shape,
    are_columns,
    column_of,
    columns_by_name,
    expect_names,
    expect_no_dates,
    expect_some,
    is_one,
    shape_of,
)

ROWS_ARE_SERIES = "Each row of a table is a series; for a table with a row for each time: "
ONE_SERIES = f"{ROWS_ARE_SERIES}fit([X])"
LATER = "with a shorter horizon in fit, predict(horizon=...) says as many steps"
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


def expect_counts(name: str, data: Data, loss: str) -> None:
    """Raises ValueError for values that are no counts."""
    for k, (values, _) in enumerate(data):
        wrong = (values < 0) | (values % 1 > 0)
        if wrong.any():
            raise ValueError(
                f"{called(name, data, k)}: expected whole numbers from 0 for loss={loss!r}, got "
                f"{values[wrong][0]:g} at step {np.argwhere(wrong)[0][0]}"
            )


def expect_no_sequences(name: str, y: Any) -> None:
    """Raises TypeError for targets that are series themselves: a forecaster has its own."""
    if isinstance(y, (list, tuple)) and y and np.ndim(y[0]) == 2:
        raise TypeError(
            f"{name}: a forecaster takes no targets; pass known inputs as exogenous=..."
        )


class SeriesReader(RecurrentEstimator):
    """The part of a forecaster that reads series and known inputs."""

    horizon: int
    window: int | None
    scaling: str | None
    calendar: bool
    embedding: int
    _head: Any
    _horizon: int
    _channels: int
    _outputs: int
    _known_features: int
    _embedded: tuple[int, int] | None = None  # vectors, numbers
    _now = 0  # how many of the known inputs are read at their own step
    _static: int  # features
    _seconds: float  # from a step to the next, for the calendar
    _series: list[Any] | int  # names in fit, or how many

    @property
    def _window(self) -> int:
        """The window, 0 where series are read whole."""
        return 0 if self.window is None else expect_int("window", self.window)

    def _as_lists(
        self, X: Any, exogenous: Any, y: Any, *, table: bool
    ) -> tuple[Any, Any, dict[Any, Shape] | list[Shape] | None]:
        """One series, or several by name, as a list; with them how forecasts are given back.

        y      numbers with them: scikit-learn's, which are those of a table
        table  whether a table is expected, of which one row is no series
        """
        if table or y is not None:
            return X, exogenous, None
        if isinstance(X, Mapping):
            expect_some("X", X)
            for name, x in X.items():
                expect_no_dates(f"X[{name!r}]", x)
            if exogenous is not None:
                expect_names("exogenous", exogenous, X, "X")
                exogenous = columns_by_name("exogenous", exogenous, X)
            return columns_by_name("X", X, X), exogenous, {n: shape_of(x) for n, x in X.items()}
        if index_of(X) is not None:
            expect_some("X", X)
        expect_no_dates("X", X)
        if is_one(X):
            several = exogenous is None or isinstance(exogenous, list)
            known = exogenous if several else Named([column_of("exogenous", exogenous)], None)
            return Named([column_of("X", X)], None), known, [shape_of(X)]
        if are_columns(X):
            return [column_of(f"X[{k}]", x) for k, x in enumerate(X)], exogenous, None
        return X, exogenous, None

    @property
    def _fit_step(self) -> TimeStep | None:
        """The time from a step to the next in fit, where it was told."""
        return None if self._step is None else TimeStep(*self._step)

    def _read_series(self, X: Any, *, reset: bool) -> Sequences:
        horizon = expect_int("horizon", self.horizon)
        expect_no_times("X", X)
        try:
            series = self._read(X, reset=reset, least_steps=horizon + 1)
        except ValueError as error:
            if "feature(s)" in str(error):
                least = str(error).rstrip(".")
                raise ValueError(f"{least}: horizon + 1 steps. {ONE_SERIES}; {LATER}") from error
            if "Reshape" in str(error):
                raise ValueError(f"X: expected series, got one. {ONE_SERIES}. {error}") from error
            raise
        if reset:
            self._expect_steps(X, series)
            self._warn_of_table(series)
            names = None if self._table else getattr(self, "feature_names_in_", None)
            if self.scaling is None:
                warn_of_scale("X", series, names, targets=True)
            self._horizon, self._channels = horizon, series[0].shape[1]
            self._outputs = horizon * self._channels * getattr(self._head, "parameters", 1)
        elif horizon != self._horizon:
            raise ValueError(f"horizon: expected {self._horizon}, as in fit, got {horizon}")
        return series

    def _expect_steps(self, X: Any, series: Sequences) -> None:
        for k, values in enumerate(series):
            if len(values) <= self.horizon:
                raise ValueError(
                    f"{called('X', X, k)}: expected at least {self.horizon + 1} steps for a "
                    f"horizon of {self.horizon}, got {len(values)}; {LATER}"
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

    def _read_known(
        self, exogenous: Any, static: Any, X: Any, series: Sequences, shapes: Any, ahead: int, *,
        reset: bool,
    ) -> Sequences:  # fmt: skip
        """All that is known of the steps of series, and of those to come (T_i + ahead, E + K)."""
        blocks = self._read_exogenous(exogenous, X, series, ahead, reset=reset)
        names = list(shapes) if isinstance(shapes, dict) else None
        count = len(blocks)
        features = static_features(static, names, count, None if reset else self._static)
        if reset:
            self._static, self._series = features.shape[1], names or count
            size = expect_int("embedding", self.embedding, 0)
            self._embedded = (count, size) if size else None
            steps = (step_of(called("X", X, k), x) for k, x in enumerate(X))
            self._seconds = max(steps) if self.calendar else 0.0
        now = [np.repeat(one[None], len(block), axis=0) for one, block in
               zip(features, blocks, strict=True)]  # fmt: skip
        if self.calendar:
            dates = calendars(X, ahead, self._seconds, self._fit_step)
            now = [np.concatenate(pair, axis=1) for pair in zip(dates, now, strict=True)]
        if self._embedded:
            numbers = numbers_of(names, count, self._series)
            now = [np.pad(one, ((0, 0), (0, 1)), constant_values=k) for one, k in
                   zip(now, numbers, strict=True)]  # fmt: skip
        if reset:
            self._now = now[0].shape[1]
        if not self._now:
            return blocks
        return [
            np.concatenate(pair, axis=1, dtype=pair[0].dtype)
            for pair in zip(blocks, now, strict=True)
        ]

    def _more_options(self, features: int) -> dict[str, Any]:
        if not self._embedded:
            return {}
        return {"input_size": features - 1 + self._embedded[1], "embedding": self._embedded}

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
                    f"{called('exogenous', exogenous, k)}: expected {length} steps, the "
                    f"{length - ahead} of {called('X', X, k)}{later}, got {len(more)}"
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
            name = called("exogenous", exogenous, k)
            expect_order(name, index_of(more), even=True)
            if isinstance(X, (list, tuple)):
                expect_same_index(name, more, called("X", X, k), X[k])
