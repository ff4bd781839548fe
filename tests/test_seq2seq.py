"""Encoders with decoders: gradients, PyTorch's numbers, files, training."""

import numpy as np
import pytest
import torch

import numba_rnn as rnn
from fake_device import use_fake_device
from helpers import BACKENDS, central_differences, relative_error
from numba_rnn import use_backend
from numba_rnn.bridges import to_torch
from numba_rnn.models import Seq2seq
from numba_rnn.training import Adam, Batches, Trainer

N, S, T, E, H, V, W = 3, 5, 4, 2, 3, 6, 7
CONNECTIONS = ["attention", "peeky", "none"]
LENGTHS = [2, 5, 1]


def drawn(count=N, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, V, (count, S)), rng.integers(0, W, (count, T + 1))


XS, TS = drawn()
ENDS = np.where(np.arange(T + 1) < [[3], [5], [4]], TS, -1)  # rows of different lengths


def made(connection, cell="lstm", layers=1, dropout=0.0, dtype=np.float64):
    return Seq2seq.create(
        V, E, H, output_vocab_size=W, cell=cell, layers=layers, dropout=dropout,
        connection=connection, rng=1, dtype=dtype,
    )  # fmt: skip


def poisoned(model):
    for grad in model.grads:
        grad[...] = np.nan
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(("cell", "layers"), [("lstm", 1), ("gru", 2)])
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_gradients(connection, cell, layers, lengths, backend):
    with use_backend(backend):
        model = poisoned(made(connection, cell, layers))
        for param in model.params:
            param[...] = np.random.default_rng(param.size).uniform(-1, 1, param.shape)
        model.forward(XS, ENDS, lengths=lengths)
        model.backward()
        grads = [grad.copy() for grad in model.grads]
        for name, param, grad in zip(model.param_names, model.params, grads, strict=True):
            expected = central_differences(lambda: model.forward(XS, ENDS, lengths=lengths), param)
            assert relative_error(grad, expected) < 1e-6, name


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_pytorch_computes_the_same_loss(connection):
    model = made(connection, "lstm")
    reads, reader, writes, writer, affine = (
        model.encoder_embedding, to_torch(model.encoder.layers[0], batch_first=True),
        model.decoder_embedding, to_torch(model.decoder.layers[0], batch_first=True), model.affine,
    )  # fmt: skip
    hs, state = reader(torch.from_numpy(reads.W[XS]))
    xs = torch.from_numpy(writes.W[TS[:, :-1]])
    last = hs[:, -1:].expand(-1, T, -1)
    out = writer(torch.cat([last, xs], 2) if connection == "peeky" else xs, state)[0]
    if connection == "attention":
        seen = torch.softmax(out @ hs.transpose(1, 2), 2) @ hs
        out = torch.cat([seen, out], 2)
    elif connection == "peeky":
        out = torch.cat([last, out], 2)
    scores = out @ torch.from_numpy(affine.params[0]) + torch.from_numpy(affine.params[1])
    expected = torch.nn.functional.cross_entropy(
        scores.flatten(0, 1), torch.from_numpy(TS[:, 1:]).flatten()
    )
    loss, ours = model.evaluate(XS, TS)
    np.testing.assert_allclose(ours, scores.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_generation_follows_the_scores_of_its_own_tokens(connection):
    model = made(connection, layers=2)
    for param in model.params:
        param *= 5
    ids = model.generate(XS, start=2, length=6, lengths=LENGTHS)
    whole = np.concatenate([np.full((N, 1), 2), ids], axis=1)
    _, scores = model.evaluate(XS, whole, lengths=LENGTHS)
    np.testing.assert_array_equal(scores.argmax(axis=2), ids)
    stop = ids[0, 1]
    ended = model.generate(XS, 2, 6, stop=stop, lengths=LENGTHS)
    for row, free in zip(ended, ids, strict=True):
        first = [*free, stop].index(stop)
        np.testing.assert_array_equal(row[:first], free[:first])
        assert (row[first:] == stop).all()


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_what_lies_behind_the_end_of_a_row_changes_nothing(connection):
    model, other = made(connection), XS.copy()
    behind = np.arange(S) >= np.array(LENGTHS)[:, None]
    other[behind] = (other[behind] + 1) % V
    results = []
    for xs in (XS, other):
        poisoned(model)
        loss = model.forward(xs, ENDS, lengths=LENGTHS)
        model.backward()
        results.append((loss, model.generate(xs, 0, 3, lengths=LENGTHS), *model.grads[1:]))
        results[-1] = [np.copy(a) for a in results[-1]]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_it_runs_on_a_device(connection):
    here = made(connection)
    expected, _ = here.evaluate(XS, ENDS)
    ids = here.generate(XS, 0, 3)
    with use_fake_device():
        there = made(connection).to("cuda")
        np.testing.assert_allclose(float(there.forward(XS, ENDS)), expected, rtol=1e-12)
        there.backward()
        np.testing.assert_array_equal(there.generate(XS, 0, 3), ids)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_files(connection, tmp_path):
    model = made(connection, dtype=np.float32)
    model.save(tmp_path / "model.safetensors")
    other = made(connection, dtype=np.float32)
    for param in other.params:
        param += 1
    other.load(tmp_path / "model.safetensors")
    assert other.evaluate(XS, TS)[0] == model.evaluate(XS, TS)[0]
    wrong = made(connection, "gru", dtype=np.float32)
    with pytest.raises(ValueError, match=r"expected a checkpoint of this model"):
        wrong.load(tmp_path / "model.safetensors")


def test_it_learns_to_reverse_and_resumes(tmp_path):
    rng = np.random.default_rng(0)
    xs = rng.integers(1, 6, (600, 4))
    ts = np.concatenate([np.zeros((600, 1), int), xs[:, ::-1]], axis=1)

    def trainer(folder):
        model = Seq2seq.create(6, 8, 32, rng=0)
        batches = Batches(xs[:500], ts[:500], 25, rng=0)
        metrics = {"right": lambda out, ts: (out.argmax(axis=2) == ts[:, 1:]).all(axis=1).mean()}
        return Trainer(
            model, Adam(0.01), batches, valid=(xs[500:], ts[500:]), metrics=metrics, max_norm=5,
            folder=folder, progress=False,
        )  # fmt: skip

    whole, first = trainer(None), trainer(tmp_path)
    whole.fit(15)
    assert whole.history.epochs[-1]["metrics"]["right"] > 0.9
    assert (whole.model.generate(xs[500:], 0, 4) == ts[500:, 1:]).all(axis=1).mean() > 0.9
    first.fit(6)
    second = trainer(tmp_path)
    second.restore(tmp_path / "last.safetensors")
    second.fit(15)
    for a, b in zip(second.model.params, whole.model.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_rows_and_no_tokens():
    model = made("attention")
    assert model.generate(XS[:0], 0, 3).shape == (0, 3)
    assert model.generate(XS, 0, 0).shape == (N, 0)


def layers_of(model):
    return [
        model.encoder_embedding, model.encoder, model.decoder_embedding, model.decoder, model.affine
    ]  # fmt: skip


WRONG = {
    "a layer alone": (1, lambda m: m.encoder.layers[0], TypeError, "encoder: expected a Stacked"),
    "other states": (
        3, lambda m: rnn.Stacked.create(E, H, 1, layer="gru", dtype=np.float64), ValueError,
        "decoder: expected layers with the states and sizes of the encoder",
    ),
    "two directions": (
        3, lambda m: rnn.Stacked.create(E, H, 1, layer=rnn.TimeBiLSTM, dtype=np.float64), TypeError,
        "decoder: expected layers that read forwards, got TimeBiLSTM",
    ),
    "other inputs": (
        3, lambda m: rnn.Stacked.create(E + 1, H, 1, dtype=np.float64), ValueError,
        "decoder: expected 2 inputs with connection 'attention', got 3",
    ),
    "a small affine layer": (
        4, lambda m: rnn.TimeAffine.create(H, W, dtype=np.float64), ValueError,
        "affine: expected 6 inputs with connection 'attention', got 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_layers_that_do_not_fit(wrong):
    model = made("attention")
    place, make, error, says = WRONG[wrong]
    parts = layers_of(model)
    parts[place] = make(model)
    with pytest.raises(error, match=says):
        Seq2seq(*parts)


def test_wrong_arguments():
    model = made("none")
    with pytest.raises(ValueError, match="connection: expected"):
        Seq2seq.create(V, E, H, connection="all")
    for ts, says in (
        (TS[:, :1], "at least one to write"), (TS[0], r"shape \(3, T \+ 1\)"),
        (TS[:2], r"shape \(3, T \+ 1\)"), (np.where([0, 0, 1, 0, 0], -1, TS), "behind the end"),
        (TS + W, "from 0 to 6 or -1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"ts: expected .*{says}"):
            model.forward(XS, ts)
    with pytest.raises(TypeError, match="ts: expected an integer array"):
        model.forward(XS, TS * 1.0)
    with pytest.raises(RuntimeError, match="call forward first"):
        made("none").backward()
    with pytest.raises(ValueError, match="length: expected"):
        model.generate(XS, 0, -1)
    for name, options in (("start", {}), ("stop", {"start": 0})):
        with pytest.raises(ValueError, match=f"{name}: expected a token from 0 to 6, got 7"):
            model.generate(XS, length=2, **{name: W, **options})
        with pytest.raises(TypeError, match=f"{name}: expected a whole number, got 1.5"):
            model.generate(XS, length=2, **{name: 1.5, **options})


@pytest.mark.parametrize("place", [0, 1])
def test_a_layer_on_both_sides_is_refused(place):
    """Its gradient would be that of the encoder alone."""
    parts = layers_of(made("none"))
    parts[2 + place] = parts[place]
    with pytest.raises(ValueError, match=r"decoder.*: expected a layer of its own, got enc"):
        Seq2seq(*parts, connection="none")
