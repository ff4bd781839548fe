"""Weights from PyTorch and to it: there and back the outputs are the same. torch is the oracle."""

import math
import re

import numpy as np
import pytest
import torch
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
    cell,
    time_layer,
)
from numba_rnn.bridges import ConversionError, from_torch, save_torch, to_torch, torch_state_dict
from numba_rnn.functions import tanh
from numba_rnn.training import save_checkpoint

# torch says so where proj_size is set
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

KINDS = {
    "tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (torch.nn.LSTM, {}),
    "projected": (torch.nn.LSTM, {"proj_size": 2}),
    "gru": (torch.nn.GRU, {}),
}
LIMITS = {torch.float32: 2e-6, torch.float64: 1e-13}


def made(kind, D, H, layers=1, seed=0, **options):
    module, own = KINDS[kind]
    torch.manual_seed(seed)
    return module(D, H, layers, batch_first=True, **{**own, **options})


def outputs(module, xs):
    with torch.no_grad():
        out, state = module(torch.from_numpy(xs))
    return out.numpy(), [s.numpy() for s in (state if isinstance(state, tuple) else (state,))]


def states(layer):
    """h and c of all layers and directions, as torch has them: (layers * directions, N, H)."""
    parts = layer.recurrent if isinstance(layer, (Stacked, Bidirectional)) else (layer,)
    return [np.stack(one) for one in zip(*(part.state for part in parts), strict=True)]


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(list(KINDS)),
    N=st.integers(1, 4),
    T=st.integers(1, 6),
    D=st.integers(1, 7),
    H=st.integers(3, 19),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(list(LIMITS)),
    seed=st.integers(0, 99),
)
def test_there_and_back(kind, N, T, D, H, layers, bidirectional, bias, dtype, seed):
    module = made(kind, D, H, layers, seed, bidirectional=bidirectional, bias=bias, dtype=dtype)
    layer = from_torch(module)
    xs = np.random.default_rng(seed).standard_normal((N, T, D))
    xs = xs.astype(np.float32 if dtype == torch.float32 else np.float64)
    want, want_states = outputs(module, xs)
    got = layer.forward(xs)
    assert got.dtype == xs.dtype
    assert relative_error(got, want) < LIMITS[dtype]
    for ours, theirs in zip(states(layer), want_states, strict=True):
        assert relative_error(ours, theirs) < LIMITS[dtype]
    back = to_torch(layer)
    assert type(back) is type(module)
    assert (back.mode, back.num_layers, back.proj_size) == (
        module.mode, module.num_layers, module.proj_size,
    )  # fmt: skip
    assert relative_error(outputs(back, xs)[0], want) < LIMITS[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_and_a_file_say_the_same_as_the_module(kind, tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(11, 3)
            self.rnn = made(kind, 3, 5, 2, bidirectional=True)

    model = Model()
    activation = "relu" if kind == "relu" else None
    xs = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(np.float32)
    want = from_torch(model.rnn).forward(xs)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)
    for source in (model.state_dict(), arrays, path, str(path)):
        for prefix in (None, "rnn.", "rnn"):
            layer = from_torch(source, prefix=prefix, activation=activation)
            np.testing.assert_array_equal(layer.forward(xs), want)
    save_torch(from_torch(model.rnn), path)
    np.testing.assert_array_equal(from_torch(path, activation=activation).forward(xs), want)


@pytest.mark.parametrize(
    ("cell", "layer"),
    [
        (torch.nn.LSTMCell(3, 5), TimeLSTM),
        (torch.nn.GRUCell(3, 5), TimeGRU),
        (torch.nn.RNNCell(3, 5, nonlinearity="relu"), TimeRNN),
    ],
)
def test_cells(cell, layer):
    x = torch.ones(2, 3)
    got = from_torch(cell)
    assert type(got) is layer
    with torch.no_grad():
        state = cell(x)
    want = state[0] if isinstance(state, tuple) else state
    assert relative_error(got.forward(np.ones((2, 1, 3), np.float32))[:, 0], want.numpy()) < 2e-6


def test_what_a_module_says_is_kept():
    module = made("lstm", 3, 5, 3, dropout=0.25)
    stack = from_torch(module)
    assert [d.ratio for d in stack.dropouts] == [0.25, 0.25]
    assert to_torch(stack).dropout == 0.25
    assert to_torch(stack, batch_first=False).batch_first is False
    layer = from_torch(made("gru", 3, 5))
    module.weight_ih_l0.data.fill_(math.nan)
    assert np.isfinite(stack.params[0]).all()  # arrays of its own
    assert layer.cell.name == "gru_reset_after"


@pytest.mark.parametrize("training", [True, False])
def test_dropout_runs_as_it_does_in_the_module(training):
    module = made("lstm", 3, 8, 2, dropout=0.5).train(training)
    stack = from_torch(module)
    assert stack.train_flg is to_torch(stack).training is training
    xs = np.ones((2, 5, 3), np.float32)
    near = relative_error(stack.forward(xs), outputs(module.eval(), xs)[0]) < 2e-6
    assert near is not training
    assert from_torch(module.state_dict()).train_flg is False


def residual():
    return Stacked.create(5, 5, residual=True)


def another_rnn():
    """A cell with the name of one that torch has."""

    @cell(name="rnn")
    def rnn(a, h):
        return tanh(2 * a)

    return rnn


NO_TORCH = {
    "reset gate": (lambda: TimeGRU.create(3, 5), r"\(r \* h\) Wh, and no weights make"),
    "residual": (residual, "no residual connections"),
    "own cell": (lambda: time_layer("mgu").create(3, 5), "no cell 'mgu'"),
    "initial": (lambda: TimeLSTM.create(3, 5).learn_initial_state(), "no learnt initial state"),
    "zoneout": (lambda: TimeLSTM.create(3, 5).regularise(zoneout=0.1), "no zoneout in this layer"),
    "weight drop": (
        lambda: Bidirectional.create(3, 5).regularise(weight_drop=0.1),
        r"no weight_drop in this layer; layer\.regularise\(\) switches it off",
    ),
    "another rnn": (lambda: time_layer(another_rnn()).create(3, 5), "no cell 'rnn'"),
    "sizes": (
        lambda: Stacked([TimeLSTM.create(3, 5), TimeLSTM.create(5, 4)]),
        "one cell, size and direction .* got LSTM 4, LSTM 5",
    ),
    "cells": (
        lambda: Stacked([TimeLSTM.create(3, 5), TimeRNN.create(5, 5)]),
        "one cell, .* got LSTM 5, RNN 5",
    ),
    "directions": (
        lambda: Bidirectional(TimeLSTM.create(3, 5), TimeRNN.create(3, 5)),
        "one cell, .* got LSTM 5, RNN 5",
    ),
}


@pytest.mark.parametrize("what", NO_TORCH)
@pytest.mark.parametrize("convert", [to_torch, torch_state_dict])
def test_what_torch_has_not_is_refused(what, convert):
    make, says = NO_TORCH[what]
    with pytest.raises(ConversionError, match=says):
        convert(make())


def test_what_is_pytorchs_is_told_where_it_goes(tmp_path):
    layer = TimeLSTM.create(3, 4, rng=0)
    with pytest.raises(
        TypeError, match=r"^xs: .* got Tensor; xs\.detach\(\)\.numpy\(\) converts it"
    ):
        layer.forward(torch.ones(2, 5, 3))
    theirs = made("lstm", 3, 4)
    weights = [theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_ih_l0]
    with pytest.raises(ValueError, match=r"Wx: expected shape \(16, 64\), got .*PyTorch's are tra"):
        TimeLSTM(*(weight.detach().numpy() for weight in weights))
    for D in (4, 15):  # Wx fits both ways, or one way: b alone is wrong
        with pytest.raises(ValueError, match="b: expected shape") as caught:
            TimeRNN(np.ones((D, 4)), np.ones((4, 4)), np.ones(5))
        assert "PyTorch" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"existing folder, got .*none for .*x\.safe"):
        save_torch(layer, tmp_path / "none" / "x.safetensors")


def test_nothing_is_written_of_what_is_refused(tmp_path):
    with pytest.raises(ConversionError):
        save_torch(TimeGRU.create(3, 5), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_module_in_a_larger_one_says_the_same():
    inside = torch.nn.ModuleDict({"a": made("relu", 3, 5, 2, dropout=0.25), "b": made("gru", 3, 5)})
    model = torch.nn.ModuleDict({"encoder": inside})
    xs = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    stack = from_torch(model, prefix="encoder.a.")
    assert stack.dropouts[0].ratio == 0.25
    stack.train_flg = False
    want = outputs(inside["a"].eval(), xs)[0]
    assert relative_error(stack.forward(xs), want) < LIMITS[torch.float32]


def state_dict(**changes):
    arrays = {name: t.numpy() for name, t in made("lstm", 3, 5, 2).state_dict().items()}
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


WRONG = {
    "half": (lambda: made("lstm", 3, 5).half(), TypeError, "weight_ih_l0: .* got float16"),
    "bfloat16": (
        lambda: made("gru", 3, 5).bfloat16(),
        TypeError,
        "weight_ih_l0: .* got .*bfloat16",
    ),
    "no numbers": (
        lambda: torch.nn.LSTM(3, 5, device="meta"),
        TypeError,
        "weight_ih_l0: .* got a tensor on the meta device, .*load_state_dict",
    ),
    "number": (lambda: 3, TypeError, "source: expected a torch module, .* got int"),
    "no rnn": (
        lambda: torch.nn.Linear(3, 5),
        ValueError,
        r"source: expected an RNN, LSTM or GRU, got weight, bias; .* TimeAffine\(W\.T, b\) and",
    ),
    "two rnns": (
        lambda: torch.nn.ModuleList([made("lstm", 3, 5), made("gru", 3, 5)]),
        ValueError,
        r"prefix: expected one of 2 recurrent modules, got None: prefix='0\.' or prefix='1\.'",
    ),
    "gates": (
        lambda: {"weight_ih_l0": np.ones((10, 3)), "weight_hh_l0": np.ones((10, 5))},
        ValueError,
        r"with G 1, 3 or 4, got \(10, 3\) and \(10, 5\)",
    ),
    "missing": (lambda: state_dict(weight_ih_l1=None), ValueError, "got no weight_ih_l1$"),
    "layers": (
        lambda: state_dict(**{f"weight_{k}_l1": None for k in ("ih", "hh")}, bias_ih_l1=None),
        ValueError,
        "got no weight_hh_l1, weight_ih_l1",
    ),
    "one direction": (
        lambda: state_dict(weight_ih_l0_reverse=np.ones((20, 3), np.float32)),
        ValueError,
        "both directions in all layers or in none, see _l1",
    ),
    "transposed": (
        lambda: state_dict(weight_ih_l0=np.ones((3, 20), np.float32)),
        ValueError,
        r"expected weight_ih_l0 \(G H, D\)",
    ),
    "one bias": (lambda: state_dict(bias_hh_l1=None), ValueError, "or neither, got one of them"),
    "no units": (
        lambda: {"weight_ih_l0": np.ones((0, 3)), "weight_hh_l0": np.ones((0, 0))},
        ValueError,
        "weight_hh_l0: .* no size 0",
    ),
    "no axes": (
        lambda: {"weight_ih_l0": np.ones((4, 3)), "weight_hh_l0": np.array(1.0)},
        ValueError,
        r"weight_hh_l0: expected shape \(rows, columns\)",
    ),
    "projected gru": (
        lambda: {name: np.ones((6, 2)) for name in ("weight_ih", "weight_hh", "weight_hr")},
        ValueError,
        "weight_hr_l0 only in an LSTM, got one in gru",
    ),
    "bias": (
        lambda: state_dict(bias_ih_l0=np.ones(19, np.float32)),
        ValueError,
        r"bias_ih_l0: expected shape \(20,\), got \(19,\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_recurrent_module_is_refused(what):
    make, error, says = WRONG[what]
    with pytest.raises(error, match=says):
        from_torch(make())


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_torch(TimeLSTM.create(3, 5), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(
        ValueError, match=re.escape(str(path)) + " is not a complete safetensors file"
    ):
        from_torch(path)
    with pytest.raises(FileNotFoundError):
        from_torch(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"the pickle .*model\.pt, whose loading can run code"):
        from_torch(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected a safetensors file, got the folder"):
        from_torch(tmp_path)
    save_checkpoint(path, {"weight_hh_l0": np.ones(3)}, {})
    with pytest.raises(ValueError, match=r"a checkpoint of numba_rnn; numba_rnn\.jobs\.load_model"):
        from_torch(path)
    with pytest.raises(ValueError, match="activation: expected one of"):
        from_torch(state_dict(), activation="sigmoid")
    with pytest.raises(ValueError, match=r"names that begin 'x\.', got ''"):
        from_torch(state_dict(), prefix="x.")
    for key in (3, None, ("weight_hh_l0",)):
        with pytest.raises(TypeError, match="source: expected names of weights, got the key "):
            from_torch({**state_dict(), key: np.ones(3)})


def test_files_with_numbers_that_numpy_has_not(tmp_path):
    from safetensors.torch import save_file

    path, weights = tmp_path / "model.safetensors", made("gru", 3, 5).state_dict()
    head = {"head.weight": torch.ones(2, dtype=torch.bfloat16)}
    save_file({f"rnn.{name}": w for name, w in weights.items()} | head, path)
    assert from_torch(path).cell.name == "gru_reset_after"  # the others are not looked at
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        save_file({name: w.to(dtype) for name, w in weights.items()}, path)
        with pytest.raises(TypeError, match=r"(weight|bias)_\w+: expected float32 or float64, got"):
            from_torch(path)


def test_without_torch_the_names_are_there(tmp_path):
    layer = TimeProjectedLSTM.create(3, 5, proj_size=2, rng=0)
    arrays = torch_state_dict(layer)
    assert {name: a.shape for name, a in arrays.items()} == {
        "weight_ih_l0": (20, 3), "weight_hh_l0": (20, 2), "weight_hr_l0": (2, 5),
        "bias_ih_l0": (20,), "bias_hh_l0": (20,),
    }  # fmt: skip
    made("projected", 3, 5).load_state_dict({k: torch.from_numpy(a) for k, a in arrays.items()})
