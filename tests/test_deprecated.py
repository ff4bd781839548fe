"""Former names work for one version, and each warns with the present one."""

import importlib
import pickle
import sys
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

import numba_rnn
from numba_rnn import backend, cell, cells, explain, viz
from numba_rnn.functions import tanh
from numba_rnn.kernels import deprecated
from numba_rnn.kernels.reference import NumpyEngine
from numba_rnn.kernels.step_options import StepOptions
from numba_rnn.training import SGD, Trainer, TruncatedBPTT


@contextmanager
def warns(*names: str):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    assert {warning.category for warning in caught} == {DeprecationWarning}
    texts = [str(warning.message) for warning in caught]
    for name in names:
        assert any("will be removed in 0.3: use" in text and name in text for text in texts), texts


@pytest.mark.parametrize(("old", "new"), deprecated.MODULES.items())
def test_a_former_module_is_the_present_one(old, new):
    sys.modules.pop(f"numba_rnn.{old}", None)
    with warns(new):
        former = importlib.import_module(f"numba_rnn.{old}")
    assert former is importlib.import_module(f"numba_rnn.{new}")


def test_modules_of_a_former_package_are_the_present_ones():
    from numba_rnn.kernels.autodiff import graph

    for name in ("numba_rnn.kernels.derivation", "numba_rnn.kernels.derivation.graph"):
        sys.modules.pop(name, None)
    with warns("kernels.autodiff.graph"):
        from numba_rnn.kernels.derivation.graph import Node
    assert Node is graph.Node


NAMES = [(m, old, new) for m, names in deprecated.NAMES.items() for old, new in names.items()]


@pytest.mark.parametrize(("module", "old", "new"), NAMES)
def test_a_former_name_of_a_module_is_the_present_one(module, old, new):
    found = importlib.import_module(f"numba_rnn.{module}")
    with warns(new):
        former = getattr(found, old)
    assert former is getattr(found, new)
    with pytest.raises(AttributeError, match="no attribute 'neither'"):
        found.neither  # noqa: B018


def test_backend_is_a_module_that_can_be_called():
    import numba_rnn.backend as module

    assert module is backend is numba_rnn.backend
    with warns("get_backend"):
        assert numba_rnn.backend() == numba_rnn.get_backend()


def test_the_warning_is_of_the_line_that_uses_the_former_name():
    with warns("get_backend") as caught:
        backend()
    assert caught[0].filename == __file__


def test_former_options_of_a_cell():
    with warns("coupled"):

        @cell(states="h c", joined="c")
        def two(a, h, c):
            return tanh(a + c), a * h

    assert two.cell.coupled == ("c",)
    with warns("coupled"):
        assert two.cell.joined == ("c",)
    gru = cells.get("gru")
    with warns("second_product"):
        assert gru.second == gru.second_product == ("h",)
    fields = {name: getattr(gru, name) for name in gru.__dataclass_fields__}
    with warns("second_product"):
        assert cells.Cell(**{**fields, "second": fields.pop("second_product")}).shapes(1, 1)


def test_former_step_options():
    with warns("checkpoint_every", "t_offset", "recurrent_mask"):
        options = StepOptions(every=3, first=2, scale=np.ones((1, 1)))
    assert (options.checkpoint_every, options.t_offset) == (3, 2)
    with warns("segment"):
        assert options.part(0, 1).t_offset == 2


def test_former_methods_of_engines():
    engine = NumpyEngine()
    with warns("is_native"):
        assert engine.owns(np.ones(1))
    with warns("to_scalar"):
        assert engine.scalar(np.array(2.0)) == 2.0
    with warns("execution"):
        assert explain().layout == {}


def test_former_arguments():
    corpus = np.arange(40) % 4
    model = numba_rnn.models.Rnnlm(4, 3, 3, rng=0)
    with warns("log"):
        trainer = Trainer(model, SGD(), TruncatedBPTT(corpus, 2, 5), tell=print)
    assert trainer.log is print
    with warns("expected_errors"):
        assert numba_rnn.training.init_distributed(plain=()).size == 1
    pytest.importorskip("matplotlib")
    with warns("fused"):
        viz.graph(numba_rnn.RNN.create(2, 3, rng=0), affine="gathered")


def test_a_pickle_that_names_a_former_class_is_read():
    pytest.importorskip("torch")
    with warns("CellWeights"):
        former = pickle.loads(b"cnumba_rnn.torch.weights\nOfCell\n.")
    assert former.__name__ == "CellWeights"


def test_a_pickle_that_names_the_former_module_of_a_class_is_read():
    for name in ("RNN", "LSTM", "GRU"):
        found = pickle.loads(f"cnumba_rnn.layers.recurrent\n{name}\n.".encode())
        assert found is getattr(numba_rnn, name)
