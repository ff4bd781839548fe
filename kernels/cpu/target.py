"""The processor that code is compiled for, found out without Numba.

Numba's settings are honoured: those of the environment, or, where Numba has been imported, of
``numba.config``.
"""

import ctypes
import os
import platform
import re
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite
from llvmlite import binding

from .. import disk_cache

VECTOR_BYTES = 64  # of the vectors that kernels are written with

# Tiles whose sums, and what is added to them, fit the registers (counted in compiled loops, which
# test_tiles.py does; the fastest of those by llvm-mca). Six rows of four vectors are 24 registers
# of AVX-512; where a vector takes two registers (AVX) or four (NEON, SSE), a tile is one wide.
TILES_OF = {  # vector registers: the deepest, the widest, the widest for one row
    (32, 512): (6, 4, 8),
    (16, 256): (6, 1, 4),
    (32, 128): (4, 1, 3),
    (16, 128): (2, 1, 2),
}

# on these Numba leaves AVX alone
_WITHOUT_AVX = {"corei7-avx", "core-avx-i", "sandybridge", "ivybridge", "nocona"}


def setting(name: str, default: Any = None) -> Any:
    """A setting of Numba's, as it has read it, or as it is going to read the environment."""
    config = getattr(sys.modules.get("numba"), "config", None)
    if hasattr(config, name):
        return getattr(config, name)
    prefix = "" if name.startswith("NUMBA_") else "NUMBA_"
    said = os.environ.get(f"{prefix}{name}", default)
    if not isinstance(said, str) or not isinstance(default, int):
        return said
    return int(said) if re.fullmatch(r"\s*[+-]?\d+\s*", said) else default


@cache
def machine() -> tuple[str, str, str]:
    """The triple, the name and the features, as LLVM spells them, of the processor."""
    name = setting("CPU_NAME")
    features = setting("CPU_FEATURES", "" if str(name).lower() == "generic" else None)
    name = binding.get_host_cpu_name() if name is None else name
    if features is None:
        host = name or binding.get_host_cpu_name()
        features = _host_features(bool(setting("ENABLE_AVX", int(host not in _WITHOUT_AVX))))
    return binding.get_process_triple(), name, features


def _host_features(avx: bool) -> str:
    try:
        found = binding.get_host_cpu_features()
    except RuntimeError:
        return ""
    for name in found:
        if not avx and name.startswith("avx"):
            found[name] = False
    return str(found.flatten())


@cache
def versions() -> tuple[str, ...]:
    """Those of Python and the compilers."""
    return sys.implementation.cache_tag, _numba_version(), llvmlite.__version__


def _numba_version() -> str:
    """Numba's version, by the name of the folder of metadata beside it where there is one."""
    loaded = sys.modules.get("numba")
    spec = None if hasattr(loaded, "__version__") else find_spec("numba")
    if spec is not None and spec.origin is not None:
        pattern, names = re.compile(r"numba-(\d[^-]*)(-py\d.*)?\.(dist|egg)-info"), []
        with suppress(OSError):
            names = os.listdir(Path(spec.origin).parents[1])
        found = [match[1] for match in map(pattern.fullmatch, names) if match]
        if len(found) == 1:
            return found[0]
    import numba  # nothing beside it says so, or it is loaded

    return str(numba.__version__)


@cache
def vector_registers() -> tuple[int, int]:
    """How many vector registers compiled code has, and their bits.

    LLVM says so: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may ask for less than this machine has. It
    is asked once, by one process: an answer takes it 10 MB.
    """
    entry = disk_cache.Entry("registers", "asked", llvmlite.__version__, machine())
    known = entry.load()
    if known is None:
        known = " ".join(map(str, _ask_for_registers())).encode()
        entry.save(known)
    count, bits = map(int, known.split())
    return count, bits


def _ask_for_registers() -> tuple[int, int]:
    vector = f"<{VECTOR_BYTES // 4} x float>"
    add = f"define {vector} @f({vector} %a) {{ %b = fadd {vector} %a, %a ret {vector} %b }}"
    code = target_machine().emit_assembly(binding.parse_assembly(add))
    for name, registers in (("zmm", (32, 512)), ("ymm", (16, 256)), ("xmm", (16, 128))):
        if re.search(rf"\b{name}\d", code):
            return registers
    return 32, 128  # ARM's NEON


@cache
def has_bfloat16_product() -> bool:
    """Whether compiled code may multiply pairs of bfloat16 (AVX512_BF16).

    LLVM would end the process where it met an instruction that the processor lacks.
    """
    return "+avx512bf16" in machine()[2].split(",") and vector_registers() == (32, 512)


def bfloat16_road() -> str:
    """How products in bfloat16 are computed."""
    if not has_bfloat16_product():
        return "bfloat16, multiplied as float32: the processor has no AVX512_BF16"
    amx = f"AMX, below {_LEAST_ROWS} rows " if has_tiles(2) else ""
    return f"bfloat16 ({amx}AVX512_BF16)"


@cache
def int8_instruction() -> tuple[str, int]:
    """The LLVM function that adds up products of bytes or of 16 bits, and the bits of its vectors.

    None is named that the processor, or NUMBA_CPU_FEATURES, lacks: LLVM would end the process.
    """
    triple, _, features = machine()
    has, (_, bits) = features.split(","), vector_registers()
    if bits == 512 and "+avx512vnni" in has:
        return "llvm.x86.avx512.vpdpbusd.512", 512
    if bits == 256 and "+avxvnni" in has:
        return "llvm.x86.avx512.vpdpbusd.256", 256
    if bits == 128 and "+dotprod" in has:
        return "llvm.aarch64.neon.sdot.v4i32.v16i8", 128
    if triple.startswith("x86_64"):
        if bits == 512 and "+avx512bw" in has:
            return "llvm.x86.avx512.pmaddw.d.512", 512
        return ("llvm.x86.avx2.pmadd.wd", 256) if bits == 256 else ("llvm.x86.sse2.pmadd.wd", 128)
    return "", 128


def int8_road() -> str:
    """How products with weights in int8 are computed."""
    name, bits = int8_instruction()
    if "vpdpbusd" in name:
        road = "AVX-512 VNNI" if bits == 512 else "AVX-VNNI"
        return f"AMX, below {_LEAST_ROWS} rows {road}" if has_tiles(4) else road
    return "dot products of ARM" if name and "sdot" in name else f"in {16 if name else 32} bits"


def int8_unsigned() -> bool:
    """Whether for it A's numbers are stored with 128 added."""
    return "vpdpbusd" in int8_instruction()[0]


_TILE_FEATURES = {2: ("+amx-tile", "+amx-bf16"), 4: ("+amx-tile", "+amx-int8")}
_LEAST_ROWS = 16  # that a product by AMX pays for: a guess, which no machine has measured


@cache
def has_tiles(word: int) -> bool:
    """Whether compiled code may multiply words (of 2 or 4 numbers) by AMX (``amx.py``).

    LLVM would end the process where the processor lacks it, Linux where nobody has asked for it.
    """
    wanted, has = _TILE_FEATURES[word], machine()[2].split(",")
    ready = has_bfloat16_product() if word == 2 else int8_unsigned()  # for fewer rows
    return ready and all(feature in has for feature in wanted) and _may_use_tiles()


@cache
def _may_use_tiles() -> bool:
    """Ask Linux to keep the registers' state, once: it says so for all threads, and children."""
    if sys.platform != "linux":
        return False
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def in_tiles(kernel: str, word: int, rows: int = _LEAST_ROWS) -> str:
    """The name of a product's kernel, or of the one by AMX where that may be used and pays.

    rows  of all of A, not of a thread's share: bits of bfloat16 must not depend on who shares it
    """
    return f"{kernel}_amx" if word > 1 and rows >= _LEAST_ROWS and has_tiles(word) else kernel


def target_machine(**options: Any) -> Any:
    """The processor, as LLVM has it."""
    triple, name, features = machine()
    _initialise()
    target = binding.Target.from_triple(triple)
    return target.create_target_machine(cpu=name, features=features, **options)


@cache
def _initialise() -> None:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()


def jit_options() -> dict[str, Any]:
    """As Numba has them: no other relocations are tested there."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return {"reloc": "static" if x86 else "default", "codemodel": "jitdefault", "jit": True}
