"""Weights and models from other libraries, and to them.

    from numba_rnn.bridges import from_torch, to_torch  # or from_keras ...

Each library is imported only when something of it is made or read; ``conventions.py`` has the
table of who orders what how. ``CannotConvert``, a ValueError, says why something has no equal.
"""

from .conventions import CannotConvert
from .keras import from_keras, to_keras
from .pytorch import from_torch, save_torch, to_torch, torch_state_dict

__all__ = [
    "CannotConvert",
    "from_keras",
    "from_torch",
    "save_torch",
    "to_keras",
    "to_torch",
    "torch_state_dict",
]
