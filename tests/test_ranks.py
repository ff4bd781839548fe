"""Several processes that train one model: over MPI as a user starts them, and as threads here."""

import copy
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fake_device import DeviceArray, no_waiting, use_fake_device, xp
from fake_device import backend as backend_module
from helpers import ALL_ENGINES, DTYPES, run_python
from numba_rnn import jobs, use_backend
from numba_rnn.backend import engine
from numba_rnn.jobs import TrainConfig
from numba_rnn.layers import TimeDropout, TimeLSTM
from numba_rnn.layers.regularisers import Regularisers
from numba_rnn.models import Rnnlm
from numba_rnn.training import Adam, ExponentialAverage, Trainer, TruncatedBPTT, load_checkpoint
from numba_rnn.training import distributed as ranks_module
from numba_rnn.training.data_parallel import DataParallel
from numba_rnn.training.distributed import (
    NcclAllReduce,
    RanksError,
    SingleProcess,
    _cores_of,
    launcher_size,
)

CORPUS = np.random.default_rng(0).integers(0, 11, 601)
VALID = np.random.default_rng(1).integers(0, 11, 101)
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-9}  # of losses, relative to those of one process


# ---- ranks as threads


class ThreadRanks(SingleProcess):
    """One of several ranks that are threads and meet in a list."""

    def __init__(self, rank, size, meeting):
        self.rank, self.size, self._meeting = rank, size, meeting

    def _exchange(self, value):
        barrier, values = self._meeting
        values[self.rank] = value
        barrier.wait(60)
        found = list(values)
        barrier.wait(60)
        return found

    def allreduce(self, buffer):
        host = isinstance(buffer, np.ndarray)
        parts = self._exchange((buffer if host else buffer._numbers).copy())
        (buffer if host else buffer._numbers)[...] = sum(parts[1:], parts[0])

    def gather_rows(self, array):
        found = np.concatenate(self._exchange(array))
        return None if self.rank else found

    def broadcast(self, value):
        return copy.deepcopy(self._exchange(value)[0])


def together(size, work):
    """The results of work(ranks) on several ranks. Raises the first error that one raises."""
    meeting = threading.Barrier(size), [None] * size

    def one(rank):
        try:
            return work(ThreadRanks(rank, size, meeting) if size > 1 else SingleProcess())
        except BaseException:
            meeting[0].abort()  # the others would wait for it
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]


def make(ranks, folder=None, dtype=np.float64, batch=5, model=None, **options):
    rates = {"dropout": 0.3, "recurrent_dropout": 0.2, "weight_drop": 0.2, "zoneout": 0.2}
    model = model or Rnnlm(11, 9, 9, layers=2, tie=True, **rates, rng=0, dtype=dtype)
    blocks = TruncatedBPTT(CORPUS, batch, 7)  # 17 blocks
    options = {"valid": VALID, "eval_batch": 3, "eval_time": 10, "max_norm": 0.5, **options}
    return Trainer(model, Adam(0.01), blocks, folder=folder, progress=False, ranks=ranks, **options)


def trained(size, backend="numpy", epochs=2, **options):
    """Trainers of all ranks, after training."""

    def work(ranks):
        with use_backend(backend):
            trainer = make(ranks, **options)
            trainer.fit(epochs)
        return trainer

    return together(size, work)


def losses(trainer):
    history = trainer.history
    return [row[1:] for row in history.train], [e["valid_perplexity"] for e in history.epochs]


def expect_like_one_process(got, want, dtype):
    for ours, theirs in zip(losses(got), losses(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE[dtype])
    assert got.model.rng.bit_generator.state == want.model.rng.bit_generator.state


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_are_those_of_one_process(dtype, backend):
    (alone,) = trained(1, backend, dtype=dtype)
    for size in (2, 3, 5):
        first, *others = trained(size, backend, dtype=dtype)
        expect_like_one_process(first, alone, dtype)
        for other in others:
            assert other.history == first.history
            for ours, theirs in zip(other.model.params, first.model.params, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_accumulated_gradients_are_those_of_one_process():
    (alone,) = trained(1, accumulate=3)
    first, second = trained(2, accumulate=3)
    expect_like_one_process(first, alone, np.float64)
    assert first.iteration == second.iteration == 12  # 17 blocks in six groups, twice
    for ours, theirs in zip(first.model.params, second.model.params, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_ranks_average_the_same_weights(tmp_path):
    def averaged(size, folder):
        def work(ranks):
            trainer = make(ranks, folder, average=ExponentialAverage(0.9))
            if (folder / "last.safetensors").exists():
                trainer.restore(folder / "last.safetensors")
            trainer.fit(trainer.epoch + 1)
            with trainer.averaged():
                return trainer, [param.copy() for param in trainer.model.params]

        return together(size, work)

    ((alone, want),) = averaged(1, tmp_path / "alone")
    (first, ours), (_, theirs) = averaged(2, tmp_path / "shared")
    expect_like_one_process(first, alone, np.float64)
    for one, other, mean in zip(ours, theirs, want, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, mean, rtol=1e-9)
    ((alone, _),) = averaged(1, tmp_path / "alone")
    (first, _), _ = averaged(2, tmp_path / "shared")
    expect_like_one_process(first, alone, np.float64)


def test_the_single_process_is_not_shared():
    assert make(SingleProcess())._shared is None


def test_a_checkpoint_is_taken_up_by_any_number_of_ranks(tmp_path):
    (whole,) = trained(1, epochs=3, folder=tmp_path / "whole")
    trained(3, epochs=1, folder=tmp_path / "run")
    last = tmp_path / "run" / "last.safetensors"

    def go_on(epochs):
        def work(ranks):
            trainer = make(ranks, tmp_path / "run")
            trainer.restore(last)
            trainer.fit(epochs)
            return trainer

        return work

    first, second = together(2, go_on(2))
    (alone,) = together(1, go_on(3))
    assert first.iteration == second.iteration == 34
    expect_like_one_process(alone, whole, np.float64)
    ours, theirs = (load_checkpoint(tmp_path / f / "last.safetensors") for f in ("run", "whole"))
    assert ours[0].keys() == theirs[0].keys()
    for name, array in theirs[0].items():
        assert ours[0][name].shape == array.shape
        np.testing.assert_allclose(ours[0][name], array, rtol=1e-7, atol=1e-9)
    assert ours[1]["trainer"]["random"] == theirs[1]["trainer"]["random"]


def test_labels_that_do_not_count_weigh_nothing():
    xs = np.random.default_rng(2).integers(0, 11, (5, 7))
    ts = np.where(np.arange(5)[:, None] < 2, -1, xs[:, ::-1])  # rank 0's do not count at all
    ts[4, 3] = -1

    def gradient(ranks):
        model = Rnnlm(11, 6, 9, rng=0, dtype=np.float64)
        if ranks.size == 1:
            loss = model.forward(xs, ts)
            model.backward()
        else:
            shared = DataParallel(model, ranks, TruncatedBPTT(CORPUS, 5, 7))
            shared.begin()
            loss = shared.gradient(xs, ts, False)
        return loss, [grad.copy() for grad in model.grads]

    ((want_loss, want),) = together(1, gradient)
    for loss, grads in together(2, gradient):
        assert loss == pytest.approx(want_loss, rel=1e-12)
        for ours, theirs in zip(grads, want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-14)


def test_one_rank_that_is_asked_to_stop_stops_all_after_the_same_iteration(tmp_path):
    def work(ranks):
        trainer = make(ranks, tmp_path)
        backward = trainer.model.backward

        def asked():
            backward()
            trainer._stop |= ranks.rank == 1 and trainer.iteration == 7

        trainer.model.backward = asked
        trainer.fit(2)
        return trainer.stopped, trainer.iteration

    assert together(2, work) == [(True, 9)] * 2  # what came up in one iteration, the next one tells
    assert load_checkpoint(tmp_path / "last.safetensors")[1]["trainer"]["iteration"] == 9


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": lambda r: Rnnlm(11, 6, 9, rng=r)}, "random numbers: expected the same on all"),
        (
            {"model": lambda r: Rnnlm(11, 6, 9 + r, rng=0)},
            "model, random numbers: .* on rank 1 than on",
        ),
        ({"batch": lambda r: 5 + r}, "corpus: expected the same"),
        ({"accumulate": lambda r: 1 + r}, "settings: expected the same"),
        ({"max_norm": lambda r: 1.0 + r}, "settings: expected the same"),
    ],
)
def test_ranks_that_do_not_start_alike_are_refused(changes, says):
    def work(ranks):
        make(ranks, **{name: change(ranks.rank) for name, change in changes.items()}).fit(1)

    with pytest.raises(ValueError, match=says):
        together(2, work)


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(ValueError, match=r"batch: expected .* each of 6 processes, got 5 rows"):
        together(6, make)


def test_a_model_that_cannot_be_shared_is_refused():
    own = SimpleNamespace(params=[], rng=np.random.default_rng(0), mean_loss=None, arrays=None)
    says = "model: expected one that ranks can share .* got SimpleNamespace"
    with pytest.raises(TypeError, match=says):
        make(ThreadRanks(0, 2, None), model=own)


# ---- a rank's share


def test_shares_cover_all_rows_evenly():
    for size in (1, 2, 3, 7):
        for N in (0, 1, 6, 7, 20):
            parts = [ThreadRanks(rank, size, None).local_slice(N) for rank in range(size)]
            assert [row for part in parts for row in range(N)[part]] == list(range(N))
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1


def test_cores_are_shared_by_those_who_may_use_them():
    assert [_cores_of(rank, [[*range(6)]] * 4) for rank in range(4)] == [1] * 4
    assert _cores_of(1, [[*range(12)]] * 3) == 4
    assert _cores_of(0, [[0], [1, 2, 3]]) == 1
    assert _cores_of(1, [[0], [1, 2, 3]]) == 3
    assert _cores_of(0, [[0]] * 5) == 1


@pytest.mark.parametrize(("said", "engine_has", "blas_has"), [("", 1, 1), ("2", 2, 2)])
def test_a_rank_uses_its_cores_unless_the_environment_says_otherwise(said, engine_has, blas_has):
    program = f"""
        import os
        for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.pop(name, None)
            if {said!r}:
                os.environ[name] = {said!r}
        import numba
        from threadpoolctl import threadpool_info
        from numba_rnn import explain, use_backend
        from numba_rnn.backend import limit_threads

        def blas():  # empty: a BLAS that threadpoolctl does not know
            return {{p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}}

        blas_had, environment = blas(), dict(os.environ)
        limits = limit_threads(1)
        use_backend("numba", strict=True)
        assert explain().threads == {engine_has}
        assert blas() in ({{{blas_has}}}, set()), blas()
        with limit_threads(1):
            assert explain().threads == {engine_has}
        assert explain().threads == {engine_has}
        limits.close()
        assert explain().threads == numba.config.NUMBA_NUM_THREADS
        assert blas() == blas_had and dict(os.environ) == environment
        """
    run_python(program)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ALL_ENGINES)
def test_masks_of_some_rows_are_those_of_the_whole_batch(backend, dtype):
    """For every kind, as the NumPy engine draws them for the whole batch, bit for bit."""
    rates = {"recurrent_dropout": 0.4, "input_dropout": 0.3, "weight_drop": 0.5}
    ones = np.ones((7, 4, 19), dtype)

    def masks(start, stop):
        dropout, chosen = TimeDropout(0.6, rng=3), Regularisers("h", **rates, rng=3)
        dropout.row_offset = chosen.row_offset = start
        here, seed, dropped = engine(), chosen.new_seed(), dropout.forward(ones[start:stop])
        assert dropout.rng.bit_generator.state == chosen.rng.bit_generator.state
        rows = stop - start
        weights = chosen.on_weights(here, seed, "Wh", (19, 5), dtype)
        parts = (
            dropped,
            dropout.backward(ones[start:stop]),
            chosen.on_inputs(here, seed, (rows, 4), dtype),
            chosen.on_h(here, seed, (rows, 19), dtype),
        )
        return [here.to_host(part) for part in parts], here.to_host(weights)

    whole, weights = masks(0, 7)
    with use_backend(backend, strict=True):
        for start, stop in ((0, 7), (0, 2), (2, 3), (3, 7)):
            got, the_same = masks(start, stop)
            for part, all_rows in zip(got, whole, strict=True):
                assert part.dtype == dtype
                np.testing.assert_array_equal(part, all_rows[start:stop])
            np.testing.assert_array_equal(the_same, weights)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_layer_computes_for_some_rows_what_it_does_in_the_whole_batch(backend):
    rates = {
        "zoneout": 0.4, "recurrent_dropout": 0.4, "input_dropout": 0.3, "weight_drop": 0.5,
    }  # fmt: skip
    xs, dhs = np.random.default_rng(0).standard_normal((2, 7, 4, 5))

    def run(start, stop):
        layer = TimeLSTM.create(5, 5, rng=0, dtype=np.float64).regularise(**rates, rng=1)
        layer.regularisers.row_offset = start
        hs = layer.forward(xs[start:stop])
        dxs, here = layer.backward(dhs[start:stop]), engine()
        return [here.to_host(array) for array in (hs, dxs, *layer.grads)]

    with use_backend("numpy"):
        hs, dxs, *grads = run(0, 7)
    with use_backend(backend, strict=True):
        parts = [run(start, stop) for start, stop in ((0, 2), (2, 3), (3, 7))]
    for k, want in enumerate((hs, dxs)):
        np.testing.assert_allclose(np.concatenate([part[k] for part in parts]), want, atol=1e-12)
    for k, want in enumerate(grads):
        np.testing.assert_allclose(sum(part[2 + k] for part in parts), want, atol=1e-12)


def test_rows_may_be_declared_and_taken_back():
    model = Rnnlm(11, 6, 9, dropout=0.5, zoneout=0.5, rng=0)
    masked = *model.dropouts, model.recurrent[0].regularisers
    model.take_rows(slice(2, 5))
    assert {part.row_offset for part in masked} == {2}
    model.take_rows(None)
    assert {part.row_offset for part in masked} == {0}
    with pytest.warns(DeprecationWarning, match="row_offset"):
        model.dropouts[0].rows = slice(4, 6)
    assert model.dropouts[0].row_offset == 4


# ---- on GPUs


class FakeNccl:
    """The part of cupy.cuda.nccl that is used, between threads, for arrays in host memory."""

    NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 7, 8, 0
    available = True

    def __init__(self, ranks):
        self._ranks, self.streams = ranks, []

    def get_unique_id(self):
        assert self._ranks.rank == 0, "the id is rank 0's"
        return b"the id"

    def NcclCommunicator(self, size, name, rank):  # noqa: N802 (CuPy's name)
        assert (size, name, rank) == (self._ranks.size, b"the id", self._ranks.rank)
        return self

    def allReduce(self, source, to, count, kind, op, stream):  # noqa: N802 (CuPy's name)
        assert (source, op) == (to, self.NCCL_SUM)
        number = {7: ctypes.c_float, 8: ctypes.c_double}[kind]
        memory = np.ctypeslib.as_array(ctypes.cast(to, ctypes.POINTER(number)), (count,))
        self._ranks.allreduce(memory)
        self.streams.append(stream)


class GpuRanks(ThreadRanks):
    """Ranks that are threads, each with a GPU: what is on it is added up by NCCL."""

    def allreduce(self, buffer):
        if isinstance(buffer, np.ndarray):
            super().allreduce(buffer)
        else:
            self.gpus.allreduce(buffer)


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_gpus_gradients_are_added_up_by_nccl_and_nothing_waits(dtype, monkeypatch):
    def memory(array):
        return SimpleNamespace(ptr=array._numbers.ctypes.data)

    stream = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=3))
    monkeypatch.setattr(DeviceArray, "data", property(memory), raising=False)
    monkeypatch.setattr(xp, "cuda", stream, raising=False)

    def work(ranks):
        ranks = GpuRanks(ranks.rank, ranks.size, ranks._meeting)
        fake = FakeNccl(ranks)
        ranks.gpus = NcclAllReduce(fake, ranks)
        with use_backend("cuda", strict=True):
            trainer = make(ranks, dtype=dtype)
            trainer.fit(1)
            assert fake.streams == [3] * 17
            xs, ts = np.zeros((5, 7), int), np.ones((5, 7), int)
            trainer._shared.begin()
            trainer._record_every = 20
            ranks.broadcast("all have begun")
            with no_waiting():
                trainer._shared.gradient(xs, ts, False)
                assert not trainer._shall_stop()
                ranks.broadcast("all are done")
        return trainer

    with use_fake_device():
        (alone,) = trained(1, "cuda", dtype=dtype, epochs=1)
        for trainer in together(2, work):
            for ours, theirs in zip(losses(trainer), losses(alone), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("number", "gpus", "used"), [(None, 2, []), (1, 2, [1]), (3, 1, [0]), (2, 2, "has no GPU")]
)
def test_each_rank_of_a_machine_takes_its_own_gpu(number, gpus, used, monkeypatch):
    found = []

    def device(number=0):
        return SimpleNamespace(use=lambda: found.append(number), compute_capability="10")

    cuda = SimpleNamespace(
        is_available=lambda: True,
        Device=device,
        runtime=SimpleNamespace(getDeviceCount=lambda: gpus),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(backend_module, "_gpu", None)
    if number is not None:
        backend_module.choose_gpu(number)
    says = used if isinstance(used, str) else "compute capability is 10"
    with pytest.raises(backend_module.BackendError, match=says):
        backend_module._cuda.__wrapped__()
    assert isinstance(used, str) or found == used


# ---- who is there


def test_launchers_are_told_by_the_environment():
    assert launcher_size({}) == launcher_size({"PMI_SIZE": "1", "PMI_RANK": "0"}) == 1
    assert (
        launcher_size({"OMPI_COMM_WORLD_SIZE": "3"})
        == launcher_size({"SLURM_STEP_NUM_TASKS": "3"})
        == 3
    )
    assert launcher_size({"SLURM_NTASKS": "8"}) == 1  # in a batch script, before srun
    assert launcher_size({"PMIX_RANK": "2"}) is None


def test_without_a_launcher_nothing_of_mpi_is_imported():
    program = """
        import sys
        from numba_rnn.cli import app
        from numba_rnn.training import init_distributed
        with init_distributed() as ranks:
            assert ranks.size == 1
        assert not {"mpi4py", "threadpoolctl"} & set(sys.modules)
        """
    run_python(program, dict.fromkeys(("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"), "1"))


@pytest.mark.parametrize("missing", ["mpi4py", "threadpoolctl"])
def test_without_the_extra_the_error_names_it(missing):
    program = f"""
        import sys
        import pytest
        from numba_rnn.training import RanksError, init_distributed, distributed
        sys.modules[{missing!r}] = None
        distributed.launcher_size = lambda: 2
        if {missing!r} == "threadpoolctl":
            from types import SimpleNamespace as made
            one = made(rank=0, size=1, allgather=lambda own: [own])
            comm = made(rank=0, size=2, Split_type=lambda kind: one)
            MPI = made(COMM_WORLD=comm, COMM_TYPE_SHARED=0)
            sys.modules["mpi4py"] = made(MPI=MPI)
        with pytest.raises(RanksError, match=r'pip install "numba-rnn\\[mpi\\]"'):
            init_distributed()
        """
    run_python(program)


def test_another_mpi_than_the_launchers_is_an_error(monkeypatch):
    world = SimpleNamespace(size=1)
    made = SimpleNamespace(COMM_WORLD=world, Get_library_version=lambda: "Some MPI 1.2")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=made))
    monkeypatch.setattr(ranks_module, "launcher_size", lambda: 4)
    with pytest.raises(RanksError, match=r"started 4 processes, but MPI knows of 1.*Some MPI 1\.2"):
        ranks_module.init_distributed()


# ---- over MPI

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
SMALL = [
    "--embed", "8", "--hidden", "16", "--batch", "6", "--time", "8", "--dropout", "0.2",
    "--recurrent-dropout", "0.1", "--zoneout", "0.1", "--patience", "0", "--quiet",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "NUMBA_RNN_BACKEND": "numpy", "OMP_NUM_THREADS": "1"}

PROGRAM = """
import os, signal, sys
from numba_rnn import jobs
from numba_rnn.models import Rnnlm
from numba_rnn.training import init_distributed

folder, what, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
backward = Rnnlm.backward

def failing(model):
    global at
    backward(model)
    at -= 1
    if at == 0 and ranks.rank == 1:
        if what == "kill":
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        raise RuntimeError("the coffee is finished")

Rnnlm.backward = failing
with init_distributed() as ranks:
    settings = jobs.TrainConfig(
        text="text.txt", embed=8, hidden=16, batch=6, time=8, epochs=2, recurrent_dropout=0.1,
        zoneout=0.1, save_every=5, patience=0,
    )
    jobs.train(settings, folder, progress=False, ranks=ranks)
"""


def mpiexec(size, *arguments):
    """The command that starts so many ranks."""
    own = Path(sys.executable).with_name("mpiexec")
    return [own if own.exists() else shutil.which("mpiexec"), "-n", str(size), *arguments]


def train(size, *arguments):
    command = [sys.executable, "-m", "numba_rnn", "train", *arguments]
    return command if size == 1 else mpiexec(size, *command)


def run(command, folder, code=0):
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a text, and a run of one process."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "text.txt").write_text(TEXT)
    settings = TrainConfig(
        text=str(folder / "text.txt"), embed=8, hidden=16, batch=6, time=8, epochs=2,
        recurrent_dropout=0.1, zoneout=0.1, patience=0,
    )  # fmt: skip
    with use_backend("numpy"):
        jobs.train(settings, folder / "alone", progress=False, log=lambda line: None)
    return folder


def expect_like_alone(folder, run):
    found, wanted = (
        load_checkpoint(folder / name / "last.safetensors")[1]["trainer"] for name in (run, "alone")
    )
    for name in ("epoch", "iteration", "blocks", "random"):
        assert found[name] == wanted[name]
    found, wanted = found["history"], wanted["history"]
    assert len(wanted["train"]) > 20
    np.testing.assert_allclose(found["train"], wanted["train"], rtol=1e-4)
    for ours, theirs in zip(found["epochs"], wanted["epochs"], strict=True):
        assert ours["valid_perplexity"] == pytest.approx(theirs["valid_perplexity"], rel=1e-4)


def test_what_a_user_types_trains_like_one_process_and_repeats_bit_for_bit(folder):
    for size, name in ((2, "two"), (2, "two again"), (4, "four")):
        options = [*SMALL, "--epochs", "2", "--text", "text.txt", "--out", name]
        said = run(train(size, *options), folder).stdout
        assert f"engine numpy, {said.split(', ')[1].split(';')[0]}; {size} processes" in said
        assert said.count("held-out perplexity") == said.count("a sample:") == 1
        expect_like_alone(folder, name)
        assert (folder / name / "loss.png").exists()
    for file in ("last.safetensors", "best.safetensors"):
        first, second = ((folder / name / file).read_bytes() for name in ("two", "two again"))
        assert first == second


def test_a_killed_rank_ends_the_job_and_another_number_of_ranks_goes_on(folder):
    began = time.monotonic()
    command = mpiexec(4, sys.executable, "-c", PROGRAM, "killed", "kill", "33")
    run(command, folder, code=1)
    assert time.monotonic() - began < 60  # it starts, trains, and does not hang
    saved = load_checkpoint(folder / "killed" / "last.safetensors")[1]["trainer"]
    assert saved["iteration"] == 30 + 2 * (saved["epoch"] == 1)
    run(train(2, "--resume", "killed", "--quiet"), folder)
    expect_like_alone(folder, "killed")


def test_an_error_on_one_rank_is_said_once_and_ends_the_job(folder):
    command = mpiexec(2, sys.executable, "-c", PROGRAM, "broken", "raise", "9")
    said = run(command, folder, code=1).stderr
    (line,) = re.findall(r"^error: .*", said, re.M)
    assert re.fullmatch(r"error: rank 1 of 2, on \S+: the coffee is finished", line)
    assert said.count("Traceback") == 1
    said = run(train(2, "--text", "text.txt", "--batch", "1", "--out", "no"), folder, code=1).stderr
    (line,) = re.findall(r"^error: .*", said, re.M)
    assert "batch: expected at least a row for each of 2 processes, got 1" in line
    assert "Traceback" not in said


def test_ctrl_c_saves_once_and_one_process_goes_on(folder):
    options = [*SMALL, "--text", "text.txt", "--epochs", "100000", "--out", "stopped"]
    process = subprocess.Popen(
        train(2, *options), cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    while not (folder / "stopped" / "best.safetensors").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.count("stopped; go on with: numba-rnn train --resume stopped") == 1
    last = folder / "stopped" / "last.safetensors"
    epochs = load_checkpoint(last)[1]["trainer"]["epoch"]
    run(train(1, "--resume", "stopped", "--epochs", str(epochs + 1), "--quiet"), folder)
    assert load_checkpoint(last)[1]["trainer"]["epoch"] == epochs + 1


def test_the_benchmark_runs():
    command = [sys.executable, "-m", "benchmarks.parallel", "--ranks", "2", "--rounds", "2"]
    tiny = ["--hidden", "16", "--batch", "4", "--time", "5", "--vocabulary", "20"]
    said = run([*command, *tiny], Path(__file__).parents[1]).stdout
    rows = re.findall(r"^(1|2|2 apart) +([\d,]+) +([\d,]+) +([\d.]+)", said, re.M)
    assert [row[0] for row in rows] == ["1", "2", "2 apart"]
    assert all(float(row[1].replace(",", "")) > 0 for row in rows)
