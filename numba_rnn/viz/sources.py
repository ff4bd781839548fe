"""The package's own code, to stand beside its equation in a notebook."""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..kernels import cells
from ..kernels.cells import Cell, WrittenCell
from ..validation import expect_choice

_PARTS = "forward", "backward", "operand"
_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True, repr=False)
class Source:
    """Lines of code. Notebooks show them in colours, ``print`` as plain text.

    Attributes
    ----------
    place : str
        The path of their file in the repository; "" if it is not of this package.
    text : str
        The lines.
    """

    place: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        heading = f"`{self.place}`\n\n" if self.place else ""
        return f"{heading}```python\n{self.text}```"

    def lines(self, *words: str) -> "Source":
        """Return only those lines that contain one of the words, without common indentation.

        Parameters
        ----------
        *words : str
            The words.

        Returns
        -------
        Source
            The lines.

        Examples
        --------
        >>> from numba_rnn import viz
        >>> print(viz.source("lstm").lines("g * i"))
        c = f * c + g * i
        <BLANKLINE>
        """
        found = [line.strip() for line in self.text.splitlines() if any(w in line for w in words)]
        return Source(self.place, "".join(f"{line}\n" for line in found))


def source(what: Any, part: str = "forward") -> Source:
    """Return the code of a cell's step, or of any function, as it stands in its file.

    Parameters
    ----------
    what : cell, str, layer or function
        A cell or its name ("rnn", "lstm", "gru" and so on), a layer, or a function.
    part : {"forward", "backward", "operand"}
        The function of the cell. "backward" is the derived code for a cell that is written as one
        function; "operand" is the factor of its second product.

    Returns
    -------
    Source
        The code.

    Raises
    ------
    TypeError
        If what is something else.
    ValueError
        If the cell does not have the part.

    Examples
    --------
    >>> from numba_rnn import viz
    >>> print(viz.source("rnn"))
    def forward(gates, state):
        (a,) = gates
        h = tanh(a)
        return (h,), (h,)
    <BLANKLINE>
    """
    cell = what if isinstance(what, (str, Cell, WrittenCell)) else getattr(what, "cell", None)
    if cell is None:
        return _of_function(what)
    expect_choice("part", part, _PARTS)
    if isinstance(cell, WrittenCell) and part != "operand":
        return Source("", textwrap.dedent(cell.source(part)).strip() + "\n")
    made = cells.get(cell)
    function = getattr(made, part)
    if function is None:
        raise ValueError(f"part: expected forward or backward, the cell {made.name} has no operand")
    return _of_function(function)


def _of_function(function: Callable[..., Any]) -> Source:
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise TypeError(f"what: expected a cell, a layer or a function, got {function!r}")
    package, _, module = function.__module__.partition(".")
    place = ""
    if package == _PACKAGE:  # whose kernels/ stand beside it in the repository
        place = ("" if module.startswith("kernels.") else f"{package}/") + module.replace(".", "/")
        place += ".py"
    try:
        text = inspect.getsource(function)
    except OSError:
        raise TypeError(f"what: expected code that is in a file, got {function!r}") from None
    return Source(place, textwrap.dedent(text))
