"""The site in a browser, on a phone and on a desk: its pages, its slides, and what is computed."""

import json
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from numba_rnn import GRU, LSTM, RNN, TimeGRU, TimeLSTM, TimeRNN
from numba_rnn.training import SGD

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs" / "tools"))
import learn  # noqa: E402

WIDTHS = 390, 1280
BROWSERS = (
    "chromium", "chromium-browser", "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
)  # fmt: skip
OPTIONS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
LANGUAGES = "", ".ko"
CELLS = {
    "rnn": (RNN, TimeRNN), "lstm": (LSTM, TimeLSTM), "gru": (GRU, TimeGRU),
}  # fmt: skip
NUMBERS = learn.read()
pytestmark = pytest.mark.filterwarnings("default")  # of Playwright's own


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, "the site is tested in Chromium, and there is none: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=OPTIONS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that fails the test where the console has an error."""
    page, errors = browser.new_page(viewport={"width": 390, "height": 844}), []
    page.on("console", lambda said: said.type == "error" and errors.append((page.url, said.text)))
    page.on("pageerror", lambda error: errors.append((page.url, str(error))))
    yield page
    page.close()
    assert not errors


LOOK = """() => ({
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    broken: [...document.images].filter((i) => !i.complete || !i.naturalWidth).length,
    untold: [...document.images].filter((i) => !i.alt || /No description/.test(i.alt)).length,
    text: document.body.innerText,
})"""
REPRESENTATION = re.compile(r"<IPython\.|<Figure size|<matplotlib\.|<numba_rnn[\w.]+ object")


@pytest.mark.parametrize(
    "room", ["", "guide", "learn", "notebooks", "reference", "rooms", "source"]
)
def test_every_page(site, page, room):
    found = sorted((site / room).glob("*.html") if not room else (site / room).rglob("*.html"))
    found = [path for path in found if path.name != "404.html"]
    found = found[::20] if room == "source" else found  # these are listings, all made alike
    assert found
    for path in found:
        page.goto(path.as_uri())
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 844})
            seen = page.evaluate(LOOK)
            assert not seen["overflow"], (path.name, width)
            assert not seen["broken"], path.name
            assert not seen["untold"], path.name
        assert room in ("source", "reference") or not REPRESENTATION.search(seen["text"]), path.name


SLIDES = """async () => {
    await Promise.all([...document.images].map((image) => image.decode().catch(() => 0)));
    const high = [];
    let count = 0;
    for (Reveal.slide(0, 0); ; Reveal.next()) {
        const slide = Reveal.getCurrentSlide(), box = slide.getBoundingClientRect();
        const within = document.querySelector(".slides").getBoundingClientRect();
        if (box.bottom > within.bottom + 2) high.push(location.hash);
        count += 1;
        if (Reveal.isLastSlide()) return { count, high };
    }
}"""


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_slides_fit(site, page, path):
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto((site / "slides" / f"{path.stem}.html").as_uri())
    seen = page.evaluate(SLIDES)
    assert seen["count"] > 5
    assert not seen["high"]


def test_a_picture_is_enlarged(site, page):
    page.goto((site / "notebooks" / "05_lstm.html").as_uri())
    picture = page.locator(".md-content img").nth(2)
    assert picture.bounding_box()["width"] >= 600  # moved sideways on a phone, and can be read
    picture.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog.enlarged img").bounding_box()["width"] >= 390
    page.keyboard.press("Escape")
    assert not page.locator("dialog.enlarged").is_visible()


def test_the_language_is_switched(site, page):
    page.goto((site / "learn" / "step.html").as_uri())
    page.click(".page-links a[hreflang=ko]")
    assert page.url.endswith("step.ko.html")
    assert page.evaluate("document.documentElement.lang") == "ko"
    assert page.get_by_text("역전파: 지나온 노드").is_visible()
    page.click(".page-links a[hreflang=en]")
    assert page.url.endswith("step.html")


# ---- pages to touch: their numbers are the package's


def test_the_numbers_are_what_the_script_makes():
    made = json.loads(learn.spelled(learn.untrained()).partition(" = ")[2].rstrip(";\n"))
    assert made["graphs"] == NUMBERS["graphs"]
    for network, stored in [
        (made["film"], NUMBERS["film"]),
        (made["unrolled"], NUMBERS["unrolled"]),
    ]:
        assert flat(network) == pytest.approx(flat(stored), abs=1e-9)


def flat(numbers):
    if isinstance(numbers, float):
        return [numbers]
    parts = numbers.values() if isinstance(numbers, dict) else numbers
    return [number for part in parts for number in flat(part)]


def move(page, rng):
    """Every slider somewhere else, by its label's name; where they are."""
    for name in page.eval_on_selector_all(
        ".touch input[type=range]", "all => all.map((i) => i.name)"
    ):
        slider = page.locator(f'.touch input[name="{name}"]')
        if slider.is_visible():
            low, high, step = (float(slider.get_attribute(of)) for of in ("min", "max", "step"))
            value = low + step * rng.randint(0, round((high - low) / step))
            slider.evaluate(
                "(i, value) => { i.value = value; i.dispatchEvent(new Event('input')); }", value
            )
    return page.eval_on_selector_all(
        ".touch input[type=range]", "all => Object.fromEntries(all.map((i) => [i.name, +i.value]))"
    )


def shown(page):
    """The numbers that a page says, with all their digits."""
    return page.eval_on_selector_all(
        "[data-number]",
        "all => Object.fromEntries(all.map((o) => [o.dataset.number, +o.dataset.value]))",
    )


def expect_same(found, wanted):
    assert len(wanted) >= 3
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), rel=1e-6, abs=1e-9), name


def rows(*numbers):
    return np.array(numbers, float)


def open_page(site, page, name):
    page.goto((site / "learn" / f"{name}.html").as_uri())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_step(site, page, cell, language):
    open_page(site, page, f"step{language}")
    page.check(f'input[value="{cell}"]')
    graph, rng = NUMBERS["graphs"][cell], random.Random(cell)
    for _ in range(4):
        at = move(page, rng)
        Wx, Wh, b = (
            rows(*(at[f"{name}_{gate}"] for gate in graph["gates"])) for name in ("Wx", "Wh", "b")
        )
        layer = CELLS[cell][0](Wx[None], Wh[None], b)
        out = layer.forward(
            *(rows([at[name]]) for name in ("x", *(f"{s}_prev" for s in graph["states"])))
        )
        gradients = layer.backward(*(rows([at[f"d{state}"]]) for state in graph["states"]))
        out = out[0] if cell == "lstm" else out
        wanted = {"h_next": out, "dx": gradients[0], "dh_prev": gradients[1]}
        wanted |= {"dWx": layer.grads[0][:, :1], "db": layer.grads[2][:1]}
        expect_same(shown(page), {name: np.ravel(value)[0] for name, value in wanted.items()})


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_unrolled(site, page, cell, language):
    open_page(site, page, f"unrolled{language}")
    page.check(f'input[value="{cell}"]')
    numbers, rng = NUMBERS["unrolled"], random.Random(cell)
    Wx, Wh, b = (np.array(numbers[cell][name]) for name in ("Wx", "Wh", "b"))
    H = len(Wh)
    for _ in range(4):
        at = move(page, rng)
        T, block = int(at["T"]), int(at["block"])
        bias = b.copy()
        bias[:H] = at["bias"] if cell != "rnn" else 0
        layer = CELLS[cell][1](Wx, at["radius"] * Wh, bias, stateful=True)
        xs, sizes = at["scale"] * np.array(numbers["xs"])[None, :T], []
        for start in range(0, T, block):
            hs = layer.forward(xs[:, start : start + block], trace=True)
            dhs = np.zeros_like(hs)
            if start + block >= T:
                dhs[:, -1] = H**-0.5
            layer.backward(dhs)
            sizes.append(np.linalg.norm(layer.trace.gradients["h"][0], axis=1))
            for gradient in list(layer.trace.gradients.values())[1:]:  # of the memory cell
                sizes[-1] = np.hypot(sizes[-1], np.linalg.norm(gradient[0], axis=1))
        sizes = np.concatenate(sizes)
        expect_same(
            shown(page), {"last": sizes[-1], "before": sizes[max(0, T - 2)], "first": sizes[0]}
        )


@pytest.mark.parametrize("language", LANGUAGES)
def test_gates(site, page, language):
    open_page(site, page, f"gates{language}")
    model, rng = NUMBERS["model"], random.Random(0)
    for sentence in (model["sentence"], "print(len(data)), and so on"):
        page.fill('input[name="sentence"]', sentence)
        ids = [model["characters"].index(letter) for letter in sentence]
        layer = TimeLSTM(*(np.array(model[name]) for name in ("Wx", "Wh", "b")))
        hs = layer.forward(np.array(model["embedding"])[None, ids], trace=True)
        for _ in range(3):
            at = move(page, rng)
            t, unit = int(at["t"]), int(at["unit"]) - 1
            c, f = (one[0, t, unit] for one in (layer.trace.states["c"], layer.trace.gates["f"]))
            expect_same(shown(page), {"passes": at["opening"], "h": hs[0, t, unit], "c": c, "f": f})


def film(block, rate):
    """The numbers that the film shows at each frame, by the package."""
    numbers = {name: np.array(value) for name, value in NUMBERS["film"].items()}
    params = [numbers[name].copy() for name in ("Wx", "Wh", "b")]
    xs, dhs, state, T = numbers["xs"][None], numbers["dhs"][None], np.zeros((1, 3)), 12
    for start in range(0, T, block):
        end, layer = min(T, start + block), TimeRNN(*params)
        layer.set_state(state)
        hs = layer.forward(xs[:, start:end])
        before = np.concatenate([state[:, None], hs[:, :-1]], axis=1)
        for _ in range(start, end):
            yield {"dWh": 0, "Wh": params[1][0, 0], "size": np.linalg.norm(params[1])}
        for t in range(end - 1, start - 1, -1):
            layer.set_state(before[:, t - start])
            layer.forward(xs[:, t:end])
            layer.backward(dhs[:, t:end])
            dWh = np.linalg.norm(layer.grads[1])
            yield {"dWh": dWh, "Wh": params[1][0, 0], "size": np.linalg.norm(params[1])}
        if rate:  # an optimiser takes none of 0
            SGD(rate).update(params, layer.grads)
        state = hs[:, -1]
        yield {"dWh": dWh, "Wh": params[1][0, 0], "size": np.linalg.norm(params[1])}


@pytest.mark.parametrize("language", LANGUAGES)
def test_film(site, page, language):
    open_page(site, page, f"film{language}")
    rng = random.Random(0)
    for _ in range(5):
        at = move(page, rng)
        expect_same(shown(page), list(film(int(at["block"]), at["rate"]))[int(at["frame"])])
    slider = page.locator('input[name="frame"]')
    slider.evaluate("(slider) => { slider.value = 0; slider.dispatchEvent(new Event('input')); }")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "1"
    page.get_by_role("button", name="다음" if language else "Step", exact=True).click()
    assert slider.input_value() == "2"
    page.get_by_role("button", name="재생" if language else "Play").click()
    page.wait_for_function("document.querySelector('input[name=frame]').value > 2")


@pytest.mark.parametrize("name", ["step", "unrolled", "gates", "film"])
def test_every_slider_has_a_label(site, page, name):
    open_page(site, page, name)
    unnamed = "all => all.filter((i) => !i.labels.length || !i.labels[0].innerText.trim()).length"
    assert page.eval_on_selector_all(".touch input", unnamed) == 0
