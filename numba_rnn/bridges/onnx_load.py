"""ONNX files, read and checked before anything is made of them."""

from pathlib import Path
from typing import Any

import numpy as np

from ..optional_deps import optional_import
from ..typing import AnyArray
from .gate_order import ConversionError

_OLDEST = 7  # opset
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


def expect_plain(model: Any) -> None:
    """Refuse what is more than one graph of ONNX's own nodes with weights in the same file."""
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
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        label = f"{node.op_type} node {node.name or next(iter(node.output), '')!r}"
        if node.domain not in ("", "ai.onnx"):
            raise ConversionError(f"{label}: expected a node of ONNX, got one of {node.domain!r}")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise ConversionError(f"{label}: graphs inside a node are not supported")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ConversionError(f"{label}: sparse tensors are not supported")
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
    for tensor in tensors:
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ConversionError(
                f"tensor {tensor.name!r}: expected its numbers in the file, got a reference to "
                "another file; from_onnx(onnx.load(path)) reads both, torch.onnx.export(..., "
                "external_data=False) writes a single file"
            )


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
