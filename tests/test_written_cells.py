"""Cells written once, and what is derived from them; errors are in ``test_written_errors.py``."""

import inspect
import linecache
import math
import sys
import textwrap
import threading
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_rnn
from helpers import DTYPES, outcome, problem, relative_error, run_python
from numba_rnn import cells
from numba_rnn.kernels import functions
from numba_rnn.kernels.cells.decorator import cell
from numba_rnn.kernels.fingerprint import of_cell
from numba_rnn.kernels.functions import (
    absolute,
    dsigmoid,
    dtanh,
    exp,
    hard_sigmoid,
    hard_tanh,
    log_sigmoid,
    maximum,
    minimum,
    relu,
    sigmoid,
    silu,
    softplus,
    sqrt,
    tanh,
    where,
)
from numba_rnn.kernels.layout import layout
from numba_rnn.kernels.reference import NumpyEngine

pytest.importorskip("sympy")

# ---- the cells that are there already, written once


@cell
def rnn(a, h):
    return tanh(a)


@cell(name="relu")
def rnn_relu(a, h):
    return functions.relu(a)


@cell(states="h c", bias_start={"f": 1})
def lstm(f, g, i, o, h, c):
    f, i, o = sigmoid(f), sigmoid(i), sigmoid(o)
    c = f * c + i * tanh(g)
    h = o * tanh(c)
    return h, c


def reset(r, h):
    return sigmoid(r) * h


@cell(second_product="a", operand=reset)
def gru(z, r, a, h):
    z = sigmoid(z)
    return (1 - z) * h + z * tanh(a)


@cell(input_only="a", recurrent_only="u", biases=2)
def gru_reset_after(z, r, a, u, h):
    z, r = sigmoid(z), sigmoid(r)
    new = tanh(a + r * u)
    return (1 - z) * h + z * new


TWINS = {
    "rnn": rnn,
    "rnn_relu": rnn_relu,
    "lstm": lstm,
    "gru": gru,
    "gru_reset_after": gru_reset_after,
}


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("engine", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_one_written_by_hand(name, engine, dtype):
    p = problem(name, 3, 4, 5, 6, dtype)
    if engine == "numba":
        from numba_rnn.kernels.cpu.engine import NumbaEngine

        computed = outcome(NumbaEngine(), problem_of(TWINS[name], p))
    else:
        computed = outcome(NumpyEngine(), problem_of(TWINS[name], p))
    limit = 1e-12 if dtype == np.float64 else 1e-5
    for (what, wanted), got in zip(
        outcome(NumpyEngine(), p).items(), computed.values(), strict=True
    ):
        assert relative_error(got, wanted) < limit, what


def problem_of(written, p):
    return type(p)(written.cell, p.xs, p.state, p.params, p.dhs, p.dstate)


@pytest.mark.parametrize("name", TWINS)
def test_saves_no_more_than_the_one_written_by_hand(name):
    derived, by_hand = TWINS[name].cell, cells.get(name)
    assert layout(derived).n_stored == layout(by_hand).n_stored
    assert len(derived.saved) == len(by_hand.saved)


def test_saves_what_the_one_written_by_hand_does():
    assert lstm.cell.saved == cells.get("lstm").saved
    assert rnn.cell.saved == ("h",)
    assert gru_reset_after.cell.saved == ("z", "r", "a_u", "new")


def test_gradients_that_are_zero_are_none():
    ones = tuple(np.ones(2) for _ in range(4))
    _, dstate = lstm.cell.backward(ones[:2], ones, ones[:2])
    assert dstate[0] is None
    dgates, _ = gru.cell.backward(ones[:1], ones[:3], ones[:1])
    assert dgates[1] is None


def test_reads_like_the_one_written_by_hand():
    assert lstm.source("forward") == textwrap.dedent("""\
        def forward(gates, state):
            a_f, a_g, a_i, a_o = gates
            _, c_prev = state

            f = sigmoid(a_f)
            i = sigmoid(a_i)
            o = sigmoid(a_o)
            g = tanh(a_g)
            c = f * c_prev + i * g
            h = o * tanh(c)
            return (h, c), (f, g, i, o)
    """)
    assert lstm.source("backward") == textwrap.dedent("""\
        def backward(dstate, saved, state):
            dh, dc = dstate
            f, g, i, o = saved
            _, c_prev = state

            c = f * c_prev + i * g
            tanh_c = tanh(c)
            dc = dc + dh * o * dtanh(tanh_c)
            dg = dc * i
            do = dh * tanh_c
            di = dc * g
            df = dc * c_prev

            dgates = df * dsigmoid(f), dg * dtanh(g), di * dsigmoid(i), do * dsigmoid(o)
            return dgates, (None, dc * f)
    """)
    assert gru.source("operand") == textwrap.dedent("""\
        def operand(gates, state):
            _, a_r, _ = gates
            (h_prev,) = state

            r = sigmoid(a_r)
            return r * h_prev
    """)
    assert gru.source("operand_backward") == textwrap.dedent("""\
        def operand_backward(doperand, dgates, dstate, saved, state):
            da_z, da_r, da = dgates
            (dh_prev,) = dstate
            _, r, _ = saved
            (h_prev,) = state

            dr = doperand * h_prev
            return (da_z, da_r + dr * dsigmoid(r), da), (dh_prev + doperand * r,)
    """)


# ---- other cells


@cell(weights="p_f p_i p_o", states="h c", weight_start={"p_f": 0.5})
def peephole(f, g, i, o, p_f, p_i, p_o, h, c):
    f, i = sigmoid(f + p_f * c), sigmoid(i + p_i * c)
    c = f * c + i * tanh(g)
    o = sigmoid(o + p_o * c)
    return o * tanh(c), c


@cell(recurrence="elementwise", weights="u")
def indrnn(a, u, h):
    return relu(a + u * h)


@cell(states="h c n m")
def slstm(f, g, i, o, h, c, n, m):
    forget = where(n > 0, log_sigmoid(f) + m, i)
    m = maximum(forget, i)
    f, i = exp(forget - m), exp(i - m)
    c = f * c + i * tanh(g)
    n = f * n + i
    return sigmoid(o) * c / n, c, n, m


@cell(states=("h", "c"))
def all_functions(a, b, e, h, c):
    x = hard_sigmoid(a) + hard_tanh(b) * silu(e) + softplus(a * b)
    y = minimum(maximum(x, -0.9), b) + maximum(0.1, e) - minimum(h, c)
    y = y + where(a < b, x * y, exp(-absolute(c))) + where(x >= 0, 0.25, a) + abs(e)
    x = sqrt(1 + x**2) / (2.5 + tanh(y)) + dsigmoid(sigmoid(y)) - dtanh(x)
    y = log_sigmoid(x) - y**-1 / 8 + (1 + y * y) ** 0.5 + relu(y) + x / 3
    return tanh(x * y), -y / 4


def operand_of_all(r, u, h, c):
    return u * tanh(r) * h - c / (1.5 + c * c)


@cell(states="h c", weights="u v", second_product="a", operand=operand_of_all, input_only="z")
def second_product(z, r, a, u, v, h, c):
    c = sigmoid(z) * c + v * a
    return tanh(c + r) * v, c


@cell(states="h c", recurrent_only="b", name="carried_along")
def carried(a, b, h, c):
    return tanh(a + b + c), h


OTHER_CELLS = [peephole, indrnn, slstm, all_functions, second_product, carried]


@pytest.mark.parametrize(
    "written", [*TWINS.values(), *OTHER_CELLS], ids=lambda written: written.name
)
def test_gradients(written):
    assert 0 < written.check() < 1e-7


def test_weights_are_the_last_gates_and_cost_nothing():
    made = peephole.cell
    assert made.gates == ("f", "g", "i", "o", "p_f", "p_i", "p_o")
    assert made.weights == ("p_f", "p_i", "p_o")
    assert made.weight_start == {"p_f": 0.5}
    assert made.saved == ("f", "g", "i", "o", "p_f", "p_i", "p_o")
    gates, state = (tuple(np.ones(1, np.float32) for _ in range(k)) for k in (7, 2))
    _, saved = made.forward(gates, state)
    assert all(a is b for a, b in zip(saved[4:], gates[4:], strict=True))


def test_a_state_that_serves_is_saved_in_place_of_another_value():
    assert indrnn.cell.saved == ("h", "u")
    assert indrnn.cell.input_only == ("a",)


def test_a_gate_that_only_a_sum_needs_is_not_saved():
    @cell
    def summed(a, b, e, h):
        total = a + b + e
        return softplus(total) * 0.5 + h

    assert summed.cell.saved == ("total",)


def test_a_gate_is_saved_rather_than_what_is_simply_computed_from_it():
    @cell
    def doubled(a, h):
        return softplus(2 * a) + 0.5 * h

    assert doubled.cell.saved == ("a",)


def test_a_state_is_saved_rather_than_what_is_computed_from_it():
    @cell(states="h c")
    def counting(o, a, h, c):
        c = c + a
        return sigmoid(o) * tanh(c), c

    assert counting.cell.saved == ("o", "c")
    assert layout(counting.cell).n_stored == 1


def test_a_comparison_is_computed_again():
    @cell
    def choosing(a, b, h):
        return where(a < b, h, 0.5)

    assert choosing.cell.saved == ("a", "a_b")
    assert choosing.check() < 1e-8


def test_what_takes_long_to_compute_again_is_read_from_the_state():
    assert "h" in slstm.cell.saved  # a quotient
    assert "c" not in lstm.cell.saved  # a product and a sum


def test_options_reach_the_cell():
    @cell(bias_start={"z": -1, "a": 0.5}, input_only="z", name="my_cell")
    def one(z, a, h):
        return sigmoid(z) * tanh(a)

    assert one.name == one.cell.name == "my_cell"
    assert one.cell.bias_start == {"z": -1, "a": 0.5}
    assert one.cell.input_only == ("z",)
    assert repr(one) == "<written cell my_cell: gates z a; states h>"
    assert repr(peephole).endswith("gates f g i o; weights p_f p_i p_o; states h c>")


def test_is_still_the_function():
    assert lstm.__name__ == "lstm"
    h, c = lstm(*(np.full(3, 0.5) for _ in range(6)))
    assert h.shape == c.shape == (3,)


def test_layers_take_it():
    assert cells.get(lstm) is lstm.cell is lstm.cell
    p = problem(gru.cell, 2, 3, 4, 5, np.float32)
    layer = numba_rnn.TimeRecurrent(*p.params, cell=gru.cell)
    assert layer.forward(p.xs).shape == (2, 3, 5)


def test_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(cells.rnn, "PEEPHOLE", peephole, raising=False)
    cells._registry.cache_clear()
    try:
        assert "peephole" in cells.names()
        assert cells.get("peephole") is peephole.cell
        other = cell(name="gru")(lambda a, h: tanh(a))
        monkeypatch.setattr(cells.rnn, "OTHER", other, raising=False)
        cells._registry.cache_clear()
        with pytest.raises(ValueError, match="two cells are named 'gru'"):
            cells.names()
    finally:
        cells._registry.cache_clear()


def test_one_cell_is_derived_however_many_threads_ask():
    @cell
    def asked(a, h):
        return tanh(a)

    found = []
    threads = [threading.Thread(target=lambda: found.append(asked.cell)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


# ---- arithmetic stays as it was written


def test_sums_and_products_are_not_rearranged():
    @cell(states="h c")
    def exact(a, z, h, c):
        c = 0.1 * (1 - z) * h + (a - (h - z)) / 3 - (z + 1e-9 - 1) * (a * (h * c))
        return 2 * (1 - z) * a - -c, c

    rng = np.random.default_rng(0)
    a, z, h, c = rng.uniform(-1, 1, (4, 100))
    (got, got_c), _ = exact.cell.forward((a, z), (h, c))
    want, want_c = exact(a, z, h, c)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got_c, want_c)


def test_what_is_left_of_one_is_not_multiplied_out():
    """1 - z is exact near 1; 0.3 - 0.3 * z is not, nor is 1 + a - z for (1 - z) + a."""

    @cell
    def factor(z, a, h):
        return 0.3 * (1 - z) * a

    @cell
    def summand(z, a, h):
        return a * ((1 - z) + h * 1e-14)

    z, one = np.full(1, 1 - 1e-13), np.ones(1)
    for made, want in ((factor, 0.3 * (1 - z)), (summand, (1 - z) + 1e-14)):
        _, saved = made.cell.forward((z, one), (one,))
        (_, da), _ = made.cell.backward((one,), saved, (one,))
        np.testing.assert_allclose(da, want, rtol=1e-15)


def test_constants_keep_every_digit():
    @cell
    def scaled(a, h):
        return a * 0.1 + h * 1.0507009873554805

    (da,), (dh,) = scaled.cell.backward((np.ones(1),), (), (np.ones(1),))
    assert (da, dh) == (0.1, 1.0507009873554805)
    assert "Rational" not in scaled.source("backward")


def test_where_functions_have_no_slope():
    @cell
    def kinks(a, b, e, h):
        return absolute(a) + maximum(b, 0) + maximum(0, e) + relu(h)

    zero, one = np.zeros(1), np.ones(1)
    _, saved = kinks.cell.forward((zero, zero, zero), (zero,))
    gradients = kinks.cell.backward((one,), saved, (zero,))
    assert gradients == ((0, 0, 0), (0,))


def test_large_numbers_do_not_overflow_in_backward():
    @cell
    def quotient(a, b, h):
        return a / b

    big = np.full(1, 1e30, np.float32)
    _, saved = quotient.cell.forward((big, big), (big,))
    (da, db), _ = quotient.cell.backward((np.ones(1, np.float32),), saved, (big,))
    np.testing.assert_allclose([da, db], [[1e-30], [-1e-30]], rtol=1e-6)


def test_helpers_closures_and_modules():
    two = 2.0

    def helper(x):
        return outer(x) / two

    def outer(x, factor=0.5):
        return functions.tanh(factor * x) + numba_rnn.kernels.functions.sigmoid(x)

    @cell
    def helped(a, h):
        return helper(a) + math.pi * h + np.float32(0.25) * a + h * np.pi + sum([a, h])

    assert helped.check() < 1e-8
    assert "3.141592653589793" in helped.source("forward")


def test_functions_of_numbers_alone_are_computed_once():
    @cell
    def half(a, h):
        return a * sigmoid(0.0) + where(1 > 0, h, a) * maximum(1, 2)

    assert "sigmoid" not in half.source("forward")
    (h,), _ = half.cell.forward((np.ones(1),), (np.full(1, 3.0),))
    assert h == 6.5


def test_names_that_collide():
    @cell(states="h dh")
    def colliding(saved, tanh_a, a, h, dh):
        gates = sigmoid(saved)
        dstate = tanh(tanh_a) * tanh(a)
        relu = gates * dstate
        state = exp(-relu * relu)
        da, t = state * dh, gates - dh
        return da * t, tanh(da + dh * t)

    assert colliding.check() < 1e-8


def test_tracing_leaves_the_profiler_alone():
    calls = []

    def profiler(frame, event, argument):
        calls.append(event)

    @cell
    def watched(a, h):
        return tanh(a)

    sys.setprofile(profiler)
    try:
        assert watched.cell
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


# ---- random cells

ONE = ["sigmoid({})", "tanh({})", "relu({})", "softplus({})", "absolute({})", "exp(tanh({}))",
       "sqrt(1 + {0} * {0})", "hard_sigmoid({})", "hard_tanh({})", "log_sigmoid({})", "silu({})",
       "-{}", "{} * 0.3", "1 - {}", "2 * (0.5 - {})", "{} / 3", "{} ** 2",
       "exp(-{} ** 2)"]  # fmt: skip
TWO = ["{} + {}", "{} - {}", "({} - {})", "({} + {})", "{} * {}", "maximum({}, {})",
       "minimum({}, {})", "{} / (1.5 + {} ** 2)", "where({0} < {1}, {0}, 0.5)",
       "where({0} >= {1}, {0} * {1}, {1})"]  # fmt: skip
GATES, WEIGHTS, STATES = ("f", "g", "i"), ("u", "v"), ("h", "c")
numbered = count()


@st.composite
def random_cells(draw):
    """The source of a cell: statements on earlier values, every argument used."""
    known = [*GATES, *WEIGHTS, *STATES]
    unused = set(GATES + WEIGHTS)
    lines = []

    def value(depth):
        if depth == 0 or draw(st.integers(0, 3)) == 0:
            name = draw(st.sampled_from(known))
            unused.discard(name)
            return name
        if draw(st.booleans()):
            return "(" + draw(st.sampled_from(ONE)).format(value(depth - 1)) + ")"
        pattern = draw(st.sampled_from(TWO))
        return "(" + pattern.format(value(depth - 1), value(depth - 1)) + ")"

    for k in range(draw(st.integers(1, 5))):
        lines.append(f"t{k} = tanh({value(3)})")
        known.append(f"t{k}")
    h, c = value(3), value(2)
    rest = " + ".join(["0.5", *sorted(unused), *(name for name in known if name[0] == "t")])
    lines += [f"c = {c}", f"h = {h} + tanh({rest})", "return h, c"]
    head = f"def random_cell({', '.join(GATES + WEIGHTS + STATES)}):"
    return "\n    ".join([head, *lines]) + "\n"


def compiled(source, **options):
    """The cell of a source, which errors can show."""
    file = f"<random {next(numbered)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    space = {**vars(functions), "__name__": "tests.random"}
    exec(compile(source, file, "exec"), space)
    return cell(**options)(space["random_cell"])


@settings(max_examples=150, deadline=None)
@given(random_cells(), st.integers(0, 2**31))
def test_random_cells(source, seed):
    written = compiled(source, weights=WEIGHTS, states=STATES)
    made = written.cell
    rng = np.random.default_rng(seed)
    names = [*GATES, *WEIGHTS, *STATES]
    values = {name: rng.uniform(-1.5, 1.5, 64).astype(np.longdouble) for name in names}
    dstate = tuple(rng.uniform(-1, 1, 64).astype(np.longdouble) for _ in STATES)

    def split(values):
        given = tuple(values.values())
        return given[: len(names) - len(STATES)], given[len(names) - len(STATES) :]

    def loss(values):
        new, _ = made.forward(*split(values))
        return sum(d * s for d, s in zip(dstate, new, strict=True))

    gates, state = split(values)
    new, saved = made.forward(gates, state)
    for got, want in zip(new, written(**values), strict=True):
        np.testing.assert_array_equal(got, want)
    assert sum(not any(s is n for n in (*new, *gates[3:])) for s in saved) <= len(GATES)

    gradients = dict(zip(names, sum(made.backward(dstate, saved, state), ()), strict=True))
    for name, gradient in gradients.items():
        gradient = np.zeros(64) if gradient is None else gradient

        def slope(step, name=name):
            above, below = ({**values, name: values[name] + s} for s in (step, -step))
            return (loss(above) - loss(below)) / (2 * step)

        slopes = [slope(np.longdouble(step)) for step in (1e-5, 2e-5)]
        scale = 1 + np.abs(slopes[0])
        smooth = np.abs(slopes[0] - slopes[1]) < 1e-6 * scale  # no kink between
        assert smooth.mean() > 0.5
        off = np.where(smooth, np.abs(gradient - slopes[0]) / scale, 0)
        assert off.max() < 2e-6, f"{name}\n{source}\n{written.source('backward')}"


# ---- compiled code is kept under a fingerprint of the functions


def test_is_the_same_in_every_process():
    code = """
        import sys
        import test_written_cells as t
        from numba_rnn.kernels.fingerprint import of_cell
        for written in [*t.TWINS.values(), *t.OTHER_CELLS]:
            for name in ("forward", "backward"):
                print(written.source(name))
            print(of_cell(written.cell))
    """
    runs = {run_python(code, {"PYTHONHASHSEED": seed}).stdout for seed in ("0", "1", "77")}
    assert len(runs) == 1
    assert of_cell(lstm.cell) in runs.pop()


def test_sympy_is_imported_when_a_cell_is_derived():
    run_python("""
        import sys
        from numba_rnn import cells
        from numba_rnn.kernels.cells.decorator import cell
        from numba_rnn.kernels.functions import tanh

        @cell
        def mine(a, h):
            return tanh(a)

        cells.names()
        assert "sympy" not in sys.modules
        sys.modules["sympy"] = None
        try:
            mine.cell
        except ImportError as error:
            assert 'pip install "numba-rnn[cells]"' in str(error)
        else:
            raise AssertionError
    """)


def test_generated_functions_have_a_source():
    for name in ("forward", "backward"):
        function = getattr(lstm.cell, name)
        assert inspect.getsource(function) == lstm.source(name)
        assert function.__module__ == "numba_rnn.kernels.autodiff.source"
        assert function.__qualname__ == f"lstm.{name}"
    with pytest.raises(ValueError, match="not enough values to unpack") as caught:
        lstm.cell.backward((1.0,), (), ())
    assert caught.traceback[-1].statement.lines == ["    dh, dc = dstate"]


def test_source_of_no_function():
    with pytest.raises(ValueError, match="function: expected one of forward, backward, got 'op"):
        lstm.source("operand")


# ---- a backward written by hand


def lstm_backward(dstate, saved, state):
    return cells.get("lstm").backward(dstate, saved, state)


def wrong_backward(dstate, saved, state):
    (df, *rest), dprev = cells.get("lstm").backward(dstate, saved, state)
    return (df * 1.001, *rest), dprev


def by_hand(backward):
    @cell(states="h c", backward=backward, saved="f g i o")
    def mine(f, g, i, o, h, c):
        f, g, i, o = sigmoid(f), tanh(g), sigmoid(i), sigmoid(o)
        c = f * c + g * i
        return o * tanh(c), c

    return mine


def test_a_backward_written_by_hand():
    mine = by_hand(lstm_backward)
    assert mine.cell.saved == ("f", "g", "i", "o")
    assert mine.cell.backward is lstm_backward
    assert mine.source("backward") == inspect.getsource(lstm_backward)
    assert mine.check() < 1e-8


def test_a_pre_activation_can_be_saved():
    def backward(dstate, saved, state):
        a, h = saved
        return (dstate[0] * dtanh(tanh(a)) + 0 * h,), (None,)

    @cell(backward=backward, saved=("a", "h"))
    def mine(a, h):
        h = tanh(a)
        return 1 * h

    assert mine.check() < 1e-8


def test_a_wrong_backward_is_caught():
    with pytest.raises(AssertionError, match=r"gradients are off: xs by \d.*Wx by .*Wh by "):
        by_hand(wrong_backward).check()


def test_a_wrong_backward_that_few_numbers_reach_is_caught():
    def backward(dstate, saved, state):
        a, h = saved
        da = dstate[0] * dtanh(h)
        return (where(a > 1.2, 7.0 * da, da),), (None,)

    @cell(backward=backward, saved=("a", "h"))
    def mine(a, h):
        h = tanh(a)
        return 1 * h

    with pytest.raises(AssertionError, match="gradients are off"):
        mine.check()


def test_kinks_are_no_fault():
    @cell
    def kinked(a, h):
        return hard_sigmoid(3 * a) + relu(a - 0.1) - maximum(h, 0.2)

    assert kinked.check() < 1e-6


def test_large_constants_stay_floats():
    @cell
    def steep(a, h):
        return tanh(a * 1e20 + h)

    assert "1e+20" in steep.source("backward")


@pytest.mark.parametrize("number", [2**31 - 1, 2**31, -(2**63), 2**64, 10**20])
def test_whole_numbers_of_any_size_are_compiled(number):
    @cell
    def large(a, h):
        return number * tanh(a) / number

    xs = np.random.default_rng(0).standard_normal((2, 5, 3))
    layer = numba_rnn.TimeRecurrent.create(3, 4, cell=large, rng=0, dtype=np.float64)
    plain = numba_rnn.TimeRecurrent(*layer.params, cell="rnn")
    want = plain.forward(xs), plain.backward(np.ones((2, 5, 4))), plain.grads
    for engine in ("numpy", "numba"):
        with numba_rnn.use_backend(engine, strict=True):
            got = layer.forward(xs), layer.backward(np.ones((2, 5, 4))), layer.grads
        for one, other in zip((*got[:2], *got[2]), (*want[:2], *want[2]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_numbers_that_are_not_finite_are_caught():
    @cell
    def log_of_a_negative(a, h):
        return sqrt(a - 100)

    with pytest.raises(AssertionError, match=r"forward is not finite: h \(NaN or infinite"):
        log_of_a_negative.check()

    @cell(states="h c")
    def of_one_state(a, h, c):
        return tanh(a + h), sqrt(c - 100)

    with pytest.raises(AssertionError, match=r"forward is not finite: c \(NaN or infinite"):
        of_one_state.check()

    def backward(dstate, saved, state):
        return (dstate[0] / (0 * saved[0]),), (None,)

    @cell(backward=backward, saved=("a",))
    def finite_forward(a, h):
        return 1 * a

    with pytest.raises(AssertionError, match=r"gradients are off: xs \(NaN or infinite\)"):
        finite_forward.check()


def test_what_does_not_stay_float32_is_caught():
    def backward(dstate, saved, state):
        widened = dstate[0] * dtanh(saved[0])
        return (widened.astype(np.float64) if widened.ndim > 1 else widened,), (None,)

    @cell(backward=backward, saved="h")
    def widening(a, h):
        h = tanh(a)
        return 1 * h

    with pytest.raises(AssertionError, match="expected float32 throughout, got da float64"):
        widening.check()


def test_quotients_of_what_may_be_zero_are_told():
    @cell(states="h c n m")
    def unguarded(f, i, z, h, c, n, m):
        new = maximum(log_sigmoid(f) + m, i)
        f, i = exp(log_sigmoid(f) + m - new), exp(i - new)
        c, n = f * c + i * tanh(z), f * n + i
        return c / n, c, n, new

    with pytest.warns(RuntimeWarning, match=r"cell 'unguarded': c / n may be 0 / 0 \(gates"):
        unguarded.check()

    @cell
    def gates_that_sum_to_one(f, i, a, h):
        f, i = sigmoid(f), sigmoid(i)
        return (f * h + i * a) / (f + i)

    with pytest.warns(RuntimeWarning, match=r"\(f \* h \+ i \* a\) / \(f \+ i\) may be"):
        gates_that_sum_to_one.check()

    @cell
    def hidden_by_where(a, b, h):
        a, b = sigmoid(a), sigmoid(b)
        return where(a + b > 0, a / (a + b), 0.0)

    with pytest.warns(RuntimeWarning, match=r"a / \(a \+ b\) may be 0 / 0"):
        hidden_by_where.check()

    @cell
    def without_names(a, b, h):
        return exp(a) / (exp(a) + exp(b)) * h

    with pytest.warns(RuntimeWarning, match=r"exp\(a\) / \(exp\(a\) \+ exp\(b\)\) may be 0 / 0"):
        without_names.check()


def test_roots_of_what_may_be_zero_are_told():
    @cell(states="h s")
    def size(a, h, s):
        s = sqrt(s * s)
        return tanh(a + s), tanh(s) + tanh(a)

    with pytest.warns(RuntimeWarning, match="has no gradient at 0"):
        size.check()


def test_quotients_that_are_kept_from_zero_are_not_told():
    @cell(states="h s", normalised="b", second_product="a", operand=lambda r, s: s / (1 + exp(-r)))
    def sound(r, b, a, h, s):
        e = exp(minimum(a, 10.0))
        s = where(s > 0, s / where(s > 0, s, 1.0), 1.0) + 1 / sqrt(1 + b * b)
        return e / (1 + e), s

    assert sound.check() < 1e-6  # a warning is an error here


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_cell_with_a_projection(backend):
    """The projected LSTM, written: the same numbers, and the gradient is derived."""

    def out(f, g, i, o, c):
        return sigmoid(o) * tanh(sigmoid(f) * c + tanh(g) * sigmoid(i))

    @cell(states="h c", second_product="r", recurrent_only="r", operand=out, projected=True)
    def written_projection(f, g, i, o, r, h, c):
        return r, sigmoid(f) * c + tanh(g) * sigmoid(i)

    sizes, rng = (4, 9), np.random.default_rng(0)
    xs, dhs = rng.standard_normal((3, 6, 4)), rng.standard_normal((3, 6, 5))
    made = numba_rnn.time_layer(written_projection), numba_rnn.TimeProjectedLSTM
    ours, want = (one.create(*sizes, proj_size=5, rng=1, dtype=np.float64) for one in made)
    for theirs, param in zip(want.params, ours.params, strict=True):
        theirs[...] = param
    with numba_rnn.use_backend(backend, strict=True):
        pairs = [(ours.forward(xs), want.forward(xs)), (ours.backward(dhs), want.backward(dhs))]
        for got, wanted in (*pairs, *zip(ours.grads, want.grads, strict=True)):
            np.testing.assert_allclose(got, wanted, rtol=1e-10)


def test_a_projection_that_meets_other_numbers_is_refused():
    def out(f, c):
        return sigmoid(f) * c

    @cell(states="h c", second_product="r", recurrent_only="r", operand=out, projected=True)
    def mixed(f, r, h, c):
        return r * c, sigmoid(f) * c

    with pytest.raises(ValueError, match="projected: expected functions in which h, r meet no"):
        numba_rnn.time_layer(mixed)
