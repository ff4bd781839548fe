"""sigmoid, tanh, relu and their derivatives: on NumPy arrays and on SIMD vectors."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import cfunc, types

from helpers import DTYPES, Array
from numba_rnn.kernels import functions
from numba_rnn.kernels.cpu import frames, vector_functions  # noqa: F401
from numba_rnn.kernels.cpu.simd import VECTOR_BYTES, lanes_of, load_part, store_part
from numba_rnn.kernels.cpu.threads import call_piece

Function = Callable[[Array], Array]


@cache
def on_vectors(function: Function) -> Callable[[Array, Array], None]:
    """out[...] = function(x), compiled."""

    def piece(frame):
        x, out, length = frames.arguments(frame, 3)
        W = lanes_of(frame)
        for k in range(0, length, W):
            here = k * (VECTOR_BYTES // W)
            value = function(load_part(frame, x + here, length - k))
            store_part(value, out + here, length - k)

    def apply(x: Array, out: Array) -> None:
        frame = frames.FrameType(frames.from_dtype(x.dtype), None, "test")
        compiled = pieces.get(x.dtype) or cfunc(types.void(frame), error_model="numpy")(piece)
        pieces[x.dtype] = compiled
        words = np.array([x.ctypes.data, out.ctypes.data, x.size])
        call_piece(compiled.address, words.ctypes.data)

    pieces: dict[Any, Any] = {}
    return apply


def evaluate(target: str, name: str, x: Array) -> Array:
    """One of functions.py on an array; no floating-point exception may be seen."""
    function = getattr(functions, name)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        if target == "numpy":
            return function(x)
        out = np.full_like(x, np.nan)
        on_vectors(function)(x, out)
        return out


def numbers(dtype: Any, *values: float) -> Array:
    return np.array(values, dtype)


targets = pytest.mark.parametrize("target", ["numpy", "simd"])
dtypes = pytest.mark.parametrize("dtype", DTYPES)
names = pytest.mark.parametrize("name", functions.__all__)


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
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(evaluate(target, name, x), numbers(dtype, *values), name)
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


# ---- accuracy

EXACT: dict[str, Function] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "dsigmoid": lambda y: y * (1 - y),
    "dtanh": lambda y: (1 - y) * (1 + y),
    "drelu": lambda y: (y > 0).astype(y.dtype),
}


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
    return np.unique(x.astype(dtype))


@targets
@dtypes
@names
def test_accuracy(target, dtype, name):
    x = grid(name, dtype)
    exact = EXACT[name](x.astype(np.longdouble))
    got = evaluate(target, name, x)
    unit = np.spacing(np.abs(exact).astype(dtype)).astype(np.longdouble)
    if name == "dtanh":  # 1 - y²: as accurate as its terms, which cancel where y² is near 1
        unit = np.full_like(unit, np.finfo(dtype).eps)
    errors = np.abs(got - exact) / unit
    normal = (np.abs(exact) >= np.finfo(dtype).tiny) | (exact == 0)
    worst = np.argmax(np.where(normal, errors, 0))
    assert errors[worst] <= 4, f"{errors[worst]} ULP at {x[worst]!r}"
    # below the smallest normal number a result may be 0, but no further off than that
    assert (np.abs(got - exact)[~normal] <= np.finfo(dtype).tiny).all()
    assert normal.mean() > 0.9


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
