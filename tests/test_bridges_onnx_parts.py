"""Parts of ONNX graphs: the recurrent nodes of any graph, and what is between two values."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from numba_rnn import Bidirectional, Reversed, Stacked, Stream, TimeBiGRU, TimeGRU, TimeLSTM
from numba_rnn.bridges import ConversionError, from_onnx, to_book, to_flax, to_onnx, to_torch

node, H, D = helper.make_node, 5, 3
F = onnx.TensorProto.FLOAT


def value(name, *shape):
    return helper.make_tensor_value_info(name, F, shape or None)


def weights_of(op="LSTM", directions=1, seed=0):
    rng, G = np.random.default_rng(seed), {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    shapes = {
        "W": (directions, G * H, D),
        "R": (directions, G * H, H),
        "B": (directions, 2 * G * H),
    }
    return {name: rng.uniform(-0.6, 0.6, shape).astype("f") for name, shape in shapes.items()}


def graph_of(nodes, inputs, outputs, arrays=()):
    tensors = [numpy_helper.from_array(array, name) for name, array in dict(arrays).items()]
    return helper.make_graph(nodes, "graph", inputs, outputs, tensors)


def model_of(*graph, functions=(), opsets=()):
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in opsets)]
    return helper.make_model(
        graph_of(*graph), opset_imports=opsets, ir_version=8, functions=list(functions)
    )


def between(front, back, name="it", arrays=None, **attributes):
    """An LSTM with nodes before it and behind it that are not read."""
    lstm = node("LSTM", ["x", "W", "R", "B"], ["Y", "last"], name=name, hidden_size=H, **attributes)
    return model_of(
        [*front, lstm, *back], [value("xs", "T", "N", D)], [value("ys")], arrays or weights_of()
    )


FRONT = [node("Erf", ["xs"], ["e"]), node("Abs", ["e"], ["x"])]
BACK = [node("Erf", ["Y"], ["ys"])]


def run(model, xs, outputs=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(outputs, {"xs": xs})


XS = np.random.default_rng(1).standard_normal((7, 2, D)).astype("f")


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_the_recurrent_nodes_of_any_graph(direction):
    arrays = weights_of(directions=1 + (direction == "bidirectional"))
    model = between(FRONT, BACK, arrays=arrays, direction=direction)
    model.graph.output.extend([value("x"), value("Y")])
    _, x, Y = run(model, XS)
    with pytest.raises(ConversionError, match="got others: 2 Erf, 1 Abs; only"):
        from_onnx(model)
    for source in (model, model.SerializeToString()):
        found = from_onnx(source, only="recurrent")
        assert list(found) == ["it"]
        hs = found["it"].forward(np.ascontiguousarray(x.transpose(1, 0, 2)))
        want = Y.transpose(2, 0, 1, 3).reshape(*hs.shape)
        np.testing.assert_allclose(hs, want, atol=2e-6)
    if direction == "forward":
        stream = Stream(found["it"], batch=2)
        np.testing.assert_allclose(stream.step_many(x.transpose(1, 0, 2)), hs, atol=2e-6)
        found["it"].backward(np.ones_like(hs))
        assert all(grad.any() for grad in found["it"].grads)


def test_weights_that_other_nodes_make():
    """As where gates of another order are cut and joined in the graph."""
    arrays = weights_of()
    W = arrays.pop("W")
    cut = {f"at{k}": np.array([k * H]) for k in range(5)} | {"one": np.array([1])}
    parts = [
        node("Slice", ["other", f"at{k}", f"at{k + 1}", "one"], [f"part{k}"]) for k in range(4)
    ]
    join = node("Concat", ["part3", "part0", "part2", "part1"], ["W"], axis=1)
    other = np.concatenate([np.split(W, 4, axis=1)[k] for k in (1, 3, 2, 0)], axis=1)
    model = between(FRONT, BACK, arrays={**arrays, **cut, "other": other})
    model.graph.node.insert(0, join)
    for part in parts:
        model.graph.node.insert(0, part)
    (lstm,) = from_onnx(model, only="recurrent").values()
    (want,) = from_onnx(between(FRONT, BACK), only="recurrent").values()
    for ours, theirs in zip(lstm.params, want.params, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nodes_in_branches_and_in_functions():
    """Weights may lie in the graph around; a name that comes again gets a mark."""
    lstm = node("LSTM", ["xs", "W", "R", "B"], ["Y", "h"], name="it", hidden_size=H)
    gru = node("GRU", ["xs", "V", "S"], ["Z", "h"], name="it", hidden_size=H)
    small = weights_of("GRU")
    inner = {"V": small["W"], "S": small["R"]}
    branch = node(
        "If", ["yes"], ["ys"],
        then_branch=graph_of([lstm], [], [value("h")]),
        else_branch=graph_of([gru], [], [value("h")], inner),
    )  # fmt: skip
    body = node("GRU", ["a", "b", "c"], ["", "d"], hidden_size=H, linear_before_reset=1)
    function = helper.make_function(
        "own", "f", ["a", "b", "c"], ["d"], [body], [helper.make_opsetid("", 17)]
    )
    call = node("f", ["xs", "V2", "S2"], ["zs"], domain="own")
    arrays = {**weights_of(), "yes": np.array(True), "V2": small["W"], "S2": small["R"]}
    model = model_of(
        [branch, call], [value("xs", "T", "N", D)], [value("ys"), value("zs")], arrays,
        functions=[function], opsets=["own"],
    )  # fmt: skip
    found = from_onnx(model, only="recurrent")
    assert [type(layer) for layer in found.values()] == [TimeGRU, TimeLSTM, TimeGRU]
    assert list(found)[:2] == ["it", "it'"]  # a file has its branches by the alphabet: else, then
    xs = np.ascontiguousarray(XS.transpose(1, 0, 2))
    ys, zs = run(model, XS)
    _, lstm, after = found.values()
    for layer, want in ((lstm, ys), (after, zs)):
        layer.forward(xs)
        np.testing.assert_allclose(layer.h, want[0], atol=2e-6)


def test_all_that_to_onnx_writes():
    layers = [TimeBiGRU.create(D, 4, rng=0), Reversed(TimeLSTM.create(8, 3, rng=1))]
    found = from_onnx(to_onnx(layers, states=True), only="recurrent")
    for ours, theirs in zip(layers, found.values(), strict=True):
        assert ours.param_names == theirs.param_names
        for one, other in zip(ours.params, theirs.params, strict=True):
            np.testing.assert_array_equal(one, other)


def test_weights_that_are_given():
    arrays = weights_of()
    W = arrays.pop("W")
    model = between([*FRONT, node("Erf", ["xs"], ["W"])], BACK, arrays=arrays)
    with pytest.raises(
        ConversionError, match=r"LSTM node 'it': input W \('W'\): .* others: 1 Erf|E"
    ):
        from_onnx(model, only="recurrent")
    model.graph.node.remove(model.graph.node[2])
    model.graph.input.append(value("W"))
    with pytest.raises(ConversionError, match=r"input W \('W'\): .* weights={'W': ...}"):
        from_onnx(model, only="recurrent")
    (lstm,) = from_onnx(model, {"W": W}, only="recurrent").values()
    assert lstm.input_size == D
    with pytest.raises(ValueError, match=r"weights: expected values that .* read, got V"):
        from_onnx(model, {"W": W, "V": W}, only="recurrent")


def test_what_has_no_recurrent_nodes():
    model = model_of([*FRONT, node("Erf", ["x"], ["ys"])], [value("xs")], [value("ys")])
    with pytest.raises(ConversionError, match="expected RNN, LSTM or GRU nodes, got 2 Erf, 1 Abs"):
        from_onnx(model, only="recurrent")
    for options in ({"only": "lstm"}, {"only": "recurrent", "inputs": ["x"]}):
        with pytest.raises(ValueError, match='only: expected "recurrent", without inputs and outp'):
            from_onnx(between(FRONT, BACK), **options)


def test_a_graph_is_cut():
    model = between(FRONT, BACK)
    with pytest.raises(ConversionError, match="got others: 1 Erf; only"):
        from_onnx(model, inputs=["x"])
    with pytest.raises(ConversionError, match="got others: 1 Erf, 1 Abs; only"):
        from_onnx(model, outputs=["Y"])
    net = from_onnx(model, inputs=["x"], outputs=["Y", "last"])
    assert (net.inputs, net.outputs) == (("x",), ("Y", "last"))
    model.graph.output.extend([value("x"), value("Y"), value("last")])
    _, x, *want = run(model, XS)
    for ours, theirs in zip(net.forward(x), want, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert net.backward(np.ones_like(want[0])).shape == XS.shape
    again = from_onnx(to_onnx(net))
    np.testing.assert_array_equal(again.forward(x)[0], net.forward(x)[0])


@pytest.mark.parametrize("convert", [to_onnx, to_torch, to_flax, to_book])
def test_outputs_that_other_libraries_lack_are_refused(convert):
    both = Bidirectional.create(D, H, merge="sum", rng=0)
    with pytest.raises(ConversionError, match=r"side by side, here they are merged \('sum'\)"):
        convert(both)
    if convert is to_onnx:
        stack = Stacked([both, TimeGRU.create(H, 2, rng=0)])
        with pytest.raises(ConversionError, match=r"model: ONNX has the outputs .* \('sum'\)"):
            convert(stack)
        with pytest.raises(ConversionError, match="its own step, here they are in_reading_order"):
            convert(Reversed(TimeLSTM.create(D, H), in_reading_order=True))


def test_cuts_that_cannot_be():
    with pytest.raises(
        ValueError, match=r"inputs: .* of which Y are made, got 'z', 'ys'; .* read 'x'"
    ):
        from_onnx(between(FRONT, BACK), inputs=["z", "ys"], outputs=["Y"])
    with pytest.raises(ConversionError, match="expected nodes with weights"):
        from_onnx(between(FRONT, BACK), inputs=["Y"], outputs=["Y"])
