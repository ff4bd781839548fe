"""Recurrent layers that work together as one: what Bidirectional and Stacked share."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from ..backend import Engine
from ..typing import Array, BoolArray, MaybeNone
from ..validation import validate_array, validate_flags, validate_mask
from .base import Layer
from .initialisers import generator
from .recurrent import TimeRecurrent

States = tuple[Array, ...] | MaybeNone
DStates = Sequence[Array | None] | None


class Container(Layer):
    """Layers that act as one layer, with the parameters of all.

    Parameters
    ----------
    parts : mapping of str to Layer
        The layers by name. The name of a parameter is the name of the part, a dot, and its name in
        the part.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts = dict(parts)
        self._tape: Any = None

    # always those of the parts, which may get parameters later (learn_initial_state)

    @property
    def params(self) -> list[Array]:  # type: ignore[override]
        """The parameters of all parts: the same arrays, in a new list."""
        return [param for part in self._parts.values() for param in part.params]

    @property
    def grads(self) -> list[Array]:  # type: ignore[override]
        """The gradients of all parts: the same arrays, in a new list."""
        return [grad for part in self._parts.values() for grad in part.grads]

    @property
    def param_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """One name for each parameter, such as ``forward.Wx``."""
        return tuple(
            f"{part_name}.{name}"
            for part_name, part in self._parts.items()
            for name in part.param_names
        )

    def _leaves(self) -> list[tuple[str, Layer]]:
        return [
            (f"{part_name}.{name}".rstrip("."), leaf)
            for part_name, part in self._parts.items()
            for name, leaf in part._leaves()
        ]

    def _move(self, engine: Engine) -> None:
        for part in self._parts.values():
            part._move(engine)
        self.forget()

    def forget(self) -> None:
        """Free the memory that forward keeps for backward, in every layer."""
        super().forget()
        for part in self._parts.values():
            part.forget()


class Composite(Container):
    """Recurrent layers that act as one layer, with the parameters of all.

    Parameters
    ----------
    parts : mapping of str to TimeRecurrent or Composite
        The layers by name.

    Notes
    -----
    Methods with one entry for each recurrent layer take them in the order of ``recurrent``.
    """

    @property
    def recurrent(self) -> tuple[TimeRecurrent, ...]:
        """The recurrent layers from the first to the last, forward before backward."""
        return tuple(
            layer
            for part in self._parts.values()
            for layer in (part.recurrent if isinstance(part, Composite) else (part,))
        )

    @property
    def input_size(self) -> int:
        """D, the number of features of an input."""
        return int(next(iter(self._parts.values())).input_size)

    @property
    def train_flg(self) -> bool:
        """Whether regularisers act as in training; setting it sets that of every layer."""
        return all(layer.train_flg for layer in self.recurrent)

    @train_flg.setter
    def train_flg(self, value: bool) -> None:
        for layer in self.recurrent:
            layer.train_flg = value

    @property
    def checkpoint_every(self) -> int:
        """The largest ``checkpoint_every`` of the layers. Setting it sets it for every layer."""
        return max(layer.checkpoint_every for layer in self.recurrent)

    @checkpoint_every.setter
    def checkpoint_every(self, value: int) -> None:
        for layer in self.recurrent:
            layer.checkpoint_every = value

    # ---- states

    @property
    def state(self) -> tuple[States, ...]:
        """For each recurrent layer its states after the last step, or None."""
        return tuple(layer.state for layer in self.recurrent)

    @property
    def dstate(self) -> tuple[States, ...]:
        """For each recurrent layer the gradient of its states before the first step, or None."""
        return tuple(layer.dstate for layer in self.recurrent)

    def set_state(self, *states: DStates) -> None:
        """Set the states from which the next forward starts.

        Parameters
        ----------
        *states : tuple of arrays or None
            One tuple for each recurrent layer, as its ``set_state`` takes it; None for a layer that
            starts anew. ``set_state(*layer.state)`` sets any value of ``state``.

        Raises
        ------
        TypeError
            If there are more entries than layers, or an entry is not a tuple.
        """
        layers, given = self.recurrent, self._one_each("set_state", states)
        before = [(layer.state, layer._state_given) for layer in layers]
        try:
            for layer, own in zip(layers, given, strict=True):
                if own is None:
                    layer.reset_state()
                else:
                    layer.set_state(*own)
        except (TypeError, ValueError):  # all or none
            for layer, (state, flag) in zip(layers, before, strict=True):
                layer.state, layer._state_given = state, flag
            raise

    def reset_state(self) -> None:
        """Forget the states of every layer."""
        for layer in self.recurrent:
            layer.reset_state()

    def _one_each(self, method: str, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        """A tuple or None for each recurrent layer; as many None as were left out."""
        count = len(self.recurrent)
        if len(arrays) > count:
            raise TypeError(
                f"{method}: expected a tuple of arrays or None for each of {count} layers, "
                f"got {len(arrays)}"
            )
        for k, own in enumerate(arrays):
            if own is not None and not isinstance(own, (tuple, list)):
                raise TypeError(
                    f"{method}: expected a tuple of arrays or None for each layer, got "
                    f"{type(own).__name__} for layer {k}"
                )
        return (*arrays, *(None,) * (count - len(arrays)))

    # ---- options

    def learn_initial_state(self) -> Self:
        """Make the state from which sequences start a parameter of every layer.

        Returns
        -------
        Self
            The layer itself.

        Raises
        ------
        ValueError
            If it is already a parameter.
        """
        if any(layer._initial is not None for layer in self.recurrent):
            raise ValueError("learn_initial_state: the initial state is already a parameter")
        for layer in self.recurrent:
            layer.learn_initial_state()
        return self

    def regularise(self, **rates: Any) -> Self:
        """Set the regularisers of every layer, each with masks of its own.

        Parameters
        ----------
        **rates
            The arguments of ``TimeRecurrent.regularise``.

        Returns
        -------
        Self
            The layer itself.
        """
        random = generator(rates.pop("rng", None))
        before = [layer.regularisers for layer in self.recurrent]
        try:
            for layer in self.recurrent:
                layer.regularise(rng=random, **rates)
        except (TypeError, ValueError):  # all or none
            for layer, own in zip(self.recurrent, before, strict=True):
                layer.regularisers = own
            raise
        return self

    # ---- what the parts' passes have in common

    def _accept_block(
        self, xs: Array, lengths: Any, mask: Any, resets: Any
    ) -> tuple[Engine, Array, BoolArray | None, BoolArray | None]:
        """The engine, xs, the mask and the resets, checked before any layer runs."""
        engine = self._engine()
        xs = validate_array("xs", xs, ("N", "T", self.input_size), self.dtype, engine)
        N, T, _ = xs.shape
        mask = validate_mask(lengths, mask, (N, T), engine)
        resets = None if resets is None else validate_flags("resets", resets, (N, T), engine)
        for layer in self.recurrent:
            layer._state_before("xs", N, engine)
        return engine, xs, mask, resets
