"""A stand-in for CuPy and a GPU, as strict as they are, and an engine on it.

An array of the fake is not NumPy's: it mixes with numbers only, turns into a NumPy array by
``asnumpy`` only, knows nothing but what is written here, and what is not initialised is NaN. Every
wait for the device is counted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

import cuda_emulator
from numba_rnn import backend, use_backend
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.cuda.kernel import DeviceLimits, Kernel
from numba_rnn.kernels.device_engine import DeviceEngine
from numba_rnn.kernels.engine import Gradients, written
from numba_rnn.kernels.reference import NumpyEngine
from numba_rnn.kernels.step_options import NO_OPTIONS

NUMBERS = (bool, int, float, np.generic)
UFUNCS = {
    "abs", "absolute", "add", "bitwise_and", "bitwise_or", "divide", "equal", "exp", "greater",
    "greater_equal", "invert", "isfinite", "left_shift", "less", "less_equal", "log", "log1p",
    "matmul", "maximum", "multiply", "negative", "not_equal", "right_shift", "sqrt",
    "square", "subtract", "true_divide",
}  # fmt: skip


class Waits:
    """How often the host has waited for the device."""

    count = 0


def wrap(array: Any) -> "DeviceArray":
    made = object.__new__(DeviceArray)
    made._numbers = np.asarray(array)
    return made


def numbers(value: Any) -> Any:
    """The value with NumPy's arrays for the fake's own. Raises TypeError for other objects."""
    if isinstance(value, DeviceArray):
        return value._numbers
    if isinstance(value, (tuple, list)):
        return type(value)(map(numbers, value))
    if value is None or value is Ellipsis or isinstance(value, (*NUMBERS, slice, str, type)):
        return value
    if isinstance(value, np.dtype):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def computed(function: Any, *args: Any, **options: Any) -> "DeviceArray":
    with np.errstate(all="ignore"):  # a GPU gives no warnings
        return wrap(function(*numbers(args), **{k: numbers(v) for k, v in options.items()}))


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the device."""

    _numbers: np.ndarray

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._numbers.__array_interface__

    __hash__ = None

    def __init__(self) -> None:
        raise TypeError("arrays are made by functions")

    # ---- what NumPy would do with it

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use asnumpy")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or ufunc.__name__ not in UFUNCS or "where" in options:
            raise TypeError(f"{ufunc.__name__}.{method} of {sorted(options)} is not supported")
        (out,) = options.pop("out", (None,))
        if out is None:
            return computed(ufunc, *inputs, **options)
        with np.errstate(all="ignore"):
            ufunc(*numbers(inputs), out=numbers(out), **{k: numbers(v) for k, v in options.items()})
        return out

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return getattr(xp, function.__name__)(*args, **options)

    # ---- waiting for the device

    def _read(self) -> np.ndarray:
        Waits.count += 1
        return self._numbers

    def __float__(self) -> float:
        return float(self._read())

    def __int__(self) -> int:
        return int(self._read())

    def __bool__(self) -> bool:
        return bool(self._read())

    def item(self) -> Any:
        return self._read().item()

    def __repr__(self) -> str:
        return repr(self._read())

    def __str__(self) -> str:
        return str(self._read())

    # ---- what it is

    dtype = property(lambda self: self._numbers.dtype)
    shape = property(lambda self: self._numbers.shape)
    ndim = property(lambda self: self._numbers.ndim)
    size = property(lambda self: self._numbers.size)
    strides = property(lambda self: self._numbers.strides)
    itemsize = property(lambda self: self._numbers.itemsize)

    @property
    def flags(self) -> Any:
        return SimpleNamespace(c_contiguous=self._numbers.flags.c_contiguous)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator["DeviceArray"]:
        return (self[k] for k in range(len(self)))

    # ---- its parts and forms

    def _count_masks(self, index: Any) -> None:
        """CuPy waits for how many numbers a mask takes, to read and to write."""
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, DeviceArray) and part.dtype == bool for part in parts):
            Waits.count += 1

    def __getitem__(self, index: Any) -> "DeviceArray":
        self._count_masks(index)
        return wrap(self._numbers[numbers(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._count_masks(index)
        self._numbers[numbers(index)] = numbers(value)

    @property
    def T(self) -> "DeviceArray":  # noqa: N802 (NumPy's name)
        return wrap(self._numbers.T)

    def transpose(self, *axes: int) -> "DeviceArray":
        return wrap(self._numbers.transpose(*axes))

    def reshape(self, *shape: Any) -> "DeviceArray":
        return wrap(self._numbers.reshape(*shape))

    def view(self, dtype: Any) -> "DeviceArray":
        return wrap(self._numbers.view(dtype))

    def astype(self, dtype: Any) -> "DeviceArray":
        with np.errstate(all="ignore"):
            return wrap(self._numbers.astype(dtype))

    def copy(self) -> "DeviceArray":
        return wrap(self._numbers.copy())

    # ---- all numbers together

    def sum(self, **options: Any) -> "DeviceArray":
        return computed(np.sum, self, **options)

    def mean(self, **options: Any) -> "DeviceArray":
        return computed(np.mean, self, **options)

    def max(self, **options: Any) -> "DeviceArray":
        return computed(np.max, self, **options)

    def min(self, **options: Any) -> "DeviceArray":
        return computed(np.min, self, **options)

    def all(self) -> "DeviceArray":
        return computed(np.all, self)

    def any(self) -> "DeviceArray":
        return computed(np.any, self)


def on_device(value: Any, *args: Any, **options: Any) -> DeviceArray:
    """asarray, array: the two that take NumPy arrays."""
    if isinstance(value, DeviceArray):
        value = value._numbers
    return wrap(np.array(value, *args, **options))


def asnumpy(array: DeviceArray) -> np.ndarray:
    return array._read().copy()


def empty(shape: Any, dtype: Any) -> DeviceArray:
    dtype = np.dtype(dtype)
    return wrap(np.full(shape, np.nan if dtype.kind == "f" else np.iinfo(dtype).min, dtype))


def device_only(function: Any) -> Any:
    return lambda *args, **options: computed(function, *args, **options)


class _OnHost:
    """An array that is on a device, which is host memory here, shown as one of the host."""

    def __init__(self, foreign: Any) -> None:
        assert foreign.__dlpack_device__()[0] == 2, "CPU arrays cannot be directly imported"
        self.__dlpack__ = foreign.__dlpack__

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


xp = SimpleNamespace(
    ndarray=DeviceArray,
    asarray=lambda value: value if isinstance(value, DeviceArray) else on_device(value),
    array=on_device,
    asnumpy=asnumpy,
    from_dlpack=lambda value: wrap(np.from_dlpack(_OnHost(value))),
    empty=empty,
    zeros=lambda shape, dtype: wrap(np.zeros(shape, dtype)),
    copyto=lambda out, value, where: np.copyto(out._numbers, numbers(value), where=numbers(where)),
    zeros_like=device_only(np.zeros_like),
    arange=lambda count: wrap(np.arange(count)),
    argsort=lambda array: computed(np.argsort, array, kind="stable"),
    ascontiguousarray=device_only(np.ascontiguousarray),
    concatenate=device_only(np.concatenate),
    repeat=device_only(np.repeat),
    stack=device_only(np.stack),
    where=device_only(np.where),
    argwhere=device_only(np.argwhere),
    may_share_memory=lambda a, b: np.may_share_memory(numbers(a), numbers(b)),
    ndim=lambda array: array.ndim,
    shape=lambda array: array.shape,
    all=device_only(np.all),
    **{
        name: device_only(getattr(np, name))
        for name in ("abs", "exp", "isfinite", "log", "log1p", "maximum", "sqrt", "square")
    },
)
# these are given an array for the result
xp.exp = lambda array, out=None: np.exp(array, out=out)
xp.matmul = lambda a, b, out=None: np.matmul(a, b, out=out)


class FakeEngine(DeviceEngine):
    """The reference engine's arithmetic on the fake's arrays."""

    name = "cuda"

    def __init__(self) -> None:
        super().__init__(xp)
        self._inner = NumpyEngine()

    def forward(self, cell: Any, xs: Any, state: Any, params: Any, steps: Any = NO_OPTIONS) -> Any:
        if steps is not NO_OPTIONS:
            there = {name: numbers(getattr(steps, name)) for name in ("initial", "recurrent_mask")}
            steps = replace(steps, **there)
        given = numbers((xs, tuple(state), tuple(params)))
        hs, state, saved = self._inner.forward(cell, *given, steps)
        return wrap(hs), tuple(map(wrap, state)), saved

    def backward(
        self, cell: Any, dhs: Any, dstate: Any, saved: Any, inputs: bool = True, out: Any = None
    ) -> Any:
        given = numbers((dhs, tuple(dstate)))
        found = self._inner.backward(cell, *given, saved, inputs)
        several = tuple(map(wrap, found.state)), tuple(map(wrap, found.params))
        xs, *rest = (
            None if a is None else wrap(a) for a in (found.xs, found.initial, found.states)
        )
        state, params = several
        return Gradients(xs, state, written(params, out), *rest)

    def states_before(self, cell: Any, saved: Any) -> Any:
        return tuple(map(wrap, self._inner.states_before(cell, saved)))

    def step(self, cell: Any, x: Any, state: Any, params: Any, zoneout: Any = ()) -> Any:
        given = numbers((x, tuple(state), tuple(params)))
        return tuple(map(wrap, self._inner.step(cell, *given, zoneout)))

    def add_rows(self, out: Any, rows: Any, values: Any) -> None:
        self._inner.add_rows(*numbers((out, rows, values)))


class EmulatedGpu(cuda_emulator.EmulatedGpu):
    """The emulator, on the fake's arrays."""

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        super().launch(kernel, grid, numbers(arguments))


class EmulatedEngine(CudaEngine):
    """The CUDA engine, its kernels run by the emulator."""

    def __init__(self, multiprocessors: int = 0, precision: str = "float32") -> None:
        device = DeviceLimits(multiprocessors, shared=60_000, threads=8)
        super().__init__(EmulatedGpu(device, xp=xp), precision)


@contextmanager
def fake_device(kind: type[DeviceEngine] = FakeEngine) -> Iterator[DeviceEngine]:
    """There is a GPU while the block runs; the engine in force is what it was."""
    engine = kind()
    with mock.patch.dict(backend._LOADERS, cuda=lambda: engine):
        yield engine


@contextmanager
def no_device() -> Iterator[None]:
    """There is no GPU."""

    def refuse() -> Any:
        raise backend.BackendError("no GPU answers")

    with mock.patch.dict(backend._LOADERS, cuda=refuse):
        yield


@contextmanager
def use_fake_device(kind: type[DeviceEngine] = FakeEngine) -> Iterator[DeviceEngine]:
    """There is a GPU, and the engine in force is on it."""
    with fake_device(kind) as engine, use_backend("cuda", strict=True):
        yield engine


@contextmanager
def no_waiting() -> Iterator[None]:
    """Nothing in the block may wait for the device."""
    before = Waits.count
    yield
    assert Waits.count == before, f"waited {Waits.count - before} times"
