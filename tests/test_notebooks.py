"""Every notebook runs from its first cell to its last, and what is stored in it can be shown."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KOREAN = [path for path in NOTEBOOKS if path.name.endswith(".ko.ipynb")]
ENGLISH = [path for path in NOTEBOOKS if path not in KOREAN]
LESSONS = [path for path in ENGLISH if re.match(r"0[1-8]", path.name)]
HANGUL = re.compile("[가-힣]")

sys.path.insert(0, str(ROOT / "docs" / "tools"))
import notebooks as tool  # noqa: E402

# where things lie on somebody's machine
PLACES = re.compile(
    r"/(home|Users|root|tmp|private|usr|opt|work|mnt)/|\b[A-Z]:\\|\.py:\d|ipykernel_"
)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_in(output):
    """All that an output holds as text; pictures are none."""
    found = [output.get("text", ""), *output.get("traceback", [])]
    for kind, data in output.get("data", {}).items():
        if not kind.startswith("image/") or kind == "image/svg+xml":
            found.append(str(data))
    return found


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.filterwarnings("default")  # of Jupyter's own
@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    notebook = read(path)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_as_it_ran(path):
    notebook = read(path)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_say_nothing_of_the_machine(path):
    notebook = read(path)
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text
            for text in texts_in(output):
                assert not PLACES.search(text), text
                assert str(ROOT) not in text
                assert sys.prefix not in text
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


def test_a_path_would_be_found():
    output = {"data": {"text/plain": "Wx from /home/ann/run.npz"}}
    assert any(PLACES.search(text) for text in texts_in(output))


# ---- what all have: a first cell that installs, described pictures, the same closing parts


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_in_step(path):
    wanted = tool.written(path, tool.repository())
    assert path.read_text("utf-8") == wanted, "run: python docs/tools/notebooks.py"


def test_an_address_is_put_into_the_first_cell_and_under_the_title():
    here = "https://github.com/ann/numba_rnn"
    notebook = json.loads(tool.written(ROOT / "notebooks" / "01_rnn.ko.ipynb", here))
    title, first = notebook["cells"][:2]
    assert f'SOURCE = "git+{here}"' in "".join(first["source"])
    assert "github/ann/numba_rnn/blob/HEAD/notebooks/01_rnn.ko.ipynb" in title["source"][2]
    assert title["source"][2].count("](https://") == 3
    tool.put_install(notebook, "01_rnn.ko.ipynb", None)
    before = json.loads((ROOT / "notebooks" / "01_rnn.ko.ipynb").read_text("utf-8"))
    assert notebook["cells"][:2] == before["cells"][:2]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_pictures_are_described(path):
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            for kind in output.get("data", {}):
                if kind.startswith("image/"):
                    text = output.metadata[kind]["alt"]
                    assert len(text) > 10, cell.source
                    assert bool(HANGUL.search(text)) == (path in KOREAN), text


def headings(notebook):
    """Each heading, and the text below it."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    parts = re.split(r"^(#+ .*)$", text, flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_it_closes_with_exercises_and_their_solutions(path):
    found = headings(read(path))
    main = [heading for heading, _ in found if heading.startswith("## ")]
    assert main[-2:] == ["## What to remember", "## Exercises"]
    exercises = found[[heading for heading, _ in found].index("## Exercises") + 1 :]
    assert 3 <= len(exercises) <= 5
    for number, (heading, text) in enumerate(exercises, 1):
        assert heading.startswith(f"### {number}. ")
        assert "<summary>Solution</summary>" in text
    solutions = [
        cell for cell in code_cells(read(path)) if "solution" in cell.metadata.get("tags", [])
    ]
    assert len(solutions) >= 3
    assert all(cell.metadata["jupyter"]["source_hidden"] for cell in solutions)


# ---- Korean


def test_the_lecture_is_there_in_korean():
    assert {path.name for path in KOREAN} == {
        f"{path.stem}.ko.ipynb" for path in ENGLISH if re.match("0[1-6]", path.name)
    }


@pytest.mark.parametrize("path", KOREAN, ids=lambda path: path.stem)
def test_its_code_is_that_of_the_english_one(path):
    korean, english = read(path).cells, read(path.with_name(path.name.replace(".ko.", "."))).cells
    assert [(cell.id, cell.cell_type) for cell in korean] == [
        (cell.id, cell.cell_type) for cell in english
    ]
    for mine, its in zip(korean, english, strict=True):
        if mine.cell_type == "code":
            assert mine.source == its.source
            data = [[output.get("data"), output.get("text")] for output in mine.outputs]
            assert data == [[output.get("data"), output.get("text")] for output in its.outputs]
        else:
            assert HANGUL.search(mine.source)
            levels = [re.findall(r"^#+ ", cell.source, re.M) for cell in (mine, its)]
            assert levels[0] == levels[1], mine.source
            assert formulas(mine) == formulas(its), mine.source


def formulas(cell):
    """Those on lines of their own, without the words in them."""
    found = re.findall(r"\$\$(.*?)\$\$", cell.source, re.S)
    return [re.sub(r"\\text\{[^}]*\}|\s", "", formula) for formula in found]


# ---- without a compiler

BROWSER = """
import sys, threading
import matplotlib.figure, numpy.random  # of these Pyodide has its own

# it has no locks, no compiler and no threads
sys.platform = "emscripten"
for name in ("fcntl", "termios", "resource", "pwd", "numba", "llvmlite", "safetensors", "typer"):
    sys.modules[name] = None


def start(thread):
    raise RuntimeError("can't start new thread")


threading.Thread.start = start

import numpy as np
from numba_rnn import RNN, TimeGRU, TimeLSTM, TimeRNN, explain, viz
from numba_rnn.models import Rnnlm
from numba_rnn.training import Adam, Trainer, TruncatedBPTT

xs = np.ones((2, 5, 3), np.float32)
for Layer in (TimeRNN, TimeLSTM, TimeGRU):
    layer = Layer.create(3, 4, rng=0)
    layer.backward(layer.forward(xs, trace=True))
model, blocks = Rnnlm(20, 8, 8, rng=0), TruncatedBPTT(np.arange(400) % 20, 4, 10)
Trainer(model, Adam(lr=0.01), blocks, max_norm=1.0, progress=False).fit(max_epochs=1)
viz.graph(RNN.create(2, 2, rng=0), np.ones((1, 2), np.float32))
print(explain().engine)
"""


def test_a_python_without_a_compiler_threads_and_locks_will_do():
    done = subprocess.run([sys.executable, "-c", BROWSER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "numpy"


# ---- the lecture's headings are answered

ROW = re.compile(
    r"^\| (?P<lecture>.+?) \| \[\d\]\((?P<notebook>\w+\.ipynb)\) \| (?P<section>.+) \|$"
)


def answers():
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    return [match for match in map(ROW.match, text.splitlines()) if match]


@pytest.mark.parametrize("row", answers(), ids=lambda row: row["lecture"])
def test_a_heading_of_the_lecture_has_its_section(row):
    cells = read(ROOT / "notebooks" / row["notebook"]).cells
    headings = [
        line
        for cell in cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    assert any(row["section"] in heading for heading in headings), headings


def test_every_notebook_is_listed():
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in text for path in NOTEBOOKS)
    assert len(answers()) > 30
