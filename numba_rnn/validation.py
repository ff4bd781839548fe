"""Errors that say which argument, what was expected and what came."""

import math
from typing import Any, Protocol

import numpy as np

from .kernels import deprecated
from .kernels.quantisation import QuantisedWeight
from .typing import AnyArray, Array, BoolArray, IntArray


class ArrayBackend(Protocol):
    """The part of an engine that checks use: which arrays are its own, and the way there."""

    xp: Any

    def to_host(self, array: Any) -> Any: ...
    def is_native(self, array: Any) -> bool: ...
    def to_device(self, array: Any) -> Any: ...


_DLPACK_CPU = 1  # its number for host memory
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_PLAIN = (np.ndarray, np.memmap)  # a subclass means more by its numbers than is computed here


def format_shape(shape: tuple[int | str, ...]) -> str:
    """(N, T, 4) as one would write it."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def any_shape(value: Any) -> tuple[str, ...]:
    """A shape for ``expect_array`` that fits any number of axes, the first of a batch."""
    return tuple(f"n{axis}" if axis else "N" for axis in range(np.ndim(value)))


def validate_array(
    name: str,
    value: Any,
    shape: tuple[int | str, ...],
    dtype: np.dtype[Any] | None,
    engine: ArrayBackend,
) -> Array:
    """An array as ``expect_array`` wants it, where the engine has its arrays.

    For an engine on a device a NumPy array is copied there, once; what has DLPack comes in
    without a copy. For an engine on the CPU the array comes back as it is, or as a copy where its
    numbers are not aligned, and one on a device is refused: what goes there is for the caller to
    say.
    """
    if not isinstance(value, np.ndarray):
        value = from_dlpack(value, engine)
    expect_array(name, value, shape, dtype, engine)
    return engine.to_device(_aligned(value))


def validate_weight(
    name: str,
    value: Any,
    shape: tuple[int | str, ...],
    dtype: np.dtype[Any] | None,
    engine: ArrayBackend,
    axis: int = 1,
) -> Any:
    """An array as ``validate_array`` has it, or a QuantisedWeight with scales of that axis."""
    if not isinstance(value, QuantisedWeight):
        return validate_array(name, value, shape, dtype, engine)
    expect_array(name, value.values, shape, value.values.dtype)
    if dtype not in (None, value.dtype):
        raise TypeError(f"{name}: expected {dtype}, as the other parameters are, got int8")
    if value.axis != axis:
        kinds = "row", "column"
        raise ValueError(
            f"{name}: expected a scale for each {kinds[axis]}, got one for each {kinds[1 - axis]}"
        )
    return engine.to_device(value)


def _aligned(array: AnyArray) -> AnyArray:
    """A NumPy array as compiled code reads it: numbers in the machine's byte order, each at a
    multiple of its size. It is copied where it is another, as a column of packed records is."""
    if not isinstance(array, np.ndarray):
        return array
    if not (array.flags.aligned and array.dtype.isnative):
        return array.astype(array.dtype.newbyteorder("="))
    return array if type(array) is np.ndarray else np.asarray(array)  # a memmap's own memory


def expect_plain_array(name: str, value: Any) -> None:
    """Refuse arrays that are more than arrays: masked ones, matrices, quantities.

    Those within lists, tuples and arrays of objects are looked at, too. Raises TypeError; files in
    memory (np.memmap) are plain.
    """
    if isinstance(value, np.ndarray):
        if type(value) not in _PLAIN:
            raise TypeError(f"{name}: expected a plain array, got {_more_than_plain(name, value)}")
        if value.dtype.kind != "O":
            return
    elif not isinstance(value, (list, tuple)):
        return
    for one in value.flat if isinstance(value, np.ndarray) else value:
        if isinstance(one, (np.ndarray, list, tuple)):
            expect_plain_array(name, one)


def _more_than_plain(name: str, array: AnyArray) -> str:
    """The kind of such an array, and the remedy."""
    remedy = f"np.asarray({name}) is a plain array"
    if isinstance(array, np.ma.MaskedArray):
        remedy = f"{name}.data is plain; for missing steps pass mask= to layers and losses"
    return f"{type(array).__name__}; {remedy}"


def as_array(name: str, value: Any) -> AnyArray:
    """A NumPy array of anything like an array; refuses what ``expect_plain_array`` refuses."""
    expect_plain_array(name, value)
    return np.asarray(value)


def from_dlpack(value: Any, engine: ArrayBackend) -> Any:
    """For an engine on a device, an object with DLPack as an array of it, without a copy.

    An object in host memory becomes a NumPy array; everything else comes back as it is.
    """
    if engine.xp is np or isinstance(value, np.ndarray) or engine.is_native(value):
        return value
    if not hasattr(value, "__dlpack__"):
        return value
    on_host = value.__dlpack_device__()[0] == _DLPACK_CPU
    return (np if on_host else engine.xp).from_dlpack(value)


def _expect_kind(
    name: str, value: Any, shape: tuple[int | str, ...], engine: ArrayBackend | None, what: str
) -> None:
    """Refuse anything but a plain NumPy array or an array of the engine's device."""
    if isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: expected {what} of shape {format_shape(shape)}, got "
            f"{_more_than_plain(name, value)}"
        )
    if engine is not None and engine.is_native(value):
        return
    if hasattr(value, "__cuda_array_interface__"):
        raise TypeError(
            f"{name}: expected {what} of shape {format_shape(shape)} in host memory, got one on a "
            "device; "
            f'layer.to("cuda") moves a layer there, cupy.asnumpy({name}) copies the array here'
        )
    of_torch = hasattr(value, "detach") and hasattr(value, "numpy")
    raise TypeError(
        f"{name}: expected {what} of shape {format_shape(shape)}, got {type(value).__name__}"
        + (f"; {name}.detach().numpy() converts it" if of_torch else "")
    )


def expect_array(
    name: str,
    value: Any,
    shape: tuple[int | str, ...],
    dtype: np.dtype[Any] | None = None,
    engine: ArrayBackend | None = None,
) -> None:
    """Refuse what is not an array of that shape and dtype.

    In ``shape`` a number is a size that must agree, a letter a size that may be any but 0, and
    "N", the rows of a batch, a size that may be 0 too. Without ``dtype`` float32 and float64 are
    accepted. ``engine`` is an engine whose arrays are accepted besides NumPy's. Raises TypeError or
    ValueError.
    """
    if type(value) not in _PLAIN:
        _expect_kind(name, value, shape, engine, "an array")
    if value.shape != shape and (
        value.ndim != len(shape) or any(map(_differs, shape, value.shape))
    ):
        raise ValueError(
            f"{name}: expected shape {format_shape(shape)}, got {format_shape(value.shape)}"
        )
    if 0 in value.shape and any(
        n == 0 and w not in (0, "N") for w, n in zip(shape, value.shape, strict=True)
    ):
        raise ValueError(
            f"{name}: expected shape {format_shape(shape)} with no size 0"
            f"{' but N' if 'N' in shape else ''}, got {format_shape(value.shape)}"
        )
    if dtype is None:
        if value.dtype not in FLOATS:
            raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}")
    elif value.dtype != dtype:
        raise TypeError(
            f"{name}: expected {dtype}, as the parameters are, got {value.dtype}; "
            f"{name}.astype(np.{dtype}) converts it"
        )


def _differs(wanted: int | str, size: int) -> bool:
    return wanted != size and isinstance(wanted, int)


def validate_flags(
    name: str, flags: Any, shape: tuple[int, int], engine: ArrayBackend
) -> BoolArray:
    """Booleans (N, T), as a NumPy array on every engine; one on a device is waited for."""
    if engine.is_native(flags) and not isinstance(flags, np.ndarray):
        flags = engine.to_host(flags)
    flags = as_array(name, flags)
    if flags.dtype != bool:
        raise TypeError(
            f"{name}: expected booleans of shape {format_shape(shape)}, got {flags.dtype}"
        )
    if flags.shape != shape:
        raise ValueError(
            f"{name}: expected shape {format_shape(shape)}, a flag for each row and step of xs, "
            f"got {format_shape(flags.shape)}"
        )
    return flags.copy()  # backward wants it as it is now


def validate_mask(
    lengths: Any, mask: Any, shape: tuple[int, int], engine: ArrayBackend
) -> BoolArray | None:
    """The steps that are there, (N, T), of what says so; None where all are."""
    if mask is not None:
        if lengths is not None:
            raise TypeError("mask: expected lengths or mask, got both")
        return validate_flags("mask", mask, shape, engine)
    if lengths is None:
        return None
    if engine.is_native(lengths) and not isinstance(lengths, np.ndarray):
        lengths = engine.to_host(lengths)
    N, T = shape
    lengths = as_array("lengths", lengths)
    if not lengths.size:
        lengths = lengths.astype(np.intp)  # an empty list is one of floats
    if lengths.shape != (N,):
        raise ValueError(f"lengths: expected shape ({N},), got {format_shape(lengths.shape)}")
    expect_ids("lengths", lengths, ("N",), T + 1)
    return np.arange(T) < lengths[:, None]


def expect_finite(name: str, value: AnyArray) -> None:
    """Refuse NaN and infinity, naming the first place."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise ValueError(
            f"{name}: expected finite numbers, got {value[where]} at {format_shape(where)}"
        )


def expect_writable(name: str, value: AnyArray) -> None:
    """Refuse an array that is read-only; those of a device never are."""
    if not getattr(value.flags, "writeable", True):
        raise ValueError(f"{name}: expected an array that may be written to, got a read-only one")


def validate_ids(
    name: str,
    ids: Any,
    shape: tuple[int | str, ...],
    limit: int,
    engine: ArrayBackend,
    ignore: int | None = None,
) -> IntArray:
    """Integers as ``expect_ids`` wants them, where the engine has its arrays; see
    ``validate_array``.

    NumPy arrays are checked before they are copied. To check what is on a device already is to
    wait for it.
    """
    ids = from_dlpack(ids, engine)
    expect_ids(name, ids, shape, limit, ignore, engine)
    return engine.to_device(_aligned(ids))


def expect_ids(
    name: str,
    ids: Any,
    shape: tuple[int | str, ...],
    limit: int,
    ignore: int | None = None,
    engine: ArrayBackend | None = None,
) -> None:
    """Refuse what is not an integer array with values in 0 .. limit - 1 (or ``ignore``)."""
    if type(ids) not in _PLAIN:
        _expect_kind(name, ids, shape, engine, "an integer array")
    if ids.dtype.kind not in "iu":
        raise TypeError(
            f"{name}: expected an integer array of shape {format_shape(shape)}, got {ids.dtype}"
        )
    expect_array(name, ids, shape, ids.dtype, engine)
    wrong = (ids < 0) | (ids >= limit)
    if ignore is not None:
        wrong &= ids != ignore
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        also = "" if ignore is None else f" or {ignore}"
        raise ValueError(
            f"{name}: expected numbers from 0 to {limit - 1}{also}, got {ids[where]} "
            f"at {format_shape(where)}"
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
        shown = repr(value)  # of a list of arrays, such as a model's parameters, pages
        raise TypeError(
            f"{name}: expected a number, got {shown if len(shown) < 60 else type(value).__name__}"
        )
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond all floats
        number, value = math.inf, "one that is too large for a float"
    inside = low < number < high if low_open else low <= number < high
    if not (inside and math.isfinite(number)):
        lower = "" if low == -math.inf else f" {'above' if low_open else 'from'} {low:g}"
        upper = "" if high == math.inf else f" and below {high:g}"
        raise ValueError(f"{name}: expected a finite number{lower}{upper}, got {value}")
    return number


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


__getattr__ = deprecated.names_of(__name__)
