"""The training loop: progress, validation, checkpoints, a clean stop."""

import copy
import math
import operator
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..kernels import deprecated
from ..layers.initialisers import set_state, state_of
from ..terminal import progress_bar, start_clock
from ..typing import AnyArray, Array, Scalar
from ..validation import expect_float, expect_int
from .accumulation import GradientMean
from .averages import (
    WeightAverage,
    both_in_one,
    expect_average,
    expect_same_average,
    weights_and_average,
)
from .batches import Batches
from .bptt import TruncatedBPTT
from .callbacks import expect_callbacks, told
from .checkpoint import expect_content, load_checkpoint, save_checkpoint
from .clipping import clip_grads, global_norm
from .data_parallel import DataParallel
from .distributed import SingleProcess
from .history import History, epochs_since_best, history_of
from .measures import measures_of
from .optimisers import Optimiser
from .run_folder import Identity, is_in, last_identity, one_run_in
from .signals import signals_to


class TrainingDiverged(RuntimeError):  # noqa: N818 (reads as what happened)
    """The loss or the gradient is no longer finite."""


class Model(Protocol):
    """A model that the trainer can train, such as Sequential.

    To be validated on pairs (xs, ts) it has a method ``evaluate(xs, ts) -> (loss, outputs)``. A
    language model, such as Rnnlm, has ``perplexity(corpus, batch_size, time_size) -> float``. An
    attribute ``batch_weight`` says how much its last batch counts in a mean over several, if it is
    not the number of rows.
    """

    rng: Any

    @property
    def params(self) -> list[Array]: ...
    @property
    def grads(self) -> list[Array]: ...
    def forward(self, xs: AnyArray, ts: AnyArray) -> Scalar: ...
    def backward(self) -> Any: ...
    def forget(self) -> None: ...
    def reset_state(self) -> None: ...
    def arrays(self) -> dict[str, Array]: ...
    def load_arrays(self, arrays: dict[str, Array]) -> None: ...


class Trainer:
    """The training loop of a model, over the blocks of a corpus or over batches of sequences.

    Parameters
    ----------
    model : Model
        The model, such as an Rnnlm or a Sequential.
    optimiser : Optimiser
        The optimiser, such as Adam.
    blocks : TruncatedBPTT or Batches
        The training data. The state is reset each time a corpus starts over, and before each of
        Batches, whose sequences do not follow on from each other.
    valid : (L,) integers, (xs, ts) or Batches, optional
        The data for validation after every epoch: tokens for a language model, for another
        model pairs, whose loss is the mean over batches, weighted by their rows.
    metrics : dict of str to callable, optional
        Functions (outputs, ts) -> float of all validation data, in NumPy arrays, by name. They are
        reported and kept; the loss decides what is best.
    schedule : callable, optional
        A function from the number of the iteration, from 0, to a factor of the learning rate, such
        as ``cosine(10_000, warm_up=500)``. ``optimiser.lr`` stays what is multiplied, and falls
        by ``decay`` as without one (1: it does not). A resumed run needs the same schedule.
    max_norm : float, optional
        The largest global norm of the gradient; a larger one is clipped.
    decay : float, default 4.0
        The divisor of the learning rate after an epoch without improvement in validation.
    decay_patience : int, default 0
        The number of epochs in a row without improvement that leave the learning rate as it is; it
        falls after the next one, and then they are counted anew. ``patience`` must be larger by
        2 at least, or 0: else training stops first.
    patience : int, default 3
        Training stops after so many epochs in a row without improvement; 0: never.
    folder : str or Path, optional
        The folder of ``last.safetensors`` and ``best.safetensors``. Without it no file is written.
    accumulate : int, default 1
        The number of batches in an iteration: the update takes their mean gradient, that of one
        batch so many times as large, in the memory that one takes. The last iteration of an epoch
        has the batches that are left.
    average : WeightAverage, optional
        An average of the weights, ``ExponentialAverage()`` or ``NonMonotoneAverage()``. Validation
        and ``best.safetensors`` use it, training goes on with the weights themselves.
    callbacks : sequence of callable, default none
        Functions of the trainer, called after every epoch, such as ``CSVLog(path)``; see
        ``numba_rnn/training/callbacks.py``. The checkpoint of the epoch is written after them.
    save_every : int, default 500
        The number of iterations between checkpoints. One is also written after every epoch.
    eval_batch : int, default 10
        The number of rows in which the validation corpus is read.
    eval_time : int, default 35
        The number of steps in a block of the validation corpus.
    extra : dict, optional
        JSON content that is added to every checkpoint, such as the vocabulary: it must come back
        as it was, and has no name ``trainer``.
    progress : bool, default True
        Whether to show a progress bar on stderr.
    log : callable, optional
        It is called with a line of text after every epoch, and for other messages.
    ranks : SingleProcess, optional
        The processes that share every batch; see ``init_distributed``. All of them create the same
        Trainer and call the same methods. Rank 0 writes files and messages.

    Attributes
    ----------
    history : History
        The course of the run so far.
    epoch, iteration : int
        The number of complete epochs and of iterations.
    stopped : bool
        Whether a signal or ``stop`` ended the last ``fit``.
    stopped_by : int
        The number of that signal, or 0.

    Raises
    ------
    ValueError
        If an option does not fit, such as a validation corpus that is too short.
    TypeError
        If the model cannot be validated on such data.

    Notes
    -----
    On a GPU no iteration waits for the device. Whether loss and gradient are finite is checked
    every twentieth of an epoch, and before a checkpoint is written.

    A checkpoint holds parameters and their average, optimiser, states of the layers, position in
    the corpus, random state and history. A run that is resumed from it continues bit for bit, if
    engine, machine and number of ranks are the same, on the NumPy engine also the number of BLAS
    threads. It may also be resumed on another engine, and by more or fewer ranks.
    """

    tell = deprecated.attribute("log")

    @deprecated.arguments(tell="log")
    def __init__(
        self,
        model: Model,
        optimiser: Optimiser,
        blocks: TruncatedBPTT | Batches,
        *,
        valid: AnyArray | tuple[AnyArray, AnyArray] | Batches | None = None,
        metrics: Mapping[str, Callable[[AnyArray, AnyArray], float]] | None = None,
        schedule: Callable[[int], float] | None = None,
        max_norm: float | None = None,
        decay: float = 4.0,
        decay_patience: int = 0,
        patience: int = 3,
        accumulate: int = 1,
        average: WeightAverage | None = None,
        callbacks: Sequence[Callable[[Any], object]] = (),
        folder: str | Path | None = None,
        save_every: int = 500,
        eval_batch: int = 10,
        eval_time: int = 35,
        extra: dict[str, Any] | None = None,
        progress: bool = True,
        log: Callable[[str], None] = lambda line: None,
        ranks: SingleProcess | None = None,
    ) -> None:
        if not hasattr(blocks, "rewind"):
            raise TypeError(
                "blocks: expected Batches(xs, ts, batch_size) or TruncatedBPTT, got "
                f"{type(blocks).__name__}"
            )
        self.model, self.optimiser, self.blocks, self.valid = model, optimiser, blocks, valid
        if max_norm is not None:
            expect_float("max_norm", max_norm, 0, low_open=True)
        self.max_norm = max_norm
        self.decay = expect_float("decay", decay, 1)
        self.decay_patience = expect_int("decay_patience", decay_patience, 0)
        self.patience = expect_int("patience", patience, 0)
        if decay_patience and decay > 1 and 0 < patience <= decay_patience + 1:
            raise ValueError(
                f"decay_patience: expected 0, or less than {max(1, patience - 1)} with patience="
                f"{patience}, after which training stops before the learning rate has fallen, got "
                f"{decay_patience}; patience={decay_patience + 2} or more, or 0, lets it fall"
            )
        self.folder = None if folder is None else Path(folder)
        self.accumulate = expect_int("accumulate", accumulate)
        if accumulate > len(blocks):
            raise ValueError(
                f"accumulate: expected at most the {len(blocks)} batches of an epoch, got "
                f"{accumulate}; a smaller batch_size makes more of them"
            )
        self.average = expect_average(average, valid)
        self.callbacks = expect_callbacks(callbacks)
        self.save_every = expect_int("save_every", save_every)
        self.eval_batch, self.eval_time = eval_batch, eval_time
        self.extra = {} if extra is None else extra
        expect_content("extra", self.extra)
        if "trainer" in self.extra:
            raise ValueError(
                "extra: expected other names than 'trainer', which the Trainer itself uses"
            )
        self.ranks = ranks or SingleProcess()
        self._first = self.ranks.rank == 0
        self.progress = progress and self._first
        self.log = log if self._first else lambda line: None
        self.schedule = schedule
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule: expected a function, got {type(schedule).__name__}")

        self._shared: DataParallel | None = None
        if self.ranks.size > 1:
            if isinstance(blocks, Batches):
                raise TypeError(
                    "blocks: expected TruncatedBPTT, whose batches several ranks can share, got "
                    "Batches"
                )
            self._shared = DataParallel(model, self.ranks, blocks)
        self._measures = measures_of(
            model, valid, metrics, tokens=self._shared is not None or hasattr(model, "perplexity"),
            blocks=blocks, eval_batch=eval_batch, eval_time=eval_time,
        )  # fmt: skip
        if getattr(type(optimiser), "update", None) is Optimiser.update:
            for k, grad in enumerate(model.grads):
                optimiser.expect_kind(f"model.grads[{k}]", grad)

        self.history = History()
        self.epoch = 0  # epochs completed
        self.iteration = 0
        self.stopped = False  # by Ctrl-C or another signal, or by stop()
        self.stopped_by = 0  # the number of that signal
        self._epoch_loss = self._recent_loss = self._recent_norm = 0.0
        self._asked = False  # to stop, by stop()
        self._stop = 0  # the number of a signal that asks to stop
        self._shown: Any = None  # the progress bar
        self._last_known: Identity = None  # the folder's last checkpoint, as we know it
        self._mean = GradientMean()
        self._record_every = max(1, -(-len(blocks) // self.accumulate) // 20)
        self._looked_at = 0  # the iteration up to which all numbers are known to be finite

    # ---- the loop

    def fit(self, max_epochs: int) -> History:
        """Train until ``max_epochs`` epochs are complete, patience runs out, or Ctrl-C.

        Parameters
        ----------
        max_epochs : int
            The number of epochs of the whole run, those before a restore included.

        Returns
        -------
        History
            The course of the run.

        Raises
        ------
        TrainingDiverged
            If loss or gradient are not finite. This is before the parameters change, on a GPU a
            twentieth of an epoch later at most; no checkpoint holds such numbers.
        FileExistsError
            If the folder holds another run, or a later state of this run.
        BlockingIOError
            If another process trains in the folder.
        MemoryError
            If memory runs out; the message has the sizes. The memory of the iteration is then free.

        Notes
        -----
        Ctrl-C is acknowledged at once, finishes the iteration, writes a checkpoint and returns with
        ``stopped`` True and the signal's number as ``stopped_by``; a second Ctrl-C interrupts at
        once (during compilation, after the piece of code that is being made). SIGTERM does the
        same, and so does SIGHUP, which a closing terminal sends (unless it is ignored, as under
        nohup), on Windows SIGBREAK.
        """
        expect_int("max_epochs", max_epochs)
        with self._sole_run():
            self.stopped, self.stopped_by = False, 0
            self._stop, self._asked = 0, False
            if self.iteration == 0:
                expect_average(self.average, self.valid)  # no other run has used it since
                self.blocks.rewind()
            with (
                told(self.callbacks, self),
                self._sharing(max_epochs),
                self._bar(max_epochs) as self._shown,
                signals_to(self._ask_to_stop),
            ):
                return self._fit(max_epochs)

    def _fit(self, max_epochs: int) -> History:
        if self.iteration == 0:
            self._factor()  # a schedule that is refused leaves no file
            self._save("last")  # from here on a killed run leaves a checkpoint
        if self.epoch >= max_epochs:
            self.log(f"nothing left to train: {self.epoch} of {max_epochs} epochs are done")
        first = True
        while not self._done(max_epochs):
            if self._shall_stop_between_epochs():
                self.stopped = True
                return self.history
            if self.blocks.cursor == 0:
                self.model.reset_state()
            batches = iter(self.blocks)
            while group := list(islice(batches, self.accumulate)):
                self._with_oom_hint(self._iterate, group)
                steps = sum(xs.shape[0] * xs.shape[1] for xs, *_ in group)
                if first:
                    start_clock(self._shown, steps)
                    first = False
                else:
                    self._shown.update(steps)
                if self.iteration % self._record_every == 0:
                    self._show_loss()
                if self._shall_stop():
                    self.stopped = True
                    self.stopped_by = self._stop or (0 if self._asked else signal.SIGINT)
                    self._save("last")
                    return self.history
                if self.iteration % self.save_every == 0:
                    self._save("last")
            self._with_oom_hint(self._end_epoch)
        if self._out_of_patience():
            best = self.history.scores.index(self.history.best) + 1
            self.log(f"stopped early: no improvement for {self.patience} epochs (best: {best})")
        return self.history

    def _gradient(self, xs: AnyArray, ts: AnyArray, more: dict[str, Any] | None = None) -> Scalar:
        """Fill the model's gradients for a batch; its loss."""
        if isinstance(self.blocks, Batches):
            self.model.reset_state()
        if self._shared is not None:
            return self._shared.gradient(xs, ts, self._asked or bool(self._stop))
        forward: Any = self.model.forward
        loss: Scalar = forward(xs, ts, **(more or {}))
        self.model.backward()
        return loss

    def _iterate(self, group: list[Any]) -> None:
        """One update, for some batches."""
        if len(group) == 1:
            loss = self._gradient(*group[0])
        else:
            self._mean.begin(self.model.grads)
            for xs, *rest in group:
                loss = self._gradient(xs, *rest)
                weight = getattr(self._shared or self.model, "batch_weight", None)
                self._mean.add(self.model.grads, loss, len(xs) if weight is None else weight)
            loss = self._mean.take(self.model.grads)
        steps = [xs.shape[1] / self.blocks.time_size for xs, *_ in group]
        with self._scheduled(sum(steps) / len(steps)):
            norm = self._step(loss)
        if self.average is not None:
            self.average.update(self.model.params)
        self.iteration += 1
        rows = [len(xs) / self.blocks.batch_size for xs, *_ in group]
        self._epoch_loss += loss * sum(map(operator.mul, rows, steps))
        self._recent_loss += loss
        self._recent_norm += norm
        if self.iteration % self._record_every == 0:
            self._sync_losses()
            n = self._record_every
            self.history.train.append(
                [self.iteration, self._recent_loss / n, self._recent_norm / n]
            )
            self._recent_loss = self._recent_norm = 0.0

    @contextmanager
    def _scheduled(self, steps: float) -> Iterator[None]:
        """The learning rate of this iteration, lower for a block of fewer steps.

        steps  of a block, as a share of ``time_size``
        """
        lr = self.optimiser.lr
        steps *= self._factor()
        if steps != 1:
            self.optimiser.lr = lr * steps
        try:
            yield
        finally:
            self.optimiser.lr = lr

    def _factor(self) -> float:
        """The schedule's factor of the learning rate of this iteration."""
        if self.schedule is None:
            return 1.0
        name = f"schedule({self.iteration})"
        return expect_float(name, self.schedule(self.iteration), 0, low_open=True)

    def _step(self, loss: Scalar) -> Scalar:
        """Update the parameters; the norm of the gradient before it was clipped."""
        params, grads = self.model.params, self.model.grads
        on_host = isinstance(loss, float)  # else to look at it is to wait for the device
        if on_host and not math.isfinite(loss):
            raise self._diverged(f"loss {loss}, gradient norm {global_norm(grads)}")
        norm: Scalar | None = None
        update = getattr(self.optimiser.update, "__func__", None)
        if update is not Optimiser.update:  # a user's own, which need not know max_norm
            norm = global_norm(grads) if self.max_norm is None else clip_grads(grads, self.max_norm)
            if on_host and not math.isfinite(norm):
                raise self._diverged(f"loss {loss}, gradient norm {norm}")
            self.optimiser.update(params, grads)
            return norm
        limit = self.max_norm
        if limit is None and on_host:
            limit = sys.float_info.max  # clips nothing, but is refused for a norm that overflows
        try:
            norm = self.optimiser.update(params, grads, max_norm=limit)
        except ValueError as error:
            if on_host and not math.isfinite(norm_now := global_norm(grads)):
                raise self._diverged(f"loss {loss}, gradient norm {norm_now}") from error
            raise
        return global_norm(grads) if norm is None else norm

    def _sync_losses(self) -> None:
        """Bring the sums to the host, where they were on a device, and see that all is well."""
        sums = self._epoch_loss, self._recent_loss, self._recent_norm
        if all(isinstance(number, float) for number in sums):
            return
        self._epoch_loss, self._recent_loss, self._recent_norm = map(float, sums)
        if not (math.isfinite(self._recent_loss) and math.isfinite(self._recent_norm)):
            raise self._diverged(
                f"sum of losses {self._recent_loss}, of gradient norms {self._recent_norm}",
                f"iterations {self._looked_at + 1} to {self.iteration}",
            )
        self._looked_at = self.iteration

    def _with_oom_hint(self, work: Callable[..., None], *args: Any) -> None:
        """Do a part of the work; where memory runs out free what it held, and say what helps."""
        try:
            work(*args)
        except MemoryError as error:
            self.model.forget()
            error.__traceback__ = None  # whose frames hold arrays
            parameters = sum(param.size for param in self.model.params)
            remedy = self._measures.option("batch_size or the sizes of the layers")
            raise MemoryError(
                f"out of memory at batch {self.blocks.batch_size}, time {self.blocks.time_size}, "
                f"{parameters:,} parameters; lower {remedy} ({error})"
            ) from error

    def _diverged(self, what: str, when: str = "") -> TrainingDiverged:
        lr, max_norm = map(self._measures.option, ("lr", "max_norm"))
        return TrainingDiverged(
            f"{when or f'iteration {self.iteration + 1}'}: {what}, "
            f"learning rate {self.optimiser.lr:g}; a lower learning rate ({lr}) or a lower bound "
            f"on the gradient's norm ({max_norm}) helps, unless the data have NaN"
        )

    def _end_epoch(self) -> None:
        best_before = self.history.best
        self._sync_losses()
        entry: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "iteration": self.iteration,
            "train_loss": self._epoch_loss / self.blocks.full_batches,
            "lr": self.optimiser.lr,
        }
        if self.average is not None:
            entry["averaged"] = self.average.updates > 0
        with self.averaged():
            entry |= self._measures.validate(self._shared or self.model)
        value = entry[f"valid_{self._measures.name}"]
        if value is not None and not math.isfinite(value):
            raise self._diverged(f"validation {self._measures.name} {value}")
        self.epoch += 1  # not before: an error in validation leaves the epoch to be ended again
        self.history.epochs.append(entry)
        improved = self.history.best < best_before
        average, scores = self.average, self.history.scores
        if average is not None and average.end_epoch(self.model.params, scores):
            self._tell_above_bar(f"the average of the weights begins after epoch {self.epoch}")
        since_best = self._since_best()
        if self.valid is not None and since_best and since_best % (self.decay_patience + 1) == 0:
            self.optimiser.lr /= self.decay
        self._epoch_loss = 0.0
        self.blocks.rewind()
        if improved:
            self._save("best")
        schedule = self.schedule
        factor = 1.0 if schedule is None else float(schedule(self.iteration - 1))
        self._tell_above_bar(self._measures.line({**entry, "lr": entry["lr"] * factor}))
        try:
            for callback in self.callbacks:
                callback(self)
        finally:
            self._save("last")

    def averaged(self) -> AbstractContextManager[None]:
        """The model has the average of its weights while a ``with`` block runs.

        Returns
        -------
        context manager
            Without an average, or before it has begun, it does nothing.
        """
        if self.average is None:
            return nullcontext()
        return self.average.in_place_of(self.model.params)

    def perplexity(self, corpus: AnyArray, batch_size: int, time_size: int) -> float:
        """Compute the perplexity of the model on a corpus, whose rows the ranks share.

        Parameters
        ----------
        corpus : (L,) integers
            The tokens.
        batch_size : int
            The number of rows in which the corpus is read.
        time_size : int
            The number of steps in a block.

        Returns
        -------
        float
            The perplexity.
        """
        model: Any = self._shared or self.model
        return float(model.perplexity(corpus, batch_size, time_size))

    def _done(self, max_epochs: int) -> bool:
        return self.epoch >= max_epochs or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return 0 < self.patience <= self._since_best()

    def _since_best(self) -> int:
        """The epochs in a row without improvement; those before an average begins do not count."""
        found = epochs_since_best(self.history.scores)
        if self.average is not None and self.average.waits:
            found = min(found, sum(entry.get("averaged", False) for entry in self.history.epochs))
        return found

    # ---- what one sees

    def _bar(self, max_epochs: int) -> Any:
        block = self.blocks.batch_size * self.blocks.time_size
        each = round(self.blocks.full_batches * block)
        return progress_bar(
            total=max_epochs * each,
            initial=self.epoch * each + self.blocks.cursor * block,
            unit=self._measures.unit,
            unit_scale=True,
            smoothing=0.05,
            shown=self.progress and not self._done(max_epochs),
        )

    def _show_loss(self) -> None:
        status = self._measures.status(self.epoch + 1, self.history.train[-1][1])
        self._shown.set_postfix_str(status, refresh=False)

    def _tell_above_bar(self, line: str) -> None:
        with self._shown.external_write_mode(file=getattr(self._shown, "fp", None)):
            self.log(line)

    # ---- stopping

    def stop(self) -> None:
        """Let ``fit`` end after the iteration under way, with a checkpoint, as Ctrl-C does.

        A callback may call it, which ends ``fit`` after the epoch, and so may another thread. Then
        ``stopped`` is True, and ``stopped_by`` 0. The next ``fit`` goes on.
        """
        self._asked = True

    def _shall_stop_between_epochs(self) -> bool:
        """Whether a callback has called ``stop``; of several ranks, on any."""
        if not self.callbacks:
            return False
        asked = np.array([float(self._asked)])
        self.ranks.allreduce(asked)
        return bool(asked[0])

    def _shall_stop(self) -> bool:
        """Whether this process has been asked to stop; of several, whether any has.

        That is on a device, where it is looked at as seldom as all other numbers.
        """
        if self._shared is None:
            return self._asked or bool(self._stop)
        if not self._shared.on_host and self.iteration % self._record_every:
            return False
        return self._shared.stop

    def _ask_to_stop(self, number: int) -> None:
        """A signal ends the loop after the iteration under way; a second one interrupts it."""
        if self._stop:
            raise KeyboardInterrupt
        self._stop = number
        with suppress(RuntimeError):  # the signal came amid a write to the same stream
            self._tell_above_bar("stopping after this step; Ctrl-C again stops now")

    # ---- several ranks

    @contextmanager
    def _sharing(self, max_epochs: int) -> Iterator[None]:
        """The ranks share every batch while the block runs."""
        if self._shared is None:
            yield
            return
        self._shared.begin(
            optimiser=(type(self.optimiser).__name__, self.optimiser.state()[0]),
            settings=(
                self.average and self.average.state(),
                max_epochs, self.max_norm, self.decay, self.decay_patience, self.patience,
                self.accumulate, len(self.callbacks),
                self.save_every, self.eval_batch, self.eval_time, self.folder is None,
                self.valid is None,
            ),
            progress=(self.epoch, self.iteration),
            extra=self.extra,
        )  # fmt: skip
        try:
            yield
        finally:
            self._shared.end()

    # ---- checkpoints

    def _sole_run(self) -> AbstractContextManager[None]:
        """The folder is this run's alone while the block runs."""
        if self.folder is None or not self._first:
            return nullcontext()
        option = self._measures.option
        return one_run_in(
            self.folder,
            self._last_known,
            f"resume it ({option('restore(path)')}), or choose another folder ({option('folder')})",
        )

    def _save(self, name: str) -> None:
        if self.folder is None:
            return
        self._sync_losses()
        weights: list[AbstractContextManager[None]] = [nullcontext()]
        if self.average is not None:
            weights.append(self.averaged())
        for these in weights:
            with these:
                if not all(np.isfinite(param).all() for param in self.model.params):
                    raise self._diverged("parameters that are not finite")
        self._write(self.folder / f"{name}.safetensors", averaged=name == "best")
        if self._first:
            self._last_known = last_identity(self.folder)

    def save(self, path: str | Path) -> None:
        """Write everything that the rest of the run depends on.

        Parameters
        ----------
        path : str or Path
            The file.

        Raises
        ------
        TrainingDiverged
            If a number on the device turns out not to be finite.

        Notes
        -----
        The model's arrays in the file are the weights as they are; their average, if there is one,
        is beside them. In ``best.safetensors`` it is the other way round: what loads a model from
        it gets the average.
        """
        self._write(path, averaged=False)

    def _write(self, path: str | Path, averaged: bool) -> None:
        """Write a checkpoint.

        averaged  whether the model's arrays are the average, and the weights beside them
        """
        self._sync_losses()
        numbers, memory = self.optimiser.state()
        model = self._shared or self.model
        arrays, means = model.arrays(), None
        if self.average is not None and self.average.updates:
            with self.averaged():
                means = {name: np.array(array) for name, array in model.arrays().items()}
        if not self._first:
            return
        if means is not None:
            arrays = both_in_one(arrays, means, average_first=averaged)
        arrays |= {f"optimiser/{k}": v for k, v in memory.items()}
        content = {
            **self.extra,
            "trainer": {
                "epoch": self.epoch,
                "iteration": self.iteration,
                "accumulate": self.accumulate,
                "average": self.average and self.average.state(),
                "epoch_loss": self._epoch_loss,
                "recent_loss": self._recent_loss,
                "recent_norm": self._recent_norm,
                "blocks": self.blocks.state(),
                "optimiser": {"name": type(self.optimiser).__name__, **numbers},
                "random": state_of(self.model.rng),
                "history": {"train": self.history.train, "epochs": self.history.epochs},
            },
        }
        save_checkpoint(path, arrays, content)

    def restore(self, path: str | Path) -> None:
        """Continue a run from a file that ``save`` wrote. An error leaves everything as it was.

        Parameters
        ----------
        path : str or Path
            The file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        CheckpointError
            If the file is damaged.
        ValueError
            If the checkpoint is of another model, optimiser or corpus.
        """
        last = None
        if self.folder is not None and is_in(self.folder, Path(path)):
            last = last_identity(self.folder)
        arrays, content = self.ranks.broadcast(load_checkpoint(path) if self._first else None)
        try:
            if self._shared is not None:
                arrays = self._shared.mine(arrays)
            saved = content["trainer"]
            name = saved["optimiser"]["name"]
            if name != type(self.optimiser).__name__:
                raise ValueError(f"optimiser: expected {type(self.optimiser).__name__}, got {name}")
            if (earlier := saved.get("accumulate", 1)) != self.accumulate:
                raise ValueError(f"accumulate: expected {self.accumulate}, got {earlier}")
            average_updates = expect_same_average(self.average, saved.get("average"))
            raw, means = weights_and_average(arrays)
            history = history_of(saved["history"])
            epoch, iteration = (expect_int(n, saved[n], 0) for n in ("epoch", "iteration"))
            sums = [
                expect_float(name, saved[name], -math.inf)
                for name in ("epoch_loss", "recent_loss", "recent_norm")
            ]
            prefix = "optimiser/"
            memory = {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
            # first on copies, then in earnest
            copy.copy(self.blocks).restore(saved["blocks"])
            copy.copy(self.optimiser).restore(saved["optimiser"], memory)
            set_state(copy.deepcopy(self.model.rng), saved["random"])
            self.model.load_arrays(means)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
            OverflowError,
        ) as error:
            why = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(
                f"{path}: expected a training checkpoint of this model, got one that does not fit "
                f"({why})"
            ) from error
        if self.average is not None:
            self.average.restore(average_updates, self.model.params)
            self.model.load_arrays(raw)
        self.blocks.restore(saved["blocks"])
        self.optimiser.restore(saved["optimiser"], memory)
        set_state(self.model.rng, saved["random"])
        self.history, self.epoch, self.iteration = history, epoch, iteration
        self._looked_at = iteration
        self._epoch_loss, self._recent_loss, self._recent_norm = sums
        self._last_known = last
