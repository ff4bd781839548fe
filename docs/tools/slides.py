"""Slides of a notebook, by nbconvert and reveal.js: a section is a slide, its cells stand below."""

import re
import shutil
from collections.abc import Callable
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import FileSystemLoader
from nbconvert import SlidesExporter
from notebook_pictures import with_pictures

ROWS = 12  # of code beside a picture; longer code is left to the notebook
HIDDEN = {"solution", "install"}  # tags of cells that are no part of a lecture
BRIEF = 450  # letters of a text that stands above the code it speaks of
TEXT_CELL = re.compile(r'<div class="[^"]*jp-RenderedMarkdown.*?</div>', re.S)
LINK = re.compile(r'(?<=href=")(?![a-z]+:|#|reveal/)([^"]+)')


def write(
    notebook: Path, folder: Path, with_formulas: Callable[[str], str], led: Callable[[str], str]
) -> None:
    """Write the slides of a notebook into a folder, with the files of reveal.js beside them.

    with_formulas  makes MathML of TeX
    led            makes of a link in the notebook one in the slides
    """
    content = nbformat.reads(with_pictures(notebook), as_version=4)
    content.cells = _as_slides(content.cells)
    korean = notebook.stem.endswith(".ko")
    exporter = SlidesExporter(
        extra_loaders=[FileSystemLoader(Path(__file__).parent)], template_file="slides.html.j2",
        language_code="ko" if korean else "en", reveal_url_prefix="reveal", reveal_theme="slides",
    )  # fmt: skip
    title = content.cells[0].source.splitlines()[0].strip("# ")
    html, _ = exporter.from_notebook_node(content, {"metadata": {"name": title}})
    html = TEXT_CELL.sub(lambda cell: with_formulas(cell[0]), html)
    html = LINK.sub(lambda link: led(unescape(link[1])), html)
    folder.mkdir(exist_ok=True)
    (folder / f"{notebook.stem}.html").write_text(html, "utf-8")
    _copy_reveal(folder)


def _copy_reveal(folder: Path) -> None:
    spec = find_spec("sphinx_revealjs")  # it brings reveal.js; nothing of Sphinx runs
    if spec is None or not spec.submodule_search_locations:
        raise ImportError('slides need reveal.js: pip install -e ".[docs]"')
    source, copy = (
        Path(spec.submodule_search_locations[0], "_static", "revealjs"),
        folder / "reveal",
    )
    (copy / "dist" / "theme").mkdir(parents=True, exist_ok=True)
    for name in ("LICENSE", "dist/reset.css", "dist/reveal.css", "dist/reveal.js"):
        shutil.copy(source / name, copy / name)
    shutil.copy(Path(__file__).with_name("slides.css"), copy / "dist" / "theme")


def _as_slides(cells: list[Any]) -> list[Any]:
    """The cells, cut at headings, each with its place among the slides."""
    found: list[Any] = []
    for cell in cells:
        if cell.cell_type == "markdown":
            parts = re.split(r"^(?=##? )", cell.source, flags=re.M)
            found += [nbformat.v4.new_markdown_cell(part) for part in parts if part.strip()]
        elif HIDDEN & set(cell.metadata.get("tags", [])):
            continue
        elif cell.outputs or found[-1].source.startswith("##"):
            found.append(cell)
    before = None
    for cell in found:
        kind = "subslide"
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            kind = "slide"
        elif before is not None and cell.cell_type == "code" and before.cell_type == "markdown":
            kind = "-" if len(before.source) <= BRIEF else kind
        cell.metadata["slideshow"] = {"slide_type": kind}
        if cell.cell_type == "code" and _has_picture(cell) and cell.source.count("\n") >= ROWS:
            cell.metadata["transient"] = {"remove_source": True}
        before = cell
    return found


def _has_picture(cell: Any) -> bool:
    return any("<img " in output.get("data", {}).get("text/html", "") for output in cell.outputs)
