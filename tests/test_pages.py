"""Pages of comparisons and frontiers: one file each, verdict first, nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hibprune.records.comparison import Comparison
from hibprune.records.frontier import Frontier
from hibprune.report.comparison import comparison_verdict, write_comparison
from hibprune.report.frontier import frontier_markdown, write_frontier

ROOT = Path(__file__).parent.parent
MAX_PAGE_BYTES = 1_500_000


def compared() -> Comparison:
    return Comparison.model_validate_json(
        (ROOT / "recipes/quickstart/compare/compare.json").read_text()
    )


def priced() -> Frontier:
    return Frontier.model_validate_json(
        (ROOT / "tests/benchmarks/results/frontier_quickstart.json").read_text()
    )


class Outline(HTMLParser):
    """Tags with their attributes, and the words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Blank pictures: what is in them is other tests' business."""
    directory = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        from conftest import _save_blank

        patch.setattr("matplotlib.figure.Figure.savefig", _save_blank)
        write_comparison(compared(), directory)
        write_frontier(priced(), directory)
    return {name: (directory / f"{name}.html").read_text() for name in ("compare", "frontier")}


@pytest.mark.parametrize("name", ["compare", "frontier"])
def test_a_page_is_one_file_with_its_verdict_first(pages: dict[str, str], name: str) -> None:
    outline = Outline(pages[name])
    assert len(pages[name].encode()) < MAX_PAGE_BYTES
    pictures = outline.all("img")
    assert len(pictures) == {"compare": 2, "frontier": 1}[name]
    assert all(str(one["src"]).startswith("data:image/png;base64,") for one in pictures)
    assert all(one["alt"] for one in pictures)
    assert all(str(one["href"]).startswith("#") for one in outline.all("a"))
    assert not outline.all("script")
    assert not re.search(r"https?://", re.sub(r"<pre>.*?</pre>", "", pages[name], flags=re.DOTALL))
    inside = pages[name].split('<main id="content">')[1]
    assert re.match(r"\s*<h1>[^<]*</h1>\s*<p><strong>", inside), inside[:300]


def test_a_page_ends_with_data_and_how_to_do_it_again(pages: dict[str, str]) -> None:
    comparison, words = compared(), Outline(pages["compare"]).words
    assert comparison.command in words
    assert comparison.validation.identity[:12] in words
    assert priced().command in Outline(pages["frontier"]).words


def test_the_verdict_names_the_method_of_the_best_area_and_who_is_beyond_noise() -> None:
    comparison = compared()
    said = comparison_verdict(comparison)
    for scope in comparison.scopes:
        curves = [curve for curve in comparison.curves if curve.scope == scope]
        best = max(curves, key=lambda curve: curve.area.value if curve.area else 0.0)
        assert f", {best.label} comes out first: the highest mean" in said
    worse = [
        curve.label for curve in comparison.of_scope("global")
        if curve.to_reference is not None and curve.to_reference.interval.high < 0
    ]  # fmt: skip
    told = re.search(r"worse ([^.]*)\.", said.split(" The same share")[0])
    assert [label for label in worse if not told or label not in told[1]] == []
    guessing = comparison.model_copy(update={"guessing": (comparison.metric,)})
    assert comparison_verdict(guessing) == ""


def test_the_frontier_s_verdict_is_the_smallest_without_a_loss() -> None:
    """By its paired interval; a loss that is large but may be chance is told as that."""
    found = priced()
    made = [(point.budget.asked, one) for point in found.points for one in point.variants]
    asked, smallest = min(
        ((asked, one) for asked, one in made if one.change is None or one.change.high > 0),
        key=lambda entry: entry[1].size_bytes,
    )
    sentence = frontier_markdown(found).split("\n\n")[1]
    assert sentence.startswith(
        "**No budget is shown to keep the accuracy; the smallest whose loss the data cannot "
        f"confirm is {smallest.name} at "
    )
    assert f"{asked:g}" in sentence

    def with_metric(value: float, low: float, high: float) -> str:
        """As if all pruned models had come to that."""
        points = [
            point.model_copy(update={
                "variants": tuple(
                    one.model_copy(update={
                        "metric": one.metric.model_copy(update={"value": value}),
                        "change": type(one.metric.interval)(low, high),
                    })
                    for one in point.variants
                )
            })
            for point in found.points
        ]  # fmt: skip
        page = frontier_markdown(found.model_copy(update={"points": tuple(points)}))
        return page.split("\n\n")[1]

    assert (
        with_metric(0.1, -0.9, -0.8) == "**Every budget costs more accuracy than noise explains.**"
    )
    least = min((one for _, one in made), key=lambda one: one.size_bytes).name
    gained = with_metric(0.999, 0.01, 0.02)
    assert gained.startswith(f"**The smallest without a loss beyond noise is {least} at ")
