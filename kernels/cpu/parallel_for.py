"""Items that do not depend on each other, such as rows, shared out to threads.

    parallel_for(kernel, given, items, shards_for(items, numbers))

A kernel does a range of items; its arguments are ``Items``. No number of threads changes what it
computes for an item.
"""

from typing import Any, NamedTuple

import numpy as np

from . import threads
from .kernel_cache import compiled
from .plans import address_of
from .threads import PLAN_WORDS

ALONE = 16384  # numbers that one thread has done before another is awake


class Work(NamedTuple):
    """A kernel, the address of what it works on, and the items. It begins as a ``Plan`` does."""

    entry: int
    self_address: int
    thread: int
    job: int
    shards: int
    team: int
    kernel: int
    given: int
    items: int


class Items(NamedTuple):
    """A range of items, the address of what the kernel works on, and the number of this share."""

    begin: int
    end: int
    given: int
    shard: int


def shards_for(items: int, numbers: int) -> int:
    """How many threads share so many items, with so many numbers to compute."""
    return 1 if numbers <= ALONE else max(1, min(threads.available(), items))


def parallel_for(kernel: int, given: Any, items: int, shards: int) -> None:
    """Call a kernel for all items, in so many shares at most.

    given  the integers that the kernel works on, whose address it gets
    """
    words = np.array(given, np.int64)
    entry, plan = compiled("parallel_kernels.share_items"), np.zeros(PLAN_WORDS, np.int64)
    work = Work(entry, address_of(plan), 0, 0, 1, 0, kernel, address_of(words), items)
    plan[: len(work)] = work
    threads.team.run(entry, address_of(plan), shards, [plan])
