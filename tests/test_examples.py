"""The example programs run from end to end, and do well what they are for."""

import os
import re
import subprocess
import sys
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from numba_rnn.bridges import from_amp

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name, *arguments, text=None, **variables):
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=EXAMPLES,
        env=os.environ | variables,
    )  # fmt: skip


def test_an_audio_effect_is_learnt_and_played(tmp_path):
    files = "--out", tmp_path / "out.wav", "--model", tmp_path / "amp.nam"
    done = run("audio_filter.py", "--epochs", 4, *files)
    assert done.returncode == 0, done.stderr
    assert from_amp(tmp_path / "amp.nam").player(96_000).factor == 2
    wrong = float(re.search(r"learnt: ([\d.]+)%", done.stdout)[1])
    assert wrong < 1
    assert "10.0 s of audio in blocks of 64, one every 1333 us" in done.stdout
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (48_000, 1)
        first = np.frombuffer(file.readframes(48_000), "<i2")
    assert np.abs(first).max() > 10_000
    names = "--wav", tmp_path / "out.wav", "--out", tmp_path / "소리.wav"
    again = run("audio_filter.py", "--epochs", 1, *names, PYTHONIOENCODING="cp1252")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "소리.wav").stat().st_size > 900_000
    assert "10.0 s of audio" in again.stdout


def test_other_sound_files_are_refused(tmp_path):
    path = tmp_path / "cd.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(bytes(400))
    done = run("audio_filter.py", "--epochs", 1, "--wav", path)
    assert done.returncode == 2
    assert "44100" in done.stderr
    assert "epoch" not in done.stderr


def test_a_live_series_is_forecast():
    done = run("live_forecast.py", "--epochs", 15, "--every", 1000)
    assert done.returncode == 0, done.stderr
    ours, naive = map(
        float, re.search(r"ahead ([\d.]+); .* ([\d.]+)$", done.stdout.strip()).groups()
    )
    assert ours < 0.6 * naive
    assert re.search(
        r"^  1000  now [\d.]+  next [\d.]+  then ([\d.]+, ){9}[\d.]+$", done.stdout, re.M
    )


def test_a_live_series_comes_in_by_lines():
    lines = [f"{np.sin(t / 5):.5f}" for t in range(1500)]
    lines[1200] = ""  # a gap
    done = run("live_forecast.py", "-", "--learn", 1000, "--epochs", 20, text="\n".join(lines))
    assert done.returncode == 0, done.stderr
    ours, naive = map(
        float, re.search(r"ahead ([\d.]+); .* ([\d.]+)$", done.stdout.strip()).groups()
    )
    assert ours < 0.3 * naive
    done = run("live_forecast.py", "-", text="1\n2\nthree\n")
    assert done.returncode == 2
    assert "line 3: expected a number, got 'three" in " ".join(done.stderr.split())
    done = run("live_forecast.py", "-", text="1\n2\n")
    assert "expected at least 300 numbers to learn from, got 2" in " ".join(done.stderr.split())


def test_a_voice_detector_is_that_of_onnx_runtime():
    done = run("voice_detector.py")
    if find_spec("silero_vad") is None:
        assert done.returncode == 2
        assert "silero-vad" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"from the whole graph ([\d.e+-]+)", done.stdout)[1]) < 1e-5
    assert len(re.findall(r"^speech from", done.stdout, re.M)) >= 3
    assert "speech in 50% of the steps" in done.stdout


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_help_is_there_without_docstrings(program):
    """Python -OO leaves docstrings and assertions out."""
    command = [sys.executable, "-OO", program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sage" in done.stdout
