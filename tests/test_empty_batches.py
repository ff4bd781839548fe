"""A batch of no rows is a batch: empty outputs, gradients of zeros, and a mean loss that is NaN.

PyTorch says so for its own modules and losses; every cell, layer and engine is tried here.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest

import numba_rnn as rnn
from fake_device import use_fake_device
from helpers import ALL_ENGINES, BACKENDS, REPRESENTATIVES, Array, outcome, random_problem
from numba_rnn import cells, use_backend
from numba_rnn.backend import to_host
from numba_rnn.kernels.step_options import StepOptions

T, D, H = 4, 3, 5
every_engine = pytest.mark.parametrize("backend", ALL_ENGINES)


def nothing(*shape: int) -> Array:
    return np.zeros((0, *shape), np.float32)


# ---- engines


@pytest.mark.parametrize("name", REPRESENTATIVES)
@every_engine
def test_an_engine_runs_over_no_rows(backend, name):
    p = random_problem(name, 0, T, D, H, np.float32)
    with use_backend(backend, strict=True) as engine:
        found = outcome(engine, p)
    shapes = dict(p.cell.shapes(D, H))
    for what, array in found.items():
        if what[1:] in shapes:
            np.testing.assert_array_equal(array, np.zeros(shapes[what[1:]]), what)
        else:
            assert array.shape[0] == 0, what
            assert array.dtype == np.float32, what
    assert found["hs"].shape == (0, T, H)
    assert found["dxs"].shape == (0, T, D)


@pytest.mark.parametrize(
    "steps",
    [
        StepOptions(mask=np.ones((0, T), bool)),
        StepOptions(resets=np.ones((0, T), bool), initial=np.ones((1, H), np.float32)),
        StepOptions(recurrent_mask=nothing(H)),
        StepOptions(zoneout=(0.5,), seed=1),
        StepOptions(checkpoint_every=2),
        StepOptions(checkpoint_every=2, trace=True),
    ],
)
@every_engine
def test_whatever_is_particular_about_the_steps(backend, steps):
    p = random_problem("gru", 0, T, D, H, np.float32)
    with use_backend(backend, strict=True) as engine:
        hs, state, saved = engine.forward(p.cell, p.xs, p.state, p.params, steps)
        found = engine.backward(p.cell, p.dhs, p.dstate, saved)
        (before,) = engine.states_before(p.cell, saved)
        assert hs.shape == before.shape == (0, T, H)
        assert state[0].shape == found.state[0].shape == (0, H)
        for gradient in (*found.params, np.zeros(1) if found.initial is None else found.initial):
            assert not np.any(gradient)


# ---- layers

LAYERS = {
    **{
        name: lambda name=name: rnn.TimeRecurrent.create(D, H, cell=name)
        for name in REPRESENTATIVES
    },
    "projected": lambda: rnn.TimeProjectedLSTM.create(D, H, proj_size=2),
    "bidirectional": lambda: rnn.TimeBiGRU.create(D, H),
    "stacked": lambda: rnn.Stacked.create(D, H, dropout=0.5, layer=rnn.TimeBiLSTM),
    "residual": lambda: rnn.Stacked.create(D, D, residual=True),
}


def regularised(name: str) -> Any:
    layer = LAYERS[name]().learn_initial_state()
    products = {"recurrent_dropout": 0.5, "weight_drop": 0.5}
    cell = cells.get(name) if name in cells.names() else None
    if cell is not None and not cell.recurrent_gates:
        products = {}
    return layer.regularise(zoneout=0.5, input_dropout=0.5, rng=0, **products)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("make", [lambda name: LAYERS[name](), regularised])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_runs_over_no_rows(backend, make, name):
    with use_backend(backend, strict=True):
        layer = make(name)
        for grad in layer.grads:
            grad[...] = 7
        for steps in ({}, {"lengths": []}, {"resets": np.ones((0, T), bool)}, {"trace": True}):
            hs = layer.forward(nothing(T, D), **steps)
            assert hs.shape == (0, T, layer.output_size)
            assert layer.backward(nothing(T, layer.output_size)).shape == (0, T, D)
            for grad in layer.grads:
                np.testing.assert_array_equal(grad, np.zeros(grad.shape))
        for recurrent in getattr(layer, "recurrent", (layer,)):
            for seen in (recurrent.trace.gates, recurrent.trace.states, recurrent.trace.gradients):
                assert {array.shape[:2] for array in seen.values()} == {(0, T)}


@pytest.mark.parametrize("name", ["projected", *REPRESENTATIVES])
@pytest.mark.parametrize("backend", BACKENDS)
def test_states_of_no_rows(backend, name):
    with use_backend(backend, strict=True):
        layer = LAYERS[name]()
        layer.stateful = True
        layer.set_state(nothing(layer.output_size))
        assert layer.step(nothing(D)).shape == (0, layer.output_size)
        layer.forward(nothing(T, D))
        assert {state.shape[0] for state in layer.state} == {0}
        with pytest.raises(ValueError, match=r"^xs: expected a batch of 0, as the state has"):
            layer.forward(np.zeros((1, T, D), np.float32))


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_of_no_rows(backend, name):
    with use_backend(backend, strict=True):
        layer, top = rnn.TimeRecurrent.create(D, H, cell=name), rnn.TimeAffine.create(H, 2)
        for stack, outputs in (([layer], H), ([layer, top], 2)):
            for threads in (1, 2):
                stream = rnn.Stream(stack, batch=0, threads=threads)
                assert stream.step(nothing(D)).shape == (0, outputs)
                assert stream.step_many(nothing(7, D)).shape == (0, 7, outputs)
                stream.reset([])
                stream.restore(stream.snapshot())
        with pytest.raises(ValueError, match=r"^x: expected shape \(0, 3\), got \(1, 3\)"):
            stream.step(np.zeros((1, D), np.float32))


@pytest.mark.parametrize("kind", [rnn.RNN, rnn.LSTM, rnn.GRU])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_step_of_no_rows(backend, kind):
    with use_backend(backend, strict=True):
        layer = kind.create(D, H)
        layer.grads[0][...] = 7
        states = [nothing(H)] * len(layer.cell.states)
        after = layer.forward(nothing(D), *states)
        assert (after if kind is not rnn.LSTM else after[0]).shape == (0, H)
        dx, *dstates = layer.backward(*states)
    assert dx.shape == (0, D)
    assert {d.shape for d in dstates} == {(0, H)}
    assert not any(np.any(grad) for grad in layer.grads)


@pytest.mark.parametrize("running", [partial(use_backend, "numpy"), use_fake_device])
def test_layers_without_a_state(running):
    with running():
        embedding, affine = rnn.TimeEmbedding.create(7, D), rnn.TimeAffine.create(D, H)
        for grad in (*embedding.grads, *affine.grads):
            grad[...] = 7
        vectors = embedding.forward(np.zeros((0, T), int))
        assert vectors.shape == (0, T, D)
        assert affine.forward(vectors).shape == (0, T, H)
        embedding.backward(affine.backward(nothing(T, H)))
        for grad in (*embedding.grads, *affine.grads):
            assert not to_host(grad).any()

        dropout, attention = rnn.TimeDropout(0.5, rng=0), rnn.TimeAttention()
        assert dropout.backward(dropout.forward(nothing(T, D))).shape == (0, T, D)
        for name in ("last", "mean", "max"):
            pooling = rnn.TimePooling(name)
            assert pooling.forward(nothing(T, H), lengths=[]).shape == (0, 1, H)
            assert pooling.backward(nothing(1, H)).shape == (0, T, H)
        contexts = attention.forward(nothing(6, H), nothing(T, H), lengths=[])
        dhs_enc, dhs_dec = attention.backward(contexts)
    assert contexts.shape == dhs_dec.shape == (0, T, H)
    assert dhs_enc.shape == (0, 6, H)


@pytest.mark.parametrize("running", [partial(use_backend, "numpy"), use_fake_device])
def test_the_mean_of_nothing_is_nan_as_it_is_in_pytorch(running):
    torch = pytest.importorskip("torch")
    scores, labels = torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64)
    losses, two = torch.nn.functional, (scores, scores)
    targets = nothing(T, 7)
    for loss, ts, want in [
        (rnn.TimeSoftmaxWithLoss(), np.zeros((0, T), int), losses.cross_entropy(scores, labels)),
        (rnn.TimeMSE(), targets, losses.mse_loss(*two)),
        (rnn.TimeSigmoidWithLoss(), targets, losses.binary_cross_entropy_with_logits(*two)),
    ]:  # fmt: skip
        with running():
            got = float(loss.forward(targets, ts))
            np.testing.assert_equal(got, want.item())
            assert np.isnan(got)
            assert loss.backward().shape == targets.shape
    for loss in (rnn.TimeMSE(), rnn.TimeSigmoidWithLoss()):
        mask = np.zeros((0, T), bool)
        assert np.isnan(loss.forward(targets, targets, mask=mask))
        rows = np.ones((1, T, 7))
        assert loss.forward(rows, 0 * rows, mask=np.zeros((1, T), bool)) == 0
