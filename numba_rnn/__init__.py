"""Recurrent networks in plain Python at the speed of the hardware."""

# ruff: noqa: E402  (the path comes before all imports)

__version__ = "0.1.0"

from pathlib import Path
from typing import Any

_here = Path(__path__[0])
if not (_here / "kernels").exists() and (_here.parent / "kernels" / "cells").exists():
    __path__.append(str(_here.parent))  # a checkout: numba_rnn.kernels stands beside numba_rnn

from . import functions
from .backend import BackendError, backend, explain, use_backend
from .custom import cell, time_layer
from .kernels import cells
from .layers import *  # noqa: F403
from .layers import __all__ as _layers
from .streaming import Stream

__all__ = [
    "BackendError", "Stream", "backend", "cell", "cells", "explain", "functions", "time_layer",
    "use_backend", *_layers,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """numba_rnn.bridges, .models, .training and others are loaded where they are first used."""
    if name in ("book", "bridges", "diagnostics", "models", "sklearn", "torch", "training", "viz"):
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
