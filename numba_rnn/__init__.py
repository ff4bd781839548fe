"""Recurrent networks in plain Python at the speed of the hardware."""

__version__ = "0.1.0"

from .backend import BackendError, backend, explain, use_backend
from .kernels import cells
from .layers import *  # noqa: F403
from .layers import __all__ as _layers

__all__ = ["BackendError", "backend", "cells", "explain", "use_backend", *_layers]
