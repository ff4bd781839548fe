"""Every cell on the numba engine: against what its work predicts, and against a loop in torch.

    python -m benchmarks.cells                        every cell, 1 and 2 threads
    python -m benchmarks.cells --quick --cell mgu     one cell, small sizes
    python -m benchmarks.cells --out benchmarks/cells.json
    python -m benchmarks.cells --show benchmarks/cells.json > benchmarks/cells.txt

Forward and backward over a block of time in float32, gradients of inputs and weights. A line of
the table has two parts.

Is the cell as fast as its work allows?

    ratio      time of the cell over the time of the LSTM beside it
    predicted  the same of their work, which ``benchmarks/counting.py`` counts
    off        ratio / predicted; at most 1.25 is the target

Work is operations of products, at the rate of the fastest product found on the machine; operations
of the arithmetic between them, at half that rate (what a vector unit multiplies and adds at once
counts as two in a product); and numbers moved, at the rate that explains what is left of the times
of the plain cells (rnn, rnn_relu, gru_reset_after, lstm: one product, written by hand), by least
squares of relative errors, for each size and number of threads. A plain cell is predicted from the
three others: no cell has a say in its own prediction. Some work is not counted (packing, meetings
of threads between products, sizes that fill no block): that rate contains it as far as the plain
cells have it too; "off" shows the rest.

Is it faster than what one would write otherwise?

    loop       time of a Python loop over T in torch with autograd, over ours; it runs the cell's
               own forward function on tensors, and x Wx of all steps as one product
    compiled   the same with the step compiled by torch.compile (Inductor), which wants a C++
               compiler; at least 5 is the target of both
    most       what "loop" would be if ours were nothing but its products at the machine's rate;
               where that is below 5, nothing that computes them in float32 can reach the target

Outputs and all gradients are compared first (1e-3 of the largest number). All that is compared runs
in one process, in turn, on as many cores with as many threads; ratios are medians over rounds of
the ratio within a round, and rounds are added where they do not agree.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cpu import Calls, check_same, geometric_mean, in_turn, machine

Sizes = tuple[int, int, int, int]  # T, N, D, H

SIZES = [(32, 128, 128, 128), (128, 32, 128, 128), (8, 1000, 32, 32), (1000, 8, 32, 32)]
QUICK = [(12, 8, 32, 32)]
PLAIN = ("rnn", "rnn_relu", "gru_reset_after", "lstm")
MOST_OFF, LEAST_FASTER = 1.25, 5.0
ROUNDS, ROUNDS_QUICK = 7, 3
# where the middle half of the ratios lie further apart, the machine had other work: as many rounds
# again, up to so many times
AGREE, AGAIN = 0.06, 4

# ---- measuring


def calls(cell: str, sizes: Sizes) -> Calls:
    """The LSTM, the cell and the cell in torch, at the same sizes."""
    from benchmarks import peers

    def train(task: Any) -> Any:
        layer = peers.our_layer(task)

        def call() -> Any:
            hs = layer.forward(task.xs)
            return hs, layer.backward(task.dhs), *layer.grads

        return call

    task = peers.task(cell, *sizes)
    return {
        "ours": train(task),
        "lstm": train(peers.task("lstm", *sizes)),
        "loop": peers.torch_loop(task),
    }


def compiled(cell: str, sizes: Sizes) -> Any:
    """The cell in torch, compiled; or a line that says why not."""
    from benchmarks import peers

    call = peers.torch_loop(peers.task(cell, *sizes), compiled=True)
    try:
        call()
    except Exception as error:  # whatever Inductor, or the compiler that it wants, makes of it
        return f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return call


def measured(cell: str, sizes: Sizes, threads: int, rounds: int, compiling: bool) -> dict[str, Any]:
    """A row of the table, without what is predicted."""
    from benchmarks.counting import work
    from numba_rnn import cells

    timed, why_not = calls(cell, sizes), "not asked for"
    if compiling:
        call = compiled(cell, sizes)
        if isinstance(call, str):
            why_not = call
        else:
            timed["compiled"] = call
    check_same({name: call for name, call in timed.items() if name != "lstm"})
    seconds: dict[str, list[float]] = {name: [] for name in timed}

    def ratios(a: str, b: str) -> list[float]:
        return [x / y for x, y in zip(seconds[a], seconds[b], strict=True)]

    def ratio(a: str, b: str) -> float:
        return statistics.median(ratios(a, b))

    for _ in range(AGAIN):
        for name, more in in_turn(timed, rounds, 0.06 if threads > 1 else 0.003).items():
            seconds[name] += more
        low, _, high = statistics.quantiles(ratios("ours", "lstm"), n=4)
        if high < (1 + AGREE) * low:
            break

    row = {
        "cell": cell,
        "sizes": sizes,
        "threads": threads,
        "work": work(cells.get(cell), *sizes)._asdict(),
        "lstm_work": work(cells.get("lstm"), *sizes)._asdict(),
        "rounds": len(seconds["ours"]),
        "milliseconds": {name: 1e3 * statistics.median(s) for name, s in seconds.items()},
        "ratio": ratio("ours", "lstm"),
        "loop": ratio("loop", "ours"),
    }
    if "compiled" in timed:
        return {**row, "compiled": ratio("compiled", "ours")}
    return {**row, "not_compiled": why_not}


# ---- predicting


def seconds_of(work: dict[str, float], product: float, moved: float) -> float:
    """Of work, at so many seconds an operation of a product and a number moved."""
    operations = work["products"] + 2 * work["arithmetic"]
    return operations * product + work["moved"] * moved


def seconds_a_number(rows: list[dict[str, Any]], lstm: float, product: float) -> float:
    """The time to move a number, from rows of plain cells, where the LSTM takes ``lstm`` seconds.

    Least squares of relative errors in what products and arithmetic leave.
    """
    above = below = 0.0
    for row in rows:
        seconds = row["ratio"] * lstm
        share = row["work"]["moved"] / seconds
        above += share * (1 - seconds_of(row["work"], product, 0.0) / seconds)
        below += share * share
    return max(above / below, 0.0)


def predict(rows: list[dict[str, Any]], fastest_product: float) -> None:
    """Complete the rows of one size with what plain cells say of each, itself left out.

    The LSTM was measured beside every cell; its fastest median goes with the fastest product, both
    being what the machine does when it has nothing else to do.
    """
    product = 1 / fastest_product
    lstm = min(row["milliseconds"]["lstm"] for row in rows) / 1e3
    for row in rows:
        plain = [r for r in rows if r["cell"] in PLAIN and r["cell"] != row["cell"]]
        moved = seconds_a_number(plain, lstm, product)
        row["predicted"] = seconds_of(row["work"], product, moved) / seconds_of(
            row["lstm_work"], product, moved
        )
        row["off"] = row["ratio"] / row["predicted"]
        row["numbers_moved_per_second"] = 1 / moved if moved else None
        row["most"] = row["loop"] * row["ratio"] * lstm / (row["work"]["products"] * product)


# ---- the table


def show_table(rows: list[dict[str, Any]]) -> None:
    """The table of one size and number of threads."""
    (T, N, D, H), threads = rows[0]["sizes"], rows[0]["threads"]
    print(f"\nT {T}, N {N}, D {D}, H {H}; {threads} thread{'s' if threads > 1 else ''}")
    print(
        f"  {'':16}{'ms':>8}{'ratio':>8}{'predicted':>11}{'off':>7}"
        f"{'loop ms':>12}{'times':>8}{'most':>8}{'compiled ms':>13}{'times':>8}"
    )
    for row in rows:
        ms = row["milliseconds"]
        last = f"{'none':>13}"
        if "compiled" in row:
            last = f"{ms['compiled']:>13.4g}{row['compiled']:>8.2f}"
        print(
            f"  {row['cell']:16}{ms['ours']:>8.4g}{row['ratio']:>8.2f}{row['predicted']:>11.2f}"
            f"{row['off']:>7.2f}{ms['loop']:>12.4g}{row['loop']:>8.2f}{row['most']:>8.2f}{last}"
        )
    rate = rows[-1]["numbers_moved_per_second"]
    if rate and rows[-1]["cell"] not in PLAIN:
        print(f"  by the plain cells, {rate / 1e9:.1f} numbers moved a nanosecond", flush=True)


def summary(rows: list[dict[str, Any]]) -> None:
    """Which targets hold, and by how much the others are missed."""
    targets = [
        ("off", f"measured / predicted at most {MOST_OFF}", lambda x: x <= MOST_OFF, max),
        ("loop", f"at least {LEAST_FASTER:g} times a torch loop", lambda x: x >= LEAST_FASTER, min),
        (
            "compiled",
            f"at least {LEAST_FASTER:g} times a compiled torch loop",
            lambda x: x >= LEAST_FASTER,
            min,
        ),
    ]
    for key, target, holds, worst in targets:
        print(f"\n{target}:")
        for group in sorted({(row["threads"], row["sizes"]) for row in rows}):
            chosen = [row for row in rows if (row["threads"], row["sizes"]) == group]
            chosen = [row for row in chosen if key in row]
            threads, sizes = group
            line = f"  {threads} thread{'s' if threads > 1 else ' '} {sizes!s:21}"
            if not chosen:
                print(f"{line} not measured")
                continue
            missed = sorted(
                (row for row in chosen if not holds(row[key])),
                key=lambda row: row[key],
                reverse=worst is max,
            )
            mean = geometric_mean([row[key] for row in chosen])
            print(
                f"{line} holds for {len(chosen) - len(missed)} of {len(chosen)}; "
                f"worst {worst(row[key] for row in chosen):.2f}, mean {mean:.2f}"
            )
            if missed:
                print("    missed: " + ", ".join(f"{r['cell']} {r[key]:.2f}" for r in missed))
                out_of_reach = sum(r["most"] < LEAST_FASTER for r in missed)
                if key == "loop" and out_of_reach:
                    print(f"    {out_of_reach} of them miss it even with nothing but products")
    reasons = {row["not_compiled"] for row in rows if "not_compiled" in row}
    for reason in sorted(reasons):
        print(f"\nno compiled loop: {reason}")


# ---- the program


def run_child(
    names: list[str], size: Sizes, threads: int, rounds: int, compiling: bool
) -> list[dict[str, Any]]:
    """Measure one size with one number of threads, in this process; the machine, then the rows."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    from numba_rnn import use_backend

    use_backend("numba", strict=True)
    torch.set_num_threads(threads)
    can, rows = machine(threads), []
    for name in [*PLAIN, *(n for n in names if n not in PLAIN)]:
        print(f"{threads} {size} {name}", file=sys.stderr, flush=True)
        rows.append(measured(name, size, threads, rounds, compiling))
    predict(rows, can["operations_per_second"])
    show_table(rows)
    return [can, *rows]


def run(arguments: list[str], threads: int) -> list[dict[str, Any]]:
    """``run_child`` in a process of its own: libraries count threads when they are imported."""
    limits = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.json"
        command = [sys.executable, "-m", "benchmarks.cells", "--child", *arguments]
        subprocess.run(
            [*command, f"--threads={threads}", f"--out={part}"],
            env={**os.environ, **dict.fromkeys(limits, str(threads))},
            check=True,
        )
        return json.loads(part.read_text(encoding="utf-8"))


def read(figures: Path) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """The content of a file: machines by their number of threads, and rows."""
    found = json.loads(figures.read_text(encoding="utf-8"))
    rows = [{**row, "sizes": tuple(row["sizes"])} for row in found["rows"]]
    return {can["threads"]: can for can in found["machines"]}, rows


def conclude(machines: dict[int, dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Print the lines below the tables."""
    summary(rows)
    for can in machines.values():
        print(
            f"\n{can['device']}, {can['threads']} of its cores, {can['simd_bits']} bits: at best "
            f"{can['operations_per_second'] / 1e9:.0f} GFLOP/s"
        )
    can = next(iter(machines.values()))
    shown = {name: v for name, v in can["versions"].items() if name not in ("jax", "onnxruntime")}
    print(", ".join(f"{name} {version}" for name, version in shown.items()))


def main(
    cell: Annotated[list[str] | None, typer.Option(help="A cell's name; all of them.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Numbers of threads; 1 and 2.")] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="T,N,D,H instead of the usual ones.")
    ] = None,
    rounds: Annotated[int, typer.Option(help=f"Measurements of each, {ROUNDS}.", min=0)] = 0,
    compiling: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure torch.compile; it takes long.")
    ] = True,
    quick: Annotated[bool, typer.Option(help="Small sizes, few rounds, nothing compiled.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON too.")] = None,
    keep: Annotated[
        bool, typer.Option(help="Keep figures of other sizes and threads that are in --out.")
    ] = False,
    show: Annotated[
        Path | None, typer.Option("--show", help="Measure nothing; print what --out wrote.")
    ] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Time every cell against its own work and against loops in torch.

    A cell is good where "off" is at most 1.25 (no slower than its count of operations, at the
    rates of the plain cells) and where both loops take at least 5 times as long. The plain cells
    rnn, rnn_relu, gru_reset_after and lstm are always measured: the rates come from them. Figures
    are written after every size.
    """
    from numba_rnn import cells

    if show is not None:
        machines, rows = read(show)
        for group in dict.fromkeys((row["threads"], row["sizes"]) for row in rows):
            show_table([row for row in rows if (row["threads"], row["sizes"]) == group])
        conclude(machines, rows)
        return
    names, threads = cell or cells.names(), threads or [1, 2]
    for name in names:
        cells.get(name)
    sizes = [tuple(map(int, s.split(","))) for s in size or []] or (QUICK if quick else SIZES)
    rounds = rounds or (ROUNDS_QUICK if quick else ROUNDS)
    compiling = compiling and not quick
    if child:
        assert out is not None
        out.write_text(
            json.dumps(run_child(names, sizes[0], threads[0], rounds, compiling)), encoding="utf-8"
        )
        return
    arguments = [f"--cell={name}" for name in names] + [f"--rounds={rounds}"]
    arguments += ["--compile" if compiling else "--no-compile"]
    machines, rows = read(out) if keep and out is not None and out.exists() else ({}, [])
    for count in threads:
        for sized in sizes:
            size_option = "--size=" + ",".join(map(str, sized))
            machines[count], *found = run([*arguments, size_option], count)
            rows = [row for row in rows if (row["threads"], row["sizes"]) != (count, sized)]
            rows += [{**row, "sizes": tuple(row["sizes"])} for row in found]
            if out is not None:
                figures = {"machines": list(machines.values()), "rows": rows}
                out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    conclude(machines, rows)


if __name__ == "__main__":
    typer.run(main)
