"""Optimisers and clipping, against PyTorch's."""

import numpy as np
import pytest
import torch

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


def test_clipping_leaves_what_is_not_finite_to_be_seen():
    grads = [np.array([1.0, np.nan])]
    assert np.isnan(clip_grads(grads, 1.0))
    assert grads[0][0] == 1
