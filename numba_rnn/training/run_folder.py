"""The folder of a run, which holds the checkpoints of that run alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import locked, remove_parts

Identity = tuple[int, int, int] | None


def last_identity(folder: Path) -> Identity:
    """The identity of a folder's last checkpoint, which every save changes; None: there is none."""
    try:
        found = (folder / "last.safetensors").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def is_in(folder: Path | None, path: Path) -> bool:
    """Whether a file is in the folder, however the two are spelled."""
    if folder is None or not folder.exists() or not path.parent.exists():
        return False
    return path.parent.samefile(folder)


@contextmanager
def one_run_in(folder: Path, known: Identity, remedy: str) -> Iterator[None]:
    """See that no other run's checkpoints are in a folder, nor get there meanwhile.

    known   the last checkpoint of this run
    remedy  what to do where there is another
    """
    with locked(folder):
        if last_identity(folder) not in (None, known):
            raise FileExistsError(f"{folder} holds a run already: {remedy}")
        remove_parts(folder, ".safetensors")
        yield
