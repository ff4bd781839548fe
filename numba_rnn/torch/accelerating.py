"""Swap the recurrent modules of an existing model."""

from collections.abc import Callable

import torch

from .modules import GRU, LSTM, RNN
from .running import FLOATS

_SWAPS: dict[type, type] = {torch.nn.RNN: RNN, torch.nn.LSTM: LSTM, torch.nn.GRU: GRU}


def accelerate(model: torch.nn.Module, tell: Callable[[str], None] = print) -> torch.nn.Module:
    """Let torch.nn.RNN, LSTM and GRU in a model run on numba_rnn's engines; returns the model.

    The modules stay the objects that they are, with their parameters, hooks and names, so that an
    optimiser made before goes on; ``restore`` undoes it. A subclass of one of them is left alone,
    since its forward may be its own, and so is half precision.

    tell  is called with a line for each recurrent module: what was done to it

    >>> model = torch.nn.Sequential(torch.nn.GRU(3, 5))
    >>> model = accelerate(model)
    0: torch.nn.GRU(3, 5) -> numba_rnn.torch.GRU
    """
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.RNNBase) or type(module) in _SWAPS.values():
            continue
        where = f"{name or 'the model'}: {_spelled(module)}"
        dtypes = {param.dtype for param in module.parameters()}
        swap = _SWAPS.get(type(module))
        if swap is None:
            tell(f"{where} is left: a class of its own may compute something of its own")
        elif not dtypes <= set(FLOATS):
            tell(f"{where} is left: its numbers are {', '.join(map(str, dtypes))}, not float32")
        else:
            module.__class__ = swap
            tell(f"{where} -> numba_rnn.torch.{swap.__name__}")
    return model


def restore(model: torch.nn.Module) -> torch.nn.Module:
    """Let swapped modules be torch's own again; returns the model."""
    back = {ours: theirs for theirs, ours in _SWAPS.items()}
    for module in model.modules():
        module.__class__ = back.get(type(module), type(module))
    return model


def _spelled(module: torch.nn.RNNBase) -> str:
    kind = type(module)
    home = "torch.nn." if kind.__module__.startswith("torch.nn") else ""
    return f"{home}{kind.__name__}({module.extra_repr()})"
