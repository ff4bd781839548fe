"""The service of examples/: right answers to many at once, sessions, limits."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from numba_rnn import jobs

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
THERE = all(find_spec(name) for name in ("fastapi", "uvicorn", "websockets"))
MOST_SESSIONS = 12


@pytest.fixture(scope="module")
def serving():
    """The example as a module."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import serving

        yield serving
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, serving):
    """Small models; the service trains what is not there."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 60, "utf-8")
    config = jobs.TrainConfig(
        text=str(folder / "text.txt"), embed=8, hidden=16, batch=8, time=16, epochs=2
    )
    jobs.train(config, folder / "text")
    serving.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def models(serving, folder):
    return serving.Models(folder)


@pytest.fixture(scope="module")
def address(folder):
    """A service with two workers, until the last test has run."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, EXAMPLES / "serving.py", "--folder", folder, "--port", port]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*map(str, command), "--workers", "2", "--sessions", str(MOST_SESSIONS)],
            cwd=EXAMPLES, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        for _ in range(600):
            if process.poll() is not None:
                break
            try:
                if ask(f"127.0.0.1:{port}", "GET", "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.2)
        else:
            raise AssertionError("the service has not started")
        assert process.poll() is None, (folder / "log").read_text("utf-8")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def ask(address, method, path, asked=None, headers=()):
    with closing(HTTPConnection(address, timeout=60)) as http:
        body = None if asked is None else json.dumps(asked)
        http.request(method, path, body, {"content-type": "application/json", **dict(headers)})
        response = http.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text.startswith((b"{", b"[")) else text


def test_what_is_missing_is_named():
    if THERE:
        return
    done = subprocess.run(
        [sys.executable, EXAMPLES / "serving.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "numba-rnn[serve]" in done.stderr


@pytest.mark.skipif(not THERE, reason="takes pip install numba-rnn[serve]")
class TestService:
    def test_a_forecast_is_that_of_the_model(self, address, models):
        values = np.sin(np.arange(60) / 5).tolist()
        status, found = ask(address, "POST", "/forecast", {"values": values, "horizon": 7})
        assert status == 200
        assert found["forecast"] == models.forecast(values, 7)
        constant = ask(address, "POST", "/forecast", {"values": [3, 3, 3]})
        assert constant == (200, {"forecast": models.forecast([3.0] * 3, 1)})

    def test_many_at_once_get_right_answers(self, address):
        done = subprocess.run(
            [sys.executable, EXAMPLES / "serving_load.py", f"http://{address}",
             "--clients", "6", "--requests", "8"],
            capture_output=True, text=True, cwd=EXAMPLES, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        assert re.search(r"^144 answers to 6 clients at once .* 0 differ", done.stdout, re.M)
        assert re.findall(r"^(\w+) +(?:[\d.]+ *){5}$", done.stdout, re.M) == [
            "forecast", "session", "websocket",
        ]  # fmt: skip

    def test_a_session_remembers_in_all_workers(self, address, models):
        status, found = ask(address, "POST", "/sessions", {})
        assert status == 201
        path, state = f"/sessions/{found['session']}", models.start
        for text in ("to be ", "or not", "", " to be"):
            asked = {"text": text, "ahead": 9}
            state, want = models.read(state, text, 9)
            assert ask(address, "POST", f"{path}/read", asked) == (200, {"ahead": want})
        assert ask(address, "POST", f"{path}/reset")[0] == 204
        _, want = models.read(models.start, "to be", 9)
        asked = {"text": "to be", "ahead": 9}
        assert ask(address, "POST", f"{path}/read", asked) == (200, {"ahead": want})
        assert ask(address, "DELETE", path)[0] == 204
        status, found = ask(address, "POST", f"{path}/read", asked)
        assert (status, found["detail"]) == (404, "no such session, or it has expired")

    def test_one_session_is_asked_twice_at_once(self, address, models):
        """Each request is read wholly or refused: none is lost."""
        _, found = ask(address, "POST", "/sessions", {})
        path, counts = f"/sessions/{found['session']}", {200: 0, 409: 0}
        lock = threading.Lock()

        def read():
            for _ in range(10):
                status, _ = ask(address, "POST", f"{path}/read", {"text": "to be "})
                with lock:
                    counts[status] += 1

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(counts.values()) == 40
        state, _ = models.read(models.start, "to be " * counts[200], 0)
        _, want = models.read(state, "o", 20)
        assert ask(address, "POST", f"{path}/read", {"text": "o", "ahead": 20})[1]["ahead"] == want
        ask(address, "DELETE", path)

    def test_too_many_sessions(self, address):
        made = [ask(address, "POST", "/sessions", {}) for _ in range(MOST_SESSIONS + 1)]
        assert [status for status, _ in made] == [201] * MOST_SESSIONS + [503]
        for _, found in made[:-1]:
            ask(address, "DELETE", f"/sessions/{found['session']}")
        status, found = ask(address, "POST", "/sessions", {})
        assert status == 201
        ask(address, "DELETE", f"/sessions/{found['session']}")

    def test_a_connection_is_a_session(self, address, models):
        from websockets.exceptions import ConnectionClosed
        from websockets.sync.client import connect

        with connect(f"ws://{address}/characters") as one:

            def told(message):
                one.send(message if isinstance(message, str) else json.dumps(message))
                return json.loads(one.recv(60))

            state, want = models.read(models.start, "to be or", 12)
            assert told({"text": "to be or", "ahead": 12}) == {"ahead": want}
            assert told({"text": "x" * 2001})["error"].startswith("text: ")
            assert told("{")["error"].startswith(": ")
            assert told({"txt": "a"})["error"].startswith("txt: ")
            _, want = models.read(state, " not", 12)
            assert told({"text": " not", "ahead": 12}) == {"ahead": want}
            _, want = models.read(models.start, "that", 12)
            assert told({"reset": True, "text": "that", "ahead": 12}) == {"ahead": want}
            one.send("y" * 20_000)
            with pytest.raises(ConnectionClosed):
                one.recv(60)

    @pytest.mark.parametrize(
        ("path", "asked", "status", "where"),
        [
            ("/forecast", {"values": [1.0] * 10_001}, 422, "values"),
            ("/forecast", {"values": [1.0]}, 422, "values"),
            ("/forecast", {"values": [1.0, 1e200]}, 422, "values"),
            ("/forecast", {"values": [1.0, float("nan")]}, 422, "values"),
            ("/forecast", {"values": [1.0, 2.0], "horizon": 1001}, 422, "horizon"),
            ("/forecast", {"values": [1.0, 2.0], "speed": 1}, 422, "speed"),
            ("/sessions/x/read", {"text": "a" * 2001}, 422, "text"),
            ("/sessions/x/read", {"ahead": 201}, 422, "ahead"),
            ("/sessions/x/read", {"text": "a"}, 404, ""),
            ("/nothing", {}, 404, ""),
        ],
    )
    def test_limits(self, address, path, asked, status, where):
        got, found = ask(address, "POST", path, asked)
        assert got == status
        if where:
            assert where in found["detail"][0]["loc"]

    @pytest.mark.parametrize(
        ("header", "value", "status"),
        [("content-length", "300000", 413), ("transfer-encoding", "chunked", 411)],
    )
    def test_a_body_that_is_too_long_is_not_read(self, address, header, value, status):
        with closing(HTTPConnection(address, timeout=60)) as http:
            http.putrequest("POST", "/forecast")
            http.putheader(header, value)
            http.endheaders()
            assert http.getresponse().status == status


def test_sessions_expire(serving, tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr(serving.time, "time", lambda: now)
    ours, others = (serving.Sessions(tmp_path / "s", 10, 2) for _ in range(2))
    name = ours.new(b"start")
    assert others.get(name) == (b"start", 0)
    now += 9
    assert others.put(name, b"next", 0)
    assert not ours.put(name, b"late", 0)
    now += 9
    assert ours.get(name) == (b"next", 1)
    second = others.new(b"start")
    assert second != name
    assert ours.new(b"start") is None
    now += 2
    with pytest.raises(serving.NoSessionError):
        ours.get(name)
    assert ours.new(b"start") is not None
    ours.drop(second)
    with pytest.raises(LookupError):
        others.get(second)


def test_streams_are_borrowed(serving, folder, monkeypatch):
    models = serving.Models(folder, streams=1)
    monkeypatch.setattr(models, "_pool", NoWaiting(models._pool))
    with models.stream(), pytest.raises(serving.Empty):
        models.read(models.start, "to be", 3)
    assert models.read(models.start, "to be", 3)[1]


class NoWaiting:
    """A queue that does not wait."""

    def __init__(self, queue):
        self.put, self._get = queue.put, queue.get

    def get(self, timeout):
        return self._get(block=False)
