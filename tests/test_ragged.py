"""Batches whose members differ in length: the same bits as where all are padded to one length."""

import gc
import tracemalloc
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_steps import FEATURES, outcome, random_options

from helpers import (
    ALL_ENGINES,
    CELLS_AND_DTYPES,
    PARTITIONS,
    REPRESENTATIVES,
    random_problem,
    relative_error,
)
from numba_rnn import use_backend
from numba_rnn.kernels.cpu import launch, plans
from numba_rnn.kernels.quantisation import quantise
from numba_rnn.kernels.ragged import Ragged
from numba_rnn.kernels.step_options import StepOptions

LIMITS = {np.float32: 2e-5, np.float64: 1e-13}
SUMS = "dWx", "dWh", "db", "dw", "dWr"  # over rows, whose order differs


def shared(partition):
    return mock.patch.object(launch, "choose_partition", return_value=partition)


def padded():
    """Run all steps of all members."""
    return mock.patch.object(Ragged, "of_flags", return_value=None)


def live(lengths, T, backwards=False):
    mask = np.arange(T) < np.asarray(lengths)[:, None]
    return mask[:, ::-1] if backwards else mask


def poisoned(p, mask):
    """NaN wherever a masked step could be read."""
    dhs = p.dhs.copy()
    p = replace(p, xs=np.where(mask[:, :, None], p.xs, np.nan).astype(p.xs.dtype), dhs=dhs)
    dhs[~mask] = np.nan
    return p


def assert_same(got, want, limit):
    assert got.keys() == want.keys()
    for name, array in want.items():
        if name in SUMS:
            assert relative_error(got[name], array) < limit, name
        else:
            np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize(("name", "dtype"), CELLS_AND_DTYPES)
@settings(max_examples=12, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 9), st.integers(1, 40)),
    lengths=st.lists(st.integers(0, 12), min_size=9, max_size=9),
    features=st.sets(st.sampled_from(sorted({*FEATURES, "backwards", "gaps"} - {"mask"}))),
    partition=st.sampled_from(PARTITIONS),
    every=st.sampled_from([0, 0, 1, 5]),
    seed=st.integers(0, 1 << 32),
)
def test_bits_are_those_of_the_padded_batch(
    name, dtype, sizes, lengths, features, partition, every, seed
):
    N, T, _, _ = sizes
    p = random_problem(name, *sizes, dtype, rng=seed)
    options = random_options(p, features, seed)
    mask = live(np.minimum(lengths[:N], T), T, "backwards" in features)
    if "gaps" in features:
        mask = mask & random_options(p, {"mask"}, seed).mask
    options = replace(options, mask=mask, checkpoint_every=every)
    p = poisoned(p, mask)
    with use_backend("numba", strict=True) as engine, shared(partition):
        got = outcome(engine, p, options)
        with padded():
            want = outcome(engine, p, options)
    assert_same(got, want, LIMITS[dtype])


LENGTHS = {
    "uniform": lambda rng, N, T: rng.integers(0, T + 1, N),
    "one long": lambda rng, N, T: np.where(np.arange(N) == N // 2, T, 2),
    "sorted": lambda rng, N, T: np.sort(rng.integers(1, T + 1, N))[::-1],
    "equal": lambda rng, N, T: np.full(N, T - 1),
    "two steps": lambda rng, N, T: np.minimum(rng.integers(0, 3, N), 2),
}


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_chunks_threads_and_segments_change_no_bit(name, kind):
    """Of many chunks, of as many members as there are, or of a single one."""
    rng, N, T = np.random.default_rng(3), 40, 300
    p = random_problem(name, N, T, 3, 21, np.float32)
    mask = live(LENGTHS[kind](rng, N, T), T)
    features = set(FEATURES) - {"mask", "expected", "clip"}
    steps = replace(random_options(p, features), mask=mask)
    p = poisoned(p, mask)
    found = []
    with use_backend("numba", strict=True) as engine:
        for options in (replace(steps, resets=None, zoneout=(), recurrent_mask=None), steps):
            with padded():
                want = outcome(engine, p, options)
            found = []
            for partition in PARTITIONS:
                with shared(partition):
                    found.append(outcome(engine, p, options))
            for every in (1, 70, 1000):
                found.append(outcome(engine, p, replace(options, checkpoint_every=every)))
            assert_same(found[0], want, 1e-4)
            for other in found[1:]:
                np.testing.assert_equal(other, found[0])


def permuted(p, order):
    return p.map(lambda a: a[order], lambda a: a[order], lambda a: a, *[lambda a: a[order]] * 2)


@pytest.mark.parametrize("name", ["lstm", "gru2"])
def test_the_order_of_members_changes_no_bit(name):
    """Nor that of the weights' gradients, where all lengths differ."""
    N, T = 30, 90
    rng = np.random.default_rng(1)
    p = random_problem(name, N, T, 3, 21, np.float32)
    mask, order = live(rng.permutation(T)[:N], T), rng.permutation(N)
    with use_backend("numba", strict=True) as engine:
        want = outcome(engine, p, StepOptions(mask=mask))
        got = outcome(engine, permuted(p, order), StepOptions(mask=mask[order]))
    for key, array in want.items():
        np.testing.assert_array_equal(got[key], array if key in SUMS else array[order], key)


@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_packed_rows_give_what_padded_ones_give(backend):
    sizes = (5, 6, 3, 7)
    p = random_problem("gru", *sizes, np.float64)
    lengths = np.array([2, 6, 1, 4, 4])
    members, mask = Ragged.of(lengths), live(lengths, 6)
    q = permuted(p, members.order)
    counts = Ragged.of_counts(members.counts)
    with use_backend(backend, strict=True) as engine:
        padded_hs, state, saved = engine.forward(*device(engine, p), StepOptions(mask=mask))
        dhs, dstate = (
            engine.to_device(p.dhs), tuple(map(engine.to_device, p.dstate)),
        )  # fmt: skip
        want = engine.backward(p.cell, dhs, dstate, saved)
        cell, _, sorted_state, params = device(engine, q)
        xs, dhs = (engine.to_device(members.pack(a)) for a in (p.xs, p.dhs))
        hs, last, saved = engine.forward_packed(cell, xs, counts, sorted_state, params)
        got = engine.backward_packed(cell, dhs, tuple(d[members.order] for d in dstate), saved)
        host = engine.to_host
        np.testing.assert_array_equal(host(hs), members.pack(host(padded_hs)))
        np.testing.assert_array_equal(host(got.xs), members.pack(host(want.xs)))
        np.testing.assert_array_equal(host(last[0]), host(state[0])[members.order])
        for a, b in zip(got.params, want.params, strict=True):
            assert relative_error(host(a), host(b)) < 1e-13


def device(engine, p):
    moved = p.map(engine.to_device)
    return p.cell, moved.xs, moved.state, moved.params


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_narrow_products_have_the_same_bits(precision):
    p = random_problem("gru2", 9, 40, 5, 37, np.float32)
    mask = live(np.random.default_rng(2).integers(0, 41, 9), 40)
    p, options = poisoned(p, mask), StepOptions(mask=mask)
    params = p.params
    if precision == "int8":
        params = (*(quantise(W) for W in params[:2]), *params[2:])
    with use_backend("numba", strict=True) as engine:
        engine = engine.with_precision("bfloat16" if precision == "bfloat16" else "float32")
        for partition in PARTITIONS[:3]:
            with shared(partition):
                hs, last, _ = engine.forward(p.cell, p.xs, p.state, params, options)
                with padded():
                    want, state, _ = engine.forward(p.cell, p.xs, p.state, params, options)
            np.testing.assert_array_equal(hs, want)
            np.testing.assert_array_equal(last, state)
            if precision == "bfloat16":
                with shared(partition):
                    got = outcome(engine, p, options)
                    with padded():
                        expected = outcome(engine, p, options)
                assert_same(got, expected, 1e-2)


def test_memory_is_that_of_the_real_steps():
    """One member of 4000 steps and 199 of 2, beside a dense batch of as many steps."""
    lengths = np.where(np.arange(200) == 7, 4000, 2)
    members = Ragged.of(lengths)
    counts, D, H = Ragged.of_counts(members.counts), 8, 32
    p = random_problem("lstm", 1, 1, D, H, np.float32)

    def peak(run):
        run()
        gc.collect()
        plans.free_buffers()
        tracemalloc.start()
        run()
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    def zeros(*shape):
        return np.zeros(shape, np.float32)

    with use_backend("numba", strict=True) as engine:

        def packed():
            xs, state = zeros(members.rows, D), (zeros(200, H),) * 2
            hs, last, saved = engine.forward_packed(p.cell, xs, counts, state, p.params)
            engine.backward_packed(p.cell, hs, last, saved)

        def dense():
            state = (zeros(1, H),) * 2
            hs, last, saved = engine.forward(p.cell, zeros(1, members.rows, D), state, p.params)
            engine.backward(p.cell, hs, last, saved)

        assert peak(packed) < 1.5 * peak(dense)


def test_members_without_any_step_leave_the_state_as_it_is():
    p = random_problem("lstm", 3, 4, 2, 5, np.float32)
    with use_backend("numba", strict=True) as engine:
        hs, state, saved = engine.forward(
            p.cell, p.xs, p.state, p.params, StepOptions(mask=np.zeros((3, 4), bool))
        )
        found = engine.backward(p.cell, p.dhs, p.dstate, saved)
    assert not hs.any()
    assert not found.xs.any()
    assert not any(d.any() for d in found.params)
    np.testing.assert_array_equal(state, p.state)
    np.testing.assert_array_equal(found.state, p.dstate)
