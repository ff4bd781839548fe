"""Names, times and the order of steps, as DataFrames and Series have them.

DataFrames are known by their attributes; pandas is imported only where one needs it.
"""

from typing import Any

import numpy as np

# what an index of pandas says of itself
TIMES = "datetime64", "datetime", "date", "period", "timedelta64", "timedelta"
NUMBERS = "integer", "floating", "mixed-integer-float"
# by axis: what puts labels in order, what takes them away
REMEDIES = ("sort_index()", "reset_index(drop=True)"), ("sort_index(axis=1)", "to_numpy()")


def columns_of(name: str, X: Any) -> list[str] | None:
    """The names of the columns of a list of DataFrames; None where they have none.

    Raises ValueError where the DataFrames do not agree.
    """
    found = (
        [list(x.columns) for x in X if hasattr(x, "columns")]
        if isinstance(X, (list, tuple))
        else []
    )
    if not found or not all(isinstance(column, str) for column in found[0]):
        return None
    for k, columns in enumerate(found):
        expect_columns(f"{name}[{k}]", columns, found[0])
    return found[0]


def expect_columns(name: str, columns: Any, expected: Any) -> None:
    """Raises ValueError where columns are not those expected, in their order; None: not known."""
    if columns is not None and expected is not None and list(columns) != list(expected):
        raise ValueError(
            f"{name}: expected the columns {', '.join(expected)}, in this order, got "
            f"{', '.join(map(str, columns))}"
        )


def index_of(frame: Any) -> Any:
    """The index of a DataFrame or a Series; None of everything else."""
    index = getattr(frame, "index", None)
    return index if hasattr(index, "inferred_type") else None


def expect_order(name: str, index: Any, *, even: bool, axis: int = 0) -> None:
    """Raises ValueError where pandas' labels of steps are not in the order of time.

    even  True: steps are evenly spaced in time, too, so that none is missing or there twice
    axis  1: they are those of columns

    Dates may be text in the form of ISO 8601, as a file has them. Numbers, such as years, are to be
    in order as well; they may have gaps. Other labels, and what is no index of pandas, say nothing
    of time. Of a MultiIndex the last level counts; with ``even`` the others are to be of one
    series.
    """
    sort, drop = REMEDIES[axis]
    as_it_is = f"{name}.{drop} takes it as it stands"
    if getattr(index, "nlevels", 1) > 1:
        if even and index.droplevel(-1).nunique() > 1:
            raise ValueError(
                f"{name}: expected one series, got the rows of several by a MultiIndex; "
                f"[series for _, series in {name}.groupby(level=0)] are those, {as_it_is}"
            )
        index = index.get_level_values(-1)
    labels, dated = index, name
    if getattr(index, "inferred_type", "") == "string":
        index, dated = _dates(index), f"{name}.set_axis(pd.to_datetime({name}.index))"
    kind = getattr(index, "inferred_type", "")
    if kind not in TIMES + NUMBERS:
        return
    if not index.is_monotonic_increasing:
        at = next((k for k in range(1, len(index)) if not index[k - 1] <= index[k]), 0)
        raise ValueError(
            f"{name}: expected steps in the order of time, got {labels[at]} after "
            f"{labels[at - 1]}; {name}.{sort} puts them in order, {as_it_is}"
        )
    if not even:
        return
    if not index.is_unique:
        twice = labels[index.duplicated()][0]
        raise ValueError(
            f"{name}: expected every time once, got {twice} twice; leave one of them out or take "
            f"their mean, {as_it_is}"
        )
    if kind in TIMES and (gap := _gap(index, kind)) is not None:
        raise ValueError(
            f"{name}: expected evenly spaced times, got {labels[gap]} after {labels[gap - 1]}; "
            f"{dated}.asfreq(...).interpolate() fills in what is missing, {as_it_is}"
        )


def _dates(labels: Any) -> Any:
    """Text as times where all of it is dates, else as it is."""
    import pandas as pd

    times = pd.to_datetime(labels, format="ISO8601", errors="coerce", utc=True)
    return labels if times.hasnans else times


def _gap(times: Any, kind: str) -> int | None:
    """Where the longest step of uneven times ends; None where they are even, as months are.

    Steps that differ by less than a hundredth are even: clocks do, and times that were rounded.
    """
    if kind in ("date", "datetime", "timedelta"):  # objects of Python
        import pandas as pd

        times = pd.Index(times.to_numpy().astype("m8[us]" if kind == "timedelta" else "M8[us]"))
    steps = np.diff(times.asi8)
    if kind == "period":
        even = bool((steps == 1).all())
    else:
        even = (
            len(times) < 3
            or np.ptp(steps) * 100 < steps.min()
            or type(times)(times, freq="infer").freq is not None
        )
    return None if even else int(steps.argmax()) + 1


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
            f"{name}: expected the index of {of}, where {want} stands, got {got}; arrays, as of "
            "to_numpy(), have no index"
        )
