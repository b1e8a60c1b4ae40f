"""Pages for people: a text in Markdown as one HTML file, with its pictures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from hibprune.execution.files import read_bounded
from hibprune.records.units import Plan, Scores
from hibprune.report.bars import Drawn
from hibprune.report.figures import head_grid
from hibprune.report.spread import score_limits, spread_of
from hibprune.report.template import filled_page

FIGURES, HEADS, LATENCY = "figures", "heads.png", "latency.png"
"""Where a report's pictures lie, and the one that is a table here, whose cells tell figures."""
MAX_PICTURE_BYTES = 2**22
LIGHT, DARK = "#ffffff", "#22272e"


class Section(NamedTuple):
    """A heading of the second order, and the anchor it is found by."""

    title: str
    anchor: str


class HeadCell(NamedTuple):
    """A head in the table: its colour, one that is read on it, and its figures in words."""

    colour: str
    on: str
    told: str
    removed: bool


class LayerRow(NamedTuple):
    """The heads of a layer, None where there is none, and how many stay."""

    layer: int
    cells: list[HeadCell | None]
    kept: str


def report_html(
    recipe: str,
    markdown: str,
    heads: str,
    latency: str,
    drawn: Mapping[str, Drawn],
    directory: Path,
) -> str:
    """The report's Markdown as a page.

    The map of heads becomes the table `heads`, which tells each head's score, error, rank and fate
    to pointer, keyboard and screen reader, the picture of latencies the bars `latency`; `drawn` is
    as in `markdown_page`.
    """
    replaced = {HEADS: heads, LATENCY: latency}
    return markdown_page(recipe, markdown, directory / FIGURES, replaced, drawn)


def markdown_page(
    title: str,
    markdown: str,
    pictures: Path,
    replaced: Mapping[str, str] | None = None,
    drawn: Mapping[str, Drawn] | None = None,
) -> str:
    """A page of ours that needs nothing else: no network, no other file.

    Pictures are read from one directory, whatever folder the Markdown names them in; `replaced`
    holds HTML to stand in the place of some, by their names, and `drawn` what goes to the first
    table of a section, by its title.
    """
    body, sections = _rendered(markdown, pictures, replaced or {}, drawn or {})
    return filled_page(
        "report.html.jinja", {"title": title, "sections": sections, "body": Markup(body)}
    )


def _rendered(
    markdown: str, pictures: Path, replaced: Mapping[str, str], drawn: Mapping[str, Drawn]
) -> tuple[str, list[Section]]:
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    sections = _anchored(tokens)
    _lift_pictures(tokens)
    tokens = _with_drawings(tokens, drawn)

    def image(_: Any, inline: Sequence[Token], at: int, *rest: Any) -> str:
        name = PurePosixPath(str(inline[at].attrs["src"])).name
        if name in replaced:
            return replaced[name]
        content = read_bounded(pictures / name, MAX_PICTURE_BYTES, within=pictures)
        text = Markup.escape(inline[at].content)
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return f'<figure><img src="{source}" alt="{text}"></figure>\n'

    def table_open(*_: Any) -> str:
        return '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>\n'

    rules = {
        "image": image, "table_open": table_open, "table_close": lambda *_: "</table></div>\n",
    }  # fmt: skip
    for name, rule in rules.items():
        reader.add_render_rule(name, rule)
    return str(reader.renderer.render(tokens, reader.options, {})), sections


def _anchored(tokens: Sequence[Token]) -> list[Section]:
    """Give headings of the second order anchors; returns them."""
    sections: list[Section] = []
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.tag == "h2":
            words = "".join(child.content for child in inline.children or ())
            stem = re.sub(r"\W+", "-", words.lower()).strip("-") or "section"
            taken = {section.anchor for section in sections}
            anchor = stem if stem not in taken else f"{stem}-{len(sections)}"
            opening.attrSet("id", anchor)
            sections.append(Section(words, anchor))
    return sections


def _with_drawings(tokens: Sequence[Token], drawn: Mapping[str, Drawn]) -> list[Token]:
    """The tokens with what is drawn for a section before its first table, or in its place."""
    waiting, found, left_out = dict(drawn), list[Token](), False
    title = ""
    for before, token in zip((None, *tokens), tokens, strict=False):
        if before is not None and before.type == "heading_open" and before.tag == "h2":
            title = token.content
        if token.type == "table_open" and title in waiting:
            drawing = waiting.pop(title)
            found.append(Token("html_block", "", 0, content=drawing.html))
            left_out = drawing.replaces_table
        if not left_out:
            found.append(token)
        elif token.type == "table_close":
            left_out = False
    return found


def _lift_pictures(tokens: Sequence[Token]) -> None:
    """Let a picture that is alone in its paragraph stand without one."""
    for opening, inline, closing in zip(tokens, tokens[1:], tokens[2:], strict=False):
        children = inline.children or ()
        if opening.type == "paragraph_open" and [one.type for one in children] == ["image"]:
            opening.hidden = closing.hidden = True


def heads_table(scores: Scores, plan: Plan, label: str) -> str:
    """Layers as rows, the last one first as in the picture; a cell tells a head's figures."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize, to_hex

    grid, spread = head_grid(scores, plan), spread_of(scores, plan)
    ranks = {head: place for place, head in enumerate(spread.heads, start=1)}
    errors = {} if spread.errors is None else dict(zip(spread.heads, spread.errors, strict=True))
    places = {(head.layer, head.index): head for head in spread.heads}
    scale, shades = Normalize(*score_limits(scores)), colormaps["viridis"]
    rows = []
    for layer in reversed(range(len(grid.scores))):
        cells: list[HeadCell | None] = []
        for index, score in enumerate(grid.scores[layer]):
            head, removed = places.get((layer, index)), bool(grid.removed[layer, index])
            if head is None or np.isnan(score):
                cells.append(None)
                continue
            error = f" ± {errors[head]:.2g}" if head in errors else ""
            fate = "removed" if removed else "kept"
            told = (
                f"Layer {layer}, head {index}: {score:.4g}{error}, "
                f"rank {ranks[head]} of {len(ranks)} from the lowest, {fate}"
            )
            shade = shades(scale(score))
            on = DARK if np.dot(shade[:3], (0.2126, 0.7152, 0.0722)) > 0.4 else LIGHT
            cells.append(HeadCell(to_hex(shade), on, told, removed))
        there = [cell for cell in cells if cell is not None]
        kept = sum(not cell.removed for cell in there)
        rows.append(LayerRow(layer, cells, f"{kept} of {len(there)} kept"))
    return filled_page("heads.html.jinja", {"rows": rows, "label": label})
