"""Draw what ``benchmarks.cpu`` measured.

python -m benchmarks.cpu --out benchmarks/cpu.json
python -m benchmarks.plot benchmarks/cpu.json benchmarks/cpu.png
python -m benchmarks.plot benchmarks/cpu.json benchmarks/cpu_short.png --short
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cpu import peers_of, ratio

NAMES = {
    "train": "training: forward + backward",
    "infer": "inference: the whole sequence",
    "once": "forward of a layer over one step",
    "step": "one step of a stream, batch 1",
    "last": "training, loss at the last step",
    "odd": "training, odd sizes",
}
SHORT = "train", "infer", "step"  # on one thread: the picture of the README
CELLS = {"lstm": "LSTM", "gru_reset_after": "GRU", "rnn": "RNN"}
COLOURS = {"lstm": "#0072b2", "gru_reset_after": "#e69f00", "rnn": "#009e73"}  # Okabe and Ito


def draw(
    rows: list[dict[str, Any]], machines: list[dict[str, Any]], to: Path, short: bool = False
) -> None:
    """A panel for each kind and number of threads, a bar for each cell and size."""
    from matplotlib.figure import Figure

    if short:
        rows = [row for row in rows if row["what"] in SHORT and row["threads"] == 1]
    kinds = [
        (what, threads)
        for what in NAMES
        for threads in sorted({row["threads"] for row in rows if row["what"] == what})
    ]
    figure = Figure(figsize=(11, 2.6 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for axis, (what, threads) in zip(axes, kinds, strict=True):
        chosen = [row for row in rows if (row["what"], row["threads"]) == (what, threads)]
        sizes = list(dict.fromkeys(tuple(row["sizes"]) for row in chosen))
        for k, (cell, name) in enumerate(CELLS.items()):
            mine = {tuple(row["sizes"]): row for row in chosen if row["cell"] == cell}
            places = [x + 0.27 * (k - 1) for x in range(len(sizes))]
            heights = [ratio(mine[size]) if size in mine else 0 for size in sizes]
            bars = axis.bar(places, heights, 0.25, label=name, color=COLOURS[cell])
            axis.bar_label(bars, [f"{h:.2g}" for h in heights], fontsize=7, padding=1)
        axis.axhline(1, color="black", linewidth=1)
        axis.set_yscale("log")
        axis.set_ylim(0.5, max(3, 1.5 * max(ratio(row) for row in chosen)))
        axis.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axis.set_xlim(-0.6, max(len(sizes), 4) - 0.4)
        axis.minorticks_off()
        axis.set_xticks(range(len(sizes)), [f"T {T}, N {N}\nD {D}, H {H}" for T, N, D, H in sizes])
        axis.tick_params(axis="x", labelsize=8)
        axis.set_ylabel("times faster")
        peers = ", ".join(sorted({name for row in chosen for name in peers_of(row)}))
        plural = "s" if threads > 1 else ""
        axis.set_title(
            f"{NAMES[what]}, {threads} thread{plural}, against the fastest of {peers}", fontsize=10
        )
        axis.grid(axis="y", alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    versions = ", ".join(f"{k} {v}" for k, v in machines[0]["versions"].items())
    figure.supxlabel(f"{machines[0]['device']}; {versions}", fontsize=8)
    figure.savefig(to, dpi=110)


def main(
    figures: Annotated[Path, typer.Argument(help="The file that benchmarks.cpu --out wrote.")],
    to: Annotated[Path, typer.Argument(help="The picture, .png or .svg.")],
    short: Annotated[bool, typer.Option("--short", help="Only main kinds, on one thread.")] = False,
) -> None:
    """Draw the ratios as bars, losing ones included."""
    read = json.loads(figures.read_text(encoding="utf-8"))
    draw(read["rows"], read["machines"], to, short)
    print(f"wrote {to}")


if __name__ == "__main__":
    typer.run(main)
