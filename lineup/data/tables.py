"""CSV files as people save them: commas, semicolons or tabs, with a header."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lineup.errors import UserError, nearest

NOT_UTF8 = "is not UTF-8: save it as 'CSV UTF-8 (Comma delimited)', as Excel calls it"
DELIMITERS = ",;\t"
FIRST_ROW = 2  # as spreadsheets count, the header being the first
LARGEST = (2 - 2**-23) * 2.0**127  # a finite float32


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file, as they stand."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    delimiter: str

    def position(self, name: str) -> int:
        """Return where a column is; UserError with the nearest name."""
        if name not in self.header:
            raise UserError(f"{self.path} has no column '{name}'; {nearest(name, self.header)}")
        return self.header.index(name)

    def texts(self, name: str) -> list[str]:
        """Return a column without blanks around its cells; UserError if one is empty."""
        position = self.position(name)
        cells = [row[position].strip() for row in self.rows]
        if "" in cells:
            raise UserError(f"{self.path}, row {cells.index('') + FIRST_ROW}: '{name}' is empty")
        return cells

    def number(self, row: int, position: int) -> float:
        """Return a cell as a number, which has a decimal comma where commas part no columns."""
        cell = self.rows[row][position]
        place = f"{self.path}, row {row + FIRST_ROW}: {self.header[position]} = '{cell}'"
        try:
            number = float(cell if self.delimiter == "," else cell.replace(",", "."))
        except ValueError:
            raise UserError(f"{place} is no number") from None
        if not abs(number) <= LARGEST:
            raise UserError(f"{place} is not finite, or beyond float32's {LARGEST:.3g}")
        return number


def read_csv(path: Path) -> Table:
    """Return the cells of a CSV file; UserError names the row that is wrong."""
    if not path.is_file():
        raise UserError(f"{path} is missing, the table that {path.with_name('dataset.yaml')} names")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} {NOT_UTF8}") from None
    head = re.split(r"[\r\n]", text, maxsplit=1)[0]
    delimiter = max(DELIMITERS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header, *rows = [row for row in reader if row] or [[]]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; is a quote open?") from None
    header = [name.strip() for name in header]
    if len(set(header)) < len(header):
        raise UserError(f"{path} names a column twice; rename one")
    if not rows:
        raise UserError(f"{path} needs a header and at least one row")
    _check_lengths(path, header, rows)
    return Table(path, header, rows, delimiter)


def _check_lengths(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for number, row in enumerate(rows, start=FIRST_ROW):
        if len(row) != len(header):
            counts = f"{len(row)} cells under {len(header)} columns"
            raise UserError(f"{path}, row {number}: {counts}")
