"""The functions that a cell may call (``numba_rnn.cell``): sigmoid, tanh, relu, exp, where, ...

The definitions, on NumPy arrays, are in ``kernels/functions.py``; compiled engines have their own.
"""

from .kernels.functions import *  # noqa: F403
from .kernels.functions import __all__ as __all__
