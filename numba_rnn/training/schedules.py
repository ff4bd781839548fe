"""Schedules of the learning rate: functions from the number of an iteration, from 0, to a factor.

``Trainer(schedule=...)`` takes these, and any function of the kind. Factors are larger than 0.
"""

import math
from collections.abc import Callable

from ..validation import expect_float, expect_int

Schedule = Callable[[int], float]


def half_wave(share: float, lowest: float = 0.0) -> float:
    """The cosine's way from 1 down to the lowest, after a share of it."""
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * share)) / 2


def warm_up(iterations: int) -> Schedule:
    """Let the learning rate rise in equal steps, then stay.

    Parameters
    ----------
    iterations : int
        The number of iterations until it has its full size.

    Returns
    -------
    callable
        The schedule.

    Examples
    --------
    >>> [warm_up(4)(iteration) for iteration in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    whole = expect_int("iterations", iterations)
    return lambda iteration: min(1.0, (iteration + 1) / whole)


def cosine(iterations: int, *, warm_up: int = 0, lowest: float = 0.01) -> Schedule:
    """Let the learning rate fall along half a wave of the cosine, possibly after a warm-up.

    Parameters
    ----------
    iterations : int
        The number of iterations until it is at its lowest, where it stays.
    warm_up : int, default 0
        The number of iterations at the start, of these, in which it rises in equal steps.
    lowest : float, default 0.01
        The last factor.

    Returns
    -------
    callable
        The schedule.

    References
    ----------
    - Loshchilov & Hutter 2017, *SGDR: stochastic gradient descent with warm restarts*.

    Examples
    --------
    >>> schedule = cosine(8, warm_up=2, lowest=0.1)
    >>> [round(schedule(iteration), 2) for iteration in range(9)]
    [0.5, 1.0, 1.0, 0.94, 0.78, 0.55, 0.33, 0.16, 0.1]
    """
    rise, last = expect_int("warm_up", warm_up, 0), expect_float("lowest", lowest, 0, low_open=True)
    whole = expect_int("iterations", iterations, rise + 1)

    def factor(iteration: int) -> float:
        if iteration < rise:
            return (iteration + 1) / rise
        return half_wave(min(1.0, (iteration - rise) / (whole - rise)), last)

    return factor


def step_decay(every: int, factor: float = 0.1, *, warm_up: int = 0) -> Schedule:
    """Let the learning rate fall in steps, possibly after a warm-up.

    Parameters
    ----------
    every : int
        The number of iterations between steps.
    factor : float, default 0.1
        The factor of the learning rate at each step, between 0 and 1.
    warm_up : int, default 0
        The number of iterations at the start in which it rises in equal steps.

    Returns
    -------
    callable
        The schedule.

    Examples
    --------
    >>> [step_decay(3, 0.5)(iteration) for iteration in range(8)]
    [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    >>> [step_decay(3, 0.5, warm_up=2)(iteration) for iteration in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    steps, rise = expect_int("every", every), expect_int("warm_up", warm_up, 0)
    fall = expect_float("factor", factor, 0, 1, low_open=True)
    return lambda iteration: min(1.0, (iteration + 1) / max(rise, 1)) * fall ** (iteration // steps)
