"""Training: optimisers, clipping, truncated BPTT, the loop, its logs and its checkpoints."""

from ..kernels import deprecated
from ..kernels.sparse_rows import SparseRows
from .averages import ExponentialAverage, NonMonotoneAverage, WeightAverage
from .batches import Batches
from .bptt import TruncatedBPTT
from .callbacks import CSVLog, TensorBoardLog
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .clipping import clip_grads
from .distributed import RanksError, init_distributed
from .history import History
from .optimisers import SGD, AdaGrad, Adam, AdamW, Momentum, Optimiser, RMSProp
from .schedules import cosine, step_decay, warm_up
from .trainer import Trainer, TrainingDiverged

__all__ = [
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Batches",
    "CSVLog",
    "CheckpointError",
    "ExponentialAverage",
    "History",
    "Momentum",
    "NonMonotoneAverage",
    "Optimiser",
    "RMSProp",
    "RanksError",
    "SparseRows",
    "TensorBoardLog",
    "Trainer",
    "TrainingDiverged",
    "TruncatedBPTT",
    "WeightAverage",
    "clip_grads",
    "cosine",
    "init_distributed",
    "load_checkpoint",
    "save_checkpoint",
    "step_decay",
    "warm_up",
]


__getattr__ = deprecated.names_of(__name__)
