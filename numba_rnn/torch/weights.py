"""Weights of torch.nn's modules as parameters of a cell, and gradients the other way.

The table is ``bridges/gate_order.py``; here it is applied at every step of training, to tensors
wherever they are. Small ones on the CPU are seen as NumPy's arrays meanwhile, whose operations take
a fifth of the time to begin; large ones stay tensors, which several threads copy.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..bridges.gate_order import OURS, PYTORCH, gate_permutation
from ..kernels import cells, deprecated
from ..kernels.cells import Cell
from ..typing import Array


class Form:
    """How the weights of a module become a cell's parameters, and gradients of these theirs."""

    cell: Cell
    _last: tuple[list[torch.Tensor], list[Any], list[Array]] | None = None  # see params_again

    def params(self, weights: Sequence[torch.Tensor]) -> list[Array]:
        """The parameters: arrays that nobody writes to."""
        raise NotImplementedError

    def gradients(
        self, dparams: Sequence[Array], weights: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The gradients of the weights; tensors of their own."""
        raise NotImplementedError

    def params_again(self, weights: Sequence[torch.Tensor]) -> list[Array]:
        """The parameters; those of the last call if the weights are the same numbers.

        To compare takes a fraction of the time. (torch counts no writes through ``.data``.)
        """
        kinds, last = [(weight.dtype, weight.device) for weight in weights], self._last
        if last and last[1] == kinds and all(map(torch.equal, last[0], weights)):
            return last[2]
        copies, params = [weight.detach().clone() for weight in weights], self.params(weights)
        self._last = copies, kinds, params  # at once: threads share it
        return params

    def __getstate__(self) -> dict[str, Any]:
        """A copy converts its weights itself."""
        return {**self.__dict__, "_last": None}


class TorchWeights(Form):
    """The form of torch.nn.RNN, LSTM and GRU.

    family      "rnn", "lstm" or "gru"
    activation  of an RNN, "tanh" or "relu"
    names       of the weights in their order, without suffix: weight_ih, weight_hh, bias_ih ...
    """

    def __init__(self, family: str, activation: str, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.projected = "weight_hr" in names
        name = {
            "rnn": "rnn_relu" if activation == "relu" else "rnn",
            "lstm": "lstm_projected" if self.projected else "lstm",
            "gru": "gru_reset_after",
        }[family]
        self.cell = cells.get(name)
        # of each of our gates which of theirs it is, and its sign there
        order, signs = gate_permutation(family, PYTORCH, len(OURS[family]))
        signs = np.ones_like(order) if signs is None else signs
        self._blocks = [(int(k), int(sign)) for k, sign in zip(order, signs, strict=True)]

    def params(self, weights: Sequence[torch.Tensor]) -> list[Array]:
        """The parameters, gate by gate."""
        dtypes = {weight.dtype for weight in weights}
        if len(dtypes) > 1:
            raise TypeError(
                f"weights: expected one dtype, got {', '.join(sorted(map(str, dtypes)))}"
            )
        given = dict(zip(self.names, _view(weights), strict=True))
        w_ih, w_hh = given["weight_ih"], given["weight_hh"]
        Wx = _empty(w_ih, *w_ih.shape[::-1])
        self._write(Wx, w_ih.T)
        Wh = _empty(w_hh, *w_hh.shape[::-1])
        self._write(Wh, w_hh.T)
        H = len(w_hh) // len(self._blocks)
        b = _empty(w_ih, *self.cell.shapes(1, H)["b"])
        b_ih, b_hh = given.get("bias_ih"), given.get("bias_hh")
        if b_ih is None or b_hh is None:
            b[...] = 0
        elif self.cell.biases == 2:
            self._write(b[0], b_ih)
            self._write(b[1], b_hh)
        else:
            self._write(b, b_ih + b_hh)
        params = [Wx, Wh, b]
        if self.projected:
            params.append(_empty(w_ih, *given["weight_hr"].T.shape))
            params[3][...] = given["weight_hr"].T
        return [array_of(param) for param in params]

    def _write(self, ours: Any, theirs: Any) -> None:
        """Gate by gate, each a block of our last axis and of theirs."""
        H = ours.shape[-1] // len(self._blocks)
        for here, (there, sign) in enumerate(self._blocks):
            block = theirs[..., there * H : (there + 1) * H]
            ours[..., here * H : (here + 1) * H] = block if sign > 0 else -block

    def gradients(
        self, dparams: Sequence[Array], weights: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The gradients of the weights; tensors of their own."""
        dWx, dWh, db, *dWr = _view(dparams)
        found: dict[str, Any] = {"weight_ih": self._matrix(dWx), "weight_hh": self._matrix(dWh)}
        if dWr:
            found["weight_hr"] = _empty(dWr[0], *dWr[0].T.shape)
            found["weight_hr"][...] = dWr[0].T
        both = db if self.cell.biases == 2 else (db, db)
        for name, gradient in zip(("bias_ih", "bias_hh"), both, strict=True):
            if name in self.names:
                found[name] = self._matrix(gradient)
        return [tensor_of(found[name]) for name in self.names]

    def _matrix(self, ours: Any) -> Any:
        """(D, G H) as (G H, D), or a bias: gate by gate."""
        H = ours.shape[-1] // len(self._blocks)
        ours = ours.T if ours.ndim == 2 else ours
        found = _empty(ours, *ours.shape)
        for here, (there, sign) in enumerate(self._blocks):
            block = ours[here * H : (here + 1) * H]
            found[there * H : (there + 1) * H] = block if sign > 0 else -block
        return found


class CellWeights(Form):
    """The form of a cell's own parameters: the weights are the parameters."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def params(self, weights: Sequence[torch.Tensor]) -> list[Array]:
        """The weights themselves."""
        return list(map(array_of, weights))

    params_again = params

    def gradients(
        self, dparams: Sequence[Array], weights: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The gradients themselves."""
        return list(map(tensor_of, dparams))


# ---- arrays and tensors


SMALL = 300_000  # numbers; about where two threads begin to pay


def _view(matrices: Sequence[Any]) -> list[Any]:
    """The matrices, to be copied: small ones on the CPU as NumPy's arrays, others as tensors."""
    on_cpu = isinstance(matrices[0], np.ndarray) or matrices[0].device.type == "cpu"
    if on_cpu and all(math.prod(m.shape) <= SMALL for m in matrices):
        return [m if isinstance(m, np.ndarray) else m.detach().numpy() for m in matrices]
    return [tensor_of(m).detach() for m in matrices]


def _empty(like: Any, *shape: int) -> Any:
    """Memory for numbers as those are, without gaps."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, like.dtype)
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def array_of(tensor: Any) -> Any:
    """The same memory as a NumPy array, or as what an engine on a GPU takes by DLPack."""
    if isinstance(tensor, np.ndarray):
        return tensor
    device = tensor.device.type
    if device not in ("cpu", "cuda"):
        raise ValueError(f"input: expected a tensor on the CPU or a CUDA GPU, got {tensor.device}")
    # parts of conjugate numbers have their sign beside them, of which others know nothing
    tensor = tensor.detach().resolve_neg()
    return tensor.numpy() if device == "cpu" else tensor


def tensor_of(array: Any) -> torch.Tensor:
    """The same memory as a tensor."""
    if isinstance(array, np.ndarray):
        return torch.from_numpy(array)
    if isinstance(array, torch.Tensor):
        return array
    return torch.from_dlpack(array)  # type: ignore[attr-defined]


__getattr__ = deprecated.names_of(__name__)
