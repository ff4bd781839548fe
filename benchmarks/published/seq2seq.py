"""Chapters 7 and 8 of Deep Learning from Scratch 2: additions and dates."""

import gzip
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.published import Options, Row, resume
from numba_rnn import TimeAffine, TimeAttention, TimeEmbedding, TimeLSTM, TimeSoftmaxWithLoss
from numba_rnn.models import Sequential
from numba_rnn.training import Adam, Batches, Trainer, cosine


class Seq2seq(Sequential):
    """An encoder and a decoder of one LSTM each, peeky or with attention."""

    def __init__(self, V: int, D: int, H: int, attention: bool) -> None:
        self.embeddings = [TimeEmbedding.create(V, D, std=0.01, rng=k) for k in range(2)]
        self.encoder = TimeLSTM.create(D, H, rng=2)
        self.decoder = TimeLSTM.create(D if attention else D + H, H, stateful=True, rng=3)
        self.attention = TimeAttention() if attention else None
        self.affine, self.H = TimeAffine.create(2 * H, V, rng=4), H
        layers = *self.embeddings, self.encoder, self.decoder, self.affine
        super().__init__(*layers, loss=TimeSoftmaxWithLoss())

    def _encode(self, questions: Any) -> Any:
        hs = self.encoder.forward(self.embeddings[0].forward(questions))
        self.decoder.set_state(hs[:, -1].copy())
        return hs

    def _decode(self, hs: Any, ids: Any) -> Any:
        """The scores of the characters after those of ids."""
        xs = self.embeddings[1].forward(ids)
        if self.attention is None:
            more = np.repeat(hs[:, -1:], xs.shape[1], axis=1)
            out = self.decoder.forward(np.concatenate([more, xs], axis=2))
        else:
            out = self.decoder.forward(xs)
            more = self.attention.forward(hs, out)
        return self.affine.forward(np.concatenate([more, out], axis=2))

    def forward(self, questions: Any, answers: Any) -> Any:  # type: ignore[override]
        self.hs = self._encode(questions)
        return self.loss.forward(self._decode(self.hs, answers[:, :-1]), answers[:, 1:])

    def backward(self) -> None:  # type: ignore[override]
        H, dhs = self.H, np.zeros_like(self.hs)
        dmore, dout = np.split(self.affine.backward(self.loss.backward()), [H], axis=2)
        if self.attention is None:
            dxs = self.decoder.backward(np.ascontiguousarray(dout))
            dhs[:, -1] = (dmore + dxs[:, :, :H]).sum(axis=1)
            dxs = np.ascontiguousarray(dxs[:, :, H:])
        else:
            dhs, dread = self.attention.backward(np.ascontiguousarray(dmore))
            dxs = self.decoder.backward(dout + dread)
        dhs[:, -1] += self.decoder.dh
        self.embeddings[1].backward(dxs)
        self.embeddings[0].backward(self.encoder.backward(dhs))

    def evaluate(self, questions: Any, answers: Any) -> tuple[Any, Any]:  # type: ignore[override]
        """The loss, and the likeliest characters, each of which the next one is given."""
        loss, hs, found = (
            self.forward(questions, answers),
            self._encode(questions),
            [answers[:, :1]],
        )
        for _ in range(answers.shape[1] - 1):
            found.append(self._decode(hs, found[-1]).argmax(axis=2))
        return loss, np.concatenate(found, axis=1)


def sequences(what: str, H: int, epochs: int, attention: bool, options: Options) -> float:
    """The share of answers that are right as a whole, of 5,000 that were not trained."""
    text = gzip.decompress((options.data / "seq2seq" / f"{what}.txt.gz").read_bytes()).decode()
    lines, characters = text.splitlines(), sorted(set(text) - {"\n"})
    ids = np.array([[characters.index(c) for c in line] for line in lines])
    ids, place = np.random.default_rng(1984).permutation(ids), lines[0].index("_")
    questions, answers = ids[:, :place][:, ::-1], ids[:, place:]
    batches = Batches(questions[:-5000], answers[:-5000], 128, rng=0)
    trainer = Trainer(
        Seq2seq(len(characters), 16, H, attention),
        Adam(),
        batches,
        valid=(questions[-5000:], answers[-5000:]),
        metrics={"right": lambda found, ts: (found == ts).all(axis=1).mean()},
        schedule=cosine(epochs * len(batches)),
        max_norm=5.0,
        decay=1,
        patience=0,
        folder=options.folder(what),
        progress=False,
        log=lambda line: print(f"  {what}, {line}", flush=True),
    )
    resume(trainer)
    return float(trainer.fit(epochs).epochs[-1]["metrics"]["right"])


def addition(options: Options) -> Iterator[Row]:
    """Chapter 7: sums, with a peeky decoder."""
    begun, right = time.perf_counter(), sequences("addition", 128, 25, False, options)
    published = "about 98 % (book, chapter 7)"
    yield "addition, peeky", published, f"{right:.2%}", time.perf_counter() - begun


def dates(options: Options) -> Iterator[Row]:
    """Chapter 8: dates, with attention."""
    begun, right = time.perf_counter(), sequences("date", 256, 4, True, options)
    published = "100 % (book, chapter 8)"
    yield "dates, attention", published, f"{right:.2%}", time.perf_counter() - begun
