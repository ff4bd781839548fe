"""Damaged inputs, some for each loader: they are taken, or refused by an error of ours."""

import importlib
import signal
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from numba_rnn import use_backend

ROOT = Path(__file__).resolve().parents[1]
LOADERS = (
    "checkpoint", "restore", "model", "onnx", "torch", "book", "keras", "flax", "estimators",
)  # fmt: skip
COUNT = 60


@pytest.fixture
def mutations(monkeypatch):
    """The program, which is part of the checkout, not of what is installed."""
    monkeypatch.syspath_prepend(ROOT)
    before = signal.getsignal(signal.SIGALRM)
    yield importlib.import_module("benchmarks.stress.mutations")
    signal.signal(signal.SIGALRM, before)


def test_damaged_layers_of_keras_are_refused_by_name(mutations):
    """In a process of its own: in this one Keras may run on another library than NumPy."""
    counts = Counter(what for _, what in mutations.tried("keras", 1, 0, COUNT))
    assert counts["loaded"] + counts["refused"] == COUNT, counts
    assert counts["refused"] > COUNT / 8


@pytest.mark.parametrize("loader", [loader for loader in LOADERS if loader != "keras"])
def test_damaged_inputs_are_refused_by_name(loader, mutations, tmp_path):
    with warnings.catch_warnings(), np.errstate(all="ignore"), use_backend("numpy"):
        warnings.simplefilter("ignore")
        load = dict(mutations.LOADERS[loader](tmp_path))[loader]
        counts = Counter(mutations.outcome(loader, load, 1, k, show=False) for k in range(COUNT))
    assert counts["loaded"] + counts["refused"] == COUNT, counts
    assert counts["refused"] > COUNT / 8


def test_inputs_are_tried_in_processes_of_their_own(mutations):
    assert tuple(mutations.LOADERS) == LOADERS
    found = list(mutations.tried("torch", 0, 3, 5))
    assert [number for number, _ in found] == [3, 4, 5, 6, 7]
    assert {what for _, what in found} <= {"loaded", "refused"}


def test_an_error_that_is_none_of_ours_is_told(mutations):
    def harmful(rng):
        return [][5]

    found = mutations.outcome("torch", harmful, 0, 0, show=False)
    assert found == "other IndexError: list index out of range"
