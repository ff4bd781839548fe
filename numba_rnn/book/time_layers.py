"""The book's ``common/time_layers.py``: a block of T steps at once, xs (N, T, D).

``RNN``, ``LSTM``, ``GRU``                         one step; see ``numba_rnn.layers``
``TimeRNN``, ``TimeLSTM``, ``TimeGRU``             T steps: h_t from x_t and h_(t-1)
``TimeEmbedding``, ``TimeAffine``                  the same W at every step
``TimeSigmoidWithLoss``, ``TimeSoftmaxWithLoss``   the mean loss over all steps
``TimeBiLSTM``, ``TimeDropout``                    below, for they are not those of ``numba_rnn``

N rows, T steps, D inputs, H units, V words. With a star the names ``np``, ``sigmoid``, ``softmax``
and those of ``layers`` come along, as in the book. The Korean edition's GRU has no b: give zeros.
"""

from typing import Any

import numpy as np

from .. import layers as ours
from ..backend import engine_for
from ..checks import Array, accept, any_shape, expect_float
from ..layers import (
    GRU,
    LSTM,
    RNN,
    TimeAffine,
    TimeEmbedding,
    TimeGRU,
    TimeLSTM,
    TimeRNN,
    TimeSigmoidWithLoss,
)
from ..layers.base import Layer
from .functions import sigmoid
from .layers import (
    Affine,
    Dropout,
    Embedding,
    MatMul,
    Sigmoid,
    SigmoidWithLoss,
    Softmax,
    SoftmaxWithLoss,
    cross_entropy_error,
    labels_of,
    softmax,
)

__all__ = [
    "GRU", "LSTM", "RNN", "Affine", "Dropout", "Embedding", "MatMul", "Sigmoid", "SigmoidWithLoss",
    "Softmax", "SoftmaxWithLoss", "TimeAffine", "TimeBiLSTM", "TimeDropout", "TimeEmbedding",
    "TimeGRU", "TimeLSTM", "TimeRNN", "TimeSigmoidWithLoss", "TimeSoftmaxWithLoss",
    "cross_entropy_error", "np", "sigmoid", "softmax",
]  # fmt: skip


class TimeSoftmaxWithLoss(ours.TimeSoftmaxWithLoss):
    """loss = -log(softmax(x) of the right word), the mean over all steps that have a label.

    dx = (softmax(x) - one-hot t) / number of labels, 0 where t is ``ignore_label``, -1
    """

    def forward(self, xs: Array, ts: Array) -> Any:
        """xs (N, T, V), ts (N, T) labels or (N, T, V) one-hot -> the loss."""
        return super().forward(xs, labels_of(ts, 2))


class TimeDropout(Layer):
    """y = x mask / (1 - dropout_ratio) while ``train_flg``, else y = x; any shape; dx likewise.

    The mask is np.random.rand(*xs.shape) > dropout_ratio, so that ``np.random.seed`` decides it.

    mask   of the last forward in training, with the factor 1 / (1 - dropout_ratio) in it, or None
    """

    def __init__(self, dropout_ratio: float = 0.5) -> None:
        super().__init__()
        self.dropout_ratio = expect_float("dropout_ratio", dropout_ratio, 0, 1)
        self.mask: Array | None = None
        self.train_flg = True

    def forward(self, xs: Array) -> Array:
        """xs, any shape -> the same shape."""
        self._tape = ()
        if not self.train_flg:
            return xs
        here = engine_for(xs)
        xs = accept("xs", xs, any_shape(xs), None, here)
        keep = np.random.rand(*xs.shape) > self.dropout_ratio  # noqa: NPY002 (the book's)
        self.mask = here.to_device(keep.astype(xs.dtype) * (1 / (1 - self.dropout_ratio)))
        self._tape = here, self.mask
        return xs * self.mask

    def backward(self, dout: Array) -> Array:
        """dout, the shape of xs -> dxs."""
        if not self._recall():
            return dout
        here, mask = self._recall()
        return accept("dout", dout, mask.shape, mask.dtype, here) * mask


class TimeBiLSTM(ours.TimeBiLSTM):
    """An LSTM that reads forwards beside one that reads backwards: (N, T, D) -> (N, T, 2H).

    forward_lstm, backward_lstm   the two, Wx1 ... and Wx2 ...

    Where it is stateful both carry their states on to the next block, as in the book; that of
    ``numba_rnn`` carries on the forward one's alone, for the backward one comes from the future.
    """

    def __init__(
        self,
        Wx1: Array,
        Wh1: Array,
        b1: Array,
        Wx2: Array,
        Wh2: Array,
        b2: Array,
        stateful: bool = False,
    ) -> None:
        super().__init__(Wx1, Wh1, b1, Wx2, Wh2, b2, stateful)
        self.forward_lstm, self.backward_lstm = self.forward_layer, self.backward_layer
        self.backward_lstm.stateful = self.forward_lstm.stateful
