"""A batch shared by ranks: each computes the gradient of its rows, and they add them up.

The loss is a mean over the batch, and so is the gradient, the weighted mean of what the ranks get
for their rows. Parameters start the same on all ranks and change by the same sum: they stay the
same, and so does all that depends on them. In an iteration the ranks meet once:

    gradient, gradient, ..., loss, stop      one buffer on each rank, of which ``grads`` are parts
        x share of the batch                 on each rank
        summed over the ranks                the same bits on each
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..backend import engine_of_param, to_host
from ..kernels import deprecated
from ..layers.initialisers import state_of
from ..layers.losses import TimeSoftmaxWithLoss, perplexity_of
from ..typing import AnyArray, Array, Scalar
from .bptt import TruncatedBPTT
from .distributed import SingleProcess

_STATE = "state/"  # names that start so, in ``arrays``, have a row for each row of the batch


@runtime_checkable
class DataParallelModel(Protocol):
    """A model whose batches can be shared among processes, such as Rnnlm."""

    rng: Any

    @property
    def params(self) -> list[Array]: ...
    def forward(self, xs: AnyArray, ts: AnyArray) -> Scalar: ...
    def backward(self) -> None: ...
    def take_rows(self, rows: slice | None) -> None: ...
    def one_buffer(self, more: int = ...) -> Array: ...
    def mean_loss(
        self, corpus: AnyArray, batch_size: int, time_size: int, rows: slice = ...
    ) -> float: ...
    def arrays(self) -> dict[str, Array]: ...


class DataParallel:
    """One rank's part in the training of a model.

    model       the rank's copy
    ranks       all of them; on every rank all methods are called, in the same order
    blocks      the training corpus, whole batches, the same on all ranks

    Raises TypeError for a model that is not made for it, ValueError for fewer rows than ranks.
    """

    def __init__(self, model: Any, ranks: SingleProcess, blocks: TruncatedBPTT) -> None:
        if not isinstance(model, DataParallelModel):
            raise TypeError(
                "model: expected one that ranks can share (a DataParallelModel), as Rnnlm is, got "
                f"{type(model).__name__}"
            )
        self.model, self.ranks, self.blocks = model, ranks, blocks
        self.rows = ranks.rows(blocks.batch_size)
        self.batch_weight = 0.0  # of the last batch, the rows of all ranks
        self._buffer: Any = None

    def begin(self, **what: Any) -> None:
        """Make sure that all ranks start alike, with the parameters that rank 0 has.

        what  whatever else has to be the same, by name

        Raises ValueError, naming what is not the same.
        """
        mine = {
            "engine": engine_of_param(self.model.params[0]).name,
            "model": [(param.shape, str(param.dtype)) for param in self.model.params],
            "random numbers": state_of(self.model.rng),
            "corpus": self.blocks.digest(),
            **what,
        }
        first = self.ranks.broadcast(mine)
        different = [name for name, value in mine.items() if value != first[name]]
        if different:
            raise ValueError(
                f"{', '.join(different)}: expected the same on all ranks, got something else on "
                f"rank {self.ranks.rank} than on rank 0; give all ranks one seed, one text and the "
                "same settings"
            )
        for param in self.model.params:  # processors of two kinds may round differently
            param[...] = engine_of_param(param).to_device(self.ranks.broadcast(to_host(param)))
        self.model.take_rows(self.rows)
        self._buffer = self.model.one_buffer(more=2)

    def end(self) -> None:
        """The model is given whole batches again."""
        self.model.take_rows(None)

    def gradient(self, xs: AnyArray, ts: AnyArray, stop: bool) -> Scalar:
        """Fill the model's ``grads`` with the gradient of the whole batch's loss, and return it.

        xs, ts  the whole batch, (N, T)
        stop    this rank has been asked to stop, see ``stop``

        The loss is a float, or on a device an array without axes.
        """
        loss = self.model.forward(xs[self.rows], ts[self.rows])
        self.model.backward()
        self.batch_weight = _counted(ts)
        share = _counted(ts[self.rows]) / max(self.batch_weight, 1)
        buffer = self._buffer
        buffer *= share
        buffer[-2] = loss * share
        buffer[-1] = float(stop)
        self.ranks.allreduce(buffer)
        return engine_of_param(self.model.params[0]).to_scalar(buffer[-2].astype(np.float64))

    @property
    def stop(self) -> bool:
        """Whether any rank had been asked to stop; to look at it is to wait for a device."""
        return bool(self._buffer[-1] > 0)

    @property
    def on_host(self) -> bool:
        """Whether there is no device to wait for."""
        return isinstance(self._buffer, np.ndarray)

    def perplexity(self, corpus: AnyArray, batch_size: int, time_size: int) -> float:
        """As the model's, each rank reading some rows: to rounding the same as alone."""
        rows, total = self.ranks.local_slice(batch_size), np.zeros(1)
        count = rows.stop - rows.start
        if count:
            mean = self.model.mean_loss(corpus, batch_size, time_size, rows)
            total[0] = mean * count / batch_size
        self.ranks.allreduce(total)
        return perplexity_of(float(total[0]))

    def evaluate(self, xs: AnyArray, ts: AnyArray, **more: AnyArray) -> tuple[Scalar, Array]:
        """As the model's: each rank reads all rows."""
        model: Any = self.model
        loss, outputs = model.evaluate(xs, ts, **more)
        return loss, outputs

    def arrays(self) -> dict[str, Any]:
        """As the model's, with all rows of its states, on rank 0."""
        return {
            name: self.ranks.gather_rows(array) if name.startswith(_STATE) else array
            for name, array in self.model.arrays().items()
        }

    def mine(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """The result of ``arrays`` with only this rank's rows of the states."""
        return {
            name: array[self.rows] if name.startswith(_STATE) else array
            for name, array in arrays.items()
        }


def _counted(ts: Array) -> int:
    """How many labels count in a mean."""
    return int(np.count_nonzero(ts != TimeSoftmaxWithLoss.ignore_label))


__getattr__ = deprecated.names_of(__name__)
