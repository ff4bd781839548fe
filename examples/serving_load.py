"""Traffic for the service of ``serving.py``: are answers right, and how long do they take?

    python examples/serving_load.py                   8 clients, 50 requests of each kind

Each client first asks alone, one after the other. Then all ask at the same time, and every answer
must be the one from before. WebSocket is tried if the package websockets is there.
"""

import json
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from importlib.util import find_spec
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. "


class Client:
    """Asks one thing after another and notes how long each took.

    number   of the client: each has other numbers and another text
    """

    def __init__(self, address: str, number: int, requests: int) -> None:
        self._address, self._number, self._requests = address, number, requests
        self.seconds: dict[str, list[float]] = {}
        self.answers: dict[str, list[Any]] = {}

    def run(self) -> None:
        self.seconds, self.answers = {}, {}
        http = HTTPConnection(self._address, timeout=60)
        rng = np.random.default_rng(self._number)
        for _ in range(self._requests):
            values = (20 + 4 * np.sin(np.arange(100) / 24 + rng.random())).tolist()
            asked = {"values": values, "horizon": 12}
            self._ask("forecast", lambda asked=asked: self._post(http, "/forecast", asked))
        name = self._post(http, "/sessions", {})["session"]
        for text in self._texts():
            asked = {"text": text, "ahead": 20}
            self._ask(
                "session",
                lambda asked=asked: self._post(http, f"/sessions/{name}/read", asked),
            )
        http.request("DELETE", f"/sessions/{name}")
        http.getresponse().read()
        http.close()
        if find_spec("websockets") is not None:
            from websockets.sync.client import connect

            with connect(f"ws://{self._address}/characters", open_timeout=60) as socket:
                for text in self._texts():
                    asked = json.dumps({"text": text, "ahead": 20})

                    def told(asked: str = asked) -> Any:
                        socket.send(asked)
                        return json.loads(socket.recv(60))

                    self._ask("websocket", told)

    def _texts(self) -> list[str]:
        turned = TEXT[self._number % len(TEXT) :] + TEXT[: self._number % len(TEXT)]
        return [turned[k % len(turned) :][:8] for k in range(self._requests)]

    def _ask(self, kind: str, ask: Callable[[], Any]) -> None:
        start = time.perf_counter()
        answer = ask()
        self.seconds.setdefault(kind, []).append(time.perf_counter() - start)
        self.answers.setdefault(kind, []).append(answer)

    def _post(self, http: HTTPConnection, path: str, asked: Any) -> Any:
        http.request("POST", path, json.dumps(asked), {"content-type": "application/json"})
        response = http.getresponse()
        body = response.read()
        if response.status not in (200, 201):
            raise RuntimeError(f"{path}: expected 200, got {response.status} {body!r}")
        return json.loads(body)


def main(
    url: Annotated[str, typer.Argument(help="The service.")] = "http://127.0.0.1:8000",
    clients: Annotated[int, typer.Option(min=1, max=100, help="At the same time.")] = 8,
    requests: Annotated[int, typer.Option(min=1, max=1000, help="Of a kind, by each.")] = 50,
) -> None:
    """Ask alone and at the same time; print a table of latencies."""
    asking = [Client(urlsplit(url).netloc, k, requests) for k in range(clients)]
    alone: dict[str, list[float]] = {}
    answers = []
    for client in asking:
        client.run()
        answers.append(client.answers)
        for kind, seconds in client.seconds.items():
            alone.setdefault(kind, []).extend(seconds)
    threads = [threading.Thread(target=client.run) for client in asking]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    total = wrong = 0
    print(f"{'milliseconds':18}{'median':>9}{'95 %':>9}{'99 %':>9}{'slowest':>9}{'alone':>9}")
    for kind, seconds in alone.items():
        together = [one for client in asking for one in client.seconds.get(kind, ())]
        total += len(together)
        wrong += sum(
            one != two
            for client, before in zip(asking, answers, strict=True)
            for one, two in zip(
                client.answers.get(kind, [None] * requests), before[kind], strict=True
            )
        )
        numbers = [*np.quantile(together, [0.5, 0.95, 0.99, 1.0]), np.median(seconds)]
        print(f"{kind:18}" + "".join(f"{1e3 * number:9.2f}" for number in numbers))
    print(
        f"{total} answers to {clients} clients at once in {took:.1f} s, {total / took:.0f} a "
        f"second; {wrong} differ from those to one client alone"
    )
    if wrong or total < clients * requests * len(alone):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
