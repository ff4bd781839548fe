"""Forward + backward of each cell over a block of time: the numba engine against numpy.

The numpy engine uses as many threads as NumPy's BLAS takes, numba as NUMBA_NUM_THREADS says: every
core unless told otherwise. Each size is measured in turn,
numpy, numba, numpy, numba ..., after one call of each that is not counted; the table gives
medians, and the ratio is how many times faster numba is.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from numba_rnn import cells, explain, use_backend

# T, N, D = H
SIZES = [
    (64, 1, 32),
    (1000, 8, 32),
    (128, 32, 64),
    (35, 20, 100),
    (128, 1, 128),
    (256, 16, 128),
    (128, 32, 256),
    (1, 1, 256),
    (32, 1, 512),
    (64, 64, 512),
    (35, 20, 650),
    (16, 1, 1024),
    (16, 64, 1024),
]


def measure(cell: str, T: int, N: int, H: int, dtype: str, rounds: int) -> dict[str, float]:
    """Median seconds of forward + backward on each engine."""
    rng = np.random.default_rng(0)
    kind = cells.get(cell)

    def numbers(*shape: int) -> Any:
        return (rng.uniform(-1, 1, shape) / np.sqrt(H)).astype(dtype)

    params = [numbers(*shape) for shape in kind.shapes(H, H).values()]
    xs, dhs = numbers(N, T, H), numbers(N, T, H)
    state = tuple(numbers(N, H) for _ in kind.states)
    times: dict[str, list[float]] = {"numpy": [], "numba": []}
    for _ in range(rounds + 1):
        for name, seconds in times.items():
            with use_backend(name, strict=True) as engine:
                start = time.perf_counter()
                _, _, saved = engine.forward(kind, xs, state, params)
                engine.backward(kind, dhs, state, saved)
                seconds.append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def main(
    cell: Annotated[
        list[str] | None, typer.Option(help="Only these cells; may be given several times.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turn.")] = 9,
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON too.")] = None,
) -> None:
    """Time the numba engine against the numpy engine."""
    with use_backend("numba", strict=True):
        print(f"{explain()}\n")
    print(f"{'cell':<16}{'T':>5}{'N':>4}{'D=H':>6}{'numpy ms':>11}{'numba ms':>11}{'ratio':>8}")
    rows = []
    for name in cell or cells.names():
        for T, N, H in SIZES:
            found = measure(name, T, N, H, dtype, rounds)
            ratio = found["numpy"] / found["numba"]
            rows.append({"cell": name, "dtype": dtype, "T": T, "N": N, "H": H, **found})
            print(
                f"{name:<16}{T:>5}{N:>4}{H:>6}"
                f"{1e3 * found['numpy']:>11.3f}{1e3 * found['numba']:>11.3f}{ratio:>8.2f}",
                flush=True,
            )
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
