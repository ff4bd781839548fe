"""A view inside recurrent layers: numbers, tables and pictures of gates, gradients and weights.

    hs = layer.forward(xs, trace=True)
    layer.backward(dhs)
    print(diagnostics.summary(layer))
    diagnostics.plot_gates(layer.trace).savefig("gates.png")

Numbers and tables need NumPy alone; pictures need matplotlib (``pip install "numba-rnn[plot]"``).
A table is a dict of equally long columns, one row an observation: ``pandas.DataFrame(table)``.

``measures.py`` says what is measured and where it comes from, ``pictures.py`` how it is drawn.
"""

from .measures import (
    Table,
    gradient_flow,
    gradient_growth,
    saturation,
    singular_values,
    spectrum,
    value_range,
)
from .pictures import plot_gates, plot_gradient_flow, plot_saturation, plot_spectrum
from .report import summary

__all__ = [
    "Table",
    "gradient_flow",
    "gradient_growth",
    "plot_gates",
    "plot_gradient_flow",
    "plot_saturation",
    "plot_spectrum",
    "saturation",
    "singular_values",
    "spectrum",
    "summary",
    "value_range",
]
