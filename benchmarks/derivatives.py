"""Jacobian-vector and Hessian-vector products beside forward and backward, and PyTorch's.

    python -m benchmarks.derivatives

    jvp, hvp   the time of one over that of forward, of backward (Numba engine, float32); both are
               of the pass that the record holds, which is not run again
    penalty    a step with a gradient penalty: forward, its gradient by the inputs, and backward
               through both; torch.nn's module over ours, above 1 ours is faster

Each size is T, N, D, H; the least of some rounds, the calls of a size in turn.
"""

from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.cpu import in_turn

SIZES = [(64, 1, 32, 32), (128, 32, 128, 128), (128, 32, 256, 256)]
CELLS = {"lstm": "LSTM", "gru_reset_after": "GRU", "rnn": "RNN"}


def passes(name: str, size: tuple[int, ...]) -> dict[str, Any]:
    """Forward, backward and the two products."""
    from numba_rnn import cells
    from numba_rnn.functional import Direction, backward, forward, hvp, jvp

    (T, N, D, H), rng = size, np.random.default_rng(0)

    def random(*shape: int) -> Any:
        return rng.uniform(-0.1, 0.1, shape).astype(np.float32)

    params = [random(*shape) for shape in cells.get(name).shapes(D, H).values()]
    xs = random(N, T, D)
    hs, _, record = forward(name, xs, None, params)
    u = Direction(xs=xs, params=params)
    return {
        "forward": lambda: forward(name, xs, None, params),
        "jvp": lambda: jvp(record, u),
        "backward": lambda: backward(record, hs),
        "hvp": lambda: hvp(record, hs, None, u, dhs_tangent=hs),
    }


def penalties(kind: str, size: tuple[int, ...]) -> dict[str, Any]:
    """A step with a gradient penalty, by torch and ours, which agree."""
    import torch

    import numba_rnn.torch

    T, N, D, H = size
    theirs, ours = getattr(torch.nn, kind)(D, H), getattr(numba_rnn.torch, kind)(D, H)
    ours.load_state_dict(theirs.state_dict())
    xs = torch.randn(T, N, D)

    def step(module: Any) -> Any:
        def call() -> Any:
            module.zero_grad()
            x = xs.clone().requires_grad_()
            out = module(x)[0].square().mean()
            (gradient,) = torch.autograd.grad(out, x, create_graph=True)
            (out + gradient.square().sum()).backward()
            return [p.grad.clone() for p in module.parameters()]

        return call

    calls = {"torch": step(theirs), "ours": step(ours)}
    for a, b in zip(*(call() for call in calls.values()), strict=True):
        assert (a - b).abs().max() < 1e-3 * a.abs().max()
    return calls


def main(
    cell: Annotated[list[str] | None, typer.Option(help="lstm, gru_reset_after, rnn.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each.", min=1)] = 5,
) -> None:
    """Time derivatives of forward and backward."""
    from numba_rnn import use_backend
    from numba_rnn.kernels.cpu_info import cpu_name

    use_backend("numba", strict=True)
    print(f"{cpu_name()}; milliseconds")
    print(
        f"  {'':16}{'T':>4}{'N':>4}{'D':>5}{'H':>5}{'forward':>9}{'jvp':>9}{'times':>7}"
        f"{'backward':>10}{'hvp':>9}{'times':>7}{'penalty: torch':>16}{'ours':>9}{'times':>7}"
    )
    for name in cell or CELLS:
        for size in SIZES:
            least = {}
            for calls in (passes(name, size), penalties(CELLS[name], size)):
                taken = in_turn(calls, rounds, 0.003)
                least |= {key: 1e3 * min(times) for key, times in taken.items()}
            first, jvp, back, hvp, torchs, ours = least.values()
            print(
                f"  {name:16}{size[0]:>4}{size[1]:>4}{size[2]:>5}{size[3]:>5}"
                f"{first:>9.3f}{jvp:>9.3f}{jvp / first:>7.2f}{back:>10.3f}{hvp:>9.3f}"
                f"{hvp / back:>7.2f}{torchs:>16.3f}{ours:>9.3f}{torchs / ours:>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
