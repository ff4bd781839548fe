"""The fingerprint of a cell: a short text of all that decides what it computes.

Compiled code is kept on disk under this fingerprint, of the source of an engine and of everything
that the cell's functions refer to; so code is found by every process that has the same source, and
by no other.
"""

import hashlib
import importlib
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from types import CodeType
from typing import Any

from . import functions
from .cells import Cell


@cache
def of_engine(package: str) -> str | None:
    """The fingerprint of an engine's source: of all modules of its package, and those they share.

    They may be files, in a zip file, or part of a frozen program. None, and a RuntimeWarning, where
    they can be read in no way.
    """
    try:
        return hashlib.sha256(b"".join(map(_source, _modules(package)))).hexdigest()[:16]
    except (AttributeError, ImportError, OSError) as error:  # a loader that only loads
        warnings.warn(
            f"numba_rnn: the source of this installation cannot be read ({error}), so compiled "
            "code is not cached on disk and every run compiles again",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _modules(package: str) -> list[str]:
    """The names of an engine's modules, which need not be loaded."""
    found = [module.name for module in pkgutil.iter_modules(sys.modules[package].__path__)]
    if not found:  # in a frozen program: these load all others
        for name in ("engine", "compilation", "build"):
            with suppress(ModuleNotFoundError):
                importlib.import_module(f"{package}.{name}")
        loaded = list(sys.modules)  # at once: another thread may be importing something
        found = [name.rpartition(".")[2] for name in loaded if name.startswith(f"{package}.")]
    shared = (
        "vectors", "functions", "layout", "counter_rng", "emitted_draws", "step", "step_options",
    )  # fmt: skip
    names = [f"{package}.{name}" for name in sorted(found)]
    return names + [f"{__package__}.{name}" for name in shared]


def _source(name: str) -> bytes:
    """A module's source, or what it was compiled to."""
    spec: Any = find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not there")
    try:
        return spec.loader.get_data(spec.origin)
    except (AttributeError, OSError):  # a frozen program has no such file
        return "\n".join(_lines(spec.loader.get_code(spec.name))).encode()


@cache
def of_cell(cell: Cell) -> str:
    """The fingerprint of a cell's structure and functions."""
    structure = cell.gates, cell.states, cell.saved, cell.input_gates, cell.recurrent_gates
    functions = (cell.forward, cell.backward, cell.operand, cell.operand_backward)
    text = repr(
        (
            structure,
            cell.second_product,
            cell.biases,
            cell.weights,
            cell.operand_gate,
            cell.normalised,
        )
    )
    text += of_functions(*filter(None, functions))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_functions(*functions: Any) -> str:
    """The fingerprint of plain functions and of all that they refer to."""
    text = "\n".join(line for function in functions for line in _describe(function))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_callees(function: Any) -> list[Any]:
    """A function and the plain functions that it calls, but for those of functions.py."""
    found, waiting = [], [function]
    while waiting:
        function = waiting.pop()
        if function in found or function.__module__ == functions.__name__:
            continue
        found.append(function)
        waiting += [v for v in _outer_values(function).values() if inspect.isfunction(v)]
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions and comprehensions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _lines(code: CodeType) -> Iterator[str]:
    """A line for each code object, the same in every process."""
    for part in _codes(code):
        constants = [
            sorted(c, key=repr) if isinstance(c, frozenset) else c  # their order is drawn
            for c in part.co_consts
            if not isinstance(c, CodeType)
        ]
        yield f"{part.co_code.hex()} {constants} {part.co_names} {part.co_varnames}"


def _outer_values(function: Any) -> dict[str, Any]:
    """The values that a function takes from outside: globals, names of functions around it."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    found = {name: value for name, value in function.__globals__.items() if name in names}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        found[name] = cell.cell_contents
    return {name: getattr(value, "py_func", value) for name, value in found.items()}


def _describe(function: Any) -> Iterator[str]:
    """Everything that decides what a function computes: its code and the values it refers to."""
    for callee in with_callees(function):
        # the module, since compiled code that is found in the cache imports it
        yield f"{callee.__module__} {callee.__qualname__}"
        yield f"{callee.__defaults__} {callee.__kwdefaults__}"
        yield from _lines(callee.__code__)
        names = {name for code in _codes(callee.__code__) for name in code.co_names}
        for name, value in sorted(_outer_values(callee).items()):
            if inspect.isfunction(value):
                yield f"{name} is {value.__module__}.{value.__qualname__}"
            elif inspect.ismodule(value):
                members = {k: v for k, v in vars(value).items() if k in names and not callable(v)}
                yield f"{name} is {value.__name__} with {sorted(members.items())}"
            else:
                yield f"{name} is {value!r}"
