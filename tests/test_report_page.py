"""`report.html`: whole in one file, safe, and got through by keyboard, screen reader and print."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browsers import CHROMIUM
from manifests import RECIPE, make_manifest, make_plan, make_scores

from hibprune.records.manifest import UnitSummary
from hibprune.records.repair import Repair, SublayerRepair
from hibprune.records.units import Head
from hibprune.report.answers import MAX_AUDIO_BYTES, changed_answers, changed_clips
from hibprune.report.bars import drawn_sections, latency_bars, repair_bars, units_bars
from hibprune.report.files import write_report
from hibprune.report.numbers import milliseconds

EVIL = '<script>alert("x")</script> [a](javascript:alert(1)) <img src=http://x/y onerror=z>'


class Reading(HTMLParser):
    """What a browser would find: tags with attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def answers(directory: Path, variant: str, rows: list[dict[str, object]]) -> None:
    (directory / "predictions").mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / f"predictions/{variant}.jsonl").write_text(lines)


def page_of(directory: Path, **changes: object) -> str:
    scores = make_scores(3, 4)
    plan = make_plan(scores)
    write_report(make_manifest(plan, **changes), scores, plan, RECIPE, directory)
    return (directory / "report.html").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(tmp_path_factory.mktemp("report"))


def test_nothing_is_asked_of_the_network(page: str) -> None:
    reading = Reading(page)
    sources = [one["src"] for one in reading.all("img")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not reading.all("script")
    assert [one["href"] for one in reading.all("link")] == ["data:,"]
    assert "@import" not in page
    assert "url(" not in page
    assert len(page) < 1.5e6


def test_tags_are_closed_in_order_and_a_section_is_found_by_its_link(page: str) -> None:
    reading = Reading(page)
    assert reading.open == []
    links = [one["href"] for one in reading.all("a")]
    anchors = {f"#{one['id']}" for _, one in reading.tags if "id" in one}
    assert len(links) == len(set(links)) > 8
    assert set(links) <= anchors


def test_all_that_the_markdown_says_is_there(tmp_path: Path) -> None:
    told = Reading(page_of(tmp_path)).text
    for line in (tmp_path / "report.md").read_text().splitlines():
        if line.startswith("## "):
            assert line.removeprefix("## ") in told


def test_every_head_tells_its_score_and_fate_to_keyboard_and_screen_reader(
    tmp_path: Path,
) -> None:
    scores = make_scores(3, 4)
    plan = make_plan(scores)
    write_report(make_manifest(plan), scores, plan, RECIPE, tmp_path)
    cells = [
        one
        for one in Reading((tmp_path / "report.html").read_text()).all("td")
        if one.get("class") == "head"
    ]
    assert len(cells) == 12
    assert all(one["tabindex"] == "0" and one["aria-label"] == one["data-told"] for one in cells)
    told = {
        Head(*map(int, re.findall(r"\d+", one["aria-label"])[:2])): one["aria-label"]
        for one in cells
    }
    values = scores.values
    lowest = min(values, key=values.__getitem__)
    assert "rank 1 of 12 from the lowest, removed" in told[lowest]
    for head in plan.kept:
        assert told[head].endswith("kept")
        assert f"{values[head]:.4g} ± " in told[head]


def test_pictures_have_words_and_tables_are_reached_by_keyboard(page: str) -> None:
    reading = Reading(page)
    assert all(one["alt"] for one in reading.all("img"))
    assert all(
        one["tabindex"] == "0" and one["aria-label"]
        for one in reading.all("div")
        if one.get("class") == "scroll"
    )


def test_what_strangers_wrote_stays_words(tmp_path: Path) -> None:
    answers(tmp_path, "original", [{"id": EVIL, "reference": EVIL, "prediction": "a", "errors": 0}])
    answers(tmp_path, "pruned", [{"id": EVIL, "reference": EVIL, "prediction": EVIL, "errors": 1}])
    page = page_of(tmp_path, recipe=EVIL)
    reading = Reading(page)
    assert not reading.all("script")
    assert all(one["src"].startswith("data:") for one in reading.all("img"))
    assert all(one["href"].startswith("#") for one in reading.all("a"))
    assert '<script>alert("x")</script>' in reading.text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_letters_stand_out(theme: str, page: str) -> None:
    """WCAG 2.2, contrast (minimum): 4.5 to 1, by its own formula."""
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6})", blocks[0 if theme == "light" else 1]))

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for ink in ("ink", "quiet", "link", "gone"):
        for paper in ("paper", "raised"):
            low, high = sorted((luminance(colours[ink]), luminance(colours[paper])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


class TestAnswersThatChanged:
    def test_the_worst_come_first_and_all_are_counted(self, tmp_path: Path) -> None:
        def rows(*said: tuple[str, float]) -> list[dict[str, object]]:
            return [
                {"id": f"clip{n}", "reference": "yes", "prediction": what, "errors": errors}
                for n, (what, errors) in enumerate(said)
            ]

        answers(tmp_path, "original", rows(("yes", 0), ("no", 1), ("yes", 0), ("up", 1)))
        answers(tmp_path, "pruned", rows(("yes", 0), ("yes", 0), ("no", 1), ("go", 1)))
        text = changed_answers(make_manifest(), tmp_path)
        assert (
            "Of 4 clips, pruned answers 3 otherwise than the original: 1 worse, 1 better." in text
        )
        table = [line for line in text.splitlines() if line.startswith("| clip")]
        assert [re.split(r" \| ", line)[0] for line in table] == [
            "| clip", "| clip2", "| clip3", "| clip1",
        ]  # fmt: skip

    def test_none_changed(self, tmp_path: Path) -> None:
        same = [{"id": "a", "reference": "b", "prediction": "c", "errors": 1}]
        for variant in ("original", "pruned"):
            answers(tmp_path, variant, same)
        said = changed_answers(make_manifest(), tmp_path)
        assert "says the same of every clip as the original" in said

    def test_no_answers_at_all(self, tmp_path: Path) -> None:
        assert changed_answers(make_manifest(), tmp_path) == ""


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_a_browser_shows_and_prints_it_without_a_complaint(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page)
    said = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--print-to-pdf={tmp_path / 'report.pdf'}", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in said.stderr
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


class TestBars:
    def test_a_layer_s_bar_is_as_long_as_what_it_keeps(self) -> None:
        units = UnitSummary(
            total=20, share=0.5, scope="global", method="magnitude", settings={}, seconds=1.0,
            removed={0: (1, 2, 3), 1: ()}, kept={0: 9, 1: 8},
        )  # fmt: skip
        drawn = units_bars(units)
        # Of the widest layer's 12 units.
        spans = r'<span class="(\w+)" style="left: ([\d.]+)%; width: ([\d.]+)%"'
        assert re.findall(spans, drawn) == [
            ("kept", "0.0", "75.0"), ("lost", "75.0", "25.0"),
            ("kept", "0.0", "66.67"), ("lost", "66.67", "0.0"),
        ]  # fmt: skip
        assert re.findall(r'<td class="told">(.*?)</td>', drawn) == ["9 of 12 kept", "8 of 8 kept"]

    def test_errors_before_and_after_share_a_scale_and_a_fit_that_did_not_help_changes_none(
        self,
    ) -> None:
        def sublayer(before: float, after: float, refitted: bool) -> SublayerRepair:
            return SublayerRepair(
                layer=0, kind="head", name="attention <x>", removed=1, kept=3, strength=0.1,
                before=before, after=after, refitted=refitted,
            )  # fmt: skip

        sublayers = (sublayer(0.4, 0.1, True), sublayer(0.2, 0.3, False))
        drawn = repair_bars(
            Repair(kind="least-squares", clips=1, held_out=1, frames=9, sublayers=sublayers)
        )
        assert re.findall(r'class="(lost|after)" style="left: 0.0%; width: ([\d.]+)%"', drawn) == [
            ("lost", "100.0"), ("after", "25.0"), ("lost", "50.0"), ("after", "50.0"),
        ]  # fmt: skip
        assert "40.0 % → 10.0 %; 1 removed, 3 kept" in drawn
        assert "20.0 % → old weights kept" in drawn
        assert "attention &lt;x&gt;" in drawn

    def test_they_stand_in_the_place_of_the_tables_and_say_all_that_those_say(
        self, tmp_path: Path
    ) -> None:
        manifest = make_manifest()
        page = page_of(tmp_path)
        Reading(page)
        drawn = drawn_sections(manifest)
        for title, one in drawn.items():
            section = page.split(f">{title}</h2>")[1].split("<h2")[0]
            assert one.html in section
            told = set(re.findall(r"<td[^>]*>([^<]+)</td>", section))
            assert told, title
        for variant in manifest.variants:
            for latency in variant.latency:
                assert f"99 % within {milliseconds(latency.times.p99)}" in page
        # In the place of the picture, which says no more than they do.
        timed = page.split(">Latency</h2>")[1].split("<h2")[0]
        assert "<img" not in timed
        assert latency_bars(manifest.variants) in timed


def test_clips_are_played_as_far_as_there_is_room(tmp_path: Path) -> None:
    said = [{"id": f"c{n}", "reference": "a", "prediction": "a", "errors": 0} for n in range(4)]
    answers(tmp_path, "original", list(said))
    answers(tmp_path, "pruned", [{**one, "prediction": "b", "errors": 1} for one in said])
    room = MAX_AUDIO_BYTES
    sounds = {"c0": b"x" * (room - 10), "c1": b"y" * 11, "c2": b"z" * 10, "c3": b""}
    found = changed_clips(make_manifest(), tmp_path, lambda name: sounds[name] or None)
    assert found is not None
    assert not found.replaces_table
    players = Reading(found.html).all("audio")
    assert [one["aria-label"] for one in players] == ["c0", "c2"]
    kept = [base64.b64decode(one["src"].removeprefix("data:audio/wav;base64,")) for one in players]
    assert kept == [sounds["c0"], sounds["c2"]]
    assert "2 of 4 have room here" in found.html
    assert changed_clips(make_manifest(), tmp_path, lambda _: None) is None
