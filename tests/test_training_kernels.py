"""The compiled kernels of training against float64; and no bit depends on the number of threads."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from test_memory import GUARDED

from helpers import BACKENDS, Array, relative_error, run_python
from numba_rnn import TimeAdaptiveSoftmaxWithLoss, TimeSoftmaxWithLoss, training, use_backend
from numba_rnn.kernels.cpu import engine as cpu
from numba_rnn.kernels.cpu import parallel_for, product, threads
from numba_rnn.kernels.cpu import training as compiled
from numba_rnn.kernels.reference import NumpyEngine
from numba_rnn.training import accumulation, averages, optimisers

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SIZES = [(), (1,), (0, 3), (15,), (16, 1), (3, 17), (4095,), (4097,), (70, 130)]
# rows, classes; rows of A, inner axis, columns of B
SCORES = [(0, 5), (1, 1), (3, 7), (5, 16), (7, 17), (33, 4097)]
SEGMENTS = [(5, 3, 4), (1, 1, 1), (4, 7, 0), (30, 65, 900), (9, 130, 5)]  # words, size, steps
MATRICES = [
    (1, 300, 300),
    (7, 33, 400),
    (97, 1025, 65),
    (96, 1024, 64),
    (100, 2500, 17),
    (130, 9000, 40),
]


def tolerance(dtype: Any) -> float:
    return 2e-6 if dtype == np.float32 else 4e-15


@pytest.fixture
def engine() -> Iterator[Any]:
    with use_backend("numba", strict=True) as engine:
        yield engine


class Poisoned:
    """NumPy, but what it makes for others to fill is full of NaN."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def empty(shape: Any, dtype: Any = float) -> Array:
        return np.full(shape, np.nan, dtype)

    @staticmethod
    def empty_like(array: Array) -> Array:
        return np.full_like(array, np.nan)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    with (
        mock.patch.object(compiled, "np", Poisoned()),
        mock.patch.object(product, "np", Poisoned()),
    ):
        yield


def groups(name: str, dtype: Any, order: str = "C") -> tuple[Any, list[list[Array]]]:
    """An optimiser after two updates, and for each size its arrays and its gradient."""
    rng, optimiser = np.random.default_rng(7), optimisers.create(name)
    optimiser.updates = 2
    made = [
        [np.asarray(np.abs(rng.standard_normal(size)), dtype, order=order) for _ in range(count)]
        for size in SIZES
        for count in [2 + len(optimiser.slots)]
    ]
    return optimiser, made


@DTYPES
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", optimisers.NAMES)
def test_rules(engine, name, order, dtype):
    optimiser, got = groups(name, dtype, order)
    want = [[array.astype(np.float64) for array in group] for group in got]
    gradients = [group[-1].copy() for group in got]
    engine.update_all(optimiser.rule, got, optimiser._numbers(), 0.37)
    NumpyEngine().update_all(optimiser.rule, want, optimiser._numbers(), 0.37)
    assert optimiser.rule not in cpu._INTERPRETED
    for group, expected, gradient in zip(got, want, gradients, strict=True):
        np.testing.assert_array_equal(group[-1], gradient)  # only read
        for array, one in zip(group[:-1], expected[:-1], strict=True):
            np.testing.assert_allclose(array, one, rtol=tolerance(dtype), atol=tolerance(dtype))


@DTYPES
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("rule", "numbers"),
    [(averages._towards, (0.3,)), (accumulation._add, ()), (accumulation._take, ())],
    ids=["average", "add", "take"],
)
def test_rules_of_averages_and_sums(engine, rule, numbers, order, dtype):
    _, got = groups("sgd", dtype, order)
    want = [[array.astype(np.float64) for array in group] for group in got]
    engine.update_all(rule, got, numbers, 0.37)
    NumpyEngine().update_all(rule, want, numbers, 0.37)
    assert rule not in cpu._INTERPRETED
    for (array, _), (one, _) in zip(got, want, strict=True):
        np.testing.assert_allclose(array, one, rtol=tolerance(dtype), atol=tolerance(dtype))


def test_arrays_with_gaps_and_of_different_orders(engine):
    optimiser, wide = training.Adam(), np.ones((6, 8))
    optimiser.updates = 1
    for arrays in (
        [wide[:, ::2].copy()[:, :3] for _ in range(4)],
        [np.asarray(np.ones((3, 5)), order=order) for order in "CFCF"],
    ):
        want = [array.copy() for array in arrays]
        engine.update_all(optimiser.rule, [arrays], optimiser._numbers())
        NumpyEngine().update_all(optimiser.rule, [want], optimiser._numbers())
        for got, expected in zip(arrays, want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_a_rule_that_cannot_be_compiled_runs_in_numpy(engine):
    def rule(W, dW, lr):
        return (W - lr * np.fft.fft(dW).real,)

    W = np.arange(5.0)
    engine.update_all(rule, [[W, np.ones(5)]], (2.0,))
    np.testing.assert_allclose(W, [-10, 1, 2, 3, 4], atol=1e-12)


def test_a_parameter_that_comes_twice_is_updated_twice(engine):
    W, dW = np.zeros(50_000), np.ones(50_000)
    engine.update_all(lambda W, dW: (2 * W + dW,), [[W, dW], [W, dW]], ())
    np.testing.assert_array_equal(W, 3)


def test_parameters_that_share_memory_are_updated_in_turn(engine):
    whole, dW = np.zeros(60_000, np.float32), np.ones(50_000, np.float32)
    for _ in range(5):
        training.SGD(1.0).update([whole[:50_000], whole[10_000:]], [dW, dW])
    np.testing.assert_array_equal(whole[10_000:50_000], -10)


def test_rules_that_are_no_plain_functions(engine):
    class Rule:
        def bound(self, W, dW, lr):
            return (W - lr * dW,)

    for rule in (Rule().bound, partial(lambda sign, W, dW, lr: (W + sign * lr * dW,), -1)):
        W = np.ones(40)
        engine.update_all(rule, [[W, np.ones(40)]], (0.5,))
        np.testing.assert_array_equal(W, 0.5)
    for wrong in (lambda W, dW, lr: (W - lr * dW, W), lambda W, dW, lr: ()):
        with pytest.raises(ValueError, match="argument 2"):
            engine.update_all(wrong, [[np.ones(40), np.ones(40)]], (0.5,))
    W, v = np.ones(40), np.zeros(40)
    engine.update_all(lambda W, v, dW, lr: (W - lr * dW, 1.0), [[W, v, np.ones(40)]], (0.5,))
    assert (W == 0.5).all()
    assert (v == 1).all()


def test_a_refused_update_does_not_count(engine):
    class Wrong(training.SGD):
        rule = staticmethod(lambda W, dW, lr: (W, W))

    optimiser = Wrong()
    with pytest.raises(ValueError, match="zip"):
        optimiser.update([np.ones(3)], [np.ones(3)])
    assert optimiser.updates == 0


def test_a_factor_that_is_too_small_for_the_dtype_leaves_gradients_as_they_are():
    W, dW = np.zeros(3, np.float32), np.full(3, 1e30, np.float32)
    training.SGD(1.0).update([W], [dW], max_norm=1e-12)
    np.testing.assert_array_equal(dW, np.float32(1e30))
    np.testing.assert_allclose(W, -1e-12 / math.sqrt(3), rtol=1e-5)
    huge = np.full(3, 1.5e308)
    with pytest.raises(ValueError, match="grads: expected a norm that can be clipped, got inf"):
        training.SGD().update([np.zeros(3)], [huge], max_norm=1.0)


def test_other_numbers_are_left_to_numpy(engine):
    ones = np.ones((80, 80), np.int32)
    np.testing.assert_array_equal(engine.product(ones, ones), np.full((80, 80), 80))
    swapped = np.ones((80, 80), ">f4")
    np.testing.assert_array_equal(engine.product(swapped, swapped), np.full((80, 80), 80.0))
    out = np.zeros((2, 3), np.float32)
    engine.add_rows(out, np.array([1, 1]), np.full((2, 3), 0.25))
    np.testing.assert_array_equal(out, [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_a_rule_without_numbers(engine):
    W = np.arange(40.0)
    engine.update_all(lambda W, dW: (W - dW,), [[W, np.ones(40)]], (), 3.0)
    np.testing.assert_array_equal(W, np.arange(40.0) - 3)


@DTYPES
def test_norms(engine, dtype):
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal(size).astype(dtype) for size in SIZES]
    arrays.append(rng.standard_normal((9, 9)).astype(dtype)[::2, ::3])
    want = math.sqrt(math.fsum(float(x) ** 2 for array in arrays for x in array.ravel()))
    assert math.isclose(engine.norm(arrays), want, rel_tol=tolerance(dtype))
    for factor in (1e-36, 1e36) if dtype == np.float32 else (1e-306, 1e304):
        norm = engine.norm([array * dtype(factor) for array in arrays])
        assert math.isclose(norm, want * factor, rel_tol=10 * tolerance(dtype))
    assert math.isnan(engine.norm([*arrays, np.array([np.nan], dtype)]))
    assert engine.norm([np.array([1, -np.inf], dtype), arrays[3]]) == np.inf


@DTYPES
@pytest.mark.parametrize("name", optimisers.NAMES)
def test_clipping_on_the_way_is_clipping_before(name, dtype):
    for limit in (0.5, 1e9):
        (first, made), (second, other) = groups(name, dtype), groups(name, dtype)
        W, V = ([group[0] for group in found] for found in (made, other))
        dW, dV = ([group[-1] for group in found] for found in (made, other))
        norm = training.clip_grads(dV, limit)
        second.update(V, dV)
        before = [d.copy() for d in dW]
        assert first.update(W, dW, max_norm=limit) == norm
        for a, b, d, kept in zip(W, V, dW, before, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance(dtype), atol=tolerance(dtype))
            np.testing.assert_array_equal(d, kept)
    with pytest.raises(ValueError, match=r"grads\[1\]: expected finite"):
        training.SGD().update([np.ones(2)] * 2, [np.ones(2), np.array([1, np.nan])], max_norm=1)
    with pytest.raises(ValueError, match="max_norm: expected"):
        training.SGD().update([np.ones(2)], [np.ones(2)], max_norm=0)


@DTYPES
@pytest.mark.parametrize(("rows", "V"), SCORES)
def test_softmax(engine, rows, V, dtype):
    rng = np.random.default_rng(rows)
    scores = (5 * rng.standard_normal((rows, V))).astype(dtype)
    labels, weights = rng.integers(0, V, rows), rng.random(rows)
    weights[::3] = 0
    exact, each = scores.astype(np.float64), np.arange(rows)
    sums = engine.log_sum_exp(scores)
    assert sums.dtype == np.float64
    want = logsumexp(exact, axis=1) if rows else np.empty(0)
    np.testing.assert_array_equal(sums[0], scores.max(axis=1) if rows else [])
    np.testing.assert_allclose(sums.sum(axis=0), want, rtol=0, atol=10 * tolerance(dtype))
    gradient = weights[:, None] * softmax(exact, axis=1) if rows else exact
    gradient[each, labels] -= weights
    labels[1::3] = -1  # in other columns
    gradient[1::3] = (weights[:, None] * np.exp(exact - want[:, None]))[1::3]
    got = engine.softmax_gradient(scores, sums, labels, weights)
    np.testing.assert_allclose(got, gradient, rtol=4 * tolerance(dtype), atol=2 * tolerance(dtype))
    assert not got[::3].any()


@DTYPES
def test_scores_at_the_ends(engine, dtype):
    top = np.finfo(dtype).max
    scores = np.array([[top, -top, 0.0], [-np.inf, 1.0, 1.0], [np.nan, 1.0, 2.0]], dtype)
    sums = engine.log_sum_exp(scores)
    want = [[top, 1, np.nan], [0, math.log(2), np.nan]]
    np.testing.assert_allclose(sums, want, rtol=tolerance(dtype))
    gradient = engine.softmax_gradient(scores[:2], sums[:, :2].copy(), np.array([0, 1]), np.ones(2))
    want = [[0, 0, 0], [0, -0.5, 0.5]]
    np.testing.assert_allclose(gradient, want, atol=tolerance(dtype))


def test_the_gradient_of_a_loss_may_be_asked_for_twice(engine):
    xs, ts = np.random.default_rng(0).standard_normal((3, 4, 5)), np.arange(12).reshape(3, 4) % 5
    loss = TimeSoftmaxWithLoss()
    loss.forward(xs, ts)
    first = loss.backward()
    kept = first.copy()
    first[...] = np.nan
    np.testing.assert_array_equal(loss.backward(2.0), 2 * kept)


@DTYPES
@pytest.mark.parametrize(("V", "D", "K"), SEGMENTS)
@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_embedding_gradients(engine, V, D, K, kind, dtype):
    rng = np.random.default_rng(K)
    out, values = (rng.standard_normal((n, D)).astype(dtype) for n in (V, K))
    rows, want = rng.integers(0, V, K).astype(kind), out.astype(np.float64)
    np.add.at(want, rows, values.astype(np.float64))
    engine.add_rows(out, rows, values)
    np.testing.assert_allclose(out, want, rtol=0, atol=40 * tolerance(dtype))


def matrices(M: int, K: int, P: int, dtype: Any, turned: tuple[bool, bool]) -> list[Array]:
    rng = np.random.default_rng(M)
    shapes = ((K, M) if turned[0] else (M, K)), ((P, K) if turned[1] else (K, P))
    made = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    return [matrix.T if turn else matrix for matrix, turn in zip(made, turned, strict=True)]


@DTYPES
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("sizes", MATRICES)
def test_products(engine, sizes, turned, dtype):
    a, b = matrices(*sizes, dtype, turned)
    M, _, P = sizes
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert product.takes(a, b)
    assert relative_error(engine.product(a, b), want) < tolerance(dtype)
    bias, sums, out = (np.full(shape, np.nan, dtype) for shape in ((P,), (P,), (M, P)))
    bias[:] = np.arange(P)
    assert product.product(a, b, bias, sums, out) is out
    assert relative_error(out, want + bias) < tolerance(dtype)
    assert relative_error(sums, b.astype(np.float64).sum(axis=0)) < 4 * tolerance(dtype)


def test_products_that_are_left_to_numpy(engine):
    a, b = np.ones((2, 40, 50)), np.ones((2, 50, 60))
    np.testing.assert_array_equal(engine.product(a, b), np.full((2, 40, 60), 50.0))
    gaps = np.ones((300, 600))[:, ::2]
    np.testing.assert_array_equal(engine.product(gaps, gaps), np.full((300, 300), 300.0))
    assert engine.product(np.ones((300, 0)), np.ones((0, 300))).shape == (300, 300)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adaptive_softmax_is_that_of_pytorch(backend):
    rng = np.random.default_rng(0)
    xs, ts = rng.standard_normal((3, 40, 12)), rng.integers(0, 100, (3, 40))
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(12, 100, [7, 30], div_value=2.0).double()
    weights = [p.detach().numpy().T.copy() for p in theirs.parameters()]
    there = torch.tensor(xs.reshape(-1, 12), requires_grad=True)
    _, want = theirs(there, torch.tensor(ts.reshape(-1)))
    want.backward()
    with use_backend(backend, strict=True):
        ours = TimeAdaptiveSoftmaxWithLoss(*weights)
        assert ours.cutoffs == (7, 30, 100)
        assert ours.forward(xs, ts) == pytest.approx(want.item(), rel=1e-12)
        dxs = ours.backward()
        probabilities = ours.log_probabilities(xs)
        np.testing.assert_allclose(np.exp(probabilities).sum(axis=2), 1, rtol=1e-12)
        picked = np.take_along_axis(probabilities, ts[:, :, None], axis=2)
        assert -picked.mean() == pytest.approx(want.item(), rel=1e-12)
        assert ours.log_probabilities(xs[:0]).shape == (0, 40, 100)
        assert ours.forward(xs, np.where(ts < 7, ts, -1)) > 0  # no cluster has a label
        assert not any(grad.any() for grad in (ours.backward(), ours.grads)[1][1:])
    np.testing.assert_allclose(dxs.reshape(-1, 12), there.grad.numpy(), rtol=1e-9, atol=1e-14)
    expected = theirs.log_prob(there).detach().numpy()
    np.testing.assert_allclose(probabilities.reshape(-1, 100), expected, rtol=1e-11)


def everything(dtype: Any) -> list[Array]:
    """The results of all kernels."""
    engine, rng = cpu.NumbaEngine(), np.random.default_rng(5)
    optimiser, arrays = groups("adam", dtype)
    engine.update_all(optimiser.rule, arrays, optimiser._numbers(), 0.3)
    found = [array for group in arrays for array in group]
    found.append(np.array(engine.norm(found)))
    scores, labels = rng.standard_normal((33, 4097)).astype(dtype), rng.integers(0, 4097, 33)
    sums = engine.log_sum_exp(scores)
    found += [sums, engine.softmax_gradient(scores, sums, labels, np.ones(33))]
    out, rows = np.zeros((9, 300), dtype), rng.integers(0, 9, 500)
    engine.add_rows(out, rows, rng.standard_normal((500, 300)).astype(dtype))
    sums, bias = np.empty((2, 400), dtype)
    bias[...] = 1
    for turned in ((False, False), (True, True)):
        a, b = matrices(250, 1300, 400, dtype, turned)
        found += [product.product(a, b, bias, sums), sums.copy()]
    return [*found, out]


@DTYPES
def test_no_bit_depends_on_the_number_of_threads(dtype):
    with mock.patch.object(parallel_for, "ALONE", 0):
        found = []
        for count in (1, 2, 3, 5):
            with mock.patch.object(threads, "available", return_value=count):
                found.append(everything(dtype))
    for other in found[1:]:
        for array, want in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(array, want)


GUARDED_TRAINING = (
    GUARDED
    + """
from numba_rnn.kernels.cpu import product, training
from numba_rnn.training import Adam

optimiser, rng = Adam(), np.random.default_rng(0)
optimiser.updates = 1
with (use_backend("numba", strict=True) as engine,
      mock.patch.object(product, "aligned", aligned),
      mock.patch.object(product, "np", Guarded()),
      mock.patch.object(training, "np", Guarded())):
    for dtype in (np.float32, np.float64):
        def made(*shape):
            return guarded(rng.standard_normal(shape).astype(dtype))
        for size in (1, 15, 16, 17, 4095, 4097):
            arrays = [made(size) for _ in range(4)]
            engine.update_all(optimiser.rule, [arrays], optimiser._numbers())
            engine.norm(arrays)
        for rows, V in ((1, 1), (3, 7), (2, 16), (2, 33), (3, 4097)):
            scores, labels = made(rows, V), guarded(rng.integers(0, V, rows))
            sums = guarded(engine.log_sum_exp(scores))
            engine.softmax_gradient(scores, sums, labels, guarded(np.ones(rows)))
        for V, D, K in ((3, 1, 5), (2, 17, 40), (4, 64, 3), (4, 67, 70)):
            engine.add_rows(made(V, D), guarded(rng.integers(0, V, K)), made(K, D))
        for M, K, P in ((1, 300, 300), (7, 33, 400), (97, 1025, 65), (100, 2500, 17)):
            for a in (made(M, K), made(K, M).T):
                for b in (made(K, P), made(P, K).T):
                    assert product.takes(a, b)
                    product.product(a, b, made(P), made(P), made(M, P))
print("nothing was touched")
"""
)


def test_nothing_outside_an_array_is_touched():
    assert run_python(GUARDED_TRAINING).stdout == "nothing was touched\n"
