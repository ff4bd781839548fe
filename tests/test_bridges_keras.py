"""Weights from Keras and to it: there and back the outputs are the same. Keras is the oracle."""

import os
import unittest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import relative_error, run_python
from numba_rnn import (
    Bidirectional,
    Reversed,
    Stacked,
    TimeGRU,
    TimeLSTM,
    TimeProjectedLSTM,
    TimeRNN,
    time_layer,
)
from numba_rnn.bridges import ConversionError, from_keras, to_keras

os.environ["KERAS_BACKEND"] = "torch"
import keras
from keras.src.layers.rnn import bidirectional_test, gru_test, lstm_test, simple_rnn_test

layers = keras.layers
KINDS = {
    "tanh": (layers.SimpleRNN, {}),
    "relu": (layers.SimpleRNN, {"activation": "relu"}),
    "lstm": (layers.LSTM, {}),
    "gru": (layers.GRU, {"reset_after": False}),
    "gru_reset_after": (layers.GRU, {"reset_after": True}),
}
CELLS = {"tanh": "rnn", "relu": "rnn_relu"}  # where it is not the kind's name
LIMIT = 2e-6
# the others' products Keras makes in float32 on PyTorch, whatever is asked for
IN_FLOAT64 = {"lstm", "gru_reset_after"}


def limit(dtype, *kinds):
    return 1e-13 if dtype == "float64" and IN_FLOAT64.issuperset(kinds) else LIMIT


def made(kind, H, **options):
    """A layer, not built."""
    layer, own = KINDS[kind]
    return layer(H, **{"return_sequences": True, **own, **options})


def filled(layer, D=None, seed=0, batch=None):
    """With random weights, biases too."""
    if D is not None:
        layer.build((batch, None, D))
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.uniform(-0.6, 0.6, w.shape) for w in layer.weights])
    return layer


def numbers(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def outputs(layer, xs, **options):
    """The outputs of a layer, as NumPy arrays."""
    found = layer(xs, **options)
    found = found if isinstance(found, (tuple, list)) else [found]
    return [array.detach().numpy() for array in found]


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(list(KINDS)),
    N=st.integers(1, 4),
    T=st.integers(1, 6),
    D=st.integers(1, 7),
    H=st.integers(1, 19),
    both=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_there_and_back(kind, N, T, D, H, both, bias, dtype, seed):
    peer = made(kind, H, use_bias=bias, dtype=dtype, return_state=True)
    if both:
        peer = layers.Bidirectional(peer, dtype=dtype)
    filled(peer, D, seed)
    layer = from_keras(peer)
    xs = numbers(N, T, D, dtype=dtype, seed=seed)
    want, *want_states = outputs(peer, xs)
    got = layer.forward(xs)
    assert got.dtype == want.dtype == dtype
    assert relative_error(got, want) < limit(dtype, kind)
    states = [s for own in layer.state for s in own] if both else layer.state
    for ours, theirs in zip(states, want_states, strict=True):
        assert relative_error(ours, theirs) < limit(dtype, kind)
    one = layer.forward_layer if both else layer
    assert one.cell.name == CELLS.get(kind, kind)
    back = to_keras(layer)
    assert type(back) is type(peer)
    assert relative_error(outputs(back, xs)[0], want) < limit(dtype, kind)
    if bias:
        for ours, theirs in zip(back.weights, peer.weights, strict=True):
            assert ours.dtype == theirs.dtype
            assert (ours.value == theirs.value).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stacks(dtype):
    model = keras.Sequential([
        keras.Input((None, 3), dtype=dtype),
        made("lstm", 4, dtype=dtype),
        layers.Dropout(0.25, dtype=dtype),
        layers.Bidirectional(
            made("gru", 5, dtype=dtype),
            backward_layer=made("relu", 5, go_backwards=True, dtype=dtype),
            dtype=dtype,
        ),
        layers.Dropout(0.25, dtype=dtype),
        made("tanh", 3, dtype=dtype),
    ])  # fmt: skip
    filled(model)
    xs = numbers(2, 6, 3, dtype=dtype)
    (want,) = outputs(model, xs)
    for source in (model, model.layers, tuple(model.layers)):
        stack = from_keras(source)
        assert [dropout.ratio for dropout in stack.dropouts] == [0.25, 0.25]
        assert not stack.train_flg
        assert relative_error(stack.forward(xs), want) < LIMIT
    back = to_keras(stack)
    assert [type(layer) for layer in back.layers] == [type(layer) for layer in model.layers]
    assert back.layers[1].rate == 0.25
    assert relative_error(outputs(back, xs)[0], want) < LIMIT
    plain = to_keras(Stacked(stack.layers))
    assert len(plain.layers) == 3
    assert isinstance(from_keras([model.layers[0]]), TimeLSTM)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
def test_what_a_mask_leaves_out_is_0_in_both(kind, both):
    cell = CELLS.get(kind, kind)
    layer = Bidirectional.create(3, 5, layer=cell, rng=1) if both else time_layer(cell).create(3, 5)
    xs, mask = numbers(2, 6, 3), np.array([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1]], bool)
    (want,) = outputs(to_keras(layer), xs, mask=mask)
    assert relative_error(layer.forward(xs, mask=mask), want) < LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_return_sequences_false_is_the_state(kind):
    xs = numbers(2, 6, 3)
    peer = filled(made(kind, 5, return_sequences=False), 3)
    layer = from_keras(peer)
    layer.forward(xs)
    assert relative_error(layer.h, outputs(peer, xs)[0]) < LIMIT
    peer = filled(layers.Bidirectional(made(kind, 5, return_sequences=False)), 3)
    layer = from_keras(peer)
    layer.forward(xs)
    got = np.concatenate([layer.forward_layer.h, layer.backward_layer.h], axis=1)
    assert relative_error(got, outputs(peer, xs)[0]) < LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_stateful_layers_comes_along(kind):
    xs = numbers(2, 3, 3)
    peer = filled(made(kind, 5, stateful=True), 3, batch=2)
    assert from_keras(peer).state is None
    outputs(peer, xs)
    layer = from_keras(peer)
    assert layer.stateful
    back = to_keras(layer)
    assert back.stateful
    (want,) = outputs(peer, xs)
    for got in (layer.forward(xs), *outputs(back, xs)):
        assert relative_error(got, want) < LIMIT
    layer.reset_state()
    back.reset_state()
    fresh = to_keras(layer, batch_size=2)
    want = layer.forward(xs)
    for model in (back, fresh):
        assert relative_error(outputs(model, xs)[0], want) < LIMIT


def test_a_stack_with_states():
    xs = numbers(2, 3, 3)
    stack = Stacked.create(3, 4, stateful=True, rng=0)
    stack.forward(xs)
    model = to_keras(stack)
    again = from_keras(model)
    want = stack.forward(xs)
    assert relative_error(again.forward(xs), want) < LIMIT
    assert relative_error(outputs(model, xs)[0], want) < LIMIT
    with pytest.raises(ValueError, match="batch_size: expected 2, as the state has, got 3"):
        to_keras(stack, batch_size=3)
    stack.reset_state()
    with pytest.raises(ValueError, match=r"batch_size: expected the number of rows .* got None"):
        to_keras(stack)


def test_dropout_comes_along_where_all_gates_share_it():
    layer = from_keras(filled(made("lstm", 5, dropout=0.25), 3))
    assert layer.regularisers.input_dropout == 0.25
    assert to_keras(layer).dropout == 0.25
    assert not layer.train_flg
    assert (
        relative_error(
            layer.forward(numbers(2, 3, 3)), outputs(to_keras(layer), numbers(2, 3, 3))[0]
        )
        < LIMIT
    )
    layer = from_keras(filled(made("tanh", 5, dropout=0.25, recurrent_dropout=0.5), 3))
    assert (layer.regularisers.input_dropout, layer.regularisers.recurrent_dropout) == (0.25, 0.5)
    back = to_keras(layer)
    assert (back.dropout, back.recurrent_dropout) == (0.25, 0.5)
    assert from_keras(filled(made("lstm", 5), 3)).regularisers is None
    peer = filled(made("gru", 5, recurrent_dropout=0.5), 3)
    peer.cell.recurrent_dropout = 0.0  # what the error below says
    assert from_keras(peer).regularisers is None


def test_arrays_are_their_own():
    peer = filled(made("gru_reset_after", 5), 3)
    layer = from_keras(peer)
    before = [param.copy() for param in layer.params]
    peer.set_weights([np.full(w.shape, 7.0) for w in peer.weights])
    for param, want in zip(layer.params, before, strict=True):
        np.testing.assert_array_equal(param, want)


# ---- what is refused


def squash(x):
    return x


@pytest.mark.parametrize("merge_mode", ["sum", "mul", "ave", "concat"])
@pytest.mark.parametrize("kind", ["lstm", "relu"])
def test_outputs_are_merged(kind, merge_mode):
    peer = filled(layers.Bidirectional(made(kind, 5), merge_mode=merge_mode), 3)
    layer, xs = from_keras(peer), numbers(2, 6, 3)
    want = outputs(peer, xs)[0]
    assert relative_error(layer.forward(xs), want) < LIMIT
    back = to_keras(layer)
    assert back.merge_mode == merge_mode
    assert relative_error(outputs(back, xs)[0], want) < LIMIT


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_go_backwards(kind, stateful):
    peer = filled(
        made(kind, 5, go_backwards=True, stateful=stateful), 3, batch=2 if stateful else None
    )
    layer = from_keras(peer)
    assert isinstance(layer, Reversed)
    back = to_keras(layer, batch_size=2)
    for seed in range(2):
        xs = numbers(2, 6, 3, seed=seed)
        want = outputs(peer, xs)[0]
        assert relative_error(layer.forward(xs), want) < LIMIT
        assert relative_error(outputs(back, xs)[0], want) < LIMIT
    mask = np.array([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1]], bool)
    if not stateful:
        (want,) = outputs(back, xs, mask=mask)
        assert relative_error(layer.forward(xs, mask=mask), want) < LIMIT
    pile = from_keras(keras.Sequential([keras.Input((None, 3)), peer, filled(made("gru", 4), 5)]))
    assert [type(part) for part in pile.layers] == [Reversed, TimeGRU]


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_are_stateful(kind):
    peer = filled(layers.Bidirectional(made(kind, 5, stateful=True)), 3, batch=2)
    first, second, third = (numbers(2, 6, 3, seed=seed) for seed in range(3))
    outputs(peer, first)
    layer = from_keras(peer)
    want = outputs(peer, second)[0]
    assert relative_error(layer.forward(second), want) < LIMIT
    back = to_keras(layer)
    want = outputs(peer, third)[0]
    assert relative_error(outputs(back, third)[0], want) < LIMIT
    assert relative_error(layer.forward(third), want) < LIMIT
    layer.reset_state()
    assert relative_error(layer.forward(third), want) > 1e-3


class Mine(layers.LSTM):
    """One that may compute anything."""


class Pile(keras.Sequential):
    """Likewise."""


def both_of(kind="lstm", **options):
    own = {name: options.pop(name) for name in ("stateful", "go_backwards") if name in options}
    return layers.Bidirectional(made(kind, 5, **own), **options)


def a_cell():
    return layers.RNN(layers.LSTMCell(5))


NOT_HERE = {
    "activation": (
        lambda: made("lstm", 5, activation="relu"),
        "activation 'relu', here it is tanh",
    ),
    "sigmoid rnn": (lambda: made("tanh", 5, activation="sigmoid"), "'sigmoid', .* tanh or relu"),
    "own activation": (lambda: made("gru", 5, activation=squash), "activation {.*squash.*}, here"),
    "gates": (
        lambda: made("gru", 5, recurrent_activation="hard_sigmoid"),
        "recurrent_activation 'hard_sigmoid', here it is sigmoid",
    ),
    "the other way": (
        lambda: layers.Bidirectional(
            made("lstm", 5, go_backwards=True), backward_layer=made("lstm", 5)
        ),
        "go_backwards=True in .*the first layer reads forwards",
    ),
    "both": (lambda: both_of(merge_mode=None), "merge_mode None, two outputs; .* np.split"),
    "subclass": (lambda: Mine(5), "Mine, which may compute something else"),
    "cell": (a_cell, "RNN, which may compute something else"),
    "convolution": (
        lambda: layers.ConvLSTM1D(5, 1),
        "ConvLSTM1D, which may compute something else",
    ),
    "half": (lambda: made("lstm", 5, dtype="mixed_float16"), "in float16 with weights in float32"),
    "wrapped": (
        lambda: layers.Bidirectional(made("lstm", 5, dtype="float64")),
        "computes in float32 with weights in float64",
    ),
    "gate dropout": (
        lambda: made("lstm", 5, recurrent_dropout=0.1),
        "dropout mask for each gate .* set layer.cell.dropout and",
    ),
    "implementation": (lambda: made("gru", 5, dropout=0.1, implementation=1), "for each gate"),
}


@pytest.mark.parametrize("what", NOT_HERE)
def test_what_computes_something_else_is_refused(what):
    make, says = NOT_HERE[what]
    layer = make()
    layer.build((2, None, 3) if what != "convolution" else (2, None, 4, 3))
    with pytest.raises(ConversionError, match=f"source: .*{says}"):
        from_keras(layer)


def sequence(*parts):
    return lambda: [filled(p, 3) if isinstance(p, layers.RNN) else p for p in parts]


def narrow(dtype):
    return filled(made("lstm", 5, dtype=dtype, recurrent_initializer="zeros"), 3)


WRONG = {
    "unbuilt": (lambda: made("lstm", 5), ValueError, r"built layer, .* layer.build\(\(None, None"),
    "unbuilt model": (
        lambda: keras.Sequential([made("lstm", 5)]),
        ValueError,
        "expected a built layer, got lstm",
    ),
    "number": (lambda: 3, TypeError, "expected Keras' SimpleRNN, .* got int"),
    "dense": (lambda: layers.Dense(3), TypeError, "got Dense"),
    "in it": (
        lambda: keras.Sequential([keras.Input((None, 3)), layers.LSTM(3), layers.Dense(3)]),
        TypeError,
        r"got Dense; Dense is TimeAffine\(\*dense\.get_weights\(\)\): from_keras converts rec",
    ),
    "masking": (
        lambda: keras.Sequential([keras.Input((None, 3)), layers.Masking(), made("lstm", 3)]),
        TypeError,
        "got Masking",
    ),
    "nested": (lambda: [keras.Sequential()], TypeError, "got another Sequential"),
    "model": (lambda: Pile(), ConversionError, "got Pile, which may compute something else"),
    "nothing": (list, ValueError, "expected recurrent layers, got none"),
    "dropout alone": (lambda: layers.Dropout(0.1), ConversionError, "each Dropout after a layer"),
    "dropout first": (
        sequence(layers.Dropout(0.1), made("lstm", 3)), ConversionError,
        "each Dropout after a layer",
    ),
    "dropout last": (
        sequence(made("lstm", 3), layers.Dropout(0.1)), ConversionError,
        "no Dropout above the last",
    ),
    "dropout twice": (
        sequence(made("lstm", 3), layers.Dropout(0.1), layers.Dropout(0.1)),
        ConversionError,
        "each Dropout after a layer",
    ),
    "rates": (
        sequence(made("lstm", 3), layers.Dropout(0.1), made("gru", 3), made("lstm", 3)),
        ConversionError,
        r"the same dropout rate between all layers, got 0\.1, 0\.0",
    ),
    "noise": (
        sequence(made("lstm", 3), layers.Dropout(0.1, noise_shape=(None, 1, None))),
        ConversionError,
        "has a noise_shape",
    ),
    "last alone": (
        sequence(made("lstm", 3, return_sequences=False), made("lstm", 3)),
        ValueError,
        "return_sequences=True below the last layer",
    ),
    "float16": (lambda: narrow("float16"), TypeError, "kernel: .* got float16"),
    "bfloat16": (lambda: narrow("bfloat16"), TypeError, "kernel: .* got .*bfloat16"),
    "sizes": (sequence(made("lstm", 4), made("lstm", 4)), ValueError, "a layer of 4 inputs"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_recurrent_layer_is_refused(what):
    make, error, says = WRONG[what]
    with pytest.raises(error, match=says):
        from_keras(make())


def regularised(layer, **rates):
    return lambda: layer.create(3, 5).regularise(**rates)


NO_KERAS = {
    "residual": (lambda: Stacked.create(5, 5, residual=True), "no residual connections"),
    "own cell": (lambda: TimeProjectedLSTM.create(3, 5, proj_size=2), "no cell 'lstm_projected'"),
    "initial": (lambda: TimeLSTM.create(3, 5).learn_initial_state(), "no learnt initial state"),
    "zoneout": (regularised(TimeGRU, zoneout=0.1), "no zoneout"),
    "weight drop": (regularised(TimeRNN, weight_drop=0.1), "no weight_drop"),
    "recurrent dropout": (regularised(TimeLSTM, recurrent_dropout=0.1), "no recurrent_dropout"),
    "sizes": (
        lambda: Bidirectional(TimeLSTM.create(3, 5), TimeGRU.create(3, 4)),
        "both directions of one size, .* got 5 and 4",
    ),
    "stateful": (
        lambda: Bidirectional.create(3, 5, stateful=True), "stateful Bidirectional of Keras",
    ),
    "turned": (lambda: Reversed(TimeLSTM.create(3, 5)), "in_reading_order=True, got False"),
}  # fmt: skip


@pytest.mark.parametrize("what", NO_KERAS)
def test_what_keras_has_not_is_refused(what):
    make, says = NO_KERAS[what]
    with pytest.raises(ConversionError, match=f"layer: .*{says}"):
        to_keras(make(), batch_size=2)


def test_what_is_no_layer_is_refused():
    with pytest.raises(TypeError, match=r"layer: expected a TimeRecurrent, .* got int"):
        to_keras(3)
    with pytest.raises(ValueError, match="batch_size: "):
        to_keras(TimeLSTM.create(3, 5), batch_size=0)


def test_on_jax():
    run_python(
        """
        import keras
        import numpy as np

        from numba_rnn import Bidirectional, Stacked, use_backend
        from numba_rnn.bridges import from_keras, to_keras

        kinds = "rnn", "rnn_relu", "lstm", "gru", "gru_reset_after"
        stack = Stacked([
            Bidirectional.create(3 if k == 0 else 10, 5, layer=kind, rng=k)
            for k, kind in enumerate(kinds)
        ])
        xs = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
        model = to_keras(stack)
        with use_backend("numpy"):
            want = stack.forward(xs)
            np.testing.assert_array_equal(from_keras(model).forward(xs), want)
        np.testing.assert_allclose(model(xs), want, rtol=0, atol=2e-6 * abs(want).max())
        try:
            to_keras(Stacked.create(3, 5, dtype=np.float64))
        except ValueError as error:
            assert "expected float32, got float64, which jax under Keras" in str(error), error
        else:
            raise AssertionError
        """,
        {"KERAS_BACKEND": "jax"},
    )


@pytest.mark.parametrize("kind", ["tanh", "lstm", "gru"])
def test_what_a_config_does_not_say_is_named(kind, monkeypatch):
    layer = filled(made(kind, 5), 3)
    config = layer.get_config()
    for key in ("go_backwards", "dropout", *(("reset_after",) if kind == "gru" else ())):
        less = {name: value for name, value in config.items() if name != key}
        monkeypatch.setattr(layer, "get_config", lambda less=less: less)
        with pytest.raises(
            ValueError, match=f"source: expected {key} in the config of {layer.name}"
        ):
            from_keras(layer)


# ---- Keras' own tests, with the numbers that they expect


def theirs_and_ours(monkeypatch):
    """From now on every call of a recurrent layer of Keras is compared; a list of how it went."""
    found, call = [], keras.layers.Layer.__call__

    def compared(layer, sequence, *args, initial_state=None, mask=None, **options):
        same = isinstance(layer, (layers.SimpleRNN, layers.LSTM, layers.GRU, layers.Bidirectional))
        if not same or args or options or (found and found[-1] is None):  # within another's call
            more = {"initial_state": initial_state, "mask": mask}
            more = {name: value for name, value in more.items() if value is not None}
            return call(layer, sequence, *args, **more, **options)
        if not layer.built:
            layer.build(sequence.shape)
        try:
            ours = from_keras(layer)  # with the state that it has before the call
        except ConversionError as why:
            ours = why
        found.append(None)
        more = {} if initial_state is None else {"initial_state": initial_state}
        want = call(layer, sequence, mask=mask, **more)
        found[-1] = str(ours)
        if isinstance(ours, ConversionError):
            return want
        if initial_state is not None:
            parts = getattr(ours, "recurrent", (ours,))
            count = len(parts[0].cell.states)
            states = initial_state if isinstance(initial_state, list) else [initial_state]
            for k, part in enumerate(parts):
                part.set_state(*map(np.asarray, states[k * count : (k + 1) * count]))
        hs = ours.forward(np.asarray(sequence), mask=mask)
        outputs = want[0] if isinstance(want, (list, tuple)) else want
        outputs = keras.ops.convert_to_numpy(outputs)
        if not getattr(layer, "forward_layer", layer).return_sequences:
            parts = getattr(ours, "recurrent", (ours,))
            hs = MERGED[getattr(ours, "merge", "concat")]([part.state[0] for part in parts])
        elif mask is not None:  # else where Keras repeats what was before
            hs, outputs = hs[mask], outputs[mask]
        np.testing.assert_allclose(hs, outputs, rtol=1e-5, atol=1e-6)
        return want

    monkeypatch.setattr(keras.layers.Layer, "__call__", compared)
    return found


MERGED = {
    "concat": lambda states: np.concatenate(states, axis=1),
    "sum": sum,
    "mul": lambda states: states[0] * states[1],
    "mean": lambda states: sum(states) / 2,
}
NUMBERS = [
    (module, case, name)
    for module in (simple_rnn_test, lstm_test, gru_test, bidirectional_test)
    for case in [next(n for n in vars(module) if n.endswith("Test"))]
    for name in dir(getattr(module, case))
    if name.startswith(
        ("test_correctness", "test_statefulness", "test_pass_initial_state", "test_masking")
    )
]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of tensors, where Keras compares
@pytest.mark.parametrize(("module", "case", "name"), NUMBERS)
def test_numbers_of_keras_own_tests(module, case, name, monkeypatch):
    found, result = theirs_and_ours(monkeypatch), unittest.TestResult()
    getattr(module, case)(name).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.failures + result.errors
    assert any(what.startswith(("Time", "Bidirectional")) for what in found)


def test_there_are_numbers_of_keras():
    assert len(NUMBERS) >= 15
