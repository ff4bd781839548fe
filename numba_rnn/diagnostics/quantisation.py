"""How much weights in int8 change a model, layer by layer."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import to_host
from ..layers.base import quantise_some
from ..typing import AnyArray
from .metrics import Table


class QuantisationReport:
    """The result of ``quantisation_report``: print it, or read its attributes.

    Attributes
    ----------
    metric : float
        The metric in float32.
    table : dict of str to array
        A row for each layer that has weights of products, and one for all of them, "all": the name
        of the "layer", the "bytes" of its parameters now and "bytes_int8" quantised, the "metric"
        if it alone is quantised, and the "change" from float32.
    """

    def __init__(self, metric: float, table: Table) -> None:
        self.metric, self.table = metric, table

    def __str__(self) -> str:
        head = ("quantised", "bytes", "in int8", "metric", "change")
        rows = [head, ("nothing", "", "", f"{self.metric:.6g}", "")]
        rows += [
            (str(layer), f"{before:,}", f"{after:,}", f"{metric:.6g}", f"{change:+.3g}")
            for layer, before, after, metric, change in zip(*self.table.values(), strict=True)
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if k else cell.ljust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def quantisation_report(model: Any, metric: Callable[[Any], Any] | AnyArray) -> QuantisationReport:
    """Measure what ``quantise`` would change: one layer at a time, and all together.

    Every measurement is made with a copy of the model, which itself stays as it is.

    Parameters
    ----------
    model : layer, model or network
        Anything with ``quantise`` and weights in float32.
    metric : callable or array
        A function of the model that returns a number, such as its loss on a validation set. Or
        inputs of the model: the metric is then the norm of the change of its outputs, divided by
        their norm.

    Returns
    -------
    QuantisationReport
        The report.

    Raises
    ------
    TypeError
        If weights are in int8 already, are not in float32, or if there are none to be rounded.
    ValueError
        If the inputs give no outputs, so that there is no change to measure.

    Examples
    --------
    >>> from numba_rnn import Stacked, TimeLSTM
    >>> stack = Stacked([TimeLSTM.create(3, 32, rng=0), TimeLSTM.create(32, 8, rng=1)])
    >>> report = quantisation_report(stack, np.ones((2, 7, 3), np.float32))
    >>> report.table["layer"].tolist(), report.table["bytes_int8"].tolist()
    (['0', '1', 'all'], [6016, 1664, 7680])
    >>> bool(0 < report.table["change"][-1] < 0.02)
    True
    """
    if not hasattr(model, "_leaves"):
        raise TypeError(
            "model: expected a layer, a model of numba_rnn.models or the network_ of an estimator, "
            f"got {model!r}"
        )
    if model.quantised:
        raise TypeError(
            "model: expected weights in float32, got int8 ones; make the report before quantise()"
        )
    places = [
        k for k, (_, layer) in enumerate(model._leaves())
        if {*layer._weight_names} & {*layer.param_names}
    ]  # fmt: skip
    if not places:
        raise TypeError(f"model: expected layers with weights of products, got {model!r}")
    if callable(metric):
        measure = metric
    else:
        exact = _outputs(copy.deepcopy(model), metric)
        if not exact.size:
            raise ValueError(
                "metric: expected inputs that give outputs, got inputs of shape "
                f"{np.shape(metric)}; a report needs one sequence at least"
            )
        size = float(np.linalg.norm(exact))

        def measure(made: Any) -> float:
            return float(np.linalg.norm(_outputs(made, metric) - exact)) / (size or 1.0)

    leaves = model._leaves()
    trials = [("nothing", []), *((_name_of(*leaves[k]), [k]) for k in places), ("all", places)]
    sizes, metrics = [], []
    for _, some in trials:
        made = copy.deepcopy(model)
        layers = [made._leaves()[k][1] for k in some]
        before = _bytes(layers)
        quantise_some(made, layers)
        sizes.append((before, _bytes(layers)))
        metrics.append(float(measure(made)))
    return QuantisationReport(metrics[0], {
        "layer": np.array([name for name, _ in trials[1:]]),
        "bytes": np.array([size for size, _ in sizes[1:]]),
        "bytes_int8": np.array([size for _, size in sizes[1:]]),
        "metric": np.array(metrics[1:]),
        "change": np.array(metrics[1:]) - metrics[0],
    })  # fmt: skip


def _name_of(name: str, layer: Any) -> str:
    return name or type(layer).__name__


def _bytes(layers: list[Any]) -> int:
    return sum(param.nbytes for layer in layers for param in layer.params)


def _outputs(model: Any, xs: AnyArray) -> AnyArray:
    if hasattr(model, "reset_state"):
        model.reset_state()
    run = model.predict if hasattr(model, "predict") else model.forward
    return to_host(run(xs)).astype(np.float64)
