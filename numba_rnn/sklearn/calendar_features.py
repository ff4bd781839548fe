"""Features of the calendar: the place of a time in the year, the week and the day."""

from typing import Any

import numpy as np

from ..typing import Array
from .frames import DAY, index_of, readings_of

YEAR = 365.2425 * DAY
CYCLES = YEAR, 7 * DAY, DAY  # in seconds, from the epoch on
MONDAY = 4 * DAY  # the first one after the epoch, 1 January 1970


def calendar_features(name: str, times: Any, step: float) -> Array:
    """(T, 2 K): sine and cosine of the place in each of the cycles that are longer than two steps.

    times  labels of pandas
    step   seconds from one to the next

    Raises ValueError for labels that are no dates.
    """
    seconds = seconds_of(name, times)
    found = []
    for cycle in CYCLES:
        if cycle > 2 * step:
            angle = 2 * np.pi * ((seconds - MONDAY * (cycle == 7 * DAY)) / cycle)
            found += [np.sin(angle), np.cos(angle)]
    return np.stack(found, axis=1) if found else np.zeros((len(seconds), 0))


def seconds_of(name: str, times: Any) -> Array:
    """Dates as seconds, as clocks there show them."""
    import pandas as pd

    readings = [] if times is None else readings_of(times)
    if times is not None and times.inferred_type == "period":
        dates = times.to_timestamp()
    else:
        dates = next((one.labels for one in readings if one.labels.is_monotonic_increasing), None)
        if dates is not None and dates.inferred_type in ("date", "datetime"):
            dates = pd.to_datetime(dates)
    if not isinstance(dates, pd.DatetimeIndex):
        kind = "none" if times is None else type(times).__name__
        raise ValueError(f"calendar: expected {name} with an index of dates, got {kind}")
    return np.asarray((dates.tz_localize(None) - pd.Timestamp(0)).total_seconds())


def step_of(name: str, x: Any) -> float:
    """The mean seconds from a step to the next of a DataFrame."""
    seconds = seconds_of(name, index_of(x))
    return float((seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1)) if len(seconds) > 1 else 0.0
