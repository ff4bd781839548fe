"""The names of *Deep Learning from Scratch 2*, chapters 5 to 8, as the book's programs use them.

Write ``numba_rnn.book`` where the book's programs say ``common``, and they run unchanged:

    from numba_rnn.book.time_layers import *   # TimeRNN, TimeLSTM, TimeEmbedding, TimeAffine ...
    from numba_rnn.book.optimizer import SGD
    from numba_rnn.book.trainer import RnnlmTrainer
    from numba_rnn.book.util import eval_perplexity

The modules are

- ``time_layers``: RNN, LSTM, GRU; TimeRNN, TimeLSTM, TimeGRU, TimeBiLSTM and the layers around them
- ``layers``: the layers of one step: MatMul, Affine, Embedding, Softmax, losses
- ``attention_layer``, of chapter 8: WeightSum, AttentionWeight, Attention, TimeAttention
- ``optimizer``: SGD, Momentum, Nesterov, AdaGrad, RMSprop, Adam
- ``trainer``: Trainer, RnnlmTrainer, remove_duplicate
- ``base_model``: BaseModel, parameters to a file and back
- ``functions``: sigmoid, relu, softmax, cross_entropy_error
- ``util``: clip_grads, eval_perplexity, eval_seq2seq, to_cpu, to_gpu
- ``np``, ``config``: NumPy, and GPU, which is False

All classes and functions are in ``numba_rnn.book`` as well. If a layer of ``numba_rnn`` equals the
book's, it is that layer. Otherwise it is the book's form: its Adam adds 1e-7 to the root of the raw
second moment, its TimeBiLSTM carries both states on, its TimeDropout draws with ``np.random.rand``,
its TimeAttention has a list of weights. Three things are as in ``numba_rnn``: all arrays of a layer
have one dtype, float32 or float64; word numbers and labels are checked; losses are exact where the
book adds 1e-7 to the argument of a logarithm.

The programs use NumPy's functions on the results of layers. On a machine with a GPU run them with
NUMBA_RNN_BACKEND=numba, so that results are NumPy arrays.
"""

from .attention_layer import Attention, AttentionWeight, TimeAttention, WeightSum
from .base_model import BaseModel
from .functions import cross_entropy_error, relu, sigmoid, softmax
from .layers import (
    Affine,
    Dropout,
    Embedding,
    MatMul,
    Sigmoid,
    SigmoidWithLoss,
    Softmax,
    SoftmaxWithLoss,
)
from .optimizer import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSprop
from .time_layers import (
    GRU,
    LSTM,
    RNN,
    TimeAffine,
    TimeBiLSTM,
    TimeDropout,
    TimeEmbedding,
    TimeGRU,
    TimeLSTM,
    TimeRNN,
    TimeSigmoidWithLoss,
    TimeSoftmaxWithLoss,
)
from .trainer import RnnlmTrainer, Trainer, remove_duplicate
from .util import clip_grads, eval_perplexity, eval_seq2seq, to_cpu, to_gpu

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "AdaGrad",
    "Adam",
    "Affine",
    "Attention",
    "AttentionWeight",
    "BaseModel",
    "Dropout",
    "Embedding",
    "MatMul",
    "Momentum",
    "Nesterov",
    "RMSprop",
    "RnnlmTrainer",
    "Sigmoid",
    "SigmoidWithLoss",
    "Softmax",
    "SoftmaxWithLoss",
    "TimeAffine",
    "TimeAttention",
    "TimeBiLSTM",
    "TimeDropout",
    "TimeEmbedding",
    "TimeGRU",
    "TimeLSTM",
    "TimeRNN",
    "TimeSigmoidWithLoss",
    "TimeSoftmaxWithLoss",
    "Trainer",
    "WeightSum",
    "clip_grads",
    "cross_entropy_error",
    "eval_perplexity",
    "eval_seq2seq",
    "relu",
    "remove_duplicate",
    "sigmoid",
    "softmax",
    "to_cpu",
    "to_gpu",
]
