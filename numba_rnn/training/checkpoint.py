"""Checkpoints: arrays as safetensors with JSON beside them, in one file, written atomically.

The file's metadata has one entry, ``numba_rnn``: JSON with ``format``, ``content`` (whatever the
caller saves that is not an array) and ``sha256``, the digest of the content and of every array.
A file that is cut short, changed or foreign is refused, and reading runs no code from it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..files import written_atomically
from ..typing import AnyArray

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names the file and the reason."""


def _digest(content: str, arrays: dict[str, AnyArray]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _as_saved(name: Any, array: Any) -> AnyArray:
    """An array as the file has it."""
    if not isinstance(name, str) or name == "__metadata__":
        raise ValueError(
            f"arrays: expected names that are text, __metadata__ not among them, got {name!r}"
        )
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected numbers of up to 8 bytes, got {array.dtype}")
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def expect_content(name: str, content: Any) -> None:
    """Refuse what a file would not give back as it is: JSON has lists, no tuples, and names that
    are text."""
    if not isinstance(content, dict):
        raise TypeError(f"{name}: expected a dict, got {type(content).__name__}")
    try:
        _expect_json(name, content)
    except RecursionError as error:
        raise ValueError(
            f"{name}: expected JSON, got a value that contains itself or is nested too deeply"
        ) from error


def _expect_json(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise TypeError(
                    f"{name}: expected names that are text, as JSON has them, got {key!r}; "
                    f"use {str(key)!r}"
                )
            _expect_json(f"{name}[{key!r}]", one)
    elif isinstance(value, list):
        for k, one in enumerate(value):
            _expect_json(f"{name}[{k}]", one)
    elif not (value is None or isinstance(value, (str, int, float))):
        remedy = f"; list({name}) converts it" if isinstance(value, tuple) else ""
        raise TypeError(
            f"{name}: expected a dict, a list, text, a number, True, False or None, as JSON has "
            f"them, got {type(value).__name__}{remedy}"
        )


def save_checkpoint(path: str | Path, arrays: dict[str, AnyArray], content: dict[str, Any]) -> None:
    """Write arrays and JSON content, a dict, to one file. Equal input gives equal bytes.

    Parameters
    ----------
    path : str or Path
        The file.
    arrays : dict of str to array
        NumPy arrays by name.
    content : dict
        JSON that comes back as it was: dicts with names that are text, lists, text, numbers, True,
        False and None.

    Raises
    ------
    TypeError, ValueError
        If something would be lost when the file is read; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    arrays = {name: _as_saved(name, array) for name, array in arrays.items()}
    expect_content("content", content)
    text = json.dumps(content, sort_keys=True)
    try:
        entry = {"format": FORMAT, "content": content, "sha256": _digest(text, arrays)}
        data = save(arrays, metadata={"numba_rnn": json.dumps(entry, sort_keys=True)})
    except (SafetensorError, UnicodeError) as error:
        raise ValueError(f"arrays: safetensors cannot store them ({error})") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as part:
        part.write_bytes(data)


def load_checkpoint(path: str | Path) -> tuple[dict[str, AnyArray], dict[str, Any]]:
    """Read the arrays and the content of a file that ``save_checkpoint`` wrote.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    arrays : dict of str to array
        NumPy arrays by name.
    content : dict
        The JSON content.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If the file is damaged, or not a checkpoint of numba_rnn.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        found = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"checkpoint: expected a file, got a folder; in {path}: {found}")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: expected a file, found none at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys()) if "numba_rnn" in metadata else []
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, got one that cannot be read ({error})"
        ) from error
    if "numba_rnn" not in metadata:
        raise CheckpointError(
            f"{path}: expected a checkpoint of numba_rnn, got a safetensors file without one in it"
        )
    try:
        entry = json.loads(metadata["numba_rnn"])
        version, content, sha256 = entry["format"], entry["content"], entry["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its numba_rnn entry cannot be read ({error!r})") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: expected format {FORMAT}, got {version!r}; a newer numba_rnn may read it"
        )
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: its content is {type(content).__name__}, not an object")
    if _digest(json.dumps(content, sort_keys=True), arrays) != sha256:
        raise CheckpointError(f"{path}: its digest does not match; the file has been changed")
    return arrays, content
