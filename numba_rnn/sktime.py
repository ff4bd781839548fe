"""The classifier as sktime has classifiers: for its pipelines, tuning and benchmarks.

    from numba_rnn.sktime import SktimeRNNClassifier

It needs sktime (``pip install "numba-rnn[sktime]"``), and passes sktime's ``check_estimator``.
"""

from typing import Any

from .optional_deps import optional_import

with optional_import("sktime", "numba_rnn.sktime"):
    from sktime.classification.base import BaseClassifier

from .sklearn import RNNClassifier
from .wrapped import SMALL, WrappedClassifier

__all__ = ["SktimeRNNClassifier"]


class SktimeRNNClassifier(WrappedClassifier, BaseClassifier):
    """``numba_rnn.sklearn.RNNClassifier`` for sktime's panels of time series.

    Parameters
    ----------
    classifier : RNNClassifier or None, default None
        The classifier, which is cloned in ``fit``; None: one with all defaults.

    Attributes
    ----------
    classifier_ : RNNClassifier
        The fitted classifier.

    Notes
    -----
    X is any panel of sktime's, such as (N, D, T) arrays; lengths may differ, and values be missing.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn.sklearn import RNNClassifier
    >>> from numba_rnn.sktime import SktimeRNNClassifier
    >>> X = np.random.default_rng(0).standard_normal((20, 2, 9))  # 20 series of 2 channels
    >>> model = SktimeRNNClassifier(RNNClassifier(max_epochs=5, random_state=0))
    >>> model.fit(X, np.arange(20) % 2).predict(X).shape
    (20,)
    """

    _tags = {  # noqa: RUF012 (sktime's way)
        "X_inner_mtype": "df-list",
        "capability:missing_values": True,
        "capability:multivariate": True,
        "capability:predict_proba": True,
        "capability:unequal_length": True,
    }

    def _arrays(self, X: Any) -> list[Any]:
        return [x.to_numpy().T for x in X]  # DataFrames with a row for each step

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return parameters for sktime's checks.

        Parameters
        ----------
        parameter_set : str, default "default"
            Ignored.

        Returns
        -------
        list of dict
            The parameters.
        """
        return [{"classifier": RNNClassifier(cell, **SMALL)} for cell in ("gru", "rnn")]
