"""Resets of PyTorch's modules, beside torch.nn called for each episode."""

import copy
import itertools

import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

import numba_rnn.torch  # noqa: E402

T, N, D, H = 7, 4, 3, 5
FLAGS = torch.zeros(T, N, dtype=torch.bool)
FLAGS[[0, 3, 1, 2, 6, 4, 5], [0, 0, 1, 1, 1, 2, 3]] = True
LENGTHS = torch.tensor([7, 4, 6, 2])  # of some rows resets come behind the end


def episode_by_episode(module, xs, hx, lengths):
    """torch.nn for each episode of each row: outputs (T, N, ·), and the states after."""
    several, both = isinstance(hx, tuple), module.bidirectional
    states, outs = hx if several else (hx,), []
    after = [torch.zeros_like(s) for s in states]
    for n in range(N):
        end = int(lengths[n])
        cuts = [0, *(t for t in range(1, end) if FLAGS[t, n]), end]
        row = []
        for first, last in itertools.pairwise(cuts):
            given = [s[:, n : n + 1].clone() for s in states]
            for s in given:
                if first > 0 or FLAGS[0, n]:
                    s[:: 2 if both else 1] = 0
                if both and last < end:
                    s[1::2] = 0
            out, new = module(xs[first:last, n : n + 1], tuple(given) if several else given[0])
            row.append(out)
            for old, s in zip(after, new if several else (new,), strict=True):
                if last == end:
                    old[:: 2 if both else 1, n] = s[:: 2 if both else 1, 0]
                if both and first == 0:
                    old[1::2, n] = s[1::2, 0]
        out = torch.cat(row)
        outs.append(torch.cat([out, out.new_zeros(T - end, 1, out.shape[2])]))
    return torch.cat(outs, 1), after


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, False), (1, True), (2, True)])
@pytest.mark.parametrize("form", ["dense", "batch_first", "packed"])
def test_resets_are_episodes(kind, layers, both, form):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(D, H, layers, bidirectional=both, dtype=torch.float64)
    ours = numba_rnn.torch.accelerate(copy.deepcopy(theirs), log=lambda line: None)
    ours.batch_first = form == "batch_first"
    lengths = LENGTHS if form == "packed" else torch.full((N,), T)
    found = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        xs = torch.randn(T, N, D).double().requires_grad_()
        h = torch.randn(layers * (1 + both), N, H).double().requires_grad_()
        hx = (h, 2 * h) if kind == "LSTM" else h
        if module is theirs:
            out, states = episode_by_episode(module, xs, hx, lengths)
        elif form == "packed":
            packed = pack_padded_sequence(xs, lengths, enforce_sorted=False)
            out, states = module(packed, hx, resets=FLAGS)
            out, _ = pad_packed_sequence(out, total_length=T)
        elif form == "batch_first":
            out, states = module(xs.transpose(0, 1), hx, resets=FLAGS.t())
            out = out.transpose(0, 1)
        else:
            out, states = module(xs, hx, resets=FLAGS)
        states = states if isinstance(states, (tuple, list)) else (states,)
        loss = (out * torch.linspace(-1, 1, out.numel()).double().view(out.shape)).sum()
        (loss + sum(k * s.pow(2).sum() for k, s in enumerate(states, 1))).backward()
        grads = [xs.grad, h.grad, *(p.grad for p in module.parameters())]
        found.append([out.detach(), *(s.detach() for s in states), *grads])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_resets_without_a_batch_and_at_one_step():
    theirs = torch.nn.GRU(D, H)
    ours = numba_rnn.torch.accelerate(copy.deepcopy(theirs), log=lambda line: None)
    xs, h = torch.randn(1, D), torch.randn(1, H)
    for flag in (True, False):
        want = theirs(xs, h * (not flag))
        torch.testing.assert_close(ours(xs, h, resets=torch.tensor([flag])), want)


@pytest.mark.parametrize(
    ("resets", "says"),
    [
        ([[True]], "expected a bool tensor, got list"),
        (torch.zeros(T, N), r"expected a bool tensor, got torch\.float32; resets\.bool\(\) is one"),
        (FLAGS.t(), r"expected shape \(7, 4\), a flag for each step and row .*, got \(4, 7\)"),
    ],
)
def test_bad_resets_are_named(resets, says):
    with pytest.raises((TypeError, ValueError), match=f"^resets: {says}"):
        numba_rnn.torch.GRU(D, H)(torch.zeros(T, N, D), resets=resets)
