"""Measure the first call in a new process: seconds of CPU and memory.

    python -m benchmarks.cold_start

As a command that is run now and then, a serverless function or a worker that has just been started
pays it. Each row is a program of its own, run in new processes after one that has compiled what it
needs: the median of the CPU time of the whole process, Python's own start and NumPy's import
included, and the largest peak of its resident memory. ONNX Runtime and PyTorch take part where they
are installed; theirs is the same LSTM.
"""

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

REPORT = """
import pathlib, resource, sys
usage = resource.getrusage(resource.RUSAGE_SELF)
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
status = pathlib.Path("/proc/self/status")
if status.exists():  # Linux counts there what was the parent's
    peak = 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
print(usage.ru_utime + usage.ru_stime, peak)
"""
NUMPY = "import numpy as np"
LAYER = f"""
{NUMPY}
from numba_rnn import TimeLSTM, use_backend
use_backend("numba", strict=True)
layer = TimeLSTM.create(8, 16, rng=0)
"""
STREAM = f"{LAYER}\nlayer.stream().step(np.ones(8, np.float32))"
FORWARD = f"{LAYER}\nlayer.forward(np.ones((4, 20, 8), np.float32))"
BACKWARD = f"{LAYER}\nlayer.backward(layer.forward(np.ones((4, 20, 8), np.float32)))"
FIT = f"""
{NUMPY}
import pickle, sys
from numba_rnn.sklearn import RNNClassifier
rng = np.random.default_rng(0)
X, y = rng.standard_normal((40, 20, 3)).astype(np.float32), np.arange(40) % 2
with open(sys.argv[1], "wb") as file:
    pickle.dump(RNNClassifier(max_epochs=1).fit(X, y), file)
"""
PREDICT = f"""
{NUMPY}
import pickle, sys
with open(sys.argv[1], "rb") as file:
    pickle.load(file).predict(np.ones((1, 20, 3), np.float32))
"""
EXPORT = """
import sys
import torch
torch.onnx.export(torch.nn.LSTM(8, 16), (torch.ones(1, 1, 8),), sys.argv[1], dynamo=False)
"""
ONNX = f"""
{NUMPY}
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
session.run(None, {{session.get_inputs()[0].name: np.ones((1, 1, 8), np.float32)}})
"""
TORCH = f"""
{NUMPY}
import torch
with torch.inference_mode():
    torch.nn.LSTM(8, 16)(torch.ones(1, 1, 8))
"""


def run(program: str, *arguments: str) -> tuple[float, float]:
    """Seconds of CPU and bytes of a new process."""
    command = [sys.executable, "-c", program + REPORT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def programs(folder: Path) -> dict[str, tuple[str, ...]]:
    """The programs by their names, each with its arguments."""
    found: dict[str, tuple[str, ...]] = {
        "NumPy's import alone": (NUMPY,), "first step of a stream": (STREAM,),
        "first forward of a layer": (FORWARD,), "first forward and backward": (BACKWARD,),
    }  # fmt: skip
    if find_spec("sklearn"):
        run(FIT, str(folder / "classifier.pkl"))
        found["scikit-learn's import alone"] = ("import sklearn",)
        found["pickled RNNClassifier, predict"] = (PREDICT, str(folder / "classifier.pkl"))
    if find_spec("torch"):
        found["PyTorch, first step"] = (TORCH,)
    if all(map(find_spec, ("torch", "onnx", "onnxruntime"))):
        run(EXPORT, str(folder / "lstm.onnx"))
        found["ONNX Runtime, first step"] = (ONNX, str(folder / "lstm.onnx"))
    return found


def main(
    runs: Annotated[int, typer.Option(help="New processes of each.", min=1)] = 7,
) -> None:
    """Print what first calls cost in new processes."""
    with tempfile.TemporaryDirectory() as folder:
        found = programs(Path(folder))
        for program, *arguments in found.values():
            run(program, *arguments)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
        for _ in range(runs):
            for name, (program, *arguments) in found.items():
                taken[name].append(run(program, *arguments))
    print(f"  {'':34}{'CPU, s':>8}{'peak, MB':>10}")
    for name, figures in taken.items():
        seconds, peaks = zip(*figures, strict=True)
        print(f"  {name:34}{median(seconds):>8.2f}{max(peaks) / 2**20:>10.0f}")


if __name__ == "__main__":
    typer.run(main)
