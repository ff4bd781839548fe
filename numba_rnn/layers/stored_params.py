"""Parameters as arrays by name, as files have them, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import engine_of_param, to_host
from ..kernels.quantisation import QuantisedWeight
from ..typing import AnyArray
from ..validation import expect_array
from .base import Layer


def arrays_of(name: str, param: Any) -> dict[str, AnyArray]:
    """A parameter as arrays in host memory, by name: one, or two of a weight in int8."""
    param = to_host(param)
    if not isinstance(param, QuantisedWeight):
        return {name: param}
    scale = param.scale if param.axis else param.scale[:, None]  # (columns,) or (rows, 1)
    return {f"int8/{name}": param.values, f"scale/{name}": scale}


def param_of(name: str, arrays: Mapping[str, Any], layer: Layer, k: int) -> Any:
    """The value that arrays have for parameter k of a layer, of its shape, but maybe in int8."""
    param = layer.params[k]
    values, scale = arrays.get(f"int8/{name}"), arrays.get(f"scale/{name}")
    if values is None:
        expect_array(name, arrays.get(name), param.shape, param.dtype)
        return arrays[name]
    own = layer.param_names[k]
    if own not in layer._weight_names or np.dtype(np.float32) != param.dtype:
        raise TypeError(f"{name}: expected {param.dtype}, as the layer has it, got int8")
    axis = layer._scale_axis
    shape: tuple[int, ...] = (param.shape[1],) if axis else (param.shape[0], 1)
    expect_array(f"int8/{name}", values, param.shape, np.dtype(np.int8))
    expect_array(f"scale/{name}", scale, shape, np.dtype(np.float32))
    weight = QuantisedWeight(values, np.ravel(np.asarray(scale)), axis)
    return engine_of_param(param).to_device(weight)  # which one on a GPU refuses


def set_params(slots: Sequence[tuple[Layer, int]], values: Sequence[Any]) -> None:
    """Set parameters in place, or replace them where they are of another kind."""
    for (layer, k), value in zip(slots, values, strict=True):
        param = layer.params[k]
        if isinstance(value, QuantisedWeight):
            layer._set_param(k, value)
        elif isinstance(param, QuantisedWeight):
            layer._set_param(k, value.copy())
        else:
            param[...] = engine_of_param(param).to_device(value)
