"""Every layer's gradients, against central differences of its own forward pass."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import numba_rnn as rnn
from helpers import (
    BACKENDS,
    OTHER_CELLS,
    Array,
    Problem,
    central_differences,
    problem,
    relative_error,
)
from numba_rnn import cells, layers, use_backend

N, T, D, H = 2, 4, 3, 5
small_problem = partial(problem, N=N, T=T, D=D, H=H, margin=1e-3)

Pairs = dict[str, tuple[Array, Array]]  # by name: an array, and the layer's gradient by it
Case = tuple[layers.Layer, Callable[[], float], Pairs]


def check(loss: Callable[[], float], pairs: Pairs) -> None:
    errors = {
        name: relative_error(gradient, central_differences(loss, array))
        for name, (array, gradient) in pairs.items()
    }
    wrong = ", ".join(f"{name} by {error:.1e}" for name, error in errors.items() if error >= 1e-7)
    assert not wrong, f"gradients are off: {wrong} (relative; the limit is 1e-7)"


# ---- a loss for each kind of layer, and the gradients that its backward claims


def total(values: Any, weights: Any) -> float:
    return sum(float((v * w).sum()) for v, w in zip(values, weights, strict=True))


def param_pairs(layer: layers.Layer) -> Pairs:
    return {
        name: (param, np.asarray(grad))
        for name, param, grad in zip(layer.param_names, layer.params, layer.grads, strict=True)
    }


def one_step(layer: Any, p: Problem) -> Case:
    x = p.xs[:, 0]

    def loss() -> float:
        after = layer.forward(x, *p.state)
        return total(after if isinstance(after, tuple) else (after,), p.dstate)

    loss()
    dx, *dstate = layer.backward(*p.dstate)
    states = dict(zip(p.cell.states, zip(p.state, dstate, strict=True), strict=True))
    return layer, loss, {"x": (x, dx), **states, **param_pairs(layer)}


def unrolled(layer: Any, p: Problem) -> Case:
    def loss() -> float:
        layer.set_state(*p.state)
        hs = layer.forward(p.xs)
        return total((hs, *layer.state), (p.dhs, *p.dstate))

    loss()
    dxs = layer.backward(p.dhs, *p.dstate)
    states = dict(zip(p.cell.states, zip(p.state, layer.dstate, strict=True), strict=True))
    return layer, loss, {"xs": (p.xs, dxs), **states, **param_pairs(layer)}


def bidirectional(layer: Any, p: Problem, q: Problem) -> Case:
    both = (layer.forward_layer, p), (layer.backward_layer, q)
    dhs = np.concatenate([p.dhs, q.dhs], axis=2)

    def loss() -> float:
        for direction, own in both:
            direction.set_state(*own.state)
        return total((layer.forward(p.xs),), (dhs,))

    loss()
    dxs = layer.backward(dhs)
    states = {
        f"{k}.{name}": (before, gradient)
        for k, (direction, own) in enumerate(both)
        for name, before, gradient in zip(own.cell.states, own.state, direction.dstate, strict=True)
    }
    return layer, loss, {"xs": (p.xs, dxs), **states, **param_pairs(layer)}


def composed(layer: Any, resets: bool = True, **steps: Any) -> Case:
    """Recurrent layers of any kind: steps left out, resets, states in and out, masks redrawn."""
    rng = np.random.default_rng(4)
    xs = rng.uniform(-1, 1, (N, T, D))
    dhs = rng.uniform(-1, 1, (N, T, layer.output_size))
    parts = getattr(layer, "recurrent", (layer,))
    alone = not hasattr(layer, "recurrent")

    def states() -> list[tuple[Array, ...]]:
        sizes = [(part.output_size, part.hidden_size)[: len(part.cell.states)] for part in parts]
        return [tuple(rng.uniform(-1, 1, (N, size)) for size in own) for own in sizes]

    for part in parts:
        if part._initial is not None:
            part.params[-1][...] = rng.uniform(-1, 1, part.params[-1].shape)
    before, dstate = states(), states()
    steps |= {"resets": rng.random((N, T)) < 0.3} if resets else {}

    def loss() -> float:
        for drawing in (*getattr(layer, "dropouts", ()), *(part.regularisers for part in parts)):
            if drawing is not None:
                drawing.rng = np.random.default_rng(7)  # the same masks every time
        layer.set_state(*(before[0] if alone else before))
        hs = layer.forward(xs, **steps)
        last = [layer.state] if alone else layer.state
        return total((hs,), (dhs,)) + sum(map(total, last, dstate))

    loss()
    dxs = layer.backward(dhs, *(dstate[0] if alone else dstate))
    found = [layer.dstate] if alone else layer.dstate
    pairs = {
        f"state {k} {j}": pair
        for k, (own, gradients) in enumerate(zip(before, found, strict=True))
        for j, pair in enumerate(zip(own, gradients, strict=True))
    }
    return layer, loss, {"xs": (xs, dxs), **pairs, **param_pairs(layer)}


def feed_forward(layer: Any, xs: Array, dout: Array, before: Callable[[], None] = int) -> Case:
    def loss() -> float:
        before()
        return total((layer.forward(xs),), (dout,))

    loss()
    dxs = layer.backward(dout)
    inputs = {} if dxs is None else {"xs": (xs, dxs)}
    return layer, loss, {**inputs, **param_pairs(layer)}


def loss_layer(layer: Any, xs: Array, ts: Array, before: Callable[[], Any] = int) -> Case:
    def loss() -> float:
        before()
        return 1.7 * layer.forward(xs, ts)

    loss()
    return layer, loss, {"xs": (xs, layer.backward(1.7)), **param_pairs(layer)}


# ---- the cases


def step_case(layer: Any, name: str, **options: Any) -> Case:
    p = small_problem(name)
    return one_step(layer(*p.params, **options), p)


def time_case(layer: Any, name: str, **options: Any) -> Case:
    p = small_problem(name)
    return unrolled(layer(*p.params, **options), p)


def bi_case(layer: Any, name: str, **options: Any) -> Case:
    p, q = small_problem(name, seed=1), small_problem(name, seed=2)
    return bidirectional(layer(*p.params, *q.params, **options), p, q)


def mixed_bidirectional() -> Case:
    p, q = small_problem("lstm", seed=1), small_problem("gru", seed=2)
    ahead = rnn.TimeRecurrent(*p.params, cell="lstm")
    back = rnn.TimeRecurrent(*q.params, cell="gru")
    return bidirectional(rnn.Bidirectional(ahead, back), p, q)


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


LENGTHS = np.array([T - 1, 0])  # a row that ends early, and one with nothing in it
MASK = np.array([[True, False, True, False], [False, True, True, True]])
RATES = {"zoneout": 0.3, "recurrent_dropout": 0.3, "input_dropout": 0.3, "weight_drop": 0.3}


def both_ways(**steps: Any) -> Case:
    made = rnn.TimeBiGRU.create(D, H, rng=1, dtype=np.float64)
    return composed(made, **steps)


def from_the_end(**options: Any) -> Case:
    made = rnn.Reversed(rnn.TimeLSTM.create(D, H, rng=1, dtype=np.float64), **options)
    return composed(made, lengths=LENGTHS)


def regularised_both_ways() -> Case:
    made = rnn.TimeBiLSTM.create(D, H, rng=1, dtype=np.float64)
    return composed(made.learn_initial_state().regularise(**RATES), mask=MASK)


def both_ways_from_a_learnt_state() -> Case:
    """Nothing is set: the gradient of what sequences start from is that of all rows' starts."""
    layer = rnn.TimeBiLSTM.create(D, H, rng=1, dtype=np.float64).learn_initial_state()
    dhs, resets = numbers(N, T, 2 * H, seed=1), np.array([[False, True, False, True]] * N)

    def loss() -> float:
        return total((layer.forward(xs, mask=MASK, resets=resets),), (dhs,))

    xs = numbers(N, T, D)
    loss()
    return layer, loss, {"xs": (xs, layer.backward(dhs)), **param_pairs(layer)}


def stack(**options: Any) -> rnn.Stacked:
    """An LSTM, a GRU in both directions, a projected LSTM: D -> H -> H -> 3."""
    half = H // 2
    ahead = rnn.TimeGRU.create(H, half, rng=2, dtype=np.float64)
    back = rnn.TimeRNN.create(H, H - half, rng=3, dtype=np.float64)
    layers = [
        rnn.TimeLSTM.create(D, H, rng=1, dtype=np.float64),
        rnn.Bidirectional(ahead, back),
        rnn.TimeProjectedLSTM.create(H, 6, proj_size=3, rng=4, dtype=np.float64),
    ]
    return rnn.Stacked(layers, **options)


def projected(options: Callable[[Any], Any] = lambda layer: layer, **steps: Any) -> Case:
    layer = rnn.TimeProjectedLSTM.create(D, H, proj_size=3, rng=1, dtype=np.float64)
    return composed(options(layer), **steps)


def residual_from_the_start() -> Case:
    """D = H: what is left out of xs goes past no layer either."""
    made = rnn.Stacked.create(D, D, 2, layer="gru", residual=True, rng=1, dtype=np.float64)
    return composed(made, mask=MASK)


def embedding(**options: Any) -> Case:
    ids = np.array([[3, 0, 3, 6], [3, 1, 1, 0]])  # repeated within a row and across rows
    layer = rnn.TimeEmbedding(numbers(7, D), **options)
    return feed_forward(layer, ids, numbers(N, T, D, seed=1))


def affine() -> Case:
    layer = rnn.TimeAffine(numbers(D, H), numbers(H, seed=1))
    return feed_forward(layer, numbers(N, T, D, seed=2), numbers(N, T, H, seed=3))


def dropout() -> Case:
    layer = rnn.TimeDropout(0.4)

    def same_mask() -> None:
        layer.rng = np.random.default_rng(3)

    return feed_forward(layer, numbers(N, T, D), numbers(N, T, D, seed=1), same_mask)


def pooling(name: str, lengths: Any = None) -> Case:
    layer, hs, dout = rnn.TimePooling(name), numbers(N, T, H), numbers(N, 1, H, seed=1)

    def loss() -> float:
        return total((layer.forward(hs, lengths=lengths),), (dout,))

    loss()
    return layer, loss, {"hs": (hs, layer.backward(dout))}


def attention(lengths: Any = None) -> Case:
    layer, dout = rnn.TimeAttention(), numbers(N, 3, H, seed=2)
    hs_enc, hs_dec = 2 * numbers(N, T, H), 2 * numbers(N, 3, H, seed=1)

    def loss() -> float:
        return total((layer.forward(hs_enc, hs_dec, lengths=lengths),), (dout,))

    loss()
    dhs_enc, dhs_dec = layer.backward(dout)
    return layer, loss, {"hs_enc": (hs_enc, dhs_enc), "hs_dec": (hs_dec, dhs_dec)}


def softmax() -> Case:
    return loss_layer(
        rnn.TimeSoftmaxWithLoss(), numbers(N, T, 6), np.array([[5, 0, -1, 2], [-1, 3, 3, 1]])
    )


def affine_softmax() -> Case:
    layer = rnn.TimeAffineSoftmaxWithLoss.create(D, 6, rng=1, dtype=np.float64)
    layer.block = 4  # not the same number of columns in each
    return loss_layer(layer, numbers(N, T, D), np.array([[5, 0, -1, 2], [-1, 3, 3, 1]]))


def adaptive_softmax() -> Case:
    layer = rnn.TimeAdaptiveSoftmaxWithLoss.create(
        D, 9, (2, 5), divisor=1.5, rng=1, dtype=np.float64
    )
    return loss_layer(layer, numbers(N, T, D), np.array([[5, 0, -1, 2], [-1, 3, 8, 1]]))


def sampled_softmax(train_flg: bool = True, **options: Any) -> Case:
    layer = rnn.TimeSampledSoftmaxWithLoss.create(
        D, 9, samples=6, rng=1, dtype=np.float64, **options
    )
    layer.train_flg, layer.block = train_flg, 4

    def same_words() -> None:
        layer.rng = np.random.default_rng(3)

    xs, ts = numbers(N, T, D), np.array([[5, 0, -1, 2], [-1, 3, 8, 1]])
    return loss_layer(layer, xs, ts, same_words)


def sigmoid() -> Case:
    targets = np.random.default_rng(1).uniform(0, 1, (N, T))
    return loss_layer(rnn.TimeSigmoidWithLoss(), 4 * numbers(N, T), targets)


def mse() -> Case:
    return loss_layer(rnn.TimeMSE(), numbers(N, T, D), numbers(N, T, D, seed=1))


CASES: dict[str, tuple[type[layers.Layer], Callable[[], Case]]] = {
    "RNN": (rnn.RNN, partial(step_case, rnn.RNN, "rnn")),
    "RNN relu": (rnn.RNN, partial(step_case, rnn.RNN, "rnn_relu", activation="relu")),
    "LSTM": (rnn.LSTM, partial(step_case, rnn.LSTM, "lstm")),
    "GRU": (rnn.GRU, partial(step_case, rnn.GRU, "gru")),
    "GRU reset after": (
        rnn.GRU,
        partial(step_case, rnn.GRU, "gru_reset_after", reset_after=True),
    ),
    **{  # a new cell is found here by its name
        f"TimeRecurrent {name}": (
            rnn.TimeRecurrent,
            partial(time_case, rnn.TimeRecurrent, name, cell=name),
        )
        for name in cells.names()
    },
    "TimeRNN": (rnn.TimeRNN, partial(time_case, rnn.TimeRNN, "rnn")),
    "TimeRNN relu": (
        rnn.TimeRNN,
        partial(time_case, rnn.TimeRNN, "rnn_relu", activation="relu"),
    ),
    "TimeLSTM": (rnn.TimeLSTM, partial(time_case, rnn.TimeLSTM, "lstm")),
    "TimeGRU": (rnn.TimeGRU, partial(time_case, rnn.TimeGRU, "gru")),
    "TimeGRU reset after": (
        rnn.TimeGRU,
        partial(time_case, rnn.TimeGRU, "gru_reset_after", reset_after=True),
    ),
    "Bidirectional": (rnn.Bidirectional, mixed_bidirectional),
    "Reversed": (rnn.Reversed, from_the_end),
    "Reversed, in reading order": (rnn.Reversed, partial(from_the_end, in_reading_order=True)),
    "TimeBiRNN": (rnn.TimeBiRNN, partial(bi_case, rnn.TimeBiRNN, "rnn")),
    "TimeBiLSTM": (rnn.TimeBiLSTM, partial(bi_case, rnn.TimeBiLSTM, "lstm")),
    "TimeBiGRU": (
        rnn.TimeBiGRU,
        partial(bi_case, rnn.TimeBiGRU, "gru_reset_after", reset_after=True),
    ),
    "TimeBiGRU, lengths and resets": (rnn.TimeBiGRU, partial(both_ways, lengths=LENGTHS)),
    "TimeBiGRU, a mask": (rnn.TimeBiGRU, partial(both_ways, mask=MASK, resets=False)),
    "TimeBiLSTM, everything": (rnn.TimeBiLSTM, regularised_both_ways),
    "TimeBiLSTM, learnt starts": (rnn.TimeBiLSTM, both_ways_from_a_learnt_state),
    "Stacked": (rnn.Stacked, lambda: composed(stack(), resets=False)),
    "Stacked, everything": (
        rnn.Stacked,
        lambda: composed(
            stack(dropout=0.3, residual=True).learn_initial_state().regularise(**RATES), mask=MASK
        ),
    ),
    "Stacked, residual": (rnn.Stacked, residual_from_the_start),
    "TimeProjectedLSTM": (rnn.TimeProjectedLSTM, partial(projected, resets=False)),
    "TimeProjectedLSTM, lengths": (rnn.TimeProjectedLSTM, partial(projected, lengths=LENGTHS)),
    "TimeProjectedLSTM, everything": (
        rnn.TimeProjectedLSTM,
        partial(projected, lambda p: p.learn_initial_state().regularise(**RATES), mask=MASK),
    ),
    "TimeEmbedding": (rnn.TimeEmbedding, embedding),
    "TimeEmbedding, sparse": (rnn.TimeEmbedding, partial(embedding, sparse=True)),
    "TimeAffine": (rnn.TimeAffine, affine),
    "TimeDropout": (rnn.TimeDropout, dropout),
    **{
        f"TimePooling {name}{says}": (rnn.TimePooling, partial(pooling, name, lengths))
        for name in ("last", "mean", "max")
        for says, lengths in (("", None), (", lengths", [2, 0]))
    },
    "TimeAttention": (rnn.TimeAttention, attention),
    "TimeAttention, lengths": (rnn.TimeAttention, partial(attention, [2, T])),
    "TimeSoftmaxWithLoss": (rnn.TimeSoftmaxWithLoss, softmax),
    "TimeAffineSoftmaxWithLoss": (rnn.TimeAffineSoftmaxWithLoss, affine_softmax),
    "TimeAdaptiveSoftmaxWithLoss": (rnn.TimeAdaptiveSoftmaxWithLoss, adaptive_softmax),
    **{
        f"TimeSampledSoftmaxWithLoss {name}": (
            rnn.TimeSampledSoftmaxWithLoss,
            partial(sampled_softmax, objective=name, sparse=name == "nce"),
        )
        for name in ("softmax", "nce")
    },
    "TimeSampledSoftmaxWithLoss, all words": (
        rnn.TimeSampledSoftmaxWithLoss,
        partial(sampled_softmax, train_flg=False),
    ),
    "TimeSigmoidWithLoss": (rnn.TimeSigmoidWithLoss, sigmoid),
    "TimeMSE": (rnn.TimeMSE, mse),
}


@pytest.mark.parametrize(
    ("backend", "case"),
    [  # the compiled engine is compared with the other one, test_conformance.py, for all cells
        (backend, case)
        for backend in BACKENDS
        for case in CASES
        if backend == "numpy" or case.removeprefix("TimeRecurrent ") not in OTHER_CELLS
    ],
)
def test_gradients(backend, case):
    kind, make = CASES[case]
    with use_backend(backend, strict=True):
        layer, loss, pairs = make()
        assert type(layer) is kind
        assert len(pairs) > len(layer.params) or kind is rnn.TimeEmbedding  # has no input gradient
        check(loss, pairs)


def test_every_layer_is_covered():
    covered = {kind.__name__ for kind, _ in CASES.values()}
    assert covered == set(layers.__all__) - {"Layer"}


# ---- the test's test


def wrong_backward(dstate, saved, state):
    dgates, dprev = cells.get("lstm").backward(dstate, saved, state)
    df, *rest = dgates
    return (df * 1.001, *rest), dprev


def test_a_wrong_backward_is_caught():
    cell = replace(cells.get("lstm"), name="wrong", backward=wrong_backward)
    with use_backend("numpy"):
        _, loss, pairs = time_case(rnn.TimeRecurrent, cell, cell=cell)
        with pytest.raises(AssertionError, match="gradients are off: xs by"):
            check(loss, pairs)
