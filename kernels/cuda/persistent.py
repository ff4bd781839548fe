"""Persistent kernels: one launch for all steps, the recurrent weights staying on chip.

A block keeps the weights of ``units`` hidden units in shared memory, as the tensor cores want
them, and computes those units for a group of the batch's rows. After a step it writes what it
found into ``exchange``, from which all blocks of the group read it at the next step: forward the
hidden state, backward the gradients of the recurrent gates. Groups know nothing of each other.

    grid: x = units / ``units`` a block, y = group of rows

          units ->  block 0     block 1     block 2            a step of block (x, y), for 16 rows
    group 0         (0, 0)      (1, 0)      (2, 0)                or a multiple of them at a time
      rows             |___________|___________|
       |                 exchange, counters[0]                 1 load what needs no other block
    group 1         (0, 1)      (1, 1)      (2, 1)             2 wait until all have arrived
                       |___________|___________|               3 product: exchange x weights, the
                         exchange, counters[1]                   contraction shared by the warps
                                                               4 add the warps' parts, the cell's
                                                                 own arithmetic, write, arrive

The product is, for m16n8k8 or m16n8k16 of the tensor cores, (rows of the batch) x (columns):
forward a unit has a column for each recurrent gate, contracted over h; backward one column,
contracted over the gradients of all recurrent gates. ``exchange`` is (2, groups x rows, stride),
its two halves written and read in turn, so one meeting a step suffices; rows and columns that
fill up to whole tiles stay 0. A group of one block keeps it in shared memory and meets nobody.

Shared memory, in float32:   weights | the warps' parts of the product | exchange of a lone block

    weights   for each 8 columns, for each 16 of the contraction, for each lane 4 g + q:
              column g, contraction 4 q ... 4 q + 3; as bfloat16 in half the room
    partials  (warps along the contraction, rows, columns and some to spare)

In what order the contraction is added up does not matter, as long as both factors keep to it: a
lane's 16 bytes, places 4 q ... 4 q + 3 of sixteen, serve as places q and q + 4 of an eight, twice.

float32 accuracy comes from TF32 products of both factors' rounded values and of what the rounding
left off (3xTF32). For precision "tf32" the weights are rounded once, on their way to shared memory.
"""

from functools import cache

from ..cells import Cell
from ..layout import layout
from .kernel import Kernel
from .step_codegen import StepCode
from .tiling import Tiling


@cache
def kernel(
    cell: Cell,
    tiling: Tiling,
    tiles: int,
    features: frozenset[str] = frozenset(),
    polls: int = 0,
) -> Kernel:
    """The kernel for groups of tiles * rows rows.

    polls  0, or of a debug build: after so many looks at the counter a block waits no more, and
           ``report`` has its step + 1, the arrivals that it counted, and how many it waited for
    """
    name = f"{cell.name}_persistent_" + ("forward" if tiling.forward else "backward")
    pairs = [
        _ThreadItem(cell, tiling, tiles, k, features)
        for k in range(-(-tiling.units * tiling.rows // tiling.threads))
    ]
    lines = _lines(pairs, tiling, tiles, polls)
    functions = {name: f for pair in pairs for name, f in pair.step.functions.items()}
    return Kernel(
        name, lines, tiling.threads, functions,
        shared=tiling.shared(tiles), cooperative=not tiling.single_block,
    )  # fmt: skip


def _indented(lines: list[str], by: int = 1) -> list[str]:
    return ["    " * by + line for line in lines]


def _lines(steps: "list[_ThreadItem]", c: Tiling, tiles: int, polls: int) -> list[str]:
    loads = [line for step in steps for line in step.loads()]
    wait = [f"while load_acquire(counters, group * 32) < {c.blocks} * step:", "    pass"]
    if polls:
        wait = [
            "seen = load_acquire(counters, group * 32)",
            f"while seen < {c.blocks} * step and looks < {polls}:",
            "    seen, looks = load_acquire(counters, group * 32), looks + 1",
            f"if looks == {polls}:",
            f"    looks, place = looks + 1, 4 * (group * {c.blocks} + block)",
            "    report[place], report[place + 1] = step + 1, seen",
            f"    report[place + 2] = {c.blocks} * step",
        ]
    meet = ["if tile == 0:", "    if thread == 0:", *_indented(wait, 2), "    cuda.syncthreads()"]
    arrive = [  # before what nobody waits for is written
        f"if thread == 0 and tile == {tiles - 1}:",
        "    red_release(counters, group * 32)",
    ]
    return [
        "thread, block, group = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.y",
        "lane, warp = thread % 32, thread // 32",
        "g, q = lane // 4, lane % 4",
        f"split_k, split_n = warp % {c.split_k}, warp // {c.split_k}",
        "memory, zero = shared_of(weights), ZERO",
        *(["looks = 0"] if polls else []),
        f"for i in range(thread * 4, {c.weights}, {4 * c.threads}):",
        f"    weight = load4(weights, block * {c.weights} + i)",
        f"    write(memory, i, {'numbers(tf32(weight))' if c.precision == 'tf32' else 'weight'})",
        *(_single_block_start(c, tiles) if c.single_block else []),
        "cuda.syncthreads()",
        "for step in range(T):",
        f"    t = {'step' if c.forward else 'T - 1 - step'}",
        f"    for tile in range({tiles}):",
        f"        first = (group * {tiles} + tile) * {c.rows}",
        *_indented(loads, 2),
        *([] if c.single_block else _indented(meet, 2)),
        *_indented(_product(c, tiles), 2),
        "        cuda.syncthreads()",
        *_indented([line for step in steps for line in step.finish()], 2),
        "        cuda.syncthreads()",
        *([] if c.single_block else _indented(arrive, 2)),
        *_indented([line for step in steps for line in step.write()], 2),
    ]


def _single_block_start(c: Tiling, tiles: int) -> list[str]:
    """A lone block's exchange: what the host put into the first half."""
    words = c.rows * tiles * c.stride
    return [
        f"for i in range(thread * 4, {words}, {4 * c.threads}):",
        f"    write(memory, {c.weights + c.partials} + i, load4(exchange, group * {words} + i))",
    ]


# ---- the product


def _product(c: Tiling, tiles: int) -> list[str]:
    """partials <- exchange x weights, each warp its columns and its share of the contraction."""
    high, wide = c.rows // 16, c.columns // 8 // c.split_n
    each, half = c.chunks // c.split_k, f"cuda.gridDim.y * {tiles * c.rows * c.stride}"
    ahead = min(c.ahead, each)
    load, memory = ("load4", "memory") if c.single_block else ("load4_volatile", "exchange")
    rows = [f"g + {8 * i}" for i in range(2 * high)]
    if c.single_block:
        source = f"{c.weights + c.partials} + tile * {c.rows} * {c.stride}"
    else:  # rows beyond the last are read from there: 16 bytes that are loaded anyway
        source = f"(step % 2) * {half}"
        rows = [f"(first + {row} if first + {row} < N else N - 1)" for row in rows]

    def loads(mark: str, chunk: str) -> list[str]:
        return [
            f"{mark}{k}_{i} = {load}({memory}, source{i} + ({chunk} + {k}) * 16)"
            for k in range(ahead)
            for i in range(2 * high)
        ]

    lines = [f"source = {source} + 4 * q + split_k * {each * 16}"]
    lines += [f"source{i} = source + ({row}) * {c.stride}" for i, row in enumerate(rows)]
    lines += [
        f"{name}{i}_{j} = (zero, zero, zero, zero)"
        for i in range(high)
        for j in range(wide)
        for name in ("sum", "left", "right")[: c.sums]
    ]
    lines += loads("x", "0")
    body = []
    if each > ahead:  # the next ones are on their way meanwhile
        last = each - ahead
        body += [f"later = chunk + {ahead} if chunk < {last} else {last}", *loads("next", "later")]
    for k in range(ahead):
        body += _chunk(c, k, f"split_k * {each} + chunk + {k}")
    if each > ahead:
        body += [f"x{k}_{i} = next{k}_{i}" for k in range(ahead) for i in range(2 * high)]
        lines += [f"for chunk in range(0, {each}, {ahead}):", *_indented(body)]
    else:
        lines += ["chunk = 0", *body]
    width = c.part_stride
    lines.append(f"part = {c.weights} + (split_k * {c.rows} + g) * {width} + 8 * {wide} * split_n")
    for i in range(high):
        for j in range(wide):
            place = f"part + {i * 16 * width + j * 8} + 2 * q"
            small = " + (left{0}_{1}[{2}] + right{0}_{1}[{2}])" if c.sums == 3 else ""
            for n in (0, 2):
                pair = ", ".join(("sum{0}_{1}[{2}]" + small).format(i, j, k) for k in (n, n + 1))
                lines.append(f"write(memory, {place} + {n * 4 * width}, ({pair}))")
    return lines


def _chunk(c: Tiling, k: int, chunk: str) -> list[str]:
    """Add sixteen of the contraction to all sums."""
    rough = _chunk_bf16 if c.precision == "bfloat16" else _chunk_tf32
    words = 64 if c.precision == "bfloat16" else 128  # of 8 columns
    wide = c.columns // 8 // c.split_n
    lines = [
        f"place = (split_n * {wide * c.chunks} + {chunk}) * {words} + lane * {words // 32}",
    ]
    return lines + rough(c, k, [f"place + {j * c.chunks * words}" for j in range(wide)])


def _chunk_bf16(c: Tiling, k: int, places: list[str]) -> list[str]:
    high, lines = range(c.rows // 16), []
    for i in high:
        lines += [
            f"v, w = bfloat16(x{k}_{2 * i}), bfloat16(x{k}_{2 * i + 1})",
            f"a{i} = (v[0], w[0], v[1], w[1])",
        ]
    for j, place in enumerate(places):
        lines.append(f"weight = bits(load2(memory, {place}))")
        lines += [f"sum{i}_{j} = mma_bfloat16(a{i}, weight, sum{i}_{j})" for i in high]
    return lines


def _chunk_tf32(c: Tiling, k: int, places: list[str]) -> list[str]:
    exact = c.precision == "float32"
    high, lines = range(c.rows // 16), []
    for i in high:
        v, w = f"x{k}_{2 * i}", f"x{k}_{2 * i + 1}"
        for e in (0, 1):  # eights of the sixteen
            lines.append(f"a = ({v}[{2 * e}], {w}[{2 * e}], {v}[{2 * e + 1}], {w}[{2 * e + 1}])")
            lines.append(f"a{i}_{e} = {'tf32_bits' if exact else 'tf32'}(a)")
            if exact:
                lines.append(f"rest{i}_{e} = tf32_residual_bits(a, a{i}_{e})")
    for j, place in enumerate(places):
        lines.append(f"weight = load4(memory, {place})")
        lines.append(f"most = {'tf32_bits' if exact else 'bits'}(weight)")
        if exact:
            lines.append("less = tf32_residual_bits(weight, most)")
        for e in (0, 1):
            most, less = (f"({part}[{2 * e}], {part}[{2 * e + 1}])" for part in ("most", "less"))
            for i in high:
                a, at = f"a{i}_{e}", f"{i}_{j}"
                lines.append(f"sum{at} = mma_tf32({a}, {most}, sum{at})")
                if exact:
                    lines.append(f"left{at} = mma_tf32(rest{i}_{e}, {most}, left{at})")
                    lines.append(f"right{at} = mma_tf32({a}, {less}, right{at})")
    return lines


# ---- a row's unit: what a thread does between two products


class _ThreadItem:
    """The k-th row and unit of a thread."""

    def __init__(self, cell: Cell, c: Tiling, tiles: int, k: int, features: frozenset[str]) -> None:
        self.c, self.tiles, self.k = c, tiles, k
        self.step, self.layout = StepCode(cell, features, k), layout(cell)

    def loads(self) -> list[str]:
        """Before the product; rows and units beyond the last do as the last one does."""
        c, e, step = self.c, self.step.suffix, self.step
        return [
            f"pair = thread + {self.k * c.threads}",
            f"row{e}, column{e} = pair // {c.units}, pair % {c.units}",
            f"n{e}, j{e} = first + row{e}, block * {c.units} + column{e}",
            f"inside{e} = row{e} < {c.rows} and n{e} < N and j{e} < H",
            f"n{e}, j{e} = n{e} if n{e} < N else N - 1, j{e} if j{e} < H else H - 1",
            f"row{e} = row{e} if row{e} < {c.rows} else {c.rows - 1}",
            *step.offsets(),
            *(step.load_inputs() if c.forward else [*step.load_saved(), *step.load_grads()]),
        ]

    def finish(self) -> list[str]:
        """After the product: add up, compute, hand over to the next step."""
        c, e, step = self.c, self.step.suffix, self.step
        width = c.part_stride
        lines = [f"part = {c.weights} + row{e} * {width} + column{e}"]
        for k in range(c.columns // c.units):
            terms = (
                f"load(memory, part + {a * c.rows * width + k * c.units})" for a in range(c.split_k)
            )
            lines.append(f"product{k} = {' + '.join(terms)}")
        lines += step.forward(lambda k: f"product{k}") if c.forward else step.backward("product0")
        return [*lines, f"if inside{e}:", *_indented(self._hand_over())]

    def write(self) -> list[str]:
        """Lines: store the results that no other block waits for."""
        step = self.step
        store = step.store_forward() if self.c.forward else step.store_backward()
        return [f"if inside{step.suffix}:", *_indented(store)]

    def _hand_over(self) -> list[str]:
        """Lines: store the numbers that the next step multiplies."""
        c, e = self.c, self.step.suffix
        if c.single_block:
            memory, start = "memory", f"{c.weights + c.partials} + (tile * {c.rows} + row{e})"
        else:
            memory = "exchange"
            start = f"(((step + 1) % 2) * cuda.gridDim.y * {self.tiles * c.rows} + n{e})"
        if c.forward:
            number = self.step.times_recurrent_mask(f"new{e}[0]")
            return [f"store({number}, {memory}, {start} * {c.stride} + j{e})"]
        return [
            f"store(dgates{e}[{g}], {memory}, {start} * {c.stride} + {k} * H + j{e})"
            for k, g in enumerate(self.layout.h_order)
        ]
