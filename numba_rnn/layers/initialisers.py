"""How parameters start.

``orthogonal`` (default)  Wh of each gate a random orthogonal matrix (Saxe et al. 2014): its
                          singular values are 1, so that gradients neither vanish nor explode at
                          the start. Wx of each gate Glorot uniform (Glorot & Bengio 2010). b = 0,
                          but for what the cell asks for: the LSTM's forget gate starts at 1, to
                          remember at first (Jozefowicz et al. 2015).
``book``                  Deep Learning from Scratch 2: Wx ~ N(0, 1/D), Wh ~ N(0, 1/H), b = 0.

With both, the biases of gates that are normalised start between -1/2 and 1/2. At 0 a row of zeros
would have the variance 0 until something else comes in: normalisation then multiplies gradients by
1 / sqrt(1e-5) = 316 at every step, and those of a dozen steps overflow (PyTorch's LayerNorm in a
loop does the same).
"""

import math
from typing import Any

import numpy as np

from ..kernels.cells import Cell
from ..typing import Array
from ..validation import expect_choice, expect_float_dtype, expect_int

Seed = int | np.random.Generator | None

INITS = ("orthogonal", "book")
NORMALISED = (-0.5, 0.5)


def generator(rng: Seed) -> np.random.Generator:
    """A random generator from one, from a seed, or from nothing."""
    expected = f"rng: expected a numpy Generator, a seed or None, got {rng!r}"
    try:
        return np.random.default_rng(rng)
    except TypeError as error:
        raise TypeError(expected) from error
    except ValueError as error:
        raise ValueError(expected) from error


def new_seed(rng: np.random.Generator) -> int:
    """A seed for the random masks of a block (``kernels/counter_rng.py``)."""
    return int(rng.integers(2**63))


def state_of(rng: np.random.Generator) -> Any:
    """The state of a generator of any kind as JSON: numbers, and lists of them."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value

    return plain(rng.bit_generator.state)


def set_state(rng: np.random.Generator, state: Any) -> None:
    """Give a generator a state from ``state_of``. Raises an error for that of another kind."""
    for numbers, name, most in ((state["state"], "pos", 624), (state, "buffer_pos", 4)):
        if not 0 <= numbers.get(name, 0) <= most:  # NumPy would read beyond its memory there
            raise ValueError(f"{name}: expected at most {most}, got {numbers[name]}")
    rng.bit_generator.state = state


def orthogonal(rng: np.random.Generator, size: int) -> Array:
    """A random orthogonal (size, size) matrix, uniformly distributed."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))  # the signs make it uniform (Mezzadri 2007)


def glorot(rng: np.random.Generator, inputs: int, outputs: int) -> Array:
    """Uniform in ±sqrt(6 / (inputs + outputs)), (inputs, outputs)."""
    limit = math.sqrt(6 / (inputs + outputs))
    return rng.uniform(-limit, limit, (inputs, outputs))


def recurrent(
    cell: Cell,
    input_size: int,
    hidden_size: int,
    rng: Seed,
    dtype: Any,
    init: str,
    output_size: int | None = None,
) -> list[Array]:
    """The parameters of a cell, in the order of its shapes; see the module for ``init``.

    The cell's own weights start as it asks, at 0 if it does not. Wh and Wr of a projected cell
    start as parts of (H, H) matrices.
    """
    D, H = expect_int("input_size", input_size), expect_int("hidden_size", hidden_size)
    dtype = expect_float_dtype("dtype", dtype)
    random = generator(rng)
    P = H if output_size is None else expect_int("proj_size", output_size)
    if P > H:
        raise ValueError(f"proj_size: expected at most hidden_size, {H}, got {P}")
    shapes = cell.shapes(D, H)
    x_gates, h_gates = cell.input_gates, cell.recurrent_gates
    b = np.zeros(shapes["b"])
    w = np.zeros((len(cell.weights), H))
    for name, start in cell.weight_start.items():
        w[cell.weights.index(name)] = _started(random, start, H)
    if expect_choice("init", init, INITS) == "book":
        Wx = random.standard_normal(shapes["Wx"]) / math.sqrt(D)
        Wh = random.standard_normal((H, len(h_gates) * H)) / math.sqrt(H)
    else:
        Wx = np.concatenate([glorot(random, D, H) for _ in x_gates], axis=1)
        Wh = np.concatenate([np.empty((H, 0)), *(orthogonal(random, H) for _ in h_gates)], axis=1)
        first = b if cell.biases == 1 else b[0]
        for gate, start in cell.bias_start.items():
            k = x_gates.index(cell.gates.index(gate))
            first[k * H : (k + 1) * H] = _started(random, start, H)
    drawn = set(cell.normalised) - set(cell.bias_start)
    for side, gates in zip(b.reshape(-1, len(x_gates), H), (x_gates, h_gates), strict=False):
        for row, gate in zip(side, gates, strict=True):
            if cell.gates[gate] in drawn:
                row[...] = random.uniform(*NORMALISED, H)
    Wr = None
    if cell.projected:
        blocks = np.split(Wh, len(h_gates), axis=1)
        early = len(h_gates) - len(cell.second_product)
        Wh, Wr = Wh[:P, : early * H], np.concatenate([B[:, :P] for B in blocks[early:]], axis=1)
    return [p.astype(dtype) for p in cell.own(Wx, Wh, b, w, Wr)]


def _started(random: np.random.Generator, start: float | tuple[float, float], count: int) -> Any:
    """Where a cell wants so many numbers to start."""
    return random.uniform(*start, count) if isinstance(start, tuple) else start
