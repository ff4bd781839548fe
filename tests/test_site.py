"""The site: it builds without a warning, and no link in it or in the repository's pages leads
nowhere."""

import ast
import json
import os
import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import numba_rnn

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
    *(ROOT / f"{room}/README.md" for room in ("benchmarks", "notebooks")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
PUBLIC = (
    "layers", "training", "models", "bridges", "book", "torch", "sklearn", "diagnostics", "viz",
)  # fmt: skip


# ---- pages as they lie in the repository


def anchors(page):
    """Those of a page's headings, as where repositories are hosted."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text("utf-8"), flags=re.S | re.M)
    found = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in found}


def broken_links(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8").replace("`", ""))
    for link in links:
        address = urlsplit(link)
        if address.scheme:
            continue
        target = (page.parent / unquote(address.path)).resolve() if address.path else page
        inside = target.is_relative_to(ROOT) and target.exists()
        if not inside or (address.fragment and address.fragment not in anchors(target)):
            yield link


@pytest.mark.parametrize("name", NAMES)
def test_links_between_pages_and_files(name):
    assert not list(broken_links(ROOT / name))


def test_a_broken_link_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](nowhere.md) [b](#not-here) [c](#its-title)\n\n# It's `title`?\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "ROOT", tmp_path)
        assert list(broken_links(page)) == ["nowhere.md", "#not-here"]


@pytest.mark.parametrize("name", NAMES)
def test_commands_name_files_that_exist(name):
    text = (ROOT / name).read_text("utf-8")
    named = re.findall(r"(?<![\w/.])((?:tests|notebooks|examples|docs)/[\w/]+\.\w+)", text)
    missing = [path for path in named if not (ROOT / path).is_file()]
    missing += [
        module
        for module in re.findall(r"python -m (benchmarks\.\w+)", text)
        if not ((ROOT / module.replace(".", "/")).is_dir()
                or (ROOT / f"{module.replace('.', '/')}.py").is_file())
    ]  # fmt: skip
    assert not missing


def code_in(name):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.S | re.M)


EXAMPLES = {
    f"{name} {k}": code
    for name in NAMES
    if name != "README.md" and not name.startswith("docs/guide/")  # those are in test_docs.py
    for k, code in enumerate(code_in(name))
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_in_pages_run(example, capsys):
    exec(compile(example_source(example), example, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


def example_source(example):
    """The code; what derives a cell reads its source, so it is where Python looks for sources."""
    import linecache

    code = EXAMPLES[example]
    linecache.cache[example] = len(code), None, code.splitlines(keepends=True), example
    return code


def test_there_are_examples():
    assert len(EXAMPLES) >= 6


# ---- the site


class Page(HTMLParser):
    """The anchors of a page, where it leads to, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        loads = tag in ("script", "img", "iframe", "source", "video") and found.get("src")
        loads = loads or (tag == "link" and found.get("rel") == "stylesheet" and found["href"])
        if loads and not loads.startswith("data:"):
            self.loaded.append(loads)


parsed = cache(Page)


def test_every_link_in_the_site_leads_somewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 100
    nowhere = set()
    for page in pages:
        for link in parsed(page).links + parsed(page).loaded:
            address = urlsplit(link)
            if address.scheme or address.netloc or page.name == "404.html":
                continue
            target = page.parent / unquote(address.path) if address.path else page
            target = Path(os.path.normpath(target))
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(address.fragment)
            if not target.is_file() or (anchor and anchor not in parsed(target).anchors):
                nowhere.add((page.relative_to(site).as_posix(), link))
    assert not nowhere


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = {link for page in site.rglob("*.html") for link in parsed(page).loaded}
    assert loaded
    assert not [link for link in loaded if urlsplit(link).netloc]


def test_formulas_of_notebooks_are_set(site):
    notebook = (site / "notebooks" / "custom_cell.html").read_text("utf-8")
    assert "<mi>&#x003C3;</mi>" in notebook  # sigma
    assert "\\sigma" not in notebook
    assert notebook.count("<mtr>") == 3  # the lines of aligned equations
    headings = (site / "notebooks" / "index.html").read_text("utf-8")
    assert "<mi>tanh</mi>" in headings
    assert "$" not in re.sub(r"<(pre|code|script|style).*?</\1>", "", headings, flags=re.S)


def test_every_picture_of_a_notebook_is_on_its_page(site):
    animations = 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = (site / "notebooks" / f"{path.stem}.html").read_text("utf-8")
        cells = json.loads(path.read_text("utf-8"))["cells"]
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            kinds = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
            for kind in kinds:
                stored = "".join(output["data"][kind]).replace("\n", "")
                shown = page.replace("\n", "").count(f"data:{kind};base64,{stored}")
                assert shown == 1, (path.name, kind)
                animations += kind == "image/gif"
        assert "IPython.core.display" not in page, path.name
    assert animations >= 2


def test_pages_of_the_site_are_those_of_the_repository(site):
    pages = [f"guide/{page.stem}" for page in (ROOT / "docs" / "guide").glob("*.md")]
    pages += ["index", "contributing", "changelog", "security", "benchmarks", "rooms/cells"]
    for page in [*pages, "notebooks/custom_cell"]:
        assert (site / f"{page}.html").is_file(), page
    lstm = (site / "source/kernels/cells/lstm.py.html").read_text("utf-8")
    assert "forget gate" in lstm
    assert not (site / "tools").exists()


def test_a_file_that_a_docstring_names_is_a_link(site):
    links = parsed(site / "reference" / "layers.html").links
    assert "../source/kernels/cells/lstm.py.html" in links


def public(room):
    """The names in a room's __all__, read without an import, which may want another library."""
    for node in ast.parse((ROOT / "numba_rnn" / room / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(room)


def test_every_public_name_is_in_the_reference(site):
    for room in PUBLIC:
        # where a page shows the names of a room's only file, they are there under its name
        there = {
            anchor.rpartition(".")[2]
            for anchor in parsed(site / "reference" / f"{room}.html").anchors
            if anchor.startswith(f"numba_rnn.{room}.")
        }
        missing = public(room) - there - {"Table"}  # the name of a type, not documented
        assert not missing, room
    modules = {"backend", "cells", "functional", "functions"}
    names = {
        "functional": set(numba_rnn.functional.__all__),
        "numba_rnn": set(numba_rnn.__all__) - modules - public("layers"),
    }
    for page, wanted in names.items():
        here = {a.rpartition(".")[2] for a in parsed(site / "reference" / f"{page}.html").anchors}
        assert wanted <= here
