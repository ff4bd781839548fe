"""The base class of all layers."""

from typing import Any, Self

import numpy as np

from ..backend import Engine, engine_by_name, engine_for_input, engine_of_param, move
from ..kernels import deprecated
from ..typing import Array


class BackwardBeforeForward(RuntimeError):  # noqa: N818 (reads as what is wrong)
    """backward was called before forward."""

    def __init__(self, layer: object) -> None:
        super().__init__(f"{type(layer).__name__}.backward: call forward first")


class Layer:
    """Base class of layers: parameters and their gradients, in matching order.

    Parameters
    ----------
    *params : array, float32 or float64
        The parameters.

    Attributes
    ----------
    params : list of arrays
        The parameters. Training changes them in place.
    grads : list of arrays
        One gradient for each parameter. ``backward`` overwrites them in place, it does not
        accumulate.
    param_names : tuple of str
        One name for each parameter, as in the equations: Wx, Wh, b and so on.

    Notes
    -----
    A layer runs where its parameters are, a layer without parameters where its input is. NumPy
    arrays become parameters in place (arrays that are not aligned are copied). While the CUDA
    engine is in force they are copied to the GPU, once. A layer on the GPU takes NumPy arrays,
    which are copied at every call, and arrays with DLPack, which are not copied. Its results stay
    on the GPU.
    """

    param_names: tuple[str, ...] = ()
    role_in_stream: str | None = None  # "recurrent", "affine"; None: it has no streams

    def __init__(self, *params: Array) -> None:
        homes = [engine_for_input(p) for p in params]
        self.params: list[Array] = [h.to_device(p) for h, p in zip(homes, params, strict=True)]
        self.grads: list[Array] = [
            h.xp.zeros_like(p) for h, p in zip(homes, self.params, strict=True)
        ]
        self._tape: Any = None  # what forward keeps for backward

    def to(self, name: str) -> Self:
        """Move the layer to the memory of an engine.

        Parameters, gradients and states become arrays of that engine. The memory that forward keeps
        for backward is freed.

        Parameters
        ----------
        name : {"cuda", "cpu", "numba", "numpy"}
            The engine. "numba" and "numpy" mean the same memory as "cpu".

        Returns
        -------
        Self
            The layer itself.

        Raises
        ------
        ValueError
            If name is none of these.
        BackendError
            If there is no GPU that answers.
        """
        self._move(engine_by_name(name))
        return self

    def _move(self, engine: Engine) -> None:
        params = [move(p, engine) for p in self.params]
        self.grads[:] = [move(g, engine) for g in self.grads]
        self.params[:] = params
        self.forget()

    def in_stream(self) -> list[Any]:
        """The layers that a ``Stream`` of this one runs, from the bottom."""
        return [self]

    def _engine(self) -> Engine:
        """The engine that runs where the parameters are."""
        return engine_of_param(self.params[0])

    def forget(self) -> None:
        """Free the memory that forward keeps for backward."""
        self._tape = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has parameters, gradients and states; what forward kept is not copied."""
        return {**self.__dict__, **dict.fromkeys(self.__dict__.keys() & {"_tape", "trace"})}

    def _saved(self) -> Any:
        """The record that forward kept. Raises BackwardBeforeForward if there is none."""
        if self._tape is None:
            raise BackwardBeforeForward(self)
        return self._tape

    def __repr__(self) -> str:
        shapes = zip(self.param_names, self.params, strict=True)
        return f"{type(self).__name__}({', '.join(f'{n} {p.shape}' for n, p in shapes)})"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, and of everything that goes in and out."""
        return self.params[0].dtype


__getattr__ = deprecated.names_of(__name__)
