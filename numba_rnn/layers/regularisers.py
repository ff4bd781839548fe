"""Regularisers, which keep a recurrent layer from learning its training data by heart.

``zoneout``            a unit keeps its old value at a step, by lot (Krueger et al. 2017)
``recurrent_dropout``  units of h are missing from h Wh, the same ones at every step of a sequence
                       (Gal & Ghahramani 2016)
``input_dropout``      features of x are missing, the same ones at every step of a sequence
``weight_drop``        entries of Wh are missing, the same ones for the whole block (DropConnect
                       on the hidden-to-hidden weights; Merity et al. 2017)

All but zoneout scale the entries that stay by 1 / (1 - rate). All masks come from a counter-based
generator (``kernels/counter_rng.py``): for one seed they are the same on every engine, and in every
process that has some rows of a batch. Zoneout's are not stored: backward draws again what forward
drew.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Engine
from ..kernels.counter_rng import seeds_of
from ..typing import Array
from ..validation import expect_float
from .initialisers import Seed, generator, new_seed

_INPUT, _RECURRENT = 1000, 1001  # of a block's seed; zoneout has 0, 1 ...
WEIGHTS = {"Wh": 1002, "Wr": 1003}


class Regularisers:
    """The rates of a layer, and where its seeds come from.

    row_offset  the number of this process's first row within the batch
    """

    row_offset = 0

    def __init__(
        self,
        states: Sequence[str],
        zoneout: float | Mapping[str, float] = 0.0,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        weight_drop: float = 0.0,
        rng: Seed = None,
        joined: Sequence[str] = (),
    ) -> None:
        rates = zoneout if isinstance(zoneout, Mapping) else dict.fromkeys(states, zoneout)
        unknown = sorted(set(rates) - set(states))
        if unknown:
            raise ValueError(f"zoneout: expected some of {', '.join(states)}, got {unknown}")
        apart = [name for name in joined if rates.get(name)]
        if apart:
            free = [name for name in states if name not in joined]
            raise ValueError(
                f"zoneout: expected 0 for {', '.join(joined)}, which must stay together, got "
                f"{rates[apart[0]]} for {apart[0]}; name the state, such as "
                f"zoneout={{'{free[0]}': ...}}"
                if free
                else f"zoneout: expected 0, got {rates[apart[0]]}"
            )
        self.zoneout = tuple(
            expect_float(f"zoneout of {name}", rates.get(name, 0.0), 0, 1) for name in states
        )
        self.recurrent_dropout = expect_float("recurrent_dropout", recurrent_dropout, 0, 1)
        self.input_dropout = expect_float("input_dropout", input_dropout, 0, 1)
        self.weight_drop = expect_float("weight_drop", weight_drop, 0, 1)
        self.rng = generator(rng)

    def new_seed(self) -> int:
        """A seed for the masks of a block."""
        return new_seed(self.rng)

    def on_inputs(
        self, engine: Engine, seed: int, shape: tuple[int, int], dtype: Any
    ) -> Array | None:
        """The mask that multiplies xs, (N, D), or None."""
        return self._mask(engine, seed, _INPUT, shape, self.input_dropout, dtype)

    def on_h(self, engine: Engine, seed: int, shape: tuple[int, int], dtype: Any) -> Array | None:
        """The mask that multiplies h on its way into h Wh, (N, H), or None."""
        return self._mask(engine, seed, _RECURRENT, shape, self.recurrent_dropout, dtype)

    def on_weights(
        self, engine: Engine, seed: int, name: str, shape: Sequence[int], dtype: Any
    ) -> Array:
        """The mask that multiplies Wh or Wr."""
        (own,) = seeds_of(seed, WEIGHTS[name])
        return engine.dropout(own, tuple(shape), self.weight_drop, dtype)

    def _mask(
        self, engine: Engine, seed: int, what: int, shape: tuple[int, int], rate: float, dtype: Any
    ) -> Array | None:
        if not rate:
            return None
        (own,) = seeds_of(seed, what)
        return engine.dropout(own, shape, rate, dtype, self.row_offset)
