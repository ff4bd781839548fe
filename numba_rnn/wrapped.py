"""``RNNClassifier`` behind the methods that aeon and sktime ask of a classifier."""

from typing import Any, Self

from sklearn.base import clone

from .sklearn import RNNClassifier

SMALL: dict[str, Any] = {"hidden_size": 4, "max_epochs": 2, "random_state": 0}  # for checks


class WrappedClassifier:
    """To be named before the BaseClassifier of a library, whose abstract methods it has."""

    def __init__(self, classifier: RNNClassifier | None = None) -> None:
        self.classifier = classifier
        super().__init__()

    def _arrays(self, X: Any) -> Any:
        """X as (N, D, T) array or list of (D, T_i)."""
        return X

    def _fit(self, X: Any, y: Any) -> Self:
        model = RNNClassifier() if self.classifier is None else clone(self.classifier)
        self.classifier_ = model.set_params(layout="ndt").fit(self._arrays(X), y)
        return self

    def _predict(self, X: Any) -> Any:
        return self.classifier_.predict(self._arrays(X))

    def _predict_proba(self, X: Any) -> Any:
        return self.classifier_.predict_proba(self._arrays(X))
