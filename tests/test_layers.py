"""The layers beyond their gradients: states, starting values, dropout, losses."""

from typing import Any

import numpy as np
import pytest

import numba_rnn as rnn
from helpers import (
    BACKENDS,
    DTYPES,
    REPRESENTATIVES,
    Array,
    central_differences,
    relative_error,
)
from numba_rnn import cells, use_backend

N, T, D, H = 2, 5, 3, 4

UNROLLED = {
    "rnn": (rnn.RNN, rnn.TimeRNN, {}),
    "rnn_relu": (rnn.RNN, rnn.TimeRNN, {"activation": "relu"}),
    "lstm": (rnn.LSTM, rnn.TimeLSTM, {}),
    "gru": (rnn.GRU, rnn.TimeGRU, {}),
    "gru_reset_after": (rnn.GRU, rnn.TimeGRU, {"reset_after": True}),
}
each_kind = pytest.mark.parametrize("kind", UNROLLED)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def unrolled(kind: str, **options: Any) -> Any:
    _, make, own = UNROLLED[kind]
    layer = make.create(D, H, rng=1, dtype=np.float64, **own, **options)
    layer.params[2][...] = numbers(*layer.params[2].shape, seed=2)  # biases that are not 0
    return layer


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


# ---- gradients in place


@each_kind
@each_backend
def test_grads_are_overwritten_in_place(backend, kind):
    with use_backend(backend, strict=True):
        layer = unrolled(kind)
        arrays = list(layer.grads)
        xs, dhs = numbers(N, T, D), numbers(N, T, H, seed=1)
        layer.forward(xs)
        layer.backward(dhs)
        first = [grad.copy() for grad in layer.grads]
        layer.forward(xs)
        layer.backward(dhs)
    assert all(now is before for now, before in zip(layer.grads, arrays, strict=True))
    for now, before in zip(layer.grads, first, strict=True):
        np.testing.assert_array_equal(now, before)
    assert all(np.any(grad) for grad in first)


@pytest.mark.parametrize(
    ("layer", "inputs", "dout"),
    [
        (rnn.TimeAffine(numbers(D, H), numbers(H)), numbers(N, T, D), numbers(N, T, H)),
        (rnn.TimeEmbedding(numbers(7, D)), np.array([[3, 3, 0]]), numbers(1, 3, D)),
    ],
)
def test_grads_of_layers_without_state_are_overwritten_in_place(layer, inputs, dout):
    arrays = list(layer.grads)
    for scale in (1, 2):
        layer.forward(inputs)
        layer.backward(scale * dout)
        if scale == 1:
            first = [grad.copy() for grad in layer.grads]
    assert all(now is before for now, before in zip(layer.grads, arrays, strict=True))
    for now, before in zip(layer.grads, first, strict=True):
        close(now, 2 * before)


# ---- the state


@each_kind
@each_backend
def test_a_stateful_layer_carries_on(backend, kind):
    xs = numbers(N, 2 * T, D)
    with use_backend(backend, strict=True):
        layer, whole = unrolled(kind, stateful=True), unrolled(kind).forward(xs)
        blocks = [layer.forward(xs[:, :T]), layer.forward(xs[:, T:])]
        close(np.concatenate(blocks, axis=1), whole)
        layer.reset_state()
        assert layer.h is None
        close(layer.forward(xs[:, :T]), whole[:, :T])


@each_kind
def test_a_layer_without_state_starts_from_zeros(kind):
    layer, xs = unrolled(kind), numbers(N, T, D)
    first = layer.forward(xs)
    assert np.any(layer.h)
    close(layer.forward(xs), first)


@each_kind
@pytest.mark.parametrize("stateful", [True, False])
def test_set_state(kind, stateful):
    layer, xs = unrolled(kind, stateful=stateful), numbers(N, 2 * T, D)
    from_zeros, middle = layer.forward(xs[:, :T]), layer.state
    second_half = unrolled(kind).forward(xs)[:, T:]

    layer.set_state(*middle)
    close(layer.forward(xs[:, T:]), second_half)  # it starts from the state given ...
    after = layer.forward(xs[:, :T])
    if stateful:
        assert np.abs(after - from_zeros).max() > 1e-3
    else:
        close(after, from_zeros)  # ... once

    layer.set_state(*middle)
    layer.reset_state()
    close(layer.forward(xs[:, :T]), from_zeros)


def test_set_state_keeps_its_own_copy():
    layer, h = unrolled("rnn"), numbers(N, H)
    layer.set_state(h)
    expected = layer.forward(numbers(N, T, D))
    layer.set_state(h)
    h[...] = np.nan
    close(layer.forward(numbers(N, T, D)), expected)


@each_kind
def test_a_state_set_to_none_is_forgotten(kind):
    layer = rnn.TimeRecurrent.create(D, H, cell=kind, rng=0, stateful=True)
    states, xs = layer.cell.states, numbers(N, T, D).astype(np.float32)
    layer.set_state(*[None] * len(states))  # as they are before the first forward
    first = layer.forward(xs)
    layer.set_state(None)
    assert layer.h is None
    np.testing.assert_array_equal(layer.forward(xs), first)


@each_backend
def test_zero_stands_for_a_gradient_of_zeros(backend):
    layer, dh = rnn.LSTM.create(D, H, rng=0), numbers(N, H).astype(np.float32)
    with use_backend(backend):
        layer.forward(numbers(N, D).astype(np.float32), dh, dh)
        left_out, number, zeros = (
            layer.backward(dh, *dc) for dc in ((), (0,), (np.zeros_like(dh),))
        )
        for one, other, third in zip(left_out, number, zeros, strict=True):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(one, third)
        with pytest.raises(TypeError, match="dc_next: expected an array"):
            layer.backward(dh, 1)


def test_an_lstm_set_to_h_alone_has_a_memory_cell_of_zeros():
    layer, h, xs = unrolled("lstm", stateful=True), numbers(N, H), numbers(N, T, D)
    layer.forward(xs)
    layer.set_state(h)
    np.testing.assert_array_equal(layer.c, np.zeros((N, H)))
    np.testing.assert_array_equal(layer.h, h)
    alone = layer.forward(xs)
    layer.set_state(h, np.zeros((N, H)))
    close(layer.forward(xs), alone)


@each_kind
@each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_states_and_their_gradients(backend, kind, dtype):
    _, make, options = UNROLLED[kind]
    layer = make.create(D, H, rng=1, dtype=dtype, **options)
    assert layer.h is None
    assert layer.dh is None
    with use_backend(backend, strict=True):
        hs = layer.forward(numbers(N, T, D).astype(dtype))
        dxs = layer.backward(np.ones_like(hs))
    assert hs.shape == (N, T, H)
    assert dxs.shape == (N, T, D)
    np.testing.assert_array_equal(layer.h, hs[:, -1])
    own = [layer.h, layer.dh] + ([layer.c, layer.dc] if kind == "lstm" else [])
    assert {array.shape for array in own} == {(N, H)}
    assert {array.dtype for array in (hs, dxs, *own, *layer.grads)} == {np.dtype(dtype)}
    assert np.any(layer.dh)
    assert len(layer.state) == len(layer.dstate) == len(cells.get(kind).states)


@each_kind
@each_backend
def test_gradients_left_out_are_zero(backend, kind):
    xs, dhs = numbers(N, T, D), numbers(N, T, H, seed=1)
    with use_backend(backend, strict=True):
        layer = unrolled(kind)
        layer.forward(xs)
        dxs = layer.backward(dhs)
        zeros = [np.zeros((N, H)) for _ in layer.cell.states]
        close(layer.backward(dhs, *zeros), dxs)
        ones = [np.ones((N, H)) for _ in layer.cell.states]
        assert np.abs(layer.backward(dhs, *ones) - dxs).max() > 1e-3


# ---- one step


@each_kind
@each_backend
def test_steps_add_up_to_the_unrolled_layer(backend, kind):
    make, _, options = UNROLLED[kind]
    xs, dhs = numbers(N, T, D), numbers(N, T, H, seed=3)
    with use_backend(backend, strict=True):
        layer = unrolled(kind)
        layer.forward(xs)
        dxs = layer.backward(dhs)

        steps = [make(*layer.params, **options) for _ in range(T)]
        state = tuple(np.zeros((N, H)) for _ in layer.cell.states)
        for t, step in enumerate(steps):
            after = step.forward(xs[:, t], *state)
            state = after if isinstance(after, tuple) else (after,)
        for stepped, last in zip(state, layer.state, strict=True):
            close(stepped, last)

        dstate: list[Array] = [np.zeros((N, H)) for _ in layer.cell.states]
        grads = [np.zeros_like(grad) for grad in layer.grads]
        for t in reversed(range(T)):
            dstate[0] = dstate[0] + dhs[:, t]
            dx, *dstate = steps[t].backward(*dstate)
            close(dx, dxs[:, t])
            for grad, own in zip(grads, steps[t].grads, strict=True):
                grad += own
    for added, whole in zip((*grads, *dstate), (*layer.grads, *layer.dstate), strict=True):
        close(added, whole)


# ---- both directions


def test_a_bidirectional_layer_reads_backwards():
    ahead, back = unrolled("lstm"), unrolled("gru")
    xs, dhs = numbers(N, T, D), numbers(N, T, 2 * H, seed=1)
    hs = rnn.Bidirectional(ahead, back).forward(xs)
    close(hs[:, :, :H], unrolled("lstm").forward(xs))
    close(hs[:, ::-1, H:], unrolled("gru").forward(xs[:, ::-1]))
    assert np.abs(hs[:, :, H:] - unrolled("gru").forward(xs)).max() > 1e-3

    # time turned round and the directions exchanged: the same thing
    one, other = rnn.Bidirectional(ahead, back), rnn.Bidirectional(back, ahead)
    one.forward(xs)
    dxs, grads = one.backward(dhs), [grad.copy() for grad in one.grads]
    close(other.forward(xs[:, ::-1])[:, ::-1], np.roll(hs, H, axis=2))
    close(other.backward(np.roll(dhs, H, axis=2)[:, ::-1])[:, ::-1], dxs)
    for grad, before in zip((*ahead.grads, *back.grads), grads, strict=True):
        close(grad, before)


def test_only_the_forward_direction_may_be_stateful():
    with pytest.raises(ValueError, match="backward_layer: expected stateful=False"):
        rnn.Bidirectional(unrolled("rnn"), unrolled("rnn", stateful=True))

    layer, xs = (
        rnn.TimeBiLSTM.create(D, H, rng=1, dtype=np.float64, stateful=True),
        numbers(N, T, D),
    )
    first, second = layer.forward(xs), layer.forward(xs)
    assert np.abs(first - second)[:, :, :H].max() > 1e-3
    close(second[:, :, H:], first[:, :, H:])
    layer.reset_state()
    close(layer.forward(xs), first)


@pytest.mark.parametrize(
    ("merge", "of"),
    {
        "sum": np.add, "mul": np.multiply, "mean": lambda a, b: (a + b) / 2,
    }.items(),
)  # fmt: skip
def test_outputs_of_both_directions_are_merged(merge, of):
    ahead, back, xs = unrolled("lstm"), unrolled("gru"), numbers(N, T, D)
    layer = rnn.Bidirectional(ahead, back, merge=merge)
    hs, dhs = layer.forward(xs), numbers(N, T, H, seed=1)
    assert layer.output_size == H
    close(hs, of(*np.split(rnn.Bidirectional(ahead, back).forward(xs), 2, axis=2)))
    layer.forward(xs)
    dxs = layer.backward(dhs)
    want = central_differences(lambda: float((layer.forward(xs) * dhs).sum()), xs)
    assert relative_error(dxs, want) < 1e-6
    stack = rnn.Stacked(
        [rnn.Bidirectional.create(D, H, merge=merge, rng=0), rnn.TimeGRU.create(H, 2)]
    )
    assert stack.forward(numbers(N, T, D).astype("f")).shape == (N, T, 2)


def test_what_cannot_be_merged():
    with pytest.raises(
        ValueError, match="merge: expected one of concat, sum, mean, mul, got 'ave'"
    ):
        rnn.Bidirectional(unrolled("rnn"), unrolled("gru"), merge="ave")
    other = rnn.TimeLSTM.create(D, H + 1, dtype=np.float64)
    with pytest.raises(ValueError, match=f'merge: expected "concat" .* {H} and {H + 1} outputs'):
        rnn.Bidirectional(unrolled("rnn"), other, merge="sum")


@pytest.mark.parametrize("in_reading_order", [False, True])
def test_a_layer_that_reads_backwards(in_reading_order):
    one, xs, dhs = unrolled("lstm"), numbers(N, T, D), numbers(N, T, H, seed=1)
    layer = rnn.Reversed(one, in_reading_order=in_reading_order)
    resets = np.random.default_rng(0).random((N, T)) < 0.3
    both = rnn.Bidirectional(unrolled("gru"), unrolled("lstm"))
    for options in ({}, {"lengths": [T - 2] * N}, {"resets": resets}):
        want = both.forward(xs, **options)[:, :, H:]
        got = layer.forward(xs, **options)
        close(got[:, ::-1] if in_reading_order else got, want)
    want = both.backward(np.concatenate([0 * dhs, dhs], axis=2))
    close(layer.backward(dhs[:, ::-1] if in_reading_order else dhs), want)
    layer.forward(xs)
    assert layer.backward(dhs, inputs=False) is None
    stack = rnn.Stacked([layer, rnn.TimeGRU.create(H, H, dtype=np.float64)])
    assert stack.backward(stack.forward(xs)).shape == xs.shape
    with pytest.raises(TypeError, match="layer: expected a TimeRecurrent"):
        rnn.Reversed(both)


def test_bidirectional_parameters_are_those_of_its_layers():
    layer = rnn.TimeBiGRU.create(D, H, rng=1, reset_after=True)
    both = (layer.forward_layer, layer.backward_layer)
    expected = [array for one in both for array in (*one.params, *one.grads)]
    own = [*layer.params[:3], *layer.grads[:3], *layer.params[3:], *layer.grads[3:]]
    assert all(a is b for a, b in zip(own, expected, strict=True))
    assert not np.array_equal(layer.params[0], layer.params[3])
    assert layer.param_names[0] == "forward.Wx"
    assert layer.param_names[5] == "backward.b"


# ---- starting values


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_orthogonal_start(name):
    D, H = 7, 33
    cell = cells.get(name)
    layer = rnn.TimeRecurrent.create(D, H, cell=cell, rng=0, dtype=np.float64)
    Wx, Wh, b, w, _ = cell.complete(layer.params)
    blocks = [Wh[:, k : k + H] for k in range(0, Wh.shape[1], H)]
    assert len(blocks) == len(cell.recurrent_gates)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(H), atol=1e-12)
    assert all(not np.allclose(blocks[0], block) for block in blocks[1:])

    limit = np.sqrt(6 / (D + H))  # of one gate, not of all gates together
    assert 0.95 * limit < np.abs(Wx).max() <= limit
    assert abs(Wx.std() - limit / np.sqrt(3)) < 0.05 * limit

    expected = np.zeros_like(b)
    for gate, start in cells.get(name).bias_start.items():
        k = cells.get(name).gates.index(gate)
        expected[k * H : (k + 1) * H] = start
    assert name != "lstm" or expected[:H].all()  # f comes first
    if cell.normalised:  # at 0 they would leave a row of zeros without any variance
        assert 0.45 < np.abs(b).max() < 0.5
        assert abs(b.std() - 1 / np.sqrt(12)) < 0.05
    else:
        np.testing.assert_array_equal(b, expected)
    if name == "indrnn":
        assert w.min() > 0
        assert 0.8 < w.max() < 1
    else:
        starts = [[cell.weight_start.get(weight, 0)] for weight in cell.weights]
        np.testing.assert_array_equal(w, np.array(starts).reshape(-1, 1) + 0 * w)
        gains = [
            start for weight, (start,) in zip(cell.weights, starts, strict=True) if "gain" in weight
        ]
        assert all(start == 1 for start in gains)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_book_start(name):
    D, H = 25, 100
    layer = rnn.TimeRecurrent.create(D, H, cell=name, rng=0, dtype=np.float64, init="book")
    Wx, Wh, b, *_ = layer.cell.complete(layer.params)
    for W, inputs in ((Wx, D), (Wh, H)):
        if W.size == 0:
            continue
        assert abs(W.std() * np.sqrt(inputs) - 1) < 0.06
        assert abs(W.mean() * np.sqrt(inputs)) < 0.06
        assert np.abs(W).max() * np.sqrt(inputs) > 2.5  # normal, not uniform
    if layer.cell.normalised:
        assert 0.45 < np.abs(b).max() < 0.5
    else:
        np.testing.assert_array_equal(b, np.zeros_like(b))


CREATED = [
    *((make, (D, H), options) for *both, options in UNROLLED.values() for make in both),
    (rnn.TimeRecurrent, (D, H), {"cell": "gru", "init": "book"}),
    (rnn.TimeBiLSTM, (D, H), {}),
    (rnn.TimeEmbedding, (7, D), {}),
    (rnn.TimeAffine, (D, H), {}),
]


@pytest.mark.parametrize(("make", "sizes", "options"), CREATED)
def test_create_is_reproducible(make, sizes, options):
    def params(rng: Any, dtype: Any = np.float64) -> list[Array]:
        return make.create(*sizes, rng=rng, dtype=dtype, **options).params

    for a, b in zip(params(5), params(np.random.default_rng(5)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(params(5)[0], params(6)[0])
    assert not np.array_equal(params(None)[0], params(None)[0])
    for single, double in zip(params(5, np.float32), params(5), strict=True):
        assert (single.dtype, double.dtype) == (np.float32, np.float64)
        np.testing.assert_array_equal(single, double.astype(np.float32))
    assert make.create(*sizes, **options).dtype == np.float32


# ---- layers without a state


def test_dropout_scales_what_it_leaves():
    xs = np.ones((50, 40, 30), np.float32)
    layer = rnn.TimeDropout(0.25, rng=0)
    out = layer.forward(xs)
    assert out.dtype == np.float32
    assert set(np.unique(out)) == {0, np.float32(4 / 3)}
    assert abs((out == 0).mean() - 0.25) < 0.01
    np.testing.assert_array_equal(layer.backward(xs), out)  # the same places
    assert not np.array_equal(layer.forward(xs), out)  # other places every time


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_passes_everything_on(dtype):
    xs = numbers(N, T, D).astype(dtype)
    off, never = rnn.TimeDropout(0.5, rng=0), rnn.TimeDropout(0, rng=0)
    off.forward(xs)
    off.train_flg = False
    for layer in (off, never):
        np.testing.assert_array_equal(layer.forward(xs), xs)
        np.testing.assert_array_equal(layer.backward(xs), xs)


@each_backend
def test_gradients_of_repeated_words_add_up(backend):
    layer = rnn.TimeEmbedding(numbers(5, D))
    ids, dout = np.array([[1, 1, 4], [1, 0, 4]]), numbers(2, 3, D)
    with use_backend(backend, strict=True):
        np.testing.assert_array_equal(layer.forward(ids), layer.params[0][ids])
        layer.backward(dout)
    (dW,) = layer.grads
    close(dW[1], dout[0, 0] + dout[0, 1] + dout[1, 0])
    close(dW[4], dout[0, 2] + dout[1, 2])
    close(dW[0], dout[1, 1])
    np.testing.assert_array_equal(dW[2:4], np.zeros((2, D)))


# ---- losses


def test_softmax_with_all_labels_ignored():
    layer = rnn.TimeSoftmaxWithLoss()
    xs = numbers(N, T, 6)
    assert layer.forward(xs, np.full((N, T), -1)) == 0
    np.testing.assert_array_equal(layer.backward(), np.zeros_like(xs))


@pytest.mark.parametrize("ignored", [-100, 0, 3, 99])
def test_any_number_may_mark_labels_that_do_not_count(ignored):
    xs, ts = numbers(N, T, 7), np.array([[5, 1, 4, 2, 6], [6, 4, 1, 2, 5]])
    places, losses, gradients = ts == 4, [], []
    for mark in (ignored, -1):
        layer = rnn.TimeSoftmaxWithLoss()
        layer.ignore_label = mark
        losses.append(layer.forward(xs, np.where(places, mark, ts)))
        gradients.append(layer.backward())
    assert losses[0] == losses[1]
    np.testing.assert_array_equal(*gradients)
    assert not gradients[0][places].any()


def test_softmax_averages_over_the_labels_that_count():
    layer, xs = rnn.TimeSoftmaxWithLoss(), numbers(1, 3, 6)
    loss = layer.forward(xs, np.array([[2, -1, 5]]))
    gradient = layer.backward()
    close(loss, layer.forward(xs[:, ::2], np.array([[2, 5]])))
    close(gradient[:, ::2], layer.backward())
    np.testing.assert_array_equal(gradient[:, 1], np.zeros((1, 6)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_scores_give_a_finite_loss(dtype):
    xs = np.array([[[1e30, -1e30, 0], [-1e30, -1e30, -1e30]]], dtype)
    softmax = rnn.TimeSoftmaxWithLoss()
    assert softmax.forward(xs, np.array([[0, 1]])) == pytest.approx(np.log(3) / 2)
    np.testing.assert_allclose(softmax.backward(), [[[0, 0, 0], [1 / 6, -1 / 3, 1 / 6]]], atol=1e-7)
    assert softmax.forward(xs, np.array([[1, 1]])) == pytest.approx(1e30)

    sigmoid = rnn.TimeSigmoidWithLoss()
    assert sigmoid.forward(xs, (xs > 0).astype(dtype)) == pytest.approx(np.log(2) / 6)
    assert np.isfinite(sigmoid.backward()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", [rnn.TimeSigmoidWithLoss, rnn.TimeMSE])
def test_a_loss_does_not_write_to_its_inputs(loss, dtype):
    xs, ts = numbers(N, T).astype(dtype), (numbers(N, T, seed=1) > 0).astype(dtype)
    before = xs.copy(), ts.copy()
    layer = loss()
    layer.forward(xs, ts)
    half = layer.backward(0.5)
    assert half.dtype == dtype
    np.testing.assert_array_equal(2 * half, layer.backward())
    np.testing.assert_equal((xs, ts), before)


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint8, np.float64])
def test_sigmoid_targets_of_any_kind(kind):
    xs = numbers(N, T)
    ts = numbers(N, T, seed=1) > 0
    loss = rnn.TimeSigmoidWithLoss().forward(xs, ts.astype(kind))
    y = 1 / (1 + np.exp(-xs))
    assert loss == pytest.approx(-np.log(np.where(ts, y, 1 - y)).mean(), rel=1e-12)


def test_perplexity_of_a_guess():
    xs = np.zeros((N, T, 10), np.float32)
    loss = rnn.TimeSoftmaxWithLoss().forward(xs, np.zeros((N, T), int))
    assert np.exp(loss) == pytest.approx(10, rel=1e-6)


def test_a_layer_cannot_be_both_directions():
    layer = rnn.TimeLSTM.create(3, 5, rng=0)
    with pytest.raises(ValueError, match="backward_layer: expected a layer of its own"):
        rnn.Bidirectional(layer, layer)


@pytest.mark.parametrize("backend", BACKENDS)
def test_changing_the_state_does_not_change_the_gradient(backend):
    rng = np.random.default_rng(0)
    xs, dhs = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 5))
    layer = rnn.TimeRNN.create(3, 5, rng=0, dtype=np.float64)
    with use_backend(backend):
        layer.forward(xs)
        expected = layer.backward(dhs)
        hs = layer.forward(xs)
        layer.h[...] = hs[...] = np.nan
        np.testing.assert_array_equal(layer.backward(dhs), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_steps_equal_the_unrolled_layer(name, backend):
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((2, 6, 3))
    layer = rnn.TimeRecurrent.create(3, 5, cell=name, rng=0, dtype=np.float64, stateful=True)
    with use_backend(backend):
        hs = layer.forward(xs)
        layer.reset_state()
        steps = np.stack([layer.step(xs[:, t]) for t in range(6)], axis=1)
    np.testing.assert_allclose(steps, hs, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*REPRESENTATIVES, "projected"])
def test_the_result_of_a_step_is_the_caller_s(name, backend):
    """A caller may overwrite it: the next step goes on from the state."""
    xs = np.random.default_rng(0).standard_normal((2, 6, 3)).astype(np.float32)
    if name == "projected":
        layer = rnn.TimeProjectedLSTM.create(3, 5, proj_size=2, rng=0, stateful=True)
    else:
        layer = rnn.TimeRecurrent.create(3, 5, cell=name, rng=0, stateful=True)
    with use_backend(backend):
        want = [layer.step(xs[:, t]).copy() for t in range(6)]
        layer.reset_state()
        for t in range(6):
            h = layer.step(xs[:, t])
            np.testing.assert_array_equal(h, want[t])
            h[...] = np.nan
        np.testing.assert_array_equal(layer.h, want[-1])


def recurrent_layers():
    for name in REPRESENTATIVES:
        yield rnn.TimeRecurrent.create(D, H, cell=name, rng=0)
    yield rnn.TimeProjectedLSTM.create(D, H, proj_size=2, rng=0)
    yield rnn.TimeBiLSTM.create(D, H, rng=0)
    ends = [rnn.TimeGRU.create(n, D, rng=0) for n in (D, D)]
    yield rnn.Stacked(ends, residual=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("layer", list(recurrent_layers()), ids=repr)
def test_the_gradient_of_inputs_may_be_left_out(layer, every, backend):
    for part in getattr(layer, "recurrent", [layer]):
        if isinstance(part, rnn.TimeRecurrent):
            part.checkpoint_every = every
    xs = numbers(N, T, D).astype(np.float32)
    with use_backend(backend):
        hs = layer.forward(xs)
        assert layer.backward(hs) is not None
        want = [grad.copy() for grad in layer.grads]
        for grad in layer.grads:
            grad[...] = np.nan
        layer.forward(xs)
        assert layer.backward(hs, inputs=False) is None
    np.testing.assert_equal(layer.grads, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_states_lie_as_the_inputs_do(backend):
    """The rows of a step side by side, where those of xs are: as a view of (T, N, D)."""
    layer = rnn.TimeLSTM.create(D, H, rng=0)
    xs = numbers(N, T, D).astype(np.float32)
    by_steps = np.ascontiguousarray(xs.transpose(1, 0, 2)).transpose(1, 0, 2)
    with use_backend(backend):
        want, hs = layer.forward(xs).copy(), layer.forward(by_steps)
    np.testing.assert_array_equal(hs, want)
    assert want.flags.c_contiguous
    assert backend != "numba" or hs.transpose(1, 0, 2).flags.c_contiguous


def test_a_layer_that_is_not_stateful_does_not_step():
    with pytest.raises(ValueError, match="step: expected a layer with stateful=True"):
        rnn.TimeLSTM.create(3, 5, rng=0).step(np.zeros((2, 3), np.float32))


def test_a_layer_that_forgets_cannot_go_back():
    layer = rnn.TimeBiLSTM.create(3, 5, rng=0)
    hs = layer.forward(np.zeros((2, 4, 3), np.float32))
    layer.forget()
    with pytest.raises(RuntimeError, match="call forward first"):
        layer.backward(hs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [1, 3, 11, 50])
def test_an_affine_layer_and_its_loss_in_one_are_the_two(backend, block):
    rng = np.random.default_rng(block)
    W, b, xs = (rng.standard_normal(shape) for shape in ((5, 11), (11,), (3, 4, 5)))
    ts, weights = rng.integers(-1, 11, (3, 4)), rng.random((3, 4))
    with use_backend(backend, strict=True):
        affine, loss = rnn.TimeAffine(W, b), rnn.TimeSoftmaxWithLoss()
        both = rnn.TimeAffineSoftmaxWithLoss(W.copy(), b.copy())
        both.block = block
        for given in ({}, {"weights": weights}):
            scores = affine.forward(xs)
            np.testing.assert_allclose(both.scores(xs), scores, rtol=1e-13)
            want = loss.forward(scores, ts, **given)
            assert both.forward(xs, ts, **given) == pytest.approx(want, rel=1e-13)
            dxs = affine.backward(loss.backward(0.7))
            np.testing.assert_allclose(both.backward(0.7), dxs, rtol=1e-10, atol=1e-15)
            for got, expected in zip(both.grads, affine.grads, strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-15)
        assert both.forward(xs, np.full((3, 4), -1)) == 0
        assert not both.backward().any()
        with pytest.raises(ValueError, match="ts: expected labels"):
            both.forward(xs, np.zeros((3, 4, 11), int))
        with pytest.raises(ValueError, match="xs: expected"):
            both.forward(xs[:, :, :4], ts)


def test_what_an_adaptive_softmax_refuses():
    create = rnn.TimeAdaptiveSoftmaxWithLoss.create
    for wrong in ((5, 5), (10,), (3, 2)):
        with pytest.raises(ValueError, match="cutoffs: expected numbers that increase"):
            create(4, 10, wrong)
    with pytest.raises(ValueError, match="tails: expected down and up"):
        rnn.TimeAdaptiveSoftmaxWithLoss(np.ones((4, 5)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="up0: expected"):
        rnn.TimeAdaptiveSoftmaxWithLoss(np.ones((4, 5)), np.ones((4, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="ts: expected numbers from 0 to 9"):
        create(4, 10).forward(np.ones((1, 1, 4), np.float32), np.array([[10]]))


def test_labels_of_any_integers_with_weights():
    xs, weights = np.random.default_rng(0).standard_normal((2, 3, 5)), [[1, 0, 1], [1, 1, 1.0]]
    for kind in (np.uint8, np.uint32, np.uint64, np.int8, np.int64):
        ts = np.array([[0, 1, 2], [3, 4, 0]], kind)
        loss = rnn.TimeSoftmaxWithLoss()
        loss.forward(xs, ts, weights=np.array(weights))
        assert not loss.backward()[0, 1].any()


def test_words_that_cannot_be_are_as_in_two_layers():
    W, b, xs = np.ones((3, 9)), np.zeros(9), np.ones((1, 2, 3))
    b[8] = -np.inf
    both, affine, loss = (
        rnn.TimeAffineSoftmaxWithLoss(W, b), rnn.TimeAffine(W, b), rnn.TimeSoftmaxWithLoss(),
    )  # fmt: skip
    both.block, ts = 4, np.array([[0, 5]])
    assert both.forward(xs, ts) == pytest.approx(loss.forward(affine.forward(xs), ts))


def test_a_step_of_no_weight_does_not_count_beside_a_mask():
    xs = np.array([[1.0, 2.0, np.nan]])
    loss = rnn.TimeMSE()
    given = np.ones((1, 3), bool)
    assert loss.forward(xs, np.zeros((1, 3)), given, weights=np.array([[1, 1, 0.0]])) == 2.5
