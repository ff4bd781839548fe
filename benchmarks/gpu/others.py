"""The device itself, what a launch costs, compilation, training, and the sanitizer."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from numba_rnn import cells, use_backend
from numba_rnn.kernels.cuda import build, gates, persistent, tiling
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.cuda.kernel import DeviceLimits
from numba_rnn.kernels.cuda.pass_arrays import PassArrays
from numba_rnn.kernels.step_options import NO_OPTIONS

from . import correctness, speed
from .machine import Absent, Machine, Recorder

ROOT = Path(__file__).resolve().parents[2]

# ---- environment


def environment(machine: Machine, item: str) -> dict[str, Any]:
    """Versions; the device; which engine runs."""
    if item == "versions":
        return _versions(machine)
    if item == "device":
        return _device(machine)
    from numba_rnn import explain

    with use_backend("cuda", strict=True):
        found = explain()
    lines = str(found).splitlines()
    return {"text": [line for line in lines if not line.startswith("cache")]}


def _versions(machine: Machine) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in ("numba-rnn", "numpy", "numba", "numba-cuda", "llvmlite", "cuda-core", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if not machine.emulated:
        import cupy

        runtime = cupy.cuda.runtime
        found["cupy"] = cupy.__version__
        found["runtime"], found["driver"] = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    try:
        torch = machine.torch()
        found["cudnn"] = torch.backends.cudnn.version()
        found["torch's CUDA"] = torch.version.cuda
    except Absent as absent:
        found["torch's CUDA"] = str(absent)
    return found


def _device(machine: Machine) -> dict[str, Any]:
    gpu = machine.gpu
    found = {
        "device": gpu.describe(),
        "multiprocessors": gpu.device.multiprocessors,
        "shared_bytes_a_block": gpu.device.shared,
        "host_processors": os.cpu_count(),
    }
    if not machine.emulated:
        found["capability"] = ".".join(map(str, gpu.capability))
        try:
            ours = gpu.xp.cuda.get_current_stream().ptr
            theirs = machine.torch().cuda.current_stream().cuda_stream
            found["one_stream_with_torch"] = ours == theirs
        except Absent:
            pass
    return found


# ---- launch


def launch(machine: Machine, item: str) -> dict[str, Any]:
    """The cost of a gate kernel, a product, and both, one after the other; or of compiling."""
    if item.startswith("compile"):
        return _compiling(machine, item)
    engine, (N, H) = machine.engine(), (2, 8) if machine.tiny else (64, 512)
    xp, cell, random = engine.xp, cells.get("lstm"), np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return engine.to_device(random.standard_normal(shape).astype(np.float32))

    h, Wh, early = array(N, H), array(H, 4 * H), array(N, 4 * H)
    arrays = PassArrays(cell, NO_OPTIONS, xp, (N, 1, H), np.dtype(np.float32))
    arrays.add(
        x_proj=array(1, N, 4 * H), early=early, late=array(N, 0), b=array(4 * H),
        states=array(2, 2, N, H), saved=array(1, 4, N, H), hs=array(N, 1, H),
    )  # fmt: skip
    gate_step = engine._gates("forward_gates", arrays)

    def gate() -> None:
        gate_step(0)

    def product() -> None:
        xp.matmul(h, Wh, out=early)

    def both() -> None:
        product()
        gate()

    call = {"gate kernel": gate, "product": product, "product and gate kernel": both}[item]
    return {"N": N, "H": H, **machine.cost(call)}


def _compiling(machine: Machine, item: str) -> dict[str, Any]:
    """Seconds to compile a kernel, and to find it on disk."""
    cell, device = cells.get("lstm"), DeviceLimits(132, 227 * 1024)
    kernel = gates.kernel(cell, "forward_gates", 4, 128)
    if "persistent" in item:
        plan, _ = tiling.plan(cell, 32, 256, True, "float32", device)
        assert plan is not None
        kernel = persistent.kernel(cell, plan.tiling, plan.tiles)
    capability = (9, 0) if machine.emulated else machine.gpu.capability
    found = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, NUMBA_CACHE_DIR=folder),
    ):
        for when in ("cold_s", "from_disk_s"):
            start = time.perf_counter()
            binary = build.binary(kernel, np.float32, capability)
            found[when] = time.perf_counter() - start
    return {**found, "bytes": len(binary.code), "entry": binary.entry}


# ---- compilation of all


def wanted_kernels(device: DeviceLimits, cell: str | None, precision: str | None) -> list[Any]:
    """The kernels, each with its dtype, that correctness and speed need on a device."""
    recorder = Recorder(device)
    machine = Machine(CudaEngine(recorder))
    with np.errstate(all="ignore"):
        for item in correctness.items(cell, precision):
            kind, number, name = item.split("/")
            if kind in correctness.LAYOUTS:
                for engine, (N, _, _, H), _ in correctness.cases(machine, kind, number, name):
                    _touch(engine, name, N, H, "float64" if number == "float64" else "float32")
        for item in speed.items(cell, precision):
            name, (_, N, H), number = speed.parsed(item)
            _touch(machine.engine(number), name, N, H, "float32")
    return list(recorder.found)


def _touch(engine: CudaEngine, name: str, N: int, H: int, dtype: str) -> None:
    """Run forward and backward for one step, for the kernels' sake: they do not depend on T, D."""
    cell = cells.get(name)

    def states() -> Any:
        return tuple(np.zeros((N, H), dtype) for _ in cell.states)

    params = tuple(np.zeros(shape, dtype) for shape in cell.shapes(1, H).values())
    hs, _, saved = engine.forward(cell, np.zeros((N, 1, 1), dtype), states(), params)
    engine.backward(cell, np.zeros_like(hs), states(), saved)


def compile_share(
    share: str, device: str, cell: str | None, precision: str | None
) -> dict[str, Any]:
    """Compile every n-th kernel: ``share`` is k/n, ``device`` has four numbers of the device."""
    k, n = map(int, share.split("/"))
    multiprocessors, shared, major, minor = map(int, device.split(","))
    wanted = wanted_kernels(DeviceLimits(multiprocessors, shared), cell, precision)
    seconds, failed = {}, {}
    for kernel, dtype in wanted[k::n]:
        start = time.perf_counter()
        try:
            build.binary(kernel, dtype, (major, minor))
        except Exception as error:
            failed[f"{kernel.name} {dtype}"] = f"{type(error).__name__}: {str(error)[:300]}"
        seconds[f"{kernel.name} {dtype}"] = time.perf_counter() - start
    slowest = max(seconds, key=seconds.__getitem__, default=None)
    return {
        "kernels": len(wanted), "compiled": len(wanted[k::n]) - len(failed), "failed": failed,
        "slowest": [slowest, seconds.get(slowest or "")],
    }  # fmt: skip


def compile_all(
    machine: Machine, item: str, cell: str | None = None, precision: str | None = None
) -> dict[str, Any]:
    """Compile on all processors; what is not ready in time is compiled where it is needed."""
    start, gpu = time.perf_counter(), machine.gpu
    if machine.emulated:
        wanted = wanted_kernels(gpu.device, "rnn", "bfloat16")
        return {"kernels": len(wanted), "note": "listed only, in emulation"}
    count = max(1, min(16, os.cpu_count() or 1))
    numbers = gpu.device.multiprocessors, gpu.device.shared, *gpu.capability
    command = [
        sys.executable, "-m", "benchmarks.gpu", f"--device={','.join(map(str, numbers))}",
        *([f"--cell={cell}"] if cell else []), *([f"--precision={precision}"] if precision else []),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, str(k)) for k in range(count)]
        children = []
        for k, output in enumerate(outputs):
            with open(output, "w", encoding="utf-8") as file:
                children.append(
                    subprocess.Popen([*command, f"--share={k}/{count}"], stdout=file, cwd=ROOT)
                )
        for child in children:
            try:
                child.wait(timeout=max(0.1, 150 - (time.perf_counter() - start)))
            except subprocess.TimeoutExpired:
                child.kill()
        answers = [_last_json(output.read_text(encoding="utf-8")) for output in outputs]
    known = [answer for answer in answers if answer]
    found: dict[str, Any] = {
        "processes": count,
        "unfinished": count - len(known),
        "kernels": max((answer["kernels"] for answer in known), default=None),
        "compiled": sum(answer["compiled"] for answer in known),
        "wall_s": time.perf_counter() - start,
        "slowest": max((answer["slowest"] for answer in known), key=_seconds, default=None),
    }
    refused = {name: why for answer in known for name, why in answer["failed"].items()}
    if refused:
        found["wrong"] = f"{len(refused)} kernels do not compile: {json.dumps(refused)[:1500]}"
    elif not known:
        found["wrong"] = "no process that compiles came to its end"
    return found


def _seconds(pair: list[Any]) -> float:
    return pair[1] or 0.0


def _last_json(text: str) -> Any:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    return None


# ---- training


def training(machine: Machine, item: str) -> dict[str, Any]:
    """The losses of a language model on the GPU and on the CPU, and tokens a second."""
    from numba_rnn.text import Vocabulary, builtin_text

    steps, batch, time_size, hidden = (4, 2, 3, 8) if machine.tiny else (200, 32, 64, 256)
    text = builtin_text()[: 4000 if machine.tiny else None]
    tokens = Vocabulary.of(text, "char").encode(text)
    places, size = (
        sorted({min(n, steps) for n in (1, 10, 50, 200)}),
        (steps, batch, time_size, hidden),
    )
    losses, speeds = {}, {}
    other = "numpy" if machine.tiny else "numba"
    for engine in ("cuda", other):
        with use_backend(engine, strict=True):
            losses[engine], speeds[engine] = _train(machine, tokens, *size)
    off = [abs(a / b - 1) for a, b in zip(losses["cuda"], losses[other], strict=True)]
    found = {
        "iterations": steps, "batch": batch, "time": time_size, "hidden": hidden,
        "off_until": {str(n): max(off[:n]) for n in places},
        "loss": {str(n): losses["cuda"][n - 1] for n in places},
        "tokens_per_second": speeds,
    }  # fmt: skip
    if not max(off) < 0.05:
        found["wrong"] = f"the losses part by {max(off):.1e}"
    return found


def _train(
    machine: Machine, tokens: Any, steps: int, batch: int, time_size: int, hidden: int
) -> tuple[list[float], float]:
    from numba_rnn.models import Rnnlm
    from numba_rnn.training import Adam, TruncatedBPTT, clip_grads

    model = Rnnlm(int(tokens.max()) + 1, hidden // 2, hidden, cell="lstm", dropout=0.0, rng=0)
    adam, blocks = Adam(lr=0.002), TruncatedBPTT(tokens, batch, time_size)
    losses: list[Any] = []
    first, start = min(10, steps - 1), 0.0  # the first ones compile
    while len(losses) < steps:
        blocks.rewind()
        model.reset_state()
        for xs, ts in blocks:
            if len(losses) == first:
                machine.synchronise()
                start = time.perf_counter()
            losses.append(model.forward(xs, ts))
            model.backward()
            clip_grads(model.grads, max_norm=5.0)
            adam.update(model.params, model.grads)
            if len(losses) == steps:
                break
    machine.synchronise()
    took = time.perf_counter() - start
    return [float(loss) for loss in losses], (steps - first) * batch * time_size / took


# ---- sanitizer


def sanitizer(machine: Machine, tool: str) -> dict[str, Any]:
    """compute-sanitizer over the tiny correctness items, in a process of their own."""
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if program is None or machine.emulated:
        raise Absent("compute-sanitizer is not installed" if program is None else "no GPU")
    ours = [item for item in correctness.TINY if item.split("/")[0] in correctness.LAYOUTS]
    ours += ["updates/float32/Adam", "rows/float32/add"]
    done = subprocess.run(
        [
            program, f"--tool={tool}", "--target-processes=all", "--print-limit=20",
            *(["--report-api-errors=no"] if tool == "memcheck" else []),  # libraries try things
            sys.executable, "-m", "benchmarks.gpu", "--child=correctness", "--tiny",
        ],
        input=json.dumps(ours),
        cwd=ROOT, text=True, capture_output=True, timeout=75, check=False,
    )  # fmt: skip
    text = (done.stdout + done.stderr).splitlines()
    says = [line for line in text if line.startswith("=========")]
    summary = [line for line in says if "SUMMARY" in line]
    answered = sum('"record"' in line for line in text)
    found: dict[str, Any] = {"items": answered, "summary": summary[-1] if summary else None}
    wrong = [line for line in text if '"failed"' in line or '"wrong"' in line]
    complete = answered == len(ours) and summary
    if wrong or not complete or not re.search(r"\b0 errors", summary[-1]):
        found["wrong"] = "\n".join([*wrong, *says][:15]) or "\n".join(text[-8:])
    return found
