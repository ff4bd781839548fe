"""Models and estimators with weights in int8, and the report of what these change."""

import copy
import pickle

import numpy as np
import pytest

from helpers import relative_error
from numba_rnn import Stream, TimeAffine, TimeDropout, TimeGRU, use_backend
from numba_rnn.diagnostics import plot_quantisation, quantisation_report
from numba_rnn.models import Rnnlm, Seq2seq, Sequential
from numba_rnn.sklearn import RNNClassifier
from numba_rnn.training import SGD
from quantised import XS


@pytest.mark.parametrize(
    "options", [{}, {"tie": True}, {"cutoffs": (3, 7)}, {"samples": 5}], ids=str
)
def test_a_language_model_in_int8(options, tmp_path):
    size = {"embed_size": 6, "hidden_size": 6, "layers": 2, "rng": 0, **options}
    model = Rnnlm(11, **size)
    model.recurrent[0].learn_initial_state()
    corpus = np.random.default_rng(0).integers(0, 11, 400)
    want = model.perplexity(corpus)
    assert model.quantise() is model
    assert model.quantised
    got = model.perplexity(corpus)
    assert got != want
    np.testing.assert_allclose(got, want, rtol=0.02)
    if model.tie:
        np.testing.assert_array_equal(model.affine.params[0].T, model.embedding.params[0])
    assert len(model.generate([1], 5, rng=0)) == 5
    model.forward(corpus[None, :5], corpus[None, 1:6])
    with pytest.raises(TypeError, match="dequantise"):
        model.backward()
    twin = copy.deepcopy(model)
    assert twin.perplexity(corpus) == got
    fresh = Rnnlm(11, **{**size, "rng": 1})
    fresh.load_arrays(model.arrays())
    assert fresh.quantised
    assert fresh.perplexity(corpus) == got
    floats = Rnnlm(11, **{**size, "rng": 1})
    fresh.load_arrays(floats.arrays() | {"param/recurrent0.initial": np.zeros((2, 6), "f4")})
    assert not fresh.quantised
    assert fresh.perplexity(corpus) == floats.perplexity(corpus)
    model.dequantise()
    np.testing.assert_allclose(model.perplexity(corpus), want, rtol=0.02)
    model.forward(corpus[None, :5], corpus[None, 1:6])
    model.backward()
    SGD(0.1).update(model.params, model.grads)
    if model.tie:
        assert np.shares_memory(model.affine.params[0], model.embedding.params[0])


@pytest.mark.parametrize("options", [{}, {"tie": True}, {"samples": 5}], ids=str)
def test_a_token_stream_in_int8(options):
    model = Rnnlm(11, 6, 6, rng=0, **options)
    tokens = np.array([3, 1, 4, 1, 5])
    got = model.stream(weights="int8").step_many(tokens)
    assert not model.quantised
    want = model.quantise().stream().step_many(tokens)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got, model.predict(tokens[None])[0], atol=1e-5)


def test_a_model_with_attention_in_int8():
    model = Seq2seq.create(11, 6, 8, connection="attention", rng=0)
    xs, ts = np.arange(10).reshape(2, 5), np.arange(1, 9).reshape(2, 4)
    want = model.forward(xs, ts)
    np.testing.assert_allclose(model.quantise().forward(xs, ts), want, rtol=0.02)
    model.generate(xs, 0, 3)


def test_a_stream_of_a_network_in_int8():
    X = np.random.default_rng(0).standard_normal((12, 7, 3)).astype(np.float32)
    model = RNNClassifier(hidden_size=5, max_epochs=1, pooling="last", random_state=0)
    network = model.fit(X, np.arange(12) % 2).network_
    want = Stream(network).step_many(X[0])
    np.testing.assert_allclose(Stream(network, weights="int8").step_many(X[0]), want, atol=0.02)
    network.quantise()
    with pytest.raises(
        TypeError, match="standardise: expected weights in float32 to make a stream"
    ):
        Stream(network)


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@pytest.mark.parametrize(("size", "mean"), [((1e-3, 1, 1e3), 0), ((1, 1, 1), 1000)])
def test_a_stream_reads_inputs_that_are_not_standardised(size, mean, weights):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((40, 9, 3)) * size + mean).astype(np.float32)
    y = (X[:, :, 0] - mean).sum(1) > 0
    model = RNNClassifier(hidden_size=8, layers=2, pooling="last", max_epochs=5, random_state=0)
    network = model.fit(X, y).network_
    with use_backend("numba"):
        want = Stream(network, batch=40).step_many(X)
        got = Stream(network, batch=40, weights=weights).step_many(X)
    with use_backend("numba", precision="bfloat16"):
        low = Stream(network, batch=40).step_many(X)
    for scores in (got, low):
        assert 0 < relative_error(scores, want) < 0.05


def test_an_estimator_in_int8():
    X = np.random.default_rng(0).standard_normal((12, 7, 3)).astype(np.float32)
    y = np.arange(12) % 2
    model = RNNClassifier(hidden_size=5, max_epochs=2, random_state=0).fit(X, y)
    want = model.predict_proba(X)
    model.network_.quantise()
    got = model.predict_proba(X)
    np.testing.assert_allclose(got, want, atol=0.02)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), got)
    assert again.network_.affine.quantised
    assert not again.network_.dequantise().quantised
    np.testing.assert_allclose(again.predict_proba(X), want, atol=0.02)
    again.partial_fit(X, y)


# ---- the report


def test_the_report_names_the_layer_that_changes_most():
    model = Sequential(
        TimeGRU.create(3, 8, rng=0), TimeDropout(0.5), TimeAffine.create(8, 2, rng=1)
    )
    model.layers[2].params[0][0] = 100  # a weight that takes the scale of all others
    before = [param.copy() for param in model.params]
    report = quantisation_report(model, XS)
    assert report.metric == 0
    assert report.table["layer"].tolist() == ["0", "2", "all"]
    alone = copy.deepcopy(model)
    alone.layers[2].quantise()
    want = model.predict(XS).astype(np.float64)
    error = np.linalg.norm(alone.predict(XS) - want) / np.linalg.norm(want)
    np.testing.assert_allclose(report.table["metric"][1], error, rtol=1e-6)
    np.testing.assert_array_equal(report.table["change"], report.table["metric"])
    sizes = [sum(p.nbytes for p in layer.params) for layer in (model.layers[0], model.layers[2])]
    assert report.table["bytes"].tolist() == [*sizes, sum(sizes)]
    small = copy.deepcopy(model).quantise()
    assert report.table["bytes_int8"][-1] == sum(param.nbytes for param in small.params)
    lines = str(report).splitlines()
    assert lines[0].split() == ["quantised", "bytes", "in", "int8", "metric", "change"]
    assert [line.split()[0] for line in lines[1:]] == ["nothing", "0", "2", "all"]
    for param, was in zip(model.params, before, strict=True):  # it worked with copies
        np.testing.assert_array_equal(param, was)


@pytest.mark.parametrize("tie", [False, True])
def test_a_report_of_any_metric(tie):
    model = Rnnlm(11, 6, 6, rng=0, tie=tie)
    corpus = np.random.default_rng(0).integers(0, 11, 400)
    report = quantisation_report(model, lambda model: model.perplexity(corpus))
    assert report.metric == model.perplexity(corpus)
    names = ["embedding", "recurrent0", *([] if tie else ["affine"]), "all"]
    assert report.table["layer"].tolist() == names
    want = model.quantise().perplexity(corpus)
    assert report.table["metric"][-1] == want
    np.testing.assert_allclose(report.table["change"][-1], want - report.metric)
    figure = plot_quantisation(report)
    assert len(figure.axes[0].patches) == len(names)
    with pytest.raises(TypeError, match="model: expected weights in float32, got int8 ones; make"):
        quantisation_report(model, corpus)
    with pytest.raises(TypeError, match="model: expected layers with weights of products, got"):
        quantisation_report(TimeDropout(0.5), XS)
    with pytest.raises(ValueError, match=r"metric: expected inputs that give outputs, .*\(0, "):
        quantisation_report(TimeGRU.create(3, 5, rng=0), XS[:0])


def test_a_report_of_a_layer_and_of_a_network():
    report = quantisation_report(TimeGRU.create(3, 5, rng=0), XS)
    assert report.table["layer"].tolist() == ["TimeGRU", "all"]
    X = np.random.default_rng(0).standard_normal((12, 7, 3)).astype(np.float32)
    model = RNNClassifier(hidden_size=5, max_epochs=1, random_state=0).fit(X, np.arange(12) % 2)
    report = quantisation_report(model.network_, X)
    assert report.table["layer"].tolist() == ["0", "affine", "all"]


def test_a_report_of_what_is_no_model_is_refused():
    layer = TimeAffine.create(3, 4, rng=0).quantise()
    assert repr(layer) == "TimeAffine(W (3, 4), b (4,), weights int8)"
    with pytest.raises(TypeError, match=r"model: expected a layer, .* got \[TimeAffine"):
        quantisation_report([layer], len)
