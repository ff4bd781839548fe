"""Pictures for a lecture: computation graphs, layers unrolled, the backward pass as a film.

    viz.graph(layer, xs, show="values")             one step, node by node
    viz.unrolled(layer, T=6, truncated=3)           a layer over time, and truncated BPTT
    viz.animate_backward(layer, "backward.gif", xs) the gradients, step by step
    viz.memory(layer)                               the memory that forward keeps for backward
    viz.valve(0.7)                                  a gate as a valve
    viz.source("lstm")                              the lines of the equation

``source`` returns text, the others return a matplotlib Figure (``.savefig("picture.png")`` writes
it) or write a GIF, and need matplotlib: ``pip install "numba-rnn[viz]"``. A notebook shows a Figure
once its first cell has said ``%matplotlib inline``. Numbers come from a real run of the layer.
``gates`` and ``gradient_flow`` are the pictures of traces in ``numba_rnn.diagnostics``.

``numba_rnn/viz/step_graph.py`` makes the graph of a step and its numbers,
``numba_rnn/viz/graph_layout.py`` places it, ``numba_rnn/viz/drawing.py`` draws it; every other file
has one picture.
"""

from ..diagnostics import plot_gates as gates
from ..diagnostics import plot_gradient_flow as gradient_flow
from ..kernels import deprecated
from .backward import BackwardStep, animate_backward, backward_frames, backward_steps
from .graph_figure import graph
from .saved_memory import memory, saved_bytes
from .sources import Source, source
from .unrolling import unrolled
from .valves import animate_valve, valve

__all__ = [
    "BackwardStep",
    "Source",
    "animate_backward",
    "animate_valve",
    "backward_frames",
    "backward_steps",
    "gates",
    "gradient_flow",
    "graph",
    "memory",
    "saved_bytes",
    "source",
    "unrolled",
    "valve",
]


__getattr__ = deprecated.names_of(__name__)
