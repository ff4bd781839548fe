"""Sequences in, labels or numbers out."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from scipy.special import softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_array, check_consistent_length, column_or_1d, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import assert_all_finite

from ..checks import Array, as_array, expect_plain_array
from ..layers import TimeSoftmaxWithLoss
from ..training import Optimiser
from .base import RecurrentEstimator, all_or_nothing
from .frames import expect_same_index, index_of
from .sequences import Examples, Sequences, cut, flattened, lengths_of, listed, warn_of_scale


class _Supervised(RecurrentEstimator):
    """An estimator that takes a y."""

    def _read_both(self, X: Any, y: Any, *, reset: bool) -> Sequences:
        """X as sequences, whose steps' labels are those of y's, where both have some."""
        xs, X, y = self._read(X, reset=reset), listed(X), listed(y)
        if reset:
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
        return xs

    def _flat(self, y: Any, xs: Sequences) -> Any:
        """Targets of all sequences, or of all their steps: (N, ...) or (steps, ...)."""
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        if self.per_step:
            return flattened("y", y, xs)
        expect_plain_array("y", y)
        check_consistent_length(xs, y)
        return y

    def _examples(self, xs: Sequences, targets: Array) -> Examples:
        """Sequences and checked targets, as ``_flat`` has them."""
        return Examples(xs, cut(targets, xs) if self.per_step else targets[:, None])

    def _shaped(self, flat: Array, xs: Sequences) -> Sequences:
        """What is said of all sequences or steps, cut up as the sequences are."""
        return cut(flat, xs) if self.per_step else flat

    def _flat_score(
        self, metric: Callable[..., float], X: Any, y: Any, sample_weight: Any
    ) -> float:
        """A metric of all steps of all sequences."""
        xs = self._read_both(X, y, reset=False)
        said = flattened("predictions", self.predict(X), xs)
        if sample_weight is not None:
            check_consistent_length(xs, sample_weight)
            sample_weight = np.repeat(as_array("sample_weight", sample_weight), lengths_of(xs))
        return metric(self._flat(y, xs), said, sample_weight=sample_weight)


class RNNClassifier(ClassifierMixin, _Supervised):
    """A recurrent network that says which class a sequence, or each of its steps, is of.

    class_weight   None, "balanced", or {label: weight}: how much each class counts in the loss
    per_step       True: y is (N, T), or a list of (T_i,) where sequences differ in length, and so
                   is what ``predict`` returns; ``predict_proba`` has one axis more, and ``score``
                   is the accuracy over all steps

    The other parameters: ``help(numba_rnn.sklearn.RecurrentEstimator)``. What X may be:
    ``help(numba_rnn.sklearn)``. Features are best of about size 1 (StandardScaler).

    classes_          the labels, sorted
    n_features_in_    features of a table, or of a step
    network_          the layers: ``network_.recurrent``, a Stacked, and ``network_.affine``
    loss_curve_       mean training loss in nats, an entry each epoch
    validation_curve_ the same of what ``early_stopping`` holds out

    Labels are anything that scikit-learn takes. Raises ValueError or TypeError for parameters or
    data that do not fit, TrainingDiverged where the loss is no longer finite.

    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> rows = (X[:200] / 16).reshape(-1, 8, 8)  # 8 steps of 8 features
    >>> model = RNNClassifier("gru", max_epochs=20, random_state=0).fit(rows, y[:200])
    >>> model.predict_proba(rows).shape, bool(model.score(rows, y[:200]) > 0.9)
    ((200, 10), True)
    """

    classes_: Array

    def __init__(
        self,
        cell: Any = "lstm",
        *,
        hidden_size: int = 32,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        optimiser: str | Callable[..., Optimiser] = "adam",
        lr: float = 0.01,
        batch_size: int = 32,
        max_epochs: int = 100,
        clip: float | None = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        warm_start: bool = False,
        per_step: bool = False,
        step_features: int = 1,
        dtype: Any = None,
        class_weight: Any = None,
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
        self.class_weight = class_weight

    @all_or_nothing
    def fit(self, X: Any, y: Any) -> Self:
        """Train on sequences X and their labels y, (N,), or with ``per_step`` one a step."""
        xs = self._read_both(X, y, reset=True)
        labels = self._labels(y, xs)
        anew = not (self.warm_start and hasattr(self, "network_"))
        codes = self._codes(labels, unique_labels(labels), anew)
        strata = codes if self.early_stopping and not self.per_step else None
        return self._fit(self._examples(xs, codes), len(self.classes_), strata=strata)

    @all_or_nothing
    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Train on sequences once.

        classes   all labels there will ever be; to be given at the first call
        """
        anew = not hasattr(self, "network_")
        if anew and classes is None:
            raise ValueError("classes: expected all labels at the first call of partial_fit")
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight: expected None or {label: weight} for partial_fit, got 'balanced', "
                "which needs all labels at once"
            )
        xs = self._read_both(X, y, reset=anew)
        labels = self._labels(y, xs)
        found = self.classes_ if classes is None else unique_labels(classes)
        codes = self._codes(labels, found, anew)
        return self._partial_fit(self._examples(xs, codes), len(self.classes_))

    def predict_proba(self, X: Any) -> Sequences:
        """The probability of each class: (N, classes), or with ``per_step`` (N, T, classes) or a
        list of (T_i, classes)."""
        xs = self._read(X, reset=False)
        return self._shaped(softmax(self._scores(xs), axis=1), xs)

    def predict(self, X: Any) -> Sequences:
        """The likeliest class: (N,), or with ``per_step`` (N, T) or a list of (T_i,)."""
        xs = self._read(X, reset=False)
        return self._shaped(self.classes_[self._scores(xs).argmax(axis=1)], xs)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The accuracy, over all sequences or all steps; weights (N,) are those of sequences."""
        if self.per_step:
            return self._flat_score(accuracy_score, X, y, sample_weight)
        return super().score(X, y, sample_weight)

    def _labels(self, y: Any, xs: Sequences) -> Array:
        labels = column_or_1d(self._flat(y, xs), warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        return labels

    def _codes(self, labels: Array, classes: Array, anew: bool) -> Array:
        """The labels' places among the classes; and what each class counts, for ``_loss``."""
        if not anew and not np.array_equal(classes, self.classes_):
            raise ValueError(f"classes: expected {self.classes_}, as before, got {classes}")
        self.classes_ = classes
        codes = LabelEncoder().fit(self.classes_).transform(labels)
        self._weights: list[float] | None = None
        if self.class_weight is not None:
            weights = compute_class_weight(self.class_weight, classes=self.classes_, y=labels)
            self._weights = weights.tolist()
        return codes

    def _loss(self, scores: Array, ts: Array, mask: Array | None) -> tuple[float, Array]:
        loss = TimeSoftmaxWithLoss()
        if mask is not None:
            ts = np.where(mask, ts, loss.ignore_label)
        if self._weights is None:
            return float(loss.forward(scores, ts)), loss.backward()
        counts = {c: self._weights[c] * int((ts == c).sum()) for c in np.unique(ts) if c >= 0}
        total = sum(counts.values()) or 1.0
        value, gradient = 0.0, 0.0 * scores
        for c, count in counts.items():  # a weighted mean of the classes' mean losses
            value += count / total * float(loss.forward(scores, np.where(ts == c, c, -1)))
            gradient += loss.backward(count / total)
        return value, gradient


class RNNRegressor(RegressorMixin, _Supervised):
    """A recurrent network that says one or more numbers of a sequence, or of each of its steps.

    per_step   True: y is (N, T) or (N, T, K), or a list of (T_i,) or (T_i, K) where sequences
               differ in length, and so is what ``predict`` returns; ``score`` is R² over all steps

    y (N,) or (N, K) otherwise. What is minimised is the mean squared error. The other parameters:
    ``help(numba_rnn.sklearn.RecurrentEstimator)``. What X may be: ``help(numba_rnn.sklearn)``.
    Features and targets are best of about size 1 (StandardScaler, TransformedTargetRegressor).

    n_features_in_    features of a table, or of a step
    network_          the layers: ``network_.recurrent``, a Stacked, and ``network_.affine``
    loss_curve_       mean squared error of training, an entry each epoch
    validation_curve_ the same of what ``early_stopping`` holds out

    Raises ValueError or TypeError for parameters or data that do not fit, TrainingDiverged where
    the loss is no longer finite.

    >>> X = np.random.default_rng(0).standard_normal((100, 12))  # 12 steps of one feature
    >>> model = RNNRegressor("gru", per_step=True, random_state=0).fit(X, X.cumsum(axis=1))
    >>> model.predict(X).shape, bool(model.score(X, X.cumsum(axis=1)) > 0.9)
    ((100, 12), True)
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @all_or_nothing
    def fit(self, X: Any, y: Any) -> Self:
        """Train on sequences X and their targets y, (N,) or (N, K), or with ``per_step`` more."""
        xs = self._read_both(X, y, reset=True)
        targets = self._numbers(y, xs, True)
        return self._fit(self._examples(xs, targets), targets.shape[1])

    @all_or_nothing
    def partial_fit(self, X: Any, y: Any) -> Self:
        """Train on sequences once."""
        anew = not hasattr(self, "network_")
        xs = self._read_both(X, y, reset=anew)
        targets = self._numbers(y, xs, anew)
        return self._partial_fit(self._examples(xs, targets), targets.shape[1])

    def predict(self, X: Any) -> Sequences:
        """Numbers of the shape that y had in fit, for these sequences."""
        xs = self._read(X, reset=False)
        said = self._scores(xs)
        return self._shaped(said[:, 0] if self._one_number else said, xs)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R², over all sequences or all steps; weights (N,) are those of sequences."""
        if self.per_step:
            return self._flat_score(r2_score, X, y, sample_weight)
        return super().score(X, y, sample_weight)

    def _numbers(self, y: Any, xs: Sequences, anew: bool) -> Array:
        """Targets (N, K) or (steps, K)."""
        found = check_array(self._flat(y, xs), ensure_2d=False, dtype=xs[0].dtype, input_name="y")
        self._one_number = found.ndim == 1
        found = found[:, None] if self._one_number else found
        if anew:
            warn_of_scale("y", [found], targets=True)
        return found
