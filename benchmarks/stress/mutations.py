"""Inputs that somebody has damaged, for every loader: bytes of files, and values in them.

    python -m benchmarks.stress.mutations                          2,000 inputs for each loader
    python -m benchmarks.stress.mutations --count 20000            as many as a release wants
    python -m benchmarks.stress.mutations --loader onnx --start 417 --count 1 --show

An input is a whole one with a few changes, drawn from the seed and its number alone, so that one
that does harm can be had again. A line for each loader counts what became of them:

    loaded     the loader took it, and what it made computes
    refused    an error of this package (or, of a pickle, of the pickle module)
    other      an exception that some library or Python itself raised
    crash      the process died
    hang       longer than 20 seconds, or more than 2 GiB of memory

Any but the first two makes the exit status 1. Inputs are tried in processes of their own.
"""

import io
import linecache
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import numba_rnn as rnn

KINDS = "loaded", "refused", "other", "crash", "hang"
PATIENCE, MEMORY, CHUNK = 20, 2 << 30, 500
Loader = Callable[[np.random.Generator], Any]
PACKAGE = str(Path(rnn.__file__).parent)
ROOT = Path(__file__).resolve().parents[2]

# ---- changes

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 3, 2**31, 2**63, -(2**40), 0.5, -0.5, 1e308, float("nan"),
    float("inf"), "", "x", "tanh", "lstm", "float32", "\u0000", [], {}, [1], [[]], {"a": 1},
    [None, "x"], "2" * 50,
]  # fmt: skip
DTYPES = "f2", "f4", "f8", ">f4", "i4", "u1", "c8", "?", "U2", "O"


def one_of(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def changed_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """A few bytes other than they were, or fewer, or more."""
    new = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        start, length = int(rng.integers(len(new) + 1)), int(rng.integers(1, 9))
        if rng.random() < 0.5:  # most of what says how the rest is to be read comes first
            start %= min(len(new), 400) + 1
        kind = rng.integers(6)
        if kind == 0:
            del new[start:]
        elif kind == 1:
            del new[start : start + length]
        elif kind == 2:
            new[start:start] = rng.bytes(length)
        elif kind == 3:
            new[start:start] = new[start : start + 8 * length]
        else:
            there = len(new[start : start + length])
            new[start : start + length] = rng.bytes(there) if kind == 4 else there * b"\xff"
    return bytes(new)


def changed_array(rng: np.random.Generator, array: np.ndarray) -> Any:
    kind = rng.integers(8)
    if kind == 0 and array.ndim:
        return array[..., : int(rng.integers(0, 3))]
    if kind == 1:
        return array.ravel() if rng.random() < 0.5 else array[None]
    if kind == 2:
        return array.T
    if kind == 3:
        return array.astype(one_of(rng, DTYPES))
    if kind == 4:
        return np.full_like(array, one_of(rng, (np.nan, np.inf, 1e38, -1e-45, 0)))
    if kind == 5:
        return np.zeros(rng.integers(0, 4, int(rng.integers(0, 4))), array.dtype)
    if kind == 6 and array.ndim:
        return np.concatenate([array, array], axis=-1)
    return one_of(rng, ODD)


def changed_value(rng: np.random.Generator, tree: Any, others: bool = True) -> Any:
    """A copy of nested lists, dictionaries and arrays in which one thing is another one.

    others   whether arrays may become what is no array
    """
    if isinstance(tree, np.ndarray):
        new = changed_array(rng, tree)
        return new if others or isinstance(new, np.ndarray) else tree.astype(np.float16)
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.05:
        return one_of(rng, ODD)
    new = tree.copy()
    key = one_of(rng, list(tree) if isinstance(tree, dict) else range(len(tree)))
    kind = rng.integers(8)
    if kind == 0:
        del new[key]
    elif kind == 1 and isinstance(new, dict):
        new[one_of(rng, ("x", "", f"{key}x", f"{key}"[:-1], f"{key}2"))] = new.pop(key)
    elif kind == 2:
        new[key] = tree[one_of(rng, list(tree) if isinstance(tree, dict) else range(len(tree)))]
    else:
        new[key] = changed_value(rng, tree[key], others)
    return new


# ---- loaders


def layers(kinds: str = "rnn lstm gru gru_after bidirectional stacked") -> dict[str, Any]:
    """A layer of every kind, (D 3, H 4)."""

    def lstm(D: int = 3) -> Any:
        return rnn.TimeLSTM.create(D, 4, rng=0)

    made: dict[str, Callable[[], Any]] = {
        "rnn": lambda: rnn.TimeRNN.create(3, 4, rng=0),
        "lstm": lstm,
        "gru": lambda: rnn.TimeGRU.create(3, 4, rng=0),
        "gru_after": lambda: rnn.TimeGRU.create(3, 4, rng=0, reset_after=True),
        "bidirectional": lambda: rnn.Bidirectional(lstm(), lstm()),
        "stacked": lambda: rnn.Stacked([lstm(), lstm(4)]),
        "both": lambda: rnn.Stacked([rnn.Bidirectional(lstm(), lstm()), lstm(8)], dropout=0.1),
    }
    return {kind: made[kind]() for kind in kinds.split()}


def run(layer: Any) -> None:
    """See that it computes."""
    layer.forward(np.ones((1, 2, layer.input_size), layer.dtype))


def of_checkpoints(folder: Path) -> Iterator[tuple[str, Loader]]:
    from numba_rnn.jobs import load_model
    from numba_rnn.models import Rnnlm
    from numba_rnn.training import Adam, Trainer, TruncatedBPTT, load_checkpoint, save_checkpoint

    corpus = np.arange(60) % 5

    def trainer() -> Any:
        model = Rnnlm(5, 3, 4, rng=0)
        blocks = TruncatedBPTT(corpus, 2, 5)
        extra = {
            "model": model.config,
            "vocabulary": {"members": [*"abcd", "\ufffd"], "level": "char"},
        }
        sizes = {"eval_batch": 2, "eval_time": 5}
        return Trainer(model, Adam(), blocks, valid=corpus, progress=False, extra=extra, **sizes)

    first = trainer()
    first.fit(1)
    path, whole = folder / "changed.safetensors", folder / "whole.safetensors"
    first.save(whole)
    data, saved = whole.read_bytes(), load_checkpoint(whole)

    def write(rng: np.random.Generator) -> None:
        if rng.random() < 0.2:
            path.write_bytes(changed_bytes(rng, data))
            return
        arrays, content = saved
        if rng.random() < 0.3:
            arrays = changed_value(rng, arrays, others=False)
            arrays = arrays if isinstance(arrays, dict) else saved[0]
            wrong = [n for n, a in arrays.items() if getattr(a, "dtype", object) in ("O", "U2")]
            arrays = {n: a for n, a in arrays.items() if n not in wrong}
        if rng.random() < 0.9:
            content = changed_value(rng, content)
        save_checkpoint(path, arrays, content)

    def checkpoint(rng: np.random.Generator) -> None:
        path.write_bytes(changed_bytes(rng, data))
        load_checkpoint(path)

    def restore(rng: np.random.Generator) -> None:
        write(rng)
        there = trainer()
        there.restore(path)
        there.fit(there.epoch + 1)

    def model(rng: np.random.Generator) -> None:
        write(rng)
        model, vocabulary, _ = load_model(path)
        model.generate(np.array([0]), 3)
        vocabulary.encode("abc")

    yield "checkpoint", checkpoint
    yield "restore", restore
    yield "model", model


def of_onnx(folder: Path) -> Iterator[tuple[str, Loader]]:
    import onnx

    from numba_rnn.bridges import from_onnx, to_onnx

    made = [to_onnx([layer, rnn.TimeAffine.create(layer.output_size, 2)], states=True)
            for layer in layers().values()]  # fmt: skip
    attributes = {
        "activations": ["sigmoid", "Tanh", "relu"], "clip": 0.5, "layout": 1, "direction": "reverse"
    }  # fmt: skip

    def changed_message(rng: np.random.Generator, message: Any) -> None:
        """One field somewhere in it."""
        fields = message.ListFields()
        if not fields:
            return
        field, value = one_of(rng, fields)
        many = getattr(field, "is_repeated", None)
        many = field.label == field.LABEL_REPEATED if many is None else many
        if many:
            k = int(rng.integers(len(value)))
            if rng.random() < 0.3:
                del value[k]
            elif field.type == field.TYPE_MESSAGE:
                changed_message(rng, value[k])
            else:
                value[k] = changed_scalar(rng, value[k])
        elif rng.random() < 0.2:
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            changed_message(rng, value)
        elif field.type == field.TYPE_ENUM:
            setattr(message, field.name, one_of(rng, field.enum_type.values).number)
        else:
            setattr(message, field.name, changed_scalar(rng, value))

    def changed_scalar(rng: np.random.Generator, value: Any) -> Any:
        if isinstance(value, bytes):
            return changed_bytes(rng, value)
        if isinstance(value, str):
            return one_of(rng, ("", "x", value.lower(), f"{value}x", "X", "Tanh"))
        if isinstance(value, int):
            return int(one_of(rng, (-1, 0, 1, 2, 3, 7, 11, 16, 1 << 20, (1 << 31) - 1)))
        return float(one_of(rng, (0.0, -1.0, 0.5, np.nan, np.inf, 1e38)))

    def load(rng: np.random.Generator) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(one_of(rng, made))
        kind = rng.random()
        if kind < 0.3:
            net = from_onnx(changed_bytes(rng, model.SerializeToString()))
        else:
            for _ in range(int(rng.integers(1, 3))):
                node = one_of(rng, model.graph.node or [onnx.NodeProto()])
                if rng.random() < 0.3:
                    name = one_of(rng, list(attributes))
                    node.attribute.append(onnx.helper.make_attribute(name, attributes[name]))
                changed_message(rng, node if rng.random() < 0.3 else model)
            net = from_onnx(model)
        sizes = {"N": 2, "T": 3}
        inputs = {}
        for name in net.inputs:
            dtype, shape = net._specs[name]
            wanted = [n if isinstance(n, int) else sizes.get(n, 2) for n in shape or (2, 3, 3)]
            if np.prod(wanted, dtype=float) > 1e6:
                return
            inputs[name] = np.zeros(wanted, dtype)
        net.forward(**inputs)

    yield "onnx", load


def of_torch(folder: Path) -> Iterator[tuple[str, Loader]]:
    from numba_rnn.bridges import from_torch, save_torch, torch_state_dict

    stacks = layers("rnn lstm gru_after bidirectional stacked").values()
    dicts, files, path = [torch_state_dict(layer) for layer in stacks], [], folder / "x.safetensors"
    for layer in stacks:
        save_torch(layer, path)
        files.append(path.read_bytes())

    def load(rng: np.random.Generator) -> None:
        if rng.random() < 0.3:
            path.write_bytes(changed_bytes(rng, one_of(rng, files)))
            run(from_torch(path))
            return
        source = one_of(rng, dicts)
        for _ in range(int(rng.integers(1, 3))):
            source = changed_value(rng, source)
        odd = {} if rng.random() < 0.8 else {"prefix": one_of(rng, ["", "x.", "x"])}
        if isinstance(source, dict) and rng.random() < 0.2:
            source = {one_of(rng, (3, None, b"weight_hh_l0", ("a",))): np.ones(3), **source}
        run(from_torch(source, **odd))

    yield "torch", load


def of_book(folder: Path) -> Iterator[tuple[str, Loader]]:
    from numba_rnn.bridges import from_book, to_book
    from numba_rnn.models import Rnnlm

    models = [*layers("rnn lstm gru").values(), Rnnlm(5, 3, 4, rng=0)]
    models += [Rnnlm(5, 4, 4, layers=2, tie=True, rng=0)]
    path, named, files = folder / "x.npz", [], []
    for model in models:
        to_book(model, path)
        files.append(path.read_bytes())
        named.append(dict(np.load(path)))
    lists = [to_book(model) for model in models]

    def load(rng: np.random.Generator) -> None:
        if rng.random() < 0.3:
            path.write_bytes(changed_bytes(rng, one_of(rng, files)))
            found = from_book(path)
        else:
            source = one_of(rng, [*named, *lists])
            for _ in range(int(rng.integers(1, 3))):
                source = changed_value(rng, source)
            if rng.random() < 0.3 and isinstance(source, dict):
                data = io.BytesIO()
                np.savez(
                    data,
                    **{
                        str(k): np.asarray(v, object if v is None else None)
                        for k, v in source.items()
                        if not isinstance(v, (list, dict))
                    },
                )
                path.write_bytes(data.getvalue())
                source = path
            found = from_book(source, **({"dtype": "float32"} if rng.random() < 0.5 else {}))
        if isinstance(found, Rnnlm):
            found.forward(np.zeros((1, 2), int), np.zeros((1, 2), int))
        else:
            run(found)

    yield "book", load


def of_keras(folder: Path) -> Iterator[tuple[str, Loader]]:
    os.environ["KERAS_BACKEND"] = "numpy"  # whose variables hold whatever is put into them
    from numba_rnn.bridges import from_keras, to_keras

    made = [
        to_keras(layer) for layer in layers("rnn lstm gru gru_after bidirectional both").values()
    ]

    def inner(layer: Any) -> list[Any]:
        parts = [getattr(layer, name, None) for name in ("forward_layer", "backward_layer")]
        return [layer, *(part for part in parts if part is not None)]

    def load(rng: np.random.Generator) -> None:
        model = one_of(rng, made)
        parts = [p for part in getattr(model, "layers", [model]) for p in inner(part)]
        undo: list[Callable[[], None]] = []
        try:
            for _ in range(int(rng.integers(1, 3))):
                part = one_of(rng, [p for p in parts if getattr(p, "weights", None)])
                if rng.random() < 0.5:
                    config = dict(part.get_config())
                    key = one_of(rng, list(config))
                    config[key] = changed_value(rng, config[key])
                    if rng.random() < 0.1:
                        del config[key]
                    object.__setattr__(part, "get_config", lambda new=config: new)
                    undo.append(lambda part=part: vars(part).pop("get_config", None))
                elif rng.random() < 0.7:
                    weight = one_of(rng, part.weights)
                    before = weight._value
                    new = changed_value(rng, np.asarray(before))
                    weight._value = before if new is None else new  # None: Keras makes a new one
                    undo.append(lambda w=weight, b=before: setattr(w, "_value", b))
                else:
                    name = one_of(rng, ("merge_mode", "stateful", "return_sequences", "rate"))
                    if name in vars(part):
                        before = vars(part)[name]
                        vars(part)[name] = one_of(rng, ODD)
                        undo.append(lambda p=part, n=name, b=before: vars(p).update({n: b}))
            source = model if rng.random() < 0.8 else changed_value(rng, list(parts))
            run(from_keras(source))
        finally:
            for step in reversed(undo):
                step()

    yield "keras", load


def of_flax(folder: Path) -> Iterator[tuple[str, Loader]]:
    from flax import nnx

    from numba_rnn.bridges import from_flax, to_flax

    made = [to_flax(layer) for layer in layers("rnn lstm gru_after bidirectional both").values()]

    def load(rng: np.random.Generator) -> None:
        module = one_of(rng, made)
        parts = [m for _, m in nnx.iter_modules(module)]
        part = one_of(rng, parts)
        names = [n for n in vars(part) if not n.startswith("_")]
        name = one_of(rng, names or [""])
        before = vars(part).get(name)
        try:
            if isinstance(before, nnx.Variable):
                new: Any = changed_value(rng, np.asarray(before[...]))
                new = nnx.Param(new) if rng.random() < 0.9 else new
            else:
                new = one_of(rng, ODD)
            vars(part)[name] = new
            source = module if rng.random() < 0.9 else changed_value(rng, [module, module])
            run(from_flax(source))
        finally:
            vars(part)[name] = before

    yield "flax", load


def of_estimators(folder: Path) -> Iterator[tuple[str, Loader]]:
    from numba_rnn.sklearn import RNNClassifier, RNNForecaster

    X = np.random.default_rng(0).standard_normal((20, 5, 3)).astype(np.float32)
    classifier = RNNClassifier(hidden_size=4, max_epochs=1, random_state=0, verbose=0)
    classifier.fit(X, np.arange(20) % 3)
    forecaster = RNNForecaster(hidden_size=4, max_epochs=1, random_state=0, verbose=0)
    forecaster.fit(X.reshape(-1, 3))
    whole = [pickle.dumps(estimator) for estimator in (classifier, forecaster)]
    states = [(type(e), e.__getstate__()) for e in (classifier, forecaster)]

    def load(rng: np.random.Generator) -> None:
        if rng.random() < 0.5:
            pickle.loads(changed_bytes(rng, one_of(rng, whole)))
            return
        kind, state = one_of(rng, states)
        made = kind.__new__(kind)
        made.__setstate__(changed_state(rng, state))

    def changed_state(rng: np.random.Generator, state: dict[str, Any]) -> Any:
        saved = state["_saved"]
        if rng.random() < 0.3:
            saved = {**saved, "parameters": changed_bytes(rng, saved["parameters"])}
        else:
            saved = changed_value(rng, saved)
        return {**state, "_saved": saved}

    yield "estimators", load


LOADERS = {
    "checkpoint": of_checkpoints, "restore": of_checkpoints, "model": of_checkpoints,
    "onnx": of_onnx, "torch": of_torch, "book": of_book, "keras": of_keras, "flax": of_flax,
    "estimators": of_estimators,
}  # fmt: skip

# ---- trying them


def is_refusal(error: BaseException, loader: str) -> bool:
    """Whether a statement ``raise`` of ours raised it; of a pickle, nothing of ours was reached."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    ours = [(file, line) for file, line in frames if file.startswith(PACKAGE)]
    if isinstance(error, FileNotFoundError) or (loader == "estimators" and not ours):
        return True
    file, line = frames[-1]
    return file.startswith(PACKAGE) and linecache.getline(file, line).lstrip().startswith("raise")


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let an input have so much memory: a damaged pickle may ask Python for much more."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(loader: str, load: Loader, seed: int, number: int, show: bool) -> str:
    def late(*_: Any) -> None:
        raise TimeoutError

    rng = np.random.default_rng([seed, number])
    signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        with limited_memory():
            load(rng)
    except (TimeoutError, MemoryError) as error:
        found = "refused" if is_refusal(error, loader) else "hang"
        return f"{found} {error!r}" if show else found
    except Exception as error:
        signal.alarm(0)
        if show:
            import traceback

            traceback.print_exc()
        if is_refusal(error, loader):
            return "refused"
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return f"other {text[:150]}"
    finally:
        signal.alarm(0)
    return "loaded"


def work(loader: str, seed: int, start: int, count: int, show: bool) -> None:
    """Print a line for each input as soon as it is known what became of it."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory() as folder:
        load = dict(LOADERS[loader](Path(folder)))[loader]
        print("ready", flush=True)
        for number in range(start, start + count):
            print(number, outcome(loader, load, seed, number, show), flush=True)


def tried(loader: str, seed: int, start: int, count: int) -> Iterator[tuple[int, str]]:
    """(number, what became of it) of inputs, in processes of their own."""
    end, module = start + count, "benchmarks.stress.mutations"
    while start < end:
        chunk = min(CHUNK, end - start)
        command = [sys.executable, "-m", module, "--loader", loader, "--seed", str(seed)]
        command += ["--start", str(start), "--count", str(chunk), "--worker"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        )
        timeout = 120 + 0.5 * chunk + PATIENCE
        try:
            text, _ = process.communicate(timeout=timeout)
            ended = "crash"
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            ended = "hang"
        if "ready" not in text:
            raise RuntimeError(f"{loader}: nothing was tried; --show --loader {loader} says why")
        lines = [line.split(maxsplit=1) for line in text.splitlines() if line[:1].isdigit()]
        for number, what in lines:
            yield int(number), what
        start += len(lines)
        if len(lines) < chunk:  # the next one did harm
            yield start, f"{ended} (exit status {process.returncode})"
            start += 1


def main(
    loader: Annotated[list[str] | None, typer.Option(help=f"all of {', '.join(LOADERS)}")] = None,
    count: Annotated[int, typer.Option(help="inputs for each loader")] = 2000,
    start: Annotated[int, typer.Option(help="number of the first input")] = 0,
    seed: int = 0,
    show: Annotated[bool, typer.Option(help="in this process, with tracebacks")] = False,
    worker: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Damaged inputs for every loader, and what became of them."""
    loaders = loader or list(LOADERS)
    if show or worker:
        work(loaders[0], seed, start, count, show)
        return
    harm = False
    print(f"{'loader':12}" + "".join(f"{kind:>9}" for kind in KINDS) + "  seconds")
    for name in loaders:
        began, counts, first = time.monotonic(), Counter[str](), dict[str, int]()
        for number, what in tried(name, seed, start, count):
            counts[what.split()[0]] += 1
            if what not in ("loaded", "refused"):
                first.setdefault(what, number)
        print(f"{name:12}" + "".join(f"{counts[kind]:9,}" for kind in KINDS)
              + f"{time.monotonic() - began:9.0f}", flush=True)  # fmt: skip
        for what, number in list(first.items())[:20]:
            print(f"    {number}: {what}")
        harm |= counts["loaded"] + counts["refused"] < sum(counts.values())
    raise typer.Exit(int(harm))


if __name__ == "__main__":
    typer.run(main)
