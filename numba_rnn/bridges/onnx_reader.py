"""Recurrent networks out of ONNX files, as layers that train.

``from_onnx`` checks a file and makes an ``OnnxNet`` of it: the layers of its RNN, LSTM and GRU
nodes, of its embedding and its matrix products (``onnx_layers.py``), and what is between them
(``onnx_ops.py``). With ``only="recurrent"`` it makes such a net of each recurrent node and what its
weights are made of, and gives the layer.
Nothing is half-read: what is not known is refused, naming the nodes and what is wrong with them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np

from ..layers.composite import Container
from ..typing import AnyArray
from ..validation import FLOATS, expect_plain_array, format_shape
from .gate_order import ConversionError, expect_floats
from .onnx_cells import ACTIVATIONS, DEFAULTS, GATES, PEEPHOLES, Activation, RnnNodeSpec
from .onnx_int8 import Int8, put_int8, with_floats
from .onnx_layers import Affine, Embedding, Recurrent
from .onnx_load import (
    MISFITS,
    RECURRENT,
    TYPES,
    array_of,
    counted,
    expect_plain,
    expect_valid,
    label_of,
    loaded,
    nodes_of,
    part_of,
)  # fmt: skip
from .onnx_ops import GLUE, LARGEST, OnnxNode, OnnxOp
from .stacks import Part

_WITH_OPTIONAL = 4  # IR version since which not all weights are inputs too
_ATTRIBUTES = (
    "hidden_size", "direction", "activations", "activation_alpha", "activation_beta", "clip",
    "layout",
)  # fmt: skip
_OWN = {"RNN": (), "LSTM": ("input_forget",), "GRU": ("linear_before_reset",)}
_NEEDED = {"Dropout": 1, "Slice": 3, "Squeeze": 1}  # inputs, where others may be left out
_KNOWN = {*GLUE, *RECURRENT, "MatMul", "Gemm"}
_NO_LIMIT = float(np.finfo(np.float32).max)  # ONNX Runtime's clip where there is none
_Shape = tuple[int | str, ...] | None
_Weights = Mapping[str, AnyArray] | None
_Names = Sequence[str] | None


@overload
def from_onnx(
    source: Any, weights: _Weights = None, *, only: None = None, inputs: _Names = None,
    outputs: _Names = None,
) -> "OnnxNet": ...  # fmt: skip
@overload
def from_onnx(
    source: Any, weights: _Weights = None, *, only: Literal["recurrent"]
) -> dict[str, Part]: ...
def from_onnx(
    source: Any, weights: _Weights = None, *, only: Literal["recurrent"] | None = None,
    inputs: _Names = None, outputs: _Names = None,
) -> "OnnxNet | dict[str, Part]":  # fmt: skip
    """Read the layers of an ONNX file, connected as in the file, or its recurrent layers alone.

    Of a file that ONNX Runtime's ``quantize_dynamic`` has made, layers have its weights in int8, as
    after ``quantise()``; where the zero points put numbers beyond -127 to 127, as in an asymmetric
    uint8 weight, in float32, which holds them exactly.

    Nothing of the file is run, and no other file is read. If the weights are in another file,
    ``onnx.load(path)`` gives a model that holds them. The onnx package must be installed
    (``pip install "numba-rnn[onnx]"``).

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
        The model.
    weights : dict of str to array, optional
        Arrays for those inputs of the graph that are weights, by name, ``{"W": ...}``.
    only : "recurrent", optional
        Read the RNN, LSTM and GRU nodes, in graphs inside nodes and in functions too; the other
        nodes may be of any kind. Lengths and initial states stay the business of the graph.
    inputs, outputs : sequence of str, optional
        Names of values inside the graph at which the net begins and ends. Nodes before and behind
        are left out.

    Returns
    -------
    OnnxNet or dict of str to layer
        The graph. With only="recurrent" the layers by the names of their nodes (a node without a
        name has that of its first output), as in ``OnnxNet.layers``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If source is something else.
    ValueError
        If the model is damaged or invalid.
    ConversionError
        If nodes cannot be expressed here; the message counts those of unknown kinds, or names the
        node and its attribute.

    Examples
    --------
    >>> from numba_rnn import TimeLSTM
    >>> from numba_rnn.bridges import to_onnx
    >>> net = from_onnx(to_onnx(TimeLSTM.create(3, 5, rng=0)))
    >>> net
    OnnxNet(xs -> TimeLSTM -> ys)
    >>> net.forward(np.ones((2, 7, 3), np.float32)).shape
    (2, 7, 5)
    >>> from_onnx(net.model(), only="recurrent")
    {'LSTM_1': TimeLSTM(cell lstm, D 3, H 5, float32)}
    """
    if only not in (None, "recurrent") or (only and not (inputs is outputs is None)):
        raise ValueError(
            f'only: expected "recurrent", without inputs and outputs, or None, got {only!r}'
        )
    model, given = loaded(source), dict(weights or {})
    if only:
        return _recurrent_layers(model, given)
    if inputs is not None or outputs is not None:
        makers = ([makers for _, makers in nodes_of(model)] or [{}])[-1]  # those of the last: all
        ends = [value.name for value in model.graph.output] if outputs is None else outputs
        model = part_of(model, makers, ends, inputs or ())
    int8 = with_floats(model)
    expect_plain(model, _KNOWN)
    expect_valid(model, "source")
    net = _Reader(model, given).net()
    net._put_int8(int8)
    expect_valid(model, "source", full_check=True)
    return net


def _recurrent_layers(model: Any, weights: dict[str, AnyArray]) -> dict[str, Part]:
    from onnx.inliner import inline_local_functions

    if model.functions:
        model = inline_local_functions(model)
    found: dict[str, Part] = {}
    unread, others = set(weights), Counter[str]()
    int8 = with_floats(model, recurrent=True)
    for node, makers in nodes_of(model):
        if node.op_type not in RECURRENT or node.domain not in ("", "ai.onnx"):
            others[node.op_type] += 1
            continue
        fed = [name for k, name in enumerate(node.input) if name and k in (0, 4, 5, 6)]
        part = part_of(model, makers, node.output, fed)
        expect_plain(part, _KNOWN)
        expect_valid(part, label_of(node))
        known = {value.name for value in part.graph.input}
        unread -= known
        own = {name: array for name, array in weights.items() if name in known}
        name = str(node.name or next(filter(None, node.output)))
        while name in found:  # in another graph inside a node
            name += "'"
        net = _Reader(part, own).net()
        net._put_int8(int8)
        (found[name],) = net.layers  # type: ignore[assignment]
    if not found:
        raise ConversionError(
            f"source: expected RNN, LSTM or GRU nodes, got {counted(others) or 'no nodes'}"
        )
    if unread:
        raise ValueError(
            f"weights: expected values that recurrent nodes read, got {', '.join(sorted(unread))}"
        )
    return found


class OnnxNet(Container):
    """The graph of an ONNX file: layers, and the operations between them. ``from_onnx`` makes it.

    Parameters
    ----------
    steps : list of Step
        The nodes in the order in which they run.
    inputs : dict
        Type and shape of each input, by name.
    optional : dict of str to array
        Inputs that may be given by name, with their default values.
    constants : dict of str to array
        Constants of the graph by name.
    frame : onnx.ModelProto
        The model without its nodes and weights.

    Attributes
    ----------
    layers : list of Layer
        The layers with weights, in the order of the file: TimeLSTM, TimeGRU, TimeRNN, or
        TimeRecurrent of another cell; Bidirectional or Reversed; TimeEmbedding; TimeAffine.
    inputs : tuple of str
        The names of the arguments of ``forward``, in their order.
    optional : dict of str to array
        The inputs that ``forward`` takes by name only, with their default values.
    outputs : tuple of str
        The names of the results.
    dinputs : dict of str to array
        After ``backward`` the gradient of every input by name; None for integers.

    Notes
    -----
    The name of a parameter begins with the number of its layer, ``0.Wx``. Every node has parameters
    of its own, even if nodes of the file share a weight. A MatMul without an Add gets a bias of 0,
    and so does a node without biases. Initial states that are in the file are constants.
    """

    def __init__(
        self,
        steps: list[OnnxOp],
        inputs: Mapping[str, tuple[str, _Shape]],
        optional: Mapping[str, AnyArray],
        constants: Mapping[str, AnyArray],
        frame: Any,
    ) -> None:
        self._steps, self._specs, self._constants = steps, dict(inputs), dict(constants)
        self.layers = [step.layer for step in steps if step.layer is not None]
        super().__init__({str(k): layer for k, layer in enumerate(self.layers)})
        self.optional = dict(optional)
        self.outputs = tuple(value.name for value in frame.graph.output)
        self._frame = frame  # the model without its nodes and weights
        self.inputs = tuple(name for name in inputs if name not in optional)
        self.dinputs: dict[str, AnyArray | None] = {}

    def __repr__(self) -> str:
        layers = ", ".join(type(layer).__name__ for layer in self.layers)
        return f"OnnxNet({', '.join(self.inputs)} -> {layers} -> {', '.join(self.outputs)})"

    def _put_int8(self, weights: Mapping[tuple[str, ...], list[Int8]]) -> None:
        """Give layers the weights in int8 that the file has for them."""
        for step in self._steps:
            if step.layer is not None and step.node.outputs in weights:
                put_int8(step.layer, weights[step.node.outputs], getattr(step, "_kinds", ()))

    def model(self) -> Any:
        """Return the ONNX model with the current parameters; ``to_onnx(net)`` is the same.

        Returns
        -------
        onnx.ModelProto
            The model.

        Raises
        ------
        ConversionError
            If there are weights in int8; ``dequantise`` makes float32 weights of them.
        """
        import onnx

        expect_floats(self, "ONNX")
        proto = type(self._frame)()
        proto.CopyFrom(self._frame)
        proto.ir_version = max(proto.ir_version, _WITH_OPTIONAL)
        inputs = [value for value in proto.graph.input if value.name in self._specs]
        proto.graph.ClearField("input")
        proto.graph.input.extend(inputs)
        weights = {**self._constants, **self.optional}
        for step in self._steps:
            nodes, own = step.written()
            proto.graph.node.extend(nodes)
            weights |= own
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
            for name, array in weights.items()
        )
        return proto

    def forget(self) -> None:
        """Free the memory that forward keeps for backward, in every layer."""
        super().forget()
        for step in self._steps:
            step.forget()

    def forward(self, *inputs: AnyArray, **named: AnyArray) -> Any:
        """Run the graph.

        Parameters
        ----------
        *inputs : array
            The inputs in the order of ``inputs``, in the shapes and dtypes that the file declares.
        **named : array
            Inputs by name, those of ``optional`` among them. Lengths of 0 leave a state as it was.

        Returns
        -------
        array or tuple of arrays
            The output, or a tuple if there are several.

        Raises
        ------
        TypeError
            If an input is missing or unknown.
        """
        if len(inputs) > len(self.inputs):
            raise TypeError(
                f"forward: expected {', '.join(self.inputs)}, got {len(inputs)} arrays; "
                "pass optional inputs by name"
            )
        feeds = dict(zip(self.inputs, inputs, strict=False)) | named
        for name in (*self.inputs, *feeds):
            if name not in feeds or name not in self._specs:
                known = ", ".join(self._specs)
                raise TypeError(f"forward: expected {known}, got {', '.join(feeds) or 'none'}")
        values: dict[str, Any] = {**self._constants, **self.optional}
        for name, value in feeds.items():
            _expect_declared(name, value, *self._specs[name])
            values[name] = value
        for step in self._steps:
            results = _run(step, [values[name] if name else None for name in step.inputs])
            values.update(zip(step.outputs, results, strict=False))
        outputs = tuple(values[name] for name in self.outputs)
        self._tape = [(out.shape, out.dtype) for out in outputs]
        return outputs if len(outputs) > 1 else outputs[0]

    def backward(self, *douts: AnyArray | None) -> Any:
        """Compute the gradients, fill ``grads`` and set ``dinputs``.

        Parameters
        ----------
        *douts : array or None
            The gradients of the outputs; None, or left out: zeros.

        Returns
        -------
        array, None or tuple
            The gradient of the input, None for integers; a tuple if there are several inputs.
        """
        specs = self._saved()
        if len(douts) > len(specs):
            raise TypeError(f"backward: expected {', '.join(self.outputs)}, got {len(douts)}")
        gradients: dict[str, Any] = {}
        for name, dout, (shape, dtype) in zip(self.outputs, douts, specs, strict=False):
            if dout is not None:
                _expect_declared(f"d{name}", dout, str(dtype), shape)
                _accumulate(gradients, name, dout)
        for grad in self.grads:
            grad[...] = 0
        for step in reversed(self._steps):
            own = [gradients.pop(name, None) for name in step.outputs]
            if any(gradient is not None for gradient in own):
                for name, gradient in zip(step.inputs, step.backward(*own), strict=False):
                    if name and gradient is not None:
                        _accumulate(gradients, name, gradient)
        self.dinputs = {name: gradients.get(name) for name in self._specs}
        found = tuple(self.dinputs[name] for name in self.inputs)
        return found if len(found) > 1 else found[0]


def _accumulate(gradients: dict[str, Any], name: str, gradient: AnyArray) -> None:
    gradients[name] = gradients[name] + gradient if name in gradients else gradient


def _run(step: OnnxOp, values: list[Any], method: str = "forward") -> Any:
    try:
        return getattr(step, method)(*values)
    except ConversionError:
        raise
    except MISFITS as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{step.node}: {error}") from error


def _expect_declared(name: str, value: Any, dtype: str, shape: _Shape) -> None:
    expect_plain_array(name, value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected an array of {dtype}, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(
            f"{name}: expected {dtype}, got {value.dtype}; {name}.astype(np.{dtype}) converts it"
        )
    if shape is not None and (
        value.ndim != len(shape)
        or any(isinstance(n, int) and n != m for n, m in zip(shape, value.shape, strict=True))
    ):
        raise ValueError(
            f"{name}: expected shape {format_shape(shape)}, got {format_shape(value.shape)}"
        )


# ---- graphs


class _Reader:
    """Makes steps of nodes; what can be computed without inputs is computed at once."""

    def __init__(self, model: Any, weights: dict[str, Any]) -> None:
        graph = model.graph
        self._frame = _without_contents(model)
        self._types = _inferred(model)
        self._opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self._nodes = [self._node(proto) for proto in graph.node]
        self._specs = {value.name: _declared(value) for value in graph.input}
        self._outputs = tuple(value.name for value in graph.output)
        self._reads = Counter(name for node in self._nodes for name in node.inputs)
        self._reads.update(self._outputs)
        found = {t.name: array_of(t, f"initializer {t.name!r}") for t in graph.initializer}
        inputs = set(self._specs) if model.ir_version >= _WITH_OPTIONAL else set()
        self._optional = {name: array for name, array in found.items() if name in inputs}
        self._constants = {name: a for name, a in found.items() if name not in inputs}
        for name, value in weights.items():
            if name not in self._specs:
                known = ", ".join(self._specs) or "none"
                raise ValueError(f"weights: expected inputs of the graph, {known}, got {name!r}")
            _expect_declared(f"weights[{name!r}]", value, *self._specs[name])
            self._constants[name] = value.copy()
            self._optional.pop(name, None)
        self._made = 0  # numbers that nodes have made without inputs

    def _node(self, proto: Any) -> OnnxNode:
        import onnx

        attributes: dict[str, Any] = {}
        for one in proto.attribute:
            value = onnx.helper.get_attribute_value(one)
            if isinstance(value, onnx.TensorProto):
                value = array_of(value, f"{label_of(proto)}: attribute {one.name!r}")
            if isinstance(value, bytes):
                value = value.decode("utf-8", "replace")
            attributes[one.name] = value
        return OnnxNode(proto, tuple(proto.input), tuple(proto.output), attributes, self._opset)

    def net(self) -> OnnxNet:
        steps: list[OnnxOp] = []
        skipped: set[int] = set()
        for place, node in enumerate(self._nodes):
            if place in skipped:
                continue
            step = self._step(node, skipped)
            if step.layer is None and all(not n or n in self._constants for n in step.inputs):
                self._fold(step)
            else:
                steps.append(step)
        if not any(step.layer is not None for step in steps):
            have = ", ".join(sorted({node.op for node in self._nodes})) or "none"
            raise ConversionError(f"source: expected nodes with weights, RNN or others, got {have}")
        dtypes = {str(step.layer.dtype) for step in steps if step.layer is not None}
        if len(dtypes) > 1:
            raise ConversionError(f"source: expected weights of one dtype, got {sorted(dtypes)}")
        if not self._outputs:
            raise ConversionError("source: expected outputs of the graph, got none")
        for name in set(self._outputs).difference(*(step.outputs for step in steps)):
            raise ConversionError(f"output {name!r}: expected it to depend on inputs of the graph")
        read = {name for step in steps for name in step.inputs}
        optional = {name: a for name, a in self._optional.items() if name in read}
        constants = {name: a for name, a in self._constants.items() if name in read}
        specs = {n: s for n, s in self._specs.items() if n in optional or self._known(n) is None}
        return OnnxNet(steps, specs, optional, constants, self._frame)

    def _fold(self, step: OnnxOp) -> None:
        values = [self._constants[name] if name else None for name in step.inputs]
        if self._made + _run(step, values, "size") > LARGEST:
            raise ValueError(
                f"{step.node}: expected constant folding to create at most {LARGEST} numbers in all"
            )
        results = [np.asarray(value) for value in _run(step, values)]
        self._made += sum(value.size for value in results)
        self._constants.update(zip(step.outputs, results, strict=False))
        step.forget()

    def _known(self, name: str) -> AnyArray | None:
        return self._constants.get(name, self._optional.get(name))

    def _step(self, node: OnnxNode, skipped: set[int]) -> OnnxOp:
        if node.op in GATES:
            return self._recurrent(node)
        if node.op == "MatMul":
            return self._matmul(node, skipped)
        if node.op == "Gemm":
            return self._gemm(node)
        if node.op == "Gather" and node.input(1) not in self._constants:
            data = self._known(node.input(0))
            if data is not None and data.dtype in FLOATS:
                axis = node.only("axis").get("axis", 0)
                if data.ndim != 2 or axis not in (0, -2):
                    raise node.refuse(
                        f"expected rows of a weight (V, D), got {format_shape(data.shape)}, axis "
                        f"{axis}"
                    )
                return Embedding(node, self._weight(node, 0, "data", ("V", "D")))
        floats = [a for n in node.inputs if (a := self._known(n)) is not None and a.dtype in FLOATS]
        if node.op == "Add" and len(floats) == 1:
            raise node.refuse(
                "expected a MatMul right before it whose output nothing else reads, or two inputs "
                "that are both computed"
            )
        kind, _ = self._types.get(node.outputs[0], ("an unknown type", None))
        if node.op == "Mul" and kind not in ("int32", "int64"):
            raise node.refuse(f"expected sizes of shapes, int32 or int64, got {kind}")
        mode = self._known(node.input(2)) if node.op == "Dropout" else None
        if node.op == "Dropout" and node.input(2) and (mode is None or mode.any()):
            raise node.refuse("training_mode: expected a constant False")
        if "" in node.inputs[: _NEEDED.get(node.op)]:
            raise node.refuse("expected all its inputs, got an empty name for one")
        return GLUE[node.op](node)

    def _weight(
        self, node: OnnxNode, place: int, what: str, shape: tuple[int | str, ...]
    ) -> AnyArray:
        """A weight of one's own, checked."""
        name = node.input(place)
        array = self._known(name)
        if array is None:
            raise node.refuse(
                f"input {what} ({name!r}): expected its numbers in the file, or passed as "
                f"weights={{{name!r}: ...}}"
            )
        if array.dtype not in FLOATS:
            raise node.refuse(f"input {what}: expected float32 or float64, got {array.dtype}")
        _expect_declared(f"{node}: input {what}", array, str(array.dtype), shape)
        if 0 in array.shape:
            raise ValueError(
                f"{node}: input {what}: expected no size 0, got {format_shape(array.shape)}"
            )
        self._optional.pop(name, None)
        self._constants[name] = array  # a weight: nothing that forward may be given
        return array.copy()

    # ---- matrix products

    def _matmul(self, node: OnnxNode, skipped: set[int]) -> OnnxOp:
        node.only()
        x, _ = node.inputs
        W = self._weight(node, 1, "B", ("D", "M"))
        (output,) = node.outputs
        after = [k for k, other in enumerate(self._nodes) if output in other.inputs]
        if self._reads[output] == 1 and after and self._nodes[after[0]].op == "Add":
            add = self._nodes[after[0]]
            place = 1 - add.inputs.index(output)
            b = self._known(add.inputs[place])
            if b is not None and b.ndim <= 2 and b.size in (1, W.shape[1]) and b.shape[:-1] in (
                (), (1,)
            ):  # fmt: skip
                skipped.add(after[0])
                b = self._weight(add, place, "b", b.shape)
                self._expect_dtype(add, b, W)
                b = np.array(np.broadcast_to(b.reshape(-1), (W.shape[1],)))
                return Affine(node, x, W, b, add.outputs[0])
        return Affine(node, x, W, np.zeros(W.shape[1], W.dtype), output)

    def _gemm(self, node: OnnxNode) -> OnnxOp:
        attributes = node.only("alpha", "beta", "transA", "transB")
        node.expect("transA", attributes.get("transA", 0), 0)
        W = self._weight(node, 1, "B", ("D", "M"))
        W = W.T if attributes.get("transB", 0) else W
        W = np.ascontiguousarray(W * W.dtype.type(attributes.get("alpha", 1.0)))
        M = W.shape[1]
        b = np.zeros(M, W.dtype)
        if node.input(2):
            known = self._known(node.input(2))
            shape = () if known is None else known.shape
            C = self._weight(node, 2, "C", shape)
            if C.size not in (1, M) or (C.ndim == 2 and C.shape[0] != 1) or C.ndim > 2:
                raise node.refuse(f"input C: expected shape ({M},), got {format_shape(C.shape)}")
            self._expect_dtype(node, C, W)
            b = b + C.reshape(-1) * W.dtype.type(attributes.get("beta", 1.0))
        return Affine(node, node.inputs[0], W, b, node.outputs[0])

    @staticmethod
    def _expect_dtype(node: OnnxNode, array: AnyArray, W: AnyArray) -> None:
        if array.dtype != W.dtype:
            raise node.refuse(f"expected weights of {W.dtype}, got {array.dtype}")

    # ---- recurrent nodes

    def _recurrent(self, node: OnnxNode) -> OnnxOp:
        attributes = node.only(*_ATTRIBUTES, *_OWN[node.op])
        direction = attributes.get("direction", "forward")
        node.expect("direction", direction, "forward", "reverse", "bidirectional")
        layout = attributes.get("layout", 0)
        for name in ("layout", *_OWN[node.op]):
            node.expect(name, attributes.get(name, 0), 0, 1)
        dirs, G = 1 + (direction == "bidirectional"), len(GATES[node.op])
        R = self._weight(node, 2, "R", (dirs, "G H", "H"))
        H = R.shape[2]
        node.expect("hidden_size", attributes.get("hidden_size", H), H)
        R = self._weight(node, 2, "R", (dirs, G * H, H))
        D = (self._types.get(node.input(0), ("", None))[1] or ("D",))[-1]
        D = D if isinstance(D, int) else "D"
        W = self._weight(node, 1, "W", (dirs, G * H, D))
        B, P = np.zeros((dirs, 2 * G * H), W.dtype), None
        if node.input(3):
            B = self._weight(node, 3, "B", (dirs, 2 * G * H))
        if node.input(7):
            P = self._weight(node, 7, "P", (dirs, len(PEEPHOLES) * H))
        for array in (R, B, P):
            if array is not None:
                self._expect_dtype(node, array, W)
        activations = _activations(node, dirs)
        each = len(activations) // dirs
        after, coupled = (
            bool(attributes.get(n, 0)) for n in ("linear_before_reset", "input_forget")
        )
        kind = RnnNodeSpec(node.op, (), _clip(node), after, coupled, P is not None)
        kinds = [kind._replace(activations=activations[k * each :][:each]) for k in range(dirs)]
        return Recurrent(node, kinds, (W, R, B, P), direction, layout)


def _without_contents(model: Any) -> Any:
    frame = type(model)()
    frame.CopyFrom(model)
    for field in ("node", "initializer", "value_info", "quantization_annotation"):
        frame.graph.ClearField(field)
    frame.ClearField("training_info")
    return frame


def _inferred(model: Any) -> dict[str, tuple[str, _Shape]]:
    """The type and the shape of every array of which they can be known."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception as error:  # whatever it raises: the model is refused
        raise ValueError(f"source: expected a valid ONNX model ({error})") from error
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: _declared(v) for v in values if v.type.tensor_type.elem_type in TYPES}


def _declared(value: Any) -> tuple[str, _Shape]:
    """The dtype and the shape of an array; the sizes that may be any are names."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type not in TYPES:
        kinds = ", ".join(TYPES.values())
        raise ConversionError(f"input {value.name!r}: expected an array, one of {kinds}")
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"n{k}"
        for k, dim in enumerate(tensor.shape.dim)
    )
    return TYPES[tensor.elem_type], dims if tensor.HasField("shape") else None


def _clip(node: OnnxNode) -> float | None:
    clip = node.attributes.get("clip")
    if clip is None or clip >= _NO_LIMIT:
        return None
    if not clip > 0:
        raise node.refuse(f"clip: expected a number above 0, got {clip}")
    return float(clip)


def _activations(node: OnnxNode, dirs: int) -> tuple[Activation, ...]:
    """The functions of all directions, each with its numbers, which the file lists in one row."""
    defaults, attributes = DEFAULTS[node.op], node.attributes
    names = [n.decode("utf-8", "replace") for n in attributes.get("activations", ())]
    names = names or [one.name for one in defaults] * dirs
    if node.op == "RNN" and (dirs, len(names)) == (1, 2):
        names = names[:1]  # the default has two for any direction
    if len(names) != len(defaults) * dirs:
        raise ValueError(f"{node}: activations: expected {len(defaults) * dirs}, got {names}")
    rows = {n: list(attributes.get(f"activation_{n}", ())) for n in ("alpha", "beta")}
    if node.op != "RNN":  # whose other spellings ONNX Runtime takes for Tanh, "relu" too
        known = {name.lower(): name for name in ACTIVATIONS}
        names = [known.get(name.lower(), name) for name in names]
    found = []
    for name in names:
        node.expect("activations", name, *ACTIVATIONS)
        found.append(Activation(name, **_numbers(node, name, rows)))
    for letter, row in rows.items():
        if row:
            raise node.refuse(
                f"activation_{letter}: expected as many as {', '.join(names)} take, got {row} more"
            )
        takes = {letter in ACTIVATIONS[name] for name in names}
        if node.op == "RNN" and len(takes) > 1:
            raise node.refuse(
                f"activation_{letter}: expected functions that all take it, or none, got "
                f"{', '.join(names)}: ONNX and ONNX Runtime assign the numbers differently"
            )
    return tuple(found)


def _numbers(node: OnnxNode, name: str, rows: Mapping[str, list[float]]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for letter, default in ACTIVATIONS[name].items():
        value = rows[letter].pop(0) if rows[letter] else default
        if value is None or (node.op == "RNN" and f"activation_{letter}" not in node.attributes):
            raise node.refuse(
                f"activation_{letter}: expected a number for {name}, got none: ONNX and ONNX "
                "Runtime have different defaults"
            )
        if not np.isfinite(value):
            raise node.refuse(f"activation_{letter}: expected finite numbers, got {value}")
        numbers[letter] = float(value)
    return numbers
