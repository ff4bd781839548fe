"""Items one after the other in processes that may crash or hang.

A child reads its items as JSON from its input and answers in lines that bear a mark; all else
that it says goes through. An item that does not answer in time, or that takes the process with it,
is recorded as failed, and a new child goes on with the rest.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
MARK = "@@gpu "
ROOT = Path(__file__).resolve().parents[2]
START = 60.0  # seconds until the first item begins: imports
AHEAD = 4  # processes that wait for their turn, everything imported
MOST_FAILURES = 8  # children that a section may lose


def say(**content: Any) -> None:
    """A line from child to parent."""
    print(MARK + json.dumps(content), flush=True)


def serve(run: Callable[[str], Record], healthy: Callable[[], bool]) -> None:
    """The child: run the items that the parent sends, until one spoils the process."""
    for item in json.load(sys.stdin):
        say(begin=item)
        record = run(item)
        say(item=item, record=record)
        if "failed" in record and not healthy():
            sys.exit(3)


def run(
    command: Sequence[str],
    items: Sequence[str],
    limit: float,
    until: float,
    tell: Callable[[str, Record], None],
    begun: Callable[[str], None] = lambda item: None,
    fresh: bool = False,
) -> None:
    """Run the items in children; ``tell`` gets a record for each.

    limit  seconds an item
    until  the ``time.monotonic()`` after which the rest is skipped
    begun  is told of an item before it runs
    fresh  each item in a process of its own
    """
    rest, failures, waiting = list(items), 0, deque[_Child]()
    try:
        while rest and failures < MOST_FAILURES and time.monotonic() < until:
            while len(waiting) < min(AHEAD if fresh else 1, len(rest)):
                waiting.append(_Child(command))
            now = rest[:1] if fresh else rest
            left = _one_child(waiting.popleft(), now, limit, until, tell, begun)
            rest = [*left, *rest[1:]] if fresh else left
            failures += not fresh
    finally:
        for child in waiting:
            child.end(patience=0)
    for item in rest:
        lost = failures >= MOST_FAILURES
        tell(item, {"skipped": "too many failed before it" if lost else "the time was up"})


class _Child:
    """A process, and what it says line by line."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True, cwd=ROOT,
        )  # fmt: skip
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.said: deque[str] = deque(maxlen=12)
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()

    def go(self, items: list[str]) -> None:
        """Send it its items."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it may end at any time
            self.process.stdin.write(json.dumps(items))
            self.process.stdin.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                self.lines.put(line)
        self.process.stdout.close()
        self.lines.put(None)

    def answer(self, by: float) -> Record | None:
        """The next answer; None where the process is gone. Raises queue.Empty after ``by``."""
        while True:
            line = self.lines.get(timeout=max(0.0, by - time.monotonic()))
            if line is None:
                return None
            _, mark, content = line.partition(MARK)
            if mark:
                return json.loads(content)
            self.said.append(line)
            print(line, end="", flush=True)

    def status(self, patience: float) -> int | None:
        """The status it ended with; None if it has not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=patience)
        return self.process.returncode

    def end(self, patience: float) -> None:
        """End it, and all that it started."""
        self.status(patience)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (OSError, AttributeError):
            self.process.kill()
        self.status(10)  # a process that waits for a device may not end at once
        self.reader.join(timeout=5)


def _one_child(
    child: _Child, items: list[str], limit: float, until: float,
    tell: Callable[[str, Record], None], begun: Callable[[str], None],
) -> list[str]:  # fmt: skip
    """Run items in one child; returns those that are left when it is gone."""
    rest, running = list(items), None
    child.go(items)

    def give_up(item: str, **record: str) -> None:
        tell(item, record)
        rest.remove(item)

    by = time.monotonic() + START
    try:
        while rest:
            try:
                answer = child.answer(min(by, until))
            except queue.Empty:
                late = time.monotonic() >= until
                why = {"skipped": "the time was up"} if late else {"failed": "no answer in time"}
                give_up(running or rest[0], **why)
                break
            if answer is None:
                # a child that was healthy until now, and one that did not even start
                lost = [running] if running else rest[:] if rest == items else []
                text = "".join(child.said).strip()[-1500:]
                for item in lost:
                    give_up(item, failed=f"the process ended with {child.status(10)}\n{text}")
                break
            running = answer.get("begin")
            if running is not None:
                begun(running)
            by = time.monotonic() + (limit if running else START)
            if running is None:
                tell(answer["item"], answer["record"])
                rest.remove(answer["item"])
    finally:
        child.end(patience=0 if rest else 10)
    return rest
