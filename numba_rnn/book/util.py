"""Of the book's ``common/util.py`` what recurrent networks need."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import engine_named, move, to_host
from ..checks import Array
from ..layers.losses import perplexity_of
from ..training.bptt import TruncatedBPTT
from ..training.clipping import global_norm

__all__ = ["clip_grads", "eval_perplexity", "eval_seq2seq", "np", "to_cpu", "to_gpu"]


def to_cpu(x: Array) -> Array:
    """The array as NumPy's."""
    return to_host(x)


def to_gpu(x: Array) -> Array:
    """The array on the GPU. Raises BackendError where none answers."""
    return move(x, engine_named("cuda"))


def clip_grads(grads: list[Array], max_norm: float) -> None:
    """Scale the gradients in place by max_norm / (norm + 1e-6) where that is less than 1.

    norm is that of all the gradients' numbers in one vector; where it is not finite they are left
    as they are.
    """
    norm = float(global_norm(grads))
    rate = max_norm / (norm + 1e-6)
    if rate < 1 and math.isfinite(norm):
        for grad in grads:
            grad *= rate


def eval_perplexity(model: Any, corpus: Array, batch_size: int = 10, time_size: int = 35) -> float:
    """exp of the mean loss over a corpus (L,), in ``batch_size`` rows, ``time_size`` steps a block.

    model   with ``forward(xs, ts)``; where it takes ``train_flg``, that is False
    """
    has_flag = "train_flg" in inspect.signature(model.forward).parameters
    options = {"train_flg": False} if has_flag else {}
    blocks = TruncatedBPTT(to_cpu(corpus), batch_size, time_size)
    losses = [model.forward(xs, ts, **options) for xs, ts in blocks]
    return perplexity_of(float(sum(losses) / len(losses)))


def eval_seq2seq(
    model: Any,
    question: Array,
    correct: Array,
    id_to_char: Mapping[int, str],
    verbose: bool = False,
    is_reverse: bool = False,
) -> int:
    """1 if the model's answer is the correct one, else 0.

    model        with ``generate(question, start_id, sample_size)``
    question     (1, T) character numbers
    correct      (1, L + 1): the character that starts an answer, then the answer
    verbose      True: print question (Q), target (T) and answer (O where it is right, else X)
    is_reverse   True: the question is printed backwards, for it was given so
    """
    start_id, *answer = (int(c) for c in correct.flatten())
    guess = [int(c) for c in model.generate(question, start_id, len(answer))]
    if verbose:
        asked = question.flatten()[:: -1 if is_reverse else 1]
        for name, ids in ("Q", asked), ("T", answer), ("O" if guess == answer else "X", guess):
            print(name, "".join(id_to_char[int(c)] for c in ids))
        print("---")
    return int(guess == answer)
