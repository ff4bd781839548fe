"""Forward and backward of any cell as pure functions: arrays in, arrays out.

    hs, state, record = forward(cell, xs, state, params, options)
    gradients = backward(record, dhs, dstate)

No layer holds anything between the calls. ``backward`` finds all that it needs in the record, so
that passes may overlap in any order and in any thread.

Shapes: N batch, T time, D input size, H hidden size, S number of states. All arrays of a call have
one dtype, float32 or float64. The h of a projected cell, its gradient and hs have P numbers, the
number of outputs, where H is written.

A call runs where its parameters are, as a layer does: NumPy arrays on the engine in force
(``use_backend``), arrays on a GPU on the CUDA engine. While the CUDA engine is in force, NumPy
arrays are copied to the GPU at every call. Results are arrays of the engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .backend import Engine, engine_of_param
from .kernels import cells
from .kernels.cells import Cell, WrittenCell
from .kernels.engine import Gradients
from .kernels.ragged import Ragged
from .kernels.step_options import NO_OPTIONS, StepOptions
from .layers.param_checks import validate_params
from .typing import Array, BoolArray, Integers
from .validation import (
    as_array,
    expect_array,
    expect_float,
    expect_ids,
    expect_int,
    expect_writable,
    validate_array,
    validate_flags,
)

__all__ = [
    "Gradients", "Record", "Result", "StepOptions", "backward", "forward", "forward_packed", "step",
]  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False, slots=True, weakref_slot=True)
class Record:
    """Everything that ``backward`` needs of one ``forward``, which alone makes records.

    A record serves any number of backwards, also at the same time in several threads: it does not
    change. Its memory is freed with the last reference to it. It refers to xs and the parameters
    without a copy: they must not change before the last backward. It cannot be copied or pickled.

    Attributes
    ----------
    cell : Cell
        The cell.
    engine : Engine
        The engine that ran forward and that runs backward.
    options : StepOptions
        The options of the steps; mask and resets are copies.
    sizes : (N, T, D, H, P)
        The sizes of the pass; P, the number of outputs, is H unless the cell is projected.
    dtype : dtype
        float32 or float64.
    saved : object
        Opaque: its form is the engine's own.
    rows : int or None
        R, the number of steps of all members together, of ``forward_packed``; else None.
    """

    cell: Cell
    engine: Engine
    options: StepOptions
    sizes: tuple[int, int, int, int, int]
    dtype: np.dtype[Any]
    saved: Any
    rows: int | None = None

    def __repr__(self) -> str:
        names = "NTDHP" if self.cell.projected else "NTDH"
        sizes = ", ".join(f"{name} {n}" for name, n in zip(names, self.sizes, strict=False))
        return f"Record({self.cell.name}, {sizes}, {self.dtype}, {self.engine.name})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "record: expected to stay where it was made, compiled code knows its memory by "
            "address; instead of a copy keep the arguments and call forward again"
        )


class Result(NamedTuple):
    """The result of ``forward``.

    Attributes
    ----------
    hs : (N, T, H) array
        The hidden state after every step; 0 where the step is masked.
    state : tuple of (N, H) arrays
        The state after the last step of each row that is not masked.
    record : Record
        The first argument of ``backward``.
    """

    hs: Array
    state: tuple[Array, ...]
    record: Record


def forward(
    cell: str | Cell | WrittenCell,
    xs: Array,
    state: Sequence[Array | None] | None,
    params: Sequence[Array],
    options: StepOptions = NO_OPTIONS,
) -> Result:
    """Run a cell over a block of time.

    Parameters
    ----------
    cell : str, Cell or WrittenCell
        The cell, or its name.
    xs : (N, T, D) array, float32 or float64
        The inputs.
    state : sequence of (N, H) arrays, or None
        The state before the first step, in the order of ``cell.states``. A state that is left out
        or None is 0.
    params : sequence of arrays
        The parameters, in the order and the shapes of ``cell.shapes(D, H)``.
    options : StepOptions, default none
        The options of the steps: mask, resets, zoneout and so on.

    Returns
    -------
    Result
        The hidden states, the state after the last step, and the record for ``backward``.

    Raises
    ------
    ValueError
        If a shape does not fit, or a number of the options is out of range.
    TypeError
        If the dtypes differ, or an argument is not an array.

    Notes
    -----
    xs and params are not copied; they must not change before the last ``backward`` of the record.
    For a batch of rows that differ in length the mask is ``np.arange(T) < lengths[:, None]``. xs
    may hold anything, NaN included, where the mask is False.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import cells
    >>> params = [np.full(shape, 0.1) for shape in cells.get("gru").shapes(3, 5).values()]
    >>> mask = np.arange(7) < np.array([[7], [4]])
    >>> hs, (h,), record = forward("gru", np.ones((2, 7, 3)), None, params, StepOptions(mask=mask))
    >>> hs.shape, h.shape
    ((2, 7, 5), (2, 5))
    """
    cell = cells.get(cell)
    params, here = _accept_params(cell, params)
    (D, _), dtype = params[0].shape, params[0].dtype
    H, P = cell.hidden_size(params), cell.output_size(params)
    xs = validate_array("xs", xs, ("N", "T", D), dtype, here)
    N, T, _ = xs.shape
    state = _accept_state(cell, "", state, (N, H, P), dtype, here)
    if options is not NO_OPTIONS:
        options = _accept_options(cell, options, (N, T, H), dtype, here)
    hs, after, saved = here.forward(cell, xs, state, params, options)
    return Result(hs, after, Record(cell, here, options, (N, T, D, H, P), dtype, saved))


def forward_packed(
    cell: str | Cell | WrittenCell,
    xs: Array,
    counts: Integers,
    state: Sequence[Array | None] | None,
    params: Sequence[Array],
    options: StepOptions = NO_OPTIONS,
) -> Result:
    """Run a cell over a batch whose members differ in length, without padding.

    Time and memory are those of the steps that there are.

    Parameters
    ----------
    cell : str, Cell or WrittenCell
        The cell, or its name.
    xs : (R, D) array, float32 or float64
        The inputs of all members at step 0, the longest member first, then those of step 1, and so
        on: the ``data`` of a PackedSequence of PyTorch.
    counts : (T,) integers
        How many members have each step, never more than have the one before: its ``batch_sizes``.
        Their sum is R, and the first is N.
    state : sequence of (N, H) arrays, or None
        The state before the first step, in the order of ``cell.states``. A state that is left out
        or None is 0.
    params : sequence of arrays
        The parameters, in the order and the shapes of ``cell.shapes(D, H)``.
    options : StepOptions, default none
        The options of the steps, of which mask and resets have to be None.

    Returns
    -------
    Result
        The hidden states (R, H), the state after the last step of each member, and the record for
        ``backward``, which takes and returns gradients in the shapes of xs and hs.

    Raises
    ------
    ValueError
        If a shape does not fit, or counts grow, or a number of the options is out of range.
    TypeError
        If the dtypes differ, or an argument is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import cells
    >>> params = [np.full(shape, 0.1) for shape in cells.get("gru").shapes(3, 5).values()]
    >>> hs, (h,), record = forward_packed("gru", np.ones((6, 3)), [2, 2, 1, 1], None, params)
    >>> hs.shape, h.shape, bool((h[1] == hs[3]).all())
    ((6, 5), (2, 5), True)
    >>> backward(record, np.ones_like(hs)).xs.shape
    (6, 3)
    """
    cell = cells.get(cell)
    params, here = _accept_params(cell, params)
    (D, _), dtype = params[0].shape, params[0].dtype
    H, P = cell.hidden_size(params), cell.output_size(params)
    counts = as_array("counts", counts)
    expect_ids("counts", counts, ("T",), np.iinfo(np.int64).max)
    counts = counts.astype(np.int64)
    if (more := np.diff(counts) > 0).any():
        t = int(more.argmax())
        raise ValueError(
            f"counts: expected no step with more members than the one before, got {counts[t + 1]} "
            f"at {t + 1} after {counts[t]}; members come from the longest to the shortest"
        )
    members = Ragged.of_counts(counts)
    N, T, rows = members.N, members.steps, members.rows
    xs = validate_array("xs", xs, (rows, D), dtype, here)
    state = _accept_state(cell, "", state, (N, H, P), dtype, here)
    if options is not NO_OPTIONS:
        options = _accept_options(cell, options, (N, T, H), dtype, here)
        if options.mask is not None or options.resets is not None:
            raise ValueError(
                "options: expected neither mask nor resets, which forward takes, with padded xs"
            )
    hs, after, saved = here.forward_packed(cell, xs, members, state, params, options)
    sizes = N, T, D, H, P
    return Result(hs, after, Record(cell, here, options, sizes, dtype, saved, rows))


def backward(
    record: Record,
    dhs: Array | None,
    dstate: Sequence[Array | None] | None = None,
    *,
    inputs: bool = True,
    out: Sequence[Array] | None = None,
) -> Gradients:
    """Backpropagate through the block of time that ``forward`` ran over.

    Parameters
    ----------
    record : Record
        The record of ``forward``.
    dhs : (N, T, H) array or None
        The gradient of hs; None: zeros. Steps that are masked are ignored.
    dstate : sequence of (N, H) arrays, optional
        The gradient of the state after the last step. A gradient that is left out or None is 0.
    inputs : bool, default True
        Whether to compute the gradient of xs.
    out : sequence of arrays, optional
        The arrays for the gradients of the parameters, which are overwritten; new ones if left
        out.

    Returns
    -------
    Gradients
        The gradients of xs, of the state before the first step and of the parameters; with resets
        that of ``options.initial``; with ``options.trace`` that of the state after every step.

    Raises
    ------
    ValueError
        If a shape does not fit, or an array of ``out`` is read-only.
    TypeError
        If record is not a record, the dtypes differ, or an argument is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import cells
    >>> params = [np.full(shape, 0.1) for shape in cells.get("gru").shapes(3, 5).values()]
    >>> hs, _, record = forward("gru", np.ones((2, 7, 3)), None, params)
    >>> grads = [np.empty_like(param) for param in params]
    >>> found = backward(record, np.ones_like(hs), out=grads)
    >>> found.xs.shape, [d.shape for d in found.state], found.params[0] is grads[0]
    ((2, 7, 3), [(2, 5)], True)
    """
    if not isinstance(record, Record):
        hint = "; its field record is one" if isinstance(record, Result) else ""
        raise TypeError(
            "record: expected the record of numba_rnn.functional.forward, got "
            f"{type(record).__name__}{hint}"
        )
    cell, here, (N, T, D, H, P), dtype = record.cell, record.engine, record.sizes, record.dtype
    shape = (N, T, P) if record.rows is None else (record.rows, P)
    zeros = here.xp.zeros(shape, dtype) if dhs is None else None
    dhs = zeros if dhs is None else validate_array("dhs", dhs, shape, dtype, here)
    known = _accept_state(cell, "d", dstate, (N, H, P), dtype, here)
    if out is not None:
        out = _accept_out(cell, out, (D, H, P), dtype, here)
    run = here.backward if record.rows is None else here.backward_packed
    found = run(cell, dhs, known, record.saved, inputs, out)
    if found.initial is not None and record.options.resets is None:
        found = found._replace(initial=None)  # zeros of some engines
    return found


def step(
    cell: str | Cell | WrittenCell,
    x: Array,
    state: Sequence[Array | None] | None,
    params: Sequence[Array],
    zoneout: Sequence[float] = (),
) -> tuple[Array, ...]:
    """Run one step of a cell, and keep nothing for backward.

    Parameters
    ----------
    cell : str, Cell or WrittenCell
        The cell, or its name.
    x : (N, D) array, float32 or float64
        The input.
    state : sequence of (N, H) arrays, or None
        The state before the step. A state that is left out or None is 0.
    params : sequence of arrays
        The parameters, in the order and the shapes of ``cell.shapes(D, H)``.
    zoneout : sequence of float, default none
        For each state, the share of its old value that a unit keeps.

    Returns
    -------
    tuple of (N, H) arrays
        The state after the step; the first one is the hidden state.

    Raises
    ------
    ValueError
        If a shape does not fit, or a rate is not in [0, 1).
    TypeError
        If the dtypes differ, or an argument is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import cells
    >>> params = [np.full(shape, 0.1) for shape in cells.get("lstm").shapes(3, 5).values()]
    >>> h, c = step("lstm", np.ones((2, 3)), None, params)
    >>> h, c = step("lstm", np.ones((2, 3)), (h, c), params)
    >>> h.shape
    (2, 5)
    """
    cell = cells.get(cell)
    params, here = _accept_params(cell, params)
    dtype = params[0].dtype
    x = validate_array("x", x, ("N", params[0].shape[0]), dtype, here)
    sizes = x.shape[0], cell.hidden_size(params), cell.output_size(params)
    state = _accept_state(cell, "", state, sizes, dtype, here)
    return here.step(cell, x, state, params, _accept_zoneout(cell, zoneout))


# ---- arguments


def _sequence(name: str, value: Any, names: Sequence[str]) -> Sequence[Any]:
    """A tuple or list, which an array is not."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"{name}: expected a tuple or list of {', '.join(names)}, got {type(value).__name__}"
        )
    return value


def _accept_params(cell: Cell, params: Any) -> tuple[list[Array], Engine]:
    """The parameters, and the engine that runs where they are."""
    _sequence("params", params, ("arrays",))
    params = validate_params("params", cell, params)
    return params, engine_of_param(params[0])


def _accept_state(
    cell: Cell, prefix: str, state: Any, sizes: tuple[int, int, int], dtype: Any, here: Engine
) -> tuple[Array, ...]:
    """An array for each state, zeros for those left out; a name is the prefix and a state's."""
    N, *others = sizes
    shapes = [(N, size) for size in cell.state_sizes(*others)]
    if state is None:
        return tuple([here.xp.zeros(shape, dtype) for shape in shapes])
    names = [prefix + name for name in cell.states]
    given = _sequence(f"{prefix}state", state, names)
    if len(given) > len(names):
        raise TypeError(f"{prefix}state: expected {', '.join(names)}, got {len(given)} arrays")
    left_out = (None,) * (len(names) - len(given))
    return tuple(
        [
            here.xp.zeros(shape, dtype)
            if value is None
            else validate_array(name, value, shape, dtype, here)
            for name, value, shape in zip(names, (*given, *left_out), shapes, strict=True)
        ]
    )


def _accept_options(
    cell: Cell, options: Any, sizes: tuple[int, int, int], dtype: Any, here: Engine
) -> StepOptions:
    """The options with arrays of the engine, and with copies of mask and resets."""
    if not isinstance(options, StepOptions):
        raise TypeError(f"options: expected a StepOptions, got {type(options).__name__}")
    N, T, H = sizes

    def flags(name: str) -> BoolArray | None:
        value = getattr(options, name)
        return None if value is None else validate_flags(name, value, (N, T), here)

    def numbers(name: str, shape: tuple[int, int]) -> Array | None:
        value = getattr(options, name)
        return None if value is None else validate_array(name, value, shape, dtype, here)

    return replace(
        options,
        mask=flags("mask"),
        resets=flags("resets"),
        initial=numbers("initial", (len(cell.states), H)),
        recurrent_mask=numbers("recurrent_mask", (N, H)),
        zoneout=_accept_zoneout(cell, options.zoneout),
        seed=None if options.seed is None else expect_int("seed", options.seed, 0),
        t_offset=expect_int("t_offset", options.t_offset, 0),
        row_offset=expect_int("row_offset", options.row_offset, 0),
        checkpoint_every=expect_int("checkpoint_every", options.checkpoint_every, 0),
        trace=bool(options.trace),
        clip=None if options.clip is None else expect_float("clip", options.clip, 0, low_open=True),
    )


def _accept_zoneout(cell: Cell, rates: Any) -> tuple[float, ...]:
    """A rate for each state, or none."""
    names = [f"zoneout of {name}" for name in cell.states]
    rates = _sequence("zoneout", rates, names)
    if len(rates) not in (0, len(names)):
        raise ValueError(f"zoneout: expected a rate for each of {', '.join(cell.states)}, or none, "
                         f"got {len(rates)}")  # fmt: skip
    rates = tuple(expect_float(name, rate, 0, 1) for name, rate in zip(names, rates, strict=False))
    for name, rate in zip(cell.states, rates, strict=False):
        if rate and name in cell.coupled:
            raise ValueError(
                f"zoneout: expected 0 for {', '.join(cell.coupled)}, which must stay "
                f"together, got {rate} for {name}"
            )
    return rates if any(rates) else ()


def _accept_out(
    cell: Cell, out: Any, sizes: tuple[int, int, int], dtype: Any, here: Engine
) -> Sequence[Array]:
    """Arrays of the engine that may be written to, one for each parameter."""
    shapes = {f"d{name}": shape for name, shape in cell.shapes(*sizes).items()}
    out = _sequence("out", out, tuple(shapes))
    if len(out) != len(shapes):
        raise TypeError(f"out: expected {', '.join(shapes)}, got {len(out)} arrays")
    for (name, shape), array in zip(shapes.items(), out, strict=True):
        expect_array(f"out: {name}", array, shape, dtype, here)
        if not here.is_native(array):  # a copy of it would be filled
            raise TypeError(
                f"out: {name}: expected an array of the {here.name} engine, got one of "
                f"{type(array).__module__}"
            )
        expect_writable(f"out: {name}", array)
    return out
