"""Language models of the Penn Treebank."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.published import Options, Row, resume
from numba_rnn.bridges import from_book
from numba_rnn.models import Rnnlm
from numba_rnn.text import Vocabulary, read_text
from numba_rnn.training import SGD, Trainer, TruncatedBPTT


def corpora(data: Path) -> list[Any]:
    """The tokens of training, validation and test text."""
    texts = [read_text(data / "ptb" / f"ptb.{part}.txt.gz") for part in ("train", "valid", "test")]
    vocabulary = Vocabulary.of(texts[0], "word")
    return [vocabulary.encode(text) for text in texts]


def chapter6(options: Options) -> Iterator[Row]:
    """The weights that the book publishes, with the book's code."""
    begun, corpus = time.perf_counter(), corpora(options.data)[2]
    weights = options.data / "ptb" / "book_rnnlm.npz"
    found = from_book(weights, dtype="float32").perplexity(corpus)
    yield "chapter 6, weights", "136.07 (book)", f"{found:.2f}", time.perf_counter() - begun


def zaremba(options: Options) -> Iterator[Row]:
    """The medium LSTM of Zaremba et al. 2014, as the paper trains it."""
    begun = time.perf_counter()
    train, valid, test = corpora(options.data)
    T, N, H, V = 35, 20, 650, int(train.max()) + 1
    model = Rnnlm(V, H, H, layers=2, dropout=0.5, rng=0)
    rng = np.random.default_rng(1)
    for param in model.params:  # biases as well: the forget gate's starts near 0
        param[...] = rng.uniform(-0.05, 0.05, param.shape)
    blocks = TruncatedBPTT(train, N, T)
    # The paper's loss is the sum over the T steps, its learning rate 1 and its largest norm 5. Ours
    # is the mean, 1/T of it: T times the rate and 1/T of the norm are the same step.
    trainer = Trainer(
        model,
        SGD(lr=1.0 * T),
        blocks,
        valid=valid,
        schedule=lambda iteration: 1.2 ** min(0, 5 - iteration // len(blocks)),
        decay=1,
        patience=0,
        max_norm=5 / T,
        folder=options.folder("zaremba"),
        save_every=200,
        progress=False,
    )
    resume(trainer)
    found = math.nan
    while trainer.epoch < options.epochs and not trainer.stopped:
        start = time.perf_counter()
        trainer.fit(trainer.epoch + 1)
        if not trainer.stopped:
            found, entry = model.perplexity(test), trainer.history.epochs[-1]
            print(
                f"  zaremba, epoch {trainer.epoch}: train {math.exp(entry['train_loss']):.2f}, "
                f"valid {entry['valid_perplexity']:.2f}, test {found:.2f}, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    if math.isnan(found):
        found = model.perplexity(test)
    name = f"medium LSTM, {trainer.epoch} of 39 epochs"
    yield name, "82.7 (Zaremba et al. 2014)", f"{found:.2f}", time.perf_counter() - begun
