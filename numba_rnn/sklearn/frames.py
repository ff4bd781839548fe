"""Names, times and the order of steps, as DataFrames and Series have them.

DataFrames are known by their attributes; pandas is imported only where one needs it.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# what an index of pandas says of itself
TIMES = "datetime64", "datetime", "date", "period", "timedelta64", "timedelta"
NUMBERS = "integer", "floating", "mixed-integer-float"
WITHOUT_LABELS = "reset_index(drop=True)", "to_numpy()"  # by axis
# dates in text; where a day may be a month, too, the reading counts that has the dates in order
_DAYS = ["%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%d.%m.%y", "%d/%m/%y", "%m/%d/%y"]
DATES = "ISO8601", *(day + clock for day in _DAYS for clock in ("", " %H:%M", " %H:%M:%S"))
DAY = 24 * 3600
GAP = 1.5  # times the shortest step: between numbers, such as years, a longer one is a gap


class Named(list[Any]):
    """Series, or what belongs to them, with the names that they have for the user.

    keys  those of a dict; None: there is one series, on its own
    """

    def __init__(self, items: Iterable[Any], keys: list[Any] | None) -> None:
        super().__init__(items)
        self.keys = keys


def like(X: Any, items: Iterable[Any]) -> Any:
    """A list of items with the names that X has, if it has some."""
    return Named(items, X.keys) if isinstance(X, Named) else list(items)


def called(name: str, X: Any, k: int) -> str:
    """The series k of an argument, as the user would write it: X["north"], X, or X[0]."""
    if not isinstance(X, Named):
        return f"{name}[{k}]"
    return name if X.keys is None else f"{name}[{X.keys[k]!r}]"


def columns_of(name: str, X: Any) -> list[Any] | None:
    """The names of the columns of a list of DataFrames; None where there are none.

    Raises ValueError where the DataFrames do not agree.
    """
    found = (
        [list(x.columns) for x in X if hasattr(x, "columns")]
        if isinstance(X, (list, tuple))
        else []
    )
    for k, columns in enumerate(found):
        if columns != found[0]:
            raise ValueError(_other_columns(called(name, X, k), columns, found[0]))
    return found[0] if found else None


def are_names(columns: list[Any] | None) -> bool:
    """Whether columns are known by text, as scikit-learn wants it."""
    return columns is not None and all(isinstance(column, str) for column in columns)


def expect_columns(name: str, columns: Any, expected: Any) -> None:
    """Raises ValueError where columns are not those expected, in their order; None: not known.

    Columns that are numbered from 0, as those of an array are, may have names in the other.
    """
    if columns is None or expected is None or list(columns) == list(expected):
        return
    for some, others in ((columns, expected), (expected, columns)):
        if list(some) == list(range(len(some))) and are_names(others):
            return
    raise ValueError(_other_columns(name, columns, expected))


def _other_columns(name: str, columns: Any, expected: Any) -> str:
    return (
        f"{name}: expected the columns {', '.join(map(str, expected))}, in this order, got "
        f"{', '.join(map(str, columns))}"
    )


def index_of(frame: Any) -> Any:
    """The index of a DataFrame or a Series; None of everything else."""
    index = getattr(frame, "index", None)
    return index if hasattr(index, "inferred_type") else None


class TimeStep(NamedTuple):
    """The time from a step to the next in seconds: the shortest, the longest; how many, in all.

    freq  the offset of pandas from one to the next, if there is one; of numbers, their mean step:
          it is all that is known of them
    """

    shortest: float
    longest: float
    number: int
    span: float
    freq: Any = None

    def __str__(self) -> str:
        if months := months_of(self.freq):
            return f"{months} month{'s' * (months > 1)}"
        mean = self.span / self.number
        units = ("d", DAY), ("h", 3600), ("min", 60), ("s", 0)
        unit, size = next((unit, size) for unit, size in units if mean > 0.9 * size)
        return f"{mean / (size or 1):.3g} {unit}"

    def fits(self, other: "TimeStep") -> bool:
        """Whether both may be of one frequency.

        Months, and days where clocks are changed, are of different lengths. Working days are told
        from days by their mean where there are ten of each; of fewer none is longer, or shorter,
        than all of ten or more. Numbers have no unit.
        """
        if self.of_numbers or other.of_numbers:
            return True
        if None not in (self.freq, other.freq) and months_of(self.freq) != months_of(other.freq):
            return False
        slack = 1.12 if min(self.longest, other.longest) > 0.9 * DAY else 1.01
        if self.shortest > slack * other.longest or other.shortest > slack * self.longest:
            return False
        fewer, more = sorted((self, other), key=lambda step: step.number)
        if more.number >= 10 and (
            fewer.longest > slack * more.longest or slack * fewer.shortest < more.shortest
        ):
            return False
        ratio = self.span / self.number / (other.span / other.number)
        return min(self.number, other.number) < 10 or 0.8 < ratio < 1.25

    @property
    def of_numbers(self) -> bool:
        """Whether it is the step of numbers, not of times."""
        return isinstance(self.freq, (int, float))


def months_of(freq: Any) -> int:
    """The months of an offset of pandas; 0 where it is none of whole months."""
    parts = getattr(freq, "kwds", {})
    if "months" in parts or "years" in parts:
        return int(freq.n * (parts.get("months", 0) + 12 * parts.get("years", 0)))
    found = re.match(r"\d*B?([MQY])[SE]\b", getattr(freq, "freqstr", ""))
    return int(freq.n * {"M": 1, "Q": 3, "Y": 12}[found[1]]) if found else 0


def frequency_of(times: Any) -> Any:
    """The offset of pandas from each date to the next, of two at least; None where there is none.

    It is also one of so many months, whatever the day: the last days of months where all are that.
    """
    import pandas as pd

    if times.freq is not None or len(times) < 2:
        return times.freq
    freq = type(times)(times, freq="infer").freq if len(times) > 2 else None
    month = times[1] - times[0] > pd.Timedelta(days=27)  # three years may be 365 days apart
    if months_of(freq) or not month or not isinstance(times, pd.DatetimeIndex):
        return freq
    months, day = np.diff(12 * times.year + times.month), times.day.max()
    clocks = times - times.normalize()
    same = np.ptp(months) == 0 < months[0] and (clocks == clocks[0]).all()
    if not same or not (times.day == np.minimum(day, times.days_in_month)).all():
        return freq
    last = bool(times.is_month_end.all())
    return pd.DateOffset(months=int(months[0]), day=31 if last else int(day))


def expect_order(name: str, index: Any, *, even: bool, axis: int = 0) -> TimeStep | None:
    """Raises ValueError where pandas' labels of steps are not in the order of time.

    even  True: steps are evenly spaced in time, too, so that none is missing or there twice
    axis  1: they are those of columns

    Returns the time from a step to the next, None where it is not known. Dates may be text, as a
    file has them (``DATES``). Numbers, such as years, are to be in order as well, with ``even``
    without gaps. Intervals are where they begin. Other labels, and what is no index of pandas, say
    nothing of time. Of a MultiIndex the last level counts; with ``even`` the others are to be of
    one series.
    """
    if getattr(index, "nlevels", 1) > 1:
        if even and index.droplevel(-1).nunique() > 1:
            raise ValueError(
                f"{name}: expected one series, got several with a MultiIndex; "
                f"[series for _, series in {name}.groupby(level=0)] separates them, "
                f"{name}.{WITHOUT_LABELS[axis]} takes all rows as one series"
            )
        index = index.get_level_values(-1)
    readings = readings_of(index)
    faults = [_fault(name, index, reading, even, axis) for reading in readings]
    if faults and all(faults):
        raise ValueError(f"{name}: {faults[0]}; {name}.{WITHOUT_LABELS[axis]} drops the labels")
    sound = (one.labels for one, fault in zip(readings, faults, strict=True) if not fault)
    return _step_of(next(sound, None)) if even else None


def expect_column_order(name: str, X: Any, *, even: bool, features: int = 1) -> TimeStep | None:
    """``expect_order`` for the columns of a table, of which each step has so many."""
    columns = getattr(X, "columns", None)
    if columns is None or getattr(columns, "nlevels", 2) > 1:  # no pandas, or not times alone
        return None
    return expect_order(name, columns[::features], even=even, axis=1)


def expect_step(name: str, step: TimeStep | None, expected: TimeStep | None, of: str) -> None:
    """Raises ValueError where series are of another frequency than others; None: not known."""
    if step is not None and expected is not None and not step.fits(expected):
        raise ValueError(
            f"{name}: expected steps of {expected}, as {of}, got {step}; .resample(...).mean() "
            "makes longer steps, .asfreq(...).interpolate() shorter ones, .to_numpy() drops times"
        )


class Reading(NamedTuple):
    """Labels as times or numbers; ``made`` is how, of what stands for {}."""

    labels: Any
    made: str = "{}"


def readings_of(labels: Any) -> list[Reading]:
    """Labels of pandas as times or numbers, of which any may be meant; none where they are neither.

    Text is taken for dates where all of it is in one form, else for numbers.
    """
    kind = getattr(labels, "inferred_type", "")
    if kind == "categorical":
        plain = "{0}.astype({0}.categories.dtype)"
        values = labels.astype(labels.categories.dtype)
        return [Reading(one, made.replace("{}", plain)) for one, made in readings_of(values)]
    if kind == "interval":
        return [Reading(one, made.format("{}.left")) for one, made in readings_of(labels.left)]
    if kind in ("date", "datetime"):  # objects of Python
        return [Reading(labels, "pd.to_datetime({})")]
    if kind in TIMES + NUMBERS:
        return [Reading(labels)]
    if kind != "string" or not len(labels) or not str(labels[0])[:1].isdigit():
        return []
    import pandas as pd

    found, first = [], re.sub(r"\d+", "0", str(labels[0]))
    for form in DATES:
        if form == "ISO8601" or re.sub("%.", "0", form) == first:
            times = pd.to_datetime(labels[:1], format=form, errors="coerce", utc=True)
            if not times.hasnans:
                times = pd.to_datetime(labels, format=form, errors="coerce", utc=True)
            if not times.hasnans:
                found.append(Reading(times, f"pd.to_datetime({{}}, format={form!r})"))
    numbers = pd.to_numeric(labels, errors="coerce")
    return found or ([] if numbers.hasnans else [Reading(numbers, "pd.to_numeric({})")])


def are_times(labels: Any) -> bool:
    """Whether labels of pandas are times, also as text or in categories."""
    return any(reading.labels.inferred_type in TIMES for reading in readings_of(labels))


def _fault(name: str, labels: Any, reading: Reading, even: bool, axis: int) -> str:
    """How labels, as they are read, are out of order, and a remedy; "" where they are not."""
    index, made = reading
    if index.hasnans:
        at = int(np.flatnonzero(index.isna())[0])
        rest = f".loc[:, {name}.columns.notna()]" if axis else f"[{name}.index.notna()]"
        return f"expected a time at each step, got {labels[at]} at step {at}; {name}{rest} drops it"
    if not index.is_monotonic_increasing:
        at = next((k for k in range(1, len(index)) if not index[k - 1] <= index[k]), 0)
        options = ["axis=1"] if axis else []
        options += [f"key=lambda labels: {made.format('labels')}"] if made != "{}" else []
        return (
            f"expected steps in the order of time, got {labels[at]} after {labels[at - 1]}; "
            f"{name}.sort_index({', '.join(options)}) puts them in order"
        )
    if not even:
        return ""
    if not index.is_unique:
        twice = labels[index.duplicated()][0]
        return f"expected every time once, got {twice} twice; drop one of them or take their mean"
    times = index.inferred_type in TIMES
    if (gap := _gap(index) if times else _gap_of_numbers(index)) is None:
        return ""
    kinds = "times" if times else "numbers"
    said = f"expected evenly spaced {kinds}, got {labels[gap]} after {labels[gap - 1]}"
    if index.inferred_type in NUMBERS and index.inferred_type != "integer":
        return said
    dated = f"{name}.T" if axis else name
    if made != "{}":
        dated = f"{dated}.set_axis({made.format(f'{dated}.index')})"
    filled = f"{dated}.{_even_again(index)}.interpolate(){'.T' if axis else ''}"
    return f"{said}; {filled} fills in what is missing"


def _even_again(index: Any) -> str:
    """The method of pandas, with its arguments, that gives an index evenly spaced labels."""
    times = _of_pandas(index)
    first, last, kind = times[0], times[-1], times.inferred_type
    if kind == "period":
        return f"reindex(pd.period_range({str(first)!r}, {str(last)!r}, freq={times.freqstr!r}))"
    if kind == "integer":
        return f"reindex(range({first}, {last + 1}, {np.gcd.reduce(np.diff(times))}))"
    import pandas as pd

    step = pd.Timedelta(np.median(np.diff(times.asi8)), unit=times.unit)
    days = step.total_seconds() / DAY
    calendar = ((360, "YS"), (85, "QS"), (27, "MS"))
    rule = next((rule for least, rule in calendar if days > least), "")
    if kind == "timedelta64" or not rule:
        rule = f"{days:.0f}D" if days > 0.9 else pd.tseries.frequencies.to_offset(step).freqstr
    if rule == "1D":
        rule = "B" if kind == "datetime64" and times.day_of_week.max() < 5 else "D"
    return f"resample({rule!r}).mean()"


def _step_of(index: Any) -> TimeStep | None:
    """The step of an index of times, or of numbers."""
    if index is None or index.inferred_type not in TIMES + NUMBERS or len(index) < 2:
        return None
    if index.inferred_type in NUMBERS:
        step = (index[-1] - index[0]) / (len(index) - 1)
        whole = index.inferred_type == "integer" and step == int(step)
        return TimeStep(0, 0, len(index) - 1, 0, int(step) if whole else float(step))
    times = _of_pandas(index)
    if hasattr(times, "to_timestamp"):
        times = times.to_timestamp()
    steps = (times[1:] - times[:-1]).total_seconds().to_numpy()
    freq = times.freq if len(times) < 3 else frequency_of(times)
    return TimeStep(float(steps.min()), float(steps.max()), len(steps), float(steps.sum()), freq)


def _of_pandas(times: Any) -> Any:
    """Times that are objects of Python as pandas has them, everything else as it is."""
    kind = times.inferred_type
    if kind not in ("date", "datetime", "timedelta"):
        return times
    import pandas as pd

    return pd.Index(times.to_numpy().astype("m8[us]" if kind == "timedelta" else "M8[us]"))


def _gap(times: Any) -> int | None:
    """Where the longest step of uneven times ends; None where they are even, as months are.

    Steps that differ by less than a hundredth are even: clocks do, and times that were rounded.
    """
    times = _of_pandas(times)
    steps = np.diff(times.asi8)
    if times.inferred_type == "period":
        even = bool((steps == 1).all())
    else:
        even = (
            len(times) < 3 or np.ptp(steps) * 100 < steps.min() or frequency_of(times) is not None
        )
    return None if even else int(steps.argmax()) + 1


def _gap_of_numbers(numbers: Any) -> int | None:
    """Where the longest step of numbers ends, if that is a gap."""
    steps = np.diff(numbers)
    return int(steps.argmax()) + 1 if len(steps) and steps.max() > GAP * steps.min() else None


def expect_same_index(name: str, more: Any, of: str, frame: Any) -> None:
    """Raises ValueError where two objects of pandas have other labels, as far as ``frame`` goes."""
    index, expected = index_of(more), index_of(frame)
    if index is None or expected is None:
        return
    head = index[: len(expected)]
    if not head.equals(expected) and list(head) != list(expected):  # one time in two time zones
        pairs = zip(index, expected, strict=False)
        got, want = next((pair for pair in pairs if pair[0] != pair[1]), ("fewer", expected[-1]))
        raise ValueError(
            f"{name}: expected the index of {of}, got {got} where {of} has {want}; to_numpy() "
            "drops the index"
        )


def expect_same_columns(name: str, more: Any, of: str, table: Any) -> None:
    """Raises ValueError where two tables have other columns, and both are times."""
    columns, expected = (getattr(one, "columns", None) for one in (more, table))
    if columns is not None and expected is not None and are_times(columns) and are_times(expected):
        expect_same_index(name, columns.to_series(), of, expected.to_series())
