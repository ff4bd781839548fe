"""A hook of MkDocs: it adds pages from the checkout beside docs/ to the site.

- README.md is start.md, CONTRIBUTING.md contributing.md, and so on (PAGES)
- notebooks are pages, as they are stored; their formulas become MathML, so that nothing is loaded
  from elsewhere, their animations HTML, as nbconvert shows no GIF, and their pictures have texts
- NAME.ko.md and NAME.ko.ipynb are the Korean of NAME: each page links the other, and links between
  pages lead to Korean ones where there are
- notebooks are slides, too (slides.py)
- modules, and files that a page links to, are pages too, under source/
- links are those of the checkout, which work on a file server of Git as well; here they are led
  to those pages
- ``kernels/`` is put into ``numba_rnn`` where it is once installed, for the API reference
"""

import json
import os
import re
import shutil
import sys
import tempfile
from functools import partial
from html import unescape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from latex2mathml.converter import convert
from markdown.extensions.toc import nest_toc_tokens
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.toc import get_toc
from pymdownx.slugs import slugify

sys.path.append(str(Path(__file__).parent))
import slides
from notebook_pictures import with_pictures

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "start.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "notebooks/README.md": "notebooks/index.md",
    "benchmarks/README.md": "benchmarks.md",
}
ORIGINS = {page: origin for origin, page in PAGES.items()}
PICTURES = (".png", ".gif", ".svg")
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json"}
anchor_of = partial(slugify(case="lower"), sep="-")
SECTION = re.compile(r"^(\| .+ \| \[\d\]\((\w+\.ipynb)\) \| )(.+) \|$", re.M)
LECTURE = "notebooks/README.md"
KOREAN = "한국어"
NOTEBOOKS_IN = "Notebooks", KOREAN  # parts of the navigation
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")
NAMED_FILE = re.compile(r"<code>([\w/]+\.py)</code>")
HREF = re.compile(r'(?<=href=")([^"#:]+)')

TEXT_CELL = re.compile(r'<div class="[^"]*jp-RenderedMarkdown.*?</div>', re.S)
FORMULA = re.compile(r"(<pre.*?</pre>|<code.*?</code>)|\$\$(.+?)\$\$|\$(.+?)\$", re.S)
MATHJAX = re.compile(r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", re.S)
HEADING = re.compile(r'<h(\d) id="[^"]*">(.*?)<a class="anchor-link" href="[^"]*"', re.S)

_installed = ""  # a folder with numba_rnn as it is once installed, and the notebooks


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config: Any) -> Any:
    """Lay the package out as it is installed, and let notebooks be in the navigation."""
    global _installed
    _clean_up()
    _installed = tempfile.mkdtemp(prefix="numba_rnn-docs-")
    without = shutil.ignore_patterns("__pycache__")
    for room, place in (("numba_rnn", "numba_rnn"), ("kernels", "numba_rnn/kernels")):
        shutil.copytree(ROOT / room, Path(_installed, place), ignore=without)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_installed]
    for part in config.nav or []:
        for name, pages in part.items():
            if name in NOTEBOOKS_IN:
                pages += [path for path in _notebooks() if is_korean(path) == (name == KOREAN)]
    return config


def on_post_build(config: Any) -> None:
    for notebook in _notebooks():
        to_site = partial(_from_slides, notebook)
        slides.write(ROOT / notebook, Path(config.site_dir, "slides"), with_formulas, to_site)
    _clean_up()


def _from_slides(notebook: str, link: str) -> str:
    """A link of a notebook in its slides: to other slides, or to a page."""
    path, mark, anchor = link.partition("#")
    found = target_of(path, notebook)
    if found is None:
        return link
    place = PurePosixPath(place_of(_in_language(found, notebook)))
    if place.suffix == ".ipynb":
        return f"{place.stem}.html"
    return f"../{place.with_suffix('.html') if place.suffix == '.md' else place}{mark}{anchor}"


def on_build_error(**_: Any) -> None:
    _clean_up()


def _clean_up() -> None:
    shutil.rmtree(_installed, ignore_errors=True)


def _notebooks() -> list[str]:
    return sorted(f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb"))


def is_korean(path: str) -> bool:
    return PurePosixPath(path).suffixes[:-1] == [".ko"]


def other_language(path: str) -> str:
    """NAME.ko.md for NAME.md, and the other way round."""
    stem, dot, suffix = path.rpartition(".")
    return stem.removesuffix(".ko") + (dot if is_korean(path) else ".ko.") + suffix


def place_of(path: str) -> str:
    """Where a file of the checkout is in the site, both by their paths."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/") and not path.startswith("docs/tools/"):
        return path.removeprefix("docs/")
    if path.endswith(".ipynb"):
        return path
    return f"source/{path}" + ("" if path.endswith(PICTURES) else ".md")


def target_of(link: str, origin: str) -> str | None:
    """The file of the checkout that a link in another one means; None if there is none."""
    path = os.path.normpath(ROOT / PurePosixPath(origin).parent / link)
    if os.path.isdir(path):
        within = [name for name in ("README.md", "__init__.py") if Path(path, name).is_file()]
        path = os.path.join(path, *within[:1])
    if not os.path.isfile(path) or not Path(path).is_relative_to(ROOT):
        return None
    return Path(path).relative_to(ROOT).as_posix()


@event_priority(100)  # before mkdocs-jupyter, which looks for notebooks
def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    texts = [file.src_uri for file in files.documentation_pages()]
    origins = [*PAGES, *(f"docs/{uri}" for uri in texts)]
    for origin, page in PAGES.items():
        path = str(ROOT / origin)
        files.append(File.generated(config, page, content=Path(path).read_text("utf-8")))
    for notebook in _notebooks():
        copy = Path(_installed, notebook)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(with_pictures(ROOT / notebook), "utf-8")
        site = config.site_dir, config.use_directory_urls
        files.append(File(notebook, _installed, *site))
    wanted = {path.relative_to(ROOT).as_posix() for room in ("kernels", "numba_rnn")
              for path in (ROOT / room).rglob("*.py")}  # fmt: skip
    for origin in (*origins, *_notebooks()):
        text = (ROOT / origin).read_text("utf-8")
        wanted |= {found for link in LINK.findall(text) if (found := target_of(link, origin))}
    there = {file.src_uri for file in files}
    for path in sorted(wanted):
        if (place := place_of(path)) not in there:
            files.append(_source(path, place, config))
    return files


def _source(path: str, place: str, config: Any) -> File:
    """A file as it is: a picture, or a page of text."""
    if path.endswith(PICTURES):
        return File.generated(config, place, abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text("utf-8")
    language = LANGUAGES.get(PurePosixPath(path).suffix, "text")
    content = (
        f"---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n"
        f"# {path.replace('_', chr(92) + '_')}\n\n"
        f'~~~~~~~~ {{ .{language} linenums="1" }}\n{text}\n~~~~~~~~\n'
    )
    return File.generated(config, place, content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to files of the checkout to their pages."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    origin = ORIGINS.get(here, f"docs/{here}")

    def led(match: re.Match[str]) -> str:
        found = target_of(match[1], origin)
        return _relative(place_of(_in_language(found, here)), here) if found else match[1]

    return LINK.sub(led, with_sections(markdown) if here == PAGES[LECTURE] else markdown)


def _in_language(target: str, here: str) -> str:
    """On a Korean page the Korean of a file, if there is one."""
    korean = other_language(target)
    return korean if is_korean(here) and (ROOT / korean).is_file() else target


def with_sections(markdown: str) -> str:
    """The table of the lecture's headings, in which sections are links as well."""

    def row(match: re.Match[str]) -> str:
        before, notebook, section = match.groups()
        text = (ROOT / "notebooks" / notebook).read_text("utf-8")
        lines = (line for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"
                 for line in "".join(cell["source"]).splitlines())  # fmt: skip
        found = [line.lstrip("# ") for line in lines if line.startswith("#") and section in line]
        if not found:
            return match[0]
        heading = section if section in found else found[0]
        page = notebook.replace(".ipynb", ".html")
        return f'{before}<a href="{page}#{quote(anchor_of(heading))}">{section}</a> |'

    return SECTION.sub(row, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """The same in notebooks, which come as HTML; and link files that docstrings name."""
    here = page.file.src_uri
    if here.startswith("reference/"):
        return NAMED_FILE.sub(lambda name: _linked(name, page.file, files), html)
    if not here.endswith(".ipynb"):
        html = with_formulas(html) if here == PAGES[LECTURE] else html
        return _page_links(page.file, files) + html
    headings: dict[str, dict[str, Any]] = {}

    def heading(match: re.Match[str]) -> str:  # mkdocs-jupyter's anchors have no Hangul
        level, name = match.groups()
        anchor = again = anchor_of(unescape(re.sub("<[^>]+>", "", name)))
        while again in headings:
            again = f"{anchor}_{len(headings)}"
        headings[again] = {"level": int(level), "id": again, "name": with_formulas(name)}
        return f'<h{level} id="{again}">{name}<a class="anchor-link" href="#{again}"'

    html = HEADING.sub(heading, MATHJAX.sub("", html))
    html = TEXT_CELL.sub(lambda cell: with_formulas(cell[0]), html)
    page.toc = get_toc(nest_toc_tokens(list(headings.values())))  # mkdocs-jupyter's lacks code

    def led(match: re.Match[str]) -> str:
        found = target_of(match[1], here)
        place = place_of(_in_language(found, here)) if found else ""
        file = files.get_file_from_path(place) if found else None
        return file.url_relative_to(page.file) if file else match[1]

    return _page_links(page.file, files) + HREF.sub(led, html)


def _page_links(file: File, files: Files) -> str:
    """Links to the same page in the other language, and to its slides."""
    here, links = file.src_uri, list[str]()
    if other := files.get_file_from_path(other_language(here)):
        code, name = ("en", "English") if is_korean(here) else ("ko", KOREAN)
        address = other.url_relative_to(file)
        links.append(f'<a href="{address}" lang="{code}" hreflang="{code}">{name}</a>')
    if here.endswith(".ipynb"):
        name = "슬라이드" if is_korean(here) else "Slides"
        links.append(f'<a href="../slides/{PurePosixPath(here).stem}.html">{name}</a>')
    return f'<p class="page-links">{" · ".join(links)}</p>' if links else ""


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Korean pages say that they are, to readers aloud and to scripts."""
    return (
        output.replace('<html lang="en"', '<html lang="ko"')
        if is_korean(page.file.src_uri)
        else output
    )


def _linked(name: re.Match[str], here: File, files: Files) -> str:
    """The path of a file of the checkout as a link to its page; anything else as it is."""
    found = target_of(name[1], "README.md")
    file = files.get_file_from_path(place_of(found)) if found else None
    return f'<a href="{file.url_relative_to(here)}">{name[0]}</a>' if file else name[0]


def with_formulas(html: str) -> str:
    """TeX between dollars as MathML, which browsers know by themselves."""

    def formula(match: re.Match[str]) -> str:
        code, block, inline = match.groups()
        tex = unescape(block or inline or "").replace("{aligned}", "{align*}")  # the one it knows
        return code or convert(tex, display="block" if block else "inline")

    return FORMULA.sub(formula, html)


def _relative(place: str, here: str) -> str:
    return os.path.relpath(place, PurePosixPath(here).parent).replace(os.sep, "/")
