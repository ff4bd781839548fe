"""PyTorch as the oracle: outputs, final states and every gradient.

The conversions of weights are those of the table in numba_rnn/bridges/gate_order.py.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import numba_rnn as rnn
from helpers import BACKENDS, DTYPES, Array, Problem, problem, relative_error
from numba_rnn import use_backend

LIMITS = {np.float32: 1e-5, np.float64: 1e-10}
TORCH_DTYPES = {np.float32: torch.float32, np.float64: torch.float64}

KINDS: dict[str, tuple[type[torch.nn.RNNBase], dict[str, Any]]] = {
    "rnn": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (torch.nn.LSTM, {}),
    "gru_reset_after": (torch.nn.GRU, {}),
}
# PyTorch's blocks in order: which of ours, and its sign
BLOCKS = {
    "rnn": [(0, 1)],
    "rnn_relu": [(0, 1)],
    "lstm": [(2, 1), (0, 1), (1, 1), (3, 1)],  # i f g o  of  f g i o
    "gru_reset_after": [(1, 1), (0, -1), (2, 1)],  # r z n  of  z r h; its z keeps the old
}


def to_torch(kind: str, array: Array) -> Array:
    """Our weight, bias or gradient (..., gates H) as PyTorch lays it out (gates H, ...)."""
    blocks = np.split(array, len(BLOCKS[kind]), axis=-1)
    return np.concatenate([sign * blocks[k] for k, sign in BLOCKS[kind]], axis=-1).T


def biases(kind: str, b: Array) -> tuple[Array, Array]:
    """The bias beside x Wx and the one beside h Wh; where ours is their sum, some split of it."""
    return tuple(b) if b.ndim == 2 else (0.25 * b, 0.75 * b)


def torch_names(suffix: str = "_l0") -> list[str]:
    return [f"{name}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def to_torch_params(kind: str, params: tuple[Array, ...]) -> list[Array]:
    Wx, Wh, b = params
    return [to_torch(kind, array) for array in (Wx, Wh, *biases(kind, b))]


def to_torch_grads(kind: str, grads: list[Array]) -> list[Array]:
    dWx, dWh, db = grads
    both = tuple(db) if db.ndim == 2 else (db, db)  # the sum's gradient is that of either
    return [to_torch(kind, array) for array in (dWx, dWh, *both)]


def tensor(array: Array) -> torch.Tensor:
    return torch.tensor(array, requires_grad=True)


def module(kind: str, D: int, H: int, dtype: Any, params: dict[str, Array], **options: Any) -> Any:
    make, own = KINDS[kind]
    made = make(D, H, batch_first=True, dtype=TORCH_DTYPES[dtype], **own, **options)
    made.load_state_dict({name: torch.tensor(array) for name, array in params.items()})
    return made


def compare(ours: dict[str, Array], theirs: dict[str, torch.Tensor], limit: float) -> None:
    errors = {
        name: relative_error(ours[name], value.detach().numpy()) for name, value in theirs.items()
    }
    assert ours.keys() == theirs.keys()
    assert max(errors.values()) <= limit, errors


def run_torch(kind: str, p: Problem, dtype: Any) -> dict[str, torch.Tensor]:
    _, _, D = p.xs.shape
    params = dict(zip(torch_names(), to_torch_params(kind, p.params), strict=True))
    peer = module(kind, D, p.dhs.shape[2], dtype, params)
    xs, *state = map(tensor, (p.xs, *p.state))
    first = [s[None] for s in state]  # (layers, N, H)
    hs, last = peer(xs, tuple(first) if len(first) > 1 else first[0])
    last = [s[0] for s in (last if isinstance(last, tuple) else (last,))]
    outputs, weights = [hs, *last], map(torch.tensor, (p.dhs, *p.dstate))
    sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True)).backward()
    grads = dict(peer.named_parameters())
    return {
        "hs": hs,
        **{f"last {k}": s for k, s in enumerate(last)},
        "dxs": xs.grad,
        **{f"dstate {k}": s.grad for k, s in enumerate(state)},
        **{name: grads[name].grad for name in torch_names()},
    }


def run_ours(kind: str, p: Problem) -> dict[str, Array]:
    layer = rnn.TimeRecurrent(*p.params, cell=kind)
    layer.set_state(*p.state)
    hs = layer.forward(p.xs)
    dxs = layer.backward(p.dhs, *p.dstate)
    return {
        "hs": hs,
        **{f"last {k}": s for k, s in enumerate(layer.state)},
        "dxs": dxs,
        **{f"dstate {k}": s for k, s in enumerate(layer.dstate)},
        **dict(zip(torch_names(), to_torch_grads(kind, layer.grads), strict=True)),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10, deadline=None)
@example(sizes=(1, 1, 1, 1), seed=0)
@example(sizes=(1, 5, 3, 7), seed=0)
@example(sizes=(3, 1, 4, 33), seed=0)
@example(sizes=(4, 6, 2, 67), seed=0)
@given(
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 12), st.integers(1, 80)),
    seed=st.integers(0, 1 << 32),
)
def test_recurrent_layers_agree_with_torch(backend, kind, dtype, sizes, seed):
    p = problem(kind, *sizes, dtype, seed=seed)
    with use_backend(backend, strict=True):
        ours = run_ours(kind, p)
    compare(ours, run_torch(kind, p, dtype), LIMITS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bidirectional_lstm_agrees_with_torch(backend, dtype):
    D, H = 4, 9
    p, q = (problem("lstm", 3, 6, D, H, dtype, seed=seed) for seed in (1, 2))
    dhs = np.concatenate([p.dhs, q.dhs], axis=2)
    names = [*torch_names("_l0"), *torch_names("_l0_reverse")]

    arrays = [*to_torch_params("lstm", p.params), *to_torch_params("lstm", q.params)]
    params = dict(zip(names, arrays, strict=True))
    peer = module("lstm", D, H, dtype, params, bidirectional=True)
    xs = tensor(p.xs)
    their_hs, _ = peer(xs)
    (their_hs * torch.tensor(dhs)).sum().backward()
    grads = dict(peer.named_parameters())

    with use_backend(backend, strict=True):
        layer = rnn.TimeBiLSTM(*p.params, *q.params)
        hs, dxs = layer.forward(p.xs), layer.backward(dhs)
    own = [*to_torch_grads("lstm", layer.grads[:3]), *to_torch_grads("lstm", layer.grads[3:])]
    compare(
        {"hs": hs, "dxs": dxs, **dict(zip(names, own, strict=True))},
        {"hs": their_hs, "dxs": xs.grad, **{name: grads[name].grad for name in names}},
        LIMITS[dtype],
    )


# ---- losses


def numbers(dtype: Any, *shape: int) -> Array:
    return np.random.default_rng(0).normal(0, 3, shape).astype(dtype)


def compare_losses(layer: Any, xs: Array, ts: Array, theirs: Any, dtype: Any) -> None:
    scores = tensor(xs)
    loss = theirs(scores)
    loss.backward()
    ours = {"loss": np.asarray(layer.forward(xs, ts)), "dxs": layer.backward()}
    assert ours["dxs"].dtype == dtype
    compare(ours, {"loss": loss, "dxs": scores.grad}, LIMITS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_with_loss_agrees_with_torch(dtype):
    xs = numbers(dtype, 4, 5, 11)
    ts = np.random.default_rng(1).integers(-1, 11, (4, 5))
    assert (ts == -1).any()
    compare_losses(
        rnn.TimeSoftmaxWithLoss(),
        xs,
        ts,
        lambda scores: torch.nn.functional.cross_entropy(
            scores.reshape(20, 11), torch.tensor(ts).reshape(20), ignore_index=-1
        ),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_with_loss_agrees_with_torch(dtype):
    xs = numbers(dtype, 4, 5, 3)
    ts = np.random.default_rng(1).uniform(0, 1, xs.shape).astype(dtype)
    compare_losses(
        rnn.TimeSigmoidWithLoss(),
        xs,
        ts,
        lambda scores: torch.nn.functional.binary_cross_entropy_with_logits(
            scores, torch.tensor(ts)
        ),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_mse_agrees_with_torch(dtype):
    xs = numbers(dtype, 4, 5, 3)
    ts = np.random.default_rng(1).uniform(0, 1, xs.shape).astype(dtype)
    compare_losses(
        rnn.TimeMSE(),
        xs,
        ts,
        lambda outputs: torch.nn.functional.mse_loss(outputs, torch.tensor(ts)),
        dtype,
    )
