"""A forecaster and a language model behind HTTP and WebSocket.

    pip install "numba-rnn[serve]"
    python examples/serving.py --workers 2           http://127.0.0.1:8000, /docs describes it
    python examples/serving_load.py                  in another terminal: traffic, and a table

    POST /forecast                {"values": [...], "horizon": 24}   the values that come next
    POST /sessions                                                   a session, empty
    POST /sessions/ID/read        {"text": "to be", "ahead": 20}     what comes next; it remembers
    POST /sessions/ID/reset       DELETE /sessions/ID
    WebSocket /characters         {"text": ..., "ahead": ...} or {"reset": true}, as often as wanted

At the first start both models are trained, in seconds. Any number of workers serve them. A session
is the state of the network, a few numbers: it lies in a database that all workers share, so that a
request may go to any of them, and it is forgotten when nobody has used it for a while. Everything
that comes in has a limit. A stream belongs to one thread at a time: each worker has a pool of them.
"""

import asyncio
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any

import numpy as np
import typer
from live_forecast import Forecaster, sensor, train

from numba_rnn import TimeAffine, TimeGRU, jobs
from numba_rnn.training import load_checkpoint, save_checkpoint

MOST_VALUES, MOST_HORIZON = 10_000, 1_000  # of a forecast
MOST_TEXT, MOST_AHEAD = 2_000, 200  # characters of a message
MOST_BYTES = 1 << 18  # of a request


# ---- models


def prepare(folder: Path) -> None:
    """Train what the folder has not yet."""
    if not (folder / "text" / "best.safetensors").exists():
        config = jobs.TrainConfig(embed=16, hidden=64, batch=64, time=32, epochs=2, dropout=0.0)
        jobs.train(config, folder / "text")
    if not (folder / "forecaster.safetensors").exists():
        series = np.array([value for value in islice(sensor(2000), 2000) if value == value])
        layers = train((series - series.mean()) / series.std(), hidden=24, epochs=10)
        arrays = {f"{k}.{name}": array for k, layer in enumerate(layers)
                  for name, array in zip(layer.param_names, layer.params, strict=True)}  # fmt: skip
        save_checkpoint(folder / "forecaster.safetensors", arrays, {})


class Models:
    """The models of a worker, and streams that threads borrow."""

    def __init__(self, folder: Path, streams: int = 4) -> None:
        arrays, _ = load_checkpoint(folder / "forecaster.safetensors")
        self._layers = [
            TimeGRU(*(arrays[f"0.{name}"] for name in ("Wx", "Wh", "b")), stateful=True),
            TimeAffine(arrays["1.W"], arrays["1.b"]),
        ]
        model, self.vocabulary, _ = jobs.load_model(folder / "text")
        self._pool: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._pool.put(model.stream())
        with self.stream() as stream:
            self.start = _bytes_of(stream.snapshot())

    @contextmanager
    def stream(self) -> Iterator[Any]:
        """A stream for this thread alone; Empty if none is free for five seconds."""
        stream = self._pool.get(timeout=5)
        try:
            yield stream
        finally:
            self._pool.put(stream)

    def forecast(self, values: list[float], horizon: int) -> list[float]:
        """The values that come next, in the units of those that came."""
        series = np.array(values)
        forecaster = Forecaster(self._layers, float(series.mean()), float(series.std()) or 1.0)
        for value in values:
            forecaster.read(value)
        return forecaster.ahead(horizon)

    def read(self, state: bytes, text: str, ahead: int) -> tuple[bytes, str]:
        """The state after a text, and what probably follows; the state knows of the text alone."""
        with self.stream() as stream:
            stream.restore(_arrays_of(state, stream.snapshot()))
            scores = None
            for token in self.vocabulary.encode(text):
                scores = stream.step(int(token))
            after, found = _bytes_of(stream.snapshot()), []
            for _ in range(ahead if scores is not None else 0):
                token = int(scores.argmax())
                found.append(token)
                scores = stream.step(token)
            return after, self.vocabulary.decode(found)


def _bytes_of(snapshot: tuple[Any, ...]) -> bytes:
    return b"".join(array.tobytes() for array in snapshot)


def _arrays_of(state: bytes, like: tuple[Any, ...]) -> tuple[Any, ...]:
    flat, found = np.frombuffer(state, like[0].dtype), []
    for array in like:
        found.append(flat[: array.size].reshape(array.shape))
        flat = flat[array.size :]
    return tuple(found)


# ---- sessions


class NoSessionError(LookupError):
    """There is no such session, or it has expired."""


class Sessions:
    """States by name, in a database of all workers.

    seconds   how long a session lasts that nobody uses
    most      how many there may be
    """

    def __init__(self, path: Path, seconds: float, most: int) -> None:
        self._path, self.seconds, self._most = path, seconds, most
        with self._open() as data:
            data.execute("PRAGMA journal_mode=WAL")
            data.execute(
                "CREATE TABLE IF NOT EXISTS sessions "
                "(name TEXT PRIMARY KEY, state BLOB, version INTEGER, used REAL)"
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=10, isolation_level=None)) as data:
            data.execute("PRAGMA synchronous=OFF")  # a state is not worth waiting for the disk
            yield data

    def new(self, state: bytes) -> str | None:
        """The name of a new session; None if there are too many."""
        name, now = secrets.token_urlsafe(16), time.time()
        with self._open() as data:
            data.execute("BEGIN IMMEDIATE")
            data.execute("DELETE FROM sessions WHERE used < ?", [now - self.seconds])
            (count,) = data.execute("SELECT COUNT(*) FROM sessions").fetchone()
            if count < self._most:
                data.execute("INSERT INTO sessions VALUES (?, ?, 0, ?)", [name, state, now])
            data.execute("COMMIT")
        return name if count < self._most else None

    def get(self, name: str) -> tuple[bytes, int]:
        """The state, and its version."""
        with self._open() as data:
            found = data.execute(
                "SELECT state, version FROM sessions WHERE name = ? AND used >= ?",
                [name, time.time() - self.seconds],
            ).fetchone()
        if found is None:
            raise NoSessionError(name)
        return found

    def put(self, name: str, state: bytes, version: int) -> bool:
        """Keep what has become of a version; False if another request was faster."""
        with self._open() as data:
            done = data.execute(
                "UPDATE sessions SET state = ?, version = version + 1, used = ? "
                "WHERE name = ? AND version = ?", [state, time.time(), name, version],
            )  # fmt: skip
            return done.rowcount == 1

    def drop(self, name: str) -> None:
        with self._open() as data:
            data.execute("DELETE FROM sessions WHERE name = ?", [name])


# ---- the service


class Limited:
    """Refuses bodies that are too long before they are read, and those that do not say how long."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        length = headers.get(b"content-length", b"0")
        if scope["type"] == "http" and b"transfer-encoding" in headers:
            status, text = 411, b"expected a Content-Length"
        elif scope["type"] == "http" and (not length.isdigit() or int(length) > MOST_BYTES):
            status, text = 413, b"expected at most %d bytes" % MOST_BYTES
        else:
            await self._app(scope, receive, send)
            return
        head = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": text})


def make_app() -> Any:
    """The application of one worker, as ``main`` has said in the environment."""
    from fastapi import FastAPI, HTTPException, WebSocket, WebSocketDisconnect
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, Field, ValidationError

    options = json.loads(os.environ["NUMBA_RNN_SERVING"])
    folder = Path(options["folder"])
    models = Models(folder)
    sessions = Sessions(folder / "sessions.sqlite", options["seconds"], options["sessions"])
    finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]

    class Forecast(BaseModel, extra="forbid"):
        values: Annotated[list[finite], Field(min_length=2, max_length=MOST_VALUES)]
        horizon: Annotated[int, Field(ge=1, le=MOST_HORIZON)] = 1

    class Read(BaseModel, extra="forbid"):
        text: Annotated[str, Field(max_length=MOST_TEXT)] = ""
        ahead: Annotated[int, Field(ge=0, le=MOST_AHEAD)] = 0
        reset: bool = False

    app = FastAPI(title="numba_rnn", description="A forecaster and a language model.")
    app.add_middleware(Limited)

    @app.exception_handler(RequestValidationError)
    def refused(_: Any, error: RequestValidationError) -> JSONResponse:
        """Say where and why, without sending back all that came."""
        why = [{"loc": one["loc"], "msg": one["msg"]} for one in error.errors()[:10]]
        return JSONResponse({"detail": why}, 422)

    def busy() -> HTTPException:
        return HTTPException(503, "too busy, try again", {"Retry-After": "1"})

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "worker": os.getpid()}

    @app.post("/forecast")
    def forecast(asked: Forecast) -> dict[str, list[float]]:
        return {"forecast": models.forecast(asked.values, asked.horizon)}

    @app.post("/sessions", status_code=201)
    def new() -> dict[str, Any]:
        name = sessions.new(models.start)
        if name is None:
            raise busy()
        return {"session": name, "seconds": sessions.seconds}

    def changed(name: str, asked: Read | None) -> str:
        """Read something, or nothing: then the session begins anew."""
        try:
            state, version = sessions.get(name)
            found = models.start, ""
            if asked is not None:
                found = models.read(state, asked.text, asked.ahead)
        except NoSessionError:
            raise HTTPException(404, "no such session, or it has expired") from None
        except Empty:
            raise busy() from None
        if not sessions.put(name, found[0], version):
            raise HTTPException(409, "another request of this session came first, try again")
        return found[1]

    @app.post("/sessions/{name}/read")
    def read(name: str, asked: Read) -> dict[str, str]:
        return {"ahead": changed(name, asked)}

    @app.post("/sessions/{name}/reset", status_code=204)
    def reset(name: str) -> None:
        changed(name, None)

    @app.delete("/sessions/{name}", status_code=204)
    def drop(name: str) -> None:
        sessions.drop(name)

    @app.websocket("/characters")
    async def characters(socket: WebSocket) -> None:
        """A session as long as the connection; it needs no database."""
        await socket.accept()
        state = models.start
        try:
            while True:
                text = await asyncio.wait_for(socket.receive_text(), sessions.seconds)
                try:
                    asked = Read.model_validate_json(text)
                    before = models.start if asked.reset else state
                    state, ahead = await run_in_threadpool(
                        models.read, before, asked.text, asked.ahead
                    )
                    await socket.send_json({"ahead": ahead})
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    await socket.send_json({"error": f"{where}: {first['msg']}"})
                except Empty:
                    await socket.send_json({"error": "too busy, try again"})
        except TimeoutError:
            await socket.close(1001, "idle")
        except (WebSocketDisconnect, KeyError):  # gone; bytes instead of text
            pass

    return app


def main(
    folder: Annotated[Path, typer.Option(help="Models and sessions.")] = Path("runs/serving"),
    host: Annotated[str, typer.Option(help="0.0.0.0: whoever reaches this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    seconds: Annotated[float, typer.Option(help="Sessions expire after so long unused.")] = 600,
    sessions: Annotated[int, typer.Option(help="The most sessions at a time.")] = 1000,
) -> None:
    """Serve a forecaster and a language model."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise typer.BadParameter('expected FastAPI and uvicorn: pip install "numba-rnn[serve]"')
    import uvicorn

    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    options = {"folder": str(folder.resolve()), "seconds": seconds, "sessions": sessions}
    os.environ["NUMBA_RNN_SERVING"] = json.dumps(options)
    uvicorn.run(
        "serving:make_app", factory=True, app_dir=str(Path(__file__).parent), host=host, port=port,
        workers=workers, ws_max_size=1 << 14, limit_concurrency=200, log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
