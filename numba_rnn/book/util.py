"""Of the book's ``common/util.py`` what recurrent networks need."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import engine_by_name, move, to_host
from ..layers.losses import perplexity_of
from ..training.bptt import TruncatedBPTT
from ..training.clipping import global_norm
from ..typing import AnyArray

__all__ = ["clip_grads", "eval_perplexity", "eval_seq2seq", "np", "to_cpu", "to_gpu"]


def to_cpu(x: AnyArray) -> AnyArray:
    """Return an array in host memory.

    Parameters
    ----------
    x : array
        An array of NumPy or of the GPU.

    Returns
    -------
    NumPy array
        The same numbers.
    """
    return to_host(x)


def to_gpu(x: AnyArray) -> AnyArray:
    """Return an array on the GPU.

    Parameters
    ----------
    x : array
        An array of NumPy or of the GPU.

    Returns
    -------
    CuPy array
        The same numbers.

    Raises
    ------
    BackendError
        If no GPU answers.
    """
    return move(x, engine_by_name("cuda"))


def clip_grads(grads: list[AnyArray], max_norm: float) -> None:
    """Scale the gradients in place by max_norm / (norm + 1e-6) if that is less than 1.

    The norm is that of all numbers of all gradients in one vector. If it is not finite, the
    gradients stay as they are.

    Parameters
    ----------
    grads : list of arrays
        The gradients.
    max_norm : float
        The largest norm.
    """
    norm = float(global_norm(grads))
    rate = max_norm / (norm + 1e-6)
    if rate < 1 and math.isfinite(norm):
        for grad in grads:
            grad *= rate


def eval_perplexity(
    model: Any, corpus: AnyArray, batch_size: int = 10, time_size: int = 35
) -> float:
    """Compute exp of the mean loss over a corpus.

    Parameters
    ----------
    model : object
        A model with ``forward(xs, ts)``. If forward takes ``train_flg``, it is False.
    corpus : (L,) integers
        The words.
    batch_size : int, default 10
        The number of rows.
    time_size : int, default 35
        The number of steps in a block.

    Returns
    -------
    float
        The perplexity.
    """
    has_flag = "train_flg" in inspect.signature(model.forward).parameters
    options = {"train_flg": False} if has_flag else {}
    blocks = TruncatedBPTT(to_cpu(corpus), batch_size, time_size)
    losses = [model.forward(xs, ts, **options) for xs, ts in blocks]
    return perplexity_of(float(sum(losses) / len(losses)))


def eval_seq2seq(
    model: Any,
    question: AnyArray,
    correct: AnyArray,
    id_to_char: Mapping[int, str],
    verbose: bool = False,
    is_reverse: bool = False,
) -> int:
    """Compare the answer of a model with the correct one.

    Parameters
    ----------
    model : object
        A model with ``generate(question, start_id, sample_size)``.
    question : (1, T) integers
        Character numbers.
    correct : (1, L + 1) integers
        The character that starts an answer, then the answer.
    id_to_char : mapping of int to str
        The characters by number.
    verbose : bool, default False
        Whether to print question (Q), target (T) and answer (O if it is right, otherwise X).
    is_reverse : bool, default False
        If True, the question is printed backwards, because it was given so.

    Returns
    -------
    int
        1 if the answer is correct, 0 otherwise.
    """
    start_id, *answer = (int(c) for c in correct.flatten())
    guess = [int(c) for c in model.generate(question, start_id, len(answer))]
    if verbose:
        asked = question.flatten()[:: -1 if is_reverse else 1]
        for name, ids in ("Q", asked), ("T", answer), ("O" if guess == answer else "X", guess):
            print(name, "".join(id_to_char[int(c)] for c in ids))
        print("---")
    return int(guess == answer)
