"""Weights of torch.nn's modules as parameters of a layer, and gradients the other way.

The table is ``bridges/conventions.py``; here it is applied to tensors, wherever they are.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from ..bridges import pytorch
from ..bridges.conventions import PYTORCH, arrangement
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

    def make(self, weights: Sequence[torch.Tensor]) -> TimeRecurrent:
        """A layer with these weights."""
        self._place = weights[0].device, weights[0].dtype, weights[0].shape[0]
        self.__dict__.pop("_arrangement", None)
        arrays = {
            name: w.detach().cpu().numpy() for name, w in zip(self.names, weights, strict=True)
        }
        layer = placed(pytorch.layer_of(arrays, self.activation), weights[0])
        self.fill(layer, weights)
        return layer

    @cached_property
    def _arrangement(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Where our columns are among theirs, the other way round, and signs; as tensors."""
        device, dtype, columns = self._place
        order, signs = arrangement(self.family, PYTORCH, columns)
        there = torch.from_numpy(order).to(device)
        times = None if signs is None else torch.from_numpy(signs).to(device, dtype)
        return there, torch.argsort(there), times

    def fill(self, layer: TimeRecurrent, weights: Sequence[torch.Tensor]) -> None:
        """Write the weights into the layer's parameters."""
        given = {name: w.detach() for name, w in zip(self.names, weights, strict=True)}
        Wx, Wh, b, *Wr = map(tensor_of, layer.params)
        self._write(Wx, given["weight_ih"].t())
        self._write(Wh, given["weight_hh"].t())
        b_ih, b_hh = given.get("bias_ih"), given.get("bias_hh")
        if b_ih is None or b_hh is None:
            b.zero_()
        elif self.family == "gru":
            self._write(b[0], b_ih)
            self._write(b[1], b_hh)
        else:
            self._write(b, b_ih + b_hh)
        if Wr:
            Wr[0].copy_(given["weight_hr"].t())

    def _write(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        order, _, signs = self._arrangement
        ours.copy_(theirs.index_select(-1, order))
        if signs is not None:
            ours.mul_(signs)

    def gradients(self, layer: TimeRecurrent) -> list[torch.Tensor]:
        """Those of the layer, as those of the weights; tensors of their own."""
        dWx, dWh, db, *dWr = map(tensor_of, layer.grads)
        found: dict[str, Any] = {"weight_ih": self._matrix(dWx), "weight_hh": self._matrix(dWh)}
        both = db if self.family == "gru" else (db, db)
        for name, gradient in zip(("bias_ih", "bias_hh"), both, strict=True):
            if name in self.names:
                found[name] = self._matrix(gradient)
        if dWr:
            found["weight_hr"] = dWr[0].t().contiguous()
        return [found[name] for name in self.names]

    def _matrix(self, ours: torch.Tensor) -> torch.Tensor:
        _, back, signs = self._arrangement
        if signs is not None:
            ours = ours * signs
        return ours.t().contiguous().index_select(0, back)  # rows of theirs; of a bias, numbers


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
