"""Recurrent networks in plain Python at the speed of the hardware."""

import signal
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

# the command, or python -m numba_rnn: until cli.main runs Ctrl-C ends it without a traceback
if (
    Path([*sys.orig_argv[-len(sys.argv) :], ""][0]).name in ("numba-rnn", "numba-rnn.exe", __name__)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if find_spec(f"{__name__}.kernels") is None:
    # in a checkout, of which nothing is installed that says where its kernels are: beside this
    _spec = spec_from_file_location(
        f"{__name__}.kernels", Path(__file__).parents[1] / "kernels" / "__init__.py"
    )
    assert _spec is not None
    assert _spec.loader is not None
    kernels = sys.modules[_spec.name] = module_from_spec(_spec)
    _spec.loader.exec_module(kernels)

from . import backend, functional, functions
from .backend import BackendError, explain, get_backend, use_backend
from .custom import cell, time_layer
from .kernels import cells, deprecated
from .layers import *  # noqa: F403
from .layers import __all__ as _layers
from .streaming import Stream
from .version import __version__ as __version__

sys.meta_path.insert(0, deprecated.FormerModules())

__all__ = [
    "BackendError", "Stream", "backend", "cell", "cells", "explain", "functional", "functions",
    "get_backend", "time_layer", "use_backend", *_layers,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """numba_rnn.bridges, .models, .training and others are loaded where they are first used."""
    if name in ("book", "bridges", "diagnostics", "models", "sklearn", "torch", "training", "viz"):
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
