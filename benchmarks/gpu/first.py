"""The first minute on a GPU: does a kernel start, end, compute the right numbers, and how fast?

    python -m benchmarks.gpu.first FOLDER          a child: reads its items from the input
    python -m benchmarks.gpu.first FOLDER ITEM     one item, for a profiler

All that it needs is NumPy, CuPy and a folder that ``prepared.py`` has filled, on a machine with or
without a GPU: compiled kernels, the arguments that the engine gives them, what has to come out.
So it says what the hardware does even where nothing else of the project can be imported. An item is

    check/...              a few launches on stored arrays, against the NumPy engine in float64
    time/SIZES/PRECISION/WAY        microseconds a step of a persistent kernel
    parts/SIZES/PRECISION/WAY/PART  the same with parts of the step left out:
                                    barrier   it waits and arrives, nothing else
                                    exchange  it also reads what the other blocks wrote
                                    product   no waiting, and one line of the exchange, read again
"""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import children

Case = dict[str, Any]
Record = dict[str, Any]


class CupyDevice:
    """The GPU, by CuPy, and the compiled kernels of a folder."""

    def __init__(self, folder: Path) -> None:
        import cupy

        self.cupy, self.folder = cupy, folder
        self.functions: dict[str, Any] = {}

    def put(self, array: np.ndarray) -> Any:
        """An array of the host on the device."""
        return self.cupy.asarray(array)

    def filled(self, shape: list[int], dtype: str) -> Any:
        """An array of moderate numbers for measurements."""
        some = np.random.default_rng(0).standard_normal(1 << 16).astype(dtype) * 0.03
        size = int(np.prod(shape))
        return self.cupy.resize(self.put(some.astype(dtype)), size).reshape(shape)

    def get(self, array: Any) -> np.ndarray:
        """Its numbers, when all is done that was started."""
        return self.cupy.asnumpy(array)

    def launch(self, launch: Record, arguments: list[Any]) -> None:
        """Start a kernel; a grid that does not fit the device is an error."""
        function, driver = self._function(launch), self.cupy.cuda.driver
        if launch["cooperative"]:
            each = driver.occupancyMaxActiveBlocksPerMultiprocessor(
                function.ptr, launch["threads"], launch["shared"]
            )
            room = each * self.cupy.cuda.Device().attributes["MultiProcessorCount"]
            if launch["grid"][0] * launch["grid"][1] > room:
                raise RuntimeError(f"a grid of {launch['grid']}, and room for {room} blocks")
        function(
            tuple(launch["grid"]), (launch["threads"],), tuple(arguments),
            shared_mem=launch["shared"], enable_cooperative_groups=launch["cooperative"],
        )  # fmt: skip

    def _function(self, launch: Record) -> Any:
        key = launch["kernel"]
        if key not in self.functions:
            head, code = (self.folder / f"{key}.cubin").read_bytes().split(b"\n", 1)
            module = self.cupy.cuda.Module()
            module.load(code)
            function = self.functions[key] = module.get_function(head.decode())
            if launch["shared"] > 48 * 1024:
                self.cupy.cuda.driver.funcSetAttribute(function.ptr, 8, launch["shared"])
        return self.functions[key]

    def microseconds(self, call: Any) -> tuple[float, int]:
        """A call's, by the device's clock: the median of five rounds, and of how many calls."""
        cuda = self.cupy.cuda
        begin, end = cuda.Event(), cuda.Event()

        def elapsed(repeats: int) -> float:
            begin.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
            return 1e3 * cuda.get_elapsed_time(begin, end) / repeats

        elapsed(2)
        repeats = int(min(100, max(2, 20_000 / elapsed(1))))
        return median(elapsed(repeats) for _ in range(5)), repeats


def waited(report: np.ndarray) -> str | None:
    """The reports of blocks of a debug build that waited too long (``persistent.kernel``)."""
    rows = np.asarray(report).reshape(-1, 4)
    blocks = np.flatnonzero(rows[:, 1] < rows[:, 2])
    if not blocks.size:
        return None
    first = blocks[np.argmin(rows[blocks, 0])]
    step, seen, wanted, _ = rows[first]
    return (
        f"{blocks.size} blocks waited in vain, the first one, block {first}, at step {step - 1}: "
        f"it counted {seen} arrivals and waited for {wanted}"
    )


def run(device: Any, case: Case, stored: Any) -> Record:
    """An item's record; ``stored`` are the folder's arrays by name."""
    return _measured(device, case) if case["kind"] == "time" else _checked(device, case, stored)


def _launch_all(device: Any, case: Case, arrays: list[Any]) -> None:
    for launch in case["launches"]:
        arguments = [
            arrays[x["array"]] if "array" in x else int(x["int"]) for x in launch["arguments"]
        ]
        device.launch(launch, arguments)


def _checked(device: Any, case: Case, stored: Any) -> Record:
    outcomes = []
    for _ in range(case["runs"]):
        arrays = [device.put(stored[array["from"]]) for array in case["arrays"]]
        _launch_all(device, case, arrays)
        outcomes.append([device.get(arrays[want["array"]]) for want in case["want"]])
        stuck = [device.get(arrays[k]) for k in case["report"]]
        why = next(filter(None, map(waited, stuck)), None)
        if why:
            return {"failed": why}
    errors = {}
    for want, got in zip(case["want"], outcomes[0], strict=True):
        exact = stored[want["from"]]
        if want["weights"]:  # gradients of gates: through the inputs' weights they are dxs
            weights = stored[want["weights"]].astype(np.float64)
            got = got[..., : weights.shape[1]].astype(np.float64) @ weights.T
            got = got.transpose(1, 0, 2)
        got = got[:, -exact.shape[1] :].astype(np.float64)
        errors[want["name"]] = float(np.abs(got - exact).max() / np.abs(exact).max())
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else np.inf)
    differ = sum(
        any(a.tobytes() != b.tobytes() for a, b in zip(outcomes[0], other, strict=True))
        for other in outcomes[1:]
    )
    found = {"worst": errors[worst], "where": worst, "limit": case["limit"], "cases": case["runs"]}
    if not errors[worst] <= case["limit"]:
        found["wrong"] = f"off by {errors[worst]:.1e}, of {case['limit']:.0e} allowed, in {worst}"
    elif differ:
        found["wrong"] = f"{differ} of {case['runs'] - 1} further runs gave other bits"
    return {**found, "blocks": case["blocks"], "steps": case["steps"]}


def _measured(device: Any, case: Case) -> Record:
    arrays = [
        device.put(np.zeros(a["shape"], a["dtype"])) if a["zero"]
        else device.filled(a["shape"], a["dtype"])
        for a in case["arrays"]
    ]  # fmt: skip

    def call() -> None:
        for k in case["counters"]:
            arrays[k].fill(0)
        _launch_all(device, case, arrays)

    took, calls = device.microseconds(call)
    why = next(filter(None, (waited(device.get(arrays[k])) for k in case["report"])), None)
    if why:
        return {"failed": why}
    return {"us": took / case["steps"], "steps": case["steps"], "calls": calls,
            "blocks": case["blocks"], "predicted_us": case["predicted_us"]}  # fmt: skip


def cases(folder: Path) -> dict[str, Case]:
    """The items of a folder."""
    return json.loads((folder / "first.json").read_text(encoding="utf-8"))


def main(folder: str, *item: str) -> None:
    """A child, or one item."""
    place = Path(folder)
    known, device = cases(place), CupyDevice(place)

    def attempt(name: str) -> Record:
        with np.load(place / "first.npz") as stored:
            try:
                return run(device, known[name], stored)
            except Exception as error:
                return {"failed": f"{type(error).__name__}: {str(error)[:600]}"}

    if item:
        print(attempt(*item))
    else:
        children.serve(attempt, lambda: False)


if __name__ == "__main__":
    main(*sys.argv[1:])
