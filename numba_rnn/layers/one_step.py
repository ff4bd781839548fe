"""One step of a recurrent network: RNN, LSTM and GRU, whose caller carries the state.

Shapes: N batch, D input size, H hidden size. Wrong shapes raise ValueError, wrong types and dtypes
TypeError.
"""

from ..kernels.cells import Cell
from ..typing import Array
from ..validation import validate_array
from .cell_layer import CellLayer, _IsGRU, _IsLSTM, _IsRNN


class _SingleStep(CellLayer):
    """One step of a cell; the caller carries the state."""

    def __init__(self, Wx: Array, Wh: Array, b: Array, cell: Cell) -> None:
        super().__init__((Wx, Wh, b), cell)

    def _forward(self, x: Array, *state: Array) -> tuple[Array, ...]:
        engine = self._engine()
        x = validate_array("x", x, ("N", self.input_size), self.dtype, engine)
        shape = x.shape[0], self.hidden_size
        state = tuple(
            validate_array(f"{name}_prev", value, shape, self.dtype, engine)
            for name, value in zip(self.cell.states, state, strict=True)
        )
        self.forget()
        _, after, saved = engine.forward(self.cell, x[:, None], state, self.params)
        self._tape = engine, saved, x.shape[0]
        return after

    def _backward(self, *dstate: Array | None) -> tuple[Array, ...]:
        engine, saved, N = self._saved()
        dstate = tuple(None if isinstance(d, (int, float)) and d == 0 else d for d in dstate)
        dstate = self._accepted("d{}_next", dstate, N, engine)
        zeros = self._zeros(N, engine)
        known = tuple(z if d is None else d for d, z in zip(dstate, zeros, strict=True))
        gradients = engine.backward(self.cell, zeros[0][:, None], known, saved, out=self.grads)
        return (gradients.xs[:, 0], *gradients.state)


class RNN(_IsRNN, _SingleStep):
    """One step of a simple recurrent network, h = tanh(x Wx + h_prev Wh + b).

    The equations and their derivatives are in ``kernels/cells/rnn.py``.

    Parameters
    ----------
    Wx : (D, H) array, float32 or float64
        The input weights.
    Wh : (H, H) array
        The recurrent weights.
    b : (H,) array
        The bias.
    activation : {"tanh", "relu"}
        The activation function.
    """

    def __init__(self, Wx: Array, Wh: Array, b: Array, activation: str = "tanh") -> None:
        super().__init__(Wx, Wh, b, self._select({"activation": activation}))

    def forward(self, x: Array, h_prev: Array) -> Array:
        """Run the step.

        Parameters
        ----------
        x : (N, D) array
            The input.
        h_prev : (N, H) array
            The hidden state before the step.

        Returns
        -------
        h_next : (N, H) array
            The hidden state after the step.
        """
        return self._forward(x, h_prev)[0]

    def backward(self, dh_next: Array) -> tuple[Array, Array]:
        """Compute the gradients and fill ``grads``.

        Parameters
        ----------
        dh_next : (N, H) array
            The gradient of h_next.

        Returns
        -------
        dx : (N, D) array
            The gradient of x.
        dh_prev : (N, H) array
            The gradient of h_prev.
        """
        dx, dh_prev = self._backward(dh_next)
        return dx, dh_prev


class LSTM(_IsLSTM, _SingleStep):
    """One step of long short-term memory.

    The equations and their derivatives are in ``kernels/cells/lstm.py``.

    Parameters
    ----------
    Wx : (D, 4H) array, float32 or float64
        The input weights, gates in the order f, g, i, o.
    Wh : (H, 4H) array
        The recurrent weights.
    b : (4H,) array
        The biases.
    """

    def __init__(self, Wx: Array, Wh: Array, b: Array) -> None:
        super().__init__(Wx, Wh, b, self._select({}))

    def forward(self, x: Array, h_prev: Array, c_prev: Array) -> tuple[Array, Array]:
        """Run the step.

        Parameters
        ----------
        x : (N, D) array
            The input.
        h_prev : (N, H) array
            The hidden state before the step.
        c_prev : (N, H) array
            The memory cell before the step.

        Returns
        -------
        h_next : (N, H) array
            The hidden state after the step.
        c_next : (N, H) array
            The memory cell after the step.
        """
        h_next, c_next = self._forward(x, h_prev, c_prev)
        return h_next, c_next

    def backward(self, dh_next: Array, dc_next: Array | None = None) -> tuple[Array, Array, Array]:
        """Compute the gradients and fill ``grads``.

        Parameters
        ----------
        dh_next : (N, H) array
            The gradient of h_next.
        dc_next : (N, H) array or None, default None
            The gradient of c_next. None or 0 stands for zeros: nothing after this step uses c.

        Returns
        -------
        dx : (N, D) array
            The gradient of x.
        dh_prev : (N, H) array
            The gradient of h_prev.
        dc_prev : (N, H) array
            The gradient of c_prev.
        """
        dx, dh_prev, dc_prev = self._backward(dh_next, dc_next)
        return dx, dh_prev, dc_prev


class GRU(_IsGRU, _SingleStep):
    """One step of a gated recurrent unit.

    The equations and their derivatives are in ``kernels/cells/gru.py``.

    Parameters
    ----------
    Wx : (D, 3H) array, float32 or float64
        The input weights, gates in the order z, r, h.
    Wh : (H, 3H) array
        The recurrent weights.
    b : (3H,) array, or (2, 3H) with reset_after=True
        The biases.
    reset_after : bool, default False
        Whether the reset gate multiplies h Wh instead of h, as in cuDNN and PyTorch.
    """

    def __init__(self, Wx: Array, Wh: Array, b: Array, reset_after: bool = False) -> None:
        super().__init__(Wx, Wh, b, self._select({"reset_after": reset_after}))

    def forward(self, x: Array, h_prev: Array) -> Array:
        """Run the step.

        Parameters
        ----------
        x : (N, D) array
            The input.
        h_prev : (N, H) array
            The hidden state before the step.

        Returns
        -------
        h_next : (N, H) array
            The hidden state after the step.
        """
        return self._forward(x, h_prev)[0]

    def backward(self, dh_next: Array) -> tuple[Array, Array]:
        """Compute the gradients and fill ``grads``.

        Parameters
        ----------
        dh_next : (N, H) array
            The gradient of h_next.

        Returns
        -------
        dx : (N, D) array
            The gradient of x.
        dh_prev : (N, H) array
            The gradient of h_prev.
        """
        dx, dh_prev = self._backward(dh_next)
        return dx, dh_prev
