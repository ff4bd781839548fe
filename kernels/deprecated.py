"""Former names of modules, functions, arguments and attributes.

A former name works for one more version and gives a DeprecationWarning that names the present one.
``MODULES`` and ``NAMES`` list them; arguments and attributes are listed at their classes.
"""

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

PACKAGE = __name__.split(".")[0]
_OURS = PACKAGE, "importlib"

# within the package; all that is in a package that was renamed, too
MODULES = {
    "diagnostics.pictures": "diagnostics.plots",
    "diagnostics.measures": "diagnostics.metrics",
    "viz.layout": "viz.graph_layout",
    "viz.graphs": "viz.graph_figure",
    "viz.computation": "viz.step_graph",
    "viz.observed": "viz.recording",
    "viz.keeping": "viz.saved_memory",
    "viz.paper": "viz.style",
    "torch.running": "torch.autograd",
    "bridges.conventions": "bridges.gate_order",
    "training.curve": "training.plot_loss",
    "training.shared": "training.data_parallel",
    "training.ranks": "training.distributed",
    "extras": "optional_deps",
    "checks": "validation",
    "kernels.derivation.cell_functions": "kernels.autodiff.codegen",
    "kernels.cells.written": "kernels.cells.decorator",
    "kernels.machine": "kernels.cpu_info",
    "kernels.device": "kernels.device_engine",
    "kernels.draws": "kernels.counter_rng",
    "kernels.derivation": "kernels.autodiff",
    "kernels.steps": "kernels.step_options",
}

# the names that a module had
NAMES: dict[str, dict[str, str]] = {
    "viz": {"kept_bytes": "saved_bytes"},
    "viz.saved_memory": {"kept_bytes": "saved_bytes"},
    "torch.weights": {"OfTorch": "TorchWeights", "OfCell": "CellWeights"},
    "bridges": {"CannotConvert": "ConversionError"},
    "bridges.gate_order": {"CannotConvert": "ConversionError"},
    "jobs": {
        "Settings": "TrainConfig",
        "Corpora": "Datasets",
        "Outcome": "TrainResult",
        "read_with_trace": "trace_text",
        "draw_inside": "plot_internals",
    },
    "training": {"connect": "init_distributed"},
    "training.plot_loss": {"draw_curve": "plot_loss"},
    "training.data_parallel": {"SharedBatch": "DataParallel", "SharedModel": "DataParallelModel"},
    "training.distributed": {
        "Alone": "SingleProcess",
        "MpiRanks": "MpiGroup",
        "NcclSum": "NcclAllReduce",
        "launched": "launcher_size",
        "connect": "init_distributed",
    },
    "layers.base": {"ForwardFirst": "BackwardBeforeForward"},
    "validation": {
        "accept": "validate_array",
        "accept_flags": "validate_flags",
        "accept_mask": "validate_mask",
        "accept_ids": "validate_ids",
        "adopt": "from_dlpack",
        "spell": "format_shape",
        "Home": "ArrayBackend",
    },
    "backend": {
        "backend": "get_backend",
        "engine_of": "engine_of_param",
        "engine_for": "engine_for_input",
        "engine_named": "engine_by_name",
    },
    "kernels.step_options": {"Steps": "StepOptions", "PLAIN": "NO_OPTIONS"},
    "kernels.reference": {"ReferenceEngine": "NumpyEngine"},
}


def warn(old: str, new: str) -> None:
    """Warn the code outside of the package that uses a former name."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame = frame.f_back
        level += "_bootstrap" not in frame.f_code.co_filename  # of imports, which warn leaves out
    warnings.warn(
        f"{old} is deprecated and will be removed in 0.3: use {new}",
        DeprecationWarning,
        stacklevel=level,
    )


class FormerModules(MetaPathFinder, Loader):
    """Imports the present module where the former one is asked for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if _present(name) != name else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        warn(name, _present(name))
        sys.modules[name] = importlib.import_module(_present(name))


def _present(name: str) -> str:
    """The name that a module has now."""
    for old, new in MODULES.items():
        if name == f"{PACKAGE}.{old}" or name.startswith(f"{PACKAGE}.{old}."):
            return f"{PACKAGE}.{new}{name.removeprefix(f'{PACKAGE}.{old}')}"
    return name


def names_of(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that has former names."""
    names = NAMES[module.removeprefix(f"{PACKAGE}.")]

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", names[name])
        return getattr(sys.modules[module], names[name])

    return get


def arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: former keyword arguments, and the present one of each."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*given: Any, **options: Any) -> R:
            for old in [name for name in options if name in names]:
                warn(f"{function.__qualname__}({old}=...)", f"{names[old]}=...")
                options[names[old]] = options.pop(old)
            return function(*given, **options)

        return cast(Callable[P, R], call)

    return decorate


class attribute:  # noqa: N801 (as property is written)
    """A former attribute or method of a class: ``old = attribute("new")``."""

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = name

    def __get__(self, instance: Any, owner: type) -> Any:
        warn(f"{owner.__name__}.{self.old}", f"{owner.__name__}.{self.new}")
        return getattr(owner if instance is None else instance, self.new)


def fields(**names: str) -> Callable[[type[R]], type[R]]:
    """A decorator of a dataclass: former fields, and the present one of each."""

    def decorate(kind: type[R]) -> type[R]:
        kind.__init__ = arguments(**names)(kind.__init__)  # type: ignore[method-assign]
        for old, new in names.items():
            former = attribute(new)
            former.__set_name__(kind, old)
            setattr(kind, old, former)
        return kind

    return decorate
