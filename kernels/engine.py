"""The interface of an engine: everything that a layer may ask of it.

An engine runs cells over sequences (``forward``, ``backward``) and offers some services for arrays.
The methods for cells are implemented by the derived engines: in NumPy by ``reference.py``, compiled
by ``cpu/`` and ``cuda/``. The services are implemented here, for any array library that follows
NumPy.

Shapes: N batch, T time, D input size, H hidden size, S number of states, G number of gates, of
which Gx have a block of columns in Wx and Gh in Wh.

    xs      (N, T, D)        inputs
    state   S times (N, H)   the state before the first step
    hs      (N, T, H)        the hidden state after every step
    params  Wx (D, Gx H), Wh (H, Gh H), b; see Cell.shapes. All weights of products may be
            QuantisedWeights (quantisation.py); there is no backward then

An engine owns the arrays that it returns. It never writes to the arrays that it is given, except
those of an argument ``out``. It does not copy xs and params: they must not change between forward
and backward.

The arrays of an engine belong to its library ``xp``. ``to_device``, ``to_host`` and ``is_native``
accept others and move them there and back; every other method expects the engine's own.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import counter_rng, deprecated
from .cells import Cell
from .cpu_info import blas_threads, cpu_name
from .quantisation import QuantisedWeight
from .ragged import Ragged
from .sparse_rows import SparseRows
from .step_options import NO_OPTIONS, StepOptions

Array = Any
State = tuple[Array, ...]

UPDATED_AT_ONCE = 32768  # numbers that fit the cache together with the rule's temporaries
SUMMED_AT_ONCE = 2048  # terms of a partial sum


class Gradients(NamedTuple):
    """The gradients that ``Engine.backward`` returns.

    Attributes
    ----------
    xs : (N, T, D) array or None
        The gradient of xs; None if it was not asked for.
    state : tuple of (N, H) arrays
        The gradient of the state before the first step; 0 in rows that are reset there.
    params : tuple of arrays
        The gradients of the parameters, in their order.
    initial : (S, H) array or None
        The gradient of the state that resets return to, summed over all rows; zeros or None without
        resets.
    states : (N, T, S, H) array or None
        If ``steps.trace``: the whole gradient of the state after every step.
    """

    xs: Array | None
    state: State
    params: tuple[Array, ...]
    initial: Array | None = None
    states: Array | None = None


class GateRows(NamedTuple):
    """A cell's step between products that its caller makes, in memory that has an address.

    A row of gx holds blocks of H numbers, one for each gate that x Wx feeds, a row of gh those that
    h Wh feeds, products and biases summed up. All arrays are dense and of one dtype.

    Attributes
    ----------
    forward : callable
        ``forward(N, H, gx, gh, saved, blocks, *states, *new_states)``: all but N, H and blocks are
        addresses. A row of ``saved`` has ``blocks`` blocks, at least ``stored``; saved may be gx,
        and a new state an old one or a block of gx.
    backward : callable
        ``backward(N, H, dgx, dgh, saved, blocks, *dnew, *states, *new_states, *dstates)``. The
        address 0 in dnew stands for zeros. What comes back through h Wh is not in dstates. Where
        every gate has both sides dgh would be dgx, and is not written.
    stored : int
        How many blocks a step saves.
    needs_new : bool
        Whether backward reads the new states. If not, their addresses may be anything.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    stored: int
    needs_new: bool


class Engine:
    """Forward and backward of any cell over a whole sequence, and services for arrays.

    Attributes
    ----------
    name : str
        "numpy", "numba" or "cuda".
    xp : module
        The array library: ``numpy``, or one with its interface.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn.kernels import cells
    >>> from numba_rnn.kernels.reference import NumpyEngine
    >>> engine, gru = NumpyEngine(), cells.get("gru")
    >>> xs, state = np.ones((2, 7, 3)), (np.zeros((2, 5)),)
    >>> params = [np.ones(shape) for shape in gru.shapes(3, 5).values()]
    >>> hs, state, saved = engine.forward(gru, xs, state, params)
    >>> engine.backward(gru, np.ones_like(hs), state, saved).xs.shape
    (2, 7, 3)
    """

    name: str
    xp: Any

    def forward(
        self,
        cell: Cell,
        xs: Array,
        state: State,
        params: Sequence[Array],
        steps: StepOptions = NO_OPTIONS,
    ) -> tuple[Array, State, Any]:
        """Run a cell over a block of time.

        Parameters
        ----------
        cell : Cell
            The cell.
        xs : (N, T, D) array
            The inputs; they may hold anything where a step is masked.
        state : tuple of (N, H) arrays
            The state before the first step, in the order of ``cell.states``.
        params : sequence of arrays
            The parameters, in the order of ``cell.shapes``.
        steps : StepOptions, default none
            The options of the steps: mask, resets, zoneout and so on.

        Returns
        -------
        hs : (N, T, H) array
            The hidden state after every step; 0 where the step is masked.
        state : tuple of (N, H) arrays
            The state after the last step.
        saved : object
            The record that ``backward`` of the same engine needs. Its form is the engine's own.

        Raises
        ------
        ValueError
            If a shape does not fit.
        TypeError
            If the dtypes differ.
        """
        raise NotImplementedError

    def backward(
        self,
        cell: Cell,
        dhs: Array,
        dstate: State,
        saved: Any,
        inputs: bool = True,
        out: Sequence[Array] | None = None,
    ) -> Gradients:
        """Backpropagate through the block of time that ``forward`` ran over.

        Parameters
        ----------
        cell : Cell
            The cell.
        dhs : (N, T, H) array
            The gradient of hs.
        dstate : tuple of (N, H) arrays
            The gradient of the state after the last step.
        saved : object
            The last result of ``forward``.
        inputs : bool, default True
            Whether to compute the gradient of xs.
        out : sequence of arrays, optional
            The arrays for the gradients of the parameters, which are overwritten; new ones if left
            out.

        Returns
        -------
        Gradients
            The gradients.
        """
        raise NotImplementedError

    def forward_packed(
        self,
        cell: Cell,
        xs: Array,
        members: Ragged,
        state: State,
        params: Sequence[Array],
        steps: StepOptions = NO_OPTIONS,
    ) -> tuple[Array, State, Any]:
        """Run a cell over members that differ in length, whose steps lie side by side.

        Parameters
        ----------
        cell : Cell
            The cell.
        xs : (R, D) array
            The inputs: those of all members at step 0, the longest member first, then those of step
            1, and so on.
        members : Ragged
            How many members have each step (``Ragged.of_counts``).
        state : tuple of (N, H) arrays
            The state before the first step, in the order of ``cell.states``.
        params : sequence of arrays
            The parameters, in the order of ``cell.shapes``.
        steps : StepOptions, default none
            The options of the steps; mask and resets are (R,).

        Returns
        -------
        hs : (R, H) array
            The hidden state after every step.
        state : tuple of (N, H) arrays
            The state after the last step of each member.
        saved : object
            The record that ``backward_packed`` of the same engine needs.
        """
        there = np.ones(members.rows, bool) if steps.mask is None else steps.mask
        resets = None if steps.resets is None else members.unpack(steps.resets)
        steps = replace(steps, mask=members.unpack(there), resets=resets)
        hs, state, saved = self.forward(cell, self._padded(members, xs), state, params, steps)
        return self._packed(members, hs), state, (members, saved)

    def backward_packed(
        self,
        cell: Cell,
        dhs: Array,
        dstate: State,
        saved: Any,
        inputs: bool = True,
        out: Sequence[Array] | None = None,
    ) -> Gradients:
        """Backpropagate through what ``forward_packed`` ran over.

        Parameters
        ----------
        cell : Cell
            The cell.
        dhs : (R, H) array
            The gradient of hs.
        dstate : tuple of (N, H) arrays
            The gradient of the state after the last step of each member.
        saved : object
            The last result of ``forward_packed``.
        inputs : bool, default True
            Whether to compute the gradient of xs.
        out : sequence of arrays, optional
            The arrays for the gradients of the parameters, which are overwritten; new ones if left
            out.

        Returns
        -------
        Gradients
            The gradients; that of xs is (R, D), and that of the states (R, S, H).
        """
        members, saved = saved
        found = self.backward(cell, self._padded(members, dhs), dstate, saved, inputs, out)
        xs, states = (
            None if array is None else self._packed(members, array)
            for array in (found.xs, found.states)
        )
        return found._replace(xs=xs, states=states)

    def _padded(self, members: Ragged, rows: Array) -> Array:
        out = self.xp.zeros((members.N * members.T, *rows.shape[1:]), rows.dtype)
        out[self.xp.asarray(members.in_rows)] = rows
        return out.reshape(members.N, members.T, *rows.shape[1:])

    def _packed(self, members: Ragged, array: Array) -> Array:
        rows = array.reshape(-1, *array.shape[2:])
        return rows[self.xp.asarray(members.in_rows)]

    def states_before(self, cell: Cell, saved: Any) -> State:
        """Return the state before every step of a forward pass.

        Parameters
        ----------
        cell : Cell
            The cell.
        saved : object
            The last result of ``forward``.

        Returns
        -------
        tuple of (N, T, H) arrays
            The states before every step, after a reset of that step.
        """
        raise NotImplementedError

    def recompute(
        self, cell: Cell, xs: Array, params: Sequence[Array], steps: StepOptions, before: State
    ) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
        """Compute all steps at once, each from the state before it.

        Parameters
        ----------
        cell : Cell
            The cell.
        xs : (N, T, D) array
            The inputs.
        params : sequence of arrays
            The parameters.
        steps : StepOptions
            The options of the steps.
        before : tuple of (N, T, H) arrays
            The state before every step, the result of ``states_before``.

        Returns
        -------
        gates : tuple of (N, T, H) NumPy arrays
            The pre-activations that the cell's functions receive: normalised for the gates in
            ``cell.normalised``.
        inside : tuple of (N, T, H) NumPy arrays
            The values inside a step, named by ``cell.gate_names``.
        after : tuple of (N, T, H) NumPy arrays
            The states after every step.
        """
        raise NotImplementedError

    def step(
        self,
        cell: Cell,
        x: Array,
        state: State,
        params: Sequence[Array],
        zoneout: Sequence[float] = (),
    ) -> State:
        """Run one step, and keep nothing for backward.

        Parameters
        ----------
        cell : Cell
            The cell.
        x : (N, D) array
            The input.
        state : tuple of (N, H) arrays
            The state before the step.
        params : sequence of arrays
            The parameters.
        zoneout : sequence of float, default none
            For each state, the share of its old value that a unit keeps: the expected value of
            zoneout.

        Returns
        -------
        tuple of (N, H) arrays
            The state after the step.
        """
        steps = StepOptions(zoneout=zoneout) if zoneout else NO_OPTIONS
        return self.forward(cell, x[:, None], state, params, steps)[1]

    def probe(self, cell: Cell) -> Array:
        """Run a cell on some fixed numbers, to tell cells of one name apart.

        The result depends on the cell alone, not on the machine or the version of Python.

        Parameters
        ----------
        cell : Cell
            The cell.

        Returns
        -------
        (9,) array, float64
            hs of three steps of three units.
        """
        xp, shapes = self.xp, cell.shapes(2, 3).values()
        params = [xp.cos(k + xp.arange(math.prod(s))).reshape(s) for k, s in enumerate(shapes)]
        xs, state = xp.sin(xp.arange(6.0)).reshape(1, 3, 2), (xp.zeros((1, 3)),) * len(cell.states)
        with np.errstate(all="ignore"):
            hs, _, _ = self.forward(cell, xs, state, params)
        return hs.ravel()

    def stream(
        self,
        layers: Sequence[tuple[Any, ...]],
        affine: Sequence[Array] | None,
        batch: int,
        shards: int = 1,
        bfloat16: bool = False,
    ) -> Any:
        """Make a stream: a stack of layers that keeps its state and a copy of the parameters.

        Parameters
        ----------
        layers : sequence of tuples
            For each layer the fields of a ``StreamLayer``, the lowest layer first.
        affine : (W, b) or None
            An affine layer on top, W (H, O) and b (O,).
        batch : int
            N, the number of sequences side by side.
        shards : int, default 1
            The number of threads that share a call, if the engine has threads.
        bfloat16 : bool, default False
            Whether to store the weights in two bytes, if the engine can.

        Returns
        -------
        object
            A stream with the attributes and methods of ``EngineStream``.
        """
        return EngineStream(self, layers, affine, batch)

    def gate_rows(
        self, cell: Cell, blocks: tuple[tuple[int, int, int], ...], dtype: str
    ) -> GateRows | None:
        """Find the fastest step of a cell between products that the caller makes.

        Parameters
        ----------
        cell : Cell
            The cell.
        blocks : tuple of (int, int, int)
            For each of its gates: the block in gx, the block in gh (-1: none), and what the gate is
            times there, 1 or -1.
        dtype : str
            "float32" or "float64".

        Returns
        -------
        GateRows or None
            None if the engine has none, or the cell more than one product of its state.
        """
        return None

    def using_openmp(self, parallel: int, count: int) -> AbstractContextManager[None]:
        """Use the threads of an OpenMP runtime in a ``with`` block instead of the engine's own.

        An engine without threads of its own ignores this.

        Parameters
        ----------
        parallel : int
            The address of the runtime's ``GOMP_parallel``; 0 if there is none.
        count : int
            The number of threads that the engine may use.

        Returns
        -------
        context manager
            The block.
        """
        return nullcontext()

    def describe(self) -> dict[str, Any]:
        """Describe what the engine runs on.

        Returns
        -------
        dict
            "device": a name; "threads": a number; "simd_bits": the width of vectors; "cache": where
            compiled code is kept; "precision": that of products of float32 numbers; "int8": how
            products with weights in int8 are computed. simd_bits and cache are None if the engine
            compiles nothing.
        """
        return {
            "device": cpu_name(), "threads": blas_threads(), "simd_bits": None, "cache": None,
            "precision": "float32", "int8": "by BLAS, in float32 or float64",
        }  # fmt: skip

    def with_precision(self, precision: str) -> "Engine":
        """Return the engine with a precision for the products of float32 arrays.

        Parameters
        ----------
        precision : {"float32", "tf32", "bfloat16"}
            The lowest precision that is allowed. An engine without a choice computes in float32.

        Returns
        -------
        Engine
            The engine.
        """
        return self

    def execution(self, cell: Cell, N: int, H: int, dtype: Any) -> dict[str, str]:
        """Explain how the engine would run the steps of a cell.

        Parameters
        ----------
        cell : Cell
            The cell.
        N : int
            The number of rows of the batch.
        H : int
            The number of units.
        dtype : dtype
            float32 or float64.

        Returns
        -------
        dict of str to str
            For "forward" and "backward" the way and the reason; empty if the engine has no choice.
        """
        return {}

    # ---- former names

    before = deprecated.attribute("states_before")
    replay = deprecated.attribute("recompute")
    sample = deprecated.attribute("probe")
    borrowing = deprecated.attribute("using_openmp")
    owns = deprecated.attribute("is_native")
    scalar = deprecated.attribute("to_scalar")
    layout = deprecated.attribute("execution")

    # ---- long sums, computed in parts so that rounding errors hardly grow with their length

    def product(self, a: Array, b: Array) -> Array:
        """Multiply matrices, or stacks of them, as exactly as the engine's other products.

        Parameters
        ----------
        a : (..., M, K) array
            The left factor.
        b : (..., K, P) array, or (K, P) QuantisedWeight
            The right factor.

        Returns
        -------
        (..., M, P) array
            a b.
        """
        if isinstance(b, QuantisedWeight):
            return b.product(a)
        return product_in_parts(self.xp.matmul, a, b)

    def affine(self, xs: Array, W: Array, b: Array) -> Array:
        """Compute xs W + b.

        Parameters
        ----------
        xs : (R, D) array
            The inputs.
        W : (D, M) array or QuantisedWeight
            The weights.
        b : (M,) array
            The bias.

        Returns
        -------
        (R, M) array
            The outputs.
        """
        out = self.product(xs, W)
        out += b
        return out

    def affine_backward(self, xs: Array, W: Array, dout: Array, dW: Array, db: Array) -> Array:
        """Compute the gradients of ``affine``.

        Parameters
        ----------
        xs, W : arrays
            As ``affine`` took them.
        dout : (R, M) array
            The gradient of the outputs.
        dW, db : arrays
            The arrays for the gradients of W and b, which are overwritten.

        Returns
        -------
        (R, D) array
            The gradient of xs.
        """
        dW[...] = self.product(xs.T, dout)
        db[...] = self.sum_rows(dout)
        return self.product(dout, W.T)

    def sum_rows(self, rows: Array) -> Array:
        """Sum the rows of a matrix.

        Parameters
        ----------
        rows : (K, M) array
            The matrix.

        Returns
        -------
        (M,) array
            The sum.
        """
        K, M = rows.shape
        each = math.isqrt(K)
        if each < 16:
            return rows.sum(axis=0)
        whole = K - K % each
        parts = rows[:whole].reshape(whole // each, each, M).sum(axis=1)
        return parts.sum(axis=0) + rows[whole:].sum(axis=0)

    def add_rows(self, out: Array, rows: Array, values: Array) -> None:
        """Add values to rows of a matrix in place: the gradient of an embedding.

        Computes out[rows[k]] += values[k] for every k; a row may be repeated. The result is the
        same in every run.

        Parameters
        ----------
        out : (V, D) array
            The matrix.
        rows : (K,) array of any integer dtype
            The row numbers.
        values : (K, D) array
            The values.
        """
        if len(rows) > SUMMED_AT_ONCE:  # bring equal rows together and sum them in parts
            order = np.argsort(rows, kind="stable")
            rows, values = rows[order], values[order]
            begins = np.arange(len(rows)) % 256 == 0
            begins[1:] |= rows[1:] != rows[:-1]
            first = np.flatnonzero(begins)
            rows, values = rows[first], np.add.reduceat(values, first, axis=0)
        np.add.at(out, rows, values)

    # ---- where the arrays are

    def is_result(
        self, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any], apart_from: Any
    ) -> bool:
        """Return whether a result may be written to an array.

        Parameters
        ----------
        array : object
            The array.
        shape : tuple of int
            The shape of the result.
        dtype : dtype
            Its dtype.
        apart_from : object
            An array of this engine that must not share memory with it, or anything else.

        Returns
        -------
        bool
            Whether it is an array of this engine that fits, C-contiguous, aligned and writable.
        """
        return (
            self.is_native(array)
            and array.shape == shape
            and array.dtype == dtype
            and array.flags.c_contiguous
            and getattr(array.flags, "writeable", True)
            and getattr(array.flags, "aligned", True)
            and not (self.is_native(apart_from) and self.xp.may_share_memory(array, apart_from))
        )

    def is_native(self, array: Any) -> bool:
        """Return whether an object is an array of this engine's library.

        Parameters
        ----------
        array : object
            The object.

        Returns
        -------
        bool
            Whether it is.
        """
        return isinstance(array, self.xp.ndarray)

    def to_device(self, array: Array) -> Array:
        """Return a NumPy array as an array of this engine.

        Parameters
        ----------
        array : array or QuantisedWeight
            A NumPy array, or one of this engine, which is returned as it is.

        Returns
        -------
        array
            The engine's array.

        Raises
        ------
        TypeError
            If it is a QuantisedWeight, and the engine is not one of the CPU.
        """
        if isinstance(array, QuantisedWeight):
            if self.xp is not np:
                raise TypeError(
                    f"params: expected weights in float32 for the {self.name} engine, got int8 "
                    'ones, which run on the CPU: layer.to("cpu"), use_backend("numba"); '
                    "layer.dequantise() makes them float32 again"
                )
            return array
        return array if isinstance(array, self.xp.ndarray) else self.xp.asarray(array)

    def to_host(self, array: Array) -> Array:
        """Return an array of this engine as a NumPy array.

        Parameters
        ----------
        array : array
            The engine's array; if it is NumPy's, it is returned as it is.

        Returns
        -------
        array
            The NumPy array.
        """
        return array

    def to_scalar(self, array: Array) -> Any:
        """Return an array without axes in the form that callers get.

        Parameters
        ----------
        array : () array
            The array.

        Returns
        -------
        float or () array
            A float; on a device the array itself, because a float would have to wait for the
            device.
        """
        return float(array)

    # ---- training

    def dropout(
        self, seed: int, shape: Sequence[int], rate: float, dtype: Any, row_offset: int = 0
    ) -> Array:
        """Draw a dropout mask.

        The same seed gives the same mask on every engine (``kernels/counter_rng.py``).

        Parameters
        ----------
        seed : int
            The seed.
        shape : (N, H), or (N, ..., H)
            The shape of the mask. The axes between are counted as steps.
        rate : float
            The share of numbers that are dropped.
        dtype : dtype
            float32 or float64.
        row_offset : int, default 0
            The number of the first row within the batch: the mask has the rows from there on of
            the mask for the whole batch.

        Returns
        -------
        array
            The factors: 0 for what is dropped, otherwise 1 / (1 - rate).
        """
        left = ~counter_rng.drawn(seed, shape, rate, row_offset=row_offset)
        return self.to_device(left * np.dtype(dtype).type(1 / (1 - rate)))

    def log_sum_exp(self, scores: Array) -> Array:
        """Compute log(sum(exp(scores))) of each row, in two parts.

        Parameters
        ----------
        scores : (R, V) array
            The scores.

        Returns
        -------
        (2, R) array, float64
            The largest score, and log(sum(exp(scores - largest))).
        """
        xp = self.xp
        largest = scores.max(axis=1, keepdims=True)
        with np.errstate(over="ignore"):  # towards -inf, whose share is 0
            shifted = scores - largest
        total = xp.exp(shifted, out=shifted).sum(axis=1)
        return xp.stack([largest[:, 0].astype(np.float64), xp.log(total.astype(np.float64))])

    def softmax_gradient(
        self, scores: Array, log_sums: Array, labels: Array, weights: Array
    ) -> Array:
        """Compute the gradient of weighted cross-entropies with respect to the scores.

        Parameters
        ----------
        scores : (R, V) array
            The scores, or some columns of them.
        log_sums : (2, R) array, float64
            ``log_sum_exp`` of each row, of all its columns.
        labels : (R,) array, int64
            The columns of the labels; -1 where it is not among these.
        weights : (R,) array, float64
            The factor of each row's loss. Where it is 0, so is the gradient.

        Returns
        -------
        (R, V) array
            weights[r] (softmax(scores[r]) - 1 at the label).
        """
        xp, largest = self.xp, log_sums[0].astype(scores.dtype)
        with np.errstate(over="ignore"):
            shifted = scores - largest[:, None]
        gradient = xp.exp(shifted, out=shifted)
        gradient *= (weights * xp.exp(-log_sums[1]))[:, None].astype(scores.dtype)
        here = xp.where(labels >= 0, weights, 0.0).astype(scores.dtype)
        gradient[xp.arange(len(labels)), xp.maximum(labels, 0)] -= here
        xp.copyto(gradient, 0, where=weights[:, None] == 0)
        return gradient

    def norm(self, arrays: Sequence[Array]) -> Any:
        """Compute the Euclidean norm of the numbers of all arrays together.

        If squares overflow, or underflow so far that it may matter, the numbers are scaled by the
        largest and summed again.

        Parameters
        ----------
        arrays : sequence of arrays
            The arrays.

        Returns
        -------
        float or () array
            The norm, in the form of ``to_scalar``.
        """
        with np.errstate(over="ignore"):
            norm = math.sqrt(self.sum_of_squares(arrays))
        if not _least_norm(arrays) <= norm < math.inf:
            norm = math.hypot(*(_scaled_norm(array) for array in arrays))
        return norm

    def sum_of_squares(self, arrays: Sequence[Array]) -> float:
        """Sum the squares of all numbers of all arrays; one that overflows makes it infinite.

        Parameters
        ----------
        arrays : sequence of arrays
            The arrays.

        Returns
        -------
        float
            The sum.
        """
        return sum(map(_sum_of_squares, arrays))

    def clip_factor(self, arrays: Sequence[Array], limit: float) -> tuple[Any, Any]:
        """Find the factor that brings the common norm of arrays down to a limit.

        Parameters
        ----------
        arrays : sequence of arrays
            The arrays.
        limit : float
            The largest norm.

        Returns
        -------
        norm : float or () array
            The norm, as ``norm`` returns it.
        factor : float or () array
            The factor for the arrays; 1 if their norm is not finite.
        """
        norm = self.norm(arrays)
        return norm, limit / norm if math.isfinite(norm) and norm > limit else 1.0

    def clip_norm(self, arrays: Sequence[Array], limit: float) -> Any:
        """Scale arrays in place so that their common norm is at most a limit.

        If the norm is not finite, nothing is scaled.

        Parameters
        ----------
        arrays : sequence of arrays
            The arrays.
        limit : float
            The largest norm.

        Returns
        -------
        float or () array
            The norm before, as ``norm`` returns it.
        """
        norm = self.norm(arrays)
        if math.isfinite(norm) and norm > limit:
            # in two steps if the factor itself would underflow
            twice = limit / norm < max(np.finfo(array.dtype).tiny for array in arrays)
            factor = math.sqrt(limit) / math.sqrt(norm) if twice else limit / norm
            for array in [*arrays, *arrays] if twice else arrays:
                array *= factor
        return norm

    def update_all(
        self,
        rule: Callable[..., tuple[Array, ...]],
        groups: Sequence[Sequence[Array]],
        numbers: Sequence[float],
        factor: Any = 1.0,
    ) -> None:
        """Update the arrays of several parameters in place: an optimiser's step.

        Parameters
        ----------
        rule : callable
            As ``update`` takes it. An engine may compile it: the values that it refers to are
            those of its first use.
        groups : sequence of sequences of arrays
            For each parameter its arrays, as ``update`` takes them, and its gradient. If that is a
            ``SparseRows``, only its rows of the arrays are updated.
        numbers : sequence of float
            Further arguments of the rule.
        factor : float or () array, default 1.0
            A factor for the gradients, applied on the way.
        """
        for *arrays, gradient in groups:
            if not isinstance(gradient, SparseRows):
                self.update(rule, arrays, self._scaled(gradient, factor), numbers)
                continue
            some = [array[gradient.rows] for array in arrays]
            self.update(rule, some, self._scaled(gradient.values, factor), numbers)
            for array, new in zip(arrays, some, strict=True):
                array[gradient.rows] = new

    def _scaled(self, gradient: Array, factor: Any) -> Array:
        return gradient if factor == 1.0 else gradient * gradient.dtype.type(factor)

    def update(
        self,
        rule: Callable[..., tuple[Array, ...]],
        arrays: Sequence[Array],
        gradient: Array,
        numbers: Sequence[float],
    ) -> None:
        """Update arrays in place, element by element: the step of an optimiser.

        Parameters
        ----------
        rule : callable
            ``(*old, gradient, *numbers)`` -> a tuple of the new values. A plain function, written
            as the functions of a cell are: with + - * / and ``numba_rnn.functions``.
        arrays : sequence of arrays
            One array or more; they and the gradient have one shape and one dtype, each in any
            memory order.
        gradient : array
            The gradient.
        numbers : sequence of float
            Further arguments of the rule, the same for every element.
        """
        order = [["readwrite"]] * len(arrays) + [["readonly"]]
        flags = ["external_loop", "buffered", "zerosize_ok"]
        whole = [*arrays, gradient]
        with np.nditer(whole, flags, order, buffersize=UPDATED_AT_ONCE) as parts:  # type: ignore[arg-type]
            for *old, slope in parts:
                for array, new in zip(old, rule(*old, slope, *numbers), strict=True):
                    array[...] = new


class StreamLayer(NamedTuple):
    """A layer of a stream.

    Attributes
    ----------
    cell : Cell
        The cell.
    params : sequence of arrays
        The parameters, in the order of ``cell.shapes``.
    zoneout : sequence of float, default none
        For each state, the share of its old value that a unit keeps at every step.
    float32 : bool, default False
        Whether its products stay in float32 where those of the stream are in bfloat16.
    """

    cell: Cell
    params: Sequence[Array]
    zoneout: Sequence[float] = ()
    float32: bool = False

    def copy(self) -> "StreamLayer":
        """Return the same layer with a copy of its parameters.

        Returns
        -------
        StreamLayer
            The copy.
        """
        return self._replace(params=tuple(p.copy() for p in self.params))


class EngineStream:
    """A stream that calls ``Engine.step`` for every step.

    Parameters
    ----------
    engine : Engine
        The engine.
    layers : sequence of tuples
        For each layer the fields of a ``StreamLayer``, the lowest layer first.
    affine : (W, b) or None
        An affine layer on top.
    N : int
        The number of sequences side by side.

    Attributes
    ----------
    state : list of (S, N, H) arrays
        For each layer its states: read before a call, written after it.
    out : (N, O) array, or (O,) for a batch of one
        The result of the last step.
    """

    def __init__(
        self,
        engine: Engine,
        layers: Sequence[tuple[Any, ...]],
        affine: Sequence[Array] | None,
        N: int,
    ) -> None:
        self._engine, self._N = engine, N
        self._layers = [StreamLayer(*layer).copy() for layer in layers]
        self._affine = None if affine is None else tuple(p.copy() for p in affine)
        sizes = [layer.cell.hidden_size(layer.params) for layer in self._layers]
        dtype = self._layers[0].params[0].dtype
        self.state = [
            engine.xp.zeros((len(layer.cell.states), N, H), dtype)
            for layer, H in zip(self._layers, sizes, strict=True)
        ]
        top = self._layers[-1]
        outputs = top.cell.output_size(top.params) if affine is None else affine[0].shape[1]
        self.out = engine.xp.zeros(outputs if N == 1 else (N, outputs), dtype)

    @property
    def stepping(self) -> Callable[[Array], bool]:
        """The shortest way to run a step: a function of x.

        x is an array (N, D), or (D,) for a batch
        of one, in the stream's dtype; on every engine it may be a NumPy array. The result is in
        ``out``. If x is anything else, or holds a number that is not finite, the function does
        nothing and returns False.
        """
        return self._step

    def _takes(self, x: Any, shape: tuple[int, ...]) -> bool:
        """Whether an object is an array of this shape, in the stream's dtype, and finite."""
        inputs = self._layers[0].params[0].shape[0]
        return (
            type(x) in (np.ndarray, self._engine.xp.ndarray)
            and x.dtype == self.out.dtype
            and x.shape == (*shape, inputs)
            and bool(np.isfinite(x).all())
        )

    def _step(self, x: Any) -> bool:
        if not self._takes(x, self.out.shape[:-1]):
            return False
        inputs, x = x.shape[-1], self._engine.to_device(x)
        self._advance(x.reshape(self._N, inputs), self.out.reshape(self._N, self.out.shape[-1]))
        return True

    @property
    def running(self) -> Callable[[Array, Array], bool]:
        """The shortest way to run several steps: a function of xs and out.

        xs is an array (N, T, D), or (T, D)
        for a batch of one, as x above; out (N, T, O) or (T, O) is one that ``Engine.is_result``
        accepts. If they are anything else the function does nothing and returns False.
        """
        return self._run

    def _run(self, xs: Any, out: Any) -> bool:
        shape, dtype = (*np.shape(xs)[:-1], self.out.shape[-1]), self.out.dtype
        fits = len(shape) == self.out.ndim + 1 and shape[-2] > 0
        fits = fits and self._takes(xs, (*self.out.shape[:-1], shape[-2]))
        if not fits or not self._engine.is_result(out, shape, dtype, xs):
            return False
        xs = self._engine.to_device(xs)
        if self._N == 1:
            xs, out = xs[None], out[None]
        for t in range(xs.shape[1]):
            self._advance(xs[:, t], out[:, t])
        return True

    def _advance(self, x: Array, out: Array) -> None:
        for (cell, params, zoneout, _), state in zip(self._layers, self.state, strict=True):
            before = cell.narrowed(tuple(state), cell.output_size(params))
            after = self._engine.step(cell, x, before, params, zoneout)
            for old, new in zip(state, after, strict=True):
                old[:, : new.shape[1]] = new
            x = after[0]
        out[...] = x if self._affine is None else self._engine.affine(x, *self._affine)


def written(values: Sequence[Array], out: Sequence[Array] | None) -> tuple[Array, ...]:
    """Copy the values to the arrays ``out``, if given, unless they are there already."""
    if out is None:
        return tuple(values)
    for array, value in zip(out, values, strict=True):
        if array is not value:
            array[...] = value
    return tuple(out)


def product_in_parts(matmul: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """Multiply matrices, or stacks of them, and sum long contractions in parts."""
    K = a.shape[-1]
    if K <= SUMMED_AT_ONCE:
        return matmul(a, b)
    parts = (slice(k, k + SUMMED_AT_ONCE) for k in range(0, K, SUMMED_AT_ONCE))
    products = (matmul(a[..., part], b[..., part, :]) for part in parts)
    out = next(products)
    for product in products:
        out += product
    return out


def _sum_of_squares(array: Array) -> float:
    """The sum of the squares of an array's numbers, made in parts."""
    numbers = array.ravel(order="K")
    starts = range(0, numbers.size, UPDATED_AT_ONCE)
    parts = (numbers[start : start + UPDATED_AT_ONCE] for start in starts)
    return sum(float(part @ part) for part in parts)


def _least_norm(arrays: Sequence[Array]) -> float:
    """A norm from which on squares that underflow do not count, even if they all do."""
    kinds = [np.finfo(dtype) for dtype in {array.dtype for array in arrays}]
    size = sum(array.size for array in arrays)
    return max((math.sqrt(size * float(kind.tiny / kind.eps)) for kind in kinds), default=0.0)


def _scaled_norm(array: Array) -> float:
    """The Euclidean norm, computed from the numbers divided by the largest."""
    largest = float(max(array.max(), -array.min())) if array.size else 0.0
    if not 0 < largest < math.inf:  # 0, infinite or NaN
        return largest
    return largest * math.sqrt(_sum_of_squares(array.astype(np.float64) / largest))


def expect_consistent(cell: Cell, xs: Array, state: State, params: Sequence[Array]) -> None:
    """Refuse arrays that do not fit together: compiled code would read beyond their end.

    Raises
    ------
    ValueError
        If a shape does not fit.
    TypeError
        If the dtypes differ.
    """
    N, _, D = xs.shape
    if not xs.dtype.isnative:
        raise TypeError(f"xs: expected numbers in the machine's byte order, got {xs.dtype}")
    if len(params) != len(cell.param_names):
        expected = ", ".join(cell.param_names)
        raise ValueError(f"params: expected {expected}, got {len(params)} arrays")
    H = cell.hidden_size(params)
    P = cell.output_size(params) if cell.projected else H
    names, shapes = _expected_shapes(cell, N, D, H, P)
    arrays, dtype = (*params, *state), xs.dtype
    same = [dtype] * len(arrays)
    if [array.shape for array in arrays] == shapes and [array.dtype for array in arrays] == same:
        return
    for name, shape, array in zip(names, shapes, arrays, strict=True):
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        if array.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, as xs is, got {array.dtype}")


@lru_cache(maxsize=1024)
def _expected_shapes(
    cell: Cell, N: int, D: int, H: int, P: int
) -> tuple[list[str], list[tuple[int, ...]]]:
    """The names of the parameters and states, and their shapes."""
    shapes = cell.shapes(D, H, P)
    states = [(N, size) for size in cell.state_sizes(H, P)]
    return [*shapes, *cell.states], [*shapes.values(), *states]
