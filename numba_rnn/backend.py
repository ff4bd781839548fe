"""Which engine runs, and why.

``NUMBA_RNN_BACKEND`` names the engine of the process:

    auto    (default) cuda if a GPU answers, else numba, else numpy
    numpy   the readable specification
    numba   compiled for this CPU
    cuda    one NVIDIA GPU

If an engine cannot run here, the next one runs, and one RuntimeWarning says why. So the same script
runs on a machine without a GPU. In strict mode (``use_backend(..., strict=True)`` or
``NUMBA_RNN_STRICT=1``) BackendError is raised instead. An unknown name always raises.

``NUMBA_RNN_PRECISION`` sets the precision of products in float32, on engines that have a choice:
float32 (default), tf32 (10 bits; on a GPU) or bfloat16 (bf16; 7 bits; float32 sums). Parameters,
states and gradients stay float32.

This is the only module that knows about engines.

Arrays are where their engine runs: NumPy's in host memory, those of the CUDA engine on the GPU.
``engine_of_param`` finds the engine of a parameter, ``engine_for_input`` that of an array that is
given.
"""

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from .kernels import cpu_info, deprecated
from .kernels.engine import Engine
from .kernels.once import once
from .kernels.quantisation import QuantisedWeight
from .kernels.reference import NumpyEngine
from .kernels.sparse_rows import SparseRows
from .version import __version__

__all__ = [
    "BackendError",
    "Engine",
    "Explanation",
    "choose_gpu",
    "engine",
    "engine_by_name",
    "engine_for_input",
    "engine_of_param",
    "explain",
    "get_backend",
    "limit_threads",
    "move",
    "nccl",
    "to_host",
    "use_backend",
]

VARIABLE, STRICT_VARIABLE = "NUMBA_RNN_BACKEND", "NUMBA_RNN_STRICT"
PRECISION_VARIABLE = "NUMBA_RNN_PRECISION"
NAMES = ("auto", "numpy", "numba", "cuda")
PRECISIONS = ("float32", "tf32", "bfloat16")


class BackendError(RuntimeError):
    """The requested engine cannot run on this machine."""


# ---- the engines: each loader returns one, or raises BackendError with the reason


@once
def _numpy() -> Engine:
    return NumpyEngine()


@once
def _numba() -> Engine:
    try:
        from .kernels.cpu import kernel_cache, target
        from .kernels.cpu.engine import NumbaEngine

        kernel_cache.expect_numba()
    except ImportError as error:
        raise BackendError(f"numba cannot be imported ({error}); pip install numba") from error
    if target.setting("DISABLE_JIT", 0):
        raise BackendError("NUMBA_DISABLE_JIT is set, so nothing can be compiled")
    return NumbaEngine()


@once
def _cuda() -> Engine:
    remedy = 'pip install "numba-rnn[cuda]"'
    try:
        import cupy
    except Exception as error:  # whatever a broken installation raises
        raise BackendError(f"CuPy cannot be imported ({error}); {remedy}") from error
    if not cupy.cuda.is_available():
        raise BackendError("no NVIDIA GPU with a working driver was found")
    if _gpu is not None:
        count = cupy.cuda.runtime.getDeviceCount()
        if _gpu >= count > 1:  # one alone: the launcher may have given each process its own
            raise BackendError(f"process {_gpu} of this machine has no GPU; there are only {count}")
        cupy.cuda.Device(_gpu % count).use()
    capability = cupy.cuda.Device().compute_capability
    if int(capability) < 80:
        raise BackendError(f"the GPU's compute capability is {capability}; at least 80 is needed")
    try:
        from .kernels.cuda.cupy_gpu import CupyGpu
        from .kernels.cuda.engine import CudaEngine

        return CudaEngine(CupyGpu())
    except Exception as error:  # whatever Numba, which compiles, or the driver raises
        raise BackendError(f"Numba's CUDA compiler cannot be used ({error}); {remedy}") from error


_LOADERS: dict[str, Callable[[], Engine]] = {
    "cuda": _cuda,
    "numba": _numba,
    "numpy": _numpy,
}
_FALL_BACK = ("cuda", "numba", "numpy")  # from the fastest to the one that always runs


@dataclass(frozen=True)
class _Choice:
    engine: Engine
    reason: str


def _check_name(name: object, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}")
    return str(name)


def _check_precision(name: object, source: str) -> str:
    name = "bfloat16" if name == "bf16" else name
    if name not in PRECISIONS:
        raise ValueError(f"{source}: expected one of {', '.join(PRECISIONS)}, got {name!r}")
    return str(name)


def _choose(name: str, source: str, strict: bool, precision: str) -> _Choice:
    """The engine of that name, or the next one that runs."""
    wanted = _FALL_BACK if name == "auto" else _FALL_BACK[_FALL_BACK.index(name) :]
    refused: list[str] = []
    for candidate in wanted:
        try:
            engine = _LOADERS[candidate]().with_precision(precision)
        except BackendError as error:
            if strict and name != "auto":
                raise BackendError(f"{source}: {name} cannot run here: {error}") from error
            refused.append(f"{candidate}: {error}")
            continue
        wish = ": the fastest that runs here" if name == "auto" else f" asks for {name}"
        reason = source + wish
        if refused:
            reason += f" ({'; '.join(refused)})"
            if name != "auto":
                warnings.warn(
                    f"{source} asks for {name}, running on {candidate} instead. "
                    f"{'; '.join(refused)}",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return _Choice(engine, reason)
    raise AssertionError("the numpy engine always runs")


def _wish() -> str:
    """The name in the environment, or ""."""
    return os.environ.get(VARIABLE, "").strip().lower()


def _wished_precision() -> str:
    name = os.environ.get(PRECISION_VARIABLE, "").strip().lower()
    return _check_precision(name or "float32", PRECISION_VARIABLE)


@once
def _process_choice() -> _Choice:
    """The choice that the environment makes, read once, at the first use of an engine."""
    name = _wish()
    source = VARIABLE if name else f"{VARIABLE} is not set"
    strict = os.environ.get(STRICT_VARIABLE, "").strip() not in ("", "0")
    return _choose(_check_name(name or "auto", VARIABLE), source, strict, _wished_precision())


@once
def _process_home() -> Engine:
    """An engine with the arrays of the process's choice, without importing numba for it."""
    name = _wish() or "auto"
    if name == "auto":
        try:
            return _LOADERS["cuda"]()
        except BackendError:
            return _numpy()
    return _numpy() if name in ("numpy", "numba") else _process_choice().engine


_override: ContextVar[_Choice | None] = ContextVar("numba_rnn_backend", default=None)


class use_backend:  # noqa: N801 (reads as a verb: with use_backend("numpy"): ...)
    """Choose the engine for the current thread or asyncio task.

    A call holds until the next one, a ``with`` block until its end. Other threads are not affected:
    they follow ``NUMBA_RNN_BACKEND`` until they choose.

    Parameters
    ----------
    name : {"auto", "numpy", "numba", "cuda"}
        The engine.
    strict : bool, default False
        If True and the engine cannot run, BackendError is raised; otherwise a warning is issued and
        the next engine runs.
    precision : {"float32", "tf32", "bfloat16"}, optional
        The lowest precision that products of float32 numbers may have; by default
        ``NUMBA_RNN_PRECISION``. The numba engine has float32 and bfloat16, the cuda engine all
        three. "bf16" is another name of bfloat16.

    Raises
    ------
    ValueError
        If a name is unknown.
    BackendError
        If strict is True and the engine cannot run.

    Examples
    --------
    >>> with use_backend("numpy"):
    ...     get_backend()
    'numpy'
    """

    def __init__(self, name: str, *, strict: bool = False, precision: str | None = None) -> None:
        wanted = _wished_precision() if precision is None else precision
        wanted = _check_precision(wanted, "precision")
        choice = _choose(_check_name(name, "use_backend"), "use_backend", strict, wanted)
        self._engine = choice.engine
        self._token: Token[_Choice | None] = _override.set(choice)

    def __enter__(self) -> Engine:
        return self._engine

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _override.reset(self._token)


def _choice() -> _Choice:
    return _override.get() or _process_choice()


def engine() -> Engine:
    """The engine in force."""
    return _choice().engine


# ---- sharing a machine


_gpu: int | None = None  # which of the GPUs is this process's; None: CuPy's current one


def choose_gpu(number: int) -> None:
    """Let the CUDA engine, which has not been used yet, run on the GPU of a number."""
    global _gpu
    _gpu = number


def limit_threads(count: int) -> ExitStack:
    """Limit the numba engine and NumPy's BLAS to ``count`` threads, until the stack is closed.

    Environment variables that set either number take precedence. Raises ImportError without
    threadpoolctl.
    """
    from threadpoolctl import threadpool_limits

    limits = ExitStack()
    if "NUMBA_NUM_THREADS" not in os.environ:
        limits.callback(setattr, cpu_info, "most_threads", cpu_info.most_threads)
        cpu_info.most_threads = count
    if not any(name in os.environ for name in _BLAS_VARIABLES):
        limits.enter_context(threadpool_limits(count, user_api="blas"))
    return limits


_BLAS_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


def nccl() -> Any:
    """CuPy's module of NCCL, by which GPUs exchange numbers. Raises BackendError without it."""
    try:
        from cupy.cuda import nccl as module
    except ImportError as error:
        raise BackendError(f"CuPy cannot load NCCL ({error}), which several GPUs need") from error
    if not module.available:
        raise BackendError("this CuPy has no NCCL, which several GPUs need")
    return module


# ---- where arrays are


def _device_engine(array: Any) -> Engine:
    """The engine of an array that is not NumPy's."""
    chosen = _override.get()
    if chosen is not None and chosen.engine.is_native(array):
        return chosen.engine
    engine_there = engine_for_input(array) if hasattr(array, "__cuda_array_interface__") else None
    if engine_there is None or not engine_there.is_native(array):
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(f"expected an array of NumPy or of the cuda engine, got {kind}")
    return engine_there


def engine_of_param(param: Any) -> Engine:
    """The engine that runs where a parameter is.

    The one in force for a NumPy array; the CUDA engine for an array of its library, whatever is
    in force: it was put there. Raises TypeError for a NumPy array while the CUDA engine is in
    force.
    """
    if not isinstance(param, (np.ndarray, QuantisedWeight)):
        return _device_engine(param)
    running = engine()
    if isinstance(param, QuantisedWeight):
        running.to_device(param)  # which an engine on a GPU refuses
    if running.xp is not np:
        raise TypeError(
            f"the parameters are NumPy arrays, but the current engine is {running.name}: "
            f'layer.to("{running.name}") moves them there'
        )
    return running


def engine_for_input(value: Any) -> Engine:
    """An engine that has its arrays where something that is given goes.

    An array on a device stays there; all else goes where the engine in force has its arrays.
    """
    if hasattr(value, "__cuda_array_interface__"):
        try:
            return _LOADERS["cuda"]().with_precision(_wished_precision())
        except BackendError as error:
            raise BackendError(f"an array on a device needs the cuda engine: {error}") from error
    chosen = _override.get()
    return chosen.engine if chosen else _process_home()


def engine_for_work(value: Any) -> Engine:
    """The engine that computes on something that is given: of two in one memory the one in force.

    ``engine_for_input`` finds the memory alone, and never imports Numba for it.
    """
    home = engine_for_input(value)
    return home if home.xp is not np else engine()


def engine_by_name(name: str) -> Engine:
    """An engine that has its arrays where ``name`` says: "cuda", or "cpu", "numba", "numpy".

    Raises ValueError for another name, BackendError where there is no GPU that answers.
    """
    names = ("cpu", "numpy", "numba", "cuda")
    if name not in names:
        raise ValueError(f"to: expected one of {', '.join(names)}, got {name!r}")
    if name != "cuda":
        return _numpy()
    try:
        return _LOADERS["cuda"]()
    except BackendError as error:
        raise BackendError(f"to: cuda cannot run here: {error}") from error


def move(array: Any, to: Engine) -> Any:
    """The array, NumPy's or an engine's, as an array of an engine; the same one if it is that."""
    if isinstance(array, QuantisedWeight):
        return to.to_device(array)
    if isinstance(array, SparseRows):
        return array.converted(lambda part: move(part, to))
    if not isinstance(array, np.ndarray) and not to.is_native(array):
        array = _device_engine(array).to_host(array)
    return to.to_device(array)


def to_host(array: Any) -> Any:
    """The array, NumPy's or an engine's, as a NumPy array."""
    return move(array, _numpy())


# ---- what runs


def get_backend() -> str:
    """Return the name of the engine in force.

    Returns
    -------
    str
        "numpy", "numba" or "cuda".
    """
    return engine().name


@dataclass(frozen=True)
class Explanation:
    """The result of ``explain``: print it, or read its attributes.

    Attributes
    ----------
    engine : str
        The name of the engine.
    reason : str
        The reason why it runs.
    device : str
        The CPU or GPU.
    threads : int
        The number of threads.
    simd_bits : int or None
        The width of its vectors in bits; None: NumPy and BLAS decide.
    cache : str or None
        The folder of compiled code.
    versions : dict of str to str
        The versions of the packages involved.
    execution : dict of str to str
        How the steps of the layer run, if there is a choice.
    precision : str
        The precision of the products of float32 numbers, and how they are computed; of a layer
        with weights in int8, how these are multiplied.
    """

    engine: str
    reason: str
    device: str
    threads: int
    simd_bits: int | None
    cache: str | None
    versions: dict[str, str] = field(default_factory=dict)
    execution: dict[str, str] = field(default_factory=dict)
    precision: str = "float32"

    layout = deprecated.attribute("execution")

    def __str__(self) -> str:
        simd = "by NumPy and BLAS" if self.simd_bits is None else f"{self.simd_bits} bits"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"engine    {self.engine}\n"
            f"reason    {self.reason}\n"
            f"device    {self.device}\n"
            f"threads   {self.threads}\n"
            f"SIMD      {simd}\n"
            f"products  {self.precision}\n"
            f"cache     {self.cache or 'none needed'}\n"
            f"versions  {versions}"
            + "".join(f"\n{name:<10}{how}" for name, how in self.execution.items())
        )


def explain(layer: Any = None, batch: int = 1) -> Explanation:
    """Explain which engine runs, why, on which device, with which versions.

    Parameters
    ----------
    layer : recurrent layer, optional
        With a layer, also explain how its steps run, on an engine that has a choice: the CUDA
        engine keeps the weights on chip or goes step by step.
    batch : int, default 1
        The number of rows for which to explain this.

    Returns
    -------
    Explanation
        The explanation.

    Examples
    --------
    >>> with use_backend("numpy"):
    ...     explain().engine
    'numpy'
    """

    import importlib.metadata  # slow, and used here alone

    choice = _choice()
    running, reason = choice.engine, choice.reason
    execution: dict[str, str] = {}
    if layer is not None:
        if engine_of_param(layer.params[0]) is not running:
            running, reason = (
                engine_of_param(layer.params[0]),
                "the layer's parameters are on its device",
            )
        execution = running.execution(layer.cell, batch, layer.hidden_size, layer.dtype)
    versions = {"numba_rnn": __version__, "python": sys.version.split()[0]}
    for package in ("numpy", "numba", "llvmlite", "cupy"):
        module = sys.modules.get(package)
        if module is not None:  # loaded, by whoever needed it
            versions[package] = module.__version__
        elif package == running.name:  # which has found all that it has compiled in the cache
            versions[package] = importlib.metadata.version(package)
    details: dict[str, Any] = running.describe()
    of_int8 = details.pop("int8")
    if getattr(layer, "quantised", False):
        details["precision"] = f"weights in int8 ({of_int8})"
    return Explanation(running.name, reason, versions=versions, execution=execution, **details)


class _Callable(ModuleType):
    """This module: until 0.1 its name in the package was that of the function ``get_backend``."""

    def __call__(self) -> str:
        deprecated.warn("numba_rnn.backend()", "numba_rnn.get_backend()")
        return get_backend()


sys.modules[__name__].__class__ = _Callable


__getattr__ = deprecated.names_of(__name__)
