"""Numbers at the ends of what a float can hold: gates shut and wide open, data nobody has scaled.

All that comes out is finite, forwards and backwards, and equals what logarithms give in float64.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from test_steps import outcome as outcome_with_steps

from helpers import (
    ALL_ENGINES,
    BACKENDS,
    CELLS_AND_DTYPES,
    DTYPES,
    Array,
    Problem,
    outcome,
    random_problem,
)
from numba_rnn import (
    TimeAttention,
    TimeMSE,
    TimeSigmoidWithLoss,
    TimeSoftmaxWithLoss,
    cells,
    time_layer,
    use_backend,
)
from numba_rnn.kernels.reference import NumpyEngine
from numba_rnn.kernels.step_options import StepOptions

QUOTIENTS = ("slstm", "minlstm")  # cells that divide one gate by others
TRIED = list(dict.fromkeys([*CELLS_AND_DTYPES, *product(QUOTIENTS, DTYPES)]))
N, T, D = 2, 3, 2


def extreme_problems(name: str, dtype: Any) -> dict[str, Problem]:
    """A unit for every way in which gates can be shut or open; and data far from unit scale."""
    cell = cells.get(name)
    ways = np.array(list(product((-1.0, 1.0), repeat=len(cell.input_gates)))).T  # (gates, units)
    p = random_problem(cell, N, T, D, ways.shape[1], dtype, rng=0)
    p = replace(p, state=tuple(np.zeros_like(s) for s in p.state))
    names = list(cell.shapes(1, 1))

    def with_params(**arrays: Array) -> Problem:
        params = [np.asarray(arrays.get(n, a), dtype) for n, a in zip(names, p.params, strict=True)]
        return replace(p, params=tuple(params))

    b = p.params[names.index("b")]
    made = {
        f"gates at {far}": with_params(b=np.resize(far * ways.ravel(), b.shape))
        for far in (95, 1000)
    }
    made |= {f"xs times {scale}": replace(p, xs=p.xs * dtype(scale)) for scale in (600, -600)}
    made["zeros"] = replace(with_params(b=0 * b), xs=0 * p.xs)
    if "w" in names:
        w = p.params[names.index("w")]
        made |= {f"weights {far}": with_params(w=np.full_like(w, far)) for far in (-300, 300)}
    return made


@pytest.mark.parametrize(("name", "dtype"), TRIED)
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_cells_are_finite_and_right(backend, name, dtype):
    problems = extreme_problems(name, dtype)
    if backend == "cuda":  # as much as an emulator can do
        problems = {what: p for what, p in problems.items() if "95" not in what}
    resets = np.arange(N * T).reshape(N, T) % 2 == 0
    for what, p in problems.items():
        exact = p.map(lambda array: array.astype(np.float64))
        with use_backend(backend, strict=True) as engine, np.errstate(over="ignore"):
            got, again = (
                outcome(engine, p),
                outcome_with_steps(engine, p, StepOptions(resets=resets)),
            )
        want = outcome(NumpyEngine(), exact)
        for array in (*got.values(), *again.values()):
            assert np.isfinite(array).all(), what
        # what a pre-activation of 1000 is off in float32
        limit = (1e-4 if dtype == np.float32 else 1e-12) * max(1.0, np.abs(want["hs"]).max())
        assert np.abs(got["hs"] - want["hs"]).max() < limit, what


@pytest.mark.parametrize("name", cells.names())
@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_are_finite_and_right(backend, name):
    for what, p in extreme_problems(name, np.float32).items():
        layer = time_layer(name)(*p.params)
        with use_backend(backend, strict=True):
            hs = layer.forward(p.xs)
            stream = layer.stream(batch=N)
            steps = np.stack([stream.step(p.xs[:, t]).copy() for t in range(T)], axis=1)
        assert np.isfinite(steps).all(), what
        np.testing.assert_allclose(steps, hs, rtol=1e-4, atol=1e-5, err_msg=what)


# ---- by logarithms, in float64


def slstm_by_logs(x: Any, Wx: Any, Wh: Any, b: Any, resets: Array) -> Any:
    """Of all that has gone in the mean, weighted by products of gates as the paper defines them."""
    h, logs, values, hs = torch.zeros(len(x), len(Wh), dtype=x.dtype), [], [], []
    for t in range(x.shape[1]):
        keep = torch.tensor(~resets[:, t, None])
        h = h * keep
        f, i, z, o = (x[:, t] @ Wx + h @ Wh + b).split(len(Wh), dim=1)
        gone = torch.where(keep, torch.nn.functional.logsigmoid(f), -torch.inf)
        logs, values = [*(log + gone for log in logs), i], [*values, torch.tanh(z)]
        weights = torch.softmax(torch.stack(logs), dim=0)
        h = torch.sigmoid(o) * (weights * torch.stack(values)).sum(dim=0)
        hs.append(h)
    return torch.stack(hs, dim=1)


def minlstm_by_logs(x: Any, Wx: Any, b: Any, resets: Array) -> Any:
    h, hs = torch.zeros(len(x), len(b) // 3, dtype=x.dtype), []
    for t in range(x.shape[1]):
        f, i, a = (x[:, t] @ Wx + b).split(len(b) // 3, dim=1)
        logs = torch.nn.functional.logsigmoid(torch.stack([f, i]))
        share, rest = torch.softmax(logs, dim=0)
        h = share * torch.tensor(~resets[:, t, None]) * h + rest * a
        hs.append(h)
    return torch.stack(hs, dim=1)


BY_LOGS = {"slstm": slstm_by_logs, "minlstm": minlstm_by_logs}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", QUOTIENTS)
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_quotients_are_those_of_logarithms(backend, name, dtype):
    resets = np.array([[0, 0, 1], [0, 1, 0]], bool)
    for what, p in extreme_problems(name, dtype).items():
        inputs = [
            torch.tensor(array, dtype=torch.float64, requires_grad=True)
            for array in (p.xs, *p.params)
        ]
        hs = BY_LOGS[name](*inputs, resets)
        (hs * torch.tensor(p.dhs)).sum().backward()
        quiet = replace(p, dstate=tuple(0 * d for d in p.dstate))
        with use_backend(backend, strict=True) as engine, np.errstate(over="ignore"):
            got = outcome_with_steps(engine, quiet, StepOptions(resets=resets))
        limit = 1e-4 if dtype == np.float32 else 1e-11
        np.testing.assert_allclose(got["hs"], hs.detach(), rtol=limit, atol=limit, err_msg=what)
        for key, array in zip(("xs", *p.cell.shapes(1, 1)), inputs, strict=True):
            want = array.grad.numpy()
            size = max(np.abs(want).max(), 1.0)
            error = np.abs(got[f"d{key}"] - want).max() / size
            assert error < limit, (what, key)


# ---- losses and attention


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_of_scores_far_away(dtype):
    xs = np.array([-1e4, -800, -95, 0, 95, 800, 1e4], dtype).reshape(1, 1, 7)
    for label in range(7):
        loss = TimeSoftmaxWithLoss()
        got = loss.forward(xs, np.full((1, 1), label))
        want = torch.nn.functional.cross_entropy(
            torch.tensor(xs[0], dtype=torch.float64), torch.tensor([label])
        )
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert np.isfinite(loss.backward()).all()
    for target in (0.0, 0.25, 1.0):
        loss, ts = TimeSigmoidWithLoss(), np.full_like(xs, target)
        x = torch.tensor(xs, dtype=torch.float64, requires_grad=True)
        want = torch.nn.functional.binary_cross_entropy_with_logits(
            x, torch.tensor(ts, dtype=torch.float64)
        )
        want.backward()
        np.testing.assert_allclose(loss.forward(xs, ts), want.item(), rtol=1e-6)
        np.testing.assert_allclose(loss.backward(), x.grad, rtol=1e-6, atol=1e-30)
    loss = TimeMSE()
    assert np.isfinite(loss.forward(1e16 * xs, 0 * xs))  # whose squares are no float32
    assert np.isfinite(loss.backward()).all()


def test_attention_to_scores_far_away():
    hs_enc, hs_dec = (np.float32(f * np.eye(3)[None]) for f in (1e3, 1e4))
    attention = TimeAttention()
    np.testing.assert_array_equal(attention.forward(hs_enc, hs_dec), hs_enc)
    assert all(np.isfinite(d).all() for d in attention.backward(np.ones_like(hs_dec)))
