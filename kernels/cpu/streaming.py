"""Streams: a stack of layers that lives on, fed one step or a few at a time.

A stream has its weights packed and all its memory at hand. One call runs through the stack, block
of time by block of time, and then through the affine layer on top:

    x --> layer 0 --> hidden states --> layer 1 --> hidden states --> affine --> out
            |                             |
          state                         state          read before a block, written after it

Every layer is a plan of the forward pass (``schedule.py``) of which nothing is kept, so that a
stream computes, bit for bit, what the layer computes for the whole sequence (with the same
precision). Weights in float32 and float64 of one sequence go through ``fused_step.py``.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cell
from ..engine import Array, StreamLayer
from ..layout import layout
from ..quantisation import is_quantised
from ..step_options import StepOptions
from . import threads
from .kernel_cache import compiled, python_function, warn_if_slow_compile
from .option_memory import OptionMemory, compiled_features
from .packing import (
    FEW_OUTPUTS,
    Packed,
    pack_affine,
    pack_quantised,
    pack_strips,
    pack_weights,
    write_packed,
    zeros,
)
from .plan import PLACES, write
from .plans import (
    FORWARD,
    address_of,
    aligned,
    choose_partition,
    compiling,
    known,
    merge_bias,
    plan_template,
)
from .strips import x_ahead
from .target import VECTOR_BYTES, in_tiles


class StreamPlan(NamedTuple):
    """A call works on these: addresses, sizes in numbers, strides in bytes."""

    array_type: int  # as of ``plans.Known``
    dtype: int
    true: int
    false: int
    kernel: int
    N: int
    inputs: int
    alone: int  # whether a function that Python calls may call the kernel itself
    x: int  # (N, T, inputs)
    x_row: int
    x_time: int
    T: int
    out: int  # (N, T, outputs)
    out_row: int
    out_time: int
    block: int  # how many steps the plans of the layers are made for
    layers: int
    plans: int  # the address of their addresses
    outputs: int
    # the affine layer, if there is one: its weights with the bias for a last row, in panels, how
    # many words these have, the bytes from panel to panel, and its kernel; or 0, and the weights
    # transposed
    weights: int
    inner: int
    panel: int
    multiply: int
    # in int8: the bias, its kernel that rounds h, and where the words of h go, with their scales
    bias: int
    round_columns: int
    words: int
    words_row: int
    scales: int
    h_size: int


# ---- from Python


class _Layer(NamedTuple):
    """A layer of a stream."""

    cell: Cell
    params: tuple[Array, ...]
    sizes: tuple[int, int, int]  # D, H, P
    zoneout: Sequence[float]
    word: int  # numbers in a word of the products' operands (``plan.py``)
    state: Array  # (S, N, H), for a batch of one padded to whole vectors
    packed: dict[Any, Packed]  # its weights, by the function that makes a plan with them


def _layer(layer: StreamLayer, N: int, bfloat16: bool) -> _Layer:
    cell, given, zoneout, float32 = layer
    # only the bias is read later on: the weights are packed before this stream is made
    Wx, Wh, b, *own = merge_bias(cell, given)
    params = Wx, Wh, b.copy(), *own
    D, H, dtype = given[0].shape[0], cell.hidden_size(given), params[2].dtype
    sizes = D, H, cell.output_size(given) if cell.projected else H
    word, packed = 2 if bfloat16 and not float32 and dtype == np.float32 else 1, {}
    if is_quantised(given):
        word, packed = 4, {_in_panels: pack_quantised(cell, given)}
    lanes = VECTOR_BYTES // dtype.itemsize if N == 1 else 1
    state = zeros((len(cell.states), N, -(-H // lanes) * lanes), dtype)
    return _Layer(cell, params, sizes, zoneout, word, state, packed)


class NumbaStream:
    """A stack of layers with packed weights and its memory at hand.

    state  for each layer its states, (S, N, H), to be read and written
    out    the result of the last step
    """

    def __init__(
        self,
        given: Sequence[tuple[Any, ...]],
        affine: Sequence[Array] | None,
        N: int,
        shards: int,
        bfloat16: bool,
    ) -> None:
        layers = [_layer(StreamLayer(*parts), N, bfloat16) for parts in given]
        dtype, H = layers[0].state.dtype, [layer.sizes[1] for layer in layers]
        self.state = [layer.state[:, :, :size] for layer, size in zip(layers, H, strict=True)]
        with warn_if_slow_compile(f"a stream of {layers[0].cell.name} ({dtype})"):
            top = pack_affine(affine) if affine is not None else None
            self._one = _Call(layers, top, N, 1, shards)
            self._many = _Call(layers, top, N, max(2, 4096 // max(N, 1)), shards)
            # a step of a microsecond need not let other Python threads in
            long = N * sum(param.size for parts in given for param in parts[1]) > 1 << 16
            batch = "_batch" if N != 1 else ""
            self._enter = self._one.entrance(f"step{batch}{'_long' if long else ''}", False)
            self._enter_many = self._many.entrance(f"run{batch}", True)
        self.out = self._one.out[0, 0] if N == 1 else self._one.out[:, 0]

    @property
    def stepping(self) -> Callable[[Any], bool]:
        """A step is this, called with x: the shortest way.

        x (N, inputs), or (inputs,) for a batch of one. The result is in ``out``. Returns False, and
        does nothing, where x is no such array of the stream's dtype (the very object), a number in
        it is not finite, or the numbers of a row are not aligned or do not lie side by side.
        """
        return self._step_together if self._one.shared else self._enter

    @property
    def running(self) -> Callable[[Any, Any], bool]:
        """The same for some steps: a function of xs (N, T, inputs) and out (N, T, outputs).

        Returns False also where out is not C-contiguous, or shares memory with xs.
        """
        return self._run_together if self._many.shared else self._enter_many

    def _step_together(self, x: Any) -> bool:
        if type(x) is np.ndarray and np.may_share_memory(x, self.out):
            x = x.copy()  # one thread would read what another has written
        return self._enter(x) and self._one.run_shared()

    def _run_together(self, xs: Any, out: Any) -> bool:
        return self._enter_many(xs, out) and self._many.run_shared()


class _Call:
    """A plan for calls, up to T steps of which are a block, and all that it has the address of."""

    def __init__(
        self, layers: Sequence[_Layer], top: Packed | None, N: int, T: int, shards: int
    ) -> None:
        self._shards, dtype = shards, layers[0].state.dtype
        lanes = VECTOR_BYTES // dtype.itemsize
        xs = np.zeros((N, T, layers[0].sizes[0]), dtype)
        words = {"x": address_of(xs), "x_row": xs.strides[0], "x_time": xs.strides[1]}
        self._kept: list[Any] = [layers, top, xs]
        self.plans = []
        for layer in layers:
            cell, params, (D, H, P), zoneout, word, _, packed = layer
            # below the affine layer whole vectors, a 1 behind h, by which the bias is multiplied
            below = top is not None and layer is layers[-1]
            wide = -(-(P + 1) // lanes) * lanes if below else P
            hs = zeros((N, T, wide), dtype)
            hs[:, :, P:], hs = 1, hs[:, :, :P]
            cut, options = choose_partition(cell, N, T, D, H, shards), StepOptions(zoneout=zoneout)
            if N == 1 == cut[0] == word and not cell.normalised:
                make, weights = _fused, packed.get(_fused) or pack_strips(cell, params)
            else:
                make = _in_panels
                weights = packed.get(make) or pack_weights(cell, params, word == 2)
            packed[make] = weights
            plan, memory = make(layer, xs, hs, cut, weights, options.features)
            if zoneout:
                there = OptionMemory(options, cell, (N, N, T, H), dtype)
                write(plan, options=there.address)
                self._kept.append(there)
            self.plans.append(plan)
            self._kept += [memory, hs]
            xs = hs
        self.shared = [plan for plan in self.plans if plan[PLACES["shards"]] > 1]
        self.out = hs if top is None else np.zeros((N, T, top.columns), dtype)
        addresses = np.array([address_of(plan) for plan in self.plans])
        self._kernel = compiled("stream_kernels.stream", dtype.name)
        self._words = np.array(StreamPlan(
            **known(dtype)._asdict(), kernel=self._kernel, N=N, inputs=layers[0].sizes[0],
            alone=not self.shared, **words, T=T,
            out=address_of(self.out), out_row=self.out.strides[0], out_time=self.out.strides[1],
            block=T, layers=len(layers), plans=address_of(addresses), outputs=self.out.shape[2],
            **self._affine(top, P, T, dtype),
        ))  # fmt: skip
        self._kept.append(addresses)
        self.address = address_of(self._words)

    def _affine(self, top: Packed | None, P: int, T: int, dtype: Any) -> dict[str, int]:
        """The fields of the affine layer."""
        names = StreamPlan._fields[StreamPlan._fields.index("weights") :]
        fields = dict.fromkeys(names, 0)
        if top is None:
            return fields
        if top.word == 1:
            few = top.columns <= FEW_OUTPUTS
            return fields | {
                "multiply": 0 if few else compiled("gemm.multiply", dtype.name),
                "weights": top.addresses[0], "inner": P + 1, "panel": (P + 1 | 1) * VECTOR_BYTES,
            }  # fmt: skip
        inner, lanes = -(-P // 4), VECTOR_BYTES // 4
        lines = -(-inner // lanes)
        row = (lines + 1 | 1) * VECTOR_BYTES
        words, (weights, bias) = aligned(T * row, dtype), top.addresses
        self._kept.append(words)
        return fields | {
            "multiply": compiled(in_tiles("gemm.multiply_int8", 4, T), dtype.name),
            "weights": weights, "inner": inner, "panel": (inner + 2 | 1) * VECTOR_BYTES,
            "bias": bias, "round_columns": compiled("int8.quantise_columns", dtype.name),
            "words": words[1], "words_row": row, "scales": words[1] + lines * VECTOR_BYTES,
            "h_size": P,
        }  # fmt: skip

    def entrance(self, name: str, several: bool) -> Callable[..., Any]:
        """A function that Python calls, which puts a call's arrays into the plan."""
        address = compiled(f"stream_kernels.{name}", self.out.dtype.name)
        return python_function(address, several, self._words)

    def run_shared(self) -> bool:
        """Run it with the team's help."""
        threads.team.run(self._kernel, self.address, self._shards, self.shared)
        return True


def _fused(
    layer: _Layer, xs: Array, hs: Array, cut: Any, weights: Packed, features: frozenset[str]
) -> tuple[Array, Any]:
    """A plan for ``fused_step.py``, and its memory."""
    cell, (states, _, numbers), dtype = layer.cell, layer.state.shape, layer.state.dtype
    (_, T, D), (_, H, _), row = xs.shape, layer.sizes, numbers * dtype.itemsize
    memory = zeros((states + 1 + len(cell.gates), numbers), dtype)
    ahead = x_ahead(cell, T, D, H, dtype.itemsize)
    panels, projects = row // VECTOR_BYTES * layout(cell).x_gates, not ahead["x_inner"]
    # or a line of zeros, with which sums begin
    lines = max(1, panels * ahead["ahead_panel"] // VECTOR_BYTES)
    x_proj = zeros((lines, VECTOR_BYTES // dtype.itemsize), dtype)
    with compiling(cell, "step", dtype.name):
        entry = steps_kernel = compiled("fused_step.fused_steps", dtype.name, cell, features)
        if projects:
            entry = compiled("fused_step.projected_steps", dtype.name, cell, features)
    write(
        plan := np.zeros(threads.PLAN_WORDS, np.int64),
        entry=entry, gates_kernel=steps_kernel, shards=1, T=1, steps=1, **ahead,
        multiply=compiled("gemm.multiply", dtype.name) if projects else 0,
        states=states, row=row, D=D, H=H, P=hs.shape[2],
        size=dtype.itemsize, xs=address_of(xs), xs_time=xs.strides[1], pWx=weights.addresses[0],
        hs=address_of(hs), hs_row=hs.strides[0], hs_time=hs.strides[1], x_proj=address_of(x_proj),
        now=address_of(layer.state), next=address_of(memory),
        operand_row=address_of(memory[states]), gate_rows=address_of(memory[states + 1 :]),
    )  # fmt: skip
    return plan, (memory, x_proj)


def _in_panels(
    layer: _Layer, xs: Array, hs: Array, cut: Any, weights: Packed, features: frozenset[str]
) -> tuple[Array, Any]:
    """A plan for ``forward.py``, and its memory."""
    cell, params, state = layer.cell, layer.params, layer.state
    sizes, dtype = (*xs.shape, layer.sizes[1], hs.shape[2]), state.dtype
    features = compiled_features(features, False)
    made = plan_template(
        FORWARD, cell, dtype, *sizes, *cut, keep=False, features=features, word=weights.word,
        packed=True,
    )  # fmt: skip
    memory = aligned(made.scratch_bytes, dtype), aligned(made.kept_bytes, dtype)
    (_, scratch), (_, kept) = memory
    plan = made.with_arrays(xs, params, state, state, hs, scratch=scratch, kept=kept)
    write_packed(plan, weights)
    if xs.shape[:2] == (1, 1) and weights.word == 1:  # panels of one row are the row itself
        write(plan, state=address_of(state))
    return plan, memory
