"""Layer normalisation inside cells: against torch, at its corners, and what is refused."""

import re
import sys
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
from test_conformance import disagreements
from test_steps import FEATURES, random_options
from test_steps import disagreements as errors_with_steps
from test_steps import outcome as outcome_with_steps

from helpers import (
    ALL_ENGINES,
    BACKENDS,
    DTYPES,
    ENGINES,
    PARTITIONS,
    Array,
    outcome,
    random_problem,
    relative_error,
)
from numba_rnn import cell, cells, time_layer, use_backend
from numba_rnn.functions import sigmoid, tanh
from numba_rnn.kernels.cpu import plans
from numba_rnn.kernels.layout import EPSILON, layout
from numba_rnn.kernels.reference import NumpyEngine

NAMES = [name for name in cells.names() if cells.get(name).normalised]

# ---- torch's layer_norm in a loop, differentiated by autograd


def torch_steps(torch: Any, name: str) -> Any:
    """(x, states, Wx, Wh, b, w) -> states."""

    def norm(a: Any) -> Any:
        return torch.nn.functional.layer_norm(a, a.shape[1:], eps=1e-5)

    def parts(a: Any, H: int) -> list[Any]:
        return [norm(part) for part in a.split(H, dim=1)]

    def rnn(x: Any, state: Any, Wx: Any, Wh: Any, b: Any, w: Any) -> Any:
        (h,) = state
        return (torch.tanh(w[0] * norm(x @ Wx + h @ Wh + b) + w[1]),)

    def lstm(x: Any, state: Any, Wx: Any, Wh: Any, b: Any, w: Any) -> Any:
        h, c = state
        f, g, i, o = parts(x @ Wx + h @ Wh + b, h.shape[1])
        f, i, o = (torch.sigmoid(w[k] * a + w[k + 5]) for k, a in ((0, f), (2, i), (3, o)))
        c = f * c + i * torch.tanh(w[1] * g + w[6])
        return o * torch.tanh(w[4] * norm(c) + w[9]), c

    def gru(x: Any, state: Any, Wx: Any, Wh: Any, b: Any, w: Any) -> Any:
        (h,), H = state, state[0].shape[1]
        x_proj = x @ Wx + b
        z, r = parts(x_proj[:, : 2 * H] + h @ Wh[:, : 2 * H], H)
        z, r = torch.sigmoid(w[0] * z + w[3]), torch.sigmoid(w[1] * r + w[4])
        a = norm(x_proj[:, 2 * H :] + (r * h) @ Wh[:, 2 * H :])
        return ((1 - z) * h + z * torch.tanh(w[2] * a + w[5]),)

    return {"rnn_layer_norm": rnn, "lstm_layer_norm": lstm, "gru_layer_norm": gru}[name]


@pytest.mark.parametrize("sizes", [(3, 4, 2, 5), (2, 3, 5, 17), (4, 2, 3, 1)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_it_is_torchs_layer_norm(backend, name, sizes):
    torch = pytest.importorskip("torch")
    p = random_problem(name, *sizes, rng=1)
    inputs = [torch.tensor(array, requires_grad=True) for array in (p.xs, *p.state, *p.params)]
    xs, *rest = inputs
    state, params = rest[: len(p.state)], rest[len(p.state) :]
    hs = []
    for t in range(sizes[1]):
        state = torch_steps(torch, name)(xs[:, t], state, *params)
        hs.append(state[0])
    hs = torch.stack(hs, dim=1)
    loss = (hs * torch.tensor(p.dhs)).sum()
    loss = loss + sum((s * torch.tensor(d)).sum() for s, d in zip(state, p.dstate, strict=True))
    loss.backward()
    with use_backend(backend, strict=True) as engine:
        got = outcome(engine, p)
    np.testing.assert_allclose(got["hs"], hs.detach().numpy(), rtol=0, atol=1e-11)
    names = ["dxs", *(f"d{n} at the start" for n in p.cell.states)]
    names += [f"d{n}" for n in p.cell.shapes(1, 1)]
    for key, array in zip(names, inputs, strict=True):
        np.testing.assert_allclose(got[key], array.grad.numpy(), rtol=0, atol=1e-11, err_msg=key)


@pytest.mark.parametrize("init", ["orthogonal", "book"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_zeros_have_finite_gradients(backend, name, init):
    for seed in range(3):
        layer = time_layer(name).create(3, 16, rng=seed, init=init)
        xs = np.zeros((2, 200, 3), np.float32)
        dhs = np.random.default_rng(seed).standard_normal((2, 200, 16)).astype(np.float32)
        with use_backend(backend, strict=True):
            layer.forward(xs)
            gradients = [layer.backward(dhs), *layer.grads]
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_a_row_without_variance_is_as_torchs(backend, name):
    torch = pytest.importorskip("torch")
    p = random_problem(name, 2, 3, 2, 5, rng=2)
    names = tuple(p.cell.shapes(1, 1))
    params = [array * (key != "b") for key, array in zip(names, p.params, strict=True)]
    p = replace(p, xs=0 * p.xs, state=tuple(0 * s for s in p.state), params=tuple(params))
    p = replace(p, dstate=tuple(0 * d for d in p.dstate))
    xs, *params = (torch.tensor(array, requires_grad=True) for array in (p.xs, *p.params))
    state, hs = tuple(map(torch.tensor, p.state)), []
    for t in range(3):
        state = torch_steps(torch, name)(xs[:, t], state, *params)
        hs.append(state[0])
    (torch.stack(hs, dim=1) * torch.tensor(p.dhs)).sum().backward()
    with use_backend(backend, strict=True) as engine:
        got = outcome(engine, p)
    for key, array in zip(("xs", *names), (xs, *params), strict=True):
        assert relative_error(got[f"d{key}"], array.grad.numpy()) < 1e-10, key


# ---- forms that the zoo has not


@cache
def written() -> dict[str, cells.WrittenCell]:
    """Cells by what is new in them."""

    def inner(a, c):
        return 0.5 * c + a

    @cell(states="h c", operand_gate="seen", operand=inner)
    def fed_and_not_normalised(a, o, seen, h, c):
        return sigmoid(o) * tanh(seen), 0.5 * c + a

    @cell(states="h c", operand_gate="seen", operand=inner, recurrence="elementwise")
    def fed_without_a_product(a, o, seen, h, c):
        return sigmoid(o) * tanh(seen), 0.5 * c + a

    @cell(states="h c", operand_gate="seen", operand=inner, normalised="seen")
    def fed_alone_is_normalised(a, o, seen, h, c):
        return sigmoid(o) * tanh(seen), 0.5 * c + a

    @cell(recurrence="elementwise", normalised="a")
    def without_a_product(a, h):
        return 0.5 * h + a

    @cell(biases=2, input_only="x", recurrent_only="u", normalised="x u")
    def each_side_by_itself(x, u, r, h):
        return tanh(x + sigmoid(r) * u)

    def turned(r, h):
        return tanh(r) * h

    @cell(second_product="a", operand=turned, normalised="a", weights="gain")
    def late_alone(z, r, a, gain, h):
        return (1 - sigmoid(z)) * h + sigmoid(z) * tanh(gain * a)

    @cell(second_product="a b", operand=turned, normalised="b z", recurrent_only="b a")
    def late_without_x(z, r, a, b, h):
        return (1 - sigmoid(z)) * h + sigmoid(b) * tanh(a)

    return {name: made for name, made in locals().items() if isinstance(made, cells.WrittenCell)}


WRITTEN = (
    "fed_and_not_normalised", "fed_without_a_product", "fed_alone_is_normalised",
    "without_a_product", "each_side_by_itself", "late_alone", "late_without_x",
)  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_gradients_of_other_forms(name):
    assert written()[name].check() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 4, 5, 6), (5, 3, 4, 21)])
@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("backend", ENGINES)
def test_engines_agree_on_other_forms(backend, name, sizes, dtype):
    p = random_problem(written()[name], *sizes, dtype, rng=4)
    want = outcome(NumpyEngine(), p)
    limit = {np.float32: 2e-5, np.float64: 1e-12}[dtype]
    steps = random_options(p, set(FEATURES) - {"expected"})
    want_with_steps = outcome_with_steps(NumpyEngine(), p, steps)
    with use_backend(backend, strict=True) as engine:
        for partition in PARTITIONS if backend == "numba" else [None]:
            passes = sys.modules.get("numba_rnn.kernels.cpu.launch")
            with mock.patch.object(passes, "choose_partition", return_value=partition, create=True):
                assert disagreements(outcome(engine, p), want, limit) == {}
                got = outcome_with_steps(engine, p, steps)
                assert errors_with_steps(got, want_with_steps, 10 * limit) == {}


def test_a_fed_gate_is_what_the_operand_gives():
    """Nothing but another way to write the same."""

    @cell(states="h c", name="inline")
    def inline(a, o, h, c):
        new = 0.5 * c + a
        return sigmoid(o) * tanh(new), new

    p = random_problem(written()["fed_and_not_normalised"], 3, 5, 4, 9)
    want = outcome(NumpyEngine(), replace(p, cell=cells.get(inline)))
    assert disagreements(outcome(NumpyEngine(), p), want, 1e-13) == {}


# ---- corners


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_a_single_unit_is_its_own_mean(backend, name, dtype):
    """It comes out as 0, whatever went in, and no gradient goes back."""
    p = random_problem(name, 3, 4, 2, 1, dtype)
    with use_backend(backend, strict=True) as engine:
        got = outcome(engine, p)
        other = outcome(engine, replace(p, xs=p.xs * 100))
    assert all(np.isfinite(array).all() for array in got.values())
    for key in ("dxs", "dWx", "dWh", "db"):
        assert not got[key].any(), key
    np.testing.assert_array_equal(got["hs"], other["hs"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("H", [2, 3])
@pytest.mark.parametrize("backend", ENGINES)
def test_few_units(backend, H, name):
    """The gradient of the inputs is small beside the terms that cancelled in it."""
    p = random_problem(name, 4, 5, 3, H)
    with use_backend(backend, strict=True) as engine:
        assert disagreements(outcome(engine, p), outcome(NumpyEngine(), p), 1e-8) == {}
        single = p.map(lambda array: array.astype(np.float32))
        got = outcome(engine, single)
    want = outcome(NumpyEngine(), p)
    for key, array in got.items():
        np.testing.assert_allclose(array, want[key], rtol=0, atol=2e-3, err_msg=key)


def exact_problem(offset: float, H: int) -> Any:
    """Pre-activations that float32 has no need to round: multiples of 1/64 around the offset."""
    rng = np.random.default_rng(0)
    p = random_problem(written()["without_a_product"], 3, 2, 1, H)
    Wx = rng.integers(-64, 65, (1, H)) / 64
    return replace(p, xs=np.ones_like(p.xs), params=(Wx, np.full(H, offset)))


@pytest.mark.parametrize("H", [5, 32, 100])
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_a_large_offset_cancels_without_loss(backend, H):
    p = exact_problem(1e4, H)
    want = outcome(NumpyEngine(), replace(p, params=(p.params[0], np.zeros(H))))
    with use_backend(backend, strict=True) as engine:
        got = outcome(engine, p.map(lambda array: array.astype(np.float32)))
    for key in ("hs", "h at the end", "h by step"):
        np.testing.assert_allclose(got[key], want[key], rtol=0, atol=1e-6, err_msg=key)
    for key in ("dxs", "dWx", "db"):
        np.testing.assert_allclose(got[key], want[key], rtol=0, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 0.3, 1e3, 12345.678])
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_a_row_without_variance_is_zero(backend, offset, dtype):
    p = exact_problem(offset, 37)
    p = replace(p, state=(p.state[0] * 0,), params=(p.params[0] * 0, p.params[1]))
    with use_backend(backend, strict=True) as engine:
        got = outcome(engine, p.map(lambda array: array.astype(dtype)))
    assert np.abs(got["hs"]).max() < 1e-4
    assert all(np.isfinite(array).all() for array in got.values())
    # the deviation is that of EPSILON alone, and the gradient is large but straight
    assert 1 < np.abs(got["db"]).max() < 10 * len(p.xs) / np.sqrt(EPSILON)


@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_what_is_not_finite_stays_in_its_row(backend):
    p = random_problem("lstm_layer_norm", 3, 2, 2, 7)
    want = None
    with use_backend(backend, strict=True) as engine:
        for number in (0.0, np.nan):
            p.state[0][1] = number
            hs = outcome(engine, p)["hs"]
            want = hs if want is None else want
    assert np.isnan(hs[1]).all()
    np.testing.assert_array_equal(hs[[0, 2]], want[[0, 2]])


# ---- what is kept, shared and shown


def test_what_a_cell_saves_of_its_normalised_gates_is_not_kept_twice():
    for name in NAMES:
        kinds = {where[0] for where in layout(cells.get(name)).saved_from if where}
        assert "normalised" in kinds
    assert layout(cells.get("lstm_layer_norm")).n_stored == 0


def test_rows_are_never_cut():
    """A row is normalised over all of its units, which one thread has."""
    for N, H in ((1, 2000), (2, 2000), (64, 32), (3, 500)):
        shards, split_batch = plans.choose_partition(
            cells.get("lstm_layer_norm"), N, 500, 50, H, wanted=5
        )
        assert split_batch
        assert shards <= N


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_trace_shows_what_the_activations_were_given(backend):
    with use_backend(backend, strict=True):
        layer = time_layer("lstm_layer_norm").create(3, 50, rng=0)
        layer.forward(np.random.default_rng(0).random((2, 6, 3), np.float32), trace=True)
        seen = layer.trace.pre_activations
    for name in cells.get("lstm_layer_norm").normalised:
        np.testing.assert_allclose(seen[name].mean(axis=2), 0, atol=1e-5)
        np.testing.assert_allclose(seen[name].std(axis=2), 1, atol=0.1)
    gain, shift = (seen[f"{name}_c"] for name in ("gain", "shift"))
    h = sigmoid(seen["gain_o"] * seen["o"] + seen["shift_o"]) * tanh(gain * seen["c_hat"] + shift)
    np.testing.assert_allclose(layer.trace.states["h"], h, atol=1e-5)


def test_gains_start_at_one():
    layer = time_layer("gru_layer_norm").create(3, 4, rng=0)
    np.testing.assert_array_equal(layer.params[3], [[1] * 4] * 3 + [[0] * 4] * 3)


# ---- what is refused


def half(a, h):
    return 0.5 * a + h


BAD = [
    ({"normalised": "q"}, "normalised: expected some of the gates a, b, got q"),
    ({"normalised": "h"}, "normalised: expected some of the gates a, b, got h"),
    ({"normalised": "a a"}, "normalised: expected each name once"),
    ({"normalised": 3}, "normalised: expected names"),
    (
        {"operand_gate": "q", "operand": half},
        "operand_gate: expected some of the gates a, b, got q",
    ),
    ({"operand_gate": "b"}, "operand: expected it together with second_product or operand_gate"),
    (
        {"operand_gate": "a b", "operand": half},
        "operand_gate: expected one gate, and no second_product beside it, got a, b",
    ),
    (
        {"operand_gate": "b", "second_product": "a", "operand": half},
        "operand_gate: expected one gate, and no second",
    ),
    (
        {"operand_gate": "b", "input_only": "b", "operand": half},
        "operand_gate: expected a gate without any product",
    ),
    (
        {"operand_gate": "a", "operand": half},
        "operand: expected some of the arguments but operand_gate's b, h",
    ),
    (
        {"operand_gate": "b", "operand": half, "bias_start": {"b": 1.0}},
        "bias_start: expected gates with an",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_a_written_cell_says_what_it_cannot_be(options, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):

        @cell(**options)
        def wrong(a, b, h):
            return tanh(a) + tanh(b) + h


def test_a_gate_cannot_be_fed_alone():
    with pytest.raises(
        ValueError, match="operand_gate: expected at least one other gate, got only"
    ):

        @cell(operand_gate="a", operand=lambda h: 2 * h)
        def wrong(a, h):
            return tanh(a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalised": ("q",)}, "normalised: expected some of"),
        ({"normalised": ("gain_f",)}, "normalised: expected some of"),
        ({"normalised": "f"}, "normalised: expected a tuple of names"),
        ({"operand_gate": ("q",)}, "operand_gate: expected some of"),
        (
            {"operand_gate": ()},
            "second_product (or operand_gate), operand and operand_backward: expected all",
        ),
        ({"operand_gate": ("o", "c_hat")}, "operand_gate: expected one gate, and no second"),
        ({"second_product": ("o",)}, "operand_gate: expected one gate, and no second"),
        (
            {"operand_backward": None},
            "second_product (or operand_gate), operand and operand_backward: expected all",
        ),
        ({"input_only": ("c_hat",)}, "operand_gate: expected a gate without any product"),
        ({"bias_start": {"c_hat": 1.0}}, "bias_start: expected gates with an input side"),
    ],
)
def test_a_cell_says_what_it_cannot_be(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(cells.get("lstm_layer_norm"), **changes)


def test_what_is_completed_is_never_none():
    """It was there before, and an engine may hold more in the same place: what passes a step."""
    gru = cells.get("gru")

    def no_state(*given: Array) -> Any:
        dgates, _ = gru.operand_backward(*given)
        return dgates, (None,)

    def no_gate(*given: Array) -> Any:
        (dz, _, dnew), dstate = gru.operand_backward(*given)
        return (dz, None, dnew), dstate

    for wrong, name in ((no_state, "state h"), (no_gate, "gate r")):
        with pytest.raises(ValueError, match=f"operand_backward: .*{name} .*got None"):
            replace(gru, operand_backward=wrong)


@pytest.mark.parametrize("field", ["normalised", "fed"])
def test_engines_keep_apart_what_differs_in_nothing_else(field):
    from numba_rnn.kernels import fingerprint

    made = cells.get("lstm_layer_norm")
    changes: dict[str, Any] = {"normalised": ("f",)}
    if field == "fed":
        made, changes = cells.get("gru_layer_norm"), {"second_product": (), "operand_gate": ("a",)}
    assert fingerprint.of_cell(made) != fingerprint.of_cell(replace(made, **changes))
