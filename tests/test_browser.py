"""All pages in a browser that Playwright drives: alone, dark, narrow, by keyboard, on paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsers import CHROMIUM
from test_pages import compared, priced
from test_report_page import page_of

from hibprune.records.explanation import Explanation
from hibprune.report.comparison import write_comparison
from hibprune.report.explanation import write_explanation
from hibprune.report.frontier import write_frontier

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[1]
NAMES = ("report", "compare", "frontier", "explain")
NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed"),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, drawing: Callable[[], Any]) -> Path:
    """The pages with their pictures drawn."""
    found = tmp_path_factory.mktemp("pages")
    with drawing():
        page_of(found)
        write_comparison(compared(), found)
        write_frontier(priced(), found)
        stored = ROOT / "recipes/quickstart/explain/explain.json"
        write_explanation(Explanation.model_validate_json(stored.read_text()), found)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright is installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Browser, directory: Path) -> Iterator[Callable[..., Page]]:
    """Opens a page; in the end none has complained, or asked for anything but itself."""
    complaints: list[str] = []
    asked: list[str] = []
    pages: list[Page] = []

    def opening(name: str, **how: Any) -> Page:
        page = browser.new_page(**{"viewport": WIDE, **how})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        address = (directory / f"{name}.html").as_uri()
        page.goto(address)
        pages.append(page)
        assert [one for one in asked if one != address and not one.startswith("data:")] == []
        return page

    yield opening
    for page in pages:
        page.close()
    assert complaints == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_is_dark_where_asked_and_prints(
    opened: Callable[..., Page], name: str, tmp_path: Path
) -> None:
    page = opened(name, viewport=NARROW)
    assert page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    shown = "Array.from(document.images, one => one.complete && one.naturalWidth > 1)"
    assert all(page.evaluate(shown))
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = [brightness(one) for one in page.evaluate(colours)]
    page.emulate_media(color_scheme="dark")
    dark = [brightness(one) for one in page.evaluate(colours)]
    assert light[0] > 0.9 > 0.3 > light[1]
    assert dark[0] < 0.2 < 0.7 < dark[1]
    page.emulate_media(color_scheme="light", media="print")
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def brightness(colour: str) -> float:
    """Mean of red, green and blue, from 0 to 1, of `rgb(r, g, b)`."""
    parts = colour.partition("(")[2].rstrip(")").split(",")[:3]
    return sum(map(float, parts)) / 3 / 255


def test_heads_tell_their_figures_to_pointer_and_keyboard(opened: Callable[..., Page]) -> None:
    page = opened("report")
    heads = page.locator("td.head")
    assert heads.count() == 12
    shown = "one => getComputedStyle(one, '::after').display"
    told = "one => getComputedStyle(one, '::after').content"
    assert heads.nth(3).evaluate(shown) == "none"
    heads.nth(3).hover()
    assert heads.nth(3).evaluate(shown) == "block"
    assert "rank" in heads.nth(3).evaluate(told)
    heads.nth(4).focus()
    assert heads.nth(4).evaluate(shown) == "block"
    page.keyboard.press("Tab")
    assert heads.nth(5).evaluate("one => one === document.activeElement")
    assert heads.nth(5).evaluate(shown) == "block"


@pytest.mark.parametrize("name", NAMES)
def test_the_keyboard_skips_to_the_content_and_every_link_leads_somewhere(
    opened: Callable[..., Page], name: str
) -> None:
    page = opened(name)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#content"
    lost = (
        "Array.from(document.querySelectorAll('a'), one => one.getAttribute('href'))"
        ".filter(one => !document.getElementById(one.slice(1)))"
    )
    assert page.evaluate(lost) == []
