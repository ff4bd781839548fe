"""Tests that ask for the backend "cuda" get an emulated one without a GPU; and the site, built."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest

from numba_rnn import backend

ROOT = Path(__file__).resolve().parents[1]

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


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site, built."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder
