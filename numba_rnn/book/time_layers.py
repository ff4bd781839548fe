"""The book's ``common/time_layers.py``: a block of T steps at once, xs (N, T, D).

``RNN``, ``LSTM``, ``GRU``                         one step; see ``numba_rnn.layers``
``TimeRNN``, ``TimeLSTM``, ``TimeGRU``             T steps: h_t from x_t and h_(t-1)
``TimeEmbedding``, ``TimeAffine``                  the same W at every step
``TimeSigmoidWithLoss``, ``TimeSoftmaxWithLoss``   the mean loss over all steps
``TimeBiLSTM``, ``TimeDropout``                    below, for they are not those of ``numba_rnn``

N rows, T steps, D inputs, H units, V words. With a star the names ``np``, ``sigmoid``, ``softmax``
and those of ``layers`` come along, as in the book. The Korean edition's GRU has no b: give zeros.
"""

import numpy as np

from .. import layers as ours
from ..backend import engine_for_input
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
from ..typing import AnyArray, Array, Scalar
from ..validation import any_shape, expect_float, validate_array
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
    """Softmax and cross-entropy: the mean of -log(softmax(x) of the right word) over all labels.

    The gradient is dx = (softmax(x) - one-hot t) / number of labels, and 0 where t is
    ``ignore_label``, -1.
    """

    def forward(self, xs: Array, ts: AnyArray, *, weights: AnyArray | None = None) -> Scalar:
        """Compute the loss.

        Parameters
        ----------
        xs : (N, T, V) array
            Scores.
        ts : (N, T) integers or (N, T, V) one-hot array
            Labels.
        weights : (N, T) array, optional
            How much each step counts.

        Returns
        -------
        loss : float
            The mean loss in nats.
        """
        return super().forward(xs, labels_of(ts, 2), weights=weights)


class TimeDropout(Layer):
    """Dropout: y = x mask / (1 - dropout_ratio) while ``train_flg`` is True, otherwise y = x.

    The gradient is masked and scaled likewise. The mask is ``np.random.rand(*xs.shape) >
    dropout_ratio``, so that ``np.random.seed`` determines it.

    Parameters
    ----------
    dropout_ratio : float, default 0.5
        The share of numbers that is dropped.

    Attributes
    ----------
    mask : array or None
        The mask of the last forward in training, multiplied by 1 / (1 - dropout_ratio).
    train_flg : bool
        True in training.
    """

    def __init__(self, dropout_ratio: float = 0.5) -> None:
        super().__init__()
        self.dropout_ratio = expect_float("dropout_ratio", dropout_ratio, 0, 1)
        self.mask: Array | None = None
        self.train_flg = True

    def forward(self, xs: Array) -> Array:
        """Drop numbers of xs in training.

        Parameters
        ----------
        xs : array of any shape
            The input.

        Returns
        -------
        ys : array
            The output, in the shape of xs.
        """
        self._tape = ()
        if not self.train_flg:
            return xs
        engine = engine_for_input(xs)
        xs = validate_array("xs", xs, any_shape(xs), None, engine)
        keep = np.random.rand(*xs.shape) > self.dropout_ratio  # noqa: NPY002 (the book's)
        self.mask = engine.to_device(keep.astype(xs.dtype) * (1 / (1 - self.dropout_ratio)))
        self._tape = engine, self.mask
        return xs * self.mask

    def backward(self, dout: Array) -> Array:
        """Compute the gradient.

        Parameters
        ----------
        dout : array
            The gradient of the output.

        Returns
        -------
        dxs : array
            The gradient of xs.
        """
        if not self._saved():
            return dout
        engine, mask = self._saved()
        return validate_array("dout", dout, mask.shape, mask.dtype, engine) * mask


class TimeBiLSTM(ours.TimeBiLSTM):
    """An LSTM that reads forward and one that reads backward, (N, T, D) -> (N, T, 2H).

    Parameters
    ----------
    Wx1, Wh1, b1 : arrays
        The parameters of the forward LSTM; see ``TimeLSTM``.
    Wx2, Wh2, b2 : arrays
        The parameters of the backward LSTM.
    stateful : bool, default False
        Whether both carry their states on to the next block, as in the book. (In ``numba_rnn`` only
        the forward LSTM does, because the state of the backward one comes from the future.)

    Attributes
    ----------
    forward_lstm, backward_lstm : TimeLSTM
        The two LSTMs.
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
