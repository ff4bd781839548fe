"""The sampled softmax: against its definition, and on average against the exact one."""

import math

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from fake_device import EmulatedEngine, use_fake_device
from helpers import BACKENDS, DTYPES, relative_error
from numba_rnn import (
    TimeAffineSoftmaxWithLoss,
    TimeEmbedding,
    TimeLSTM,
    TimeSampledSoftmaxWithLoss,
    use_backend,
)
from numba_rnn.kernels import counter_rng
from numba_rnn.models import Sequential
from numba_rnn.training import Adam, Batches, SparseRows, Trainer, load_checkpoint

D, V = 5, 11
RNG = np.random.default_rng(0)
XS, TS = RNG.standard_normal((3, 4, D)), RNG.integers(0, V, (3, 4))
OBJECTIVES = pytest.mark.parametrize("objective", ["softmax", "nce"])


def layer(**options):
    options = {"samples": 7, "rng": 0, "dtype": np.float64, **options}
    made = TimeSampledSoftmaxWithLoss.create(D, V, **options)
    made.params[1][...] += np.linspace(-1, 1, V)
    return made


def drawn(seed, made):
    """The words that a forward with this generator draws, and the shares of all words."""
    made.rng = np.random.default_rng(seed)
    words = made._drawn()
    made.rng = np.random.default_rng(seed)
    shares = np.log((np.arange(V) + 2) / (np.arange(V) + 1))
    return words, shares / shares.sum()


@pytest.mark.parametrize("backend", BACKENDS)
@OBJECTIVES
def test_the_loss_is_that_of_its_definition(backend, objective):
    with use_backend(backend, strict=True):
        made = layer(objective=objective)
        words, q = drawn(4, made)
        W, b = made.params
        scores, rows = XS.reshape(-1, D) @ W.T + b, range(TS.size)
        losses = []
        for r, label in zip(rows, TS.ravel(), strict=True):
            s, expected = scores[r], made.samples * q
            if objective == "softmax":
                others = [s[w] - math.log(expected[w]) for w in words if w != label]
                losses.append(logsumexp([s[label], *others]) - s[label])
            else:
                noise = sum(np.logaddexp(0, s[w] - math.log(expected[w])) for w in words)
                losses.append(np.logaddexp(0, math.log(expected[label]) - s[label]) + noise)
        assert made.forward(XS, TS) == pytest.approx(np.mean(losses), rel=1e-12)
        weights = np.arange(12.0).reshape(3, 4)
        made.rng = np.random.default_rng(4)
        want = np.average(losses, weights=weights.ravel())
        assert made.forward(XS, TS, weights=weights) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_training_it_is_the_exact_softmax(backend):
    with use_backend(backend, strict=True):
        made = layer(sparse=True)
        made.train_flg, made.block = False, 4
        exact = TimeAffineSoftmaxWithLoss(made.params[0].T.copy(), made.params[1])
        assert made.forward(XS, TS) == pytest.approx(exact.forward(XS, TS), rel=1e-13)
        np.testing.assert_allclose(made.backward(2.0), exact.backward(2.0), rtol=1e-12)
        np.testing.assert_allclose(np.asarray(made.grads[0]), exact.grads[0].T, rtol=1e-12)
        np.testing.assert_allclose(made.grads[1], exact.grads[1], rtol=1e-12)
        np.testing.assert_allclose(made.scores(XS), exact.scores(XS), rtol=1e-12)


def test_with_many_samples_loss_and_gradient_are_those_of_the_exact_softmax():
    """Were labels that are drawn not left out, they would count twice."""
    made, exact = layer(samples=300_000), layer()
    exact.train_flg = False
    assert made.forward(XS, TS) == pytest.approx(exact.forward(XS, TS), rel=5e-3)
    assert relative_error(made.backward(), exact.backward()) < 0.02
    for got, want in zip(made.grads, exact.grads, strict=True):
        assert relative_error(got, want) < 0.02


def test_the_mean_gradient_comes_near_to_the_exact_one():
    exact, made = layer(), layer(samples=200)
    exact.train_flg = False
    exact.forward(XS, TS)
    want = [exact.backward(), *exact.grads]
    sums = [np.zeros_like(array) for array in want]
    for _ in range(300):
        made.forward(XS, TS)
        for total, array in zip(sums, [made.backward(), *made.grads], strict=True):
            total += array / 300
    for got, array in zip(sums, want, strict=True):
        assert relative_error(got, array) < 0.03


@pytest.mark.parametrize("proposal", [None, np.arange(1, V + 1)])
def test_the_sum_over_drawn_words_has_no_bias(proposal):
    made, xs, ts = layer(proposal=proposal), XS[:1, :1], np.array([[3]])
    scores = (XS[0, 0] @ made.params[0].T + made.params[1]).astype(np.float64)
    found = np.exp([made.forward(xs, ts) + scores[3] for _ in range(4000)])
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - np.exp(scores).sum()) < 4 * error


def test_the_mean_of_noise_contrastive_losses_is_their_expectation():
    made, xs, ts = layer(objective="nce"), XS[:1, :1], np.array([[3]])
    _, q = drawn(0, made)
    scores = XS[0, 0] @ made.params[0].T + made.params[1] - np.log(made.samples * q)
    want = np.logaddexp(0, -scores[3]) + made.samples * (q * np.logaddexp(0, scores)).sum()
    found = np.array([made.forward(xs, ts) for _ in range(4000)])
    assert abs(found.mean() - want) < 4 * found.std() / math.sqrt(len(found))


def test_words_are_drawn_in_proportion():
    counts = np.array([5, 1, 1, 3])
    made = TimeSampledSoftmaxWithLoss(np.ones((4, 2)), np.ones(4), samples=100_000, proposal=counts)
    found = np.bincount(made._drawn(), minlength=4) / 100_000
    np.testing.assert_allclose(found, counts / 10, atol=0.01)
    numbers = counter_rng.uniform(3, 100_000)
    assert 0 <= numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1
    np.testing.assert_array_equal(counter_rng.uniform(3, 10), numbers[:10])


@pytest.mark.parametrize("dtype", DTYPES)
@OBJECTIVES
def test_engines_and_sparse_rows_agree(objective, dtype):
    labels, found = np.where(TS % 4 == 0, -1, TS), []
    for backend in (*BACKENDS, "device"):
        for sparse in (False, True):
            made = layer(objective=objective, sparse=sparse, dtype=dtype)
            made.rng = np.random.default_rng(5)
            with use_fake_device() if backend == "device" else use_backend(backend, strict=True):
                made.to("cuda" if backend == "device" else "cpu")
                loss, dxs = float(made.forward(XS.astype(dtype), labels)), made.backward()
                made.to("cpu")
                dxs = dxs if isinstance(dxs, np.ndarray) else dxs._read()
                found.append([loss, dxs, np.asarray(made.grads[0]), made.grads[1]])
                assert isinstance(made.grads[0], SparseRows) == sparse
                if sparse:
                    for got, want in zip(found[-1], found[-2], strict=True):
                        np.testing.assert_array_equal(got, want)
    for other in found[2::2]:
        for got, want in zip(other, found[0], strict=True):
            assert relative_error(got, want) < (1e-5 if dtype == np.float32 else 1e-12)
    assert not found[0][1][labels < 0].any()


def test_the_cuda_engine_trains_with_sparse_rows():
    def trained():
        embedding = TimeEmbedding.create(20, 5, rng=0, sparse=True)
        losses = [
            TimeSampledSoftmaxWithLoss.create(
                5, 20, samples=8, objective=name, sparse=name == "softmax", rng=1
            )
            for name in ("softmax", "nce")
        ]
        layers, adam = [embedding, *losses], Adam(0.1, lazy=True)
        for ids in np.random.default_rng(0).integers(0, 20, (3, 2, 4)):
            xs = embedding.forward(ids)
            for loss in losses:
                loss.forward(xs, ids)
            embedding.backward(losses[0].backward() + losses[1].backward())
            adam.update(
                [param for layer in layers for param in layer.params],
                [grad for layer in layers for grad in layer.grads],
                max_norm=1.0,
            )
        return [param for layer in layers for param in layer.to("cpu").params]

    with use_backend("numpy"):
        want = trained()
    with use_fake_device(EmulatedEngine):
        got = trained()
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_is_refused():
    W, b = np.ones((4, 2)), np.ones(4)
    for options, match in (
        ({"samples": 0}, "samples: expected"),
        ({"objective": "exact"}, "objective: expected one of softmax, nce, got 'exact'"),
        ({"proposal": np.ones(3)}, r"proposal: expected numbers of shape \(4,\), one for each"),
        ({"proposal": np.array([1, 0, 2, 3])}, r"larger than 0.*proposal \+ 1 helps"),
    ):
        with pytest.raises(ValueError, match=match):
            TimeSampledSoftmaxWithLoss(W, b, **options)
    with pytest.raises(ValueError, match=r"b: expected shape \(4,\)"):
        TimeSampledSoftmaxWithLoss(W, np.ones(2))


def text(seed):
    """Zipf's law, and each word followed by the next."""
    rng = np.random.default_rng(seed)
    starts = (40 * rng.random((48, 1)) ** 3).astype(int)
    return (starts + np.arange(9)) % 40


def model(objective):
    return Sequential(
        TimeEmbedding.create(40, 12, rng=0, sparse=True),
        TimeLSTM.create(12, 24, rng=1),
        loss=TimeSampledSoftmaxWithLoss.create(
            24, 40, samples=20, objective=objective, sparse=True, rng=2
        ),
        rng=3,
    )


@OBJECTIVES
def test_a_model_learns_and_is_evaluated_exactly(objective):
    ids = text(0)
    net = model(objective)
    trainer = Trainer(
        net, Adam(0.02, lazy=True), Batches(ids[:, :-1], ids[:, 1:], 8, rng=0),
        valid=(ids[:, :-1], ids[:, 1:]),
    )  # fmt: skip
    before = net.evaluate(ids[:, :-1], ids[:, 1:])[0]
    trainer.fit(12)
    loss, scores = net.evaluate(ids[:, :-1], ids[:, 1:])
    probabilities = softmax(scores.astype(np.float64), axis=2)
    of_label = np.take_along_axis(probabilities, ids[:, 1:, None], axis=2)
    assert loss == pytest.approx(-np.log(of_label).mean(), rel=1e-5)
    assert loss < 0.5 < before
    assert net.loss.train_flg is False


def test_a_run_that_is_resumed_draws_the_same_words(tmp_path):
    ids = text(1)

    def run(folder, epochs, resume=None):
        net = model("softmax")
        trainer = Trainer(
            net, Adam(0.02, lazy=True), Batches(ids[:, :-1], ids[:, 1:], 8, rng=0), folder=folder
        )
        if resume:
            trainer.restore(resume)
        trainer.fit(epochs)
        return net

    whole = run(tmp_path / "a", 4)
    run(tmp_path / "b", 2)
    again = run(tmp_path / "c", 4, tmp_path / "b" / "last.safetensors")
    for a, b in zip(whole.params, again.params, strict=True):
        np.testing.assert_array_equal(a, b)
    assert load_checkpoint(tmp_path / "c" / "last.safetensors")[1]["trainer"]["epoch"] == 4
