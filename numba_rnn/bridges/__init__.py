"""Weights and models from other libraries, and to them.

    from numba_rnn.bridges import from_torch, to_torch

Each library is an extra (``pip install -e ".[keras]"``) and imported only when it is needed;
``conventions.py`` has the table of who orders what how.
"""

from .conventions import CannotConvert
from .onnx_reader import OnnxNet, from_onnx
from .onnx_writer import to_onnx
from .pytorch import from_torch, save_torch, to_torch, torch_state_dict

__all__ = [
    "CannotConvert",
    "OnnxNet",
    "from_onnx",
    "from_torch",
    "save_torch",
    "to_onnx",
    "to_torch",
    "torch_state_dict",
]
