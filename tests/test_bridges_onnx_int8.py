"""ONNX files that ONNX Runtime's quantize_dynamic has made, read; onnxruntime is the oracle."""

import copy
import logging
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from numba_rnn import (
    Stacked,
    TimeAffine,
    TimeBiLSTM,
    TimeEmbedding,
    TimeGRU,
    TimeLSTM,
)
from numba_rnn.bridges import ConversionError, from_onnx, to_onnx
from numba_rnn.models import Sequential

ASYMMETRIC = {"extra_options": {"WeightSymmetric": False}}
MODELS: dict[str, Any] = {
    "a scale for all": (TimeLSTM, {}, [True, True]),
    "one each": (TimeLSTM, {"per_channel": True}, [True, True]),
    "both directions": (TimeBiLSTM, {"per_channel": True}, [True, True]),
    # of the LSTM ONNX Runtime makes int8 in any case; an affine layer with a zero point is float32
    "unsigned": (TimeLSTM, {"weight_type": QuantType.QUInt8}, [True, False]),
    "asymmetric": (TimeLSTM, ASYMMETRIC, [False, False]),
    "fewer bits": (TimeLSTM, {"reduce_range": True}, [True, True]),
    "another cell": (TimeGRU, {}, [False, True]),
}


@pytest.fixture(autouse=True)
def quiet():
    """It says that the model might be preprocessed."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def quantised(model: Any, folder: Any, **options: Any) -> onnx.ModelProto:
    onnx.save(to_onnx(model), folder / "float32.onnx")
    quantize_dynamic(folder / "float32.onnx", folder / "int8.onnx", **options)
    return onnx.load(folder / "int8.onnx")


def run_onnx(model: onnx.ModelProto, inputs: dict[str, Any]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)[0]


def distance(a: Any, b: Any) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_onnx_runtime_computes(name, tmp_path):
    """Both round to 8 bits, activations in two ways: they are as near to each other as to float32.

    Measured: 0.010 to 0.017 between the two, 0.013 to 0.016 from ONNX Runtime to float32.
    """
    kind, options, in_int8 = MODELS[name]
    recurrent = kind.create(16, 32, rng=0)
    model = Sequential(recurrent, TimeAffine.create(recurrent.output_size, 4, rng=1))
    xs = np.random.default_rng(0).standard_normal((3, 20, 16)).astype(np.float32)
    file = quantised(model, tmp_path, **options)
    want, exact = run_onnx(file, {"xs": xs}), model.predict(xs)
    net = from_onnx(tmp_path / "int8.onnx")
    assert [layer.quantised for layer in net.layers] == in_int8
    got = net.forward(xs)
    assert distance(got, want) < 0.025
    assert distance(got, exact) < 0.02


def columns_of_ours(matrix: Any) -> Any:
    """i, o, f, g side by side -> f, g, i, o."""
    i, o, f, g = np.split(matrix, 4, axis=-1)
    return np.concatenate([f, g, i, o], axis=-1)


@pytest.mark.parametrize("name", ["a scale for all", "one each", "asymmetric", "both directions"])
def test_weights_are_those_of_the_file(name, tmp_path):
    kind, options, _ = MODELS[name]
    file = quantised(kind.create(3, 5, rng=0), tmp_path, **options)
    arrays = {t.name: numpy_helper.to_array(t) for t in file.graph.initializer}
    net = from_onnx(file)
    (layer,) = net.layers
    places = [("forward.", 0), ("backward.", 1)] if kind is TimeBiLSTM else [("", 0)]
    params = dict(zip(layer.param_names, layer.params, strict=True))
    for part, k in places:
        for ours, theirs in (("Wx", "W"), ("Wh", "R")):
            numbers, scale, zero = (
                arrays[next(n for n in arrays if n.endswith(f".{theirs}_{suffix}"))][k]
                for suffix in ("quantized", "scale", "zero_point")
            )
            want = (numbers.astype(np.int32) - zero).astype(np.float32) * scale
            param = params[f"{part}{ours}"]
            np.testing.assert_array_equal(np.asarray(param), columns_of_ours(want))
            if net.quantised:
                np.testing.assert_array_equal(param.values, columns_of_ours(numbers))


def test_a_stack_of_layers(tmp_path):
    model = Sequential(
        Stacked.create(8, 16, layers=2, layer=TimeLSTM, rng=0), TimeAffine.create(16, 4, rng=0)
    )
    xs = np.random.default_rng(0).standard_normal((2, 9, 8)).astype(np.float32)
    file = quantised(model, tmp_path, per_channel=True)
    net = from_onnx(file)
    assert [type(layer).__name__ for layer in net.layers] == ["TimeLSTM", "TimeLSTM", "TimeAffine"]
    assert distance(net.forward(xs), run_onnx(file, {"xs": xs})) < 0.03


@pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8])
def test_an_embedding(weights, tmp_path):
    """Its numbers need no product: they are the file's, whatever the zero point."""
    model = Sequential(TimeEmbedding.create(30, 8, rng=0), TimeLSTM.create(8, 16, rng=0))
    ids = np.random.default_rng(0).integers(0, 30, (2, 9))
    file = quantised(model, tmp_path, weight_type=weights)
    net = from_onnx(file)
    assert distance(net.forward(ids), run_onnx(file, {"ids": ids})) < 0.03
    arrays = {t.name: numpy_helper.to_array(t) for t in file.graph.initializer}
    W, scale, zero = (arrays[f"embedding_0_{n}"] for n in ("quantized", "scale", "zero_point"))
    want = (W.astype(np.int32) - zero).astype(np.float32) * scale
    np.testing.assert_array_equal(np.asarray(net.layers[0].params[0]), want)


def test_recurrent_nodes_alone(tmp_path):
    model = Sequential(TimeLSTM.create(3, 5, rng=0), TimeAffine.create(5, 2, rng=0))
    file = quantised(model, tmp_path)
    (layer,) = from_onnx(file, only="recurrent").values()
    assert isinstance(layer, TimeLSTM)
    assert layer.quantised
    np.testing.assert_array_equal(layer.params[0].values, from_onnx(file).params[0].values)


def test_what_is_read_may_be_saved_trained_and_written_again(tmp_path):
    model = Sequential(TimeLSTM.create(3, 5, rng=0), TimeAffine.create(5, 2, rng=0))
    xs = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
    net = from_onnx(quantised(model, tmp_path))
    got = net.forward(xs)
    np.testing.assert_array_equal(copy.deepcopy(net).forward(xs), got)
    for write in (to_onnx, lambda net: net.model()):
        with pytest.raises(ConversionError, match=r"for ONNX, got int8 ones; copy\.deepcopy"):
            write(net)
    with pytest.raises(TypeError, match="dequantise"):
        net.backward(got)
    out = net.dequantise().forward(xs)
    assert distance(out, got) < 0.02
    net.backward(out)
    assert distance(run_onnx(to_onnx(net), {"xs": xs}), out) < 1e-5


def changed(file: onnx.ModelProto, **arrays: Any) -> onnx.ModelProto:
    """The file with other arrays, by the ends of their names; None: an input."""
    made = onnx.ModelProto()
    made.CopyFrom(file)
    for tensor in list(made.graph.initializer):
        for end, array in arrays.items():
            if tensor.name.endswith(end):
                if array is None:
                    value = helper.make_tensor_value_info(
                        tensor.name, tensor.data_type, tensor.dims
                    )
                    made.graph.input.append(value)
                    made.graph.initializer.remove(tensor)
                else:
                    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return made


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"W_quantized": None}, r"input W \('LSTM_0.W_quantized'\): expected its numbers in the f"),
        ({"W_quantized": np.ones((1, 3, 20), np.float32)}, "W: expected int8 or uint8 with 3 axes"),
        ({"W_quantized": np.ones((3, 20), np.int8)}, r"with 3 axes, got int8 of shape \(3, 20\)"),
        ({"R_scale": np.ones(7, np.float32)}, "input R_scale: expected 1, 1 or 20 numbers, got sh"),
        ({"R_scale": np.ones(1)}, "input R: expected scales in float32 .* got float64 and int8"),
        ({"W_zero_point": np.ones(1, np.uint8)}, "zero points in int8, got float32 and uint8"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(arrays, message, tmp_path):
    file = quantised(TimeLSTM.create(3, 5, rng=0), tmp_path)
    with pytest.raises((ConversionError, ValueError), match=message):
        from_onnx(changed(file, **arrays))


def test_numbers_that_int8_cannot_have_are_float32(tmp_path):
    """-128, a zero point, a scale of 0: nothing is rounded a second time."""
    file = quantised(TimeLSTM.create(3, 5, rng=0), tmp_path)
    whole = np.full((1, 3, 20), -128, np.int8)
    for arrays in ({"W_quantized": whole}, {"R_scale": np.zeros(1, np.float32)}):
        net = from_onnx(changed(file, **arrays))
        assert not net.quantised
    scale = net.params[0]
    assert scale.dtype == np.float32


def test_other_nodes_in_int8_are_refused(tmp_path):
    x = helper.make_tensor_value_info("x", 1, ["N", 3])
    y = helper.make_tensor_value_info("y", 6, ["N", 2])
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "W", "z"], ["y"], "product"),
    ]
    W = numpy_helper.from_array(np.ones((3, 2), np.int8), "W")
    graph = helper.make_graph(nodes, "g", [x], [y], [W])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(ConversionError, match="MatMulInteger node 'product': expected a DynamicQ"):
        from_onnx(model)
    nodes = [helper.make_node("DequantizeLinear", ["W", "s"], ["y"], "back")]
    y = helper.make_tensor_value_info("y", 1, [3, 2])
    s = numpy_helper.from_array(np.float32(1), "s")
    graph = helper.make_graph(nodes, "g", [x], [y], [W, s])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(ConversionError, match="node 'back': expected rows of a weight"):
        from_onnx(model)


def test_bytes_that_are_wrong(tmp_path):
    """It is refused, or read as something else; no other error, and nothing of it is run."""
    model = Sequential(
        TimeEmbedding.create(9, 3, rng=0), TimeLSTM.create(3, 5, rng=0), TimeAffine.create(5, 2)
    )
    whole = quantised(model, tmp_path).SerializeToString()
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        for only in (None, "recurrent"):
            with suppress(ConversionError, ValueError):
                from_onnx(bytes(data), only=only)
