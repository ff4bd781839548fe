"""Callbacks: when they are called, how they end a run, and the logs that they keep."""

import csv
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from test_ranks import together

import numba_rnn as rnn
from helpers import StopAt
from numba_rnn.models import Rnnlm, Sequential
from numba_rnn.training import (
    SGD,
    Adam,
    Batches,
    CSVLog,
    TensorBoardLog,
    Trainer,
    TruncatedBPTT,
    load_checkpoint,
    warm_up,
)

DRAW = np.random.default_rng(0)
XS, TS = DRAW.standard_normal((20, 5, 3)), DRAW.standard_normal((20, 5, 2))
TOKENS = DRAW.integers(0, 11, 501)


def mean_error(outputs, ts):
    return abs(outputs - ts).mean()


def make(folder=None, callbacks=(), optimiser=None, **options):
    """Two batches in an epoch, each of which is recorded."""
    layers = rnn.TimeGRU.create(3, 4, rng=1), rnn.TimeAffine.create(4, 2, rng=2)
    model = Sequential(*layers, loss=rnn.TimeMSE(), rng=0)
    xs, ts = XS.astype(np.float32), TS.astype(np.float32)
    chosen = {"valid": (xs[10:], ts[10:]), "metrics": {"error": mean_error}, **options}
    return Trainer(
        model, optimiser or Adam(0.02), Batches(xs[:10], ts[:10], 5, rng=0), folder=folder,
        callbacks=callbacks, progress=False, **chosen,
    )  # fmt: skip


def language_model(ranks=None, **options):
    """12 blocks."""
    return Trainer(
        Rnnlm(11, 6, 9, dropout=0.2, rng=0), Adam(0.01), TruncatedBPTT(TOKENS, 4, 10),
        valid=TOKENS[:101], eval_batch=2, eval_time=10, progress=False, ranks=ranks, **options,
    )  # fmt: skip


# ---- when they are called


class Told:
    """A callback that is told everything."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, trainer):
        self.seen.append(("begin", trainer.iteration))

    def __call__(self, trainer):
        self.seen.append((trainer.epoch, trainer.history.epochs[-1]["iteration"]))

    def on_train_end(self, trainer):
        self.seen.append(("end", trainer.iteration))


def test_they_are_called_after_every_epoch_in_their_order(tmp_path):
    told, lines = Told(), []
    both = [told, lambda trainer: told.seen.append(len(lines))]
    trainer = make(tmp_path, both, log=lines.append)
    trainer.fit(2)
    assert told.seen == [("begin", 0), (1, 2), 1, (2, 4), 2, ("end", 4)]
    trainer.fit(3)
    assert told.seen[6:] == [("begin", 4), (3, 6), 3, ("end", 6)]


def test_what_they_change_is_in_the_checkpoint(tmp_path):
    def halve(trainer):
        trainer.optimiser.lr /= 2

    whole = make(tmp_path / "whole", [halve], SGD(0.4), decay=1)
    whole.fit(3)
    make(tmp_path / "half", [halve], SGD(0.4), decay=1).fit(2)
    again = make(tmp_path / "half", [halve], SGD(0.4), decay=1)
    again.restore(tmp_path / "half" / "last.safetensors")
    assert again.optimiser.lr == 0.1
    again.fit(3)
    last = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "half")]
    assert last[0] == last[1]


def test_an_error_in_one_leaves_the_epochs_checkpoint_and_ends_the_others(tmp_path):
    def fails(trainer):
        raise KeyError("mine")

    told = Told()
    with pytest.raises(KeyError, match="mine"):
        make(tmp_path, [told, fails]).fit(2)
    assert load_checkpoint(tmp_path / "last.safetensors")[1]["trainer"]["epoch"] == 1
    assert told.seen == [("begin", 0), (1, 2), ("end", 2)]


def test_a_beginning_that_is_refused_writes_nothing(tmp_path):
    class Refuses(Told):
        def on_train_begin(self, trainer):
            raise ValueError("not so")

    told = Told()
    with pytest.raises(ValueError, match="not so"):
        make(tmp_path, [told, Refuses()]).fit(1)
    assert told.seen == [("begin", 0), ("end", 0)]
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_is_refused():
    for wrong, says in [
        (
            lambda trainer: None,
            r"callbacks: expected a list of functions, got function; \[callback",
        ),
        ("abc", "callbacks: expected a list of functions, got str"),
        ([3], r"callbacks\[0\]: expected a function of the trainer, got 3"),
        ([CSVLog], r"callbacks\[0\]: expected a function of the trainer, got <class"),
    ]:
        with pytest.raises(TypeError, match=says):
            make(callbacks=wrong)


# ---- stop


def test_a_callback_may_stop_the_run_which_can_go_on(tmp_path):
    def stop(trainer):
        if trainer.epoch == 2:
            trainer.stop()

    trainer = make(tmp_path, [stop])
    trainer.fit(4)
    assert (trainer.stopped, trainer.stopped_by) == (True, 0)
    assert trainer.epoch == 2
    assert load_checkpoint(tmp_path / "last.safetensors")[1]["trainer"]["epoch"] == 2
    trainer.fit(4)
    assert (trainer.stopped, trainer.epoch) == (False, 4)
    whole = make()
    whole.fit(4)
    assert trainer.history == whole.history


def test_stop_ends_the_iteration_under_way(tmp_path):
    trainer = make(tmp_path)
    backward = trainer.model.backward

    def stopping():
        backward()
        if trainer.iteration == 2:
            trainer.stop()

    trainer.model.backward = stopping
    trainer.fit(4)
    assert (trainer.stopped, trainer.stopped_by, trainer.iteration) == (True, 0, 3)
    assert load_checkpoint(tmp_path / "last.safetensors")[1]["trainer"]["iteration"] == 3


def test_a_run_that_is_done_has_not_been_stopped():
    trainer = make(callbacks=[lambda trainer: trainer.stop()])
    trainer.fit(1)
    assert not trainer.stopped


def test_one_rank_that_stops_after_an_epoch_stops_all(tmp_path):
    def work(ranks):
        def stop(trainer):
            if ranks.rank == 1 and trainer.epoch == 2:
                trainer.stop()

        log = CSVLog(tmp_path / "log.csv")
        trainer = language_model(ranks, callbacks=[stop, log])
        trainer.fit(4)
        return trainer.stopped, trainer.stopped_by, trainer.iteration

    assert together(2, work) == [(True, 0, 24)] * 2
    assert len(table(tmp_path / "log.csv")) == 24


# ---- logs


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_the_numbers_of_the_history(tmp_path):
    log = tmp_path / "new" / "log.csv"
    trainer = make(callbacks=[CSVLog(log)], schedule=warm_up(3), optimiser=SGD(0.5), decay=2)
    coming = iter([3.0, 4.0, 5.0])
    trainer._measures.validate = lambda model: {
        "valid_perplexity": None, "valid_loss": next(coming), "metrics": {"error": 0.25},
    }  # fmt: skip
    history = trainer.fit(3)
    rows = table(log)
    assert list(rows[0]) == [
        "iteration", "train_loss", "gradient_norm", "lr", "epoch", "epoch_loss", "valid_loss",
        "metric_error",
    ]  # fmt: skip
    numbers = [
        [float(row[n]) for n in ("iteration", "train_loss", "gradient_norm")] for row in rows
    ]
    assert numbers == history.train
    lrs = [float(row["lr"]) for row in rows]
    assert lrs == pytest.approx([0.5 / 3, 1 / 3, 0.5, 0.5, 0.25, 0.25])  # which falls after epoch 2
    assert [row["valid_loss"] for row in rows] == ["", "3.0", "", "4.0", "", "5.0"]
    assert [row["epoch"] for row in rows] == ["", "1", "", "2", "", "3"]
    assert [float(row["epoch_loss"]) for row in rows[1::2]] == [
        entry["train_loss"] for entry in history.epochs
    ]
    assert {row["metric_error"] for row in rows[1::2]} == {"0.25"}


def test_a_table_of_a_language_model(tmp_path):
    log = tmp_path / "log.csv"
    history = language_model(callbacks=[CSVLog(log)], accumulate=5).fit(2)
    rows = table(log)
    assert [row["iteration"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [float(row["valid_perplexity"]) for row in rows[2::3]] == history.scores


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_a_table_goes_on_where_a_run_is_resumed(tmp_path, stop_at):
    whole, log = tmp_path / "whole.csv", tmp_path / "log.csv"
    make(callbacks=[CSVLog(whole)]).fit(3)
    first = make(tmp_path / "run", [CSVLog(log)])
    first.model = StopAt(first.model, stop_at)
    first.fit(3)
    second = make(tmp_path / "run", [CSVLog(log)])
    second.restore(tmp_path / "run" / "last.safetensors")
    second.fit(3)
    assert log.read_bytes() == whole.read_bytes()


def test_a_table_that_is_ahead_of_the_checkpoint_is_cut(tmp_path):
    """As it is where a process is killed before the checkpoint is written."""
    log = tmp_path / "log.csv"
    make(tmp_path / "run", [CSVLog(log)]).fit(1)
    ahead = make(callbacks=[CSVLog(log)])
    ahead.restore(tmp_path / "run" / "last.safetensors")
    ahead.fit(3)
    whole = log.read_bytes()
    second = make(tmp_path / "run", [CSVLog(log)])
    second.restore(tmp_path / "run" / "last.safetensors")
    second.fit(2)
    assert len(table(log)) == 4
    second.fit(3)
    assert log.read_bytes() == whole


def test_another_runs_table_is_left_alone(tmp_path):
    log = tmp_path / "log.csv"
    make(callbacks=[CSVLog(log)]).fit(2)
    before = log.read_bytes()
    with pytest.raises(FileExistsError, match=r"log.csv: expected no file, or the log of this run"):
        make(tmp_path / "run", [CSVLog(log)]).fit(2)
    assert not list((tmp_path / "run").glob("*.safetensors"))
    other = make(optimiser=SGD(0.1))
    other.fit(1)
    other.callbacks = [CSVLog(log)]
    with pytest.raises(FileExistsError, match="remove this one"):
        other.fit(2)
    assert log.read_bytes() == before
    with pytest.raises(ValueError, match="path: expected a file, got the folder"):
        make(callbacks=[CSVLog(tmp_path)]).fit(1)


@pytest.mark.parametrize("mark", ["utf-16", "utf-8-sig", "latin-1"])
def test_a_file_of_another_program_is_left_alone(tmp_path, mark):
    log = tmp_path / "log.csv"
    make(tmp_path / "run", [CSVLog(log)]).fit(1)
    log.write_bytes(("Größe\n" + log.read_text("utf-8")).encode(mark))
    before = log.read_bytes()
    second = make(tmp_path / "run", [CSVLog(log)])
    second.restore(tmp_path / "run" / "last.safetensors")
    with pytest.raises(FileExistsError, match="or the log of this run, got another one"):
        second.fit(2)
    assert log.read_bytes() == before


def test_of_two_runs_with_one_table_the_later_one_ends(tmp_path):
    log = tmp_path / "log.csv"
    other, before = make(callbacks=[CSVLog(log)]), []

    def meanwhile(trainer):
        other.fit(2)
        before.append(log.read_bytes())

    trainer = make(tmp_path / "run", [meanwhile, CSVLog(log)], SGD(0.1))
    with pytest.raises(FileExistsError, match="or the log of this run, got another one"):
        trainer.fit(2)
    assert log.read_bytes() == before[0]
    trainer.callbacks = [CSVLog(tmp_path / "own.csv")]
    trainer.fit(2)
    assert len(table(tmp_path / "own.csv")) == 4


def test_a_table_is_known_before_the_first_epoch_and_with_other_columns(tmp_path):
    """As where a process is killed after the first table and before the checkpoint."""
    log, whole = tmp_path / "log.csv", tmp_path / "whole.csv"
    first = make(tmp_path / "run", [CSVLog(log)])
    first.model = StopAt(first.model, 1)
    first.fit(3)
    (tmp_path / "run" / "last.safetensors").rename(tmp_path / "amid.safetensors")
    make(callbacks=[CSVLog(whole)]).fit(3)
    log.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:3]))
    second = make(callbacks=[CSVLog(log)])
    second.restore(tmp_path / "amid.safetensors")
    second.fit(3)
    assert log.read_bytes() == whole.read_bytes()
    bare = make(valid=None, metrics=None)
    bare.fit(1)
    bare.save(tmp_path / "bare.safetensors")
    for epochs in (3, 2):  # with validation since
        late = make(callbacks=[CSVLog(tmp_path / "late.csv")])
        late.restore(tmp_path / "bare.safetensors")
        late.fit(epochs)
    assert len(table(tmp_path / "late.csv")) == 4


def events(folder):
    """The numbers that TensorBoard shows, by (name, step); it drops what a new start purges."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            if event.session_log.status == SessionLog.START:
                shown = {place: x for place, x in shown.items() if place[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in shown, "a number twice"
                shown[value.tag, event.step] = value.simple_value
    return shown


def expect_events(folder, log):
    """Those in a folder are the numbers of a table."""
    want = {
        (name, int(row["iteration"])): pytest.approx(float(text), rel=1e-6)
        for row in table(log)
        for name, text in row.items() if text and name != "iteration"
    }  # fmt: skip
    assert events(folder) == want


@pytest.mark.parametrize("stop_at", [None, 1, 2, 3, 4])
def test_events_are_those_of_the_table(tmp_path, stop_at):
    def run(stop_at=None):
        logs = [CSVLog(tmp_path / "log.csv"), TensorBoardLog(tmp_path / "events")]
        trainer = make(tmp_path / "run", logs)
        if (tmp_path / "run").exists():
            trainer.restore(tmp_path / "run" / "last.safetensors")
        if stop_at:
            trainer.model = StopAt(trainer.model, stop_at)
        trainer.fit(3)
        return trainer

    trainer = run(stop_at)
    if stop_at:
        trainer = run()
    expect_events(tmp_path / "events", tmp_path / "log.csv")
    trainer.fit(4)
    expect_events(tmp_path / "events", tmp_path / "log.csv")


def test_events_ahead_of_the_checkpoint_are_dropped(tmp_path):
    folder, log = tmp_path / "events", tmp_path / "log.csv"
    make(tmp_path / "run", [CSVLog(log), TensorBoardLog(folder)]).fit(1)
    for epochs in (3, 2):
        trainer = make(callbacks=[CSVLog(log), TensorBoardLog(folder)])
        trainer.restore(tmp_path / "run" / "last.safetensors")
        trainer.fit(epochs)
    expect_events(folder, log)


def test_a_log_that_comes_late_has_everything(tmp_path):
    make(tmp_path / "run").fit(2)
    trainer = make(callbacks=[CSVLog(tmp_path / "log.csv"), TensorBoardLog(tmp_path / "events")])
    trainer.restore(tmp_path / "run" / "last.safetensors")
    trainer.fit(3)
    assert len(table(tmp_path / "log.csv")) == 6
    expect_events(tmp_path / "events", tmp_path / "log.csv")


def test_what_was_trained_without_the_log_is_in_it_later(tmp_path):
    logs = CSVLog(tmp_path / "log.csv"), TensorBoardLog(tmp_path / "events")
    for epochs, callbacks in ((1, logs), (3, logs[:1]), (4, logs)):
        trainer = make(tmp_path / "run", callbacks)
        if epochs > 1:
            trainer.restore(tmp_path / "run" / "last.safetensors")
        trainer.fit(epochs)
    expect_events(tmp_path / "events", tmp_path / "log.csv")


def test_another_runs_events_are_left_alone(tmp_path):
    make(callbacks=[TensorBoardLog(tmp_path / "events")]).fit(1)
    with pytest.raises(FileExistsError, match="expected a folder without event files for a new"):
        make(tmp_path / "run", [TensorBoardLog(tmp_path / "events")]).fit(1)
    assert not list((tmp_path / "run").glob("*.safetensors"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="folder: expected a folder, got the file"):
        make(callbacks=[TensorBoardLog(tmp_path / "file")]).fit(1)


def test_the_command_line_keeps_both_logs(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    sizes = ["--embed", "8", "--hidden", "16", "--batch", "4", "--time", "8"]
    logs = ["--log-csv", "log.csv", "--tensorboard", "events"]
    first = ["--text", "text.txt", "--out", "run", *sizes, "--epochs", "1"]
    for options in (first, ["--resume", "run", "--epochs", "2"]):
        subprocess.run(
            [sys.executable, "-m", "numba_rnn", "train", *options, *logs], cwd=tmp_path, check=True,
            env={**os.environ, "NUMBA_RNN_BACKEND": "numpy"}, stdout=subprocess.PIPE, timeout=120,
        )  # fmt: skip
    assert [row["epoch"] for row in table(tmp_path / "log.csv") if row["epoch"]] == ["1", "2"]
    expect_events(tmp_path / "events", tmp_path / "log.csv")
