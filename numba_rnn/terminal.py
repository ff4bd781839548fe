"""What a program says while it works, which must not depend on whether anybody listens.

There may be no stream at all (``sys.stderr`` is None under pythonw and where it was closed), or its
reader may go away: a pipe, a terminal. Then what is said is lost, and the work goes on.
"""

import sys
from contextlib import suppress
from typing import Any


class Lasting:
    """A text stream, or None, that can be written to as long as one likes."""

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
    print(line, file=Lasting(sys.stdout), flush=True)


def progress_bar(iterable: Any = None, *, shown: bool, **options: Any) -> Any:
    """A tqdm on stderr; a log file gets fewer lines than a terminal."""
    from tqdm import tqdm

    stream = Lasting(sys.stderr)
    return tqdm(
        iterable,
        file=stream,
        disable=not (shown and stream.open),
        mininterval=0.2 if stream.isatty() else 30.0,
        dynamic_ncols=True,
        **options,
    )
