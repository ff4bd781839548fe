"""A whole training iteration of a language model: where its time goes, and PyTorch's beside it.

    python -m benchmarks.iteration              1 and 2 threads
    python -m benchmarks.iteration --quick

    share    of our iteration, in percent, by layer: forward and backward together
    times    the time of PyTorch's iteration over that of ours; above 1 ours is faster

The model is an embedding, LSTM layers, an affine layer and the softmax loss; then all gradients are
clipped to a norm of 5 and the optimiser makes its step. PyTorch has the same numbers in
torch.nn.Embedding, LSTM and Linear, and its fused optimisers. Both take turns in one process, on as
many threads; medians over rounds. Losses and gradients are compared first (1e-3 of the largest
number). Below, parts alone: the optimiser's step without and with the search for NaN in gradients,
which PyTorch does not make, clipping with it, and the gradient of the embedding.

The last table is of a large vocabulary, whose words follow Zipf's law, as those of a text do, or
are equally frequent, which costs an adaptive softmax the most. Our iteration with the adaptive
softmax stands beside PyTorch's with torch.nn.AdaptiveLogSoftmaxWithLoss of the same cutoffs, and
beside PyTorch's with the exact softmax; ours with the sampled softmax stands beside the latter.
With "sparse rows" our embedding and the sampled softmax have sparse=True, and Adam is lazy.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from benchmarks.cpu import in_turn, machine

# words, embedding, units, layers, T, N; the last: the character model of ``numba-rnn train``
SIZES = [
    (10_000, 650, 650, 2, 35, 20),
    (8_000, 300, 300, 1, 30, 24),
    (50_000, 200, 200, 1, 35, 20),
    (65, 64, 192, 1, 64, 32),
]
QUICK = [(1_000, 32, 64, 2, 20, 8)]
LARGE, CUTOFFS = (50_000, 200, 200, 1, 35, 20), (2_000, 10_000)
QUICK_LARGE, QUICK_CUTOFFS = (1_000, 32, 64, 1, 20, 8), (50, 200)
SAMPLES = 1024
LIMIT = 5.0


class Ours:
    """The model in this package; with cutoffs its softmax is adaptive, with samples sampled."""

    def __init__(
        self,
        V: int,
        D: int,
        H: int,
        layers: int,
        optimiser: str,
        cutoffs: tuple[int, ...] = (),
        samples: int = 0,
        sparse: bool = False,
    ) -> None:
        from numba_rnn import (
            TimeAdaptiveSoftmaxWithLoss,
            TimeAffine,
            TimeEmbedding,
            TimeLSTM,
            TimeSampledSoftmaxWithLoss,
            TimeSoftmaxWithLoss,
        )
        from numba_rnn.training import optimisers

        self.layers: list[Any] = [TimeEmbedding.create(V, D, std=0.1, rng=0, sparse=sparse)]
        for k in range(layers):
            self.layers.append(TimeLSTM.create(D if k == 0 else H, H, stateful=True, rng=k))
        self.loss: Any = TimeSoftmaxWithLoss()
        if cutoffs:
            self.loss = TimeAdaptiveSoftmaxWithLoss.create(H, V, cutoffs, rng=9)
        elif samples:
            self.loss = TimeSampledSoftmaxWithLoss.create(
                H, V, samples=samples, sparse=sparse, rng=9
            )
        else:
            self.layers.append(TimeAffine.create(H, V, rng=9))
        self.optimiser = optimisers.create(optimiser, lr=1e-4, **({"lazy": True} if sparse else {}))
        parts = *self.layers, self.loss
        self.params = [p for layer in parts for p in layer.params]
        self.grads = [g for layer in parts for g in layer.grads]

    def gradient(self, ids: Any, ts: Any, call: Callable[..., Any] = lambda f, *a: f(*a)) -> float:
        xs = ids
        for layer in self.layers:
            xs = call(layer.forward, xs)
        loss = call(self.loss.forward, xs, ts)
        dout = call(self.loss.backward)
        for layer in reversed(self.layers):
            dout = call(layer.backward, dout)
        return float(loss)

    def iterate(self, ids: Any, ts: Any) -> None:
        self.gradient(ids, ts)
        self.optimiser.update(self.params, self.grads, max_norm=LIMIT)

    def shares(self, ids: Any, ts: Any, rounds: int) -> dict[str, float]:
        """The time of each layer and of the optimiser, as a share of all."""
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            now: dict[str, float] = {}

            def call(
                method: Callable[..., Any],
                *arguments: Any,
                now: dict[str, float] = now,
                **named: Any,
            ) -> Any:
                start = time.perf_counter()
                result = method(*arguments, **named)
                name = type(method.__self__).__name__.removeprefix("Time")  # type: ignore[attr-defined]
                now[name] = now.get(name, 0.0) + time.perf_counter() - start
                return result

            self.gradient(ids, ts, call)
            call(self.optimiser.update, self.params, self.grads, max_norm=LIMIT)
            for name, seconds in now.items():
                found.setdefault(name, []).append(seconds)
        medians = {name: statistics.median(seconds) for name, seconds in found.items()}
        return {name: seconds / sum(medians.values()) for name, seconds in medians.items()}


class Theirs:
    """The same in PyTorch."""

    def __init__(self, ours: Ours, optimiser: str) -> None:
        import torch

        from numba_rnn.bridges import to_torch

        self.torch, functional = torch, torch.nn.functional
        embedding, *middle = ours.layers
        affine = middle.pop() if not ours.loss.params else None
        self.embedding = torch.nn.Embedding.from_pretrained(
            torch.from_numpy(embedding.W.copy()), False
        )
        self.lstms = [to_torch(layer, batch_first=True) for layer in middle]
        if affine is None:  # the adaptive softmax
            *cutoffs, V = ours.loss.cutoffs
            H = len(ours.loss.params[0])
            last: Any = torch.nn.AdaptiveLogSoftmaxWithLoss(H, V, cutoffs)
            self.loss: Any = lambda xs, ts: last(xs.flatten(0, 1), ts.flatten()).loss
        else:
            last = torch.nn.Linear(*affine.params[0].shape)
            self.loss = lambda xs, ts: functional.cross_entropy(
                last(xs).flatten(0, 1), ts.flatten()
            )
        with torch.no_grad():
            for theirs, mine in zip(last.parameters(), (affine or ours.loss).params, strict=True):
                theirs.copy_(torch.from_numpy(mine.T))
        modules = self.embedding, *self.lstms, last
        self.params = [p for module in modules for p in module.parameters()]
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser]
        self.optimiser = kind(self.params, lr=1e-4, fused=True)
        self.states: list[Any] = [None] * len(self.lstms)

    def gradient(self, ids: Any, ts: Any) -> float:
        self.optimiser.zero_grad()
        xs = self.embedding(ids)
        for k, lstm in enumerate(self.lstms):
            xs, state = lstm(xs, self.states[k])
            self.states[k] = tuple(part.detach() for part in state)
        loss = self.loss(xs, ts)
        loss.backward()
        return float(loss.detach())

    def iterate(self, ids: Any, ts: Any) -> None:
        self.gradient(ids, ts)
        self.torch.nn.utils.clip_grad_norm_(self.params, LIMIT)
        self.optimiser.step()


def measured(size: tuple[int, ...], optimiser: str, rounds: int) -> None:
    """A line of the table, and the shares."""
    import numpy as np
    import torch

    V, D, H, layers, T, N = size
    rng = np.random.default_rng(0)
    ids, ts = rng.integers(0, V, (2, N, T))
    there = torch.from_numpy(ids), torch.from_numpy(ts)
    ours = Ours(V, D, H, layers, optimiser)
    theirs = Theirs(ours, optimiser)
    expect_equal(ours, theirs, ids, ts)
    line = partial(print_line, rounds)
    name = f"V {V}, H {H}, {layers} layers, T {T}, N {N}, {optimiser}"
    line(name, lambda: ours.iterate(ids, ts), lambda: theirs.iterate(*there))
    print_shares(ours.shares(ids, ts, rounds))

    def clipped() -> None:
        torch.nn.utils.clip_grad_norm_(theirs.params, LIMIT)
        theirs.optimiser.step()

    update, step = ours.optimiser.update, theirs.optimiser.step
    line("  optimiser", lambda: update(ours.params, ours.grads, check_finite=False), step)
    line("  optimiser, NaN refused", lambda: update(ours.params, ours.grads), step)
    line("  clip, optimiser", lambda: update(ours.params, ours.grads, max_norm=LIMIT), clipped)
    embedding, dout = ours.layers[0], np.ones((N, T, D), np.float32)
    embedding.forward(ids)
    gradient = torch.from_numpy(dout)

    def embedded() -> None:
        theirs.embedding.weight.grad = None
        theirs.embedding(there[0]).backward(gradient)

    def ours_embedded() -> None:
        embedding.forward(ids)
        embedding.backward(dout)

    line("  embedding", ours_embedded, embedded)


def print_line(rounds: int, what: str, mine: Callable[[], Any], other: Callable[[], Any]) -> None:
    """Measure both in turn, and print the line."""
    seconds = in_turn({"ours": mine, "torch": other}, rounds, 0.003)
    a, b = (1e3 * statistics.median(seconds[name]) for name in ("ours", "torch"))
    print(f"  {what:44}{b:>10.1f}{a:>10.1f}{b / a:>8.2f}", flush=True)


def expect_equal(ours: Ours, theirs: Theirs, ids: Any, ts: Any) -> None:
    """Compare losses and gradients."""
    import numpy as np
    import torch

    want = theirs.gradient(torch.from_numpy(ids), torch.from_numpy(ts))
    np.testing.assert_allclose(ours.gradient(ids, ts), want, rtol=1e-4)
    for k in (0, -2):
        mine, other = ours.grads[k], theirs.params[k].grad.numpy()
        other = other if k == 0 else other.T
        assert abs(mine - other).max() <= 1e-3 * abs(other).max()


def large_vocabulary(size: tuple[int, ...], cutoffs: tuple[int, ...], rounds: int) -> None:
    """The lines of the adaptive and of the sampled softmax."""
    import numpy as np
    import torch

    V, D, H, layers, T, N = size
    rng = np.random.default_rng(0)
    print(f"\n  V {V}, H {H}, T {T}, N {N}, adam; cutoffs {cutoffs}, {SAMPLES} samples")
    exact = Theirs(Ours(V, D, H, layers, "adam"), "adam")
    ours = Ours(V, D, H, layers, "adam", cutoffs)
    theirs = Theirs(ours, "adam")
    ranks = np.exp(rng.random((2, N, T)) * np.log(V)) - 1
    words = {"Zipf's law": ranks.astype(int), "equally frequent": rng.integers(0, V, (2, N, T))}
    for k, (name, (ids, ts)) in enumerate(words.items()):
        print(f"    words: {name}")
        there = torch.from_numpy(ids), torch.from_numpy(ts)
        if k == 0:
            expect_equal(ours, theirs, ids, ts)
        adaptive, other = partial(ours.iterate, ids, ts), partial(exact.iterate, *there)
        same = partial(theirs.iterate, *there)
        print_line(rounds, "  adaptive, torch's adaptive", adaptive, same)
        print_line(rounds, "  adaptive, torch's exact", adaptive, other)
        print_shares(ours.shares(ids, ts, rounds))
        kinds: dict[str, Any] = {"adaptive": {"cutoffs": cutoffs}, "sampled": {"samples": SAMPLES}}
        for what, options in kinds.items():
            sparse = Ours(V, D, H, layers, "adam", sparse=True, **options)
            mine = partial(sparse.iterate, ids, ts)
            print_line(rounds, f"  {what}, sparse rows, torch's exact", mine, other)


def print_shares(shares: dict[str, float]) -> None:
    """Print where an iteration goes."""
    print("   ", ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()))


def run_child(threads: int, rounds: int, quick: bool) -> None:
    """The table of one number of threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    torch.set_num_threads(threads)
    print(f"\n{threads} thread{'s' if threads > 1 else ''}; milliseconds")
    print(f"  {'':44}{'torch':>10}{'ours':>10}{'times':>8}")
    for size in QUICK if quick else SIZES:
        for optimiser in ("sgd", "adam"):
            measured(size, optimiser, rounds)
    large = (QUICK_LARGE, QUICK_CUTOFFS) if quick else (LARGE, CUTOFFS)
    large_vocabulary(*large, rounds)
    if threads > 1:
        found = machine(threads)
        versions = ", ".join(f"{name} {text}" for name, text in found["versions"].items())
        print(f"\n{found['device']}; {versions}")


def main(
    threads: Annotated[list[int] | None, typer.Option(help="Numbers of threads; 1 and 2.")] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each.", min=1)] = 9,
    quick: Annotated[bool, typer.Option(help="One small size, few rounds.")] = False,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Time a whole training iteration and its parts beside PyTorch's."""
    if child:
        run_child((threads or [1])[0], rounds, quick)
        return
    limits = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for count in threads or [1, 2]:  # libraries count threads when they are imported
        command = [sys.executable, "-m", "benchmarks.iteration", "--child", f"--threads={count}"]
        command += [f"--rounds={3 if quick else rounds}", *["--quick"] * quick]
        subprocess.run(command, env={**os.environ, **dict.fromkeys(limits, str(count))}, check=True)


if __name__ == "__main__":
    typer.run(main)
