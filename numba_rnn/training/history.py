"""The course of a training run, as numbers."""

import math
from dataclasses import dataclass, field
from typing import Any

from ..layers.losses import perplexity_of
from ..validation import expect_float, expect_int


@dataclass
class History:
    """The course of a training run.

    Attributes
    ----------
    train : list
        Entries [iteration, mean loss in nats since the entry before, gradient norm before
        clipping].
    epochs : list of dict
        One entry for each epoch: {"epoch", "iteration", "train_loss", "valid_perplexity", "lr"}.
        Without a validation corpus valid_perplexity is None. If the model is no language model,
        there are also "valid_loss", None without validation, and "metrics", a dict. With an average
        of the weights "averaged" says whether validation has used it.
    """

    train: list[list[float]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The lowest of ``scores`` so far; infinite before the first epoch."""
        return min(self.scores, default=math.inf)

    @property
    def scores(self) -> list[float]:
        """The perplexity after each epoch, on the validation data or else the training data.

        If the model is no language model, it is the loss.
        """
        return [_score(entry) for entry in self.epochs]


def epochs_since_best(scores: list[float]) -> int:
    """How many epochs in a row have not improved on the lowest score; 0 before the first."""
    return len(scores) - 1 - scores.index(min(scores)) if scores else 0


def history_of(saved: Any) -> History:
    """The history of a checkpoint. Raises ValueError, TypeError or KeyError where it is none."""
    train = [
        [
            expect_int("history: iteration", iteration),
            *(
                expect_float(f"history: {name}", x, -math.inf)
                for name, x in (("loss", loss), ("norm", norm))
            ),
        ]
        for iteration, loss, norm in saved["train"]
    ]
    epochs = saved["epochs"]
    for entry in epochs:
        for name in ("epoch", "iteration"):
            expect_int(f"history: {name}", entry[name])
        for name in ("train_loss", "valid_perplexity", "valid_loss", "lr"):
            none_is_fine = name.startswith("valid")
            value = entry.get(name) if name == "valid_loss" else entry[name]
            if value is not None or not none_is_fine:
                expect_float(f"history: {name}", value, -math.inf)
        if not all(isinstance(x, float) for x in entry.get("metrics", {}).values()):
            raise TypeError(f"history: metrics: expected numbers, got {entry['metrics']}")
    return History(train, epochs)


def _score(entry: dict[str, Any]) -> float:
    if "valid_loss" in entry:
        name = "train_loss" if entry["valid_loss"] is None else "valid_loss"
        return float(entry[name])
    if entry["valid_perplexity"] is None:
        return perplexity_of(entry["train_loss"])
    return float(entry["valid_perplexity"])
