"""Recurrent networks in plain Python at the speed of the hardware."""

__version__ = "0.1.0"

from typing import Any

from .backend import BackendError, backend, explain, use_backend
from .kernels import cells
from .layers import *  # noqa: F403
from .layers import __all__ as _layers
from .streaming import Stream

__all__ = ["BackendError", "Stream", "backend", "cells", "explain", "use_backend", *_layers]


def __getattr__(name: str) -> Any:
    """numba_rnn.diagnostics, .models and .training are loaded where they are first used."""
    if name in ("diagnostics", "models", "training"):
        import importlib

        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
