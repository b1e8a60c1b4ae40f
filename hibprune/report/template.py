"""The skeletons of report, card and pages: templates that are filled with finished parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


def filled(name: str, parts: Mapping[str, object]) -> str:
    """A template of `templates/` with its parts put in.

    Parts are finished Markdown and are never read as templates themselves.
    """
    # Markdown: its parts escape themselves.
    return _environment(escaping=False).get_template(name).render(parts)


def filled_page(name: str, parts: Mapping[str, object]) -> str:
    """An HTML template of `templates/` with its parts put in, whatever they hold escaped."""
    return _environment(escaping=True).get_template(name).render(parts)


@cache
def _environment(escaping: bool) -> Environment:
    """Keeps what it has compiled."""
    environment = Environment(
        loader=PackageLoader("hibprune.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=escaping,
    )
    environment.filters["paragraphs"] = paragraphs
    return environment


def paragraphs(texts: Iterable[str]) -> str:
    """Those that are not empty, a blank line between them."""
    return "\n\n".join(filter(None, texts))
