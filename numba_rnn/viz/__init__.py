"""Pictures for a lecture: computation graphs, layers unrolled, the backward pass as a film.

    viz.graph(layer, xs, show="values")             one step, node by node
    viz.unrolled(layer, T=6, truncated=3)           a layer over time, and truncated BPTT
    viz.animate_backward(layer, "backward.gif", xs) what flows back, step by step
    viz.memory(layer)                               what forward keeps for backward
    viz.valve(0.7)                                  a gate is a valve
    viz.source("lstm")                              the lines where the equation is

The others return a matplotlib Figure (``.savefig("picture.png")`` writes it) or write a GIF, and
need matplotlib: ``pip install "numba-rnn[viz]"``. A notebook shows a Figure once its first cell has
said ``%matplotlib inline``. Numbers are those of a real run of the layer. ``gates``
and ``gradient_flow`` are the pictures of traces in ``numba_rnn.diagnostics``.

``computation.py`` makes the graph of a step and its numbers, ``layout.py`` places it,
``drawing.py`` draws it; the rest is a file for each picture.
"""

from ..diagnostics import plot_gates as gates
from ..diagnostics import plot_gradient_flow as gradient_flow
from .backward import BackwardStep, animate_backward, backward_frames, backward_steps
from .graphs import graph
from .keeping import kept_bytes, memory
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
    "kept_bytes",
    "memory",
    "source",
    "unrolled",
    "valve",
]
