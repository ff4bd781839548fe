"""Compiled code on disk, where later processes find it.

An entry is a file: the SHA-256 of its key and its content, then the content. One that does not
verify (cut, empty, changed, exchanged for another) is as good as none: it is compiled again and
replaced. Files are written whole or not at all.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, ClassVar

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def folder() -> Path | None:
    """In NUMBA_CACHE_DIR, else among the user's caches; None for a user without a home.

    The latter as platformdirs has it, for the application numba_rnn.
    """
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        return Path(named).absolute() / "numba_rnn"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
        found = Path(base) / "numba_rnn" / "Cache"
    elif sys.platform == "darwin":
        found = Path(os.path.expanduser("~/Library/Caches/numba_rnn"))
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        found = Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "numba_rnn"
    return found if found.is_absolute() else None


def is_writable() -> bool:
    """Whether there is a folder, made now if need be, that can be written to."""
    place = folder()
    if place is None:
        return False
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
    return os.access(place, os.W_OK)


def describe() -> str:
    """The folder, or why nothing is kept, in words."""
    return str(folder()) if is_writable() else "off: no writable folder; set NUMBA_CACHE_DIR"


class Entry:
    """The place of a file under a key, which may be there.

    name    the start of the file's name, for people
    source  the fingerprint of what it is compiled from; None, unknown: nothing is kept
    key     all else that decides what the content is, told apart by its repr
    """

    patience: ClassVar[float] = 60.0  # seconds that ``alone`` waits

    def __init__(self, name: str, source: str | None, *key: object) -> None:
        self._key = sha256(repr((source, *key)).encode()).digest()
        where = folder() if source is not None else None
        self._place = where and where / f"{name}-{self._key.hex()[:32]}.bin"

    def load(self) -> bytes | None:
        """The content; None where there is none that verifies."""
        if self._place is None:
            return None
        try:
            found = self._place.read_bytes()
        except OSError:
            return None
        digest, content = found[:32], found[32:]
        return content if digest == self._digest(content) else None

    def save(self, content: bytes) -> None:
        """Write or replace it; where nothing can be written, the next process compiles again."""
        if self._place is None:
            return
        temporary = self._place.with_name(f"{os.urandom(16).hex()}.tmp")
        with suppress(OSError):
            self._place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:  # "x": through no link
                    file.write(self._digest(content) + content)
                temporary.replace(self._place)
            finally:
                temporary.unlink(missing_ok=True)

    def _digest(self, content: bytes) -> bytes:
        return sha256(self._key + content).digest()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process is in here meanwhile, so that those that start together compile once.

        It waits for another one until that has saved this entry, but not for one that has stopped:
        without the lock nothing is wrong, only compiled twice.
        """
        with ExitStack() as stack:
            if self._place is not None:
                with suppress(OSError):  # without a folder nothing is shared
                    self._place.parent.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context((self._place.parent / "lock").open("ab"))
                    self._wait_for(file)
            yield  # closing the file gives the lock back

    def _wait_for(self, file: IO[bytes]) -> None:
        end = time.monotonic() + self.patience
        while True:
            try:
                return _lock(file)
            except (BlockingIOError, PermissionError):  # another process has it
                if self.load() is not None:
                    return None
            except OSError:  # a file system without locks
                return None
            if time.monotonic() > end:
                Entry.patience = 0.0
                return None
            time.sleep(0.05)
