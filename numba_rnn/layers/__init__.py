"""Layers with the names of *Deep Learning from Scratch 2*."""

from .adaptive_softmax import TimeAdaptiveSoftmaxWithLoss
from .affine_softmax import TimeAffineSoftmaxWithLoss
from .attention import TimeAttention
from .base import Layer
from .bidirectional import Bidirectional, Reversed, TimeBiGRU, TimeBiLSTM, TimeBiRNN
from .dense import TimeAffine, TimeDropout, TimeEmbedding
from .losses import TimeMSE, TimeSigmoidWithLoss, TimeSoftmaxWithLoss
from .one_step import GRU, LSTM, RNN
from .pooling import TimePooling
from .projected import TimeProjectedLSTM
from .recurrent import TimeGRU, TimeLSTM, TimeRecurrent, TimeRNN
from .sampled_softmax import TimeSampledSoftmaxWithLoss
from .stacked import Stacked

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "Layer",
    "Reversed",
    "Stacked",
    "TimeAdaptiveSoftmaxWithLoss",
    "TimeAffine",
    "TimeAffineSoftmaxWithLoss",
    "TimeAttention",
    "TimeBiGRU",
    "TimeBiLSTM",
    "TimeBiRNN",
    "TimeDropout",
    "TimeEmbedding",
    "TimeGRU",
    "TimeLSTM",
    "TimeMSE",
    "TimePooling",
    "TimeProjectedLSTM",
    "TimeRNN",
    "TimeRecurrent",
    "TimeSampledSoftmaxWithLoss",
    "TimeSigmoidWithLoss",
    "TimeSoftmaxWithLoss",
]
