"""Optimisers and clipping, against PyTorch's."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from numba_rnn import book
from numba_rnn.training import (
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Momentum,
    RMSProp,
    clip_grads,
    optimisers,
)
from numba_rnn.training.clipping import global_norm

PAIRS = {
    "sgd": (SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (Momentum(0.1, 0.8), lambda p: torch.optim.SGD(p, 0.1, momentum=0.8)),
    "adagrad": (AdaGrad(0.1, 1e-7), lambda p: torch.optim.Adagrad(p, 0.1, eps=1e-7)),
    "rmsprop": (
        RMSProp(0.1, 0.9, 1e-7),
        lambda p: torch.optim.RMSprop(p, 0.1, alpha=0.9, eps=1e-7),
    ),
    "adam": (Adam(0.1, 0.8, 0.95), lambda p: torch.optim.Adam(p, 0.1, (0.8, 0.95))),
    "adamw": (
        AdamW(0.1, 0.8, 0.95, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, 0.1, (0.8, 0.95), weight_decay=0.3),
    ),
}


def test_every_optimiser_is_compared():
    assert set(PAIRS) == set(optimisers.NAMES)


@pytest.mark.parametrize("name", PAIRS)
def test_steps_equal_pytorchs(name):
    ours, make = PAIRS[name]
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape) for shape in ((3, 5), (7,))]
    theirs = [torch.tensor(p, requires_grad=True) for p in params]
    optimiser = make(theirs)
    for _ in range(12):
        grads = [rng.standard_normal(p.shape) for p in params]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(g)
        optimiser.step()
        ours.update(params, grads)
    for p, q in zip(params, theirs, strict=True):
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", optimisers.NAMES)
def test_a_restored_optimiser_goes_on_bit_for_bit(name):
    rng = np.random.default_rng(1)
    start = [rng.standard_normal((4, 3)).astype(np.float32)]
    grads = [rng.standard_normal((4, 3)).astype(np.float32) for _ in range(6)]

    def run(optimiser, params, some):
        for g in some:
            optimiser.update(params, [g])
        return params

    whole = run(optimisers.create(name), [start[0].copy()], grads)
    first = optimisers.create(name)
    params = run(first, [start[0].copy()], grads[:3])
    second = optimisers.create(name, lr=77.0)
    second.restore(*first.state())
    run(second, params, grads[3:])
    np.testing.assert_array_equal(params[0], whole[0])


def test_parameters_change_in_place():
    for name in optimisers.NAMES:
        param = np.ones(3, np.float32)
        optimisers.create(name).update([param], [np.ones(3, np.float32)])
        assert (param < 1).all(), name
        assert param.dtype == np.float32


def test_an_optimiser_is_for_one_model():
    ones, more = np.ones((2, 3)), np.ones(3)
    adam = optimisers.create("adam")
    adam.update([ones], [ones])
    says = "this optimiser has been used for other parameters"
    with pytest.raises(ValueError, match=rf"params\[0\]: expected shape \(2, 3\), .*; {says}"):
        adam.update([more], [more])
    with pytest.raises(ValueError, match=rf"params: expected 1 arrays, .* got 2; {says}"):
        adam.update([ones, more], [ones, more])
    assert adam.updates == 1


def read_only(array):
    array.flags.writeable = False
    return array


# by name: what is wrong with the second parameter or gradient, and what the error says
WRONG = {
    "shape": ("grads", lambda a: a[:-1], ValueError, r"grads\[1\]: expected shape \(2, 3\)"),
    "dtype": ("grads", lambda a: a.astype(np.float64), TypeError, r"grads\[1\]: expected float32"),
    "whole numbers": (
        "params", lambda a: a.astype(int), TypeError, r"params\[1\]: expected float32 or float64",
    ),
    "read-only": ("params", read_only, ValueError, r"params\[1\]: .*got a read-only one"),
    "a list": ("grads", lambda a: a.tolist(), TypeError, r"grads\[1\]: expected an array"),
    "nan": (
        "grads", lambda a: a * np.float32(np.nan), ValueError,
        r"grads\[1\]: expected finite numbers, got nan at \(0, 0\)",
    ),
    "infinite": (
        "grads", lambda a: np.where([0, 0, 1], np.float32(-np.inf), a), ValueError,
        r"grads\[1\]: expected finite numbers, got -inf at \(0, 2\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", optimisers.NAMES)
def test_a_refused_update_changes_nothing(name, wrong, used):
    optimiser = optimisers.create(name)
    params = [np.ones((4, 5), np.float32), np.ones((2, 3), np.float32)]
    grads = [param * np.float32(0.5) for param in params]
    if used:
        optimiser.update(params, grads)
    which, spoil, error, says = WRONG[wrong]
    lists = {"params": [p.copy() for p in params], "grads": list(grads)}
    lists[which][1] = spoil(lists[which][1])
    before = [param.copy() for param in lists["params"]]
    numbers, memory = optimiser.state()
    with pytest.raises(error, match=says):
        optimiser.update(**lists)
    for param, same in zip(lists["params"], before, strict=True):
        np.testing.assert_array_equal(param, same)
    after, remembered = optimiser.state()
    assert after == numbers
    assert remembered.keys() == memory.keys()
    for key, slot in memory.items():
        np.testing.assert_array_equal(remembered[key], slot)
    optimiser.update(params, grads)  # and it goes on, with the right ones
    assert optimiser.updates == 1 + used


@pytest.mark.parametrize("name", optimisers.NAMES)
def test_gradients_may_go_unchecked_and_change_no_bit(name):
    params: list[list] = [[], []]
    for check, mine in zip((True, False), params, strict=True):
        optimiser, rng = optimisers.create(name), np.random.default_rng(0)
        mine += [rng.standard_normal(shape, np.float32) for shape in ((4, 5), (7,))]
        for _ in range(3):
            grads = [rng.standard_normal(param.shape, np.float32) for param in mine]
            assert (optimiser.update(mine, grads, check_finite=check) is None) != check
    for checked, unchecked in zip(*params, strict=True):
        np.testing.assert_array_equal(unchecked, checked)
    optimiser.update(mine, [np.full_like(param, np.nan) for param in mine], check_finite=False)
    assert np.isnan(mine[0]).all()


def test_a_norm_finds_nan_where_nothing_else_looks_for_it():
    param = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"grads\[0\]: expected finite numbers, got nan at \(0,\)"):
        SGD().update([param], [param * np.float32(np.nan)], max_norm=1.0, check_finite=False)
    np.testing.assert_array_equal(param, 1)


def test_no_parameters_have_the_norm_zero():
    assert SGD().update([], []) == SGD().update([], [], max_norm=1.0) == 0.0


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # in the rules that square
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e17, 1e20, 3e38, 1e200])
@pytest.mark.parametrize("name", PAIRS)
def test_large_gradients_are_taken_as_pytorch_takes_them(name, size, dtype):
    """Also where their squares overflow; the largest of all, where m / bias1 does."""
    make, ours = PAIRS[name][1], copy.deepcopy(PAIRS[name][0])
    ours.restore({**ours.state()[0], "updates": 0}, {})
    size = min(size, np.finfo(dtype).max)
    param = np.ones(4, dtype)
    theirs = torch.tensor(param, requires_grad=True)
    optimiser = make([theirs])
    for first in (size, 1, -1e-3):
        grad = np.array([first, 1e-3, -first, 0], dtype)
        theirs.grad = torch.tensor(grad)
        optimiser.step()
        ours.update([param], [grad])
        assert np.isfinite(param).all()
    np.testing.assert_allclose(param, theirs.detach().numpy(), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e20), (np.float64, 1e200)])
def test_the_book_s_adam_stays_finite_too(dtype, size):
    optimiser, param = book.Adam(0.1), np.ones(2, dtype)
    for first in (size, 1):
        optimiser.update([param], [np.array([first, 1], dtype)])
    assert np.isfinite(param).all()
    assert param[1] == pytest.approx(0.8, rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(optimisers.NAMES) - {"sgd"}))
def test_a_refused_state_changes_nothing(name):
    first, second = optimisers.create(name), optimisers.create(name, lr=0.3)
    for optimiser in (first, second):
        params = [np.ones((2, 3)), np.ones(4)]
        for _ in range(1 if optimiser is first else 2):
            optimiser.update(params, [p * 0.1 for p in params])
    numbers, memory = first.state()
    last = max(memory)
    spoilt = {
        "lr": ({**numbers, "lr": -1.0}, memory),
        "updates": ({**numbers, "updates": "1"}, memory),
        last: (numbers, {**memory, last: memory[last].astype(int)}),
        "v/0|m/0|h/0": (numbers, {key: memory[key] for key in memory if not key.endswith("/0")}),
        "updates: expected ./0 and so on after 3 updates, got 0": ({**numbers, "updates": 3}, {}),
        "updates: expected no arrays after 0": ({**numbers, "updates": 0}, memory),
        "x/0: expected": (numbers, {**memory, "x/0": np.zeros(3)}),
    }
    for slot in first.slots:
        bad = [-1e-9, np.nan] if slot in first.squares else [np.inf, np.nan]
        spoilt |= {
            f"{slot}/0: expected .*{number}.* at \\(0, 1\\)": (
                numbers,
                {**memory, f"{slot}/0": array},
            )
            for number in bad
            for array in [np.array([[0, number, 0], [0, 0, 0.0]])]
        }
    for says, state in spoilt.items():
        before = second.state()
        with pytest.raises((TypeError, ValueError), match=says):
            second.restore(*state)
        assert second.state()[0] == before[0]
        for key, slot in before[1].items():
            np.testing.assert_array_equal(second.state()[1][key], slot)


def test_what_an_optimiser_s_state_may_be():
    """Also that of one whose squares have overflowed, and of SGD, which has no arrays."""
    first, second = Adam(), Adam()
    with np.errstate(over="ignore"):
        first.update([np.ones(2)], [np.array([1e200, 1])])
    second.restore(*first.state())
    assert second.state()[1]["v/0"][0] == np.inf
    sgd = SGD()
    sgd.update([np.ones(2)], [np.ones(2)])
    SGD().restore(*sgd.state())
    with pytest.raises(ValueError, match="m/0: expected no arrays"):
        SGD().restore(sgd.state()[0], {"m/0": np.ones(2)})
    fresh = Adam()
    fresh.restore(*Adam().state())
    fresh.update([np.ones(2)], [np.ones(2)])


@pytest.mark.parametrize("wrong", ["dtype", "read-only"])
def test_clipping_that_is_refused_scales_nothing(wrong):
    grads = [np.full(3, 5.0), np.full((2, 2), 5.0)]
    grads[1] = grads[1].astype(int) if wrong == "dtype" else read_only(grads[1])
    with pytest.raises((TypeError, ValueError), match=r"grads\[1\]: expected"):
        clip_grads(grads, 1.0)
    assert (grads[0] == 5).all()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e25])
def test_clipping_equals_pytorchs_and_reports_the_norm(scale):
    rng = np.random.default_rng(2)
    grads = [(scale * rng.standard_normal(s)).astype(np.float32) for s in ((3, 4), (5,))]
    whole = np.concatenate([g.ravel() for g in grads]).astype(np.float64)
    norm = np.sqrt((whole**2).sum())
    assert clip_grads(grads, 0.25) == pytest.approx(norm, rel=1e-6)
    clipped = np.concatenate([g.ravel() for g in grads])
    expected = whole * min(1, 0.25 / norm)
    np.testing.assert_allclose(clipped, expected, rtol=1e-5)


SIZES = [
    (np.float32, 3e-23), (np.float32, 1e-44), (np.float32, 1e-19), (np.float32, 1e38),
    (np.float64, 1e-160), (np.float64, 5e-324), (np.float64, 1e-300), (np.float64, 1e300),
    (np.float64, 0.0), (np.float32, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_the_norm_of_numbers_whose_squares_are_lost(dtype, size):
    """Of the exact squares: Python's whole numbers have any size."""
    rng = np.random.default_rng(3)
    grads = [(size * rng.uniform(0.1, 1, n)).astype(dtype) for n in (100, 3)]
    numbers = [Fraction(float(g)) for grad in grads for g in grad]
    limit = 1e-3 * min(size, 1e-10) or 1.0
    shift = Fraction(10) ** 700  # digits of the root behind the point
    squares = int(sum(g * g for g in numbers) * shift**2)
    norm = Fraction(math.isqrt(squares)) / shift
    factor = min(Fraction(1), Fraction(limit) / norm) if norm else Fraction(1)
    assert clip_grads(grads, limit) == pytest.approx(float(norm), rel=1e-6, abs=0)
    if limit > np.finfo(dtype).tiny:
        want = [float(was * factor) for was in numbers]
        np.testing.assert_allclose(np.concatenate(grads), want, rtol=1e-6)


def test_the_norm_of_numbers_that_are_not_finite():
    assert global_norm([np.array([1e300, np.inf])]) == np.inf
    assert np.isnan(global_norm([np.array([1e-300, np.nan], np.float32)]))
    assert global_norm([np.full(4, 1.5e308)]) == np.inf
    assert global_norm([np.zeros(3), np.zeros((2, 2), np.float32)]) == 0


def test_clipping_leaves_what_is_not_finite_to_be_seen():
    grads = [np.array([1.0, np.nan])]
    assert np.isnan(clip_grads(grads, 1.0))
    assert grads[0][0] == 1
