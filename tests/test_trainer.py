"""The training loop: it learns, stops, and resumes bit for bit."""

import io
import math
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from helpers import BACKENDS, StopAt
from numba_rnn import jobs, use_backend
from numba_rnn.jobs import TrainConfig
from numba_rnn.models import Rnnlm
from numba_rnn.training import (
    SGD,
    Adam,
    CheckpointError,
    Trainer,
    TrainingDiverged,
    TruncatedBPTT,
    load_checkpoint,
    optimisers,
    save_checkpoint,
)

CORPUS = np.random.default_rng(0).integers(0, 11, 601)
VALID = np.random.default_rng(1).integers(0, 11, 101)


def make(folder=None, optimiser=None, rng=0, varying=False, **options):
    rates = {"zoneout": 0.1, "recurrent_dropout": 0.2, "weight_drop": 0.2}
    model = Rnnlm(11, 6, 9, layers=2, dropout=0.3, **rates, rng=rng)
    blocks = TruncatedBPTT(CORPUS, 4, 10, varying=varying, rng=2)  # 15 blocks, if of 10 steps
    options = {"valid": VALID, "eval_batch": 2, "eval_time": 10, "progress": False, **options}
    return Trainer(model, optimiser or Adam(0.01), blocks, folder=folder, max_norm=0.5, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", optimisers.NAMES)
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, name, backend):
    with use_backend(backend):
        whole = make(tmp_path / "whole", optimisers.create(name))
        whole.fit(3)
        for stop_at in (1, 15, 16, 37):
            folder = tmp_path / str(stop_at)
            first = make(folder, optimisers.create(name))
            first.model = StopAt(first.model, stop_at)
            first.fit(3)
            assert first.stopped
            assert first.iteration == stop_at
            second = make(folder, optimisers.create(name, lr=77.0))
            second.restore(folder / "last.safetensors")
            second.fit(3)
            assert not second.stopped
            for file in ("last.safetensors", "best.safetensors"):
                assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
            assert second.history == whole.history


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_stopped_run_with_blocks_of_varying_length_resumes_bit_for_bit(tmp_path, accumulate):
    whole = make(tmp_path / "whole", varying=True, accumulate=accumulate)
    whole.fit(3)
    for stop_at in (3, 9, 11):
        folder = tmp_path / str(stop_at)
        first = make(folder, varying=True, accumulate=accumulate)
        first.model = StopAt(first.model, stop_at * accumulate)
        first.fit(3)
        assert first.stopped
        second = make(folder, varying=True, accumulate=accumulate)
        second.blocks._seed += 1  # is that of the file
        second.restore(folder / "last.safetensors")
        second.fit(3)
        for file in ("last.safetensors", "best.safetensors"):
            assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_short_block_has_a_low_learning_rate_and_counts_by_its_steps():
    trainer = make(varying=True, optimiser=SGD(0.5), schedule=lambda k: 0.25, valid=None)
    lengths, rates, losses = [], [], []
    forward, update = trainer.model.forward, trainer.optimiser._numbers

    def forwarded(xs, ts):
        lengths.append(xs.shape[1])
        losses.append(forward(xs, ts))
        return losses[-1]

    def numbers():
        rates.append(trainer.optimiser.lr)
        return update()

    trainer.model.forward, trainer.optimiser._numbers = forwarded, numbers
    trainer.fit(1)
    assert len(set(lengths)) > 3
    assert sum(lengths) == 150
    np.testing.assert_allclose(rates, 0.5 * 0.25 * np.array(lengths) / 10)
    assert trainer.optimiser.lr == 0.5
    mean = np.dot(losses, lengths) / 150
    assert trainer.history.epochs[0]["train_loss"] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("kind", ["MT19937", "PCG64DXSM", "Philox", "SFC64"])
def test_a_run_with_any_generator_resumes_bit_for_bit(tmp_path, kind):
    def run(folder, epochs, last=None):
        bits = getattr(np.random, kind)(0)
        trainer = make(tmp_path / folder, rng=np.random.Generator(bits))
        if last is not None:
            trainer.restore(last)
        trainer.fit(epochs)
        return tmp_path / folder / "last.safetensors"

    whole, half = run("whole", 2), run("half", 1)
    with pytest.raises(ValueError, match=f"does not fit .*{kind}|does not fit .*PCG64"):
        make(tmp_path / "half").restore(half)
    assert run("half", 2, half).read_bytes() == whole.read_bytes()


STOPPING = [s for s in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, s)]


@pytest.mark.parametrize("name", STOPPING)
def test_every_signal_that_ends_a_process_saves_and_stops(tmp_path, name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)  # which nohup ignores, perhaps
    try:
        trainer = make(tmp_path)
        trainer.model = StopAt(trainer.model, 7, number)
        trainer.fit(3)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert (trainer.stopped, trainer.stopped_by) == (True, number)
    _, content = load_checkpoint(tmp_path / "last.safetensors")
    assert content["trainer"]["iteration"] == 7


def test_the_first_signal_is_acknowledged_at_once():
    told = []
    trainer = make(log=told.append, progress=True)
    trainer.model = StopAt(trainer.model, 1)
    trainer.optimiser.update = lambda params, grads: told.append("the step ends")
    trainer.fit(1)
    assert told == ["stopping after this step; Ctrl-C again stops now", "the step ends"]


def test_a_signal_amid_output_stops_all_the_same():
    """Where a write is interrupted by one, Python refuses the second."""

    def tell(line):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    trainer = make(log=tell)
    trainer.model = StopAt(trainer.model, 1)
    trainer.fit(1)
    assert trainer.stopped
    assert trainer.iteration == 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal that the system has not")
def test_a_hangup_that_is_ignored_stays_ignored():
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make()
        trainer.model = StopAt(trainer.model, 7, signal.SIGHUP)
        trainer.fit(1)
        assert not trainer.stopped
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_bar_does_not_time_the_first_step(monkeypatch, capsys):
    """It takes compilation."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    class Slow(StopAt):
        def backward(self):
            now[0] += 40 if self.left == 10 else 1
            super().backward()

    trainer = make(progress=True)
    trainer.model = Slow(trainer.model, 10)
    trainer.fit(2)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "400/1.20k [00:09<00:20, 40.0tok/s" in last


def test_where_nothing_is_left_no_bar_is_shown(capsys):
    trainer = make()
    trainer.fit(1)
    trainer.progress = True
    trainer.fit(1)
    assert capsys.readouterr().err == ""


def test_it_learns():
    pattern = np.tile(np.arange(11), 60)
    trainer = Trainer(
        Rnnlm(11, 6, 16, rng=0),
        Adam(0.02),
        TruncatedBPTT(pattern, 4, 10),
        valid=pattern[:101],
        eval_batch=2,
        eval_time=10,
        progress=False,
    )
    history = trainer.fit(8)
    assert history.epochs[0]["valid_perplexity"] > 2 > 1.1 > history.best
    iterations = [iteration for iteration, _, _ in history.train]
    assert iterations == sorted(set(iterations))
    assert len(iterations) >= 20


def test_the_learning_rate_decays_when_validation_stops_improving(tmp_path):
    trainer = make(tmp_path, SGD(0.5), decay=4, patience=3)
    scores = iter([9.0, 8.0, 8.5, 7.0, 7.0, 7.5, 7.2, 1.0])
    trainer.model.perplexity = lambda *_: next(scores)
    history = trainer.fit(20)
    assert [e["lr"] for e in history.epochs] == [0.5, 0.5, 0.5, 0.125, 0.125, 0.03125, 0.0078125]
    assert history.best == 7.0  # the epoch after three without improvement was not run
    _, content = load_checkpoint(tmp_path / "best.safetensors")
    assert content["trainer"]["epoch"] == 4
    _, content = load_checkpoint(tmp_path / "last.safetensors")
    assert content["trainer"]["epoch"] == 7


def test_the_learning_rate_may_wait_some_epochs_before_it_decays():
    """As PyTorch's ReduceLROnPlateau, which counts anew after an improvement and after a decay."""
    trainer = make(optimiser=SGD(0.5), decay=4, decay_patience=1, patience=0)
    scores = [9.0, 9.5, 8.0, 8.5, 8.6, 8.7, 8.8, 8.9, 7.0, 7.0, 7.0]
    coming = iter(scores)
    trainer.model.perplexity = lambda *_: next(coming)
    history = trainer.fit(len(scores))
    lrs = [0.5] * 5 + [0.125] * 2 + [0.03125] * 4
    assert [entry["lr"] for entry in history.epochs] == lrs
    assert trainer.optimiser.lr == 0.03125 / 4
    with pytest.raises(ValueError, match="decay_patience: expected at least 0, got -1"):
        make(decay_patience=-1)


def test_a_learning_rate_that_would_never_fall_is_refused():
    for waits in (2, 5):
        with pytest.raises(ValueError, match=rf"decay_patience: expected 0, .*, got {waits}; pat"):
            make(decay_patience=waits)
        make(decay_patience=waits, patience=waits + 2)
        make(decay_patience=waits, patience=0)
        make(decay_patience=waits, decay=1)


def test_patience_zero_never_stops():
    trainer = make(patience=0)
    trainer.model.perplexity = lambda *_: 5.0
    assert len(trainer.fit(6).epochs) == 6


@pytest.mark.filterwarnings("ignore:overflow|invalid value:RuntimeWarning")
def test_divergence_is_an_error_that_names_the_remedy(tmp_path):
    trainer = make(tmp_path, SGD(0.1))
    trainer.fit(1)
    good = (tmp_path / "last.safetensors").read_bytes()
    trainer.model.params[-1][...] = np.inf
    with pytest.raises(TrainingDiverged, match=r"iteration 16: loss nan.*lower learning rate"):
        trainer.fit(2)
    assert (tmp_path / "last.safetensors").read_bytes() == good


def test_checkpoints_of_another_run_are_refused(tmp_path):
    make(tmp_path).fit(1)
    last = tmp_path / "last.safetensors"
    with pytest.raises(ValueError, match="optimiser: expected SGD, got Adam"):
        make(optimiser=SGD(0.1)).restore(last)
    other = Trainer(Rnnlm(11, 6, 9, layers=2), Adam(), TruncatedBPTT(CORPUS, 5, 10))
    with pytest.raises(ValueError, match="batch_size 5, got 4"):
        other.restore(last)
    other = Trainer(Rnnlm(11, 6, 8, layers=2), Adam(), TruncatedBPTT(CORPUS, 4, 10))
    with pytest.raises(ValueError, match=r"param/recurrent0\.Wx: expected shape \(6, 32\)"):
        other.restore(last)


def test_a_folder_with_a_run_is_left_alone(tmp_path):
    make(tmp_path).fit(1)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already"):
        make(tmp_path).fit(1)
    other = make(tmp_path / "other")
    other.fit(1)
    other.folder = tmp_path
    with pytest.raises(FileExistsError, match="holds a run already"):
        other.fit(2)
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_a_run_goes_on_however_its_folder_is_spelled(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    make(tmp_path / "run").fit(1)
    monkeypatch.chdir(tmp_path)
    for epochs, folder in enumerate(("run", tmp_path / "run", "link"), start=2):
        trainer = make(folder)
        trainer.restore(tmp_path / "link" / ".." / "run" / "last.safetensors")
        trainer.fit(epochs)
        assert trainer.epoch == epochs


def test_used_blocks_start_over():
    trainer = make()
    list(trainer.blocks)
    trainer.fit(1)
    assert trainer.iteration == len(trainer.blocks)


def test_validation_that_is_not_finite_is_divergence(tmp_path):
    trainer = make(tmp_path)
    trainer.model.perplexity = lambda *_: math.nan
    with pytest.raises(TrainingDiverged, match="validation perplexity nan"):
        trainer.fit(1)
    _, content = load_checkpoint(tmp_path / "last.safetensors")
    assert content["trainer"]["history"]["epochs"] == []


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make(tmp_path)
    trainer.fit(1)
    before = (tmp_path / "last.safetensors").read_bytes()
    trainer.model.params[0][0] = np.inf
    with pytest.raises(TrainingDiverged, match="parameters that are not finite"):
        trainer._save("last")
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_what_cannot_be_resumed_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"valid: too short to evaluate on; corpus: expected"):
        make(valid=VALID[:5])
    make(tmp_path).fit(1)
    with pytest.raises(ValueError, match=r"beta1: expected 0\.5, as before, got 0\.9"):
        make(optimiser=Adam(0.01, beta1=0.5)).restore(tmp_path / "last.safetensors")


def test_a_schedule_that_is_refused_leaves_the_folder_free(tmp_path):
    with pytest.raises(ValueError, match=r"schedule\(0\): expected a finite number above 0"):
        make(tmp_path, schedule=lambda iteration: iteration / 10).fit(1)
    make(tmp_path, schedule=lambda iteration: (iteration + 1) / 10).fit(1)


def test_an_epoch_whose_validation_fails_is_ended_again():
    whole, trainer, left = make(), make(), [1]
    whole.fit(3)
    perplexity = trainer.model.perplexity

    def failing(*args):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("no more")
        return perplexity(*args)

    trainer.model.perplexity = failing
    with pytest.raises(RuntimeError, match="no more"):
        trainer.fit(3)
    assert (trainer.epoch, trainer.history.epochs) == (0, [])
    assert trainer.fit(3) == whole.history


def test_it_says_when_it_stops_early_and_when_nothing_is_left():
    told = []
    trainer = make(patience=2, log=told.append)
    trainer.model.perplexity = lambda *_: 5.0
    trainer.fit(9)
    assert told[-1] == "stopped early: no improvement for 2 epochs (best: 1)"
    trainer.fit(3)
    assert told[-2] == "nothing left to train: 3 of 3 epochs are done"


# ---- all or nothing


def everything(trainer):
    """All that a checkpoint may change."""
    numbers, memory = trainer.optimiser.state()
    arrays = {**trainer.model.arrays(), **memory}
    return {
        "arrays": {name: array.tobytes() for name, array in arrays.items()},
        "optimiser": numbers,
        "blocks": trainer.blocks.state(),
        "random": trainer.model.rng.bit_generator.state,
        "history": trainer.history,
        "names": [layer.param_names for layer in trainer.model.recurrent],
        "progress": (trainer.epoch, trainer.iteration, trainer._looked_at),
        "sums": (trainer._epoch_loss, trainer._recent_loss, trainer._recent_norm),
    }


def put(content, place, value):
    *way, last = place
    for name in way:
        content = content[name]
    content[last] = value


# what is written where in a checkpoint, and what the error says
SPOILT = [
    (("trainer",), [], "does not fit"),
    (("trainer", "optimiser"), "Adam", "does not fit"),
    (("trainer", "optimiser", "lr"), None, "lr: expected a number"),
    (("trainer", "optimiser", "updates"), 1.5, "updates: expected a whole number"),
    (("trainer", "optimiser", "beta1"), 0.5, "beta1: expected 0.9"),
    (("trainer", "blocks"), 7, "does not fit"),
    (("trainer", "blocks", "cursor"), 99, "cursor: expected at most 15"),
    (("trainer", "random"), {"bit_generator": "PCG64"}, "does not fit"),
    (("trainer", "random", "state", "inc"), 2**200, "does not fit"),
    (("trainer", "random", "state", "pos"), 625, "pos: expected at most 624, got 625"),
    (("trainer", "random", "buffer_pos"), -1, "buffer_pos: expected"),
    (("trainer", "random"), {"state": {}, "bit_generator": "MT19937"}, "does not fit"),
    (("trainer", "history"), None, "does not fit"),
    (("trainer", "history", "train"), [[1, 2.0]], "enough values"),
    (("trainer", "history", "train"), [[1.5, 2.0, 3.0]], "history: iteration"),
    (("trainer", "history", "epochs", 0), {"epoch": 1}, "does not fit"),
    (("trainer", "history", "epochs", 0, "valid_perplexity"), "3", "valid_perplexity: expected"),
    (("trainer", "epoch"), "1", "epoch: expected a whole number"),
    (("trainer", "iteration"), -1, "iteration: expected at least 0"),
    (("trainer", "recent_norm"), math.nan, "recent_norm: expected a finite number"),
]


@pytest.mark.parametrize(("place", "value", "says"), SPOILT)
def test_a_refused_restore_changes_nothing(tmp_path, place, value, says):
    make(tmp_path / "a").fit(1)
    arrays, content = load_checkpoint(tmp_path / "a" / "last.safetensors")
    put(content, place, value)
    save_checkpoint(tmp_path / "spoilt.safetensors", arrays, content)
    trainer = make(tmp_path / "b")
    trainer.fit(2)
    before = everything(trainer)
    with pytest.raises(ValueError, match=says):
        trainer.restore(tmp_path / "spoilt.safetensors")
    assert everything(trainer) == before


ARRAYS_SPOILT = {
    "param/affine.b": lambda a: a[:-1],
    "param/recurrent1.Wh": lambda a: a.astype(np.float64),
    "param/recurrent1.initial": lambda _: np.zeros((3, 9), np.float32),
    "state/recurrent1.c": lambda a: a[:-1],
    "state/recurrent0.h": lambda a: a.astype(int),
    "optimiser/m/3": lambda a: a[:-1],
    "cell": lambda a: a + 1,
}


@pytest.mark.parametrize("name", ARRAYS_SPOILT)
def test_a_restore_whose_arrays_do_not_fit_changes_nothing(tmp_path, name):
    make(tmp_path / "a").fit(1)
    arrays, content = load_checkpoint(tmp_path / "a" / "last.safetensors")
    arrays[name] = ARRAYS_SPOILT[name](arrays.get(name))
    arrays["param/recurrent0.initial"] = np.zeros((2, 9), np.float32)  # would be learnt from now on
    save_checkpoint(tmp_path / "spoilt.safetensors", arrays, content)
    trainer = make(tmp_path / "b")
    trainer.fit(2)
    before = everything(trainer)
    says = name.removeprefix("optimiser/").replace("m/3", "v/3")
    with pytest.raises((TypeError, ValueError), match=f"{says}: expected"):
        trainer.restore(tmp_path / "spoilt.safetensors")
    assert everything(trainer) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_is_not_finite_reaches_no_parameter(backend):
    with use_backend(backend):
        trainer = make()
        trainer.fit(1)
        backward = trainer.model.backward

        def spoilt():
            backward()
            trainer.model.grads[2][0, 0] = np.nan

        trainer.model.backward = spoilt
        before = [param.copy() for param in trainer.model.params]
        with pytest.raises(TrainingDiverged, match=r"iteration 16: loss .*, gradient norm nan"):
            trainer.fit(2)
        for param, same in zip(trainer.model.params, before, strict=True):
            np.testing.assert_array_equal(param, same)


# ---- one run in a folder


def test_two_trainings_at_once_do_not_share_a_folder(tmp_path):
    first, second = make(tmp_path), make(tmp_path)
    forward, met = first.model.forward, []

    def meanwhile(*block, **options):
        if first.iteration == 3:
            last = (tmp_path / "last.safetensors").read_bytes()
            second.restore(tmp_path / "last.safetensors")
            with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on .* training"):
                second.fit(2)
            met.append(last == (tmp_path / "last.safetensors").read_bytes())
        return forward(*block, **options)

    first.model.forward = meanwhile
    first.fit(2)
    assert met == [True]
    last = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="resume it"):  # it has gone on since it was read
        second.fit(3)
    assert (tmp_path / "last.safetensors").read_bytes() == last
    second.restore(tmp_path / "last.safetensors")
    second.fit(3)
    assert second.epoch == 3
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"last.safetensors", "best.safetensors"}


def test_what_killed_writers_left_is_removed(tmp_path):
    make(tmp_path).fit(1)
    left = tmp_path / ".last.part-0123456789abcdef.safetensors"
    left.write_bytes(b"half")
    other = tmp_path / ".mine.safetensors"
    other.write_bytes(b"of somebody else")
    trainer = make(tmp_path)
    trainer.restore(tmp_path / "last.safetensors")
    trainer.fit(2)
    assert not left.exists()
    assert other.exists()


# ---- nobody listens


class Gone:
    """A pipe whose reader has gone."""

    encoding, closed = "utf-8", False

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self):
        raise OSError("no number")

    def isatty(self):
        return True


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Gone(), closed()], ids=["none", "gone", "closed"])
@pytest.mark.parametrize("progress", [False, True])
def test_training_does_not_need_streams(monkeypatch, progress, stream, text, tmp_path):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    outcome = jobs.train(small(text), tmp_path / "run", progress=progress)
    assert len(outcome.history.epochs) == 2


# ---- killed

RUN = """
import sys
from numba_rnn import jobs
from pathlib import Path
folder, text = Path(sys.argv[1]), sys.argv[2]
last = folder / "last.safetensors"
settings = jobs.TrainConfig(
    text=text, embed=8, hidden=12, dropout=0.2, batch=4, time=10, epochs=4, save_every=1, patience=0
)
jobs.train(settings, folder, resume=last if last.exists() else None, progress=False)
"""


KILLED = 1 if os.name == "nt" else -signal.SIGKILL  # the code of a process after kill()


def test_killed_twenty_times_it_loads_and_resumes_bit_for_bit(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(random.Random(0).choices("abcdefgh ", k=3000)))
    command = [sys.executable, "-c", RUN]
    environment = {**os.environ, "NUMBA_RNN_BACKEND": "numpy"}

    def start(folder):
        return subprocess.Popen([*command, folder, text], env=environment, stdout=subprocess.PIPE)

    began = time.monotonic()
    whole = start(tmp_path / "whole")
    assert whole.wait() == 0
    whole.stdout.close()
    seconds = time.monotonic() - began  # of start-up and training together

    random.seed(time.time_ns())
    kills, finished, run = 0, 0, 0
    while kills < 20 or not finished:
        folder = tmp_path / f"run{run}"
        process = start(folder)
        if kills < 20:
            time.sleep(random.uniform(0.1, 0.7) * seconds)
            process.kill()
        code = process.wait()
        process.stdout.close()
        if kills < 20 and code == KILLED:
            kills += 1
            for checkpoint in folder.glob("*.safetensors"):
                if not checkpoint.name.startswith("."):
                    load_checkpoint(checkpoint)
            continue
        assert code == 0
        finished, run = finished + 1, run + 1
        for file in ("last.safetensors", "best.safetensors"):
            assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


# ---- jobs


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return path


def small(text, **changes):
    return TrainConfig(
        text=str(text), **{"embed": 8, "hidden": 16, "batch": 4, "time": 8, "epochs": 2, **changes}
    )


def test_a_job_trains_and_its_checkpoint_serves(tmp_path, text):
    told = []
    outcome = jobs.train(
        small(text, level="word", lr=0.02), tmp_path / "run", progress=False, log=told.append
    )
    assert any("parameters" in line for line in told)
    assert outcome.valid_perplexity < 9
    model, vocabulary, content = jobs.load_model(outcome.checkpoint)
    assert content["settings"]["lr"] == 0.02
    assert vocabulary.members[:3] == ["the", "quick", "brown"]
    one = jobs.sample(model, vocabulary, prompt="the quick", length=12, seed=1)
    assert one.startswith("the quick ")
    assert one == jobs.sample(model, vocabulary, prompt="the quick", length=12, seed=1)
    corpus = vocabulary.encode(text.read_text())
    sizes = jobs.evaluation_sizes(corpus)
    assert math.isfinite(model.perplexity(corpus, **sizes))


def test_a_checkpoint_serves_with_the_zoneout_it_was_trained_with(tmp_path, text):
    rates = {"zoneout": 0.2, "recurrent_dropout": 0.1, "weight_drop": 0.3}
    settings = small(text, **rates)
    outcome = jobs.train(settings, tmp_path / "run", progress=False, log=lambda _: None)
    assert jobs.settings_of(outcome.checkpoint) == settings
    model, vocabulary, _ = jobs.load_model(outcome.checkpoint)
    assert model.recurrent[0].zoneout == (0.2, 0.2)
    sizes = {"batch_size": 2, "time_size": 10}
    corpus = vocabulary.encode(text.read_text())
    served = model.perplexity(corpus, **sizes)
    assert served == outcome.model.perplexity(corpus, **sizes)
    model.recurrent[0].regularise()
    assert abs(model.perplexity(corpus, **sizes) - served) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"average": "ema", "accumulate": 3, "schedule": "cosine", "warm_up": 5},
        {"average": "nt-asgd", "optimiser": "sgd", "warm_up": 5, "decay_patience": 1},
    ],
    ids=["ema", "nt-asgd"],
)
def test_a_job_with_averages_and_schedules_resumes_bit_for_bit(
    tmp_path, text, changes, monkeypatch
):
    settings = small(text, epochs=3, **changes)
    whole = jobs.train(settings, tmp_path / "whole", progress=False, log=lambda _: None)
    backward, left = Rnnlm.backward, [40]

    def stopping(model):
        backward(model)
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Rnnlm, "backward", stopping)
    half, told = tmp_path / "half", []
    assert jobs.train(settings, half, progress=False, log=told.append).stopped
    last = half / "last.safetensors"
    assert jobs.settings_of(last) == settings
    outcome = jobs.train(settings, half, resume=last, progress=False, log=told.append)
    assert outcome.history == whole.history
    for file in ("last.safetensors", "best.safetensors"):
        assert (half / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert {entry["lr"] for entry in whole.history.epochs} == {jobs.DEFAULT_LR[settings.optimiser]}
    model, _, _ = jobs.load_model(outcome.checkpoint)
    corpora = jobs.read_corpora(settings)
    sizes = jobs.evaluation_sizes(corpora.valid)
    assert model.perplexity(corpora.valid, **sizes) == outcome.valid_perplexity
    never = [line for line in told if line.startswith("no average of the weights: validation has")]
    assert len(never) == (settings.average == "nt-asgd")


def test_a_cosine_is_as_long_as_all_epochs_whatever_the_blocks_lengths(tmp_path, text):
    settings = small(text, epochs=4, schedule="cosine", varying_time=True, accumulate=2, time=6)
    outcome = jobs.train(settings, tmp_path / "run", progress=False, log=lambda _: None)
    corpora = jobs.read_corpora(settings)
    factor = jobs._schedule_of(settings, jobs._blocks_of(corpora, settings))
    ends = [0, *(entry["iteration"] for entry in outcome.history.epochs)]
    assert len(set(np.diff(ends))) > 1
    assert factor(ends[-1]) == pytest.approx(0.01)
    assert factor(ends[-1] - 1) > 0.01


def test_settings_that_do_not_fit_together_are_refused(tmp_path, text):
    for changes, says in [
        ({"average": "swa"}, "average: expected one of ema, nt-asgd, got 'swa'"),
        ({"schedule": "step"}, "schedule: expected one of constant, cosine, got 'step'"),
        ({"warm_up": -1}, "warm_up: expected at least 0, got -1"),
    ]:
        with pytest.raises(ValueError, match=says):
            small(text, **changes)
    for changes, says in [
        ({"schedule": "cosine", "warm_up": 999}, "warm_up: expected fewer than the .* iterations"),
        ({"accumulate": 999}, "accumulate: expected at most the .* batches of an epoch, got 999"),
    ]:
        with pytest.raises(ValueError, match=says):
            jobs.train(small(text, **changes), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_settings_that_a_checkpoint_lacks_have_their_defaults(tmp_path, text):
    outcome = jobs.train(small(text), tmp_path / "run", progress=False, log=lambda _: None)
    arrays, content = load_checkpoint(outcome.checkpoint)
    del content["settings"]["zoneout"]
    save_checkpoint(tmp_path / "older.safetensors", arrays, content)
    assert jobs.settings_of(tmp_path / "older.safetensors") == small(text)


def test_a_run_is_never_overwritten(tmp_path, text):
    jobs.train(small(text), tmp_path / "run", progress=False, log=lambda _: None)
    with pytest.raises(FileExistsError, match="--resume"):
        jobs.train(small(text), tmp_path / "run", progress=False, log=lambda _: None)


def test_folders_of_new_runs_are_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [jobs.new_folder(TrainConfig()) for _ in range(3)]
    assert [folder.name for folder in folders] == ["char-lstm", "char-lstm-2", "char-lstm-3"]
    assert all(folder.is_dir() for folder in folders)


def expect_refused_in_little_memory(work, error, says):
    """Not after gigabytes, or minutes, of making what a file only says it has."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=says):
            work()
        assert tracemalloc.get_traced_memory()[1] < 1 << 27
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": 2**31}, r"param/recurrent1\.Wx"),
        ({"hidden_size": 2**20}, r"param/recurrent0\.Wx: expected shape \(8, 4194304\)"),
        ({"embed_size": 2**40}, r"param/embedding\.W"),
        ({"layers": "1"}, "describe"),
        ({"cell": ["lstm"]}, "not registered"),
    ],
)
def test_sizes_are_those_of_the_arrays_before_anything_is_made(tmp_path, text, changes, says):
    outcome = jobs.train(small(text), tmp_path / "run", progress=False, log=lambda _: None)
    arrays, content = load_checkpoint(outcome.checkpoint)
    content["model"].update(changes)
    settings = {k.removesuffix("_size"): v for k, v in changes.items()}
    content["settings"].update({k: v for k, v in settings.items() if isinstance(v, int)})
    path = tmp_path / "edited.safetensors"
    save_checkpoint(path, arrays, content)
    expect_refused_in_little_memory(lambda: jobs.load_model(path), CheckpointError, says)
    if all(isinstance(value, int) for value in changes.values()):

        def resume():
            jobs.train(jobs.settings_of(path), tmp_path / "b", resume=path, progress=False)

        expect_refused_in_little_memory(resume, (TypeError, ValueError), says)


def test_resuming_with_another_text_is_refused(tmp_path, text):
    jobs.train(small(text), tmp_path / "run", progress=False, log=lambda _: None)
    text.write_text(text.read_text().replace("fox", "cat"))
    last = tmp_path / "run" / "last.safetensors"
    with pytest.raises(ValueError, match="the texts differ"):
        jobs.train(jobs.settings_of(last), tmp_path / "run", resume=last, progress=False)


def test_resuming_in_another_folder_takes_the_best_along(tmp_path, text):
    first = jobs.train(small(text), tmp_path / "a", progress=False, log=lambda _: None)
    last = tmp_path / "a" / "last.safetensors"
    jobs.train(small(text), tmp_path / "b", resume=last, progress=False, log=lambda _: None)
    assert (tmp_path / "b" / "best.safetensors").read_bytes() == first.checkpoint.read_bytes()
    jobs.train(small(text, seed=1), tmp_path / "c", progress=False, log=lambda _: None)
    before = (tmp_path / "c" / "last.safetensors").read_bytes()
    more = small(text, epochs=3)
    with pytest.raises(FileExistsError, match="holds a run already"):
        jobs.train(more, tmp_path / "c", resume=last, progress=False, log=lambda _: None)
    assert (tmp_path / "c" / "last.safetensors").read_bytes() == before


def test_a_short_text_is_evaluated_almost_whole():
    for places in (1, 2, 34, 36, 69, 70, 350, 351, 700, 3499, 3500, 82_429):
        sizes = jobs.evaluation_sizes(np.zeros(places + 1, int))
        blocks = TruncatedBPTT(np.zeros(places + 1, int), **sizes)
        read = len(blocks) * sizes["batch_size"] * sizes["time_size"]
        assert 0.9 * places <= read <= places, places
    assert sizes == {"batch_size": 10, "time_size": 35}


def test_a_checkpoint_without_a_model_is_refused(tmp_path):
    make(tmp_path).fit(1)
    with pytest.raises(CheckpointError, match="expected a checkpoint of `numba-rnn train`"):
        jobs.settings_of(tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="does not describe a language model"):
        jobs.load_model(tmp_path / "last.safetensors")
