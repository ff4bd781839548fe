"""Jacobian-vector and Hessian-vector products: by central differences, and by each other."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_functional import all_options

from fake_device import asnumpy, fake_device, use_fake_device
from helpers import BACKENDS, REPRESENTATIVES, Array, Problem, random_problem, relative_error
from numba_rnn import TimeLSTM, cells, use_backend
from numba_rnn.custom import cell
from numba_rnn.functional import (
    Direction,
    StepOptions,
    backward,
    forward,
    forward_packed,
    hvp,
    jvp,
)
from numba_rnn.functions import absolute, exp, maximum, sigmoid, softplus, sqrt, tanh, where

LIMIT = 1e-6  # of central differences
NONE = StepOptions()
SIZES = [(2, 5, 3, 4), (1, 1, 3, 5)]  # N, T, D, H


def random_direction(p: Problem, options: StepOptions, seed: int) -> Direction:
    rng = np.random.default_rng(seed)

    def like(array: Array) -> Array:
        return rng.standard_normal(array.shape).astype(array.dtype)

    initial = None if options.initial is None else like(options.initial)
    return Direction(like(p.xs), [*map(like, p.state)], [*map(like, p.params)], initial)


def moved(p: Problem, options: StepOptions, u: Direction, by: float) -> tuple[Problem, StepOptions]:
    """The problem, so far along a direction."""

    def along(arrays: Any, tangents: Any) -> tuple[Array, ...]:
        return tuple(a + by * t for a, t in zip(arrays, tangents, strict=True))

    if options.initial is not None:
        options = replace(options, initial=options.initial + by * u.initial)
    xs, state, params = p.xs + by * u.xs, along(p.state, u.state), along(p.params, u.params)
    return replace(p, xs=xs, state=state, params=params), options


def numbers(gradients: Any) -> list[Array]:
    xs, state, params, initial, states = gradients
    return [xs, *state, *params, *(d for d in (initial, states) if d is not None)]


def derivative(function: Any, step: float = 1e-5) -> list[Array]:
    """Of arrays that depend on a number, at 0."""
    pairs = zip(function(step), function(-step), strict=True)
    return [(above - below) / (2 * step) for above, below in pairs]


def close(got: Any, want: Any, limit: float = LIMIT) -> None:
    got, want = (np.concatenate([np.ravel(a) for a in arrays]) for arrays in (got, want))
    assert relative_error(got, want) < limit


def options_of(p: Problem, every: bool) -> StepOptions:
    return replace(all_options(p), clip=5.0) if every else NONE


@pytest.mark.parametrize("every", [False, True], ids=["plain", "options"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", cells.names())
def test_central_differences(name, sizes, every):
    """Of forward and backward, in a direction of everything that goes in; then in two of them."""
    p = random_problem(name, *sizes)
    options = options_of(p, every)
    u, v = (random_direction(p, options, seed) for seed in (1, 2))
    rng = np.random.default_rng(3)
    more, *more_states = (rng.standard_normal(d.shape) for d in (p.dhs, *p.dstate))

    def passed(by: float, w: Direction) -> tuple[Any, Problem]:
        there, its_options = moved(p, options, w, by)
        return forward(p.cell, there.xs, there.state, there.params, its_options), there

    def outputs(by: float) -> list[Array]:
        hs, state, _ = passed(by, u)[0]
        return [hs, *state]

    def gradients(by: float) -> list[Array]:
        dstate = [d + by * t for d, t in zip(p.dstate, more_states, strict=True)]
        return numbers(backward(passed(by, u)[0].record, p.dhs + by * more, dstate))

    def tangents(by: float) -> list[Array]:
        record = passed(by, v)[0].record
        hs, state = jvp(record, u)
        return [hs, *state, *numbers(hvp(record, p.dhs, p.dstate, u))]

    with use_backend("numpy"):
        record = passed(0, u)[0].record
        hs, state = jvp(record, u)
        close([hs, *state], derivative(outputs))
        found = hvp(record, p.dhs, p.dstate, u, dhs_tangent=more, dstate_tangent=more_states)
        close(numbers(found), derivative(gradients))
        hs, state = jvp(record, u, v)
        close([hs, *state, *numbers(hvp(record, p.dhs, p.dstate, u, v))], derivative(tangents))


@pytest.mark.parametrize("every", [False, True], ids=["plain", "options"])
@pytest.mark.parametrize("name", cells.names())
def test_one_is_the_transpose_of_the_other(name, every):
    """y (J u) = u (J^T y), and v (H u) = u (H v): to rounding."""
    p = random_problem(name, 3, 6, 2, 5)
    options = options_of(p, every)
    u, v = (random_direction(p, options, seed) for seed in (1, 2))

    def product(w: Direction, gradients: Any) -> float:
        pairs = [(w.xs, gradients.xs), *zip(w.state, gradients.state, strict=True)]
        pairs += [*zip(w.params, gradients.params, strict=True)]
        pairs += [] if w.initial is None else [(w.initial, gradients.initial)]
        return sum(float((a * b).sum()) for a, b in pairs)

    with use_backend("numpy"):
        record = forward(p.cell, p.xs, p.state, p.params, options).record
        hs, state = jvp(record, u)
        of_outputs = sum(
            float((a * b).sum()) for a, b in zip((p.dhs, *p.dstate), (hs, *state), strict=True)
        )
        assert of_outputs == pytest.approx(product(u, backward(record, p.dhs, p.dstate)), rel=1e-9)
        there, back = (hvp(record, p.dhs, p.dstate, w) for w in (u, v))
        assert product(v, there) == pytest.approx(product(u, back), rel=1e-9)


@pytest.mark.parametrize("every", [False, True], ids=["plain", "options"])
@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_engine_gives_the_same(dtype, name, every):
    p = random_problem(name, 3, 6, 2, 17, dtype)
    options = options_of(p, every)
    u = random_direction(p, options, 1)
    found = []
    for backend in BACKENDS:
        with use_backend(backend, strict=True):
            record = forward(p.cell, p.xs, p.state, p.params, options).record
            hs, state = jvp(record, u)
            second = hvp(record, p.dhs, p.dstate, u, dhs_tangent=p.dhs, dstate_tangent=p.dstate)
        found.append([hs, *state, *numbers(second)])
        assert {array.dtype for array in found[-1]} == {np.dtype(dtype)}
    for got, want in zip(*found[::-1], strict=True):
        close([got], [want], 1e-4 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("every", [0, 3], ids=["kept", "checkpointed"])
def test_a_device(every):
    p = random_problem("gru_layer_norm", 3, 5, 2, 4)
    options = replace(all_options(p), checkpoint_every=every)
    u = random_direction(p, options, 1)

    def run() -> list[Array]:
        record = forward(p.cell, p.xs, p.state, p.params, options).record
        hs, state = jvp(record, u)
        return [hs, *state, *numbers(hvp(record, p.dhs, p.dstate, u))]

    with use_backend("numpy"):
        want = run()
    with fake_device(), use_fake_device():
        got = [asnumpy(array) for array in run()]
    close(got, want, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(0, 4, 3, 5), (2, 1, 3, 5), (1, 3, 1, 1)], ids=str)
def test_small_sizes(backend, sizes):
    p = random_problem("lstm", *sizes)
    u = random_direction(p, NONE, 1)
    with use_backend(backend, strict=True):
        record = forward(p.cell, p.xs, p.state, p.params).record
        hs, state = jvp(record, u)
        found = hvp(record, p.dhs, p.dstate, u)
        first = backward(record, p.dhs, p.dstate)
    assert [d.shape for d in (hs, *state)] == [d.shape for d in (p.dhs, *p.dstate)]
    assert [d.shape for d in numbers(found)] == [d.shape for d in numbers(first)]
    if not p.xs.size:
        assert not any(d.any() for d in found.params)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_a_direction_add_up(backend):
    """A tangent that is left out is 0."""
    p = random_problem("lstm_peephole", 2, 4, 3, 5)
    u = random_direction(p, NONE, 1)
    alone = [Direction(xs=u.xs), Direction(state=u.state[:1]), Direction(state=[None, u.state[1]])]
    for k, tangent in enumerate(u.params):
        alone.append(Direction(params=[tangent if k == j else None for j in range(len(u.params))]))
    with use_backend(backend, strict=True):
        record = forward(p.cell, p.xs, p.state, p.params).record

        def all_of(*w: Direction) -> list[Array]:
            hs, state = jvp(record, *w)
            return [hs, *state, *numbers(hvp(record, p.dhs, p.dstate, *w))]

        parts = map(sum, zip(*map(all_of, alone), strict=True))
        close([*parts], all_of(u), 1e-12)
        parts = map(sum, zip(*(all_of(w, u) for w in alone), strict=True))
        close([*parts], all_of(u, u), 1e-12)
        assert not any(d.any() for d in all_of(Direction()))
        close(numbers(hvp(record, None, None, u, dhs_tangent=p.dhs)), numbers(
            backward(record, p.dhs)), 1e-12)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_steps_may_hold_anything(backend):
    p = random_problem("lstm", 2, 5, 3, 4)
    mask = np.arange(5) < np.array([[5], [2]])
    u = random_direction(p, NONE, 1)
    for array in (p.xs, u.xs, p.dhs):
        array[~mask] = np.nan
    with use_backend(backend, strict=True):
        record = forward(p.cell, p.xs, p.state, p.params, StepOptions(mask=mask)).record
        found = [jvp(record, u).hs, *numbers(hvp(record, p.dhs, p.dstate, u, dhs_tangent=p.dhs))]
    assert all(np.isfinite(array).all() for array in found)
    assert not found[0][~mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_are_as_with_a_mask(backend):
    p, lengths = random_problem("lstm", 3, 4, 2, 5), np.array([4, 2, 1])
    mask, counts = np.arange(4) < lengths[:, None], [3, 2, 1, 1]
    u = random_direction(p, NONE, 1)

    def rows(array: Array) -> Array:
        return array.swapaxes(0, 1)[mask.T]

    with use_backend(backend, strict=True):
        record = forward(p.cell, p.xs, p.state, p.params, StepOptions(mask=mask)).record
        hs, state = jvp(record, u)
        found = hvp(record, p.dhs, p.dstate, u, dhs_tangent=p.dhs)
        want = [rows(hs), *state, rows(found.xs), *found.state, *found.params]
        record = forward_packed(p.cell, rows(p.xs), counts, p.state, p.params).record
        hs, state = jvp(record, v := u._replace(xs=rows(u.xs)))
        found = hvp(record, rows(p.dhs), p.dstate, v, dhs_tangent=rows(p.dhs))
    for got, wanted in zip([hs, *state, *numbers(found)], want, strict=True):
        assert got.shape == wanted.shape
        close([got], [wanted], 1e-12)


def test_a_cell_of_ones_own_with_every_function():
    @cell(states="h s")
    def own(a, b, h, s):
        smooth = sigmoid(a) * softplus(b) + sqrt(1 + h * h) / exp(0.1 * b)
        s = 0.5 * s + maximum(a, 0.3) - where(b > 0.2, absolute(b), 0.4 * b)
        return tanh(smooth - s), s

    test_central_differences(own, (2, 4, 3, 5), True)
    test_one_is_the_transpose_of_the_other(own, True)


@pytest.mark.parametrize("name", ["rnn_relu", "gru", "lstm", "minlstm", "slstm", "indrnn"])
def test_slopes_at_zero_are_those_of_backward(name):
    """Where everything is exactly 0, as at the start of many a training."""
    p = random_problem(name, 2, 1, 3, 4)
    u = random_direction(p, NONE, 1)
    zeros = [np.zeros_like(param) for param in p.params]
    with use_backend("numpy"):
        record = forward(p.cell, 0 * p.xs, p.state, zeros).record
        hs, state = jvp(record, u)
        found = backward(record, p.dhs, p.dstate)
    want = sum((a * b).sum() for a, b in zip(
        (*found.state, *found.params), (*u.state, *u.params), strict=True
    ))  # fmt: skip
    got = sum((a * b).sum() for a, b in zip((hs, *state), (p.dhs, *p.dstate), strict=True))
    assert got == pytest.approx(want, rel=1e-12)


def test_what_is_given_is_not_changed_and_records_serve_again():
    p = random_problem("lstm", 2, 4, 3, 5)
    u = random_direction(p, NONE, 1)
    arrays = [*p.arrays(), u.xs, *u.state, *u.params]
    before = [array.copy() for array in arrays]
    record = forward(p.cell, p.xs, p.state, p.params).record
    first, second = (
        [jvp(record, u).hs, *numbers(hvp(record, p.dhs, p.dstate, u))] for _ in range(2)
    )
    for a, b in zip((*arrays, *first), (*before, *second), strict=True):
        np.testing.assert_array_equal(a, b)


P = random_problem("lstm", 2, 4, 3, 5)
RECORD = forward(P.cell, P.xs, P.state, P.params).record


@pytest.mark.parametrize(
    ("directions", "error", "says"),
    [
        ((), TypeError, "^directions: expected at least one .*Direction.*got none"),
        ((P.xs,), TypeError, r"^directions: expected .*Direction\(xs=\.\.\.\), got ndarray"),
        ((Direction(P.xs[:1]),), ValueError, r"^direction: xs: expected shape \(2, 4, 3\)"),
        ((Direction(P.xs.astype("f")),), TypeError, "^direction: xs: expected .*float64"),
        ((Direction(state=P.state[0]),), TypeError, "^direction: state: expected a tuple or list"),
        ((Direction(state=[*P.state] * 2),), TypeError, "^direction: state: expected .*got 4"),
        ((Direction(state=P.xs[:, 0]),), TypeError, "^direction: state: expected a tuple or list"),
        ((Direction(params=P.params[:2]),), TypeError, "^direction: params: expected Wx, Wh, b"),
        ((Direction(params=P.params[::-1]),), ValueError, "^direction: Wx: expected shape"),
        ((Direction(initial=P.params[2]),), ValueError, "^direction: initial: expected None"),
    ],
)  # fmt: skip
def test_misuse(directions, error, says):
    with pytest.raises(error, match=says):
        jvp(RECORD, *directions)
    with pytest.raises(error, match=says):
        hvp(RECORD, P.dhs, P.dstate, *directions)


def test_other_misuse():
    u = Direction(xs=P.xs)
    with pytest.raises(TypeError, match=r"^record: expected the record of .*field record is one"):
        jvp(forward(P.cell, P.xs, P.state, P.params), u)
    with pytest.raises(ValueError, match=r"^dhs: expected shape \(2, 4, 5\)"):
        hvp(RECORD, P.dhs[:1], None, u)
    with pytest.raises(ValueError, match=r"^tangent of dhs: expected shape \(2, 4, 5\)"):
        hvp(RECORD, P.dhs, None, u, dhs_tangent=P.dhs[:1])
    with pytest.raises(ValueError, match=r"^dhs_tangent, dstate_tangent: expected None with sev"):
        hvp(RECORD, P.dhs, None, u, u, dhs_tangent=P.dhs)
    layer = TimeLSTM.create(3, 5, rng=0).quantise()
    record = forward(layer.cell, P.xs.astype("f"), None, layer.params).record
    with pytest.raises(TypeError, match="int8"):
        jvp(record, u)
