"""Sequences as they come: lengths, masks and resets in both directions, stacks and projections.

PyTorch's packed sequences are the oracle for lengths; else each row, alone and without what is
left out, through the same layer.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_peers import (
    KINDS,
    LIMITS,
    TORCH_DTYPES,
    compare,
    tensor,
    to_torch_grads,
    to_torch_params,
)
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import numba_rnn as rnn
from helpers import BACKENDS, DTYPES, REPRESENTATIVES, Array, central_differences, relative_error
from numba_rnn import use_backend
from numba_rnn.kernels import counter_rng
from numba_rnn.models import Rnnlm

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def parts(layer: Any) -> tuple[Any, ...]:
    return layer.recurrent if isinstance(layer, (rnn.Bidirectional, rnn.Stacked)) else (layer,)


def states(layer: Any) -> list[Any]:
    return list(layer.state if len(parts(layer)) > 1 else [layer.state])


def dstates(layer: Any) -> list[Any]:
    return list(layer.dstate if len(parts(layer)) > 1 else [layer.dstate])


def some_states(layer: Any, N: int, seed: int) -> list[tuple[Array, ...]]:
    """A state for each of the recurrent layers."""
    rng = np.random.default_rng(seed)
    return [
        tuple(
            rng.uniform(-1, 1, (N, size)).astype(layer.dtype)
            for size in (part.output_size, part.hidden_size)[: len(part.cell.states)]
        )
        for part in parts(layer)
    ]


def set_state(layer: Any, given: list[tuple[Array, ...]]) -> None:
    layer.set_state(*(given if len(parts(layer)) > 1 else given[0]))


# ---- PyTorch's packed sequences


def one_layer(kind: str, D: int, H: int, P: int, rng: Any, dtype: Any) -> Any:
    if P:
        layer: Any = rnn.TimeProjectedLSTM.create(D, H, proj_size=P, rng=rng, dtype=dtype)
    else:
        layer = rnn.TimeRecurrent.create(D, H, cell=kind, rng=rng, dtype=dtype)
    layer.params[2][...] = rng.uniform(-0.5, 0.5, layer.params[2].shape)
    return layer


def same_as_torch(
    kind: str, D: int, H: int, P: int, layers: int, both: bool, dtype: Any, seed: int
) -> tuple[Any, Any]:
    """A layer of ours, and PyTorch's module with its weights."""
    rng, made, below = np.random.default_rng(seed), [], D
    for _ in range(layers):
        one = one_layer(kind, below, H, P, rng, dtype)
        if both:
            one = rnn.Bidirectional(one, one_layer(kind, below, H, P, rng, dtype))
        made.append(one)
        below = one.output_size
    ours = made[0] if layers == 1 else rnn.Stacked(made)
    make, own = KINDS[kind]
    options = {**own, **({"proj_size": P} if P else {})}
    peer = make(
        D, H, layers, batch_first=True, bidirectional=both, dtype=TORCH_DTYPES[dtype], **options
    )
    arrays = [
        array
        for part in parts(ours)
        for array in (*to_torch_params(kind, part.params[:3]), *(p.T for p in part.params[3:]))
    ]
    named = dict(zip(peer.state_dict(), map(torch.tensor, arrays), strict=True))
    peer.load_state_dict(named)
    return ours, peer


def torch_grads(kind: str, layer: Any) -> list[Array]:
    return [
        array
        for part in parts(layer)
        for array in (*to_torch_grads(kind, part.grads[:3]), *(g.T for g in part.grads[3:]))
    ]


def stacked_states(given: list[tuple[Array, ...]]) -> list[Array]:
    """States of all layers as PyTorch has them: (layers, N, H) for each kind of state."""
    return [np.stack(kind) for kind in zip(*given, strict=True)]


# relu has a kink, which float32 may miss by rounding: float64 alone
KINDS_AND_DTYPES = [
    (kind, dtype)
    for kind in (*KINDS, "projected")
    for dtype in DTYPES
    if (kind, dtype) != ("rnn_relu", np.float32)
]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("kind", "dtype"), KINDS_AND_DTYPES)
@each_backend
@settings(max_examples=4, deadline=None)
@example(sizes=(3, 6, 4, 7), seed=1, full=False)
@example(sizes=(1, 1, 1, 1), seed=2, full=True)
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.integers(1, 20)),
    seed=st.integers(0, 1 << 32),
    full=st.booleans(),
)
def test_lengths_are_packed_sequences(backend, kind, layers, both, dtype, sizes, seed, full):
    rng = np.random.default_rng(seed)
    N, T, D, H = sizes
    P = 0
    if kind == "projected":  # PyTorch wants fewer than H
        kind, H = "lstm", H + 1
        P = 1 + H // 3
    lengths = rng.integers(1, T + 1, N)  # none is 0 there
    lengths[rng.integers(N)] = T if full else lengths[0]
    layer, peer = same_as_torch(kind, D, H, P, layers, both, dtype, seed)
    xs, dhs = (numbers(N, T, n, seed=seed, dtype=dtype) for n in (D, layer.output_size))
    first, dlast = some_states(layer, N, seed + 1), some_states(layer, N, seed + 2)

    their_xs, their_first = tensor(xs), list(map(tensor, stacked_states(first)))
    packed = pack_padded_sequence(
        their_xs, torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    out, last = peer(packed, tuple(their_first) if len(their_first) > 1 else their_first[0])
    their_hs, _ = pad_packed_sequence(out, batch_first=True, total_length=T)
    their_last = list(last) if isinstance(last, tuple) else [last]
    weights = [dhs, *stacked_states(dlast)]
    sum(
        (value * torch.tensor(weight)).sum()
        for value, weight in zip((their_hs, *their_last), weights, strict=True)
    ).backward()

    with use_backend(backend, strict=True):
        set_state(layer, first)
        hs = layer.forward(xs, lengths=lengths)
        dxs = layer.backward(dhs, *(dlast if len(parts(layer)) > 1 else dlast[0]))
    names = list(peer.state_dict())
    grads = dict(peer.named_parameters())
    ours = {"hs": hs, "dxs": dxs, **dict(zip(names, torch_grads(kind, layer), strict=True))}
    theirs = {"hs": their_hs, "dxs": their_xs.grad, **{n: grads[n].grad for n in names}}
    for k, (a, b) in enumerate(zip(stacked_states(states(layer)), their_last, strict=True)):
        ours[f"last {k}"], theirs[f"last {k}"] = a, b
    for k, (a, b) in enumerate(zip(stacked_states(dstates(layer)), their_first, strict=True)):
        ours[f"dfirst {k}"], theirs[f"dfirst {k}"] = a, b.grad
    compare(ours, theirs, 10 * LIMITS[dtype])  # three layers' rounding, one on the other


# ---- each row alone, without what is left out

D, H = 3, 4
MADE = {
    "rnn": lambda: rnn.TimeRNN.create(D, H, rng=1, dtype=np.float64),
    "lstm": lambda: rnn.TimeLSTM.create(D, H, rng=1, dtype=np.float64),
    "gru": lambda: rnn.TimeGRU.create(D, H, rng=1, dtype=np.float64),
    "projected": lambda: rnn.TimeProjectedLSTM.create(D, H, proj_size=2, rng=1, dtype=np.float64),
    "both ways": lambda: rnn.TimeBiGRU.create(D, H, rng=1, dtype=np.float64),
    "both ways, two kinds": lambda: rnn.Bidirectional(MADE["projected"](), MADE["gru"]()),
    "stacked": lambda: rnn.Stacked.create(D, H, 2, rng=1, dtype=np.float64),
    "stacked, both ways": lambda: rnn.Stacked.create(
        D, H, 3, layer=rnn.TimeBiLSTM, rng=1, dtype=np.float64
    ),
    "stacked, residual": lambda: rnn.Stacked.create(
        D, D, 3, layer="lstm", residual=True, rng=1, dtype=np.float64
    ),
}
each_made = pytest.mark.parametrize("name", MADE)


def made(name: str, seed: int = 0) -> Any:
    """The layer with biases and initial states that are not 0."""
    layer, rng = MADE[name]().learn_initial_state(), np.random.default_rng(seed)
    for param in layer.params:
        param += rng.uniform(-0.3, 0.3, param.shape)
    return layer


@each_made
@each_backend
@settings(max_examples=12, deadline=None)
@example(sizes=(1, 1), by_length=True, starts=False, seed=0)
@example(sizes=(2, 1), by_length=False, starts=True, seed=3)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    by_length=st.booleans(),
    starts=st.booleans(),
    seed=st.integers(0, 1 << 32),
)
def test_rows_are_what_they_are_alone(backend, name, sizes, by_length, starts, seed):
    rng, (N, T) = np.random.default_rng(seed), sizes
    layer = made(name)
    xs = numbers(N, T, D, seed=seed)
    dhs = numbers(N, T, layer.output_size, seed=seed + 1)
    first, dlast = some_states(layer, N, seed), some_states(layer, N, seed + 1)
    lengths = rng.integers(0, T + 1, N)  # 0 too
    mask = np.arange(T) < lengths[:, None] if by_length else rng.random((N, T)) < 0.6
    xs[~mask], dhs[~mask] = np.nan, np.nan  # whatever is there
    steps = {"lengths": lengths} if by_length else {"mask": mask}

    with use_backend(backend, strict=True):
        if starts:
            set_state(layer, first)
        hs = layer.forward(xs, **steps)
        dxs = layer.backward(dhs, *(dlast if len(parts(layer)) > 1 else dlast[0]))
        got = [np.array(a) for own in (*states(layer), *dstates(layer)) for a in own]
        assert not hs[~mask].any()
        assert not dxs[~mask].any()
        grads = [g.copy() for g in layer.grads]
        added = [np.zeros_like(g) for g in grads]
        for n in range(N):
            rows = slice(n, n + 1)
            if not mask[n].any():
                mask_n, xs_n, dhs_n = np.zeros((1, 1), bool), xs[rows, :1] * 0, dhs[rows, :1] * 0
            else:
                mask_n, xs_n, dhs_n = None, xs[rows, mask[n]], dhs[rows, mask[n]]
            if starts:
                set_state(layer, [tuple(s[rows] for s in own) for own in first])
            hs_n = layer.forward(xs_n, mask=mask_n)
            d = [tuple(s[rows] for s in own) for own in dlast]
            dxs_n = layer.backward(dhs_n, *(d if len(parts(layer)) > 1 else d[0]))
            if mask_n is None:
                close(hs_n[0], hs[n, mask[n]])
                close(dxs_n[0], dxs[n, mask[n]])
            alone = [a for own in (*states(layer), *dstates(layer)) for a in own]
            for one, whole in zip(alone, got, strict=True):
                close(one[0], whole[n])
            for total, grad in zip(added, layer.grads, strict=True):
                total += grad
    for total, grad in zip(added, grads, strict=True):
        close(total, grad)


# ---- resets


@pytest.mark.parametrize("masked", [False, True])
@each_backend
def test_no_direction_looks_across_a_reset(backend, masked):
    """Each piece between two resets is read by itself, in both directions."""
    N, T = 3, 8
    rng = np.random.default_rng(2)
    layer, xs = made("both ways, two kinds"), numbers(N, T, D)
    resets = rng.random((N, T)) < 0.35
    resets[0] = False  # one piece
    resets[1, 0] = True  # what is set before does not count, for the forward direction
    mask = rng.random((N, T)) < 0.6 if masked else np.ones((N, T), bool)
    first = some_states(layer, N, 1)
    with use_backend(backend, strict=True):
        set_state(layer, first)
        hs = layer.forward(xs, resets=resets, mask=mask if masked else None)
        last = layer.state
        ahead, back = layer.recurrent
        for n in range(N):
            at = [0, *(t for t in range(1, T) if resets[n, t]), T]
            row = slice(n, n + 1)
            for a, b in pairwise(at):
                if a == 0 and not resets[n, 0]:
                    ahead.set_state(*(s[row] for s in first[0]))
                if b == T:
                    back.set_state(*(s[row] for s in first[1]))
                piece = layer.forward(xs[row, a:b], mask=mask[row, a:b])
                close(piece[0], hs[n, a:b])
                if b == T:
                    for one, whole in zip(ahead.state, last[0], strict=True):
                        close(one[0], whole[n])
                if a == 0:
                    for one, whole in zip(back.state, last[1], strict=True):
                        close(one[0], whole[n])
    whole = layer.forward(xs, mask=mask if masked else None)
    assert np.abs(whole[1:] - hs[1:])[:, :, -H:].max() > 1e-3  # it makes a difference


# ---- stacks


def by_hand(stack: Any, xs: Array, seed: int) -> Array:
    """The outputs of a stack, as its docstring says, with a dropout written here."""
    random, ratio = np.random.default_rng(seed), stack.dropouts[0].ratio
    hs = xs
    for k, layer in enumerate(stack.layers):
        below = hs
        if k and stack.train_flg:
            gone = counter_rng.drawn(int(random.integers(2**63)), hs.shape, ratio)
            hs = np.where(gone, 0, hs) / (1 - ratio)
        hs = layer.forward(hs)
        if stack.residuals[k]:
            hs = hs + below
    return hs


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_a_stack_is_its_layers(residual, train):
    options = {"dropout": 0.4, "residual": residual, "dtype": np.float64, "rng": 0}
    stack = rnn.Stacked.create(D, H, 3, layer="gru", **options)
    assert stack.residuals == (False, residual, residual)
    assert len(stack.dropouts) == 2
    stack.train_flg = train
    for dropout in stack.dropouts:
        dropout.rng = np.random.default_rng(5)  # one each
    stack.dropouts[1].rng = stack.dropouts[0].rng  # or shared, as create has it
    xs = numbers(2, 5, D)
    got = stack.forward(xs)
    close(got, by_hand(stack, xs, 5))
    assert stack.train_flg is train
    if train:
        assert np.abs(stack.forward(xs) - got).max() > 1e-3  # drawn anew
    else:
        np.testing.assert_array_equal(stack.forward(xs), got)


def test_a_stacks_first_layer_is_passed_by_where_sizes_agree():
    stack = rnn.Stacked.create(D, D, 1, layer="rnn", residual=True, rng=0, dtype=np.float64)
    xs = numbers(2, 5, D)
    close(stack.forward(xs) - xs, stack.layers[0].forward(xs))
    mask = np.ones((2, 5), bool)
    mask[1, 2:] = False
    xs[~mask] = np.nan
    hs = stack.forward(xs, mask=mask)
    dxs = stack.backward(np.where(mask[..., None], 1.0, np.nan) + 0 * hs)
    for array in (hs, dxs):
        assert not array[~mask].any()
        assert np.isfinite(array).all()


def test_regularisers_initial_states_and_train_flg_reach_every_layer():
    for name in ("both ways", "stacked, both ways"):
        layer = MADE[name]().regularise(zoneout=0.2, input_dropout=0.3, rng=3)
        assert all(part.regularisers.zoneout[0] == 0.2 for part in layer.recurrent)
        assert len({id(part.regularisers.rng) for part in layer.recurrent}) == 1
        before = len(layer.params)
        assert layer.learn_initial_state() is layer
        assert len(layer.params) == len(layer.grads) == before + len(layer.recurrent)
        assert sum(n.endswith(".initial") for n in layer.param_names) == len(layer.recurrent)
        with pytest.raises(ValueError, match="the initial state is already a parameter"):
            layer.learn_initial_state()
        xs = numbers(2, 5, D)
        assert layer.train_flg
        assert np.abs(layer.forward(xs) - layer.forward(xs)).max() > 1e-3
        layer.train_flg = False
        assert not any(part.train_flg for part in layer.recurrent)
        np.testing.assert_array_equal(layer.forward(xs), layer.forward(xs))
        with pytest.raises(ValueError, match="zoneout: expected some of"):
            layer.regularise(zoneout={"d": 0.1})
        assert all(part.regularisers.zoneout[0] == 0.2 for part in layer.recurrent)  # as before


def test_parameters_learnt_later_are_a_stacks_too():
    stack = MADE["stacked"]()
    stack.layers[1].learn_initial_state()
    assert stack.param_names == ("0.Wx", "0.Wh", "0.b", "1.Wx", "1.Wh", "1.b", "1.initial")
    assert stack.params[-1] is stack.layers[1].params[-1]
    both = MADE["stacked, both ways"]()
    assert both.param_names[6:9] == ("1.forward.Wx", "1.forward.Wh", "1.forward.b")
    assert both.grads[9] is both.layers[1].backward_layer.grads[0]


@pytest.mark.parametrize("layer", ["lstm", rnn.TimeLSTM])
def test_a_stateful_stack_carries_on(layer):
    xs = numbers(2, 10, D)
    options = {"layer": layer, "rng": 1, "dtype": np.float64}
    whole = rnn.Stacked.create(D, H, 2, **options).forward(xs)
    stack = rnn.Stacked.create(D, H, 2, stateful=True, **options)
    first = stack.forward(xs[:, :5])
    middle = stack.state
    close(np.concatenate([first, stack.forward(xs[:, 5:])], axis=1), whole)
    stack.set_state(*middle)
    close(stack.forward(xs[:, 5:]), whole[:, 5:])
    stack.reset_state()
    assert stack.state == (None, None)
    close(stack.forward(xs[:, :5]), first)
    stack.set_state(None, middle[1])  # the first layer starts anew
    assert stack.state[0] is None
    assert np.abs(stack.forward(xs[:, :5]) - first).max() > 1e-3


def test_states_are_set_in_all_layers_or_in_none():
    stack = MADE["stacked"]()
    stack.forward(numbers(2, 5, D))
    before = stack.state
    with pytest.raises(ValueError, match=r"^h: expected shape"):
        stack.set_state((numbers(2, H),), (numbers(2, H + 1),))
    assert stack.state == before
    stack.set_state(None, tuple(numbers(3, H) for _ in "hc"))
    with pytest.raises(ValueError, match=r"^xs: expected a batch of 3"):
        stack.forward(numbers(2, 5, D))
    assert stack.state[0] is None  # nothing ran


@each_made
def test_what_forward_kept_is_dropped(name):
    layer = MADE[name]()
    hs = layer.forward(numbers(2, 5, D))
    layer.forget()
    with pytest.raises(RuntimeError, match="call forward first"):
        layer.backward(hs)
    assert all(part._tape is None for part in parts(layer))


# ---- the projection


def test_a_projection_of_full_width_is_the_cell():
    cell = rnn.TimeRecurrent.create(D, H, cell="lstm_projected", rng=1, dtype=np.float64)
    assert [p.shape for p in cell.params] == [(D, 4 * H), (H, 4 * H), (4 * H,), (H, H)]
    layer = rnn.TimeProjectedLSTM(*cell.params)
    xs, dhs = numbers(2, 5, D), numbers(2, 5, H, seed=1)
    np.testing.assert_array_equal(layer.forward(xs), cell.forward(xs))
    np.testing.assert_array_equal(layer.backward(dhs), cell.backward(dhs))


@each_backend
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("H", "P"), [(1, 1), (5, 2), (37, 17), (40, 33)])
def test_a_projected_lstm_has_streams(backend, batch, H, P):
    layer = rnn.TimeProjectedLSTM.create(D, H, proj_size=P, rng=1, dtype=np.float64)
    top = rnn.TimeAffine.create(P, 2, rng=2, dtype=np.float64)
    xs = numbers(batch, 6, D)
    with use_backend(backend, strict=True):
        want = layer.forward(xs)
        stream, both = layer.stream(batch), rnn.Stream([layer, top], batch)
        frames = xs[0] if batch == 1 else xs
        close(stream.step_many(frames), want[0] if batch == 1 else want)
        (h, c), before = stream.state[0], stream.snapshot()
        assert (h.shape, c.shape) == ((batch, P), (batch, H))
        close(h, layer.h)
        close(c, layer.c)
        again = stream.step(frames[0] if batch == 1 else frames[:, 0]).copy()
        stream.restore(before)
        np.testing.assert_array_equal(stream.step(frames[0] if batch == 1 else frames[:, 0]), again)
        with_top = top.forward(want)
        close(both.step_many(frames), with_top[0] if batch == 1 else with_top)


@each_backend
def test_a_projected_lstm_carries_its_state(backend):
    xs, P = numbers(2, 10, D), 2
    layer = rnn.TimeProjectedLSTM.create(D, H, proj_size=P, rng=1, dtype=np.float64, stateful=True)
    with use_backend(backend, strict=True):
        whole = layer.forward(xs)
        assert (whole.shape, layer.h.shape, layer.c.shape) == ((2, 10, P), (2, P), (2, H))
        np.testing.assert_array_equal(layer.h, whole[:, -1])
        layer.backward(whole)
        assert (layer.dh.shape, layer.dc.shape) == ((2, P), (2, H))
        layer.reset_state()
        first = layer.forward(xs[:, :5])
        state = layer.state
        close(np.concatenate([first, layer.forward(xs[:, 5:])], axis=1), whole)
        layer.set_state(*state)
        close(layer.forward(xs[:, 5:]), whole[:, 5:])
        layer.reset_state()
        stepped = [layer.step(xs[:, t]) for t in range(10)]
        close(np.stack(stepped, axis=1), whole)
        layer.set_state(None, numbers(2, H))  # h alone is 0
        assert layer.h.shape == (2, P)
        assert not layer.h.any()


def test_a_projected_lstm_starts_orthonormal():
    layer = rnn.TimeProjectedLSTM.create(5, 30, proj_size=7, rng=0, dtype=np.float64)
    _, Wh, b, Wr = layer.params
    assert repr(layer) == "TimeProjectedLSTM(D 5, H 30, P 7, float64)"
    for gate in np.split(Wh, 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(7), atol=1e-12)
    np.testing.assert_allclose(Wr.T @ Wr, np.eye(7), atol=1e-12)
    assert (b[:30] == 1).all()
    assert not b[30:].any()


# ---- streams


@each_backend
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_starts_from_the_learnt_state(backend, batch):
    xs = numbers(batch, 6, D, dtype=np.float32)
    with use_backend(backend, strict=True):
        layer = rnn.TimeLSTM.create(D, H, rng=0).learn_initial_state()
        layer.params[-1][...] = numbers(2, H)
        want = layer.forward(xs)
        stream = layer.stream(batch)

        def run() -> Array:
            return stream.step_many(xs[0] if batch == 1 else xs).reshape(want.shape)

        first = run()
        assert relative_error(first, want) < 1e-6
        later = run()
        assert np.abs(later - want).max() > 1e-3
        stream.reset()
        np.testing.assert_array_equal(run(), first)
        if batch == 3:
            stream.reset([1])
            mixed = run()
            np.testing.assert_array_equal(mixed[1], first[1])
            np.testing.assert_array_equal(mixed[[0, 2]], later[[0, 2]])
            stream.reset(np.array([True, False, True]))
            np.testing.assert_array_equal(run()[[0, 2]], first[[0, 2]])
        layer.params[-1][...] = 0
        stream.reset()
        np.testing.assert_array_equal(run(), first)  # parameters are those of the last refresh
        stream.refresh()
        stream.reset()
        assert relative_error(run(), layer.forward(xs)) < 1e-6


@each_backend
def test_a_stream_of_a_stack(backend):
    xs = numbers(1, 6, D, dtype=np.float32)
    with use_backend(backend, strict=True):
        stack = rnn.Stacked.create(D, H, 2, layer="gru", dropout=0.5, rng=0).learn_initial_state()
        stack.regularise(weight_drop=0.5, input_dropout=0.5)  # nothing in use
        top = rnn.TimeAffine.create(H, 2, rng=1)
        stack.train_flg = False
        hs = stack.forward(xs)
        for stream, want in (
            (rnn.Stream(stack), hs),
            (stack.stream(), hs),
            (rnn.Stream([stack, top]), top.forward(hs)),
        ):
            assert relative_error(stream.step_many(xs[0])[None], want) < 1e-6


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: rnn.Stream(rnn.Stacked.create(D, H, residual=True)), ValueError,
         "layers: expected a Stacked without residual connections.* around layer 1"),
        (lambda: rnn.Stream(rnn.Stacked.create(D, H, layer=rnn.TimeBiRNN)), TypeError,
         "layers: expected recurrent layers .* that read forwards.*got TimeBiRNN, TimeBiRNN"),
        (lambda: rnn.Stream([rnn.TimeBiGRU.create(D, H)]), TypeError,
         "layers: expected recurrent layers .* that read forwards.*got TimeBiGRU"),
    ],
)  # fmt: skip
def test_what_has_no_stream_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


# ---- regularisers in use


@each_backend
def test_steps_have_zoneouts_expected_value(backend):
    xs = numbers(2, 6, D)
    layer = rnn.TimeLSTM.create(D, H, rng=0, dtype=np.float64, stateful=True)
    plain = layer.forward(xs)
    layer.reset_state()
    layer.regularise(zoneout={"h": 0.2, "c": 0.4}, recurrent_dropout=0.5, rng=1)
    layer.train_flg = False
    with use_backend(backend, strict=True):
        want = layer.forward(xs)
        layer.reset_state()
        close(np.stack([layer.step(xs[:, t]) for t in range(6)], axis=1), want)
    assert np.abs(want - plain).max() > 1e-3


def test_zoneout_leaves_states_alone_that_mean_something_only_together():
    layer = rnn.time_layer("slstm").create(3, 5, rng=0)
    for rates in (0.1, {"c": 0.1}, {"m": 0.1}):
        with pytest.raises(ValueError, match=r"zoneout: expected 0 for c, n, m, .* got 0.1 for"):
            layer.regularise(zoneout=rates)
    hs = layer.regularise(zoneout={"h": 0.3}, rng=1).forward(numbers(2, 50, 3).astype(np.float32))
    assert np.abs(hs).max() <= 1


@each_backend
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("below", [rnn.TimeLSTM, rnn.TimeGRU])
def test_streams_have_zoneouts_expected_value(backend, batch, below):
    below = below.create(D, 17, rng=0)
    rates = dict(zip(below.cell.states, (0.2, 0.4), strict=False))
    layers = [below.regularise(zoneout=rates, rng=1), rnn.TimeRNN.create(17, H, rng=1)]
    xs = numbers(batch, 9, D).astype(np.float32)
    with use_backend(backend, strict=True):
        for layer in layers:
            layer.train_flg = False
        want = layers[1].forward(layers[0].forward(xs))
        stream = rnn.Stream(layers, batch)
        frames = xs[0] if batch == 1 else xs
        steps = np.stack([stream.step(frames[..., t, :]).copy() for t in range(4)], axis=-2)
        got = np.concatenate([steps, stream.step_many(frames[..., 4:, :])], axis=-2)
        got = got.reshape(want.shape)
        if backend == "numba":
            np.testing.assert_array_equal(got, want)
        else:
            assert relative_error(got, want) < 1e-6

        before = stream.step_many(frames).copy()
        layers[1].regularise(zoneout=0.5)
        stream.reset()
        stream.refresh()
        want = layers[1].forward(layers[0].forward(xs)).reshape(before.shape)
        assert relative_error(stream.step_many(frames), want) < 1e-6
        assert np.abs(before - want).max() > 1e-3


def test_a_language_models_regularisers_act_in_training_only():
    model = Rnnlm(13, 4, 4, layers=2, rng=0)
    for layer in model.recurrent:
        layer.regularise(zoneout=0.3, weight_drop=0.5, rng=1)
    ids = np.arange(10).reshape(1, 10)

    def scores(train_flg: bool) -> Array:
        model.reset_state()
        return model.predict(ids, train_flg)

    np.testing.assert_array_equal(scores(False), scores(False))
    assert np.abs(scores(True) - scores(True)).max() > 1e-3
    want = scores(False)[0, -1]
    model.reset_state()
    for token in ids[0]:
        got = model._step(token)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


# ---- looking inside, and keeping less


@each_backend
@pytest.mark.parametrize("make", [rnn.TimeLSTM, rnn.TimeBiGRU, "stack"])
def test_a_trace_and_the_memory_dial_change_nothing(backend, make):
    """Of any layer, in use with all that steps can have."""
    rng = np.random.default_rng(0)
    N, T = 40, 31  # several chunks, of 256 rows, on the numba engine
    xs, mask, resets = rng.standard_normal((N, T, 3)), rng.random((N, T)) < 0.7, None
    if make != "stack":
        resets = rng.random((N, T)) < 0.1
    with use_backend(backend):

        def run(every, trace):
            if make == "stack":
                net = rnn.Stacked.create(3, 6, layers=2, layer=rnn.TimeBiLSTM, rng=1, dtype="f8")
            else:
                net = make.create(3, 6, rng=1, dtype="f8")
            net.regularise(zoneout=0.2, recurrent_dropout=0.2, rng=2)
            net.checkpoint_every = every
            seen = xs.copy()
            hs = net.forward(seen, mask=mask, resets=resets, trace=trace)
            dxs = net.backward(np.cos(hs))
            for param in net.params:
                param *= 0.5  # as an optimiser does, before anybody looks
            seen[...] = 7
            return net, [hs, dxs, *net.grads]

        _, want = run(0, False)
        net, got = run(7, True)
        plainly, _ = run(0, True)
    np.testing.assert_equal(got, want)
    for layer in getattr(net, "recurrent", [net]):
        trace = layer.trace
        for arrays in (trace.gates, trace.pre_activations, trace.states, trace.gradients):
            assert arrays
            assert all(array.shape == (N, T, 6) for array in arrays.values())
    for one, other in zip(
        getattr(net, "recurrent", [net]), getattr(plainly, "recurrent", [plainly]), strict=True
    ):
        for name in ("gates", "pre_activations", "states", "before", "gradients"):
            np.testing.assert_equal(getattr(one.trace, name), getattr(other.trace, name))
    if make is rnn.TimeLSTM:
        there = mask[..., None]
        np.testing.assert_allclose(
            np.where(there, net.trace.states["h"], 0), np.where(there, got[0], 0), atol=1e-12
        )


@each_backend
@pytest.mark.parametrize("cell", REPRESENTATIVES)
def test_a_trace_shows_what_the_cell_computes(backend, cell):
    """Every step again, from the states and pre-activations in the trace; and the gradients."""
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((3, 6, 4))
    with use_backend(backend):
        layer = rnn.TimeRecurrent.create(4, 5, cell=cell, rng=1, dtype=np.float64)
        hs = layer.forward(xs, trace=True)
        dhs = rng.standard_normal(hs.shape)
        layer.backward(dhs)
        trace = layer.trace
    np.testing.assert_allclose(trace.states["h"], hs, atol=1e-12)
    pre, before = tuple(trace.pre_activations.values()), tuple(trace.before.values())
    new, saved = layer.cell.forward(pre, before)
    for name, after in zip(layer.cell.states, new, strict=True):
        np.testing.assert_allclose(trace.states[name], after, atol=1e-12)
        np.testing.assert_allclose(trace.before[name][:, 1:], after[:, :-1], atol=1e-12)
    gates = dict(zip(layer.cell.gate_names, layer.cell.inside(pre, before), strict=True))
    gates |= dict(zip(layer.cell.saved, saved, strict=True))
    for name, gate in trace.gates.items():
        np.testing.assert_allclose(gate, gates[name], atol=1e-12)

    # the gradient by the states after step 2: what the steps after it make of them
    def loss():
        layer.set_state(*later)
        return float((layer.forward(xs[:, 3:]) * dhs[:, 3:]).sum()) + float(
            (later[0] * dhs[:, 2]).sum()
        )

    later = [trace.states[name][:, 2].copy() for name in layer.cell.states]
    with use_backend(backend):
        for k, name in enumerate(layer.cell.states):
            want = central_differences(loss, later[k])
            assert relative_error(trace.gradients[name][:, 2], want) < 1e-6


def test_a_trace_has_no_gradients_before_backward():
    layer = rnn.TimeRNN.create(3, 5, rng=0)
    layer.forward(np.ones((2, 4, 3), np.float32), trace=True)
    with pytest.raises(RuntimeError, match="gradients: call backward first"):
        layer.trace.gradients  # noqa: B018
