"""Whoever needs a library that is not installed is told how to install it."""

import sys

import pytest

from helpers import run_python
from numba_rnn import TimeLSTM, bridges, diagnostics
from numba_rnn.optional_deps import optional_import
from numba_rnn.training import TensorBoardLog
from numba_rnn.training.plot_loss import plot_loss

LAYER = TimeLSTM.create(3, 5, rng=0)
NEEDS = {
    "to_torch": (lambda: bridges.to_torch(LAYER), "torch", "torch"),
    "to_keras": (lambda: bridges.to_keras(LAYER), "keras", '"numba-rnn[keras]"'),
    "to_flax": (lambda: bridges.to_flax(LAYER), "flax", '"numba-rnn[flax]"'),
    "from_flax": (lambda: bridges.from_flax(LAYER), "flax", '"numba-rnn[flax]"'),
    "to_onnx": (lambda: bridges.to_onnx(LAYER), "onnx", '"numba-rnn[onnx]"'),
    "from_onnx": (lambda: bridges.from_onnx(b""), "onnx", '"numba-rnn[onnx]"'),
    "a picture": (lambda: diagnostics.plot_spectrum(LAYER), "matplotlib", '"numba-rnn[plot]"'),
    "TensorBoardLog": (
        lambda: TensorBoardLog("x"), "tensorboardX", '"numba-rnn[tensorboard]"',
    ),
    "the loss curve": (lambda: plot_loss(None, "x.png"), "matplotlib", '"numba-rnn[plot]"'),
}  # fmt: skip


@pytest.mark.parametrize("what", NEEDS)
def test_what_is_missing_is_named_with_the_remedy(what, monkeypatch):
    call, library, package = NEEDS[what]
    for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ImportError) as caught:
        call()
    assert str(caught.value) == f"{what} needs {library}: pip install {package}"


def test_other_errors_of_an_import_stay_as_they_are():
    with (
        pytest.raises(ModuleNotFoundError, match="tensorflow"),
        optional_import("keras", "to_keras"),
    ):
        raise ModuleNotFoundError("tensorflow", name="tensorflow")


def test_drop_in_modules_without_torch():
    run_python("""
        import sys

        sys.modules["torch"] = None
        try:
            import numba_rnn.torch
        except ImportError as error:
            assert str(error) == "numba_rnn.torch needs torch: pip install torch", error
        else:
            raise AssertionError("no error")
    """)
