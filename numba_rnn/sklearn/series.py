"""One series, or several with names: how a forecaster is given them, and how it gives them back."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ..typing import Array
from ..validation import format_shape
from .frames import (
    NUMBERS,
    Named,
    TimeStep,
    are_times,
    frequency_of,
    index_of,
    months_of,
    readings_of,
)

Shape = dict[str, Any]  # of one series: its kind, the name, the columns, the end of its index
TAIL = 20  # labels that tell the frequency


def is_one(X: Any) -> bool:
    """Whether X is one series: 1-d numbers, a Series, or a DataFrame whose rows are times."""
    index = index_of(X)
    if index is not None:
        if getattr(X, "ndim", 0) == 1:
            return getattr(index, "nlevels", 1) == 1
        years = getattr(index, "inferred_type", "") == "string" and all(map(str.isdecimal, index))
        return getattr(index, "nlevels", 1) == 1 and are_times(index) and not years
    if isinstance(X, (list, tuple)):
        return bool(X) and {np.shape(x) for x in X} == {()}
    plain = isinstance(X, np.ndarray) or (hasattr(X, "__array__") and hasattr(X, "shape"))
    if not plain or len(X.shape) != 1:
        return False
    return X.dtype.kind != "O" or (len(X) > 0 and {np.shape(x) for x in X} == {()})


def are_columns(X: Any) -> bool:
    """Whether X is a list of series (T_i,) of different lengths."""
    if not isinstance(X, (list, tuple)):
        return False
    shapes = {np.shape(x) for x in X}
    return len(shapes) > 1 and all(len(shape) == 1 for shape in shapes)


def expect_no_dates(name: str, X: Any) -> None:
    """Raises ValueError for a DataFrame with a column of dates, or a Series of them."""
    if index_of(X) is not None and getattr(X, "ndim", 0) == 1 and X.dtype.kind in "mM":
        raise ValueError(f"{name}: expected numbers, got times ({X.dtype}); they may be the index")
    if not hasattr(X, "columns") or not hasattr(X, "index"):
        return
    import pandas as pd

    for k, column in enumerate(X.columns):
        values = X.iloc[:, k]
        if getattr(values.dtype, "kind", "O") not in "fiub" and are_times(pd.Index(values)):
            raise ValueError(
                f"{name}: expected numbers, got times in the column {column!r}; "
                f"{name}.set_index({column!r}) makes them the index of one series"
            )


def expect_some(name: str, X: Any) -> None:
    """Raises ValueError for a dict, a DataFrame or the like that is empty."""
    if not len(X) or 0 in getattr(X, "shape", ()):
        raise ValueError(f"{name}: expected at least one series, got an empty {type(X).__name__}")


def expect_names(name: str, X: Any, names: Collection[Any], of: str) -> None:
    """Raises ValueError for what is no dict with just these names."""
    wanted = f"{name}: expected a dict with the names in {of}, {', '.join(map(str, names))}"
    if not isinstance(X, Mapping):
        raise ValueError(f"{wanted}, got {type(X).__name__}")
    for says, these in (
        ("missing", [one for one in names if one not in X]),
        ("unknown", [one for one in X if one not in names]),
    ):
        if these:
            raise ValueError(f"{wanted}; {says}: {', '.join(map(str, these))}")


def columns_by_name(name: str, X: Any, names: Iterable[Any]) -> Named:
    """Series of a dict as frames or arrays (T, C), in the order of names."""
    keys = list(names)
    return Named([column_of(f"{name}[{key!r}]", X[key]) for key in keys], keys)


def column_of(name: str, x: Any) -> Any:
    """A series as a frame or an array (T, C). The name of a Series is that of no column: those of
    several differ.

    Raises ValueError for what has no steps, or more axes.
    """
    if hasattr(x, "to_frame") and getattr(x, "ndim", 0) == 1:
        return x.to_frame(0)
    if np.ndim(x) not in (1, 2):
        raise ValueError(
            f"{name}: expected a series (T,) or (T, C), got "
            + (f"shape {format_shape(np.shape(x))}" if np.ndim(x) else f"{x!r}")
        )
    return x if np.ndim(x) == 2 else np.asarray(x)[:, None]


def shape_of(x: Any) -> Shape:
    """The shape of a series, for ``in_shape``."""
    index = index_of(x)
    if index is None:
        return {"kind": "matrix" if np.ndim(x) == 2 else "array"}
    tail = {"index": index[-TAIL:], "steps": len(index), "freq": getattr(index, "freq", None)}
    if x.ndim == 1:
        return {"kind": "series", "name": x.name, **tail}
    return {"kind": "frame", "columns": x.columns, **tail}


def shapes_of(shapes: Any) -> list[Shape]:
    """The shapes of series as a list; empty where there are none."""
    return list(shapes.values()) if isinstance(shapes, dict) else list(shapes or ())


def in_shape(
    forecast: Array, shape: Shape, labels: Any = None, step: TimeStep | None = None
) -> Any:
    """A forecast (horizon, C) as the series was given, with the index that follows on its own.

    step    of the series of fit, for an index that is too short to have one
    labels  of several for each step and channel, (horizon, C, L): they are columns
    """
    if shape["kind"] == "matrix":
        return forecast
    if shape["kind"] == "array":
        return forecast[:, 0]
    import pandas as pd

    index = index_after(shape, len(forecast), step)
    if shape["kind"] == "series":
        if labels is None:
            return pd.Series(forecast[:, 0], index, name=shape["name"])
        return pd.DataFrame(forecast[:, 0], index, labels)
    columns = shape["columns"]
    if labels is not None:
        columns = pd.MultiIndex.from_product([columns, labels])
    return pd.DataFrame(forecast.reshape(len(forecast), -1), index, columns)


def index_after(shape: Shape, count: int, step: TimeStep | None = None) -> Any:
    """The next labels of an index of times or numbers; others are numbered on.

    step  of other series, whose frequency is that of labels that go on by it
    """
    import pandas as pd

    tail, name = shape["index"], shape["index"].name
    text = tail.inferred_type == "string"
    if tail.inferred_type == "period":
        return pd.period_range(tail[-1] + 1, periods=count, name=name)
    readings = readings_of(tail)
    if readings:
        tail = next((one.labels for one in readings if one.labels.is_monotonic_increasing), tail)
        tail = tail.tz_localize(None) if text and getattr(tail, "tz", None) else tail
    kind = tail.inferred_type
    if kind in ("date", "datetime"):
        tail, kind = pd.to_datetime(tail), "datetime64"
    if kind == "datetime64" and (freq := _freq_after(tail, shape["freq"], step)) is not None:
        found = pd.date_range(tail[-1], periods=count + 1, freq=freq, name=name)
        return found[found > tail[-1]][:count]
    if kind in ("datetime64", "timedelta64", "timedelta", "integer", "floating"):
        by = _mean_step(tail, step)
        if by is not None:
            return pd.Index([tail[-1] + k * by for k in range(1, count + 1)], name=name)
    return pd.RangeIndex(shape["steps"], shape["steps"] + count, name=name)


def _freq_after(tail: Any, own: Any, step: TimeStep | None) -> Any:
    """The offset by which dates go on: their own, or that of others that fits them."""
    import pandas as pd

    freq = None if step is None or step.of_numbers else step.freq
    if own is not None or freq is None:
        return frequency_of(tail) if own is None else own
    if len(tail) > 1:
        fits = list(pd.date_range(tail[0], periods=len(tail), freq=freq)) == list(tail)
        return freq if fits else frequency_of(tail)
    if not (months := months_of(freq)):
        return freq
    (day,) = tail
    if freq.is_on_offset(day) and day.day == min(freq.kwds.get("day", day.day), day.days_in_month):
        return freq
    return pd.DateOffset(months=months, day=31 if day.is_month_end else day.day)


def _mean_step(tail: Any, step: TimeStep | None) -> Any:
    """The mean step of labels; that of others where there is one label alone."""
    if len(tail) > 1:
        by = (tail[-1] - tail[0]) / (len(tail) - 1)
        return int(by) if tail.inferred_type == "integer" and by == int(by) else by
    numbers = tail.inferred_type in NUMBERS
    if step is None or step.of_numbers != numbers:
        return 1 if tail.inferred_type == "integer" else None
    import pandas as pd

    return step.freq if numbers else pd.Timedelta(seconds=step.span / step.number)
