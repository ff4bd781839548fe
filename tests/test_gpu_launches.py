"""How much the GPU is asked to do in one iteration of training, counted where there is none."""

from collections import Counter
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

import fake_device
from fake_device import DeviceArray, wrap
from numba_rnn import backend, use_backend
from numba_rnn.kernels.cuda.engine import CudaEngine
from numba_rnn.kernels.cuda.kernel import DeviceLimits
from numba_rnn.models import Rnnlm
from numba_rnn.training import Adam, clip_grads


@contextmanager
def counted():
    """Kernels, the library's operations and copies from the host, by name; none of them is right.

    A kernel runs nothing: arrays have what they had.
    """
    count, on_device = Counter(), fake_device.on_device
    gpu = SimpleNamespace(
        xp=fake_device.xp, device=DeviceLimits(132, 227 * 1024), fits=lambda *given: True,
        launch=lambda kernel, *given: count.update([kernel.name]), address=lambda array: 0,
        products=lambda precision: nullcontext(), describe=lambda: "none",
    )  # fmt: skip

    def noting(name, call):
        def noted(*args, **options):
            count[name] += 1
            return call(*args, **options)

        return noted

    def computed(function, *args, **options):
        view = function is np.ascontiguousarray
        if not view or not fake_device.numbers(args[0]).flags.c_contiguous:
            count[function.__name__] += 1
        return before(function, *args, **options)

    def asarray(value):
        return value if isinstance(value, DeviceArray) else from_host(value)

    before, from_host = fake_device.computed, noting("from the host", on_device)
    library = {
        name: noting(name, getattr(fake_device.xp, name)) for name in ("zeros", "arange", "copyto")
    }
    library |= {"asarray": asarray, "array": from_host}
    engine = CudaEngine(gpu)
    with (
        mock.patch.object(fake_device, "computed", computed),
        mock.patch.multiple(fake_device.xp, **library),
        mock.patch.multiple(
            DeviceArray,
            **{n: noting(n, getattr(DeviceArray, n)) for n in ("__setitem__", "astype", "copy")},
        ),
        mock.patch.dict(backend._LOADERS, cuda=lambda: engine),
        use_backend("cuda", strict=True),
        np.errstate(all="ignore"),
    ):
        yield count


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_iteration_of_the_language_model(dropout):
    """The numbers may fall: they say what a change costs. (Operations in place are not counted.)"""
    T, N, H, V = 35, 20, 64, 500
    random = np.random.default_rng(0)
    xs, ts = (wrap(random.integers(0, V, (N, T))) for _ in range(2))
    with counted() as count:
        model, adam = Rnnlm(V, H, H, cell="lstm", dropout=dropout, rng=0), Adam()
        for _ in range(2):  # the first one makes the optimiser's arrays
            count.clear()
            model.forward(xs, ts)
            model.backward()
            clip_grads(model.grads, max_norm=0.25)
            adam.update(model.params, model.grads)
    assert count["lstm_persistent_forward"] == count["lstm_persistent_backward"] == 1
    assert count["adam_4"] == len(model.params)
    assert count["dropout"] == (2 if dropout else 0)
    assert count["from the host"] <= 1  # which labels count
    assert sum(count.values()) <= 135, sorted(count.items())
