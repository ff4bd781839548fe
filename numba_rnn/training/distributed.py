"""Ranks: the processes that train one model together, on one machine or on several.

    mpiexec -n 4 numba-rnn train ...

Each rank has some rows of every batch. They meet in MPI, by mpi4py (the extra ``mpi``), and what
they have on GPUs is added up by NCCL, by CuPy. Whether a process is one of several is told by what
launchers leave in the environment: without one, nothing of this is imported.
"""

import os
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..backend import choose_gpu, engine_of_param, limit_threads, nccl
from ..kernels import deprecated
from ..kernels.once import cached_property
from ..typing import Array

# where launchers say how many processes they have started: Open MPI; MPICH, Intel MPI and srun
# with their protocol; MVAPICH; srun
_SIZES = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"
_PATIENCE = 1.0  # seconds that rank 0 has to fail as well, and to say so for all
_REMEDY = 'pip install "numba-rnn[mpi]"'


class RanksError(RuntimeError):
    """The processes that were launched together cannot communicate."""


class SingleProcess:
    """One process that does everything, and what several have in common.

    rank, size  which of how many processes this is

    As a context manager it ends all ranks where one fails in the block: they would wait for it.
    """

    rank, size = 0, 1

    def local_slice(self, N: int) -> slice:
        """Which of N rows are this rank's: about as many as any other's, perhaps none.

        >>> SingleProcess().local_slice(5)
        slice(0, 5, None)
        """
        return slice(N * self.rank // self.size, N * (self.rank + 1) // self.size)

    def rows(self, N: int) -> slice:
        """Which of a batch's N rows are this rank's. Raises ValueError where some have none."""
        if self.size > N:
            raise ValueError(
                f"batch: expected at least a row for each of {self.size} processes, got {N} rows; "
                f"use a larger --batch or fewer processes (mpiexec -n {N})"
            )
        return self.local_slice(N)

    def allreduce(self, buffer: Array) -> None:
        """Replace each number of an array by its sum over all ranks, the same bits on each."""

    def gather_rows(self, array: Array) -> Array | None:
        """All ranks' rows of a NumPy array, in the ranks' order, on rank 0; None elsewhere."""
        return array

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class MpiGroup(SingleProcess):
    """The processes that an MPI launcher started.

    MPI              the module mpi4py.MPI
    expected_errors  errors of which the message says everything: no traceback is printed
    comm             a communicator of some of them; None: all
    """

    def __init__(
        self, MPI: Any, expected_errors: tuple[type[BaseException], ...] = (), comm: Any = None
    ) -> None:
        self._mpi, self._comm, self._expected_errors = MPI, comm or MPI.COMM_WORLD, expected_errors
        self.rank, self.size = self._comm.rank, self._comm.size
        self._here = self._comm.Split_type(MPI.COMM_TYPE_SHARED)  # the ranks of this machine
        self.limits = ExitStack()  # what is closed where the block ends

    @property
    def local_rank(self) -> int:
        """Which of the ranks of this machine this is."""
        return int(self._here.rank)

    def cores(self) -> int:
        """How many of this machine's cores are this rank's, at least 1: they share them."""
        return _cores_of(self._here.rank, self._here.allgather(_allowed_cores()))

    def allreduce(self, buffer: Array) -> None:
        if isinstance(buffer, np.ndarray):
            self._comm.Allreduce(self._mpi.IN_PLACE, buffer)
        else:
            self._gpus.allreduce(buffer)

    @cached_property
    def _gpus(self) -> "NcclAllReduce":
        return NcclAllReduce(nccl(), self)

    def gather_rows(self, array: Array) -> Array | None:
        parts = self._comm.gather(array)
        return None if parts is None else np.concatenate(parts)

    def broadcast(self, value: Any) -> Any:
        return self._comm.bcast(value)

    # ---- failing

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self.limits.close()
            return
        try:
            if self.rank:  # where all fail, rank 0 speaks for all; where some do, the first
                time.sleep(_PATIENCE + min(self.rank, 50) / 10)
            if not isinstance(error, self._expected_errors):
                traceback.print_exception(error)
            who = f"rank {self.rank} of {self.size}, on {socket.gethostname()}"
            print(f"error: {who}: {_said(error)}", file=sys.stderr, flush=True)
            time.sleep(0.3)  # or the launcher may end before it has passed the message on
        finally:
            self._comm.Abort(1)
            os._exit(1)  # the launcher is about to end this process


class NcclAllReduce:
    """Adds up what ranks have on GPUs, one GPU a rank.

    nccl  the module cupy.cuda.nccl
    """

    def __init__(self, nccl: Any, ranks: SingleProcess) -> None:
        name = nccl.get_unique_id() if ranks.rank == 0 else None
        self._nccl = nccl
        self._comm = nccl.NcclCommunicator(ranks.size, ranks.broadcast(name), ranks.rank)

    def allreduce(self, buffer: Any) -> None:
        """Replace a device array's numbers by their sums; nothing waits for the device."""
        kind = {4: self._nccl.NCCL_FLOAT32, 8: self._nccl.NCCL_FLOAT64}[buffer.dtype.itemsize]
        at, stream = buffer.data.ptr, engine_of_param(buffer).xp.cuda.get_current_stream().ptr
        self._comm.allReduce(at, at, buffer.size, kind, self._nccl.NCCL_SUM, stream)


def _said(error: BaseException) -> str:
    """An error in one line, as far as it is one."""
    text = str(error) or type(error).__name__
    return text + "".join(f" ({note})" for note in getattr(error, "__notes__", []))


def _allowed_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cores_of(rank: int, allowed: list[list[int]]) -> int:
    """How many cores a rank has where each may use some, which may be those of others, too.

    >>> _cores_of(0, [[0, 1, 2, 3]] * 2), _cores_of(1, [[0, 1, 2], [3, 4, 5]])
    (2, 3)
    """
    users = Counter(core for cores in allowed for core in cores)
    return max(1, int(sum(1 / users[core] for core in allowed[rank]) + 1e-6))


def launcher_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many processes a launcher started; 1 without one, None where it does not say.

    >>> launcher_size({"PMI_SIZE": "4"}), launcher_size({"PMIX_RANK": "0"}), launcher_size({})
    (4, None, 1)
    """
    for name in _SIZES:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return None if "PMIX_RANK" in environment else 1


@deprecated.arguments(plain="expected_errors")
def init_distributed(expected_errors: tuple[type[BaseException], ...] = ()) -> SingleProcess:
    """Find the processes that a launcher started together with this one, for a Trainer.

    Use the result in a ``with`` block: there the engine and BLAS use this rank's share of the cores
    of the machine, unless the environment sets the number of threads (NUMBA_NUM_THREADS,
    OMP_NUM_THREADS and the like). The GPU of a rank has the number of the rank on its machine, so
    connect before you create arrays.

    Parameters
    ----------
    expected_errors : tuple of exception types, default ()
        Errors whose message says everything: no traceback is printed for them.

    Returns
    -------
    ranks : Alone
        The communicator of this process, with ``rank`` and ``size``. Without a launcher it is a
        single process.

    Raises
    ------
    RanksError
        If there is a launcher, but no mpi4py, or mpi4py for another MPI than the launcher's.

    Examples
    --------
    >>> with init_distributed() as ranks:
    ...     print(ranks.rank, ranks.size)
    0 1
    """
    expected = launcher_size()
    if expected == 1:
        return SingleProcess()
    count = "several" if expected is None else expected
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py found no MPI
        reason = " ".join(str(error).split())
        raise RanksError(
            f"a launcher started {count} processes, which communicate through mpi4py, but it "
            f"cannot be imported ({reason}); {_REMEDY}, and install an MPI: the system's, or "
            "pip install mpich"
        ) from error
    if expected not in (None, MPI.COMM_WORLD.size):
        raise RanksError(
            f"the launcher started {expected} processes, but MPI knows of "
            f"{MPI.COMM_WORLD.size}: the launcher belongs to another MPI than mpi4py's; use the "
            f"mpiexec of mpi4py's MPI ({MPI.Get_library_version().splitlines()[0]})"
        )
    if MPI.COMM_WORLD.size == 1:
        return SingleProcess()
    ranks = MpiGroup(MPI, expected_errors)
    choose_gpu(ranks.local_rank)
    try:
        ranks.limits = limit_threads(ranks.cores())
    except ImportError as error:
        raise RanksError(
            f"ranks need threadpoolctl to divide the cores among them: {_REMEDY}"
        ) from error
    return ranks


__getattr__ = deprecated.names_of(__name__)
