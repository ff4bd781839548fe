"""The classifier for sktime: its own checks, and that it is RNNClassifier."""

import numpy as np
import pytest
from sktime.utils.estimator_checks import check_estimator

from numba_rnn.sklearn import RNNClassifier
from numba_rnn.sktime import SktimeRNNClassifier


@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_sktime():
    results = check_estimator(SktimeRNNClassifier, raise_exceptions=True, verbose=False)
    assert len(results) > 20
    assert set(results.values()) == {"PASSED"}


def test_it_is_the_classifier():
    rng = np.random.default_rng(0)
    series = rng.standard_normal((12, 2, 9)), np.arange(12) % 2
    plain = RNNClassifier(hidden_size=4, max_epochs=3, layout="ndt", random_state=0)
    want = plain.fit(*series)
    model = SktimeRNNClassifier(plain).fit(*series)
    np.testing.assert_allclose(model.predict_proba(series[0]), want.predict_proba(series[0]))
    np.testing.assert_array_equal(model.predict(series[0]), want.predict(series[0]))
    assert SktimeRNNClassifier().classifier is None
