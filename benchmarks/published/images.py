"""Classification of sequences: MNIST-1D, and digits read by rows and by pixels."""

import time
from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.published import Options, Row
from numba_rnn import TimeAffine, TimeLSTM, TimePooling, TimeSoftmaxWithLoss
from numba_rnn.models import Sequential
from numba_rnn.training import Batches


def mnist1d(options: Options) -> Iterator[Row]:
    """``RNNClassifier`` with its defaults."""
    from mnist1d.data import get_dataset_args, make_dataset

    from numba_rnn.sklearn import RNNClassifier

    begun, made = time.perf_counter(), make_dataset(get_dataset_args())
    model = RNNClassifier(random_state=0).fit(made["x"][:, :, None], made["y"])
    right = model.score(made["x_test"][:, :, None], made["y_test"])
    yield "MNIST-1D", "91 % (GRU, Greydanus 2020)", f"{right:.1%}", time.perf_counter() - begun


def digits(options: Options) -> Iterator[Row]:
    """scikit-learn's digits of 8 by 8 pixels, beside a twin in PyTorch that has as much time."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from benchmarks.published.twin import race

    images, labels = load_digits(return_X_y=True)
    for name, T in ("rows", 8), ("pixels", 64):
        xs, xs_test, ts, ts_test = train_test_split(
            (images / 16).astype(np.float32).reshape(-1, T, 64 // T),
            labels[:, None],
            random_state=0,
            stratify=labels,
        )
        model = Sequential(
            TimeLSTM.create(64 // T, 128, rng=0),
            TimePooling("last"),
            TimeAffine.create(128, 10, rng=1),
            loss=TimeSoftmaxWithLoss(),
        )
        batches, seconds = partial(Batches, xs, ts, 50, rng=0), options.seconds / 2
        twin, made = race(model, model.layers, batches, 0.002, seconds, stateful=False)
        with torch.no_grad():
            theirs = twin.outputs(xs_test).numpy()
        print(f"  digits, {name}: {made[0]} iterations, PyTorch {made[1]}", flush=True)
        ours, other = (
            f"{(out.argmax(axis=2) == ts_test).mean():.1%}"
            for out in (model.predict(xs_test), theirs)
        )
        yield f"digits, {name}", f"{other} (PyTorch twin)", ours, seconds
