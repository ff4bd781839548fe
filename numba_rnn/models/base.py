"""The base of models that are trained as a whole: their states, random numbers and files."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..backend import engine_by_name, to_host
from ..kernels.cells import Cell
from ..layers import TimeRecurrent
from ..layers.composite import Composite, Container
from ..layers.initialisers import Seed, generator
from ..layers.stored_params import arrays_of, param_of, set_params
from ..training.checkpoint import load_checkpoint, save_checkpoint
from ..typing import AnyArray, Array, Scalar
from ..validation import expect_array


class BaseModel(Container):
    """Layers that are trained as one model.

    Parameters
    ----------
    parts : mapping of str to Layer
        The layers by name.
    rng : numpy.random.Generator, int or None, default None
        A random generator or a seed, which all layers then share for what they drop. By default
        they share that of the first layer that drops something.

    Attributes
    ----------
    rng : numpy.random.Generator
        The generator.
    """

    def __init__(self, parts: Mapping[str, Any], rng: Seed = None) -> None:
        super().__init__(parts)
        own = [part.rng for part in self._drawing()]
        self.rng = own[0] if rng is None and own else generator(rng)
        self.loss: Any = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, float32 where there are none."""
        params = self.params
        return params[0].dtype if params else np.dtype(np.float32)

    @property
    def batch_weight(self) -> float | None:
        """How much the last batch counts in a mean over several; None: the loss does not say."""
        return getattr(self.loss, "count", None)

    def _loss_of(self, out: Array, ts: AnyArray, options: Mapping[str, Any]) -> Scalar:
        """The loss, with further arguments by name; those that it does not take are refused."""
        known = inspect.signature(self.loss.forward).parameters if options else {}
        names = [p.name for p in known.values() if p.kind is p.KEYWORD_ONLY]
        for name in options:
            if name not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
                raise TypeError(
                    f"{name}: expected none, as {type(self.loss).__name__} takes only "
                    f"{' and '.join(names) or 'outputs and targets'}; "
                    + ("labels of -1 are left out" if name == "mask" else "layers take lengths")
                )
        loss: Scalar = self.loss.forward(out, ts, **options)
        return loss

    def _drawing(self) -> list[Any]:
        """The parts that draw random numbers: dropout, regularisers, losses that sample."""
        found: list[Any] = []
        for layer in self._parts.values():
            inner = [layer, *getattr(layer, "recurrent", ())]
            found += [layer, *getattr(layer, "dropouts", ())]
            found += [getattr(part, "regularisers", None) for part in inner]
        return [part for part in found if hasattr(part, "rng")]

    def _recurrent(self) -> list[tuple[str, TimeRecurrent]]:
        """The recurrent layers by place: "0", or "0.1" within layer 0."""
        found: list[tuple[str, TimeRecurrent]] = []
        for name, layer in self._parts.items():
            if isinstance(layer, TimeRecurrent):
                found.append((name, layer))
            elif isinstance(layer, Composite):
                found += [(f"{name}.{j}", part) for j, part in enumerate(layer.recurrent)]
        return found

    def _set_training(self, train_flg: bool) -> None:
        """Tell all layers whether they train, and what they draw from."""
        for layer in self._parts.values():
            if hasattr(layer, "train_flg"):
                layer.train_flg = train_flg
        if train_flg:  # also what a layer got after this model was made
            for part in self._drawing():
                part.rng = self.rng

    def reset_state(self) -> None:
        """Forget the states: the next forward starts from zeros."""
        for _, layer in self._recurrent():
            layer.reset_state()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run on a fresh state, then take the old one up again."""
        layers = [layer for _, layer in self._recurrent()]
        before = [(layer.state, layer._state_given) for layer in layers]
        self.reset_state()
        try:
            yield
        finally:
            self.forget()
            for layer, (state, given) in zip(layers, before, strict=True):
                layer.state, layer._state_given = state, given

    # ---- checkpoints

    def arrays(self) -> dict[str, Array]:
        """Return parameters by name, and the states from which the next forward starts.

        Returns
        -------
        dict of str to array
            NumPy arrays, wherever the model is. The entries "cell/0" and so on hold results of the
            cells for fixed numbers, by which ``load_arrays`` recognises them. A weight in int8 has
            two entries, its values "int8/0.Wx" and their scales "scale/0.Wx".
        """
        probe = engine_by_name("numpy").probe
        found = {f"cell/{place}": probe(layer.cell) for place, layer in self._recurrent()}
        for name, param in zip(self.param_names, self.params, strict=True):
            found |= arrays_of(name, param)
        for place, layer in self._recurrent():
            next_state = layer.state if layer.stateful or layer._state_given else None
            for name, value in zip(layer.cell.states, next_state or (), strict=False):
                found[f"state/{place}.{name}"] = to_host(value)
        return found

    def load_arrays(self, arrays: dict[str, Array]) -> None:
        """Set parameters and states to those that ``arrays`` returned: all or, on an error, none.

        Weights are then in int8 if those of the arrays are.

        Parameters
        ----------
        arrays : dict of str to array
            NumPy arrays, wherever the model is.

        Raises
        ------
        ValueError, TypeError
            If an array is missing, does not fit or has no place, or if a cell now computes
            something else.
        """
        params = dict(zip(self.param_names, self.params, strict=True))
        for place, layer in self._recurrent():
            expect_cell(f"cell/{place}", layer.cell, arrays.get(f"cell/{place}"))
        slots = [(leaf, k) for _, leaf in self._leaves() for k in range(len(leaf.params))]
        values = [
            param_of(name, arrays, leaf, k) for name, (leaf, k) in zip(params, slots, strict=True)
        ]
        unknown = [name for name in arrays if "/" not in name and name not in params]
        if unknown:
            remedy = ""
            if any(name.endswith(".initial") for name in unknown):
                remedy = "; layer.learn_initial_state() makes a parameter of the initial state"
            raise ValueError(
                f"arrays: expected {', '.join(params)}, got {', '.join(unknown)} as well{remedy}"
            )
        states: list[list[Array]] = []  # of each recurrent layer; none where the arrays have none
        for place, layer in self._recurrent():
            keys = [f"state/{place}.{name}" for name in layer.cell.states]
            states.append([arrays[key] for key in keys] if set(keys) <= arrays.keys() else [])
            for key, size, array in zip(keys, layer._state_sizes, states[-1], strict=False):
                expect_array(key, array, (*np.shape(states[-1][0])[:1], size), layer.dtype)
        set_params(slots, values)
        self.reset_state()
        for (_, layer), state in zip(self._recurrent(), states, strict=True):
            if state:
                layer.set_state(*state)

    def save(self, path: str | Path) -> None:
        """Write parameters and states to a file, which is whole or not there.

        Parameters
        ----------
        path : str or Path
            The file, in safetensors' format.
        """
        save_checkpoint(
            path, self.arrays(), {"layers": [str(part) for part in self._parts.values()]}
        )

    def load(self, path: str | Path) -> Self:
        """Set parameters and states to those of a file. An error leaves all as it was.

        No code from the file is run. A checkpoint that a ``Trainer`` of such a model wrote will do,
        too.

        Parameters
        ----------
        path : str or Path
            The file.

        Returns
        -------
        Self
            The model itself.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        CheckpointError
            If the file is damaged.
        ValueError
            If it is of a model of other layers or sizes.
        """
        arrays, content = load_checkpoint(path)
        try:
            self.load_arrays(arrays)
        except (TypeError, ValueError) as error:
            layers = content.get("layers", "unknown layers")
            raise ValueError(
                f"{path}: expected a checkpoint of this model, got one of {layers} ({error})"
            ) from error
        return self


def expect_cell(name: str, cell: Cell, probed: Any) -> None:
    """Refuse what the engine's ``probe`` once returned for another cell; None is not looked at."""
    here = engine_by_name("numpy").probe(cell)
    if probed is not None and not (
        np.shape(probed) == here.shape and np.allclose(probed, here, 1e-6, 1e-6, equal_nan=True)
    ):
        raise ValueError(
            f"{name}: expected parameters of {cell.name!r} as it is registered, got those of "
            "another cell of that name"
        )
