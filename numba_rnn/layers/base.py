"""The base class of all layers."""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from ..backend import Engine, engine_by_name, engine_for_input, engine_of_param, move
from ..kernels import deprecated
from ..kernels.quantisation import QuantisedWeight, is_quantised, quantise
from ..kernels.sparse_rows import SparseRows
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
        The parameters. Training changes them in place. After ``quantise`` the weights among them
        are of ``QuantisedWeight``.
    grads : list of arrays
        One gradient for each parameter, None for one in int8. ``backward`` overwrites them in
        place, it does not accumulate.
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
    _weight_names: tuple[str, ...] = ()  # the parameters that quantise rounds
    _scale_axis = 1  # of these in int8: 1: columns, 0: rows
    role_in_stream: str | None = None  # "recurrent", "affine"; None: it has no streams
    float32_in_stream = False  # whether its weights stay so in a stream that rounds them

    def __init__(self, *params: Array) -> None:
        homes = [engine_for_input(p) for p in params]
        self.params: list[Array] = [h.to_device(p) for h, p in zip(homes, params, strict=True)]
        self.grads: list[Any] = [
            None if isinstance(p, QuantisedWeight) else h.xp.zeros_like(p)
            for h, p in zip(homes, self.params, strict=True)
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
        self.grads[:] = [None if g is None else move(g, engine) for g in self.grads]
        self.params[:] = params
        self.forget()

    # ---- weights in int8

    @property
    def quantised(self) -> bool:
        """Whether there are weights in int8."""
        return is_quantised(self.params)

    def _leaves(self) -> list[tuple[str, "Layer"]]:
        """The layers that have the parameters of this one, in their order, with their names."""
        return [("", self)]

    def quantise(self) -> Self:
        """Round the weights to int8, in place, for use after training.

        Each column of a weight (each row of an embedding) gets a scale of its own; biases, initial
        states and everything that is computed stay float32. Forward then multiplies whole numbers
        and rounds to 8 bits what it multiplies them with. See ``kernels/quantisation.py``.

        There is no ``backward`` afterwards. ``dequantise`` makes float32 weights of the rounded
        ones; to keep those from before, quantise ``copy.deepcopy(layer)``.

        Returns
        -------
        Self
            The layer itself. If it has no weights of products, as dropout has none, it stays as it
            is.

        Raises
        ------
        TypeError
            If a weight is not a float32 array in host memory; nothing has changed then.
        ValueError
            If a weight is NaN or infinite; nothing has changed then.

        Examples
        --------
        >>> import numpy as np
        >>> from numba_rnn import TimeLSTM
        >>> layer = TimeLSTM.create(3, 5, rng=0).quantise()
        >>> layer.params[0]
        QuantisedWeight(3 x 20, int8, a scale per column)
        >>> layer.forward(np.ones((2, 7, 3), np.float32)).shape
        (2, 7, 5)
        """
        quantise_some(self, (layer for _, layer in self._leaves()))
        return self

    def dequantise(self) -> Self:
        """Make float32 weights of those in int8, in place: the rounded numbers, bit for bit.

        Returns
        -------
        Self
            The layer itself, which can be trained again.
        """
        for _, layer in self._leaves():
            for k, param in enumerate(layer.params):
                if isinstance(param, QuantisedWeight):
                    layer._set_param(k, param.dequantise())
        return self

    def _in_int8(self) -> dict[int, QuantisedWeight]:
        """Its weights that are not in int8, rounded, by their place among the parameters."""
        found = {}
        for k, (name, param) in enumerate(zip(self.param_names, self.params, strict=True)):
            if name in self._weight_names and not isinstance(param, QuantisedWeight):
                if not isinstance(param, np.ndarray) or param.dtype != np.float32:
                    remedy = (
                        "; make the layer of params.astype(np.float32), or fit with X in float32"
                        if isinstance(param, np.ndarray)
                        else ' on a GPU; layer.to("cpu")'
                    )
                    raise TypeError(
                        f"{type(self).__name__}.{name}: expected float32 in host memory to make "
                        f"int8 of, got {param.dtype}{remedy}"
                    )
                found[k] = quantised_weight(
                    f"{type(self).__name__}.{name}", param, self._scale_axis
                )
        return found

    def _set_param(self, k: int, param: Any) -> None:
        """Replace a parameter by one of another kind."""
        self.forget()
        self.params[k] = param
        if not isinstance(self.grads[k], SparseRows):  # which stays what the layer was made with
            self.grads[k] = None if isinstance(param, QuantisedWeight) else np.zeros_like(param)

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
        """The record that forward kept. Raises BackwardBeforeForward if there is none, TypeError
        if there are weights in int8."""
        if self.quantised:
            raise TypeError(
                f"{type(self).__name__}.backward: expected weights in float32 or float64, which "
                "have gradients, got int8 ones; dequantise() makes them float32 again"
            )
        if self._tape is None:
            raise BackwardBeforeForward(self)
        return self._tape

    def __repr__(self) -> str:
        shapes = zip(self.param_names, self.params, strict=True)
        sizes = [f"{name} {param.shape}" for name, param in shapes]
        return f"{type(self).__name__}({', '.join(sizes + ['weights int8'] * self.quantised)})"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, and of everything that goes in and out."""
        return self.params[0].dtype


def quantise_some(model: Any, layers: Iterable[Layer]) -> None:
    """Round the weights of some layers of a model or, on an error, of none."""
    found = [(layer, layer._in_int8()) for layer in layers]
    for layer, weights in found:
        for k, weight in weights.items():
            layer._set_param(k, weight)
    if hasattr(model, "_tie_weights"):
        model._tie_weights()


def quantised_weight(name: str, W: Array, axis: int) -> QuantisedWeight:
    """A float32 matrix in int8, with a scale for each column (axis 1) or row (0)."""
    return quantise(W, name) if axis else quantise(W.T, name).T


__getattr__ = deprecated.names_of(__name__)
