"""A sequence alone: a step as one function has the bits of the pass that any batch takes."""

from unittest import mock

import numpy as np
import pytest

from helpers import REPRESENTATIVES, random_problem
from numba_rnn import cells, use_backend
from numba_rnn.kernels.cpu import launch, plans
from numba_rnn.kernels.cpu.plan import PLACES

NAMES = cells.names()  # before other tests register some of their own
CASES = [(name, "float32") for name in NAMES] + [(name, "float64") for name in REPRESENTATIVES]
# T, D, H: halves of a vector, wide strips and a rest; x Wx made ahead, for more than one block;
# one chunk, and some
SIZES = (4, 3, 5), (9, 9, 40), (70, 33, 56), (131, 5, 24), (129, 70, 17), (600, 2, 9)


def poisoned(size, dtype):
    memory = np.full((size + 64) // dtype.itemsize, np.nan, dtype)
    return memory, -(-plans.address_of(memory) // 64) * 64


def outcome(problem, fused):
    """The output, the states, the states before each step, and all gradients."""
    plans.plan_template.cache_clear()
    plans.free_buffers()
    with (
        use_backend("numba", strict=True) as engine,
        mock.patch.object(plans, "FUSED_FROM", 4 if fused else 10_000),
        mock.patch.object(plans, "aligned", poisoned),
        mock.patch.object(launch, "choose_partition", return_value=(1, True)),
    ):
        hs, last, saved = engine.forward(problem.cell, problem.xs, problem.state, problem.params)
        before = engine.states_before(problem.cell, saved)
        found = engine.backward(problem.cell, problem.dhs, problem.dstate, saved)
        was_fused = bool(saved[0]._template(plans.FORWARD).plan[PLACES["steps_kernel"]])
    return was_fused, [hs, *last, *before, found.xs, *found.state, *found.params]


@pytest.fixture(autouse=True)
def _templates_made_anew():
    yield
    plans.plan_template.cache_clear()
    plans.free_buffers()


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_bits_are_those_of_any_batch(name, dtype):
    cell = cells.get(name)
    for T, D, H in SIZES:
        if dtype == "float64" and T == 600:
            continue
        problem = random_problem(name, 1, T, D, H, np.dtype(dtype))
        was_fused, ours = outcome(problem, True)
        assert was_fused == (not cell.normalised)
        was_fused, wanted = outcome(problem, False)
        assert not was_fused
        for one, other in zip(ours, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
