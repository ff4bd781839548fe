"""Weights from Flax and to it: there and back the outputs are the same. Flax is the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import relative_error
from numba_rnn import (
    Bidirectional,
    Stacked,
    TimeGRU,
    TimeLSTM,
    TimeProjectedLSTM,
    TimeRNN,
)
from numba_rnn.bridges import ConversionError, from_flax, to_flax

KINDS = {
    "lstm": (nnx.OptimizedLSTMCell, {}),
    "lstm, gate by gate": (nnx.LSTMCell, {}),
    "gru_reset_after": (nnx.GRUCell, {}),
    "rnn": (nnx.SimpleCell, {}),
    "rnn_relu": (nnx.SimpleCell, {"activation_fn": nnx.relu}),
}
LIMITS = {"float32": 2e-6, "float64": 1e-12}


def made(kind, D=3, H=5, seed=0, dtype="float32", compute=None, **options):
    """A cell with random weights, biases too."""
    cell, own = KINDS[kind]
    zeros = nnx.initializers.zeros_init()  # compiled once; orthogonal ones for every size
    own = {"kernel_init": zeros, "recurrent_kernel_init": zeros, "dtype": compute or dtype, **own}
    found = cell(D, H, param_dtype=dtype, rngs=nnx.Rngs(0), **{**own, **options})
    rng = np.random.default_rng(seed)
    for _, param in nnx.iter_graph(found):
        if isinstance(param, nnx.Param):
            param[...] = jnp.asarray(rng.uniform(-0.6, 0.6, param.shape), param.dtype)
    return found


def rnn(kind="lstm", *sizes, **options):
    return nnx.RNN(made(kind, *sizes, **options))


def both_of(kind="lstm", D=3, H=5, **options):
    return nnx.Bidirectional(rnn(kind, D, H), rnn(kind, D, H, seed=1), **options)


def numbers(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def steps(cell, xs):
    """The outputs of a cell, step by step: JAX compiles a scan anew for every cell and size."""
    zeros = jnp.zeros((len(xs), cell.hidden_features), xs.dtype)
    carry, hs = (zeros, zeros) if "LSTM" in type(cell).__name__ else zeros, []
    for x in xs.swapaxes(0, 1):
        carry, h = cell(carry, x)
        hs.append(h)
    return np.stack(hs, axis=1), carry[::-1] if isinstance(carry, tuple) else (carry,)  # h, c


@settings(deadline=None, max_examples=10)
@given(
    kind=st.sampled_from(list(KINDS)),
    N=st.integers(1, 4),
    T=st.integers(1, 6),
    D=st.integers(1, 7),
    H=st.integers(1, 19),
    dtype=st.sampled_from(list(LIMITS)),
    seed=st.integers(0, 99),
)
def test_there_and_back(kind, N, T, D, H, dtype, seed):
    with jax.enable_x64(dtype == "float64"):
        cell, xs = made(kind, D, H, seed, dtype), numbers(N, T, D, dtype=dtype, seed=seed)
        want, states = steps(cell, xs)
        layer = from_flax(cell)
        got = layer.forward(xs)
        assert got.dtype == want.dtype == dtype
        assert relative_error(got, want) < LIMITS[dtype]
        for ours, theirs in zip(layer.state, states, strict=True):
            assert relative_error(ours, theirs) < LIMITS[dtype]
        assert layer.cell.name == kind.split(",")[0]
        back = to_flax(layer)
        assert type(back) is nnx.RNN
        assert relative_error(steps(back.cell, xs)[0], want) < LIMITS[dtype]
        for ours, theirs in zip(from_flax(back).params, layer.params, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_stacks_of_both_directions():
    source = [
        nnx.Bidirectional(rnn("lstm", 3, 4), rnn("rnn", 3, 2)),
        nnx.Dropout(0.25, rngs=nnx.Rngs(0)),
        rnn("gru_reset_after", 6, 5),
        nnx.Dropout(0.25, rngs=nnx.Rngs(1)),
        nnx.Bidirectional(rnn("rnn_relu", 5, 3), rnn("lstm, gate by gate", 5, 3)),
    ]
    model, xs = nnx.Sequential(*source), numbers(2, 6, 3)
    model.eval()
    want = model(xs)
    for given_as in (model, source, tuple(source)):
        stack = from_flax(given_as)
        assert [dropout.ratio for dropout in stack.dropouts] == [0.25, 0.25]
        assert not stack.train_flg  # model.eval() reached the modules
        assert relative_error(stack.forward(xs), want) < LIMITS["float32"]
    back = to_flax(stack, rngs=nnx.Rngs(3))
    assert [type(part) for part in back.layers] == [type(part) for part in source]
    assert back.layers[1].rate == 0.25
    assert relative_error(back(xs), want) < LIMITS["float32"]
    back.train()
    assert from_flax(back).train_flg
    stack.train_flg = True
    assert not to_flax(stack).layers[1].deterministic
    assert len(to_flax(Stacked(stack.layers)).layers) == 3


def test_cells_alone_in_both_directions():
    ahead, back = made("rnn"), made("gru_reset_after", seed=1)
    layer, xs = from_flax(nnx.Bidirectional(ahead, back)), numbers(2, 4, 3)
    want = [steps(ahead, xs)[0], steps(back, xs[:, ::-1])[0][:, ::-1]]
    assert relative_error(layer.forward(xs), np.concatenate(want, axis=2)) < LIMITS["float32"]


@pytest.mark.parametrize("kind", ["lstm", "gru_reset_after"])
def test_a_carry_is_a_state(kind):
    peer, xs = rnn(kind), numbers(2, 4, 3)
    first = tuple(numbers(2, 5, seed=seed) for seed in range(2 if kind.startswith("lstm") else 1))
    layer = from_flax(peer)
    layer.set_state(*first)
    want = peer(xs, initial_carry=first[::-1] if len(first) == 2 else first[0])
    assert relative_error(layer.forward(xs), want) < LIMITS["float32"]


def test_biases_of_a_gru_add_up():
    layer = TimeGRU.create(3, 5, reset_after=True, rng=0)
    b = layer.params[2]
    b += numbers(2, 15)
    b[1, -5:] = 0
    xs = numbers(2, 4, 3)
    assert relative_error(layer.forward(xs), to_flax(layer)(xs)) < LIMITS["float32"]
    b[1, -1] = 1e-3
    with pytest.raises(
        ConversionError, match=r"no bias to h Wh in its candidate, .* b\[1\] is not 0"
    ):
        to_flax(layer)


# ---- what is refused


class Mine(nnx.OptimizedLSTMCell):
    """One that may compute anything."""


class MyRNN(nnx.RNN):
    """Likewise."""


def my_tanh(x):
    return jnp.tanh(x)


def shared():
    one = rnn()
    return nnx.Bidirectional(one, one)


def with_lora():
    cell = made("lstm")
    cell.dense_h = nnx.LoRALinear(5, 20, lora_rank=2, rngs=nnx.Rngs(0))
    return cell


def later(carry_init):
    with pytest.warns(UserWarning, match="carry_init"):
        return made("lstm", carry_init=carry_init)


NOT_HERE = {
    "activation": (lambda: made("lstm", activation_fn=nnx.relu), "activation_fn relu, .* nnx.tanh"),
    "own": (lambda: made("gru_reset_after", activation_fn=my_tanh), "activation_fn my_tanh"),
    "of rnn": (lambda: made("rnn", activation_fn=nnx.gelu), r"gelu, .* nnx\.tanh or nnx\.relu"),
    "gates": (lambda: rnn("lstm", gate_fn=nnx.hard_sigmoid), "gate_fn hard_sigmoid, here it is"),
    "residual": (lambda: rnn("rnn", residual=True), "residual=True, which adds h"),
    "carry": (lambda: later(nnx.initializers.ones), "its own carry_init"),
    "reverse": (lambda: nnx.RNN(made("lstm"), reverse=True), "reverse=True; here only"),
    "merge": (lambda: both_of(merge_fn=jnp.add), "its own merge_fn"),
    "shared": (shared, "one cell for both directions"),
    "dtype": (lambda: made("lstm", compute="float16"), "computes in float16 with .* in float32"),
    "subclass": (lambda: Mine(3, 5, rngs=nnx.Rngs(0)), "Mine, which may compute something else"),
    "subclass of RNN": (lambda: MyRNN(made("lstm")), "MyRNN, which may compute something else"),
    "convolution": (
        lambda: nnx.RNN(nnx.Bidirectional(rnn(), rnn())),
        "Bidirectional, which may compute something else",
    ),
    "lora": (with_lora, "a LoRALinear for dense_h, here it is nnx.Linear"),
    "dropout first": (lambda: [nnx.Dropout(0.1), rnn()], "each Dropout after a layer"),
    "dropout last": (lambda: [rnn(), nnx.Dropout(0.1)], "no Dropout above the last layer"),
    "broadcast": (
        lambda: [rnn(), nnx.Dropout(0.1, broadcast_dims=(1,)), rnn("rnn", 5, 5)],
        "broadcast_dims; here",
    ),
    "rates": (
        lambda: [rnn(), nnx.Dropout(0.1), rnn("rnn", 5, 5), rnn("rnn", 5, 5)],
        r"the same dropout rate between all layers, got 0\.1, 0\.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_HERE)
def test_what_computes_something_else_is_refused(what):
    make, says = NOT_HERE[what]
    with pytest.raises(ConversionError, match=f"source: .*{says}"):
        from_flax(make())


WRONG = {
    "number": (lambda: 3, TypeError, "expected OptimizedLSTMCell, .* got int"),
    "linear": (lambda: nnx.Linear(3, 3, rngs=nnx.Rngs(0)), TypeError, "got Linear"),
    "nested": (lambda: [nnx.Sequential(rnn())], TypeError, "got Sequential"),
    "nothing": (list, ValueError, "expected recurrent layers, got none"),
    "float16": (
        lambda: made("rnn", dtype="float16"), TypeError, r"dense_i\.kernel: .* got float16",
    ),
    "bfloat16": (lambda: made("lstm", dtype="bfloat16"), TypeError, "got bfloat16"),
    "sizes": (lambda: [rnn(), rnn()], ValueError, "a layer of 5 inputs"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda cell: setattr(cell, "dtype", "x"), "expected a dtype of SimpleCell, got 'x'"),
        (
            lambda cell: setattr(cell.dense_i, "kernel", nnx.Param(3)),
            r"dense_i\.kernel: expected an",
        ),
        (
            lambda cell: vars(cell.dense_h).update(kernel=3),
            r"dense_h\.kernel: expected an nnx.Param",
        ),
    ],
)
def test_damaged_modules_are_refused_by_name(change, says):
    cell = nnx.SimpleCell(3, 5, rngs=nnx.Rngs(0))
    change(cell)
    with pytest.raises(TypeError, match=says):
        from_flax(cell)


def test_weights_that_are_not_there_are_named():
    cell = nnx.SimpleCell(3, 5, rngs=nnx.Rngs(0))
    vars(cell.dense_i)["bias"] = None
    with pytest.raises(ValueError, match="source: expected a bias in SimpleCell, got none"):
        from_flax(cell)
    vars(cell.dense_h)["kernel"] = None
    with pytest.raises(TypeError, match=r"dense_h\.kernel: expected an nnx\.Param, got None"):
        from_flax(cell)


def test_gates_of_an_lstm_that_differ_are_named():
    for key, value in (("kernel", nnx.Param(np.ones((4, 5), np.float32))), ("bias", None)):
        cell = nnx.LSTMCell(3, 5, rngs=nnx.Rngs(0))
        vars(cell.hf)[key] = value
        with pytest.raises(ValueError, match="source: expected gates of one shape in LSTMCell"):
            from_flax(cell)


def test_damaged_stacks_are_refused_by_name():
    dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(0))
    dropout.rate = "x"
    with pytest.raises(TypeError, match=r"rate of nnx\.Dropout: expected a number, got 'x'"):
        from_flax([rnn(), dropout, rnn()])
    stack = nnx.Sequential(rnn())
    vars(stack)["layers"] = 3
    with pytest.raises(TypeError, match=r"source: expected layers in nnx\.Sequential, got 3"):
        from_flax(stack)


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_recurrent_module_is_refused(what):
    make, error, says = WRONG[what]
    with pytest.raises(error, match=says):
        from_flax(make())


NO_FLAX = {
    "reset gate": (lambda: TimeGRU.create(3, 5), r"\(r \* h\) Wh, and no weights make"),
    "residual": (lambda: Stacked.create(5, 5, residual=True), "no residual connections"),
    "own cell": (lambda: TimeProjectedLSTM.create(3, 5, proj_size=2), "no cell 'lstm_projected'"),
    "initial": (lambda: TimeLSTM.create(3, 5).learn_initial_state(), "no learnt initial state"),
    "zoneout": (lambda: TimeRNN.create(3, 5).regularise(zoneout=0.1), "no zoneout"),
    "dropout": (
        lambda: Bidirectional.create(3, 5).regularise(input_dropout=0.1), "no input_dropout",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NO_FLAX)
def test_what_flax_has_not_is_refused(what):
    make, says = NO_FLAX[what]
    with pytest.raises(ConversionError, match=f"layer: .*{says}"):
        to_flax(make())


def test_what_is_no_layer_and_float64_where_there_is_none_are_refused():
    with pytest.raises(TypeError, match=r"layer: expected a TimeRecurrent, .* got int"):
        to_flax(3)
    with pytest.raises(ValueError, match=r"got float64, which JAX has switched off; jax\.config"):
        to_flax(TimeLSTM.create(3, 5, dtype=np.float64))
