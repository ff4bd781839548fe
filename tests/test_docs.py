"""Every example in the README and in docstrings runs."""

import doctest
import importlib
import os
import pkgutil
import re
from pathlib import Path

import pytest

import numba_rnn

os.environ["KERAS_BACKEND"] = "torch"  # Keras' own choice is TensorFlow, which no extra brings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)
MODULES = [
    m.name
    for m in pkgutil.walk_packages(numba_rnn.__path__, "numba_rnn.")
    if "__main__" not in m.name
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_readme_example_runs(example, capsys):
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_readmes_library_example_learns(capsys):
    library = EXAMPLES[0]
    exec(compile(library, "README.md", "exec"), {})
    after = float(capsys.readouterr().out.split()[0])
    exec(compile(library.replace("range(100)", "range(1)"), "README.md", "exec"), {})
    assert after < 0.5 * float(capsys.readouterr().out.split()[0])


def test_links_in_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


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


def test_readme_names_every_option_it_uses():
    from typer.main import get_command

    from numba_rnn.cli import app

    known = {"-e", "--cells"}  # pip's; the one before all commands
    for command in get_command(app).commands.values():
        known |= {option for parameter in command.params for option in parameter.opts}
    used = set(
        re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(re.findall(r"numba-rnn .*", README)))
    )
    assert used <= known, used - known
