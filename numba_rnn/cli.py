"""The command line: numba-rnn train | generate | evaluate | inspect | info."""

import io
import os
import runpy
import shlex
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from . import jobs
from .backend import NAMES as BACKEND_NAMES
from .backend import BackendError, explain, use_backend
from .jobs import TrainConfig
from .kernels import cells
from .layers.initialisers import INITS
from .layers.losses import spell_perplexity
from .terminal import say
from .text import LEVELS
from .training import (
    CheckpointError,
    CSVLog,
    RanksError,
    TensorBoardLog,
    TrainingDiverged,
    TruncatedBPTT,
    init_distributed,
    load_checkpoint,
    optimisers,
)
from .training.plot_loss import plot_loss
from .version import __version__

app = typer.Typer(
    name="numba-rnn",
    help="Recurrent language models on the CPU, with Numba. `numba-rnn train` is a good start.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _one_of(what: str, names: Iterable[str]) -> str:
    return f"{what}: {', '.join(names)}."


BackendOption = Annotated[
    str | None,
    typer.Option(
        help=_one_of("Engine (overrides $NUMBA_RNN_BACKEND)", BACKEND_NAMES),
        show_default=False,
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Fail if the engine cannot run, instead of using another.")
]
CheckpointArgument = Annotated[
    Path, typer.Argument(help="A checkpoint, or the folder of a run (its best checkpoint).")
]


def _run_cells_file(context: typer.Context, path: Path | None) -> Path | None:
    """Run a file of --cells and register its cells."""
    if path is None:
        return None
    if not path.exists():
        raise FileNotFoundError(f"--cells: expected a file, found none at {path}")
    if path.is_dir() and not (path / "__main__.py").exists():
        raise ValueError(f"--cells: expected a file, got the folder {path}; name a file in it")
    try:
        found = runpy.run_path(str(path)).values()
    except (Exception, SystemExit) as error:
        raise ValueError(f"--cells: {_where(error, path)}") from error
    own = [value for value in found if isinstance(value, cells.Cell | cells.WrittenCell)]
    if not own:
        raise ValueError(f"--cells: expected a file that defines cells, got none in {path}")
    for cell in own:
        cells.register(cell)
    context.meta.setdefault(_CELLS_FILES, []).append(path)
    return path


_CELLS_FILES = f"{__name__}.cells_files"  # where the context of a command keeps them


def _where(error: BaseException, path: Path) -> str:
    """The line of a file that an exception comes from, and the exception, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    message = str(error)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines, message = [error.lineno], error.msg
    place = f"{path}, line {lines[-1]}" if lines and lines[-1] else path
    return f"{place}: {type(error).__name__}: {' '.join(message.split())}"


CellsOption = Annotated[
    Path | None,
    typer.Option(
        "--cells",
        metavar="FILE.py",
        help="A Python file that defines your own cells (`@numba_rnn.cell`). It is run first; "
        "--cell and checkpoints then find its cells by name.",
        callback=_run_cells_file,
    ),
]

DEFAULT = TrainConfig()

# what a user can mend: one line on stderr, not a traceback
ERRORS = (
    BackendError, CheckpointError, RanksError, TrainingDiverged, FileExistsError, OSError,
    TypeError, ValueError, ImportError, MemoryError,
)  # fmt: skip


def _choose_backend(backend: str | None, strict: bool, say: bool = True) -> None:
    """Put the options in force, and say a fall-back in one line."""
    if strict:
        os.environ["NUMBA_RNN_STRICT"] = "1"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        if backend is not None:
            use_backend(backend, strict=strict)
        explain()
    for warning in caught if say else ():
        typer.secho(f"warning: {warning.message}", fg=typer.colors.YELLOW, err=True)


TRAIN = """Train a recurrent language model.

Without arguments it trains a character LSTM on Python's own help texts. This takes about two
minutes and ends with the held-out perplexity, a sample and a checkpoint. Ctrl-C saves and
stops; --resume continues from there, bit for bit.

`mpiexec -n 4 numba-rnn train` divides every batch among four processes.
"""


@app.command(help=TRAIN)
def train(
    context: typer.Context,
    text: Annotated[
        Path | None,
        typer.Option(help="Training text, UTF-8, plain or .gz. Default: Python's own help texts."),
    ] = None,
    valid: Annotated[
        Path | None, typer.Option(help="Validation text. Default: the last tenth of the text.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Test text, evaluated once with the best weights.")
    ] = None,
    level: Annotated[str, typer.Option(help=_one_of("Unit of prediction", LEVELS))] = DEFAULT.level,
    min_count: Annotated[
        int,
        typer.Option(help="Tokens rarer than this in the training text count as unknown."),
    ] = DEFAULT.min_count,
    cell: Annotated[
        str, typer.Option(help=_one_of("Recurrent cell", cells.names()))
    ] = DEFAULT.cell,
    embed: Annotated[int, typer.Option(help="Size of a token's embedding, D.")] = DEFAULT.embed,
    hidden: Annotated[int, typer.Option(help="Units of each layer, H.")] = DEFAULT.hidden,
    layers: Annotated[int, typer.Option(help="Recurrent layers.")] = DEFAULT.layers,
    dropout: Annotated[float, typer.Option(help="Dropout rate between layers.")] = DEFAULT.dropout,
    zoneout: Annotated[
        float,
        typer.Option(help="Zoneout rate: share of units that keep their old value at a step."),
    ] = DEFAULT.zoneout,
    recurrent_dropout: Annotated[
        float, typer.Option(help="Dropout rate of h in h Wh; one mask for a whole block.")
    ] = DEFAULT.recurrent_dropout,
    weight_drop: Annotated[
        float, typer.Option(help="Dropout rate of the weights Wh; one mask for a whole block.")
    ] = DEFAULT.weight_drop,
    embedding_dropout: Annotated[
        float, typer.Option(help="Dropout rate of whole words; one mask for a whole block.")
    ] = DEFAULT.embedding_dropout,
    sparse_embedding: Annotated[
        bool,
        typer.Option(
            "--sparse-embedding",
            help="Update the embeddings of a block's tokens alone; for large vocabularies. Needs "
            "sgd, adagrad, adam or adamw; Adam is then lazy.",
        ),
    ] = DEFAULT.sparse_embedding,
    activation_penalty: Annotated[
        float, typer.Option(help="Factor of the penalty on large outputs (AR).")
    ] = DEFAULT.activation_penalty,
    temporal_penalty: Annotated[
        float, typer.Option(help="Factor of the penalty on changes of h (TAR).")
    ] = DEFAULT.temporal_penalty,
    tie: Annotated[
        bool, typer.Option("--tie", help="Embedding and output share weights (D = H).")
    ] = DEFAULT.tie,
    cutoffs: Annotated[
        str,
        typer.Option(
            help="Adaptive softmax for large vocabularies: where clusters of rarer tokens begin, "
            "such as 2000,10000.",
            show_default=False,
        ),
    ] = "",
    divisor: Annotated[
        float,
        typer.Option(help="With --cutoffs: each cluster has so many times fewer inputs."),
    ] = DEFAULT.divisor,
    samples: Annotated[
        int, typer.Option(help="Sampled softmax: tokens drawn for a training step; 0: all.")
    ] = DEFAULT.samples,
    init: Annotated[
        str, typer.Option(help=_one_of("Initialisation of the weights", INITS))
    ] = DEFAULT.init,
    optimizer: Annotated[
        str, typer.Option(help=_one_of("Optimiser", optimisers.NAMES))
    ] = DEFAULT.optimiser,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate. Default: one that suits the optimiser.")
    ] = None,
    clip: Annotated[
        float, typer.Option(help="Clip the gradient to this norm; 0: do not clip.")
    ] = DEFAULT.clip,
    batch: Annotated[
        int, typer.Option(help="Batch size, N: the number of streams read side by side.")
    ] = DEFAULT.batch,
    time: Annotated[int, typer.Option(help="Steps of truncated BPTT, T.")] = DEFAULT.time,
    varying_time: Annotated[
        bool,
        typer.Option("--varying-time", help="Blocks of about T steps, others in each epoch."),
    ] = DEFAULT.varying_time,
    accumulate: Annotated[
        int,
        typer.Option(help="Batches of one update: as a batch so many times as large."),
    ] = DEFAULT.accumulate,
    epochs: Annotated[int, typer.Option(help="Passes over the text.")] = DEFAULT.epochs,
    schedule: Annotated[
        str,
        typer.Option(
            help=f"{_one_of('Course of the learning rate', jobs.SCHEDULES)} "
            "cosine: down to a hundredth over all epochs."
        ),
    ] = DEFAULT.schedule,
    warm_up: Annotated[
        int, typer.Option(help="Updates in which the learning rate rises at the start.")
    ] = DEFAULT.warm_up,
    decay: Annotated[
        float | None,
        typer.Option(
            help="Divide lr by this when validation does not improve. Default: 4; with a cosine or "
            "nt-asgd 1, which leaves it."
        ),
    ] = DEFAULT.decay,
    decay_patience: Annotated[
        int, typer.Option(help="Epochs without improvement that pass before lr is divided.")
    ] = DEFAULT.decay_patience,
    patience: Annotated[
        int, typer.Option(help="Stop after this many epochs without improvement; 0: never.")
    ] = DEFAULT.patience,
    average: Annotated[
        str | None,
        typer.Option(
            help="Validate and keep an average of the weights. ema: recent ones count most; "
            "nt-asgd: all since validation got worse than five epochs before (SGD)."
        ),
    ] = DEFAULT.average,
    save_every: Annotated[
        int, typer.Option(help="Iterations between checkpoints.")
    ] = DEFAULT.save_every,
    seed: Annotated[
        int, typer.Option(help="Random seed; the same seed repeats the run.")
    ] = DEFAULT.seed,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = DEFAULT.dtype,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints and the loss curve. Default: a new one in runs/"),
    ] = None,
    log_csv: Annotated[
        Path | None,
        typer.Option(
            help="Table of loss, gradient norm, learning rate and perplexity, renewed every epoch."
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for the same numbers as curves of TensorBoard.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue this run (folder or checkpoint), with its settings; --epochs may grow."
        ),
    ] = None,
    cells_file: CellsOption = None,
    backend: BackendOption = None,
    strict: StrictOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train a recurrent language model."""
    # one process, unless a launcher started several
    with init_distributed(expected_errors=(*ERRORS, KeyboardInterrupt)) as ranks:
        first = ranks.rank == 0
        _choose_backend(backend, strict, say=first)
        logs = _logs(log_csv, tensorboard)
        plan = _plan(context, out, resume) if first else None
        settings, start, folder = ranks.broadcast(plan)
        if first:
            several = f"; {ranks.size} processes" if ranks.size > 1 else ""
            device = explain()
            say(f"engine {device.engine}, {device.device}{several} (more: numba-rnn info)")
        last = folder / "last.safetensors"
        ours = not last.exists() or (start is not None and folder == start.parent)
        try:
            result = jobs.train(
                settings, folder, resume=start, progress=not quiet, callbacks=logs, ranks=ranks
            )
        except BaseException as error:
            if first and out is None and start is None:
                with suppress(OSError):
                    folder.rmdir()  # the new one, if nothing is in it yet
            if first and isinstance(error, KeyboardInterrupt) and ours and last.exists():
                _say_stopped(context, folder)
            raise
        if first:
            _report(context, result, settings, folder)
    if result.stopped:
        raise typer.Exit(128 + result.stopped_by)  # as a shell has it


def _logs(log_csv: Path | None, tensorboard: Path | None) -> list[Any]:
    """The callbacks that keep logs."""
    if log_csv is not None and log_csv.is_dir():
        raise ValueError(f"--log-csv: expected a file, got the folder {log_csv}; name a file in it")
    _expect_folder("--log-csv", None if log_csv is None else log_csv.parent)
    _expect_folder("--tensorboard", tensorboard)
    logs: list[Any] = [] if log_csv is None else [CSVLog(log_csv)]
    return logs if tensorboard is None else [*logs, TensorBoardLog(tensorboard)]


def _plan(
    context: typer.Context, out: Path | None, resume: Path | None
) -> tuple[TrainConfig, Path | None, Path]:
    """The settings, the checkpoint to go on from, and the folder."""
    given: dict[str, Any] = dict(context.params)
    given["optimiser"] = given.pop("optimizer")
    given["cutoffs"] = _numbers("cutoffs", given["cutoffs"])
    for name in ("text", "valid", "test"):
        given[name] = None if given[name] is None else str(Path(given[name]).resolve())
    _expect_folder("--out", out)
    chosen = {f.name: given[f.name] for f in fields(TrainConfig)}
    if resume is None:
        settings = TrainConfig(**chosen)
        return settings, None, out or jobs.new_folder(settings)
    start = jobs.checkpoint_of(resume, prefer="last")
    return _resumed(context, start, chosen), start, out or start.parent


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers of an option, which commas separate."""
    try:
        return tuple(int(part) for part in text.split(",") if text)
    except ValueError:
        raise ValueError(
            f"{name}: expected whole numbers and commas, such as 2000,10000, got {text!r}"
        ) from None


def _report(
    context: typer.Context, result: jobs.TrainResult, settings: TrainConfig, folder: Path
) -> None:
    """Say what training came to, with a sample and a picture."""
    if result.stopped:
        _say_stopped(context, folder)
        return
    assert result.valid_perplexity is not None  # as it is of what was stopped
    say(f"held-out perplexity {spell_perplexity(result.valid_perplexity)} per {settings.level}")
    if result.test_perplexity is not None:
        say(f"test perplexity {spell_perplexity(result.test_perplexity)} per {settings.level}")
    if result.diverged:
        typer.secho(
            "warning: training has diverged: try a lower --lr or --clip",
            fg=typer.colors.YELLOW, err=True,
        )  # fmt: skip
    length = 400 if settings.level == "char" else 80
    made = jobs.sample(result.model, result.vocabulary, length=length, seed=settings.seed)
    say(f"a sample:\n\n{made.strip()}\n")
    try:
        curve = plot_loss(
            result.history,
            Path(folder) / "loss.png",
            f"{settings.cell}, H {settings.hidden}, {settings.level} level",
        )
        say(f"loss curve  {curve}")
    except ImportError as error:
        say(str(error))
    say(f"checkpoint  {result.checkpoint}")
    say(f"more text   {_command(context, 'generate', result.checkpoint)}")


def _say_stopped(context: typer.Context, folder: Path) -> None:
    logs = [
        word
        for name in ("log_csv", "tensorboard") if context.params[name] is not None
        for word in (_option(name), context.params[name])
    ]  # fmt: skip
    say(f"stopped; go on with: {_command(context, 'train', '--resume', folder, *logs)}")


def _command(context: typer.Context, *words: str | Path) -> str:
    """A command as the user's shell takes it, with the cells that this one was given."""
    files = [word for path in context.meta.get(_CELLS_FILES, ()) for word in ("--cells", path)]
    line = [str(word) for word in ("numba-rnn", *files, *words)]
    return subprocess.list2cmdline(line) if sys.platform == "win32" else shlex.join(line)


def _resumed(context: typer.Context, start: Path, chosen: dict[str, Any]) -> TrainConfig:
    """The settings of the run to resume, with the few that may change."""
    settings = jobs.settings_of(start)
    by_user = {
        "optimiser" if name == "optimizer" else name
        for name in context.params
        if _from_command_line(context, name)
    }
    free = {"text", "valid", "test", "save_every", "patience", "decay", "decay_patience"}
    if settings.schedule != "cosine":  # which is as long as all epochs
        free.add("epochs")
    fixed = sorted(
        name for name in by_user & set(chosen) - free if chosen[name] != getattr(settings, name)
    )
    if fixed:
        why = "; a cosine is as long as all epochs" if "epochs" in fixed else ""
        raise ValueError(
            f"--resume keeps the run's own settings; "
            f"{', '.join(_option(name) for name in fixed)} cannot change{why}"
        )
    return replace(settings, **{name: chosen[name] for name in by_user & free})


def _option(setting: str) -> str:
    return "--" + setting.replace("_", "-").replace("optimiser", "optimizer")


def _expect_folder(option: str, path: Path | None) -> None:
    """Refuse a folder to write to that is a file, or would be in one."""
    for part in (path, *path.parents) if path is not None else ():
        if part.exists() and not part.is_dir():
            raise ValueError(
                f"{option}: expected a folder, got the file {part}; name a folder, which may be new"
            )


def _from_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _show(text: str) -> None:
    """Print what a command is there for: nobody need read it, but it is not lost without a word.

    Raises OSError where it cannot be written, to a disk that is full for example.
    """
    with suppress(BrokenPipeError):
        print(text, flush=True)


@app.command(help="Generate text with a trained model.")
def generate(
    checkpoint: CheckpointArgument,
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    length: Annotated[int, typer.Option(help="Number of tokens to generate.")] = 400,
    temperature: Annotated[
        float, typer.Option(help="Below 1 favours likely tokens; 0: always the likeliest.")
    ] = 0.8,
    top_k: Annotated[
        int | None,
        typer.Option(help="Choose only among the k likeliest tokens.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same text.", show_default=False)
    ] = None,
    cells_file: CellsOption = None,
    backend: BackendOption = None,
    strict: StrictOption = False,
) -> None:
    """Generate text with a trained model."""
    _choose_backend(backend, strict)
    model, vocabulary, _ = jobs.load_model(checkpoint)
    _show(
        jobs.sample(
            model, vocabulary, prompt=prompt, length=length, temperature=temperature,
            top_k=top_k, seed=seed,
        )
    )  # fmt: skip


@app.command(
    help="Perplexity of a trained model on a text (10 streams, blocks of 35, state carried)."
)
def evaluate(
    checkpoint: CheckpointArgument,
    text: Annotated[Path, typer.Option(help="The text to predict.")],
    cells_file: CellsOption = None,
    backend: BackendOption = None,
    strict: StrictOption = False,
) -> None:
    """Perplexity of a trained model on a text (10 streams, blocks of 35, state carried)."""
    _choose_backend(backend, strict)
    model, vocabulary, _ = jobs.load_model(checkpoint)
    corpus = vocabulary.encode(vocabulary.normal(jobs.read_named("text", text)))
    batch, time = jobs.evaluation_sizes(corpus).values()
    perplexity = model.perplexity(corpus, batch, time)
    predicted = len(TruncatedBPTT(corpus, batch, time)) * batch * time
    unknown = int((corpus == vocabulary.unknown).sum())
    _show(f"perplexity {spell_perplexity(perplexity)} per {vocabulary.level}")
    _show(f"{predicted:,} of {len(corpus) - 1:,} tokens predicted; {unknown:,} unknown")


INSPECT = """Look inside a trained model while it reads a text.

Prints, and draws, for each recurrent layer: how open its gates were at every token, how often
they were saturated (stuck near an end, where they hardly learn), how fast the gradient of the
last token's loss shrank or grew on its way back through the text, and what the recurrent
weights do to a vector (their spectrum).

A gradient that changes by a factor near 1 a step reaches far back. A factor of 0.7 leaves 3 %
after 10 steps: earlier tokens hardly affect training. With a factor above 1 the gradient
explodes; train --clip bounds it.
"""


@app.command(help=INSPECT)
def inspect(
    checkpoint: CheckpointArgument,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Text for the model to read. Default: text that it generates.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the generated text.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the pictures. Default: inside/ beside the checkpoint.",
            show_default=False,
        ),
    ] = None,
    cells_file: CellsOption = None,
    backend: BackendOption = None,
    strict: StrictOption = False,
) -> None:
    """Look inside a trained model while it reads a text."""
    from .diagnostics import summary

    _choose_backend(backend, strict)
    _expect_folder("--out", out)
    path = jobs.checkpoint_of(checkpoint)
    model, vocabulary, _ = jobs.load_model(path)
    text = prompt
    if text is None:
        length = 80 if vocabulary.level == "char" else 30
        text = jobs.sample(model, vocabulary, length=length, seed=seed)
    tokens = jobs.trace_text(model, vocabulary, text)
    _show(f"read {len(tokens):,} {vocabulary.level}s; the gradient is of the loss at the next")
    for k, layer in enumerate(model.recurrent):
        _show(f"\nlayer {k}: {summary(layer)}")
    _show("")
    try:
        for picture in jobs.plot_internals(model, tokens, out or path.parent / "inside"):
            _show(f"picture  {picture}")
    except ImportError as error:
        _show(str(error))


@app.command(help="Show which engine runs and why, or the contents of a checkpoint.")
def info(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint, or the folder of a run.")
    ] = None,
    cells_file: CellsOption = None,
    backend: BackendOption = None,
    strict: StrictOption = False,
) -> None:
    """Show which engine runs and why, or the contents of a checkpoint."""
    _choose_backend(backend, strict)
    if checkpoint is None:
        _show(str(explain()))
        return
    path = jobs.checkpoint_of(checkpoint)
    arrays, content = load_checkpoint(path)
    with suppress(jobs.UnknownCell):
        content["model"] = jobs.load_model(path)[0].config  # checked, and in the usual order
    try:
        rows = _rows(path, arrays, content)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint of `numba-rnn train`, got one that does not say how it "
            f"was trained ({error!r})"
        ) from error
    for name, value in rows.items():
        _show(f"{name:<12}{value}")


def _rows(path: Path, arrays: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """The lines that ``info`` prints of a checkpoint, by their names."""
    model, vocabulary, state = (content[name] for name in ("model", "vocabulary", "trainer"))
    parameters = sum(array.size for name, array in arrays.items() if name.startswith("param/"))
    rows = {
        "checkpoint": path,
        "model": ", ".join(f"{name} {value}" for name, value in model.items()),
        "parameters": f"{parameters:,}",
        "vocabulary": f"{len(vocabulary['members']):,} {vocabulary['level']}s",
        "trained": f"{state['epoch']} epochs, {state['iteration']:,} iterations",
        "optimiser": f"{state['optimiser']['name']}, lr {state['optimiser']['lr']:g}",
    }
    epochs = state["history"]["epochs"]
    if epochs:
        rows["held out"] = f"perplexity {spell_perplexity(epochs[-1]['valid_perplexity'])}"
    return rows


def _version(wanted: bool) -> None:
    if wanted:
        _show(__version__)
        raise typer.Exit


@app.callback()
def _options(
    cells_file: CellsOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before any command."""


def _warn(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show a warning; one for users is a line, without a place in our code."""
    with suppress(OSError):  # nobody reads stderr any more
        if category is UserWarning:
            typer.secho(f"warning: {message}", fg=typer.colors.YELLOW, err=True)
        else:
            typer.echo(warnings.formatwarning(message, category, *place[:2]), err=True, nl=False)


def main() -> None:
    """Run the command line; what a user can mend is one line on stderr, not a traceback.

    Characters that stdout's encoding has not are written as "?".
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as numba_rnn/__init__.py left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _open_streams()
    unset = "strict", "surrogateescape"  # the latter where the locale is C
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in unset:
        sys.stdout.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            app()
    except ERRORS as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        with suppress(OSError):  # nobody reads stderr any more
            typer.secho(f"error: {error}{notes}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        _leave_streams()


def _open_streams() -> None:
    """Let standard streams that are closed lead nowhere.

    Else the next file that is opened, a checkpoint perhaps, gets the number of one, and whatever a
    library writes to its stderr goes there.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _leave_streams() -> None:
    """Let what no reader takes any more go nowhere, or Python complains of it when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
