"""Inputs that are known of every step, also of those to come: exogenous, calendar, series.

Known inputs of a series are one array (T + horizon, E + K). The first E are the exogenous ones, of
which a step reads those of the steps that it foretells. The last K are read at their own step: the
calendar, static features, and last the number of the series, for its embedding.
"""

from typing import Any

import numpy as np
from sklearn.utils import check_array

from ..typing import Array, IntArray
from .calendar_features import calendar_features
from .frames import TimeStep, called, index_of
from .series import Shape, index_after, shape_of


def calendars(X: Any, ahead: int, seconds: float, step: TimeStep | None) -> list[Array]:
    """The features of the calendar (T + ahead, 2 K) of DataFrames.

    seconds  from a step to the next
    step     that of fit
    """
    return [
        np.concatenate(
            [
                calendar_features(called("X", X, k), index_of(x), seconds),
                calendar_after(shape_of(x), ahead, seconds, step),
            ]
        )
        for k, x in enumerate(X)
    ]


def calendar_after(shape: Shape, ahead: int, seconds: float, step: TimeStep | None) -> Array:
    """Those of the steps after a series."""
    if not ahead:
        return calendar_features("X", shape["index"], seconds)[:0]
    return calendar_features("X", index_after(shape, ahead, step), seconds)


def static_features(static: Any, names: Any, count: int, features: int | None) -> Array:
    """(N, S), one row for each series.

    names     of the series, whose rows static has by name; None: in order
    features  S of fit; None: any

    Raises ValueError where rows or features do not fit.
    """
    if static is None:
        if features:
            raise ValueError("static: expected the features of each series, as in fit, got None")
        return np.zeros((count, 0))
    if isinstance(static, dict):
        if names is None or set(names) != set(static):
            raise ValueError("static: expected a dict with the names in X, or an array (N, S)")
        static = [np.atleast_1d(static[name]) for name in names]
    elif names is not None and hasattr(static, "loc"):
        missing = [name for name in names if name not in static.index]
        if missing:
            raise ValueError(f"static: expected a row for each series, got none for {missing[0]}")
        static = static.loc[list(names)]
    found = np.asarray(static)
    found = check_array(found[:, None] if found.ndim == 1 else found, input_name="static")
    if len(found) != count or features not in (None, found.shape[1]):
        raise ValueError(
            f"static: expected {count} rows{'' if features is None else f' of {features}'}, one "
            f"for each series, got shape {found.shape}"
        )
    return found


def numbers_of(names: list[Any] | None, count: int, known: list[Any] | int) -> IntArray:
    """(N,) the number of each series in fit.

    names  those of the series; None: they are those of fit in their order
    known  the names in fit, or how many series it had

    Raises ValueError for series that were not in fit.
    """
    if isinstance(known, int) or names is None:
        most = known if isinstance(known, int) else len(known)
        if count != most:
            raise ValueError(
                f"embedding: expected the {most} series of fit, got {count}; give series by name "
                "in a dict to forecast some of them"
            )
        return np.arange(count)
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(
            f"embedding: expected series that were in fit, {', '.join(map(str, known))}, got "
            f"{strange[0]}"
        )
    return np.array([known.index(name) for name in names])
