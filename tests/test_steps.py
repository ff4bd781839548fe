"""Steps with masks, resets, zoneout and variational dropout: engines against the specification,
the specification against central differences and against the plain cell run row by row."""

import gc
import tracemalloc
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers import (
    ALL_ENGINES,
    CELLS_AND_DTYPES,
    DTYPES,
    ENGINES,
    PARTITIONS,
    REPRESENTATIVES,
    Array,
    Problem,
    cancels,
    central_differences,
    random_problem,
    relative_error,
    start,
)
from numba_rnn import cell, cells, use_backend
from numba_rnn.functions import sqrt, tanh
from numba_rnn.kernels import counter_rng
from numba_rnn.kernels.cpu import launch, plans
from numba_rnn.kernels.reference import NumpyEngine
from numba_rnn.kernels.step_options import NO_OPTIONS, StepOptions

LIMITS = {np.float32: 1e-4, np.float64: 1e-12}
FEATURES = ("mask", "resets", "initial", "recurrent_mask", "zoneout", "expected", "trace", "clip")


def random_options(p: Problem, features: set[str], seed: int = 0) -> StepOptions:
    """Random steps with these features; zoneout is drawn unless "expected" is among them."""
    rng = np.random.default_rng(seed)
    (N, T, _), H = p.xs.shape, p.cell.hidden_size(p.params)
    S, dtype = len(p.cell.states), p.xs.dtype
    made: dict[str, Any] = {}
    if "mask" in features:
        made["mask"] = rng.random((N, T)) < 0.6
    if "resets" in features:
        made["resets"] = rng.random((N, T)) < 0.4
    if "initial" in features:
        starts = [rng.uniform(-1, 1, H) + start(p.cell, name) for name in p.cell.states]
        made["initial"] = np.array(starts, dtype)
    if "recurrent_mask" in features:
        made["recurrent_mask"] = (2 * rng.integers(0, 2, (N, H))).astype(dtype)
    if "zoneout" in features:
        made["zoneout"] = tuple(rng.uniform(0.1, 0.6, S))
        made["seed"] = None if "expected" in features else int(rng.integers(2**63))
        made |= {"t_offset": int(rng.integers(2**31)), "row_offset": int(rng.integers(2**31))}
    if "clip" in features:
        made["clip"] = 0.4  # every other state or so
    return StepOptions(**made, trace="trace" in features)


def outcome(engine: NumpyEngine, p: Problem, steps: StepOptions) -> dict[str, Array]:
    there = {
        name: engine.to_device(value)
        for name in ("initial", "recurrent_mask")
        if (value := getattr(steps, name)) is not None
    }
    steps = replace(steps, **there) if steps is not NO_OPTIONS else steps
    p = p.map(engine.to_device)
    hs, state, saved = engine.forward(p.cell, p.xs, p.state, p.params, steps)
    found = engine.backward(p.cell, p.dhs, p.dstate, saved)
    arrays = {"hs": hs, "dxs": found.xs}
    arrays |= {f"{n} at the end": a for n, a in zip(p.cell.states, state, strict=True)}
    arrays |= {f"d{n}": a for n, a in zip(p.cell.states, found.state, strict=True)}
    arrays |= {f"d{n}": a for n, a in zip(p.cell.shapes(1, 1), found.params, strict=True)}
    before = engine.states_before(p.cell, saved)
    arrays |= {f"{n} before": a for n, a in zip(p.cell.states, before, strict=True)}
    if steps.resets is not None:
        arrays["dinitial"] = found.initial
    if steps.trace:
        arrays["dstates"] = found.states
    return {name: engine.to_host(array) for name, array in arrays.items()}


def disagreements(got: dict[str, Array], want: dict[str, Array], limit: float) -> dict[str, float]:
    assert got.keys() == want.keys()
    errors = {name: relative_error(got[name], want[name]) for name in want}
    return {name: error for name, error in errors.items() if error > limit}


@pytest.mark.parametrize(("name", "dtype"), CELLS_AND_DTYPES)
@pytest.mark.parametrize("backend", ENGINES)
@settings(max_examples=8, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40)),
    features=st.sets(st.sampled_from(FEATURES)),
    partition=st.sampled_from(PARTITIONS),
    seed=st.integers(0, 1 << 32),
)
def test_engines_agree_with_the_reference(backend, name, dtype, sizes, features, partition, seed):
    if backend == "cuda":  # as large as an emulator can do
        sizes = tuple(1 + (size - 1) % 6 for size in sizes)
    assume(not cancels(name, sizes[3]))
    p = random_problem(name, *sizes, dtype, rng=seed)
    steps = random_options(p, features, seed)
    want = outcome(NumpyEngine(), p, steps)
    cut = mock.patch.object(launch, "choose_partition", return_value=partition)
    with use_backend(backend, strict=True) as engine, cut:
        assert disagreements(outcome(engine, p, steps), want, LIMITS[dtype]) == {}


def test_initial_states_may_have_another_dtype():
    p = random_problem("lstm", 3, 6, 4, 19, np.float32)
    steps = random_options(p, {"resets", "initial"})
    wide = replace(steps, initial=steps.initial.astype(np.float64))
    with use_backend("numba", strict=True) as engine:
        np.testing.assert_equal(outcome(engine, p, wide), outcome(engine, p, steps))


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_sharing_and_chunks_change_no_bit(name):
    p = random_problem(name, 5, 200, 3, 37, np.float32)
    steps = random_options(p, {"mask", "resets", "initial", "recurrent_mask", "zoneout", "trace"})
    want = outcome(NumpyEngine(), p, steps)
    with use_backend("numba", strict=True) as engine:
        found = []
        for partition in PARTITIONS:
            with mock.patch.object(launch, "choose_partition", return_value=partition):
                found.append(outcome(engine, p, steps))
    assert disagreements(found[0], want, 1e-3) == {}
    for other in found[1:]:
        np.testing.assert_equal(other, found[0])


@pytest.mark.parametrize("features", [set(FEATURES), set(FEATURES) - {"expected"}])
@pytest.mark.parametrize("name", cells.names())
def test_the_specifications_gradients(name, features):
    """By inputs, parameters, the state before, what resets return to; and the trace."""
    p, engine = random_problem(name, 3, 5, 3, 4, rng=3), NumpyEngine()
    steps = random_options(p, features, seed=8)

    def loss() -> float:
        hs, state, _ = engine.forward(p.cell, p.xs, p.state, p.params, steps)
        ends = zip(state, p.dstate, strict=True)
        return float((hs * p.dhs).sum()) + sum(float((s * d).sum()) for s, d in ends)

    _, _, saved = engine.forward(p.cell, p.xs, p.state, p.params, steps)
    got = engine.backward(p.cell, p.dhs, p.dstate, saved)
    arrays = (p.xs, *p.state, *p.params, steps.initial)
    gradients = (got.xs, *got.state, *got.params, got.initial)
    for array, gradient in zip(arrays, gradients, strict=True):
        assert relative_error(gradient, central_differences(loss, array)) < 1e-7


@pytest.mark.parametrize("backend", ALL_ENGINES)
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_masks_and_resets_are_what_shorter_sequences_give(backend, name):
    """Row by row: the plain cell over the steps that are left, cut at resets."""
    p = random_problem(name, 4, 7, 3, 5, rng=5)
    steps = random_options(p, {"mask", "resets", "initial"}, seed=9)
    steps.mask[0] = False  # a row with nothing in it
    with use_backend(backend, strict=True) as engine:
        got = outcome(engine, p, steps)
    plain = NumpyEngine()
    for n in range(4):
        state = tuple(s[n : n + 1] for s in p.state)
        hs = np.zeros((7, 5))
        for t in range(7):
            if steps.resets[n, t]:
                state = tuple(start[None] for start in steps.initial)
            if steps.mask[n, t]:
                state = plain.step(p.cell, p.xs[n : n + 1, t], state, p.params)
                hs[t] = state[0]
        np.testing.assert_allclose(got["hs"][n], hs, atol=1e-12)
        for k, name_ in enumerate(p.cell.states):
            np.testing.assert_allclose(got[f"{name_} at the end"][n], state[k][0], atol=1e-12)


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("backend", ALL_ENGINES)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_clipped_states_are_those_of_plain_steps_cut_off(name, backend, every):
    """After zoneout and before the mask; gradients are those of this loop."""
    limit, rates = 0.4, (0.2, 0.3)
    p, plain = random_problem(name, 3, 5, 3, 5, rng=7), NumpyEngine()
    p.state[0][:] *= 3  # what is given may be larger, and a masked step keeps it
    steps = replace(
        random_options(p, {"mask", "resets", "initial"}, seed=2),
        zoneout=rates[: len(p.state)], clip=limit, trace=True, checkpoint_every=every,
    )  # fmt: skip

    def by_hand():
        state, hs, count = p.state, np.zeros((3, 5, 5)), 0
        for t in range(5):
            reset, live = steps.resets[:, t, None], steps.mask[:, t, None]
            state = [np.where(reset, i, s) for i, s in zip(steps.initial, state, strict=True)]
            new = plain.step(p.cell, p.xs[:, t], tuple(state), p.params, steps.zoneout)
            count += sum((live & (np.abs(n) > limit)).sum() for n in new)
            new = [np.clip(n, -limit, limit) for n in new]
            hs[:, t] = np.where(live, new[0], 0)
            state = [np.where(live, n, s) for n, s in zip(new, state, strict=True)]
        return hs, state, count

    def loss() -> float:
        hs, state, _ = by_hand()
        ends = zip(state, p.dstate, strict=True)
        return float((hs * p.dhs).sum()) + sum(float((s * d).sum()) for s, d in ends)

    with use_backend(backend, strict=True) as engine:
        got = outcome(engine, p, steps)
    hs, state, count = by_hand()
    assert 5 < count < 0.7 * len(state) * steps.mask.sum() * 5
    want = {"hs": hs} | {f"{n} at the end": s for n, s in zip(p.cell.states, state, strict=True)}
    names = ["dxs", *(f"d{n}" for n in (*p.cell.states, *p.cell.shapes(1, 1))), "dinitial"]
    for key, array in zip(names, (p.xs, *p.state, *p.params, steps.initial), strict=True):
        want[key] = central_differences(loss, array)
    assert disagreements({key: got[key] for key in want}, want, 1e-7) == {}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("name", cells.names())
def test_options_that_change_nothing_are_the_plain_pass_bit_for_bit(backend, name):
    p = random_problem(name, 3, 4, 2, 5, np.float32)
    full = StepOptions(mask=np.ones((3, 4), bool), resets=np.zeros((3, 4), bool))
    with use_backend(backend, strict=True) as engine:
        plain, same = outcome(engine, p, NO_OPTIONS), outcome(engine, p, full)
    assert not same.pop("dinitial").any()
    np.testing.assert_equal(same, plain)


@cell
def turned(a, h):
    return h / sqrt(h * h + a * a)


def turn(r, h):
    return h / sqrt(h * h + r * r)


@cell(second_product="a", operand=turn)
def turned_twice(r, a, h):
    return tanh(a + r + h / sqrt(h * h + r * r))


@pytest.mark.parametrize("backend", ALL_ENGINES)
@pytest.mark.parametrize("own", [turned, turned_twice])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # in the emulator's threads
def test_infinite_derivatives_at_steps_left_out_count_for_nothing(backend, own):
    """Where a row begins late state and pre-activation are 0, and 0 / sqrt(0) has no slope."""
    p = random_problem(own.cell, 3, 6, 2, 5, np.float64)
    b, h = p.params[2], p.state[0]
    b[...], h[1], p.xs[1, :2] = 0, 0, 0
    mask = np.ones((3, 6), bool)
    mask[1, :2] = False
    h[1] = 0
    steps = StepOptions(mask=mask)
    with np.errstate(all="ignore"):
        want = outcome(NumpyEngine(), p, steps)
        with use_backend(backend, strict=True) as engine:
            got = outcome(engine, p, steps)
    assert all(np.isfinite(want[name]).all() for name in ("dWx", "dWh", "db", "dxs"))
    assert disagreements(got, want, 1e-12) == {}


@pytest.mark.parametrize("features", [set(), set(FEATURES) - {"expected"}])
@pytest.mark.parametrize("every", [1, 7, 1000])
@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("numpy", "lstm"),
        ("cuda", "lstm"),
        ("cuda", "gru"),
        *(("numba", name) for name in REPRESENTATIVES),
    ],
)
def test_what_is_computed_again_is_the_same_bit_for_bit(backend, name, every, features):
    sizes = (2, 5, 3, 5) if backend == "cuda" else (40, 27, 3, 21)
    p = random_problem(name, *sizes, np.float32)
    with use_backend(backend, strict=True) as engine:
        steps = random_options(p, features)
        want = outcome(engine, p, steps)
        got = outcome(engine, p, replace(steps, checkpoint_every=every))
    np.testing.assert_equal(got, want)


@pytest.mark.parametrize("backend", ["numba"])
def test_less_is_kept_where_less_is_asked_for(backend):
    """As much as the states at the beginning of the parts."""
    p = random_problem("lstm", 16, 320, 3, 32, np.float32)
    with use_backend(backend, strict=True) as engine:

        def extra(steps):
            gc.collect()
            plans.free_buffers()
            tracemalloc.start()
            saved = engine.forward(p.cell, p.xs, p.state, p.params, steps)[2]
            gc.collect()
            plans.free_buffers()
            size, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert saved
            return size

        extra(NO_OPTIONS)
        all_, some, few = (
            extra(NO_OPTIONS),
            extra(StepOptions(checkpoint_every=32)),
            extra(StepOptions(checkpoint_every=160)),
        )
    states = 2 * p.state[0].nbytes
    assert all_ > 320 * 6 * p.state[0].nbytes
    assert some < 2 * 10 * states
    assert few < 2 * 2 * states


# ---- what is drawn


def test_draws_are_as_many_as_they_should_and_depend_on_everything():
    for rate in (0.003, 0.3, 0.5, 0.97):
        drawn = counter_rng.drawn(11, (64, 35, 650), rate)
        assert abs(drawn.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / drawn.size)
    drawn = counter_rng.drawn(5, (16, 64, 256), 0.3)
    for axis in range(3):  # no row, step or unit is drawn more than others
        others = tuple(k for k in range(3) if k != axis)
        count = drawn.size // drawn.shape[axis]
        assert np.abs(drawn.mean(axis=others) - 0.3).max() < 6 * np.sqrt(0.3 * 0.7 / count)
    for a, b in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1]),
                 (drawn[..., 1:], drawn[..., :-1]),
                 (drawn[0], counter_rng.drawn(6, (64, 256), 0.3))):  # fmt: skip
        together = (a & b).mean()
        assert abs(together - 0.09) < 6 * np.sqrt(0.09 * 0.91 / a.size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_dropout_is_the_same_on_every_engine(backend, dtype):
    for seed, shape, rate, row_offset in (
        (0, (1, 1), 0.5, 0), (2**63 + 5, (7, 45), 0.3, 2**32 - 8), (9, (300, 1), 0.9, 3),
        (2**64 - 1, (3, 5, 17), 0.999, 7), (4, (2, 3, 1, 16), 0.0, 1), (5, (0, 3, 4), 0.5, 0),
    ):  # fmt: skip
        with use_backend(backend, strict=True) as engine:
            got = engine.to_host(engine.dropout(seed, shape, rate, np.dtype(dtype), row_offset))
        assert got.dtype == dtype
        gone = counter_rng.drawn(seed, shape, rate, row_offset=row_offset)
        np.testing.assert_array_equal(got, np.where(gone, 0, dtype(1 / (1 - rate))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_zoneout_is_the_same_on_every_engine_and_in_parts_of_the_batch(backend, dtype):
    """A unit's new value is tanh of the input, so those with another value were drawn."""
    N, T, H = 5, 7, 21
    xs = np.broadcast_to(np.linspace(0.1, 0.9, T, dtype=dtype)[:, None], (N, T, 1)).copy()
    params = [np.ones((1, H), dtype), np.zeros((H, H), dtype), np.zeros(H, dtype)]
    whole = StepOptions(zoneout=(0.3,), seed=2**64 - 9, t_offset=6, row_offset=4)

    def extra(rows, times):
        options = replace(whole, row_offset=4 + rows.start).segment(times.start, times.stop)
        with use_backend(backend, strict=True) as engine:
            there = [engine.to_device(a) for a in (xs[rows, times].copy(), *params)]
            state = (engine.xp.zeros((rows.stop - rows.start, H), dtype),)
            hs, _, _ = engine.forward(cells.get("rnn"), there[0], state, there[1:], options)
            (new,) = engine.forward(cells.get("rnn"), there[0][:1], (state[0][:1],), there[1:])[:1]
            return engine.to_host(hs) != engine.to_host(new)

    want = counter_rng.drawn(whole.seeds[0], (N, T, H), 0.3, 6, 4)
    for rows in (slice(0, N), slice(0, 2), slice(2, N)):
        for times in (slice(0, T), slice(0, 3), slice(3, T)):
            np.testing.assert_array_equal(extra(rows, times), want[rows, times])


def test_draws_stay_what_they_are():
    """A seed means the same in every version: these are the numbers of the first."""
    found = counter_rng.drawn(2024, (2, 40), 0.5, t=3)
    assert ["".join("01"[int(x)] for x in row) for row in found] == KNOWN


KNOWN = [
    "1111000001000011010101101001011110000100",
    "1000010110001101001010001101111000101111",
]
