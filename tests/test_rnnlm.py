"""The language model."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from helpers import BACKENDS, REPRESENTATIVES, central_differences, relative_error
from numba_rnn import cells, use_backend
from numba_rnn.models import Rnnlm
from numba_rnn.training import SGD


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("cell", REPRESENTATIVES)
def test_gradients_of_every_parameter(backend, tie, cell):
    rng = np.random.default_rng(0)
    with use_backend(backend):
        model = Rnnlm(7, 5, 5, cell=cell, layers=2, tie=tie, rng=0, dtype="float64")
        model.embedding.params[0][...] = rng.uniform(-0.5, 0.5, (7, 5))  # no gate saturated
        xs, ts = rng.integers(0, 7, (2, 3)), rng.integers(0, 7, (2, 3))

        def loss():
            model.reset_state()
            return model.forward(xs, ts)

        loss()
        model.backward()
        count = len(cells.get(cell).shapes(1, 1))
        assert len(model.params) == len(model.grads) == 1 + 2 * count + (1 if tie else 2)
        for param, grad in zip(model.params, model.grads, strict=True):
            assert relative_error(grad.copy(), central_differences(loss, param)) < 1e-7


def test_tied_weights_are_one_array():
    model = Rnnlm(7, 5, 5, tie=True, rng=0)
    model.params[0][...] = 3
    assert (model.affine.params[0] == 3).all()
    with pytest.raises(ValueError, match="embed_size equal to hidden_size, got 5 and 6"):
        Rnnlm(7, 5, 6, tie=True)


def test_perplexity_of_a_uniform_model_is_the_vocabulary_size():
    model = Rnnlm(13, 4, 4, rng=0)
    model.affine.params[0][...] = 0
    corpus = np.random.default_rng(0).integers(0, 13, 1000)
    assert model.perplexity(corpus) == pytest.approx(13, rel=1e-6)


def test_perplexity_leaves_the_training_state_alone():
    model = Rnnlm(13, 4, 4, layers=2, dropout=0.5, rng=0)
    ids = np.random.default_rng(0).integers(0, 13, (2, 8))
    model.forward(ids, ids)
    before = [[s.copy() for s in layer.state] for layer in model.recurrent]
    random = model.rng.bit_generator.state
    model.perplexity(ids.ravel(), 1, 3)
    model.generate([1, 2], 5, rng=0)
    for layer, states in zip(model.recurrent, before, strict=True):
        for a, b in zip(layer.state, states, strict=True):
            np.testing.assert_array_equal(a, b)
    assert model.rng.bit_generator.state == random


@pytest.fixture(scope="module")
def counting():
    """A model trained to count: 0 1 2 3 4 0 1 2 ..."""
    from numba_rnn.training import Adam

    model, optimiser = Rnnlm(5, 8, 16, rng=0), Adam(0.02)
    corpus = np.arange(161) % 5
    xs, ts = corpus[:-1].reshape(4, 40), corpus[1:].reshape(4, 40)
    for _ in range(80):
        model.reset_state()
        model.forward(xs, ts)
        model.backward()
        optimiser.update(model.params, model.grads)
    return model


def test_generate_goes_on_from_its_start(counting):
    expected = np.arange(3, 23) % 5
    np.testing.assert_array_equal(counting.generate([1, 2], 20, temperature=0), expected)
    np.testing.assert_array_equal(counting.generate([1, 2], 20, top_k=1, rng=5), expected)


def test_generate_is_seeded_and_temperature_spreads():
    model = Rnnlm(50, 8, 8, rng=0)
    model.affine.params[0][...] = 0
    model.affine.params[1][...] = np.linspace(0, 6, 50)
    one = model.generate([3], 200, rng=7)
    np.testing.assert_array_equal(one, model.generate([3], 200, rng=7))
    assert (one != model.generate([3], 200, rng=8)).any()
    hot = model.generate([3], 200, temperature=5.0, rng=7)
    cold = model.generate([3], 200, temperature=0.3, rng=7)
    assert len(set(hot)) > len(set(one)) > len(set(cold))
    assert model.generate([3], 500, top_k=4, rng=1).min() >= 46
    assert set(model.generate([3], 50, temperature=1e-300, rng=1)) == {49}


def test_samples_follow_the_softmax():
    model = Rnnlm(3, 4, 4, rng=0)
    model.affine.params[0][...] = 0
    model.affine.params[1][...] = np.log([0.2, 0.5, 0.3])
    counts = np.bincount(model.generate([0], 20_000, rng=3), minlength=3) / 20_000
    np.testing.assert_allclose(counts, [0.2, 0.5, 0.3], atol=0.012)  # three standard deviations


def test_dropout_acts_in_training_only():
    model = Rnnlm(13, 4, 4, dropout=0.5, rng=0)
    ids = np.arange(10).reshape(1, 10)

    def loss(train_flg):
        model.reset_state()
        return model.forward(ids, ids, train_flg)

    assert loss(False) == loss(False)
    assert loss(True) != loss(True)


def test_arrays_round_trip_and_refuse_another_model():
    one, other = Rnnlm(13, 4, 6, layers=2, rng=0), Rnnlm(13, 4, 6, layers=2, rng=1)
    ids = np.arange(10).reshape(2, 5)
    one.forward(ids, ids)
    other.load_arrays(one.arrays())
    assert one.forward(ids, ids) == other.forward(ids, ids)
    with pytest.raises(ValueError, match=r"param/embedding.W: expected shape \(14, 4\)"):
        Rnnlm(14, 4, 6, layers=2).load_arrays(one.arrays())
    with pytest.raises(TypeError, match=r"param/recurrent2\.Wx: expected an array"):
        Rnnlm(13, 4, 6, layers=3).load_arrays(one.arrays())


def test_what_a_layer_learns_later_is_the_models_too():
    model = Rnnlm(13, 4, 6, layers=2, zoneout={"h": 0.1, "c": 0.3}, rng=0)
    assert model.config["zoneout"] == {"h": 0.1, "c": 0.3}
    model.recurrent[1].learn_initial_state()
    ids = np.arange(10).reshape(2, 5)
    model.forward(ids, ids)
    model.backward()
    assert [p.shape for p in model.params] == [g.shape for g in model.grads]
    SGD(0.5).update(model.params, model.grads)
    assert model.recurrent[1].params[-1].any()
    other = Rnnlm(**model.config, rng=1)
    other.load_arrays(model.arrays())
    for m in (model, other):
        m.reset_state()
    np.testing.assert_array_equal(model.predict(ids), other.predict(ids))


def test_engines_agree_on_a_long_text():
    corpus = np.random.default_rng(0).integers(0, 11, 2000)
    found = []
    for backend in BACKENDS:
        with use_backend(backend):
            found.append(Rnnlm(11, 9, 33, layers=2, rng=0).perplexity(corpus, 3, 50))
    assert all(math.isclose(one, found[0], rel_tol=1e-6) for one in found)


def test_evaluating_between_forward_and_backward_is_refused():
    model = Rnnlm(13, 4, 4, dropout=0.5, rng=0)
    ids = np.arange(10).reshape(2, 5)
    for evaluate in (lambda: model.perplexity(ids.ravel(), 1, 3), lambda: model.generate(1, 2)):
        model.forward(ids, ids)
        evaluate()
        with pytest.raises(RuntimeError, match="call forward first"):
            model.backward()


def test_skipped_tokens_are_never_chosen():
    model = Rnnlm(5, 4, 4, rng=0)
    assert set(model.generate(1, 200, skip_ids=[0, 3], rng=0)) == {1, 2, 4}


def test_a_model_that_is_not_finite_generates_nothing():
    model = Rnnlm(5, 4, 4, rng=0)
    model.params[-1][2] = np.nan
    with pytest.raises(ValueError, match=r"scores: expected finite numbers, got nan at \(2,\)"):
        model.generate(1, 3)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_session_says_what_the_model_says(batch, tie):
    for backend in BACKENDS:
        with use_backend(backend):
            model = Rnnlm(13, 6, 6, layers=2, tie=tie, dropout=0.5, rng=0)
            ids = np.random.default_rng(1).integers(0, 13, (batch, 9))
            want = model.predict(ids)
            session = model.stream(batch)
            tokens = ids[0] if batch == 1 else ids
            steps = [session.step(tokens[..., t]).copy() for t in range(4)]
            before = session.snapshot()
            for _ in range(2):
                rest = session.step_many(tokens[..., 4:])
                session.restore(before)
            got = np.concatenate([np.stack(steps, axis=-2), rest], axis=-2)
            np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-5, atol=1e-5)
            session.reset(rows=[0])
            first = session.step(tokens[..., 0]).reshape(batch, -1)[0]
            np.testing.assert_allclose(first, want[0, 0], rtol=1e-5, atol=1e-5)


def test_sessions_run_side_by_side():
    model = Rnnlm(13, 6, 33, rng=0)
    texts = np.random.default_rng(1).integers(0, 13, (6, 200))
    alone = [model.stream().step_many(text) for text in texts]

    def read(text):
        session = model.stream()
        return np.stack([session.step(token).copy() for token in text])

    with ThreadPoolExecutor(6) as pool:
        for want, got in zip(alone, pool.map(read, texts), strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_session_takes_the_model_as_it_is_when_asked():
    model = Rnnlm(13, 6, 6, rng=0)
    session = model.stream()
    before = session.step(3).copy()
    model.embedding.params[0][3] += 1.0
    session.reset()
    np.testing.assert_array_equal(session.step(3), before)
    session.refresh()
    session.reset()
    assert np.abs(session.step(3) - before).max() > 1e-3


@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        (13, ValueError, "tokens: expected numbers from 0 to 12, got 13"),
        (-1, ValueError, "got -1"),
        (1.0, TypeError, "tokens: expected an integer array"),
        ([1, 2], ValueError, r"tokens: expected shape \(\), got \(2,\)"),
    ],
)
def test_what_is_no_token_is_refused(tokens, error, says):
    session = Rnnlm(13, 6, 6, rng=0).stream()
    with pytest.raises(error, match=says):
        session.step(tokens)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("cell", sorted(cells.names()))
def test_shapes_are_known_before_a_model_is_made(cell, tie):
    options = {"cell": cell, "layers": 2, "tie": tie}
    model = Rnnlm(7, 5, 5, **options, rng=0)
    arrays = {f"param/{name}": shape for name, shape in Rnnlm.param_shapes(7, 5, 5, **options)}
    found = {name: a.shape for name, a in model.arrays().items() if name.startswith("param/")}
    assert arrays == found


def test_some_token_is_left_to_choose():
    model = Rnnlm(3, 2, 2, rng=0)
    assert (model.generate([0], 4, skip_ids=[0, 2, 2], rng=0) == 1).all()
    with pytest.raises(ValueError, match="skip_ids: expected at most 2 of 3 tokens, got all"):
        model.generate([0], 4, skip_ids=[0, 1, 2])


def test_a_token_stream_takes_all_of_a_model_or_nothing():
    model = Rnnlm(5, 3, 4, rng=0)
    stream, other = model.stream(), model.stream()
    right = list(model.affine.params), model.embedding.params[0]
    model.affine.params[0] = model.affine.params[0] + 1
    model.embedding.params[0] = np.ones((5, 2), np.float32)
    with pytest.raises(ValueError, match=r"embedding: expected shape \(5, 3\), got \(5, 2\)"):
        stream.refresh()
    model.embedding.params[0] = right[1]
    np.testing.assert_array_equal(stream.step(2), other.step(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_has_those_of_the_penalties(backend):
    """Against central differences of the loss and the penalties, written out."""
    rng = np.random.default_rng(0)
    xs, ts = rng.integers(0, 7, (2, 3, 5))
    with use_backend(backend, strict=True):
        model = Rnnlm(
            7, 4, 5, dropout=0.3, embedding_dropout=0.4, activation_penalty=2.0,
            temporal_penalty=1.5, rng=3, dtype=np.float64,
        )  # fmt: skip
        start = copy.deepcopy(model.rng.bit_generator.state)

        def whole() -> float:
            model.rng.bit_generator.state = copy.deepcopy(start)
            model.reset_state()
            loss = model.forward(xs, ts)
            hs, read = model._penalised
            return loss + 2.0 * (read**2).mean() + 1.5 * (np.diff(hs, axis=1) ** 2).mean()

        whole()
        assert (model.embedding._tape[2] == 0).any()  # words are dropped, everywhere alike
        model.backward()
        found = [grad.copy() for grad in model.grads]
        for param, grad in zip(model.params, found, strict=True):
            np.testing.assert_allclose(grad, central_differences(whole, param), atol=1e-7)


def test_words_are_dropped_in_training_alone():
    model = Rnnlm(50, 4, 5, embedding_dropout=0.5, rng=3)
    ids = np.arange(50).reshape(5, 10)
    out = model.embedding.forward(np.concatenate([ids, ids]))
    gone = (out == 0).all(axis=2)
    assert 10 < gone.sum() < 90
    np.testing.assert_array_equal(gone[:5], gone[5:])  # a word everywhere or nowhere
    model.predict(ids)
    np.testing.assert_array_equal(model.embedding.forward(ids), model.embedding.W[ids])
    assert Rnnlm(**{**model.config, "dtype": np.float32}).config == model.config
    for wrong in ({"embedding_dropout": 1.0}, {"activation_penalty": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
            Rnnlm(5, 4, 5, **wrong)
