"""The past that a forecaster keeps, so that it can go on from new values without training."""

from typing import Any

import numpy as np

from ..typing import Array
from .frames import TimeStep, are_times, index_of
from .series import TAIL, Shape, index_after

Past = list[tuple[Array, Array]]  # values (T, C) and known inputs (T, E) of each series


def packed(past: Past) -> bytes:
    """As bytes, for a pickle."""
    from safetensors.numpy import save

    return save(
        {
            f"{part}.{k}": np.ascontiguousarray(array)
            for k, pair in enumerate(past)
            for part, array in zip(("values", "known"), pair, strict=True)
        }
    )


def unpacked(data: bytes) -> Past:
    """The past that ``packed`` made bytes of."""
    from safetensors.numpy import load

    arrays = load(data)
    return [(arrays[f"values.{k}"], arrays[f"known.{k}"]) for k in range(len(arrays) // 2)]


def longer(past: Past, more: Past, keep: int | None) -> Past:
    """A past with what came after it, of which the last ``keep`` steps are kept; None: all."""
    start = -keep if keep else 0
    return [
        (np.concatenate([values, new])[start:], np.concatenate([known, later])[start:])
        for (values, known), (new, later) in zip(past, more, strict=True)
    ]


def expect_next(name: str, shape: Shape, new: Any, step: TimeStep | None) -> None:
    """Raises ValueError where the index of new values does not go on from that of a series.

    step  of the series of fit
    """
    index = index_of(new)
    if index is None or "index" not in shape or not len(index):
        return
    expected = index_after(shape, len(index), step)
    if are_times(shape["index"]) and not are_times(index):
        got = f"{type(index).__name__} from {index[0]}"
    else:
        pairs = zip(index, expected, strict=True)
        got = next((str(one) for one, other in pairs if str(one) != str(other)), "")
    if got and list(index) != list(expected):
        remedy = "to_numpy() drops the index"
        if expected[0] in index:  # some of it has been read before
            remedy = f"{name}.loc[{str(expected[0])!r}:] is what is new"
        raise ValueError(
            f"{name}: expected the index to go on from {expected[0]}, got {got}; {remedy}"
        )


def followed(name: str, shape: Shape, new: Any, step: TimeStep | None) -> Shape:
    """The shape of a series with new values behind it.

    Raises ValueError where their index does not go on.
    """
    expect_next(name, shape, new, step)
    index = index_of(new)
    if "index" not in shape:
        return shape
    if type(index) is not type(shape["index"]):  # also where there is none
        index = index_after(shape, len(new), step)
    tail = shape["index"].append(index)[-TAIL:]
    return {**shape, "index": tail, "steps": shape["steps"] + len(new)}
