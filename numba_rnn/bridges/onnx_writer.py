"""Layers and models as ONNX files.

    xs (N, T, D) -> Transpose -> RNN, LSTM or GRU -> Transpose, Reshape -> ... -> ys (N, T, M)

A Bidirectional of two layers of one kind and size is one bidirectional node, of others two nodes.
"""

from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import to_host
from ..files import written_atomically
from ..layers import (
    Bidirectional,
    Reversed,
    Stacked,
    TimeAffine,
    TimeDropout,
    TimeEmbedding,
    TimeRecurrent,
)
from ..models import Rnnlm, Sequential
from ..optional_deps import optional_import
from ..typing import AnyArray
from .gate_order import ConversionError, expect_floats
from .onnx_cells import RnnNodeSpec, attributes_of, kind_of, weights_of
from .onnx_load import expect_valid
from .onnx_reader import OnnxNet
from .stacks import Part, directions_of, expect_plain_outputs

OPSET, IR_VERSION = 17, 8  # what ONNX Runtime 1.12 and all later ones read


def to_onnx(
    model: Any,
    path: str | Path | None = None,
    *,
    states: bool = False,
    lengths: bool = False,
    softmax: bool = False,
) -> Any:
    """Convert a model to ONNX: the computation after training, batch first.

    The input is ``xs`` (N, T, D), or ``ids`` (N, T), int64, of any N and T; the output is ``ys``.
    The onnx package must be installed (``pip install "numba-rnn[onnx]"``).

    Parameters
    ----------
    model : Layer, list of Layer, Sequential, Rnnlm or OnnxNet
        TimeRNN, TimeLSTM, TimeGRU or another layer whose cell ONNX has, Bidirectional, Stacked,
        TimeAffine, TimeEmbedding; several in a list, the lowest first. An OnnxNet keeps its inputs
        and outputs.
    path : str or Path, optional
        A file to write to as well, whole or not at all.
    states : bool, default False
        If True, there are further inputs (N, H): ``initial_h0``, for an LSTM ``initial_c0`` too,
        for the first recurrent layer, ``initial_h1`` for the second and so on, forward before
        backward. They may be left out: sequences then start from zeros, or from the learnt
        ``initial``. The last states are outputs, ``last_h0`` and so on.
    lengths : bool, default False
        If True, there is a further input ``lengths`` (N,), int32: the number of steps of each row,
        from 1 to T.
    softmax : bool, default False
        If True, the output is the softmax of the last layer's output.

    Returns
    -------
    onnx.ModelProto
        The model.

    Raises
    ------
    ConversionError
        For cells that ONNX lacks, and for zoneout, whose mean ONNX cannot express.
    TypeError
        If model is something else.

    Notes
    -----
    States that a layer carries from block to block are not written. ONNX Runtime implements these
    nodes in float32 only; a float64 model is valid all the same. Tied weights of an Rnnlm are
    written twice.

    Examples
    --------
    >>> from numba_rnn import TimeLSTM
    >>> model = to_onnx(TimeLSTM.create(3, 5, rng=0), states=True)
    >>> [value.name for value in model.graph.output]
    ['ys', 'last_h0', 'last_c0']
    """
    with optional_import("onnx", "to_onnx"):
        import onnx  # noqa: F401

    if isinstance(model, OnnxNet):
        if states or lengths or softmax:
            raise TypeError(
                "to_onnx: expected no options for an OnnxNet, which keeps the inputs and outputs "
                "of its file"
            )
        made = model.model()
    else:
        made = _written(_flat(model), states, lengths, softmax)
    expect_valid(made, "model", full_check=True)
    if path is not None:
        with written_atomically(Path(path)) as part:
            part.write_bytes(made.SerializeToString())
    return made


def _written(layers: list[Any], states: bool, lengths: bool, softmax: bool) -> Any:
    graph = _Graph(layers, states, lengths)
    for layer in layers:
        graph.write(layer)
    if softmax:
        graph.current = graph.node("Softmax", [graph.current], axis=-1)
    return graph.model()


def _flat(model: Any) -> list[Any]:
    """The layers in their order, without what does nothing after training."""
    given = [model]
    if isinstance(model, Rnnlm):
        given = [model.embedding, *model.recurrent, model._plain_affine()]
    elif isinstance(model, Sequential):
        given = list(model.layers)
        if model.loss is not None and model.loss.params:
            raise ConversionError(
                f"model: expected a loss without weights, got {type(model.loss).__name__}, whose "
                "scores would be missing; a TimeAffine on top with TimeSoftmaxWithLoss has them"
            )
    elif isinstance(model, Sequence):
        given = list(model)
    layers = [layer for layer in given if not isinstance(layer, TimeDropout)]
    kinds = TimeRecurrent, Bidirectional, Reversed, Stacked, TimeAffine, TimeEmbedding
    wrong = [
        type(layer).__name__ for layer in given if not isinstance(layer, (*kinds, TimeDropout))
    ]
    if wrong or not layers:
        raise TypeError(
            "model: expected recurrent layers, TimeAffine, TimeEmbedding, a list or Sequential of "
            f"them, or an Rnnlm, got {', '.join(wrong) or 'none'}"
        )
    for layer in layers:
        expect_floats(layer, "to_onnx")
        for part in getattr(layer, "layers", (layer,)):
            expect_plain_outputs("model", part, "ONNX")
    sizes = [_sizes(layer) for layer in layers]
    for k, (below, above) in enumerate(pairwise(sizes)):
        if above[0] != below[1] or layers[k + 1].dtype != layers[0].dtype:
            raise ValueError(
                f"model: expected a layer of {below[1]} inputs in {layers[0].dtype} above "
                f"{layers[k]!r}, got {layers[k + 1]!r}"
            )
    return layers


def _sizes(layer: Any) -> tuple[int, int]:
    """Numbers that go in at a step, and that come out; -1: an integer."""
    if isinstance(layer, TimeAffine):
        D, M = layer.params[0].shape
        return int(D), int(M)
    if isinstance(layer, TimeEmbedding):
        return -1, int(layer.params[0].shape[1])
    return layer.input_size, layer.output_size


def _kind(layer: TimeRecurrent) -> RnnNodeSpec:
    cell = layer.cell
    if cell.projected:
        raise ConversionError(
            "model: ONNX's LSTM has no projection; TimeProjectedLSTM goes to PyTorch (to_torch)"
        )
    kind = kind_of(cell)
    if kind is None:
        raise ConversionError(
            f"model: ONNX has nodes for RNN, LSTM and GRU, with peepholes and other activation "
            f"functions, but none for the cell {cell.name!r}"
        )
    if layer.zoneout:
        raise ConversionError(
            "model: after training zoneout is a mean of new and old states, which no ONNX node "
            "computes"
        )
    return kind


class _Graph:
    """The nodes and weights so far; ``current`` is the name of what the next layer reads."""

    def __init__(self, layers: list[Any], states: bool, lengths: bool) -> None:
        self._dtype, self._states = layers[0].dtype, states
        self._nodes: list[Any] = []
        self._weights: dict[str, AnyArray] = {}
        self._inputs: list[tuple[str, Any, list[Any]]] = []
        self._last: list[tuple[str, Any, list[Any]]] = []
        self._numbers = count()  # of recurrent layers, one for each direction
        self._sizes = _sizes(layers[0])[0], _sizes(layers[-1])[1]
        self.current = "xs" if self._sizes[0] > 0 else "ids"
        shape = ["N", "T", self._sizes[0]] if self._sizes[0] > 0 else ["N", "T"]
        dtype = self._dtype if self._sizes[0] > 0 else np.dtype(np.int64)
        self._inputs.append((self.current, dtype, shape))
        self._first = self.current
        self._lengths = "lengths" if lengths else ""
        if lengths:
            self._inputs.append(("lengths", np.dtype(np.int32), ["N"]))

    def node(self, op: str, inputs: Sequence[str], outputs: Any = None, **attributes: Any) -> Any:
        """Add a node; the name of its output, or those that are given."""
        import onnx

        name = f"{op}_{len(self._nodes)}"
        names = [f"{name}_output"] if outputs is None else list(outputs)
        self._nodes.append(onnx.helper.make_node(op, inputs, names, name=name, **attributes))
        return names[0] if outputs is None else names

    def weight(self, name: str, array: AnyArray) -> str:
        """Add an array; a name that is there already stands for the same one."""
        self._weights[name] = np.asarray(array, order="C")
        return name

    def ints(self, *values: int) -> str:
        return self.weight("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def write(self, layer: Any) -> None:
        """Add a layer on top."""
        if isinstance(layer, Stacked):
            if self._lengths and layer.residuals[0]:
                raise ConversionError(
                    "lengths: a residual connection around the first layer would return xs, not 0, "
                    "past a row's end"
                )
            for part, residual in zip(layer.layers, layer.residuals, strict=True):
                below = self.current
                self._recurrent(part)
                if residual:
                    self.current = self.node("Add", [self.current, below])
        elif isinstance(layer, TimeEmbedding):
            W = self.weight(f"embedding_{len(self._nodes)}", to_host(layer.params[0]))
            self.current = self.node("Gather", [W, self.current], axis=0)
        elif isinstance(layer, TimeAffine):
            W, b = (
                self.weight(f"affine_{len(self._nodes)}.{name}", to_host(param))
                for name, param in zip(layer.param_names, layer.params, strict=True)
            )
            self.current = self.node("Add", [self.node("MatMul", [self.current, W]), b])
        else:
            self._recurrent(layer)

    def _recurrent(self, layer: Part) -> None:
        parts = directions_of(layer)
        kinds = [_kind(part) for part in parts]
        reverse = isinstance(layer, Reversed)
        X = self.node("Transpose", [self.current], perm=[1, 0, 2])
        if len({(kind, part.hidden_size) for kind, part in zip(kinds, parts, strict=True)}) == 1:
            direction = "bidirectional" if len(parts) == 2 else "reverse" if reverse else "forward"
            self.current = self._recurrent_node(X, kinds[0], parts, direction)
        else:
            both = zip(kinds, parts, ("forward", "reverse"), strict=True)
            each = [self._recurrent_node(X, kind, (part,), way) for kind, part, way in both]
            self.current = self.node("Concat", each, axis=2)

    def _recurrent_node(
        self, X: str, kind: RnnNodeSpec, parts: Sequence[TimeRecurrent], direction: str
    ) -> str:
        """Add one node and what makes its output batch first."""
        H, numbers = parts[0].hidden_size, [next(self._numbers) for _ in parts]
        arrays = [weights_of(kind, *map(to_host, part.cell_params)) for part in parts]
        inputs = [X]
        for name, one in zip("WRBP", zip(*arrays, strict=True), strict=True):
            label = f"{kind.op}_{numbers[0]}.{name}"
            inputs.append("" if one[0] is None else self.weight(label, np.stack(one)))
        peepholes = inputs.pop()
        initial = [
            self._initial(parts, numbers, place) for place in range(len(parts[0].cell.states))
        ]
        inputs += [self._lengths, *initial]
        if peepholes:
            inputs += [peepholes]
        outputs = [f"{kind.op}_{numbers[0]}.{name}" for name in ("Y", "Y_h", "Y_c")]
        outputs = outputs[: 1 + len(initial)] if self._states else outputs[:1]
        attributes = attributes_of(kind, len(parts))
        self.node(kind.op, inputs, outputs, hidden_size=H, direction=direction, **attributes)
        for k, (part, number) in enumerate(zip(parts, numbers, strict=True)):
            self._last_states(outputs[1:], part, number, k)
        ys = self.node("Transpose", outputs[:1], perm=[2, 0, 1, 3])  # (N, T, directions, H)
        return str(self.node("Reshape", [ys, self.ints(0, 0, len(parts) * H)]))

    def _initial(self, parts: Sequence[TimeRecurrent], numbers: list[int], place: int) -> str:
        """The name of the state from which the node starts, (directions, N, H); "" for zeros."""
        if not self._states and all(part._initial is None for part in parts):
            return ""
        rows = []
        for part, number in zip(parts, numbers, strict=True):
            H, state = part.hidden_size, part.cell.states[place]
            learnt = np.zeros((1, H), self._dtype)
            if part._initial is not None:
                learnt = to_host(part._initial)[place][None]
            name = self.weight(f"initial_{state}{number}", learnt)
            if self._states:
                self._inputs.append((name, self._dtype, ["N", H]))
            each = self.node("Expand", [name, self._batch()])
            rows.append(self.node("Unsqueeze", [each, self.ints(0)]))
        return rows[0] if len(rows) == 1 else str(self.node("Concat", rows, axis=0))

    def _batch(self) -> str:
        """The shape (N, 1), to which a row is expanded."""
        name = "batch_1"
        if not any(name in node.output for node in self._nodes):
            N = self.node("Shape", [self._first], start=0, end=1)
            self.node("Concat", [N, self.ints(1)], [name], axis=0)
        return name

    def _last_states(
        self, outputs: Sequence[str], part: TimeRecurrent, number: int, direction: int
    ) -> None:
        place = self.weight(f"int_{direction}", np.array(direction, np.int64))
        for state, output in zip(part.cell.states, outputs, strict=False):
            name = f"last_{state}{number}"
            self.node("Gather", [output, place], [name], axis=0)
            self._last.append((name, self._dtype, ["N", part.hidden_size]))

    def model(self) -> Any:
        """The whole graph."""
        import onnx
        from onnx import helper

        self.node("Identity", [self.current], ["ys"])
        outputs = [("ys", self._dtype, ["N", "T", self._sizes[1]]), *self._last]
        inputs, outputs_ = (
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)
                for name, dtype, shape in values
            ]
            for values in (self._inputs, outputs)
        )
        weights = [onnx.numpy_helper.from_array(a, name) for name, a in self._weights.items()]
        graph = helper.make_graph(self._nodes, "numba_rnn", inputs, outputs_, weights)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            graph, producer_name="numba_rnn", opset_imports=opsets, ir_version=IR_VERSION
        )
