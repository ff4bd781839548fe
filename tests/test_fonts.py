"""Texts of pictures in scripts that matplotlib has no font for, with other fonts and without.

The fonts are made here, so that nothing depends on those of the machine.
"""

import warnings

import matplotlib as mpl
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.font_manager import fontManager

from numba_rnn import TimeRNN, diagnostics, fonts, viz
from numba_rnn.training.plot_loss import plot_loss
from numba_rnn.training.trainer import History

HANGUL, HANJA, EMOJI = "나는집문", "門", "\U0001f40d"


def write_font(path, name, characters):
    """A font with a square for each character."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyphs = {f"u{ord(c):x}": pen.glyph() for c in characters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *glyphs])
    builder.setupCharacterMap({ord(c): f"u{ord(c):x}" for c in characters})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **glyphs})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *glyphs), (800, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def no_fonts(monkeypatch):
    """The fonts that come with matplotlib, and no other."""
    own = mpl.get_data_path()
    entries = [entry for entry in fontManager.ttflist if str(entry.fname).startswith(own)]
    monkeypatch.setattr(fontManager, "ttflist", entries)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_, **__: [])
    monkeypatch.setattr(fonts, "_told", set())
    fonts._families.cache_clear()
    yield monkeypatch
    fonts._families.cache_clear()


@pytest.fixture
def some_fonts(no_fonts, tmp_path):
    """Two fonts more, which have what is asked of them only together."""
    fontManager.addfont(write_font(tmp_path / "a.ttf", "Test Hangul", HANGUL))
    fontManager.addfont(write_font(tmp_path / "b.ttf", "Test Signs", HANJA + EMOJI))


@pytest.fixture(scope="module")
def traced():
    layer = TimeRNN.create(2, 3, rng=0)
    layer.forward(np.ones((1, 6, 2), np.float32), trace=True)
    layer.backward(np.ones((1, 6, 3), np.float32))
    return layer


def settings():
    """All of matplotlib's, without the backend, which it chooses when it is first asked."""
    return {name: mpl.rcParams[name] for name in mpl.rcParams if not name.startswith("backend")}


PICTURES = {
    "gates": lambda layer, words: diagnostics.plot_gates(layer.trace, labels=list(words)[:6]),
    "flow": lambda layer, words: diagnostics.plot_gradient_flow({f"${words}$": layer.trace}),
    "graph": lambda layer, words: viz.graph(layer, title=words),
    "unrolled": lambda layer, words: viz.unrolled(layer, T=2, title=f"${words}$"),
    "valve": lambda layer, words: viz.valve(0.5, title=words),
}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.usefixtures("some_fonts")
def test_pictures_have_the_glyphs_of_any_installed_font(picture, traced, tmp_path):
    before = settings()
    figure = PICTURES[picture](traced, HANGUL + HANJA + EMOJI)
    figure.savefig(tmp_path / "a.png")  # a missing glyph is a warning, and that is an error here
    assert settings() == before
    families = {family for text in figure.findobj(mpl.text.Text) for family in text.get_family()}
    assert {"Test Hangul", "Test Signs"} <= families


@pytest.mark.usefixtures("some_fonts")
def test_animations_and_the_loss_curve_have_them_too(tmp_path):
    viz.animate_valve([0.1, 0.9], tmp_path / "a.gif", labels=["문", HANJA], dpi=20)
    history = History()
    history.train.append((1, 2.0, 0.1))
    plot_loss(history, tmp_path / "a.png", f"{HANGUL}, H 3")


@pytest.mark.usefixtures("some_fonts")
def test_other_texts_keep_the_fonts_that_they_have(traced):
    with mpl.rc_context({"font.family": ["DejaVu Serif"]}):
        figure = viz.valve(0.5, title="문")
    families = {t.get_text(): t.get_family() for t in figure.findobj(mpl.text.Text)}
    assert families["문"] == ["DejaVu Serif", "Test Hangul"]
    assert families["0.5 (50%)"] == ["DejaVu Serif"]


def test_a_font_that_was_installed_since_is_found(no_fonts, tmp_path):
    path = write_font(tmp_path / "c.ttf", "Test New", HANGUL)
    (tmp_path / "d.ttf").write_bytes(b"no font")
    no_fonts.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "d.ttf"), path])
    viz.valve(0.5, title=HANGUL).savefig(tmp_path / "a.png")
    assert "Test New" in {entry.name for entry in fontManager.ttflist}


@pytest.mark.usefixtures("no_fonts")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (HANGUL, "no installed font has Hangul, so boxes .* Nanum Gothic .*fonts-nanum"),
        (
            HANJA,
            "no installed font has Chinese characters, so boxes .* Noto Sans CJK .*fonts-noto-cjk",
        ),
        ("カタ", "no installed font has kana, so boxes .* Noto Sans CJK"),
        (EMOJI, "no installed font has emoji and other signs, so boxes .* Symbola"),
        ("ক", "no installed font has some of the characters, so boxes .* Noto Sans "),
    ],
)
def test_a_font_to_install_is_named_once(words, says):
    with pytest.warns(UserWarning, match=says) as told:
        viz.valve(0.5, title=words)
    assert len(told) == 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        viz.valve(0.5, title=words)
    assert not told


@pytest.mark.usefixtures("no_fonts")
def test_what_has_no_glyph_needs_no_font():
    viz.valve(0.5, title="a\u200db\ufe0f c\u00a0\u2028d\ud800")


@pytest.mark.usefixtures("some_fonts")
def test_wide_letters_have_room(traced):
    long = "나는 " * 40
    narrow, wide = (viz.graph(traced, title=t).get_figwidth() for t in ("na neun " * 20, long))
    assert wide > narrow
    figure = viz.graph(traced, title=long)
    (title,) = (t for t in figure.findobj(mpl.text.Text) if t.get_text() == long)
    box = title.get_window_extent(mpl.backends.backend_agg.FigureCanvasAgg(figure).get_renderer())
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
