"""The jobs of the command line as functions: train, load, evaluate a language model."""

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .files import written_atomically
from .kernels import cells, deprecated
from .layers.initialisers import INITS
from .models import Rnnlm
from .terminal import say
from .text import LEVELS, Vocabulary, builtin_text, read_text
from .training import (
    CheckpointError,
    ExponentialAverage,
    NonMonotoneAverage,
    Trainer,
    TruncatedBPTT,
    cosine,
    load_checkpoint,
    optimisers,
    warm_up,
)
from .training.distributed import SingleProcess
from .typing import Array, IntArray
from .validation import expect_array, expect_choice, expect_float, expect_int

DEFAULT_LR = {
    "sgd": 1.0,
    "momentum": 0.1,
    "adagrad": 0.05,
    "rmsprop": 0.002,
    "adam": 0.004,
    "adamw": 0.004,
}


SCHEDULES = ("constant", "cosine")
AVERAGES = {"ema": ExponentialAverage, "nt-asgd": NonMonotoneAverage}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides how a language model is trained.

    Parameters
    ----------
    text : str, optional
        The training file; the built-in English text if left out.
    valid : str, optional
        The validation file; if left out, the last tenth of text is held out.
    test : str, optional
        The test file.
    level : {"char", "word"}
        The kind of token.
    min_count : int, default 1
        Tokens that occur less often in the training text count as unknown.
    cell, embed, hidden, layers, dropout, zoneout, recurrent_dropout, weight_drop, tie, init, dtype
    embedding_dropout, sparse_embedding, activation_penalty, temporal_penalty
    cutoffs, divisor, samples
        The model; see ``Rnnlm``. With cutoffs or samples tokens are numbered by frequency.
    optimiser : str, default "adam"
        The name of an optimiser; see ``numba_rnn/training/optimisers.py``.
    lr : float, optional
        The learning rate; that of DEFAULT_LR if left out.
    clip : float, default 1.0
        The largest global norm of the gradient; 0: no clipping.
    batch : int, default 32
        The number of rows in a block: streams side by side.
    time : int, default 64
        The number of steps in a block.
    varying_time : bool, default False
        Whether blocks have different lengths; see ``TruncatedBPTT``.
    epochs : int, default 10
        The number of epochs.
    accumulate, decay_patience, patience, save_every
        See ``Trainer``.
    decay : float, optional
        The divisor of the learning rate where validation does not improve; 4 if left out, but 1
        with a cosine or NT-ASGD, which leave it alone.
    schedule : {"constant", "cosine"}
        The factor of the learning rate. "cosine": it falls along half a wave over all epochs.
    warm_up : int, default 0
        The number of iterations in which the learning rate rises at the start.
    average : {None, "ema", "nt-asgd"}
        The average of the weights that is validated and kept as the best: an exponential one
        (``ExponentialAverage``), or that of ``NonMonotoneAverage``.
    seed : int, default 0
        The seed of everything random.
    """

    text: str | None = None
    valid: str | None = None
    test: str | None = None
    level: str = "char"
    min_count: int = 1
    cell: str = "lstm"
    embed: int = 64
    hidden: int = 192
    layers: int = 1
    dropout: float = 0.2
    zoneout: float = 0.0
    recurrent_dropout: float = 0.0
    weight_drop: float = 0.0
    embedding_dropout: float = 0.0
    sparse_embedding: bool = False
    activation_penalty: float = 0.0
    temporal_penalty: float = 0.0
    tie: bool = False
    cutoffs: tuple[int, ...] = ()
    divisor: float = 4.0
    samples: int = 0
    init: str = "orthogonal"
    optimiser: str = "adam"
    lr: float | None = None
    clip: float = 1.0
    batch: int = 32
    time: int = 64
    varying_time: bool = False
    epochs: int = 10
    accumulate: int = 1
    decay: float | None = None
    decay_patience: int = 0
    patience: int = 3
    schedule: str = "constant"
    warm_up: int = 0
    average: str | None = None
    save_every: int = 200
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutoffs", tuple(self.cutoffs))  # JSON has lists
        expect_choice("level", self.level, LEVELS)
        expect_choice("cell", self.cell, tuple(cells.names()))
        expect_choice("init", self.init, INITS)
        expect_choice("optimiser", self.optimiser, optimisers.NAMES)
        expect_choice("dtype", self.dtype, ("float32", "float64"))
        expect_float("clip", self.clip, 0)
        expect_float("dropout", self.dropout, 0, 1)
        expect_choice("schedule", self.schedule, SCHEDULES)
        expect_int("warm_up", self.warm_up, 0)
        if self.average is not None:
            expect_choice("average", self.average, tuple(AVERAGES))
        if self.tie and self.embed != self.hidden:
            raise ValueError(
                f"tie: expected --embed equal to --hidden, got {self.embed} and {self.hidden}"
            )
        if self.sparse_embedding and self.optimiser in ("momentum", "rmsprop"):
            raise ValueError(
                "sparse_embedding: expected --optimizer sgd, adagrad, adam or adamw, got "
                f"{self.optimiser}, which changes all rows"
            )


@dataclass(frozen=True)
class Datasets:
    """The texts of a job as token numbers.

    Attributes
    ----------
    vocabulary : Vocabulary
        The vocabulary of the training text.
    train, valid : (L,) array, int64
        The training and the validation text.
    test : (L,) array, int64, or None
        The test text.
    digest : str
        A hash of the three texts.
    """

    vocabulary: Vocabulary
    train: IntArray
    valid: IntArray
    test: IntArray | None
    digest: str


def read_corpora(settings: TrainConfig) -> Datasets:
    """Read and number the texts of a job.

    Parameters
    ----------
    settings : TrainConfig
        The settings of the job.

    Returns
    -------
    Datasets
        The texts; the vocabulary is that of the training text.
    """
    text = builtin_text() if settings.text is None else read_named("text", settings.text)
    if settings.valid is not None:
        held_out = read_named("valid", settings.valid)
    else:
        cut = len(text) * 9 // 10
        cut = text.rfind("\n", len(text) * 8 // 10, cut) + 1 or cut  # between lines, if there are
        text, held_out = text[:cut], text[cut:]
    test = None if settings.test is None else read_named("test", settings.test)
    by_frequency = bool(settings.cutoffs or settings.samples)
    vocabulary = Vocabulary.of(text, settings.level, settings.min_count, by_frequency=by_frequency)
    digest = hashlib.sha256("\0".join([text, held_out, test or ""]).encode()).hexdigest()
    return Datasets(
        vocabulary,
        vocabulary.encode(text),
        vocabulary.encode(held_out),
        None if test is None else vocabulary.encode(test),
        digest,
    )


def read_named(name: str, path: str | Path) -> str:
    """As ``read_text``; where no file can be read an OSError names the argument."""
    try:
        return read_text(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: expected a file, found none at {path}") from error
    except OSError as error:
        raise type(error)(f"{name}: expected a file, got {path}: {error.strerror}") from error


@dataclass(frozen=True)
class TrainResult:
    """The result of a training job.

    Attributes
    ----------
    checkpoint : Path
        The best checkpoint, or the last one.
    stopped : bool
        Whether a signal ended the training.
    valid_perplexity, test_perplexity : float or None
        The perplexity of that checkpoint.
    history : History
        The course of the training.
    model : Rnnlm
        The model of that checkpoint.
    vocabulary : Vocabulary
        Its vocabulary.
    stopped_by : int
        The number of the signal that ended the training, or 0.
    """

    checkpoint: Path
    stopped: bool
    valid_perplexity: float | None
    test_perplexity: float | None
    history: Any
    model: Rnnlm
    vocabulary: Vocabulary
    stopped_by: int = 0

    @property
    def diverged(self) -> bool:
        """Whether the model after the last epoch is far worse than an untrained one."""
        last = self.history.epochs[-1]["valid_perplexity"]
        return bool(last > 10 * len(self.vocabulary))  # which is what that one would have, times 10


def new_folder(settings: TrainConfig) -> Path:
    """Create a new folder under runs/. No other run that starts now gets the same one.

    Parameters
    ----------
    settings : TrainConfig
        The settings of the run, which are part of its name.

    Returns
    -------
    Path
        The folder.
    """
    name = f"{settings.level}-{settings.cell}"
    for n in count(1):
        folder = Path("runs") / (name if n == 1 else f"{name}-{n}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("there is always another number")


@deprecated.arguments(tell="log")
def train(
    settings: TrainConfig,
    folder: str | Path,
    *,
    resume: str | Path | None = None,
    progress: bool = True,
    log: Callable[[str], None] = say,
    callbacks: Sequence[Callable[[Any], object]] = (),
    ranks: SingleProcess | None = None,
) -> TrainResult:
    """Train a language model and write checkpoints to a folder.

    Parameters
    ----------
    settings : TrainConfig
        The settings.
    folder : str or Path
        The folder for checkpoints.
    resume : str or Path, optional
        A checkpoint to continue from. ``settings`` must then be those of its run (epochs may
        differ); see ``settings_of``.
    progress : bool, default True
        Whether to show a progress bar on stderr.
    log : callable, optional
        It is called with lines worth showing; by default it prints them.
    callbacks : sequence of callable, default none
        See ``Trainer``.
    ranks : Alone, optional
        The processes that train the model together; see ``numba_rnn.training.init_distributed``.
        Rank 0 reads and writes checkpoints, and calls log.

    Returns
    -------
    TrainResult
        The result.

    Raises
    ------
    ValueError
        If settings do not fit.
    FileExistsError
        If the folder has another run.
    CheckpointError
        If the checkpoint cannot be read.
    TrainingDiverged
        If the loss is no longer finite.
    MemoryError
        If memory runs out; the message has the sizes.
    """
    folder, ranks = Path(folder), ranks or SingleProcess()
    first = ranks.rank == 0
    if not first:
        log = _silent
    corpora = read_corpora(settings)
    vocabulary = corpora.vocabulary
    for name, corpus in (("held-out", corpora.valid), ("test", corpora.test)):
        unknown = 0 if corpus is None else int((corpus == vocabulary.unknown).sum())
        if corpus is not None and unknown:
            share, token = unknown / len(corpus), vocabulary.members[vocabulary.unknown]
            log(f"{share:.2%} of the {name} text's tokens count as {token!a}")
    if resume is not None and first:
        _expect_run(resume, settings, corpora)
    try:
        model = Rnnlm(
            len(vocabulary), settings.embed, settings.hidden, cell=settings.cell,
            layers=settings.layers, dropout=settings.dropout, zoneout=settings.zoneout,
            recurrent_dropout=settings.recurrent_dropout, weight_drop=settings.weight_drop,
            embedding_dropout=settings.embedding_dropout,
            sparse_embedding=settings.sparse_embedding,
            activation_penalty=settings.activation_penalty,
            temporal_penalty=settings.temporal_penalty, tie=settings.tie,
            cutoffs=settings.cutoffs, divisor=settings.divisor, samples=settings.samples,
            init=settings.init, rng=settings.seed, dtype=settings.dtype,
        )  # fmt: skip
    except MemoryError as error:
        raise MemoryError(
            f"out of memory for a model of {len(vocabulary):,} tokens, embed {settings.embed}, "
            f"hidden {settings.hidden}, {settings.layers} layers; lower --hidden, --embed or "
            f"--layers ({error})"
        ) from error
    lr = DEFAULT_LR[settings.optimiser] if settings.lr is None else settings.lr
    lazy = settings.sparse_embedding and settings.optimiser in ("adam", "adamw")
    optimiser = optimisers.create(settings.optimiser, lr=lr, **({"lazy": True} if lazy else {}))
    blocks = _blocks_of(corpora, settings)
    leave_lr = settings.schedule == "cosine" or settings.average == "nt-asgd"
    trainer = Trainer(
        model,
        optimiser,
        blocks,
        valid=corpora.valid,
        schedule=_schedule_of(settings, blocks),
        max_norm=settings.clip or None,
        decay=(1.0 if leave_lr else 4.0) if settings.decay is None else settings.decay,
        decay_patience=settings.decay_patience,
        patience=settings.patience,
        accumulate=settings.accumulate,
        average=None if settings.average is None else AVERAGES[settings.average](),
        callbacks=callbacks,
        folder=folder,
        save_every=settings.save_every,
        **evaluation_sizes(corpora.valid, "eval_batch", "eval_time"),
        extra={
            "settings": {**asdict(settings), "cutoffs": list(settings.cutoffs)},
            "model": model.config,
            "vocabulary": {"level": vocabulary.level, "members": vocabulary.members},
            "corpora": corpora.digest,
        },
        progress=progress,
        log=log,
        ranks=ranks,
    )
    if resume is not None:
        trainer.restore(resume)
        if first:
            _copy_best(Path(resume), folder)
    log(
        f"{settings.cell} language model, {sum(p.size for p in model.params):,} parameters; "
        f"{len(corpora.train):,} training tokens, {len(vocabulary):,} different"
    )
    trainer.fit(settings.epochs)

    last, best = folder / "last.safetensors", folder / "best.safetensors"
    if trainer.stopped:
        return TrainResult(
            last, True, None, None, trainer.history, model, vocabulary, trainer.stopped_by
        )
    if trainer.average is not None and trainer.average.waiting:
        log("no average of the weights: validation has not got worse for long enough to begin one")
    model.load_arrays(ranks.broadcast(load_checkpoint(best)[0] if first else None))
    model.reset_state()
    test_perplexity = None
    if corpora.test is not None:
        test_perplexity = trainer.perplexity(corpora.test, **evaluation_sizes(corpora.test))
    return TrainResult(
        best, False, trainer.history.best, test_perplexity, trainer.history, model, vocabulary
    )


def _blocks_of(corpora: Datasets, settings: TrainConfig) -> TruncatedBPTT:
    batch, time = (expect_int(name, getattr(settings, name)) for name in ("batch", "time"))
    needed, have = batch * time + 1, len(corpora.train)
    if have < needed:
        raise ValueError(
            f"text: expected at least {needed} tokens to train on, {batch} streams of {time} steps "
            f"and one more, got {have}; use a longer text, or a smaller --batch or --time"
        )
    varying = bool(settings.varying_time)
    return TruncatedBPTT(corpora.train, batch, time, varying=varying, rng=settings.seed)


def _schedule_of(settings: TrainConfig, blocks: TruncatedBPTT) -> Callable[[int], float] | None:
    """The factor of the learning rate."""
    rise = settings.warm_up
    if settings.schedule == "constant":
        return warm_up(rise) if rise else None
    accumulate, epochs = (expect_int(n, getattr(settings, n)) for n in ("accumulate", "epochs"))
    here, iterations = copy.copy(blocks), 0
    for here.epoch in range(epochs):  # blocks of varying length are not as many in each
        iterations += -(-len(here) // accumulate)
    if rise >= iterations:
        raise ValueError(
            f"warm_up: expected fewer than the {iterations} iterations of {epochs} epochs, got "
            f"{rise}; lower --warm-up"
        )
    return cosine(iterations, warm_up=rise)


def _silent(line: str) -> None:
    """Drop the messages of all ranks but the first."""


def _expect_run(resume: str | Path, settings: TrainConfig, corpora: Datasets) -> None:
    """See that a checkpoint is of these texts, and has the parameters of a model of these sizes."""
    arrays, content = load_checkpoint(resume)
    if content.get("corpora") != corpora.digest:
        raise ValueError(
            f"{resume}: the texts differ from those of the run; resuming needs the same "
            "(--text, --valid and --test say where they are now)"
        )
    _expect_params(
        arrays, len(corpora.vocabulary), settings.embed, settings.hidden,
        cell=settings.cell, layers=settings.layers, tie=settings.tie, cutoffs=settings.cutoffs,
        divisor=settings.divisor, samples=settings.samples,
    )  # fmt: skip


def _copy_best(resume: Path, folder: Path) -> None:
    """To another folder than that of the run."""
    best = resume.with_name("best.safetensors")
    if best.exists() and not (folder / "last.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with written_atomically(folder / "best.safetensors") as part:
            part.write_bytes(best.read_bytes())


def evaluation_sizes(
    corpus: IntArray, batch_name: str = "batch_size", time_name: str = "time_size"
) -> dict[str, int]:
    """Choose how a corpus is read for its perplexity: 10 streams of blocks of 35, as in the book.

    A short corpus, of which this would leave out over a tenth, is read as one stream whose blocks
    are cut to fit.

    Parameters
    ----------
    corpus : (L,) integers
        Tokens.
    batch_name : str, default "batch_size"
        The key of the number of streams in the result.
    time_name : str, default "time_size"
        The key of the number of steps.

    Returns
    -------
    dict of str to int
        The two numbers.

    Raises
    ------
    ValueError
        If there are fewer than two tokens.
    """
    places = len(corpus) - 1
    if places < 1:
        raise ValueError(f"corpus: expected at least two tokens to evaluate on, got {len(corpus)}")
    if places >= 10 * 35 * 10:
        return {batch_name: 10, time_name: 35}
    return {batch_name: 1, time_name: places // math.ceil(places / 35)}


def checkpoint_of(path: str | Path, prefer: str = "best") -> Path:
    """Return the checkpoint of a run, if the path is the folder of one.

    Parameters
    ----------
    path : str or Path
        A checkpoint, or the folder of a run.
    prefer : {"best", "last"}
        The checkpoint of the folder; if there is no best one, the last is returned.

    Returns
    -------
    Path
        The checkpoint.

    Raises
    ------
    FileNotFoundError
        If the folder has no checkpoint; the message names the runs below it.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    chosen, last = path / f"{prefer}.safetensors", path / "last.safetensors"
    if chosen.exists() or last.exists():
        return chosen if chosen.exists() else last
    runs = ", ".join(str(run.parent) for run in sorted(path.glob("*/last.safetensors")))
    raise FileNotFoundError(
        f"checkpoint: expected a file, found none at {last}"
        + (f"; it contains the runs {runs}" if runs else "")
    )


def settings_of(path: str | Path) -> TrainConfig:
    """Read the settings with which the run of a checkpoint was started.

    Parameters
    ----------
    path : str or Path
        A checkpoint, or the folder of a run.

    Returns
    -------
    TrainConfig
        The settings.

    Raises
    ------
    CheckpointError
        If it is not a checkpoint of ``numba-rnn train``.
    """
    _, content = load_checkpoint(path)
    try:
        saved = content["settings"]
        _expect_known_cell(path, saved.get("cell", TrainConfig.cell))
        return TrainConfig(**{f.name: saved.get(f.name, f.default) for f in fields(TrainConfig)})
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint of `numba-rnn train`, got one without its settings "
            f"({error!r})"
        ) from error


class UnknownCell(CheckpointError):  # noqa: N818 (reads as what is wrong)
    """The checkpoint uses a cell that is not registered."""


def _expect_known_cell(path: str | Path, cell: Any) -> None:
    if cell not in cells.names():
        raise UnknownCell(
            f"{path}: the checkpoint uses the cell {cell!r}, which is not registered; first import "
            "the module that defines it and calls numba_rnn.cells.register; at the command line "
            "use `numba-rnn --cells FILE.py ...`"
        )


def load_model(path: str | Path) -> tuple[Rnnlm, Vocabulary, dict[str, Any]]:
    """Load the language model of a checkpoint.

    Parameters
    ----------
    path : str or Path
        A checkpoint, or the folder of a run, whose best one is read.

    Returns
    -------
    model : Rnnlm
        The model.
    vocabulary : Vocabulary
        Its vocabulary.
    content : dict
        The whole JSON content of the checkpoint.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it cannot be read, or its cell is not registered (UnknownCell).
    """
    path = checkpoint_of(path)
    arrays, content = load_checkpoint(path)
    try:
        options = dict(content["model"])
        sizes = [options.pop(name) for name in ("vocab_size", "embed_size", "hidden_size")]
        vocabulary = Vocabulary(**content["vocabulary"])
        _expect_known_cell(path, options["cell"])
        if len(vocabulary) != sizes[0]:
            raise ValueError(f"vocabulary {len(vocabulary)}, vocab_size {sizes[0]}")
        _expect_params(arrays, *sizes, **options)
        model = Rnnlm(*sizes, rng=0, **options)
        model.load_arrays(arrays)
    except UnknownCell:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint of `numba-rnn train`, got one that does not describe "
            f"a language model ({error})"
        ) from error
    model.reset_state()
    return model, vocabulary, content


def _expect_params(arrays: dict[str, Array], *sizes: int, **options: Any) -> None:
    """See that a file has the parameters of a model, before one is made of its sizes."""
    for name, shape in Rnnlm.param_shapes(*sizes, **options):
        key, dtype = f"param/{name}", None
        if f"int8/{key}" in arrays:
            key, dtype = f"int8/{key}", np.dtype(np.int8)
        expect_array(key, arrays.get(key), shape, dtype)


def sample(
    model: Rnnlm,
    vocabulary: Vocabulary,
    *,
    prompt: str | None = None,
    length: int = 400,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int | None = None,
) -> str:
    """Let the model continue a prompt.

    Parameters
    ----------
    model : Rnnlm
        The model.
    vocabulary : Vocabulary
        Its vocabulary.
    prompt : str, optional
        The start of the text; a new line if left out. It is composed (NFC) as training texts are,
        or decomposed if the vocabulary knows it only then. A UserWarning names tokens that the
        model has never seen.
    length : int, default 400
        The number of tokens.
    temperature : float, default 0.8
        The divisor of the scores: below 1 the likely tokens gain.
    top_k : int, optional
        If given, only the k likeliest tokens are chosen from.
    seed : int, optional
        The seed; the same one gives the same text.

    Returns
    -------
    str
        The text after the prompt. The unknown character is never chosen; the word ``<unk>`` may be,
        if the training text has it.
    """
    skip = [vocabulary.unknown] if vocabulary.level == "char" else []
    newline = "\n" in vocabulary.members or "<eos>" in vocabulary.members
    prompt = _known_prompt(vocabulary, prompt or "")
    start = vocabulary.encode(prompt)
    if not len(start):
        start = vocabulary.encode("\n" if newline else vocabulary.members[0])
    made = model.generate(
        start, length, temperature=temperature, top_k=top_k, skip_ids=skip, rng=seed
    )
    joint = " " if prompt and vocabulary.level == "word" else ""
    return prompt + joint + vocabulary.decode(made)


def _known_prompt(vocabulary: Vocabulary, prompt: str) -> str:
    """The prompt in the vocabulary's form; warns of tokens that the model has never seen."""
    prompt = vocabulary.normal(prompt)
    if unseen := vocabulary.unseen(prompt):
        few = ", ".join(map(repr, unseen[:20])) + (" ..." if len(unseen) > 20 else "")
        token = vocabulary.members[vocabulary.unknown]
        warnings.warn(
            f"prompt: the model has never seen {few}; it reads {token!a} instead", stacklevel=3
        )
    return prompt


def trace_text(model: Rnnlm, vocabulary: Vocabulary, text: str) -> list[str]:
    """Read a text from a fresh state, so that every ``model.recurrent[k].trace`` is set.

    The gradients in the traces are those of the loss at the last token alone: they show how far
    back the prediction depends on the text.

    Parameters
    ----------
    model : Rnnlm
        The model.
    vocabulary : Vocabulary
        Its vocabulary.
    text : str
        The text, in the form that ``sample`` takes for a prompt.

    Returns
    -------
    list of str
        The tokens that were read, all except the last.

    Raises
    ------
    ValueError
        If there are fewer than two tokens.
    """
    ids = vocabulary.encode(_known_prompt(vocabulary, text))
    if len(ids) < 2:
        raise ValueError(
            f"prompt: expected at least two {vocabulary.level}s, one to predict, got {len(ids)}"
        )
    labels = np.full((1, len(ids) - 1), model.loss_layer.ignore_label)
    labels[0, -1] = ids[-1]
    model.reset_state()
    model.forward(ids[None, :-1], labels, train_flg=False, trace=True)
    model.backward()
    return [vocabulary.members[k] for k in ids[:-1]]


def plot_internals(model: Rnnlm, tokens: list[str], folder: str | Path) -> list[Path]:
    """Draw the traces that ``trace_text`` left in the model.

    Parameters
    ----------
    model : Rnnlm
        The model.
    tokens : list of str
        The tokens that were read.
    folder : str or Path
        The folder for PNG files.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ImportError
        Without matplotlib; the message names the remedy.
    """
    from .diagnostics import plot_gates, plot_gradient_flow, plot_saturation, plot_spectrum
    from .diagnostics.metrics import bounded_gates

    several = len(model.recurrent) > 1
    named = {f"layer {k}" if several else "": layer for k, layer in enumerate(model.recurrent)}
    traces = {name: layer.trace for name, layer in named.items() if layer.trace is not None}
    figures = {"gradient": plot_gradient_flow(traces, state=None)}
    for name, layer in named.items():
        trace, end = traces[name], name.replace("layer ", "-")
        # more labels than that nobody reads
        labels = tokens if len(tokens) <= 200 else None
        figures[f"gates{end}"] = plot_gates(trace, labels=labels)
        if bounded_gates(trace):
            figures[f"saturation{end}"] = plot_saturation(trace)
        if layer.cell.recurrent_gates:
            figures[f"weights{end}"] = plot_spectrum(layer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        with written_atomically(paths[-1]) as part, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # of a script the font has not
            figure.savefig(part, dpi=100)
    return paths


__getattr__ = deprecated.names_of(__name__)
