"""Forward and backward of any cell as pure functions: arrays in, arrays out.

    hs, state, record = forward(cell, xs, state, params, options)
    gradients = backward(record, dhs, dstate)
    tangents = jvp(record, direction)               the derivative of hs and state
    second = hvp(record, dhs, dstate, direction)    the derivative of the gradients

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
from .kernels import cells, derivatives
from .kernels.cells import Cell, WrittenCell
from .kernels.engine import Gradients
from .kernels.quantisation import expect_trainable
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
    "Direction", "Gradients", "Record", "Result", "StepOptions", "Tangents", "backward", "forward",
    "forward_packed", "hvp", "jvp", "step",
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
    inputs : Inputs
        The inputs, the state before the first step and the parameters.
    members : Ragged or None
        The members of ``forward_packed`` and their steps; else None.
    """

    cell: Cell
    engine: Engine
    options: StepOptions
    sizes: tuple[int, int, int, int, int]
    dtype: np.dtype[Any]
    saved: Any
    inputs: derivatives.Inputs
    members: Ragged | None = None

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


class Direction(NamedTuple):
    """Tangents of everything that a pass depends on, for ``jvp`` and ``hvp``.

    Attributes
    ----------
    xs : (N, T, D) array or None, default None
        The tangent of xs; None: zeros, as of the others.
    state : sequence of (N, H) arrays or None, default None
        The tangent of the state before the first step. One that is left out or None is 0.
    params : sequence of arrays or None, default None
        The tangents of the parameters, in their order. One that is None is 0.
    initial : (S, H) array or None, default None
        The tangent of ``options.initial``.
    """

    xs: Array | None = None
    state: Sequence[Array | None] | None = None
    params: Sequence[Array | None] | None = None
    initial: Array | None = None


class Tangents(NamedTuple):
    """The result of ``jvp``.

    Attributes
    ----------
    hs : (N, T, H) array
        The tangent of hs; 0 where the step is masked.
    state : tuple of (N, H) arrays
        The tangent of the state after the last step.
    """

    hs: Array
    state: tuple[Array, ...]


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
    inputs = _kept(xs, state, params, options)
    return Result(hs, after, Record(cell, here, options, (N, T, D, H, P), dtype, saved, inputs))


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
    sizes, inputs = (N, T, D, H, P), _kept(xs, state, params, options)
    record = Record(cell, here, options, sizes, dtype, saved, inputs, members)
    return Result(hs, after, record)


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
    _expect_record(record)
    cell, here, (N, _, D, H, P), dtype = record.cell, record.engine, record.sizes, record.dtype
    shape = _shape_of(record, P)
    zeros = here.xp.zeros(shape, dtype) if dhs is None else None
    dhs = zeros if dhs is None else validate_array("dhs", dhs, shape, dtype, here)
    known = _accept_state(cell, "d", dstate, (N, H, P), dtype, here)
    if out is not None:
        out = _accept_out(cell, out, (D, H, P), dtype, here)
    run = here.backward if record.members is None else here.backward_packed
    found = run(cell, dhs, known, record.saved, inputs, out)
    if found.initial is not None and record.options.resets is None:
        found = found._replace(initial=None)  # zeros of some engines
    return found


def jvp(record: Record, *directions: Direction) -> Tangents:
    """Compute a Jacobian-vector product: the derivative of hs and state in a direction.

    Parameters
    ----------
    record : Record
        The record of ``forward``.
    *directions : Direction
        The direction: tangents of xs, of the state before the first step and of the parameters.
        With several the result is the derivative of that order, in all of them.

    Returns
    -------
    Tangents
        The tangents of hs and of the state after the last step.

    Raises
    ------
    ValueError
        If a shape does not fit.
    TypeError
        If record is not a record, the dtypes differ, an argument is not an array, or weights are
        in int8.

    Notes
    -----
    Where a function of the cell has a kink, as relu has at 0, the slope is that of ``backward``.
    Masks, zoneout and the recurrent mask are constants.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_rnn import cells
    >>> params = [np.full(shape, 0.1) for shape in cells.get("gru").shapes(3, 5).values()]
    >>> hs, _, record = forward("gru", np.ones((2, 7, 3)), None, params)
    >>> moved = jvp(record, Direction(params=[np.ones_like(param) for param in params]))
    >>> moved.hs.shape, [d.shape for d in moved.state]
    ((2, 7, 5), [(2, 5)])
    """
    steps, inputs, given = _accept_directions(record, directions)
    hs, state = derivatives.jvp(record.cell, inputs, steps, given)
    put = record.engine.to_device
    return Tangents(put(_packed(record, hs)), tuple(map(put, state)))


def hvp(
    record: Record,
    dhs: Array | None,
    dstate: Sequence[Array | None] | None,
    *directions: Direction,
    dhs_tangent: Array | None = None,
    dstate_tangent: Sequence[Array | None] | None = None,
) -> Gradients:
    """Compute the derivative of ``backward``'s gradients in a direction.

    For a loss that is linear in hs and the state after, whose gradients dhs and dstate are then
    constants, it is the Hessian of the loss times the direction. For other losses give the tangents
    of dhs and dstate too.

    Parameters
    ----------
    record : Record
        The record of ``forward``.
    dhs : (N, T, H) array or None
        The gradient of hs, as for ``backward``; None: zeros.
    dstate : sequence of (N, H) arrays, or None
        The gradient of the state after the last step. A gradient that is left out or None is 0.
    *directions : Direction
        The direction: tangents of xs, of the state before the first step and of the parameters.
        With several the result is the derivative of that order, in all of them.
    dhs_tangent : (N, T, H) array, optional
        The tangent of dhs; zeros if left out, as it must be with several directions.
    dstate_tangent : sequence of (N, H) arrays, optional
        The tangents of dstate; zeros if left out.

    Returns
    -------
    Gradients
        The tangent of each gradient that ``backward`` returns.

    Raises
    ------
    ValueError
        If a shape does not fit.
    TypeError
        If record is not a record, the dtypes differ, an argument is not an array, or weights are
        in int8.

    Examples
    --------
    The sum of all outputs, its Hessian by the parameters times their own values:

    >>> import numpy as np
    >>> from numba_rnn import cells
    >>> params = [np.full(shape, 0.1) for shape in cells.get("gru").shapes(3, 5).values()]
    >>> hs, _, record = forward("gru", np.ones((2, 7, 3)), None, params)
    >>> found = hvp(record, np.ones_like(hs), None, Direction(params=params))
    >>> [d.shape for d in found.params], found.xs.shape
    ([(3, 15), (5, 15), (15,)], (2, 7, 3))
    """
    steps, inputs, given = _accept_directions(record, directions)
    cell, here, (N, T, _, H, P), dtype = record.cell, record.engine, record.sizes, record.dtype

    def of_output(prefix: str, dhs: Any, dstate: Any) -> list[Any]:
        dhs = _padded(
            record, _accept_tangent(f"{prefix}hs", dhs, _shape_of(record, P), dtype, here)
        )
        return [dhs, *_accept_tangents(cell, prefix, dstate, (N, H, P), dtype, here)]

    shapes = (N, T, P), *((N, size) for size in cell.state_sizes(H, P))
    pairs = zip(of_output("d", dhs, dstate), shapes, strict=True)
    dout = [np.zeros(shape, dtype) if d is None else d for d, shape in pairs]
    moved = of_output("tangent of d", dhs_tangent, dstate_tangent)
    if len(directions) > 1 and any(tangent is not None for tangent in moved):
        raise ValueError("dhs_tangent, dstate_tangent: expected None with several directions")
    found = derivatives.hvp(cell, inputs, steps, given, dout, moved)
    put = here.to_device
    return Gradients(
        put(_packed(record, found.xs)),
        tuple(map(put, found.state)),
        tuple(map(put, found.params)),
        None if record.options.resets is None else put(found.initial),
        None if found.states is None else put(_packed(record, found.states)),
    )


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


def _shape_of(record: Record, size: int) -> tuple[int, ...]:
    """(N, T, size), or (R, size) with R the number of steps of all members together."""
    N, T, *_ = record.sizes
    return (N, T, size) if record.members is None else (record.members.rows, size)


# ---- arguments


def _expect_record(record: Any) -> None:
    if not isinstance(record, Record):
        hint = "; its field record is one" if isinstance(record, Result) else ""
        raise TypeError(
            "record: expected the record of numba_rnn.functional.forward, got "
            f"{type(record).__name__}{hint}"
        )


def _accept_directions(
    record: Any, directions: Sequence[Any]
) -> tuple[StepOptions, derivatives.Inputs, list[derivatives.Inputs]]:
    """The options of a pass, its inputs and the directions, all in NumPy arrays."""
    _expect_record(record)
    if not directions or not all(isinstance(u, Direction) for u in directions):
        got = ", ".join(type(u).__name__ for u in directions) or "none"
        raise TypeError(
            "directions: expected at least one numba_rnn.functional.Direction, such as "
            f"Direction(xs=...), got {got}"
        )
    xs, state, params, initial = record.inputs
    expect_trainable(params)
    steps, host, members = record.options, record.engine.to_host, record.members
    if members is not None:
        steps = replace(steps, mask=members.unpack(np.ones(members.rows, bool)))
    if steps.recurrent_mask is not None:
        steps = replace(steps, recurrent_mask=host(steps.recurrent_mask))
    inputs = derivatives.Inputs(
        _padded(record, host(xs)),
        tuple(map(host, state)),
        tuple(map(host, params)),
        None if initial is None else host(initial),
    )
    return steps, inputs, [_accept_direction(record, u) for u in directions]


def _padded(record: Record, rows: Any) -> Any:
    """An array (N, T, ...) in place of the rows of ``forward_packed``; None stays None."""
    members = record.members
    return rows if members is None or rows is None else members.unpack(rows)


def _packed(record: Record, array: Any) -> Any:
    """The inverse of ``_padded``."""
    return array if record.members is None else record.members.pack(array)


def _kept(xs: Array, state: Any, params: Any, options: StepOptions) -> derivatives.Inputs:
    """The inputs that a record refers to; of the state, which the caller may change, a copy."""
    return derivatives.Inputs(xs, tuple(s.copy() for s in state), params, options.initial)


def _accept_direction(record: Record, direction: Direction) -> derivatives.Inputs:
    """The direction in NumPy arrays, of the sizes of the pass."""
    cell, here, (N, _, D, H, P), dtype = record.cell, record.engine, record.sizes, record.dtype
    shapes = cell.shapes(D, H, P)

    def accept(name: str, value: Any, shape: Any) -> Any:
        return _accept_tangent(f"direction: {name}", value, shape, dtype, here)

    params = (None,) * len(shapes) if direction.params is None else direction.params
    if len(_sequence("direction: params", params, tuple(shapes))) != len(shapes):
        raise TypeError(f"direction: params: expected {', '.join(shapes)}, got {len(params)}")
    if direction.initial is not None and record.options.initial is None:
        raise ValueError("direction: initial: expected None, as options.initial is, got an array")
    return derivatives.Inputs(
        _padded(record, accept("xs", direction.xs, _shape_of(record, D))),
        _accept_tangents(cell, "direction: ", direction.state, (N, H, P), dtype, here),
        [accept(name, d, shapes[name]) for name, d in zip(shapes, params, strict=True)],
        accept("initial", direction.initial, (len(cell.states), H)),
    )


def _accept_tangent(name: str, value: Any, shape: Any, dtype: Any, here: Engine) -> Any:
    """The tangent as a NumPy array; None stays None."""
    return None if value is None else here.to_host(validate_array(name, value, shape, dtype, here))


def _accept_tangents(
    cell: Cell, prefix: str, state: Any, sizes: tuple[int, int, int], dtype: Any, here: Engine
) -> list[Any]:
    """A tangent or None for each state."""
    names, N = [prefix + name for name in cell.states], sizes[0]
    given = () if state is None else _sequence(f"{prefix}state", state, names)
    if len(given) > len(names):
        raise TypeError(f"{prefix}state: expected {', '.join(names)}, got {len(given)} arrays")
    padded = (*given, *(None,) * (len(names) - len(given)))
    return [
        _accept_tangent(name, value, (N, size), dtype, here)
        for name, value, size in zip(names, padded, cell.state_sizes(*sizes[1:]), strict=True)
    ]


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
