"""torch's own threads, for the engines."""

import ctypes
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch

from ..backend import Engine


def torch_threads(engine: Engine) -> AbstractContextManager[None]:
    """Let the engine work with torch's own threads in the block, and with as many at most.

    After each operation these look out for more to do for some milliseconds, on the processors
    that other threads would want.
    """
    return engine.using_openmp(_openmp(), torch.get_num_threads())


@cache
def _openmp() -> int:
    """The address of GOMP_parallel in the OpenMP runtime that torch uses; 0: it has no such."""
    found = list((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))
    try:
        function = ctypes.CDLL(str(found[0])).GOMP_parallel  # found in what the library needs, too
    except (AttributeError, IndexError, OSError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
