"""The bits of plain passes stay what they are, whatever is rebuilt around them.

``golden.json`` has hashes of what each cell computes, forward and backward: on machines that
multiply and add in one rounding (with 16 or 8 numbers at a time), and on those that do not. A
change that is meant to change bits says so, and writes the file anew on each kind of machine:

    python tests/test_golden.py
    NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES= python tests/test_golden.py
"""

import hashlib
import json
import os
import platform
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from helpers import random_problem
from numba_rnn import cells, use_backend
from numba_rnn.kernels.cpu import launch

NAMES = cells.names()  # before other tests register some of their own
FILE = Path(__file__).parent / "golden.json"
KINDS = "fused", "not fused"
PARTITIONS = (1, True), (2, True), (2, False)  # threads, and whether they share rows or units


def digest(*arrays: np.ndarray) -> str:
    numbers = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return hashlib.sha256(numbers).hexdigest()[:16]


def hashes(name: str, dtype: str, shares: tuple[int, bool]) -> list[str]:
    """Of hs and the last state; of all gradients."""
    p = random_problem(name, 5, 7, 6, 37, np.dtype(dtype))
    with (
        use_backend("numba", strict=True) as engine,
        mock.patch.object(launch, "choose_partition", return_value=shares),
    ):
        hs, state, saved = engine.forward(p.cell, p.xs, p.state, p.params)
        found = engine.backward(p.cell, p.dhs, p.dstate, saved)
    return [digest(hs, *state), digest(found.xs, *found.state, *found.params)]


KNOWN = json.loads(FILE.read_text("utf-8"))


@pytest.mark.parametrize("shares", PARTITIONS)
@pytest.mark.parametrize("case", KNOWN["fused"])
def test_plain_passes_keep_their_bits(case, shares):
    """On other processors than x86-64, at least whoever shares the work."""
    known = [KNOWN[kind][case] for kind in KINDS]
    if platform.machine() not in ("x86_64", "AMD64"):
        known = [hashes(*case.split(), PARTITIONS[0])]
    assert hashes(*case.split(), shares) in known


def test_every_cell_has_its_hashes():
    for kind in KINDS:
        assert {case.split()[0] for case in KNOWN[kind]} == set(NAMES)


if __name__ == "__main__":
    kind = KINDS[os.environ.get("NUMBA_CPU_NAME") == "generic"]
    KNOWN[kind] = {
        f"{name} {dtype}": hashes(name, dtype, PARTITIONS[0])
        for name in NAMES
        for dtype in ("float32", "float64")
    }
    FILE.write_text(json.dumps(KNOWN, indent=1) + "\n", encoding="utf-8")
