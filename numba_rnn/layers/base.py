"""What every layer has."""

from typing import Any

import numpy as np

from ..checks import Array


class ForwardFirst(RuntimeError):  # noqa: N818 (reads as the remedy)
    """backward was called before forward."""

    def __init__(self, layer: object) -> None:
        super().__init__(f"{type(layer).__name__}.backward: call forward first")


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
        self._tape: Any = None  # what forward keeps for backward

    def forget(self) -> None:
        """Drop what forward kept for backward, and with it the memory."""
        self._tape = None

    def _recall(self) -> Any:
        """What forward kept. Raises ForwardFirst if it kept nothing."""
        if self._tape is None:
            raise ForwardFirst(self)
        return self._tape

    def __repr__(self) -> str:
        shapes = zip(self.param_names, self.params, strict=True)
        return f"{type(self).__name__}({', '.join(f'{n} {p.shape}' for n, p in shapes)})"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, and so of everything that goes in and out."""
        return self.params[0].dtype
