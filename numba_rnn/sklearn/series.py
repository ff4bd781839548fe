"""One series, or several with names: how a forecaster is given them, and how it gives them back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..typing import Array
from .frames import are_times, index_of, readings_of

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
    return plain and len(X.shape) == 1 and X.dtype.kind != "O"


def named(X: Any) -> bool:
    """Whether X is series by name."""
    return isinstance(X, Mapping) and bool(X)


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


def column_of(x: Any) -> Any:
    """A series as a frame or an array (T, C). The name of a Series is that of no column: those of
    several differ.
    """
    if hasattr(x, "to_frame") and getattr(x, "ndim", 0) == 1:
        return x.to_frame(0)
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


def in_shape(forecast: Array, shape: Shape, labels: Any = None) -> Any:
    """A forecast (horizon, C) as the series was given, with the index that follows on its own.

    labels  of several for each step and channel, (horizon, C, L): they are columns
    """
    if shape["kind"] == "matrix":
        return forecast
    if shape["kind"] == "array":
        return forecast[:, 0]
    import pandas as pd

    index = index_after(shape, len(forecast))
    if shape["kind"] == "series":
        if labels is None:
            return pd.Series(forecast[:, 0], index, name=shape["name"])
        return pd.DataFrame(forecast[:, 0], index, labels)
    columns = shape["columns"]
    if labels is not None:
        columns = pd.MultiIndex.from_product([columns, labels])
    return pd.DataFrame(forecast.reshape(len(forecast), -1), index, columns)


def index_after(shape: Shape, count: int) -> Any:
    """The next labels of an index of times or numbers; others are numbered on."""
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
    freq = shape["freq"]
    if kind == "datetime64" and freq is None and len(tail) > 2:
        freq = pd.DatetimeIndex(tail, freq="infer").freq
    if kind == "datetime64" and freq is not None:
        return pd.date_range(tail[-1], periods=count + 1, freq=freq, name=name)[1:]
    if len(tail) > 1 and kind in ("datetime64", "timedelta64", "timedelta", "integer", "floating"):
        step = (tail[-1] - tail[0]) / (len(tail) - 1)
        step = int(step) if kind == "integer" and step == int(step) else step
        return pd.Index([tail[-1] + k * step for k in range(1, count + 1)], name=name)
    return pd.RangeIndex(shape["steps"], shape["steps"] + count, name=name)
