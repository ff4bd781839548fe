"""Callbacks that keep a log of a run: functions of the trainer, called after every epoch.

``Trainer(callbacks=[...])`` takes these, and any function of the kind. One that has methods
``on_train_begin(trainer)`` and ``on_train_end(trainer)`` is also told when ``fit`` begins, before
anything is written, and when it ends, even by an error.
"""

import csv
import io
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..files import written_atomically
from ..optional_deps import optional_import
from .history import History

Row = dict[str, float]
_COLUMNS = ("train_loss", "gradient_norm", "lr", "epoch", "epoch_loss")


def expect_callbacks(callbacks: Any) -> list[Callable[[Any], object]]:
    """Refuse what is no list of functions."""
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise TypeError(
            f"callbacks: expected a list of functions, got {type(callbacks).__name__}"
            + ("; [callback] is one" if callable(callbacks) else "")
        )
    for k, callback in enumerate(callbacks):
        if not callable(callback) or isinstance(callback, type):
            raise TypeError(f"callbacks[{k}]: expected a function of the trainer, got {callback!r}")
    return list(callbacks)


@contextmanager
def told(callbacks: Sequence[Callable[[Any], object]], trainer: Any) -> Iterator[None]:
    """Tell those callbacks that want to know it where the block begins and ends."""
    with ExitStack() as ends:
        for callback in callbacks:
            getattr(callback, "on_train_begin", _nothing)(trainer)
            ends.callback(getattr(callback, "on_train_end", _nothing), trainer)
        yield


def _nothing(trainer: Any) -> None:
    """Told to callbacks that are mere functions."""


class Run(Protocol):
    """The parts of a Trainer that a log reads."""

    history: History
    ranks: Any
    optimiser: Any
    schedule: Any


def log_rows(trainer: Run) -> dict[int, Row]:
    """All numbers of a run so far, by iteration and name; some are there only after an epoch."""
    epochs = trainer.history.epochs
    rows: dict[int, Row] = {
        int(iteration): {"train_loss": loss, "gradient_norm": norm}
        for iteration, loss, norm in trainer.history.train
    }
    for entry in epochs:
        row = rows.setdefault(entry["iteration"], {})
        row |= {"epoch": entry["epoch"], "epoch_loss": entry["train_loss"]}
        name = "valid_loss" if "valid_loss" in entry else "valid_perplexity"
        row |= {} if entry[name] is None else {name: entry[name]}
        row |= {f"metric_{name}": x for name, x in entry.get("metrics", {}).items()}
    ends = [entry["iteration"] for entry in epochs]
    lrs = [*(entry["lr"] for entry in epochs), trainer.optimiser.lr]
    for iteration, row in rows.items():
        factor = 1.0 if trainer.schedule is None else float(trainer.schedule(iteration - 1))
        row["lr"] = lrs[bisect_left(ends, iteration)] * factor
    return dict(sorted(rows.items()))


class CSVLog:
    """A callback that writes the course of a run to a CSV file, for a spreadsheet or pandas.

    Parameters
    ----------
    path : str or Path
        The file. Its folder is created if it is not there.

    Raises
    ------
    FileExistsError
        When ``fit`` begins, if there is such a file that is not the log of this run; after the
        first epoch, if another run that began meanwhile has written it.

    Notes
    -----
    There is a row for each iteration at which something was recorded, and these columns; what a row
    does not have is empty:

    - iteration;
    - train_loss, gradient_norm: the means since the row before, of the norm before clipping; twenty
      times an epoch;
    - lr: the learning rate of that iteration, with the factor of the schedule (for a block of
      ``time_size`` steps, where their lengths vary);
    - epoch, epoch_loss: after an epoch, its number and its mean loss;
    - valid_loss or valid_perplexity, and metric_accuracy and so on, by the names of the metrics.

    The file is written anew after every epoch, in one piece, from the history of the trainer: a run
    that is resumed continues it, without a row twice or one that is missing.

    Examples
    --------
    >>> import numpy as np
    >>> import tempfile
    >>> from numba_rnn import TimeAffine, TimeMSE
    >>> from numba_rnn.models import Sequential
    >>> from numba_rnn.training import SGD, Batches, Trainer
    >>> xs, path = np.ones((8, 3, 2), np.float32), Path(tempfile.mkdtemp()) / "log.csv"
    >>> model = Sequential(TimeAffine.create(2, 2, rng=0), loss=TimeMSE())
    >>> options = {"callbacks": [CSVLog(path)], "progress": False}
    >>> history = Trainer(model, SGD(0.1), Batches(xs, xs, 4, rng=0), **options).fit(1)
    >>> print(path.read_text().splitlines()[0])
    iteration,train_loss,gradient_norm,lr,epoch,epoch_loss
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._new = False  # whether there was no such file when the run began

    def on_train_begin(self, trainer: Run) -> None:
        """Refuse a file that is not the log of this run.

        Parameters
        ----------
        trainer : Trainer
            The trainer.
        """
        if trainer.ranks.rank:
            return
        if self.path.is_dir():
            raise ValueError(f"path: expected a file, got the folder {self.path}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._new = not self.path.exists()
        if not self._new and not self._is_of(trainer):
            raise self._another()

    def _is_of(self, trainer: Run) -> bool:
        """Whether the file has this run's numbers, as far as both go.

        It may be ahead of the checkpoint, and have columns of what is validated since.
        """
        ours = list(csv.DictReader(io.StringIO(_csv(log_rows(trainer)))))
        text = self.path.read_text("utf-8", errors="replace")
        there = csv.DictReader(io.StringIO(text))
        if not ours or (text and not {"iteration", *_COLUMNS} <= {*(there.fieldnames or ())}):
            return False
        pairs = zip(ours, there, strict=False)
        return all(row[k] == value for mine, row in pairs for k, value in mine.items() if value)

    def _another(self) -> FileExistsError:
        return FileExistsError(
            f"{self.path}: expected no file, or the log of this run, got another one; choose "
            "another file, or remove this one"
        )

    def __call__(self, trainer: Run) -> None:
        """Write the file.

        Parameters
        ----------
        trainer : Trainer
            The trainer.
        """
        if trainer.ranks.rank:
            return
        if self._new and self.path.exists():  # since then
            raise self._another()
        with written_atomically(self.path) as part:
            part.write_bytes(_csv(log_rows(trainer)).encode())
        self._new = False


def _csv(rows: dict[int, Row]) -> str:
    """Rows as text, with a column for each of their names."""
    more = dict.fromkeys(name for row in rows.values() for name in row if name not in _COLUMNS)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["iteration", *_COLUMNS, *more], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"iteration": iteration, **row} for iteration, row in rows.items())
    return text.getvalue()


class TensorBoardLog:
    """A callback that writes the course of a run for TensorBoard, with tensorboardX.

    It takes the extra ``tensorboard``; ``tensorboard --logdir FOLDER`` (another package) shows the
    curves.

    Parameters
    ----------
    folder : str or Path
        The folder of the run's event files, which is created if it is not there.

    Raises
    ------
    ImportError
        Without tensorboardX; the message names the remedy.
    FileExistsError
        When ``fit`` begins, if the run is new and the folder has event files.

    Notes
    -----
    The curves are the columns of ``CSVLog``, over iterations. Where a run is resumed they are
    written once more from its history, and TensorBoard drops those from before: no number is shown
    twice, and none is missing, whether or not the run had this log all the time.
    """

    def __init__(self, folder: str | Path) -> None:
        with optional_import("tensorboardX", "TensorBoardLog"):
            from tensorboardX import SummaryWriter
        self.folder = Path(folder)
        self._writer: Any
        self._new_writer, self._writer = SummaryWriter, None  # which is open during fit
        self._history: History | None = None  # of the run that is logged
        self._logged = 0  # the iteration up to which rows have been written

    def on_train_begin(self, trainer: Run) -> None:
        """Refuse a folder with event files for a new run.

        Parameters
        ----------
        trainer : Trainer
            The trainer.
        """
        if trainer.ranks.rank:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"folder: expected a folder, got the file {self.folder}")
        history = trainer.history
        if self._files() and not (history.epochs or history.train):
            raise FileExistsError(
                f"{self.folder}: expected a folder without event files for a new run; choose "
                "another folder, or remove them"
            )
        if history is not self._history:
            self._history, self._logged = history, 0

    def _files(self) -> list[Path]:
        return list(self.folder.glob("events.out.tfevents.*"))

    def __call__(self, trainer: Run) -> None:
        """Write what has come up since the last call.

        Parameters
        ----------
        trainer : Trainer
            The trainer.
        """
        if trainer.ranks.rank:
            return
        if self._writer is None:
            count = len(self._files())  # in the name, which else is that of the second
            self._writer = self._new_writer(
                str(self.folder),
                purge_step=self._logged + 1 if count else None,
                filename_suffix=f".{count:04d}",
            )
        for iteration, row in log_rows(trainer).items():
            for name, value in row.items() if iteration > self._logged else ():
                self._writer.add_scalar(name, value, iteration)
        self._writer.flush()
        self._logged = trainer.history.epochs[-1]["iteration"]

    def on_train_end(self, trainer: Run) -> None:
        """Close the file.

        Parameters
        ----------
        trainer : Trainer
            The trainer.
        """
        if self._writer is not None:
            self._writer.close()
            self._writer = None
