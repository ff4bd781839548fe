"""Checkpoints: whole or refused."""

import errno
import json
import os
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest

from numba_rnn import files
from numba_rnn.files import locked
from numba_rnn.training import CheckpointError, load_checkpoint, save_checkpoint

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5], np.float64),
    "c": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
}
CONTENT = {"text": "ä\u2028\n", "number": 0.1, "large": 2**100, "list": [[1, 2.5]]}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "new" / "x.safetensors", ARRAYS, CONTENT)
    return tmp_path / "new" / "x.safetensors"


def test_what_is_saved_is_loaded(path):
    arrays, content = load_checkpoint(path)
    assert content == CONTENT
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_equal_content_gives_equal_bytes(path, tmp_path):
    save_checkpoint(tmp_path / "y.safetensors", dict(reversed(ARRAYS.items())), CONTENT)
    assert (tmp_path / "y.safetensors").read_bytes() == path.read_bytes()


def test_nothing_else_is_left_in_the_folder(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"a": np.zeros(3)}, {})
    assert path.read_bytes() == before


def test_cut_short_anywhere_it_is_refused(path):
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(200, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name):
            load_checkpoint(path)


def test_changed_anywhere_it_is_refused(path):
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(changed))
        try:
            arrays, content = load_checkpoint(path)
        except CheckpointError:
            continue
        # only what carries no meaning, such as a blank of the header's padding, may pass
        assert content == CONTENT
        assert all((arrays[name] == ARRAYS[name]).all() for name in ARRAYS)
        assert whole[place : place + 1] == b" "


def rewrite_header(path, edit):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    edit(header)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + size :])


def test_files_of_others_are_refused_by_name(path):
    rewrite_header(path, lambda header: header.pop("__metadata__"))
    with pytest.raises(CheckpointError, match="without one in it"):
        load_checkpoint(path)


def test_a_later_format_is_refused(path):
    def edit(header):
        entry = json.loads(header["__metadata__"]["numba_rnn"])
        entry["format"] = 99
        header["__metadata__"]["numba_rnn"] = json.dumps(entry)

    rewrite_header(path, edit)
    with pytest.raises(CheckpointError, match="expected format 1, got 99"):
        load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load_checkpoint(tmp_path / "nothing.safetensors")


def test_odd_content_comes_back_as_json_and_safetensors_have_it(tmp_path):
    arrays = {"big": np.arange(3, dtype=">f4"), "scalar": np.array(2.5), "none": np.zeros((0, 3))}
    save_checkpoint(tmp_path / "x", arrays, {"m": {"9": 1, "10": [None, True, -0.0, "\ud800"]}})
    found, content = load_checkpoint(tmp_path / "x")
    assert content == {"m": {"9": 1, "10": [None, True, -0.0, "\ud800"]}}
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


# ---- who may write where


def parts(folder):
    return [path.name for path in folder.iterdir() if ".part-" in path.name]


def test_a_planted_link_is_not_followed(path, tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    # a name that is known, and one that is guessed
    for name in (".x.safetensors.part.safetensors", ".x.part-0123.safetensors"):
        (path.parent / name).symlink_to(victim)
    save_checkpoint(path, ARRAYS, CONTENT)
    monkeypatch.setattr("secrets.token_hex", lambda _: "0123")
    with pytest.raises(FileExistsError):
        save_checkpoint(path, {"a": np.zeros(3)}, {})
    assert victim.read_text() == "precious"
    assert load_checkpoint(path)[1] == CONTENT


def test_a_target_that_is_a_link_is_replaced(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.unlink()
    path.symlink_to(victim)
    save_checkpoint(path, ARRAYS, CONTENT)
    assert not path.is_symlink()
    assert victim.read_text() == "precious"


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_permissions_are_those_of_the_umask_then_of_the_file_before(tmp_path):
    path, before = tmp_path / "x.safetensors", os.umask(0o027)
    try:
        save_checkpoint(path, ARRAYS, CONTENT)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o664, 0o400):
            path.chmod(mode)
            save_checkpoint(path, ARRAYS, CONTENT)
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_one_block_at_a_time_has_a_folder(tmp_path):
    folder = tmp_path / "new"
    with locked(folder):
        says = rf"{folder.name}: process {os.getpid()} on .* is training there; .*--out"
        with pytest.raises(BlockingIOError, match=says), locked(folder):
            pass
    with locked(folder):  # and nothing is left of it
        pass
    assert list(folder.iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from numba_rnn.files import locked\n"
        "with locked(Path(sys.argv[1])): print('mine', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "mine\n"
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on "), locked(tmp_path):
            pass
        process.kill()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().split()[0] == str(os.getpid())


def test_a_link_in_place_of_a_lock_is_not_written_to(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    folder.mkdir()
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match=r"\.lock"), locked(folder):
        pass
    assert victim.read_text() == "precious"


class Msvcrt:
    """Windows' counterpart of fcntl: locks of places in open files, which nobody else may read."""

    LK_NBLCK = 2

    def __init__(self):
        self.held = []  # file descriptors

    def locking(self, number, mode, count):
        assert (mode, count) == (self.LK_NBLCK, 1)
        assert os.lseek(number, 0, os.SEEK_CUR) > 1000  # behind what is read
        mine = os.fstat(number)
        if any(os.path.samestat(os.fstat(other), mine) for other in self.held):
            raise PermissionError(13, "Permission denied")
        self.held.append(number)


@pytest.fixture
def _windows(monkeypatch):
    system, close = Msvcrt(), os.close

    def unlocking(number):
        system.held = [other for other in system.held if other != number]
        close(number)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "close", unlocking)
    monkeypatch.setattr(files, "msvcrt", system, raising=False)


@pytest.mark.usefixtures("_windows")
def test_locks_as_windows_has_them(tmp_path):
    says = rf"process {os.getpid()} on \S+ is training there"
    with locked(tmp_path):
        for _ in range(2):
            with pytest.raises(BlockingIOError, match=says), locked(tmp_path):
                pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".lock").write_text("1234567 of one that was killed")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} ")


@pytest.mark.usefixtures("_windows")
def test_where_a_file_that_is_read_is_not_replaced_the_writer_waits(path, monkeypatch):
    replace, refusals = os.replace, [2]

    def busy(part, to):
        refusals[0] -= 1
        if refusals[0] >= 0:
            raise PermissionError(13, "being used by another process")
        replace(part, to)

    monkeypatch.setattr(os, "replace", busy)
    save_checkpoint(path, ARRAYS, {"new": True})
    assert load_checkpoint(path)[1] == {"new": True}
    refusals[0] = 99
    with pytest.raises(PermissionError):
        save_checkpoint(path, ARRAYS, {"newer": True})
    assert load_checkpoint(path)[1] == {"new": True}
    assert parts(path.parent) == []


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    name = "msvcrt.locking" if sys.platform == "win32" else "fcntl.flock"
    monkeypatch.setattr(name, refuse)
    with locked(tmp_path), locked(tmp_path):
        pass


# ---- saved is readable


ENDLESS = {}
ENDLESS["again"] = [ENDLESS]


@pytest.mark.parametrize(
    ("arrays", "content", "error", "says"),
    [
        ({"__metadata__": np.zeros(1)}, {}, ValueError, "__metadata__ not among them"),
        ({3: np.zeros(1)}, {}, ValueError, "names that are text, .*got 3"),
        ({"a": [1.0]}, {}, TypeError, "a: expected a NumPy array, got list"),
        ({"a": np.ma.masked_less(np.arange(3.0), 1)}, {}, TypeError, "a: .*got MaskedArray"),
        ({"a": np.array(["x"])}, {}, TypeError, "a: expected numbers .*got <U1"),
        ({"a": np.zeros(2, np.longdouble)}, {}, TypeError, "a: expected numbers of up to 8 bytes"),
        ({"a": np.zeros(2, complex)}, {}, TypeError, "a: expected numbers"),
        ({"\ud800": np.zeros(2)}, {}, ValueError, "safetensors cannot store them"),
        ({}, {"names": {"1": "uno", 1: "one"}}, TypeError, r"content\['names'\]: .*text.*got 1;"),
        ({}, {1: 2}, TypeError, "content: expected names that are text, .*got 1; use '1'"),
        ({}, {None: 2}, TypeError, "content: expected names that are text, .*got None"),
        ({}, {"a": [{"b": (1, 2)}]}, TypeError, r"content\['a'\]\[0\]\['b'\]: .*tuple; list\("),
        ({}, {"a": {1}}, TypeError, r"content\['a'\]: expected a dict, a list, .*got set"),
        ({}, {"a": np.int64(1)}, TypeError, r"content\['a'\]: .*got int64"),
        ({}, [1], TypeError, "content: expected a dict, got list"),
        ({}, (), TypeError, "content: expected a dict, got tuple"),
        ({}, None, TypeError, "content: expected a dict, got NoneType"),
        ({}, "x", TypeError, "content: expected a dict, got str"),
        ({}, ENDLESS, ValueError, "content: expected JSON, got a value that contains itself"),
    ],
    ids=range(19),
)  # fmt: skip
def test_what_would_not_come_back_is_refused_when_it_is_saved(path, arrays, content, error, says):
    before = path.read_bytes()
    with pytest.raises(error, match=says):
        save_checkpoint(path, arrays, content)
    assert path.read_bytes() == before
    assert parts(path.parent) == []


def test_every_dtype_that_is_saved_comes_back(tmp_path):
    kinds = [np.dtype(kind) for kind in "?bhilqBHILQefd"]
    arrays = {f"{kind.name} {n}": np.arange(3).astype(kind) for n, kind in enumerate(kinds)}
    save_checkpoint(tmp_path / "x", arrays, {})
    found, _ = load_checkpoint(tmp_path / "x")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
