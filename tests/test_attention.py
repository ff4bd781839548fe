"""TimeAttention, against PyTorch and central differences, and where rows have ends."""

from typing import Any

import numpy as np
import pytest

import numba_rnn as rnn
from fake_device import asnumpy, use_fake_device, xp
from helpers import BACKENDS, DTYPES, Array, central_differences, relative_error
from numba_rnn import use_backend

SIZES = [(1, 1, 1, 1), (1, 7, 1, 5), (3, 1, 4, 2), (2, 5, 3, 17), (4, 11, 9, 33)]  # N, S, T, H
each_size = pytest.mark.parametrize("sizes", SIZES)


def problem(sizes: tuple[int, ...], dtype: Any = np.float64, seed: int = 0) -> list[Array]:
    """hs_enc, hs_dec, dout and lengths, no row of which is empty."""
    N, S, T, H = sizes
    rng = np.random.default_rng(seed)
    shapes = (N, S, H), (N, T, H), (N, T, H)
    arrays = [rng.uniform(-1.5, 1.5, shape).astype(dtype) for shape in shapes]
    return [*arrays, rng.integers(1, S + 1, N)]


@each_size
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("some", [False, True])
def test_gradients(backend, sizes, some):
    hs_enc, hs_dec, dout, lengths = problem(sizes)
    layer, lengths = rnn.TimeAttention(), lengths if some else None

    def loss() -> float:
        return float((layer.forward(hs_enc, hs_dec, lengths=lengths) * dout).sum())

    with use_backend(backend, strict=True):
        loss()
        for array, gradient in zip((hs_enc, hs_dec), layer.backward(dout), strict=True):
            size = np.abs(gradient).max() + 1e-3  # of one step the gradients by scores are 0
            assert np.abs(gradient - central_differences(loss, array)).max() / size < 1e-7


@each_size
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("some", [False, True])
def test_it_computes_what_pytorch_does(sizes, dtype, some):
    import torch

    hs_enc, hs_dec, dout, lengths = problem(sizes, dtype, seed=1)
    mask = np.arange(sizes[1]) < lengths[:, None] if some else None
    layer = rnn.TimeAttention()
    contexts = layer.forward(hs_enc, hs_dec, mask=mask)
    gradients = layer.backward(dout)

    enc, dec = (torch.from_numpy(a).requires_grad_() for a in (hs_enc, hs_dec))
    there = None if mask is None else torch.from_numpy(mask)[:, None, :]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        dec, enc, enc, attn_mask=there, scale=1
    )
    theirs.backward(torch.from_numpy(dout))
    limit = 1e-5 if dtype == np.float32 else 1e-12
    assert contexts.dtype == dtype
    assert relative_error(contexts, theirs.detach().numpy()) < limit
    for mine, other in zip(gradients, (enc, dec), strict=True):
        assert mine.dtype == dtype
        size = np.abs(other.grad.numpy()).max() + 0.1
        assert np.abs(mine - other.grad.numpy()).max() / size < limit


def test_weights_are_shares_of_the_steps_that_are_there():
    hs_enc, hs_dec, dout, _ = problem((3, 5, 4, 6))
    layer = rnn.TimeAttention()
    contexts = layer.forward(hs_enc, hs_dec, lengths=[5, 2, 0])
    weights = layer.attention_weights
    assert weights.shape == (3, 4, 5)
    np.testing.assert_allclose(weights.sum(axis=2), [[1] * 4, [1] * 4, [0] * 4], atol=1e-15)
    assert not weights[1, :, 2:].any()
    assert weights[1, :, :2].all()
    assert not contexts[2].any()
    dhs_enc, dhs_dec = layer.backward(dout)
    assert not dhs_enc[1, 2:].any()
    assert not dhs_enc[2].any()
    assert not dhs_dec[2].any()


def test_a_row_is_what_it_is_without_what_comes_after_its_end():
    hs_enc, hs_dec, dout, _ = problem((2, 6, 3, 4))
    alone, padded = rnn.TimeAttention(), rnn.TimeAttention()
    want = alone.forward(hs_enc[:, :4].copy(), hs_dec), *alone.backward(dout)
    hs_enc[:, 4:] = np.nan  # whatever is there
    got = padded.forward(hs_enc, hs_dec, lengths=[4, 4]), *padded.backward(dout)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-13)
    np.testing.assert_allclose(got[1][:, :4], want[1], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got[2], want[2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_match_takes_all_where_scores_are_large(dtype):
    hs_enc = np.array([[[1.0, 0.0], [0.0, 1.0]]], dtype)
    hs_dec = np.array([[[1e4, 0.0], [0.0, 1e4], [-1e30, 1e30]]], dtype)
    layer = rnn.TimeAttention()
    np.testing.assert_array_equal(layer.forward(hs_enc, hs_dec)[0], [[1, 0], [0, 1], [0, 1]])
    layer.forward(hs_enc, hs_dec, lengths=[1])
    np.testing.assert_array_equal(layer.attention_weights[0], [[1, 0]] * 3)


def test_lengths_on_a_device():
    hs_enc, hs_dec, dout, lengths = problem((3, 5, 4, 6))
    with use_backend("numpy"):
        layer = rnn.TimeAttention()
        want = layer.forward(hs_enc, hs_dec, lengths=lengths), *layer.backward(dout)
    with use_fake_device():
        got = layer.forward(xp.asarray(hs_enc), hs_dec, lengths=lengths), *layer.backward(dout)
        for mine, other in zip(got, want, strict=True):
            np.testing.assert_allclose(asnumpy(mine), other, rtol=1e-13)


def given(*, enc=(2, 5, 3), dec=(2, 4, 3), dtype=np.float64, **steps: Any) -> Any:
    return rnn.TimeAttention().forward(np.ones(enc), np.ones(dec, dtype), **steps)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"enc": (2, 5)}, ValueError, r"^hs_enc: expected shape \(N, S, H\), got \(2, 5\)"),
        ({"enc": (2, 0, 3)}, ValueError, "^hs_enc: .* no size 0"),
        ({"dec": (3, 4, 3)}, ValueError, r"^hs_dec: expected shape \(2, T, 3\), got \(3, 4, 3\)"),
        ({"dec": (2, 4, 6)}, ValueError, r"^hs_dec: expected shape \(2, T, 3\), got \(2, 4, 6\)"),
        ({"dtype": np.float32}, TypeError, "^hs_dec: expected float64"),
        ({"lengths": [5, 6]}, ValueError, "^lengths: .* 0 to 5"),
        ({"lengths": [5]}, ValueError, r"^lengths: expected shape \(2,\)"),
        ({"mask": np.ones((2, 4), bool)}, ValueError, r"^mask: expected shape \(2, 5\)"),
        ({"mask": np.ones((2, 5))}, TypeError, "^mask: expected booleans"),
    ],
)
def test_bad_input_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        given(**wrong)


def test_what_comes_before_forward_is_refused():
    layer = rnn.TimeAttention()
    assert layer.attention_weights is None
    with pytest.raises(RuntimeError, match=r"TimeAttention.backward: call forward first"):
        layer.backward(np.ones((2, 4, 3)))
    layer.forward(np.ones((2, 5, 3)), np.ones((2, 4, 3)))
    with pytest.raises(ValueError, match=r"^dout: expected shape \(2, 4, 3\)"):
        layer.backward(np.ones((2, 5, 3)))
