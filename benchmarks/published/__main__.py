"""Results of the literature, trained again with this package.

    python -m benchmarks.published --what adding         minutes each; --what may be repeated
    python -m benchmarks.published --data ../shared/data  all, with the data of the book

    adding     the adding problem: the mean squared error of a sequence of T numbers, of which two
               are marked and to be added (baseline 0.167)
    addition   Deep Learning from Scratch 2, chapter 7: sums such as '16+75' to '91', a peeky
               decoder that reads the question backwards; the share of sums that are right
    dates      chapter 8: 'september 27, 1994' to '1994-09-27', with attention
    chapter6   chapter 6: the perplexity of the weights that the book publishes on the Penn Treebank
    zaremba    Zaremba et al. 2014, medium LSTM, on the Penn Treebank (hours: --out, --epochs)
    mnist1d    RNNClassifier with its defaults on MNIST-1D (needs the package mnist1d)

Each prints its progress, and at the end a line: the published number, ours, seconds. With --out it
writes a checkpoint after every epoch, and goes on from it when it is run again.
"""

import gzip
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.published import Options, Row, ptb
from numba_rnn import (
    TimeAffine,
    TimeAttention,
    TimeEmbedding,
    TimeLSTM,
    TimeMSE,
    TimeRecurrent,
    TimeSoftmaxWithLoss,
)
from numba_rnn.training import Adam, load_checkpoint, save_checkpoint


class Seq2seq:
    """An encoder and a decoder of one LSTM each, peeky or with attention."""

    def __init__(self, V: int, D: int, H: int, attention: bool) -> None:
        inputs, reads = (D, 2 * H) if attention else (D + H, 2 * H)
        self.embeddings = [TimeEmbedding.create(V, D, std=0.01, rng=k) for k in range(2)]
        self.encoder = TimeLSTM.create(D, H, rng=2)
        self.decoder = TimeLSTM.create(inputs, H, stateful=True, rng=3)
        self.attention = TimeAttention() if attention else None
        self.affine, self.loss = TimeAffine.create(reads, V, rng=4), TimeSoftmaxWithLoss()
        self.H = H
        layers = [*self.embeddings, self.encoder, self.decoder, self.affine]
        self.params = [p for layer in layers for p in layer.params]
        self.grads = [g for layer in layers for g in layer.grads]

    def _encode(self, questions: Any) -> Any:
        hs = self.encoder.forward(self.embeddings[0].forward(questions))
        self.decoder.set_state(hs[:, -1].copy())
        return hs

    def _decode(self, hs: Any, ids: Any) -> Any:
        xs = self.embeddings[1].forward(ids)
        if self.attention is not None:
            out = self.decoder.forward(xs)
            return np.concatenate([self.attention.forward(hs, out), out], axis=2)
        peek = np.repeat(hs[:, -1:], xs.shape[1], axis=1)
        return np.concatenate([peek, self.decoder.forward(np.concatenate([peek, xs], 2))], axis=2)

    def iterate(self, questions: Any, answers: Any, optimiser: Adam) -> float:
        """A step of training."""
        H, hs = self.H, self._encode(questions)
        loss = self.loss.forward(
            self.affine.forward(self._decode(hs, answers[:, :-1])), answers[:, 1:]
        )
        dout, dhs = self.affine.backward(self.loss.backward()), np.zeros_like(hs)
        if self.attention is not None:
            more, dout_ = self.attention.backward(dout[:, :, :H])
            dxs = self.decoder.backward(dout_ + dout[:, :, H:])
            dhs += more
        else:
            dxs = self.decoder.backward(np.ascontiguousarray(dout[:, :, H:]))
            dhs[:, -1] += (dout[:, :, :H] + dxs[:, :, :H]).sum(axis=1)
            dxs = np.ascontiguousarray(dxs[:, :, H:])
        dhs[:, -1] += self.decoder.dh
        self.embeddings[1].backward(dxs)
        self.embeddings[0].backward(self.encoder.backward(dhs))
        optimiser.update(self.params, self.grads, max_norm=5.0)
        return float(loss)

    def answer(self, questions: Any, first: int, length: int) -> Any:
        """The likeliest character after each other."""
        hs, ids = self._encode(questions), np.full((len(questions), 1), first)
        found = []
        for _ in range(length):
            ids = self.affine.forward(self._decode(hs, ids)).argmax(axis=2)
            found.append(ids)
        return np.concatenate(found, axis=1)


def _epochs(model: Any, optimiser: Adam, name: str, count: int, out: Path | None) -> Iterator[int]:
    """The epochs that are left; a checkpoint after each."""
    path, done = None if out is None else out / f"{name}.safetensors", 0
    if path is not None and path.exists():
        arrays, content = load_checkpoint(path)
        done = content["epochs"]
        for k, param in enumerate(model.params):
            param[...] = arrays[f"param/{k}"]
        memory = {key[10:]: value for key, value in arrays.items() if key.startswith("optimiser/")}
        optimiser.restore(content["optimiser"], memory)
    for epoch in range(done, count):
        yield epoch
        if path is not None:
            numbers, memory = optimiser.state()
            arrays = {f"param/{k}": param for k, param in enumerate(model.params)}
            arrays |= {f"optimiser/{key}": value for key, value in memory.items()}
            save_checkpoint(path, arrays, {"epochs": epoch + 1, "optimiser": numbers})


def sequences(
    what: str, H: int, epochs: int, attention: bool, data: Path, out: Path | None
) -> float:
    """The share of answers that are right as a whole, of 5,000 that were not trained."""
    text = gzip.decompress((data / "seq2seq" / f"{what}.txt.gz").read_bytes()).decode()
    lines = text.splitlines()
    place = lines[0].index("_")
    characters = sorted(set(text) - {"\n"})
    ids = np.array([[characters.index(c) for c in line] for line in lines])
    order = np.random.default_rng(1984).permutation(len(ids))
    questions, answers = ids[order, :place][:, ::-1], ids[order, place:]
    train, batch = len(ids) - 5000, 128
    model, optimiser = Seq2seq(len(characters), 16, H, attention), Adam()
    right = 0.0
    for epoch in _epochs(model, optimiser, what, epochs, out):
        rows = np.random.default_rng(epoch).permutation(train)
        losses = [
            model.iterate(questions[chosen], answers[chosen], optimiser)
            for chosen in np.split(rows[: train // batch * batch], train // batch)
        ]
        found = model.answer(questions[train:], answers[0, 0], answers.shape[1] - 1)
        right = float((found == answers[train:, 1:]).all(axis=1).mean())
        print(
            f"  {what}, epoch {epoch + 1}: loss {np.mean(losses):.4f}, right {right:.2%}",
            flush=True,
        )
    return right


class Adding:
    """The adding problem: one layer, its last output."""

    def __init__(self, cell: str, H: int) -> None:
        self.recurrent = TimeRecurrent.create(2, H, cell=cell, rng=0)
        self.affine, self.loss = TimeAffine.create(H, 1, rng=1), TimeMSE()
        self.params = self.recurrent.params + self.affine.params
        self.grads = self.recurrent.grads + self.affine.grads

    def forward(self, xs: Any, ts: Any) -> float:
        hs = self.recurrent.forward(xs)
        self.shape = hs.shape
        return float(self.loss.forward(self.affine.forward(hs[:, -1:]), ts))

    def backward(self) -> None:
        dhs = np.zeros(self.shape, np.float32)
        dhs[:, -1:] = self.affine.backward(self.loss.backward())
        self.recurrent.backward(dhs)


def adding(cell: str, T: int, iterations: int) -> float:
    """The mean squared error on 1,000 new sequences."""
    rng, model, optimiser = np.random.default_rng(0), Adding(cell, 128), Adam(lr=0.002)

    def drawn(count: int) -> tuple[Any, Any]:
        xs = np.zeros((count, T, 2), np.float32)
        xs[:, :, 0] = rng.random((count, T))
        first, second = rng.integers(0, T // 2, count), rng.integers(T // 2, T, count)
        rows = np.arange(count)
        xs[rows, first, 1] = xs[rows, second, 1] = 1
        return xs, (xs[:, :, 0] * xs[:, :, 1]).sum(axis=1).reshape(count, 1, 1)

    recent: list[float] = []
    for k in range(iterations):
        recent.append(model.forward(*drawn(50)))
        model.backward()
        optimiser.update(model.params, model.grads, max_norm=1.0)
        if (k + 1) % 1000 == 0:
            print(f"  adding {cell}, T {T}, {k + 1}: {np.mean(recent[-500:]):.5f}", flush=True)
    return model.forward(*drawn(1000))


def run_adding(options: Options) -> Iterator[Row]:
    for cell, T in (("lstm", 100), ("gru", 100), ("indrnn", 100), ("lstm", 200)):
        begun, error = time.perf_counter(), adding(cell, T, 6000)
        name = f"adding problem, {cell}, T {T}"
        yield name, "below 0.01 (Li et al. 2018)", f"{error:.5f}", time.perf_counter() - begun


def run_addition(options: Options) -> Iterator[Row]:
    begun = time.perf_counter()
    right = sequences("addition", 128, 25, False, options.data, options.out)
    yield (
        "addition, peeky",
        "about 98 % (book, chapter 7)",
        f"{right:.2%}",
        time.perf_counter() - begun,
    )


def run_dates(options: Options) -> Iterator[Row]:
    begun = time.perf_counter()
    right = sequences("date", 256, 4, True, options.data, options.out)
    yield (
        "dates, attention",
        "100 % (book, chapter 8)",
        f"{right:.2%}",
        time.perf_counter() - begun,
    )


def run_mnist1d(options: Options) -> Iterator[Row]:
    from mnist1d.data import get_dataset_args, make_dataset

    from numba_rnn.sklearn import RNNClassifier

    begun, made = time.perf_counter(), make_dataset(get_dataset_args())
    model = RNNClassifier(random_state=0).fit(made["x"][:, :, None], made["y"])
    right = model.score(made["x_test"][:, :, None], made["y_test"])
    yield "MNIST-1D", "91 % (GRU, Greydanus 2020)", f"{right:.1%}", time.perf_counter() - begun


RUNS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "chapter6": ptb.chapter6,
    "mnist1d": run_mnist1d,
    "adding": run_adding,
    "dates": run_dates,
    "addition": run_addition,
    "zaremba": ptb.zaremba,
}


def main(
    what: Annotated[list[str] | None, typer.Option(help=f"{', '.join(RUNS)}; all.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="The folder of the data; NUMBA_RNN_DATA.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of checkpoints.")] = None,
    epochs: Annotated[int, typer.Option(help="The epochs of zaremba.")] = 39,
) -> None:
    """Train again what others have published, and print both numbers."""
    folder = data or Path(os.environ.get("NUMBA_RNN_DATA", "."))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    rows = [row for name in what or RUNS for row in RUNS[name](Options(folder, out, epochs))]
    print(f"\n{'':32}{'published':>32}{'ours':>12}{'seconds':>9}")
    for name, published, ours, seconds in rows:
        print(f"{name:32}{published:>32}{ours:>12}{math.ceil(seconds):>9}")


if __name__ == "__main__":
    typer.run(main)
