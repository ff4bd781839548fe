"""Fewer bits: what bfloat16 and int8 gain in time, and what they cost in accuracy.

    python -m benchmarks.precision                  everything, 1 and 2 threads
    python -m benchmarks.precision --what infer --threads 1 --cell lstm

Ours and PyTorch's in float32 and bfloat16, and with int8 weights ours, PyTorch's dynamic
quantisation and ONNX Runtime's (which has none for a GRU), all with the same weights, in one
process, in turn, with the same number of threads. Milliseconds are medians; below each stands the
error: the norm of the difference to float64 over the norm, in percent.

    train   forward and backward over a block of time; the error is that of the gradient of Wh
    infer   the whole sequence, by ``layer.forward``
    step    one step of a stream, batch 1, called from Python

"gain" is the time of our float32 over ours, "peer" that of the fastest peer of as many bits, or
of more, over ours: above 1 we are faster. The last lines say by which instructions ours computes.
"""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cpu import from_child, geometric_mean, measure, versions

TRAIN = [(128, 32, 256, 256), (64, 64, 512, 512), (35, 20, 650, 650), (256, 16, 128, 128)]
INFER = [
    *TRAIN, (50, 1, 256, 256), (50, 1, 512, 512), (50, 1, 1024, 1024), (64, 16, 256, 256),
    (32, 32, 1024, 1024),
]  # fmt: skip
STEP = [(1, 1, H, H) for H in (256, 512, 1024)]
SIZES = {"train": TRAIN, "infer": INFER, "step": STEP}
CELLS = ("lstm", "gru_reset_after")
BITS = {"float32": 32, "bfloat16": 16, "int8": 8}
Calls = dict[str, Callable[[], Any]]


# ---- what is compared; each call returns hs, and of training the gradient of Wh


def ours(what: str, task: Any, kind: str) -> Callable[[], Any]:
    """A call of ours in a precision."""
    from benchmarks import peers
    from numba_rnn import use_backend

    layer = peers.our_layer(task)
    if what == "step":
        weights = {"float32": {}, "bfloat16": {"bfloat16": True}, "int8": {"weights": "int8"}}
        stream, x = layer.stream(**weights[kind]), task.xs[0, 0].copy()
        return lambda: stream.step(x)
    if kind == "int8":
        layer.quantise()
    precision = "bfloat16" if kind == "bfloat16" else "float32"

    def call() -> Any:
        with use_backend("numba", precision=precision):
            hs = layer.forward(task.xs)
            if what == "train":
                layer.backward(task.dhs)
                return hs, layer.grads[1]
            return hs

    return call


def torchs(what: str, task: Any, kind: str) -> Callable[[], Any]:
    """A call of PyTorch's in a precision."""
    import torch

    from benchmarks import peers

    module = peers.torch_module(task)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    xs = torch.from_numpy(task.xs.swapaxes(0, 1).copy()).to(dtype)
    if kind == "int8":

        class Wrapped(torch.nn.Module):  # only children are replaced
            def __init__(self) -> None:
                super().__init__()
                self.layer = module

            def forward(self, xs: Any) -> Any:
                return self.layer(xs)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kinds = {type(module)}
            module = torch.ao.quantization.quantize_dynamic(Wrapped(), kinds, dtype=torch.qint8)
    else:
        module = module.to(dtype)
    if what == "train":
        xs.requires_grad_()
        dhs = torch.from_numpy(task.dhs.swapaxes(0, 1).copy()).to(dtype)

        def train() -> Any:
            for param in module.parameters():
                param.grad = None
            hs, _ = module(xs)
            hs.backward(dhs)
            dWh = module.weight_hh_l0.grad.float().numpy()
            return hs.detach().float().numpy().swapaxes(0, 1), dWh

        return train

    def call() -> Any:
        with torch.inference_mode():
            return module(xs)[0].float().numpy().swapaxes(0, 1)

    return call


def onnx(task: Any, threads: int, kind: str) -> Callable[[], Any]:
    """A call of ONNX Runtime's with weights in float32 or int8."""
    from benchmarks import peers

    return peers.onnx_infer(task, threads, quantised=kind == "int8")


def calls(what: str, task: Any, threads: int) -> Calls:
    """All that takes part, by "whose kind"."""
    kinds = ["float32", "bfloat16"] + ["int8"] * (what != "train")
    made = {f"ours {kind}": ours(what, task, kind) for kind in kinds}
    made |= {f"torch {kind}": torchs(what, task, kind) for kind in kinds}
    if what == "infer":
        made["onnx float32"] = onnx(task, threads, "float32")
        if task.cell == "lstm":
            made["onnx int8"] = onnx(task, threads, "int8")
    return made


# ---- errors


def exact(what: str, task: Any) -> tuple[Any, Any]:
    """hs and the gradient of Wh in float64; as torch has it."""
    import numpy as np

    from benchmarks import peers
    from numba_rnn import TimeRecurrent

    params = [param.astype(np.float64) for param in task.params]
    layer = TimeRecurrent(*params, cell=task.cell)
    hs = layer.forward(task.xs.astype(np.float64))
    if what != "train":
        return hs, None
    layer.backward(task.dhs.astype(np.float64))
    grads = peers.Task(task.cell, (layer.grads[0], layer.grads[1], layer.grads[2]), task.xs, hs)
    return layer.grads[1], grads.blocks(peers.TORCH_ORDER[task.cell])[1]


def error_of(name: str, found: Any, reference: tuple[Any, Any]) -> float:
    """The norm of the difference over the norm."""
    import numpy as np

    want = reference[0]
    if isinstance(found, tuple):
        found = found[1]
        want = reference[0] if name.startswith("ours") else reference[1]
        if found.shape[0] != want.shape[0]:
            want = want.T
        if name.startswith("torch"):  # -z: our gate is 1 - theirs, and so are signs of gradients
            found, want = np.abs(found), np.abs(want)
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))


# ---- the program


def run_child(what: list[str], cell: list[str], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Measure with one number of threads, in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch  # before any engine of ours has threads, or its int8 is slow

    from benchmarks import peers
    from numba_rnn import explain, use_backend

    torch.set_num_threads(threads)
    use_backend("numba", strict=True)
    with use_backend("numba", precision="bfloat16") as engine:
        road = f"{explain().precision}, int8 by {engine.describe()['int8']}"
    head = {"device": explain().device, "threads": threads, "road": road, "versions": versions()}
    rows: list[dict[str, Any]] = [head]
    for kind in what:
        for name in cell:
            if kind == "step" and threads > 1:
                continue
            for sizes in SIZES[kind]:
                task = peers.task(name, *sizes)
                made = calls(kind, task, threads)
                errors = {}
                if kind != "step":
                    reference = exact(kind, task)
                    errors = {who: error_of(who, call(), reference) for who, call in made.items()}
                    worst = max(errors.values())
                    if not worst < 0.2:
                        raise SystemExit(f"something else is computed: {errors}")
                times = measure(made, rounds, 0.06 if threads > 1 else 0.003)
                row = {
                    "what": kind, "cell": name, "sizes": sizes, "threads": threads,
                    "times": times, "errors": errors,
                }  # fmt: skip
                rows.append(row)
                show(row)
    return rows


def gain(row: dict[str, Any], kind: str) -> float:
    """The time of our float32 over ours of a kind."""
    return row["times"]["ours float32"] / row["times"][f"ours {kind}"]


def against_peers(row: dict[str, Any], kind: str) -> float:
    """The time of the fastest peer with as many bits, or more, over ours."""
    theirs = [
        seconds
        for name, seconds in row["times"].items()
        if not name.startswith("ours") and BITS[name.split()[1]] >= BITS[kind]
    ]
    return min(theirs) / row["times"][f"ours {kind}"]


def show(row: dict[str, Any]) -> None:
    """A row of the table, and its errors below."""
    kinds = [name.split()[1] for name in row["times"] if name.startswith("ours")]
    print(
        f"\n{row['what']:6}{row['threads']} thread{'s' if row['threads'] > 1 else ' '} "
        f"{row['cell']:16}{row['sizes']!s:22}"
        + "  ".join(
            f"{kind}: gain {gain(row, kind):.2f}, peer {against_peers(row, kind):.2f}"
            for kind in kinds[1:]
        )
    )
    names = row["times"].keys()
    print("   " + "".join(f"{name:>16}" for name in names))
    print("ms " + "".join(f"{1e3 * row['times'][name]:>16.4g}" for name in names))
    if row["errors"]:
        print("%  " + "".join(f"{100 * row['errors'][name]:>16.2g}" for name in names), flush=True)


def summary(rows: list[dict[str, Any]]) -> None:
    """Worst and mean of each kind."""
    print(f"\n{'':30}{'gain, least':>14}{'mean':>8}{'peer, least':>14}{'mean':>8}")
    groups = sorted({(row["what"], row["threads"]) for row in rows})
    for what, threads in groups:
        chosen = [row for row in rows if (row["what"], row["threads"]) == (what, threads)]
        for kind in ("bfloat16", "int8"):
            if f"ours {kind}" not in chosen[0]["times"]:
                continue
            gains = [gain(row, kind) for row in chosen]
            peers = [against_peers(row, kind) for row in chosen]
            print(
                f"{what:8}{threads} thread{'s' if threads > 1 else ' '} {kind:12}"
                f"{min(gains):>14.2f}{geometric_mean(gains):>8.2f}"
                f"{min(peers):>14.2f}{geometric_mean(peers):>8.2f}"
            )


def draw(rows: list[dict[str, Any]], head: dict[str, Any], to: Path) -> None:
    """Speed against error, a panel for training and one for inference, on one thread."""
    from matplotlib.figure import Figure

    markers = {"ours": "o", "torch": "s", "onnx": "^"}
    colours = {"float32": "#009e73", "bfloat16": "#0072b2", "int8": "#e69f00"}  # Okabe and Ito
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axis, (what, title) in zip(
        figure.subplots(1, 2),
        {"train": "training", "infer": "inference"}.items(),
        strict=True,
    ):
        for row in rows:
            if row["what"] != what or row["threads"] != 1:
                continue
            for name, seconds in row["times"].items():
                whose, kind = name.split()
                axis.scatter(
                    row["errors"][name], row["times"]["ours float32"] / seconds,
                    marker=markers[whose], color=colours[kind], label=name, s=22,
                    facecolors=None if whose == "ours" else "none",
                )  # fmt: skip
        handles = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
        axis.legend(handles.values(), handles.keys(), fontsize=7)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
        axis.minorticks_off()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("error, beside float64")
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.axes[0].set_ylabel("times as fast as our float32")
    used = ", ".join(f"{k} {v}" for k, v in head["versions"].items())
    figure.supxlabel(f"LSTM and GRU on one thread of {head['device']}; {used}", fontsize=7)
    figure.savefig(to, dpi=110)


def main(
    what: Annotated[list[str] | None, typer.Option(help=" ".join(SIZES))] = None,
    cell: Annotated[list[str] | None, typer.Option(help=" ".join(CELLS))] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Numbers of threads; 1 and 2.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turn.", min=5)] = 7,
    plot: Annotated[Path | None, typer.Option(help="Draw speed against error.")] = None,
    child: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare precisions of ours, PyTorch's and ONNX Runtime's."""
    what, cell, threads = what or list(SIZES), cell or list(CELLS), threads or [1, 2]
    if child is not None:
        child.write_text(json.dumps(run_child(what, cell, threads[0], rounds)), encoding="utf-8")
        return
    rows: list[dict[str, Any]] = []
    heads = []
    for count in threads:  # libraries ask for the number of threads when they are imported
        options = [f"--what={w}" for w in what] + [f"--cell={c}" for c in cell]
        options += [f"--rounds={rounds}"]
        head, *more = from_child("benchmarks.precision", options, count, "--child")
        heads.append(head)
        rows += more
    summary(rows)
    print(f"\n{heads[0]['device']}; ours: {heads[0]['road']}")
    print(", ".join(f"{name} {version}" for name, version in heads[0]["versions"].items()))
    if plot is not None:
        draw(rows, heads[0], plot)


if __name__ == "__main__":
    typer.run(main)
