"""Sequences in, numbers out."""

from typing import Any, Self

from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_array

from ..typing import AnyArray
from .base import all_or_nothing
from .sequences import (
    Sequences,
    warn_of_scale,
)
from .supervised import Supervised


class RNNRegressor(RegressorMixin, Supervised):
    """Recurrent regressor for sequences, or for each of their steps.

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
    pooling : {"last", "max", "mean", "attention"}, default "last"
        How the outputs of the steps of a sequence become one row of H numbers for the whole
        sequence: the states at the end, the largest of each unit, the mean, or a mean with learned
        weights. It has no effect with ``per_step``.
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
        True: targets for every step. y is then (N, T) or (N, T, K), or a list of (T_i,) or (T_i, K)
        arrays if sequences differ in length, and so is the result of ``predict``; ``score`` is R²
        over all steps. False: y is (N,) or (N, K).
    step_features : int, default 1
        The number of features of a step in a table (N, F); see ``numba_rnn.sklearn``.
    layout : {"ntd", "ndt"} or None, default None
        The axes of X. "ntd": (N, T, D) or a list of (T_i, D), steps before features. "ndt":
        (N, D, T) or a list of (D, T_i), as aeon and sktime have them; of a table all steps of the
        first feature come first. None: "ntd", and an array that seems to be the other is refused.
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
    mean_, scale_ : (D,) arrays
        The mean and the standard deviation of each feature, where they are standardised.
    network_ : Network
        The layers: ``network_.recurrent``, a Stacked, and ``network_.affine``.
    lr_ : float
        The learning rate that the range test found, with ``lr="auto"``.
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
    Training minimises the mean squared error. Scale targets to a size of about 1
    (TransformedTargetRegressor).

    Examples
    --------
    >>> import numpy as np
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
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on sequences and their targets.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) or (N, K) array-like
            The targets, or with ``per_step`` those of each step.
        sample_weight : (N,) array-like, optional
            How much each sequence counts; one with weight 0 is left out.

        Returns
        -------
        Self
            The estimator.
        """
        xs = self._read_both(X, y, reset=True)
        targets = self._numbers(y, xs, True)
        examples = self._examples(xs, targets, self._spread(sample_weight, xs))
        return self._fit(examples.picked(self._counting(examples)), targets.shape[1])

    @all_or_nothing
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on sequences for one epoch.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : (N,) or (N, K) array-like
            The targets, or with ``per_step`` those of each step.
        sample_weight : (N,) array-like, optional
            How much each sequence counts; one with weight 0 is left out.

        Returns
        -------
        Self
            The estimator.
        """
        anew = not hasattr(self, "network_")
        xs = self._read_both(X, y, reset=anew)
        targets = self._numbers(y, xs, anew)
        examples = self._examples(xs, targets, self._spread(sample_weight, xs))
        return self._partial_fit(examples.picked(self._counting(examples)), targets.shape[1])

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
