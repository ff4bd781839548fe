"""Layers and streams with weights in int8."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from helpers import Array
from numba_rnn import (
    GRU,
    LSTM,
    RNN,
    Stacked,
    Stream,
    TimeAdaptiveSoftmaxWithLoss,
    TimeAffine,
    TimeAffineSoftmaxWithLoss,
    TimeEmbedding,
    TimeGRU,
    TimeLSTM,
    TimeRecurrent,
    TimeSampledSoftmaxWithLoss,
    cells,
    functional,
    use_backend,
)
from numba_rnn.diagnostics import summary
from numba_rnn.diagnostics.metrics import recurrent_blocks
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.quantisation import MOST_INPUTS, QuantisedWeight
from numba_rnn.kernels.sparse_rows import SparseRows
from numba_rnn.training import SGD
from quantised import ENGINES, XS, made

KINDS = (
    "rnn", "lstm", "gru", "projected", "recurrent", "initial", "bidirectional", "reversed",
    "stacked", "affine", "sequential",
)  # fmt: skip


def outputs(layer: Any, xs: Array) -> Array:
    return layer.predict(xs) if hasattr(layer, "predict") else layer.forward(xs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_is_that_of_the_rounded_weights(kind, engine):
    with use_backend(engine):
        layer = made(kind)
        before = [param.copy() for param in layer.params]
        want = outputs(layer, XS)
        assert not layer.quantised
        assert layer.quantise() is layer
        assert layer.quantised
        kinds = [isinstance(param, QuantisedWeight) for param in layer.params]
        names = [name.rpartition(".")[2] in ("Wx", "Wh", "Wr", "W") for name in layer.param_names]
        assert kinds == names
        assert [grad is None for grad in layer.grads] == kinds
        got = outputs(layer, XS)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=0.03)
        assert (got != want).any()
        again = outputs(copy.deepcopy(layer), XS)
        np.testing.assert_array_equal(again, got)
        np.testing.assert_array_equal(outputs(pickle.loads(pickle.dumps(layer)), XS), got)
        np.testing.assert_array_equal(outputs(layer.quantise(), XS), got)  # nothing more happens
        assert layer.dequantise() is layer
        assert not layer.quantised
        for param, was, grad in zip(layer.params, before, layer.grads, strict=True):
            np.testing.assert_allclose(param, was, atol=np.abs(was).max(initial=0) / 200)
            assert grad.shape == param.shape
        out = outputs(layer, XS)
        np.testing.assert_allclose(out, want, atol=0.03)
        if kind != "sequential":
            layer.backward(np.ones_like(out))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_is_not_trained(kind):
    layer = made(kind)
    out = outputs(layer, XS)
    layer.quantise()
    with pytest.raises((TypeError, RuntimeError)):
        layer.backward(np.ones_like(out))
    out = outputs(layer, XS)
    with pytest.raises(
        TypeError, match=r"backward: expected weights in float32 or float64.*got in"
    ):
        layer.backward(np.ones_like(out))
    with pytest.raises(
        TypeError, match=r"params: expected weights in float32 .* got int8 ones; la"
    ):
        SGD(0.1).update(layer.params, layer.grads)


def test_one_step_layers_are_quantised():
    for layer, states in ((RNN, 1), (LSTM, 2), (GRU, 1)):
        cell = layer.create(3, 5, rng=0)
        state = [np.zeros((2, 5), np.float32)] * states
        want = cell.forward(XS[:, 0], *state)
        got = cell.quantise().forward(XS[:, 0], *state)
        np.testing.assert_allclose(got, want, atol=0.03)
        with pytest.raises(TypeError, match="dequantise"):
            cell.backward(np.ones((2, 5), np.float32))


def test_a_layer_says_that_it_is_quantised():
    assert repr(made("lstm").quantise()) == "TimeLSTM(cell lstm, D 3, H 5, float32, weights int8)"
    assert repr(made("lstm").quantise().dequantise()) == repr(made("lstm"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", cells.names())
def test_every_cell_has_a_quantised_layer(name, engine):
    with use_backend(engine):
        layer = TimeRecurrent.create(3, 5, cell=name, rng=0)
        want = layer.forward(XS)
        np.testing.assert_allclose(layer.quantise().forward(XS), want, atol=0.1)


def test_layers_of_quantised_weights():
    layer = made("lstm").quantise()
    twin = TimeLSTM(*layer.params)
    np.testing.assert_array_equal(twin.forward(XS), layer.forward(XS))
    affine = made("affine").quantise()
    np.testing.assert_array_equal(TimeAffine(*affine.params).forward(XS), affine.forward(XS))
    Wx, Wh, b = layer.params
    floats = made("lstm").params
    for params, message in (
        (
            (floats[0], Wh, b),
            r"TimeLSTM.Wx: expected Wx and Wh, and no other, in int8, got ndarray",
        ),
        ((Wx, floats[1], b), r"TimeLSTM.Wh: expected Wx and Wh"),
        ((Wx, Wh, Wx), r"TimeLSTM.b: expected Wx and Wh, and no other, in int8, got QuantisedW"),
        ((Wx, Wx, b), r"Wx: expected shape"),
        ((Wx.T, Wh, b), r"Wx: expected a scale for each column, got one for each row"),
        ((Wx, Wh, b.astype(np.float64)), "b: expected float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            TimeLSTM(*params)
    with pytest.raises(ValueError, match="W: expected a scale for each row, got one for each col"):
        TimeEmbedding(Wx)


@pytest.mark.parametrize("sparse", [False, True])
def test_an_embedding_has_a_scale_for_each_word(sparse):
    layer = TimeEmbedding.create(11, 4, rng=0, sparse=sparse)
    layer.params[0][3] *= 1e-3  # a rare word with small numbers keeps them
    ids = np.array([[3, 10, 3], [0, 1, 2]])
    want = layer.forward(ids)
    layer.quantise()
    got = layer.forward(ids)
    np.testing.assert_array_equal(got, layer.params[0].dequantise()[ids])
    np.testing.assert_allclose(got[0, 0], want[0, 0], atol=1e-5)
    with pytest.raises(TypeError, match="dequantise"):
        layer.backward(got)
    layer.drop_words(0.5, rng=0).forward(ids)
    out = layer.dequantise().forward(ids)
    layer.backward(out)
    assert isinstance(layer.grads[0], SparseRows) == sparse


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimeAffineSoftmaxWithLoss.create(3, 40, rng=0),
        lambda: TimeAdaptiveSoftmaxWithLoss.create(3, 40, cutoffs=(5, 20), divisor=1, rng=0),
        lambda: TimeSampledSoftmaxWithLoss.create(3, 40, samples=10, rng=0),
    ],
)
def test_losses_with_weights_are_quantised(make):
    layer, ts = make(), np.arange(14).reshape(2, 7)
    layer.train_flg, layer.block = False, 16
    want = layer.forward(XS, ts)
    got = layer.quantise().forward(XS, ts)
    assert layer.quantised
    np.testing.assert_allclose(got, want, rtol=0.02)
    with pytest.raises(TypeError, match="dequantise"):
        layer.backward()


def test_nothing_changes_where_a_weight_cannot_be_rounded():
    stack = Stacked([TimeLSTM.create(3, 5, rng=0), TimeLSTM.create(5, 5, rng=1)])
    stack.layers[1].params[1][2, 3] = np.nan
    with pytest.raises(
        ValueError, match=r"TimeLSTM.Wh: expected finite numbers, got nan at \(2, 3"
    ):
        stack.quantise()
    assert not stack.quantised
    layer = TimeGRU.create(3, 5, rng=0, dtype=np.float64)
    expected = r"TimeGRU.Wx: expected float32 in host memory .* float64; .*astype"
    with pytest.raises(TypeError, match=expected):
        layer.quantise()
    wide = TimeAffine(np.ones((MOST_INPUTS + 1, 1), np.float32), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="leave this layer in float32"):
        wide.quantise()


def test_regularisers_of_a_quantised_layer():
    layer = TimeLSTM.create(3, 5, rng=0).regularise(zoneout=0.2, recurrent_dropout=0.3, rng=0)
    layer.quantise().forward(XS)
    layer.regularise(weight_drop=0.5, rng=0)
    with pytest.raises(TypeError, match="weight_drop: expected weights in float32"):
        layer.forward(XS)
    layer.train_flg = False
    layer.forward(XS)


def test_a_trace_of_a_quantised_layer():
    layer = TimeGRU.create(3, 5, rng=0).quantise()
    hs = layer.forward(XS, trace=True)
    np.testing.assert_allclose(layer.trace.states["h"], hs, atol=1e-2)
    assert set(layer.trace.gates) == {"z", "r", "h"}
    assert "weights int8" in summary(layer)
    blocks, exact = (recurrent_blocks(made) for made in (layer, copy.deepcopy(layer).dequantise()))
    for gate, block in blocks.items():
        np.testing.assert_array_equal(block, exact[gate])


def test_a_gpu_refuses_them():
    gpu = CudaEngine.__new__(CudaEngine)
    gpu.xp = object()
    with pytest.raises(TypeError, match=r"int8 ones, which run on the CPU: layer.to\(\"cpu\"\)"):
        gpu.to_device(made("lstm").quantise().params[0])
    assert made("lstm").quantise().to("cpu").quantised


def test_functions_take_them():
    layer = made("lstm").quantise()
    state = [np.zeros((2, 5), np.float32)] * 2
    found = functional.forward("lstm", XS, state, layer.params)
    np.testing.assert_array_equal(found.hs, layer.forward(XS))
    with pytest.raises(TypeError, match="dequantise"):
        functional.backward(found.record, found.hs)


# ---- streams


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_in_int8(engine, batch):
    with use_backend(engine):
        stack = [TimeLSTM.create(3, 5, rng=0), TimeGRU.create(5, 4, rng=1),
                 TimeAffine.create(4, 2, rng=2)]  # fmt: skip
        xs = np.random.default_rng(0).standard_normal((batch, 6, 3)).astype(np.float32)
        frames = xs[0] if batch == 1 else xs
        stream = Stream(stack, batch, weights="int8")
        assert not any(layer.quantised for layer in stack)
        assert stream.weights == "int8"
        got = stream.step_many(frames)
        want: Any = xs
        for layer in copy.deepcopy(stack):
            want = layer.quantise().forward(want)
        np.testing.assert_allclose(got, want[0] if batch == 1 else want, atol=2e-2)
        stream.reset()
        steps = [stream.step(np.ascontiguousarray(frames[..., t, :])).copy() for t in range(6)]
        np.testing.assert_array_equal(np.stack(steps, axis=-2), got)
        for layer in stack:
            layer.quantise()
        other = Stream(stack, batch)
        np.testing.assert_array_equal(other.step_many(frames), got)
        stack[2].dequantise()
        other.refresh()
        other.reset()
        np.testing.assert_allclose(other.step_many(frames), got, atol=2e-2)


def test_kinds_of_weights_of_a_stream():
    layer = TimeLSTM.create(3, 5, rng=0)
    assert layer.stream(weights="bfloat16").bfloat16
    assert layer.stream(bfloat16=True).weights == "bfloat16"
    assert layer.stream().weights is None
    with pytest.raises(ValueError, match="weights: expected one of bfloat16, int8, got 'int4'"):
        layer.stream(weights="int4")
    with pytest.raises(ValueError, match='bfloat16: expected False with weights="int8", got True'):
        layer.stream(weights="int8", bfloat16=True)
    with pytest.raises(TypeError, match="int8: expected layers in float32, got float64"):
        TimeLSTM.create(3, 5, dtype=np.float64).stream(weights="int8")
    layer.quantise()
    assert "int8" not in str(layer.stream(weights="int8").weights) or layer.quantised
    with pytest.raises(TypeError, match=r"bfloat16: expected layers in float32, got .*Wx in int8"):
        layer.stream(weights="bfloat16")
