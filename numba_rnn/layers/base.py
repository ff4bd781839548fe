"""What every layer has."""

from typing import Any

import numpy as np

from ..checks import Array


class Layer:
    """Parameters and their gradients, in matching order.

    params       arrays that training changes in place
    grads        one array for each, overwritten in place by ``backward``, not accumulated
    param_names  a name for each, as on the page: Wx, Wh, b ...
    """

    param_names: tuple[str, ...] = ()

    def __init__(self, *params: Array) -> None:
        self.params: list[Array] = list(params)
        self.grads: list[Array] = [np.zeros_like(p) for p in params]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, and so of everything that goes in and out."""
        return self.params[0].dtype


class ForwardFirst(RuntimeError):  # noqa: N818 (reads as the remedy)
    """backward was called before forward."""

    def __init__(self, layer: object) -> None:
        super().__init__(f"{type(layer).__name__}.backward: call forward first")
