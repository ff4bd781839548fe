"""A range of items, shared out to threads (``parallel_for.py``), in compiled code."""

from .kernel_abi import arguments_address, call, jitted, record
from .parallel_for import Items, Work
from .schedule import run_phase, shard_range
from .thread_kernels import close_job, open_job

_read_work, read_items = record(Work), record(Items)


@jitted
def _shard(work, what, chunk, k, shard):
    begin, end = shard_range(work.items, shard, work.shards)
    call(work.kernel, Items(begin, end, work.given, shard))


def share_items(ctx):
    """A kernel: ``Work``, shared out."""
    work = _read_work(arguments_address(ctx))
    if work.shards > 1 and work.thread == 0:
        open_job(work.team, arguments_address(ctx), work.shards)
    run_phase(work, _shard, 0, 0, 0, 0)
    if work.shards > 1 and work.thread == 0:
        close_job(work.team)
