"""The inner loops of products keep their sums in registers, on processors that are not here."""

import re
from functools import cache

import pytest
from llvmlite import binding, ir
from numba import types

from helpers import run_python
from numba_rnn.kernels.cpu import int8, simd

PROCESSORS = {  # a target of LLVM's; how many vector registers it has, and their bits
    "cortex-a72": ("aarch64-unknown-linux-gnu", 32, 128),
    "neoverse-n1": ("aarch64-unknown-linux-gnu", 32, 128),
    "apple-m1": ("arm64-apple-darwin", 32, 128),
    "haswell": ("x86_64-unknown-linux-gnu", 16, 256),
}
# in LLVM's assembly: a product with a sum, a vector register loaded or stored on the stack
MULTIPLY_ADD = r"\bfmla(\.4s)?\s+v|\bvfmadd\w+ps\b"
ON_THE_STACK = r"\b(ldr|str|ldp|stp|ldur|stur)\s+q.*\[sp|\(%rsp\).*%ymm|%ymm.*\(%rsp\)"
LABEL, JUMP = r"^(\S+):", r"^\s+(?:b\.\w+|cbn?z|j\w+)\s+(?:\w+,\s*)?(\S+)$"

# Numba is told of a processor that has only what all have, so that no other one's code gets in.
COMPILE = """
from numba_rnn.kernels import disk_cache
from numba_rnn.kernels.cpu import simd
disk_cache.folder = lambda: None  # code from there cannot be looked into
simd.vector_registers = lambda: ({registers}, {bits})
from numba_rnn.kernels.cpu import engine, kernel_cache
kernel_cache.compiled("gemm.{product}", "float32")
print(kernel_cache.KERNELS[-1].inspect_llvm())
"""


@cache
def llvm_code(product: str, registers: int, bits: int) -> str:
    code = COMPILE.format(product=product, registers=registers, bits=bits)
    return run_python(code, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}).stdout


def assembly(code: str, triple: str, processor: str) -> list[str]:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(
        processor, "", opt=3, codemodel="jitdefault", jit=True
    )
    code = re.sub('target triple = ".*"', f'target triple = "{triple}"', code)
    layout = f'target datalayout = "{machine.target_data}"'
    code = re.sub('target datalayout = ".*"', layout, code)
    return machine.emit_assembly(binding.parse_assembly(code)).splitlines()


def inner_loops(lines: list[str]) -> list[list[str]]:
    """The lines between a label and a jump back to it, where no other label is between."""
    loops, start, label = [], 0, ""
    for k, line in enumerate(lines):
        if match := re.match(LABEL, line):
            start, label = k, match[1]
        elif (match := re.match(JUMP, line)) and match[1] == label:
            loops.append(lines[start:k])
    return loops


def count(pattern: str, lines: list[str]) -> int:
    return sum(bool(re.search(pattern, line)) for line in lines)


PRODUCTS = [
    "multiply", "multiply_transposed", "multiply_in_place", "multiply_pairs",
    "multiply_transposed_pairs",
]  # fmt: skip


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_no_inner_loop_of_a_product_spills_a_register(processor, product):
    triple, *registers = PROCESSORS[processor]
    lines = assembly(llvm_code(product, *registers), triple, processor)
    counts = [(count(MULTIPLY_ADD, loop), count(ON_THE_STACK, loop)) for loop in inner_loops(lines)]
    spills = {(work, spilled) for work, spilled in counts if work}
    assert len(spills) >= (4 if "pairs" in product else 6)  # tiles of several sizes, their rests
    assert max(spills)[0] >= 32
    assert not any(spilled for _, spilled in spills), spills


X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
DOT_PRODUCTS = {  # the LLVM function, its bits; where it runs; what it becomes, and how often
    ("llvm.x86.avx512.vpdpbusd.512", 512): (X86, "+avx512vnni", "vpdpbusd", 1),
    ("llvm.x86.avx512.vpdpbusd.256", 256): (X86, "+avxvnni", "vpdpbusd", 2),
    ("llvm.x86.avx512.pmaddw.d.512", 512): (X86, "+avx512bw", "vpmaddwd", 2),
    ("llvm.x86.avx2.pmadd.wd", 256): (X86, "+avx2", "vpmaddwd", 4),
    ("llvm.x86.sse2.pmadd.wd", 128): (X86, "+sse2", "pmaddwd", 8),
    ("llvm.aarch64.neon.sdot.v4i32.v16i8", 128): (ARM, "+dotprod", "sdot", 4),
    ("", 128): (ARM, "", "mla", 16),
}  # fmt: skip


@pytest.mark.parametrize("instruction", DOT_PRODUCTS)
def test_a_dot_product_of_bytes_is_the_processor_s(instruction, monkeypatch):
    triple, features, name, count_of_it = DOT_PRODUCTS[instruction]
    monkeypatch.setattr(int8, "_instruction", lambda: instruction)
    words, module = ir.VectorType(ir.IntType(32), 16), ir.Module()
    place = words.as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [place] * 3), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    a, b, total = map(builder.load, function.args)
    dot = int8.emit_dot(builder, simd.VectorType(types.float32), a, b, total)
    builder.store(dot, function.args[2])
    builder.ret_void()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(triple)
    machine = target.create_target_machine("", features, opt=3)
    lines = machine.emit_assembly(binding.parse_assembly(str(module))).splitlines()
    assert count(rf"^\s+(\{{vex\}}\s+)?{name}\b", lines) == count_of_it
