"""The nodes of an ONNX graph that have weights, as steps around layers.

``onnx_ops.py`` says what a step is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import to_host
from ..layers import (
    Bidirectional,
    Reversed,
    TimeAffine,
    TimeEmbedding,
    TimeGRU,
    TimeLSTM,
    TimeRecurrent,
    TimeRNN,
)
from ..typing import AnyArray
from .onnx_cells import LIBRARY, RnnNodeSpec, cell_of, params_of, weights_of
from .onnx_ops import Arrays, OnnxNode, OnnxOp
from .stacks import Part, directions_of


class Embedding(OnnxOp):
    """A Gather of rows of a weight, by integers of any shape."""

    layer: TimeEmbedding
    takes = None

    def __init__(self, node: OnnxNode, W: AnyArray) -> None:
        super().__init__(node)
        self.inputs = node.inputs[1:]
        self.layer = TimeEmbedding(W)

    def forward(self, ids: AnyArray, /) -> Arrays:
        self._tape = ids.shape
        rows = to_host(self.layer.forward(ids.reshape(1, -1)))
        return (rows.reshape(*ids.shape, rows.shape[-1]),)

    def written(self) -> tuple[list[Any], dict[str, AnyArray]]:
        weights = self._named(W=self.layer.params[0])
        return [self.node.reading(*weights, *self.inputs)], weights

    def _back(self, gradient: AnyArray) -> None:
        self.layer.backward(np.ascontiguousarray(gradient.reshape(1, -1, gradient.shape[-1])))


class Affine(OnnxOp):
    """A MatMul or Gemm with a weight, and the Add of a bias behind it."""

    layer: TimeAffine
    takes = None

    def __init__(self, node: OnnxNode, x: str, W: AnyArray, b: AnyArray, output: str) -> None:
        super().__init__(node)
        self.inputs, self.outputs = (x,), (output,)
        self.layer = TimeAffine(W, b)

    def written(self) -> tuple[list[Any], dict[str, AnyArray]]:
        from onnx.helper import make_node

        weights = self._named(W=self.layer.params[0], b=self.layer.params[1])
        (W, b), (y,) = weights, self.outputs
        return [
            make_node("MatMul", [*self.inputs, W], [f"{y}.product"], f"{y}.MatMul"),
            make_node("Add", [f"{y}.product", b], [y], f"{y}.Add"),
        ], weights

    def forward(self, x: AnyArray, /) -> Arrays:
        if x.ndim < 2:
            raise ValueError(f"{self.node}: expected two axes or more, got shape {x.shape}")
        self._tape = x.shape
        out = to_host(self.layer.forward(np.ascontiguousarray(x.reshape(1, -1, x.shape[-1]))))
        return (out.reshape(*x.shape[:-1], out.shape[-1]),)

    def _back(self, gradient: AnyArray) -> AnyArray:
        rows = np.ascontiguousarray(gradient.reshape(1, -1, gradient.shape[-1]))
        return to_host(self.layer.backward(rows)).reshape(self._tape)


def layer_of(kind: RnnNodeSpec, params: Sequence[AnyArray]) -> TimeRecurrent:
    """The layer of a kind of node, TimeLSTM and its like where it is one of them."""
    name, (Wx, Wh, b, *_) = LIBRARY.get(kind), params
    if name == "lstm":
        return TimeLSTM(Wx, Wh, b)
    if name in ("gru", "gru_reset_after"):
        return TimeGRU(Wx, Wh, b, reset_after=kind.reset_after)
    if name in ("rnn", "rnn_relu"):
        return TimeRNN(Wx, Wh, b, activation="relu" if name == "rnn_relu" else "tanh")
    return TimeRecurrent(*params, cell=cell_of(kind))


class Recurrent(OnnxOp):
    """RNN, LSTM or GRU: X, sequence_lens and the initial states in; Y, Y_h and Y_c out.

    kinds      one for each direction
    weights    W, R, B and P, as the node has them
    direction  forward, reverse or bidirectional
    layout     0: time first; 1: the batch first
    """

    layer: Part
    takes = None

    def __init__(
        self,
        node: OnnxNode,
        kinds: Sequence[RnnNodeSpec],
        weights: tuple[AnyArray, AnyArray, AnyArray, AnyArray | None],
        direction: str,
        layout: int,
    ) -> None:
        super().__init__(node)
        self.inputs = tuple(node.input(place) for place in (0, 4, 5, 6))
        W, R, B, P = weights
        parts = [
            layer_of(kind, params_of(kind, W[k], R[k], B[k], None if P is None else P[k]))
            for k, kind in enumerate(kinds)
        ]
        self.layer = (
            Bidirectional(*parts)
            if direction == "bidirectional"
            else Reversed(*parts) if direction == "reverse" else parts[0]
        )  # fmt: skip
        self._kinds, self._layout = kinds, layout

    def written(self) -> tuple[list[Any], dict[str, AnyArray]]:
        parts = directions_of(self.layer)
        arrays = [
            weights_of(kind, *map(to_host, part.cell_params))
            for kind, part in zip(self._kinds, parts, strict=True)
        ]
        there = {
            name: np.stack(one)
            for name, one in zip("WRBP", zip(*arrays, strict=True), strict=True)
            if one[0] is not None
        }
        weights = self._named(**there)
        W, R, B, *P = weights
        x, lengths, *initial = self.inputs
        initial = initial[: len(parts[0].cell.states)]
        return [self.node.reading(x, W, R, B, lengths, *initial, *P)], weights

    def forward(self, X: AnyArray, lengths: Any, *initial: AnyArray | None) -> Arrays:
        parts = directions_of(self.layer)
        xs = np.ascontiguousarray(X if self._layout else X.transpose(1, 0, 2))
        self._set(parts, [None if s is None else self._directions_first(s) for s in initial])
        hs = to_host(self.layer.forward(xs, lengths=lengths))
        N, T, _ = hs.shape
        Y = hs.reshape(N, T, len(parts), -1)
        states = [
            self._directions_last(np.stack([to_host(s) for s in one]))
            for one in zip(*(part.state or () for part in parts), strict=True)
        ]
        self._tape = Y.shape, initial
        return (Y if self._layout else Y.transpose(1, 2, 0, 3), *states)

    def _set(self, parts: tuple[TimeRecurrent, ...], initial: Sequence[AnyArray | None]) -> None:
        given = initial[: len(parts[0].cell.states)]
        for k, part in enumerate(parts):
            own = [None if s is None else np.ascontiguousarray(s[k]) for s in given]
            if any(s is not None for s in own):
                part.set_state(*own)

    def backward(self, *gradients: AnyArray | None) -> Arrays:
        (shape, initial), parts = self._tape, directions_of(self.layer)
        dY, *dlast = gradients
        if dY is None:
            dhs = np.zeros(shape, self.layer.dtype)
        else:
            dhs = dY if self._layout else dY.transpose(2, 0, 1, 3)
        dlast = [None if d is None else self._directions_first(d) for d in dlast]
        own = [tuple(None if d is None else d[k] for d in dlast) for k in range(len(parts))]
        dhs = np.ascontiguousarray(dhs.reshape(*shape[:2], -1))
        alone: Any = own[0] if isinstance(self.layer, TimeRecurrent) else own
        dxs = self.layer.backward(dhs, *alone)
        found = [
            self._directions_last(np.stack([to_host(s) for s in one]))
            for one in zip(*(part.dstate or () for part in parts), strict=True)
        ]
        dinitial = [
            found[k] if k < len(found) and s is not None else None for k, s in enumerate(initial)
        ]
        dxs = to_host(dxs)
        return (dxs if self._layout else dxs.transpose(1, 0, 2), None, *dinitial)

    def _directions_first(self, states: AnyArray) -> AnyArray:
        return states.transpose(1, 0, 2) if self._layout else states

    _directions_last = _directions_first  # the same two axes change places
