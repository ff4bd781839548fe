"""Weights and models from other libraries, and to them.

    from numba_rnn.bridges import from_torch, to_torch  # from_keras, from_flax, from_book ...

A library is imported only when an object of it is made or read. The table of the gate orders of all
libraries is in ``numba_rnn/bridges/gate_order.py``. ``ConversionError``, a ValueError, says why
something has no equivalent.
"""

from ..kernels import deprecated
from .amp import AmpModel, AmpPlayer, from_amp, to_amp
from .book import Seq2seq, from_book, to_book
from .flax import from_flax, to_flax
from .gate_order import ConversionError
from .keras import from_keras, to_keras
from .onnx_reader import OnnxNet, from_onnx
from .onnx_writer import to_onnx
from .pytorch import from_torch, save_torch, to_torch, torch_state_dict

__all__ = [
    "AmpModel",
    "AmpPlayer",
    "ConversionError",
    "OnnxNet",
    "Seq2seq",
    "from_amp",
    "from_book",
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_torch",
    "save_torch",
    "to_amp",
    "to_book",
    "to_flax",
    "to_keras",
    "to_onnx",
    "to_torch",
    "torch_state_dict",
]


__getattr__ = deprecated.names_of(__name__)
