"""Fonts for the texts of pictures: matplotlib's own has no Hangul, no Chinese and no emoji."""

import unicodedata
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

# how the names of characters begin, what they are, a font that has them, its package in Debian
REMEDIES = (
    ("HANGUL", "Hangul", "Nanum Gothic", "fonts-nanum"),
    ("CJK", "Chinese characters", "Noto Sans CJK", "fonts-noto-cjk"),
    ("HIRAGANA", "kana", "Noto Sans CJK", "fonts-noto-cjk"),
    ("KATAKANA", "kana", "Noto Sans CJK", "fonts-noto-cjk"),
)
EMOJI = "emoji and other signs", "Symbola", "fonts-symbola"
OTHERS = "some of the characters", "Noto Sans", "fonts-noto-core"
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}  # categories that need no glyph

_told: set[str] = set()  # of what was said already that no font has it


def choose_fonts(drawn: Any) -> Any:
    """Give all texts in a figure, or in a part of it, fonts that have their characters.

    Behind a text's own fonts come installed ones that have what those lack; a UserWarning says,
    once, what none has, and which font does. No setting of matplotlib changes. Returns ``drawn``.
    """
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    for text in drawn.findobj(Text):
        missing = _visible(text.get_text())
        if missing:
            for font in _own_fonts(text):
                missing -= _had(font, missing)
        if missing:
            families, nowhere = _families(frozenset(missing), len(fontManager.ttflist))
            text.set_fontfamily([*text.get_fontfamily(), *families])
            for character in sorted(nowhere):
                _tell(*_remedy(character))
    return drawn


def _visible(text: str) -> set[str]:
    """Characters that not every font has; a variation selector is drawn with the one before it."""
    return {
        c
        for c in text
        if not (c.isascii() or unicodedata.category(c) in INVISIBLE or "\ufe00" <= c <= "\ufe0f")
    }


def _own_fonts(text: Any) -> Iterator[Any]:
    """The files of the fonts that a text has been given."""
    from matplotlib.font_manager import findfont

    for family in text.get_fontfamily():
        properties = text.get_fontproperties().copy()
        properties.set_family([family])
        yield findfont(properties)


def _had(path: Any, characters: set[str] | frozenset[str]) -> set[str]:
    """Those of the characters that a font has."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return set()  # of a kind that matplotlib cannot draw either
    return {c for c in characters if font.get_char_index(ord(c))}


@lru_cache(maxsize=256)
def _families(characters: frozenset[str], fonts: int) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed families that have the characters, and those that none has; ``fonts`` are there."""
    from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager

    missing, families = set(characters), []
    for entry in sorted(fontManager.ttflist, key=_plainest):
        if missing and not entry.name.startswith("Last Resort") and _had(entry.fname, missing):
            chosen = findfont(FontProperties(family=[entry.name]))  # which may be another file
            if found := _had(chosen, missing):
                families.append(entry.name)
                missing -= found
    known = {str(entry.fname) for entry in fontManager.ttflist}
    for path in sorted(findSystemFonts()) if missing else ():  # newer than matplotlib's list
        if path not in known and (found := _had(path, missing)):
            try:
                fontManager.addfont(path)
            except (NotImplementedError, OSError, RuntimeError):
                continue  # coloured bitmaps, which it cannot draw
            families.append(fontManager.ttflist[-1].name)
            missing -= found
    return tuple(families), frozenset(missing)


def _plainest(entry: Any) -> tuple[bool, bool, bool, str]:
    """Upright, regular faces without serifs come first."""
    plain = any(word in entry.name for word in ("Sans", "Gothic", "Emoji"))
    return not plain, entry.style != "normal", entry.weight not in (400, "normal"), entry.name


def _remedy(character: str) -> tuple[str, str, str]:
    """The kind of a character, a font that has it and the font's package."""
    name = unicodedata.name(character, "")
    for start, *remedy in REMEDIES:
        if name.startswith(start):
            return remedy[0], remedy[1], remedy[2]
    return EMOJI if unicodedata.category(character) == "So" else OTHERS


def _tell(kind: str, font: str, package: str) -> None:
    if kind in _told:
        return
    _told.add(kind)
    warnings.warn(
        f"pictures: no installed font has {kind}, so boxes are drawn instead; install one such as "
        f"{font} (on Debian the package {package})",
        stacklevel=4,
    )
