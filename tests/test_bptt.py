"""BPTT and truncated BPTT: what is cut, what is carried, against PyTorch with detached states."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import BACKENDS, relative_error
from numba_rnn import TimeLSTM, use_backend
from numba_rnn.training import TruncatedBPTT


def our_gradients(layer, xs, weights, time_size):
    """Gradients of sum(weights * hs) over a sequence read in blocks, added up over the blocks."""
    total = [np.zeros_like(p) for p in layer.params]
    layer.reset_state()
    hs = []
    frames = np.concatenate([xs, weights], axis=2)[0]  # one stream: N = 1
    blocks = TruncatedBPTT(frames, 1, time_size, targets=frames)
    D = xs.shape[2]
    for block, _ in blocks:
        block = np.ascontiguousarray(block)
        hs.append(layer.forward(block[:, :, :D]))
        layer.backward(block[:, :, D:])
        for sum_, grad in zip(total, layer.grads, strict=True):
            sum_ += grad
    assert blocks.cursor == len(blocks)
    return np.concatenate(hs, axis=1), total


def torch_gradients(layer, xs, weights, time_size):
    """The same by autograd over the whole sequence, the state detached every time_size steps."""
    Wx, Wh, b = (torch.tensor(p, requires_grad=True) for p in layer.params)
    H = Wh.shape[0]
    h = c = torch.zeros(1, H, dtype=Wx.dtype)
    hs = []
    for t in range(xs.shape[1]):
        if t % time_size == 0:
            h, c = h.detach(), c.detach()
        a = torch.tensor(xs[:, t]) @ Wx + h @ Wh + b
        f, g, i, o = (a[:, k * H : (k + 1) * H] for k in range(4))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        hs.append(h)
    hs = torch.stack(hs, dim=1)
    (hs * torch.tensor(weights)).sum().backward()
    return hs.detach().numpy(), [p.grad.numpy() for p in (Wx, Wh, b)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("time_size", [24, 8, 3, 1])
def test_blocks_equal_full_bptt_with_the_state_detached(backend, time_size):
    """With one block (24) nothing is detached: that is full BPTT."""
    rng = np.random.default_rng(0)
    layer = TimeLSTM.create(3, 5, rng=rng, dtype=np.float64, stateful=True)
    xs, weights = rng.standard_normal((1, 24, 3)), rng.standard_normal((1, 24, 5))
    with use_backend(backend):
        hs, ours = our_gradients(layer, xs, weights, time_size)
    expected_hs, expected = torch_gradients(layer, xs, weights, time_size)
    assert relative_error(hs, expected_hs) < 1e-12
    for a, b in zip(ours, expected, strict=True):
        assert relative_error(a, b) < 1e-12
    if time_size < 24:  # the cut is real
        _, whole = torch_gradients(layer, xs, weights, 24)
        assert relative_error(ours[1], whole[1]) > 1e-3


@given(st.integers(2, 200), st.integers(1, 7), st.integers(1, 9))
def test_each_row_follows_on_from_the_block_before(length, batch_size, time_size):
    corpus = np.arange(length)
    if (length - 1) // batch_size < time_size:
        with pytest.raises(ValueError, match="corpus: expected at least"):
            TruncatedBPTT(corpus, batch_size, time_size)
        return
    blocks = list(TruncatedBPTT(corpus, batch_size, time_size))
    xs = np.concatenate([x for x, _ in blocks], axis=1)
    ts = np.concatenate([t for _, t in blocks], axis=1)
    assert all(x.shape == (batch_size, time_size) for x, _ in blocks)
    np.testing.assert_array_equal(ts, xs + 1)
    stream = (length - 1) // batch_size
    np.testing.assert_array_equal(xs[:, 0], np.arange(batch_size) * stream)
    np.testing.assert_array_equal(np.diff(xs, axis=1), 1)
    assert xs.shape[1] == stream // time_size * time_size


def test_the_cursor_is_saved_and_restored():
    corpus = np.arange(100)
    whole = [x for x, _ in TruncatedBPTT(corpus, 2, 5)]
    first = TruncatedBPTT(corpus, 2, 5)
    seen = []
    for x, _ in first:
        seen.append(x)
        if len(seen) == 4:
            break
    second = TruncatedBPTT(corpus, 2, 5)
    second.restore(first.state())
    seen += [x for x, _ in second]
    np.testing.assert_array_equal(seen, whole)
    assert list(second) == []  # at the end
    second.rewind()
    assert len(list(second)) == len(second)
    with pytest.raises(ValueError, match="time_size 5, got 6"):
        second.restore({**first.state(), "time_size": 6})


def test_frames_and_targets_of_their_own():
    frames, targets = np.random.default_rng(0).random((21, 3)), np.arange(21)
    blocks = list(TruncatedBPTT(frames, 3, 7, targets=targets))
    assert len(blocks) == 1
    xs, ts = blocks[0]
    np.testing.assert_array_equal(xs.reshape(21, 3), frames)
    np.testing.assert_array_equal(ts.ravel(), targets)


@given(st.integers(2, 400), st.integers(1, 4), st.integers(1, 30), st.integers(0, 3))
def test_blocks_of_varying_length_have_every_step_once(length, batch_size, time_size, seed):
    stream = (length - 1) // batch_size
    if stream < time_size:
        return
    corpus = np.arange(length)
    blocks = TruncatedBPTT(corpus, batch_size, time_size, varying=True, rng=seed)
    lengths = []
    for epoch in range(3):
        found = list(blocks)
        assert len(found) == len(blocks)
        xs, ts = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        np.testing.assert_array_equal(xs, corpus[: batch_size * stream].reshape(batch_size, -1))
        np.testing.assert_array_equal(ts, xs + 1)
        lengths.append([x.shape[1] for x, _ in found])
        assert min(lengths[-1][:-1], default=5) >= min(5, time_size)
        blocks.rewind()
        blocks.rewind()  # of an epoch that has not begun
        assert blocks.epoch == epoch + 1
    assert blocks.full_batches == stream / time_size
    if stream > 10 * time_size:
        assert lengths[0] != lengths[1] != lengths[2]


def test_lengths_vary_about_the_time_size():
    blocks = TruncatedBPTT(np.arange(700_001), 1, 70, varying=True, rng=0)
    lengths = np.array([x.shape[1] for x, _ in blocks][:-1])
    halves = lengths < 52
    assert abs(halves.mean() - 0.05) < 0.01
    assert abs(lengths[~halves].mean() - 70) < 0.5
    assert abs(lengths[halves].mean() - 35) < 1
    assert abs(lengths[~halves].std() - 5) < 0.3


def test_varying_lengths_are_saved_and_restored():
    def blocks(seed=0, **options):
        return TruncatedBPTT(np.arange(400), 2, 9, rng=seed, **options)

    first = blocks(varying=True)
    list(first)
    first.rewind()
    seen = [next(iter(first))[0] for _ in range(4)]
    second = blocks(seed=1, varying=True)
    second.restore(first.state())
    assert second.digest() == first.digest() != blocks(varying=True).digest()
    whole = blocks(varying=True)
    list(whole)
    whole.rewind()
    for a, b in zip([*seen, *(x for x, _ in second)], (x for x, _ in whole), strict=True):
        np.testing.assert_array_equal(a, b)
    before = second.state()
    with pytest.raises(ValueError, match="cursor: expected at most"):
        second.restore({**before, "cursor": 1000})
    for other in blocks(), blocks(varying=True):
        with pytest.raises((TypeError, ValueError)):
            other.restore(blocks(varying=other._seed is None).state())
        assert other.cursor == 0
    assert second.state() == before
