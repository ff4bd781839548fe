"""Sums of many numbers in float32 are right to few units in the last place, whatever their count.

A running sum of 64,000 numbers of about one size is 5e-6 off, PyTorch's products are 1e-6. The
oracle is the same in float64.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest

import numba_rnn as rnn
from fake_device import use_fake_device
from helpers import ALL_ENGINES, BACKENDS, Array, relative_error
from numba_rnn import cells, training, use_backend
from numba_rnn.backend import to_host
from numba_rnn.kernels.reference import NumpyEngine

COUNT, LIMIT = 64_000, 2e-6
D, H = 3, 5


def of_one_size(*shape: int, size: float = 1.0, seed: int = 0) -> Array:
    """Numbers whose sums do not cancel, so that every rounding error stays in them."""
    spread = np.random.default_rng(seed).standard_normal(shape)
    return (size * (1 + 0.1 * spread)).astype(np.float32)


def gradients(engine: Any, cell: cells.Cell, N: int, T: int, dtype: Any) -> dict[str, Array]:
    """Of the parameters, from the same numbers in float32 or float64."""
    rng, shapes = np.random.default_rng(1), cell.shapes(D, H)
    params = [
        (0.1 * rng.standard_normal(shape)).astype(np.float32).astype(dtype)
        for shape in shapes.values()
    ]
    zeros = tuple(np.zeros((N, H), dtype) for _ in cell.states)
    state = tuple(zero + np.float32(0.5) for zero in zeros)
    xs, dhs = of_one_size(N, T, D).astype(dtype), of_one_size(N, T, H, size=1e-3).astype(dtype)
    _, _, saved = engine.forward(cell, xs, state, params)
    found = engine.backward(cell, dhs, zeros, saved, False).params
    return dict(zip(shapes, found, strict=True))


# one product, two biases, peepholes, a second product, scales of layer norm, no product at all;
# many rows make one long step, many steps many chunks
@pytest.mark.parametrize("name", ["rnn", "gru_reset_after", "lstm_peephole", "gru2", "indrnn"])
@pytest.mark.parametrize("sizes", [(64, 1000), (COUNT, 1)])
def test_the_gradient_of_every_parameter(name, sizes):
    cell = cells.get(name)
    want = gradients(NumpyEngine(), cell, *sizes, np.float64)
    for backend in BACKENDS:
        with use_backend(backend, strict=True) as engine:
            got = gradients(engine, cell, *sizes, np.float32)
        errors = {what: relative_error(got[what], want[what]) for what in want}
        assert max(errors.values()) < LIMIT, (backend, errors)


def test_the_scales_of_layer_norm():
    """Their sums cancel less than those of the gates behind them."""
    cell = cells.get("lstm_layer_norm")
    want = gradients(NumpyEngine(), cell, 64, 1000, np.float64)
    for backend in BACKENDS:
        with use_backend(backend, strict=True) as engine:
            got = gradients(engine, cell, 64, 1000, np.float32)
        assert relative_error(got["w"], want["w"]) < LIMIT, backend


@pytest.mark.parametrize("M", [1, 3, 20, 400])
@pytest.mark.parametrize("K", [1, 255, 256, 257, 4097, COUNT])
def test_columns_of_a_matrix(K, M):
    rows = of_one_size(K, 2 * M)[:, ::2]
    want = rows.astype(np.float64).sum(axis=0)
    assert relative_error(NumpyEngine().sum_rows(rows), want) < 1e-6


@pytest.mark.parametrize("backend", ALL_ENGINES)
@pytest.mark.parametrize("K", [0, 1, 2048, 2049, COUNT])
def test_products_of_long_contraction(backend, K):
    a, b = of_one_size(K, 3), of_one_size(K, 5, seed=1)
    want = a.T.astype(np.float64) @ b
    with use_backend(backend, strict=True) as engine:
        assert relative_error(engine.product(a.T, b), want) < LIMIT
        stacked = engine.product(np.stack([a.T, -a.T]), np.stack([b, b]))
    assert relative_error(stacked, np.stack([want, -want])) < LIMIT


@pytest.mark.parametrize("running", [partial(use_backend, "numpy"), use_fake_device])
def test_a_bias_and_the_words_of_a_layer(running):
    dout = of_one_size(64, COUNT // 64, 3, size=1e-3)
    want = dout.astype(np.float64).sum(axis=(0, 1))
    with running():
        affine, embedding = rnn.TimeAffine.create(4, 3), rnn.TimeEmbedding.create(2, 3)
        affine.forward(np.ones((*dout.shape[:2], 4), np.float32))
        affine.backward(dout)
        dW, db = map(to_host, affine.grads)
        assert relative_error(dW, np.tile(want, (4, 1))) < LIMIT
        assert relative_error(db, want) < LIMIT
        embedding.forward(np.zeros(dout.shape[:2], int))
        embedding.backward(dout)
        (dW,) = map(to_host, embedding.grads)
    assert relative_error(dW, np.stack([want, 0 * want])) < LIMIT


@pytest.mark.parametrize("count", [700, COUNT])  # the CUDA engine: test_cuda.py
def test_words_that_come_again(count):
    rows = np.minimum(np.random.default_rng(0).integers(0, 9, count), 4)
    values, want = of_one_size(count, 6), np.zeros((5, 6))
    np.add.at(want, rows, values.astype(np.float64))
    out = np.zeros((5, 6), np.float32)
    NumpyEngine().add_rows(out, rows, values)
    assert (np.abs(out - want) < 1e-6 * want).all()


def test_one_step_of_attention_over_many():
    hs_enc, hs_dec = of_one_size(1, 3, H), of_one_size(1, COUNT, H, size=0.1, seed=1)
    dout = of_one_size(1, COUNT, H, size=1e-3, seed=2)
    found = []
    for dtype in (np.float32, np.float64):
        layer = rnn.TimeAttention()
        layer.forward(hs_enc.astype(dtype), hs_dec.astype(dtype))
        found.append(layer.backward(dout.astype(dtype))[0])
    assert relative_error(*found) < LIMIT


@pytest.mark.parametrize("running", [partial(use_backend, "numpy"), use_fake_device])
def test_the_initial_state_of_many_rows(running):
    dhs = of_one_size(COUNT, 1, H, size=1e-3)
    xs, found = of_one_size(COUNT, 1, D, size=0.1), []
    for dtype in (np.float32, np.float64):
        with running():
            layer = rnn.TimeLSTM.create(D, H, rng=0, dtype=dtype).learn_initial_state()
            layer.forward(xs.astype(dtype))
            layer.backward(dhs.astype(dtype))
            found.append(to_host(layer.grads[-1]))
    assert relative_error(*found) < LIMIT


@pytest.mark.parametrize("running", [partial(use_backend, "numpy"), use_fake_device])
def test_the_norm_of_ten_million_numbers(running):
    grads = [np.random.default_rng(0).standard_normal(size, np.float32) for size in (7, 10**7)]
    want = np.sqrt(sum(np.square(grad, dtype=np.float64).sum() for grad in grads))
    with running() as engine:
        norm = training.clip_grads([engine.to_device(grad) for grad in grads], 1e9)
        assert abs(float(norm) / want - 1) < 1e-7
