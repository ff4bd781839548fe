"""Every notebook runs from its first cell to its last, and what is stored in it can be shown."""

import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

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
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
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
