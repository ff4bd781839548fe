"""Sequences in, labels out."""

import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike
from scipy.special import expit, softmax
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import column_or_1d, compute_class_weight
from sklearn.utils.multiclass import (
    check_classification_targets,
    type_of_target,
    unique_labels,
)
from sklearn.utils.validation import assert_all_finite

from ..backend import engine_for_input
from ..kernels.cells import Cell, WrittenCell
from ..layers import TimeSigmoidWithLoss, TimeSoftmaxWithLoss
from ..training import Optimiser
from ..typing import AnyArray
from .base import all_or_nothing
from .sequences import (
    SequenceDataset,
    Sequences,
)
from .supervised import FLAGS, LABELS, OUTPUTS, Supervised


class RNNClassifier(ClassifierMixin, Supervised):
    """Recurrent classifier of sequences, or of each of their steps.

    ``numba_rnn.sklearn`` says which X it takes.

    Parameters
    ----------
    cell : str or cell, default "gru"
        A name in ``numba_rnn.cells.names()``, or a cell of your own. For n_jobs and for pickle your
        cell must be in a module that other processes can import.
    hidden_size : int, default 64
        H, the number of units of each recurrent layer (in each direction).
    layers : int, default 1
        The number of recurrent layers.
    bidirectional : bool, default False
        Whether every layer reads in both directions.
    dropout : float, default 0.0
        The share of numbers dropped between layers and before the output.
    pooling : {"max", "mean", "attention", "last"}, default "max"
        How the outputs of the steps of a sequence become one row of H numbers for the whole
        sequence: the largest of each unit, the mean, a mean with learned weights, or the states at
        the end. It has no effect with ``per_step``.
    standardise : bool, default True
        Whether the network subtracts from each feature its mean in ``fit`` and divides by its
        standard deviation, over all steps. ``partial_fit`` takes those of its first call.
    optimiser : str or callable, default "adam"
        "adam", "adamw", "rmsprop", "adagrad", "momentum" or "sgd", or a callable that takes lr and
        returns an optimiser, such as ``functools.partial(AdamW, weight_decay=0.1)``.
    lr : float or "auto", default 0.01
        The learning rate at the start. "auto": ``fit`` looks for one by a range test, of 120
        batches at most; it is in ``lr_``.
    schedule : {"cosine", "constant"}, default "cosine"
        How the learning rate goes on in ``fit``: it falls to 0 along half a cosine over
        ``max_epochs``, or stays. In ``partial_fit`` it stays.
    batch_size : int or "auto", default "auto"
        The number of sequences in a batch. "auto": a sixteenth of the sequences, at least 8 and at
        most 32.
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
    layout : {"ntd", "ndt"} or None, default None
        The axes of X. "ntd": (N, T, D) or a list of (T_i, D), steps before features. "ndt":
        (N, D, T) or a list of (D, T_i), as aeon and sktime have them; of a table all steps of the
        first feature come first. None: "ntd", and an array that seems to be the other is refused.
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
    classes_ : (K,) array, or list of arrays
        The labels, sorted; of K flags 0 to K - 1, of several outputs a list of their labels.
    n_features_in_ : int
        The number of features of a table, or of a step.
    mean_, scale_ : (D,) arrays
        The mean and the standard deviation of each feature, where they are standardised.
    network_ : Network
        The layers: ``network_.recurrent``, a Stacked, and ``network_.affine``.
    lr_ : float
        The learning rate that the range test found, with ``lr="auto"``.
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
    Labels are anything that scikit-learn takes: one for each sequence, several flags (an indicator
    matrix) or the labels of several outputs. Where all sequences are in one batch a weight counts
    as that many copies do; in smaller batches these differ, as copies are in several of them.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> rows = (X[:200] / 16).reshape(-1, 8, 8)  # 8 steps of 8 features
    >>> model = RNNClassifier("gru", max_epochs=20, random_state=0).fit(rows, y[:200])
    >>> model.predict_proba(rows).shape, bool(model.score(rows, y[:200]) > 0.9)
    ((200, 10), True)
    """

    classes_: Any
    _kind = LABELS

    def __init__(
        self,
        cell: str | Cell | WrittenCell = "gru",
        *,
        hidden_size: int = 64,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pooling: str = "max",
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
        class_weight: Any = None,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            cell, hidden_size=hidden_size, layers=layers, bidirectional=bidirectional,
            dropout=dropout, pooling=pooling, standardise=standardise, optimiser=optimiser,
            lr=lr, schedule=schedule, batch_size=batch_size, max_epochs=max_epochs, clip=clip,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction, patience=patience, warm_start=warm_start,
            per_step=per_step, step_features=step_features, layout=layout, dtype=dtype,
            verbose=verbose, random_state=random_state,
        )  # fmt: skip
        self.class_weight = class_weight

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        return tags

    @all_or_nothing
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on labelled sequences.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) array-like
            The labels, or with ``per_step`` one for each step: (N, T), or a list of (T_i,). (N, K)
            are K labels of each sequence: flags of K classes where all are 0 or 1, else one of the
            classes of each of K outputs. With ``per_step`` that is (N, T, K), or a list.
        sample_weight : (N,) array-like, optional
            How much each sequence counts; one with weight 0 is left out.

        Returns
        -------
        Self
            The estimator.
        """
        xs = self._read_both(X, y, reset=True)
        anew = not (self.warm_start and hasattr(self, "network_"))
        codes = self._codes(self._labels(y, xs), None, anew)
        examples, rows = self._labelled(xs, codes, sample_weight)
        whole = codes.ndim == 1 and not self.per_step
        return self._fit(examples, self._outputs, strata=codes[rows] if whole else None)

    @all_or_nothing
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train on labelled sequences for one epoch.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) array-like
            The labels, as in ``fit``.
        classes : array-like, optional
            All labels that will ever occur; of several outputs a list of them. The first call needs
            it.
        sample_weight : (N,) array-like, optional
            How much each sequence counts; one with weight 0 is left out.

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
        classes = self.classes_ if classes is None else classes
        codes = self._codes(self._labels(y, xs), classes, anew)
        return self._partial_fit(self._labelled(xs, codes, sample_weight)[0], self._outputs)

    def predict_proba(self, X: Any) -> Any:
        """Predict the probability of each class.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.

        Returns
        -------
        probabilities : (N, classes) array
            With ``per_step`` (N, T, classes), or a list of (T_i, classes) arrays. Of flags the
            probability that each is 1; of several outputs a list with one such result for each.
        """
        xs = self._read(X, reset=False)
        found = self._probabilities(self._scores(xs))
        if self._kind == OUTPUTS:
            return [self._shaped(one, xs) for one in found]
        return self._shaped(found[0], xs)

    def predict(self, X: Any) -> Sequences:
        """Predict the most probable class.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.

        Returns
        -------
        labels : (N,) array
            With ``per_step`` (N, T), or a list of (T_i,) arrays; (N, K) where y had K labels.
        """
        xs = self._read(X, reset=False)
        found = self._probabilities(self._scores(xs))
        if self._kind == FLAGS:
            return self._shaped((found[0] > 0.5).astype(int), xs)
        if self._kind == LABELS:
            return self._shaped(self.classes_[found[0].argmax(axis=1)], xs)
        labels = [c[p.argmax(axis=1)] for c, p in zip(self.classes_, found, strict=True)]
        return self._shaped(np.stack(labels, axis=1), xs)

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
            The accuracy, from 0 to 1. Of several labels all have to be right.
        """
        return self._flat_score(_accuracy, X, y, sample_weight)

    def _labels(self, y: Any, xs: Sequences) -> AnyArray:
        """Labels (N,) or (N, K), or those of all steps."""
        labels = np.asarray(self._flat(y, xs))
        if labels.ndim != 2 or labels.shape[1] == 1:
            labels = column_or_1d(labels, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        steps = getattr(xs, "shape", (0, 0))[:2]
        if not self.per_step and labels.shape == steps and steps[1] > 2:
            warnings.warn(
                f"y: taken as {labels.shape[1]} labels of each sequence; for labels of each step "
                "use per_step=True",
                stacklevel=4,
            )
        return labels

    def _codes(self, labels: AnyArray, classes: Any, anew: bool) -> AnyArray:
        """The labels' places among the classes; classes None: those of the labels."""
        kind = LABELS
        if labels.ndim == 2:
            kind = FLAGS if type_of_target(labels) == "multilabel-indicator" else OUTPUTS
        if not anew and self._kind == OUTPUTS and kind == FLAGS:
            kind = OUTPUTS  # those with two classes, 0 and 1, by chance
        K = labels.shape[1] if labels.ndim == 2 else 1
        if classes is not None and kind == FLAGS and np.ndim(classes[0]):
            kind = OUTPUTS
        found: Any = np.arange(K)
        if kind == LABELS:
            found = unique_labels(labels if classes is None else classes)
        elif kind == OUTPUTS:
            found = [np.unique(some) for some in (labels.T if classes is None else classes)]
        same = anew or (kind == self._kind and _equal(found, self.classes_))
        if not same or (kind == OUTPUTS and len(found) != K):
            expected = f"those of {K} outputs" if anew else f"{self.classes_}, as before"
            raise ValueError(f"classes: expected {expected}, got {found}")
        self._kind, self.classes_ = kind, found
        self._sizes = list(map(len, found if kind == OUTPUTS else [found]))
        self._outputs = sum(self._sizes)
        if kind == FLAGS:
            return labels.astype(np.int64)
        if kind == LABELS:
            return LabelEncoder().fit(found).transform(labels)
        columns = [LabelEncoder().fit(c).transform(y) for c, y in zip(found, labels.T, strict=True)]
        return np.stack(columns, axis=1)

    def _labelled(
        self, xs: Sequences, codes: AnyArray, sample_weight: Any
    ) -> tuple[SequenceDataset, AnyArray]:
        """The examples that count, and which these are of all."""
        weights = self._spread(sample_weight, xs)
        if self.class_weight is not None:
            of_classes = self._class_weights(codes)
            weights = of_classes if weights is None else weights * of_classes
        examples = self._examples(xs, codes, weights)
        rows = np.arange(len(xs)) if sample_weight is None else self._counting(examples)
        return examples.picked(rows), rows

    def _class_weights(self, codes: AnyArray) -> AnyArray:
        """The weight of each row of codes."""
        if self._kind != LABELS:
            raise ValueError(
                f"class_weight: expected None where y has several labels, got {self.class_weight}; "
                "sample_weight takes any weights"
            )
        weights = compute_class_weight(
            self.class_weight, classes=self.classes_, y=self.classes_[codes]
        )
        if not (np.isfinite(weights).all() and weights.min() >= 0 < weights.max()):
            raise ValueError(
                "class_weight: expected finite numbers, none below 0 and not all 0, got "
                f"{self.class_weight}"
            )
        return np.asarray(weights[codes])

    def _probabilities(self, scores: AnyArray) -> list[AnyArray]:
        """Those of each output, or of all flags."""
        if self._kind == FLAGS:
            return [expit(scores)]
        if self._kind == LABELS:
            return [softmax(scores, axis=1)]
        ends = np.cumsum(self._sizes)[:-1]
        return [softmax(part, axis=1) for part in np.split(scores, ends, axis=1)]

    def _weighted_loss(
        self, scores: AnyArray, ts: AnyArray, mask: AnyArray | None, weights: AnyArray | None
    ) -> tuple[float, AnyArray]:
        if self._kind == FLAGS:
            flags = TimeSigmoidWithLoss()
            return float(flags.forward(scores, ts, mask, weights=weights)), flags.backward()
        loss = TimeSoftmaxWithLoss()
        columns = [ts] if self._kind == LABELS else [ts[:, :, k] for k in range(ts.shape[2])]
        value, gradients, ends = 0.0, [], np.cumsum(self._sizes)
        for labels, size, end in zip(columns, self._sizes, ends, strict=True):
            known = labels if mask is None else np.where(mask, labels, loss.ignore_label)
            value += float(loss.forward(scores[:, :, end - size : end], known, weights=weights))
            gradients.append(loss.backward())
        return value, engine_for_input(scores).xp.concatenate(gradients, axis=2)


def _equal(classes: Any, others: Any) -> bool:
    """Whether two arrays, or two lists of arrays, hold the same classes."""
    if isinstance(classes, list) != isinstance(others, list):
        return False
    if not isinstance(classes, list):
        return np.array_equal(classes, others)
    return len(classes) == len(others) and all(map(np.array_equal, classes, others))


def _accuracy(y: Any, predictions: AnyArray, sample_weight: AnyArray | None) -> float:
    """The share of rows that are right as a whole."""
    right = np.asarray(y).reshape(predictions.shape) == predictions
    return float(np.average(right.reshape(len(right), -1).all(axis=1), weights=sample_weight))
