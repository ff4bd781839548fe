"""The layers of an estimator."""

import os
from threading import Lock
from typing import Any, Self

import numpy as np

from ..backend import engine_of_param, to_host
from ..kernels.quantisation import QuantisedWeight, is_quantised
from ..layers import (
    Bidirectional,
    Layer,
    Stacked,
    TimeAffine,
    TimeDropout,
    TimeEmbedding,
    TimeRecurrent,
)
from ..layers.base import quantise_some
from ..layers.stored_params import arrays_of, param_of, set_params
from ..typing import Array, IntArray
from ..validation import expect_array, expect_choice, expect_int
from .pooling import POOLINGS, create


class Network:
    """Recurrent layers, an affine layer: scores for every step, or for the whole sequence.

        xs -> standardised -> recurrent -> pooled -> dropout -> affine -> scores

    input_size, output_size   D and M
    cell, hidden_size, layers, bidirectional, dropout, dtype   as the estimators have them
    per_step                  True: scores of every step, (N, T, M); False: (N, 1, M)
    pooling                   what they are made of, unless per_step: "last", the states at the end
                              of each sequence, in its last layer, or another one of POOLINGS
    standardise               True: (xs - mean) / scale is what the layers read; NaN is 0 there
    embedding                 None; or how many vectors of how many numbers are learnt: the last
                              feature of xs is the number of one, which stands for it in input_size
    rng                       for the parameters and for dropout

    config              all this but the rng
    recurrent, affine   the layers, a Stacked and a TimeAffine
    mean, scale         (D,) arrays, not trained; None without standardise
    lock                to be held from forward to where its scores are no longer needed: layers
                        are for one thread at a time
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        cell: Any,
        hidden_size: int,
        layers: int,
        bidirectional: bool,
        dropout: float,
        per_step: bool,
        dtype: Any,
        rng: np.random.Generator,
        pooling: str = "last",
        standardise: bool = False,
        embedding: tuple[int, int] | None = None,
    ) -> None:
        self.config = {
            "input_size": input_size, "output_size": output_size, "cell": cell,
            "hidden_size": hidden_size, "layers": layers, "bidirectional": bidirectional,
            "dropout": dropout, "per_step": per_step, "dtype": dtype,
            "pooling": pooling, "standardise": standardise, "embedding": embedding,
        }  # fmt: skip
        made: list[TimeRecurrent | Bidirectional] = []
        below, options = input_size, {"rng": rng, "dtype": dtype}
        for _ in range(expect_int("layers", layers)):
            if bidirectional:
                made.append(Bidirectional.create(below, hidden_size, layer=cell, **options))
            else:
                made.append(TimeRecurrent.create(below, hidden_size, cell=cell, **options))
            below = made[-1].output_size
        self.per_step = per_step
        self._locks: dict[int, Lock] = {}
        self.recurrent = Stacked(made, dropout, rng=rng)
        self.dropout = TimeDropout(dropout, rng=rng)
        self.affine = TimeAffine.create(below, output_size, **options)
        pooling = expect_choice("pooling", pooling, POOLINGS)
        self.pooling: Any = None if per_step else create(pooling, below, self.affine.dtype)
        self.embedding = None if embedding is None else TimeEmbedding.create(*embedding, **options)
        self.mean: Any = None
        self.scale: Any = None
        if standardise:
            self.mean, self.scale = np.zeros(input_size, dtype), np.ones(input_size, dtype)
        self._named = {
            "": self.recurrent, "pooling.": self.pooling, "affine.": self.affine,
            "embedding.": self.embedding,
        }  # fmt: skip
        self._directions = 2 if bidirectional else 1

    def __repr__(self) -> str:
        return f"Network({self.recurrent.layers}, {self.affine})"

    def _parts(self) -> list[Any]:
        return [part for part in self._named.values() if part is not None]

    @property
    def params(self) -> list[Array]:
        """The parameters of all layers, in a new list."""
        return [param for part in self._parts() for param in part.params]

    @property
    def grads(self) -> list[Array]:
        """The gradients of all layers, in a new list."""
        return [grad for part in self._parts() for grad in part.grads]

    def quantise(self) -> Self:
        """Round the weights of all layers to int8, in place; see ``Layer.quantise``."""
        quantise_some(self, (layer for _, layer in self._leaves()))
        return self

    def dequantise(self) -> Self:
        """Make float32 weights of those in int8, in place; see ``Layer.dequantise``."""
        for _, layer in self._leaves():
            layer.dequantise()
        return self

    @property
    def quantised(self) -> bool:
        """Whether there are weights in int8."""
        return is_quantised(self.params)

    def _leaves(self) -> list[tuple[str, Layer]]:
        """The layers with the parameters, in their order, with their names."""
        return [
            (f"{name}{place}".rstrip("."), leaf)
            for name, part in self._named.items()
            if part is not None
            for place, leaf in part._leaves()
        ]

    @property
    def lock(self) -> Lock:
        """A forked child has a lock of its own: the thread that holds the parent's is not in it."""
        return self._locks.setdefault(os.getpid(), Lock())

    def __getstate__(self) -> dict[str, Any]:
        """A copy has a lock of its own."""
        return {**self.__dict__, "_locks": {}}

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters, and so of everything that goes in and out."""
        return self.affine.dtype

    def forward(self, xs: Array, lengths: IntArray | None = None, train_flg: bool = False) -> Array:
        """xs (N, T, D) -> scores (N, T, M) or (N, 1, M)."""
        self.recurrent.train_flg = self.dropout.train_flg = train_flg
        if self.mean is not None:
            xs = (xs - self.mean) / self.scale
        missing = np.isnan(xs)
        if missing.any():
            xs = np.where(missing, xs.dtype.type(0), xs)
        if self.embedding is not None:
            vectors = self.embedding.forward(xs[:, :, -1].astype(np.int64))
            xp = engine_of_param(self.params[0]).xp
            xs = xp.concatenate([xp.asarray(xs[:, :, :-1]), vectors], axis=2)
        hs = self.recurrent.forward(xs, lengths=lengths)
        self._shape = hs.shape
        if self.pooling is not None:
            hs = self.pooling.forward(hs, lengths=lengths)
        elif not self.per_step:
            ends = [state[0] for state in self.recurrent.state[-self._directions :] if state]
            hs = engine_of_param(self.params[0]).xp.concatenate(ends, axis=1)[:, None]
        return self.affine.forward(self.dropout.forward(hs))

    def backward(self, dscores: Array) -> None:
        """Fill ``grads``."""
        dhs = self.dropout.backward(self.affine.backward(dscores))
        if self.pooling is not None:
            dhs = self.pooling.backward(dhs)
        if self.per_step or self.pooling is not None:
            dxs = self.recurrent.backward(dhs, inputs=self.embedding is not None)
            if self.embedding is not None and dxs is not None:
                self.embedding.backward(dxs[:, :, -self.embedding.W.shape[1] :])
            return
        layers = self.recurrent.recurrent
        H, below = layers[-1].output_size, len(layers) - self._directions
        ends = [(dhs[:, 0, k * H : (k + 1) * H],) for k in range(self._directions)]
        nothing = engine_of_param(self.params[0]).xp.zeros(self._shape, dhs.dtype)
        self.recurrent.backward(nothing, *(None,) * below, *ends, inputs=False)

    def in_stream(self) -> list[Any]:
        """The layers that a ``numba_rnn.Stream`` of this runs; they read forwards."""
        name = self.config["pooling"]
        if self.pooling is not None and name in ("max", "attention"):
            raise TypeError(
                f"pooling: expected 'last' or 'mean' for a stream, or per_step=True, got {name!r}, "
                "which has no scores of single steps"
            )
        layers = self.recurrent.in_stream()
        return [*([] if self.mean is None else [self._reads_raw(layers.pop(0))]), *layers,
                self.affine]  # fmt: skip

    def _reads_raw(self, layer: Any) -> Any:
        """A copy of the first layer that reads what is not standardised:

        Wx / scale, b - (mean / scale) Wx

        8 bits of such numbers, around a large mean or of different sizes, would leave nothing: it
        stays in float32 whatever the weights of the stream.
        """
        if layer.role_in_stream != "recurrent":
            return layer  # which a stream refuses
        params = dict(zip(layer.param_names, map(to_host, layer.params), strict=True))
        Wx, b = params["Wx"], params.get("b")
        if isinstance(Wx, QuantisedWeight):
            raise TypeError(
                "standardise: expected weights in float32 to make a stream that scales its inputs, "
                'got int8 ones; Stream(network, weights="int8") makes one before quantise()'
            )
        if b is None or b.shape != Wx.shape[1:]:
            raise TypeError(
                f"standardise: expected False for a stream of {layer.cell.name}, whose inputs have "
                "no bias of their own"
            )
        params["Wx"] = Wx / self.scale[:, None]
        params["b"] = b - self.mean @ params["Wx"]
        engine = engine_of_param(layer.params[0])
        made = TimeRecurrent(*map(engine.to_device, params.values()), cell=layer.cell)
        made.float32_in_stream = True
        return made

    def forget(self) -> None:
        """Drop what forward kept for backward, and with it the memory."""
        for part in (self.recurrent, self.dropout, self.pooling, self.affine, self.embedding):
            if part is not None:
                part.forget()
        self.recurrent.reset_state()

    # ---- parameters

    def arrays(self) -> dict[str, Array]:
        """Copies of the parameters by name, as NumPy arrays wherever they are."""
        found: dict[str, Array] = {}
        for name, param in self._arrays().items():
            found |= arrays_of(name, param)
        return {name: np.array(array, order="C") for name, array in found.items()}

    def _arrays(self) -> dict[str, Array]:
        """The parameters, and behind them what is not trained, by name."""
        names = [
            f"{place}{name}"
            for place, part in self._named.items()
            for name in (() if part is None else part.param_names)
        ]
        found = dict(zip(names, self.params, strict=True))
        return found if self.mean is None else found | {"mean": self.mean, "scale": self.scale}

    def load_arrays(self, arrays: dict[str, Array]) -> None:
        """Take up what ``arrays`` returned."""
        slots = [(layer, k) for _, layer in self._leaves() for k in range(len(layer.params))]
        named = self._arrays()
        values = [param_of(name, arrays, *slot) for name, slot in zip(named, slots, strict=False)]
        for name in list(named)[len(slots) :]:
            expect_array(name, arrays.get(name), named[name].shape, named[name].dtype)
        set_params(slots, values)
        if self.mean is not None:
            self.mean, self.scale = arrays["mean"].copy(), arrays["scale"].copy()


def expect_sizes(config: dict[str, Any], arrays: dict[str, Array]) -> None:
    """See that a network's sizes are those of its arrays, before one is made of them.

    Raises ValueError, or KeyError where something is missing.
    """
    arrays = {name.removeprefix("int8/"): array for name, array in arrays.items()}
    H, M = arrays["affine.W"].shape
    found = {
        "input_size": {
            len(array)
            for name, array in arrays.items()
            if name.endswith("Wx") and not name.startswith("scale/")
        },
        "hidden_size": {H // 2 if config["bidirectional"] else H},
        "output_size": {M},
        "layers": range(1, len(arrays)),
    }
    for name, sizes in found.items():
        if config[name] not in sizes:
            raise ValueError(f"{name}: expected it to fit the parameters, got {config[name]!r}")
