"""The numbers behind the pages of docs/learn: python docs/tools/learn.py writes numbers.js.

It has the computation graphs of the cells, as ``viz.graph`` draws them, the weights of the network
that the pages unroll, and a small language model, which is trained (half a minute).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from numba_rnn import GRU, LSTM, RNN, TimeRNN
from numba_rnn.kernels import cells
from numba_rnn.models import Rnnlm
from numba_rnn.text import Vocabulary, builtin_text
from numba_rnn.training import Adam, TruncatedBPTT, clip_grads
from numba_rnn.viz.drawing import GraphPicture, _points_of
from numba_rnn.viz.graph_figure import _words
from numba_rnn.viz.recording import record_step
from numba_rnn.viz.step_graph import PARAMETER, StepGraph

FILE = Path(__file__).resolve().parents[1] / "learn" / "numbers.js"
LAYERS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
SENTENCE = "a class is a way to keep data and functions together."
UNITS, STEPS, FILM = 6, 60, 12
DOT = 72  # to the inch


def graph(name: str) -> dict[str, Any]:
    """The graph of one step: what each node uses, and where it is drawn, in dots."""
    step_graph = StepGraph(cells.get(name), affine="apart")
    wide = np.full((1, 1), -0.88)  # numbers as wide as they get
    layer = LAYERS[name].create(1, 1, rng=0, dtype=np.float64)
    for param in layer.params:
        param[...] = -0.88
    seen = record_step(layer, wide, None, [wide] * len(step_graph.cell.states), -1)
    words = _words(
        step_graph, seen.numbers(step_graph), "both", "norm", False, True, step_graph.numbered
    )
    picture = GraphPicture(step_graph, words, [], "")
    entries, exits = picture._ports()
    number = {node: k for k, node in enumerate(step_graph.nodes)}
    places = dict(zip(picture.edges, zip(picture.placed.paths, picture.placed.labels, strict=True),
                      strict=True))  # fmt: skip

    def dots(x: float, y: float) -> list[float]:
        return [round(DOT * x), round(DOT * (picture.height - y))]

    nodes = []
    for node in step_graph.nodes:
        uses = []
        for k, use in enumerate(node.uses):
            made: dict[str, Any] = {"from": number[use.source], "name": use.name}
            if use.source.kind == PARAMETER:
                made["block"] = use.blocks[0] if use.blocks else 0
            if (node, k) in places:
                path, label = places[node, k]
                corners = _points_of(path, exits[node, k], entries[node, k])
                made |= {"path": [dots(x, y) for x, y in corners], "at": dots(label.x, label.y)}
            uses.append(made)
        made = {"kind": node.kind, "label": node.label, "name": node.name, "uses": uses}
        if node.products:
            made["products"] = node.products
        if node in picture.item:
            box = picture.item[node]
            size = round(DOT * box.width), round(DOT * (box.above + box.below))
            made |= {"at": dots(box.x, box.y), "size": size, "round": picture._is_round(node)}
        nodes.append(made)
    cell = step_graph.cell
    return {
        "size": [round(DOT * picture.width), round(DOT * picture.height)],
        "gates": cell.gates, "states": cell.states, "nodes": nodes,
    }  # fmt: skip


def unrolled() -> dict[str, Any]:
    """Inputs, and weights whose Wh is orthogonal: times r its spectral radius is r."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"xs": rng.uniform(-1, 1, (STEPS, UNITS)).round(3)}
    for name in LAYERS:
        gates = len(cells.get(name).gates)
        blocks = [np.linalg.qr(rng.standard_normal((UNITS, UNITS)))[0] for _ in range(gates)]
        Wx = (rng.standard_normal((UNITS, gates * UNITS)) / UNITS**0.5).round(3)
        found[name] = {"Wx": Wx, "Wh": np.hstack(blocks).round(12), "b": np.zeros(gates * UNITS)}
    return found


def film() -> dict[str, Any]:
    """A small RNN that reads a sequence, with a gradient for each of its outputs."""
    rng = np.random.default_rng(1)
    layer = TimeRNN.create(2, 3, rng=1, dtype=np.float64)
    Wx, Wh, b = (param.round(3) for param in layer.params)
    xs, dhs = rng.uniform(-1, 1, (FILM, 2)).round(2), rng.standard_normal((FILM, 3)).round(2)
    return {"xs": xs, "dhs": dhs, "Wx": Wx, "Wh": Wh, "b": b}


def english_model() -> tuple[Vocabulary, Rnnlm]:
    """A small character LSTM that has read the English that comes with every Python."""
    text = builtin_text()[:300_000]
    vocabulary = Vocabulary.of(text, "char")
    model = Rnnlm(len(vocabulary), embed_size=16, hidden_size=16, rng=0)
    adam, blocks = Adam(lr=0.01), TruncatedBPTT(vocabulary.encode(text), 64, 50)
    for _ in range(6):
        blocks.rewind()
        model.reset_state()
        for xs, ts in blocks:
            model.forward(xs, ts)
            model.backward()
            clip_grads(model.grads, max_norm=1.0)
            adam.update(model.params, model.grads)
    return vocabulary, model


def language_model() -> dict[str, Any]:
    """The weights of that model, and its characters."""
    vocabulary, model = english_model()
    embedding, Wx, Wh, b, W_out, b_out = (
        param.astype(float).round(3) for param in model.params
    )  # fmt: skip
    return {
        "characters": vocabulary.decode(np.arange(len(vocabulary))), "sentence": SENTENCE,
        "embedding": embedding, "Wx": Wx, "Wh": Wh, "b": b, "W_out": W_out, "b_out": b_out,
    }  # fmt: skip


def spelled(numbers: dict[str, Any]) -> str:
    """numbers.js: a script, since a page that lies in a folder may not read other files."""

    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray) else list(value)

    lines = []
    for name, part in numbers.items():
        inner = [
            f"  {json.dumps(key)}: {json.dumps(value, default=plain, separators=(',', ':'))}"
            for key, value in part.items()
        ]
        lines.append(f"{json.dumps(name)}: {{\n" + ",\n".join(inner) + "\n}")
    return "// Made by docs/tools/learn.py.\nconst NUMBERS = {\n" + ",\n".join(lines) + "\n};\n"


def read(path: Path = FILE) -> Any:
    """The numbers as they are stored."""
    return json.loads(path.read_text("utf-8").partition("const NUMBERS = ")[2].rstrip(";\n"))


def untrained() -> dict[str, Any]:
    """All but the language model."""
    return {
        "graphs": {name: graph(name) for name in LAYERS},
        "unrolled": unrolled(),
        "film": film(),
    }


if __name__ == "__main__":
    FILE.write_text(spelled(untrained() | {"model": language_model()}), "utf-8")
