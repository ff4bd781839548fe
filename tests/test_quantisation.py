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

from helpers import Array, relative_error
from numba_rnn import (
    GRU,
    LSTM,
    RNN,
    Reversed,
    Stacked,
    Stream,
    TimeAdaptiveSoftmaxWithLoss,
    TimeAffine,
    TimeAffineSoftmaxWithLoss,
    TimeBiGRU,
    TimeBiLSTM,
    TimeDropout,
    TimeEmbedding,
    TimeGRU,
    TimeLSTM,
    TimePooling,
    TimeProjectedLSTM,
    TimeRecurrent,
    TimeRNN,
    TimeSampledSoftmaxWithLoss,
    TimeSoftmaxWithLoss,
    bridges,
    cells,
    functional,
    jobs,
    use_backend,
)
from numba_rnn.diagnostics import plot_quantisation, quantisation_report, summary
from numba_rnn.diagnostics.metrics import recurrent_blocks
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.engine import Engine
from numba_rnn.kernels.quantisation import (
    MOST_INPUTS,
    QuantisedWeight,
    quantise,
    quantise_activations,
)
from numba_rnn.kernels.reference import NumpyEngine
from numba_rnn.kernels.sparse_rows import SparseRows
from numba_rnn.kernels.step_options import NO_OPTIONS, StepOptions
from numba_rnn.models import Rnnlm, Seq2seq, Sequential
from numba_rnn.sklearn import RNNClassifier
from numba_rnn.training import SGD, save_checkpoint

ENGINES = ("numpy", "numba")  # those that run weights in int8


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


def quantised_problem(
    name: str, N: int, T: int, D: int, H: int, seed: int = 0
) -> tuple[cells.Cell, Array, tuple[Array, ...], list[Any]]:
    """A cell, xs, the state, and parameters whose weights are in int8."""
    cell, rng = cells.get(name), np.random.default_rng(seed)
    P = max(1, H - 1) if cell.projected else None
    shapes = cell.shapes(D, H, P)
    params: list[Any] = [
        (rng.standard_normal(shape) / max(1, shape[0]) ** 0.5).astype(np.float32)
        for shape in shapes.values()
    ]
    if N:
        params[0][:, 0] = 0  # a column of zeros
    params = [
        quantise(param) if key in cell.weight_names else param
        for key, param in zip(shapes, params, strict=True)
    ]
    xs = rng.standard_normal((N, T, D)).astype(np.float32)
    if N > 1:
        xs[1, 0] = 0  # a row of zeros
    state = tuple(
        np.tanh(rng.standard_normal((N, size))).astype(np.float32) + (k > 0)
        for k, size in enumerate(cell.state_sizes(H, P or H))
    )
    return cell, xs, state, params


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


# ---- layers


def made(name: str) -> Any:
    """Layers of every kind that has weights of products, and a model of some."""
    options: dict[str, Any] = {"rng": 0}
    return {
        "rnn": lambda: TimeRNN.create(3, 5, **options),
        "lstm": lambda: TimeLSTM.create(3, 5, **options),
        "gru": lambda: TimeGRU.create(3, 5, **options),
        "projected": lambda: TimeProjectedLSTM.create(3, 6, proj_size=4, **options),
        "recurrent": lambda: TimeRecurrent.create(3, 5, cell="lstm_layer_norm", **options),
        "initial": lambda: TimeGRU.create(3, 5, **options).learn_initial_state(),
        "bidirectional": lambda: TimeBiLSTM.create(3, 5, **options),
        "reversed": lambda: Reversed(TimeLSTM.create(3, 5, **options)),
        "stacked": lambda: Stacked.create(3, 5, layers=2, layer=TimeBiGRU, **options),
        "affine": lambda: TimeAffine.create(3, 5, **options),
        "sequential": lambda: Sequential(
            TimeGRU.create(3, 5, **options), TimeDropout(0.5), TimePooling("last"),
            TimeAffine.create(5, 2, **options), loss=TimeSoftmaxWithLoss(),
        ),
    }[name]()  # fmt: skip


KINDS = (
    "rnn", "lstm", "gru", "projected", "recurrent", "initial", "bidirectional", "reversed",
    "stacked", "affine", "sequential",
)  # fmt: skip


def outputs(layer: Any, xs: Array) -> Array:
    return layer.predict(xs) if hasattr(layer, "predict") else layer.forward(xs)


XS = np.random.default_rng(1).standard_normal((2, 7, 3)).astype(np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_is_that_of_the_rounded_weights(kind, engine):
    with use_backend(engine):
        layer = made(kind)
        before = [param.copy() for param in layer.params]
        want = outputs(layer, XS)
        assert not layer.quantised
        assert layer.quantise() is layer
        assert layer.quantised
        kinds = [isinstance(param, QuantisedWeight) for param in layer.params]
        names = [name.rpartition(".")[2] in ("Wx", "Wh", "Wr", "W") for name in layer.param_names]
        assert kinds == names
        assert [grad is None for grad in layer.grads] == kinds
        got = outputs(layer, XS)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=0.03)
        assert (got != want).any()
        again = outputs(copy.deepcopy(layer), XS)
        np.testing.assert_array_equal(again, got)
        np.testing.assert_array_equal(outputs(pickle.loads(pickle.dumps(layer)), XS), got)
        np.testing.assert_array_equal(outputs(layer.quantise(), XS), got)  # nothing more happens
        assert layer.dequantise() is layer
        assert not layer.quantised
        for param, was, grad in zip(layer.params, before, layer.grads, strict=True):
            np.testing.assert_allclose(param, was, atol=np.abs(was).max(initial=0) / 200)
            assert grad.shape == param.shape
        out = outputs(layer, XS)
        np.testing.assert_allclose(out, want, atol=0.03)
        if kind != "sequential":
            layer.backward(np.ones_like(out))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_is_not_trained(kind):
    layer = made(kind)
    out = outputs(layer, XS)
    layer.quantise()
    with pytest.raises((TypeError, RuntimeError)):
        layer.backward(np.ones_like(out))
    out = outputs(layer, XS)
    with pytest.raises(
        TypeError, match=r"backward: expected weights in float32 or float64.*got in"
    ):
        layer.backward(np.ones_like(out))
    with pytest.raises(
        TypeError, match=r"params: expected weights in float32 .* got int8 ones; la"
    ):
        SGD(0.1).update(layer.params, layer.grads)


def test_one_step_layers_are_quantised():
    for layer, states in ((RNN, 1), (LSTM, 2), (GRU, 1)):
        cell = layer.create(3, 5, rng=0)
        state = [np.zeros((2, 5), np.float32)] * states
        want = cell.forward(XS[:, 0], *state)
        got = cell.quantise().forward(XS[:, 0], *state)
        np.testing.assert_allclose(got, want, atol=0.03)
        with pytest.raises(TypeError, match="dequantise"):
            cell.backward(np.ones((2, 5), np.float32))


def test_a_layer_says_that_it_is_quantised():
    assert repr(made("lstm").quantise()) == "TimeLSTM(cell lstm, D 3, H 5, float32, weights int8)"
    assert repr(made("lstm").quantise().dequantise()) == repr(made("lstm"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", cells.names())
def test_every_cell_has_a_quantised_layer(name, engine):
    with use_backend(engine):
        layer = TimeRecurrent.create(3, 5, cell=name, rng=0)
        want = layer.forward(XS)
        np.testing.assert_allclose(layer.quantise().forward(XS), want, atol=0.1)


def test_layers_of_quantised_weights():
    layer = made("lstm").quantise()
    twin = TimeLSTM(*layer.params)
    np.testing.assert_array_equal(twin.forward(XS), layer.forward(XS))
    affine = made("affine").quantise()
    np.testing.assert_array_equal(TimeAffine(*affine.params).forward(XS), affine.forward(XS))
    Wx, Wh, b = layer.params
    floats = made("lstm").params
    for params, message in (
        (
            (floats[0], Wh, b),
            r"TimeLSTM.Wx: expected Wx and Wh, and no other, in int8, got ndarray",
        ),
        ((Wx, floats[1], b), r"TimeLSTM.Wh: expected Wx and Wh"),
        ((Wx, Wh, Wx), r"TimeLSTM.b: expected Wx and Wh, and no other, in int8, got QuantisedW"),
        ((Wx, Wx, b), r"Wx: expected shape"),
        ((Wx.T, Wh, b), r"Wx: expected a scale for each column, got one for each row"),
        ((Wx, Wh, b.astype(np.float64)), "b: expected float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            TimeLSTM(*params)
    with pytest.raises(ValueError, match="W: expected a scale for each row, got one for each col"):
        TimeEmbedding(Wx)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_embedding_has_a_scale_for_each_word(sparse):
    layer = TimeEmbedding.create(11, 4, rng=0, sparse=sparse)
    layer.params[0][3] *= 1e-3  # a rare word with small numbers keeps them
    ids = np.array([[3, 10, 3], [0, 1, 2]])
    want = layer.forward(ids)
    layer.quantise()
    got = layer.forward(ids)
    np.testing.assert_array_equal(got, layer.params[0].dequantise()[ids])
    np.testing.assert_allclose(got[0, 0], want[0, 0], atol=1e-5)
    with pytest.raises(TypeError, match="dequantise"):
        layer.backward(got)
    layer.drop_words(0.5, rng=0).forward(ids)
    out = layer.dequantise().forward(ids)
    layer.backward(out)
    assert isinstance(layer.grads[0], SparseRows) == sparse


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimeAffineSoftmaxWithLoss.create(3, 40, rng=0),
        lambda: TimeAdaptiveSoftmaxWithLoss.create(3, 40, cutoffs=(5, 20), divisor=1, rng=0),
        lambda: TimeSampledSoftmaxWithLoss.create(3, 40, samples=10, rng=0),
    ],
)
def test_losses_with_weights_are_quantised(make):
    layer, ts = make(), np.arange(14).reshape(2, 7)
    layer.train_flg, layer.block = False, 16
    want = layer.forward(XS, ts)
    got = layer.quantise().forward(XS, ts)
    assert layer.quantised
    np.testing.assert_allclose(got, want, rtol=0.02)
    with pytest.raises(TypeError, match="dequantise"):
        layer.backward()


def test_nothing_changes_where_a_weight_cannot_be_rounded():
    stack = Stacked([TimeLSTM.create(3, 5, rng=0), TimeLSTM.create(5, 5, rng=1)])
    stack.layers[1].params[1][2, 3] = np.nan
    with pytest.raises(
        ValueError, match=r"TimeLSTM.Wh: expected finite numbers, got nan at \(2, 3"
    ):
        stack.quantise()
    assert not stack.quantised
    layer = TimeGRU.create(3, 5, rng=0, dtype=np.float64)
    with pytest.raises(TypeError, match=r"TimeGRU.Wx: expected float32 in host memory .* float64"):
        layer.quantise()
    wide = TimeAffine(np.ones((MOST_INPUTS + 1, 1), np.float32), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="leave this layer in float32"):
        wide.quantise()


def test_regularisers_of_a_quantised_layer():
    layer = TimeLSTM.create(3, 5, rng=0).regularise(zoneout=0.2, recurrent_dropout=0.3, rng=0)
    layer.quantise().forward(XS)
    layer.regularise(weight_drop=0.5, rng=0)
    with pytest.raises(TypeError, match="weight_drop: expected weights in float32"):
        layer.forward(XS)
    layer.train_flg = False
    layer.forward(XS)


def test_a_trace_of_a_quantised_layer():
    layer = TimeGRU.create(3, 5, rng=0).quantise()
    hs = layer.forward(XS, trace=True)
    np.testing.assert_allclose(layer.trace.states["h"], hs, atol=1e-2)
    assert set(layer.trace.gates) == {"z", "r", "h"}
    assert "weights int8" in summary(layer)
    blocks, exact = (recurrent_blocks(made) for made in (layer, copy.deepcopy(layer).dequantise()))
    for gate, block in blocks.items():
        np.testing.assert_array_equal(block, exact[gate])


def test_a_gpu_refuses_them():
    gpu = CudaEngine.__new__(CudaEngine)
    gpu.xp = object()
    with pytest.raises(TypeError, match=r"int8 ones, which run on the CPU: layer.to\(\"cpu\"\)"):
        gpu.to_device(made("lstm").quantise().params[0])
    assert made("lstm").quantise().to("cpu").quantised


def test_functions_take_them():
    layer = made("lstm").quantise()
    state = [np.zeros((2, 5), np.float32)] * 2
    found = functional.forward("lstm", XS, state, layer.params)
    np.testing.assert_array_equal(found.hs, layer.forward(XS))
    with pytest.raises(TypeError, match="dequantise"):
        functional.backward(found.record, found.hs)


def test_bridges_refuse_them():
    layer = made("lstm").quantise()
    for write in (bridges.to_book, bridges.to_onnx, bridges.torch_state_dict):
        with pytest.raises(bridges.ConversionError, match=r"int8 ones; copy\.deepcopy"):
            write(layer)


# ---- streams


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_in_int8(engine, batch):
    with use_backend(engine):
        stack = [TimeLSTM.create(3, 5, rng=0), TimeGRU.create(5, 4, rng=1),
                 TimeAffine.create(4, 2, rng=2)]  # fmt: skip
        xs = np.random.default_rng(0).standard_normal((batch, 6, 3)).astype(np.float32)
        frames = xs[0] if batch == 1 else xs
        stream = Stream(stack, batch, weights="int8")
        assert not any(layer.quantised for layer in stack)
        assert stream.weights == "int8"
        got = stream.step_many(frames)
        want: Any = xs
        for layer in copy.deepcopy(stack):
            want = layer.quantise().forward(want)
        np.testing.assert_allclose(got, want[0] if batch == 1 else want, atol=2e-2)
        stream.reset()
        steps = [stream.step(np.ascontiguousarray(frames[..., t, :])).copy() for t in range(6)]
        np.testing.assert_array_equal(np.stack(steps, axis=-2), got)
        for layer in stack:
            layer.quantise()
        other = Stream(stack, batch)
        np.testing.assert_array_equal(other.step_many(frames), got)
        stack[2].dequantise()
        other.refresh()
        other.reset()
        np.testing.assert_allclose(other.step_many(frames), got, atol=2e-2)


def test_kinds_of_weights_of_a_stream():
    layer = TimeLSTM.create(3, 5, rng=0)
    assert layer.stream(weights="bfloat16").bfloat16
    assert layer.stream(bfloat16=True).weights == "bfloat16"
    assert layer.stream().weights is None
    with pytest.raises(ValueError, match="weights: expected one of bfloat16, int8, got 'int4'"):
        layer.stream(weights="int4")
    with pytest.raises(ValueError, match='bfloat16: expected False with weights="int8", got True'):
        layer.stream(weights="int8", bfloat16=True)
    with pytest.raises(TypeError, match="int8: expected layers in float32, got float64"):
        TimeLSTM.create(3, 5, dtype=np.float64).stream(weights="int8")
    layer.quantise()
    assert "int8" not in str(layer.stream(weights="int8").weights) or layer.quantised
    with pytest.raises(TypeError, match=r"bfloat16: expected layers in float32, got .*Wx in int8"):
        layer.stream(weights="bfloat16")


# ---- models


@pytest.mark.parametrize(
    "options", [{}, {"tie": True}, {"cutoffs": (3, 7)}, {"samples": 5}], ids=str
)
def test_a_language_model_in_int8(options, tmp_path):
    size = {"embed_size": 6, "hidden_size": 6, "layers": 2, "rng": 0, **options}
    model = Rnnlm(11, **size)
    model.recurrent[0].learn_initial_state()
    corpus = np.random.default_rng(0).integers(0, 11, 400)
    want = model.perplexity(corpus)
    assert model.quantise() is model
    assert model.quantised
    got = model.perplexity(corpus)
    assert got != want
    np.testing.assert_allclose(got, want, rtol=0.02)
    if model.tie:
        np.testing.assert_array_equal(model.affine.params[0].T, model.embedding.params[0])
    assert len(model.generate([1], 5, rng=0)) == 5
    model.forward(corpus[None, :5], corpus[None, 1:6])
    with pytest.raises(TypeError, match="dequantise"):
        model.backward()
    twin = copy.deepcopy(model)
    assert twin.perplexity(corpus) == got
    fresh = Rnnlm(11, **{**size, "rng": 1})
    fresh.load_arrays(model.arrays())
    assert fresh.quantised
    assert fresh.perplexity(corpus) == got
    floats = Rnnlm(11, **{**size, "rng": 1})
    fresh.load_arrays(floats.arrays() | {"param/recurrent0.initial": np.zeros((2, 6), "f4")})
    assert not fresh.quantised
    assert fresh.perplexity(corpus) == floats.perplexity(corpus)
    model.dequantise()
    np.testing.assert_allclose(model.perplexity(corpus), want, rtol=0.02)
    model.forward(corpus[None, :5], corpus[None, 1:6])
    model.backward()
    SGD(0.1).update(model.params, model.grads)
    if model.tie:
        assert np.shares_memory(model.affine.params[0], model.embedding.params[0])


def test_a_checkpoint_of_a_language_model_in_int8(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 50)
    config = jobs.TrainConfig(text=str(tmp_path / "text.txt"), batch=4, time=16, epochs=1, hidden=8)
    jobs.train(config, tmp_path)
    model, vocabulary, content = jobs.load_model(tmp_path)
    save_checkpoint(tmp_path / "int8.safetensors", model.quantise().arrays(), content)
    again, _, _ = jobs.load_model(tmp_path / "int8.safetensors")
    assert again.quantised
    ids = vocabulary.encode("to be or")[None]
    np.testing.assert_array_equal(again.predict(ids), model.predict(ids))
    small, large = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("int8", "best"))
    assert small < large


@pytest.mark.parametrize("options", [{}, {"tie": True}, {"samples": 5}], ids=str)
def test_a_token_stream_in_int8(options):
    model = Rnnlm(11, 6, 6, rng=0, **options)
    tokens = np.array([3, 1, 4, 1, 5])
    got = model.stream(weights="int8").step_many(tokens)
    assert not model.quantised
    want = model.quantise().stream().step_many(tokens)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got, model.predict(tokens[None])[0], atol=1e-5)


def test_a_quantised_model_is_saved_and_loaded(tmp_path):
    model = made("sequential")
    floats = tmp_path / "floats.safetensors"
    model.save(floats)
    want = model.predict(XS)
    path = tmp_path / "int8.safetensors"
    model.quantise().save(path)
    got = model.predict(XS)
    fresh = made("sequential").load(path)
    assert fresh.quantised
    np.testing.assert_array_equal(fresh.predict(XS), got)
    np.testing.assert_array_equal(fresh.load(floats).predict(XS), want)  # of float32 again
    assert not fresh.quantised
    arrays = model.arrays()
    assert arrays["int8/0.Wx"].dtype == np.int8
    assert "0.Wx" not in arrays
    for change, message in (
        ({"scale/0.Wx": None}, r"scale/0.Wx: expected an array"),
        ({"scale/0.Wx": np.ones(3, np.float32)}, r"scale/0.Wx: expected shape \(15,\)"),
        ({"int8/0.Wx": np.ones((3, 15), np.int32)}, r"int8/0.Wx: expected int8"),
        ({"int8/0.Wx": np.full((3, 15), -128, np.int8)}, "from -127 to 127, got -128"),
        ({"scale/0.Wx": np.zeros(15, np.float32)}, "scale: expected finite numbers above 0"),
        (
            {"int8/0.b": np.ones(15, np.int8)},
            "0.b: expected float32, as the layer has it, got int8",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fresh.load_arrays(arrays | change)
        assert not fresh.quantised


def test_a_stateful_quantised_model_keeps_its_state(tmp_path):
    model = Sequential(TimeLSTM.create(3, 5, rng=0, stateful=True), TimeAffine.create(5, 2, rng=0))
    model.quantise().predict(XS)
    model.save(tmp_path / "model.safetensors")
    twin = Sequential(TimeLSTM.create(3, 5, rng=1, stateful=True), TimeAffine.create(5, 2, rng=1))
    twin.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(twin.predict(XS), model.predict(XS))


def test_a_model_with_attention_in_int8():
    model = Seq2seq.create(11, 6, 8, connection="attention", rng=0)
    xs, ts = np.arange(10).reshape(2, 5), np.arange(1, 9).reshape(2, 4)
    want = model.forward(xs, ts)
    np.testing.assert_allclose(model.quantise().forward(xs, ts), want, rtol=0.02)
    model.generate(xs, 0, 3)


def test_a_stream_of_a_network_in_int8():
    X = np.random.default_rng(0).standard_normal((12, 7, 3)).astype(np.float32)
    model = RNNClassifier(hidden_size=5, max_epochs=1, pooling="last", random_state=0)
    network = model.fit(X, np.arange(12) % 2).network_
    want = Stream(network).step_many(X[0])
    np.testing.assert_allclose(Stream(network, weights="int8").step_many(X[0]), want, atol=0.02)
    network.quantise()
    with pytest.raises(
        TypeError, match="standardise: expected weights in float32 to make a stream"
    ):
        Stream(network)


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@pytest.mark.parametrize(("size", "mean"), [((1e-3, 1, 1e3), 0), ((1, 1, 1), 1000)])
def test_a_stream_reads_inputs_that_are_not_standardised(size, mean, weights):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((40, 9, 3)) * size + mean).astype(np.float32)
    y = (X[:, :, 0] - mean).sum(1) > 0
    model = RNNClassifier(hidden_size=8, layers=2, pooling="last", max_epochs=5, random_state=0)
    network = model.fit(X, y).network_
    with use_backend("numba"):
        want = Stream(network, batch=40).step_many(X)
        got = Stream(network, batch=40, weights=weights).step_many(X)
    with use_backend("numba", precision="bfloat16"):
        low = Stream(network, batch=40).step_many(X)
    for scores in (got, low):
        assert 0 < relative_error(scores, want) < 0.05


def test_an_estimator_in_int8():
    X = np.random.default_rng(0).standard_normal((12, 7, 3)).astype(np.float32)
    y = np.arange(12) % 2
    model = RNNClassifier(hidden_size=5, max_epochs=2, random_state=0).fit(X, y)
    want = model.predict_proba(X)
    model.network_.quantise()
    got = model.predict_proba(X)
    np.testing.assert_allclose(got, want, atol=0.02)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), got)
    assert again.network_.affine.quantised
    assert not again.network_.dequantise().quantised
    np.testing.assert_allclose(again.predict_proba(X), want, atol=0.02)
    again.partial_fit(X, y)


# ---- the report


def test_the_report_names_the_layer_that_changes_most():
    model = Sequential(
        TimeGRU.create(3, 8, rng=0), TimeDropout(0.5), TimeAffine.create(8, 2, rng=1)
    )
    model.layers[2].params[0][0] = 100  # a weight that takes the scale of all others
    before = [param.copy() for param in model.params]
    report = quantisation_report(model, XS)
    assert report.metric == 0
    assert report.table["layer"].tolist() == ["0", "2", "all"]
    alone = copy.deepcopy(model)
    alone.layers[2].quantise()
    want = model.predict(XS).astype(np.float64)
    error = np.linalg.norm(alone.predict(XS) - want) / np.linalg.norm(want)
    np.testing.assert_allclose(report.table["metric"][1], error, rtol=1e-6)
    np.testing.assert_array_equal(report.table["change"], report.table["metric"])
    sizes = [sum(p.nbytes for p in layer.params) for layer in (model.layers[0], model.layers[2])]
    assert report.table["bytes"].tolist() == [*sizes, sum(sizes)]
    small = copy.deepcopy(model).quantise()
    assert report.table["bytes_int8"][-1] == sum(param.nbytes for param in small.params)
    lines = str(report).splitlines()
    assert lines[0].split() == ["quantised", "bytes", "in", "int8", "metric", "change"]
    assert [line.split()[0] for line in lines[1:]] == ["nothing", "0", "2", "all"]
    for param, was in zip(model.params, before, strict=True):  # it worked with copies
        np.testing.assert_array_equal(param, was)


@pytest.mark.parametrize("tie", [False, True])
def test_a_report_of_any_metric(tie):
    model = Rnnlm(11, 6, 6, rng=0, tie=tie)
    corpus = np.random.default_rng(0).integers(0, 11, 400)
    report = quantisation_report(model, lambda model: model.perplexity(corpus))
    assert report.metric == model.perplexity(corpus)
    names = ["embedding", "recurrent0", *([] if tie else ["affine"]), "all"]
    assert report.table["layer"].tolist() == names
    want = model.quantise().perplexity(corpus)
    assert report.table["metric"][-1] == want
    np.testing.assert_allclose(report.table["change"][-1], want - report.metric)
    figure = plot_quantisation(report)
    assert len(figure.axes[0].patches) == len(names)
    with pytest.raises(TypeError, match="model: expected weights in float32, got int8 ones; make"):
        quantisation_report(model, corpus)
    with pytest.raises(TypeError, match="model: expected layers with weights of products, got"):
        quantisation_report(TimeDropout(0.5), XS)


def test_a_report_of_a_layer_and_of_a_network():
    report = quantisation_report(TimeGRU.create(3, 5, rng=0), XS)
    assert report.table["layer"].tolist() == ["TimeGRU", "all"]
    X = np.random.default_rng(0).standard_normal((12, 7, 3)).astype(np.float32)
    model = RNNClassifier(hidden_size=5, max_epochs=1, random_state=0).fit(X, np.arange(12) % 2)
    report = quantisation_report(model.network_, X)
    assert report.table["layer"].tolist() == ["0", "affine", "all"]


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


def test_a_report_of_what_is_no_model_is_refused():
    layer = TimeAffine.create(3, 4, rng=0).quantise()
    assert repr(layer) == "TimeAffine(W (3, 4), b (4,), weights int8)"
    with pytest.raises(TypeError, match=r"model: expected a layer, .* got \[TimeAffine"):
        quantisation_report([layer], len)
