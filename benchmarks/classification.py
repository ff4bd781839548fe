"""RNNClassifier with its defaults on public data sets, beside simple and strong baselines.

    pip install -e ".[classification]"
    python -m benchmarks.classification                       all sets, three seeds
    python -m benchmarks.classification --only GunPoint --seed 0

    RNNClassifier   accuracy on the test set, the mean over seeds (the worst - the best)
    seconds         of a fit, the median
    logistic, 1-NN  scikit-learn's, on all steps of all features in a row, standardised
    MiniRocket      aeon's classifier with 10,000 features

Splits are those of the archives; of digits a quarter is for tests, another one for each seed.
Sequences of different lengths are filled up with zeros for the baselines, not for RNNClassifier. No
default was chosen by these test sets: that was done by cross-validation of the training sets.
"""

import os
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

Split = tuple[Any, Any, Any, Any]  # X, y, and those of the test


def archive(name: str) -> Callable[[int], Split]:
    """A set that aeon has in its package: (N, D, T) arrays, or a list of (D, T_i)."""

    def load(seed: int) -> Split:
        from aeon import datasets

        loader = getattr(datasets, name)
        return *loader(split="train"), *loader(split="test")

    return load


def digits(seed: int) -> Split:
    """8 rows of 8 grey values each."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    rows = X.reshape(-1, 8, 8).swapaxes(1, 2)
    train, test, labels, of_test = train_test_split(rows, y, stratify=y, random_state=seed)
    return train, labels, test, of_test


def mnist1d(seed: int) -> Split:
    """Signals of 40 steps, which stand for digits; made by a program, always the same."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    return made["x"][:, None], made["y"], made["x_test"][:, None], made["y_test"]


SETS: dict[str, tuple[Callable[[int], Split], float]] = {  # and the targets
    "ItalyPowerDemand": (archive("load_italy_power_demand"), 0.95),
    "BasicMotions": (archive("load_basic_motions"), 0.97),
    "JapaneseVowels": (archive("load_japanese_vowels"), 0.97),
    "GunPoint": (archive("load_gunpoint"), 0.93),
    "digits, by rows": (digits, 0.95),
    "mnist1d": (mnist1d, 0.97),
}


def filled(X: Any, steps: int) -> Any:
    """(N, D, T), with zeros behind the ends."""
    import numpy as np

    found = np.zeros((len(X), len(X[0]), steps))
    for row, x in zip(found, X, strict=True):
        row[:, : x.shape[1]] = x[:, :steps]
    return found


def baselines(split: Split) -> list[str]:
    """The accuracy of each, or "-" where it does not take such data."""
    from aeon.classification.convolution_based import MiniRocketClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y, test, of_test = split
    steps = max(x.shape[1] for x in X)
    X, test = filled(X, steps), filled(test, steps)
    rows, of_rows = X.reshape(len(X), -1), test.reshape(len(test), -1)
    found = []
    for simple in (LogisticRegression(max_iter=2000), KNeighborsClassifier(1)):
        model = make_pipeline(StandardScaler(), simple).fit(rows, y)
        found.append(f"{model.score(of_rows, of_test):.3f}")
    if steps < 9:  # its kernels are that long
        return [*found, "-"]
    rocket = MiniRocketClassifier(random_state=0).fit(X, y)
    return [*found, f"{rocket.score(test, of_test):.3f}"]


def ours(name: str, seeds: list[int]) -> tuple[list[float], float]:
    """The accuracies of RNNClassifier, and the median of the seconds of fit."""
    import numpy as np

    from numba_rnn.sklearn import RNNClassifier

    scores, seconds = [], []
    for seed in seeds:
        X, y, test, of_test = SETS[name][0](seed)
        X, test = ([np.asarray(x, np.float32) for x in some] for some in (X, test))
        began = time.perf_counter()
        model = RNNClassifier(layout="ndt", random_state=seed).fit(X, y)
        seconds.append(time.perf_counter() - began)
        scores.append(float(model.score(test, of_test)))
    return scores, float(np.median(seconds))


def main(
    only: Annotated[list[str] | None, typer.Option(help="Sets, by name; all of them.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; 0, 1 and 2.")] = None,
) -> None:
    """Accuracies of RNNClassifier and of baselines, and whether the targets are met."""
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    seeds = seed or [0, 1, 2]
    print(f"accuracy on test sets; RNNClassifier() with random_state {', '.join(map(str, seeds))}")
    print(
        f"\n{'':18}{'train':>6}{'test':>6}{'D':>4}{'T':>8}{'RNNClassifier':>24}{'target':>8}"
        f"{'':8}{'seconds':>9}{'logistic':>10}{'1-NN':>7}{'MiniRocket':>12}"
    )
    for name in only or SETS:
        scores, seconds = ours(name, seeds)
        split, target = SETS[name][0](seeds[0]), SETS[name][1]
        mean, lengths = sum(scores) / len(scores), {x.shape[1] for x in split[0]}
        steps = "-".join(map(str, sorted({min(lengths), max(lengths)})))
        met = "met" if round(mean, 3) >= target else "missed"
        logistic, nearest, rocket = baselines(split)
        print(
            f"{name:18}{len(split[0]):>6}{len(split[2]):>6}{len(split[0][0]):>4}{steps:>8}"
            f"{mean:>10.3f} ({min(scores):.3f}-{max(scores):.3f}){target:>7.2f}{met:>8}"
            f"{seconds:>10.1f}{logistic:>10}{nearest:>7}{rocket:>12}",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
