"""The language model with an output layer for large vocabularies."""

import copy

import numpy as np
import pytest
from onnxruntime import InferenceSession
from scipy.special import log_softmax
from typer.testing import CliRunner

from fake_device import use_fake_device
from helpers import BACKENDS, central_differences, relative_error
from numba_rnn import TimeAdaptiveSoftmaxWithLoss, TimeSampledSoftmaxWithLoss, jobs, use_backend
from numba_rnn.bridges import ConversionError, from_book, to_book, to_onnx
from numba_rnn.cli import app
from numba_rnn.models import Rnnlm
from numba_rnn.text import Vocabulary
from numba_rnn.training import SGD, Adam, SparseRows, Trainer, TruncatedBPTT, load_checkpoint

V = 13
KINDS = {
    "cutoffs": {"cutoffs": (3, 7)},
    "split": {"cutoffs": (4,), "divisor": 1.0},
    "samples": {"samples": 6},
    "samples, tied": {"samples": 6, "tie": True},
    "samples, sparse": {"samples": 6, "sparse_embedding": True},
}
kinds = pytest.mark.parametrize("kind", KINDS)
IDS = np.random.default_rng(0).integers(0, V, 500)


def model(kind, **options):
    return Rnnlm(V, 6, 6, rng=0, **KINDS[kind], **options)


@pytest.mark.parametrize("backend", BACKENDS)
@kinds
def test_gradients_of_every_parameter(backend, kind):
    with use_backend(backend, strict=True):
        net = model(kind, dtype="float64")
        net.embedding.params[0][...] /= 4
        xs, ts = IDS[:6].reshape(2, 3), IDS[1:7].reshape(2, 3)

        def loss():
            net.reset_state()
            net.affine.rng = np.random.default_rng(3)  # the same words every time
            return net.forward(xs, ts)

        loss()
        net.backward()
        assert len(net.params) == len(net.grads) == len(dict(net.param_shapes(**net.config)))
        for param, grad in zip(net.params, net.grads, strict=True):
            grad = np.array(grad)
            assert relative_error(grad, central_differences(loss, param)) < 1e-7


@kinds
def test_everything_but_training_is_exact(kind):
    net = model(kind, dtype="float64")
    xs, ts = IDS[:40].reshape(4, 10), IDS[1:41].reshape(4, 10)
    logs = log_softmax(net.predict(xs), axis=2)
    want = -np.take_along_axis(logs, ts[:, :, None], axis=2).mean()
    net.reset_state()
    assert net.forward(xs, ts, train_flg=False) == pytest.approx(want, rel=1e-12)
    net.backward()
    assert np.isfinite(np.asarray(net.grads[0])).all()
    whole = IDS[:41]
    net.reset_state()
    logs = log_softmax(net.predict(whole[None, :-1])[0], axis=1)
    want = np.exp(-logs[np.arange(40), whole[1:]].mean())
    assert net.perplexity(whole, 1, 10) == pytest.approx(want, rel=1e-12)
    made = net.generate(IDS[:5], 6, temperature=0)
    text = np.concatenate([IDS[:5], made])
    net.reset_state()
    likeliest = net.predict(text[None, :-1])[0].argmax(axis=1)
    np.testing.assert_array_equal(made, likeliest[4:])


@kinds
def test_a_file_and_copies_have_it(kind):
    net = model(kind, dtype="float64")
    Trainer(net, SGD(0.1), TruncatedBPTT(IDS, 4, 10)).fit(1)
    shapes = {f"param/{name}": shape for name, shape in Rnnlm.param_shapes(**net.config)}
    arrays = net.arrays()
    assert {n: a.shape for n, a in arrays.items() if n.startswith("param/")} == shapes
    other = Rnnlm(rng=1, **net.config)
    assert other.config == net.config
    other.load_arrays(arrays)
    twin = copy.deepcopy(net)
    for same in (other, twin):
        same.params[0][1] += 1  # also where weights are tied
        same.params[0][1] -= 1
        assert same.loss_layer is same.affine
        for part in (net, same):
            part.reset_state()
        np.testing.assert_allclose(same.predict(IDS[None, :9]), net.predict(IDS[None, :9]))
    if kind == "samples, tied":
        assert np.shares_memory(twin.affine.params[0], twin.embedding.params[0])


@kinds
def test_streams(kind):
    net = model(kind)
    if "cutoffs" in KINDS[kind]:
        assert isinstance(net.affine, TimeAdaptiveSoftmaxWithLoss)
        with pytest.raises(TypeError, match=r"model: expected an output layer .* got one with cut"):
            net.stream()
        return
    stream = net.stream()
    for _ in range(2):
        want = net.predict(IDS[None, :7])[0]
        np.testing.assert_allclose(stream.step_many(IDS[:7]), want, rtol=1e-5, atol=1e-6)
        net.reset_state()
        net.affine.params[0] = net.affine.params[0] + 1
        stream.reset()
        stream.refresh()


@kinds
def test_other_libraries_get_an_affine_layer(kind, tmp_path):
    net = model(kind)
    if "cutoffs" in KINDS[kind]:
        with pytest.raises(ConversionError, match="expected an Rnnlm with an affine output layer"):
            to_book(net)
        with pytest.raises(TypeError, match=r"model: expected .*, got TimeAdaptiveSoftmaxWithLoss"):
            to_onnx(net)
        return
    want = net.predict(IDS[None, :7])
    to_book(net, tmp_path / "book.npz")
    np.testing.assert_array_equal(from_book(tmp_path / "book.npz").predict(IDS[None, :7]), want)
    session = InferenceSession(to_onnx(net).SerializeToString())
    (got, *_) = session.run(None, {session.get_inputs()[0].name: IDS[None, :7]})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["cutoffs", "samples", "samples, tied"])
def test_on_a_device(kind):
    def trained():
        net, optimiser = model(kind, dtype="float64"), Adam(0.01)
        for xs, ts in TruncatedBPTT(IDS[:81], 2, 10):
            net.forward(xs, ts)
            net.backward()
            optimiser.update(net.params, net.grads, max_norm=1.0)
        return net

    with use_backend("numpy"):
        want = trained()
    with use_fake_device():
        got = trained()
        got.to("cpu")
    for a, b in zip(got.params, want.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_sampled_output_has_sparse_rows_too():
    net = model("samples, sparse")
    assert [isinstance(grad, SparseRows) for grad in net.grads] == [True, *[False] * 3, True, False]
    assert isinstance(net.affine, TimeSampledSoftmaxWithLoss)
    Trainer(net, Adam(0.01, lazy=True), TruncatedBPTT(IDS, 4, 10), max_norm=1.0).fit(1)


def test_what_is_refused():
    for options, match in (
        ({"cutoffs": (3,), "tie": True}, "cutoffs: expected none with tie=True"),
        ({"cutoffs": (3,), "samples": 4}, "samples: expected 0 with cutoffs, got 4"),
        ({"cutoffs": (3, 20)}, "cutoffs: expected numbers that increase from 1 to 12"),
        ({"cutoffs": (3,), "divisor": 0.5}, "divisor: expected"),
        ({"divisor": 1.0}, "divisor: expected cutoffs as well, .* got 1 without"),
        ({"samples": -1}, "samples: expected"),
        ({"divisor": 2}, "divisor: expected cutoffs as well, .* got 2 without"),
        ({"samples": 4, "divisor": 2}, "divisor: expected cutoffs as well"),
    ):
        with pytest.raises(ValueError, match=match):
            Rnnlm(V, 6, 6, **options)
    for wrong in (5, 2.0, {3}, "35"):
        with pytest.raises(TypeError, match="cutoffs: expected"):
            Rnnlm(V, 6, 6, cutoffs=wrong)
    assert Rnnlm(V, 6, 6, cutoffs=np.array([3, 7])).config["cutoffs"] == [3, 7]


def test_tokens_are_numbered_by_frequency():
    text = "b a a c c c b b b <unk> d"
    assert Vocabulary.of(text, "word", by_frequency=True).members == ["b", "c", "a", "<unk>", "d"]
    rare = Vocabulary.of(text, "word", 3, by_frequency=True)
    assert rare.members == ["b", "<unk>", "c"] or rare.members == ["b", "c", "<unk>"]
    assert Vocabulary.of("a b b", "word", by_frequency=True).members == ["b", "a", "<unk>"]


@pytest.mark.parametrize(
    "options",
    [["--cutoffs", "4,9"], ["--samples", "8", "--sparse-embedding"], ["--sparse-embedding"]],
)
def test_the_command_line(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, words = np.random.default_rng(0), [f"w{k}" for k in range(20)]
    text = " ".join(words[k] for k in (20 * rng.random(3000) ** 2).astype(int))
    (tmp_path / "text.txt").write_text(text)
    small = ["--level", "word", "--embed", "6", "--hidden", "6", "--batch", "4", "--time", "10"]
    command = ["train", "--text", "text.txt", *small, *options, "--quiet", "--out"]
    run = CliRunner()
    whole = run.invoke(app, [*command, "a", "--epochs", "2"], catch_exceptions=False)
    assert "held-out perplexity" in whole.output
    run.invoke(app, [*command, "b", "--epochs", "1"], catch_exceptions=False)
    run.invoke(app, ["train", "--resume", "b", "--epochs", "2", "--quiet"], catch_exceptions=False)
    first, again = (load_checkpoint(tmp_path / n / "last.safetensors") for n in "ab")
    for name, array in first[0].items():
        np.testing.assert_array_equal(array, again[0][name])
    for command in (["evaluate", "a", "--text", "text.txt"], ["generate", "a", "--length", "5"]):
        assert run.invoke(app, command, catch_exceptions=False).exit_code == 0
    net, vocabulary, _ = jobs.load_model("a")
    assert jobs.trace_text(net, vocabulary, "w0 w1 w2") == ["w0", "w1"]
    if "--cutoffs" in options:
        assert net.config["cutoffs"] == [4, 9]
        assert vocabulary.members[0] in words[:2]
        with pytest.raises(ValueError, match="cutoffs: expected whole numbers and commas"):
            run.invoke(app, ["train", "--cutoffs", "a"], catch_exceptions=False)
        with pytest.raises(ValueError, match="--cutoffs cannot change"):
            run.invoke(app, ["train", "--resume", "a", "--cutoffs", "5"], catch_exceptions=False)
    with pytest.raises(ValueError, match="sparse_embedding: expected --optimizer sgd"):
        jobs.TrainConfig(sparse_embedding=True, optimiser="rmsprop")
