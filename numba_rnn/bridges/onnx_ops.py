"""The nodes of an ONNX graph that can be read: what each computes, and its gradient.

A step takes the arrays that its node reads and gives those that it writes; ``backward`` takes
their gradients (None where there is none) and gives those of what forward took. ``from_onnx`` makes
the steps, an ``OnnxNet`` runs them. Here are those without weights, the layers are in
``onnx_layers.py``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import to_host
from ..layers import Layer
from ..typing import AnyArray
from .gate_order import ConversionError
from .onnx_load import TYPES, label_of

Arrays = tuple[AnyArray | None, ...]
LARGEST = 2**26  # numbers that may be made of nothing, so that no file takes all memory


@dataclass(frozen=True)
class OnnxNode:
    """A node as the file has it: inputs left out are "", attributes plain Python or arrays."""

    proto: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

    @property
    def op(self) -> str:
        return str(self.proto.op_type)

    def __str__(self) -> str:
        return label_of(self.proto)

    def reading(self, *inputs: str) -> Any:
        """The onnx.NodeProto with other inputs."""
        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        proto.input[:] = inputs
        return proto

    def refuse(self, why: str) -> ConversionError:
        return ConversionError(f"{self}: {why}")

    def input(self, place: int) -> str:
        """The name of an input, "" if it is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""

    def only(self, *names: str) -> Mapping[str, Any]:
        """The attributes, none of which is another than these."""
        for name in self.attributes:
            if name not in names:
                have = f"supported: {', '.join(names)}" if names else "none is supported"
                raise self.refuse(f"attribute {name!r}; {have}")
        return self.attributes

    def expect(self, name: str, value: Any, *allowed: Any) -> None:
        """Refuse an attribute, or what stands for one, with another value than these."""
        if value not in allowed:
            wanted = " or ".join(map(repr, allowed))
            raise self.refuse(f"{name}: expected {wanted}, got {value!r}")


class OnnxOp:
    """The computation of a node; each subclass has its own."""

    layer: Layer | None = None
    takes: tuple[str, ...] | None = ()  # attributes; None: the reader has checked them

    def __init__(self, node: OnnxNode) -> None:
        self.node, self._own = node, node.attributes
        if self.takes is not None:
            node.only(*self.takes)
        self.inputs, self.outputs = node.inputs, node.outputs
        self._tape: Any = None

    def forward(self, *values: Any) -> Arrays:
        raise NotImplementedError

    def size(self, *values: Any) -> int:
        """How many numbers forward would make at most."""
        return sum(np.size(value) for value in values)

    def backward(self, *gradients: AnyArray | None) -> Arrays:
        """Of what has one output and gives a gradient to its first input."""
        return (self._back(gradients[0]),)

    def _back(self, gradient: Any) -> AnyArray | None:
        raise self.node.refuse("no gradient goes through it")

    def forget(self) -> None:
        self._tape = None

    def written(self) -> tuple[list[Any], dict[str, AnyArray]]:
        """Nodes that compute the same, and the weights that they read, as they are now."""
        return [self.node.proto], {}

    def _named(self, **weights: AnyArray) -> dict[str, AnyArray]:
        """The weights by names that nothing else has."""
        output = next(filter(None, self.outputs))
        return {f"{output}.{name}": to_host(array) for name, array in weights.items()}


# ---- glue: arrays are turned, cut and joined


class Transpose(OnnxOp):
    takes = ("perm",)

    def forward(self, x: AnyArray, /) -> Arrays:
        self._tape = list(self._own.get("perm", range(x.ndim)[::-1]))
        return (x.transpose(self._tape),)

    def _back(self, gradient: AnyArray) -> AnyArray:
        return gradient.transpose(np.argsort(self._tape))


class Identity(OnnxOp):
    """The same numbers, in another shape where a subclass says so."""

    def forward(self, x: AnyArray, /, *others: Any) -> Arrays:
        self._tape = x.shape
        return (self._shaped(x, *others),)

    def _back(self, gradient: AnyArray) -> AnyArray:
        return gradient.reshape(self._tape)

    def _shaped(self, x: AnyArray, *others: Any) -> AnyArray:
        return x

    def _axes(self, others: tuple[Any, ...]) -> Any:
        """An attribute before opset 13, an input since."""
        axes = next((o for o in others if o is not None), self._own.get("axes"))
        return None if axes is None else tuple(map(int, axes))


class Reshape(Identity):
    takes = ("allowzero",)  # without it a size 0 is that of the input

    def _shaped(self, x: AnyArray, *others: Any) -> AnyArray:
        zero = self._own.get("allowzero", 0)
        return x.reshape([int(n) if n or zero else x.shape[k] for k, n in enumerate(others[0])])


class Squeeze(Identity):
    takes = ("axes",)

    def _shaped(self, x: AnyArray, *others: Any) -> AnyArray:
        return np.squeeze(x, self._axes(others))


class Unsqueeze(Identity):
    takes = ("axes",)

    def _shaped(self, x: AnyArray, *others: Any) -> AnyArray:
        return np.expand_dims(x, self._axes(others))


class Dropout(Identity):
    """Nothing, since it is for training; ``training_mode`` is looked at where the graph is read."""

    takes = "ratio", "seed"

    def __init__(self, node: OnnxNode) -> None:
        super().__init__(node)
        if len(node.outputs) > 1 and node.outputs[1]:
            raise node.refuse("output mask is not supported")


class Concat(OnnxOp):
    takes = ("axis",)

    def forward(self, *values: Any) -> Arrays:
        axis = self._own["axis"]
        self._tape = np.cumsum([value.shape[axis] for value in values])[:-1]
        return (np.concatenate(values, axis=axis),)

    def backward(self, *gradients: Any) -> Arrays:
        return tuple(np.split(gradients[0], self._tape, axis=self._own["axis"]))


class _Cut(OnnxOp):
    """Some of the numbers: those that ``_tape``, a shape and an index, says."""

    def _cut(self, x: AnyArray, index: Any) -> Arrays:
        self._tape = x.shape, index
        return (np.asarray(x[index]),)

    def _back(self, gradient: AnyArray) -> AnyArray:
        shape, index = self._tape
        found = np.zeros(shape, gradient.dtype)
        np.add.at(found, index, gradient)
        return found


class Gather(_Cut):
    takes = ("axis",)

    def forward(self, x: AnyArray, indices: AnyArray, /) -> Arrays:
        return self._cut(x, (slice(None),) * (self._own.get("axis", 0) % x.ndim) + (indices,))

    def size(self, *values: Any) -> int:
        x, indices = values
        return int(indices.size) * (x.size // max(x.shape[self._own.get("axis", 0)], 1))


class Slice(_Cut):
    takes = "starts", "ends", "axes"  # before opset 10

    def forward(self, x: AnyArray, /, *others: AnyArray) -> Arrays:
        given = [self._own[name] for name in self.takes or () if name in self._own]
        values: list[Any] = [*given, *others, None, None, None, None]
        starts, ends, axes, steps = values[:4]
        index = [slice(None)] * x.ndim
        places = range(len(starts)) if axes is None else axes
        for k, axis in enumerate(places):
            step = 1 if steps is None else int(steps[k])
            end: int | None = int(ends[k])
            if step < 0 and end is not None and end < -x.shape[axis]:
                end = None  # past the first one, which in Python is no number
            index[int(axis)] = slice(int(starts[k]), end, step)
        return self._cut(x, tuple(index))


class Expand(OnnxOp):
    def forward(self, x: AnyArray, shape: AnyArray, /) -> Arrays:
        wanted = np.broadcast_shapes(x.shape, tuple(int(n) for n in shape))
        _expect_small(self.node, wanted)
        self._tape = x.shape
        return (np.broadcast_to(x, wanted),)

    def _back(self, gradient: AnyArray) -> AnyArray:
        return _summed(gradient, self._tape)


def _broadcast_size(*values: Any) -> int:
    return math.prod(np.broadcast_shapes(*(value.shape for value in values)))


class Add(OnnxOp):
    def forward(self, a: AnyArray, b: AnyArray, /) -> Arrays:
        self._tape = a.shape, b.shape
        return (a + b,)

    size = staticmethod(_broadcast_size)

    def backward(self, *gradients: AnyArray | None) -> Arrays:
        return tuple(_summed(gradients[0], shape) for shape in self._tape)


class Softmax(OnnxOp):
    """Over one axis; before opset 13 over all from it on."""

    takes = ("axis",)

    def forward(self, x: AnyArray, /) -> Arrays:
        old = self.node.opset < 13
        axis = self._own.get("axis", 1 if old else -1) % x.ndim
        axes = tuple(range(axis, x.ndim)) if old else axis
        y = np.exp(x - x.max(axis=axes, keepdims=True))
        y /= y.sum(axis=axes, keepdims=True)
        self._tape = y, axes
        return (y,)

    def _back(self, gradient: AnyArray) -> AnyArray:
        y, axes = self._tape
        return y * (gradient - (gradient * y).sum(axis=axes, keepdims=True))


class Cast(OnnxOp):
    takes = "to", "saturate", "round_mode"

    def __init__(self, node: OnnxNode) -> None:
        super().__init__(node)
        if self._own["to"] not in (1, 6, 7, 11):
            raise node.refuse(
                "to: expected float32, float64, int32 or int64 (1, 11, 6, 7), got "
                f"{self._own['to']}"
            )

    def forward(self, x: AnyArray, /) -> Arrays:
        self._tape = x.dtype
        return (x.astype(TYPES[self._own["to"]]),)

    def _back(self, gradient: AnyArray) -> AnyArray | None:
        return gradient.astype(self._tape) if self._tape.kind == "f" else None


# ---- shapes and constants: numbers without a gradient


class Shape(OnnxOp):
    takes = "start", "end"

    def forward(self, x: AnyArray, /) -> Arrays:
        return (np.array(x.shape[slice(*map(self._own.get, ("start", "end")))], np.int64),)

    def backward(self, *gradients: AnyArray | None) -> Arrays:
        return (None,)


class Mul(OnnxOp):
    """Of the sizes of shapes, which are integers: the reader lets no others through."""

    def forward(self, a: AnyArray, b: AnyArray, /) -> Arrays:
        return (a * b,)

    size = staticmethod(_broadcast_size)

    def backward(self, *gradients: AnyArray | None) -> Arrays:
        return None, None


class ConstantOfShape(OnnxOp):
    takes = ("value",)

    def __init__(self, node: OnnxNode) -> None:
        super().__init__(node)
        self._value = self._own.get("value", np.zeros(1, np.float32))
        if self._value.size != 1:
            raise node.refuse(f"value: expected one number, got {self._value.size}")

    def forward(self, shape: AnyArray, /) -> Arrays:
        wanted = tuple(int(n) for n in shape)
        _expect_small(self.node, wanted)
        return (np.full(wanted, self._value.reshape(()), self._value.dtype),)

    def backward(self, *gradients: AnyArray | None) -> Arrays:
        return (None,)


class Constant(OnnxOp):
    takes = "value", "value_int", "value_ints", "value_float", "value_floats"

    def forward(self, *values: Any) -> Arrays:
        ((name, value),) = self._own.items()
        dtype = np.int64 if "int" in name else np.float32
        return (value if name == "value" else np.array(value, dtype),)


def _expect_small(node: OnnxNode, shape: tuple[int, ...]) -> None:
    size = 1
    for n in shape:
        size *= n
    if size > LARGEST or any(n < 0 for n in shape):
        raise ValueError(f"{node}: expected a shape of at most {LARGEST} numbers, got {shape}")


def _summed(gradient: Any, shape: tuple[int, ...]) -> AnyArray:
    """The gradient of what was broadcast, in its own shape."""
    more = gradient.ndim - len(shape)
    axes = [k for k in range(gradient.ndim) if k < more or shape[k - more] < gradient.shape[k]]
    return gradient.sum(axis=tuple(axes)).reshape(shape)


GLUE: dict[str, Callable[[OnnxNode], OnnxOp]] = {
    step.__name__: step
    for step in (
        Add, Cast, Concat, Constant, ConstantOfShape, Dropout, Expand, Gather, Identity, Mul,
        Reshape, Shape, Slice, Softmax, Squeeze, Transpose, Unsqueeze,
    )
}  # fmt: skip
