"""Which cell reads handwritten digits best? A grid search of scikit-learn's over cells.

    pip install -e ".[sklearn]"
    python examples/digits.py          # another split and other starts: --seed 1

A digit is 8 rows of 8 grey values, read from top to bottom: 8 steps of 8 features. Every point of
the grid is trained on two thirds of the training digits and scored on the others, three times;
the best one is trained on all of them and meets the test digits. It takes about a minute on two
cores.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split

from numba_rnn.sklearn import RNNClassifier

GRID = {
    "cell": ["rnn", "lstm", "gru", "mgu", "indrnn", "lstm_layer_norm"],
    "bidirectional": [False, True],
}


def search(grid: Mapping[str, Any], seed: int = 0, folds: int = 3) -> tuple[GridSearchCV, float]:
    """The fitted search, and the accuracy of its best classifier on a quarter of the digits."""
    X, y = load_digits(return_X_y=True)
    rows = (X / 16).astype(np.float32).reshape(-1, 8, 8)
    train, test, labels, test_labels = train_test_split(
        rows, y, test_size=0.25, stratify=y, random_state=seed
    )
    classifier = RNNClassifier(hidden_size=64, max_epochs=40, random_state=seed)
    found = GridSearchCV(classifier, grid, cv=folds, n_jobs=2).fit(train, labels)
    return found, found.score(test, test_labels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Which cell reads handwritten digits best?")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the parameters")
    began = time.perf_counter()
    found, accuracy = search(GRID, parser.parse_args().seed)
    results = found.cv_results_
    print("accuracy of cross-validation, and seconds for a fit")
    for k in np.argsort(results["rank_test_score"]):
        point = ", ".join(f"{name} {value}" for name, value in results["params"][k].items())
        score, seconds = results["mean_test_score"][k], results["mean_fit_time"][k]
        print(f"  {score:.2%}  {seconds:4.1f}  {point}")
    print(f"best of them on the test digits: {accuracy:.2%}")
    print(f"{time.perf_counter() - began:.0f} s in all")
    if accuracy < 0.97:
        sys.exit("expected at least 97 %")


if __name__ == "__main__":
    main()
