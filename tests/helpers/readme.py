"""The README, and the programs in it."""

import re

from helpers.project import ROOT

README = (ROOT / "README.md").read_text()


def code_block(after: str, language: str) -> str:
    """Return the first code block of a language after a heading."""
    section = README.split(after, 1)[1]
    return re.search(rf"```{language}\n(.*?)```", section, re.S)[1]
