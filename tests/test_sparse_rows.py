"""Gradients that have only some rows: of an embedding, in optimisers, in training."""

import copy
import math
from unittest import mock

import numpy as np
import pytest
import torch

from fake_device import use_fake_device
from helpers import BACKENDS, DTYPES, run_python
from numba_rnn import TimeAffine, TimeEmbedding, TimeLSTM, TimeSoftmaxWithLoss, use_backend
from numba_rnn.kernels.cpu import parallel_for, threads
from numba_rnn.models import Rnnlm, Sequential
from numba_rnn.training import (
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Batches,
    Momentum,
    RMSProp,
    SparseRows,
    Trainer,
    TruncatedBPTT,
    clip_grads,
    optimisers,
)
from numba_rnn.training.clipping import global_norm

EXACT = {"sgd": SGD, "adagrad": AdaGrad}
BLOCKS = [(3, 50), (1, 1), (2, 2500), (0, 4), (2, 7)]


def blocks(V, D, dtype=np.float64):
    rng = np.random.default_rng(V)
    for shape in BLOCKS:
        ids = (V * rng.random(shape) ** 3).astype(int)
        yield ids, rng.standard_normal((*shape, D)).astype(dtype)


def trained(sparse, optimiser, V=300, D=37, dtype=np.float64, **options):
    W = np.random.default_rng(0).standard_normal((V, D)).astype(dtype)
    layer, norms = TimeEmbedding(W, sparse=sparse), []
    for ids, dout in blocks(V, D, dtype):
        layer.forward(ids)
        layer.backward(dout)
        norms.append(optimiser.update(layer.params, layer.grads, **options))
    return layer, norms


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_that_of_all_rows_to_the_bit(backend, dtype):
    with use_backend(backend, strict=True):
        layers = [TimeEmbedding.create(40, 5, rng=0, dtype=dtype, sparse=s) for s in (False, True)]
        (whole,), (sparse,) = (layer.grads for layer in layers)
        assert isinstance(sparse, SparseRows)
        assert not np.asarray(sparse).any()
        for ids, dout in blocks(40, 5, dtype):
            for layer in layers:
                layer.drop_words(0.3, 1)
                layer.forward(ids)
                layer.backward(dout)
            np.testing.assert_array_equal(np.asarray(sparse), whole)
            np.testing.assert_array_equal(sparse.rows, np.unique(ids))
            assert sparse.dtype == sparse.values.dtype == dtype
    twin = copy.deepcopy(layers[1])
    np.testing.assert_array_equal(twin.grads[0], whole)
    assert twin.to("cpu").grads[0].shape == (40, 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT)
def test_sgd_and_adagrad_compute_the_same_to_the_bit(backend, name, dtype):
    with use_backend(backend, strict=True):
        (whole, norms), (sparse, found) = (
            trained(kind, EXACT[name](0.1), dtype=dtype) for kind in (False, True)
        )
        np.testing.assert_array_equal(sparse.W, whole.W)
        np.testing.assert_allclose(found, norms, rtol=1e-6)
        (whole, norms), (sparse, found) = (
            trained(kind, EXACT[name](0.1), dtype=dtype, max_norm=3.0) for kind in (False, True)
        )
        np.testing.assert_allclose(sparse.W, whole.W, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [None, 0.1])
def test_lazy_adam_is_pytorchs_sparse_adam(backend, decay):
    """With a decay, that of the rows that have a gradient comes before.

    SparseAdam adds eps before the correction of the bias: here it is too small to matter.
    """
    torch.manual_seed(0)
    theirs = torch.nn.Embedding(60, 5, sparse=True).double()
    W = theirs.weight.detach().numpy().copy()
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(W))
    other = torch.optim.SparseAdam(theirs.parameters(), 0.1, (0.8, 0.95), 1e-30)
    adam = Adam(0.1, 0.8, 0.95, 1e-30, lazy=True)
    if decay:
        adam = AdamW(0.1, 0.8, 0.95, 1e-30, decay, lazy=True)
    with use_backend(backend, strict=True):
        ours = TimeEmbedding(W, sparse=True)
        for ids, dout in blocks(60, 5):
            if not ids.size:  # PyTorch's counts no such step
                continue
            ours.forward(ids)
            ours.backward(dout)
            adam.update(ours.params, ours.grads)
            other.zero_grad()
            theirs(torch.tensor(ids)).backward(torch.tensor(dout))
            if decay:
                with torch.no_grad():
                    theirs.weight[np.unique(ids)] *= 1 - 0.1 * decay
            other.step()
    np.testing.assert_allclose(ours.W, theirs.weight.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_lazy_adam_goes_on_from_a_checkpoint():
    first = Adam(0.1, lazy=True)
    trained(True, first)
    numbers, arrays = first.state()
    second = Adam(lazy=True)
    second.restore(numbers, arrays)
    assert second.state()[0] == numbers
    with pytest.raises(ValueError, match="lazy: expected False, as before, got True"):
        Adam().restore(numbers, arrays)
    del numbers["lazy"]  # as checkpoints of 0.1 are
    Adam().restore(numbers, arrays)


@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_are_those_of_all_rows(backend):
    with use_backend(backend, strict=True):
        layer, _ = trained(True, SGD())
        (grad,) = layer.grads
        want = float(np.linalg.norm(np.asarray(grad)))
        assert global_norm(layer.grads) == pytest.approx(want, rel=1e-12)
        assert clip_grads([grad, np.array([3.0])], 1.0) == pytest.approx(math.hypot(want, 3))
        assert np.linalg.norm(grad.values) == pytest.approx(want / math.hypot(want, 3))
        huge = SparseRows(np.array([1]), np.array([[1e30]], np.float32), (3, 1))
        W = np.zeros((3, 1), np.float32)
        SGD(1.0).update([W], [huge], max_norm=1e-12)
        np.testing.assert_allclose(W, [[0], [-1e-12], [0]], rtol=1e-5)
        assert huge.values == np.float32(1e30)


def test_a_gradient_of_a_vector_may_have_only_some_numbers():
    for backend in BACKENDS:
        with use_backend(backend, strict=True):
            b = np.arange(5.0)
            SGD(0.5).update([b], [SparseRows(np.array([0, 3]), np.array([2.0, 4.0]), (5,))])
            np.testing.assert_array_equal(b, [-1, 1, 2, 1, 4])


@pytest.mark.parametrize("rule", ["compiled", "interpreted"])
def test_arrays_with_gaps_and_rules_that_are_not_compiled(rule):
    if rule == "interpreted":

        class Own(SGD):
            rule = staticmethod(lambda W, dW, lr: (W - lr * np.fft.ifft(np.fft.fft(dW)).real,))

    else:
        Own = SGD
    wide = np.zeros((6, 8))
    grad = SparseRows(np.array([1, 5]), np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]), (6, 4))
    Own(1.0).update([wide[:, ::2]], [grad])
    np.testing.assert_allclose(wide[:, ::2], -np.asarray(grad), atol=1e-12)
    assert not wide[:, 1::2].any()


def test_what_is_refused():
    grad = SparseRows(np.array([0, 2]), np.ones((2, 3)), (4, 3))
    for optimiser in (Momentum(), RMSProp(), Adam(), AdamW()):
        name = type(optimiser).__name__
        with pytest.raises(TypeError, match=rf"grads\[0\]: expected an array, because {name} .*"):
            optimiser.update([np.ones((4, 3))], [grad])
    W = np.ones((4, 3))
    for wrong, match in (
        (SparseRows(np.array([0, 2]), np.ones((2, 3)), (5, 3)), r"shape \(4, 3\), got \(5, 3\)"),
        (SparseRows(np.array([0, 4]), np.ones((2, 3)), (4, 3)), r"grads\[0\]\.rows: expected"),
        (SparseRows(np.array([2, 2]), np.ones((2, 3)), (4, 3)), "numbers that increase"),
        (SparseRows(np.array([0, 2]), np.ones((1, 3)), (4, 3)), r"grads\[0\]\.values: expected"),
        (SparseRows(np.array([0]), np.full((1, 3), np.nan), (4, 3)), "expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=match):
            SGD().update([W], [wrong])
    with pytest.raises(TypeError, match="float64"):
        SGD().update([W], [SparseRows(np.array([0]), np.ones((1, 3), np.float32), (4, 3))])
    for rows in ([0, 2], [0, 99], [-1, 2]):  # of which nothing is known
        with pytest.raises(TypeError, match=r"grads\[0\]\.rows: expected an integer array .* list"):
            SGD().update([W], [SparseRows(rows, np.ones((2, 3)), (4, 3))])
    assert (W == 1).all()


@pytest.mark.parametrize("optimiser", [Momentum, RMSProp, Adam, AdamW])
def test_a_run_that_cannot_take_them_is_refused_before_it_has_a_folder(tmp_path, optimiser):
    model = Rnnlm(30, 4, 6, sparse_embedding=True, rng=0)
    tokens = np.random.default_rng(0).integers(0, 30, 400)
    with pytest.raises(TypeError, match=r"model.grads\[0\]: expected an array, because"):
        Trainer(model, optimiser(), TruncatedBPTT(tokens, 4, 10), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_depends_on_the_number_of_threads(dtype):
    found = []
    with mock.patch.object(parallel_for, "ALONE", 0), use_backend("numba", strict=True):
        for count in (1, 2, 3, 5):
            with mock.patch.object(threads, "available", return_value=count):
                for optimiser in (SGD(), AdaGrad(), Adam(lazy=True)):
                    found.append(trained(True, optimiser, D=67, dtype=dtype)[0].W)
    for k, other in enumerate(found[3:]):
        np.testing.assert_array_equal(other, found[k % 3])


GUARDED = """
from test_memory import GUARDED
exec(GUARDED)
from numba_rnn.kernels.cpu import training
from numba_rnn.training import Adam, SparseRows

adam, rng = Adam(lazy=True), np.random.default_rng(0)
adam.updates = 1
with use_backend("numba", strict=True) as engine:
    with mock.patch.object(training, "np", Guarded()):
        for dtype in (np.float32, np.float64):
            for V, D in ((1, 1), (5, 15), (5, 16), (9, 17), (3, 4097)):
                rows = guarded(np.unique([0, V - 1]))
                arrays = [guarded(np.ones((V, D), dtype)) for _ in range(3)]
                values = guarded(np.ones((len(rows), D), dtype))
                group = [*arrays, SparseRows(rows, values, (V, D))]
                engine.update_all(adam.rule, [group], adam._numbers())
print("nothing was touched")
"""


def test_nothing_outside_an_array_is_touched():
    assert run_python(GUARDED).stdout == "nothing was touched\n"


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
def test_training_on_a_device(name):
    options = {"lazy": True} if name == "adam" else {}
    with use_backend("numpy"):
        want, _ = trained(True, optimisers.create(name, **options), max_norm=3.0)
    with use_fake_device() as engine:
        got, _ = trained(True, optimisers.create(name, **options), max_norm=3.0)
        np.testing.assert_allclose(engine.to_host(got.W), want.W, rtol=1e-11, atol=1e-15)
        got.to("cpu")
    np.testing.assert_allclose(np.asarray(got.grads[0]), np.asarray(want.grads[0]), rtol=1e-12)


def sequential(sparse):
    return Sequential(
        TimeEmbedding.create(30, 4, rng=0, sparse=sparse),
        TimeLSTM.create(4, 6, rng=1),
        TimeAffine.create(6, 30, rng=2),
        loss=TimeSoftmaxWithLoss(),
    )


def test_a_trainer_takes_them_and_a_file_has_all_rows(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, (12, 5))
    found = []
    for sparse in (False, True):
        model = sequential(sparse)
        Trainer(model, AdaGrad(0.1), Batches(ids, ids, 4, rng=0), max_norm=1.0).fit(3)
        found.append(model)
    whole, sparse = found
    for a, b in zip(whole.params, sparse.params, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    sparse.save(tmp_path / "m.safetensors")
    again = sequential(False).load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.params[0], sparse.params[0])


def test_a_language_model_takes_them():
    tokens = np.random.default_rng(0).integers(0, 30, 400)
    models = [Rnnlm(30, 4, 6, sparse_embedding=s, rng=0) for s in (False, True)]
    for model in models:
        Trainer(model, SGD(0.5), TruncatedBPTT(tokens, 4, 10), max_norm=1.0).fit(2)
    for a, b in zip(models[0].params, models[1].params, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    assert "sparse_embedding" not in models[0].config
    assert Rnnlm(rng=0, **models[1].config).config == models[1].config
    with pytest.raises(ValueError, match="sparse_embedding: expected False with tie=True"):
        Rnnlm(30, 6, 6, tie=True, sparse_embedding=True)
    with pytest.raises(ValueError, match="one_buffer: expected gradients with all rows"):
        models[1].one_buffer()
