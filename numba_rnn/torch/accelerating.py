"""Swap the recurrent modules of an existing model."""

import copyreg
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.nn.utils import parametrize

from ..kernels import deprecated
from .autograd import FLOATS
from .modules import GRU, LSTM, OWN_NAMES, RNN, GRUCell, LSTMCell, Recurrent, RNNCell

Model = TypeVar("Model", bound=torch.nn.Module)
_SWAPS: dict[type, type] = {
    torch.nn.RNN: RNN, torch.nn.LSTM: LSTM, torch.nn.GRU: GRU,
    torch.nn.RNNCell: RNNCell, torch.nn.LSTMCell: LSTMCell, torch.nn.GRUCell: GRUCell,
}  # fmt: skip
_OURS = tuple(_SWAPS.values())


@deprecated.arguments(tell="log")
def accelerate(model: Model, log: Callable[[str], None] = print) -> Model:
    """Run torch.nn.RNN, LSTM, GRU and their cells of a model on the engines of numba_rnn.

    The modules stay the same objects, with their parameters, hooks, parametrizations and names, so
    an optimiser that was made before goes on. ``restore`` undoes it. Subclasses are swapped, too,
    unless they define forward themselves. Modules in half precision are left alone.

    Parameters
    ----------
    model : torch.nn.Module
        The model, changed in place.
    log : callable, default print
        It is called with a line for each recurrent module that says what was done.

    Returns
    -------
    torch.nn.Module
        The same model.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.GRU(3, 5))
    >>> model = accelerate(model)
    0: torch.nn.GRU(3, 5) -> numba_rnn.torch.GRU
    """
    _expect_module(model)
    for name, module in model.named_modules():
        if isinstance(module, _OURS) or not isinstance(
            module, (torch.nn.RNNBase, torch.nn.RNNCellBase)
        ):
            continue
        where = f"{name or 'the model'}: {_spelled(module)}"
        dtypes = {param.dtype for param in module.parameters()}
        swap = None if "forward" in vars(module) else _replaced(type(module), _swap)
        if swap is None:
            log(f"{where} is left as it is: it has its own forward")
        elif not dtypes <= set(FLOATS):
            dtype = ", ".join(map(str, dtypes))
            log(f"{where} is left as it is: its dtype is {dtype}, not float32")
        else:
            module.__class__ = swap
            (kind,) = (ours for ours in _OURS if issubclass(swap, ours))
            log(f"{where} -> numba_rnn.torch.{kind.__name__}")
    return model


@deprecated.arguments(tell="log")
def restore(model: Model, log: Callable[[str], None] = print) -> Model:
    """Make the modules that ``accelerate`` swapped torch's own again.

    Parameters
    ----------
    model : torch.nn.Module
        The model, changed in place.
    log : callable, default print
        It is called with a line for each module of numba_rnn that is left, and the reason.

    Returns
    -------
    torch.nn.Module
        The same model.
    """
    _expect_module(model)
    back = {ours: theirs for theirs, ours in _SWAPS.items()}
    for name, module in model.named_modules():
        if not isinstance(module, (*_OURS, Recurrent)):
            continue
        theirs = _replaced(type(module), back.get)
        if theirs is None:
            where = f"{name or 'the model'}: {_spelled(module)}"
            log(f"{where} is left as it is: no torch class computes the same")
        else:
            module.__class__ = theirs
            for own in OWN_NAMES:
                vars(module).pop(own, None)
    return model


def _expect_module(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        kind = type(model).__name__
        got = "a class" if isinstance(model, type) else "None" if model is None else kind
        raise TypeError(f"model: expected a torch.nn.Module, got {got}")


def _swap(kind: type) -> type | None:
    """The class that runs here in place of one; None where that one has a forward of its own."""
    theirs = next((k for k in _SWAPS if issubclass(kind, k)), None)
    if kind not in _SWAPS and theirs is not None and _has_forward_of(kind, theirs):
        # its own methods go before torch's, and our forward comes between
        own = {"__module__": kind.__module__, "__reduce_ex__": _reduced}
        _SWAPS[kind] = type(kind.__name__, (kind, _SWAPS[theirs]), own)
    return _SWAPS.get(kind)


def _has_forward_of(kind: type, theirs: Any) -> bool:
    """Whether a subclass computes as torch's class does."""
    names = "forward", "permute_hidden"
    return all(getattr(kind, name, None) is getattr(theirs, name, None) for name in names)


def _replaced(kind: type, replacement: Callable[[type], type | None]) -> type | None:
    """The replacement of a class; of the one beneath where torch has parametrized a module."""
    if kind.__module__ != parametrize.__name__:
        return replacement(kind)
    base = _replaced(kind.__bases__[0], replacement)
    own = {name: what for name, what in vars(kind).items() if name not in _OF_ANY_CLASS}
    return None if base is None else type(kind.__name__, (base,), own)


_OF_ANY_CLASS = "__dict__", "__weakref__"


def _reduced(module: torch.nn.Module, protocol: int) -> Any:
    """How a swapped subclass is copied and pickled: by the class that can be imported."""
    how: Any = object.__reduce_ex__(module, max(protocol, 2))
    make, args, *rest = how
    if make is not copyreg.__newobj__:  # type: ignore[attr-defined]
        return how  # as the subclass itself says
    return _new, (args[0].__bases__[0],), *rest


def _new(kind: type) -> Any:
    swapped: Any = _swap(kind)
    return swapped.__new__(swapped)


def _spelled(module: Any) -> str:
    kind = type(module)
    home = "torch.nn." if kind.__module__.startswith("torch.nn") else ""
    return f"{home}{kind.__name__}({module.extra_repr()})"
