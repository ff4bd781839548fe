"""Products by AMX, on machines without it: the code is compiled and read, and run on emulated
registers (``amx_emulator.py``)."""

import platform
import re
import sys
from types import SimpleNamespace

import pytest
from test_tiles import inner_loops

from helpers import run_python
from numba_rnn.kernels.cpu import target

AVX512 = "+avx,+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni,+avx512bf16"
AMX = "+amx-tile,+amx-bf16,+amx-int8"
TO_STACK = r"[%$]\w+, \S*\(%rsp"  # in LLVM's assembly
KERNELS = "multiply_pairs_amx", "multiply_transposed_pairs_amx", "multiply_int8_amx"

here = sys.platform == "linux" and platform.machine() == "x86_64"
needs_x86 = pytest.mark.skipif(not here, reason="Numba compiles for x86 there alone")


def sapphire_rapids(features: str, code: str) -> str:
    env = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": features}
    return run_python(code, env).stdout


# ---- which road


CHOICE = """
from numba_rnn.kernels.cpu import target
target._may_use_tiles = lambda: True
for word, rows in ((1, 99), (2, 15), (2, 16), (4, 15), (4, 16)):
    print(target.in_tiles("multiply", word, rows))
print(target.bfloat16_road(), target.int8_road(), sep=", ")
"""


@needs_x86
@pytest.mark.parametrize(
    ("features", "pairs", "int8", "roads"),
    [
        (f"{AVX512},{AMX}", "multiply_amx", "multiply_amx",
         "bfloat16 (AMX, below 16 rows AVX512_BF16), AMX, below 16 rows AVX-512 VNNI"),
        (f"{AVX512},+amx-tile,+amx-int8", "multiply", "multiply_amx",
         "bfloat16 (AVX512_BF16), AMX, below 16 rows AVX-512 VNNI"),
        (f"{AVX512},+amx-bf16,+amx-int8", "multiply", "multiply",
         "bfloat16 (AVX512_BF16), AVX-512 VNNI"),
        (AVX512, "multiply", "multiply", "bfloat16 (AVX512_BF16), AVX-512 VNNI"),
    ],
)  # fmt: skip
def test_the_road_is_that_of_the_features(features, pairs, int8, roads):
    lines = sapphire_rapids(features, CHOICE).splitlines()
    assert lines == ["multiply", "multiply", pairs, "multiply", int8, roads]


def test_without_linux_s_permission_it_is_not_taken(monkeypatch):
    asked = []
    for answer, system, may in ((0, "linux", True), (-1, "linux", False), (0, "darwin", False)):
        system_calls = SimpleNamespace(syscall=lambda *call, to=answer: asked.append(call) or to)
        monkeypatch.setattr(target.ctypes, "CDLL", lambda name, of=system_calls: of)
        monkeypatch.setattr(target.sys, "platform", system)
        assert target._may_use_tiles.__wrapped__() is may
    assert asked == [(158, 0x1023, 18)] * 2
    monkeypatch.setattr(target, "_may_use_tiles", lambda: False)
    monkeypatch.setattr(target, "has_bfloat16_product", lambda: True)
    monkeypatch.setattr(target, "machine", lambda: ("x86_64-linux", "sapphirerapids", AMX))
    assert not target.has_tiles.__wrapped__(2)


# ---- the code


COMPILE = """
from numba_rnn.kernels import disk_cache
disk_cache.folder = lambda: None  # code from there cannot be looked into
from numba_rnn.kernels.cpu import engine, kernel_cache
for kernel in {kernels}:
    kernel_cache.compiled("gemm." + kernel, "float32")
    print(kernel_cache.KERNELS[-1]._holder.get_asm_str())
    print("# the end of a kernel")
"""


@needs_x86
def test_code_for_a_processor_that_has_it():
    """Compiled, not run: a load for each register and product, no register on the stack."""
    code = sapphire_rapids(f"{AVX512},{AMX}", COMPILE.format(kernels=KERNELS))
    for kernel, lines in zip(KERNELS, code.split("# the end of a kernel"), strict=False):
        product = "tdpbusd" if "int8" in kernel else "tdpbf16ps"

        def count(name: str, lines: list[str]) -> int:
            return sum(bool(re.match(rf"\s+{name}\b", line)) for line in lines)

        lines = lines.splitlines()
        found = {n: count(n, lines) for n in ("tileloadd", product, "ldtilecfg", "tilerelease")}
        once = "transposed" in kernel  # every line is copied; else the last may be
        assert list(found.values()) == ([14, 10, 1, 1] if once else [42, 32, 1, 1]), kernel
        assert count("tilestored", lines) == count("tilezero", lines) == 4
        loops = [loop for loop in inner_loops(lines) if count(product, loop)]
        shapes = sorted((count("tileloadd", loop), count(product, loop)) for loop in loops)
        if not once:  # a row of registers by 1 to 4, two rows by 1 and 2
            assert shapes == [(2, 1), (3, 2), (3, 2), (4, 3), (4, 4), (5, 4)]
            assert max(map(len, loops)) < 20
        assert not [line for loop in loops for line in loop if re.search(TO_STACK, line)]


# ---- on emulated registers


EMULATED = """
import amx_emulator
import numpy as np
from helpers import outcome, random_problem, relative_error
from test_conformance import poisoned_memory, shared
from test_precision import rounded
from numba_rnn import use_backend

def engine(precision="bfloat16"):
    return use_backend("numba", strict=True, precision=precision).__enter__()

{code}
amx_emulator.expect_no_faults()
print("no faults")
"""


def run_emulated(code: str) -> None:
    assert run_python(EMULATED.format(code=code)).stdout.endswith("no faults\n")


LAYOUTS = """
from numba_rnn.kernels.cpu.gemm import Product
from numba_rnn.kernels.cpu.kernel_cache import compiled
from numba_rnn.kernels.cpu.packing import zeros
from numba_rnn.kernels.cpu.plans import address_of
from numba_rnn.kernels.cpu.threads import call_kernel

engine()
amx_emulator.install()
rng, NAN, FLOAT = np.random.default_rng(0), 0x7FFF7FFF, np.dtype(np.float32)

def words(shape, word):
    '''Words of small whole numbers, whose sums float32 has exactly.'''
    numbers = rng.integers(-8, 9, (*shape, word))
    if word == 2:
        numbers = numbers.astype(np.float32).view(np.uint32) >> 16
    return numbers.astype({2: np.uint16, 4: np.int8}[word]).view(np.uint32)[..., 0]

for kernel, transposed, word in (
    ("multiply_pairs", False, 2), ("multiply_transposed_pairs", True, 2),
    ("multiply_int8", False, 4),
):
    for turn in range(60):
        rows, inner, columns = rng.integers(1, (17 if transposed else 70, 53, 99))
        rows, columns = (16, 64) if turn == 0 else (rows, columns)
        groups = 1 if transposed or word == 4 else rng.integers(1, 4)
        vectors, lines = -(-columns // 16), -(-inner // 16)
        in_panels = rng.random() < 0.5  # or in rows
        a_size = (groups, lines + 1, rows | 1, 16) if in_panels else (rows, groups, lines + 1, 16)
        a = zeros(a_size, FLOAT)
        b = zeros((vectors, (groups * inner + 2) | 1, 16), FLOAT)
        c = zeros((rows, vectors * 16 + 16), FLOAT)
        a.view(np.uint32)[...] = b.view(np.uint32)[...] = NAN
        if transposed:
            a = zeros((inner, 16), FLOAT)
            a.view(np.uint32)[...] = NAN
            a.view(np.uint32)[:, :rows] = words((inner, rows), word)
            steps = 0, 1024, 0
        else:
            numbers = words((groups, rows, inner), word)
            whole = np.full((groups, rows, lines * 16), NAN, np.uint32)
            whole[:, :, :inner] = numbers
            whole = whole.reshape(groups, rows, lines, 16)
            scales = (rng.random(rows) + 0.5).astype(np.float32)
            if in_panels:
                a.view(np.uint32)[:, :lines, :rows] = whole.transpose(0, 2, 1, 3)
                a[:, lines, :rows, 0] = scales
                steps = a.strides[2], a.strides[1], a.strides[0]
            else:
                a.view(np.uint32)[:, :, :lines] = whole.transpose(1, 0, 2, 3)
                a[:, :, lines, 0] = scales[:, None]
                steps = a.strides[0], a.strides[2], a.strides[1]
        b.view(np.uint32)[:, : groups * inner] = words((vectors, groups * inner, 16), word)
        if word == 4:  # what sums begin with, and scales
            b.view(np.int32)[:, inner] = rng.integers(-999, 999, (vectors, 16))
            b[:, inner + 1] = rng.random((vectors, 16)) + 0.5
        c[...] = rng.integers(-9, 9, c.shape)
        results = []
        for name in (kernel, kernel + "_amx"):
            out = zeros(c.shape, FLOAT)
            out[...] = c
            p = Product(
                address_of(a), *steps, groups, inner, address_of(b), b.strides[0], address_of(out),
                out.strides[0], 64, rows, columns, turn % 2, 0,
            )
            p = np.array(p, np.int64)
            call_kernel(compiled("gemm." + name), address_of(p))
            results.append(out)
        np.testing.assert_array_equal(results[1], results[0], err_msg=f"{kernel} {p}")
        assert np.isfinite(results[0]).all() and (results[0][:, columns:] == c[:, columns:]).all()
"""


def test_products_of_any_layout():
    """Whole numbers, so that no order of sums matters: equal to the kernels that use vectors."""
    run_emulated(LAYOUTS)


MATRICES = """
from numba_rnn.kernels.quantisation import quantise
rng, low, cases, words = np.random.default_rng(0), engine(), [], []
for M, K, P in ((16, 200, 50), (17, 67, 67), (97, 130, 67), (33, 2051, 33), (130, 33, 100)):
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((M, K), (K, P)))
    bias = rng.integers(-8, 9, P).astype(np.float32)
    cases.append((a, b, bias))
    words.append(low.affine(a, quantise(b), bias))
amx_emulator.install()
for (a, b, bias), want in zip(cases, words):
    np.testing.assert_array_equal(low.affine(a, b, bias), a @ b + bias)
    for x in (a, np.asfortranarray(a)):
        for y in (b, np.asfortranarray(b)):
            np.testing.assert_array_equal(low.product(x, y), a @ b)
    np.testing.assert_array_equal(low.affine(a, quantise(b), bias), want)
numbers = [rng.standard_normal(shape).astype(np.float32) for shape in ((70, 300), (300, 90))]
want = np.matmul(*(rounded(x).astype(np.float64) for x in numbers))
assert relative_error(low.product(*numbers), want) < 2e-6
numbers[0][3, 5] = np.inf
assert np.isinf(low.product(*numbers)[3]).all() and np.isfinite(low.product(*numbers)[4]).all()
numbers[0][3, 5] = 1e-39  # denormal
numbers[1][...] = 1e38
want = numbers[0].copy()
want[3, 5] = 0
np.testing.assert_array_equal(low.product(*numbers), low.product(want, numbers[1]))
"""


def test_products_of_large_matrices():
    run_emulated(MATRICES)


PASSES = """
from quantised import quantised_problem
from numba_rnn import TimeLSTM, cells

SHARED = (1, True), (2, True), (3, False)
sizes, low, exact = (19, 3, 21, 33), engine(), engine("float32")
words = {name: low.forward(*quantised_problem(name, *sizes)) for name in CELLS}
amx_emulator.install()
for name in CELLS:
    p = random_problem(name, 19, 1, 9, 13, np.float32).map(rounded)
    step = p.cell, p.xs[:, 0], p.state, p.params
    error = 1e-5 if p.cell.operand is None else 1e-2
    for got, want in zip(low.step(*step), exact.step(*step)):
        assert relative_error(got, want) < error
    p, found, numbers = random_problem(name, *sizes, np.float32), [], []
    for partition in SHARED:
        with shared(low, partition), poisoned_memory(low):
            found.append(outcome(low, p))
            numbers.append(low.forward(*quantised_problem(name, *sizes)))
    want = outcome(exact, p)
    for key in want:
        assert 1e-5 < relative_error(found[0][key], want[key]) < 2e-2, key
        for other in found[1:]:
            np.testing.assert_array_equal(other[key], found[0][key], err_msg=key)
    for hs, state, _ in numbers:
        for got, want in zip((hs, *state), (words[name][0], *words[name][1])):
            np.testing.assert_array_equal(got, want, err_msg=name)
layer = TimeLSTM.create(21, 33, rng=0)
xs = random_problem("lstm", *sizes, np.float32).xs
for weights in ("bfloat16", "int8"):
    stream = layer.stream(batch=19, weights=weights)
    with use_backend("numba", precision="bfloat16"):
        want = (layer.quantise() if weights == "int8" else layer).forward(xs)
        np.testing.assert_array_equal(stream.step_many(xs), want)
assert amx_emulator.counts["tdpbf16ps"] and amx_emulator.counts["tdpbusd"]
"""


def test_passes_have_the_same_bits_on_any_number_of_threads():
    """And in int8 those of the kernels that use vectors."""
    run_emulated('CELLS = "lstm", "gru", "lstm_projected"\n' + PASSES)
