"""Checkpoints: whole or refused."""

import json
import struct

import numpy as np
import pytest

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
    with pytest.raises(CheckpointError, match="without its entry"):
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
    save_checkpoint(tmp_path / "x", arrays, {"m": {9: 1, 10: 2}})
    found, content = load_checkpoint(tmp_path / "x")
    assert content == {"m": {"9": 1, "10": 2}}
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
