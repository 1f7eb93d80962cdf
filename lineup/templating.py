"""Texts for people, from the files in lineup/templates/."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lineup.paths import TEMPLATES

MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")


def _plain(text: str) -> str:
    """Return a text that a person chose, so that Markdown shows it and obeys none of it."""
    return MARKDOWN.sub(r"\\\1", text)


def render(template: str, **values: Any) -> str:  # noqa: ANN401
    """Return a template filled with values; only HTML escapes what they hold."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=".html" in template,
    )
    environment.filters["plain"] = _plain
    return environment.get_template(template).render(**values)
