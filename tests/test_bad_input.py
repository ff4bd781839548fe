"""Wrong arguments are refused by name: which argument, what was expected, what came.

A row of the table: what is done, the call, the exception, and patterns that its message contains.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import numba_rnn as rnn
from helpers import Array
from numba_rnn import training
from numba_rnn.models import Rnnlm

N, T, D, H = 2, 4, 3, 5
Row = tuple[str, Callable[[], Any], type[Exception], tuple[str, ...]]


def row(doing: str, call: Callable[[], Any], error: type[Exception], *patterns: str) -> Row:
    return doing, call, error, patterns


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


def with_nan(*shape: int) -> Array:
    array = zeros(*shape)
    array.flat[-1] = np.nan
    return array


def after_forward(layer: Any, *inputs: Array) -> Any:
    layer.forward(*inputs)
    return layer


# ---- the recurrent layers, and all alike

XS, STATE, OUT = r"\(N, T, 3\)", r"\(2, 5\)", r"\(2, 4, 5\)"


def unrolled_rows(name: str, make: Callable[..., Any], out: int) -> list[Row]:
    """A layer over time of sizes (D, H) whose output has ``out`` numbers a step."""

    def layer(**options: Any) -> Any:
        return make(D, H, rng=0, **options)

    def forward(xs: Any) -> Callable[[], Any]:
        return lambda: layer().forward(xs)

    def backward(dhs: Any) -> Callable[[], Any]:
        return lambda: after_forward(layer(), zeros(N, T, D)).backward(dhs)

    def other_batch() -> None:
        after_forward(layer(stateful=True), zeros(N, T, D)).forward(zeros(N + 1, T, D))

    shape = rf"\(2, 4, {out}\)"
    rows = [
        row("xs a list", forward([[[0.0]]]), TypeError, "^xs", XS, "list"),
        row("xs None", forward(None), TypeError, "^xs", XS, "NoneType"),
        row("xs with two axes", forward(zeros(N, D)), ValueError, "^xs", XS, r"\(2, 3\)"),
        row("xs of another D", forward(zeros(N, T, 4)), ValueError, "^xs", XS, r"\(2, 4, 4\)"),
        row("no steps", forward(zeros(N, 0, D)), ValueError, "^xs", "size 0 but N",
            r"\(2, 0, 3\)"),
        row("no rows of no steps", forward(zeros(0, 0, D)), ValueError, "^xs", "size 0 but N",
            r"\(0, 0, 3\)"),
        row(
            "float64 for float32", forward(zeros(N, T, D, dtype=np.float64)),
            TypeError, "^xs", "float32", "float64", r"xs\.astype\(np\.float32\)",
        ),
        row("integers", forward(zeros(N, T, D, dtype=int)), TypeError, "^xs", "float32", "int64"),
        row("backward first", lambda: layer().backward(zeros(N, T, out)), RuntimeError,
            "backward", "call forward first"),
        row("dhs of another T", backward(zeros(N, T + 1, out)), ValueError, "^dhs", shape,
            rf"\(2, 5, {out}\)"),
        row("dhs with two axes", backward(zeros(N, out)), ValueError, "^dhs", shape),
        row("dhs of float64", backward(zeros(N, T, out, dtype=np.float64)), TypeError, "^dhs",
            "float32", "float64"),
        row("dhs a number", backward(1.0), TypeError, "^dhs", shape, "float"),
        row("another batch", other_batch, ValueError, "^xs", "batch of 2", "got 3", "reset_state"),
        row("input size 0", lambda: make(0, H), ValueError, "^input_size", "at least 1", "got 0"),
        row("hidden size -1", lambda: make(D, -1), ValueError, "^hidden_size", "1", "got -1"),
        row("input size 3.0", lambda: make(3.0, H), TypeError, "^input_size", "whole", r"3\.0"),
        row("hidden size True", lambda: make(D, True), TypeError, "^hidden_size", "whole", "True"),
        row("unknown init", lambda: layer(init="xavier"), ValueError, "^init", "orthogonal, book",
            "'xavier'"),
        row("half precision", lambda: layer(dtype=np.float16), TypeError, "^dtype",
            "float32 or float64", "float16"),
        row("no dtype", lambda: layer(dtype=None), TypeError, "^dtype", "float32 or float64",
            "None"),
        row("no such dtype", lambda: layer(dtype="real"), TypeError, "^dtype", "'real'"),
        row("rng a name", lambda: make(D, H, rng="lucky"), TypeError, "^rng", "seed", "'lucky'"),
        row("rng -1", lambda: make(D, H, rng=-1), ValueError, "^rng", "seed", "-1"),
    ]  # fmt: skip
    rows += steps_rows(lambda **steps: layer().forward(zeros(N, T, D), **steps))
    return [(f"{name}: {doing}", *rest) for doing, *rest in rows]


def steps_rows(forward: Callable[..., Any]) -> list[Row]:
    """lengths, mask and resets of a forward over (N, T)."""
    flags = zeros(N, T, dtype=bool)

    def given(**steps: Any) -> Callable[[], Any]:
        return lambda: forward(**steps)

    return [
        row("lengths 5 of 4", given(lengths=np.array([4, 5])), ValueError, "^lengths", "0 to 4",
            r"got 5 at \(1,\)"),
        row("lengths -1", given(lengths=np.array([-1, 4])), ValueError, "^lengths", "0 to 4",
            "got -1"),
        row("lengths of floats", given(lengths=zeros(N)), TypeError, "^lengths", "integer",
            "float32"),
        row("three lengths", given(lengths=[1, 2, 3]), ValueError, "^lengths", r"\(2,\)",
            r"\(3,\)"),
        row("lengths and a mask", given(lengths=[1, 2], mask=flags), TypeError, "^mask",
            "lengths or mask", "both"),
        row("a mask of floats", given(mask=zeros(N, T)), TypeError, "^mask", "booleans",
            r"\(2, 4\)", "float32"),
        row("a mask of another T", given(mask=zeros(N, T + 1, dtype=bool)), ValueError, "^mask",
            r"\(2, 4\)", r"\(2, 5\)"),
        row("resets of integers", given(resets=zeros(N, T, dtype=int)), TypeError, "^resets",
            "booleans", "int64"),
        row("resets for each row", given(resets=zeros(N, dtype=bool)), ValueError, "^resets",
            r"\(2, 4\)", r"\(2,\)"),
    ]  # fmt: skip


def time_lstm() -> Any:
    return rnn.TimeLSTM.create(D, H, rng=0)


def weights(columns: int = 4 * H, dtype: Any = np.float32) -> list[Array]:
    return [zeros(D, columns, dtype=dtype), zeros(H, columns, dtype=dtype), zeros(columns)]


def lstm_backward(*dstate: Any) -> Callable[[], Any]:
    return lambda: after_forward(time_lstm(), zeros(N, T, D)).backward(zeros(N, T, H), *dstate)


def set_state(*state: Any) -> Callable[[], Any]:
    return lambda: time_lstm().set_state(*state)


def state_then_forward() -> None:
    layer = time_lstm()
    layer.set_state(zeros(N, H))
    layer.forward(zeros(3, T, D))


RECURRENT = [
    *unrolled_rows("TimeRNN", rnn.TimeRNN.create, H),
    *unrolled_rows("TimeLSTM", rnn.TimeLSTM.create, H),
    *unrolled_rows("TimeGRU", rnn.TimeGRU.create, H),
    *unrolled_rows("TimeBiLSTM", rnn.TimeBiLSTM.create, 2 * H),
    *unrolled_rows("Stacked", rnn.Stacked.create, H),
    *unrolled_rows("TimeProjectedLSTM", partial(rnn.TimeProjectedLSTM.create, proj_size=2), 2),
    row("TimeLSTM: Wx a list", lambda: rnn.TimeLSTM([[0.0]], *weights()[1:]), TypeError, "^Wx",
        "array", "list"),
    row("TimeLSTM: Wx with one axis", lambda: rnn.TimeLSTM(zeros(3), *weights()[1:]), ValueError,
        "^Wx", r"\(D, columns\)", r"\(3,\)"),
    row("TimeLSTM: Wx of a GRU", lambda: rnn.TimeLSTM(zeros(D, 3 * H), *weights()[1:]), ValueError,
        "^Wx", r"\(3, 20\)", r"\(3, 15\)"),
    row("TimeLSTM: Wh of a GRU", lambda: rnn.TimeLSTM(zeros(D, 4 * H), *weights(3 * H)[1:]),
        ValueError, "^Wh", r"\(5, 20\)", r"\(5, 15\)"),
    row("TimeLSTM: b of two rows", lambda: rnn.TimeLSTM(*weights()[:2], zeros(2, 4 * H)),
        ValueError, "^b", r"\(20,\)", r"\(2, 20\)"),
    row("TimeLSTM: integer weights", lambda: rnn.TimeLSTM(*weights(dtype=int)), TypeError, "^Wx",
        "float32 or float64", "int64"),
    row("TimeLSTM: mixed dtypes", lambda: rnn.TimeLSTM(*weights(dtype=np.float64)), TypeError,
        "^b", "float64", "float32"),
    row("TimeLSTM: no units", lambda: rnn.TimeLSTM(zeros(D, 0), zeros(0, 0), zeros(0)), ValueError,
        "^Wx", "size 0", r"\(3, 0\)"),
    row("TimeGRU: one bias for reset_after",
        lambda: rnn.TimeGRU(*weights(3 * H), reset_after=True), ValueError, "^b", r"\(2, 15\)",
        r"\(15,\)"),
    row("TimeLSTM: set_state a list", set_state([[0.0]]), TypeError, "^h", r"5\)", "list"),
    row("TimeLSTM: set_state of another H", set_state(zeros(N, 4)), ValueError, "^h", r"\(2, 5\)",
        r"\(2, 4\)"),
    row("TimeLSTM: set_state with one axis", set_state(zeros(H)), ValueError, "^h", r"\(N, 5\)",
        r"\(5,\)"),
    row("TimeLSTM: set_state h with one axis", set_state(zeros(H), zeros(N, H)), ValueError, "^h",
        r"\(2, 5\)", r"\(5,\)"),
    row("TimeLSTM: set_state of float64", set_state(zeros(N, H, dtype=np.float64)), TypeError,
        "^h", "float32", "float64"),
    row("TimeLSTM: set_state h and c differ", set_state(zeros(N, H), zeros(3, H)), ValueError,
        "^c", r"\(2, 5\)", r"\(3, 5\)"),
    row("TimeLSTM: set_state of nothing", set_state(), TypeError, "^set_state", "h, c", "0"),
    row("TimeLSTM: set_state of three", set_state(*[zeros(N, H)] * 3), TypeError, "^set_state",
        "h, c", "3"),
    row("TimeLSTM: state of another batch", state_then_forward, ValueError, "^xs", "batch of 2",
        "got 3"),
    row("TimeLSTM: dh of another H", lstm_backward(zeros(N, 4)), ValueError, "^dh", r"\(2, 5\)",
        r"\(2, 4\)"),
    row("TimeLSTM: dc of another N", lstm_backward(None, zeros(3, H)), ValueError, "^dc",
        r"\(2, 5\)", r"\(3, 5\)"),
    row("TimeLSTM: dh of float64", lstm_backward(zeros(N, H, dtype=np.float64)), TypeError, "^dh",
        "float32", "float64"),
    row("TimeLSTM: three state gradients", lstm_backward(*[zeros(N, H)] * 3), TypeError,
        "^backward", "dh, dc", "3"),
    row("TimeRNN: unknown activation", lambda: rnn.TimeRNN.create(D, H, activation="gelu"),
        ValueError, "^activation", "tanh, relu", "'gelu'"),
    row("RNN: unknown activation", lambda: rnn.RNN(*weights(H), activation="gelu"), ValueError,
        "^activation", "tanh, relu", "'gelu'"),
    row("TimeRecurrent: unknown cell", lambda: rnn.TimeRecurrent.create(D, H, cell="mlp"),
        ValueError, "^cell", ", ".join(rnn.cells.names()), "'mlp'"),
    row("TimeRecurrent: a list for a cell", lambda: rnn.TimeRecurrent(*weights(), cell=["lstm"]),
        ValueError, "^cell", "lstm", r"\['lstm'\]"),
    row("TimeRecurrent: no cell", lambda: rnn.TimeRecurrent.create(D, H), TypeError, "^cell",
        "lstm", "none"),
    row("cells.get", lambda: rnn.cells.get("mlp"), ValueError, "^cell", "lstm", "'mlp'"),
]  # fmt: skip


# ---- one step


def lstm() -> Any:
    return rnn.LSTM.create(D, H, rng=0)


def stepped() -> Any:
    return after_forward(lstm(), zeros(N, D), zeros(N, H), zeros(N, H))


ONE_STEP = [
    row("LSTM: x with three axes", lambda: lstm().forward(zeros(N, T, D), zeros(N, H), zeros(N, H)),
        ValueError, "^x:", r"\(N, 3\)", r"\(2, 4, 3\)"),
    row("LSTM: h_prev of another N", lambda: lstm().forward(zeros(N, D), zeros(3, H), zeros(N, H)),
        ValueError, "^h_prev", STATE, r"\(3, 5\)"),
    row("LSTM: c_prev a list", lambda: lstm().forward(zeros(N, D), zeros(N, H), [0.0]),
        TypeError, "^c_prev", STATE, "list"),
    row("LSTM: c_prev None", lambda: lstm().forward(zeros(N, D), zeros(N, H), None),
        TypeError, "^c_prev", STATE, "NoneType"),
    row("LSTM: x of float64",
        lambda: lstm().forward(zeros(N, D, dtype=np.float64), zeros(N, H), zeros(N, H)),
        TypeError, "^x:", "float32", "float64"),
    row("LSTM: backward first", lambda: lstm().backward(zeros(N, H)), RuntimeError,
        "LSTM.backward", "call forward first"),
    row("LSTM: dh_next of another H", lambda: stepped().backward(zeros(N, 4)), ValueError,
        "^dh_next", STATE, r"\(2, 4\)"),
    row("LSTM: dc_next of float64",
        lambda: stepped().backward(zeros(N, H), zeros(N, H, dtype=np.float64)), TypeError,
        "^dc_next", "float32", "float64"),
    row("RNN: hidden size 0", lambda: rnn.RNN.create(D, 0), ValueError, "^hidden_size", "1", "0"),
    row("GRU: Wh of an LSTM", lambda: rnn.GRU(zeros(D, 3 * H), *weights()[1:]), ValueError, "^Wh",
        r"\(5, 15\)", r"\(5, 20\)"),
]  # fmt: skip


# ---- both directions


def bidirectional(**options: Any) -> Callable[[], Any]:
    sizes = {"input_size": D, "hidden_size": H, **options}
    return lambda: rnn.Bidirectional(time_lstm(), rnn.TimeLSTM.create(**sizes))


BIDIRECTIONAL = [
    row("Bidirectional: stateful", bidirectional(stateful=True), ValueError, "^backward_layer",
        "stateful=False", "stateful=True"),
    row("Bidirectional: another input size", bidirectional(input_size=4), ValueError,
        "^backward_layer", "input size 3", "got 4"),
    row("Bidirectional: another dtype", bidirectional(dtype=np.float64), TypeError,
        "^backward_layer", "float32", "float64"),
    row("Bidirectional: not a layer", lambda: rnn.Bidirectional(time_lstm(), None), TypeError,
        "^backward_layer", "TimeRecurrent", "None"),
    row("TimeBiLSTM: wrong second half",
        lambda: rnn.TimeBiLSTM(*weights(), *weights(3 * H)), ValueError, "^W[xh]", "20", "15"),
]  # fmt: skip


# ---- stacks, and states of several layers


def stack(**options: Any) -> Any:
    return rnn.Stacked.create(D, H, rng=0, **options)


def stack_of(*layers: Any) -> Callable[[], Any]:
    return lambda: rnn.Stacked(layers)


def above(**sizes: Any) -> Any:
    return rnn.TimeLSTM.create(**{"input_size": H, "hidden_size": H, **sizes})


def twice() -> Any:
    layer = rnn.TimeRNN.create(D, D)
    return rnn.Stacked([layer, layer])


def stack_backward(*dstate: Any) -> Callable[[], Any]:
    return lambda: after_forward(stack(), zeros(N, T, D)).backward(zeros(N, T, H), *dstate)


STACKED = [
    row("Stacked: no layers", stack_of(), TypeError, "^layers", "TimeRecurrent or Bidirectional",
        "got none"),
    row("Stacked: a layer alone", lambda: rnn.Stacked(None), TypeError, "^layers", "NoneType"),
    row("Stacked: an affine layer", lambda: rnn.Stacked([time_lstm(), affine()]), TypeError,
        "^layers", "TimeRecurrent or Bidirectional", "TimeLSTM, TimeAffine"),
    row("Stacked: a stack", lambda: rnn.Stacked([stack()]), TypeError, "^layers", "got Stacked"),
    row("Stacked: sizes", lambda: rnn.Stacked([time_lstm(), above(input_size=4)]), ValueError,
        "^layers", "5 inputs in float32", "D 4"),
    row("Stacked: dtypes", lambda: rnn.Stacked([time_lstm(), above(dtype=np.float64)]), ValueError,
        "^layers", "5 inputs in float32", "float64"),
    row("Stacked: one layer twice", twice, ValueError, "^layers", "each layer once", "again"),
    row("Stacked: dropout 1", lambda: stack(dropout=1), ValueError, "^dropout", "below 1", "got 1"),
    row("Stacked: dropout of one layer", lambda: stack(layers=1, dropout=-1), ValueError,
        "^dropout", "from 0", "got -1"),
    row("Stacked: layers 0", lambda: stack(layers=0), ValueError, "^layers", "at least 1", "got 0"),
    row("Stacked: layers 1.5", lambda: stack(layers=1.5), TypeError, "^layers", "whole", "1.5"),
    row("Stacked: unknown cell", lambda: stack(layer="mlp"), ValueError, "^cell", "lstm", "'mlp'"),
    row("Stacked: another class", lambda: stack(layer=rnn.TimeAffine), ValueError, "^cell", "lstm",
        "TimeAffine"),
    row("Stacked: one state too many", lambda: stack().set_state(None, None, None), TypeError,
        "^set_state", "each of 2 layers", "got 3"),
    row("Stacked: a state no tuple", lambda: stack().set_state(zeros(N, H)), TypeError,
        "^set_state", "tuple", "ndarray for layer 0"),
    row("Stacked: a state of another H", lambda: stack().set_state(None, (zeros(N, 4),)),
        ValueError, "^h", r"\(2, 5\)", r"\(2, 4\)"),
    row("Stacked: a gradient no tuple", stack_backward(None, zeros(N, H)), TypeError, "^backward",
        "tuple", "ndarray for layer 1"),
    row("Stacked: a gradient of another H", stack_backward(None, (zeros(N, 4),)), ValueError,
        "^dh", r"\(2, 5\)", r"\(2, 4\)"),
    row("Stacked: unknown rate", lambda: stack().regularise(zoneout={"d": 0.1}), ValueError,
        "^zoneout", "h, c", r"\['d'\]"),
    row("TimeBiLSTM: a state no tuple",
        lambda: rnn.TimeBiLSTM.create(D, H).set_state(zeros(N, H)), TypeError, "^set_state",
        "tuple", "ndarray for layer 0"),
]  # fmt: skip


# ---- the projection


def projected(P: int = 2, **other: Array) -> Callable[[], Any]:
    arrays = {"Wx": zeros(D, 4 * H), "Wh": zeros(P, 4 * H), "b": zeros(4 * H), "Wr": zeros(H, P)}
    return lambda: rnn.TimeProjectedLSTM(**{**arrays, **other})


def projected_backward(*dstate: Any) -> Callable[[], Any]:
    return lambda: after_forward(projected()(), zeros(N, T, D)).backward(zeros(N, T, 2), *dstate)


PROJECTED = [
    row("TimeProjectedLSTM: three gates", projected(Wx=zeros(D, 3 * H)), ValueError, "^Wx",
        r"\(D, 4H\)", r"\(3, 15\)"),
    row("TimeProjectedLSTM: Wr of another H", projected(Wr=zeros(4, 2)), ValueError, "^Wr",
        r"\(5, P\)", r"\(4, 2\)"),
    row("TimeProjectedLSTM: more outputs than units", projected(6), ValueError, "^Wr",
        "P at most H", r"\(5, 6\)"),
    row("TimeProjectedLSTM: Wh of another P", projected(Wh=zeros(3, 4 * H)), ValueError, "^Wh",
        r"\(2, 20\)", r"\(3, 20\)"),
    row("TimeProjectedLSTM: b of two rows", projected(b=zeros(2, 4 * H)), ValueError, "^b",
        r"\(20,\)", r"\(2, 20\)"),
    row("TimeProjectedLSTM: Wr of float64", projected(Wr=zeros(H, 2, dtype=np.float64)), TypeError,
        "^Wr", "float32", "float64"),
    row("TimeProjectedLSTM: proj_size 6 of 5",
        lambda: rnn.TimeProjectedLSTM.create(D, H, proj_size=6), ValueError, "^proj_size",
        "at most hidden_size, 5", "got 6"),
    row("TimeProjectedLSTM: no proj_size", lambda: rnn.TimeProjectedLSTM.create(D, H), TypeError,
        "^proj_size", "whole", "None"),
    row("TimeProjectedLSTM: set_state h of H", lambda: projected()().set_state(zeros(N, H)),
        ValueError, "^h", r"\(2, 2\)", r"\(2, 5\)"),
    row("TimeProjectedLSTM: set_state c of P",
        lambda: projected()().set_state(zeros(N, 2), zeros(N, 2)), ValueError, "^c", r"\(2, 5\)",
        r"\(2, 2\)"),
    row("TimeProjectedLSTM: dh of H", projected_backward(zeros(N, H)), ValueError, "^dh",
        r"\(2, 2\)", r"\(2, 5\)"),
]  # fmt: skip


# ---- layers without a state


def embed(ids: Any) -> Callable[[], Any]:
    return lambda: rnn.TimeEmbedding(zeros(7, D)).forward(ids)


def affine() -> Any:
    return rnn.TimeAffine(zeros(D, H), zeros(H))


def drop(xs: Any) -> Callable[[], Any]:
    return lambda: rnn.TimeDropout(0.5, rng=0).forward(xs)


IDS = r"\(N, T\)"

DENSE = [
    row("TimeEmbedding: too large", embed(np.array([[0, 7]])), ValueError, "^ids", "0 to 6",
        r"got 7 at \(0, 1\)"),
    row("TimeEmbedding: negative", embed(np.array([[0], [-1]])), ValueError, "^ids", "0 to 6",
        r"got -1 at \(1, 0\)"),
    row("TimeEmbedding: floats", embed(zeros(N, T)), TypeError, "^ids", "integer", IDS, "float32"),
    row("TimeEmbedding: booleans", embed(zeros(N, T, dtype=bool)), TypeError, "^ids", "integer",
        "bool"),
    row("TimeEmbedding: a list", embed([[0, 1]]), TypeError, "^ids", "integer", IDS, "list"),
    row("TimeEmbedding: one axis", embed(zeros(T, dtype=int)), ValueError, "^ids", IDS, r"\(4,\)"),
    row("TimeEmbedding: integer W", lambda: rnn.TimeEmbedding(zeros(7, D, dtype=int)), TypeError,
        "^W", "float32 or float64", "int64"),
    row("TimeEmbedding: W with one axis", lambda: rnn.TimeEmbedding(zeros(7)), ValueError, "^W",
        r"\(V, D\)", r"\(7,\)"),
    row("TimeEmbedding: no words", lambda: rnn.TimeEmbedding.create(0, D), ValueError,
        "^vocab_size", "at least 1", "0"),
    row("TimeEmbedding: size 2.5", lambda: rnn.TimeEmbedding.create(7, 2.5), TypeError, "^size",
        "whole", r"2\.5"),
    row("TimeEmbedding: backward first",
        lambda: rnn.TimeEmbedding(zeros(7, D)).backward(zeros(N, T, D)), RuntimeError,
        "TimeEmbedding.backward", "call forward first"),
    row("TimeEmbedding: dout of another D",
        lambda: after_forward(rnn.TimeEmbedding(zeros(7, D)), zeros(N, T, dtype=int)).backward(
            zeros(N, T, 4)), ValueError, "^dout", r"\(2, 4, 3\)", r"\(2, 4, 4\)"),
    row("TimeAffine: b of another size", lambda: rnn.TimeAffine(zeros(D, H), zeros(4)), ValueError,
        "^b", r"\(5,\)", r"\(4,\)"),
    row("TimeAffine: b of another dtype",
        lambda: rnn.TimeAffine(zeros(D, H), zeros(H, dtype=np.float64)), TypeError, "^b",
        "float32", "float64"),
    row("TimeAffine: output size -3", lambda: rnn.TimeAffine.create(D, -3), ValueError,
        "^output_size", "at least 1", "-3"),
    row("TimeAffine: xs with two axes", lambda: affine().forward(zeros(N, D)), ValueError, "^xs",
        XS, r"\(2, 3\)"),
    row("TimeAffine: xs of float64", lambda: affine().forward(zeros(N, T, D, dtype=np.float64)),
        TypeError, "^xs", "float32", "float64"),
    row("TimeAffine: no steps", lambda: affine().forward(zeros(N, 0, D)), ValueError, "^xs",
        "size 0", r"\(2, 0, 3\)"),
    row("TimeAffine: backward first", lambda: affine().backward(zeros(N, T, H)), RuntimeError,
        "TimeAffine.backward", "call forward first"),
    row("TimeAffine: dout of another M",
        lambda: after_forward(affine(), zeros(N, T, D)).backward(zeros(N, T, 4)), ValueError,
        "^dout", OUT, r"\(2, 4, 4\)"),
    row("TimeDropout: ratio 1", lambda: rnn.TimeDropout(1.0), ValueError, "^ratio",
        "from 0 and below 1", r"1\.0"),
    row("TimeDropout: ratio -0.1", lambda: rnn.TimeDropout(-0.1), ValueError, "^ratio",
        "from 0 and below 1", r"-0\.1"),
    row("TimeDropout: ratio NaN", lambda: rnn.TimeDropout(float("nan")), ValueError, "^ratio",
        "from 0 and below 1", "nan"),
    row("TimeDropout: ratio a string", lambda: rnn.TimeDropout("half"), TypeError, "^ratio",
        "number", "'half'"),
    row("TimeDropout: rng a string", lambda: rnn.TimeDropout(rng="lucky"), TypeError, "^rng",
        "seed", "'lucky'"),
    row("TimeDropout: a list", drop([0.0]), TypeError, "^xs", "array", "list"),
    row("TimeDropout: integers", drop(zeros(N, T, D, dtype=int)), TypeError, "^xs", "float",
        "int64"),
    row("TimeDropout: half precision", drop(zeros(N, T, D, dtype=np.float16)), TypeError, "^xs",
        "float32 or float64", "float16"),
    row("TimeDropout: dout of another shape",
        lambda: after_forward(rnn.TimeDropout(), zeros(N, T, D)).backward(zeros(N, T, H)),
        ValueError, "^dout", r"\(2, 4, 3\)", r"\(2, 4, 5\)"),
]  # fmt: skip


# ---- losses


def softmax(xs: Any, ts: Any) -> Callable[[], Any]:
    return lambda: rnn.TimeSoftmaxWithLoss().forward(xs, ts)


def label(value: Any, dtype: Any = int) -> Array:
    return np.full((N, T), value, dtype)


def regression_rows(make: type[Any]) -> list[Row]:
    """A loss whose targets have the shape and dtype of the outputs."""

    def forward(xs: Any, ts: Any) -> Callable[[], Any]:
        return lambda: make().forward(xs, ts)

    rows = [
        row("xs a list", forward([0.0], zeros(1)), TypeError, "^xs", "array", "list"),
        row("xs of integers", forward(label(0), label(0)), TypeError, "^xs", "float32 or float64",
            "int64"),
        row("no steps", forward(zeros(N, 0), zeros(N, 0)), ValueError, "^xs", "size 0",
            r"\(2, 0\)"),
        row("ts a list", forward(zeros(1), [0.0]), TypeError, "^ts", "array", "list"),
        row("ts of another shape", forward(zeros(N, T), zeros(N, 3)), ValueError, "^ts",
            r"\(2, 4\)", r"\(2, 3\)"),
        row("ts of float64", forward(zeros(N, T), zeros(N, T, dtype=np.float64)), TypeError, "^ts",
            "float32", "float64"),
        row("ts with NaN", forward(zeros(N, T), with_nan(N, T)), ValueError, "^ts", "finite",
            r"nan at \(1, 3\)"),
        row("backward first", lambda: make().backward(), RuntimeError, f"{make.__name__}.backward",
            "call forward first"),
        row("dout a string", lambda: after_forward(make(), zeros(N, T), zeros(N, T)).backward("1"),
            TypeError, "^dout", "number", "'1'"),
    ]  # fmt: skip
    return [(f"{make.__name__}: {doing}", *rest) for doing, *rest in rows]


LOSSES = [
    row("TimeSoftmaxWithLoss: label 6 of 6", softmax(zeros(N, T, 6), label(6)), ValueError, "^ts",
        "0 to 5 or -1", r"got 6 at \(0, 0\)"),
    row("TimeSoftmaxWithLoss: label -2", softmax(zeros(N, T, 6), label(-2)), ValueError, "^ts",
        "0 to 5 or -1", r"got -2 at \(0, 0\)"),
    row("TimeSoftmaxWithLoss: float labels", softmax(zeros(N, T, 6), label(0, np.float64)),
        TypeError, "^ts", "integer", r"\(2, 4\)", "float64"),
    row("TimeSoftmaxWithLoss: labels a list", softmax(zeros(1, 1, 6), [[0]]), TypeError, "^ts",
        "integer", "list"),
    row("TimeSoftmaxWithLoss: one label a row", softmax(zeros(N, T, 6), label(0)[:, 0]),
        ValueError, "^ts", r"\(2, 4\)", r"\(2,\)"),
    row("TimeSoftmaxWithLoss: xs with two axes", softmax(zeros(N, 6), label(0)), ValueError, "^xs",
        r"\(N, T, V\)", r"\(2, 6\)"),
    row("TimeSoftmaxWithLoss: integer scores", softmax(zeros(N, T, 6, dtype=int), label(0)),
        TypeError, "^xs", "float32 or float64", "int64"),
    row("TimeSoftmaxWithLoss: backward first", lambda: rnn.TimeSoftmaxWithLoss().backward(),
        RuntimeError, "TimeSoftmaxWithLoss.backward", "call forward first"),
    *regression_rows(rnn.TimeSigmoidWithLoss),
    *regression_rows(rnn.TimeMSE),
    row("TimeMSE: dout infinite",
        lambda: after_forward(rnn.TimeMSE(), zeros(N, T), zeros(N, T)).backward(-np.inf),
        ValueError, "^dout", "finite", "-inf"),
    row("TimeSigmoidWithLoss: target 1.5",
        lambda: rnn.TimeSigmoidWithLoss().forward(zeros(N, T), zeros(N, T) + 1.5), ValueError,
        "^ts", "0 to 1", r"1\.5"),
    row("TimeSigmoidWithLoss: target -1",
        lambda: rnn.TimeSigmoidWithLoss().forward(zeros(N, T), label(-1)), ValueError, "^ts",
        "0 to 1", "-1"),
]  # fmt: skip


# ---- the switch

NAMES = "auto, numpy, numba, cuda"

BACKEND = [
    row("use_backend: unknown", lambda: rnn.use_backend("gpu"), ValueError, "^use_backend", NAMES,
        "'gpu'"),
    row("use_backend: None", lambda: rnn.use_backend(None), ValueError, "^use_backend", NAMES,
        "None"),
    row("use_backend: a list", lambda: rnn.use_backend(["numpy"]), ValueError, "^use_backend",
        NAMES, r"\['numpy'\]"),
    row("use_backend: strict cuda", lambda: rnn.use_backend("cuda", strict=True), rnn.BackendError,
        "^use_backend", "cuda cannot run here", "CuPy|GPU"),
]  # fmt: skip


# ---- training and the language model


def bptt(corpus: Any, batch: Any = 2, time: Any = 3, **options: Any) -> Callable[[], Any]:
    return lambda: training.TruncatedBPTT(corpus, batch, time, **options)


def lm(**options: Any) -> Callable[[], Any]:
    return lambda: Rnnlm(**{"vocab_size": 7, "embed_size": 4, "hidden_size": 5, **options})


def fit(**options: Any) -> Callable[[], Any]:
    blocks = training.TruncatedBPTT(np.arange(50) % 7, 2, 3)
    return lambda: training.Trainer(lm()(), training.SGD(), blocks, **options)


IDS = np.arange(6).reshape(2, 3)

TRAINING = [
    row("SGD: lr 0", lambda: training.SGD(0), ValueError, "^lr", "above 0", "got 0"),
    row("Adam: lr NaN", lambda: training.Adam(np.nan), ValueError, "^lr", "finite", "nan"),
    row("Adam: lr text", lambda: training.Adam("fast"), TypeError, "^lr", "number", "'fast'"),
    row("Adam: beta1 1", lambda: training.Adam(beta1=1), ValueError, "^beta1", "below 1", "got 1"),
    row("SGD: beyond floats", lambda: training.SGD(10**400), ValueError, "^lr", "finite",
        "too large for a float"),
    row("SGD: beyond what is printed", lambda: training.SGD(-(10**9999)), ValueError, "^lr",
        "too large for a float"),
    row("Momentum: 2", lambda: training.Momentum(0.1, 2), ValueError, "^momentum", "below 1"),
    row("AdamW: weight_decay -1", lambda: training.AdamW(weight_decay=-1), ValueError,
        "^weight_decay", "from 0", "-1"),
    row("optimiser: unknown", lambda: training.optimisers.create("sdg"), ValueError, "^optimiser",
        "sgd, momentum", "'sdg'"),
    row("update: too few grads", lambda: training.SGD().update([zeros(2), zeros(3)], [zeros(2)]),
        ValueError, "^grads", "2 arrays", "got 1"),
    row("update: shape", lambda: training.SGD().update([zeros(2)], [zeros(3)]), ValueError,
        r"^grads\[0\]", r"\(2,\)", r"\(3,\)"),
    row("update: dtype", lambda: training.SGD().update([zeros(2)], [zeros(2, dtype=float)]),
        TypeError, r"^grads\[0\]", "float32", "float64"),
    row("clip_grads: 0", lambda: training.clip_grads([zeros(2)], 0), ValueError, "^max_norm",
        "above 0", "got 0"),
    row("bptt: a list", bptt([1, 2, 3]), TypeError, "^corpus", "array", "list"),
    row("bptt: empty", bptt(np.arange(0)), ValueError, "^corpus", "at least", "got 0"),
    row("bptt: short", bptt(np.arange(6)), ValueError, "^corpus", "7 steps", "got 6"),
    row("bptt: batch_size 0", bptt(np.arange(9), batch=0), ValueError, "^batch_size", "least 1"),
    row("bptt: time_size 2.5", bptt(np.arange(9), time=2.5), TypeError, "^time_size", "2.5"),
    row("bptt: targets", bptt(np.arange(9), targets=np.arange(8)), ValueError, "^targets", "9",
        "got 8"),
    row("bptt: targets in a list", bptt(np.arange(9), targets=list(range(9))), TypeError,
        "^targets", r"array \(L, \.\.\.\)", "list", r"np\.asarray"),
    row("bptt: targets without axes", bptt(np.arange(9), targets=np.array(1)), ValueError,
        "^targets", "without axes"),
    row("bptt: corpus without axes", bptt(np.array(1)), ValueError, "^corpus", "without axes"),
    row("bptt: no corpus", bptt(None), TypeError, "^corpus", "array", "NoneType"),
    row("bptt: a state without a cursor", lambda: bptt(np.arange(9))().restore(
        {k: v for k, v in bptt(np.arange(9))().state().items() if k != "cursor"}), TypeError,
        "^cursor", "whole number", "None"),
    row("Rnnlm: vocab_size 0", lm(vocab_size=0), ValueError, "^vocab_size", "at least 1", "got 0"),
    row("Rnnlm: unknown cell", lm(cell="lstn"), ValueError, "^cell", "lstm", "'lstn'"),
    row("Rnnlm: layers 0", lm(layers=0), ValueError, "^layers", "at least 1", "got 0"),
    row("Rnnlm: dropout 1", lm(dropout=1), ValueError, "^ratio", "below 1", "got 1"),
    row("Rnnlm: tie", lm(tie=True), ValueError, "^tie", "4 and 5"),
    row("Rnnlm: dtype", lm(dtype="float16"), TypeError, "^dtype", "float32 or float64"),
    row("Rnnlm: token 7", lambda: lm()().forward(IDS + 2, IDS), ValueError, "^ids", "0 to 6",
        "got 7"),
    row("Rnnlm: label 7", lambda: lm()().forward(IDS, IDS + 2), ValueError, "^ts", "0 to 6",
        "got 7"),
    row("perplexity: float corpus", lambda: lm()().perplexity(zeros(400)), TypeError, "^corpus",
        "integer", "float32"),
    row("perplexity: short corpus", lambda: lm()().perplexity(np.arange(5)), ValueError,
        "^corpus", "351 steps", "got 5"),
    row("generate: no start", lambda: lm()().generate(np.arange(0), 3), ValueError, "^start",
        "size 0"),
    row("generate: start 7", lambda: lm()().generate([7], 3), ValueError, "^start", "0 to 6"),
    row("generate: temperature", lambda: lm()().generate([1], 3, temperature=-1), ValueError,
        "^temperature", "from 0", "-1"),
    row("generate: top_k 0", lambda: lm()().generate([1], 3, top_k=0), ValueError, "^top_k",
        "at least 1"),
    row("Trainer: decay 0", fit(decay=0), ValueError, "^decay", "from 1", "got 0"),
    row("Trainer: max_norm 0", fit(max_norm=0), ValueError, "^max_norm", "above 0"),
    row("Trainer: save_every 0", fit(save_every=0), ValueError, "^save_every", "at least 1"),
    row("Trainer: extra is a list", fit(extra=[1]), TypeError, "^extra", "dict", "list"),
    row("Trainer: extra with a tuple", fit(extra={"sizes": (1, 2)}), TypeError,
        r"^extra\['sizes'\]", "list", "tuple"),
    row("Trainer: extra with its own name", fit(extra={"trainer": 1}), ValueError, "^extra",
        "'trainer'"),
    row("Trainer: 0 epochs", lambda: fit()().fit(0), ValueError, "^max_epochs", "at least 1"),
]  # fmt: skip


TABLE = [
    *RECURRENT,
    *ONE_STEP,
    *BIDIRECTIONAL,
    *STACKED,
    *PROJECTED,
    *DENSE,
    *LOSSES,
    *BACKEND,
    *TRAINING,
]


@pytest.mark.parametrize(
    ("call", "error", "patterns"), [pytest.param(*rest, id=doing) for doing, *rest in TABLE]
)
def test_wrong_arguments_are_refused(call, error, patterns):
    with pytest.raises(error) as caught:
        call()
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), (pattern, str(caught.value))


def test_every_row_says_what_is_done_once():
    doings = [doing for doing, *_ in TABLE]
    assert len(doings) == len(set(doings))


def test_a_refused_call_leaves_a_layer_as_it_was():
    layer = after_forward(rnn.TimeLSTM.create(D, H, rng=0, stateful=True), zeros(N, T, D) + 1)
    h, c = layer.h.copy(), layer.c.copy()
    for wrong in (zeros(3, T, D), zeros(N, T, 4), zeros(N, T, D, dtype=np.float64)):
        with pytest.raises((ValueError, TypeError), match=r"^xs"):
            layer.forward(wrong)
    with pytest.raises(ValueError, match=r"^c"):
        layer.set_state(zeros(N, H), zeros(3, H))
    np.testing.assert_equal((layer.h, layer.c), (h, c))
