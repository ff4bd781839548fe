"""The book's ``common/trainer.py``: gradient, clipping, update, and a line now and then.

``Trainer``        examples x with their targets t, shuffled anew before every epoch
``RnnlmTrainer``   one long text, read in rows side by side whose states go on from block to block

A model has ``params``, ``grads``, ``forward(x, t)``, which returns the loss, and ``backward()``.
"""

import time
from typing import Any

import numpy as np

from ..backend import engine_of_param
from ..layers.losses import perplexity_of
from ..optional_deps import optional_import
from ..typing import Array
from .util import clip_grads

__all__ = ["RnnlmTrainer", "Trainer", "clip_grads", "np", "remove_duplicate"]


def remove_duplicate(params: list[Array], grads: list[Array]) -> tuple[list[Array], list[Array]]:
    """List every parameter once. The gradient of a shared parameter is the sum of its gradients.

    Two layers share a parameter as it is, or transposed, ``W`` and ``W.T``, in the same memory.

    Parameters
    ----------
    params : list of arrays
        The parameters.
    grads : list of arrays
        Their gradients.

    Returns
    -------
    params : list of arrays
        Every parameter once.
    grads : list of arrays
        Their gradients.

    Raises
    ------
    ValueError
        If a W and a W.T are equal on a GPU, where they are two copies.
    """
    kept: list[tuple[Array, Array]] = []
    for param, grad in zip(params, grads, strict=True):
        for other, total in kept:
            if _is_same(param, other):
                total += grad
                break
            if param.ndim == 2 and _is_transposed(param, other):
                total += grad.T
                break
        else:
            kept.append((param, grad))
    return [param for param, _ in kept], [grad for _, grad in kept]


def _is_same(param: Array, other: Array) -> bool:
    """Whether two arrays, one of them a view perhaps, are the same numbers in memory."""
    first = (slice(1),) * param.ndim  # for parts of one array may lie between each other
    return (param.shape, param.strides) == (other.shape, other.strides) and bool(
        engine_of_param(param).xp.may_share_memory(param[first], other[first])
    )


def _is_transposed(param: Array, other: Array) -> bool:
    if _is_same(param, other.T):
        return True
    on_device = engine_of_param(param).xp is not np
    if on_device and param.shape == other.T.shape and (param == other.T).all():
        raise ValueError(
            f"params: a W {other.shape} and its W.T become two copies on the device, which would "
            "be trained separately; move W to the device first: W = to_gpu(W)"
        )
    return False


class _Training:
    """The base of both trainers.

    current_epoch   how many epochs are complete
    """

    def __init__(self, model: Any, optimizer: Any) -> None:
        self.model, self.optimizer = model, optimizer
        self.eval_interval: int | None = None
        self.current_epoch = 0
        self._losses: list[Any] = []  # since the last line

    def _start(self, eval_interval: int | None) -> None:
        self.eval_interval, self._losses, self._started = eval_interval, [], time.time()

    def _iterate(self, x: Array, t: Array, max_grad: float | None) -> None:
        """One step of gradient descent."""
        self._losses.append(self.model.forward(x, t))
        self.model.backward()
        params, grads = remove_duplicate(self.model.params, self.model.grads)
        if max_grad is not None:
            clip_grads(grads, max_grad)
        self.optimizer.update(params, grads)

    def _mean_loss(self, iteration: int) -> float | None:
        """The mean loss since the last time, every ``eval_interval`` iterations, else None."""
        if self.eval_interval is None or iteration % self.eval_interval:
            return None
        mean = float(sum(self._losses) / len(self._losses))
        self._losses = []
        return mean

    def _tell(self, iteration: int, of: int, what: str, value: float) -> None:
        print(
            f"| epoch {self.current_epoch + 1} |  iter {iteration + 1} / {of} "
            f"| time {int(time.time() - self._started)}[s] | {what} {value:.2f}"
        )

    def _plot(self, values: list[float], name: str, ylim: tuple[float, float] | None) -> None:
        with optional_import("matplotlib", "plot"):
            import matplotlib.pyplot as plt
        if ylim is not None:
            plt.ylim(*ylim)
        plt.plot(np.arange(len(values)), values, label="train")
        plt.xlabel(f"iterations (x{self.eval_interval})")
        plt.ylabel(name)
        plt.show()


class Trainer(_Training):
    """The book's training loop over examples in mini-batches.

    Parameters
    ----------
    model : object
        A model with ``forward(x, t)``, ``backward()``, ``params`` and ``grads``.
    optimizer : Optimiser
        The optimiser.

    Attributes
    ----------
    loss_list : list of float
        The mean loss of every ``eval_interval`` iterations.
    current_epoch : int
        The number of complete epochs.
    """

    def __init__(self, model: Any, optimizer: Any) -> None:
        super().__init__(model, optimizer)
        self.loss_list: list[float] = []

    def fit(
        self,
        x: Array,
        t: Array,
        max_epoch: int = 10,
        batch_size: int = 32,
        max_grad: float | None = None,
        eval_interval: int | None = 20,
    ) -> None:
        """Train for ``max_epoch`` epochs, each in an order drawn by ``np.random.permutation``.

        Parameters
        ----------
        x : array
            The inputs, one example in each row.
        t : array
            The targets, one example in each row.
        max_epoch : int, default 10
            The number of epochs.
        batch_size : int, default 32
            The number of examples in a batch.
        max_grad : float, optional
            The largest norm of the gradient; a larger one is clipped.
        eval_interval : int or None, default 20
            The number of iterations between two printed mean losses; None: nothing is printed.
        """
        self._start(eval_interval)
        iterations = len(x) // batch_size
        for _ in range(max_epoch):
            order = np.random.permutation(len(x))  # noqa: NPY002 (the book's)
            x, t = x[order], t[order]
            for k in range(iterations):
                rows = slice(k * batch_size, (k + 1) * batch_size)
                self._iterate(x[rows], t[rows], max_grad)
                if (loss := self._mean_loss(k)) is not None:
                    self._tell(k, iterations, "loss", loss)
                    self.loss_list.append(loss)
            self.current_epoch += 1

    def plot(self, ylim: tuple[float, float] | None = None) -> None:
        """Show ``loss_list`` as a curve.

        Parameters
        ----------
        ylim : tuple of float, optional
            The limits of the loss axis.
        """
        self._plot(self.loss_list, "loss", ylim)


class RnnlmTrainer(_Training):
    """The book's training loop of a language model, by truncated backpropagation through time.

    Parameters
    ----------
    model : object
        A model with ``forward(xs, ts)``, ``backward()``, ``params`` and ``grads``.
    optimizer : Optimiser
        The optimiser.

    Attributes
    ----------
    ppl_list : list of float
        The perplexity of every ``eval_interval`` iterations of the last ``fit``.
    time_idx : int
        The number of steps of each row that the last ``fit`` has read.
    current_epoch : int
        The number of complete epochs.
    """

    def __init__(self, model: Any, optimizer: Any) -> None:
        super().__init__(model, optimizer)
        self.time_idx: int | None = None
        self.ppl_list: list[float] | None = None

    def get_batch(self, x: Array, t: Array, batch_size: int, time_size: int) -> tuple[Array, Array]:
        """Return the next block of the text.

        Row i starts at i (L // batch_size). At the end of the text it starts over.

        Parameters
        ----------
        x : (L,) integers
            The words.
        t : (L,) integers
            The word after each of them.
        batch_size : int
            The number of rows.
        time_size : int
            The number of steps.

        Returns
        -------
        batch_x : (batch_size, time_size) array, int32
            Words.
        batch_t : (batch_size, time_size) array, int32
            The word after each of them.
        """
        starts = np.arange(batch_size) * (len(x) // batch_size)
        steps = (self.time_idx or 0) + np.arange(time_size)
        places = (starts[:, None] + steps) % len(x)
        self.time_idx = (self.time_idx or 0) + time_size
        return x[places].astype(np.int32), t[places].astype(np.int32)

    def fit(
        self,
        xs: Array,
        ts: Array,
        max_epoch: int = 10,
        batch_size: int = 20,
        time_size: int = 35,
        max_grad: float | None = None,
        eval_interval: int | None = 20,
    ) -> None:
        """Train for ``max_epoch`` epochs, from the start of the text.

        Parameters
        ----------
        xs : (L,) integers
            The words.
        ts : (L,) integers
            The word after each of them.
        max_epoch : int, default 10
            The number of epochs.
        batch_size : int, default 20
            The number of rows in a block.
        time_size : int, default 35
            The number of steps in a block.
        max_grad : float, optional
            The largest norm of the gradient; a larger one is clipped.
        eval_interval : int or None, default 20
            The number of iterations between two printed perplexities; None: nothing is printed.
        """
        self._start(eval_interval)
        self.time_idx, self.ppl_list = 0, []
        iterations = len(xs) // (batch_size * time_size)
        for _ in range(max_epoch):
            for k in range(iterations):
                self._iterate(*self.get_batch(xs, ts, batch_size, time_size), max_grad)
                if (loss := self._mean_loss(k)) is not None:
                    perplexity = perplexity_of(loss)
                    self._tell(k, iterations, "perplexity", perplexity)
                    self.ppl_list.append(perplexity)
            self.current_epoch += 1

    def plot(self, ylim: tuple[float, float] | None = None) -> None:
        """Show ``ppl_list`` as a curve.

        Parameters
        ----------
        ylim : tuple of float, optional
            The limits of the perplexity axis.
        """
        self._plot(self.ppl_list or [], "perplexity", ylim)
