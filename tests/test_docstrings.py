"""Docstrings of the reference: numpydoc that griffe, and so the site, reads without a warning."""

import inspect
import logging
import re
import shutil
from pathlib import Path
from typing import get_overloads

import griffe
import pytest

from numba_rnn import cell
from numba_rnn.kernels.cells.options import CHOICE, OPTIONS

ROOT = Path(__file__).resolve().parents[1]
SHOWN = re.compile(r"^::: (\S+)\n(?:(?: .*\n)*? +members: \[(.*)\])?", re.M)  # on a reference page


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The objects on the pages in docs/reference/, by path, and all that their classes inherit."""
    folder = tmp_path_factory.mktemp("installed")
    for room, place in (("numba_rnn", "numba_rnn"), ("kernels", "numba_rnn/kernels")):
        shutil.copytree(ROOT / room, folder / place, ignore=shutil.ignore_patterns("__pycache__"))
    loader = griffe.GriffeLoader(search_paths=[folder])
    package = loader.load("numba_rnn", try_relative_path=False)
    loader.resolve_aliases(implicit=False)
    found = {}
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name, members in SHOWN.findall(page.read_text("utf-8")):
            shown = package[name.removeprefix("numba_rnn.")]
            found |= public(shown, set(members.split(", ")) if members else None)
    return found


def public(thing, names=None):
    """A thing and its public members by path: of a module those that ``__all__`` or names has."""
    if thing.is_alias:
        thing = thing.final_target
    found, members = {thing.path: thing}, {}
    if thing.is_module:
        names = set(thing.exports or ()) if names is None else names
        members = {name: thing[name] for name in names}
    elif thing.is_class:
        ours = {n: m for n, m in thing.inherited_members.items() if "numba_rnn" in m.target_path}
        members = {n: m for n, m in (ours | thing.members).items() if not n.startswith("_")}
    for member in members.values():
        found |= public(member)
    return found


def unnamed(thing):
    """The parameters of a function or a class that its docstring does not name."""
    named = set()
    for section in thing.docstring.parse("numpy"):
        fields = thing.is_class and section.kind.value == "attributes"  # of a result
        if fields or section.kind.value in ("parameters", "other parameters"):
            named |= {name.strip().lstrip("*") for p in section.value for name in p.name.split(",")}
    own = thing.is_function or "__init__" in thing.members or "dataclass" in thing.labels
    signature = [parameter.name for parameter in thing.parameters] if own else []
    return [name for name in signature if name not in {"self", "cls", *named}]


def test_every_class_and_function_of_the_reference_has_a_docstring(shown):
    assert len(shown) > 400
    assert "numba_rnn.layers.recurrent.TimeLSTM" in shown
    assert "numba_rnn.layers.cell_layer.CellLayer.create" in shown
    assert "numba_rnn.kernels.functions.sigmoid" in shown
    things = [thing for thing in shown.values() if thing.is_class or thing.is_function]
    assert not [thing.path for thing in things if not thing.docstring]


def test_docstrings_are_read_without_a_warning(shown, caplog):
    caplog.set_level(logging.INFO, "griffe")
    for thing in shown.values():
        if thing.docstring:
            thing.docstring.parse("numpy")
    assert not [record.getMessage() for record in caplog.records]


def test_every_parameter_is_named(shown):
    things = [thing for thing in shown.values() if thing.is_class or thing.is_function]
    assert len(things) > 250
    assert not {thing.path: names for thing in things if (names := unnamed(thing))}


def test_the_options_of_a_cell_are_documented_and_typed_as_their_table_says(shown):
    sections = shown["numba_rnn.custom.cell"].docstring.parse("numpy")
    (documented,) = (s.value for s in sections if s.kind.value == "other parameters")
    said = {p.name: (str(p.annotation), (p.default or "").strip('"')) for p in documented}
    assert list(said.items()) == [
        (
            name,
            (
                re.sub("'", "", str(option.of)) if option.kind == CHOICE else option.kind,
                "" if option.default in (None, ()) else str(option.default),
            ),
        )
        for name, option in OPTIONS.items()
    ]
    _, typed = (inspect.signature(overload).parameters for overload in get_overloads(cell))
    assert {name: p.default for name, p in typed.items()} == {
        name: option.default for name, option in OPTIONS.items()
    }


def test_what_is_wrong_would_be_found(caplog):
    code = '''
    def scale(xs, factor, *rest, **options):
        """Scale.

        Parameters
        ----------
        xs : (N,) array
            The numbers.
        other : float
            It is not there.
        *rest
            More.
        """
    '''
    with griffe.temporary_visited_module(re.sub(r"^ {4}", "", code, flags=re.M)) as module:
        assert unnamed(module["scale"]) == ["factor", "options"]
    assert "Parameter 'other' does not appear" in caplog.text
