"""Errors that say which argument, what was expected and what came."""

import math
from typing import Any

import numpy as np

Array = Any  # a NumPy array today; the engine's array type

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def spell(shape: tuple[int | str, ...]) -> str:
    """(N, T, 4) as one would write it."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def any_shape(value: Any) -> tuple[str, ...]:
    """A shape for ``expect_array`` that fits any number of axes."""
    return tuple(f"n{axis}" for axis in range(np.ndim(value)))


def expect_array(
    name: str, value: Any, shape: tuple[int | str, ...], dtype: np.dtype[Any] | None = None
) -> None:
    """Refuse what is not an array of that shape and dtype.

    In ``shape`` a number is a size that must agree, a letter a size that may be any but 0.
    Without ``dtype`` float32 and float64 are accepted. Raises TypeError or ValueError.
    """
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: expected an array of shape {spell(shape)}, got {type(value).__name__}"
        )
    if value.ndim != len(shape) or any(
        isinstance(want, int) and want != got for want, got in zip(shape, value.shape, strict=True)
    ):
        raise ValueError(f"{name}: expected shape {spell(shape)}, got {spell(value.shape)}")
    if 0 in value.shape:
        raise ValueError(
            f"{name}: expected shape {spell(shape)} with no size 0, got {spell(value.shape)}"
        )
    if dtype is None:
        if value.dtype not in FLOATS:
            raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}")
    elif value.dtype != dtype:
        raise TypeError(
            f"{name}: expected {dtype}, as the parameters are, got {value.dtype}; "
            f"{name}.astype(np.{dtype}) converts it"
        )


def expect_finite(name: str, value: Array) -> None:
    """Refuse NaN and infinity, naming the first place."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise ValueError(f"{name}: expected finite numbers, got {value[where]} at {spell(where)}")


def expect_ids(
    name: str, ids: Any, shape: tuple[int | str, ...], limit: int, ignore: int | None = None
) -> None:
    """Refuse what is not an integer array with values in 0 .. limit - 1 (or ``ignore``)."""
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
        got = str(ids.dtype) if isinstance(ids, np.ndarray) else type(ids).__name__
        raise TypeError(f"{name}: expected an integer array of shape {spell(shape)}, got {got}")
    expect_array(name, ids, shape, ids.dtype)
    wrong = (ids < 0) | (ids >= limit)
    if ignore is not None:
        wrong &= ids != ignore
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        also = "" if ignore is None else f" or {ignore}"
        raise ValueError(
            f"{name}: expected numbers from 0 to {limit - 1}{also}, got {ids[where]} "
            f"at {spell(where)}"
        )


def expect_int(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return int(value)


def expect_float(
    name: str, value: Any, low: float, high: float = math.inf, *, low_open: bool = False
) -> float:
    """A number in [low, high), or (low, high) where ``low_open``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    inside = low < value < high if low_open else low <= value < high
    if not (inside and math.isfinite(value)):
        lower = "" if low == -math.inf else f" {'above' if low_open else 'from'} {low:g}"
        upper = "" if high == math.inf else f" and below {high:g}"
        raise ValueError(f"{name}: expected a finite number{lower}{upper}, got {value}")
    return float(value)


def expect_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of the names."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return str(value)


def expect_float_dtype(name: str, value: Any) -> np.dtype[Any]:
    """float32 or float64, given as NumPy takes dtypes."""
    try:
        dtype = None if value is None else np.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32 or float64, got {value!r}")
    return dtype
