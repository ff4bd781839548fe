"""Which engine runs: by environment variable, by call, by block, by thread."""

import ast
import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import numba_rnn as rnn
from helpers import BACKENDS, problem, relative_error, run_python
from numba_rnn import explain, get_backend, use_backend

NO_GPU, NO_CUPY = "no NVIDIA GPU with a working driver was found", "CuPy cannot be imported"

# ---- the environment, which is read once a process


def ask(env: dict[str, str], setup: str = "") -> dict[str, object]:
    """The engine of a fresh process with these variables, as the process describes it."""
    done = run_python(
        f"""
        import sys, warnings
        {setup}
        import numba_rnn
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            said = {{}}
            try:
                for _ in range(2):
                    said["engine"] = numba_rnn.get_backend()
                said["reason"] = numba_rnn.explain().reason
            except Exception as error:
                said["error"] = type(error).__name__, str(error)
        said["warnings"] = [(w.category.__name__, str(w.message)) for w in caught]
        print(said)
        """,
        env,
    )
    return ast.literal_eval(done.stdout)


WITHOUT_NUMBA = "sys.modules['numba'] = None"


def test_the_default_is_numba():
    said = ask({})
    assert said["engine"] == "numba"
    assert "NUMBA_RNN_BACKEND is not set" in said["reason"]
    assert said["warnings"] == []


@pytest.mark.parametrize("name", ["numpy", "numba", " NumPy "])
def test_the_variable_names_the_engine(name):
    said = ask({"NUMBA_RNN_BACKEND": name})
    assert said["engine"] == name.strip().lower()
    assert said["reason"].startswith(f"NUMBA_RNN_BACKEND asks for {said['engine']}")
    assert said["warnings"] == []


@pytest.mark.parametrize("strict", ["", "0"])
def test_cuda_falls_back_with_one_warning(strict):
    said = ask({"NUMBA_RNN_BACKEND": "cuda", "NUMBA_RNN_STRICT": strict})
    assert said["engine"] == "numba"
    ((category, message),) = said["warnings"]
    assert category == "RuntimeWarning"
    assert "asks for cuda, running on numba instead" in message
    assert NO_GPU in message or NO_CUPY in message
    assert NO_GPU in said["reason"] or NO_CUPY in said["reason"]


def test_strict_cuda_raises():
    said = ask({"NUMBA_RNN_BACKEND": "cuda", "NUMBA_RNN_STRICT": "1"})
    kind, message = said["error"]
    assert kind == "BackendError"
    assert "NUMBA_RNN_BACKEND: cuda cannot run here" in message
    assert said["warnings"] == []


@pytest.mark.parametrize("strict", ["0", "1"])
def test_an_unknown_name_raises(strict):
    said = ask({"NUMBA_RNN_BACKEND": "gpu", "NUMBA_RNN_STRICT": strict})
    kind, message = said["error"]
    assert kind == "ValueError"
    assert "NUMBA_RNN_BACKEND: expected one of auto, numpy, numba, cuda, got 'gpu'" in message


def test_without_numba_the_default_is_numpy():
    said = ask({"NUMBA_RNN_STRICT": "1"}, WITHOUT_NUMBA)
    assert said["engine"] == "numpy"
    assert "numba cannot be imported" in said["reason"]
    assert said["warnings"] == []


@pytest.mark.parametrize("name", ["numba", "cuda"])
def test_without_numba_the_fall_back_is_numpy(name):
    said = ask({"NUMBA_RNN_BACKEND": name}, WITHOUT_NUMBA)
    assert said["engine"] == "numpy"
    ((category, message),) = said["warnings"]
    assert category == "RuntimeWarning"
    assert f"asks for {name}, running on numpy instead" in message
    assert "numba cannot be imported" in message


def test_without_numba_strict_raises():
    said = ask({"NUMBA_RNN_BACKEND": "numba", "NUMBA_RNN_STRICT": "1"}, WITHOUT_NUMBA)
    kind, message = said["error"]
    assert kind == "BackendError"
    assert "numba cannot be imported" in message


def test_importing_does_not_import_numba():
    run_python(
        """
        import sys, numba_rnn
        layer = numba_rnn.TimeLSTM.create(2, 3)
        assert not {"numba", "llvmlite"} & set(sys.modules)
        """,
        {"NUMBA_RNN_BACKEND": "numba"},
    )


# ---- by call and by block


@pytest.fixture(autouse=True)
def _restored():
    with use_backend("numpy"):  # calls below change the engine until this block ends
        yield


def test_a_call_holds_until_the_next():
    use_backend("numba")
    assert get_backend() == "numba"
    use_backend("numpy")
    assert get_backend() == "numpy"


def test_blocks_nest():
    with use_backend("numba") as engine:
        assert (get_backend(), engine.name) == ("numba", "numba")
        with use_backend("numpy"):
            with use_backend("auto"):
                assert get_backend() == "numba"
            assert get_backend() == "numpy"
        assert get_backend() == "numba"
    assert get_backend() == "numpy"


def test_a_block_ends_what_a_call_in_it_chose():
    with use_backend("numba"):
        use_backend("numpy")
    with use_backend("numpy"):
        use_backend("numba")
    assert get_backend() == "numpy"


def fail_in_a_block() -> None:
    with use_backend("numba"):
        assert get_backend() == "numba"
        raise KeyError("inside")


def test_an_exception_ends_the_block():
    with pytest.raises(KeyError, match="inside"):
        fail_in_a_block()
    assert get_backend() == "numpy"


@pytest.mark.parametrize("name", ["gpu", "NumPy", None])
def test_a_refused_choice_changes_nothing(name):
    with pytest.raises(ValueError, match="auto, numpy, numba, cuda"):
        use_backend(name)
    with pytest.raises(rnn.BackendError, match="cuda"):
        use_backend("cuda", strict=True)
    assert get_backend() == "numpy"


def test_cuda_warns_at_the_line_that_asks_for_it():
    with pytest.warns(
        RuntimeWarning, match="use_backend asks for cuda, running on numba"
    ) as caught:
        use_backend("cuda")
    assert [warning.filename for warning in caught] == [__file__]
    assert get_backend() == "numba"


# ---- by thread and task


def test_threads_choose_for_themselves():
    barrier = threading.Barrier(2)

    def run(name: str) -> list[str]:
        use_backend(name)
        seen = []
        for _ in range(20):
            barrier.wait(10)
            seen.append(get_backend())
        return seen

    with ThreadPoolExecutor(2) as pool:
        numpy, numba = pool.map(run, ["numpy", "numba"])
    assert set(numpy) == {"numpy"}
    assert set(numba) == {"numba"}
    assert get_backend() == "numpy"


def test_tasks_choose_for_themselves():
    async def run(name: str) -> str:
        use_backend(name)
        await asyncio.sleep(0.01)
        return get_backend()

    async def both() -> list[str]:
        return await asyncio.gather(run("numba"), run("numpy"))

    assert asyncio.run(both()) == ["numba", "numpy"]
    assert get_backend() == "numpy"


# ---- what it says, and what it does


@pytest.mark.parametrize("name", BACKENDS)
def test_explain(name):
    with use_backend(name, strict=True):
        found = explain()
    assert found.engine == name
    assert found.reason == f"use_backend asks for {name}"
    assert found.device
    assert found.threads >= 1
    assert found.simd_bits in ((None,) if name == "numpy" else (64, 128, 256, 512))
    assert {"numba_rnn", "python", "numpy"} <= found.versions.keys()
    assert found.versions["numba_rnn"] == rnn.__version__
    text = str(found)
    for part in (name, found.reason, found.device, str(found.threads), np.__version__):
        assert part in text
    assert [line.split()[0] for line in text.splitlines()] == [
        "engine", "reason", "device", "threads", "SIMD", "products", "cache", "versions"
    ]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), [("numpy", "numba"), ("numba", "numpy")])
def test_backward_runs_on_the_engine_of_its_forward(first, second):
    p = problem("lstm", 2, 3, 4, 5)
    together, apart = (rnn.TimeLSTM(*p.params) for _ in range(2))
    with use_backend(first):
        together.forward(p.xs)
        expected = together.backward(p.dhs, *p.dstate)
        apart.forward(p.xs)
    with use_backend(second):
        dxs = apart.backward(p.dhs, *p.dstate)
    np.testing.assert_array_equal(dxs, expected)
    for a, b in zip(
        (*apart.grads, *apart.dstate), (*together.grads, *together.dstate), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_state_moves_from_engine_to_engine():
    p = problem("gru", 2, 6, 3, 5)
    layer, whole = rnn.TimeGRU(*p.params, stateful=True), rnn.TimeGRU(*p.params)
    blocks = []
    for name, xs in (("numba", p.xs[:, :3]), ("numpy", p.xs[:, 3:])):
        with use_backend(name):
            blocks.append(layer.forward(xs))
    assert relative_error(np.concatenate(blocks, axis=1), whole.forward(p.xs)) < 1e-12


def test_precision_is_checked():
    with use_backend("numba", precision="bf16") as engine:
        assert engine is use_backend("numba", precision="bfloat16").__enter__()
    with use_backend("numba", precision="tf32") as engine:  # there is none
        assert engine is use_backend("numba", precision="float32").__enter__()
    with pytest.raises(ValueError, match="one of float32, tf32, bfloat16, got 'x'"):
        use_backend("numpy", precision="x")
    kind, message = ask({"NUMBA_RNN_PRECISION": "half"})["error"]
    assert kind == "ValueError"
    assert "NUMBA_RNN_PRECISION: expected one of float32, tf32, bfloat16, got 'half'" in message


def test_explain_takes_a_layer():
    layer = rnn.TimeLSTM.create(3, 5, rng=0)
    with use_backend("numpy"):
        assert explain(layer).execution == {}  # there is no choice
