"""Things that are made once in a process: an engine, a derived cell, compiled code.

One thread makes it while the others wait. A fork waits, too: its child has none of the other
threads, and would wait forever for what one of them had begun.
"""

import functools
import logging  # noqa: F401 (numba does, and no hook of it may come in the middle of a fork)
import os
import threading
from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

LOCK = threading.RLock()


def once(function: Callable[P, R]) -> Callable[P, R]:
    """``functools.cache``, but that threads which ask at the same time all get the same."""
    made = cache(function)

    @cache  # what has been made is returned without the lock
    def get(*arguments: Any, **named: Any) -> R:
        with LOCK:
            return made(*arguments, **named)

    return cast(Callable[P, R], update_wrapper(get, function))


class cached_property(functools.cached_property[R]):  # noqa: N801 (as that is written)
    """``functools.cached_property`` without the lock that it has in Python 3.11.

    All objects of a class share that lock, and a forked child may find it taken.
    """

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        assert self.attrname is not None
        value = instance.__dict__[self.attrname] = self.func(instance)
        return value


# ---- forks


LOCKS_OF_LIBRARIES: list[Any] = []  # which code under LOCK takes, in this order
_held: list[Any] = []


def _before_fork() -> None:
    LOCK.acquire()
    for lock in LOCKS_OF_LIBRARIES:
        lock.__enter__()
        _held.append(lock)


def _after_fork() -> None:
    while _held:
        _held.pop().__exit__(None, None, None)
    LOCK.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
