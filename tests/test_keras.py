"""Keras as the oracle: masks of any kind, and the GRU that resets before the product.

At steps that are left out Keras gives the output before again, and ours is 0: they are compared
at the others. In float32, since on PyTorch Keras makes its products in it whatever is asked for.
"""

import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_peers import compare, tensor

import numba_rnn as rnn
from helpers import BACKENDS, Array, Problem, problem
from numba_rnn import use_backend

os.environ["KERAS_BACKEND"] = "torch"  # its gradients are PyTorch's
import keras

LIMIT = 1e-5

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn": (keras.layers.SimpleRNN, {}),
    "rnn_relu": (keras.layers.SimpleRNN, {"activation": "relu"}),
    "lstm": (keras.layers.LSTM, {}),
    "gru": (keras.layers.GRU, {"reset_after": False}),
    "gru_reset_after": (keras.layers.GRU, {"reset_after": True}),
}
# Keras' blocks in order: which of ours, and its sign
GRU_BLOCKS = [(0, -1), (1, 1), (2, 1)]  # z r h  of  z r h; its z keeps the old
BLOCKS = {
    "rnn": [(0, 1)],
    "rnn_relu": [(0, 1)],
    "lstm": [(2, 1), (0, 1), (1, 1), (3, 1)],  # i f c o  of  f g i o
    "gru": GRU_BLOCKS,
    "gru_reset_after": GRU_BLOCKS,
}


def to_keras(kind: str, array: Array) -> Array:
    """Our weight, bias or gradient (..., gates H) as Keras orders it."""
    blocks = np.split(array, len(BLOCKS[kind]), axis=-1)
    return np.concatenate([sign * blocks[k] for k, sign in BLOCKS[kind]], axis=-1)


def layer_of(kind: str, p: Problem) -> Any:
    make, options = KINDS[kind]
    peer = make(p.dhs.shape[2], return_sequences=True, return_state=True, **options)
    peer.build(p.xs.shape)
    peer.set_weights([to_keras(kind, param) for param in p.params])
    return peer


def grads_of(peer: Any) -> list[Any]:
    return [weight.value.grad for weight in peer.trainable_weights]


def some_mask(N: int, T: int, how: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if how == "lengths":
        return np.arange(T) < rng.integers(0, T + 1, N)[:, None]
    return rng.random((N, T)) < 0.6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=8, deadline=None)
@example(sizes=(1, 1, 1, 1), how="any", seed=0)
@example(sizes=(3, 6, 4, 19), how="lengths", seed=1)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8), st.integers(1, 40)),
    how=st.sampled_from(["any", "lengths"]),
    seed=st.integers(0, 1 << 32),
)
def test_masks_agree_with_keras(backend, kind, sizes, how, seed):
    p = problem(kind, *sizes, np.float32, seed=seed, margin=1e-5)
    mask = some_mask(*sizes[:2], how, seed)
    dhs = p.dhs * mask[..., None]
    peer, (xs, *first) = layer_of(kind, p), map(tensor, (p.xs, *p.state))
    their_hs, *their_last = peer(xs, mask=torch.tensor(mask), initial_state=first)
    weights = [torch.tensor(array) for array in (dhs, *p.dstate)]
    outputs = (their_hs, *their_last)
    sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True)).backward()
    names = tuple(p.cell.shapes(1, 1))
    zero = torch.zeros(1, dtype=xs.dtype)
    theirs = {
        "hs": torch.where(torch.tensor(mask)[..., None], their_hs, zero),
        "dxs": xs.grad,
        **{f"last {k}": s for k, s in enumerate(their_last)},
        **{f"dstate {k}": s.grad for k, s in enumerate(first)},
        **dict(zip(names, grads_of(peer), strict=True)),
    }
    with use_backend(backend, strict=True):
        layer = rnn.TimeRecurrent(*p.params, cell=kind)
        layer.set_state(*p.state)
        hs = layer.forward(p.xs, mask=mask)
        dxs = layer.backward(p.dhs, *p.dstate)
    ours = {
        "hs": hs,
        "dxs": dxs,
        **{f"last {k}": s for k, s in enumerate(layer.state)},
        **{f"dstate {k}": s for k, s in enumerate(layer.dstate)},
        **{n: to_keras(kind, g) for n, g in zip(names, layer.grads, strict=True)},
    }
    compare(ours, theirs, LIMIT)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "gru_reset_after"])
@pytest.mark.parametrize("how", ["any", "lengths"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_in_both_directions_agree_with_keras(backend, how, kind):
    N, T, D, H = 4, 7, 3, 6
    p, q = (problem(kind, N, T, D, H, np.float32, seed=seed) for seed in (1, 2))
    mask, dhs = some_mask(N, T, how, 3), np.concatenate([p.dhs, q.dhs], axis=2)
    make, options = KINDS[kind]
    inner = make(H, return_sequences=True, **options)
    peer = keras.layers.Bidirectional(inner)
    peer.build(p.xs.shape)
    peer.set_weights([to_keras(kind, param) for param in (*p.params, *q.params)])
    xs, there = tensor(p.xs), torch.tensor(mask)[..., None]
    their_hs = torch.where(there, peer(xs, mask=torch.tensor(mask)), torch.zeros(1))
    (their_hs * torch.tensor(dhs)).sum().backward()
    names = [f"{n} {k}" for k in range(2) for n in p.cell.shapes(1, 1)]
    with use_backend(backend, strict=True):
        layer = rnn.Bidirectional(
            rnn.TimeRecurrent(*p.params, cell=kind), rnn.TimeRecurrent(*q.params, cell=kind)
        )
        hs, dxs = layer.forward(p.xs, mask=mask), layer.backward(dhs)
    grads = [to_keras(kind, grad) for grad in layer.grads]
    compare(
        {"hs": hs, "dxs": dxs, **dict(zip(names, grads, strict=True))},
        {"hs": their_hs, "dxs": xs.grad, **dict(zip(names, grads_of(peer), strict=True))},
        LIMIT,
    )
