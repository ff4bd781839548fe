"""Measures of an epoch and how they are told: the perplexity of tokens, or the loss of pairs
(xs, ts) and metrics."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ..backend import to_host
from ..layers.losses import perplexity_of, spell_perplexity
from ..typing import AnyArray
from .batches import Batches
from .bptt import TruncatedBPTT

Metric = Callable[[AnyArray, AnyArray], float]


class Measures:
    """A measure by its name, which is also that of its entry in the history, after "valid_".

    unit     what a progress bar counts
    options  what remedies are called at the command line, by the name of the argument
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    options: ClassVar[dict[str, str]] = {}

    def validate(self, model: Any) -> dict[str, Any]:
        """The validation's entries for an epoch of the history."""
        raise NotImplementedError

    def of_loss(self, loss: float) -> float:
        """The measure of a training loss."""
        return loss

    def spell(self, value: float) -> str:
        """The measure in a few digits."""
        return f"{value:.4g}"

    def option(self, argument: str) -> str:
        """The name of an argument where the user sets it."""
        return self.options.get(argument, argument)

    def status(self, epoch: int, loss: float) -> str:
        """How far training is, for the progress bar."""
        return f"epoch {epoch}, {self.name} {self.spell(self.of_loss(loss))}"

    def line(self, entry: dict[str, Any]) -> str:
        """An epoch of the history in a line."""
        train = self.spell(self.of_loss(entry["train_loss"]))
        text = f"epoch {entry['epoch']:3d}  train {self.name} {train:>9}"
        if (valid := entry[f"valid_{self.name}"]) is not None:
            text += f"  valid {self.spell(valid):>9}"
        text += "".join(f"  {name} {x:.4g}" for name, x in entry.get("metrics", {}).items())
        return f"{text}  lr {entry['lr']:.4g}"


class TokenMeasures(Measures):
    """The perplexity of a language model on a corpus (L,); None: there is no validation.

    batch_size, time_size   how the corpus is read
    """

    name, unit = "perplexity", "tok"
    options: ClassVar = {
        "lr": "--lr",
        "max_norm": "--clip",
        "restore(path)": "--resume",
        "folder": "--out",
        "batch_size or the sizes of the layers": "--batch, --time, --hidden or --embed",
    }

    def __init__(self, corpus: Any, batch_size: int, time_size: int) -> None:
        self.corpus, self._sizes = corpus, (batch_size, time_size)
        if corpus is not None:
            try:
                TruncatedBPTT(corpus, batch_size, time_size)
            except ValueError as error:
                raise ValueError(f"valid: too short to evaluate on; {error}") from error

    def validate(self, model: Any) -> dict[str, Any]:
        if self.corpus is None:
            return {"valid_perplexity": None}
        return {"valid_perplexity": float(model.perplexity(self.corpus, *self._sizes))}

    def of_loss(self, loss: float) -> float:
        return perplexity_of(loss)

    def spell(self, value: float) -> str:
        return spell_perplexity(value)


class PairMeasures(Measures):
    """The mean loss of batches, weighted by their rows, and metrics of all outputs together.

    valid  the validation data; None: there is none
    """

    name, unit = "loss", "step"

    def __init__(self, valid: Batches | None, metrics: dict[str, Metric]) -> None:
        self.valid, self.metrics = valid, metrics

    def validate(self, model: Any) -> dict[str, Any]:
        loss, metrics = (None, {}) if self.valid is None else self._of_pairs(model, self.valid)
        return {"valid_perplexity": None, "valid_loss": loss, "metrics": metrics}

    def _of_pairs(self, model: Any, valid: Batches) -> tuple[float, dict[str, float]]:
        losses, outputs, targets = [], [], []
        for xs, ts, *more in valid.in_order():
            loss, out = model.evaluate(xs, ts, **dict(*more))
            losses.append(float(loss) * len(xs))
            if self.metrics:  # else large outputs need not be held
                outputs.append(to_host(out))
                targets.append(to_host(ts))
        mean = math.fsum(losses) / valid.rows
        if not (self.metrics and math.isfinite(mean)):
            return mean, {}
        out, ts = np.concatenate(outputs), np.concatenate(targets)
        return mean, {name: _number(name, metric(out, ts)) for name, metric in self.metrics.items()}


def _number(name: str, value: Any) -> float:
    """The result of a metric."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        shape = f" of shape {np.shape(value)}" if hasattr(value, "shape") else ""
        raise TypeError(
            f"metrics[{name!r}]: expected a function that returns a number, such as "
            f"(outputs.argmax(axis=2) == ts).mean(), got {type(value).__name__}{shape}"
        ) from error


def measures_of(
    model: Any,
    valid: Any,
    metrics: Any,
    *,
    tokens: bool,
    blocks: TruncatedBPTT | Batches,
    eval_batch: int,
    eval_time: int,
) -> Measures:
    """The measures that fit a model, its validation data and metrics; all of them are checked.

    tokens       whether there is a perplexity of tokens; where ranks share a model, they compute it
    blocks       the training data, whose batch size and number of axes (xs, ts) have
    """
    metrics = _expect_functions(metrics)
    if isinstance(valid, tuple):
        if len(valid) != 2:
            raise ValueError(f"valid: expected tokens or (xs, ts), got {len(valid)} arrays")
        valid = Batches(*valid, batch_size=blocks.batch_size)
    if isinstance(valid, Batches):
        if not hasattr(model, "evaluate"):
            raise TypeError(
                "valid: expected a model with evaluate(xs, ts) -> (loss, outputs) for pairs, "
                f"got {type(model).__name__}; a language model takes tokens (L,)"
            )
        axes, shape = blocks._arrays["xs"].ndim, valid._arrays["xs"].shape
        if len(shape) != axes:
            one = "; (xs[None], ts[None]) are one sequence" if len(shape) == axes - 1 else ""
            raise ValueError(
                f"valid: expected xs with {axes} axes, (N, T{', ...' * (axes > 2)}), as in "
                f"training, got shape {shape}{one}"
            )
        return PairMeasures(valid, metrics)
    if metrics:
        raise ValueError("metrics: expected valid=(xs, ts), on which to compute them, as well")
    if tokens:
        return TokenMeasures(valid, eval_batch, eval_time)
    if valid is not None:
        raise TypeError(
            "valid: expected (xs, ts) or Batches, as the model has no perplexity of tokens, "
            f"got {type(valid).__name__}"
        )
    return PairMeasures(None, metrics)


def _expect_functions(metrics: Any) -> dict[str, Metric]:
    """The metrics by name; refuses what is no function."""
    if not isinstance(metrics, Mapping | None):
        raise TypeError(
            f"metrics: expected a dict of functions, got {type(metrics).__name__}; "
            "{'accuracy': accuracy} is one, with accuracy(outputs, ts) -> float"
        )
    for name, metric in (metrics or {}).items():
        if not callable(metric):
            raise TypeError(f"metrics[{name!r}]: expected a function, got {type(metric).__name__}")
    return dict(metrics or {})
