"""The command line, as a user runs it."""

import errno
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest

from numba_rnn import __version__, jobs, use_backend
from numba_rnn.models import Rnnlm
from numba_rnn.training import load_checkpoint, save_checkpoint

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
SMALL = ["--embed", "8", "--hidden", "16", "--batch", "4", "--time", "8", "--epochs", "2"]


def run(*args, cwd, code=0):
    process = subprocess.run(
        [sys.executable, "-m", "numba_rnn", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "NUMBA_RNN_BACKEND": "numpy", "COLUMNS": "100"},
        timeout=120,
    )
    assert process.returncode == code, process.stderr
    return process.stdout if code == 0 else process.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "blanks and 한글, é"
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT)
    run("train", "--text", "text.txt", "--test", "text.txt", "--out", "run", *SMALL, cwd=folder)
    return folder


def test_train_leaves_what_it_says(folder):
    said = run("train", "--text", "text.txt", "--level", "word", *SMALL, cwd=folder)
    assert re.search(r"^engine numpy, ", said, re.M)
    assert re.search(r"^held-out perplexity \d+\.\d{3} per word$", said, re.M)
    assert "a sample:" in said
    for name in ("loss.png", "best.safetensors", "last.safetensors"):
        assert (folder / "runs" / "word-lstm" / name).stat().st_size > 1000
    assert (folder / "runs" / "word-lstm" / "loss.png").read_bytes().startswith(b"\x89PNG")
    # a second run does not touch the first
    said = run("train", "--text", "text.txt", "--level", "word", *SMALL, cwd=folder)
    assert "runs/word-lstm-2/best.safetensors" in said


def test_cuda_without_a_gpu_trains_on_the_cpu_and_says_so_once(folder):
    done = subprocess.run(
        [sys.executable, "-m", "numba_rnn", "train", "--text", "text.txt", "--out", "g", *SMALL],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "NUMBA_RNN_BACKEND": "cuda", "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^held-out perplexity \d", done.stdout, re.M)
    (said,) = re.findall(r".*warning.*", done.stderr, re.I)
    assert "NUMBA_RNN_BACKEND asks for cuda, running on numba instead" in said


def test_a_runs_folder_is_its_best_checkpoint(folder):
    model, _, content = jobs.load_model(folder / "run")
    best, _, same = jobs.load_model(str(folder / "run" / "best.safetensors"))
    assert content == same
    for ours, theirs in zip(model.params, best.params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(FileNotFoundError, match="expected a file, found none at") as caught:
        jobs.load_model(folder)
    assert str(folder / "run") in str(caught.value).partition("; it contains the runs ")[2]


def test_evaluate_agrees_with_train(folder):
    said = run(
        "train", "--text", "text.txt", "--test", "text.txt", "--out", "b", *SMALL, cwd=folder
    )
    (of_train,) = re.findall(r"^test (perplexity \S+ per char)$", said, re.M)
    said = run("evaluate", "b", "--text", "text.txt", cwd=folder)
    assert said.startswith(of_train + "\n")


def test_generate_is_seeded(folder):
    def made(seed):
        options = ("--prompt", "the quick", "--length", "30", "--seed", seed)
        return run("generate", "run", *options, cwd=folder)

    assert made(1).startswith("the quick")
    assert len(made(1).rstrip("\n")) == pytest.approx(39, abs=2)
    assert made(1) == made(1) != made(2)


def test_info(folder):
    assert re.search(r"^engine +numpy$", run("info", cwd=folder), re.M)
    said = run("info", "run", cwd=folder)
    assert "hidden_size 16, cell lstm" in said
    assert re.search(r"^trained +2 epochs", said, re.M)
    assert run("--version", cwd=folder).strip() == __version__


def test_inspect_prints_and_draws_the_inside(folder):
    said = run("inspect", "run", "--prompt", "the quick ブラ $x$ fox\n", cwd=folder)
    assert "read 20 chars" in said
    assert "layer 0: TimeRecurrent(cell lstm, D 8, H 16, float32)" in said
    assert re.search(r"^  [hc]  \w+ by a factor of \d\.\d\d a step: after 19 steps", said, re.M)
    pictures = re.findall(r"^picture  (\S+)$", said, re.M)
    names = "gradient", "gates", "saturation", "weights"
    assert pictures == [f"run/inside/{name}.png" for name in names]
    for picture in pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_inspect_reads_what_the_model_makes_up(folder):
    sizes = ("--layers", "2", "--cell", "rnn_relu", "--level", "word", *SMALL[:-1], "1")
    run("train", "--text", "text.txt", "--out", "two", *sizes, cwd=folder)
    said = [run("inspect", "two", "--out", "elsewhere", cwd=folder) for _ in range(2)]
    assert said[0] == said[1]
    assert "layer 1: " in said[0]
    pictures = {path.name for path in (folder / "elsewhere").iterdir()}
    assert pictures == {
        "gradient.png",
        *(f"{n}-{k}.png" for n in ("gates", "weights") for k in "01"),
    }


@pytest.mark.parametrize("command", ["train", "generate", "evaluate", "inspect", "info"])
def test_help_names_every_option_with_words(folder, command):
    said = run(command, "--help", cwd=folder)
    for line in re.findall(r"^│ +(--.*)│$", said, re.M):
        assert len(line.split()) > 2, line


SNAKE = "the snake \U0001f40d eats 蛇 and × ř — ½ \n" * 40


def run_bytes(*arguments, cwd, **variables):
    return subprocess.run(
        [sys.executable, "-m", "numba_rnn", *arguments], cwd=cwd, capture_output=True,
        env=os.environ | {"NUMBA_RNN_BACKEND": "numpy"} | variables, timeout=120,
    )  # fmt: skip


def test_characters_that_the_terminal_has_not_are_replaced(tmp_path):
    (tmp_path / "뱀.txt").write_text(SNAKE, encoding="utf-8")

    def run_in(encoding, *arguments):
        return run_bytes(*arguments, cwd=tmp_path, PYTHONIOENCODING=encoding)

    done = run_in("cp1252", "train", "--text", "뱀.txt", "--out", "뱀", *SMALL)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode("cp1252")
    assert re.search(r"^a sample:\s.*^loss curve  \?/loss\.png$", said, re.M | re.S)
    assert (tmp_path / "뱀" / "loss.png").stat().st_size > 1000
    for encoding in ("cp1252", "latin-1", "ascii"):
        done = run_in(encoding, "generate", "뱀", "--prompt", "½ \U0001f40d ½", "--length", "5")
        half = "½".encode(encoding, "replace")
        assert done.stdout.startswith(half + b" ? " + half), encoding
    done = run_in("ascii", "inspect", "뱀", "--prompt", "the 蛇 and")
    assert done.returncode == 0, done.stderr
    assert "picture  ?/inside/gates.png" in done.stdout.decode("ascii")
    done = run_in("cp1252", "info", "없다")
    assert done.returncode == 1
    assert b"expected a file, found none at" in done.stderr
    assert b"Traceback" not in done.stderr


def test_characters_that_the_c_locale_has_not_are_replaced(tmp_path):
    (tmp_path / "snake.txt").write_text(SNAKE, encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run_bytes("train", "--text", "snake.txt", "--out", "run", *SMALL, cwd=tmp_path, **plain)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^a sample:\s.*\?.*^loss curve", done.stdout.decode("cp1252"), re.M | re.S)


@pytest.mark.parametrize("command", [["generate", "--length", "9"], ["inspect"]])
def test_what_a_prompt_has_that_the_model_has_never_seen_is_named(folder, command):
    done = run_bytes(*command, "run", "--prompt", "The fox, 여우", cwd=folder)
    assert done.stderr.decode() == (
        "warning: prompt: the model has never seen 'T', ',', '여', '우'; "
        "it reads '\\ufffd' instead\n"
    )


def test_a_prompt_that_the_model_knows_needs_no_word(folder):
    model, vocabulary, _ = jobs.load_model(folder / "run")
    jobs.trace_text(model, vocabulary, "the fox")  # a warning would be an error
    assert jobs.sample(model, vocabulary, prompt="the fox", length=3).startswith("the fox")
    with pytest.warns(UserWarning, match="never seen 'T'; it reads"):
        jobs.sample(model, vocabulary, prompt="The fox", length=3)


def test_prompts_are_composed_as_texts_are(tmp_path):
    text = "나는 학교에 갔다\n" * 100
    (tmp_path / "a.txt").write_text(unicodedata.normalize("NFD", text), encoding="utf-8")
    run("train", "--text", "a.txt", "--out", "a", *SMALL, cwd=tmp_path)
    _, vocabulary, _ = jobs.load_model(tmp_path / "a")
    assert set(vocabulary.members) == {*text, "\ufffd"}
    said = run(
        "generate", "a", "--prompt", unicodedata.normalize("NFD", "학교"), "--length", "3",
        cwd=tmp_path,
    )  # fmt: skip
    assert said.startswith("학교")
    said = run("evaluate", "a", "--text", "a.txt", cwd=tmp_path)
    assert said.endswith(" 0 unknown\n")


def test_a_run_with_averages_and_a_table_is_resumed_with_its_settings(folder):
    chosen = ["--average", "ema", "--accumulate", "2", "--schedule", "cosine", "--warm-up", "3"]
    chosen += ["--varying-time"]
    command = ["train", "--text", "text.txt", "--out", "averaged", "--log-csv", "averaged.csv"]
    said = run(*command, *chosen, *SMALL, cwd=folder)
    table = (folder / "averaged.csv").read_text().splitlines()
    assert table[0].startswith("iteration,train_loss,gradient_norm,lr,epoch,epoch_loss,valid_perp")
    best = min(float(line.split(",")[-1]) for line in table if line.split(",")[-1][:1].isdigit())
    assert f"held-out perplexity {best:.3f} per char" in said
    said = run("train", "--resume", "averaged", "--average", "nt-asgd", cwd=folder, code=1)
    assert "--resume keeps the run's own settings; --average cannot change" in said
    said = run("train", "--resume", "averaged", "--epochs", "3", cwd=folder, code=1)
    assert "--epochs cannot change; a cosine is as long" in said


def test_ctrl_c_saves_and_resume_goes_on(folder):
    command = [sys.executable, "-m", "numba_rnn", "train", "--text", "text.txt", "--out", "c"]
    process = subprocess.Popen(
        [*command, *SMALL[:-1], "100000", "--patience", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NUMBA_RNN_BACKEND": "numpy"},
    )
    while not (folder / "c" / "best.safetensors").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; go on with: numba-rnn train --resume c" in said
    (epochs,) = re.findall(r"trained +(\d+) epochs", run("info", "c/last.safetensors", cwd=folder))
    more = str(int(epochs) + 2)
    said = run("train", "--resume", "c", "--epochs", more, cwd=folder)
    assert re.search(rf"^epoch +{more} ", said, re.M)
    assert re.search(r"^held-out perplexity", said, re.M)
    said = run("train", "--resume", "c", "--hidden", "99", cwd=folder, code=1)
    assert "--hidden cannot change" in said


INTERRUPTS = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *more):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, perhaps, where tests run
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.skipif(os.name != "posix", reason="signals between processes")
@pytest.mark.parametrize("module", ["numpy", "numba_rnn.backend", "typer", "numba"])
@pytest.mark.parametrize("command", ["numba-rnn", "-m"])
def test_ctrl_c_while_the_command_is_imported_is_quiet(tmp_path, module, command):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS.format(name=module))
    (tmp_path / "numba-rnn").write_text("from numba_rnn.cli import main\nmain()")
    words = ["-m", "numba_rnn"] if command == "-m" else [str(tmp_path / "numba-rnn")]
    done = subprocess.run(
        [sys.executable, *words, "info"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=120,
    )  # fmt: skip
    # as a shell has it either way; numba is imported by a command that runs
    assert done.returncode == (130 if module == "numba" else -signal.SIGINT)
    assert done.stdout + done.stderr == ""


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a command in this process, and returns its exit code and its output."""
    from numba_rnn import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["numba-rnn", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended, use_backend("numpy"):
            cli.main()
        return ended.value.code, capsys.readouterr().out

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as below
@pytest.mark.parametrize("signals", [1, 2])
def test_a_second_ctrl_c_also_says_how_to_go_on(folder, tmp_path, monkeypatch, run_here, signals):
    def backward(model):
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        return plain(model)

    plain = Rnnlm.backward
    monkeypatch.setattr(Rnnlm, "backward", backward)
    command = "train", "--text", folder / "text.txt", "--out", tmp_path / "c", *SMALL
    command = *command, "--log-csv", tmp_path / "log.csv"
    code, said = run_here(*command)
    assert code == 130
    resume = f"train --resume {tmp_path / 'c'} --log-csv {tmp_path / 'log.csv'}"
    assert said.count(f"stopped; go on with: numba-rnn {resume}\n") == 1
    _, content = load_checkpoint(tmp_path / "c" / "last.safetensors")
    assert content["trainer"]["iteration"] == 2 - signals
    code, said = run_here(*command)  # this folder has a run
    assert "stopped" not in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train", "--text", "none.txt"], "text: expected a file, found none at .*none.txt"),
        (["train", "--text", "run"], "text: expected a file, got .*run: Is a directory"),
        (["train", "--text", "text.txt", "--valid", "no"], "valid: expected a file, found none"),
        (["train", "--text", "text.txt", "--valid", "run"], "valid: expected a file, got .*run"),
        (["train", "--text", "text.txt", "--test", "no"], "test: expected a file, found none at"),
        (
            ["train", "--out", "text.txt"],
            r"--out: expected a folder, got the file text\.txt; name a folder",
        ),
        (["train", "--out", "text.txt/a/b"], r"--out: expected a folder, got the file text\.txt;"),
        (["--cells", "run", "info"], "--cells: expected a file, got the folder run; name a file"),
        (["--cells", "none.py", "info"], "--cells: expected a file, found none at none.py"),
        (["train", "--cell", "lstn"], r"cell: expected one of .*lstm.*, got 'lstn'"),
        (["train", "--level", "byte"], "level: expected one of char, word, got 'byte'"),
        (["train", "--optimizer", "sdg"], "optimiser: expected one of sgd, .*got 'sdg'"),
        (["train", "--dtype", "float16"], "dtype: expected one of float32, float64"),
        (["train", "--backend", "tpu"], "expected one of auto, numpy, numba, cuda, got 'tpu'"),
        (["train", "--backend", "cuda", "--strict"], "cuda cannot run here"),
        (["train", "--text", "text.txt", "--batch", "0"], "batch: expected at least 1, got 0"),
        (
            ["train", "--text", "text.txt", "--time", "99999"],
            "text: expected at least 3199969 tokens .* or a smaller --batch or --time",
        ),
        (
            ["train", "--text", "text.txt", "--dropout", "1"],
            "dropout: expected a finite number from 0 and below 1, got 1",
        ),
        (
            ["train", "--text", "text.txt", "--level", "word", "--min-count", "9999"],
            "min_count: expected a word that occurs at least 9999 times in the text, got at most",
        ),
        (["train", "--average", "swa"], "average: expected one of ema, nt-asgd, got 'swa'"),
        (["train", "--schedule", "step"], "schedule: expected one of constant, cosine, got 'step'"),
        (["train", "--log-csv", "run"], "--log-csv: expected a file, got the folder run; name a"),
        (
            ["train", "--log-csv", "text.txt/a"],
            r"--log-csv: expected a folder, got the file text\.txt",
        ),
        (["train", "--tensorboard", "text.txt"], "--tensorboard: expected a folder, got the file"),
        (
            ["train", "--text", "text.txt", "--log-csv", "text.txt", "--out", "new", *SMALL],
            "text.txt: expected no file, or the log of this run, got another one",
        ),
        (["train", "--text", "text.txt", "--lr", "-1"], "lr: expected a finite number above 0"),
        (["train", "--text", "text.txt", "--clip", "-1"], "clip: expected a finite number from 0"),
        (["train", "--text", "text.txt", "--tie"], "expected --embed equal to --hidden, got 64"),
        (
            ["train", "--text", "text.txt", "--out", "run", *SMALL],
            "run holds a run.*--resume",
        ),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["generate", "text.txt"], r"text\.txt: expected a whole safetensors file"),
        (
            ["generate", "run", "--temperature", "-1"],
            "temperature: expected a finite number from 0",
        ),
        (["generate", "run", "--length", "0"], "length: expected at least 1, got 0"),
        (["evaluate", "run", "--text", "no.txt"], "text: expected a file, found none at no.txt"),
        (["evaluate", "run", "--text", "run"], "text: expected a file, got run: Is a directory"),
        (["inspect", "run", "--out", "text.txt"], r"--out: expected a folder, got the file text"),
        (["inspect", "run", "--prompt", "x"], "prompt: expected at least two chars, .*got 1"),
        (["inspect", "nowhere"], "nowhere"),
        (["generate", "."], "found none at last.safetensors; it contains the runs .*run"),
        (["info", "nowhere"], "nowhere"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(folder, args, says):
    said = run(*args, cwd=folder, code=1)
    assert re.search(says, said, re.S)
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


def test_training_that_diverges_says_so(folder):
    strict = [sys.executable, "-W", "error::RuntimeWarning"]  # of matplotlib, drawing the curve
    command = [*strict, "-m", "numba_rnn", "train", "--text", "text.txt"]
    far = ["--optimizer", "sgd", "--lr", "1e6", "--clip", "0"]
    done = subprocess.run(
        [*command, *SMALL, *far], cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "NUMBA_RNN_BACKEND": "numpy"}, timeout=120,
    )  # fmt: skip
    assert "warning: training has diverged: try a lower --lr or --clip" in done.stderr
    assert re.search(r"^held-out perplexity \S{4,9} per char$", done.stdout, re.M)
    assert "diverged" not in run("train", "--text", "text.txt", *SMALL, cwd=folder)


def shell(line, cwd, code=0):
    """The output of a line of bash."""
    done = subprocess.run(
        ["bash", "-c", line.replace("numba-rnn", f"{sys.executable} -m numba_rnn")],
        cwd=cwd, capture_output=True, text=True, timeout=120,
        env={**os.environ, "NUMBA_RNN_BACKEND": "numpy"},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.skipif(os.name != "posix", reason="a shell's redirections")
@pytest.mark.parametrize(
    "streams", ["2>&-", ">&-", ">&- 2>&-", "| head -0; exit ${PIPESTATUS[0]}", "2>&1 | head -0"]
)
def test_training_does_not_need_anybody_to_listen(tmp_path, folder, streams):
    text, small = shlex.quote(f"{folder}/text.txt"), " ".join(SMALL)
    done = shell(f"numba-rnn train --text {text} --out r {small} {streams}", tmp_path)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    for name in ("last.safetensors", "best.safetensors", "loss.png"):
        assert (tmp_path / "r" / name).stat().st_size > 1000
    (epochs,) = re.findall(
        r"trained +(\d+) epochs", run("info", "r/last.safetensors", cwd=tmp_path)
    )
    assert epochs == "2"


# the lowest Typer warns of the newest click
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("command", [["generate"], ["evaluate", "--text", "text.txt"], ["info"]])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE])
def test_a_result_is_not_lost_without_a_word(folder, monkeypatch, capsys, command, number):
    from numba_rnn import cli

    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(number, os.strerror(number))

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["numba-rnn", command[0], "run", *command[1:]])
    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    full = number == errno.ENOSPC
    assert ended.value.code == (1 if full else 0)
    assert (os.strerror(number) in capsys.readouterr().err) == full


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal that the system has not")
def test_a_terminal_that_is_closed_leaves_a_checkpoint(tmp_path, folder):
    """SIGHUP comes, and what is written from then on fails."""
    command = [sys.executable, "-m", "numba_rnn", "train", "--text", f"{folder}/text.txt"]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what is ignored here is there, too
    process = subprocess.Popen(
        [*command, "--out", "c", *SMALL[:-1], "100000", "--patience", "0"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "NUMBA_RNN_BACKEND": "numpy"},
    )  # fmt: skip
    signal.signal(signal.SIGHUP, before)
    while not (tmp_path / "c" / "best.safetensors").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    _, content = load_checkpoint(tmp_path / "c" / "last.safetensors")
    assert content["trainer"]["iteration"] >= content["trainer"]["epoch"] >= 1
    assert not (tmp_path / "c" / ".lock").exists()


def test_a_run_that_is_trained_is_not_resumed(tmp_path, folder):
    command = [sys.executable, "-m", "numba_rnn", "train", "--text", f"{folder}/text.txt"]
    process = subprocess.Popen(
        [*command, "--out", "c", *SMALL[:-1], "100000", "--patience", "0", "--quiet"],
        cwd=tmp_path, stdout=subprocess.DEVNULL,
        env={**os.environ, "NUMBA_RNN_BACKEND": "numpy"},
    )  # fmt: skip
    while not (tmp_path / "c" / "best.safetensors").exists():
        time.sleep(0.05)
        assert process.poll() is None
    said = run("train", "--resume", "c", "--epochs", "100000", cwd=tmp_path, code=1)
    assert f"c: process {process.pid} on " in said
    assert len(said.strip().splitlines()) == 1
    process.kill()  # and its lock is nobody's
    process.wait()
    (epochs,) = re.findall(
        r"trained +(\d+) epochs", run("info", "c/last.safetensors", cwd=tmp_path)
    )
    said = run("train", "--resume", "c", "--epochs", str(int(epochs) + 1), cwd=tmp_path)
    assert "held-out perplexity" in said


def test_runs_that_start_together_get_folders_of_their_own(tmp_path, folder):
    (tmp_path / "runs" / "char-lstm").mkdir(parents=True)
    run("train", "--text", f"{folder}/text.txt", *SMALL[:-1], "1", cwd=tmp_path)
    run("train", "--text", "none.txt", cwd=tmp_path, code=1)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"char-lstm", "char-lstm-2"}


def test_info_refuses_what_does_not_say_how_it_was_trained(folder):
    arrays, content = load_checkpoint(folder / "run" / "best.safetensors")
    for spoilt in ({}, {"epoch": 1}, {**content["trainer"], "epoch": [], "iteration": "3"}):
        content["trainer"] = spoilt
        save_checkpoint(folder / "spoilt.safetensors", arrays, content)
        said = run("info", "spoilt.safetensors", cwd=folder, code=1)
        assert "spoilt.safetensors: expected a checkpoint of `numba-rnn train`" in said


CELLS = """
from numba_rnn import cell
from numba_rnn.functions import tanh

@cell(weights="u", recurrence="elementwise")
def diagonal(a, u, h):
    return tanh(a + u * h)
"""


def test_a_cell_of_ones_own_is_trained_and_used(tmp_path):
    (tmp_path / "mine.py").write_text(CELLS)
    (tmp_path / "text.txt").write_text(TEXT)
    cells = "--cells", "mine.py"
    said = run(*cells, "train", "--text", "text.txt", "--cell", "diagonal", *SMALL, cwd=tmp_path)
    assert "held-out perplexity" in said
    made = run(*cells, "generate", "runs/char-diagonal", "--length", "20", cwd=tmp_path)
    assert len(made.strip()) >= 10
    said = run("generate", "runs/char-diagonal", cwd=tmp_path, code=1)
    assert re.search(
        "the cell 'diagonal', which is not registered.*numba-rnn --cells FILE.py", said
    )
    (tmp_path / "mine.py").write_text("x = 3")
    said = run(*cells, "info", cwd=tmp_path, code=1)
    assert "--cells: expected a file that defines cells, got none in mine.py" in said


def test_the_commands_that_train_prints_have_the_cells_and_are_quoted(tmp_path):
    (tmp_path / "my cells.py").write_text(CELLS)
    (tmp_path / "text.txt").write_text(TEXT)
    options = "--text", "text.txt", "--cell", "diagonal", "--out", "it's mine", *SMALL[:-1], "1"
    said = run("train", "--cells", "my cells.py", *options, cwd=tmp_path)
    (command,) = re.findall(r"^more text   (.*)$", said, re.M)
    assert len(shell(f"{command} --length 20", tmp_path).stdout.strip()) >= 10
    # it comes back without its cell
    for command in (["train", "--resume"], ["generate"], ["inspect"]):
        said = run(*command, "it's mine", cwd=tmp_path, code=1)
        assert re.search(
            "the cell 'diagonal', which is not registered.*numba-rnn --cells FILE.py", said
        )
        assert len(said.strip().splitlines()) == 1
    said = run("info", "it's mine", cwd=tmp_path)
    known = run("--cells", "my cells.py", "info", "it's mine", cwd=tmp_path)
    assert sorted(re.split(r"[\s,]+", said)) == sorted(re.split(r"[\s,]+", known))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("\nx = = 3", "mine.py, line 2: SyntaxError: invalid syntax"),
        ("\n\nimport no_such_module", "line 3: ModuleNotFoundError: No module named"),
        ("def f():\n    return 1 / 0\n\nf()", "line 2: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('')", "line 2: JSONDecodeError: Expecting value"),
        ("x = '\0'", ": SyntaxError: source code"),
        ("raise SystemExit('no\\nmore')", "line 1: SystemExit: no more"),
        (CELLS.replace("elementwise", "none"), "line 5: CellError: cell 'diagonal': recurrence: "),
    ],
)
def test_an_error_in_a_file_of_cells_is_named_with_its_line(tmp_path, content, says):
    (tmp_path / "mine.py").write_text(content)
    said = run("info", "--cells", "mine.py", cwd=tmp_path, code=1)
    assert said.startswith("error: --cells: mine.py")
    assert says in said
    assert len(said.strip().splitlines()) == 1
