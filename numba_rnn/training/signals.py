"""Signals that ask a process to end: Ctrl-C and its like."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def signals_to(ask: Callable[[int], None]) -> Iterator[None]:
    """Call a function with a signal's number instead of ending; in the main thread, which they
    belong to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: Any) -> None:
        ask(number)

    before = {number: signal.signal(number, handler) for number in _stopping_signals()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _stopping_signals() -> list[signal.Signals]:
    """Those that the system has; SIGHUP only where it is not ignored, as under nohup."""
    names = "SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [
        number
        for number in found
        if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN
    ]
