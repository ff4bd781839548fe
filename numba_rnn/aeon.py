"""The classifier as aeon has classifiers: for its pipelines, ensembles and benchmarks.

    from numba_rnn.aeon import AeonRNNClassifier

It needs aeon (``pip install "numba-rnn[aeon]"``), and passes aeon's ``check_estimator``.
"""

from typing import Any

from .optional_deps import optional_import

with optional_import("aeon", "numba_rnn.aeon"):
    from aeon.classification.base import BaseClassifier

from .sklearn import RNNClassifier
from .wrapped import SMALL, WrappedClassifier

__all__ = ["AeonRNNClassifier"]


class AeonRNNClassifier(WrappedClassifier, BaseClassifier):
    """``numba_rnn.sklearn.RNNClassifier`` for aeon's collections of time series.

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
    X is aeon's: (N, D, T) arrays, or lists of (D, T_i); values may be missing.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn.sklearn import RNNClassifier
    >>> X = np.random.default_rng(0).standard_normal((20, 2, 9))  # 20 series of 2 channels
    >>> model = AeonRNNClassifier(RNNClassifier(max_epochs=5, random_state=0))
    >>> model.fit(X, np.arange(20) % 2).predict(X).shape
    (20,)
    """

    _tags = {  # noqa: RUF012 (aeon's way)
        "X_inner_type": ["np-list", "numpy3D"],
        "algorithm_type": "deeplearning",
        "capability:missing_values": True,
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "non_deterministic": False,
    }

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return {"classifier": RNNClassifier(**SMALL)}
