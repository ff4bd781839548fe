"""Things that a cell written once may not do, and the errors, which name the line."""

import inspect
import linecache
import math
import re
import types
from dataclasses import replace

import numpy as np
import pytest

from numba_rnn.kernels import cells
from numba_rnn.kernels.cells.decorator import WrittenCell, cell
from numba_rnn.kernels.cells.options import OPTIONS
from numba_rnn.kernels.functions import (
    maximum,
    sigmoid,
    tanh,
    where,
)

pytest.importorskip("sympy")
# ---- errors of the decorator


def reset(r, h):
    return sigmoid(r) * h


def wrong_backward(dstate, saved, state):
    return (dstate[0],), ()


def plain(a, b, h):
    return tanh(a + b)


def after(early):
    """A function of no gate that is in second."""


REFUSED_OPTIONS = [
    ({"states": ""}, "states: expected at least one name, got none"),
    ({"states": "h c"}, "states: expected some of the arguments a, b, h, got c"),
    ({"states": "h h"}, "states: expected each name once, got h, h"),
    ({"states": 3}, "states: expected names, in a string or a tuple, got 3"),
    ({"states": None}, "states: expected names, in a string or a tuple, got None"),
    ({"weights": "w"}, "weights: expected some of the arguments a, b, h, got w"),
    ({"weights": "h"}, "weights: expected none of states, got h"),
    ({"weights": ("a", "b")}, "expected a gate: an argument beside h, a, b"),
    ({"input_only": "x"}, "input_only: expected some of the gates a, b, got x"),
    ({"recurrent_only": "h"}, "recurrent_only: expected some of the gates a, b, got h"),
    ({"second_product": "c"}, "second_product: expected some of the gates a, b, got c"),
    ({"second_product": "b"}, "operand: expected it together with second_product or operand_gate"),
    ({"operand": reset}, "operand: expected it together with second_product or operand_gate"),
    ({"second_product": "b", "operand": 3}, "operand: expected a function, got 3"),
    ({"second_product": "b", "operand": reset}, "operand: expected some of the .* a, h, got r"),
    ({"second_product": "b", "operand": lambda b, h: h}, "operand: expected some of the .*, got b"),
    ({"recurrence": "none"}, "recurrence: expected 'product' or 'elementwise', got 'none'"),
    ({"recurrence": "elementwise", "biases": 2}, "biases: expected 1, since an elementwise"),
    ({"recurrence": "elementwise", "recurrent_only": "a"}, "recurrent_only: expected none, since"),
    ({"biases": 3}, "biases: expected 1 or 2, got 3"),
    ({"bias_start": {"x": 1.0}}, "bias_start: expected some of the gates a, b, got x"),
    ({"bias_start": 1.0}, "bias_start: expected a mapping from name to number, got 1.0"),
    ({"bias_start": {"a": "1"}}, "bias_start: a: expected a finite number, .* got '1'"),
    ({"bias_start": {"a": 10**400}}, "bias_start: a: expected a finite number, .* got 10"),
    ({"bias_start": {"a": math.inf}}, "bias_start: a: expected a finite number, .* got inf"),
    ({"weight_start": {"a": 1.0}},
     r"weight_start: expected some of the weights \(there are none\), got a"),
    ({"second_product": "a", "operand": lambda h: h},
        "second_product: expected the last of a, b, got a"),
    ({"biases": 2, "input_only": "a"}, "biases: expected 1 where x Wx and h Wh differ"),
    ({"biases": True}, "biases: expected 1 or 2, got True"),
    ({"biases": None}, "biases: expected 1 or 2, got None"),
    ({"backward": wrong_backward}, "backward and saved: expected both or neither"),
    ({"saved": "a"}, "backward and saved: expected both or neither"),
    ({"backward": 3, "saved": "a"}, "backward: expected a function, got 3"),
    ({"backward": plain, "saved": "a", "second_product": "b", "operand": lambda a, h: h},
     "backward: not supported together with operand; define a Cell"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED_OPTIONS)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=f"cell 'plain': {message}") as caught:
        cell(**options)(plain)
    line = inspect.getsourcelines(plain)[1]
    assert str(caught.value).endswith(f'  File "{__file__}", line {line}\n    def plain(a, b, h):')


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_checked_wherever_it_is_taken(name):
    wrong = {name: object()}
    with pytest.raises(ValueError, match=f"cell .*: {name}: expected .*, got <object object"):
        cell(**wrong)(plain)
    if OPTIONS[name].in_both:
        with pytest.raises(ValueError, match=f"cell .*: {name}: expected .*, got <object object"):
            replace(cells.get("rnn"), **wrong)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *gates: 0, r"argument \*gates: expected a named argument for each gate and state"),
        (lambda a, h, **more: 0, r"argument \*\*more: expected a named argument"),
        (lambda a, h=0.5: 0, "argument h: expected no default, got 0.5"),
        (lambda a, *, h: 0, r"argument h: expected no / and no \* among the arguments"),
        (lambda a, /, h: 0, r"argument a: expected no / and no \* among the arguments"),
        (lambda h: 0, "expected a gate: an argument beside h"),
        (lambda a: 0, "states: expected some of the arguments a, got h"),
    ],
)
def test_refused_arguments(function, message):
    with pytest.raises(ValueError, match=message):
        cell(name="refused")(function)


@pytest.mark.parametrize("what", [3, np.tanh, WrittenCell])
def test_what_is_no_function(what):
    with pytest.raises(TypeError, match="cell: expected a function, got"):
        cell(what)


@pytest.mark.parametrize("name", [3, "", "my cell"])
def test_a_name_that_is_none(name):
    with pytest.raises(ValueError, match=r"cell .*: name: expected letters, digits and _, got"):
        cell(name=name)(plain)


def test_a_lambda_takes_a_name():
    with pytest.raises(ValueError, match="got '<lambda>'"):
        cell(lambda a, h: tanh(a))
    assert cell(name="short")(lambda a, h: tanh(a)).check() < 1e-8


# ---- errors of what the function does: the line is named


def located(function, **options):
    """The error of a cell's derivation, and the source of the line that it names."""
    with pytest.raises(ValueError, match="cell '") as caught:
        assert cell(**options)(function).cell
    message, place, line = str(caught.value).rsplit("\n", 2)
    assert place.startswith(f'  File "{__file__}", line '), place
    number = int(place.rpartition(" ")[2])
    assert linecache.getline(__file__, number).strip() == line.strip()
    return message.partition(": ")[2], line.strip()


def np_tanh(a, h):
    return np.tanh(a) + h


def np_sin(a, h):
    return np.sin(a) + h


def np_where(a, h):
    return np.where(a > 0, a, h)


def np_clip(a, h):
    return np.clip(a, 0, 1)


def math_exp(a, h):
    return h + math.exp(
        a,
    )


def built_in_float(a, h):
    return float(a)


def math_floor(a, h):
    return math.floor(a)


def built_in_max(a, h):
    return max(a, h)


def branch(a, h):
    if a > 0:
        h = a
    return h


def branch_on_a_number(a, h):
    return a if h else -a


def chained(a, h):
    return where(0 < a < 1, a, h)


def both(a, h):
    return where((a > 0) & (h > 0), a, h)


def equal(a, h):
    return where(a == 0, a, h)


def cubed(a, h):
    return a**3


def power_of(a, h):
    return 2**a


def remainder(a, h):
    return a % 1


def member(a, h):
    return a[0]


def unpacked(a, h):
    b, c = a
    return b * c


def method(a, h):
    return a.clip(0, 1)


def number_in_where(a, h):
    return where(a, a, h)


def constants_in_where(a, h):
    return where(a > h, 1.0, 0)


def text(a, h):
    return a + "1"


def an_array(a, h):
    return a * np.ones(3)


def not_finite(a, h):
    return maximum(a, -math.inf)


def beyond_floats(a, h):
    return 10**400 * tanh(a)


def no_number(a, h):
    return tanh(None) + a


def too_many(a, h):
    return tanh(a, h)


def by_zero(a, h):
    return a / 0


def in_a_helper(a, h):
    return helper_with_an_error(a) + h


def helper_with_an_error(x):
    return np.tanh(x)


def imported_inside(a, h):
    from numba_rnn.kernels.functions import tanh

    return tanh(a) + h


class Helpers:
    @staticmethod
    def helper(x):
        return tanh(x)


def in_a_method(a, h):
    return Helpers.helper(a) + h


def missing_argument(a, h):
    return tanh(a) + helper_with_an_error()


def two_states(a, h):
    return h, a


def nothing(a, h):
    tanh(a)


def constant(a, h):
    return 0.5


def compared(a, h):
    return a > h


def unused(a, b, h):
    return tanh(a)


REFUSED = [
    (np_tanh, "np.tanh .*: use numba_rnn.functions.tanh$", "return np.tanh(a) + h"),
    (np_sin, "np.sin .*: use the functions of numba_rnn.functions$", "return np.sin(a) + h"),
    (np_where, "np.where .*: use numba_rnn.functions.where$", "return np.where(a > 0, a, h)"),
    (np_clip, "np.clip .*: use the functions of numba_rnn.functions$", None),
    (math_exp, "math.exp .*: use numba_rnn.functions.exp$", "return h + math.exp("),
    (built_in_float, "float can be neither .*: use the functions of", "return float(a)"),
    (math_floor, "math.floor can be neither .*: use the functions of", "return math.floor(a)"),
    (built_in_max, "max .*: use numba_rnn.functions.maximum$", "return max(a, h)"),
    (branch, r"`if` on a number that differs .*: write where\(a > 0, ..., ...\)$", "if a > 0:"),
    (branch_on_a_number, "`if` on a number that differs", "return a if h else -a"),
    (chained, "`if` on a number that differs", "return where(0 < a < 1, a, h)"),
    (both, "a comparison can only be the condition of where", None),
    (equal, "== and != are not allowed in a cell", "return where(a == 0, a, h)"),
    (cubed, r"\*\*: expected the exponent 2, 1, -1 or 0.5, got 3", "return a**3"),
    (power_of, r"2 \*\* x in a cell: write exp\(c \* x\), where c is", "return 2**a"),
    (remainder, r"a cell may only use the operators \+ - \* / and < <= > >=", "return a % 1"),
    (member, "a number in a cell is that of one unit", "return a[0]"),
    (unpacked, "a number in a cell is that of one unit", "b, c = a"),
    (method, "a number in a cell has no attribute 'clip'", "return a.clip(0, 1)"),
    (number_in_where, "where: expected a comparison like a > 0", "return where(a, a, h)"),
    (constants_in_where, "where: expected at least one choice .* got 1.0 and 0: write",
     "return where(a > h, 1.0, 0)"),
    (text, "expected a number, got '1'", 'return a + "1"'),
    (an_array, r"expected a number, got array\(", "return a * np.ones(3)"),
    (not_finite, "expected a finite number, got -inf", "return maximum(a, -math.inf)"),
    (beyond_floats, "expected a finite number, got inf", "return 10**400 * tanh(a)"),
    (no_number, "expected a number, got None", "return tanh(None) + a"),
    (too_many, r"tanh\(x\): too many positional arguments", "return tanh(a, h)"),
    (by_zero, "division by 0", "return a / 0"),
    (in_a_helper, "np.tanh .*: use numba_rnn.functions.tanh$", "return np.tanh(x)"),
    (imported_inside, "tanh: import it at the head of the module", "return tanh(a) + h"),
    (in_a_method, "tanh: .* plain functions rather than methods", None),
    (missing_argument, "missing 1 required positional argument: 'x'", None),
    (two_states, "return values: expected 1, the states h after the step; got 2$", "return h, a"),
    (nothing, "state h: expected a number computed from the arguments, got None", "tanh(a)"),
    (constant, "state h: expected a number computed from the arguments, got 0.5", "return 0.5"),
    (compared, "state h: expected a number computed .*, got <comparison of", "return a > h"),
    (unused, "gate b: no returned state depends on it", "def unused(a, b, h):"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "message", "line"), REFUSED, ids=[function.__name__ for function, *_ in REFUSED]
)
def test_refused(function, message, line):
    got, at = located(function)
    assert re.search(message, got), got
    assert line is None or at == line


def test_an_unused_weight_is_refused():
    message, line = located(unused, weights="b")
    assert message == "weight b: no returned state depends on it"
    assert line == "def unused(a, b, h):"


def test_saved_that_is_no_number_at_return():
    message, _ = located(plain, backward=wrong_backward, saved="a new")
    assert message == "saved: expected some of the numbers at return a, b, h, got new"


def test_other_errors_are_the_users_own():
    def broken(a, h):
        return undefined(a)  # noqa: F821

    with pytest.raises(NameError, match="undefined") as caught:
        assert cell(broken).cell
    assert caught.traceback[-1].frame.code.raw is broken.__code__


def test_a_failed_derivation_can_be_tried_again():
    space = types.SimpleNamespace(factor="one")

    @cell
    def later(a, h):
        return a * space.factor

    with pytest.raises(ValueError, match="expected a number, got 'one'"):
        assert later.cell
    space.factor = 2.0
    assert later.check() < 1e-8
