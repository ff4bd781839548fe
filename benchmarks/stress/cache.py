"""Caches of compiled code that are damaged in many ways.

    python -m benchmarks.stress.cache                  50 damaged caches

In each, some entries are emptied, cut, have a bit flipped, are exchanged for others or replaced by
noise. A process that uses it is lost if it ends in an error, hangs, computes other numbers, or
does not mend what was damaged.
"""

import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from .first_use import outcome


def damage(cache: Path, how_many: int, chance: random.Random) -> list[Path]:
    """Damage some entries of a cache."""
    entries = sorted(cache.rglob("*.bin"))
    victims = chance.sample(entries, min(how_many, len(entries)))
    for victim in victims:
        whole = victim.read_bytes()
        bit = chance.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        other = chance.choice([entry for entry in entries if entry != victim])
        kinds = b"", whole[: chance.randrange(len(whole))], bytes(flipped), other.read_bytes()
        victim.write_bytes(chance.choice([*kinds, chance.randbytes(len(whole))]))
    return victims


def main(
    count: Annotated[int, typer.Option(help="Damaged caches.")] = 50,
    entries: Annotated[int, typer.Option(help="Damaged entries of each.")] = 3,
    seed: Annotated[int, typer.Option(help="Of what is damaged, and how.")] = 0,
    patience: Annotated[float, typer.Option(help="Seconds after which a process hangs.")] = 600.0,
) -> None:
    """Use damaged caches."""
    chance, lost, mended, start = random.Random(seed), [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        whole, used = Path(folder, "whole"), Path(folder, "used")
        _, want = outcome(2, patience, str(whole))
        sizes = {entry.name: entry.stat().st_size for entry in whole.rglob("*.bin")}
        for _ in range(count):
            shutil.copytree(whole, used)
            victims = damage(used, entries, chance)
            end, said = outcome(2, patience, str(used))
            if end != "done" or said != want:
                lost.append(f"{end}: {said}")
            # compiled again: of about the old size
            mended += all(
                0.9 < victim.stat().st_size / sizes[victim.name] < 1.1 for victim in victims
            )
            shutil.rmtree(used)
    print(
        f"{count} damaged caches: {len(lost)} lost, {mended} mended; "
        f"{time.monotonic() - start:.0f} s"
    )
    if lost or mended < count:
        print(*lost[:1])
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
