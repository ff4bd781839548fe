"""Sequences to mean 0 and standard deviation 1, as a step of a pipeline."""

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..typing import AnyArray
from ..validation import expect_int
from .sequences import (
    SequenceDataset,
    Sequences,
    is_table,
    listed,
    moments,
    read_sequences,
    steps_first,
    steps_of_table,
)


class SequenceScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Standardise the features of sequences, each over all steps of all sequences.

    ``numba_rnn.sklearn`` says which X it takes. ``RNNClassifier`` and ``RNNRegressor`` standardise
    by themselves; this is for other estimators.

    Parameters
    ----------
    with_mean : bool, default True
        Whether to subtract the mean.
    with_std : bool, default True
        Whether to divide by the standard deviation.
    step_features : int, default 1
        The number of features of a step in a table (N, F).
    layout : {"ntd", "ndt"} or None, default None
        The axes of X, as in ``RNNClassifier``. Results have the same.

    Attributes
    ----------
    mean_, scale_ : (D,) arrays
        The mean and the standard deviation of each feature; 1 where it is always the same.
    n_features_in_ : int
        The number of features of a table, or of a step.

    Raises
    ------
    ValueError, TypeError
        If parameters or data do not fit.

    Notes
    -----
    NaN does not count, and stays NaN.

    Examples
    --------
    >>> X = [[[1.0, 30.0], [3.0, 10.0]], [[2.0, 20.0]]]  # of 2 steps and of 1, 2 features
    >>> scaler = SequenceScaler().fit(X)
    >>> scaler.mean_
    array([ 2., 20.])
    >>> [x.shape for x in scaler.transform(X)]
    [(2, 2), (1, 2)]
    """

    def __init__(
        self,
        *,
        with_mean: bool = True,
        with_std: bool = True,
        step_features: int = 1,
        layout: str | None = None,
    ) -> None:
        self.with_mean = with_mean
        self.with_std = with_std
        self.step_features = step_features
        self.layout = layout

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find mean and standard deviation.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.
        y : ignored
            scikit-learn passes it.

        Returns
        -------
        Self
            The transformer.
        """
        xs, _ = self._read(X, reset=True)
        self.mean_, self.scale_ = moments(SequenceDataset(xs, xs))
        return self

    def transform(self, X: Any) -> Sequences:
        """Standardise sequences.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            The sequences.

        Returns
        -------
        standardised : array, or list of arrays
            In the shape of X.
        """
        xs, table = self._read(X, reset=False)
        return self._each(xs, table, lambda x, mean, scale: (x - mean) / scale)

    def inverse_transform(self, X: Any) -> Sequences:
        """Undo ``transform``.

        Parameters
        ----------
        X : (N, T, D) array, list of (T_i, D) arrays or (N, F) table
            Standardised sequences.

        Returns
        -------
        sequences : array, or list of arrays
            In the shape of X.
        """
        xs, table = self._read(X, reset=False)
        return self._each(xs, table, lambda x, mean, scale: x * scale + mean)

    def _each(self, xs: Sequences, table: bool, change: Any) -> Sequences:
        """Sequences changed, with the axes that they had."""
        dtype = xs[0].dtype
        mean = self.mean_.astype(dtype) if self.with_mean else dtype.type(0)
        scale = self.scale_.astype(dtype) if self.with_std else dtype.type(1)
        if not isinstance(xs, np.ndarray):
            found = [change(x, mean, scale) for x in xs]
            return [x.T for x in found] if self.layout == "ndt" else found
        changed: AnyArray = change(xs, mean, scale)
        changed = changed.swapaxes(1, 2) if self.layout == "ndt" else changed
        return changed.reshape(len(xs), -1) if table else changed

    def _read(self, X: Any, *, reset: bool) -> tuple[Sequences, bool]:
        """X as sequences, and whether it is a table."""
        if not reset:
            check_is_fitted(self)
        D, dtype = expect_int("step_features", self.step_features), [np.float64, np.float32]
        X = steps_first("X", listed(X), self.layout)
        if isinstance(X, (list, tuple)) and not X:
            raise ValueError("X: Found array with 0 sample(s), a minimum of 1 is required.")
        if is_table("X", X):
            array = validate_data(self, X, reset=reset, dtype=dtype, ensure_all_finite="allow-nan")
            return steps_of_table(array, D, self.layout), True
        xs = read_sequences("X", X, dtype, missing=True)
        features = xs[0].shape[1]
        if reset:
            self.n_features_in_ = features
        elif features != len(self.mean_):
            raise ValueError(
                f"X has {features} features, but {type(self).__name__} is expecting "
                f"{len(self.mean_)} features as input"
            )
        return xs, False
