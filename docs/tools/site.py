"""A hook of MkDocs: it adds pages from the checkout beside docs/ to the site.

- README.md is the home page, CONTRIBUTING.md contributing.md, and so on (PAGES)
- notebooks are pages, as they are stored; their formulas become MathML, so that nothing is loaded
  from elsewhere, and their animations HTML, as nbconvert shows no GIF
- modules, and files that a page links to, are pages too, under source/
- links are those of the checkout, which work on a file server of Git as well; here they are led
  to those pages
- ``kernels/`` is put into ``numba_rnn`` where it is once installed, for the API reference
"""

import json
import os
import re
import shutil
import tempfile
from html import unescape
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from markdown.extensions.toc import nest_toc_tokens
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.toc import get_toc

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "notebooks/README.md": "notebooks/index.md",
    "benchmarks/README.md": "benchmarks.md",
}
ORIGINS = {page: origin for origin, page in PAGES.items()}
PICTURES = (".png", ".gif", ".svg")
SHOWN = ("image/svg+xml", "image/png", "image/jpeg")  # by nbconvert
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json"}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")
NAMED_FILE = re.compile(r"<code>([\w/]+\.py)</code>")
HREF = re.compile(r'(?<=href=")([^"#:]+)')

TEXT_CELL = re.compile(r'<div class="[^"]*jp-RenderedMarkdown.*?</div>', re.S)
FORMULA = re.compile(r"(<pre.*?</pre>|<code.*?</code>)|\$\$(.+?)\$\$|\$(.+?)\$", re.S)
MATHJAX = re.compile(r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", re.S)
HEADING = re.compile(r'<h(\d) id="([^"]+)">(.*?)<a class="anchor-link"', re.S)

_installed = ""  # a folder with numba_rnn as it is once installed, and the notebooks


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config: Any) -> Any:
    """Lay the package out as it is installed, and let notebooks be in the navigation."""
    global _installed
    on_post_build()
    _installed = tempfile.mkdtemp(prefix="numba_rnn-docs-")
    without = shutil.ignore_patterns("__pycache__")
    for room, place in (("numba_rnn", "numba_rnn"), ("kernels", "numba_rnn/kernels")):
        shutil.copytree(ROOT / room, Path(_installed, place), ignore=without)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_installed]
    for part in config.nav or []:
        part |= {name: pages + _notebooks() for name, pages in part.items() if name == "Notebooks"}
    return config


def on_post_build(**_: Any) -> None:
    shutil.rmtree(_installed, ignore_errors=True)


def on_build_error(**_: Any) -> None:
    on_post_build()


def _notebooks() -> list[str]:
    return sorted(f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb"))


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
        copy.write_text(with_animations((ROOT / notebook).read_text("utf-8")), "utf-8")
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
        return _relative(place_of(found), here) if found else match[1]

    return LINK.sub(led, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """The same in notebooks, which come as HTML; and link files that docstrings name."""
    here = page.file.src_uri
    if here.startswith("reference/"):
        return NAMED_FILE.sub(lambda name: _linked(name, page.file, files), html)
    if not here.endswith(".ipynb"):
        return with_formulas(html) if here == PAGES["notebooks/README.md"] else html
    html = TEXT_CELL.sub(lambda cell: with_formulas(cell[0]), MATHJAX.sub("", html))
    found = HEADING.findall(html)
    headings = [{"level": int(level), "id": at, "name": name} for level, at, name in found]
    page.toc = get_toc(nest_toc_tokens(headings))  # mkdocs-jupyter's leaves out code

    def led(match: re.Match[str]) -> str:
        found = target_of(match[1], here)
        file = files.get_file_from_path(place_of(found)) if found else None
        return file.url_relative_to(page.file) if file else match[1]

    return HREF.sub(led, html)


def _linked(name: re.Match[str], here: File, files: Files) -> str:
    """The path of a file of the checkout as a link to its page; anything else as it is."""
    found = target_of(name[1], "README.md")
    file = files.get_file_from_path(place_of(found)) if found else None
    return f'<a href="{file.url_relative_to(here)}">{name[0]}</a>' if file else name[0]


def with_animations(notebook: str) -> str:
    """A notebook whose GIFs are HTML; nbconvert would print their description instead."""
    content = json.loads(notebook)
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
    for data in (output.get("data", {}) for output in outputs):
        for kind in [k for k in data if k.startswith("image/") and k not in SHOWN]:
            picture = "".join(data[kind]).replace("\n", "")  # nbformat may have it in lines
            data["text/html"] = f'<img alt="animation" src="data:{kind};base64,{picture}">'
    return json.dumps(content)


def with_formulas(html: str) -> str:
    """TeX between dollars as MathML, which browsers know by themselves."""

    def formula(match: re.Match[str]) -> str:
        code, block, inline = match.groups()
        tex = unescape(block or inline or "").replace("{aligned}", "{align*}")  # the one it knows
        return code or convert(tex, display="block" if block else "inline")

    return FORMULA.sub(formula, html)


def _relative(place: str, here: str) -> str:
    return os.path.relpath(place, PurePosixPath(here).parent).replace(os.sep, "/")
