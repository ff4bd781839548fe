"""A view inside recurrent layers: numbers, tables and pictures of gates, gradients and weights.

    hs = layer.forward(xs, trace=True)
    layer.backward(dhs)
    print(diagnostics.summary(layer))
    diagnostics.plot_gates(layer.trace).savefig("gates.png")

Numbers and tables need NumPy alone; pictures need matplotlib (``pip install "numba-rnn[plot]"``). A
table is a dict of columns of equal length, one row for each observation:
``pandas.DataFrame(table)``.

The measures and their sources are in ``numba_rnn/diagnostics/metrics.py``, the drawings in
``numba_rnn/diagnostics/plots.py``.
"""

from .metrics import (
    Table,
    gradient_flow,
    gradient_growth,
    saturation,
    singular_values,
    spectrum,
    value_range,
)
from .plots import (
    plot_gates,
    plot_gradient_flow,
    plot_quantisation,
    plot_saturation,
    plot_spectrum,
)
from .quantisation import QuantisationReport, quantisation_report
from .report import summary

__all__ = [
    "QuantisationReport",
    "Table",
    "gradient_flow",
    "gradient_growth",
    "plot_gates",
    "plot_gradient_flow",
    "plot_quantisation",
    "plot_saturation",
    "plot_spectrum",
    "quantisation_report",
    "saturation",
    "singular_values",
    "spectrum",
    "summary",
    "value_range",
]
