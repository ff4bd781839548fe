"""Layers on top of each other: other libraries keep them in a list, with dropout between them."""

from collections.abc import Sequence
from typing import Any

from ..layers import Bidirectional, Reversed, Stacked, TimeRecurrent
from .gate_order import ConversionError

Part = TimeRecurrent | Bidirectional | Reversed


def build_stack(parts: Sequence[Any]) -> Any:
    """The one layer, or a Stacked, of layers and of the rates of the dropout between them."""
    layers: list[Any] = []
    rates: list[float] = []
    for part in parts:
        if not isinstance(part, float):
            rates += [0.0] * (len(layers) - len(rates))  # none between it and the one below
            layers.append(part)
        elif len(rates) == len(layers):
            raise ConversionError(
                "source: expected each Dropout after a layer, got one that is not"
            )
        else:
            rates.append(part)
    if not layers:
        raise ValueError("source: expected recurrent layers, got none")
    if len(rates) == len(layers):
        raise ConversionError("source: expected no Dropout above the last layer, got one")
    if len(set(rates)) > 1:
        raise ConversionError(
            "source: expected the same dropout rate between all layers, got "
            + ", ".join(map(str, rates))
        )
    return Stacked(layers, dropout=rates[0]) if rates else layers[0]


def layers_of_stack(layer: Any, library: str) -> tuple[tuple[Part, ...], float]:
    """The layers from the bottom, and the rate of the dropout between them."""
    parts = layer.layers if isinstance(layer, Stacked) else (layer,)
    kinds = (TimeRecurrent, Bidirectional, *((Reversed,) if library == "Keras" else ()))
    if not all(isinstance(part, kinds) for part in parts):
        inside = "; model.layers has its layers" if hasattr(layer, "layers") else ""
        raise TypeError(
            f"layer: expected a TimeRecurrent, Bidirectional or Stacked, got "
            f"{type(layer).__name__}{inside}"
        )
    if isinstance(layer, Stacked) and any(layer.residuals):
        raise ConversionError(
            f"layer: {library} has no residual connections between recurrent layers"
        )
    for part in parts if library != "Keras" else ():
        expect_plain_outputs("layer", part, library)
    return parts, layer.dropouts[0].ratio if len(parts) > 1 else 0.0


def expect_plain_outputs(name: str, part: Any, library: str) -> None:
    """Refuse a Bidirectional whose two outputs become one, and a Reversed that turns them round."""
    if getattr(part, "merge", "concat") != "concat":
        raise ConversionError(
            f"{name}: {library} has the outputs of both directions side by side, here they are "
            f"merged ({part.merge!r})"
        )
    if getattr(part, "in_reading_order", False):
        raise ConversionError(
            f"{name}: {library} has each output at its own step, here they are in_reading_order"
        )


def directions_of(part: Part) -> tuple[TimeRecurrent, ...]:
    """The layer, or the two of a Bidirectional, forwards first."""
    return (part,) if isinstance(part, TimeRecurrent) else part.recurrent
