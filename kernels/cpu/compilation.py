"""From Python to machine code of this CPU: compiled now, or found on disk.

All that the engine compiles goes through here. What decides the outcome is the entry's key: the
engine's source, the types, the processor and the compilers.
"""

import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import llvmlite
import numba
import numpy.ma  # noqa: F401 (else Numba does, at the first array, where a fork may come in between)
from llvmlite.binding import ffi
from numba import njit
from numba.core import registry, sigutils
from numba.core.caching import _Cache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

from .. import disk_cache, fingerprint
from ..once import LOCKS_OF_LIBRARIES

LOCKS_OF_LIBRARIES += [global_compiler_lock, ffi.lib._lock]


def compiled_function(function: Callable[..., Any], signature: Any, **options: Any) -> Any:
    """A function that Python calls: what ``numba.njit`` makes of it, for one signature."""
    made = njit(**options)(function)
    _compile(made, function, signature, options, lambda: made.compile(signature))
    made.disable_compile()
    return made


def compiled_callback(function: Callable[..., Any], signature: Any, **options: Any) -> Any:
    """A function that compiled code calls by its address: what ``numba.cfunc`` makes of it."""
    made = CFunc(function, sigutils.normalize_signature(signature), {}, options)
    _compile(made, function, signature, options, made.compile)
    return made


def _compile(
    made: Any,
    function: Callable[..., Any],
    signature: Any,
    options: dict[str, Any],
    compile_now: Callable[[], Any],
) -> None:
    source = fingerprint.of_engine(__package__)
    what = type(made).__name__, function.__module__, function.__qualname__, str(signature)
    entry = disk_cache.Entry(function.__name__, source, what, sorted(options.items()), _machine())
    content = entry.load()
    with nullcontext() if content is not None else entry.alone():
        made._cache = _OnDisk(entry, content or entry.load())
        with _exceptions_of_signals_deferred():
            compile_now()


def _machine() -> tuple[object, ...]:
    """The processor and the compilers."""
    versions = sys.implementation.cache_tag, numba.__version__, llvmlite.__version__
    return *versions, registry.cpu_target.target_context.codegen().magic_tuple()


@contextmanager
def _exceptions_of_signals_deferred() -> Iterator[None]:
    """Raise the exception of a signal handler, such as KeyboardInterrupt, where the block ends.

    LLVM calls Python back while it compiles. A handler may run in such a call, and its exception
    would be lost there, with the compiled code. The handlers themselves run at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    raised: list[BaseException] = []
    handlers: dict[int, Any] = {n: signal.getsignal(n) for n in signal.valid_signals()}
    before = {n: handler for n, handler in handlers.items() if callable(handler)}

    def run(number: int, frame: Any) -> None:
        try:
            before[number](number, frame)
        except BaseException as error:
            raised.append(error)

    try:
        for number in before:
            signal.signal(number, run)
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is run:  # no handler has set another
                signal.signal(number, handler)
        if raised:
            raise raised[-1]


class _OnDisk(_Cache):
    """Numba's cache of one function: one entry on disk."""

    def __init__(self, entry: disk_cache.Entry, content: bytes | None) -> None:
        self._entry, self._content = entry, content

    @property
    def cache_path(self) -> str | None:
        place = disk_cache.folder()
        return None if place is None else str(place)

    def load_overload(self, signature: Any, context: Any) -> Any:
        context.refresh()
        if self._content is not None:
            try:
                return CompileResult._rebuild(context, *pickle.loads(self._content))
            except Exception:  # whatever it refers to that is no longer there: compile again
                pass
        _announce()
        return None

    def save_overload(self, signature: Any, result: Any) -> None:
        if not result.library.has_dynamic_globals:  # addresses of this process
            self._entry.save(dumps(result._reduce()))

    def enable(self) -> None:
        pass

    def disable(self) -> None:
        pass

    def flush(self) -> None:
        pass


# ---- the message


_pending: ContextVar[threading.Timer | None] = ContextVar("_pending", default=None)


@contextmanager
def warn_if_slow_compile(what: str) -> Iterator[None]:
    """Say so, on stderr, where the compilation inside has gone on for two seconds."""
    timer = threading.Timer(2.0, _say, (what,))
    timer.daemon = True
    token = _pending.set(timer)
    try:
        yield
    finally:
        _pending.reset(token)
        timer.cancel()


def _announce() -> None:
    """Something is compiled: the two seconds begin."""
    timer = _pending.get()
    if timer is not None and timer.ident is None:
        timer.start()


def _say(what: str) -> None:
    later = "it is done once, later runs find it in the cache"
    if not disk_cache.is_writable():
        later = "later runs do it again: there is no writable cache folder; set NUMBA_CACHE_DIR"
    elif fingerprint.of_engine(__package__) is None:
        later = "later runs do it again"
    if sys.stderr is not None:
        print(f"numba_rnn: compiling {what} for this CPU; {later}.", file=sys.stderr, flush=True)
