"""Compare the gradients of a cell with central differences, on random numbers and in NumPy."""

import warnings
from typing import Any

import numpy as np

from .cells import Cell, WrittenCell
from .reference import NumpyEngine


def check(
    self: WrittenCell,
    N: int = 2,
    T: int = 3,
    D: int = 3,
    H: int = 4,
    *,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> float:
    """Compare the gradients with central differences, on random numbers and in NumPy.

    Parameters
    ----------
    self : WrittenCell
        The cell.
    N, T, D, H : int
        The numbers of rows, steps, inputs and units of the problem.
    seed : int, default 0
        The seed of the random numbers.
    tolerance : float, default 1e-6
        The largest error that is allowed, relative to the largest number of a gradient.

    Returns
    -------
    float
        The largest relative error.

    Raises
    ------
    AssertionError
        If an error is larger than that, or float32 does not stay float32; the message names the
        gradient and its error.

    Warns
    -----
    RuntimeWarning
        If a quotient may be 0 / 0 where gates are shut or wide open, or a root may be of 0: the
        gradient is NaN there. The message names the place.
    """
    for place in self.without_gradient():
        warnings.warn(
            f"cell {self.name!r}: {place}, which makes its gradient NaN: guard it with "
            "where(...), or compute it with logarithms, as minlstm in kernels/cells/ does",
            RuntimeWarning,
            stacklevel=2,
        )
    cell = self.cell
    sizes = N, T, D, H
    problems = [_gradient_errors(cell, sizes, seed + k) for k in range(2)]
    # where functions are flat or have another branch, such as hard_sigmoid beyond 3
    problems.append(_gradient_errors(cell, sizes, seed, reach=4.0))
    errors = {name: max(errors[name] for errors in problems) for name in problems[0]}
    wrong = [
        f"{name} by {e:.1e}" if np.isfinite(e) else f"{name} (NaN or infinite)"
        for name, e in errors.items()
        if not e <= tolerance
    ]
    if wrong and (states := _states_not_finite(cell, sizes, seed)):
        raise AssertionError(
            f"cell {cell.name!r}: forward is not finite: {', '.join(states)} (NaN or infinite, "
            "from inputs, weights and states between -1 and 1)"
        )
    if wrong:
        raise AssertionError(
            f"cell {cell.name!r}: gradients are off: {', '.join(wrong)} "
            f"(relative; the limit is {tolerance:.0e})"
        )
    changed = _other_dtypes(cell, sizes, seed)
    if changed:
        raise AssertionError(
            f"cell {cell.name!r}: expected float32 throughout, got {', '.join(changed)}"
        )
    return max(errors.values())


WrittenCell.check = check


def _states_not_finite(cell: Cell, sizes: tuple[int, ...], seed: int) -> list[str]:
    """The states that forward makes NaN or infinite, from random numbers between -1 and 1."""
    found = set()
    with np.errstate(all="ignore"):
        for k in range(2):
            hs, last, _ = _Problem(cell, sizes, seed + k, np.float64).forward()
            arrays = *zip(cell.states, last, strict=True), (cell.states[0], hs)
            found |= {name for name, array in arrays if not np.isfinite(array).all()}
    return [name for name in cell.states if name in found]


class _Problem:
    """Random inputs, parameters and states for a cell, by name, and its gradients by them."""

    def __init__(
        self, cell: Cell, sizes: tuple[int, ...], seed: int, dtype: Any, reach: float = 1.0
    ) -> None:
        N, T, D, H = sizes
        rng = np.random.default_rng(seed)

        def uniform(*shape: int) -> Any:
            return rng.uniform(-reach, reach, shape).astype(dtype)

        self._engine, self._cell = NumpyEngine(), cell
        shapes = cell.shapes(D, H)
        self.params = {
            name: uniform(*shape) / dtype(np.sqrt(shape[0]) if name.startswith("W") else 1)
            for name, shape in shapes.items()
        }
        self.state = {name: uniform(N, H) for name in cell.states}
        self.xs = uniform(N, T, D)
        self.dhs = uniform(N, T, H)
        self.dstate = {name: uniform(N, H) for name in cell.states}

    def inputs(self) -> dict[str, Any]:
        return {"xs": self.xs, **self.params, **self.state}

    def forward(self) -> tuple[Any, Any, Any]:
        state, params = tuple(self.state.values()), tuple(self.params.values())
        return self._engine.forward(self._cell, self.xs, state, params)

    def loss(self) -> float:
        hs, last, _ = self.forward()
        ends = zip(self.dstate.values(), last, strict=True)
        return float((self.dhs * hs).sum() + sum((d * s).sum() for d, s in ends))

    def gradients(self) -> dict[str, Any]:
        dstate = tuple(self.dstate.values())
        _, _, saved = self.forward()
        found = self._engine.backward(self._cell, self.dhs, dstate, saved)
        return dict(zip(self.inputs(), (found.xs, *found.params, *found.state), strict=True))


def _gradient_errors(
    cell: Cell, sizes: tuple[int, ...], seed: int, reach: float = 1.0
) -> dict[str, float]:
    """The error of each gradient from central differences, relative to its largest number.

    reach  the largest absolute value of the random numbers; beyond 1, differences that are not
           finite are ignored, since a function may not be defined there
    """
    errors = {}
    with np.errstate(all="ignore"):
        problem = _Problem(cell, sizes, seed, np.float64, reach)
        gradients = problem.gradients()
        for name, array in problem.inputs().items():
            near, far = (_differences(problem, array, step) for step in (5e-6, 1e-5))
            finite = np.isfinite(near) & np.isfinite(far) & np.isfinite(gradients[name])
            # the loss is about 1: a gradient near its rounding errors cannot be judged
            size = max(np.abs(near[finite]).max(initial=0), 1e-3)
            # where two differences disagree there is a kink between, and no gradient
            judged = finite & (np.abs(near - far) <= 1e-7 * size)
            error = np.abs(gradients[name] - near)[judged].max(initial=0) / size
            errors[name] = float(error) if reach > 1 or finite.all() else float("inf")
    return errors


def _differences(problem: "_Problem", array: Any, step: float) -> Any:
    """Central differences of the loss with respect to each number of an array."""
    found = np.empty_like(array)
    for place in np.ndindex(array.shape):
        here = array[place]
        array[place] = here + step
        above = problem.loss()
        array[place] = here - step
        found[place] = (above - problem.loss()) / (2 * step)
        array[place] = here
    return found


def _other_dtypes(cell: Cell, sizes: tuple[int, ...], seed: int) -> list[str]:
    """Names and dtypes of the results that do not stay float32."""
    with np.errstate(all="ignore"):
        problem = _Problem(cell, sizes, seed, np.float32)
        _, _, (_, steps, *_) = problem.forward()
        saved = steps[0].saved
        dgates, dprev = cell.backward(tuple(problem.dstate.values()), saved, steps[0].state)
        after = steps[1].state if len(steps) > 1 else problem.forward()[1]
    arrays = {
        **{f"state {name}": array for name, array in zip(cell.states, after, strict=True)},
        **{f"saved {name}": array for name, array in zip(cell.saved, saved, strict=True)},
        **{f"d{name}": array for name, array in zip(cell.gates, dgates, strict=True)},
        **{f"d{name} before": array for name, array in zip(cell.states, dprev, strict=True)},
    }
    return [
        f"{name} {array.dtype}"
        for name, array in arrays.items()
        if array is not None and array.dtype != np.float32
    ]
