"""Pictures."""

from .backward import BackwardStep, animate_backward, backward_frames, backward_steps
from .graph import graph
from .unrolled import unrolled

__all__ = [
    "BackwardStep",
    "animate_backward",
    "backward_frames",
    "backward_steps",
    "graph",
    "unrolled",
]
