"""numba_rnn.book: programs in the manner of the book's chapters 5 to 8, against its equations.

The oracle has the equations in PyTorch, float64, whose autograd makes the gradients; optimisers,
clipping, batches and masks are written down in NumPy, as on the page.
"""
# ruff: noqa: N802, NPY002 (the book's names, and NumPy's global random numbers, which it uses)

import importlib
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import numba_rnn
from fake_device import asnumpy, use_fake_device, xp
from helpers import BACKENDS, DTYPES, Array, relative_error
from numba_rnn import book, use_backend
from numba_rnn.book import base_model

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
LIMITS = {np.float32: 2e-4, np.float64: 1e-10}  # after several updates
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_run = pytest.mark.parametrize(
    ("dtype", "seed"), [(np.float64, 0), (np.float64, 1), (np.float32, 2)]
)


# ---- the equations


def step(kind: str, x: Any, state: list[Any], Wx: Any, Wh: Any, b: Any) -> list[Any]:
    """One step of a cell: the states after it."""
    h, H = state[0], len(Wh)
    if kind == "rnn":
        return [torch.tanh(x @ Wx + h @ Wh + b)]
    if kind == "lstm":
        f, g, i, o = torch.split(x @ Wx + h @ Wh + b, H, dim=1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return [torch.sigmoid(o) * torch.tanh(c), c]
    early = (x @ Wx + h @ Wh + b)[:, : 2 * H]
    z, r = torch.sigmoid(early[:, :H]), torch.sigmoid(early[:, H:])
    new = torch.tanh(x @ Wx[:, 2 * H :] + (r * h) @ Wh[:, 2 * H :] + b[2 * H :])
    return [(1 - z) * h + z * new]


def unrolled(kind: str, xs: Any, state: Any, params: list[Any]) -> tuple[Any, list[Any]]:
    """hs (N, T, H), and the states after the last step; None starts from zeros."""
    zeros = torch.zeros(len(xs), len(params[1]), dtype=xs.dtype)
    state = state or [zeros] * (2 if kind == "lstm" else 1)
    hs = []
    for t in range(xs.shape[1]):
        state = step(kind, xs[:, t], state, *params)
        hs.append(state[0])
    return torch.stack(hs, dim=1), state


def cross_entropy(scores: Any, ts: Array) -> Any:
    shares = torch.log_softmax(scores, dim=2).reshape(-1, scores.shape[2])
    return -shares[torch.arange(ts.size), torch.from_numpy(ts.reshape(-1).astype(int))].mean()


class Optimiser:
    """The book's rules, on NumPy arrays in float64."""

    def __init__(self, name: str, lr: float) -> None:
        self.name, self.lr, self.t, self.memory = name, lr, 0, {}

    def update(self, params: list[Array], grads: list[Array]) -> None:
        self.t += 1
        for k, (W, dW) in enumerate(zip(params, grads, strict=True)):
            v, h = self.memory.setdefault(k, [np.zeros_like(W), np.zeros_like(W)])
            W += getattr(self, self.name)(dW, v, h)

    def SGD(self, dW: Array, v: Array, h: Array) -> Array:
        return -self.lr * dW

    def Momentum(self, dW: Array, v: Array, h: Array) -> Array:
        v[...] = 0.9 * v - self.lr * dW
        return v

    def Nesterov(self, dW: Array, v: Array, h: Array) -> Array:
        v[...] = 0.9 * v - self.lr * dW
        return 0.9 * 0.9 * v - 1.9 * self.lr * dW

    def AdaGrad(self, dW: Array, v: Array, h: Array) -> Array:
        h += dW**2
        return -self.lr * dW / (np.sqrt(h) + 1e-7)

    def RMSprop(self, dW: Array, v: Array, h: Array) -> Array:
        h[...] = 0.99 * h + 0.01 * dW**2
        return -self.lr * dW / (np.sqrt(h) + 1e-7)

    def Adam(self, dW: Array, v: Array, h: Array) -> Array:
        v += 0.1 * (dW - v)
        h += 0.001 * (dW**2 - h)
        lr = self.lr * math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        return -lr * v / (np.sqrt(h) + 1e-7)


def descend(loss: Any, leaves: list[Any], optimiser: Optimiser, max_grad: float | None) -> float:
    """One update of PyTorch's leaves, clipped as in the book."""
    grads = [g.numpy().copy() for g in torch.autograd.grad(loss, leaves)]
    norm = math.sqrt(sum((grad**2).sum() for grad in grads))
    if max_grad is not None and (rate := max_grad / (norm + 1e-6)) < 1:
        grads = [grad * rate for grad in grads]
    optimiser.update([leaf.detach().numpy() for leaf in leaves], grads)
    return float(loss.detach())


def leaves_of(arrays: list[Array]) -> list[Any]:
    return [torch.from_numpy(array.astype(np.float64)).requires_grad_() for array in arrays]


def numbers(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) / 2).astype(dtype)


def cell_arrays(kind: str, D: int, H: int, seed: int, dtype: Any = np.float64) -> list[Array]:
    G = GATES[kind]
    shapes = (D, G * H), (H, G * H), (G * H,)
    return [numbers(*shape, seed=seed + k, dtype=dtype) for k, shape in enumerate(shapes)]


def same_params(model: Any, leaves: list[Any], dtype: Any) -> None:
    for param, leaf in zip(model.params, leaves, strict=True):
        assert param.dtype == dtype
        assert relative_error(param, leaf.detach().numpy()) < LIMITS[dtype]


# ---- chapters 5 and 6: language models


class Rnnlm(book.BaseModel):
    """Embedding, recurrent layers with dropout around them, affine, softmax."""

    def __init__(self, kind: str, arrays: list[Array], ratio: float, tied: bool) -> None:
        embed_W, *rest, affine_b = arrays
        affine_W = embed_W.T if tied else rest.pop()
        kinds = {"rnn": book.TimeRNN, "lstm": book.TimeLSTM, "gru": book.TimeGRU}
        self.recurrent = [
            kinds[kind](*rest[k : k + 3], stateful=True) for k in range(0, len(rest), 3)
        ]
        self.dropouts = [book.TimeDropout(dropout_ratio=ratio) for _ in [*self.recurrent, None]]
        self.layers = [book.TimeEmbedding(embed_W)]
        for dropout, layer in zip(self.dropouts, self.recurrent, strict=False):
            self.layers += [dropout, layer]
        self.layers += [self.dropouts[-1], book.TimeAffine(affine_W, affine_b)]
        self.loss_layer = book.TimeSoftmaxWithLoss()
        self.params = [param for layer in self.layers for param in layer.params]
        self.grads = [grad for layer in self.layers for grad in layer.grads]

    def forward(self, xs: Array, ts: Array, train_flg: bool = True) -> Any:
        for layer in self.dropouts:
            layer.train_flg = train_flg
        for layer in self.layers:
            xs = layer.forward(xs)
        return self.loss_layer.forward(xs, ts)

    def backward(self, dout: float = 1) -> None:
        dout = self.loss_layer.backward(dout)
        for layer in reversed(self.layers):
            dout = layer.backward(dout)

    def reset_state(self) -> None:
        for layer in self.recurrent:
            layer.reset_state()


class RnnlmOracle:
    """The same in equations; each leaf once, the affine weights the embedding's where tied."""

    def __init__(self, kind: str, arrays: list[Array], ratio: float, tied: bool) -> None:
        self.leaves, self.kind, self.ratio, self.tied = leaves_of(arrays), kind, ratio, tied
        self.states: dict[int, Any] = {}

    def _dropped(self, xs: Any, train: bool) -> Any:
        if not train:
            return xs
        keep = np.random.rand(*xs.shape) > self.ratio
        return xs * torch.from_numpy(keep / (1 - self.ratio))

    def loss(self, xs: Array, ts: Array, train: bool = True) -> Any:
        embed_W, *rest, affine_b = self.leaves
        affine_W = embed_W.T if self.tied else rest.pop()
        hs = embed_W[torch.from_numpy(xs.astype(int))]
        for k in range(0, len(rest), 3):
            hs = self._dropped(hs, train)
            hs, state = unrolled(self.kind, hs, self.states.get(k), rest[k : k + 3])
            self.states[k] = [s.detach() for s in state]
        return cross_entropy(self._dropped(hs, train) @ affine_W + affine_b, ts)


def block(text: Array, start: int, rows: int, steps: int) -> Array:
    jump = len(text) // rows
    return np.array(
        [[text[(i * jump + start + t) % len(text)] for t in range(steps)] for i in range(rows)]
    )


def language_model_arrays(kind: str, layers: int, tied: bool, seed: int, dtype: Any) -> list[Array]:
    V, D, H = 11, 6 if tied else 4, 6
    arrays = [numbers(V, D, seed=seed, dtype=dtype)]
    for k in range(layers):
        arrays += cell_arrays(kind, H if k else D, H, seed + 10 * k + 1, dtype)
    if not tied:
        arrays.append(numbers(H, V, seed=seed + 30, dtype=dtype))
    return [*arrays, numbers(V, seed=seed + 31, dtype=dtype)]


LANGUAGE_MODELS = {  # chapter: cell, layers, dropout, tied, learning rate, max_grad
    "5": ("rnn", 1, 0.0, False, 0.5, None),
    "6": ("lstm", 1, 0.0, False, 2.0, 0.25),
    "6, better": ("lstm", 2, 0.5, True, 2.0, 0.25),
    "appendix": ("gru", 1, 0.3, False, 2.0, 0.25),
}


def train_language_models(chapter: str, seed: int, dtype: Any, place: Any = lambda a: a) -> Any:
    """The book's loop and the oracle's, one after the other from the same random state."""
    kind, layers, ratio, tied, lr, max_grad = LANGUAGE_MODELS[chapter]
    arrays = language_model_arrays(kind, layers, tied, seed, dtype)
    text = np.random.default_rng(seed).integers(0, 11, 50)
    xs, ts, rows, steps, epochs = text[:-1], text[1:], 3, 4, 2

    oracle, optimiser = RnnlmOracle(kind, arrays, ratio, tied), Optimiser("SGD", lr)
    model = Rnnlm(kind, [place(array) for array in arrays], ratio, tied)
    trainer = book.RnnlmTrainer(model, book.SGD(lr))
    np.random.seed(seed)
    trainer.fit(xs, ts, epochs, rows, steps, max_grad, eval_interval=2)

    np.random.seed(seed)
    losses = []
    for k in range(epochs * (len(xs) // (rows * steps))):
        x, t = (block(whole, k * steps, rows, steps) for whole in (xs, ts))
        losses.append(descend(oracle.loss(x, t), oracle.leaves, optimiser, max_grad))
    assert trainer.time_idx == len(losses) * steps
    assert trainer.current_epoch == epochs
    # a line at iterations 0 and 2 of each epoch of 4, each of the losses since the one before
    want = [np.mean(losses[of]) for of in (slice(1), slice(1, 3), slice(3, 5), slice(5, 7))]
    np.testing.assert_allclose(np.log(trainer.ppl_list), want, rtol=LIMITS[dtype])
    return model, oracle, text


@each_backend
@each_run
@pytest.mark.parametrize("chapter", LANGUAGE_MODELS)
def test_language_models(backend, dtype, seed, chapter, capsys):
    with use_backend(backend, strict=True):
        model, oracle, text = train_language_models(chapter, seed, dtype)
        leaves = list(oracle.leaves)
        if oracle.tied:  # the list of the model has it twice
            leaves.insert(-1, leaves[0].T)
        same_params(model, leaves, dtype)
        model.reset_state()
        got = book.eval_perplexity(model, text, batch_size=2, time_size=5)
    oracle.states, losses = {}, []
    for k in range(0, 20, 5):  # streams of 24
        x, t = (whole[:48].reshape(2, 24)[:, k : k + 5] for whole in (text[:-1], text[1:]))
        losses.append(float(oracle.loss(x, t, train=False).detach()))
    np.testing.assert_allclose(np.log(got), np.mean(losses), rtol=LIMITS[dtype])
    assert capsys.readouterr().out.count("| perplexity ") == 4


@pytest.mark.parametrize("chapter", LANGUAGE_MODELS)
def test_language_models_on_a_device(chapter):
    with use_fake_device():
        model, oracle, _ = train_language_models(chapter, 0, np.float64, xp.asarray)
        leaves = list(oracle.leaves)
        if oracle.tied:
            leaves.insert(-1, leaves[0].T)
        for param, leaf in zip(model.params, leaves, strict=True):
            assert relative_error(asnumpy(param), leaf.detach().numpy()) < 1e-10


# ---- chapters 7 and 8: from sequence to sequence


class Seq2seq(book.BaseModel):
    """An encoder's last state, or with attention all of them, is what the decoder starts from.

    kind   "plain", "peeky" (the encoder's state goes into every step too), "attention"
    """

    def __init__(self, kind: str, arrays: list[Array]) -> None:
        self.kind = kind
        self.encoder = [book.TimeEmbedding(arrays[0]), book.TimeLSTM(*arrays[1:4])]
        self.embed, self.lstm = book.TimeEmbedding(arrays[4]), book.TimeLSTM(*arrays[5:8], True)
        self.affine, self.attention = book.TimeAffine(*arrays[8:]), book.TimeAttention()
        self.softmax = book.TimeSoftmaxWithLoss()
        layers = [*self.encoder, self.embed, self.lstm, self.affine]
        self.params = [param for layer in layers for param in layer.params]
        self.grads = [grad for layer in layers for grad in layer.grads]

    def _encode(self, xs: Array) -> Array:
        for layer in self.encoder:
            xs = layer.forward(xs)
        return xs

    def _decode(self, ts: Array, hs: Array) -> Array:
        """Scores of the steps that follow ts."""
        h = hs[:, -1]
        repeated = np.repeat(h, ts.shape[1], axis=0).reshape(len(h), -1, h.shape[1])
        out = self.embed.forward(ts)
        if self.kind == "peeky":
            out = np.concatenate((repeated, out), axis=2)
        out = self.lstm.forward(out)
        if self.kind == "peeky":
            out = np.concatenate((repeated, out), axis=2)
        if self.kind == "attention":
            out = np.concatenate((self.attention.forward(hs, out), out), axis=2)
        return self.affine.forward(out)

    def forward(self, xs: Array, ts: Array) -> Any:
        self.hs = self._encode(xs)
        self.lstm.set_state(self.hs[:, -1])
        return self.softmax.forward(self._decode(ts[:, :-1], self.hs), ts[:, 1:])

    def backward(self, dout: float = 1) -> None:
        H, dhs = self.hs.shape[2], np.zeros_like(self.hs)
        dout = self.affine.backward(self.softmax.backward(dout))
        if self.kind == "attention":
            dhs, more = self.attention.backward(dout[:, :, :H])
            dout = dout[:, :, H:] + more
        if self.kind == "peeky":
            dhs[:, -1] += dout[:, :, :H].sum(axis=1)
            dout = dout[:, :, H:]
        dout = self.lstm.backward(dout)
        if self.kind == "peeky":
            dhs[:, -1] += dout[:, :, :H].sum(axis=1)
            dout = dout[:, :, H:]
        self.embed.backward(dout)
        dhs[:, -1] += self.lstm.dh
        for layer in reversed(self.encoder):
            dhs = layer.backward(dhs)

    def generate(self, xs: Array, start_id: int, sample_size: int) -> list[int]:
        hs, answer = self._encode(xs), [start_id]
        self.lstm.set_state(hs[:, -1])
        for _ in range(sample_size):
            scores = self._decode(np.array(answer[-1:]).reshape(1, 1), hs)
            answer.append(int(np.argmax(scores.flatten())))
        return answer[1:]


def seq2seq_loss(kind: str, leaves: list[Any], xs: Array, ts: Array) -> Any:
    embed, *encoder = leaves[:4]
    hs, _ = unrolled("lstm", embed[torch.from_numpy(xs)], None, encoder)
    h, ids = hs[:, -1], torch.from_numpy(ts[:, :-1])
    repeated = h[:, None].expand(-1, ids.shape[1], -1)
    out = leaves[4][ids]
    if kind == "peeky":
        out = torch.cat([repeated, out], dim=2)
    out, _ = unrolled("lstm", out, [h, torch.zeros_like(h)], leaves[5:8])
    if kind == "peeky":
        out = torch.cat([repeated, out], dim=2)
    if kind == "attention":
        weights = torch.softmax(torch.einsum("nth,nsh->nts", out, hs), dim=2)
        out = torch.cat([torch.einsum("nts,nsh->nth", weights, hs), out], dim=2)
    return cross_entropy(out @ leaves[8] + leaves[9], ts[:, 1:])


def seq2seq_arrays(kind: str, seed: int, dtype: Any, V: int = 9, D: int = 3, H: int = 5) -> Any:
    into, out = (H + D if kind == "peeky" else D), (H if kind == "plain" else 2 * H)
    return [
        numbers(V, D, seed=seed, dtype=dtype),
        *cell_arrays("lstm", D, H, seed + 1, dtype),
        numbers(V, D, seed=seed + 4, dtype=dtype),
        *cell_arrays("lstm", into, H, seed + 5, dtype),
        numbers(out, V, seed=seed + 8, dtype=dtype),
        numbers(V, seed=seed + 9, dtype=dtype),
    ]


@each_backend
@each_run
@pytest.mark.parametrize("kind", ["plain", "peeky", "attention"])
def test_from_sequence_to_sequence(backend, dtype, seed, kind, capsys):
    arrays, random = seq2seq_arrays(kind, seed, dtype), np.random.default_rng(seed)
    x, t = random.integers(0, 9, (10, 7)), random.integers(0, 9, (10, 5))
    leaves, optimiser, losses = leaves_of(arrays), Optimiser("Adam", 0.01), []
    model = Seq2seq(kind, arrays)
    trainer = book.Trainer(model, book.Adam(0.01))

    np.random.seed(seed)
    with use_backend(backend, strict=True):
        trainer.fit(x, t, max_epoch=2, batch_size=3, max_grad=0.5, eval_interval=1)
    np.random.seed(seed)
    xs, ts = x, t
    for _ in range(2):
        order = np.random.permutation(10)
        xs, ts = xs[order], ts[order]
        for k in range(0, 9, 3):
            loss = seq2seq_loss(kind, leaves, xs[k : k + 3], ts[k : k + 3])
            losses.append(descend(loss, leaves, optimiser, 0.5))
    np.testing.assert_allclose(trainer.loss_list, losses, rtol=LIMITS[dtype])
    if dtype == np.float64:  # Adam's first steps are the gradients' signs, which float32 may flip
        same_params(model, leaves, dtype)
    assert capsys.readouterr().out.count("| loss ") == 6


@each_backend
def test_answers_are_counted(backend, capsys):
    model = Seq2seq("attention", seq2seq_arrays("attention", 0, np.float32))
    question, signs = np.array([[1, 2, 3]]), dict(enumerate("abcdefghi"))
    with use_backend(backend, strict=True):
        answer = model.generate(question, 4, 6)
        right, wrong = np.array([[4, *answer]]), np.array([[4, *answer[:-1], (answer[-1] + 1) % 9]])
        assert book.eval_seq2seq(model, question, right, signs, verbose=True) == 1
        assert book.eval_seq2seq(model, question, wrong, signs, True, is_reverse=True) == 0
        said = "".join(signs[c] for c in answer)
        lines = capsys.readouterr().out.splitlines()
        assert lines[:4] == ["Q bcd", f"T {said}", f"O {said}", "---"]
        assert lines[4] == "Q dcb"
        assert lines[6] == f"X {said}"
        assert book.eval_seq2seq(model, question, right, signs) == 1
    assert capsys.readouterr().out == ""
    # what chapter 8 draws: a row for each step of the decoder
    model.forward(question, right)
    picture = np.array(model.attention.attention_weights)
    assert picture.reshape(picture.shape[0], picture.shape[2]).shape == (6, 3)
    np.testing.assert_allclose(picture.sum(axis=2), 1, rtol=1e-6)


# ---- layers


def gradients(outputs: Any, douts: list[Array], leaves: list[Any]) -> list[Array]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum(
        (out * torch.from_numpy(dout)).sum() for out, dout in zip(outputs, douts, strict=True)
    )
    return [grad.numpy() for grad in torch.autograd.grad(total, leaves)]


N, T, D, M = 3, 5, 4, 7
LAYERS: dict[str, tuple[Any, list[tuple[int, ...]], list[tuple[int, ...]], Any]] = {
    # the class, its parameters' shapes, its inputs', and the equation
    "MatMul": (book.MatMul, [(D, M)], [(N, D)], lambda W, x: x @ W),
    "Affine": (book.Affine, [(D, M), (M,)], [(N, D)], lambda W, b, x: x @ W + b),
    "Softmax": (book.Softmax, [], [(N, M)], lambda x: torch.softmax(x, dim=1)),
    "Sigmoid": (book.Sigmoid, [], [(N, T, D)], torch.sigmoid),
    "WeightSum": (
        book.WeightSum, [], [(N, T, D), (N, T)], lambda hs, a: torch.einsum("nth,nt->nh", hs, a),
    ),
    "AttentionWeight": (
        book.AttentionWeight, [], [(N, T, D), (N, D)],
        lambda hs, h: torch.softmax(torch.einsum("nth,nh->nt", hs, h), dim=1),
    ),
    "Attention": (
        book.Attention, [], [(N, T, D), (N, D)],
        lambda hs, h: torch.einsum(
            "nth,nt->nh", hs, torch.softmax(torch.einsum("nth,nh->nt", hs, h), dim=1)
        ),
    ),
    "TimeAttention": (
        book.TimeAttention, [], [(N, T, D), (N, M, D)],
        lambda hs, h: torch.softmax(h @ hs.transpose(1, 2), dim=2) @ hs,
    ),
    "one row": (book.Attention, [], [(1, 1, D), (1, D)], lambda hs, h: hs[:, 0] + 0 * h),
}  # fmt: skip


@each_backend
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_one_step(backend, name):
    make, params, inputs, equation = LAYERS[name]
    arrays = [numbers(*shape, seed=k) for k, shape in enumerate([*params, *inputs])]
    leaves = leaves_of(arrays)
    with use_backend(backend, strict=True):
        layer = make(*arrays[: len(params)])
        out = layer.forward(*arrays[len(params) :])
        dout = numbers(*out.shape, seed=9)
        back = layer.backward(dout)
    want = equation(*leaves)
    assert relative_error(out, want.detach().numpy()) < 1e-13
    back = back if isinstance(back, tuple) else (back,)
    for got, grad in zip([*layer.grads, *back], gradients(want, [dout], leaves), strict=True):
        assert np.abs(got - grad).max() < 1e-13
    assert isinstance(layer, numba_rnn.Layer)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_one_step_on_a_device(name):
    make, params, inputs, _ = LAYERS[name]
    arrays = [numbers(*shape, seed=k) for k, shape in enumerate([*params, *inputs])]
    there = [xp.asarray(array) for array in arrays]
    layer, found = make(*arrays[: len(params)]), []
    out = layer.forward(*arrays[len(params) :])
    back = layer.backward(dout := numbers(*out.shape, seed=9))
    found = [out, *(back if isinstance(back, tuple) else [back]), *layer.grads]
    with use_fake_device():
        layer = make(*there[: len(params)])
        out = layer.forward(*there[len(params) :])
        back = layer.backward(xp.asarray(dout))
        again = [out, *(back if isinstance(back, tuple) else [back]), *layer.grads]
        for one, other in zip(map(asnumpy, again), found, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


@each_backend
def test_embedding_of_one_step(backend):
    W, ids, dout = numbers(6, D), np.array([5, 0, 5, 2, 5]), numbers(5, D, seed=1)
    with use_backend(backend, strict=True):
        layer = book.Embedding(W)
        np.testing.assert_array_equal(layer.forward(ids), W[ids])
        assert layer.backward(dout) is None
    want = np.zeros_like(W)
    for k, row in enumerate(ids):
        want[row] += dout[k]
    np.testing.assert_allclose(layer.grads[0], want, rtol=1e-14)
    assert layer.W is W
    assert book.TimeEmbedding(W).W is W


@each_dtype
def test_losses_of_labels_and_of_one_hot_vectors(dtype):
    scores, labels = numbers(3, 4, 6, dtype=dtype), np.arange(12).reshape(3, 4) % 6
    want = cross_entropy(torch.from_numpy(scores.astype(np.float64)), labels)
    for ts in (labels, np.eye(6, dtype=np.int32)[labels], np.eye(6)[labels]):
        layer = book.TimeSoftmaxWithLoss()
        np.testing.assert_allclose(layer.forward(scores, ts), want, rtol=1e-6)
        assert layer.backward(1).shape == scores.shape
    rows, single = scores[:, 0], labels[:, 0]
    for t in (single, np.eye(6, dtype=int)[single]):
        layer = book.SoftmaxWithLoss()
        loss = layer.forward(rows, t)
        shares = torch.log_softmax(torch.from_numpy(rows.astype(np.float64)), dim=1).numpy()
        np.testing.assert_allclose(loss, -shares[np.arange(3), single].mean(), rtol=1e-6)
        gradient = (np.exp(shares) - np.eye(6)[single]) / 3
        np.testing.assert_allclose(layer.backward(), gradient, rtol=1e-4, atol=1e-6)
    for soft in (np.full((3, 4, 6), 1 / 6), np.zeros((3, 4, 6)), np.ones((3, 4, 6))):
        with pytest.raises(ValueError, match=r"ts: .* got vectors that are not one-hot"):
            book.TimeSoftmaxWithLoss().forward(scores, soft)
    with pytest.raises(ValueError, match=r"ts: .* got vectors that are not one-hot"):
        book.SoftmaxWithLoss().forward(rows, np.full((3, 6), 1 / 6))


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_sigmoid_losses(shape):
    x, t = 3 * numbers(*shape), (numbers(*shape, seed=1) > 0).astype(int)
    y = 1 / (1 + np.exp(-x))
    for make in (book.SigmoidWithLoss, book.TimeSigmoidWithLoss):
        layer = make()
        want = -np.log(np.where(t == 1, y, 1 - y)).mean()
        np.testing.assert_allclose(layer.forward(x, t), want, rtol=1e-13)
        np.testing.assert_allclose(layer.backward(), (y - t) / x.size, rtol=1e-12)


@each_backend
@each_dtype
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5])
def test_the_seed_of_numpy_decides_what_drops(backend, dtype, ratio):
    xs, dout = numbers(2, 5, 3, dtype=dtype), numbers(2, 5, 3, seed=1, dtype=dtype)
    first, second, single = (
        make(dropout_ratio=ratio) for make in (book.TimeDropout, book.TimeDropout, book.Dropout)
    )
    np.random.seed(7)
    with use_backend(backend, strict=True):
        out = [layer.forward(xs) for layer in (first, second, single)]
    np.random.seed(7)
    keep = [np.random.rand(2, 5, 3) > ratio for _ in range(3)]
    for layer, got, kept in zip((first, second), out, keep, strict=False):
        assert got.dtype == layer.mask.dtype == dtype
        np.testing.assert_array_equal(layer.mask != 0, kept)
        np.testing.assert_allclose(layer.mask, kept / (1 - ratio), rtol=1e-7)
        np.testing.assert_array_equal(got, xs * layer.mask)
        np.testing.assert_array_equal(layer.backward(dout), dout * layer.mask)
        layer.train_flg = False
        np.testing.assert_array_equal(layer.forward(xs), xs)
        np.testing.assert_array_equal(layer.backward(dout), dout)
    np.testing.assert_array_equal(single.mask, keep[2])
    np.testing.assert_array_equal(out[2], xs * keep[2])
    np.testing.assert_array_equal(single.backward(dout), dout * keep[2])
    after = single.forward(xs, train_flg=False)
    assert after.dtype == dtype
    np.testing.assert_allclose(after, xs * (1 - ratio), rtol=1e-6)


@each_backend
@pytest.mark.parametrize("stateful", [False, True])
def test_both_directions_carry_their_states_on(backend, stateful):
    params = [*cell_arrays("lstm", 3, 5, 0), *cell_arrays("lstm", 3, 5, 3)]
    leaves, states = leaves_of(params), [None, None]
    with use_backend(backend, strict=True):
        layer = book.TimeBiLSTM(*params, stateful)
        for k in range(3):
            xs, dhs = numbers(2, 4, 3, seed=k), numbers(2, 4, 10, seed=k + 5)
            (inputs,) = leaves_of([xs])
            sides = [
                unrolled("lstm", side, states[i], leaves[3 * i : 3 * i + 3])
                for i, side in enumerate((inputs, inputs.flip(1)))
            ]
            if stateful:
                states = [[s.detach() for s in state] for _, state in sides]
            hs = torch.cat([sides[0][0], sides[1][0].flip(1)], dim=2)
            assert relative_error(layer.forward(xs), hs.detach().numpy()) < 1e-13
            wanted = gradients(hs, [dhs], [inputs, *leaves])
            for got, want in zip([layer.backward(dhs), *layer.grads], wanted, strict=True):
                assert relative_error(got, want) < 1e-12
    assert layer.forward_lstm.params == layer.params[:3]
    assert layer.backward_lstm.params == layer.params[3:]
    layer.reset_state()
    assert layer.backward_lstm.h is layer.forward_lstm.h is None


@each_backend
@pytest.mark.parametrize("kind", GATES)
def test_the_books_loop_over_steps(backend, kind):
    """TimeLSTM and its like written in Python around one layer a step, its last dc the number 0."""
    make, over_time = {
        "rnn": (book.RNN, book.TimeRNN), "lstm": (book.LSTM, book.TimeLSTM),
        "gru": (book.GRU, book.TimeGRU),
    }[kind]  # fmt: skip
    params, xs, dhs = cell_arrays(kind, 3, 5, 0), numbers(2, 4, 3), numbers(2, 4, 5, seed=1)
    with use_backend(backend, strict=True):
        whole = over_time(*params)
        hs = whole.forward(xs)
        dxs = whole.backward(dhs)
        state = (np.zeros((2, 5)),) * (2 if kind == "lstm" else 1)
        layers = [make(*params) for _ in range(4)]
        for t, layer in enumerate(layers):
            out = layer.forward(xs[:, t], *state)
            state = out if kind == "lstm" else (out,)
            assert relative_error(state[0], hs[:, t]) < 1e-13
        dstate, total = (0,) * len(state), [0, 0, 0]
        for t in reversed(range(4)):
            dx, *dstate = layers[t].backward(dhs[:, t] + dstate[0], *dstate[1:])
            assert relative_error(dx, dxs[:, t]) < 1e-12
            total = [a + b for a, b in zip(total, layers[t].grads, strict=True)]
    for got, want in zip(total, whole.grads, strict=True):
        assert relative_error(got, want) < 1e-12


# ---- optimisers, clipping, shared weights


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0])
@pytest.mark.parametrize("name", ["SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop", "Adam"])
def test_optimisers(name, scale, seed):
    ours, want = getattr(book, name)(lr=0.1), Optimiser(name, 0.1)
    start = [numbers(4, 3, seed=seed), numbers(5, seed=seed + 1)]
    params, expected = ([array.copy() for array in start] for _ in range(2))
    for k in range(20):
        if k == 10:
            ours.lr = want.lr = 0.05
        grads = [scale * numbers(*array.shape, seed=100 * seed + k) for array in start]
        ours.update(params, grads)
        want.update(expected, grads)
    for got, array, first in zip(params, expected, start, strict=True):
        assert relative_error(got - first, array - first) < 1e-7
        assert relative_error(got, array) < 1e-13


def test_the_papers_adam_is_another():
    """Which is why there are two: at gradients of 1e-7 they are far apart."""
    ours, papers = np.zeros(3), np.zeros(3)
    for optimiser, param in (book.Adam(), ours), (numba_rnn.training.Adam(), papers):
        for _ in range(10):
            optimiser.update([param], [np.full(3, 1e-7)])
    assert (papers / ours > 2).all()


def test_names_of_options():
    assert book.RMSprop(lr=0.1, decay_rate=0.5).decay == 0.5
    assert book.Nesterov(lr=0.1, momentum=0.5).momentum == 0.5
    with pytest.raises(ValueError, match="dropout_ratio"):
        book.TimeDropout(dropout_ratio=1.5)


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_clipping(limit):
    grads = [numbers(4, 3), numbers(7, seed=1)]
    norm = np.linalg.norm(np.concatenate([grad.ravel() for grad in grads]))
    want = [grad * min(1, limit / (norm + 1e-6)) for grad in grads]
    assert book.clip_grads(grads, limit) is None
    for got, array in zip(grads, want, strict=True):
        np.testing.assert_allclose(got, array, rtol=1e-14)
    grads = [np.array([np.inf, 1.0])]
    book.clip_grads(grads, 1.0)
    np.testing.assert_array_equal(grads[0], [np.inf, 1.0])


def test_shared_parameters_are_there_once():
    W, b, square = numbers(4, 3), numbers(3), np.zeros((2, 2))
    dW, dWT, db = numbers(4, 3, seed=1), numbers(3, 4, seed=2), numbers(3, seed=3)
    twins = [square, square.copy()]  # equal, but two
    params = [W, b, W.T, b, *twins]
    grads = [dW.copy(), db.copy(), dWT, db, np.ones((2, 2)), np.ones((2, 2))]
    kept, summed = book.remove_duplicate(params, grads)
    assert [id(p) for p in kept] == [id(p) for p in (W, b, *twins)]
    np.testing.assert_allclose(summed[0], dW + dWT.T)
    np.testing.assert_allclose(summed[1], 2 * db)
    assert len(params) == len(grads) == 6
    view, halves = [square, square[:]], np.zeros((2, 4))
    _, summed = book.remove_duplicate(view, [numbers(2, 2), numbers(2, 2, seed=1)])
    np.testing.assert_allclose(summed, [numbers(2, 2) + numbers(2, 2, seed=1)])
    apart = [halves[:, :2], halves[:, 2:], halves[:, 1:3]]
    assert len(book.remove_duplicate(apart, [np.ones((2, 2)) for _ in apart])[0]) == 3
    with use_fake_device():
        device = xp.asarray(W)
        kept, _ = book.remove_duplicate([device, device.T], [device.copy(), device.T.copy()])
        assert kept == [device] or kept[0] is device
        copies = [xp.asarray(W), xp.asarray(W.T.copy())]
        with pytest.raises(ValueError, match=r"params: .* copies on the device.*W = to_gpu\(W\)"):
            book.remove_duplicate(copies, [copies[0].copy(), copies[1].copy()])


# ---- functions and files


def test_functions():
    x = numbers(4, 6)
    for rows in (x, x[0], x[None]):
        want = torch.softmax(torch.from_numpy(rows), dim=-1).numpy()
        np.testing.assert_allclose(book.softmax(rows), want, rtol=1e-13)
    np.testing.assert_allclose(book.sigmoid(x), 1 / (1 + np.exp(-x)), rtol=1e-13)
    np.testing.assert_array_equal(book.relu(x), x * (x > 0))
    y, t = book.softmax(x), np.array([0, 5, 2, 2])
    want = -np.mean([math.log(y[k, label] + 1e-7) for k, label in enumerate(t)])
    np.testing.assert_allclose(book.cross_entropy_error(y, t), want, rtol=1e-13)
    np.testing.assert_allclose(book.cross_entropy_error(y, np.eye(6)[t]), want, rtol=1e-13)
    np.testing.assert_allclose(
        book.cross_entropy_error(y[1], np.array(5)), -math.log(y[1, 5] + 1e-7)
    )
    np.testing.assert_array_equal(book.to_cpu(x), x)


PROGRAMS = {  # what the chapters import of each module of common
    "time_layers": "np RNN LSTM GRU TimeRNN TimeLSTM TimeGRU TimeEmbedding TimeAffine TimeDropout "
    "TimeSoftmaxWithLoss TimeSigmoidWithLoss TimeBiLSTM softmax sigmoid Affine Embedding MatMul",
    "layers": "np Softmax SoftmaxWithLoss Sigmoid SigmoidWithLoss Dropout Affine Embedding MatMul",
    "attention_layer": "np WeightSum AttentionWeight Attention TimeAttention",
    "optimizer": "SGD Momentum Nesterov AdaGrad RMSprop Adam",
    "trainer": "Trainer RnnlmTrainer remove_duplicate",
    "base_model": "np BaseModel",
    "functions": "sigmoid relu softmax cross_entropy_error",
    "util": "clip_grads eval_perplexity eval_seq2seq to_cpu to_gpu",
    "np": "np",
    "config": "GPU",
}


@pytest.mark.parametrize("module", PROGRAMS)
def test_names_that_a_star_imports(module):
    names: dict[str, Any] = {}
    exec(f"from numba_rnn.book.{module} import *", names)
    for name in PROGRAMS[module].split():
        assert name in names
        if name not in ("np", "GPU"):
            assert names[name] is getattr(book, name)
    assert importlib.import_module(f"numba_rnn.book.{module}").__doc__


class Weights(book.BaseModel):
    def __init__(self, seed: int = 0, dtype: Any = np.float32) -> None:
        self.params = [
            numbers(3, 4, seed=seed, dtype=dtype),
            numbers(5, seed=seed + 1, dtype=dtype),
        ]
        self.params.append(np.asfortranarray(numbers(2, 3, seed=seed, dtype=dtype)))


@each_dtype
def test_parameters_to_a_file_and_back(dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, other = Weights(dtype=dtype), Weights(seed=5, dtype=dtype)
    model.save_params()
    with open("Weights.pkl", "rb") as file:  # as the book's loads it
        stored = pickle.load(file)
    before = list(other.params)
    other.load_params()
    for param, same, array, own in zip(other.params, before, stored, model.params, strict=True):
        assert param is same
        assert array.dtype == np.float16
        np.testing.assert_array_equal(param, own.astype(np.float16).astype(dtype))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for kind in (np.float16, np.float32, ">f8"):
            with open("book.pkl", "wb") as file:
                pickle.dump([p.astype(kind) for p in model.params], file, protocol=protocol)
            other.load_params("book.pkl")
            for param, own in zip(other.params, model.params, strict=True):
                np.testing.assert_array_equal(param, own.astype(kind).astype(dtype))
    with pytest.raises(FileNotFoundError):
        other.load_params(tmp_path / "none.pkl")


class Trap:
    def __init__(self, path: Any) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.path),)


def test_what_is_no_file_of_parameters_is_refused(tmp_path):
    path, model = tmp_path / "params.pkl", Weights()
    before, ran = [param.copy() for param in model.params], tmp_path / "ran"
    wrong = {
        "trap": ([Trap(ran)], "mkdir"),
        "objects": ([np.array([None])], "O8"),
        "numbers": ([1, 2, 3], "pickled list of arrays"),
        "ints": ([np.arange(3)] * 3, "i8"),
        "few": (model.params[:2], r"expected arrays of shape \(3, 4\), \(5,\), \(2, 3\), got"),
        "shapes": ([*model.params[:2], np.ones((3, 2))], r"got \(3, 4\), \(5,\), \(3, 2\)"),
    }
    for content, says in wrong.values():
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=rf"params\.pkl: .*{says}"):
            model.load_params(path)
    whole = pickle.dumps([p.astype(np.float16) for p in before])
    random, refused = np.random.default_rng(0), 0
    for k in range(300):
        damaged = bytearray(whole[: random.integers(len(whole))] if k % 2 else whole)
        for place in random.integers(0, max(1, len(damaged)), 3):
            damaged[place : place + 1] = bytes(random.integers(0, 256, 1, dtype=np.uint8))
        path.write_bytes(damaged)
        try:
            model.load_params(path)
        except ValueError:
            refused += 1
        for param, array in zip(model.params, before, strict=True):
            param[...] = array
    assert refused > 200
    assert not ran.exists()
    assert base_model.BaseModel is book.BaseModel


def test_plots():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for make, values in (book.Trainer, "loss_list"), (book.RnnlmTrainer, "ppl_list"):
        trainer = make(None, None)
        setattr(trainer, values, [3.0, 2.0])
        trainer.eval_interval = 20
        trainer.plot(ylim=(0, 5))
        (line,) = plt.gca().lines
        assert line.get_ydata().tolist() == [3.0, 2.0]
        assert plt.gca().get_xlabel() == "iterations (x20)"
        plt.close("all")
