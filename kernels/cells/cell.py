"""What a cell is: two plain functions on tuples of numbers, and a few names.

A recurrent network is two kinds of work: large matrix products, which are the same for every
cell, and a little arithmetic between them, which is the cell. A cell states that arithmetic for
**one unit at one time step** and nothing else; time, batch, products, threads and devices belong
to the engines. Cell functions are straight-line arithmetic (``+ - * /`` and ``functions.py``):
they run on NumPy arrays, on SIMD vectors and on GPU threads alike.

Notation (N batch, T time, D input size, H hidden size)::

    a_g = x Wx[g] + h Wh[g] + b[g]                 pre-activation of gate g, one number a unit
    forward(gates, state)            -> new_state, saved
    backward(dstate, saved, state)   -> dgates, dstate

``gates`` are the pre-activations in the order of ``Cell.gates``. ``state`` is the state *before*
the step, in the order of ``Cell.states``; its first member is the hidden state ``h``, the cell's
output. ``saved`` is whatever backward wants to find again. ``backward`` gets the gradient of the
state after the step and returns the gradient of every pre-activation and the *direct* part of the
gradient of the state before the step; the part that flows through ``h Wh`` the engine adds.
``None`` in place of a gradient says that it is zero.

Three variations are declared, never guessed:

``input_only``      gates that see only ``x Wx``
``recurrent_only``  gates that see only ``h Wh``; with ``biases=2`` this is how the reset-after
                    GRU gets at the recurrent product before the reset gate scales it
``operand``         the second product: the last gates (named in ``second``) multiply not h but
                    ``operand(gates, state)``, as the reset-before GRU's ``(r * h) Wh``
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Numbers = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Cell:
    """The gate arithmetic of one kind of recurrent cell.

    name            what users call it
    gates           names of the pre-activations, in the order of the fused weight axis
    states          names of the states carried from step to step; the first is the output h
    saved           names of what ``forward`` keeps for ``backward``
    forward         (gates, state) -> (new_state, saved)
    backward        (dstate, saved, state) -> (dgates, dstate)
    input_only      gates without a recurrent product
    recurrent_only  gates without an input product
    second          gates whose recurrent product multiplies ``operand`` instead of h
    operand         (gates, state) -> the number that takes the place of h; the gates in
                    ``second`` still lack their recurrent part
    operand_backward (doperand, dgates, dstate, saved, state) -> (dgates, dstate), the two
                    completed by what flows back through ``operand``
    biases          1: one bias, on the input side; 2: one on each side, b is (2, gates * H)
    bias_start      where a gate's bias starts when a layer is created from sizes
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    saved: tuple[str, ...]
    forward: Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]
    backward: Callable[[Numbers, Numbers, Numbers], tuple[Numbers, Numbers]]
    input_only: tuple[str, ...] = ()
    recurrent_only: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    operand: Callable[[Numbers, Numbers], Any] | None = None
    operand_backward: Callable[..., tuple[Numbers, Numbers]] | None = None
    biases: int = 1
    bias_start: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for role in ("input_only", "recurrent_only", "second", "bias_start"):
            unknown = set(getattr(self, role)) - set(self.gates)
            if unknown:
                raise ValueError(
                    f"cell {self.name!r}: {role} names {sorted(unknown)}, "
                    f"but the gates are {list(self.gates)}"
                )
        if bool(self.second) != (self.operand is not None) or (self.operand is None) != (
            self.operand_backward is None
        ):
            raise ValueError(
                f"cell {self.name!r}: second, operand and operand_backward go together"
            )
        recurrent = [self.gates[g] for g in self.recurrent_gates]
        if tuple(recurrent[len(recurrent) - len(self.second) :]) != tuple(self.second):
            raise ValueError(f"cell {self.name!r}: the gates in second must come last")
        if self.biases not in (1, 2):
            raise ValueError(f"cell {self.name!r}: biases must be 1 or 2, got {self.biases}")
        if self.biases == 1 and self.recurrent_only:
            raise ValueError(f"cell {self.name!r}: recurrent_only gates need biases=2")
        if self.biases == 2 and self.second:
            raise ValueError(f"cell {self.name!r}: a second product goes with biases=1")
        if self.biases == 2 and len(self.input_gates) != len(self.recurrent_gates):
            raise ValueError(f"cell {self.name!r}: biases=2 needs as many input as recurrent gates")

    @property
    def input_gates(self) -> tuple[int, ...]:
        """Positions of the gates that have a block of columns in Wx."""
        return tuple(g for g, name in enumerate(self.gates) if name not in self.recurrent_only)

    @property
    def recurrent_gates(self) -> tuple[int, ...]:
        """Positions of the gates that have a block of columns in Wh."""
        return tuple(g for g, name in enumerate(self.gates) if name not in self.input_only)

    def shapes(self, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters Wx, Wh and b."""
        columns = len(self.input_gates) * hidden_size
        return {
            "Wx": (input_size, columns),
            "Wh": (hidden_size, len(self.recurrent_gates) * hidden_size),
            "b": (columns,) if self.biases == 1 else (2, columns),
        }

    def __repr__(self) -> str:
        return f"<cell {self.name}: gates {' '.join(self.gates)}; states {' '.join(self.states)}>"
