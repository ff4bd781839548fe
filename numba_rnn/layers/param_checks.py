"""The parameters of a cell, checked."""

from collections.abc import Sequence

import numpy as np

from ..backend import engine_for_input
from ..kernels.cells import Cell
from ..kernels.quantisation import QuantisedWeight, is_quantised
from ..typing import Array
from ..validation import FLOATS, format_shape, validate_weight


def validate_params(owner: str, cell: Cell, params: Sequence[Array]) -> list[Array]:
    """The parameters in the shapes and the one dtype that they have for the cell."""
    engine = engine_for_input(params[0] if params else None)
    if engine.xp is np and _fit(cell, params):
        return list(params)
    names = tuple(cell.shapes(1, 1))
    if len(params) != len(names):
        raise TypeError(
            f"{owner}: expected the parameters {', '.join(names)} of the cell {cell.name}, got "
            f"{len(params)}"
        )
    if is_quantised(params):
        for name, value in zip(names, params, strict=True):
            if isinstance(value, QuantisedWeight) != (name in cell.weight_names):
                raise TypeError(
                    f"{owner}.{name}: expected {' and '.join(cell.weight_names)}, and no other, in "
                    f"int8, got {type(value).__name__}"
                )
    Wx, *rest = params
    Wx = validate_weight("Wx", Wx, ("D", "columns"), None, engine)
    H, gates = max(1, cell.hidden_size([Wx])), len(cell.input_gates)
    P: int | None = None
    if cell.projected:
        if Wx.shape[1] % gates:
            raise ValueError(f"Wx: expected shape (D, {gates}H), got {format_shape(Wx.shape)}")
        rest[-1] = validate_weight("Wr", rest[-1], (H, "P"), Wx.dtype, engine)
        P = max(1, cell.output_size(rest))
        if P > H:
            raise ValueError(
                f"Wr: expected shape (H, P) with P at most H, got {format_shape(rest[-1].shape)}"
            )
    elif cell.recurrent_gates:
        rest[0] = validate_weight("Wh", rest[0], ("H", "columns"), Wx.dtype, engine)
        H = rest[0].shape[0]
    shapes = cell.shapes(Wx.shape[0], H, P)
    try:
        return [
            validate_weight(name, value, shapes[name], Wx.dtype, engine)
            for name, value in zip(names, (Wx, *rest), strict=True)
        ]
    except ValueError as error:
        if cell.recurrent_gates and not P and _fit_transposed(cell, Wx, rest[0]):
            raise ValueError(f"{error} (PyTorch's are transposed: bridges.from_torch)") from None
        raise


def _fit(cell: Cell, params: Sequence[Array]) -> bool:
    """Whether they are right as they are, in a fraction of the time of the checks that name why."""
    Wx = params[0] if params else None
    if type(Wx) is not np.ndarray or Wx.ndim != 2 or not Wx.size or cell.projected:
        return False
    dtype, shapes = Wx.dtype, cell.shapes(len(Wx), cell.hidden_size(params))
    if len(params) != len(shapes):
        return False
    for param, shape in zip(params, shapes.values(), strict=True):
        if type(param) is not np.ndarray or param.shape != shape or param.dtype != dtype:
            return False
        if not param.flags.aligned:
            return False
    return dtype.isnative and dtype in FLOATS


def _fit_transposed(cell: Cell, Wx: Array, Wh: Array) -> bool:
    """Whether they would fit the other way round, and the other way round alone."""
    wanted = cell.shapes(Wx.shape[1], Wh.shape[1])
    fit = wanted["Wx"] == Wx.shape[::-1] and wanted["Wh"] == Wh.shape[::-1]
    return fit and Wx.shape != Wx.shape[::-1]
