"""Drop-in replacements of PyTorch's recurrent modules on the engines of numba_rnn.

    import numba_rnn.torch

    model = numba_rnn.torch.accelerate(model)         an existing model: one line
    model = numba_rnn.torch.restore(model)            and back
    rnn = numba_rnn.torch.LSTM(100, 200, num_layers=2)    in place of torch.nn.LSTM
    rnn = numba_rnn.torch.Recurrent("mgu", 100, 200)      any cell, or your own

Arguments, shapes, state_dict keys, PackedSequence and dropout are those of torch.nn. Gradients go
through autograd; forward and backward of a layer are one node each. The modules need PyTorch, which
this package does not install.
"""

from ..optional_deps import optional_import

with optional_import("torch", "numba_rnn.torch"):
    import torch as _torch  # noqa: F401

from .accelerating import accelerate, restore
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, Recurrent, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Recurrent",
    "accelerate",
    "restore",
]
