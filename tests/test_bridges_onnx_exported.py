"""ONNX files as PyTorch's newer exporter writes them: sizes are computed, weights lie outside."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from numba_rnn import TimeLSTM
from numba_rnn.bridges import ConversionError, from_onnx, to_onnx


def model_of(nodes, weights, sizes, output="ys"):
    """xs (N, T, D) -> ys, of any shape."""
    weights |= {name: np.array(value, np.int64) for name, value in sizes.items()}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("xs", TensorProto.FLOAT, ["N", "T", 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, None, None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def weights_of(H, directions, rng):
    shapes = {"W": (4 * H, 3), "R": (4 * H, H), "B": (8 * H,)}
    return {
        name: rng.uniform(-0.5, 0.5, (directions, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def exported_lstm(H, directions, last, rng):
    """Directions side by side: the product of the last two sizes, or ``last`` nodes instead."""
    node = helper.make_node
    direction = "bidirectional" if directions == 2 else "forward"
    nodes = [
        node("Transpose", ["xs"], ["x"], perm=[1, 0, 2]),
        node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=H, direction=direction),
        node("Transpose", ["Y"], ["turned"], perm=[0, 2, 1, 3]),
        node("Shape", ["turned"], ["shape"], start=0),
        *(node("Slice", ["shape", f"at{k}", f"at{k + 1}"], [f"size{k}"]) for k in range(4)),
        *last,
        node("Reshape", ["product", "any"], ["flat"], allowzero=0),
        node("Concat", ["size0", "size1", "flat"], ["wanted"], axis=0),
        node("Reshape", ["turned", "wanted"], ["joined"], allowzero=1),
        node("Transpose", ["joined"], ["ys"], perm=[1, 0, 2]),
    ]
    sizes = {f"at{k}": [k] for k in range(5)} | {"any": [-1], "six": [6], "three": [3]}
    return model_of(nodes, weights_of(H, directions, rng), sizes)


MUL = (helper.make_node("Mul", ["size2", "size3"], ["product"]),)


@pytest.mark.parametrize("directions", [1, 2])
def test_sizes_that_are_computed(directions):
    rng = np.random.default_rng(directions)
    model = exported_lstm(5, directions, MUL, rng)
    net = from_onnx(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for N, T in ((2, 7), (1, 1), (3, 4)):
        xs = rng.standard_normal((N, T, 3), np.float32)
        ys = net.forward(xs)
        (want,) = session.run(None, {"xs": xs})
        np.testing.assert_allclose(ys, want, atol=2e-6)
        dys = rng.standard_normal(ys.shape, np.float32)
        dxs = net.backward(dys)
        own = net.layers[0]  # reads and gives the same, in the library's order of axes
        own.forward(xs)
        np.testing.assert_allclose(dxs, own.backward(dys), atol=2e-6)
    again = from_onnx(to_onnx(net))
    np.testing.assert_array_equal(again.forward(xs), ys)


def test_other_numbers_than_sizes_are_not_multiplied():
    nodes = [
        helper.make_node("LSTM", ["xs", "W", "R", "B"], ["Y", "h"], hidden_size=5),
        helper.make_node("Mul", ["h", "h"], ["ys"]),
    ]
    model = model_of(nodes, weights_of(5, 1, np.random.default_rng(0)), {})
    with pytest.raises(
        ConversionError, match=r"Mul node 'ys': expected sizes of shapes, .*, got float32"
    ):
        from_onnx(model)


def test_weights_in_a_second_file(tmp_path):
    path, lstm = tmp_path / "lstm.onnx", TimeLSTM.create(3, 5, rng=0)
    onnx.save_model(to_onnx(lstm), path, save_as_external_data=True, size_threshold=0)
    with pytest.raises(
        ConversionError, match=r"from_onnx\(onnx\.load\(path\)\).*external_data=Fals"
    ):
        from_onnx(path)
    xs = np.ones((2, 4, 3), np.float32)
    np.testing.assert_array_equal(from_onnx(onnx.load(path)).forward(xs), lstm.forward(xs))
