"""Pictures for a lecture: computation graphs, layers unrolled, the backward pass as a film.

    viz.graph(layer, xs, show="values")             one step, node by node
    viz.unrolled(layer, T=6, truncated=3)           a layer over time, and truncated BPTT
    viz.animate_backward(layer, "backward.gif", xs) what flows back, step by step
    viz.memory(layer)                               what forward keeps for backward
    viz.valve(0.7)                                  a gate is a valve

Each returns a matplotlib Figure (``.savefig("picture.png")`` writes it) or writes a GIF, and needs
matplotlib: ``pip install numba-rnn[viz]``. Numbers are those of a real run of the layer. ``gates``
and ``gradient_flow`` are the pictures of traces in ``numba_rnn.diagnostics``.

``computation.py`` makes the graph of a step and its numbers, ``layout.py`` places it,
``drawing.py`` draws it; the rest is a file for each picture.
"""

from ..diagnostics import plot_gates as gates
from ..diagnostics import plot_gradient_flow as gradient_flow
from .backward import BackwardStep, animate_backward, backward_frames, backward_steps
from .graph import graph
from .memory import kept_bytes, memory
from .unrolled import unrolled
from .valve import animate_valve, valve

__all__ = [
    "BackwardStep",
    "animate_backward",
    "animate_valve",
    "backward_frames",
    "backward_steps",
    "gates",
    "gradient_flow",
    "graph",
    "kept_bytes",
    "memory",
    "unrolled",
    "valve",
]
