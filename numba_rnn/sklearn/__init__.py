"""Estimators for scikit-learn: its pipelines, grid searches and metrics, our layers.

    from numba_rnn.sklearn import RNNClassifier, RNNForecaster, RNNRegressor

Needs scikit-learn (``pip install "numba-rnn[sklearn]"``). What X may be is the same for all three:

    (N, T, D) array       N sequences of T steps of D features
    list of (T_i, D)      sequences of different lengths, arrays or DataFrames
    (N, F) table          an array or DataFrame: every row is a sequence, of F steps of one feature,
                          or with ``step_features=D`` of F / D steps of D features each

Most parameters are the same as well: ``help(numba_rnn.sklearn.RecurrentEstimator)``.

Sequences of DataFrames must be in the order of their times. An empty X is a ValueError, as for
scikit-learn's own.

``sequences.py`` and ``frames.py`` read X, ``network.py`` has the layers, ``base.py`` the training.
"""

from ..extras import needed

with needed("sklearn", "numba_rnn.sklearn"):
    import sklearn as _scikit_learn  # noqa: F401

from .base import RecurrentEstimator
from .forecaster import RNNForecaster
from .supervised import RNNClassifier, RNNRegressor

__all__ = ["RNNClassifier", "RNNForecaster", "RNNRegressor", "RecurrentEstimator"]
