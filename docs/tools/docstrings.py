"""Docstrings, which are plain text laid out by hand, as Markdown that reads the same.

    name     what it is          a table
    other    and this

        code, or a picture       stays as it is, so does what is indented

    >>> 1 + 1                    a doctest is highlighted
    2

All else is running text, in which nothing but ``code``, *emphasis* and **more** is markup. A file
that is named as code is a link to its page.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"(\S(?:.*?\S)?) {2,}(\S.*)")  # a name, a gap, what it means
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.S)


class PlainDocstrings(griffe.Extension):
    """Turns all docstrings of a package into Markdown once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        todo: list[Any] = [pkg]
        while todo:
            item = todo.pop()
            if item.is_alias:
                continue
            if item.docstring:
                folder = Path(item.filepath).parent if item.filepath else ROOT
                link = link_from(folder)
                item.docstring.value = markdown(item.docstring.value, link)
            todo += item.members.values()


def file_named(name: str, folder: Path) -> Path | None:
    """The file of the checkout that a docstring in ``folder`` means: the nearest of that name."""
    if not re.fullmatch(r"[\w./]+\.(py|txt|toml|ipynb)", name):
        return None
    for place in (folder, *folder.parents, ROOT, ROOT / "numba_rnn"):
        if (place / name).is_file() and place.is_relative_to(ROOT):
            return (place / name).resolve()
    return None


def link_from(folder: Path) -> Callable[[str], str]:
    """What makes a reference of a file's name: [`name`][its anchor], else just `name`."""
    parts = folder.parts
    if "numba_rnn" in parts and not folder.is_relative_to(ROOT):  # a copy: back to the checkout
        inside = parts[len(parts) - parts[::-1].index("numba_rnn") :]
        inside = inside if inside[:1] == ("kernels",) else ("numba_rnn", *inside)
        folder = ROOT.joinpath(*inside)

    def link(name: str) -> str:
        found = file_named(name, folder)
        if found is None or found.suffix == ".ipynb":
            return f"`{name}`"
        return f"[`{name}`][{found.relative_to(ROOT).as_posix()}]"

    return link


def markdown(text: str, link: Callable[[str], str] = "`{}`".format) -> str:
    """A docstring as Markdown."""
    return "\n\n".join(_block(block, link) for block in _blocks(text.expandtabs().split("\n")))


def _kind(line: str) -> str:
    if line.lstrip().startswith(">>>"):
        return "doctest"
    return "indented" if line.startswith("  ") else "text"


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """The paragraphs; what is indented is one block, across empty lines."""
    block: list[str] = []
    for k, line in enumerate(lines):
        if not line.strip():
            after = next((later for later in lines[k:] if later.strip()), "")
            if block and _kind(block[0]) == _kind(after) == "indented":
                block.append("")
                continue
            if block:
                yield block
            block = []
            continue
        if block and _kind(line) == "doctest" and _kind(block[0]) != "doctest":
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _block(lines: list[str], link: Callable[[str], str]) -> str:
    kind = _kind(lines[0])
    if kind == "doctest":
        return _fence("pycon", lines)
    if kind == "indented":
        return _fence("python" if _is_python(lines) else "text", lines)
    if ROW.fullmatch(lines[0]):
        return _table(lines, link)
    if lines[0].startswith(("- ", "* ")):
        items = re.split(r"^[-*] ", "\n".join(lines), flags=re.M)[1:]
        return "\n".join("- " + _inline(" ".join(item.split()), link) for item in items)
    for k, line in enumerate(lines):  # a sentence right above a table, or above an indented block
        if k and (_kind(line) == "indented" or ROW.fullmatch(line)):
            return _block(lines[:k], link) + "\n\n" + _block(lines[k:], link)
    return _inline(re.sub(r"::$", ":", "\n".join(lines)), link)


def _fence(language: str, lines: list[str]) -> str:
    return f"~~~{language}\n{textwrap.dedent(chr(10).join(lines))}\n~~~"


def _is_python(lines: list[str]) -> bool:
    try:
        return bool(ast.parse(textwrap.dedent("\n".join(lines))).body)
    except SyntaxError:
        return False


def _table(lines: list[str], link: Callable[[str], str]) -> str:
    rows: list[tuple[str, str]] = []
    for line in lines:
        row = ROW.fullmatch(line)
        if line.startswith(" "):
            rows[-1] = rows[-1][0], f"{rows[-1][1]} {line.strip()}"
        elif row:
            rows.append((row[1], row[2]))
        else:  # a name too long for a gap
            name, _, meaning = line.partition(" ")
            rows.append((name, meaning))
    cells = [(_inline(n if "`" in n else f"``{n}``", link), _inline(m, link)) for n, m in rows]
    body = "".join(f"\n| {name} | {meaning} |" for name, meaning in cells)
    return f"| | |\n|---|---|{body}"


def _inline(text: str, link: Callable[[str], str]) -> str:
    text = re.sub(r":\w+:(?=`)", "", text)
    parts = CODE.split(text)
    for k, part in enumerate(parts):
        parts[k] = link(part.strip("`")).replace("|", "\\|") if k % 2 else _escaped(part)
    return "".join(parts)


def _escaped(text: str) -> str:
    text = re.sub(r"([\\`*_\[\]>|#])", r"\\\1", text).replace("<", "&lt;")
    text = re.sub(r"\\\*\\\*(\w[^*]*?\w)\\\*\\\*", r"**\1**", text)
    text = re.sub(r"(?<![\w\\*])\\\*(\w[^*\\]*\w)\\\*(?!\w)", r"*\1*", text)
    return re.sub(r"^(\s*)([-+]|\d+\.) ", r"\1\\\2 ", text, flags=re.M)
