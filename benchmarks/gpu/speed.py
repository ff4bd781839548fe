"""Our layers against torch.nn on cuDNN, and against other ways to run a recurrent network there.

An item of ``speed`` is CELL / T,N,H / PRECISION, with as many inputs as units. Both sides have the
same weights and data, and what they give is compared first. "forward" keeps what backward needs;
"both" is forward and backward, gradients of inputs and weights. Ours takes (N, T, D) as it always
does, torch's module (T, N, D), which suits it best. In tf32 and bfloat16 our inputs, parameters
and results stay float32; torch's are float32 in tf32, all 16 bits wide in bfloat16, where float16
is tried as well and the faster one counts. Each is measured in turn, ours, theirs, ours ..., by the
device's clock, on one stream.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks import peers
from numba_rnn import TimeRecurrent, cells, use_backend
from numba_rnn.kernels.cells import Cell
from numba_rnn.kernels.functions import dsigmoid, dtanh, sigmoid, tanh

from .machine import Absent, Call, Machine, forced, step_by_step

CELLS = ("lstm", "gru_reset_after", "rnn")
PRECISIONS = ("float32", "tf32", "bfloat16")
# T, N, H, the telling ones first
SIZES = [
    (128, 32, 256), (256, 64, 512), (35, 20, 650), (1024, 16, 768), (512, 64, 1024),
    (100, 128, 128), (1000, 1, 256),
]  # fmt: skip
TINY = ["lstm/3,2,8/float32", "gru_reset_after/2,2,8/bfloat16", "rnn/2,2,8/tf32"]
PEERS = ["a cell of one's own", "torch, eager loop", "torch, compiled step", "FlashRNN",
         "torch, compiled loop"]  # fmt: skip
ALLOWED = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 1e-1}  # between what both compute


def items(cell: str | None = None, precision: str | None = None) -> list[str]:
    """A row of the table each; one cell after the other, all precisions of a size together."""
    return [
        f"{name}/{','.join(map(str, sizes))}/{number}"
        for name in CELLS
        for sizes in (SIZES if name in ("lstm", cell) else [SIZES[0], SIZES[3]])
        for number in PRECISIONS
        if cell in (None, name) and precision in (None, number)
    ]


def parsed(item: str) -> tuple[str, tuple[int, int, int], str]:
    """The cell, (T, N, H) and the precision of an item."""
    cell, sizes, precision = item.split("/")
    T, N, H = map(int, sizes.split(","))
    return cell, (T, N, H), precision


@lru_cache(maxsize=1)
def _task(cell: str, T: int, N: int, H: int) -> peers.Task:
    return peers.task(cell, T, N, H, H)


def row(machine: Machine, item: str) -> dict[str, Any]:
    """A row of the table: microseconds a step."""
    cell, (T, N, H), precision = parsed(item)
    task = _task(cell, T, N, H)
    engine = machine.engine(precision)
    found: dict[str, Any] = {"cell": cell, "T": T, "N": N, "H": H, "precision": precision}
    with use_backend("cuda", strict=True, precision=precision):
        forward, both = ours(machine, task)
        calls = {"ours forward": forward, "ours both": both}
        found["layout"] = engine.execution(cells.get(cell), N, H, np.float32)
        persistent = any(how.startswith("persistent") for how in found["layout"].values())
        if precision == "float32" and persistent:
            calls |= {
                f"steps {name}": _stepwise(engine, call)
                for name, call in (("forward", forward), ("both", both))
            }
        theirs, notes = _theirs(machine, task, precision)
        for name, pair in theirs.items():
            calls[f"{name} forward"], calls[f"{name} both"] = pair
        if theirs:
            found["differences"] = {
                name: _differences(machine, task, both, pair[1]) for name, pair in theirs.items()
            }
        times = machine.medians(calls)
    per_step: dict[str, dict[str, float]] = {}
    for name, took in times.items():
        who, what = name.rsplit(" ", 1)
        per_step.setdefault(who, {})[what] = took / T
    found["us_per_step"] = per_step
    if theirs:
        best = min(theirs, key=lambda name: per_step[name]["both"])
        found["peer"] = best
        found["ratio"] = {w: per_step[best][w] / per_step["ours"][w] for w in ("forward", "both")}
        most = max(found["differences"][best].values())
        if not most <= ALLOWED[precision]:
            notes.append(f"{best} computes something else: off by {most:.1e}")
    if notes:
        found["notes"] = notes
    return found


# ---- ours


def ours(machine: Machine, task: peers.Task, cell: str | Cell | None = None) -> tuple[Call, Call]:
    """Forward; forward and backward, which returns hs, dxs, dWx, dWh."""
    layer = TimeRecurrent(*task.params, cell=cell or task.cell)
    xs, dhs = map(machine.base.to_device, (task.xs, task.dhs))

    def both() -> Any:
        hs = layer.forward(xs)
        return hs, layer.backward(dhs), *layer.grads[:2]

    return lambda: layer.forward(xs), both


def _stepwise(engine: Any, call: Call) -> Call:
    def run() -> Any:
        with forced(engine, step_by_step):
            return call()

    return run


# ---- torch.nn


def _theirs(
    machine: Machine, task: peers.Task, precision: str
) -> tuple[dict[str, tuple[Call, Call]], list[str]]:
    """Forward and both of torch.nn, by name of the numbers; and what did not work."""
    found: dict[str, tuple[Call, Call]] = {}
    notes: list[str] = []
    try:
        torch = machine.torch()
    except Absent as absent:
        return found, [str(absent)]
    allow_tf32(torch, precision != "float32")
    kinds = {"bfloat16": ["bfloat16", "float16"]}.get(precision, ["float32"])
    for kind in kinds:
        try:
            forward, both = torch_calls(torch, task, machine.torch_device, getattr(torch, kind))
            both()
            found["torch" if kind == "float32" else f"torch {kind}"] = forward, both
        except Exception as error:  # such as float16 on some devices
            notes.append(f"torch {kind}: {type(error).__name__}: {str(error)[:200]}")
    return found, notes


def allow_tf32(torch: Any, allowed: bool) -> None:
    """Products in TF32, or in float32 as it is."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def torch_calls(torch: Any, task: peers.Task, device: str, dtype: Any) -> tuple[Call, Call]:
    """A module of torch.nn: forward; forward and backward."""
    module = peers.torch_module(task).to(device, dtype)
    xs, dhs = (
        torch.from_numpy(array).to(device, dtype).transpose(0, 1).contiguous()
        for array in (task.xs, task.dhs)
    )
    xs.requires_grad_()

    def both() -> Any:
        xs.grad = None
        for param in module.parameters():
            param.grad = None
        hs = module(xs)[0]
        hs.backward(dhs)
        first, second, *_ = module.parameters()
        return hs, xs.grad, first.grad, second.grad

    return lambda: module(xs)[0], both


def _differences(machine: Machine, task: peers.Task, mine: Call, other: Call) -> dict[str, float]:
    """Of the hidden states, the inputs' gradient, the weights' gradients."""
    hs, dxs, dWx, dWh = map(machine.base.to_host, mine())
    # a gradient of gates that go by the complement has its sign, too
    gradient = peers.Task(task.cell, (dWx, dWh, np.zeros_like(task.params[2])), task.xs, task.dhs)
    dWx, dWh, _, _ = gradient.blocks(peers.TORCH_ORDER[task.cell])
    machine.synchronise()
    theirs = [array.detach().float().cpu().numpy() for array in other()]
    pairs = (hs.swapaxes(0, 1), theirs[0]), (dxs.swapaxes(0, 1), theirs[1])
    pairs = *pairs, (dWx, theirs[2]), (dWh, theirs[3])
    names = "hs", "dxs", "dWx", "dWh"
    return {name: _difference(*pair) for name, pair in zip(names, pairs, strict=True)}


def _difference(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


# ---- other ways, for the LSTM


def peer(machine: Machine, item: str) -> dict[str, Any]:
    """Microseconds a step of one of the peers, and of ours beside it."""
    sizes = (3, 2, 8) if machine.tiny else (128, 32, 256)
    task = _task("lstm", *sizes)
    precision = "bfloat16" if item == "FlashRNN" else "float32"
    with use_backend("cuda", strict=True, precision=precision):
        calls = dict(zip(("ours forward", "ours both"), ours(machine, task), strict=True))
        note, pair = _PEERS[item](machine, task)
        calls["peer forward"], calls["peer both"] = pair
        times = machine.medians(calls)
    per_step: dict[str, dict[str, float]] = {}
    for name, took in times.items():
        who, what = name.rsplit(" ", 1)
        per_step.setdefault(who, {})[what] = took / sizes[0]
    ratio = {what: per_step["peer"][what] / per_step["ours"][what] for what in ("forward", "both")}
    sizes_ = dict(zip("TNH", sizes, strict=True))
    return {**sizes_, "precision": precision, "us_per_step": per_step, "ratio": ratio, "note": note}


PEEPHOLE = 0.1


def _peephole_forward(gates, state):  # type: ignore[no-untyped-def]
    f, g, i, o = gates
    _, c = state
    f, g, i = sigmoid(f + PEEPHOLE * c), tanh(g), sigmoid(i + PEEPHOLE * c)
    c = f * c + g * i
    o = sigmoid(o + PEEPHOLE * c)
    return (o * tanh(c), c), (f, g, i, o)


def _peephole_backward(dstate, saved, state):  # type: ignore[no-untyped-def]
    dh, dc = dstate
    f, g, i, o = saved
    _, c_prev = state
    tanh_c = tanh(f * c_prev + g * i)
    do = dh * tanh_c * dsigmoid(o)
    dc = dc + dh * o * dtanh(tanh_c) + PEEPHOLE * do
    df, dg, di = dc * c_prev * dsigmoid(f), dc * i * dtanh(g), dc * g * dsigmoid(i)
    return (df, dg, di, do), (None, dc * f + PEEPHOLE * (df + di))


# gates that see the memory (Gers & Schmidhuber 2000), all with one fixed weight
PEEPHOLE_LSTM = Cell(
    name="peephole_lstm",
    gates=("f", "g", "i", "o"),
    states=("h", "c"),
    saved=("f", "g", "i", "o"),
    forward=_peephole_forward,
    backward=_peephole_backward,
)


def _own_cell(machine: Machine, task: peers.Task) -> tuple[str, tuple[Call, Call]]:
    """Its numbers are compared with the NumPy engine's; it counts as the peer."""
    forward, both = ours(machine, task, PEEPHOLE_LSTM)
    hs, dxs, *_ = map(machine.base.to_host, both())
    with use_backend("numpy"):
        layer = TimeRecurrent(*task.params, cell=PEEPHOLE_LSTM)
        off = _difference(hs, layer.forward(task.xs)), _difference(dxs, layer.backward(task.dhs))
    note = f"an LSTM with peepholes of a fixed weight, as a cell of ours; off by {max(off):.0e}"
    return note, (forward, both)


def _loop(torch: Any, step: Any) -> Any:
    def loop(xs: Any, Wx: Any, Wh: Any, b: Any) -> Any:
        h = c = torch.zeros(xs.shape[1], Wh.shape[0], device=xs.device)
        sides, hs = xs @ Wx + b, []
        for t in range(xs.shape[0]):
            h, c = step(sides[t], h, c, Wh)
            hs.append(h)
        return torch.stack(hs)

    return loop


def _step_of(torch: Any) -> Any:
    def step(side: Any, h: Any, c: Any, Wh: Any) -> Any:
        f, g, i, o = (side + h @ Wh).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    return step


def _torch_loop(compiled: str) -> Any:
    """A loop over the steps in torch: as it is, its step compiled, or all of it."""

    def make(machine: Machine, task: peers.Task) -> tuple[str, tuple[Call, Call]]:
        torch = machine.torch()
        if compiled and machine.emulated:
            raise Absent("torch.compile is not tried in emulation")
        allow_tf32(torch, False)
        step = _step_of(torch)
        run = _loop(torch, torch.compile(step) if compiled == "step" else step)
        run = torch.compile(run) if compiled == "loop" else run
        given = [
            torch.from_numpy(a).to(machine.torch_device)
            for a in (task.xs.swapaxes(0, 1).copy(), *task.params)
        ]
        dhs = torch.from_numpy(task.dhs.swapaxes(0, 1).copy()).to(machine.torch_device)
        for array in given:
            array.requires_grad_()

        def both() -> Any:
            for array in given:
                array.grad = None
            hs = run(*given)
            hs.backward(dhs)
            return hs

        hs = both().detach().cpu().numpy()
        mine = machine.base.to_host(ours(machine, task)[0]()).swapaxes(0, 1)
        off = _difference(mine, hs)
        if not off < ALLOWED["float32"]:
            raise ArithmeticError(f"it computes something else: off by {off:.1e}")
        return f"written by hand in torch; off by {off:.0e}", (lambda: run(*given), both)

    return make


def _flashrnn(machine: Machine, task: peers.Task) -> tuple[str, tuple[Call, Call]]:
    """Its fused kernels, or those that build; the product with the inputs is torch's.

    Its weights are in an order of its own and are not compared.
    """
    torch = machine.torch()
    try:
        from flashrnn import flashrnn
    except Exception as error:  # it builds when it is imported, too
        raise Absent(f"FlashRNN cannot be imported ({str(error)[:200]})") from error
    T, N, D, H = task.sizes

    def array(*shape: int) -> Any:
        made = torch.randn(*shape, device=machine.torch_device, dtype=torch.bfloat16)
        return (made / H**0.5).requires_grad_()

    xs, Wx, R, b = array(N, T, D), array(D, 4 * H), array(4, 1, H, H), array(4, 1, H)
    dhs, refused = array(N, T, H).detach(), []
    for backend in ("cuda_fused", "cuda", "triton_fused"):

        def forward(backend: str = backend) -> Any:
            sides = (xs @ Wx).reshape(N, T, 4, 1, H)
            states, _ = flashrnn(sides, R, b, function="lstm", backend=backend)
            return states[0].reshape(N, T, H)

        def both(forward: Call = forward) -> Any:
            for param in (xs, Wx, R, b):
                param.grad = None
            forward().backward(dhs)

        try:
            both()
        except Exception as error:
            refused.append(f"{backend}: {str(error)[:200]}")
            continue
        note = f"FlashRNN's {backend} in bfloat16; numbers not compared"
        return "; ".join([note, *refused]), (forward, both)
    raise Absent("; ".join(refused))


_PEERS = {
    "a cell of one's own": _own_cell,
    "torch, eager loop": _torch_loop(""),
    "torch, compiled step": _torch_loop("step"),
    "torch, compiled loop": _torch_loop("loop"),
    "FlashRNN": _flashrnn,
}


# ---- memory


def held(machine: Machine, item: str) -> dict[str, Any]:
    """MiB that forward leaves behind for backward, beside inputs, outputs and parameters."""
    who, precision = item.split("/")
    T, N, H = (3, 2, 8) if machine.tiny else (256, 64, 512)
    task = _task("lstm", T, N, H)
    found: dict[str, Any] = {"T": T, "N": N, "H": H}
    with use_backend("cuda", strict=True, precision=precision):
        if who == "ours":
            layer = TimeRecurrent(*task.params, cell=task.cell)
            xs = machine.base.to_device(task.xs)
            forward, forget = (lambda: layer.forward(xs)), layer.forget
        else:
            torch = machine.torch()
            allow_tf32(torch, precision != "float32")
            dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
            forward, _ = torch_calls(torch, task, machine.torch_device, dtype)
            forget = bool  # its graph goes with what forward gives
        if machine.emulated:
            forward()
            return {**found, "note": "not measured in emulation"}
        used = _pool_use(machine) if who == "ours" else torch.cuda.memory_allocated
        forward()  # for what is made once, such as workspaces
        forget()
        before = used()
        hs = forward()
        machine.synchronise()
        return {**found, "held_MiB": (used() - before - hs.nbytes) / 2**20}


def _pool_use(machine: Machine) -> Call:
    return machine.gpu.xp.get_default_memory_pool().used_bytes
