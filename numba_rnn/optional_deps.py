"""Libraries that do not come with the package itself, and what installs them."""

from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGES = {  # quoted: some shells take brackets for a pattern
    "aeon": '"numba-rnn[aeon]"',
    "flax": '"numba-rnn[flax]"',
    "keras": '"numba-rnn[keras]"',
    "matplotlib": '"numba-rnn[plot]"',
    "onnx": '"numba-rnn[onnx]"',
    "sklearn": '"numba-rnn[sklearn]"',
    "sktime": '"numba-rnn[sktime]"',
    "tensorboardX": '"numba-rnn[tensorboard]"',
    "torch": "torch",
}


@contextmanager
def optional_import(library: str, what: str) -> Iterator[None]:
    """Around an import: where the library is missing, an ImportError that names the remedy.

    what   what needs it. Any other error of an import stays as it is.

    >>> with optional_import("torch", "to_torch"):
    ...     raise ModuleNotFoundError(name="torch")
    Traceback (most recent call last):
    ImportError: to_torch needs torch: pip install torch
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] != library:
            raise
        raise ImportError(
            f"{what} needs {library}: pip install {_PACKAGES[library]}", name=library
        ) from error
