"""Functions that cells call: on NumPy arrays, on SIMD vectors, in a cell on both engines."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import cfunc, types
from numba.extending import register_jitable
from numba.np.numpy_support import from_dtype

from helpers import CALLING_ALL, DTYPES, Array, outcome, random_problem, relative_error
from numba_rnn.kernels import functions
from numba_rnn.kernels.cells import Cell
from numba_rnn.kernels.cpu import kernel_abi, vector_functions  # noqa: F401
from numba_rnn.kernels.cpu.engine import NumbaEngine
from numba_rnn.kernels.cpu.simd import VECTOR_BYTES, lanes_of, load_part, store_part
from numba_rnn.kernels.cpu.threads import call_kernel
from numba_rnn.kernels.reference import NumpyEngine

Function = Callable[..., Array]


class OneVector(NamedTuple):
    x: int
    out: int
    length: int


class TwoVectors(NamedTuple):
    x: int
    y: int
    out: int
    length: int


@cache
def on_vectors(function: Function) -> Callable[..., None]:
    """out[...] = function(x), or function(x, y), compiled."""

    def of_one(ctx):
        x, out, length = kernel_abi.arguments(ctx, OneVector)
        W = lanes_of(ctx)
        for k in range(0, length, W):
            here = k * (VECTOR_BYTES // W)
            value = function(load_part(ctx, x + here, length - k))
            store_part(ctx, value, out + here, length - k)

    def of_two(ctx):
        x, y, out, length = kernel_abi.arguments(ctx, TwoVectors)
        W = lanes_of(ctx)
        for k in range(0, length, W):
            here = k * (VECTOR_BYTES // W)
            a = load_part(ctx, x + here, length - k)
            value = function(a, load_part(ctx, y + here, length - k))
            store_part(ctx, value, out + here, length - k)

    def apply(*arrays: Array) -> None:
        dtype = arrays[0].dtype
        if dtype not in kernels:
            ctx = kernel_abi.KernelContext(from_dtype(dtype), None, "test")
            kernel = of_one if len(arrays) == 2 else of_two
            kernels[dtype] = cfunc(types.void(ctx), error_model="numpy")(kernel)
        words = np.array([*(array.ctypes.data for array in arrays), arrays[0].size])
        call_kernel(kernels[dtype].address, words.ctypes.data)

    kernels: dict[Any, Any] = {}
    return apply


def evaluate(target: str, function: str | Function, *given: Array) -> Array:
    """One of functions.py, or made of them, on arrays; no floating-point exception may be seen."""
    if isinstance(function, str):
        function = getattr(functions, function)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        if target == "numpy":
            return function(*given)
        out = np.full_like(given[0], np.nan)
        on_vectors(jitted(function))(*given, out)
        return out


@cache
def jitted(function: Function) -> Function:
    """Functions of this file are made known to Numba; those of functions.py are known."""
    if function.__module__ != functions.__name__:
        register_jitable(function)
    return function


def numbers(dtype: Any, *values: float) -> Array:
    return np.array(values, dtype)


targets = pytest.mark.parametrize("target", ["numpy", "simd"])
dtypes = pytest.mark.parametrize("dtype", DTYPES)
UNARY = [
    name
    for name in functions.__all__
    if len(inspect.signature(getattr(functions, name)).parameters) == 1
]
names = pytest.mark.parametrize("name", UNARY)


def extremes(dtype: Any) -> list[float]:
    info = np.finfo(dtype)
    positive = [info.max, info.tiny, info.smallest_subnormal, 87.5, 88.0, 104.0, 708.9, 745.5]
    return [0.0, *map(float, positive), *(-float(x) for x in positive)]


# ---- for any finite number


@targets
@dtypes
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_finite_number_is_taken(target, dtype, data):
    finite = st.floats(
        width=8 * np.dtype(dtype).itemsize, allow_nan=False, allow_infinity=False
    ) | st.sampled_from(extremes(dtype))
    x = numbers(dtype, *data.draw(st.lists(finite, min_size=1, max_size=40)))
    y = {name: evaluate(target, name, x) for name in ("sigmoid", "tanh", "relu")}
    assert all(array.dtype == dtype for array in y.values())
    assert ((y["sigmoid"] >= 0) & (y["sigmoid"] <= 1)).all()
    assert (np.abs(y["tanh"]) <= np.minimum(np.abs(x), 1)).all()
    np.testing.assert_array_equal(y["relu"], np.where(x > 0, x, 0))
    np.testing.assert_array_equal(evaluate(target, "tanh", -x), -y["tanh"])

    for name in sorted(set(UNARY) - {"exp", "dsigmoid", "dtanh", "sqrt"}):  # these may overflow
        result = evaluate(target, name, x)
        assert result.dtype == dtype
        assert np.isfinite(result).all(), name
    assert (evaluate(target, "exp", x) >= 0).all()
    assert np.isfinite(evaluate(target, "sqrt", np.abs(x))).all()
    np.testing.assert_array_equal(np.isnan(evaluate(target, "sqrt", x)), x < 0)

    slopes = {name: evaluate(target, f"d{name}", value) for name, value in y.items()}
    assert ((slopes["sigmoid"] >= 0) & (slopes["sigmoid"] <= 0.25)).all()
    assert ((slopes["tanh"] >= 0) & (slopes["tanh"] <= 1)).all()
    np.testing.assert_array_equal(slopes["relu"], (x > 0).astype(dtype))


# ---- where the result is known exactly


@targets
@dtypes
def test_tanh_is_odd_to_the_last_bit(target, dtype):
    x = np.concatenate([np.geomspace(np.finfo(dtype).tiny, 50, 2001), [0.0]]).astype(dtype)
    y = evaluate(target, "tanh", x)
    mirrored = evaluate(target, "tanh", -x)
    np.testing.assert_array_equal(mirrored, -y)
    np.testing.assert_array_equal(np.signbit(mirrored), ~np.signbit(y))


@targets
@dtypes
def test_special_values(target, dtype):
    inf, largest, tiny = np.inf, float(np.finfo(dtype).max), float(np.finfo(dtype).tiny) / 4
    x = numbers(dtype, 0, tiny, -tiny, 1000, -1000, largest, -largest, inf, -inf)
    expected = {
        "sigmoid": (0.5, 0.5, 0.5, 1, 0, 1, 0, 1, 0),
        "tanh": (0, tiny, -tiny, 1, -1, 1, -1, 1, -1),
        "relu": (0, tiny, 0, 1000, 0, largest, 0, inf, 0),
        "exp": (1, 1, 1, inf, 0, inf, 0, inf, 0),
        "absolute": (0, tiny, tiny, 1000, 1000, largest, largest, inf, inf),
        "hard_tanh": (0, tiny, -tiny, 1, -1, 1, -1, 1, -1),
        "hard_sigmoid": (0.5, 0.5, 0.5, 1, 0, 1, 0, 1, 0),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(evaluate(target, name, x), numbers(dtype, *values), name)
    half = np.log(dtype(2))
    for name, values in {
        "softplus": (half, half, half, 1000, 0, largest, 0, inf, 0),
        "log_sigmoid": (-half, -half, -half, 0, -1000, 0, -largest, 0, -inf),
    }.items():
        got = evaluate(target, name, x)
        np.testing.assert_array_max_ulp(got[:3], numbers(dtype, *values)[:3], 1)
        np.testing.assert_array_equal(got[3:], numbers(dtype, *values)[3:], name)
    silu = evaluate(target, "silu", x[:-1])
    np.testing.assert_array_equal(
        silu, numbers(dtype, 0, tiny / 2, -tiny / 2, 1000, 0, largest, 0, inf)
    )
    roots = evaluate(target, "sqrt", np.abs(x))
    np.testing.assert_array_equal(roots, np.sqrt(np.abs(x)))
    assert np.isnan(evaluate(target, "sqrt", numbers(dtype, -1, -tiny, -inf))).all()
    y = numbers(dtype, 0, 0.5, 1)
    expected = {"dsigmoid": (0, 0.25, 0), "dtanh": (1, 0.75, 0), "drelu": (0, 1, 1)}
    for name, values in expected.items():
        np.testing.assert_array_equal(evaluate(target, name, y), numbers(dtype, *values), name)
    np.testing.assert_array_equal(evaluate(target, "drelu", numbers(dtype, inf, tiny)), (1, 1))


@targets
@dtypes
@names
def test_nan_stays_nan(target, dtype, name):
    result = evaluate(target, name, numbers(dtype, np.nan, 0.5, np.nan))
    np.testing.assert_array_equal(np.isnan(result), (True, False, True))


@targets
@dtypes
def test_extremes_of_two(target, dtype):
    inf, largest, tiny = np.inf, float(np.finfo(dtype).max), float(np.finfo(dtype).tiny) / 4
    every = numbers(dtype, np.nan, -inf, -largest, -1, -tiny, -0.0, 0, tiny, 0.5, largest, inf)
    a, b = (side.ravel() for side in np.meshgrid(every, every))
    unknown = np.isnan(a) | np.isnan(b)
    for name, better in (("maximum", a > b), ("minimum", a < b)):
        got = evaluate(target, name, a, b)
        np.testing.assert_array_equal(got[~unknown], np.where(better, a, b)[~unknown], name)
        assert np.isnan(got[unknown]).all(), name
        assert got.dtype == dtype


def at_most(a):
    return functions.minimum(a, 0.5)


def at_most_too(a):
    return functions.minimum(0.5, a)


def at_least(a):
    return functions.maximum(a, -1)


def at_least_too(a):
    return functions.maximum(-1, a)


@targets
@dtypes
@pytest.mark.parametrize("function", [at_most, at_most_too, at_least, at_least_too])
def test_extremes_of_a_number_and_a_python_number(target, dtype, function):
    a = numbers(dtype, np.nan, -np.inf, -2, -1, 0, 0.25, 0.5, 3, np.inf)
    limits = (None, 0.5) if function in (at_most, at_most_too) else (-1, None)
    got = evaluate(target, function, a)
    np.testing.assert_array_equal(got, np.clip(a, *limits))  # which keeps NaN
    assert got.dtype == dtype


def less(a, b):
    return functions.where(a < b, a, 2 * b)


def less_or_equal(a, b):
    return functions.where(a <= b, 7, b)


def greater(a, b):
    return functions.where(a > b, a, 0.1)


def greater_or_equal(a, b):
    return functions.where(a >= 0.25, a, b)


@targets
@dtypes
def test_where_takes_one_or_the_other(target, dtype):
    every = numbers(dtype, np.nan, -np.inf, -1, -0.0, 0, 0.25, 1, np.inf)
    a, b = (side.ravel() for side in np.meshgrid(every, every))
    with np.errstate(invalid="ignore"):
        expected = {
            less: (a < b, a, 2 * b),
            less_or_equal: (a <= b, np.full_like(a, 7), b),
            greater: (a > b, a, np.full_like(a, 0.1)),
            greater_or_equal: (a >= 0.25, a, b),
        }
    for function, (condition, yes, no) in expected.items():
        got = evaluate(target, function, a, b)
        np.testing.assert_array_equal(got, np.where(condition, yes, no), function.__name__)
        assert got.dtype == dtype


def test_where_wants_a_number_of_the_cell():
    def forward(gates, state):
        h = functions.where(gates[0] > 0, 1.0, 0.0) * gates[0]
        return (h,), (h,)

    with pytest.raises(TypeError, match=r"one choice that the cell computes, got 1\.0 and 0\.0"):
        Cell("step", ("h",), ("h",), ("h",), forward, lambda dh, saved, state: (dh, dh))


# ---- accuracy

EXACT: dict[str, Function] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "dsigmoid": lambda y: y * (1 - y),
    "dtanh": lambda y: (1 - y) * (1 + y),
    "drelu": lambda y: (y > 0).astype(y.dtype),
    "exp": np.exp,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "log_sigmoid": lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sqrt": np.sqrt,
    "absolute": np.abs,
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
}
# units in the last place; NumPy's own functions differ from machine to machine
LIMITS = {"numpy": 6, "simd": 3}


def grid(name: str, dtype: Any) -> Array:
    """Dense where the function bends, and every order of magnitude."""
    info = np.finfo(dtype)
    orders = np.geomspace(float(info.tiny), 100, 20_001)
    if name == "dsigmoid":  # takes what sigmoid gives, 0 to 1
        x = np.concatenate([np.linspace(0, 1, 100_001), orders[orders < 1]])
    elif name == "dtanh":
        x = np.concatenate([np.linspace(-1, 1, 100_001), orders[orders < 1]])
    else:
        limit = -np.log(float(info.tiny)) + 5
        x = np.concatenate([np.linspace(-limit, limit, 200_001), orders, -orders])
    if name == "sqrt":
        x = np.abs(x)
    return np.unique(x.astype(dtype))


@targets
@dtypes
@names
def test_accuracy(target, dtype, name):
    x = grid(name, dtype)
    exact = EXACT[name](x.astype(np.longdouble))
    got = evaluate(target, name, x)
    info = np.finfo(dtype)
    large = exact > info.max  # exp alone
    np.testing.assert_array_equal(got[large], np.inf)
    x, exact, got = x[~large], exact[~large], got[~large]
    unit = np.spacing(np.abs(exact).astype(dtype)).astype(np.longdouble)
    if name in ("dtanh", "hard_sigmoid"):  # as accurate as their terms, which cancel near 0
        unit = np.full_like(unit, info.eps)
    errors = np.abs(got - exact) / unit
    # silu is as small as its sigmoid, times x
    smallest = info.tiny * (np.maximum(np.abs(x), 1) if name == "silu" else 1)
    normal = (np.abs(exact) >= smallest) | (exact == 0)
    worst = np.argmax(np.where(normal, errors, 0))
    limit = LIMITS[target] + (name == "silu")  # a product of two that are rounded
    assert errors[worst] <= limit, f"{errors[worst]} ULP at {x[worst]!r}"
    # below the smallest normal number a result may be 0, but no further off than that
    assert (np.abs(got - exact) <= smallest)[~normal].all()
    assert normal.mean() > 0.9
    assert large.any() == (name == "exp")


# ---- the ends of arrays


@dtypes
@names
@settings(max_examples=30, deadline=None)
@example(length=1)
@example(length=VECTOR_BYTES // 4 + 1)
@given(length=st.integers(1, 3 * VECTOR_BYTES // 4))
def test_nothing_beyond_the_end_is_read_or_written(dtype, name, length):
    whole = np.random.default_rng(0).uniform(0, 1, length + 32).astype(dtype)
    x = whole.copy()
    x[length:] = np.nan
    out = np.full_like(x, np.nan)
    on_vectors(getattr(functions, name))(x[:length], out[:length])
    np.testing.assert_array_equal(out[:length], evaluate("simd", name, whole)[:length])
    assert np.isnan(out[length:]).all()


# ---- in a cell


def test_the_cell_that_calls_every_function_does():
    called = set(CALLING_ALL.forward.__globals__["_calling_all"].__code__.co_names)
    assert called >= set(functions.__all__)


@dtypes
def test_a_cell_may_call_every_function(dtype):
    for H in (1, 13, 40):  # tails of every kind
        problem = random_problem(CALLING_ALL, 3, 4, 5, H, dtype)
        want, got = (outcome(engine, problem) for engine in (NumpyEngine(), NumbaEngine()))
        for key, array in got.items():
            assert array.dtype == dtype
            assert relative_error(array, want[key]) < (1e-5 if dtype == np.float32 else 1e-12), key
