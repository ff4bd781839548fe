"""Weights of torch.nn's modules as parameters of a layer, and gradients the other way.

The table is ``bridges/conventions.py``; here it is applied at every step of training, to tensors
wherever they are. Small ones on the CPU are seen as NumPy's arrays meanwhile, whose operations take
a fifth of the time to begin; large ones stay tensors, which several threads copy.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..bridges import pytorch
from ..bridges.conventions import OURS, PYTORCH, arrangement
from ..kernels.cells import Cell
from ..layers import TimeRecurrent
from .running import placed, tensor_of


class OfTorch:
    """The form of torch.nn.RNN, LSTM and GRU.

    family      "rnn", "lstm" or "gru"
    activation  of an RNN, "tanh" or "relu"
    names       of the weights in their order, without suffix: weight_ih, weight_hh, bias_ih ...
    """

    def __init__(self, family: str, activation: str, names: Sequence[str]) -> None:
        self.family, self.activation, self.names = family, activation, tuple(names)
        # of each of our gates which of theirs it is, and its sign there
        order, signs = arrangement(family, PYTORCH, len(OURS[family]))
        signs = np.ones_like(order) if signs is None else signs
        self._blocks = [(int(k), int(sign)) for k, sign in zip(order, signs, strict=True)]

    def make(self, weights: Sequence[torch.Tensor]) -> TimeRecurrent:
        """A layer with these weights."""
        arrays = {
            name: w.detach().cpu().numpy() for name, w in zip(self.names, weights, strict=True)
        }
        layer = placed(pytorch.layer_of(arrays, self.activation), weights[0])
        self.fill(layer, weights)
        return layer

    def fill(self, layer: TimeRecurrent, weights: Sequence[torch.Tensor]) -> None:
        """Write the weights into the layer's parameters."""
        seen = _view(weights)
        given = {name: seen(w.detach()) for name, w in zip(self.names, weights, strict=True)}
        Wx, Wh, b, *Wr = map(seen, layer.params)
        self._write(Wx, given["weight_ih"].T)
        self._write(Wh, given["weight_hh"].T)
        b_ih, b_hh = given.get("bias_ih"), given.get("bias_hh")
        if b_ih is None or b_hh is None:
            b[...] = 0
        elif self.family == "gru":
            self._write(b[0], b_ih)
            self._write(b[1], b_hh)
        else:
            self._write(b, b_ih + b_hh)
        if Wr:
            Wr[0][...] = given["weight_hr"].T

    def _write(self, ours: Any, theirs: Any) -> None:
        """Gate by gate, each a block of our last axis and of theirs."""
        H = ours.shape[-1] // len(self._blocks)
        for here, (there, sign) in enumerate(self._blocks):
            block = theirs[..., there * H : (there + 1) * H]
            ours[..., here * H : (here + 1) * H] = block if sign > 0 else -block

    def gradients(self, layer: TimeRecurrent) -> list[torch.Tensor]:
        """Those of the layer, as those of the weights; tensors of their own."""
        dWx, dWh, db, *dWr = map(_view(layer.grads), layer.grads)
        found: dict[str, Any] = {"weight_ih": self._matrix(dWx), "weight_hh": self._matrix(dWh)}
        both = db if self.family == "gru" else (db, db)
        for name, gradient in zip(("bias_ih", "bias_hh"), both, strict=True):
            if name in self.names:
                found[name] = self._matrix(gradient)
        if dWr:
            found["weight_hr"] = _empty(dWr[0].T)
            found["weight_hr"][...] = dWr[0].T
        return [tensor_of(found[name]) for name in self.names]

    def _matrix(self, ours: Any) -> Any:
        """(D, G H) as (G H, D), or a bias: gate by gate."""
        H = ours.shape[-1] // len(self._blocks)
        ours = ours.T if ours.ndim == 2 else ours
        found = _empty(ours)
        for here, (there, sign) in enumerate(self._blocks):
            block = ours[here * H : (here + 1) * H]
            found[there * H : (there + 1) * H] = block if sign > 0 else -block
        return found


SMALL = 300_000  # numbers; about where two threads begin to pay


def _view(matrices: Sequence[Any]) -> Callable[[Any], Any]:
    """How to look at numbers while they are copied: as NumPy's arrays or as tensors."""
    first = matrices[0]
    on_cpu = isinstance(first, np.ndarray) or first.device.type == "cpu"
    small = all(math.prod(m.shape) <= SMALL for m in matrices)
    return np.asarray if on_cpu and small else tensor_of


def _empty(like: Any) -> Any:
    """Memory for numbers of the same shape, without gaps."""
    if isinstance(like, np.ndarray):
        return np.empty(like.shape, like.dtype)
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


class OfCell:
    """The form of a cell's own parameters, which are the layer's as they are."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def make(self, weights: Sequence[torch.Tensor]) -> TimeRecurrent:
        """A layer with these weights; arrays of its own, which ``fill`` may write to."""
        arrays = [weight.detach().cpu().clone().numpy() for weight in weights]
        return placed(TimeRecurrent(*arrays, cell=self.cell), weights[0])

    def fill(self, layer: TimeRecurrent, weights: Sequence[torch.Tensor]) -> None:
        """Write the weights into the layer's parameters."""
        for param, weight in zip(layer.params, weights, strict=True):
            tensor_of(param).copy_(weight.detach())

    def gradients(self, layer: TimeRecurrent) -> list[torch.Tensor]:
        """Those of the layer; tensors of their own."""
        return [tensor_of(gradient).clone() for gradient in layer.grads]
