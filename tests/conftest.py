"""Where there is no GPU, tests that ask for the backend "cuda" get an emulated one."""

from importlib.util import find_spec
from unittest import mock

import pytest

from numba_rnn import backend

# they take older versions of other packages than the rest: .ci/run has environments for their tests
collect_ignore = [f"test_{name}.py" for name in ("aeon", "sktime") if find_spec(name) is None]


@pytest.fixture(autouse=True)
def _a_gpu_if_asked_for(request):
    case = getattr(request.node, "callspec", None)
    loaders = {}
    if case is not None and case.params.get("backend") == "cuda":
        try:
            backend._LOADERS["cuda"]()
        except backend.BackendError:
            emulated = emulated_engine()
            loaders["cuda"] = lambda: emulated
    with mock.patch.dict(backend._LOADERS, loaders):
        yield


def emulated_engine():
    from cuda_emulator import EmulatedGpu
    from numba_rnn.kernels.cuda.engine import CudaEngine
    from numba_rnn.kernels.cuda.kernel import DeviceLimits

    # no multiprocessors: step by step, the persistent kernels have tests of their own
    return CudaEngine(EmulatedGpu(DeviceLimits(multiprocessors=0, shared=0, threads=8)))
