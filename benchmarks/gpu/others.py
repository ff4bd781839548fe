"""The device itself, what a launch costs, compilation, a profile, training, the sanitizer."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from numba_rnn import cells, use_backend
from numba_rnn.kernels.cuda import build, gates, persistent, tiling
from numba_rnn.kernels.cuda.kernel import DeviceLimits
from numba_rnn.kernels.cuda.pass_arrays import PassArrays
from numba_rnn.kernels.step_options import NO_OPTIONS

from . import correctness, prepared, speed
from .machine import Absent, Machine

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
    """The cost of a gate kernel, a product, and both, one after the other."""
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


# ---- the kernels that the sections need


def wanted(machine: Machine) -> None:
    """Run, on a recorder, what launches the kernels of all sections but the other cells'."""
    tiny = Machine(machine.base, emulated=True, tiny=True)
    for place, items in ((machine, correctness.items()), (tiny, correctness.TINY)):
        for item in items:
            kind, number, name = item.split("/")
            if kind in correctness.LAYOUTS:
                dtype = "float64" if number == "float64" else "float32"
                for engine, (N, _, _, H), _ in correctness.cases(place, kind, number, name):
                    prepared.touch(engine, name, N, H, dtype)
            elif kind == "gradients":
                prepared.touch(machine.engine("float64"), name, 2, 3, "float64")
            elif kind != "again":  # which has the sizes of others
                correctness.check(place, item)
    for item in speed.items():
        name, (_, N, H), number = speed.parsed(item)
        prepared.touch(machine.engine(number), name, N, H, "float32")
    prepared.touch(machine.engine(), speed.PEEPHOLE_LSTM, 32, 256, "float32")
    for H in (8, 512):
        prepared.touch(machine.engine(), "lstm", 64, H, "float32")


# ---- what compiles here


def compiling(machine: Machine, item: str) -> dict[str, Any]:
    """Seconds to make PTX of a kernel, and a cubin of that in one of three ways."""
    cell, device = cells.get("lstm"), DeviceLimits(132, 227 * 1024)
    kernel = gates.kernel(cell, "forward_gates", 4, 128)
    if item.endswith("persistent kernel"):
        plan, _ = tiling.plan(cell, 32, 256, True, "float32", device)
        assert plan is not None
        kernel = persistent.kernel(cell, plan.tiling, plan.tiles)
    capability = (9, 0) if machine.emulated else machine.gpu.capability
    found: dict[str, Any] = {"ptxas": shutil.which("ptxas") or "not on the path"}
    start = time.perf_counter()
    try:
        text = build.ptx(kernel, np.float32, capability)
    except Exception as error:
        raise Absent(prepared.compiler_says(error)) from error
    found["ptx_s"] = time.perf_counter() - start
    start = time.perf_counter()
    code, log = build.link(text, capability)
    found["cubin_s"], found["bytes"] = time.perf_counter() - start, len(code)
    found["says"] = [line for line in log.splitlines() if "egisters" in line][:1]
    if not machine.emulated:
        start = time.perf_counter()
        machine.gpu._load(build.Binary(text.encode(), build.entry_of(text)))
        found["driver_s"] = time.perf_counter() - start
    return found


# ---- a profile


def profile(machine: Machine, way: str, folder: Path | None = None) -> dict[str, Any]:
    """Nsight Compute on one launch of a persistent kernel."""
    program = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if program is None or machine.emulated or folder is None:
        raise Absent("ncu is not installed" if program is None else "no GPU, or nothing prepared")
    done = subprocess.run(
        [
            program, "--clock-control", "none", "--launch-skip", "2", "--launch-count", "1",
            "--kernel-name", "regex:persistent", "--set", "full",
            sys.executable, "-m", "benchmarks.gpu.first", str(folder),
            f"time/1024,16,768/bfloat16/{way}",
        ],
        cwd=ROOT, text=True, capture_output=True, timeout=40, check=False,
    )  # fmt: skip
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not any("Duration" in line for line in lines):
        raise RuntimeError(f"ncu ended with {done.returncode}: {' '.join(lines[-5:])[-500:]}")
    return {"text": [line for line in lines if not line.startswith(("==", "---"))]}


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


def sanitizer(machine: Machine, tool: str, folder: Path | None = None) -> dict[str, Any]:
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
            *([f"--prepared={folder}"] if folder else []),
        ],
        input=json.dumps(ours),
        cwd=ROOT, text=True, capture_output=True, timeout=45, check=False,
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
