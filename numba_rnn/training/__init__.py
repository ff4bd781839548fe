"""Training: optimisers, clipping, truncated BPTT, the loop and its checkpoints."""

from .bptt import TruncatedBPTT
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .clipping import clip_grads
from .optimisers import SGD, AdaGrad, Adam, AdamW, Momentum, Optimiser, RMSProp
from .ranks import RanksError, connect
from .trainer import History, Trainer, TrainingDiverged

__all__ = [
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "CheckpointError",
    "History",
    "Momentum",
    "Optimiser",
    "RMSProp",
    "RanksError",
    "Trainer",
    "TrainingDiverged",
    "TruncatedBPTT",
    "clip_grads",
    "connect",
    "load_checkpoint",
    "save_checkpoint",
]
