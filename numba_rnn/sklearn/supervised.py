"""Sequences in, labels or numbers out."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike
from scipy.special import softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_array, check_consistent_length, column_or_1d, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import assert_all_finite

from ..kernels.cells import Cell, WrittenCell
from ..layers import TimeSoftmaxWithLoss
from ..training import Optimiser
from ..typing import AnyArray
from ..validation import as_array, expect_plain_array
from .base import RecurrentEstimator, all_or_nothing
from .frames import expect_column_order, expect_same_columns, expect_same_index, index_of
from .sequences import (
    SequenceDataset,
    Sequences,
    concatenate,
    lengths_of,
    listed,
    split,
    warn_of_scale,
)


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

    def _examples(self, xs: Sequences, targets: AnyArray) -> SequenceDataset:
        """Sequences and checked targets, as ``_flat`` has them."""
        return SequenceDataset(xs, split(targets, xs) if self.per_step else targets[:, None])

    def _shaped(self, flat: AnyArray, xs: Sequences) -> Sequences:
        """The values of all sequences or steps, cut up as the sequences are."""
        return split(flat, xs) if self.per_step else flat

    def _flat_score(
        self, metric: Callable[..., float], X: Any, y: Any, sample_weight: Any
    ) -> float:
        """A metric of all steps of all sequences."""
        xs = self._read_both(X, y, reset=False)
        predictions = concatenate("predictions", self.predict(X), xs)
        if sample_weight is not None:
            check_consistent_length(xs, sample_weight)
            sample_weight = np.repeat(as_array("sample_weight", sample_weight), lengths_of(xs))
        return metric(self._flat(y, xs), predictions, sample_weight=sample_weight)


class RNNClassifier(ClassifierMixin, _Supervised):
    """Recurrent classifier of sequences, or of each of their steps.

    ``numba_rnn.sklearn`` says which X it takes.

    Parameters
    ----------
    cell : str or cell, default "lstm"
        A name in ``numba_rnn.cells.names()``, or a cell of your own. For n_jobs and for pickle your
        cell must be in a module that other processes can import.
    hidden_size : int, default 32
        H, the number of units of each recurrent layer (in each direction).
    layers : int, default 1
        The number of recurrent layers.
    bidirectional : bool, default False
        Whether every layer reads in both directions.
    dropout : float, default 0.0
        The share of numbers dropped between layers and before the output.
    optimiser : str or callable, default "adam"
        "adam", "adamw", "rmsprop", "adagrad", "momentum" or "sgd", or a callable that takes lr and
        returns an optimiser, such as ``functools.partial(AdamW, weight_decay=0.1)``.
    lr : float, default 0.01
        The learning rate.
    batch_size : int, default 32
        The number of sequences in a batch.
    max_epochs : int, default 100
        The number of times that all sequences are read.
    clip : float or None, default 1.0
        The largest global norm of the gradient; None: no clipping.
    early_stopping : bool, default False
        If True, a share of the data is held out. Training ends when the loss on it has not fallen
        for ``patience`` epochs, and the parameters with the lowest such loss are kept.
    validation_fraction : float, default 0.1
        The share that early_stopping holds out.
    patience : int, default 10
        The number of epochs without improvement that early_stopping allows.
    warm_start : bool, default False
        If True, ``fit`` continues from the parameters of the last fit.
    per_step : bool, default False
        True: a label for every step. y is then (N, T), or a list of (T_i,) arrays if sequences
        differ in length, and so is the result of ``predict``; ``predict_proba`` has one axis more,
        and ``score`` is the accuracy over all steps.
    step_features : int, default 1
        The number of features of a step in a table (N, F); see ``numba_rnn.sklearn``.
    dtype : {"float32", "float64"} or None, default None
        The dtype of parameters, arithmetic and results; float32 is faster. None: the dtype of X in
        fit, or float64 if X has another dtype.
    class_weight : None, "balanced" or dict of label to float, default None
        The weight of each class in the loss, from 0 on.
    verbose : bool, default False
        Whether to show a progress bar on stderr.
    random_state : int, RandomState or None, default None
        The same seed gives the same numbers, bit for bit on one engine and machine.

    Attributes
    ----------
    classes_ : (K,) array
        The labels, sorted.
    n_features_in_ : int
        The number of features of a table, or of a step.
    network_ : Network
        The layers: ``network_.recurrent``, a Stacked, and ``network_.affine``.
    loss_curve_ : list of float
        The mean training loss in nats of each epoch.
    validation_curve_ : list of float
        The same for the data that ``early_stopping`` holds out.

    Raises
    ------
    ValueError, TypeError
        If parameters or data do not fit.
    TrainingDiverged
        If the loss is no longer finite.

    Notes
    -----
    Labels are anything that scikit-learn takes. Scale features to a size of about 1
    (StandardScaler).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> rows = (X[:200] / 16).reshape(-1, 8, 8)  # 8 steps of 8 features
    >>> model = RNNClassifier("gru", max_epochs=20, random_state=0).fit(rows, y[:200])
    >>> model.predict_proba(rows).shape, bool(model.score(rows, y[:200]) > 0.9)
    ((200, 10), True)
    """

    classes_: AnyArray

    def __init__(
        self,
        cell: str | Cell | WrittenCell = "lstm",
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
        dtype: DTypeLike | None = None,
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
        """Train on labelled sequences.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) array-like
            The labels, or with ``per_step`` one for each step: (N, T), or a list of (T_i,).

        Returns
        -------
        Self
            The estimator.
        """
        xs = self._read_both(X, y, reset=True)
        labels = self._labels(y, xs)
        anew = not (self.warm_start and hasattr(self, "network_"))
        codes = self._codes(labels, unique_labels(labels), anew)
        strata = codes if self.early_stopping and not self.per_step else None
        return self._fit(self._examples(xs, codes), len(self.classes_), strata=strata)

    @all_or_nothing
    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Train on labelled sequences for one epoch.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) array-like
            The labels, or with ``per_step`` one for each step.
        classes : array-like, optional
            All labels that will ever occur. The first call needs it.

        Returns
        -------
        Self
            The estimator.

        Raises
        ------
        ValueError
            If the first call has no classes, or class_weight is "balanced".
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
        """Predict the probability of each class.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.

        Returns
        -------
        probabilities : (N, classes) array
            With ``per_step`` (N, T, classes), or a list of (T_i, classes) arrays.
        """
        xs = self._read(X, reset=False)
        return self._shaped(softmax(self._scores(xs), axis=1), xs)

    def predict(self, X: Any) -> Sequences:
        """Predict the most probable class.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.

        Returns
        -------
        labels : (N,) array
            With ``per_step`` (N, T), or a list of (T_i,) arrays.
        """
        xs = self._read(X, reset=False)
        return self._shaped(self.classes_[self._scores(xs).argmax(axis=1)], xs)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy over all sequences, or over all steps with ``per_step``.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) array-like
            The labels, as in ``fit``.
        sample_weight : (N,) array-like, optional
            The weights of the sequences.

        Returns
        -------
        float
            The accuracy, from 0 to 1.
        """
        if self.per_step:
            return self._flat_score(accuracy_score, X, y, sample_weight)
        return super().score(X, y, sample_weight)

    def _labels(self, y: Any, xs: Sequences) -> AnyArray:
        labels = column_or_1d(self._flat(y, xs), warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        return labels

    def _codes(self, labels: AnyArray, classes: AnyArray, anew: bool) -> AnyArray:
        """The labels' places among the classes; and what each class counts, for ``_loss``."""
        if not anew and not np.array_equal(classes, self.classes_):
            raise ValueError(f"classes: expected {self.classes_}, as before, got {classes}")
        self.classes_ = classes
        codes = LabelEncoder().fit(self.classes_).transform(labels)
        self._weights: list[float] | None = None
        if self.class_weight is not None:
            weights = compute_class_weight(self.class_weight, classes=self.classes_, y=labels)
            if not (np.isfinite(weights).all() and weights.min() >= 0 < weights.max()):
                raise ValueError(
                    "class_weight: expected finite numbers, none below 0 and not all 0, got "
                    f"{self.class_weight}"
                )
            self._weights = weights.tolist()
        return codes

    def _loss(
        self, scores: AnyArray, ts: AnyArray, mask: AnyArray | None
    ) -> tuple[float, AnyArray]:
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
    """Recurrent regressor for sequences, or for each of their steps.

    ``numba_rnn.sklearn`` says which X it takes.

    Parameters
    ----------
    cell : str or cell, default "lstm"
        A name in ``numba_rnn.cells.names()``, or a cell of your own. For n_jobs and for pickle your
        cell must be in a module that other processes can import.
    hidden_size : int, default 32
        H, the number of units of each recurrent layer (in each direction).
    layers : int, default 1
        The number of recurrent layers.
    bidirectional : bool, default False
        Whether every layer reads in both directions.
    dropout : float, default 0.0
        The share of numbers dropped between layers and before the output.
    optimiser : str or callable, default "adam"
        "adam", "adamw", "rmsprop", "adagrad", "momentum" or "sgd", or a callable that takes lr and
        returns an optimiser, such as ``functools.partial(AdamW, weight_decay=0.1)``.
    lr : float, default 0.01
        The learning rate.
    batch_size : int, default 32
        The number of sequences in a batch.
    max_epochs : int, default 100
        The number of times that all sequences are read.
    clip : float or None, default 1.0
        The largest global norm of the gradient; None: no clipping.
    early_stopping : bool, default False
        If True, a share of the data is held out. Training ends when the loss on it has not fallen
        for ``patience`` epochs, and the parameters with the lowest such loss are kept.
    validation_fraction : float, default 0.1
        The share that early_stopping holds out.
    patience : int, default 10
        The number of epochs without improvement that early_stopping allows.
    warm_start : bool, default False
        If True, ``fit`` continues from the parameters of the last fit.
    per_step : bool, default False
        True: targets for every step. y is then (N, T) or (N, T, K), or a list of (T_i,) or (T_i, K)
        arrays if sequences differ in length, and so is the result of ``predict``; ``score`` is R²
        over all steps. False: y is (N,) or (N, K).
    step_features : int, default 1
        The number of features of a step in a table (N, F); see ``numba_rnn.sklearn``.
    dtype : {"float32", "float64"} or None, default None
        The dtype of parameters, arithmetic and results; float32 is faster. None: the dtype of X in
        fit, or float64 if X has another dtype.
    verbose : bool, default False
        Whether to show a progress bar on stderr.
    random_state : int, RandomState or None, default None
        The same seed gives the same numbers, bit for bit on one engine and machine.

    Attributes
    ----------
    n_features_in_ : int
        The number of features of a table, or of a step.
    network_ : Network
        The layers: ``network_.recurrent``, a Stacked, and ``network_.affine``.
    loss_curve_ : list of float
        The mean squared error of training of each epoch.
    validation_curve_ : list of float
        The same for the data that ``early_stopping`` holds out.

    Raises
    ------
    ValueError, TypeError
        If parameters or data do not fit.
    TrainingDiverged
        If the loss is no longer finite.

    Notes
    -----
    Training minimises the mean squared error. Scale features and targets to a size of about 1
    (StandardScaler, TransformedTargetRegressor).

    Examples
    --------
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
        """Train on sequences and their targets.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) or (N, K) array-like
            The targets, or with ``per_step`` those of each step.

        Returns
        -------
        Self
            The estimator.
        """
        xs = self._read_both(X, y, reset=True)
        targets = self._numbers(y, xs, True)
        return self._fit(self._examples(xs, targets), targets.shape[1])

    @all_or_nothing
    def partial_fit(self, X: Any, y: Any) -> Self:
        """Train on sequences for one epoch.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) or (N, K) array-like
            The targets, or with ``per_step`` those of each step.

        Returns
        -------
        Self
            The estimator.
        """
        anew = not hasattr(self, "network_")
        xs = self._read_both(X, y, reset=anew)
        targets = self._numbers(y, xs, anew)
        return self._partial_fit(self._examples(xs, targets), targets.shape[1])

    def predict(self, X: Any) -> Sequences:
        """Predict the targets.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.

        Returns
        -------
        targets : array, or list of arrays
            In the shape that y had in ``fit``.
        """
        xs = self._read(X, reset=False)
        predictions = self._scores(xs)
        return self._shaped(predictions[:, 0] if self._one_number else predictions, xs)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² over all sequences, or over all steps with ``per_step``.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) or (N, K) array-like
            The targets, as in ``fit``.
        sample_weight : (N,) array-like, optional
            The weights of the sequences.

        Returns
        -------
        float
            R².
        """
        if self.per_step:
            return self._flat_score(r2_score, X, y, sample_weight)
        return super().score(X, y, sample_weight)

    def _numbers(self, y: Any, xs: Sequences, anew: bool) -> AnyArray:
        """Targets (N, K) or (steps, K)."""
        found = check_array(self._flat(y, xs), ensure_2d=False, dtype=xs[0].dtype, input_name="y")
        self._one_number = found.ndim == 1
        found = found[:, None] if self._one_number else found
        if anew:
            warn_of_scale("y", [found], targets=True)
        return found
