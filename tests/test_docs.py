"""Every example in the README, in the guide and in docstrings runs."""

import doctest
import importlib
import linecache
import os
import pkgutil
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import numba_rnn

os.environ["KERAS_BACKEND"] = "torch"  # Keras' own choice is TensorFlow, which no extra brings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
TEXT = "\n".join([README, *(page.read_text("utf-8") for page in GUIDE)])
EXAMPLES = {
    f"{page.name} {k}": code
    for page in (ROOT / "README.md", *GUIDE)
    for k, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S))
}
# kernels/ is not in the folder of numba_rnn in a checkout
KERNELS = ("engine", "step_options", "cells", "cells.cell", "cells.decorator")
ABSENT = {f"numba_rnn.{name}" for name in ("aeon", "sktime") if find_spec(name) is None}
MODULES = sorted(
    {
        *(m.name for m in pkgutil.walk_packages(numba_rnn.__path__, "numba_rnn.")),
        *(f"numba_rnn.kernels.{name}" for name in KERNELS),
    }
    - {"numba_rnn.__main__", *ABSENT}
)


def run(code, name):
    """Run code that Python finds under a name: what derives a cell reads its source."""
    linecache.cache[name] = len(code), None, code.splitlines(keepends=True), name
    exec(compile(code, name, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("name", EXAMPLES)
def test_readme_and_guide_example_runs(name, capsys):
    run(EXAMPLES[name], name)
    assert capsys.readouterr().out.strip()


def test_the_readmes_quick_start_learns(capsys):
    """As well as the README says; labels that are drawn are right half of the time."""
    code = EXAMPLES["README.md 0"]
    assert len(code.strip().splitlines()) - code.count("\n\n") <= 12
    said = float(re.search(r"prints about (0\.\d+)", README)[1])

    def right():
        return float(capsys.readouterr().out.split("right:")[1])

    run(code, "quick start")
    assert abs(right() - said) <= 0.03
    run(
        code.replace("max_epochs=5", "max_epochs=1").replace("Adam(0.01)", "Adam(1e-9)"),
        "untrained",
    )
    assert right() < said - 0.2


def test_the_readme_is_short_and_links_to_every_page_of_the_guide():
    assert len(README.splitlines()) <= 160
    links = set(re.findall(r"\]\(([^)#]+)\)", README))
    assert {f"docs/guide/{page.name}" for page in GUIDE} <= links


def test_links_in_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_documented_version_is_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    version, date = re.search(r"^## \[([\d.]+)\] - ([\d-]+)$", changes, re.M).groups()
    assert project["version"] == numba_rnn.__version__ == version
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation
    assert f"version = {{{version}}}" in README
    assert f"version {version.rpartition('.')[0]}," in README


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder()
    found = [
        test.name
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    ]
    assert len(found) >= 8


def test_every_public_name_is_documented():
    for name in numba_rnn.__all__:
        assert getattr(numba_rnn, name).__doc__, name


def test_commands_use_options_that_exist():
    from typer.main import get_command

    from numba_rnn.cli import app

    known = {"-e", "--cells"}  # pip's; the one before all commands
    for command in get_command(app).commands.values():
        known |= {option for parameter in command.params for option in parameter.opts}
    used = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(re.findall(r"numba-rnn .*", TEXT))))
    assert used <= known, used - known
