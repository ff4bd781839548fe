"""The same recurrent layer in other libraries, with the same weights.

Each function takes a ``Task`` and returns what is to be timed: a call without arguments. The
weights come in this project's layout and are put into each library's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Call = Callable[[], Any]


@dataclass(frozen=True)
class Task:
    """A layer with its weights and data; xs (N, T, D), dhs (N, T, H)."""

    cell: str
    params: tuple[Any, ...]
    xs: Any
    dhs: Any

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """T, N, D, H."""
        N, T, D = self.xs.shape
        return T, N, D, self.dhs.shape[2]

    def blocks(self, order: str) -> tuple[Any, Any, Any, Any]:
        """Wx, Wh (rows are units) and two biases, gates in another order.

        Gates are named as in ``kernels/cells``; ``-z`` is the complement of z, 1 - sigmoid(a) =
        sigmoid(-a).
        """
        Wx, Wh, b = self.params
        H = Wh.shape[0]
        names = {"lstm": "fgio", "gru_reset_after": "zrh", "rnn": "h"}[self.cell]
        bx, bh = (b[0], b[1]) if b.ndim == 2 else (b, np.zeros_like(b))
        parts = []
        for array in (Wx.T, Wh.T, bx, bh):
            rows = {name: array[k * H : (k + 1) * H] for k, name in enumerate(names)}
            parts.append(
                np.concatenate([
                    -rows[gate[1:]] if gate.startswith("-") else rows[gate]
                    for gate in order.split()
                ])
            )  # fmt: skip
        return tuple(np.ascontiguousarray(part) for part in parts)


def task(cell: str, T: int, N: int, D: int, H: int) -> Task:
    """A random layer, started as torch starts one, and random data."""
    from numba_rnn import cells

    rng = np.random.default_rng(0)
    limit = 1 / np.sqrt(H)
    params = tuple(
        rng.uniform(-limit, limit, shape).astype(np.float32)
        for shape in cells.get(cell).shapes(D, H).values()
    )
    xs = rng.standard_normal((N, T, D)).astype(np.float32)
    return Task(cell, params, xs, rng.standard_normal((N, T, H)).astype(np.float32))


def _time_first(array: Any) -> Any:
    return np.ascontiguousarray(array.swapaxes(0, 1))


# ---- ours


def our_layer(task: Task) -> Any:
    """The layer itself."""
    from numba_rnn import TimeRecurrent

    return TimeRecurrent(*task.params, cell=task.cell)


def ours_train(task: Task) -> Call:
    layer = our_layer(task)

    def call() -> Any:
        hs = layer.forward(task.xs)
        return hs, layer.backward(task.dhs), layer.grads[0], layer.grads[1]

    return call


def ours_forward(task: Task) -> Call:
    layer = our_layer(task)
    return lambda: layer.forward(task.xs)


def ours_infer(task: Task) -> Call:
    T, N, _, H = task.sizes
    import numba

    stream = our_layer(task).stream(batch=N, threads=numba.get_num_threads())
    frames = task.xs[0] if N == 1 else task.xs
    out = np.empty((T, H) if N == 1 else (N, T, H), np.float32)

    def call() -> Any:
        stream.reset()
        return stream.step_many(frames, out).reshape(N, T, H)

    return call


def ours_step(task: Task) -> Call:
    stream, x = our_layer(task).stream(), task.xs[0, 0].copy()
    return lambda: stream.step(x)


# ---- torch

TORCH_ORDER = {"lstm": "i f g o", "gru_reset_after": "r -z h", "rnn": "h"}
TORCH_NAME = {"lstm": "LSTM", "gru_reset_after": "GRU", "rnn": "RNN"}


def torch_module(task: Task, suffix: str = "") -> Any:
    import torch

    _, _, D, H = task.sizes
    module = getattr(torch.nn, TORCH_NAME[task.cell] + suffix)(D, H)
    with torch.no_grad():
        for param, value in zip(
            module.parameters(), task.blocks(TORCH_ORDER[task.cell]), strict=True
        ):
            param.copy_(torch.from_numpy(value))
    return module


def torch_train(task: Task, last_only: bool = False) -> Call:
    import torch

    module = torch_module(task)
    xs = torch.from_numpy(_time_first(task.xs)).requires_grad_()
    dhs = torch.from_numpy(_time_first(task.dhs))

    def call() -> Any:
        for param in module.parameters():
            param.grad = None
        xs.grad = None
        hs, _ = module(xs)
        if last_only:
            hs[-1].backward(dhs[-1])
        else:
            hs.backward(dhs)
        return hs.detach().numpy().swapaxes(0, 1), xs.grad.numpy().swapaxes(0, 1)

    return call


def torch_infer(task: Task) -> Call:
    import torch

    module, xs = torch_module(task), torch.from_numpy(_time_first(task.xs))

    def call() -> Any:
        with torch.inference_mode():
            return module(xs)[0].numpy().swapaxes(0, 1)

    return call


def torch_cell_step(task: Task) -> Call:
    import torch

    module, x = torch_module(task, "Cell"), torch.from_numpy(task.xs[:, 0].copy())
    state = module(x)
    state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()

    def call() -> Any:
        with torch.inference_mode():
            return module(x, state)

    return call


def torch_layer_step(task: Task) -> Call:
    import torch

    module, x = torch_module(task), torch.from_numpy(task.xs[:, :1].copy())
    _, state = module(x)

    def call() -> Any:
        with torch.inference_mode():
            return module(x, state)

    return call


# ---- jax


def _jax_forward(cell: str) -> Any:
    import jax
    import jax.numpy as jnp

    def scan(step: Any, state: Any, x_proj: Any) -> Any:
        return jax.lax.scan(step, state, x_proj)[1]

    def forward(params: Any, xs: Any) -> Any:  # xs (T, N, D); one product for all T
        Wx, Wh, b = params
        bx, bh = (b[0], b[1]) if b.ndim == 2 else (b, 0)
        x_proj, zeros = xs @ Wx + bx, jnp.zeros((xs.shape[1], Wh.shape[0]), xs.dtype)
        if cell == "rnn":

            def rnn(h: Any, a: Any) -> Any:
                h = jnp.tanh(a + h @ Wh)
                return h, h

            return scan(rnn, zeros, x_proj)
        if cell == "lstm":

            def lstm(state: Any, a: Any) -> Any:
                h, c = state
                f, g, i, o = jnp.split(a + h @ Wh, 4, axis=1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            return scan(lstm, (zeros, zeros), x_proj)

        def gru(h: Any, a: Any) -> Any:
            z, r, new = jnp.split(a, 3, axis=1)
            hz, hr, hn = jnp.split(h @ Wh + bh, 3, axis=1)
            z, r = jax.nn.sigmoid(z + hz), jax.nn.sigmoid(r + hr)
            h = (1 - z) * h + z * jnp.tanh(new + r * hn)
            return h, h

        return scan(gru, zeros, x_proj)

    return forward


def jax_train(task: Task) -> Call:
    import jax
    import jax.numpy as jnp

    forward = _jax_forward(task.cell)

    @jax.jit
    def step(params: Any, xs: Any, dhs: Any) -> Any:
        hs, backward = jax.vjp(forward, params, xs)
        return hs, backward(dhs)

    params = tuple(jnp.asarray(p) for p in task.params)
    xs, dhs = jnp.asarray(_time_first(task.xs)), jnp.asarray(_time_first(task.dhs))

    def call() -> Any:
        hs, (_, dxs) = jax.block_until_ready(step(params, xs, dhs))
        return np.asarray(hs).swapaxes(0, 1), np.asarray(dxs).swapaxes(0, 1)

    return call


def jax_infer(task: Task) -> Call:
    import jax
    import jax.numpy as jnp

    forward = jax.jit(_jax_forward(task.cell))
    params, xs = tuple(map(jnp.asarray, task.params)), jnp.asarray(_time_first(task.xs))
    return lambda: np.asarray(jax.block_until_ready(forward(params, xs))).swapaxes(0, 1)


# ---- onnxruntime

_ONNX_ORDER = {"lstm": "i o f g", "gru_reset_after": "-z r h", "rnn": "h"}
_ONNX_NAME = {"lstm": "LSTM", "gru_reset_after": "GRU", "rnn": "RNN"}


def onnx_model(task: Task, T: int, streaming: bool) -> Any:
    """The layer over T steps; streaming: with the states as inputs and outputs."""
    from onnx import TensorProto, helper, numpy_helper

    _, N, D, H = task.sizes
    Wx, Wh, bx, bh = task.blocks(_ONNX_ORDER[task.cell])
    weights = {"W": Wx[None], "R": Wh[None], "B": np.concatenate([bx, bh])[None]}
    states = (["h", "c"] if task.cell == "lstm" else ["h"]) if streaming else []
    options = {"linear_before_reset": 1} if task.cell == "gru_reset_after" else {}
    node = helper.make_node(
        _ONNX_NAME[task.cell],
        ["x", "W", "R", "B", *(["", *(f"{s}_in" for s in states)] if streaming else [])],
        ["y", *(f"{s}_out" for s in states)],
        hidden_size=H,
        **options,
    )

    def tensor(name: str, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node],
        "layer",
        [tensor("x", [T, N, D]), *(tensor(f"{s}_in", [1, N, H]) for s in states)],
        [tensor("y", [T, 1, N, H]), *(tensor(f"{s}_out", [1, N, H]) for s in states)],
        [numpy_helper.from_array(np.ascontiguousarray(w), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def onnx_session(model: Any, threads: int) -> Any:
    """A session that runs a model."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def _quantised(model: Any) -> Any:
    """A model with weights in int8, by ONNX Runtime's dynamic quantisation."""
    import logging
    import tempfile
    from pathlib import Path

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it recommends its own preprocessing
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(model, before)
        quantize_dynamic(before, after, per_channel=True, weight_type=QuantType.QInt8)
        return onnx.load(after)


def onnx_infer(task: Task, threads: int, quantised: bool = False) -> Call:
    model = onnx_model(task, task.sizes[0], streaming=False)
    session = onnx_session(_quantised(model) if quantised else model, threads)
    xs = _time_first(task.xs)
    return lambda: session.run(None, {"x": xs})[0][:, 0].swapaxes(0, 1)


def onnx_bound(session: Any, x: Any) -> Call:
    """With all buffers bound beforehand, the fastest way there is; x, then states of zeros."""
    import onnxruntime

    binding, values = session.io_binding(), []

    def value(array: Any) -> Any:
        values.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
        return values[-1]

    binding.bind_ortvalue_input("x", value(x))
    for state in session.get_inputs()[1:]:
        binding.bind_ortvalue_input(state.name, value(np.zeros(state.shape, np.float32)))
    outputs = session.get_outputs()
    for output in outputs:
        binding.bind_ortvalue_output(output.name, value(np.zeros(output.shape, np.float32)))
    results = values[-len(outputs) :]

    def call() -> Any:
        session.run_with_iobinding(binding)
        return results

    return call


def onnx_step(task: Task) -> Call:
    session = onnx_session(onnx_model(task, 1, streaming=True), 1)
    return onnx_bound(session, task.xs[:, :1].copy())


# ---- any cell as a loop over time in torch, its arithmetic the cell's own


def _torch_functions() -> dict[Any, Any]:
    """torch's functions in place of those of ``kernels/functions.py``."""
    import torch

    from numba_rnn import functions

    def limited(name: str, bound: str) -> Any:
        def limit(a: Any, b: Any) -> Any:
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
                return getattr(torch, name)(a, b)
            return torch.clamp(a, **{bound: b}) if isinstance(a, torch.Tensor) else limit(b, a)

        return limit

    replaced = {
        getattr(functions, name): getattr(torch, name)
        for name in ("sigmoid", "tanh", "relu", "exp", "sqrt", "where")
    }
    replaced[functions.absolute] = torch.abs
    replaced[functions.softplus] = torch.nn.functional.softplus
    replaced[functions.maximum] = limited("maximum", "min")
    replaced[functions.minimum] = limited("minimum", "max")
    return replaced


def _torch_step(cell: Any) -> Any:
    """(x side, state, Wh of early and late gates, b beside h Wh, w) -> the state after the step."""
    import torch

    from benchmarks.counting import rebound

    replaced = _torch_functions()
    forward, operand = rebound(cell.forward, replaced), rebound(cell.operand, replaced)
    names = cell.gates
    x_names = [names[g] for g in cell.input_gates]
    h_names = [names[g] for g in cell.recurrent_gates if names[g] not in cell.second_product]
    # gates that come first on both sides are added in the product itself, as one would write it
    fused = cell.biases == 1 and x_names[: len(h_names)] == h_names and bool(h_names)

    def normalise(gates: dict[str, Any], which: set[str]) -> None:
        for name in which:
            gates[name] = torch.nn.functional.layer_norm(gates[name], gates[name].shape[1:])

    def step(x: Any, state: Any, early: Any, late: Any, bh: Any, w: Any) -> Any:
        h = state[0]
        gates = dict(zip(x_names, x.chunk(len(x_names), 1), strict=True))
        if fused:
            side = torch.addmm(x[:, : early.shape[1]], h, early)
            gates.update(zip(h_names, side.chunk(len(h_names), 1), strict=True))
        elif h_names:
            side = torch.mm(h, early) if bh is None else torch.addmm(bh, h, early)
            for name, part in zip(h_names, side.chunk(len(h_names), 1), strict=True):
                gates[name] = gates[name] + part if name in gates else part
        gates.update(zip(cell.weights, () if w is None else w.unbind(0), strict=True))
        later = {*cell.second_product, *cell.operand_gate}
        normalise(gates, set(cell.normalised) - later)
        if operand is not None:
            seen = operand(tuple(gates.get(name) for name in names), state)
            gates.update(dict.fromkeys(cell.operand_gate, seen))
        if cell.second_product:
            side = torch.mm(seen, late)
            for name, part in zip(
                cell.second_product, side.chunk(len(cell.second_product), 1), strict=True
            ):
                gates[name] = gates[name] + part if name in gates else part
        normalise(gates, set(cell.normalised) & later)
        return forward(tuple(gates[name] for name in names), state)[0]

    return step


def torch_loop(task: Task, compiled: bool = False) -> Call:
    """A loop over time with autograd; x Wx of all steps is one product.

    compiled  the step is compiled by torch.compile; the loop, of T steps, stays Python's
    """
    import torch

    from numba_rnn import cells

    cell = cells.get(task.cell)
    T, N, D, H = task.sizes
    step = _torch_step(cell)
    if compiled:
        torch._dynamo.reset()
        step = torch.compile(step, fullgraph=True, dynamic=False)
    names = list(cell.shapes(D, H))
    params = {
        name: torch.from_numpy(value).requires_grad_()
        for name, value in zip(names, task.params, strict=True)
    }
    xs = torch.from_numpy(_time_first(task.xs)).requires_grad_()
    dhs = torch.from_numpy(_time_first(task.dhs))
    first_late = (len(cell.recurrent_gates) - len(cell.second_product)) * H
    zeros = torch.zeros(N, H)

    def call() -> Any:
        for tensor in (xs, *params.values()):
            tensor.grad = None
        b, Wh = params["b"], params.get("Wh")
        bx, bh = b if cell.biases == 2 else (b, None)
        early = Wh[:, :first_late] if Wh is not None and first_late else None
        late = params.get("Wr", Wh[:, first_late:]) if cell.second_product else None
        x_proj = torch.addmm(bx, xs.reshape(T * N, D), params["Wx"]).reshape(T, N, -1)
        state, hs = (zeros,) * len(cell.states), []
        for x in x_proj.unbind(0):
            state = step(x, state, early, late, bh, params.get("w"))
            hs.append(state[0])
        out = torch.stack(hs)
        out.backward(dhs)
        grads = [params[name].grad.numpy() for name in names]
        return out.detach().numpy().swapaxes(0, 1), xs.grad.numpy().swapaxes(0, 1), *grads

    return call
