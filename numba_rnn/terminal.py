"""Lines and progress bars on streams that may be missing, or whose reader may go away.

``sys.stderr`` is None under pythonw, and where it was closed; a pipe or a terminal may end. The
output is then lost, and the work goes on.
"""

import sys
from contextlib import suppress
from typing import Any


class LossyStream:
    """A text stream, or None; output that it cannot take is lost without an error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def open(self) -> bool:
        """Whether there is a stream that is not closed."""
        return self._stream is not None and not getattr(self._stream, "closed", False)

    def write(self, text: str) -> int:
        with suppress(OSError):
            if self.open:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            if self.open:
                self._stream.flush()

    def isatty(self) -> bool:
        return bool(self.open and self._stream.isatty())


def say(line: str) -> None:
    """Print a line on stdout."""
    print(line, file=LossyStream(sys.stdout), flush=True)


def progress_bar(iterable: Any = None, *, shown: bool, **options: Any) -> Any:
    """A tqdm on stderr; a log file gets fewer lines than a terminal."""
    from tqdm import tqdm

    stream = LossyStream(sys.stderr)
    return tqdm(
        iterable,
        file=stream,
        disable=not (shown and stream.open),
        mininterval=0.2 if stream.isatty() else 30.0,
        dynamic_ncols=True,
        **options,
    )


def start_clock(bar: Any, n: int) -> None:
    """Move a bar on by ``n``, and begin to time it now.

    The first step takes compilation, too: the rate, and when the end is to be expected, are those
    of the others.
    """
    bar.initial = bar.n = bar.last_print_n = bar.n + n
    bar.unpause()
    bar.refresh()
