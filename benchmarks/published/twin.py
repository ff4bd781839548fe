"""The same model in PyTorch, and a race between the two."""

import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from benchmarks.published import forever
from numba_rnn import TimeAffine, TimeEmbedding, TimePooling
from numba_rnn.bridges import to_torch
from numba_rnn.training import Adam


class Last(torch.nn.Module):
    """The last step."""

    def forward(self, hs: Any) -> Any:
        return hs[:, -1:]


def module_of(layer: Any) -> Any:
    """A module of torch.nn with the weights of the layer."""
    if isinstance(layer, TimePooling):
        return Last()
    if isinstance(layer, TimeEmbedding):
        return torch.nn.Embedding.from_pretrained(torch.from_numpy(layer.W.copy()), freeze=False)
    if not isinstance(layer, TimeAffine):
        return to_torch(layer)
    module = torch.nn.Linear(*layer.params[0].shape)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(layer.params[0].T.copy()))
        module.bias.copy_(torch.from_numpy(layer.params[1]))
    return module


class Twin:
    """Modules of torch.nn with the weights of layers, and fused Adam."""

    def __init__(self, layers: Any, lr: float) -> None:
        torch.set_num_threads(numba.get_num_threads())
        self.modules = torch.nn.ModuleList(map(module_of, layers))
        self.optimiser = torch.optim.Adam(self.modules.parameters(), lr=lr, fused=True)
        self.state: Any = None

    def outputs(self, xs: Any) -> Any:
        out = torch.from_numpy(np.ascontiguousarray(xs))
        for module in self.modules:
            if isinstance(module, torch.nn.LSTM):
                out, self.state = module(out, self.state)
            else:
                out = module(out)
        return out

    def loss(self, xs: Any, ts: Any) -> Any:
        labels = torch.from_numpy(np.ascontiguousarray(ts)).flatten()
        return torch.nn.functional.cross_entropy(self.outputs(xs).flatten(0, 1), labels)

    def iterate(self, xs: Any, ts: Any, stateful: bool) -> float:
        """A step of training; the loss before it."""
        self.state = tuple(map(torch.detach, self.state)) if stateful and self.state else None
        self.optimiser.zero_grad()
        loss = self.loss(xs, ts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimiser.step()
        return float(loss.detach())


def race(
    model: Any, layers: Any, blocks: Callable[[], Any], lr: float, seconds: float, stateful: bool
) -> tuple[Twin, list[int]]:
    """Train model and twin for so many seconds each; the twin, and their iterations.

    Whoever has used less time makes the next ten iterations, so that both have the same machine.
    """
    adam, twin = Adam(lr), Twin(layers, lr)
    here, there = forever(blocks()), forever(blocks())

    def ours() -> None:
        model.forward(*next(here))
        model.backward()
        adam.update(model.params, model.grads, max_norm=1.0)

    steps = ours, lambda: twin.iterate(*next(there), stateful)
    for step in steps:  # compiles, and counts for nobody
        step()
    used, made = [0.0, 0.0], [1, 1]
    while min(used) < seconds:
        k = used.index(min(used))
        begun = time.perf_counter()
        for _ in range(10):
            steps[k]()
        used[k] += time.perf_counter() - begun
        made[k] += 10
    twin.state = None
    return twin, made
