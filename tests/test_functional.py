"""Forward and backward as functions: what layers compute, from their arguments alone."""

import copy
import gc
import pickle
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import numba_rnn
from fake_device import asnumpy, fake_device, use_fake_device
from helpers import (
    BACKENDS,
    REPRESENTATIVES,
    Array,
    Problem,
    central_differences,
    problem,
    random_problem,
)
from numba_rnn import TimeGRU, TimeLSTM, TimeRecurrent, cells, functional, use_backend
from numba_rnn.functional import Gradients, Record, Result, StepOptions, backward, forward, step

NONE = StepOptions()
SIZES = [(3, 5, 2, 5), (1, 1, 3, 4), (0, 4, 3, 5)]  # N, T, D, H


def run(p: Problem, options: StepOptions = NONE, **back: Any) -> tuple[Result, Gradients]:
    result = forward(p.cell, p.xs, p.state, p.params, options)
    return result, backward(result.record, p.dhs, p.dstate, **back)


def numbers(result: Result, gradients: Gradients) -> list[Array | None]:
    """All arrays of both, in order."""
    xs, state, params, initial, states = gradients
    return [result.hs, *result.state, xs, *state, *params, initial, states]


def same(got: Any, want: Any) -> None:
    """Bit for bit."""
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def all_options(p: Problem, seed: int = 1) -> StepOptions:
    """Every option that the cell can have."""
    rng, (N, T, _), S = np.random.default_rng(seed), p.dhs.shape, len(p.cell.states)
    H = p.cell.hidden_size(p.params)
    rates = [0.0 if name in p.cell.coupled else 0.3 for name in p.cell.states]
    state = p.cell.widened(np, p.state, H)
    initial = np.array([state[s][:1].mean(0) if N else np.ones(H) for s in range(S)])
    return StepOptions(
        mask=rng.random((N, T)) < 0.7,
        resets=rng.random((N, T)) < 0.4,
        initial=initial.astype(p.xs.dtype),
        recurrent_mask=(2 * rng.integers(0, 2, (N, H))).astype(p.xs.dtype),
        zoneout=rates,
        seed=7,
        trace=True,
        clip=0.6,
    )


# ---- what they compute


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", cells.names())
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_computes_the_same(backend, name, sizes):
    p = random_problem(name, *sizes, np.float32)
    layer = TimeRecurrent(*p.params, cell=name, stateful=True)
    mask = np.random.default_rng(0).random(p.xs.shape[:2]) < 0.6
    with use_backend(backend, strict=True):
        for options, steps in (NONE, {}), (StepOptions(mask=mask), {"mask": mask}):
            layer.set_state(*p.state)
            hs = layer.forward(p.xs, **steps)
            dxs = layer.backward(p.dhs, *p.dstate)
            want = [hs, *layer.state, dxs, *layer.dstate, *layer.grads]
            same(numbers(*run(p, options))[:-2], want)
            same(numbers(*run(replace(p, cell=name), options))[:-2], want)
            out = [np.full_like(param, np.nan) for param in p.params]
            _, gradients = run(p, options, out=out)
            assert all(map(np.shares_memory, gradients.params, out)) or not p.xs.size
            same(out, layer.grads)
        layer.set_state(*p.state)
        layer.step(p.xs[:, 0])
        same(step(name, p.xs[:, 0], p.state, p.params), layer.state)


@pytest.mark.parametrize("make", [TimeLSTM, TimeGRU])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_left_out_is_zero(backend, make):
    with use_backend(backend, strict=True):
        layer = make.create(3, 5, rng=0)
        xs = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
        hs, state, record = forward(layer.cell, xs, None, layer.params)
        same([hs, *state], [layer.forward(xs), *layer.state])
        layer.backward(np.zeros_like(hs), np.ones_like(hs[:, 0]))
        same(backward(record, None, [np.ones_like(hs[:, 0])]).params, layer.grads)
        dxs = layer.backward(hs)
        none = [None] * len(state)
        for dstate in (None, (), none):
            same(backward(record, hs, dstate).params, layer.grads)
            same([backward(record, hs, dstate).xs], [dxs])
        for before in ((), none, [np.zeros_like(hs[:, 0])]):
            same([forward(layer.cell, xs, before, layer.params).hs], [hs])
        assert backward(record, hs, inputs=False).xs is None
        assert backward(record, hs).initial is None  # without resets, on every engine


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_inputs_may_be_anything(backend):
    p = random_problem("lstm", 2, 5, 3, 4)
    mask = np.arange(5) < np.array([[5], [2]])
    with use_backend(backend, strict=True):
        want = numbers(*run(p, StepOptions(mask=mask)))
        p.xs[~mask] = np.nan
        same(numbers(*run(p, StepOptions(mask=mask)))[:-2], want[:-2])


@pytest.mark.parametrize("with_options", [False, True])
@pytest.mark.parametrize("name", cells.names())
def test_gradients_are_central_differences(name, with_options):
    p = problem(name, 2, 3, 2, 4, seed=5, margin=1e-3)
    options = all_options(p) if with_options else NONE

    def loss() -> float:
        hs, state, _ = forward(p.cell, p.xs, p.state, p.params, options)
        ends = zip(state, p.dstate, strict=True)
        return float((hs * p.dhs).sum()) + sum(float((s * d).sum()) for s, d in ends)

    with use_backend("numpy"):
        _, found = run(p, options)
        arrays, gradients = [p.xs, *p.state, *p.params], [found.xs, *found.state, *found.params]
        if with_options:
            arrays, gradients = [*arrays, options.initial], [*gradients, found.initial]
            assert found.states.shape == (2, 3, len(p.state), 4)
        for array, gradient in zip(arrays, gradients, strict=True):
            want = central_differences(loss, array)
            np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-7)


# ---- they keep nothing


@pytest.mark.parametrize("name", cells.names())
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_record_serves_any_number_of_backwards(backend, name):
    p = random_problem(name, 3, 7, 2, 5, np.float32)
    with use_backend(backend, strict=True):
        particular = [all_options(p)] if backend == "numpy" or name in REPRESENTATIVES else []
        for options in (NONE, StepOptions(checkpoint_every=2), *particular):
            result, first = run(p, options)
            want = numbers(result, first)
            want = [None if array is None else array.copy() for array in want]
            for array in (result.hs, *result.state, first.xs, *first.state, *first.params):
                array[...] = np.nan  # they are the caller's
            other = backward(result.record, np.ones_like(p.dhs))  # of another gradient in between
            assert not np.array_equal(other.xs, want[1 + len(p.state)])
            again = backward(result.record, p.dhs, p.dstate)
            same(numbers(result, again)[1 + len(p.state) :], want[1 + len(p.state) :])


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("backend", ["cuda"])
def test_nor_does_the_cuda_engine_change_it(backend, name, every):
    p = random_problem(name, 2, 4, 3, 5, np.float32)
    options = replace(all_options(p), checkpoint_every=every)
    with use_backend(backend, strict=True) as engine:  # emulated, on NumPy's arrays
        _, _, saved = engine.forward(p.cell, p.xs, p.state, p.params, options)
        first = engine.backward(p.cell, p.dhs, p.dstate, saved)
        want = copy.deepcopy(first)
        engine.backward(p.cell, np.ones_like(p.dhs), p.dstate, saved)
        again = engine.backward(p.cell, p.dhs, p.dstate, saved)
    for found in first, again:
        same([found.xs, *found.state, *found.params], [want.xs, *want.state, *want.params])


@pytest.mark.parametrize("backend", BACKENDS)
def test_passes_may_overlap_in_any_order(backend):
    problems = [
        random_problem(name, *sizes, dtype, rng=k)
        for k, (name, sizes, dtype) in enumerate(
            [
                ("lstm", (3, 7, 2, 5), np.float32),
                ("lstm", (3, 7, 2, 5), np.float32),
                ("gru", (1, 4, 3, 17), np.float64),
                ("rnn", (2, 9, 1, 3), np.float32),
            ]
        )
    ]
    with use_backend(backend, strict=True):
        options = [NONE, all_options(problems[1]), StepOptions(checkpoint_every=3), NONE]
        pairs = list(zip(problems, options, strict=True))
        want = [numbers(*run(p, o)) for p, o in pairs]
        for order in (0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1):
            results = [forward(p.cell, p.xs, p.state, p.params, o) for p, o in pairs]
            for k in order:
                p = problems[k]
                found = backward(results[k].record, p.dhs, p.dstate)
                same(numbers(results[k], found), want[k])


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_share_functions_and_records(backend):
    problems = [random_problem("gru", 2, 30, 3, 17, np.float32, rng=k) for k in range(4)]

    def separately(p: Problem) -> list[Array | None]:
        with use_backend(backend, strict=True):
            return numbers(*run(p))

    want = [separately(p) for p in problems]
    with use_backend(backend, strict=True):
        records = [forward(p.cell, p.xs, p.state, p.params).record for p in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, wanted in zip(pool.map(separately, problems), want, strict=True):
                same(got, wanted)
        tasks = [
            (pool.submit(backward, records[k], problems[k].dhs, problems[k].dstate), k)
            for k in [0, 1, 2, 3] * 4
        ]
        for task, k in tasks:
            same([task.result().xs, *task.result().state], want[k][2:4])


def test_backward_runs_on_the_engine_of_forward():
    p = random_problem("lstm", 2, 3, 4, 5)
    for ahead, back in BACKENDS, BACKENDS[::-1]:
        with use_backend(ahead, strict=True):
            want = numbers(*run(p))
            result = forward(p.cell, p.xs, p.state, p.params)
        with use_backend(back, strict=True):
            same(numbers(result, backward(result.record, p.dhs, p.dstate)), want)
        assert result.record.engine.name == ahead


@pytest.mark.parametrize("backend", BACKENDS)
def test_arguments_stay_and_flags_are_copied(backend):
    p = random_problem("gru", 3, 5, 2, 4)
    options = all_options(p)
    given = [*p.arrays(), options.mask, options.resets, options.initial, options.recurrent_mask]
    before = [array.copy() for array in given]
    with use_backend(backend, strict=True):
        want = numbers(*run(p, options))
        same(given, before)
        result = forward(p.cell, p.xs, p.state, p.params, options)
        for array in (options.mask, options.resets, *p.state):  # what backward does not refer to
            array[...] = 0
        same(numbers(result, backward(result.record, p.dhs, p.dstate)), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_goes_with_the_record(backend):
    p = random_problem("lstm", 64, 200, 8, 32)
    with use_backend(backend, strict=True):
        run(p)
        gc.disable()  # nothing waits for the collector
        try:
            tracemalloc.start()
            records = [forward(p.cell, p.xs, p.state, p.params).record for _ in range(4)]
            kept, seen = tracemalloc.get_traced_memory()[0], list(map(weakref.ref, records))
            assert kept > 3 * 64 * 200 * 32 * 6 * 8
            records.clear()
            assert not any(ref() for ref in seen)
            assert tracemalloc.get_traced_memory()[0] < 0.4 * kept  # one is spare memory
        finally:
            tracemalloc.stop()
            gc.enable()


def test_parameters_on_a_device():
    p = random_problem("gru", 2, 4, 3, 5)
    options = all_options(p)
    with use_backend("numpy"):
        want = numbers(*run(p, options))
    with fake_device(), use_fake_device():
        result, found = run(p, options)  # copied there
        got = [None if array is None else asnumpy(array) for array in numbers(result, found)]
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
        out = [np.empty_like(param) for param in p.params]
        with pytest.raises(TypeError, match=r"^out: dWx: expected"):
            backward(result.record, p.dhs, p.dstate, out=out)


# ---- misuse, by name


P = random_problem("lstm", 2, 4, 3, 5)
Wx, Wh, b = P.params
H0, C0 = P.state


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"cell": "lsmt"}, ValueError, "^cell: expected one of .*, got 'lsmt'"),
        ({"xs": P.xs[0]}, ValueError, r"^xs: expected shape \(N, T, 3\), got \(4, 3\)"),
        ({"xs": P.xs[:, :0]}, ValueError, "^xs: .* no size 0 but N"),
        ({"xs": P.xs.astype(np.float32)}, TypeError, "^xs: expected float64, as the parameters"),
        ({"xs": P.xs.tolist()}, TypeError, "^xs: expected an array .* got list"),
        ({"xs": np.ma.array(P.xs)}, TypeError, "^xs: expected an array .* got MaskedArray"),
        ({"state": H0}, TypeError, "^state: expected a tuple or list of h, c, got ndarray"),
        ({"state": (H0, C0, C0)}, TypeError, "^state: expected h, c, got 3 arrays"),
        ({"state": (H0, C0[:1])}, ValueError, r"^c: expected shape \(2, 5\), got \(1, 5\)"),
        ({"params": Wx}, TypeError, "^params: expected a tuple or list of arrays, got ndarray"),
        ({"params": [Wx, Wh]}, TypeError, "^params: expected the parameters Wx, Wh, b .*, got 2"),
        ({"params": []}, TypeError, "^params: expected the parameters Wx, Wh, b .*, got 0"),
        ({"params": [Wx, Wh, b[1:]]}, ValueError, r"^b: expected shape \(20,\), got \(19,\)"),
        ({"params": [Wx.T, Wh.T, b]}, ValueError, "from_torch"),
        ({"params": [Wx, Wh.astype(np.float32), b]}, TypeError, "^Wh: expected float64"),
        ({"params": [w.astype(int) for w in P.params]}, TypeError, "^Wx: expected float32 or"),
        ({"options": {"mask": None}}, TypeError, "^options: expected a StepOptions, got dict"),
        ({"options": StepOptions(mask=np.ones((2, 3), bool))}, ValueError, "^mask: expected shape"),
        ({"options": StepOptions(resets=np.ones((2, 4)))}, TypeError, "^resets: expected booleans"),
        ({"options": StepOptions(initial=H0[:1])}, ValueError, r"^initial: expected shape \(2, 5"),
        (
            {"options": StepOptions(recurrent_mask=Wh)},
            ValueError,
            r"^recurrent_mask: expected shape \(2, 5\)",
        ),
        ({"options": StepOptions(zoneout=0.5)}, TypeError, "^zoneout: expected a tuple or list"),
        ({"options": StepOptions(zoneout=(0.5,))}, ValueError, "^zoneout: expected a rate for"),
        ({"options": StepOptions(zoneout=(0.5, 1))}, ValueError, "^zoneout of c: expected"),
        ({"options": StepOptions(clip=0)}, ValueError, "^clip: expected a finite number above 0"),
        ({"options": StepOptions(clip=(1, 1))}, TypeError, r"^clip: expected a number, got \(1, 1"),
        ({"options": StepOptions(seed=0.5)}, TypeError, "^seed: expected a whole number"),
        (
            {"options": StepOptions(checkpoint_every=-1)},
            ValueError,
            "^checkpoint_every: expected at least 0",
        ),
        ({"options": StepOptions(t_offset=-1)}, ValueError, "^t_offset: expected at least 0"),
        ({"options": StepOptions(row_offset=-1)}, ValueError, "^row_offset: expected at least"),
    ],
)
def test_arguments_of_forward(change, error, says):
    given = {"cell": "lstm", "xs": P.xs, "state": P.state, "params": P.params, **change}
    with pytest.raises(error, match=says):
        forward(**given)


def test_joined_states_have_no_zoneout():
    p = random_problem("slstm", 2, 3, 4, 5)
    rates = tuple(0.5 for _ in p.state)
    for call in (
        lambda: run(p, StepOptions(zoneout=rates)),
        lambda: step("slstm", p.xs[:, 0], p.state, p.params, rates),
    ):
        with pytest.raises(ValueError, match=r"^zoneout: expected 0 for c, n, m, which"):
            call()


GRADS = tuple(map(np.empty_like, P.params))
READ_ONLY = np.empty_like(b)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"record": None}, TypeError, "^record: expected the record of .*forward, got NoneType$"),
        ({"record": "result"}, TypeError, "^record: .* got Result; its field record is one"),
        ({"record": "saved"}, TypeError, "^record: .* got tuple"),
        ({"dhs": P.dhs[:1]}, ValueError, r"^dhs: expected shape \(2, 4, 5\), got \(1, 4, 5\)"),
        ({"dhs": P.dhs.astype(np.float32)}, TypeError, "^dhs: expected float64"),
        ({"dstate": H0}, TypeError, "^dstate: expected a tuple or list of dh, dc, got ndarray"),
        ({"dstate": (H0, C0, C0)}, TypeError, "^dstate: expected dh, dc, got 3 arrays"),
        ({"dstate": (H0, Wx)}, ValueError, r"^dc: expected shape \(2, 5\), got \(3, 20\)"),
        ({"out": Wx}, TypeError, "^out: expected a tuple or list of dWx, dWh, db, got ndarray"),
        ({"out": GRADS[:2]}, TypeError, "^out: expected dWx, dWh, db, got 2 arrays"),
        ({"out": GRADS[::-1]}, ValueError, r"^out: dWx: expected shape \(3, 20\), got \(20,\)"),
        ({"out": (*GRADS[:2], b.astype(np.float32))}, TypeError, "^out: db: expected float64"),
        ({"out": (*GRADS[:2], READ_ONLY)}, ValueError, "^out: db: .* may be written to"),
        ({"out": (*GRADS[:2], b.tolist())}, TypeError, "^out: db: expected an array .* got list"),
    ],
)
def test_arguments_of_backward(change, error, says):
    result = forward("lstm", P.xs, P.state, P.params)
    wrong = {"result": result, "saved": result.record.saved}
    given = {"record": result.record, "dhs": P.dhs, **change}
    given["record"] = wrong.get(given["record"], given["record"])
    with pytest.raises(error, match=says):
        backward(**given)


def test_arguments_of_a_step():
    x = P.xs[:, 0]
    for change, error, says in [
        ({"x": P.xs}, ValueError, r"^x: expected shape \(N, 3\)"),
        ({"state": (H0[:1],)}, ValueError, r"^h: expected shape \(2, 5\)"),
        ({"zoneout": (0.5, 2.0)}, ValueError, "^zoneout of c: expected"),
    ]:
        with pytest.raises(error, match=says):
            step(**{"cell": "lstm", "x": x, "state": P.state, "params": P.params, **change})


def test_records_stay_where_they_are():
    record = forward("lstm", P.xs, P.state, P.params).record
    assert repr(record) in {f"Record(lstm, N 2, T 4, D 3, H 5, float64, {n})" for n in BACKENDS}
    assert isinstance(record, Record)
    for call in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"^record: .* call forward again"):
            call(record)
    with pytest.raises(AttributeError):
        record.dtype = np.float32


def test_it_is_public():
    assert numba_rnn.functional is functional
    assert all(getattr(functional, name).__doc__ for name in functional.__all__)
