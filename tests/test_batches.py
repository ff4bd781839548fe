"""Shuffled mini-batches: every row once an epoch, the same order after a restore."""

import json

import numpy as np
import pytest

from numba_rnn.training import Batches, cosine, step_decay, warm_up

XS = np.random.default_rng(0).standard_normal((10, 3, 2))
TS = np.arange(10)[:, None]


def epoch(batches):
    return [int(t) for _, ts in batches for t in ts[:, 0]]


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own():
    batches = Batches(XS, TS, 4, rng=0)
    assert len(batches) == 3
    orders = []
    for _ in range(3):
        orders.append(epoch(batches))
        assert batches.cursor == 3
        batches.rewind()
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert batches.epoch == 3
    assert orders[0] == epoch(Batches(XS, TS, 4, rng=0)) != epoch(Batches(XS, TS, 4, rng=1))
    batches.rewind()
    assert batches.epoch == 3  # which has not begun


def test_rows_stay_together():
    lengths = np.arange(10) % 3
    for xs, ts, more in Batches(XS, TS, 4, lengths=lengths):
        assert np.array_equal(xs, XS[ts[:, 0]])
        assert np.array_equal(more["lengths"], lengths[ts[:, 0]])
    whole = list(Batches(XS, TS, 4).in_order())
    assert np.array_equal(np.concatenate([xs for xs, _ in whole]), XS)
    assert [len(xs) for xs, _ in whole] == [4, 4, 2]
    assert [xs.shape for xs, _ in Batches(XS, TS, 99)] == [XS.shape]


def test_it_continues_after_a_restore():
    for done in range(7):
        batches, again = Batches(XS, TS, 4, rng=0), Batches(XS, TS, 4, rng=9)
        for _ in range(done):
            if batches.cursor == len(batches):
                batches.rewind()
            next(iter(batches))
        again.restore(json.loads(json.dumps(batches.state())))
        assert again.state() == batches.state()
        assert again.digest() == batches.digest()
        for _ in range(2):
            assert epoch(again) == epoch(batches)
            again.rewind()
            batches.rewind()


def test_digests_differ():
    batches = Batches(XS, TS, 4, rng=0)
    first = batches.digest()
    next(iter(batches))
    others = [batches, Batches(XS + 1, TS, 4, rng=0), Batches(XS, TS, 5, rng=0)]
    others += [Batches(XS, TS, 4, rng=1), Batches(XS, TS, 4, rng=0, mask=TS)]
    assert len({first, *(other.digest() for other in others)}) == 6


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"ts: expected an array \(N, ...\), got list; np.asarray"):
        Batches(XS, [1] * 10, 2)
    with pytest.raises(ValueError, match="ts: expected 10 rows, as in xs, got 9"):
        Batches(XS, TS[1:], 2)
    with pytest.raises(ValueError, match="lengths: expected 10 rows"):
        Batches(XS, TS, 2, lengths=np.ones(3))
    with pytest.raises(ValueError, match=r"xs: expected \(N, T, ...\)"):
        Batches(TS[:, 0], TS, 2)
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        Batches(XS, TS, 0)
    batches = Batches(XS, TS, 4)
    before = batches.state()
    for key, value, says in [
        ("rows", 9, "state: expected rows 10, got 9"),
        ("cursor", 4, "cursor: expected at most 3, got 4"),
        ("epoch", -1, "epoch: expected at least 0"),
        ("seed", None, "seed: expected a whole number"),
    ]:
        with pytest.raises((TypeError, ValueError), match=says):
            batches.restore({**before, key: value})
        assert batches.state() == before


def test_schedules():
    assert [warm_up(2)(k) for k in range(3)] == [0.5, 1.0, 1.0]
    fall = [cosine(100, lowest=0.2)(k) for k in range(150)]
    assert fall[0] == 1.0
    assert fall == sorted(fall, reverse=True)
    assert set(fall[100:]) == {0.2}
    assert cosine(100)(50) == pytest.approx(0.505)
    with pytest.raises(ValueError, match="iterations: expected at least 6, got 5"):
        cosine(5, warm_up=5)
    with pytest.raises(ValueError, match="lowest: expected"):
        cosine(5, lowest=0)


def test_steps_of_the_learning_rate():
    schedule = step_decay(10, 0.5, warm_up=4)
    assert [schedule(k) for k in (0, 3, 4, 9, 10, 19, 20, 30)] == [
        0.25, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.125,
    ]  # fmt: skip
    for wrong in (0, 1, 1.5, -0.5):
        with pytest.raises(
            ValueError, match="factor: expected a finite number above 0 and below 1"
        ):
            step_decay(10, wrong)
    with pytest.raises(ValueError, match="every: expected at least 1, got 0"):
        step_decay(0)
    with pytest.raises(ValueError, match="warm_up: expected at least 0, got -1"):
        step_decay(5, warm_up=-1)
