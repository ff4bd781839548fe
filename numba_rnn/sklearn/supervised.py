"""An estimator that takes a y: what the classifier and the regressor have in common."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import _check_sample_weight

from ..kernels.cells import Cell, WrittenCell
from ..layers import TimeMSE
from ..training import Optimiser
from ..training.schedules import half_wave
from ..typing import AnyArray
from ..validation import as_array, expect_choice, expect_plain_array
from .base import RecurrentEstimator
from .frames import expect_column_order, expect_same_columns, expect_same_index, index_of
from .sequences import (
    SequenceDataset,
    Sequences,
    complete,
    concatenate,
    lengths_of,
    listed,
    split,
    steps_first,
    warn_of_scale,
)

AS_IN_0_2 = {
    "pooling": "last",
    "standardise": False,
    "layout": None,
    "schedule": "constant",
}  # attributes it had not
LABELS, FLAGS, OUTPUTS = "labels", "flags", "outputs"  # a y with one label, K flags, K labels


class Supervised(RecurrentEstimator):
    """An estimator that takes a y."""

    _network_options = (*RecurrentEstimator._network_options, "pooling", "standardise")
    _may_miss = True

    def __init__(
        self,
        cell: str | Cell | WrittenCell = "gru",
        *,
        hidden_size: int = 64,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pooling: str = "last",
        standardise: bool = True,
        optimiser: str | Callable[..., Optimiser] = "adam",
        lr: float | str = 0.01,
        schedule: str = "cosine",
        batch_size: int | str = "auto",
        max_epochs: int = 100,
        clip: float | None = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        warm_start: bool = False,
        per_step: bool = False,
        step_features: int = 1,
        layout: str | None = None,
        dtype: DTypeLike | None = None,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            cell, hidden_size=hidden_size, layers=layers, bidirectional=bidirectional,
            dropout=dropout, optimiser=optimiser, lr=lr, batch_size=batch_size,
            max_epochs=max_epochs, clip=clip, early_stopping=early_stopping,
            validation_fraction=validation_fraction, patience=patience, warm_start=warm_start,
            per_step=per_step, step_features=step_features, dtype=dtype, verbose=verbose,
            random_state=random_state,
        )  # fmt: skip
        self.pooling = pooling
        self.standardise = standardise
        self.layout = layout
        self.schedule = schedule

    def _schedule(self, progress: float) -> float:
        cosine = expect_choice("schedule", self.schedule, ("cosine", "constant")) == "cosine"
        return half_wave(progress) if cosine else 1.0

    @property
    def mean_(self) -> AnyArray:
        """The mean of each feature in ``fit``, (D,); only with ``standardise``."""
        return self._standard("mean_", lambda network: network.mean)

    @property
    def scale_(self) -> AnyArray:
        """The standard deviation of each feature in ``fit``, 1 where it is 0, (D,)."""
        return self._standard("scale_", lambda network: network.scale)

    def _standard(self, name: str, of: Callable[[Any], AnyArray | None]) -> AnyArray:
        found = of(self.network_) if hasattr(self, "network_") else None
        if found is None:
            raise AttributeError(f"{name}: expected a fitted estimator with standardise=True")
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(AS_IN_0_2 | state)

    def _read(self, X: Any, *, reset: bool, least_steps: int = 1) -> Sequences:
        X = steps_first("X", listed(X), self.layout)
        xs = super()._read(X, reset=reset, least_steps=least_steps)
        return complete("X", xs, every_step=self.per_step)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _read_both(self, X: Any, y: Any, *, reset: bool) -> Sequences:
        """X as sequences, whose steps' labels are those of y's, where both have some."""
        xs, y = self._read(X, reset=reset), listed(y)
        X = steps_first("X", listed(X), self.layout)
        if reset and not self.standardise:
            names = None if self._table else getattr(self, "feature_names_in_", None)
            warn_of_scale("X", xs, names)
        if getattr(index_of(X), "nlevels", 1) > 1 and np.ndim(y) and len(X) != len(y):
            raise ValueError(
                f"X: expected {len(y)} sequences, got {len(X)} rows of a MultiIndex; "
                "[x for _, x in X.groupby(level=0)] is a list of sequences"
            )
        if self.per_step and isinstance(X, (list, tuple)) and isinstance(y, (list, tuple)):
            for k, (one, targets) in enumerate(zip(X, y, strict=False)):
                expect_same_index(f"y[{k}]", targets, f"X[{k}]", one)
        if self.per_step:
            expect_column_order("y", y, even=False)
            if self._table and self.step_features == 1:
                expect_same_columns("y", y, "X", X)
        return xs

    def _flat(self, y: Any, xs: Sequences) -> Any:
        """Targets of all sequences, or of all their steps: (N, ...) or (steps, ...)."""
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        if self.per_step:
            return concatenate("y", y, xs)
        expect_plain_array("y", y)
        check_consistent_length(xs, y)
        return y

    def _examples(
        self, xs: Sequences, targets: AnyArray, weights: AnyArray | None = None
    ) -> SequenceDataset:
        """Sequences, checked targets and their weights, as ``_flat`` has them."""
        ts, each = (
            values if values is None else split(values, xs) if self.per_step else values[:, None]
            for values in (targets, weights)
        )
        return SequenceDataset(xs, ts, weights=each)

    def _spread(self, sample_weight: Any, xs: Sequences) -> AnyArray | None:
        """The weights of sequences, for all of them or, with ``per_step``, all of their steps."""
        if sample_weight is None:
            return None
        weights = _check_sample_weight(
            as_array("sample_weight", sample_weight), lengths_of(xs)[:, None], dtype=np.float64
        )
        if not (weights.min() >= 0 < weights.max()):
            raise ValueError(
                "sample_weight: expected numbers, none below 0 and not all 0, got "
                f"{weights.min():g} to {weights.max():g}"
            )
        return np.repeat(weights, lengths_of(xs)) if self.per_step else weights

    def _counting(self, examples: SequenceDataset) -> AnyArray:
        """The rows of the examples whose weight is not 0."""
        weights = examples.weights
        count = range(len(examples))
        return np.array([k for k in count if weights is None or weights[k].any()], int)

    def _loss(
        self, scores: AnyArray, ts: AnyArray, mask: AnyArray | None
    ) -> tuple[float, AnyArray]:
        if mask is None or mask.dtype == bool:
            return self._weighted_loss(scores, ts, mask, None)
        return self._weighted_loss(scores, ts, None, mask)

    def _weighted_loss(
        self, scores: AnyArray, ts: AnyArray, mask: AnyArray | None, weights: AnyArray | None
    ) -> tuple[float, AnyArray]:
        loss = TimeMSE()
        return float(loss.forward(scores, ts, mask, weights=weights)), loss.backward()

    def _shaped(self, flat: AnyArray, xs: Sequences) -> Sequences:
        """The values of all sequences or steps, cut up as the sequences are."""
        return split(flat, xs) if self.per_step else flat

    def _flat_score(
        self, metric: Callable[..., float], X: Any, y: Any, sample_weight: Any
    ) -> float:
        """A metric of all sequences, or all of their steps."""
        xs = self._read_both(X, y, reset=False)
        predictions = self.predict(X)
        if self.per_step:
            predictions = concatenate("predictions", predictions, xs)
        weights = self._spread(sample_weight, xs)
        return metric(self._flat(y, xs), predictions, sample_weight=weights)


def __getattr__(name: str) -> Any:
    """Classes that were here, where pickles of 0.2 look for them."""
    if name not in ("RNNClassifier", "RNNRegressor"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(__package__), name)
