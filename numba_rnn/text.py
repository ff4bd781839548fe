"""From text to token numbers and back."""

import codecs
import gzip
import io
import operator
import unicodedata
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .files import expect_unpacked, unpacked_limit
from .typing import IntArray, Integers
from .validation import expect_choice, expect_int, expect_plain_array, format_shape

LEVELS = ("char", "word")
UNKNOWN = {"char": "\ufffd", "word": "<unk>"}
MARKS = {  # byte order marks; that of UTF-32 begins as that of UTF-16 does
    "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE,
    "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
}  # fmt: skip


def tokens(text: str, level: str) -> list[str]:
    """Split a text into tokens, its characters or its words.

    Parameters
    ----------
    text : str
        The text.
    level : {"char", "word"}
        The kind of token. Words are separated by blanks; the end of a line is the word ``<eos>``.

    Returns
    -------
    list of str
        The tokens.

    Raises
    ------
    TypeError
        If text is not a str.
    """
    _expect_text(text)
    if expect_choice("level", level, LEVELS) == "char":
        return list(text)
    return text.replace("\n", " <eos> ").split()


def _expect_text(text: Any) -> None:
    if not isinstance(text, str):
        remedy = "; text.decode() converts UTF-8" if isinstance(text, bytes) else ""
        raise TypeError(f"text: expected text, a str, got {type(text).__name__}{remedy}")


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file, plain or gzip (.gz).

    Lines end with a newline, whether they end with LF, CR LF or CR in the file. Characters are
    composed (Unicode's NFC), so that a Hangul syllable or an accented letter is one character, as
    keyboards write it, even if the file holds its parts (NFD, as file names on macOS).

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    str
        The text.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is empty or not UTF-8; the message names the file and, for UTF-16 and UTF-32, the
        encoding.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = _unzipped(path, data)
        if wide := _wide_encoding(data):
            raise ValueError(
                f"{path}: expected UTF-8 text, got {wide.upper()}; "
                f"`iconv -f {wide} -t utf-8` converts it"
            )
        text = data.decode("utf-8-sig")  # a byte order mark is no part of it
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected UTF-8 text, plain or gzip; {error}") from error
    if not text.strip():
        raise ValueError(f"{path}: expected some text, found none")
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def _wide_encoding(data: bytes) -> str:
    """The encoding of text in units of two or four bytes, by its mark or its zeros; "" if none.

    Without a mark, blanks and line ends tell: their other bytes are zero. UTF-8 may have zeros,
    too: what can be read as such is wide only where nearly every other byte is zero.
    """
    for name, mark in MARKS.items():
        if data.startswith(mark):
            return name
    if data.count(0) * 50 < len(data) or not data:
        return ""
    zeros = [data[k::4].count(0) for k in range(4)]
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    if max(even, odd) * 8 < 3 * len(data) and _is_utf8(data):
        return ""
    end = "le" if odd > even else "be"
    upper = zeros[2:] if end == "le" else zeros[:2]  # of four bytes
    return f"utf-32-{end}" if min(upper) * 8 > len(data) else f"utf-16-{end}"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unzipped(path: Path, data: bytes) -> bytes:
    with gzip.open(io.BytesIO(data)) as file:
        unzipped = file.read(unpacked_limit(path) + 1)
    expect_unpacked(path, len(unzipped))
    return unzipped


def builtin_text() -> str:
    """Return an English text that comes with every Python: the help topics of ``pydoc``.

    Tables and lines without a letter, such as the rules under headings, are left out.

    Returns
    -------
    str
        The text.
    """
    from pydoc_data.topics import topics

    lines = "\n\n".join(topics[name] for name in sorted(topics)).splitlines()
    prose = [
        line
        for line in lines
        if not line.strip() or (any(c.isalpha() for c in line) and line.lstrip()[0] not in "|+")
    ]
    return "\n".join(prose) + "\n"


class Vocabulary:
    """The tokens of a training text, numbered by first appearance.

    Parameters
    ----------
    members : list of str
        The tokens, each once. The unknown token (``<unk>`` for words, U+FFFD for characters) must
        be one of them; ``Vocabulary.of`` adds it.
    level : {"char", "word"}
        The kind of token.

    Raises
    ------
    TypeError, ValueError
        If a member is no text, occurs twice, or the unknown token is missing.
    """

    def __init__(self, members: list[str], level: str) -> None:
        self.level = expect_choice("level", level, LEVELS)
        self.members = list(members)
        for token in self.members:
            if not isinstance(token, str):
                raise TypeError(f"members: expected text, got {token!r} among them")
        self._number = {token: k for k, token in enumerate(self.members)}
        if len(self._number) != len(self.members):
            raise ValueError("members: expected each token once, got one twice")
        if UNKNOWN[level] not in self._number:
            raise ValueError(f"members: expected the unknown token {UNKNOWN[level]!r} among them")

    @classmethod
    def of(
        cls, text: str, level: str, min_count: int = 1, *, by_frequency: bool = False
    ) -> "Vocabulary":
        """Create the vocabulary of a text.

        Parameters
        ----------
        text : str
            The text.
        level : {"char", "word"}
            The kind of token.
        min_count : int, default 1
            Tokens that occur less often count as unknown.
        by_frequency : bool, default False
            Whether the most frequent token gets the number 0, the next 1, and so on, as losses for
            large vocabularies want it. By default the order is that of the first appearance.

        Returns
        -------
        Vocabulary
            The vocabulary.

        Raises
        ------
        ValueError
            If no token occurs so often.

        Examples
        --------
        >>> Vocabulary.of("a rose is a rose", "word").members
        ['a', 'rose', 'is', '<unk>']
        """
        least = expect_int("min_count", min_count)
        counts = Counter(tokens(text, level))  # keeps the order of first appearance
        members = [token for token, count in counts.items() if count >= least]
        if not set(members) - {UNKNOWN[level]}:
            most = max((n for token, n in counts.items() if token != UNKNOWN[level]), default=0)
            raise ValueError(
                f"min_count: expected a {level} that occurs at least {least} times in the text, "
                + (f"got at most {most}" if most else f"got only the unknown {level}")
            )
        if UNKNOWN[level] not in members:
            members.append(UNKNOWN[level])
        if by_frequency:
            known = set(members) - {UNKNOWN[level]}
            counts[UNKNOWN[level]] = counts.total() - sum(counts[token] for token in known)
            members.sort(key=lambda token: -counts[token])
        return cls(members, level)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def unknown(self) -> int:
        """The number of the unknown token."""
        return self._number[UNKNOWN[self.level]]

    def encode(self, text: str) -> IntArray:
        """Convert a text to token numbers.

        Parameters
        ----------
        text : str
            The text.

        Returns
        -------
        (L,) array, int64
            The numbers; tokens that are not members become ``unknown``.
        """
        unknown = self.unknown
        numbers = [self._number.get(token, unknown) for token in tokens(text, self.level)]
        return np.array(numbers, np.int64)

    def unseen(self, text: str) -> list[str]:
        """List the tokens of a text that are not members, each once.

        Parameters
        ----------
        text : str
            The text.

        Returns
        -------
        list of str
            The tokens.

        Examples
        --------
        >>> Vocabulary.of("a rose is a rose", "word").unseen("a tulip is no tulip")
        ['tulip', 'no']
        """
        missing = (token for token in tokens(text, self.level) if token not in self._number)
        return list(dict.fromkeys(missing))

    def normal(self, text: str) -> str:
        """Compose the characters of a text as ``read_text`` does (NFC).

        A vocabulary of a decomposed text has the parts of characters. If fewer tokens are unknown
        that way, the text is decomposed instead (NFD).

        Parameters
        ----------
        text : str
            The text.

        Returns
        -------
        str
            The text in the form that suits the vocabulary.
        """
        _expect_text(text)
        forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
        return min(forms, key=lambda form: int((self.encode(form) == self.unknown).sum()))

    def decode(self, numbers: Integers) -> str:
        """Convert token numbers to text.

        Parameters
        ----------
        numbers : (L,) integers
            The numbers, an array or a list.

        Returns
        -------
        str
            The text.

        Raises
        ------
        TypeError
            If the numbers are not whole.
        ValueError
            If there is no token of a number.
        """
        expect_plain_array("numbers", numbers)
        if getattr(numbers, "ndim", 1) != 1 or not hasattr(numbers, "__iter__"):
            got = format_shape(numbers.shape) if hasattr(numbers, "shape") else repr(numbers)
            raise TypeError(f"numbers: expected whole numbers (L,), got {got}")
        found = [self._member(k, place) for place, k in enumerate(numbers)]
        if self.level == "char":
            return "".join(found)
        return "\n".join(line.strip() for line in " ".join(found).split("<eos>"))

    def _member(self, number: Any, place: int) -> str:
        whole: Any = None if isinstance(number, bool) else number
        try:
            k = operator.index(whole)
        except TypeError as error:
            raise TypeError(
                f"numbers: expected whole numbers, got {number!r} at {place}"
            ) from error
        if not 0 <= k < len(self.members):
            raise ValueError(
                f"numbers: expected numbers from 0 to {len(self.members) - 1}, got {k} at {place}"
            )
        return self.members[k]
