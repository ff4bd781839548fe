"""Streams of small layers beside RTNeural, ONNX Runtime and PyTorch.

    python -m benchmarks.streaming                          beside what is installed
    python -m benchmarks.streaming --rtneural RTNeural      and beside a clone of RTNeural

One sequence on one thread, a recurrent layer with one input and a dense layer with one output on
top, as an effect on sound has them; float32. Figures are nanoseconds a sample: medians of calls in
turn, ours, theirs, ours, theirs ... Outputs are compared first.

    step    Stream.step, a sample a call from Python (RTNeural too has a call for each sample)
    1 ...   Stream.step_many, that many samples a call from Python

RTNeural (github.com/jatinchowdhury18/RTNeural, with its submodule xsimd) is C++ whose sizes are
known to the compiler. It is compiled here by g++ -O3, each backend for this very processor and for
AVX2, of which the faster counts, and is called from a loop in C++: its figures have no part of
Python's calls in them, ours have. It knows no blocks: all rows of a size measure the same. ONNX
Runtime has its inputs, outputs and states bound beforehand.

A ratio is the time of the fastest of them over ours: above 1 ours is faster. Lost rows have a <.
"""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

SIZES = (8, 16, 24, 32, 40, 64)
BLOCKS = (1, 64, 512)
CELLS = {"lstm": "lstm", "gru": "gru_reset_after"}  # the GRU that all of them have
LONGEST = max(BLOCKS)


class Network(NamedTuple):
    """A layer and a dense layer on top, and what they read; W (H, 1), b (1,)."""

    task: Any
    W: Any
    b: Any


def network(cell: str, H: int) -> Network:
    """Random weights and samples."""
    import numpy as np

    from benchmarks import peers

    W = np.random.default_rng(1).uniform(-1, 1, (H, 1)).astype(np.float32) / np.float32(H) ** 0.5
    return Network(peers.task(CELLS[cell], LONGEST, 1, 1, H), W, np.full(1, 0.1, np.float32))


# ---- who takes part: for each what is to be timed, which returns the output of the samples


def ours(net: Network, block: int | str) -> Callable[[], Any]:
    import numpy as np

    from benchmarks.peers import our_layer
    from numba_rnn import Stream, TimeAffine

    stream = Stream([our_layer(net.task), TimeAffine(net.W, net.b)])
    if block == "step":
        x, step = net.task.xs[0, 0].copy(), stream.step
        return lambda: step(x)
    frames, many = net.task.xs[0, :block].copy(), stream.step_many
    out = np.empty_like(frames)
    return lambda: many(frames, out)


def onnx(net: Network, block: int | str) -> Callable[[], Any]:
    import numpy as np
    from onnx import helper, numpy_helper

    from benchmarks import peers

    T = 1 if block == "step" else int(block)
    model = peers.onnx_model(net.task, T, streaming=True)
    graph, rows = model.graph, np.array([T, len(net.W)])
    for name, array in (("rows", rows), ("top W", net.W), ("top b", net.b)):
        graph.initializer.append(numpy_helper.from_array(array, name))
    graph.node.append(helper.make_node("Reshape", ["y", "rows"], ["hs"]))
    graph.node.append(helper.make_node("Gemm", ["hs", "top W", "top b"], ["out"]))
    graph.output[0].CopyFrom(helper.make_tensor_value_info("out", 1, [T, 1]))
    call = peers.onnx_bound(peers.onnx_session(model, 1), net.task.xs[0, :T, None].copy())
    return lambda: call()[0]


def torch(net: Network, block: int | str) -> Callable[[], Any]:
    import torch

    from benchmarks.peers import torch_module

    layer, top = torch_module(net.task), torch.nn.Linear(*net.W.shape)
    with torch.no_grad():
        top.weight.copy_(torch.from_numpy(net.W.T.copy()))
        top.bias.copy_(torch.from_numpy(net.b))
    T = 1 if block == "step" else block
    xs, state = torch.from_numpy(net.task.xs[0, :T, None].copy()), None

    def call() -> Any:
        nonlocal state
        with torch.inference_mode():
            hs, state = layer(xs, state)
            return top(hs[:, 0])

    return call


class RTNeural:
    """RTNeural's backends, compiled."""

    FLAGS = "-std=c++17", "-O3", "-DNDEBUG", "-DRTNEURAL_NAMESPACE=RTNeural", "-fPIC", "-shared"

    def __init__(self, folder: Path, sizes: list[int], compiler: str, build: Path) -> None:
        modules = folder / "modules"
        if not (modules / "xsimd/include").is_dir():
            raise SystemExit(
                f"--rtneural: expected a clone of RTNeural with its submodules, got {folder}; run "
                f"git -C {folder} submodule update --init"
            )
        paths = folder, modules / "Eigen", modules / "json", modules / "xsimd/include"
        self.libraries: dict[str, list[Any]] = {}
        source = Path(__file__).with_name("rtneural.cpp")
        widths = {"native": ["-march=native"]}
        if platform.machine().lower() in ("x86_64", "amd64"):
            widths["avx2"] = ["-mavx2", "-mfma"]
        units = ",".join(map(str, sizes))
        for backend in ("Eigen", "xsimd", "STL"):
            for width, flags in widths.items():
                made = build / f"{backend}-{width}-{units}.so"
                wide = 64 if (backend, width) == ("xsimd", "native") else 32
                options = [*self.FLAGS, *flags, *(f"-I{path}" for path in paths)]
                options += [f"-DRTNEURAL_USE_{backend.upper()}=1", f"-DSIZES={units}"]
                options += [f"-DRTNEURAL_DEFAULT_ALIGNMENT={wide}", str(source), "-o", str(made)]
                if not made.exists():
                    done = subprocess.run([compiler, *options], capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(f"RTNeural, {backend}: {done.stderr[-2000:]}")
                self.libraries.setdefault(backend, []).append(ctypes.CDLL(str(made.resolve())))

    def calls(self, cell: str, net: Network) -> dict[str, Callable[[], Any]]:
        """Each backend and width, reading all samples."""
        import numpy as np

        Wx, Wh, bx, bh = net.task.blocks("i f g o" if cell == "lstm" else "-z r h")
        b = bx + bh if cell == "lstm" else np.stack([bx, bh])
        weights = [np.ascontiguousarray(array) for array in (Wx.T, Wh.T, b, net.W[:, 0])]
        x, floats = net.task.xs[0, :, 0].copy(), ctypes.POINTER(ctypes.c_float)

        def pointer(array: Any) -> Any:
            return array.ctypes.data_as(floats)

        def one(library: Any) -> Callable[[], Any]:
            library.make.restype = ctypes.c_void_p
            library.make.argtypes = [ctypes.c_int, ctypes.c_int, *[floats] * 4, ctypes.c_float]
            library.run.argtypes = [ctypes.c_void_p, floats, floats, ctypes.c_long]
            model = library.make(
                int(cell == "gru"), len(net.W), *map(pointer, weights), float(net.b[0])
            )
            y = np.zeros((len(x), 1), np.float32)
            run, arguments = library.run, (model, pointer(x), pointer(y), len(x))

            def call() -> Any:
                run(*arguments)
                return y

            return call

        return {
            f"{backend} {k}": one(library)
            for backend, libraries in self.libraries.items()
            for k, library in enumerate(libraries)
        }


# ---- the table


def main(
    rtneural: Annotated[Path | None, typer.Option(help="A clone of RTNeural.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help=" ".join(CELLS))] = None,
    size: Annotated[list[int] | None, typer.Option(help="Units, instead of the usual.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turn.", min=1)] = 9,
    compiler: Annotated[str, typer.Option(help="A compiler of C++ 17.")] = "g++",
    build: Annotated[
        Path | None, typer.Option(help="A folder for what it makes, which the next run finds.")
    ] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Compare streams with RTNeural, ONNX Runtime and PyTorch, in nanoseconds a sample.

    A recurrent layer with one input and a dense layer with one output on
    top; one sequence, one thread. Rows: "step" is Stream.step, called from
    Python for every sample; 1, 64 and 512 are the samples of a call of
    Stream.step_many. A ratio is the time of the fastest of the others over
    ours: above 1 ours is faster, and lost rows have a <.

    RTNeural takes part with --rtneural DIR, a clone of its repository:

    git clone --recurse-submodules https://github.com/jatinchowdhury18/RTNeural

    It is compiled first, for two minutes (--build keeps that), and called
    from a loop in C++.
    """
    if not child:  # libraries count threads when they are imported
        limits = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        command = [sys.executable, "-m", "benchmarks.streaming", "--child", *sys.argv[1:]]
        done = subprocess.run(command, env={**os.environ, **dict.fromkeys(limits, "1")})
        raise SystemExit(done.returncode)
    use_one_core()
    with tempfile.TemporaryDirectory() as there:
        sizes, folder = size or list(SIZES), build or Path(there)
        compiled = RTNeural(rtneural, sizes, compiler, folder) if rtneural else None
        measure_all(compiled, cell or list(CELLS), sizes, rounds)
    if rtneural:
        print(f"RTNeural {revision(rtneural)}, {first_line([compiler, '--version'])}")


def use_one_core() -> None:
    """Let this process run on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])


def measure_all(compiled: RTNeural | None, cells: list[str], sizes: list[int], rounds: int) -> None:
    """Print the table."""
    from benchmarks.cpu import geometric_mean, versions
    from numba_rnn import explain, use_backend

    use_backend("numba", strict=True)
    peers = {"ONNX Runtime": ("onnxruntime", onnx), "torch": ("torch", torch)}
    others = {name: call for name, (module, call) in peers.items() if find_spec(module)}
    backends = compiled.libraries if compiled else {}
    columns = ["ours", *backends, *others]
    groups = {"RTNeural/ours": list(backends), "others/ours": list(others)}
    groups = {title: names for title, names in groups.items() if names}
    print("nanoseconds a sample, one thread\n")
    title = "".join(f"{name:>{width(name)}}" for name in columns)
    print(f"{'cell':5}{'H':>4}{'block':>7}{title}" + "".join(f"{name:>16}" for name in groups))
    ratios: dict[str, list[float]] = {title: [] for title in groups}
    for name in cells:
        for H in sizes:
            net = network(name, H)
            for block in ("step", *BLOCKS):
                calls = {"ours": ours(net, block)}
                calls |= {other: call(net, block) for other, call in others.items()}
                calls |= compiled.calls(name, net) if compiled else {}
                found = nanoseconds(calls, block, rounds)
                for backend, libraries in backends.items():
                    found[backend] = min(found[f"{backend} {k}"] for k in range(len(libraries)))
                line = f"{name:5}{H:>4}{block:>7}"
                line += "".join(f"{found[column]:>{width(column)}.1f}" for column in columns)
                for title, names in groups.items():
                    ratio = min(found[n] for n in names) / found["ours"]
                    line += f"{ratio:>14.2f}{' <' if ratio < 1 else '  '}"
                    if block in (64, 512):
                        ratios[title].append(ratio)
                print(line.rstrip(), flush=True)
    for title, several in ratios.items():
        mean = geometric_mean(several)
        print(f"\n{title}, blocks of 64 and 512: worst {min(several):.2f}, mean {mean:.2f}", end="")
    machine = explain()
    print(f"\n\n{machine.device}, {machine.simd_bits} bits")
    print(", ".join(f"{package} {number}" for package, number in versions().items()))


def width(column: str) -> int:
    """Of a column of the table."""
    return max(9, len(column) + 3)


def nanoseconds(
    calls: dict[str, Callable[[], Any]], block: int | str, rounds: int
) -> dict[str, float]:
    """The median time of a sample of each, which are compared first."""
    import statistics

    import numpy as np

    from benchmarks.cpu import in_turn

    T = 1 if block == "step" else int(block)
    wanted = None
    for name, call in calls.items():  # from the first sample on, all of them for the first time
        out = call()
        out = np.array(out.numpy() if hasattr(out, "numpy") else out).reshape(-1)[:T]
        wanted = out if wanted is None else wanted
        if not np.abs(out - wanted).max() < 1e-3:
            raise SystemExit(f"{name} computes something else: {out[:4]}, not {wanted[:4]}")
    samples = dict.fromkeys(calls, T) | {name: LONGEST for name in calls if name[-1].isdigit()}
    times = in_turn(calls, rounds, 0.001, 0.006)
    return {name: statistics.median(times[name]) / samples[name] * 1e9 for name in calls}


def revision(folder: Path) -> str:
    """The commit of a clone, where git can say it."""
    return first_line(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"])


def first_line(command: list[str]) -> str:
    """The first line that a program prints; nothing where it cannot run."""
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True)
        return (done.stdout.splitlines() or [""])[0]
    return ""


if __name__ == "__main__":
    typer.run(main)
