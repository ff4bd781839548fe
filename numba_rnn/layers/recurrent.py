"""Recurrent layers over a block of time: TimeRNN, TimeLSTM, TimeGRU, TimeRecurrent for any cell.

The gate arithmetic is in ``kernels/cells/``, the loop over time in the engine, the parameters in
``cell_layer.py``. This file has the state, which may live on from block to block, the options of
steps, and the gradients.

Shapes: N batch, T time, D input size, H hidden size. Parameters, inputs and gradients have one
dtype, float32 or float64. Wrong shapes raise ValueError, wrong types and dtypes TypeError.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, overload

import numpy as np

from ..backend import Engine, move
from ..kernels import cells
from ..kernels.cells import Cell, WrittenCell
from ..kernels.step_options import NO_OPTIONS, StepOptions
from ..streaming import Stream
from ..typing import Array, Flags, Integers, MaybeNone
from ..validation import expect_int, validate_array, validate_flags, validate_mask
from .cell_layer import CellLayer, _IsGRU, _IsLSTM, _IsRNN
from .initialisers import Seed

# they were in this file in 0.1, and pickles name it
from .one_step import GRU as GRU
from .one_step import LSTM as LSTM
from .one_step import RNN as RNN
from .regularisers import WEIGHTS, Regularisers
from .trace import Trace


class TimeRecurrent(CellLayer):
    """Any cell, unrolled over a block of time.

    Parameters
    ----------
    *params : array, float32 or float64
        The parameters of the cell, in the order and the shapes of ``cell.shapes(D, H)``: Wx, Wh
        (unless the cell has no recurrent product), b, and w if the cell has weights of its own.
    stateful : bool, default False
        If True, the state after a block is the state before the next one. The gradient stops at the
        border of the block all the same: that is truncated BPTT.
    cell : Cell or str
        A cell or its name; ``numba_rnn.cells.names()`` lists the names.

    Attributes
    ----------
    state : tuple of (N, H) arrays, or None
        The states of the cell after the last step of the last forward.
    dstate : tuple of (N, H) arrays, or None
        After backward, the gradient of the states before the first step. Both move with ``to``.
    h, dh : (N, H) array or None
        The first of state and of dstate: the hidden state and its gradient.
    train_flg : bool
        False: regularisers (``regularise``) act as after training.
    trace : Trace or None
        Gates, states and gradients of the last forward, if it was asked for them.
    checkpoint_every : int
        With k > 0 forward keeps the states of every k-th step only, and backward computes the
        others again: the same gradients, bit for bit, for about 1.4 times the time and a fraction
        of the memory. The default 0 keeps everything. The Numba engine rounds k up to whole chunks
        of about 256 / N steps. (The CUDA engine keeps nothing of the steps, whatever k is; its
        backward runs forward again.)

    Examples
    --------
    >>> layer = TimeRecurrent.create(3, 5, cell="gru", rng=0)
    >>> layer.forward(np.ones((2, 7, 3), np.float32)).shape
    (2, 7, 5)
    """

    role_in_stream = "recurrent"

    def __init__(
        self, *params: Array, stateful: bool = False, cell: str | Cell | WrittenCell
    ) -> None:
        super().__init__(params, cells.get(cell))
        self.stateful = bool(stateful)
        self.state: tuple[Array, ...] | MaybeNone = None
        self.dstate: tuple[Array, ...] | MaybeNone = None
        self._state_given = False  # by set_state, since the last forward
        self._checkpoint_every = 0
        self.regularisers: Regularisers | None = None
        self.train_flg = True
        self.trace: Trace | MaybeNone = None

    def forget(self) -> None:
        """Free the memory that forward keeps for backward, and the trace."""
        super().forget()
        self.trace = None

    @staticmethod
    def _select(options: dict[str, Any]) -> Cell:
        if "cell" not in options:
            raise TypeError(f"cell: expected one of {', '.join(cells.names())}, got none")
        return cells.get(options["cell"])

    @property
    def h(self) -> Array | MaybeNone:
        """The hidden state, (N, H), after the last step."""
        return None if self.state is None else self.state[0]

    @property
    def dh(self) -> Array | MaybeNone:
        """The gradient of the hidden state, (N, H), before the first step of the block."""
        return None if self.dstate is None else self.dstate[0]

    def set_state(self, *state: Array | None) -> None:
        """Set the state from which the next forward starts.

        A layer that is not stateful starts from it once.

        Parameters
        ----------
        *state : (N, H) array or None
            One array for each state of the cell; a state that is left out or None is 0. If all are
            None, the state is forgotten as by ``reset_state``, so that ``set_state(layer.h)`` sets
            any value of ``h``.

        Raises
        ------
        TypeError
            If no state is given, or too many.
        """
        states = self._one_each("set_state", "{}", state)
        if not state:
            names = ", ".join(self.cell.states)
            raise TypeError(f"set_state: expected {names}, got 0 arrays")
        if all(value is None for value in states):
            self.reset_state()
            return
        rows = [len(value) for value in states if value is not None and np.ndim(value) == 2]
        engine = self._engine()
        states = self._accepted("{}", states, rows[0] if rows else "N", engine)
        zeros = self._zeros(rows[0], engine)
        self.state = tuple(
            (z if value is None else value).copy() for value, z in zip(states, zeros, strict=True)
        )
        self._state_given = True

    def _move(self, engine: Engine) -> None:
        state, dstate = (
            None if arrays is None else tuple(move(array, engine) for array in arrays)
            for arrays in (self.state, self.dstate)
        )
        super()._move(engine)
        self.state, self.dstate = state, dstate

    def _one_each(
        self, method: str, spelling: str, arrays: tuple[Array | None, ...]
    ) -> tuple[Array | None, ...]:
        """One entry for each of the cell's states, None for those left out."""
        missing = len(self.cell.states) - len(arrays)
        if missing < 0:
            names = ", ".join(spelling.format(name) for name in self.cell.states)
            raise TypeError(f"{method}: expected {names}, got {len(arrays)} arrays")
        return (*arrays, *(None,) * missing)

    def reset_state(self) -> None:
        """Forget the state: the next forward starts from zeros or the learnt initial state."""
        self.state = None
        self._state_given = False

    def _state_before(self, name: str, N: int, engine: Engine) -> tuple[Array, ...]:
        """The state from which the next step starts."""
        state = self.state if self.stateful or self._state_given else None
        if state is None and self._initial is not None:
            sized = zip(self._initial, self._state_sizes, strict=True)
            return tuple(engine.xp.repeat(start[None, :size], N, axis=0) for start, size in sized)
        if state is None:
            return self._zeros(N, engine)
        if state[0].shape[0] != N:
            raise ValueError(
                f"{name}: expected a batch of {state[0].shape[0]}, as the state has, got {N}; "
                "reset_state() forgets the state"
            )
        return state

    def step(self, x: Array) -> Array:
        """Run one step of a stateful layer without memory for backward.

        Steps are for use after training: regularisers act as in forward with ``train_flg`` False.

        Parameters
        ----------
        x : (N, D) array
            The input.

        Returns
        -------
        h : (N, H) array
            A copy of the hidden state after the step.

        Raises
        ------
        ValueError
            If the layer is not stateful: it would start anew at every step.
        """
        if not self.stateful:
            raise ValueError("step: expected a layer with stateful=True, got stateful=False")
        engine = self._engine()
        x = validate_array("x", x, ("N", self.input_size), self.dtype, engine)
        state = self._state_before("x", x.shape[0], engine)
        self.state = engine.step(self.cell, x, state, self.cell_params, self.zoneout)
        return self.state[0].copy()

    @property
    def zoneout(self) -> tuple[float, ...]:
        """The zoneout rate of each state: the share of units that keep their old value.

        Without zoneout it is empty.
        """
        rates = () if self.regularisers is None else self.regularisers.zoneout
        return rates if any(rates) else ()

    def stream(self, batch: int = 1, **options: Any) -> Stream:
        """Create a stream of this layer, with a copy of its parameters.

        Parameters
        ----------
        batch : int, default 1
            The number of rows.
        **options
            The other options of ``Stream``.

        Returns
        -------
        Stream
            The stream.

        Examples
        --------
        >>> stream = TimeRNN.create(3, 5, rng=0).stream()
        >>> stream.step(np.ones(3, np.float32)).shape
        (5,)
        """
        return Stream([self], batch, **options)

    def forward(
        self,
        xs: Array,
        *,
        lengths: Integers | None = None,
        mask: Flags | None = None,
        resets: Flags | None = None,
        trace: bool = False,
    ) -> Array:
        """Run the layer over a block of time.

        Parameters
        ----------
        xs : (N, T, D) array
            The inputs, in the dtype of the layer.
        lengths : (N,) integers, optional
            The number of steps in each row, from 0 to T, in any order.
        mask : (N, T) bool array, optional
            May be given instead of lengths. Steps where it is False are left out, whatever xs holds
            there: the state stays as it is and hs is 0.
        resets : (N, T) bool array, optional
            Where it is True, the state returns to its initial value before the step: a new episode,
            or the next of several documents in a row.
        trace : bool, default False
            If True, ``layer.trace`` shows gates, states and, after backward, gradients of every
            step.

        Returns
        -------
        hs : (N, T, H) array
            The hidden state after every step.

        Notes
        -----
        ``state`` holds the state after the last step of each row that is not left out. xs and the
        parameters must not change until backward has run.
        """
        engine = self._engine()
        xs = validate_array("xs", xs, ("N", "T", self.input_size), self.dtype, engine)
        N, T, _ = xs.shape
        mask = validate_mask(lengths, mask, (N, T), engine)
        resets = None if resets is None else validate_flags("resets", resets, (N, T), engine)
        state = self._state_before("xs", N, engine)
        has_state = self._state_given or (self.stateful and self.state is not None)
        self.forget()  # before there are two blocks' worth

        steps: dict[str, Any] = {}
        if mask is not None:
            steps["mask"] = mask
        if resets is not None:
            steps["resets"] = resets
            if self._initial is not None:
                steps["initial"] = self._initial
        params = self.cell_params
        factors: tuple[Array | None, dict[str, Array]] = None, {}
        if self.regularisers is not None:
            xs = StepOptions(mask=mask).live_inputs(engine.xp, xs)
            xs, params, more, factors = self._regularised(xs, params, engine)
            steps |= more
        every = self._checkpoint_every
        chosen = NO_OPTIONS
        if steps or every or trace:
            chosen = StepOptions(**steps, checkpoint_every=every, trace=trace)
        if trace:  # it is looked at later, when an optimiser has changed the parameters
            xs, params = chosen.live_inputs(engine.xp, xs.copy()), [p.copy() for p in params]
        hs, self.state, saved = engine.forward(self.cell, xs, state, params, chosen)
        if trace:
            self.trace = Trace(self.cell, engine, xs, params, chosen, saved)
        self._tape = engine, saved, hs.shape, factors, has_state
        self._state_given = False
        return hs

    def _regularised(
        self, xs: Array, params: list[Array], engine: Engine
    ) -> tuple[Array, list[Array], dict[str, Any], tuple[Array | None, dict[str, Array]]]:
        """xs and parameters for this block, the options of its steps, and the masks."""
        chosen = self.regularisers
        assert chosen is not None
        zoneout: dict[str, Any] = {"zoneout": self.zoneout} if self.zoneout else {}
        if not self.train_flg:
            return xs, params, zoneout, (None, {})
        seed, (N, _, D), H = chosen.new_seed(), xs.shape, self.hidden_size
        on_inputs = chosen.on_inputs(engine, seed, (N, D), self.dtype)
        on_h = chosen.on_h(engine, seed, (N, H), self.dtype)
        if on_inputs is not None:
            xs = xs * on_inputs[:, None]
        on_weights = {}
        if chosen.weight_drop:
            if self.quantised:
                raise TypeError(
                    "weight_drop: expected weights in float32 or float64, which can be dropped in "
                    "training, got int8 ones; train_flg=False drops none"
                )
            on_weights = {
                name: chosen.on_weights(engine, seed, name, param.shape, self.dtype)
                for name, param in zip(self.param_names, params, strict=False)
                if name in WEIGHTS
            }
            params = self._times(params, on_weights)
        steps = {**zoneout, "seed": seed, "row_offset": chosen.row_offset} if zoneout else {}
        if on_h is not None:
            steps["recurrent_mask"] = on_h
        return xs, params, steps, (on_inputs, on_weights)

    def _times(self, arrays: Sequence[Array], masks: Mapping[str, Array]) -> list[Array]:
        """The parameters, or their gradients, times the masks of some of them."""
        named = zip(self.param_names, arrays, strict=False)
        return [array * masks[name] if name in masks else array for name, array in named]

    @overload
    def backward(
        self, dhs: Array, *dstate: Array | None, inputs: Literal[True] = True
    ) -> Array: ...
    @overload
    def backward(self, dhs: Array, *dstate: Array | None, inputs: bool) -> Array | None: ...
    def backward(self, dhs: Array, *dstate: Array | None, inputs: bool = True) -> Array | None:
        """Compute the gradients, fill ``grads`` and set ``dstate``.

        Parameters
        ----------
        dhs : (N, T, H) array
            The gradient of the hidden states. Steps that are left out are ignored.
        *dstate : (N, H) array or None
            The gradient of the states after the last step, if something beyond the block uses them.
            Left out: zeros, which cuts the gradient there.
        inputs : bool, default True
            False skips the gradient of xs, which nobody needs if xs are data, and saves a sixth of
            the work of a training step.

        Returns
        -------
        dxs : (N, T, D) array or None
            The gradient of xs; None with inputs=False.

        Raises
        ------
        RuntimeError
            If forward has not run.
        """
        engine, saved, shape, (on_inputs, on_weights), given_before = self._saved()
        dhs = validate_array("dhs", dhs, shape, self.dtype, engine)
        dstates = self._one_each("backward", "d{}", dstate)
        dstates = self._accepted("d{}", dstates, shape[0], engine)
        zeros = self._zeros(shape[0], engine)
        known = tuple(z if d is None else d for d, z in zip(dstates, zeros, strict=True))
        out = None if on_weights else self._cell_grads()
        found = engine.backward(self.cell, dhs, known, saved, inputs, out)
        if self.trace is not None:
            self.trace._gradients = found.states
        self.dstate, gradients = found.state, list(found.params)
        if on_weights:
            gradients = self._times(gradients, on_weights)
        if self._initial is not None:
            dinitial = engine.xp.zeros_like(self._initial)
            if found.initial is not None:
                dinitial += found.initial
            if not given_before:
                wide = self.cell.widened(engine.xp, found.state, self.hidden_size)
                dinitial += engine.xp.stack([engine.sum_rows(d) for d in wide])
            gradients.append(dinitial)
        self._fill_grads(gradients)
        if found.xs is None or on_inputs is None:
            return found.xs
        return found.xs * on_inputs[:, None]

    def _cell_grads(self) -> list[Array] | None:
        """Where an engine may write the gradients of the cell's parameters; None: nowhere."""
        return self.grads if self._initial is None else self.grads[:-1]

    # ---- options

    @property
    def checkpoint_every(self) -> int:
        """The distance of the steps whose states forward keeps; 0: it keeps every state."""
        return self._checkpoint_every

    @checkpoint_every.setter
    def checkpoint_every(self, value: int) -> None:
        self._checkpoint_every = expect_int("checkpoint_every", value, 0)

    @property
    def _initial(self) -> Array | None:
        """The learnable initial state (S, H), if there is one."""
        return self.params[-1] if self.param_names[-1] == "initial" else None

    def learn_initial_state(self, values: Array | None = None) -> Self:
        """Make the state from which sequences start a parameter, ``initial`` (S, H).

        Rows start from it if no state is carried or set, and ``resets`` return to it.

        Parameters
        ----------
        values : (S, H) array, optional
            Its initial value, one row for each of the S states of the cell; zeros if left out.

        Returns
        -------
        Self
            The layer itself.

        Raises
        ------
        ValueError
            If it is already a parameter.
        """
        if self._initial is not None:
            raise ValueError("learn_initial_state: the initial state is already a parameter")
        engine, shape = self._engine(), (len(self.cell.states), self.hidden_size)
        if values is None:
            values = engine.xp.zeros(shape, self.dtype)
        values = validate_array("values", values, shape, self.dtype, engine)
        self.params.append(values)
        self.grads.append(engine.xp.zeros_like(values))
        self.param_names = (*self.param_names, "initial")
        return self

    def regularise(
        self,
        *,
        zoneout: float | Mapping[str, float] = 0.0,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        weight_drop: float = 0.0,
        rng: Seed = None,
    ) -> Self:
        """Set the regularisers of the layer.

        Masks are drawn anew for every forward while ``train_flg`` is True. Otherwise nothing is
        dropped, and zoneout is replaced by its mean: a unit keeps that share of its old value.

        Parameters
        ----------
        zoneout : float or mapping of str to float, default 0.0
            The share of units that keep their old value at a step: one rate for all states, or one
            for each, ``{"h": 0.1, "c": 0.3}``.
        recurrent_dropout : float, default 0.0
            The share of h that is missing from h Wh, the same units at every step of a sequence.
        input_dropout : float, default 0.0
            The share of the features of x that is missing, the same ones at every step.
        weight_drop : float, default 0.0
            The share of Wh that is missing for a block.
        rng : numpy.random.Generator, int or None, default None
            A random generator or a seed for the masks. A model's own, ``model.rng``, is part of the
            checkpoints of its Trainer.

        Returns
        -------
        Self
            The layer itself.

        Raises
        ------
        ValueError
            If a rate is outside [0, 1), if it is a rate of a Wh that the cell lacks, or if zoneout
            is set for states that have no meaning alone (sLSTM's c, n and m).

        References
        ----------
        - Zoneout: Krueger et al. 2017.
        - Recurrent and input dropout: Gal & Ghahramani 2016.
        - Weight drop: Merity et al. 2017.

        Examples
        --------
        >>> layer = TimeLSTM.create(3, 5, rng=0).regularise(zoneout={"c": 0.5}, rng=1)
        >>> layer.forward(np.ones((2, 7, 3), np.float32)).shape
        (2, 7, 5)
        """
        for name, rate in ("recurrent_dropout", recurrent_dropout), ("weight_drop", weight_drop):
            if rate and not self.cell.recurrent_gates:
                raise ValueError(f"{name}: the cell {self.cell.name} has no h Wh, got {rate}")
        self.regularisers = Regularisers(
            self.cell.states, zoneout, recurrent_dropout, input_dropout, weight_drop, rng,
            self.cell.coupled,
        )  # fmt: skip
        return self


class TimeRNN(_IsRNN, TimeRecurrent):
    """The simple recurrent network over a block of time.

    The equations and their derivatives are in ``kernels/cells/rnn.py``. See ``TimeRecurrent`` for
    attributes and methods.

    Parameters
    ----------
    Wx : (D, H) array, float32 or float64
        The input weights.
    Wh : (H, H) array
        The recurrent weights.
    b : (H,) array
        The bias.
    stateful : bool, default False
        Whether the state after a block is the state before the next one.
    activation : {"tanh", "relu"}
        The activation function.
    """

    def __init__(
        self, Wx: Array, Wh: Array, b: Array, stateful: bool = False, activation: str = "tanh"
    ) -> None:
        cell = self._select({"activation": activation})
        super().__init__(Wx, Wh, b, stateful=stateful, cell=cell)


class TimeLSTM(_IsLSTM, TimeRecurrent):
    """Long short-term memory over a block of time.

    The equations and their derivatives are in ``kernels/cells/lstm.py``. See ``TimeRecurrent`` for
    the other attributes and the methods.

    Parameters
    ----------
    Wx : (D, 4H) array, float32 or float64
        The input weights, gates in the order f, g, i, o.
    Wh : (H, 4H) array
        The recurrent weights.
    b : (4H,) array
        The biases.
    stateful : bool, default False
        Whether the state after a block is the state before the next one.

    Attributes
    ----------
    c, dc : (N, H) array or None
        The memory cell after the last step, and its gradient before the first step.

    Examples
    --------
    >>> layer = TimeLSTM.create(3, 5, rng=0, stateful=True)
    >>> hs = layer.forward(np.ones((2, 7, 3), np.float32))
    >>> dxs = layer.backward(np.ones_like(hs))
    >>> layer.c.shape, layer.dc.shape
    ((2, 5), (2, 5))
    """

    def __init__(self, Wx: Array, Wh: Array, b: Array, stateful: bool = False) -> None:
        super().__init__(Wx, Wh, b, stateful=stateful, cell="lstm")

    @property
    def c(self) -> Array | MaybeNone:
        """The memory cell, (N, H), after the last step."""
        return None if self.state is None else self.state[1]

    @property
    def dc(self) -> Array | MaybeNone:
        """The gradient of the memory cell, (N, H), before the first step of the block."""
        return None if self.dstate is None else self.dstate[1]


class TimeGRU(_IsGRU, TimeRecurrent):
    """The gated recurrent unit over a block of time.

    The equations and their derivatives are in ``kernels/cells/gru.py``. See ``TimeRecurrent`` for
    attributes and methods.

    Parameters
    ----------
    Wx : (D, 3H) array, float32 or float64
        The input weights, gates in the order z, r, h.
    Wh : (H, 3H) array
        The recurrent weights.
    b : (3H,) array, or (2, 3H) with reset_after=True
        The biases.
    stateful : bool, default False
        Whether the state after a block is the state before the next one.
    reset_after : bool, default False
        Whether the reset gate multiplies h Wh instead of h, as in cuDNN and PyTorch.
    """

    def __init__(
        self, Wx: Array, Wh: Array, b: Array, stateful: bool = False, reset_after: bool = False
    ) -> None:
        cell = self._select({"reset_after": reset_after})
        super().__init__(Wx, Wh, b, stateful=stateful, cell=cell)
