"""ONNX files, read and checked before anything is made of them."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..optional_deps import optional_import
from ..typing import AnyArray
from .gate_order import ConversionError

_OLDEST = 7  # opset
RECURRENT = "RNN", "LSTM", "GRU"
TYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 11: "float64"}
# what numpy raises where shapes or indices do not fit
MISFITS = (
    ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, ZeroDivisionError,
)  # fmt: skip


def loaded(source: Any) -> Any:
    """The onnx.ModelProto of a path, of bytes or of a model, which is copied."""
    with optional_import("onnx", "from_onnx"):
        import onnx
    from google.protobuf.message import DecodeError

    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        return model
    if not isinstance(source, (str, Path, bytes)):
        raise TypeError(
            f"source: expected a path, bytes or an onnx.ModelProto, got {type(source).__name__}"
        )
    what = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ValueError(f"source: {what} is not a complete ONNX model ({error})") from error


def expect_valid(model: Any, what: str, *, full_check: bool = False) -> None:
    """Refuse what onnx's own checker refuses.

    Inputs and outputs without a shape and outputs without a type are taken, as by ONNX Runtime.

    full_check   infer types and shapes, too, as far as they can be
    """
    import onnx

    checked = type(model)()
    checked.CopyFrom(model)
    for value in checked.graph.output:
        if not value.HasField("type"):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for value in (*checked.graph.input, *checked.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(checked)
        if full_check:
            onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # whatever it raises: the model is refused
        raise ValueError(f"{what}: expected a valid ONNX model ({error})") from error


def label_of(node: Any) -> str:
    """How messages name an onnx.NodeProto."""
    return f"{node.op_type} node {node.name or next(filter(None, node.output), '')!r}"


def counted(kinds: Counter[str]) -> str:
    """As messages list them, the most frequent first."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def expect_plain(model: Any, known: set[str]) -> None:
    """Refuse what is more than one graph of known nodes with weights in the same file."""
    import onnx

    for opset in model.opset_import:
        newest = onnx.defs.onnx_opset_version()
        if opset.domain in ("", "ai.onnx") and not _OLDEST <= opset.version <= newest:
            raise ConversionError(
                f"source: expected opset {_OLDEST} to {newest}, got {opset.version}"
            )
    if model.functions:
        raise ConversionError(
            f"source: functions are not supported, got {model.functions[0].name!r}"
        )
    if model.graph.sparse_initializer:
        raise ConversionError("source: sparse initializers are not supported")
    unknown = Counter(
        f"{node.domain}.{node.op_type}".lstrip(".")
        for node in model.graph.node
        if node.op_type not in known or node.domain not in ("", "ai.onnx")
    )
    if unknown:
        raise ConversionError(
            f"source: expected nodes of the kinds {', '.join(sorted(known))}, got others: "
            f'{counted(unknown)}; only="recurrent" reads recurrent nodes alone, inputs=[...] and '
            "outputs=[...] leave out nodes before and behind"
        )
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ConversionError(f"{label_of(node)}: sparse tensors are not supported")
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
    for tensor in tensors:
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ConversionError(
                f"tensor {tensor.name!r}: expected its numbers in the file, got a reference to "
                "another file; from_onnx(onnx.load(path)) reads both, torch.onnx.export(..., "
                "external_data=False) writes a single file"
            )


# ---- parts of a graph

_Makers = dict[str, tuple[int, Any]]  # of each value: its place in the file, and a node or a tensor


def nodes_of(model: Any) -> Iterator[tuple[Any, _Makers]]:
    """Every node, those of graphs inside nodes too, and all that makes a value that it can read."""
    count = itertools.count()

    def walk(graph: Any, makers: _Makers) -> Iterator[tuple[Any, _Makers]]:
        makers = {**makers, **{tensor.name: (0, tensor) for tensor in graph.initializer}}
        for node in graph.node:
            makers |= dict.fromkeys(filter(None, node.output), (next(count), node))
            yield node, makers
            for attribute in node.attribute:
                for inner in (*attribute.graphs, *[attribute.g][: attribute.HasField("g")]):
                    yield from walk(inner, makers)

    return walk(model.graph, {})


def part_of(model: Any, makers: _Makers, outputs: Iterable[str], inputs: Sequence[str] = ()) -> Any:
    """A model of what outputs are made of, back to inputs and to what nothing in the file makes."""
    import onnx

    graph = model.graph
    types = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}

    def typed(name: str) -> Any:
        return types.get(name) or onnx.helper.make_tensor_value_info(name, 1, None)

    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name, outputs = "part", list(filter(None, outputs))
    waiting, seen, found, nodes = outputs[::-1], {""}, list[str](), dict[int, Any]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        place, maker = (0, None) if name in inputs else makers.get(name, (0, None))
        if maker is None:
            found.append(name)
        elif isinstance(maker, onnx.TensorProto):
            part.graph.initializer.append(maker)
        else:
            nodes[place] = maker
            waiting += reversed(maker.input)
    if missing := [name for name in inputs if name not in found]:
        read = {repr(name) for node, _ in nodes_of(model) if node.op_type in RECURRENT
                for name in node.input[:1]}  # fmt: skip
        raise ValueError(
            f"inputs: expected values of which {', '.join(outputs)} are made, got "
            f"{', '.join(map(repr, missing))}; recurrent nodes read {', '.join(read) or 'none'}"
        )
    part.graph.node.extend(nodes[place] for place in sorted(nodes))
    declared = [value.name for value in graph.input if value.name in found]
    part.graph.input.extend(map(typed, dict.fromkeys((*inputs, *declared, *found))))
    part.graph.output.extend(map(typed, outputs))
    return part


def array_of(tensor: Any, what: str) -> AnyArray:
    """The numbers of an onnx.TensorProto."""
    import onnx

    if tensor.data_type not in TYPES:
        kinds = ", ".join(TYPES.values())
        names = onnx.TensorProto.DataType.DESCRIPTOR.values_by_number
        got = names[tensor.data_type].name if tensor.data_type in names else tensor.data_type
        raise ConversionError(f"{what}: expected one of {kinds}, got {got}")
    try:
        array = np.array(onnx.numpy_helper.to_array(tensor))
    except MISFITS as error:
        raise ValueError(f"{what}: {error}") from error
    if array.shape != tuple(tensor.dims):
        raise ValueError(f"{what}: expected {tuple(tensor.dims)} numbers, got {array.shape}")
    return array
