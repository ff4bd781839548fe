"""The program: options, sections one after the other, results after every item."""

import argparse
import datetime
import json
import math
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __doc__ as description
from . import children, first, report

if TYPE_CHECKING:
    from .machine import Machine

# Modules that import the engine are imported where they are used: the first section needs none.

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "benchmarks" / "results"
TOOLS = ["memcheck", "racecheck", "synccheck"]
LAUNCHES = ["gate kernel", "product", "product and gate kernel"]
COMPILED = ["a gate kernel", "a persistent kernel"]
EMULATED_LIMIT = 30.0  # seconds of an item in processes of the emulator
MEMORY = ["ours/float32", "torch/float32", "ours/bfloat16", "torch/bfloat16"]
NAMES = (
    "first", "environment", "speed", "correctness", "profile", "sanitizer", "launch", "training",
    "peers", "memory", "compile", "others",
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A part of the program.

    items    what there is to do, each on its own
    run      does one: machine, item -> record
    limit    seconds an item may take
    in_all   seconds for all of them
    """

    items: Sequence[str]
    run: Callable[["Machine", str], dict[str, Any]]
    limit: float
    in_all: float


def sections(options: argparse.Namespace) -> dict[str, Section]:
    """All sections but the first by name, in their order."""
    from . import correctness, others, speed

    choice = options.cell, options.precision
    tiny = options.emulate or options.tiny
    checks = correctness.TINY if tiny else correctness.items(*choice)
    more = ["steps/float32/rnn"] if tiny else correctness.other_items(*choice)
    rows = speed.TINY if tiny else speed.items(*choice)
    if tiny:
        rows = [r for r in rows if all(c is None or c in r.split("/") for c in choice)]
    profile = partial(others.profile, folder=options.prepared)
    sanitizer = partial(others.sanitizer, folder=options.prepared)
    found = {
        "environment": Section(["device", "versions", "engine"], others.environment, 20, 30),
        "speed": Section(rows, speed.row, 20, 90),
        "correctness": Section(checks, correctness.check, 20, 60),
        "profile": Section(["forward", "backward"], profile, 45, 40),
        "sanitizer": Section(TOOLS, sanitizer, 50, 60),
        "launch": Section(LAUNCHES, others.launch, 10, 15),
        "training": Section(["language model"], others.training, 40, 40),
        "peers": Section(speed.PEERS, speed.peer, 30, 60),
        "memory": Section(MEMORY, speed.held, 10, 15),
        "compile": Section(COMPILED, others.compiling, 15, 20),
        "others": Section(more, correctness.check, 20, 60),
    }
    return {name: found[name] for name in NAMES[1:]}


def attempt(section: Section, machine: "Machine", item: str) -> dict[str, Any]:
    """Do an item; a failure is a record, too."""
    from .machine import Absent

    start = time.perf_counter()
    try:
        record = section.run(machine, item)
        stuck = machine.waited()
        if stuck:
            record = {**record, "failed": stuck}
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
    """The results so far: a line for whatever happens, and two files of all that is known."""

    def __init__(self, folder: Path, emulated: bool) -> None:
        self.folder, self.start = folder, time.monotonic()
        begun = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.found: dict[str, Any] = {"emulated": emulated, "begun": begun, "sections": {}}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.jsonl").write_text("", encoding="utf-8")

    def begin(self, section: str, item: str) -> None:
        """Say what runs now: after a crash of the machine it is the last line."""
        self._line(section=section, begin=item)

    def tell(self, section: str, item: str, record: dict[str, Any]) -> None:
        """Take up a record, and write."""
        self.found["sections"].setdefault(section, {})[item] = record = clean(record)
        self._line(section=section, item=item, record=record)
        print(f"{section:12} {item:40} {report.in_short(record)}", flush=True)
        self.write()

    def _line(self, **content: Any) -> None:
        content = {"s": round(time.monotonic() - self.start, 1), **content}
        with open(self.folder / "gpu.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write(self) -> None:
        """Both files, whole."""
        found = json.dumps(self.found, indent=1) + "\n"
        for name, text in (("gpu.json", found), ("gpu.md", report.markdown(self.found))):
            beside = self.folder / f"{name}.part"
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.folder / name)


def run(options: argparse.Namespace) -> int:
    """All sections that are asked for; 1 where something failed or is wrong."""
    until = time.monotonic() + 60 * options.minutes
    results = Results(options.out, options.emulate)
    wanted = [name for name in NAMES if not options.only or name in options.only]
    if not options.emulate:  # what the later sections read from the disk, while the first runs
        subprocess.Popen(
            [sys.executable, "-c", "import torch"], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    if "first" in wanted:
        _tried(results, "first", lambda: run_first(options, until, results))
        options.stepwise = blocks_hang(results.found["sections"].get("first", {}))
    for name in wanted:
        if name != "first":
            _tried(results, name, lambda name=name: run_section(name, options, until, results))
    results.write()
    print((options.out / "gpu.md").read_text(encoding="utf-8"))
    return 1 if report.bad(results.found) else 0


def _tried(results: Results, name: str, call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:
        results.tell(name, "section", {"failed": repr(error)[:1500]})


def blocks_hang(records: dict[str, Any]) -> bool:
    """Whether no kernel whose blocks wait for each other came to its end."""
    several = [r for item, r in records.items() if "blocks" in item and item.startswith("check/")]
    return bool(several) and all("failed" in record for record in several)


def run_first(options: argparse.Namespace, until: float, results: Results) -> None:
    """The first section: each item in a process of its own, which imports NumPy and CuPy alone."""
    until = min(until, time.monotonic() + 90)
    tell, begun = partial(results.tell, "first"), partial(results.begin, "first")
    if options.emulate:
        from . import prepared
        from .machine import opened

        with opened(emulate=True) as machine:
            items = list(prepared.first_items(machine.gpu.device, tiny=True))
            section = Section(items, prepared.emulated_first, 5, 60)
            if not options.stand_in:
                _run_here(section, machine, tell, begun)
                return
        children.run(_command(options, "first"), items, EMULATED_LIMIT, until, tell, begun)
        return
    if options.prepared is None:
        why = "no folder is given that was made by --prepare, on this machine or another"
        results.tell("first", "section", {"absent": why})
        return
    items = list(first.cases(options.prepared))
    command = [sys.executable, "-m", "benchmarks.gpu.first", str(options.prepared)]
    children.run(command, items, 5, until, tell, begun, fresh=True)


def run_section(name: str, options: argparse.Namespace, until: float, results: Results) -> None:
    """In processes of its own; in emulation here, where nothing crashes."""
    section = sections(options)[name]
    tell, begun = partial(results.tell, name), partial(results.begin, name)
    if options.emulate and not options.stand_in:
        from .machine import opened

        with opened(emulate=True) as machine:
            _run_here(section, machine, tell, begun)
        return
    until = min(until, time.monotonic() + section.in_all)
    limit = EMULATED_LIMIT if options.emulate else section.limit
    children.run(_command(options, name), section.items, limit, until, tell, begun)


def _run_here(
    section: Section, machine: "Machine", tell: Callable[..., None], begun: Callable[[str], None]
) -> None:
    for item in section.items:
        begun(item)
        tell(item, attempt(section, machine, item))


def _command(options: argparse.Namespace, name: str) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", f"--child={name}"]
    for option in ("cell", "precision", "prepared", "stand_in"):
        if getattr(options, option):
            command.append(f"--{option.replace('_', '-')}={getattr(options, option)}")
    return command + [f"--{flag}" for flag in ("stepwise", "emulate") if getattr(options, flag)]


def be_a_child(options: argparse.Namespace) -> None:
    """Run the items of a section that come through the standard input."""
    from . import prepared
    from .machine import opened, stand_in

    with prepared.installed(options.prepared), opened(options.emulate, options.tiny) as machine:
        if options.child == "first":
            section = Section([], prepared.emulated_first, 5, 60)
        else:
            section = sections(options)[options.child]
        if options.stepwise:
            machine.never_persistent()
        if options.tiny and not machine.emulated:
            import cupy

            cupy.cuda.set_allocator(None)  # each array by itself, that none hides behind another

        def one(item: str) -> dict[str, Any]:
            with stand_in(options.stand_in, f"{options.child}/{item}"):
                return attempt(section, machine, item)

        children.serve(one, machine.healthy)


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
    prepare = "fill this folder on a machine without a GPU, and end"
    given = "a folder that --prepare has filled: nothing has to be compiled"
    few = "with --prepare: the kernels of the first section alone"
    add("--prepare", type=Path, metavar="FOLDER", help=prepare)
    add("--few", action="store_true", help=few)
    add("--prepared", type=Path, metavar="FOLDER", help=given)
    add("--out", type=Path, default=OUT, help="folder of gpu.json and gpu.md (benchmarks/results)")
    add("--only", action="append", choices=NAMES, help="this section; may be given several times")
    add("--cell", help="correctness and speed of this cell alone, such as lstm")
    add("--precision", choices=("float32", "tf32", "bfloat16"), help=numbers)
    add("--minutes", type=float, default=8.0, help=minutes)
    add("--emulate", action="store_true", help=emulate)
    for hidden in ("--child", "--stand-in"):
        add(hidden, help=argparse.SUPPRESS)
    for hidden in ("--tiny", "--stepwise"):
        add(hidden, action="store_true", help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.prepare:
        from . import others, prepared

        failed = prepared.prepare(options.prepare, None if options.few else others.wanted)
        print("\n".join(failed))
        return 1 if failed else 0
    if options.child:
        be_a_child(options)
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
