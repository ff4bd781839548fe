"""ONNX files, written and read; onnxruntime, onnx and PyTorch are the oracles."""

import copy
import io
import warnings

import numpy as np
import onnx
import onnx.backend.test.case.node.gru as gru_cases
import onnx.backend.test.case.node.lstm as lstm_cases
import onnx.backend.test.case.node.rnn as rnn_cases
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fake_device import use_fake_device
from helpers import central_differences, relative_error
from numba_rnn import (
    Bidirectional,
    Stacked,
    TimeAffine,
    TimeAffineSoftmaxWithLoss,
    TimeBiGRU,
    TimeBiLSTM,
    TimeDropout,
    TimeEmbedding,
    TimeGRU,
    TimeLSTM,
    TimeProjectedLSTM,
    TimeRNN,
    time_layer,
    use_backend,
)
from numba_rnn.backend import to_host
from numba_rnn.bridges import ConversionError, OnnxNet, from_onnx, to_onnx
from numba_rnn.bridges.onnx_cells import (
    ACTIVATIONS,
    DEFAULTS,
    GATES,
    Activation,
    RnnNodeSpec,
    _gru,
    _lstm,
    _rnn,
)
from numba_rnn.models import Rnnlm, Sequential

LIMIT = 2e-6


def run_onnx(model, inputs):
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it would say that inputs may be left out
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)


def error(got, want):
    """Relative to the largest number, or to 0.1 where what is left of larger ones is smaller."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    return np.abs(got.astype(np.float64) - want).max() / max(np.abs(want).max(), 0.1)


def value_info(name, array):
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
    )


def model_of(nodes, inputs, weights, outputs, opset=17, ir_version=8):
    """outputs: the ranks by name."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [value_info(name, array) for name, array in inputs.items()],
        [helper.make_tensor_value_info(o, 1, [None] * rank) for o, rank in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


# ---- the tests that onnx brings

CASES = [
    (getattr(module, op), name)
    for module, op in ((lstm_cases, "LSTM"), (gru_cases, "GRU"), (rnn_cases, "RNN"))
    for name in sorted(vars(getattr(module, op)))
    if name.startswith("export_")
]


@pytest.mark.parametrize(("case", "name"), CASES)
def test_nodes_of_onnx(case, name, monkeypatch):
    found = []
    module = {"LSTM": lstm_cases, "GRU": gru_cases, "RNN": rnn_cases}[case.__name__]
    monkeypatch.setattr(
        module, "expect", lambda node, inputs, outputs, name: found.append((node, inputs, outputs))
    )
    getattr(case, name)()
    ((node, inputs, outputs),) = found
    names = [name for name in node.input if name]
    arrays = dict(zip(names, inputs, strict=True))
    ranks = {o: a.ndim for o, a in zip(filter(None, node.output), outputs, strict=True)}
    model = model_of([node], arrays, {}, ranks, opset=22, ir_version=10)
    weights = {name: arrays.pop(name) for name in names if name in "WRBP"}
    net = from_onnx(model.SerializeToString(), weights=weights)
    with use_backend("numpy"):
        got = net.forward(**arrays)
    for ours, theirs in zip(got if len(ranks) > 1 else (got,), outputs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_there_are_nodes_of_onnx():
    assert len(CASES) >= 12


@pytest.mark.parametrize("spell", [str.lower, str.upper])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_activations_are_known_however_they_are_spelt(op, spell):
    """ONNX Runtime's own vectors have them in lower case."""
    rng, G = np.random.default_rng(0), len(GATES[op])
    weights = {
        name: rng.uniform(-1, 1, (1, G * 3, n)).astype("f")
        for name, n in zip("WR", (2, 3), strict=True)
    }
    X = rng.standard_normal((5, 2, 2)).astype("f")
    for names, numbers in (
        (["Sigmoid", "Tanh", "Tanh"], {}),
        (["HardSigmoid", "LeakyRelu", "Softsign"],
         {"activation_alpha": [0.3, 0.1], "activation_beta": [0.4]}),
    ):  # fmt: skip
        attributes = {"hidden_size": 3, "activations": list(map(spell, names[: G - 1])), **numbers}
        model = one_node(op, attributes, weights, {"X": X})
        want = run_onnx(model, {"X": X})
        net = from_onnx(model)
        for got in (net.forward(X), run_onnx(to_onnx(net), {"X": X})):
            assert max(map(error, got, want)) < LIMIT


def test_inputs_and_outputs_without_a_shape():
    rng = np.random.default_rng(0)
    X, weights = (
        rng.standard_normal((5, 2, 2)).astype("f"),
        {
            name: rng.uniform(-1, 1, (1, 12, n)).astype("f")
            for name, n in zip("WR", (2, 3), strict=True)
        },
    )
    for x, y in (([None, None, 2], "shape"), (None, "shape"), (None, "type"), (None, "nothing")):
        model = one_node("LSTM", {"hidden_size": 3}, weights, {"X": X})
        del model.graph.input[:], model.graph.output[1:]
        model.graph.input.append(helper.make_tensor_value_info("X", 1, x))
        if y == "type":
            model.graph.output[0].type.tensor_type.ClearField("shape")
        elif y == "nothing":
            model.graph.output[0].ClearField("type")
        want = run_onnx(model, {"X": X})[0]
        net = from_onnx(model.SerializeToString())
        assert error(net.forward(X), want) < LIMIT
        assert error(net.forward(X[:3, :1]), want[:3, :, :1]) < LIMIT
        assert error(run_onnx(to_onnx(net), {"X": X})[0], want) < LIMIT
        with pytest.raises(ValueError, match=r"X: expected shape|LSTM node"):
            net.forward(X[0])


# ---- random nodes


@st.composite
def nodes(draw):
    """A node, its weights and its inputs; all attributes that ONNX Runtime has."""
    op = draw(st.sampled_from(list(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    N, T, D = (draw(st.integers(1, n)) for n in (4, 5, 5))
    H, count = draw(st.integers(1, 9)), len(DEFAULTS[op])
    dirs, G = 1 + (direction == "bidirectional"), len(GATES[op])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    attributes = {"hidden_size": H, "direction": direction}
    if draw(st.booleans()):
        each = st.lists(st.sampled_from(list(ACTIVATIONS)), min_size=count, max_size=count)
        names = draw(each)
        names += names if op == "RNN" else draw(each)  # see the refusals
        attributes["activations"] = names = names[: count * dirs]
        for letter in ("alpha", "beta"):
            values = [float(rng.uniform(0.2, 0.9)) for n in names if letter in ACTIVATIONS[n]]
            if values:
                attributes[f"activation_{letter}"] = values
    if draw(st.booleans()):
        attributes["clip"] = float(rng.uniform(0.1, 2))
    if op == "LSTM" and draw(st.booleans()):
        attributes["input_forget"] = 1
    if op == "GRU" and draw(st.booleans()):
        attributes["linear_before_reset"] = 1

    def some(*shape):
        return rng.uniform(-0.7, 0.7, shape).astype(np.float32)

    weights = {"W": some(dirs, G * H, D), "R": some(dirs, G * H, H)}
    inputs = {"X": some(T, N, D)}
    if draw(st.booleans()):
        weights["B"] = some(dirs, 2 * G * H)
    if draw(st.booleans()):
        inputs["sequence_lens"] = rng.integers(1, T + 1, N).astype(np.int32)
    if draw(st.booleans()):
        inputs["initial_h"] = some(dirs, N, H)
    if op == "LSTM" and draw(st.booleans()):
        inputs["initial_c"] = some(dirs, N, H)
    if op == "LSTM" and draw(st.booleans()):
        weights["P"] = some(dirs, 3 * H)
    return op, attributes, weights, inputs


def one_node(op, attributes, weights, inputs, layout=0):
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    names = [name if name in inputs or name in weights else "" for name in order]
    while not names[-1]:
        names.pop()
    outputs = {"Y": 4, "Y_h": 3, "Y_c": 3} if op == "LSTM" else {"Y": 4, "Y_h": 3}
    more = {"layout": 1} if layout else {}
    node = helper.make_node(op, names, list(outputs), name="it", **attributes, **more)
    return model_of([node], inputs, weights, outputs)


def batch_first(array):
    """Layout 1 of what is in layout 0."""
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(2, 0, 1, 3))
    return np.ascontiguousarray(array.transpose(1, 0, 2)) if array.ndim == 3 else array


@settings(deadline=None, max_examples=200)
@given(case=nodes())
def test_random_nodes(case):
    op, attributes, weights, inputs = case
    model = one_node(*case)
    want = run_onnx(model, inputs)
    with use_backend("numpy"):  # which compiles nothing for a cell that is there once
        net = from_onnx(model)
        got = net.forward(**inputs)
        for ours, theirs in zip(got, want, strict=True):
            assert ours.dtype == np.float32
            assert error(ours, theirs) < LIMIT
        turned = {name: batch_first(array) for name, array in inputs.items()}
        other = from_onnx(one_node(op, attributes, weights, turned, layout=1))
        for ours, theirs in zip(other.forward(**turned), got, strict=True):
            np.testing.assert_array_equal(ours, batch_first(theirs))
        there_and_back(net, want, inputs)
    for ours, theirs in zip(run_onnx(to_onnx(net), inputs), want, strict=True):
        assert error(ours, theirs) < LIMIT


def there_and_back(net, want, inputs):
    """Write the layer that was read, and compare: the same numbers, batch first."""
    (layer,) = net.layers
    model = to_onnx(layer, states=True, lengths="sequence_lens" in inputs)
    feeds = {"xs": batch_first(inputs["X"])}
    if "sequence_lens" in inputs:
        feeds["lengths"] = inputs["sequence_lens"]
    names = [s for s in ("h", "c") if f"initial_{s}" in inputs]
    feeds |= {f"initial_{s}{k}": own for s in names for k, own in enumerate(inputs[f"initial_{s}"])}
    ys, *last = run_onnx(model, feeds)
    dirs = len(want[1])
    Y = batch_first(want[0])
    assert error(ys, Y.reshape(*Y.shape[:2], -1)) < LIMIT
    for k, (ours, name) in enumerate(zip(last, model.graph.output[1:], strict=True)):
        of_state = want[1 + "hc".index(name.name[5])]
        assert error(ours, of_state[k // (len(last) // dirs)]) < LIMIT


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("clip", [None, 0.4])
def test_gradients_of_written_cells(reset_after, clip):
    gates = Activation("ScaledTanh", 0.7, 1.3), Activation("Softsign")
    assert _gru(RnnNodeSpec("GRU", gates, clip, reset_after), "odd").check() < 1e-6


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_of_activations(name):
    numbers = dict.fromkeys(ACTIVATIONS[name], 0.3)
    assert _rnn(RnnNodeSpec("RNN", (Activation(name, **numbers),)), "odd").check() < 1e-6


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("peepholes", [False, True])
def test_gradients_of_lstms(coupled, peepholes):
    functions = Activation("HardSigmoid", 0.3, 0.4), Activation("Elu", 0.8), Activation("Softplus")
    kind = RnnNodeSpec("LSTM", functions, 0.9, coupled=coupled, peepholes=peepholes)
    assert _lstm(kind, "odd").check() < 1e-6


# ---- layers to ONNX


def stirred(layer, seed=0):
    """With numbers that no initialiser gives: biases and peepholes that are not 0."""
    rng = np.random.default_rng(seed)
    for param in layer.params:
        param += rng.uniform(-0.3, 0.3, param.shape).astype(param.dtype)
    return layer


def cell(name):
    return time_layer(name)


LAYERS = {
    "rnn": TimeRNN.create,
    "relu": lambda *sizes, **o: TimeRNN.create(*sizes, activation="relu", **o),
    "lstm": TimeLSTM.create,
    "gru": TimeGRU.create,
    "gru after": lambda *sizes, **o: TimeGRU.create(*sizes, reset_after=True, **o),
    "peephole": cell("lstm_peephole").create,
    "coupled": cell("lstm_cifg").create,
    "bidirectional": TimeBiLSTM.create,
    "bidirectional gru": TimeBiGRU.create,
    "two kinds": lambda D, H, rng, dtype: Bidirectional(
        TimeLSTM.create(D, H, rng=rng, dtype=dtype), TimeGRU.create(D, H + 1, rng=rng, dtype=dtype)
    ),
    "stacked": lambda D, H, **o: Stacked.create(D, H, 2, dropout=0.5, **o),
    "stacked both ways": lambda D, H, **o: Stacked.create(D, H, 2, layer=TimeBiGRU, **o),
    "learnt": lambda D, H, **o: TimeLSTM.create(D, H, **o).learn_initial_state(),
}


def states_of(layer):
    parts = layer.recurrent if isinstance(layer, (Stacked, Bidirectional)) else (layer,)
    return {
        f"last_{name}{k}": state
        for k, part in enumerate(parts)
        for name, state in zip(part.cell.states, part.state, strict=True)
    }


@pytest.mark.parametrize("name", LAYERS)
@settings(deadline=None, max_examples=8)
@given(
    N=st.integers(1, 4), T=st.integers(1, 6), D=st.integers(1, 7), H=st.integers(1, 19),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_layers_to_onnx(name, N, T, D, H, seed):
    rng = np.random.default_rng(seed)
    layer = stirred(LAYERS[name](D, H, rng=seed, dtype=np.float32), seed)
    layer.train_flg = False
    xs = rng.standard_normal((N, T, D)).astype(np.float32)
    lengths = rng.integers(1, T + 1, N).astype(np.int32)
    want = layer.forward(xs)
    (got,) = run_onnx(to_onnx(layer), {"xs": xs})
    assert error(got, want) < LIMIT
    model = to_onnx(layer, states=True, lengths=True, softmax=False)
    names = [value.name for value in model.graph.output]
    starts = {  # of every state, or the file's own
        name.replace("last", "initial"): rng.uniform(-1, 1, state.shape).astype(np.float32)
        for name, state in states_of(layer).items()
    }
    for feeds in ({}, starts):
        got = run_onnx(model, {"xs": xs, "lengths": lengths, **feeds})
        if feeds:
            set_states(layer, feeds)
        want = {"ys": layer.forward(xs, lengths=lengths), **states_of(layer)}
        assert names == list(want)
        net = from_onnx(model)
        back = net.forward(xs, lengths, **feeds)
        again = run_onnx(to_onnx(net), {"xs": xs, "lengths": lengths, **feeds})
        for ours, theirs, third, key in zip(back, got, again, names, strict=True):
            assert error(third, want[key]) < LIMIT
            assert error(theirs, want[key]) < LIMIT
            assert error(ours, want[key]) < LIMIT


def set_states(layer, feeds):
    parts = layer.recurrent if isinstance(layer, (Stacked, Bidirectional)) else (layer,)
    for k, part in enumerate(parts):
        part.set_state(*(feeds[f"initial_{name}{k}"] for name in part.cell.states))


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "gru after", "peephole", "bidirectional"])
def test_float64(name):
    """Which ONNX Runtime's recurrent nodes have not; onnx itself computes it."""
    layer = stirred(LAYERS[name](3, 5, rng=0, dtype=np.float64))
    xs = np.random.default_rng(1).standard_normal((2, 4, 3))
    model = to_onnx(layer)
    (got,) = ReferenceEvaluator(model).run(None, {"xs": xs})
    want = layer.forward(xs)
    assert got.dtype == np.float64
    assert relative_error(got, want) < 1e-14
    assert relative_error(from_onnx(model).forward(xs), want) < 1e-14


@pytest.mark.parametrize("tie", [False, True])
def test_rnnlm(tie, tmp_path):
    model = Rnnlm(11, 6, 6, cell="gru", layers=2, dropout=0.5, tie=tie, rng=0)
    ids = np.random.default_rng(1).integers(0, 11, (3, 7))
    scores = model.predict(ids)
    path = tmp_path / "model.onnx"
    to_onnx(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    net = from_onnx(path)
    (got,) = run_onnx(onnx.load(path), {"ids": ids})
    assert error(got, scores) < LIMIT
    assert error(net.forward(ids), scores) < LIMIT
    assert [type(layer) for layer in net.layers] == [TimeEmbedding, TimeGRU, TimeGRU, TimeAffine]
    (shares,) = run_onnx(to_onnx(model, softmax=True), {"ids": ids})
    want = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
    assert error(shares, want) < LIMIT
    again = to_onnx(net.layers, softmax=True)
    assert error(from_onnx(again.SerializeToString()).forward(ids), want) < LIMIT
    # what was read trains: one step down the gradient, and the loss is smaller
    dscores = want.copy()
    dscores -= ids[:, :, None] == np.arange(11)
    net.backward((dscores / ids.size).astype(np.float32))
    assert net.dinputs == {"ids": None}
    assert all(np.abs(grad).max() > 0 for grad in net.grads)


def test_residual_and_a_list():
    stack = stirred(Stacked.create(4, 4, 2, residual=True, layer="lstm_peephole", rng=0))
    layers = [stack, TimeDropout(0.5), stirred(TimeAffine.create(4, 3, rng=0))]
    xs = np.random.default_rng(1).standard_normal((2, 5, 4)).astype(np.float32)
    stack.train_flg = False
    want = layers[2].forward(stack.forward(xs))
    model = to_onnx(layers)
    assert model == to_onnx(Sequential(*layers))
    above = TimeAffineSoftmaxWithLoss.create(3, 5)
    with pytest.raises(ConversionError, match="loss without weights, got TimeAffineSoftmaxWith"):
        to_onnx(Sequential(*layers, loss=above))
    assert error(run_onnx(model, {"xs": xs})[0], want) < LIMIT
    assert error(from_onnx(model).forward(xs), want) < LIMIT


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: time_layer("mgu").create(3, 5), ConversionError, "none for the cell 'mgu'"),
        (lambda: TimeProjectedLSTM.create(3, 5, proj_size=2), ConversionError, "no projection"),
        (
            lambda: TimeLSTM.create(3, 5).regularise(zoneout=0.1),
            ConversionError,
            "zoneout is a mean",
        ),
        (lambda: Rnnlm(11, 4, 5, cell="indrnn"), ConversionError, "none for the cell 'indrnn'"),
        (list, TypeError, "an Rnnlm, got none"),
        (lambda: [TimeLSTM.create(3, 5), 3], TypeError, "an Rnnlm, got int"),
        (
            lambda: [TimeLSTM.create(3, 5), TimeAffine.create(4, 2)],
            ValueError,
            "a layer of 5 inputs in float32 above",
        ),
        (
            lambda: [TimeLSTM.create(3, 5), TimeAffine.create(5, 2, dtype=np.float64)],
            ValueError,
            "a layer of 5 inputs in float32 above",
        ),
    ],
)
def test_what_cannot_be_written(make, kind, says, tmp_path):
    with pytest.raises(kind, match=says):
        to_onnx(make(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_lengths_with_a_residual_connection():
    stack = Stacked.create(4, 4, 2, residual=True)
    with pytest.raises(ConversionError, match="would return xs, not 0, past a row's end"):
        to_onnx(stack, lengths=True)


# ---- graphs of PyTorch's


def exported(module, inputs, axes):
    import torch

    file = io.BytesIO()
    names = [f"i{k}" for k in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, inputs, file, input_names=names, dynamic_axes=axes, dynamo=False,
            opset_version=17,
        )  # fmt: skip
    return file.getvalue()


def torch_models():
    import torch

    nn = torch.nn

    class Tagger(nn.Module):
        def __init__(self, kind, bidirectional, batch_first):
            super().__init__()
            self.embed = nn.Embedding(11, 4)
            options = {"bidirectional": bidirectional, "batch_first": batch_first}
            self.rnn = getattr(nn, kind)(4, 5, 2, **options)
            self.linear = nn.Linear(5 * (1 + bidirectional), 7)

        def forward(self, ids):
            return torch.softmax(self.linear(self.rnn(self.embed(ids))[0]), -1)

    class Last(nn.Module):
        """The last step of the output, and the last state; two matrix products of rows."""

        def __init__(self):
            super().__init__()
            self.rnn, self.linear = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, xs):
            hs, last = self.rnn(xs)
            return self.linear(hs[:, -1]), self.linear(last[0])

    class WithStates(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)

        def forward(self, xs, h, c):
            hs, (h, c) = self.rnn(xs, (h, c))
            return hs, h, c

    torch.manual_seed(0)
    ids, xs = torch.randint(0, 11, (2, 6)), torch.randn(2, 6, 4)
    states = torch.randn(4, 2, 5), torch.randn(4, 2, 5)
    both, first = {0: "N", 1: "T"}, {1: "N"}
    return {
        "lstm": (Tagger("LSTM", False, True), (ids,), {"i0": both}),
        "gru both ways": (Tagger("GRU", True, False), (ids,), {"i0": both}),
        "rnn of one size": (Tagger("RNN", False, True), (ids,), {}),
        "last step": (Last(), (xs,), {"i0": both}),
        "states": (WithStates(), (xs, *states), {"i0": both, "i1": first, "i2": first}),
    }


@pytest.mark.parametrize(
    "name", ["lstm", "gru both ways", "rnn of one size", "last step", "states"]
)
def test_graphs_of_pytorch(name):
    import torch

    module, inputs, axes = torch_models()[name]
    net = from_onnx(exported(module, inputs, axes))
    for value in inputs:
        value.requires_grad_(value.is_floating_point())
    want = module(*inputs)
    want = want if isinstance(want, tuple) else (want,)
    got = net.forward(*(value.detach().numpy() for value in inputs))
    douts = [torch.randn_like(out) for out in want]
    sum((out * dout).sum() for out, dout in zip(want, douts, strict=True)).backward()
    net.backward(*(dout.numpy() for dout in douts))
    for ours, theirs in zip(got if len(want) > 1 else (got,), want, strict=True):
        assert error(ours, theirs.detach().numpy()) < LIMIT
    for found, value in zip(net.dinputs.values(), inputs, strict=True):
        if value.requires_grad:
            assert error(found, value.grad.numpy()) < 1e-5
    trained_and_written(net, [value.detach().numpy() for value in inputs])
    if name == "last step":  # one weight of the file, two layers here
        weight = sum(layer.grads[0] for layer in net.layers[1:])
        assert error(weight, module.linear.weight.grad.numpy().T) < 1e-5
    elif name != "states":
        assert error(net.layers[-1].grads[0], module.linear.weight.grad.numpy().T) < 1e-5
        assert error(net.layers[0].grads[0], module.embed.weight.grad.numpy()) < 1e-5


def trained_and_written(net, inputs):
    """After a step of training the file has what the net computes then."""
    before = net.forward(*inputs)
    for param, grad in zip(net.params, net.grads, strict=True):
        param -= 0.1 * grad
    want = net.forward(*inputs)
    got = run_onnx(to_onnx(net), dict(zip(net.inputs, inputs, strict=True)))
    if isinstance(want, tuple):
        before, want = before[0], want[0]
    assert error(before, want) > 1e-4
    assert error(got[0], want) < LIMIT


# ---- a net as a layer


def odd_net():
    """Two cells that are not the library's, of which the second reads from the end."""
    rng = np.random.default_rng(0)

    def some(*shape):
        return rng.uniform(-0.7, 0.7, shape)

    weights = {
        "W": some(1, 12, 3), "R": some(1, 12, 4), "B": some(1, 24),
        "W2": some(1, 20, 4), "R2": some(1, 20, 5), "P2": some(1, 15), "A": some(5, 2),
    }  # fmt: skip
    inputs = {"X": some(3, 2, 3), "h": some(1, 2, 5)}
    weights["one"] = np.array([1])
    graph = [
        helper.make_node(
            "GRU", ["X", "W", "R", "B"], ["Y"], activations=["Softsign", "ScaledTanh"],
            activation_alpha=[0.8], activation_beta=[1.5], linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["Y", "one"], ["hs"]),
        helper.make_node(
            "LSTM", ["hs", "W2", "R2", "", "", "h", "", "P2"], ["", "last"], direction="reverse",
            clip=3.0, input_forget=1,
        ),
        helper.make_node("MatMul", ["last", "A"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
    ]  # fmt: skip
    made = model_of(graph, inputs, weights, {"shares": 3, "hs": 3})
    for value in made.graph.output:
        value.type.tensor_type.elem_type = 11
    return made, inputs


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_gradients_of_a_net(backend):
    model, inputs = odd_net()
    rng = np.random.default_rng(1)
    with use_backend(backend):
        net = from_onnx(model)
        outputs = net.forward(**inputs)
        douts = [rng.standard_normal(out.shape) for out in outputs]

        def loss():
            return sum((o * d).sum() for o, d in zip(net.forward(**inputs), douts, strict=True))

        dX, dh = net.backward(*douts)
        grads = [grad.copy() for grad in net.grads]
        for ours, array in ((dX, inputs["X"]), (dh, inputs["h"])):
            assert relative_error(ours, central_differences(loss, array)) < 1e-6
        for name, ours, param in zip(net.param_names, grads, net.params, strict=True):
            assert relative_error(ours, central_differences(loss, param)) < 1e-6, name
        net.backward(None, douts[1])  # to which the second layer has nothing to say
        assert not any(grad.any() for grad in net.layers[1].grads)


def test_copies_are_nets_of_their_own():
    model, inputs = odd_net()
    with use_backend("numpy"):
        net = from_onnx(model)
        want = net.forward(**inputs)
        other = copy.deepcopy(net)
        for param in other.params:
            param[...] = 0
        assert not other.layers[0].params[0].any()
        np.testing.assert_array_equal(net.forward(**inputs)[0], want[0])
        assert np.ptp(other.forward(**inputs)[0]) == 0


def test_layers_of_a_net_on_a_device():
    model, inputs = odd_net()
    lm = to_onnx(Rnnlm(5, 3, 4, rng=0, dtype=np.float64), softmax=True)
    ids = np.arange(6).reshape(2, 3) % 5

    def outcome():
        found = []
        for source, arrays in ((model, inputs.values()), (lm, (ids,))):
            net = from_onnx(source)
            out = net.forward(*arrays)
            net.backward(*(out if isinstance(out, tuple) else (out,)))
            found += [*out, *map(to_host, net.grads), *filter_none(net.dinputs.values())]
            written = onnx_weights(to_onnx(net))
        return [*found, *written]

    with use_backend("numpy"):
        want = outcome()
    with use_fake_device():
        got = outcome()
    for ours, theirs in zip(got, want, strict=True):
        assert isinstance(ours, np.ndarray)
        assert relative_error(ours, theirs) < 1e-13


def filter_none(values):
    return [value for value in values if value is not None]


def onnx_weights(model):
    return [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]


def test_a_net_has_its_inputs_and_outputs():
    with pytest.raises(
        TypeError, match="an OnnxNet, which keeps the inputs and outputs of its file"
    ):
        to_onnx(from_onnx(lstm_model()), states=True)


def test_a_net_checks_what_it_is_given():
    net = from_onnx(to_onnx(TimeLSTM.create(3, 5, rng=0), states=True))
    xs = np.ones((2, 4, 3), np.float32)
    assert (net.inputs, list(net.optional)) == (("xs",), ["initial_h0", "initial_c0"])
    for inputs, named, kind, says in (
        ((), {}, TypeError, "forward: expected xs, initial_h0, initial_c0, got none"),
        ((xs, xs), {}, TypeError, "forward: expected xs, got 2 arrays"),
        ((xs,), {"h": xs}, TypeError, "got xs, h"),
        (([1.0],), {}, TypeError, "xs: expected an array of float32, got list"),
        ((xs.astype(np.float64),), {}, TypeError, r"xs: expected float32, .*astype\(np.float32\)"),
        ((xs[:, :, :2],), {}, ValueError, r"xs: expected shape \(N, T, 3\), got \(2, 4, 2\)"),
        (
            (xs,), {"initial_h0": np.ones((3, 5), np.float32)}, ValueError,
            "Expand node 'Expand_.*': shape mismatch",
        ),
    ):  # fmt: skip
        with pytest.raises(kind, match=says):
            net.forward(*inputs, **named)
    with pytest.raises(RuntimeError, match="call forward first"):
        net.backward(xs)
    net.forward(xs)
    with pytest.raises(ValueError, match=r"dys: expected shape \(2, 4, 5\), got \(2, 4, 3\)"):
        net.backward(xs)
    assert isinstance(net, OnnxNet)


def test_an_input_that_is_a_weight():
    """Before IR version 4 every weight is an input of the graph too."""
    case = one_node(
        "RNN",
        {"hidden_size": 2},
        {"W": np.ones((1, 2, 3), np.float32), "R": np.ones((1, 2, 2), np.float32)},
        {"X": np.ones((4, 1, 3), np.float32)},
    )
    want = from_onnx(case).forward(np.ones((4, 1, 3), np.float32))[0]
    case.graph.input.extend(value_info(t.name, numpy_helper.to_array(t))
                            for t in case.graph.initializer)  # fmt: skip
    for version in (3, 8):
        case.ir_version = version
        net = from_onnx(case)
        assert net.inputs == ("X",)
        assert net.optional == {}
        np.testing.assert_array_equal(net.forward(np.ones((4, 1, 3), np.float32))[0], want)


# ---- what is refused


def lstm_model(attributes=None, weights=None, inputs=None, op="LSTM", G=4):
    given = {
        "W": np.ones((1, G * 5, 3), np.float32),
        "R": np.ones((1, G * 5, 5), np.float32),
        "B": np.ones((1, 2 * G * 5), np.float32),
        **(weights or {}),
    }
    inputs = inputs or {"X": np.ones((4, 2, 3), np.float32)}
    return one_node(op, {"hidden_size": 5, **(attributes or {})}, given, inputs)


def changed(change):
    model = lstm_model()
    change(model)
    return model


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def branch(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(
        helper.make_node("If", ["X"], ["z"], then_branch=body, else_branch=body)
    )


def more(*nodes, **weights):
    """The LSTM, and nodes behind it."""

    def change(model):
        model.graph.node.extend(nodes)
        del model.graph.output[:]
        output = nodes[-1].output[0]
        model.graph.output.append(helper.make_tensor_value_info(output, 1, [None] * 4))
        for name, array in weights.items():
            model.graph.initializer.append(numpy_helper.from_array(array, name))

    return changed(change)


def from_nothing(*nodes):
    """Nodes that read a, 2^22 zeros, and a row of 32 numbers."""
    zero = helper.make_tensor("zero", onnx.TensorProto.INT64, [1], [0])
    many = node("ConstantOfShape", ["s"], ["a"], value=zero)
    return more(
        many, *nodes, s=np.array([2**22]), row=np.ones((1, 32), np.int64), one=np.array([1])
    )


MUCH = ValueError, "node 'z.*': expected constant folding to create at most 67108864 numbers"


def old(opset):
    def change(model):
        model.opset_import[0].version = opset

    return changed(change)


node = helper.make_node
REFUSED = {
    # what no node here computes
    "unknown op": (lambda: more(node("Erf", ["Y"], ["z"])), ConversionError, "others: 1 Erf; only"),
    "many of them": (
        lambda: more(*(node(op, ["Y"], [f"z{k}"]) for k, op in enumerate(["Erf", "Abs", "Erf"]))),
        ConversionError,
        r"expected nodes of the kinds Add, .*Unsqueeze, got others: 2 Erf, 1 Abs; only=\"recurr",
    ),
    "control flow": (lambda: changed(branch), ConversionError, "others: 1 If; only"),
    "other domain": (
        lambda: more(node("Attention", ["Y"], ["z"], domain="com.microsoft")),
        ConversionError,
        "others: 1 com.microsoft.Attention; only",
    ),
    "functions": (
        lambda: changed(lambda m: m.functions.append(
            helper.make_function("own", "f", ["x"], ["y"], [], m.opset_import))),
        ConversionError,
        "functions are not supported, got 'f'",
    ),
    "old opset": (lambda: old(6), ConversionError, "opset 7 to .*, got 6"),
    "new opset": (lambda: old(999), ConversionError, "opset 7 to .*, got 999"),
    "a weight added": (
        lambda: more(node("Add", ["Y", "b"], ["z"]), b=np.ones(5, np.float32)),
        ConversionError,
        "Add node 'z': expected a MatMul right before it",
    ),
    "training dropout": (
        lambda: more(node("Dropout", ["Y", "", "yes"], ["z"]), yes=np.array(True)),
        ConversionError,
        "training_mode: expected a constant False",
    ),
    "an input left out": (
        lambda: more(node("Concat", ["Y", "", "Y"], ["z"], axis=0)),
        ConversionError,
        "Concat node 'z': expected all its inputs",
    ),
    "no weights": (
        lambda: model_of([node("Relu", ["X"], ["Y"])], {"X": np.ones(3, np.float32)}, {}, {"Y": 1}),
        ConversionError,
        "got others: 1 Relu; only",
    ),
    "only glue": (
        lambda: model_of(
            [node("Identity", ["X"], ["Y"])], {"X": np.ones(3, np.float32)}, {}, {"Y": 1}
        ),
        ConversionError,
        "expected nodes with weights, RNN or others, got Identity",
    ),
    # attributes
    "activation": (
        lambda: lstm_model({"activations": ["Sigmoid", "Gelu", "Tanh"]}),
        ConversionError,
        "LSTM node 'it': activations: expected 'Relu' or .* got 'Gelu'",
    ),
    "too few": (
        lambda: lstm_model({"activations": ["Sigmoid", "Tanh"]}),
        ValueError,
        "activations: expected 3",
    ),
    "no alpha": (
        lambda: lstm_model({"activations": ["Affine", "Tanh", "Tanh"]}),
        ConversionError,
        "activation_alpha: expected a number for Affine, got none",
    ),
    "no alpha of an RNN": (
        lambda: lstm_model({"activations": ["LeakyRelu"]}, op="RNN", G=1),
        ConversionError,
        "activation_alpha: expected a number for LeakyRelu",
    ),
    "alpha of one of two": (
        lambda: one_node(
            "RNN",
            {
                "direction": "bidirectional", "activations": ["Tanh", "Elu"],
                "activation_alpha": [1.0],
            },
            {"W": np.ones((2, 5, 3), np.float32), "R": np.ones((2, 5, 5), np.float32)},
            {"X": np.ones((4, 2, 3), np.float32)},
        ),
        ConversionError,
        "functions that all take it, or none, got Tanh, Elu",
    ),
    "alpha too many": (
        lambda: lstm_model({"activation_alpha": [0.1]}), ConversionError, r"take, got \[0.1.* more"
    ),
    "alpha NaN": (
        lambda: lstm_model({
            "activations": ["Elu", "Tanh", "Tanh"], "activation_alpha": [float("nan")]}),
        ConversionError,
        "expected finite numbers, got nan",
    ),
    "small relu": (
        lambda: lstm_model({"activations": ["relu"]}, op="RNN", G=1), ConversionError, "got 'relu'"
    ),
    "direction": (lambda: lstm_model({"direction": "up"}), ConversionError, "'bidirectional', got"),
    "layout": (lambda: lstm_model({"layout": 2}), ConversionError,
        "layout: expected 0 or 1, got 2"),
    "clip": (lambda: lstm_model({"clip": -1.0}), ConversionError,
        "clip: expected a number above 0"),
    "clip NaN": (lambda: lstm_model({"clip": float("nan")}), ConversionError, "clip: expected a"),
    "input_forget": (lambda: lstm_model({"input_forget": 3}), ConversionError, "0 or 1, got 3"),
    "hidden_size": (lambda: lstm_model({"hidden_size": 6}), ConversionError, "expected 5, got 6"),
    "unknown attribute": (lambda: lstm_model({"fast": 1}), ValueError, "Unrecognized attribute"),
    # weights
    "half": (
        lambda: lstm_model({}, {"W": np.ones((1, 20, 3), np.float16)}),
        ConversionError,
        "initializer 'W': expected one of float32, .* got FLOAT16",
    ),
    "integers": (
        lambda: lstm_model({}, {"W": np.ones((1, 20, 3), np.int64)}),
        ConversionError,
        "input W: expected float32 or float64, got int64",
    ),
    "two dtypes": (
        lambda: lstm_model({}, {"B": np.ones((1, 40))}), ConversionError, "weights of float32, got"
    ),
    "external": (
        lambda: changed(external), ConversionError, "tensor 'W': expected its numbers in the file"
    ),
    "W": (
        lambda: lstm_model({}, {"W": np.ones((1, 19, 3), np.float32)}),
        ValueError,
        r"LSTM node 'it': input W: expected shape \(1, 20, 3\), got \(1, 19, 3\)",
    ),
    "R": (
        lambda: lstm_model({}, {"R": np.ones((1, 15, 5), np.float32)}),
        ValueError,
        r"input R: expected shape \(1, 20, 5\), got \(1, 15, 5\)",
    ),
    "directions": (
        lambda: lstm_model({"direction": "bidirectional"}),
        ValueError,
        r"input R: expected shape \(2, G H, H\), got \(1, 20, 5\)",
    ),
    "B": (
        lambda: lstm_model({}, {"B": np.ones((1, 20), np.float32)}),
        ValueError,
        r"input B: expected shape \(1, 40\), got \(1, 20\)",
    ),
    "P": (
        lambda: lstm_model({}, {"P": np.ones((1, 20), np.float32)}), ValueError, r"shape \(1, 15\)"
    ),
    "a weight that is an input": (
        lambda: lstm_model(
            {}, {}, {"X": np.ones((4, 2, 3), np.float32), "P": np.ones((1, 15), np.float32)}
        ),
        ConversionError,
        r"input P \('P'\): expected its numbers in the file, or passed as weights={'P': ...}",
    ),
    "sizes that do not fit": (
        lambda: lstm_model({}, {"W": np.ones((1, 20, 7), np.float32)}),
        ValueError,
        r"input W: expected shape \(1, 20, 3\), got \(1, 20, 7\)",
    ),
    "numbers missing": (
        lambda: changed(lambda m: m.graph.initializer[0].dims.append(3)), ValueError, "name: W"
    ),
    # what would take all memory
    "a shape too large": (
        lambda: more(
            node("ConstantOfShape", ["s"], ["big"]), node("Add", ["Y", "big"], ["z"]),
            s=np.array([2**20, 2**20])),
        ValueError,
        "ConstantOfShape node 'big': expected a shape of at most",
    ),
    "too much joined": (lambda: from_nothing(node("Concat", ["a"] * 20, ["z"], axis=0)), *MUCH),
    "too many rows": (lambda: from_nothing(node("Gather", ["row", "a"], ["z"])), *MUCH),
    "too large a sum": (
        lambda: from_nothing(node("Unsqueeze", ["a", "one"], ["b"]),
                             node("Add", ["b", "row"], ["z"])),
        *MUCH,
    ),
    "too much of all": (
        lambda: from_nothing(*[node("Identity", ["a"], [f"z{k}"]) for k in range(20)]), *MUCH
    ),
    "no output": (
        lambda: changed(lambda m: m.graph.ClearField("output")), ValueError, "outputs of the graph"
    ),
    "no file": (lambda: "", TypeError, "expected a path, bytes or an onnx.ModelProto"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read(what):
    make, kind, says = REFUSED[what]
    with pytest.raises(kind, match=says):
        from_onnx(make() or 3)


def test_weights_that_are_given():
    model = lstm_model()
    X = np.ones((4, 2, 3), np.float32)
    with pytest.raises(ValueError, match="weights: expected inputs of the graph, X, got 'W'"):
        from_onnx(model, {"W": X})
    with pytest.raises(ValueError, match=r"weights\['X'\]: expected shape \(4, 2, 3\)"):
        from_onnx(model, {"X": X[0]})
    with pytest.raises(TypeError, match=r"weights\['X'\]: expected an array of float32, got list"):
        from_onnx(model, {"X": [1.0]})


def test_files_that_are_not_whole(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx([TimeLSTM.create(3, 5, rng=0), TimeAffine.create(5, 2)], path, states=True)
    whole = path.read_bytes()
    for end in range(0, len(whole), 17):
        with pytest.raises(ValueError, match="source: "):
            from_onnx(whole[:end])
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"model\.onnx is not a complete ONNX model"):
        from_onnx(path)
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "none.onnx")


def test_bytes_that_are_wrong():
    """A changed byte may be a changed weight; everything else is refused."""
    whole = bytearray(to_onnx(TimeGRU.create(2, 3, rng=0), states=True).SerializeToString())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        for only in (None, "recurrent"):
            try:
                from_onnx(bytes(data), only=only)
            except ValueError:
                refused += 1
    assert refused > 200
    with pytest.raises(ValueError, match="source: 50 bytes is not a complete ONNX model"):
        from_onnx(rng.bytes(50))
