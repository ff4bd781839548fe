"""Arrays that are more than arrays, or lie otherwise in memory: refused by name, or taken as right.

Every entry of the package that takes arrays is here, by the name of the argument.
"""

import re
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

import numba_rnn as rnn
from fake_device import asnumpy, use_fake_device
from helpers import BACKENDS, Array
from numba_rnn import training, use_backend, viz
from numba_rnn.bridges import book, from_torch
from numba_rnn.models import Rnnlm
from numba_rnn.text import Vocabulary

N, T, D, H, V = 2, 4, 3, 5, 7
Make = Callable[[Array], Any]


def numbers(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype(np.float32)


def after(layer: Any, *inputs: Array) -> Any:
    layer.forward(*inputs)
    return layer


def lstm(**options: Any) -> Any:
    return rnn.TimeLSTM.create(D, H, rng=0, **options)


def with_state(h: Any) -> Array:
    layer = lstm()
    layer.set_state(h)
    return layer.forward(numbers(N, T, D))


def with_initial(values: Any) -> Array:
    return lstm().learn_initial_state(values).forward(numbers(N, T, D))


def with_params(k: int) -> Callable[[Any], Array]:
    def forward(param: Any) -> Array:
        params = [numbers(D, 4 * H), numbers(H, 4 * H), numbers(4 * H)]
        params[k] = param
        return rnn.TimeLSTM(*params).forward(numbers(N, T, D))

    return forward


def restored(snapshot: Any) -> Array:
    stream = lstm().stream()
    stream.restore((snapshot,))
    return stream.step(numbers(D)).copy()


def updated(grad: Any) -> Array:
    param = numbers(D, H)
    training.SGD(0.1).update([param], [grad])
    return param


def clipped(grad: Any) -> Any:
    return training.clip_grads([grad], 1e-3)


def loss(kind: type[Any], xs: Any, ts: Any, **options: Any) -> tuple[Any, Array]:
    made = kind()
    return made.forward(xs, ts, **options), made.backward()


def classified(X: Any = None, y: Any = None) -> Array:
    from numba_rnn.sklearn import RNNClassifier

    X = numbers(N, T, D) if X is None else X
    estimator = RNNClassifier(max_epochs=1, hidden_size=H, random_state=0, verbose=0)
    estimator.fit(X, np.arange(N) if y is None else y)
    return estimator.predict_proba(numbers(N, T, D))


def shelf(*sequences: Any) -> Array:
    """An array of objects."""
    found = np.empty(len(sequences), object)
    found[:] = sequences
    return found


def forecast(X: Any, **options: Any) -> Array:
    from numba_rnn.sklearn import RNNForecaster

    return RNNForecaster(max_epochs=1, random_state=0).fit(X, **options).network_.arrays()


def language_model() -> Rnnlm:
    return Rnnlm(V, D, H, rng=0)


IDS, FLAGS = np.arange(N * T).reshape(N, T) % V, np.arange(N * T).reshape(N, T) % 3 > 0

# what is given, by the name of the argument and whose it is
FLOATS: dict[tuple[str, str], tuple[Array, Make]] = {
    ("xs", "TimeLSTM"): (numbers(N, T, D), lambda a: lstm().forward(a)),
    ("dhs", "TimeLSTM"): (
        numbers(N, T, H), lambda a: after(lstm(), numbers(N, T, D)).backward(a)),
    ("dh", "TimeLSTM"): (
        numbers(N, H), lambda a: after(lstm(), numbers(N, T, D)).backward(numbers(N, T, H), a)),
    ("h", "TimeLSTM"): (numbers(N, H), with_state),
    ("values", "TimeLSTM"): (numbers(2, H), with_initial),
    ("x", "TimeLSTM"): (numbers(N, D), lambda a: lstm(stateful=True).step(a)),
    ("Wx", "TimeLSTM"): (numbers(D, 4 * H), with_params(0)),
    ("Wh", "TimeLSTM"): (numbers(H, 4 * H), with_params(1)),
    ("b", "TimeLSTM"): (numbers(4 * H), with_params(2)),
    ("xs", "TimeBiGRU"): (
        numbers(N, T, D), lambda a: rnn.TimeBiGRU.create(D, H, rng=0).forward(a)),
    ("xs", "Stacked"): (numbers(N, T, D), lambda a: rnn.Stacked.create(D, H, rng=0).forward(a)),
    ("xs", "TimeProjectedLSTM"): (
        numbers(N, T, D),
        lambda a: rnn.TimeProjectedLSTM.create(D, H, proj_size=2, rng=0).forward(a)),
    ("h_prev", "GRU"): (
        numbers(N, H), lambda a: rnn.GRU.create(D, H, rng=0).forward(numbers(N, D), a)),
    ("W", "TimeEmbedding"): (numbers(V, D), lambda a: rnn.TimeEmbedding(a).forward(IDS)),
    ("dout", "TimeEmbedding"): (
        numbers(N, T, D),
        lambda a: (e := after(rnn.TimeEmbedding(numbers(V, D)), IDS)).backward(a) or e.grads[0]),
    ("xs", "TimeAffine"): (
        numbers(N, T, D), lambda a: rnn.TimeAffine(numbers(D, H), numbers(H)).forward(a)),
    ("dout", "TimeAffine"): (
        numbers(N, T, H),
        lambda a: after(rnn.TimeAffine(numbers(D, H), numbers(H)), numbers(N, T, D)).backward(a)),
    ("xs", "TimeDropout"): (numbers(N, T, D), lambda a: rnn.TimeDropout(0.5, rng=0).forward(a)),
    ("hs_enc", "TimeAttention"): (
        numbers(N, T, H), lambda a: rnn.TimeAttention().forward(a, numbers(N, T, H))),
    ("hs_dec", "TimeAttention"): (
        numbers(N, T, H), lambda a: rnn.TimeAttention().forward(numbers(N, T, H), a)),
    ("hs", "TimePooling"): (numbers(N, T, H), lambda a: rnn.TimePooling("mean").forward(a)),
    ("dout", "TimePooling"): (
        numbers(N, 1, H),
        lambda a: after(rnn.TimePooling("max"), numbers(N, T, H)).backward(a)),
    ("xs", "TimeSoftmaxWithLoss"): (
        numbers(N, T, V), lambda a: loss(rnn.TimeSoftmaxWithLoss, a, IDS)),
    ("xs", "TimeSigmoidWithLoss"): (
        numbers(N, T), lambda a: loss(rnn.TimeSigmoidWithLoss, a, FLAGS)),
    ("ts", "TimeSigmoidWithLoss"): (
        abs(numbers(N, T)), lambda a: loss(rnn.TimeSigmoidWithLoss, numbers(N, T), a)),
    ("xs", "TimeMSE"): (numbers(N, T), lambda a: loss(rnn.TimeMSE, a, numbers(N, T) / 2)),
    ("ts", "TimeMSE"): (numbers(N, T), lambda a: loss(rnn.TimeMSE, numbers(N, T) / 2, a)),
    ("ts", "TimeMSE with a mask"): (
        numbers(N, T), lambda a: loss(rnn.TimeMSE, numbers(N, T) / 2, a, mask=FLAGS)),
    ("x", "Stream"): (numbers(D), lambda a: lstm().stream().step(a).copy()),
    ("x", "Stream of a batch"): (numbers(N, D), lambda a: lstm().stream(N).step(a).copy()),
    ("frames", "Stream"): (numbers(T, D), lambda a: lstm().stream().step_many(a)),
    ("frames", "Stream of a batch"): (numbers(N, T, D), lambda a: lstm().stream(N).step_many(a)),
    ("snapshot", "Stream"): (numbers(2, 1, H), restored),
    ("grads[0]", "SGD"): (numbers(D, H), updated),
    ("xs", "viz"): (numbers(N, T, D), lambda a: plt.close(viz.graph(lstm(), a))),
}  # fmt: skip
INTEGERS: dict[tuple[str, str], tuple[Array, Make]] = {
    ("ids", "TimeEmbedding"): (IDS, lambda a: rnn.TimeEmbedding(numbers(V, D)).forward(a)),
    ("ts", "TimeSoftmaxWithLoss"): (
        IDS, lambda a: loss(rnn.TimeSoftmaxWithLoss, numbers(N, T, V), a)),
    ("lengths", "TimeLSTM"): (
        np.array([4, 2]), lambda a: lstm().forward(numbers(N, T, D), lengths=a)),
    ("corpus", "perplexity"): (
        np.arange(400) % V, lambda a: language_model().perplexity(a)),
    ("ids", "Rnnlm"): (IDS, lambda a: language_model().predict(a)),
    ("start", "Rnnlm"): (
        np.arange(3), lambda a: language_model().generate(a, 5, rng=0)),
    ("tokens", "Rnnlm"): (
        np.arange(3), lambda a: language_model().stream().step_many(a)),
    ("rows", "Stream"): (np.array([0]), lambda a: lstm().stream(N).reset(a)),
    ("numbers", "Vocabulary"): (np.array([0, 1]), lambda a: Vocabulary.of("ab", "char").decode(a)),
    ("corpus", "TruncatedBPTT"): (
        np.arange(21), lambda a: list(training.TruncatedBPTT(a, 2, 5))[1][1]),
    ("targets", "TruncatedBPTT"): (
        np.arange(21), lambda a: list(training.TruncatedBPTT(np.arange(21), 2, 5, a))[1][1]),
}  # fmt: skip
OTHER_CELLS: dict[tuple[str, str], tuple[Array, Make]] = {
    ("mask", "TimeLSTM"): (FLAGS, lambda a: lstm().forward(numbers(N, T, D), mask=a)),
    ("resets", "TimeLSTM"): (FLAGS, lambda a: lstm().forward(numbers(N, T, D), resets=a)),
    ("mask", "TimeMSE"): (
        FLAGS, lambda a: loss(rnn.TimeMSE, numbers(N, T), numbers(N, T) / 2, mask=a)),
    ("mask", "TimeAttention"): (
        FLAGS, lambda a: rnn.TimeAttention().forward(numbers(N, T, H), numbers(N, T, H), mask=a)),
    ("grads[0]", "clip_grads"): (numbers(D, H), clipped),
    ("params[0]", "SGD"): (
        numbers(D, H), lambda a: training.SGD(0.1).update([a], [numbers(D, H)])),
    ("openings", "viz"): (
        np.array([0.5, 1.0]), lambda a: viz.animate_valve(a, "/no such folder/valve.gif")),
    ("weight_ih_l0", "from_torch"): (
        numbers(4 * H, D),
        lambda a: from_torch({"weight_ih_l0": a, "weight_hh_l0": numbers(4 * H, H)})),
    ("Wx", "from_book"): (
        numbers(D, 4 * H), lambda a: book.from_book([a, numbers(H, 4 * H), numbers(4 * H)])),
    ("X", "RNNClassifier"): (numbers(N, T, D), lambda a: classified(X=a)),
    ("X", "RNNClassifier, a list"): (numbers(T, D), lambda a: classified(X=[a, numbers(T, D)])),
    ("X", "RNNClassifier, lists in a list"): (
        numbers(D), lambda a: classified(X=[[a, [0.0] * D], [[1.0] * D] * 2])),
    ("X", "RNNClassifier, an array of objects"): (
        numbers(T, D), lambda a: classified(X=shelf(numbers(T, D), a))),
    ("X", "RNNClassifier, lists of an array of objects"): (
        numbers(D), lambda a: classified(X=shelf([[0.0] * D, a], [[1.0] * D] * 2))),
    ("exogenous", "RNNForecaster"): (
        numbers(T, D), lambda a: forecast([numbers(T, D)] * N, exogenous=shelf(numbers(T, D), a))),
    ("y", "RNNClassifier"): (np.arange(N), lambda a: classified(y=a)),
    ("y", "RNNClassifier, lists in a list"): (np.array(0), lambda a: classified(y=[[1], [a]])),
}  # fmt: skip
EVERYTHING = {**FLOATS, **INTEGERS, **OTHER_CELLS}


def entries(table: dict[tuple[str, str], tuple[Array, Make]]) -> Any:
    params = [
        pytest.param(name, *rest, id=f"{whose}: {name}") for (name, whose), rest in table.items()
    ]
    return pytest.mark.parametrize(("name", "plain", "call"), params)


# ---- refused


class Quantity(np.ndarray):
    """An array with a unit, as astropy and pint have them."""


SUBCLASSES: dict[str, tuple[Callable[[Array], Any], str]] = {
    "MaskedArray": (lambda a: np.ma.masked_array(a, mask=np.zeros(a.shape, bool)), "mask="),
    "Quantity": (lambda a: a.view(Quantity), "np.asarray"),
    "recarray": (lambda a: a.view(np.recarray), "np.asarray"),
    "matrix": (lambda a: np.asmatrix(a) if a.ndim < 3 else a.view(Quantity), "np.asarray"),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("kind", SUBCLASSES)
@entries(EVERYTHING)
def test_an_array_that_is_more_is_refused_by_name(name, plain, call, kind):
    make, remedy = SUBCLASSES[kind]
    array = make(plain.copy())
    with pytest.raises(TypeError) as caught:
        call(array)
    assert str(caught.value).startswith(f"{name}: expected")
    assert re.search(f"{type(array).__name__}; .*{remedy}", str(caught.value)), caught.value


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_refused_whatever_was_given_before(backend):
    """A file in memory is an array and nothing else; a masked array is not what it was made of."""
    frames = numbers(T, D)
    hidden = np.ma.masked_array(frames, mask=frames > 0)
    with use_backend(backend, strict=True):
        layer, stream = lstm(), lstm().stream()
        for _ in range(2):
            with pytest.raises(TypeError, match=r"^xs: .*mask="):
                layer.forward(hidden[None])
            with pytest.raises(TypeError, match=r"^frames: .*mask="):
                stream.step_many(hidden)
            with pytest.raises(TypeError, match=r"^x: .*mask="):
                stream.step(hidden[0])
            in_memory = frames.view(np.memmap)
            np.testing.assert_array_equal(
                layer.forward(in_memory[None]), layer.forward(frames[None])
            )
            stream.step_many(in_memory)
            stream.step(in_memory[0])


def test_a_result_goes_into_a_plain_array():
    out = np.ma.zeros((T, H), np.float32)
    with pytest.raises(TypeError, match=r"^out: expected a plain array, got MaskedArray"):
        lstm().stream().step_many(numbers(T, D), out)


def big_endian(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder(">"))


@pytest.mark.parametrize("backend", BACKENDS)
@entries(FLOATS)
def test_another_byte_order_is_refused_by_name(name, plain, call, backend):
    with use_backend(backend, strict=True), pytest.raises(TypeError) as caught:
        call(big_endian(plain))
    assert str(caught.value).startswith(f"{name}: expected float32")
    assert ">f4" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_compares_dtypes_whatever_came_before(backend, batch, dtype):
    """Numba's table of signatures it has seen has no byte order in it."""
    frames = numbers(batch, T, D).astype(dtype)
    frames = frames[0] if batch == 1 else frames
    with use_backend(backend, strict=True):
        stream = lstm(dtype=dtype).stream(batch)
        start = stream.snapshot()
        want = stream.step_many(frames)
        for _ in range(2):
            with pytest.raises(TypeError, match=r"^frames: expected float"):
                stream.step_many(big_endian(frames))
            with pytest.raises(TypeError, match=r"^x: expected float"):
                stream.step(big_endian(frames[..., 0, :]))
            stream.restore(start)
            np.testing.assert_array_equal(stream.step_many(unaligned(frames)), want)


# ---- taken


def unaligned(array: Array) -> Array:
    """The same numbers, none at a multiple of its size: a column of packed records."""
    kind = np.dtype([("tag", np.int8), ("numbers", array.dtype, array.shape[-1:])])
    records = np.zeros(array.shape[:-1], kind)
    records["numbers"] = array
    assert not records["numbers"].flags.aligned
    return records["numbers"]


def behind_a_header(array: Array) -> Array:
    """The same numbers in a buffer, behind three bytes of something else."""
    found = np.frombuffer(b"abc" + array.tobytes(), array.dtype, offset=3)
    return found.reshape(array.shape)


def in_a_file(array: Array) -> Array:
    return array.view(np.memmap)


def result(call: Make, array: Array) -> Any:
    found = call(array)
    return found if found is None or isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("lying", [unaligned, behind_a_header, in_a_file])
@pytest.mark.parametrize("backend", BACKENDS)
@entries(FLOATS | INTEGERS)
def test_arrays_that_lie_otherwise_are_as_good(name, plain, call, backend, lying):
    with use_backend(backend, strict=True):
        np.testing.assert_equal(result(call, lying(plain)), result(call, plain))


@entries(INTEGERS)
def test_integers_may_be_of_any_byte_order(name, plain, call):
    np.testing.assert_equal(result(call, big_endian(plain)), result(call, plain))


def test_on_a_device_too():
    """An array is in the machine's byte order, and aligned, before it is copied there."""
    for make in (unaligned, behind_a_header, in_a_file):
        with use_fake_device():
            layer = rnn.TimeEmbedding(make(numbers(V, D)))
            got = asnumpy(layer.forward(big_endian(IDS)))
        np.testing.assert_array_equal(got, numbers(V, D)[IDS])
    with use_fake_device(), pytest.raises(TypeError, match=r"^W: expected float32 or float64"):
        rnn.TimeEmbedding(big_endian(numbers(V, D)))


def test_parameters_in_a_file_are_trained_in_place(tmp_path):
    W = np.memmap(tmp_path / "W", np.float32, "w+", shape=(V, D))
    W[...] = numbers(V, D)
    layer = after(rnn.TimeEmbedding(W), IDS)
    layer.backward(np.ones((N, T, D), np.float32))
    training.SGD(0.1).update(layer.params, layer.grads)
    W.flush()
    stored = np.fromfile(tmp_path / "W", np.float32).reshape(V, D)
    np.testing.assert_array_equal(stored, layer.params[0])
    assert not np.array_equal(stored, numbers(V, D))
