"""The installed package works away from the checkout, and imports point one way."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from helpers import run_python
from numba_rnn import cells

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"numba_rnn": ROOT / "numba_rnn", "numba_rnn.kernels": ROOT / "kernels"}

# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the checkout stays clean and no left-overs of a build get in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in ("numba_rnn", "kernels"):
        shutil.copytree(ROOT / room, source / room, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def installed_name(file: Path) -> str:
    """Where a file of the checkout lies in the wheel."""
    for package in ("numba_rnn.kernels", "numba_rnn"):
        if file.is_relative_to(ROOMS[package]):
            return f"{package.replace('.', '/')}/{file.relative_to(ROOMS[package]).as_posix()}"
    raise AssertionError(file)


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    modules = {
        installed_name(file)
        for room in ROOMS.values()
        for file in room.rglob("*")
        if file.suffix == ".py" or file.name == "py.typed"
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == modules
    assert "numba_rnn/py.typed" in held


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> dict[str, str]:
    """The variables of a user whose caches are somewhere."""
    folder = str(tmp_path_factory.mktemp("caches"))
    return {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": folder, "LOCALAPPDATA": folder, "HOME": folder}


def test_the_wheel_works_from_another_folder_and_leaves_nothing_in_it(wheel, cache, tmp_path):
    """pip removes only what it wrote: of other files half a package would stay."""
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    before = set(target.rglob("*"))
    run_python(
        f"""
        from pathlib import Path
        import numpy as np
        import numba_rnn
        from numba_rnn import kernels, use_backend
        from numba_rnn.kernels import cpu

        target = Path({str(target)!r})
        for module in (numba_rnn, kernels, cpu):
            assert Path(module.__file__).is_relative_to(target), module.__file__
        assert (Path(numba_rnn.__file__).parent / "py.typed").exists()

        results = []
        for engine in ("numpy", "numba"):
            with use_backend(engine, strict=True):
                layer = numba_rnn.TimeLSTM.create(3, 5, rng=0, dtype=np.float64)
                hs = layer.forward(np.ones((2, 4, 3)))
                results.append([hs, layer.backward(hs), *layer.grads])
        for a, b in zip(*results):
            np.testing.assert_allclose(a, b, rtol=1e-10)
        """,
        {"PYTHONPATH": str(target), **cache},
        cwd=elsewhere,
    )
    assert set(target.rglob("*")) == before
    assert list(Path(cache["HOME"]).rglob("forward-*.bin"))


USE = """
import numba_rnn
import numpy as np
from numba_rnn.kernels.cpu.kernel_cache import KERNELS

assert len(numba_rnn.cells.names()) > 20
layer = numba_rnn.TimeLSTM.create(3, 5, rng=0, dtype=np.float64)
with numba_rnn.use_backend("numpy"):
    hs = layer.forward(np.ones((2, 4, 3)))
"""


def test_a_zip_file_on_the_path_is_enough(wheel, cache, tmp_path):
    """A wheel is one; what is compiled from the same source in a folder is found again."""
    done = run_python(
        f"""
        import sys
        sys.path.insert(0, {str(wheel)!r})
        {textwrap.indent(USE, " " * 8)}
        assert numba_rnn.__file__.startswith({str(wheel)!r})
        with numba_rnn.use_backend("numba", strict=True):
            np.testing.assert_allclose(layer.forward(np.ones((2, 4, 3))), hs, rtol=1e-10)
        assert KERNELS and all(kernel.cache_hits for kernel in KERNELS)
        """,
        cache,
        cwd=tmp_path,
    )
    assert done.stderr == ""


MORE_OF_A_USER = """
from numba_rnn import TimeMSE
lstm, loss, adam = TimeLSTM.create(3, 8, rng=0), TimeMSE(), Adam(lr=0.02)
frames, targets = np.ones((16, 30, 3), np.float32), np.ones((16, 30, 8), np.float32)
loss.forward(lstm.forward(frames), targets)
stream = TimePeephole.create(3, 8, rng=0).stream()
for x in frames[0]:
    h: Array = stream.step(x)
hs: Array = stream.step_many(frames[0])
dxs: Array = lstm.backward(loss.backward())
masked: Array = lstm.forward(frames, mask=np.ones((16, 30), bool))
short = lstm.forward(frames, lengths=[30] * 16)[:, -1].mean()
error: float = loss.forward(lstm.forward(frames), targets)
print(peephole.check() < 1e-6, TimePeephole.create(3, 8).params[0].shape)
"""
WRONG = (
    'cell(states=3)',
    'lstm.forward("xs")',
    'lstm.forward([[[1.0, 2.0, 3.0]]])',
    'lstm.forward(xs).no_method()',
    'lstm.h.no_method()',
    'lstm.forward(xs, lengths="30")',
    'lstm.backward(xs, inputs=False).shape',
    'adam.update(lstm.params, [1.0])',
    'stream.step("x")',
    'tanh(xs).no_method()',
)  # fmt: skip


def code_of_a_user() -> str:
    """The training loop and the cell of the README, with the annotations that --strict wants."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    loop, own, *_ = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    head = re.search(r"(?<=def peephole\().*(?=\):)", own)[0]
    typed = f"{head.replace(',', ': Array,')}: Array) -> tuple[Array, Array"
    own = own.replace(f"{head}):", f"{typed}]:")
    return "\n".join((loop, "from numba_rnn.typing import Array", own, MORE_OF_A_USER))


def test_a_users_program_passes_mypy_strict(wheel, tmp_path):
    target, program = tmp_path / "site", tmp_path / "user.py"
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))

    def mypy(code: str) -> str:
        program.write_text(code, encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
        return subprocess.run(
            [*command, f"--cache-dir={tmp_path / 'cache'}", str(program)],
            env={**os.environ, "MYPYPATH": str(target)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    code = code_of_a_user()
    assert mypy(code) == "Success: no issues found in 1 source file\n"
    found, before = mypy("\n".join((code, *WRONG))), code.count("\n") + 1
    wrong = {int(line) - before for line in re.findall(r"user.py:(\d+): error", found)}
    assert [line for k, line in enumerate(WRONG, 1) if k not in wrong] == []
    assert min(wrong) > 0


FREEZER = """
import importlib.abc
import importlib.util
import sys
from pathlib import Path

class Archive(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    files = FILES
    def find_spec(self, name, path=None, target=None):
        if name not in self.files:
            return None
        package = self.files[name].endswith("__init__.py")
        place = "/nowhere/" + name.replace(".", "/") + ("/__init__" if package else "") + ".pyc"
        spec = importlib.util.spec_from_loader(name, self, origin=place, is_package=package)
        spec.has_location = True
        return spec
    def code(self, name):
        return compile(Path(self.files[name]).read_text("utf-8"), name, "exec")
    def exec_module(self, module):
        exec(self.code(module.__name__), module.__dict__)

if GET_CODE:
    Archive.get_code = Archive.code
sys.meta_path.insert(0, Archive())
"""


@pytest.mark.parametrize("get_code", [True, False])
def test_a_frozen_program_needs_no_files(get_code, tmp_path):
    """As PyInstaller's and others': code from an archive, __file__ names what is not there."""
    files = {
        installed_name(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): str(
            file
        )
        for room in ROOMS.values()
        for file in room.rglob("*.py")
    }
    code = FREEZER.replace("FILES", repr(files)).replace("GET_CODE", str(get_code))
    code += USE + textwrap.dedent(
        """
        import warnings
        from numba_rnn.kernels.cpu.kernel_cache import compiled

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert numba_rnn.get_backend() == "numba"
            for kernel in ("panels.pack", "panels.unpack"):
                compiled(kernel)
        print(len(caught), sum(kernel.cache_hits for kernel in KERNELS))
        """
    )
    runs = [run_python(code, {"NUMBA_CACHE_DIR": str(tmp_path)}, cwd=tmp_path) for _ in range(2)]
    # whose source cannot be known is compiled anew each time, with one warning
    want = ["0 0", "0 2"] if get_code else ["1 0", "1 0"]
    assert [done.stdout.strip() for done in runs] == want


def test_every_file_of_cells_is_imported_by_name():
    """A frozen program has no folder in which files could be looked for."""
    files = {file.stem for file in (ROOT / "kernels" / "cells").glob("*.py")}
    named = {module.__name__.rpartition(".")[2] for module in cells._FILES}
    assert named == files - {"__init__", "cell", "options", "decorator"}


def test_nothing_imports_a_cached_property_with_a_lock():
    for package in ("numba_rnn", "numba_rnn.kernels"):
        for module, targets in imports(package).items():
            assert "functools.cached_property" not in targets, module


def test_the_wheel_works_from_within_the_checkout(wheel, tmp_path):
    """There the checkout's own files are imported, whose kernels stand elsewhere."""
    target = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    packages = [place for place in sys.path if place.endswith("site-packages")]
    code = """
        import sys
        assert not any("editable" in str(finder) for finder in sys.meta_path)
        import numba_rnn, numba_rnn.kernels.cells, numba_rnn.models, numba_rnn.training
        print(numba_rnn.kernels.__file__)
        """
    done = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(code)],  # -S: no editable install
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *packages])},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT / "kernels" / "__init__.py")


# ---- the source distribution


def description_in(wheel: Path) -> tuple[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        head, _, page = archive.read(name).decode("utf-8").partition("\n\n")
    return head, page


def test_the_page_of_a_package_index_is_whole(wheel):
    """It has the README, and no link to a file that is not there."""
    head, page = description_in(wheel)
    assert "\nDescription-Content-Type: text/markdown" in head
    assert "\nAuthor: numba_rnn contributors" in head
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith(("#", "    "))] == [
        line for line in readme.splitlines() if line.startswith(("#", "    "))
    ]
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert [link for link in links if not re.match(r"\w+://", link)] == []


def test_links_of_that_page_lead_to_the_repository():
    spec = spec_from_file_location("setup_py", ROOT / "setup.py")
    setup_py = module_from_spec(spec)
    spec.loader.exec_module(setup_py)
    text = "![a *b*](c/d.png) [`e.md`](e.md#f) [g](https://h.example/i) [j](#k)"
    assert setup_py.index_page(text, "https://host.example/us/it") == (
        "![a *b*](https://host.example/us/it/raw/HEAD/c/d.png)"
        " [`e.md`](https://host.example/us/it/blob/HEAD/e.md#f) [g](https://h.example/i) [j](#k)"
    )
    assert setup_py.index_page("![a](c.png) [e](f.md) [L](L)", None) == "a e (`f.md`) L"


def test_the_sdist_holds_what_its_tests_need(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "sdist"
    left_out = ("__pycache__", "*.egg-info", ".git", ".venv", "build", "dist", "runs", "site")
    left_out += (".*_cache", ".hypothesis", ".ipynb_checkpoints", "*.nb[ic]", "*.pyc")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*left_out))
    # as build does, in this environment: setuptools writes into the folder it starts in
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    files = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
    files = {file for file in files if ".egg-info/" not in file}
    assert {
        "tests/conftest.py",
        "notebooks/README.md",
        "mkdocs.yml",
        "kernels/reference.py",
    } < files
    assert files - held == {".gitignore"} & files


# ---- all the ways to start Python


COMMANDS = ("train", "generate", "evaluate", "inspect", "info")


def test_help_is_there_without_docstrings(tmp_path):
    """Python -OO leaves docstrings out."""
    code = f"""
        from typer.testing import CliRunner
        from numba_rnn.cli import app
        for command in {COMMANDS}:
            print(CliRunner().invoke(app, [command, "--help"]).output)
        """
    said = [
        subprocess.run(
            [sys.executable, *options, "-c", textwrap.dedent(code)],
            capture_output=True, text=True, check=True, cwd=tmp_path, encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        ).stdout
        for options in ([], ["-OO"])
    ]  # fmt: skip
    assert "Train a recurrent language model." in said[0]
    assert said[0] == said[1]


# ---- other people's machines


def test_the_workflow_runs_the_test_command_of_the_readme():
    command = 'pip install -e ".[dev,peers]" && pytest'
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    assert f"    {command}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"          {command}\n" in workflow
    assert "has not been run" in workflow


def test_no_python_is_too_new():
    """A cap would keep projects from resolving that allow newer ones (Poetry's do)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.15" in project["classifiers"]


# ---- who imports whom


def imports(package: str) -> dict[str, set[str]]:
    """For each module of a package, the full names of all it imports, wherever in the file."""
    found = {}
    for file in ROOMS[package].rglob("*.py"):
        name = installed_name(file).removesuffix(".py").replace("/", ".")
        parent = name.rpartition(".")[0]  # of an __init__ its own package, as in Python
        found[name.removesuffix(".__init__")] = {
            target
            for node in ast.walk(ast.parse(file.read_text()))
            for target in _targets(node, parent)
        }
    assert found
    return found


def _targets(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{module}.{alias.name}" for alias in node.names]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_kernels_stand_alone():
    anywhere = {"numpy", "numba", "llvmlite", *sys.stdlib_module_names}
    for module, targets in imports("numba_rnn.kernels").items():
        on_a_gpu = within(module, "numba_rnn.kernels.cuda")
        allowed = anywhere | {"cuda", "cupy", "numba_cuda"} if on_a_gpu else anywhere
        if within(module, "numba_rnn.kernels.autodiff"):
            allowed = {"numpy", "sympy", *sys.stdlib_module_names}
        for target in targets:
            inside = within(target, "numba_rnn.kernels")
            assert inside or target.split(".")[0] in allowed, f"{module} imports {target}"


def test_the_reference_and_the_cells_need_no_compiler_and_engines_no_other():
    engines = "numba_rnn.kernels.cpu", "numba_rnn.kernels.cuda"
    vectors = "numba_rnn.kernels.vectors"  # of both
    for module, targets in imports("numba_rnn.kernels").items():
        own = next((engine for engine in engines if within(module, engine)), None)
        for target in targets:
            compiler = target.split(".")[0] in {"numba", "llvmlite"} or within(target, vectors)
            assert own or module == vectors or not compiler, f"{module}: {target}"
            for engine in engines:
                assert engine == own or not within(target, engine), f"{module}: {target}"


def test_cupy_is_touched_in_one_place():
    for package in ("numba_rnn", "numba_rnn.kernels"):
        for module, targets in imports(package).items():
            if module not in ("numba_rnn.kernels.cuda.cupy_gpu", "numba_rnn.backend"):
                assert not any(within(target, "cupy") for target in targets), module


# each room, and the rooms of numba_rnn that it may not import
FORBIDDEN = {
    "backend": ("bridges", "validation", "layers", "models", "sklearn", "torch", "training", "cli"),
    "validation": ("backend", "bridges", "layers", "models", "sklearn", "torch", "training", "cli"),
    "layers": ("bridges", "diagnostics", "models", "sklearn", "torch", "training", "viz", "cli"),
    "functional": ("bridges", "diagnostics", "models", "sklearn", "torch", "training", "cli"),
    "diagnostics": ("bridges", "models", "sklearn", "torch", "training", "viz", "cli"),
    "viz": ("bridges", "models", "sklearn", "torch", "training", "cli"),
    "models": ("bridges", "sklearn", "torch", "cli"),
    "training": ("bridges", "sklearn", "torch", "cli"),
    "bridges": ("cli", "diagnostics", "sklearn", "torch", "training"),
    "book": ("bridges", "diagnostics", "models", "sklearn", "torch", "viz", "cli"),
    "sklearn": ("bridges", "diagnostics", "models", "torch", "cli"),
    "torch": ("diagnostics", "models", "sklearn", "training", "cli"),
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_one_way(room):
    modules = {
        module: targets
        for module, targets in imports("numba_rnn").items()
        if within(module, f"numba_rnn.{room}")
    }
    assert modules
    for module, targets in modules.items():
        for target in targets:
            for other in FORBIDDEN[room]:
                assert not within(target, f"numba_rnn.{other}"), f"{module} imports {target}"


def import_graph() -> dict[str, set[str]]:
    """For each module of ours the modules of ours that it imports, wherever in the file."""
    found = {**imports("numba_rnn"), **imports("numba_rnn.kernels")}

    def module_of(name: str) -> str:
        return name if name in found or not name else module_of(name.rpartition(".")[0])

    return {name: {module_of(t) for t in targets} - {name, ""} for name, targets in found.items()}


def test_no_module_imports_itself_by_way_of_others():
    """A module stands on what stands on nothing but modules that stand already."""
    left = import_graph()
    while left:
        floor = {name for name, targets in left.items() if not targets & left.keys()}
        assert floor, {name: targets & left.keys() for name, targets in left.items()}
        left = {name: targets for name, targets in left.items() if name not in floor}


def test_rooms_import_downwards_in_the_picture():
    page = (ROOT / "docs" / "rooms" / "index.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    ([a-z_. ]+)$", page, re.MULTILINE)
    floors = {f"numba_rnn.{room}": k for k, line in enumerate(lines) for room in line.split()}
    graph = import_graph()
    rooms = {m: next((room for room in floors if within(m, room)), None) for m in graph}
    assert floors.keys() == set(rooms.values()) - {None}
    for module, targets in graph.items():
        for target in targets:
            room, other = rooms[module], rooms[target]
            if room and other and room != other:
                assert floors[room] < floors[other], f"{module} imports {target}"


def test_bridges_import_a_library_only_where_it_is_used():
    run_python(
        """
        import sys
        import numba_rnn.bridges

        for name in ("flax", "jax", "keras", "torch"):
            assert name not in sys.modules, name
        """
    )


def test_backend_imports_only_kernels():
    ours = {t for t in imports("numba_rnn")["numba_rnn.backend"] if within(t, "numba_rnn")}
    ours.discard("numba_rnn.version.__version__")
    assert ours
    assert all(within(target, "numba_rnn.kernels") for target in ours), ours


def test_layers_know_no_engine_but_through_backend():
    for module, targets in imports("numba_rnn").items():
        if not within(module, "numba_rnn.backend"):
            for target in targets:
                for engine in ("cpu", "cuda", "device_engine", "reference"):
                    assert not within(target, f"numba_rnn.kernels.{engine}"), f"{module}: {target}"


def test_the_import_walk_sees_relative_imports():
    found = imports("numba_rnn")["numba_rnn.layers"]
    assert "numba_rnn.layers.recurrent.TimeLSTM" in found
    found = imports("numba_rnn.kernels")
    assert "numba_rnn.kernels.functions.sigmoid" in found["numba_rnn.kernels.cells.lstm"]
    assert "numba_rnn.kernels.functions" in found["numba_rnn.kernels.cpu.vector_functions"]
