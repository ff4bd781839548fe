"""The PTX that the compiler made, run by Python, on a memory that shows what is late or stale.

``cuda_emulator.py`` runs a kernel's Python; this runs what became of it: the instructions that
Numba, LLVM and the intrinsics gave, in 32 and 64 bits. A thread is a generator. Memory is weak:

- A store to global memory waits in its block's buffer. A release by a thread lets go what that
  thread stored, and what its block stored before the last barrier; chance lets go the rest, one by
  one, in any order.
- A thread keeps what it has loaded, with the 32 bytes around it, until an acquire: its own, or one
  by its block before a barrier.

Errors are those of the emulator: bad and misaligned addresses, warps that race in shared memory,
lanes at different instructions, threads that wait for ever. Tensor cores cut off the sum of their
products, as the real ones do.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from cuda_emulator import EmulatedGpu
from numba_rnn.kernels.cuda import build
from numba_rnn.kernels.cuda.kernel import DeviceLimits, Kernel

F32, U32 = np.float32, np.uint32
M16, M32, M64 = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


class PtxError(RuntimeError):
    """A mistake that a GPU would make without a word."""


# ---- numbers: floats are NumPy's, all else is a whole number without a sign


def bits(number: Any) -> int:
    return int(F32(number).view(U32))


def flt(pattern: int) -> Any:
    return U32(pattern & M32).view(F32)


def signed(x: int, width: int) -> int:
    x &= (1 << width) - 1
    return x - (1 << width) if x >> (width - 1) else x


def divided(a: int, b: int) -> int:
    """Towards 0."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def flushed(x: Any) -> Any:
    return F32(0) * x if abs(x) < np.finfo(F32).tiny else F32(x)


def ex2(x: Any) -> Any:
    return flushed(F32(np.exp2(np.float64(flushed(x)))))


def rcp(x: Any) -> Any:
    return flushed(F32(np.float64(1) / np.float64(flushed(x))))


def fma(a: Any, b: Any, c: Any) -> Any:
    return F32(np.float64(a) * np.float64(b) + np.float64(c))


def tf32(pattern: int) -> int:
    """To the nearest, ties away from 0."""
    if pattern & 0x7F800000 == 0x7F800000:
        return pattern
    return (pattern + 0x1000) & 0xFFFFE000


def bf16(pattern: int) -> int:
    """To the nearest, ties to even."""
    if pattern & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF
    return (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16 & M16


# ---- from the text to Python

_SPECIAL = {
    "%tid.x": "T.tid", "%ctaid.x": "T.x", "%ctaid.y": "T.y", "%ntid.x": "T.threads",
    "%nctaid.y": "T.grid[1]", "%nctaid.x": "T.grid[0]", "numba_rnn_shared": "0",
}  # fmt: skip
_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_COMPARED |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_SIMPLE = {"add": "+", "sub": "-", "mul": "*"}


def _operands(text: str) -> list[str]:
    """Operands, a list in braces or an address being one of them."""
    return [x.strip() for x in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text) if x.strip()]


def _value(text: str) -> str:
    if text in _SPECIAL:
        return _SPECIAL[text]
    if text.startswith("%"):
        return text[1:]
    if text.startswith(("0f", "0F")):
        return f"flt(0x{text[2:]})"
    if text.startswith(("0d", "0D")):
        return f"np.uint64(0x{text[2:]}).view(np.float64)"
    return str(int(text) & M64)


def _address(text: str) -> str:
    base, offset = re.fullmatch(r"\[\s*(%?\w+)\s*(?:\+\s*(-?\d+))?\s*\]", text).groups()
    return f"({_value(base)} + {int(offset or 0)}) & M64"


def _list(text: str) -> list[str]:
    return [_value(x.strip()) for x in text.strip("{} ").split(",")]


def _float(name: str, kind: str, d: str, a: list[str]) -> str | None:
    """Arithmetic of floats."""
    to = "F32" if kind == "f32" else "np.float64"
    if name in _SIMPLE:
        return f"{d} = {to}({a[0]} {_SIMPLE[name]} {a[1]})"
    found = {
        "div": f"{to}({a[0]} / {a[-1]})", "abs": f"abs({a[0]})", "neg": f"-{a[0]}",
        "fma": f"fma({', '.join(a)})" if kind == "f32" else " * ".join(a[:2]) + f" + {a[-1]}",
        "ex2": f"ex2({a[0]})",
        "rcp": f"rcp({a[0]})", "sqrt": f"{to}(np.sqrt(np.float64({a[0]})))",
        "max": f"np.fmax({a[0]}, {a[-1]})", "min": f"np.fmin({a[0]}, {a[-1]})",
    }  # fmt: skip
    return f"{d} = {found[name]}" if name in found else None


def _whole(name: str, parts: list[str], d: str, a: list[str]) -> str | None:
    """Arithmetic of whole numbers and of conditions."""
    kind = parts[-1]
    if kind == "pred":
        logic = {"and": "and", "or": "or", "xor": "!=", "not": "not"}[name]
        return f"{d} = not {a[0]}" if name == "not" else f"{d} = {a[0]} {logic} {a[1]}"
    width = int(kind[1:])
    mask = f"M{width}"
    a = [f"signed({x}, {width})" for x in a] if kind[0] == "s" else [f"({x} & {mask})" for x in a]
    if name in ("mul", "mad") and parts[1] == "wide":
        mask = f"M{2 * width}"
    found = {
        "not": f"~{a[0]}", "neg": f"-{a[0]}", "mad": f"{a[0]} * {a[1 % len(a)]} + {a[-1]}",
        "shl": f"{a[0]} << min({a[-1]}, {width})", "shr": f"{a[0]} >> min({a[-1]}, {width})",
        "div": f"divided({a[0]}, {a[-1]})", "min": f"min({a[0]}, {a[-1]})",
        "rem": f"{a[0]} - {a[-1]} * divided({a[0]}, {a[-1]})", "max": f"max({a[0]}, {a[-1]})",
        **{k: f"{a[0]} {sign} {a[-1]}" for k, sign in {**_SIMPLE, **_LOGIC}.items()},
    }  # fmt: skip
    return f"{d} = ({found[name]}) & {mask}" if name in found else None


def _compare(parts: list[str], d: str, a: list[str]) -> str:
    how, kind = parts[1], parts[-1]
    if kind[0] == "f":
        unordered = f"np.isnan({a[0]}) or np.isnan({a[1]})"
        if how == "nan":
            return f"{d} = bool({unordered})"
        if how in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
            return f"{d} = bool({unordered} or {a[0]} {_COMPARED[how[:2]]} {a[1]})"
    elif kind[0] == "s":
        a = [f"signed({x}, {kind[1:]})" for x in a]
    else:
        a = [f"({x} & M{kind[1:]})" for x in a]
    return f"{d} = bool({a[0]} {_COMPARED[how]} {a[1]})"


def _convert(op: str, parts: list[str], d: str, a: list[str]) -> str | None:
    to, of = parts[-2:]
    if op == "cvt.rna.tf32.f32":
        return f"{d} = tf32(bits({a[0]}))"
    if op == "cvt.rn.bf16x2.f32":
        return f"{d} = bf16(bits({a[0]})) << 16 | bf16(bits({a[1]}))"
    number = f"signed({a[0]}, {of[1:]})" if of[0] == "s" else f"({a[0]} & M{of[1:]})"
    if of[0] == "f":
        return f"{d} = {'F32' if to == 'f32' else 'np.float64'}({a[0]})" if to[0] == "f" else None
    return f"{d} = F32({number})" if to == "f32" else f"{d} = {number} & M{to[1:]}"


def _moved(d: str, to: str, of: str, a: str) -> str:
    """A move of bits may be one between floats and whole numbers."""
    kinds = [bool(re.match(r"%f\d|0[fF]", text)) for text in (to, of)]
    if kinds[0] == kinds[1]:
        return f"{d} = {a}"
    return f"{d} = flt({a})" if kinds[0] else f"{d} = bits({a})"


def _statement(op: str, given: list[str]) -> str:
    """One instruction in Python."""
    parts, name = op.split("."), op.split(".")[0]
    kind = parts[-1]
    if op == "bar.sync":
        return "yield ('bar',)"
    if name == "ret":
        return "return"
    if name == "red":
        return f"W.arrive(T, {_address(given[0])}, {op.startswith('red.release')})"
    if name == "mma":
        lists = [_list(x) for x in given]
        of, fragments = "bf16" if ".bf16" in op else "tf32", [f"({', '.join(x)},)" for x in lists]
        return f"{fragments[0]} = yield ('{of}', {', '.join(fragments[1:])})"
    if name in ("ld", "st") and parts[1] != "param":
        to, place = (given[0], given[1]) if name == "ld" else (given[1], given[0])
        places = f"({', '.join(_list(to))},)"
        if parts[1] in ("acquire", "relaxed", "volatile"):
            return f"{places} = (yield ('{parts[1]}', {_address(place)})),"
        access = f"(T, '{parts[1]}', '{kind}', {_address(place)}"
        if name == "st":
            return f"W.store{access}, {places})"
        return f"{places} = W.load{access}, {len(_list(to))})"
    d = _value(given[0])
    if name == "ld":
        return f"{d} = T.params[{re.search(r'_param_([0-9]+)', given[1])[1]}]"
    a = [_value(x) for x in given[1:]]
    made: str | None
    if name == "mov":
        made = _moved(d, given[0], given[1], a[0])
    elif name == "cvta":
        made = f"{d} = {a[0]}"
    elif name == "selp":
        made = f"{d} = {a[0]} if {a[2]} else {a[1]}"
    elif name == "setp":
        made = _compare(parts, d, a)
    elif name == "cvt":
        made = _convert(op, parts, d, a)
    else:
        made = _float(name, kind, d, a) if kind in ("f32", "f64") else _whole(name, parts, d, a)
    if made is None:
        raise NotImplementedError(op)
    return made


def translated(ptx: str) -> Callable[..., Iterator[Any]]:
    """The generator function of a kernel's threads."""
    body = ptx[ptx.index(".entry") :]
    body = body[body.index("{") + 1 : body.rindex("}")]
    blocks: list[list[tuple[str, str, str]]] = [[]]
    labels = {}
    for line in body.splitlines():
        text = line.split("//")[0].strip()
        if not text or text.startswith(".") or text in "{}":
            continue
        if label := re.fullmatch(r"(\$?\w+):", text):
            blocks.append([])
            labels[label[1]] = len(blocks) - 1
            continue
        for one in filter(None, (part.strip() for part in text.split(";"))):
            guard, op, rest = re.fullmatch(r"(?:@(!?%p\d+)\s+)?(\S+)\s*(.*)", one).groups()
            blocks[-1].append((guard or "", op, rest))
            if op.startswith("bra"):
                blocks.append([])
    lines = ["def kernel(T, W):", "  here = 0", "  while True:"]
    for k, block in enumerate(blocks):
        lines.append(f"    if here == {k}:")
        for guard, op, rest in block:
            jump = op.startswith("bra")
            code = f"here = {labels[rest]}; continue" if jump else _statement(op, _operands(rest))
            when = f"if {guard.replace('!', 'not ').replace('%', '')}: " if guard else ""
            lines.append(f"      {when}{code}")
        lines.append(f"      here = {k + 1}")
    space = dict(globals())
    exec(compile("\n".join([*lines, "    yield"]), "<ptx>", "exec"), space)
    return space["kernel"]


# ---- memory


class _Block:
    def __init__(self, words: int) -> None:
        self.shared = np.full(words, 0x7FC00001, U32)  # NaN
        self.buffer: dict[int, tuple[int, Any, int]] = {}  # stored: word, thread, barriers passed
        self.touched: dict[int, tuple[int, int, bool]] = {}  # warp, barriers passed, written
        self.passed, self.acquired = 0, False
        self.threads: list[_Thread] = []
        self.waiting: list[_Thread] = []
        self.warps: dict[int, dict[int, Any]] = {}

    def touch(self, thread: "_Thread", place: int, writes: bool) -> None:
        warp = thread.tid // 32
        other, when, wrote = self.touched.get(place, (warp, self.passed, False))
        if other != warp and when == self.passed and (writes or wrote):
            raise PtxError(f"warps {other} and {warp} race at {place} of shared memory")
        if writes or when != self.passed or not wrote:
            self.touched[place] = warp, self.passed, writes


class _Thread:
    def __init__(self, block: _Block, tid: int, place: Any, threads: int, grid: Any, params: Any):
        self.block, self.tid, self.threads, self.grid = block, tid, threads, grid
        (self.x, self.y), self.params = place, params
        self.kept: dict[int, int] = {}  # words that it has loaded


_SIZES = {"f32": 4, "u32": 4, "b32": 4, "f64": 8, "u64": 8, "b64": 8, "u8": 1, "s64": 8}


class _Memory:
    def __init__(self, seed: int) -> None:
        self.random, self.next = random.Random(seed), 0x7F0000000000
        self.arrays: list[tuple[int, np.ndarray]] = []

    def place(self, array: np.ndarray) -> int:
        if not array.flags.c_contiguous:
            raise PtxError("an array with gaps was launched on")
        start, size = self.next, array.nbytes
        self.arrays.append((start, array.reshape(-1).view(np.uint8)))
        self.next += (size + 511) // 512 * 512 + 512
        return start

    def _bytes(self, at: int, size: int) -> np.ndarray:
        for start, raw in self.arrays:
            if start <= at and at + size <= start + raw.size:
                return raw[at - start : at - start + size]
        raise PtxError(f"{size} bytes at {at:#x}: outside of all arrays")

    def word(self, at: int) -> int:
        return int(self._bytes(at, 4).view(U32)[0])

    def _put(self, at: int, word: int) -> None:
        self._bytes(at, 4).view(U32)[0] = word

    def load(self, thread: _Thread, space: str, kind: str, at: int, count: int) -> tuple[Any, ...]:
        if at % (_SIZES[kind] * count):
            raise PtxError(f"misaligned: {count} {kind} at {at:#x}")
        if kind not in ("f32", "u32", "b32"):  # what no kernel writes, or one thread alone
            wide = {"f64": np.float64}.get(kind, f"u{_SIZES[kind]}")
            raw = self._bytes(at, _SIZES[kind] * count).view(wide)
            return tuple(raw) if kind == "f64" else tuple(map(int, raw))
        if space == "shared":
            words = [self._shared(thread, at + 4 * k) for k in range(count)]
        else:
            words = [self._global(thread, at + 4 * k) for k in range(count)]
        return tuple(map(flt, words)) if kind == "f32" else tuple(words)

    def _shared(self, thread: _Thread, at: int) -> int:
        if not 0 <= at < 4 * thread.block.shared.size:
            raise PtxError(f"beyond shared memory: {at}")
        thread.block.touch(thread, at // 4, writes=False)
        return int(thread.block.shared[at // 4])

    def _global(self, thread: _Thread, at: int) -> int:
        word, writer, passed = thread.block.buffer.get(at, (0, None, thread.block.passed))
        if writer is thread or passed < thread.block.passed:
            return word
        if at not in thread.kept:
            self.word(at)
            for near in range(at & ~31, (at & ~31) + 32, 4):
                try:
                    thread.kept[near] = self.word(near)
                except PtxError:  # beyond the array's end
                    continue
        return thread.kept[at]

    def store(self, thread: _Thread, space: str, kind: str, at: int, values: Any) -> None:
        if at % (_SIZES[kind] * len(values)):
            raise PtxError(f"misaligned: {len(values)} {kind} at {at:#x}")
        if kind == "f64":
            self._bytes(at, 8 * len(values)).view(np.float64)[:] = values
            return
        block = thread.block
        for k, value in enumerate(values):
            here, word = at + 4 * k, bits(value) if kind == "f32" else value & M32
            if space == "shared":
                if not 0 <= here < 4 * block.shared.size:
                    raise PtxError(f"beyond shared memory: {here}")
                block.touch(thread, here // 4, writes=True)
                block.shared[here // 4] = word
            else:
                self._bytes(here, 4)
                block.buffer.pop(here, None)
                block.buffer[here] = word, thread, block.passed
                thread.kept[here] = word

    def arrive(self, thread: _Thread, at: int, release: bool) -> None:
        block = thread.block
        if release:
            self.let_go(block, lambda writer, when: writer is thread or when < block.passed)
        self._put(at, self.word(at) + 1)

    def let_go(self, block: _Block, which: Callable[[Any, int], bool]) -> None:
        for at, (word, writer, when) in list(block.buffer.items()):
            if which(writer, when):
                self._put(at, word)
                del block.buffer[at]

    def leak(self, blocks: list[_Block]) -> None:
        """Chance lets one store go."""
        block = self.random.choice(blocks)
        if block.buffer and self.random.random() < 0.02:
            at = self.random.choice(list(block.buffer))
            self._put(at, block.buffer.pop(at)[0])


# ---- tensor cores


def cut_off(total: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Sums whose terms were aligned to the largest one, with two bits more than float32 has."""
    unit = np.ldexp(1.0, np.frexp(np.maximum(largest, 1e-300))[1] - 26)
    kept = np.trunc(total / unit) * unit
    near = kept.astype(F32)
    return np.where(np.abs(near) > np.abs(kept), np.nextafter(near, F32(0)), near)


def multiplied(kind: str, lanes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """c + a b for the fragments of 32 lanes (PTX ISA, "Matrix Fragments for mma")."""
    deep = 8 if kind == "tf32" else 16
    a, b, c = np.zeros((16, deep)), np.zeros((deep, 8)), np.zeros((16, 8))
    for lane, (_, a_, b_, c_) in enumerate(lanes):
        g, q = divmod(lane, 4)
        for i in range(4):
            c[g + 8 * (i // 2), 2 * q + i % 2] = c_[i]
            if kind == "tf32":
                a[g + 8 * (i % 2), q + 4 * (i // 2)] = flt(a_[i] & 0xFFFFE000)
            else:
                k = 2 * q + 8 * (i // 2)
                a[g + 8 * (i % 2), k : k + 2] = flt(a_[i] << 16), flt(a_[i] & 0xFFFF0000)
        for i in range(2):
            if kind == "tf32":
                b[q + 4 * i, g] = flt(b_[i] & 0xFFFFE000)
            else:
                k = 2 * q + 8 * i
                b[k : k + 2, g] = flt(b_[i] << 16), flt(b_[i] & 0xFFFF0000)
    largest = np.maximum(np.abs(c), np.abs(a[:, :, None] * b).max(axis=1))
    out = cut_off(c + a @ b, largest)
    return [
        tuple(out[g + 8 * (i // 2), 2 * q + i % 2] for i in range(4))
        for g in range(8)
        for q in range(4)
    ]


# ---- a launch


def run(
    code: Callable[..., Iterator[Any]], kernel: Kernel, grid: Any, given: Sequence[Any], seed: int
) -> None:
    """Run all threads, in an order drawn by lot."""
    memory, blocks, ready = _Memory(seed), [], []
    params = [
        memory.place(x) if isinstance(x, np.ndarray) else x if isinstance(x, np.floating)
        else int(x) & M64
        for x in given
    ]  # fmt: skip
    for y, x in np.ndindex(grid[1], grid[0]):
        block = _Block(-(-kernel.shared // 4))
        blocks.append(block)
        for tid in range(kernel.threads):
            thread = _Thread(block, tid, (x, y), kernel.threads, grid, params)
            thread.run = code(thread, memory)
            block.threads.append(thread)
            ready.append((thread, None))
    live, looks = len(ready), 0
    while ready:
        memory.leak(blocks)
        k = memory.random.randrange(len(ready))
        ready[k], ready[-1] = ready[-1], ready[k]
        thread, value = ready.pop()
        try:
            asks, *more = thread.run.send(value)
        except StopIteration:
            live -= 1
            continue
        block, looks = thread.block, looks + 1
        if looks > 300_000:
            raise PtxError("threads wait for ever: for an arrival")
        if asks in ("acquire", "relaxed", "volatile"):
            if asks == "acquire":
                thread.kept.clear()
                block.acquired = True
            ready.append((thread, memory.word(more[0])))
        elif asks == "bar":
            block.waiting.append(thread)
            if len(block.waiting) == kernel.threads:
                looks, block.passed = 0, block.passed + 1
                for other in block.waiting:
                    if block.acquired:
                        other.kept.clear()
                    ready.append((other, None))
                block.waiting, block.acquired = [], False
        else:
            warp = block.warps.setdefault(thread.tid // 32, {})
            warp[thread.tid % 32] = thread, (asks, *more)
            if len(warp) == 32:
                lanes = [warp[lane][1] for lane in range(32)]
                if len({lane[0] for lane in lanes}) > 1:
                    raise PtxError("lanes of a warp at different instructions")
                parts = multiplied(asks, lanes)
                ready += [(warp[lane][0], parts[lane]) for lane in range(32)]
                warp.clear()
    if live:
        raise PtxError(f"{live} threads wait for ever")
    for block in blocks:
        memory.let_go(block, lambda writer, when: True)


class PtxGpu(EmulatedGpu):
    """Takes the place of a GPU for the engine: kernels are compiled, and their PTX interpreted.

    edit  from a PTX to the one that is run in its place: to plant faults
    """

    texts: ClassVar[dict[Any, str]] = {}
    codes: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, device: DeviceLimits, seed: int = 0, edit: Callable[[str], str] = lambda text: text
    ) -> None:
        super().__init__(device, seed)
        self.edit = edit

    def launch(self, kernel: Kernel, grid: tuple[int, int], arguments: Sequence[Any]) -> None:
        self.seed += 1
        self.launched.append(kernel.name)
        key = kernel, arguments[0].dtype
        if key not in self.texts:
            self.texts[key] = build.ptx(kernel, arguments[0].dtype, (9, 0))
        text = self.edit(self.texts[key])
        if text not in self.codes:
            self.codes[text] = translated(text)
        with np.errstate(all="ignore"):
            run(self.codes[text], kernel, grid, arguments, self.seed)
