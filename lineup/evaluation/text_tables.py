"""Tables of texts, for people: as Markdown, as CSV, and on the terminal."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet computes
NUMBER = re.compile(r"[+-][0-9.]+([eE][+-]?[0-9]+)?")
Rows = Sequence[Mapping[str, str]]  # the first one's keys are the columns


def as_text(value: object) -> object:
    """Return a cell that spreadsheets show and never compute: a formula gets an apostrophe."""
    is_formula = isinstance(value, str) and len(value) > 1 and value.startswith(FORMULA)
    return f"'{value}" if is_formula and not NUMBER.fullmatch(value) else value


def markdown(rows: Rows, left: Collection[str] = ("architecture",)) -> str:
    """Return a Markdown table whose columns line up as plain text; those not `left` are numbers."""
    widths = {head: max(len(head), 3, *(len(row[head]) for row in rows)) for head in rows[0]}
    rule = {
        head: "-" * width if head in left else "-" * (width - 1) + ":"
        for head, width in widths.items()
    }
    lines = []
    for row in ({head: head for head in widths}, rule, *rows):
        cells = [
            row[head].ljust(width) if head in left else row[head].rjust(width)
            for head, width in widths.items()
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def show(
    title: str, rows: Rows, left: Collection[str] = ("architecture",), wrapped: str = ""
) -> None:
    """Print a table; the column `wrapped` takes several lines where it is too wide for one."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for head in rows[0]:
        table.add_column(head, justify="left" if head in left else "right", no_wrap=head != wrapped)
    for row in rows:
        table.add_row(*map(Text, row.values()))
    Console().print(table)


def readable_p(p: float) -> str:
    """Return a p-value in two significant digits."""
    if p < 1e-4:
        return "< 0.0001"
    return f"{p:.2g}" if p < 0.995 else "1"
