"""Chapters 7 and 8 of Deep Learning from Scratch 2: additions and dates."""

import gzip
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.published import Options, Row, resume
from numba_rnn.models import Seq2seq
from numba_rnn.training import Adam, Batches, Trainer


def sequences(what: str, H: int, epochs: int, connection: Any, options: Options) -> float:
    """The share of answers that are right as a whole, of 5,000 that were not trained."""
    text = gzip.decompress((options.data / "seq2seq" / f"{what}.txt.gz").read_bytes()).decode()
    lines, characters = text.splitlines(), sorted(set(text) - {"\n"})
    ids = np.array([[characters.index(c) for c in line] for line in lines])
    ids, place = np.random.default_rng(1984).permutation(ids), lines[0].index("_")
    questions, answers = ids[:, :place][:, ::-1], ids[:, place:]
    batches = Batches(questions[:-5000], answers[:-5000], 128, rng=0)
    model = Seq2seq.create(len(characters), 16, H, connection=connection, rng=0)
    whole = epochs * len(batches)
    trainer = Trainer(
        model,
        Adam(),
        batches,
        valid=(questions[-5000:], answers[-5000:]),
        schedule=lambda iteration: min(1.0, 5 * (1 - iteration / whole)),  # falls in the last fifth
        max_norm=5.0,
        decay=1,
        patience=0,
        folder=options.folder(what),
        progress=False,
        log=lambda line: print(f"  {what}, {line}", flush=True),
    )
    resume(trainer)
    trainer.fit(epochs)
    found = model.generate(questions[-5000:], answers[0, 0], answers.shape[1] - 1)
    return float((found == answers[-5000:, 1:]).all(axis=1).mean())


def addition(options: Options) -> Iterator[Row]:
    """Chapter 7: sums, with a peeky decoder."""
    begun, right = time.perf_counter(), sequences("addition", 128, 25, "peeky", options)
    published = "about 98 % (book, chapter 7)"
    yield "addition, peeky", published, f"{right:.2%}", time.perf_counter() - begun


def dates(options: Options) -> Iterator[Row]:
    """Chapter 8: dates, with attention."""
    begun, right = time.perf_counter(), sequences("date", 256, 5, "attention", options)
    published = "100 % (book, chapter 8)"
    yield "dates, attention", published, f"{right:.2%}", time.perf_counter() - begun
