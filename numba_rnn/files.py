"""Files that are either whole or not there, and folders that one process writes to at a time."""

import os
import secrets
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
elif sys.platform != "emscripten":  # in a browser there are no locks, and no second process
    import fcntl

MOST_UNPACKED = 100  # times the size of a compressed file; text and weights shrink to a tenth
ALWAYS_UNPACKED = 1 << 24  # bytes that any file may unpack to


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Write to the path given; when the block ends it takes the place of ``path`` at once.

    Whatever moment the process is killed at, ``path`` holds the old content or the new one. The
    file keeps the permissions of the one it replaces; a new one has the usual ones (the umask). A
    ``path`` that is a symbolic link is replaced by the file: where the link led nothing changes.
    Raises FileNotFoundError where there is no such folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected an existing folder, got {path.parent} for {path}")
    there = path.lstat() if os.path.lexists(path) else None
    mode = stat.S_IMODE(there.st_mode) if there and stat.S_ISREG(there.st_mode) else None
    # a name that nobody can guess, and a file that was not there: no link is followed
    part = path.with_name(f".{path.stem}.part-{secrets.token_hex(8)}{path.suffix}")
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    os.close(os.open(part, new, 0o666 if mode is None else 0o600))
    try:
        yield part
        with open(part, "r+b") as file:
            os.fsync(file.fileno())
        if mode is not None:
            part.chmod(mode)
        _replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.add_note(f"while writing {path}")
        raise
    if sys.platform != "win32":  # the rename itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _replace(part: Path, path: Path) -> None:
    """Rename a file; on Windows that has to wait for whoever reads the one that it replaces."""
    for pause in (0.01, 0.1, 1.0) if sys.platform == "win32" else ():
        try:
            os.replace(part, path)
            return
        except PermissionError:
            time.sleep(pause)
    os.replace(part, path)


def remove_parts(folder: Path, suffix: str) -> None:
    """Remove what writers of ``written_atomically`` have left in a folder that were killed."""
    for part in folder.glob(f".*.part-{'[0-9a-f]' * 16}{suffix}"):
        part.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder, which is made where there is none, to this block until it ends.

    The lock is the operating system's, on ``.lock`` in the folder, which names the process: it is
    gone when its process is, however that ended. Where a file system has no locks there is none.
    Raises BlockingIOError, naming the process that has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    number = _locked_file(path)
    try:
        os.ftruncate(number, 0)
        os.write(number, f"{os.getpid()} {socket.gethostname()}".encode())
        yield
    finally:
        if sys.platform == "win32":  # where no file is removed that is open
            os.close(number)
            with suppress(OSError):
                path.unlink()
        else:  # before it is unlocked, or it might be the next one's
            path.unlink(missing_ok=True)
            os.close(number)


def _locked_file(path: Path) -> int:
    """The file descriptor of a lock file, opened and locked."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(number)
            if path.exists() and os.path.samestat(os.fstat(number), path.stat()):
                return number  # else its last owner has removed it meanwhile
        except (BlockingIOError, PermissionError):
            who = os.read(number, 300).decode(errors="replace").split()
            process = f"process {who[0]} on {who[1]}" if len(who) == 2 else "another process"
            os.close(number)
            raise BlockingIOError(
                f"{path.parent}: {process} is training there; wait for it, stop it, or choose "
                "another folder (--out)"
            ) from None
        except BaseException:
            os.close(number)
            raise
        os.close(number)


def _lock(number: int) -> None:
    """Lock an open file; BlockingIOError, on Windows PermissionError, where another has it."""
    try:
        if sys.platform == "win32":
            os.lseek(number, 1 << 30, os.SEEK_SET)  # far behind its content, which others read
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
            os.lseek(number, 0, os.SEEK_SET)
        elif sys.platform != "emscripten":
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.lseek(number, 0, os.SEEK_SET)
        raise
    except OSError:
        pass  # a file system without locks


def expect_unpacked(path: Path, unpacked: int) -> None:
    """Refuse a compressed file that becomes so large that it was made to fill the memory."""
    if unpacked > unpacked_limit(path):
        raise ValueError(
            f"{path}: expected a file that unpacks to at most {MOST_UNPACKED} times its size, got "
            f"one whose {path.stat().st_size:,} bytes become more; unpack it first"
        )


def unpacked_limit(path: Path) -> int:
    """The number of bytes that a compressed file may unpack to."""
    return max(ALWAYS_UNPACKED, MOST_UNPACKED * path.stat().st_size)
