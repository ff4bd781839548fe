"""Estimators for scikit-learn: its pipelines, grid searches and metrics with our layers.

    from numba_rnn.sklearn import RNNClassifier, RNNForecaster, RNNRegressor, SequenceScaler

They need scikit-learn (``pip install "numba-rnn[sklearn]"``). All take the same X, and
`RNNForecaster` one series as it comes, too:

- (N, T, D) array: N sequences of T steps of D features
- list of (T_i, D): sequences of different lengths, arrays or DataFrames
- (N, F) table, an array or DataFrame: every row is a sequence, of F steps of one feature, or with
  ``step_features=D`` of F / D steps of D features each

``RNNClassifier`` and ``RNNRegressor`` with ``layout="ndt"`` take (N, D, T) and lists of (D, T_i)
instead. In their X NaN is a value that is missing: the last one before it in its sequence takes its
place, else the mean of its feature (0 without ``standardise``). A step that is NaN alone is left
out, unless ``per_step`` wants a result for it.

The steps of a DataFrame must be in the order of their times: the rows of a DataFrame in a list, the
columns of a table. An empty X raises ValueError, as in scikit-learn.

``numba_rnn/sklearn/sequences.py`` and ``numba_rnn/sklearn/frames.py`` read X, the layers are in
``numba_rnn/sklearn/network.py`` and ``numba_rnn/sklearn/pooling.py``, the training is in
``numba_rnn/sklearn/base.py``.
"""

from ..optional_deps import optional_import

with optional_import("sklearn", "numba_rnn.sklearn"):
    import sklearn as _scikit_learn  # noqa: F401

from .backtest import Backtest
from .base import RecurrentEstimator
from .classifier import RNNClassifier
from .forecaster import RNNForecaster
from .regressor import RNNRegressor
from .scaler import SequenceScaler

__all__ = [
    "Backtest", "RNNClassifier", "RNNForecaster", "RNNRegressor", "RecurrentEstimator",
    "SequenceScaler",
]  # fmt: skip
