"""Weights in int8: the specification against plain integers, and engines against it."""

import copy
import importlib
import pickle
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import Array
from numba_rnn import cells, use_backend
from numba_rnn.kernels.engine import Engine
from numba_rnn.kernels.quantisation import (
    MOST_INPUTS,
    QuantisedWeight,
    quantise,
    quantise_activations,
)
from numba_rnn.kernels.reference import NumpyEngine
from numba_rnn.kernels.step_options import NO_OPTIONS, StepOptions
from quantised import ENGINES, quantised_problem


def engine_of(name: str) -> Engine:
    with use_backend(name, strict=True) as engine:
        return engine


def f32(number: Any) -> np.float32:
    return np.float32(number)


# ---- an oracle in whole numbers: Python's, number by number


def half_even(number: float) -> int:
    return round(float(number))  # Python's round halves to even


def oracle_weights(W: Array) -> tuple[list[list[int]], list[np.float32]]:
    """Whole numbers by column, and scales."""
    columns, scales = [], []
    for c in range(W.shape[1]):
        column = [f32(w) for w in W[:, c]]
        scale = f32(max(abs(w) for w in column) / f32(127))
        if scale < 2.0**-126:
            columns.append([0] * len(column))
            scales.append(f32(1))
            continue
        columns.append([max(-127, min(127, half_even(f32(w / scale)))) for w in column])
        scales.append(scale)
    return columns, scales


def oracle_activations(row: Array, bounded: bool) -> tuple[list[int], np.float32]:
    numbers = [f32(a) for a in row]
    largest = max(abs(a) for a in numbers)
    if not bounded and largest < 2.0**-100:
        return [0] * len(numbers), f32(0)
    factor = f32(127) if bounded else f32(f32(127) / largest)
    scale = f32(f32(1) / f32(127)) if bounded else f32(largest / f32(127))
    return [max(-127, min(127, half_even(f32(a * factor)))) for a in numbers], scale


def oracle_product(a: Array, W: Array, bounded: bool) -> Array:
    columns, scales = oracle_weights(W)
    out = np.empty((len(a), len(columns)), np.float32)
    for r, row in enumerate(a):
        q, a_scale = oracle_activations(row, bounded)
        for c, (column, w_scale) in enumerate(zip(columns, scales, strict=True)):
            total = sum(x * w for x, w in zip(q, column, strict=True))
            # as a kernel with unsigned activations has it
            assert total == sum((x + 128) * w for x, w in zip(q, column, strict=True)) - 128 * sum(
                column
            )
            out[r, c] = f32(a_scale * f32(w_scale * f32(total)))
    return out


def numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Of all magnitudes, some of them halves and zeros."""
    array = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)
    array[rng.random(shape) < 0.1] = 0
    return array.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 5), st.integers(1, 40), st.integers(1, 9), st.booleans(),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_product_is_that_of_whole_numbers(R, K, P, bounded, seed):
    rng = np.random.default_rng(seed)
    a, W = numbers(rng, (R, K)), numbers(rng, (K, P))
    if bounded:
        a = np.tanh(a)
    np.testing.assert_array_equal(quantise(W).product(a, bounded), oracle_product(a, W, bounded))


@pytest.mark.parametrize("K", [1039, 1040, 1041, 2500])
def test_long_sums_are_exact(K):
    """At the largest numbers, on both sides of what float32 can sum."""
    W = np.ones((K, 3), np.float32)
    W[:, 1] = -1
    W[::2, 2] = -1
    weight = quantise(W)
    a = np.ones((2, K), np.float32)
    a[1, 0] = 0.5
    q, scale = quantise_activations(a)
    sums = q.astype(np.int64) @ weight.values.astype(np.int64)
    want = scale[:, None] * (weight.scale * sums.astype(np.float32))
    np.testing.assert_array_equal(weight.product(a), want)


def test_roundings_halve_to_even():
    W = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5]], np.float32).T
    W = np.concatenate([W, np.zeros_like(W)], axis=1)
    weight = quantise(W)
    assert weight.values[:, 0].tolist() == [127, 0, 2, 2, 0, -2, 126]
    assert weight.scale[0] == 1
    assert quantise_activations(W[:, :1].T)[0].tolist() == [[127, 0, 2, 2, 0, -2, 126]]


def test_a_column_of_zeros_has_the_scale_1():
    W = np.array([[0, 1e-38, 1], [0, -1e-42, 0]], np.float32)
    weight = quantise(W)
    assert weight.values.tolist() == [[0, 0, 127], [0, 0, 0]]
    assert weight.scale.tolist() == [1, 1, f32(1 / 127)]
    assert (weight.product(np.full((1, 2), 3, np.float32))[0, :2] == 0).all()


def test_the_smallest_and_large_weights():
    W = np.array([[1e30, 3e-36], [-1e30, 2e-36]], np.float32)
    weight = quantise(W)
    np.testing.assert_allclose(weight.dequantise(), W, rtol=5e-3)
    a = np.array([[1e-4, 0]], np.float32)
    np.testing.assert_allclose(weight.product(a), a @ W, rtol=1e-2)


def test_rows_that_have_no_scale():
    a = np.array([[0, 0], [1e-31, 0], [np.nan, 1], [np.inf, 1], [-np.inf, 0]], np.float32)
    _, scale = quantise_activations(a)
    assert scale[:2].tolist() == [0, 0]
    assert np.isnan(scale[2:]).all()
    out = quantise(np.eye(2, dtype=np.float32)).product(a)
    assert (out[:2] == 0).all()
    assert np.isnan(out[2:]).all()


def test_bounded_numbers_beyond_1_are_cut_off():
    a = np.array([[2, -np.inf, np.nan, 1.0000001, -1]], np.float32)
    q, scale = quantise_activations(a, bounded=True)
    assert q.tolist() == [[127, -127, -127, 127, -127]]
    assert scale == f32(1 / 127)


def test_a_weight_is_off_by_half_a_scale_at_most():
    W = numbers(np.random.default_rng(0), (50, 20))
    weight = quantise(W)
    error = np.abs(weight.dequantise().astype(np.float64) - W)
    assert (error <= weight.scale * 0.5000001).all()
    assert (np.abs(weight.values).max(axis=0) == 127).all()


# ---- the kind of weight


def test_a_weight_is_immutable_and_its_own():
    W = numbers(np.random.default_rng(0), (7, 3))
    weight = quantise(W)
    before = weight.dequantise()
    W[...] = 0
    for array in (weight.values, weight.scale, weight.T.values, weight[:, 1:].values):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    with pytest.raises(AttributeError):
        weight.scale = before
    values = weight.values.copy()
    own = QuantisedWeight(values, weight.scale)
    values[...] = 0
    np.testing.assert_array_equal(own.dequantise(), before)
    assert copy.deepcopy(weight) is copy.copy(weight) is weight.copy() is weight


def test_a_weight_is_pickled():
    weight = quantise(numbers(np.random.default_rng(0), (7, 3))).T
    weight.T.product(np.ones((1, 7), np.float32))  # what that keeps is not pickled
    again = pickle.loads(pickle.dumps(weight))
    np.testing.assert_array_equal(again.values, weight.values)
    np.testing.assert_array_equal(again.scale, weight.scale)
    assert again.axis == 0
    assert not again.values.flags.writeable
    assert len(pickle.dumps(weight)) < 500


def test_columns_and_rows_of_a_weight():
    W = numbers(np.random.default_rng(0), (7, 4))
    weight = quantise(W)
    whole = weight.dequantise()
    assert weight.shape == (7, 4)
    assert weight.size == 28
    assert weight.nbytes == 28 + 16
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight[:, 1:3].dequantise(), whole[:, 1:3])
    np.testing.assert_array_equal(np.asarray(weight), whole)
    ids = np.array([[0, 6], [6, 2]])
    np.testing.assert_array_equal(weight[ids], whole[ids])
    np.testing.assert_array_equal(weight.T[ids % 4], whole.T[ids % 4])
    np.testing.assert_array_equal(weight.T[3], whole.T[3])
    np.testing.assert_array_equal(weight.T.dequantise(), whole.T)
    assert weight.T.T is weight[:, :] is weight  # what engines make of parts is kept with these
    assert weight[:, 1:3] is weight[:, 1:-1]
    for wrong in ((0, slice(None)), (slice(1, None), slice(None)), (slice(None), 1)):
        with pytest.raises(TypeError, match=r"index: expected \[:, columns\]"):
            weight[wrong]
    with pytest.raises(TypeError):
        W.T @ weight  # an engine that does not know it must not make floats of it


@pytest.mark.parametrize(
    ("values", "scale", "axis", "message"),
    [
        (np.zeros((2, 3)), np.ones(3, np.float32), 1, "values: expected a matrix of int8, got fl"),
        (np.zeros(3, np.int8), np.ones(3, np.float32), 1, r"int8, got int8 of shape \(3,\)"),
        ([[1]], np.ones(1, np.float32), 1, "values: expected a matrix of int8, got list"),
        (np.zeros((2, 3), np.int8), np.ones(3), 1, "scale: expected an array of float32, got fl"),
        (np.zeros((2, 3), np.int8), np.ones(2, np.float32), 1, r"scale: expected shape \(3,\)"),
        (np.zeros((2, 3), np.int8), np.ones(3, np.float32), 0, r"scale: expected shape \(2,\)"),
        (np.zeros((2, 3), np.int8), np.ones(3, np.float32), 2, "axis: expected 1"),
        (np.full((2, 3), -128, np.int8), np.ones(3, np.float32), 1, "from -127 to 127, got -128"),
        (np.zeros((1, 1), np.int8), np.zeros(1, np.float32), 1, "scale: expected finite numbers"),
        (np.zeros((1, 1), np.int8), np.full(1, np.nan, "f4"), 1, "scale: expected finite numbers"),
        (np.zeros((1, 1), np.int8), np.full(1, np.inf, "f4"), 1, "scale: expected finite numbers"),
    ],
)
def test_what_is_no_weight(values, scale, axis, message):
    with pytest.raises((TypeError, ValueError), match=message):
        QuantisedWeight(values, scale, axis)


@pytest.mark.parametrize(
    ("W", "message"),
    [
        (np.zeros((2, 3)), r"W: expected a matrix of float32, got float64 of shape \(2, 3\)"),
        (np.zeros(3, np.float32), r"W: expected a matrix of float32, got float32 of shape \(3,\)"),
        ([[1.0]], "W: expected a matrix of float32, got list"),
        (np.array([[1, np.nan]], np.float32), r"W: expected finite numbers, got nan at \(0, 1\)"),
        (np.array([[-np.inf]], np.float32), r"W: expected finite numbers, got -inf at \(0, 0\)"),
    ],
)
def test_what_cannot_be_quantised(W, message):
    with pytest.raises((TypeError, ValueError), match=message):
        quantise(W)


def test_the_largest_inner_size():
    assert 255 * 127 * MOST_INPUTS < 2**31 <= 255 * 127 * (MOST_INPUTS + 1)
    W = np.ones((MOST_INPUTS, 1), np.float32)
    out = quantise(W).product(np.ones((1, MOST_INPUTS), np.float32))
    np.testing.assert_allclose(out, MOST_INPUTS, rtol=1e-6)
    with pytest.raises(ValueError, match="at most 66,311 numbers to one scale"):
        quantise(np.ones((MOST_INPUTS + 1, 1), np.float32))


def test_products_want_float32_and_scales_of_columns():
    weight = quantise(np.ones((3, 2), np.float32))
    with pytest.raises(TypeError, match="activations: expected float32 beside weights in int8"):
        weight.product(np.ones((1, 3)))
    with pytest.raises(TypeError, match="a scale for each column, got one for each row"):
        weight.T.product(np.ones((1, 2), np.float32))


# ---- cells


def test_h_is_known_to_be_bounded():
    """Of cells whose h is a product with tanh, or a mean of such; and of their operands."""
    found = {name: cells.get(name).bounded for name in cells.names()}
    assert all(found[name] == (True, True) for name in ("lstm", "gru", "gru_reset_after", "rnn"))
    assert found["lstm_projected"] == (False, True)
    for name in ("rnn_relu", "light_gru", "indrnn", "mingru", "slstm", "sru"):
        assert not found[name][0], name


@pytest.mark.parametrize(
    ("functions", "expected"),
    [
        ("sigmoid(a) * h + (1 - sigmoid(a)) * tanh(b)", True),
        ("2 * tanh(a) * tanh(b)", False),
        # peaks that no search need find
        ("2 * exp(-(a - 3) * (a - 3) - (b - 3) * (b - 3))", False),
        ("where(absolute(a - 1) < 0.01, 30.0, tanh(b))", False),
        ("helper(a) * tanh(b)", False),
    ],
)
def test_h_is_taken_to_be_bounded_only_where_it_is(functions, expected, tmp_path, monkeypatch):
    (tmp_path / "a_bounded_cell.py").write_text(
        "from numba_rnn import cell\n"
        "from numba_rnn.functions import absolute, exp, sigmoid, tanh, where\n"
        "def helper(a):\n    return where(absolute(a - 1) < 0.01, 30.0, tanh(a))\n"
        f"@cell\ndef made(a, b, h):\n    return {functions}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "a_bounded_cell", raising=False)
    module = importlib.import_module("a_bounded_cell")
    assert cells.get(module.made).bounded[0] is expected


def oracle_forward(
    cell: cells.Cell, xs: Array, state: tuple[Array, ...], params: list[Any]
) -> Array:
    """hs of a plain cell (no normalised gates, no options), its products from the oracle."""
    H = params[0].shape[1] // len(cell.input_gates)
    Wx, Wh, b, w, Wr = cell.complete(params)
    bx, bh = (b, None) if cell.biases == 1 else b
    early = len(cell.recurrent_gates) - len(cell.second_product)
    hs = []

    def times(a: Array, W: Any, bounded: bool) -> Array:
        q = [oracle_activations(row, bounded) for row in a]
        sums = np.array([row for row, _ in q], np.int64).reshape(a.shape) @ W.values.astype(int)
        return np.array([[f32(scale * f32(s * f32(n))) for s, n in zip(W.scale, row, strict=True)]
                         for (_, scale), row in zip(q, sums, strict=True)], np.float32)  # fmt: skip

    for t in range(xs.shape[1]):
        gates: list[Any] = [f32(0)] * (len(cell.gates) - len(w)) + list(w)

        def add(side: Array, positions: Any, gates: list[Any] = gates) -> None:
            for k, g in enumerate(positions):
                width = side.shape[1] // len(positions)
                gates[g] = gates[g] + side[:, k * width : (k + 1) * width]

        add(times(xs[:, t], Wx, False) + bx, cell.input_gates)
        if early:
            side = times(state[0], Wh[:, : early * H], cell.bounded[0])
            add(side if bh is None else side + bh, cell.recurrent_gates[:early])
        if cell.second_product:
            operand = cell.operand(tuple(gates), state)
            add(times(operand, Wr, cell.bounded[1]), cell.recurrent_gates[early:])
        state = cell.forward(tuple(gates), state)[0]
        hs.append(state[0])
    return np.stack(hs, axis=1)


SIZES = [(1, 1, 1, 1), (1, 7, 3, 5), (2, 3, 17, 9), (3, 1, 33, 65), (5, 4, 8, 16)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_after", "rnn_relu", "lstm_projected",
                                  "lstm_peephole", "jordan", "mingru"])  # fmt: skip
def test_a_cell_is_that_of_whole_numbers(name, size):
    cell, xs, state, params = quantised_problem(name, *size)
    hs, *_ = NumpyEngine().forward(cell, xs, state, params)
    np.testing.assert_array_equal(hs, oracle_forward(cell, xs, state, params))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", cells.names())
def test_engines_compute_the_specification(engine, name):
    """Equal whole numbers, from the same state; floats may be rounded in another way. Where that
    moves one across a half, its whole number is another, and then the row: so rarely that nearly
    all must be close."""
    run = engine_of(engine)
    for size in SIZES:
        cell, xs, state, params = quantised_problem(name, *size)
        hs, after, _ = run.forward(cell, xs, state, params)
        found, wanted = [], []
        for t in range(xs.shape[1]):
            x = np.ascontiguousarray(xs[:, t : t + 1])
            found += [run.forward(cell, x, state, params)[0][:, 0]]
            found += [run.step(cell, x[:, 0], state, params)[0]]
            state = NumpyEngine().forward(cell, x, state, params)[1]
            wanted += [state[0]] * 2
        error = np.abs(np.stack(found) - np.stack(wanted))
        assert np.quantile(error, 0.98) <= 2e-6 * np.abs(wanted).max()
        assert error.max() <= 0.05 * np.abs(wanted).max()
        assert hs.dtype == np.float32
        np.testing.assert_array_equal(hs[:, 0], found[0])
        np.testing.assert_allclose(after[0], state[0], atol=0.05 * np.abs(wanted).max())
        for got, last in zip(after, state, strict=True):
            assert got.shape == last.shape


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["lstm", "gru", "lstm_layer_norm"])
def test_an_empty_batch(engine, name):
    cell, xs, state, params = quantised_problem(name, 0, 3, 4, 5)
    hs, after, _ = engine_of(engine).forward(cell, xs, state, params)
    assert hs.shape == (0, 3, 5)
    assert after[0].shape == (0, 5)


def options(N: int, T: int, H: int) -> dict[str, StepOptions]:
    rng = np.random.default_rng(3)
    mask = rng.random((N, T)) < 0.7
    scale = (rng.random((N, H)) * 2).astype(np.float32)
    return {
        "none": NO_OPTIONS,
        "mask": StepOptions(mask=mask),
        "resets": StepOptions(resets=~mask),
        "zoneout": StepOptions(zoneout=(0.3,), seed=7),
        "recurrent_mask": StepOptions(recurrent_mask=scale),
        "checkpoint_every": StepOptions(checkpoint_every=2),
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("option", options(1, 1, 1))
def test_options_of_steps(engine, option):
    cell, xs, state, params = quantised_problem("gru", 3, 5, 4, 6)
    steps = options(3, 5, 6)[option]
    want, last, _ = NumpyEngine().forward(cell, xs, state, params, steps)
    hs, after, saved = engine_of(engine).forward(cell, xs, state, params, steps)
    np.testing.assert_allclose(hs, want, atol=1e-2)
    np.testing.assert_allclose(after[0], last[0], atol=1e-2)
    dequantised = [np.asarray(param) for param in params]
    floats, *_ = NumpyEngine().forward(cell, xs, state, dequantised, steps)
    np.testing.assert_allclose(hs, floats, atol=0.05)
    before = engine_of(engine).states_before(cell, saved)
    assert before[0].shape == (3, 5, 6)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_and_blocks_do_not_depend_on_each_other(engine):
    cell, xs, state, params = quantised_problem("lstm", 4, 6, 5, 7)
    run = engine_of(engine).forward
    hs, *_ = run(cell, xs, state, params)
    first, between, _ = run(cell, xs[:, :2], state, params)
    second, *_ = run(cell, xs[:, 2:], between, params)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), hs)
    for n in range(4):
        alone, *_ = run(cell, xs[n : n + 1], tuple(s[n : n + 1] for s in state), params)
        np.testing.assert_array_equal(alone[0], hs[n])


@pytest.mark.parametrize("engine", ENGINES)
def test_there_is_no_backward(engine):
    cell, xs, state, params = quantised_problem("lstm", 2, 3, 4, 5)
    runs = engine_of(engine)
    hs, after, saved = runs.forward(cell, xs, state, params)
    with pytest.raises(TypeError, match=r"got int8 ones; layer.dequantise\(\) makes them float32"):
        runs.backward(cell, hs, after, saved)


@pytest.mark.parametrize("engine", ENGINES)
def test_shapes_and_dtypes_are_checked(engine):
    cell, xs, state, params = quantised_problem("lstm", 2, 3, 4, 5)
    run = engine_of(engine).forward
    with pytest.raises(ValueError, match=r"Wh: expected shape \(5, 20\)"):
        run(cell, xs, state, [params[0], params[0], params[2]])
    with pytest.raises(TypeError, match="Wx: expected float64, as xs is, got float32"):
        run(cell, xs.astype(np.float64), tuple(s.astype(np.float64) for s in state), params)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("R", "D", "M"), [(0, 3, 2), (1, 1, 1), (7, 33, 65), (40, 100, 90)])
def test_affine(engine, R, D, M):
    rng = np.random.default_rng(0)
    a, W, b = numbers(rng, (R, D)), numbers(rng, (D, M)), numbers(rng, (M,))
    got = engine_of(engine).affine(a, quantise(W), b)
    np.testing.assert_allclose(got, oracle_product(a, W, False) + b, rtol=2e-7)
