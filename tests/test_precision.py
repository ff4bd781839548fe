"""Products in bfloat16: operands are rounded, sums are float32, everything else is as it was."""

from typing import Any

import numpy as np
import pytest
from test_conformance import poisoned_memory, shared

from helpers import PARTITIONS, Array, outcome, random_problem, relative_error
from numba_rnn import cells, explain, use_backend
from numba_rnn.kernels.step_options import StepOptions
from numba_rnn.layers import TimeAffine, TimeLSTM

# N, T, D, H: odd inner axes, half-filled words, tiles that are just full and just not, chunks
SIZES = [(1, 1, 1, 1), (1, 4, 3, 7), (3, 1, 2, 5), (9, 3, 33, 97), (7, 60, 3, 33), (300, 3, 17, 31)]


def engine(precision: str = "bfloat16") -> Any:
    return use_backend("numba", strict=True, precision=precision).__enter__()


@pytest.fixture(autouse=True)
def leave_the_backend():
    with use_backend("numba"):
        yield


def rounded(array: Array) -> Array:
    """Rounded to 8 bits of mantissa, by arithmetic: an oracle for the bits."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(array.dtype)


# ---- products


@pytest.mark.parametrize("sizes", [(40, 41, 50), (97, 130, 67), (131, 2051, 33), (16, 5000, 65)])
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
def test_a_product_is_that_of_rounded_numbers(sizes, transposed):
    M, K, P = sizes
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, K), (K, P)))
    want = rounded(a).astype(np.float64) @ rounded(b).astype(np.float64)
    a = np.asfortranarray(a) if "a" in transposed else a
    b = np.asfortranarray(b) if "b" in transposed else b
    got = engine().product(a, b)
    assert got.dtype == np.float32
    assert relative_error(got, want) < 2e-6
    assert 1e-4 < relative_error(got, a.astype(np.float64) @ b) < 1e-2


def test_the_dense_layer_takes_part():
    xs = np.random.default_rng(0).standard_normal((7, 11, 65)).astype(np.float32)
    layer = TimeAffine.create(65, 131, rng=1)
    rows, (W, b) = xs.reshape(-1, 65), layer.params
    dout = np.random.default_rng(2).standard_normal((7, 11, 131)).astype(np.float32)
    engine()
    out = layer.forward(xs)
    dxs = layer.backward(dout)
    dW, db = layer.grads
    d = rounded(dout.reshape(-1, 131)).astype(np.float64)
    assert relative_error(out.reshape(-1, 131), rounded(rows) @ rounded(W) + b) < 1e-6
    assert relative_error(dW, rounded(rows).T @ d) < 1e-6
    assert relative_error(dxs.reshape(-1, 65), d @ rounded(W).T) < 1e-6
    assert relative_error(db, dout.reshape(-1, 131).sum(0)) < 1e-6  # no product


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(number):
    a, b = np.ones((64, 64), np.float32), np.ones((64, 64), np.float32)
    a[3, 5] = number
    np.testing.assert_array_equal(engine().product(a, b)[3], np.full(64, number, np.float32))


# ---- passes


@pytest.mark.parametrize("cell", cells.names())
def test_a_step_of_rounded_numbers_is_exact(cell):
    """Where the operands are bfloat16 numbers already nothing is rounded, but the operand's."""
    p = random_problem(cell, 5, 1, 9, 13, np.float32).map(rounded)
    got, want = (
        engine(name).step(p.cell, p.xs[:, 0], p.state, p.params) for name in ("bfloat16", "float32")
    )
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < (1e-5 if p.cell.operand is None else 1e-2)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    "cell",
    [
        "lstm",
        "gru",
        "gru_reset_after",
        "rnn",
        "lstm_projected",
        "lstm_layer_norm",
        "lstm_peephole",
        "minlstm",
    ],
)
def test_a_pass_is_as_good_as_it_says(cell, sizes):
    p = random_problem(cell, *sizes, np.float32)
    low = engine()
    with poisoned_memory(low):
        got = outcome(low, p)
    want = outcome(engine("float32"), p)
    errors = {name: relative_error(got[name], want[name]) for name in want}
    assert max(errors.values()) < 2e-2, errors
    if sizes[3] > 1:
        assert max(errors.values()) > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "lstm_projected"])
def test_bits_do_not_depend_on_threads(cell, partition):
    p = random_problem(cell, 9, 7, 5, 83, np.float32)
    low = engine()
    with shared(low, (1, True)):
        want = outcome(low, p)
    with shared(low, partition):
        got = outcome(low, p)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_options_of_a_step_take_part():
    p = random_problem("lstm", 6, 9, 5, 21, np.float32)
    rng = np.random.default_rng(3)
    options = StepOptions(
        mask=rng.random((6, 9)) < 0.8, resets=rng.random((6, 9)) < 0.2, zoneout=(0.1, 0.2),
        recurrent_mask=rng.random((6, 21)).astype(np.float32) + 0.5, checkpoint_every=2,
    )  # fmt: skip

    def run(precision: str) -> list[Array]:
        chosen = engine(precision)
        hs, state, saved = chosen.forward(p.cell, p.xs, p.state, p.params, options)
        dxs, dstate, dparams, *_ = chosen.backward(p.cell, p.dhs, p.dstate, saved)
        return [hs, *state, dxs, *dstate, *dparams]

    for got, want in zip(run("bfloat16"), run("float32"), strict=True):
        assert relative_error(got, want) < 2e-2


def test_float64_is_not_touched():
    p = random_problem("lstm", 3, 4, 5, 6, np.float64)
    got, want = outcome(engine(), p), outcome(engine("float32"), p)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_backward_follows_its_forward():
    """A pass ends in the precision in which it began."""
    layer = TimeLSTM.create(33, 64, rng=0)
    xs = np.random.default_rng(0).standard_normal((4, 5, 33)).astype(np.float32)
    grads = []
    for after in ("bfloat16", "float32"):
        engine("bfloat16")
        layer.backward(np.ones_like(layer.forward(xs))) if after == "bfloat16" else None
        if after == "float32":
            hs = layer.forward(xs)
            engine("float32")
            layer.backward(np.ones_like(hs))
        grads.append([grad.copy() for grad in layer.grads])
    for a, b in zip(*grads, strict=True):
        np.testing.assert_array_equal(a, b)


def test_explain_says_which_road_runs():
    engine()
    assert explain().precision.startswith("bfloat16")
    assert "products  bfloat16" in str(explain())
    layer = TimeLSTM.create(3, 4, rng=0).quantise()
    assert explain(layer).precision.startswith("weights in int8 (")
    with use_backend("numba", precision="bf16"):
        assert explain().precision.startswith("bfloat16")
    with use_backend("numba", precision="tf32"):
        assert explain().precision == "float32"
