"""Weights in int8, in the nodes that ONNX Runtime's ``quantize_dynamic`` makes.

    DynamicQuantizeLSTM                                      an LSTM
    DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Mul     a MatMul
    Gather, (Transpose,) DequantizeLinear                    a Gather of rows of a weight

``with_floats`` puts the plain node in the place of each, with the weights of the file in float32,
scale * (number - zero point). The reader makes layers of these as of any others, and ``put_int8``
then gives them the numbers of the file as they are. Numbers that lie beyond -127 to 127 once the
zero point is taken off, as they may with unsigned weights, have no place in int8 without another
rounding: such a layer keeps its weights in float32.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..kernels.quantisation import LARGEST, QuantisedWeight
from ..layers import TimeAffine, TimeEmbedding
from ..typing import AnyArray
from .gate_order import ConversionError
from .onnx_cells import RnnNodeSpec, columns_of
from .onnx_load import MISFITS, expect_valid, label_of
from .stacks import directions_of

_MICROSOFT = "com.microsoft"


class Int8(NamedTuple):
    """Matrices (rows, columns) of one weight: whole numbers, and a scale for each column."""

    numbers: tuple[AnyArray, ...]  # one of each direction
    scales: tuple[AnyArray, ...]

    @property
    def fits(self) -> bool:
        """Whether int8 can hold them."""
        return all(
            np.abs(n).max(initial=0) <= LARGEST and ((s > 0) & (s < np.inf)).all()
            for n, s in zip(self.numbers, self.scales, strict=True)
        )

    def floats(self) -> list[AnyArray]:
        return [n.astype(np.float32) * s for n, s in zip(self.numbers, self.scales, strict=True)]


def with_floats(model: Any, *, recurrent: bool = False) -> dict[tuple[str, ...], list[Int8]]:
    """Replace the nodes of a model that have weights in int8; these, by the outputs of the nodes.

    recurrent   leave all but LSTMs as they are

    Raises ConversionError where a node is not as ``quantize_dynamic`` makes it.
    """
    return _Graph(model).replaced(recurrent)


class _Graph:
    """The nodes of a model while they are replaced."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output if name}
        self.found: dict[tuple[str, ...], list[Int8]] = {}
        self.gone: list[Any] = []  # nodes

    def replaced(self, recurrent: bool) -> dict[tuple[str, ...], list[Int8]]:
        rules = {(_MICROSOFT, "DynamicQuantizeLSTM"): self._lstm}
        if not recurrent:
            rules |= {("", "MatMulInteger"): self._matmul, ("", "DequantizeLinear"): self._gather}
        found = [
            (rule, node) for node in self.graph.node
            if (rule := rules.get((node.domain.replace("ai.onnx", ""), node.op_type)))
        ]  # fmt: skip
        if found:
            expect_valid(self.model, "source")  # each node has its inputs and outputs
            for rule, node in found:
                rule(node)
            self._sweep()
        return self.found

    def _sweep(self) -> None:
        """Remove the nodes that are replaced, and what was there for them alone."""
        kept = [node for node in self.graph.node if not any(node is other for other in self.gone)]
        read = {value.name for value in self.graph.output}
        nodes = []
        for node in reversed(kept):
            if node.op_type == "DynamicQuantizeLinear" and read.isdisjoint(node.output):
                continue
            nodes.append(node)
            read.update(node.input)
        tensors = [tensor for tensor in self.graph.initializer if tensor.name in read]
        nodes, tensors = [_copy(node) for node in reversed(nodes)], [_copy(t) for t in tensors]
        for field, values in (("node", nodes), ("initializer", tensors)):
            self.graph.ClearField(field)
            getattr(self.graph, field).extend(values)
        self.graph.ClearField("value_info")  # of nodes that are gone, too

    # ---- weights

    def _array(self, node: Any, name: str, what: str) -> AnyArray:
        import onnx

        if name not in self.tensors:
            raise ConversionError(
                f"{label_of(node)}: input {what} ({name!r}): expected its numbers in the file"
            )
        try:
            return np.asarray(onnx.numpy_helper.to_array(self.tensors[name]))
        except MISFITS as error:
            raise ValueError(f"{label_of(node)}: input {what}: {error}") from error

    def _weight(self, node: Any, names: Iterable[str], what: str, ndim: int = 3) -> Int8:
        """A weight (directions, rows, columns), or (rows, columns), of its numbers, scales and
        zero points, which are one for all columns (of a direction) or one each."""
        name, scale_name, zero_name = names
        W = self._array(node, name, what)
        if W.dtype not in (np.int8, np.uint8) or W.ndim != ndim or not W.size:
            raise ConversionError(
                f"{label_of(node)}: input {what}: expected int8 or uint8 with {ndim} axes, got "
                f"{W.dtype} of shape {W.shape}"
            )
        W = W if ndim == 3 else W[None]
        scale = self._array(node, scale_name, f"{what}_scale")
        zero = np.zeros(1, W.dtype)
        if zero_name:
            zero = self._array(node, zero_name, f"{what}_zero_point")
        each = (len(W), W.shape[2])
        if scale.dtype != np.float32 or zero.dtype != W.dtype:
            raise ConversionError(
                f"{label_of(node)}: input {what}: expected scales in float32 and zero points in "
                f"{W.dtype}, got {scale.dtype} and {zero.dtype}"
            )
        spread = []
        for kind, array in (("scale", scale), ("zero_point", zero)):
            whole = array.reshape(-1)
            if whole.size not in (1, each[0], each[0] * each[1]):
                raise ConversionError(
                    f"{label_of(node)}: input {what}_{kind}: expected 1, {each[0]} or "
                    f"{each[0] * each[1]} numbers, got shape {array.shape}"
                )
            one = whole.reshape(each if whole.size == each[0] * each[1] else (whole.size, 1))
            spread.append(np.broadcast_to(one, each))
        numbers = W.astype(np.int32) - spread[1].astype(np.int32)[:, None]
        return Int8(tuple(numbers), tuple(np.array(s) for s in spread[0]))

    def _add(self, name: str, array: AnyArray) -> str:
        """The name of a new tensor of float32."""
        import onnx

        name = f"{name}.float32"
        while name in self.tensors or name in self.makers:
            name += "'"
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.graph.initializer.append(tensor)
        self.tensors[name] = tensor
        return name

    # ---- nodes

    def _lstm(self, node: Any) -> None:
        """X, W, R, B, lengths, initial h and c, P; then scale and zero point of W and of R. W is
        (directions, D, 4H) and R (directions, H, 4H)."""
        names = [*node.input, *[""] * (12 - len(node.input))]
        weights = [
            self._weight(node, (names[1], *names[8:10]), "W"),
            self._weight(node, (names[2], *names[10:12]), "R"),
        ]
        for k, weight in zip((1, 2), weights, strict=True):
            floats = np.stack([W.T for W in weight.floats()])
            names[k] = self._add(names[k], floats)
        node.domain, node.op_type = "", "LSTM"
        while len(names) > 8 or not names[-1]:
            names.pop()
        node.input[:] = names
        self.found[tuple(node.output)] = weights

    def _matmul(self, node: Any) -> None:
        """x in 8 bits times a weight, and the two scales back on what that gives."""
        reads = [*node.input, "", ""][:4]
        source = self._maker(reads[0], "DynamicQuantizeLinear")
        cast = self._reader(node, "Cast")
        scaled: Any = None if cast is None else self._reader(cast, "Mul")
        others = [n for n in scaled.input if n not in cast.output] if cast and scaled else []
        product: Any = self._maker(others[0], "Mul") if others else None
        names = [n for n in product.input if n not in source.output] if source and product else []
        if len(names) != 1 or not source or reads[2] != source.output[2]:
            raise ConversionError(
                f"{label_of(node)}: expected a DynamicQuantizeLinear before it, and behind it a "
                "Cast and a Mul by both scales, as ONNX Runtime's quantize_dynamic makes them"
            )
        weight = self._weight(node, (reads[1], names[0], reads[3]), "B", 2)
        (W,) = weight.floats()
        scaled.op_type = "MatMul"
        scaled.input[:] = [source.input[0], self._add(reads[1], W)]
        self.gone += [node, cast]
        if not any(product.output[0] in other.input for other in self.graph.node):
            self.gone.append(product)
        self.found[tuple(scaled.output)] = [weight]

    def _maker(self, name: str, kind: str) -> Any:
        """The node of a kind that makes a value, or None."""
        found = self.makers.get(name)
        return found if found is not None and found.op_type == kind else None

    def _reader(self, node: Any, kind: str = "") -> Any:
        """The one node that reads its output, or None if it is of another kind."""
        found = [other for other in self.graph.node if node.output[0] in other.input]
        alone = len(found) == 1 and node.output[0] not in [v.name for v in self.graph.output]
        return found[0] if alone and kind in ("", found[0].op_type) else None

    def _gather(self, node: Any) -> None:
        """Rows of a weight with one scale, which may be transposed before that is put on."""
        made: list[Any] = [self.makers.get(node.input[0])]
        while made[-1] and made[-1].op_type == "Transpose":
            made.append(self.makers.get(made[-1].input[0]))
        gather = made[-1]
        if not all(made) or gather.op_type != "Gather" or not all(map(self._reader, made)):
            raise ConversionError(
                f"{label_of(node)}: expected rows of a weight (Gather) in int8, which nothing else "
                "reads"
            )
        names = [gather.input[0], *node.input[1:], ""][:3]
        weight = self._weight(node, names, "data", 2)
        (scale,) = weight.scales
        if (scale != scale[0]).any():
            raise ConversionError(
                f"{label_of(node)}: expected one scale for the weight, got several"
            )
        (W,) = weight.floats()
        gather.input[0] = self._add(names[0], W)
        made[0].output[0] = node.output[0]
        for below, above in zip(made[1:], made, strict=False):
            above.input[0] = below.output[0] = f"{below.output[0]}.float32"
        self.gone.append(node)
        self.found[tuple(gather.output)] = [weight]


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def put_int8(layer: Any, weights: list[Int8], kinds: Iterable[RnnNodeSpec] = ()) -> None:
    """Give a layer that was made of the float32 weights those of the file, if int8 holds them."""
    if not all(weight.fits for weight in weights):
        return
    if isinstance(layer, TimeEmbedding):
        ((W,), (scale,)) = weights[0]
        rows = np.full(len(W), scale[0], np.float32)
        layer._set_param(0, QuantisedWeight(W.astype(np.int8), rows, 0))
    elif isinstance(layer, TimeAffine):
        ((W,), (scale,)) = weights[0]
        layer._set_param(0, QuantisedWeight(W.astype(np.int8), scale))
    else:
        for k, (part, kind) in enumerate(zip(directions_of(layer), kinds, strict=True)):
            for place, weight in enumerate(weights):
                numbers = columns_of(kind, weight.numbers[k]).astype(np.int8)
                scale = np.abs(columns_of(kind, weight.scales[k]))  # a sign is that of the numbers
                part._set_param(place, QuantisedWeight(numbers, scale))
