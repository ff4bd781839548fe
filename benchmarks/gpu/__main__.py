"""The program: options, sections one after the other, results after every item."""

import argparse
import datetime
import json
import math
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numba_rnn.files import written_atomically

from . import __doc__ as description
from . import children, correctness, others, report, speed
from .machine import Absent, Machine, opened

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "benchmarks" / "results"
TOOLS = ["memcheck", "racecheck", "synccheck"]
LAUNCHES = ["gate kernel", "product", "product and gate kernel", "compile a gate kernel",
            "compile a persistent kernel"]  # fmt: skip
MEMORY = ["ours/float32", "torch/float32", "ours/bfloat16", "torch/bfloat16"]


@dataclass(frozen=True)
class Section:
    """A part of the program.

    items    what there is to do, each on its own
    run      does one: machine, item -> record
    limit    seconds an item may take
    in_all   seconds for all of them
    """

    items: Sequence[str]
    run: Callable[[Machine, str], dict[str, Any]]
    limit: float
    in_all: float


def sections(options: argparse.Namespace) -> dict[str, Section]:
    """All sections by name, in their order."""
    choice = options.cell, options.precision
    tiny = options.emulate or options.tiny
    checks = correctness.TINY if tiny else correctness.items(*choice)
    rows = speed.TINY if tiny else speed.items(*choice)
    if tiny:
        rows = [r for r in rows if all(c is None or c in r.split("/") for c in choice)]
    compile_all = partial(others.compile_all, cell=options.cell, precision=options.precision)
    launches = LAUNCHES[:3] if tiny else LAUNCHES
    return {
        "environment": Section(["versions", "device", "engine"], others.environment, 60, 60),
        "launch": Section(launches, others.launch, 60, 60),
        "compile": Section(["kernels"], compile_all, 170, 170),
        "correctness": Section(checks, correctness.check, 60, 160),
        "speed": Section(rows, speed.row, 60, 200),
        "memory": Section(MEMORY, speed.held, 40, 40),
        "training": Section(["language model"], others.training, 75, 75),
        "peers": Section(speed.PEERS, speed.peer, 100, 240),
        "sanitizer": Section(TOOLS, others.sanitizer, 80, 200),
    }


NAMES = (
    "environment", "launch", "compile", "correctness", "speed", "memory", "training", "peers",
    "sanitizer",
)  # fmt: skip


def attempt(section: Section, machine: Machine, item: str) -> dict[str, Any]:
    """Do an item; a failure is a record, too."""
    start = time.perf_counter()
    try:
        record = section.run(machine, item)
    except Absent as absent:
        record = {"absent": str(absent)}
    except Exception as error:
        lines = traceback.format_exception(error, limit=-4)
        record = {"failed": "".join(lines)[-1500:]}
    return clean({**record, "seconds": round(time.perf_counter() - start, 2)})


def clean(value: Any) -> Any:
    """The value in types that JSON has."""
    if isinstance(value, dict):
        return {str(name): clean(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(one) for one in value]
    if isinstance(value, str):  # without the machine's folders
        return re.sub(r'"/[^"\n]*/([^"/\n]+)"', r'"\1"', value.replace(f"{ROOT}/", ""))
    if isinstance(value, (bool, int, type(None))):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else str(number)


class Results:
    """The results so far, in two files."""

    def __init__(self, folder: Path, emulated: bool) -> None:
        self.folder = folder
        begun = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.found: dict[str, Any] = {"emulated": emulated, "begun": begun, "sections": {}}
        folder.mkdir(parents=True, exist_ok=True)

    def tell(self, section: str, item: str, record: dict[str, Any]) -> None:
        """Take up a record, and write."""
        self.found["sections"].setdefault(section, {})[item] = record = clean(record)
        print(f"{section:12} {item:40} {report.in_short(record)}", flush=True)
        self.write()

    def write(self) -> None:
        """Both files, whole."""
        with written_atomically(self.folder / "gpu.json") as path:
            path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        with written_atomically(self.folder / "gpu.md") as path:
            path.write_text(report.markdown(self.found), encoding="utf-8")


def run(options: argparse.Namespace) -> int:
    """All sections that are asked for; 1 where something failed or is wrong."""
    until = time.monotonic() + 60 * options.minutes
    results = Results(options.out, options.emulate)
    for name, section in sections(options).items():
        if options.only and name not in options.only:
            continue
        try:
            run_section(name, section, options, until, partial(results.tell, name))
        except Exception as error:
            results.tell(name, "section", {"failed": repr(error)[:1500]})
    results.write()
    print((options.out / "gpu.md").read_text(encoding="utf-8"))
    return 1 if report.bad(results.found) else 0


def run_section(
    name: str, section: Section, options: argparse.Namespace, until: float,
    tell: Callable[[str, dict[str, Any]], None],
) -> None:  # fmt: skip
    """In processes of its own; in emulation here, where nothing crashes."""
    if options.emulate:
        with opened(emulate=True) as machine:
            for item in section.items:
                tell(item, attempt(section, machine, item))
        return
    command = [sys.executable, "-m", "benchmarks.gpu", f"--child={name}"]
    for option in ("cell", "precision"):
        if getattr(options, option):
            command.append(f"--{option}={getattr(options, option)}")
    until = min(until, time.monotonic() + section.in_all)
    children.run(command, section.items, section.limit, until, tell)


def be_a_child(options: argparse.Namespace) -> None:
    """Run the items of a section that come through the standard input."""
    section = sections(options)[options.child]
    with opened(options.emulate, options.tiny) as machine:
        if options.tiny and not machine.emulated:
            import cupy

            cupy.cuda.set_allocator(None)  # each array by itself, that none hides behind another
        children.serve(partial(attempt, section, machine), machine.healthy)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    numbers = "correctness and speed in this precision alone"
    emulate = "tiny sizes on the tests' emulator, without a GPU: to see that the program runs"
    minutes = "what has not begun by then is skipped, what runs is stopped (8)"
    add("--out", type=Path, default=OUT, help="folder of gpu.json and gpu.md (benchmarks/results)")
    add("--only", action="append", choices=NAMES, help="this section; may be given several times")
    add("--cell", help="correctness and speed of this cell alone, such as lstm")
    add("--precision", choices=("float32", "tf32", "bfloat16"), help=numbers)
    add("--minutes", type=float, default=8.0, help=minutes)
    add("--emulate", action="store_true", help=emulate)
    for hidden in ("--child", "--share", "--device"):
        add(hidden, help=argparse.SUPPRESS)
    add("--tiny", action="store_true", help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.share:
        share = others.compile_share(options.share, options.device, options.cell, options.precision)
        print(json.dumps(share))
        return 0
    if options.child:
        be_a_child(options)
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
