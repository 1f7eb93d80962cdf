"""CSV files as people save them: commas, semicolons or tabs, with a header."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from lineup.errors import UserError, nearest

NOT_UTF8 = "is not UTF-8: save it as 'CSV UTF-8 (Comma delimited)', as Excel calls it"
DELIMITERS = ",;\t"
LARGEST = (2 - 2**-23) * 2.0**127  # a finite float32


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file, as they stand."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    numbers: list[int]  # of the rows, as spreadsheets count: the header and empty ones, too
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
            raise UserError(f"{self.path}, row {self.numbers[cells.index('')]}: '{name}' is empty")
        return cells

    def number(self, row: int, position: int) -> float:
        """Return a cell as a number, which has a decimal comma where commas part no columns."""
        cell = self.rows[row][position]
        place = f"{self.path}, row {self.numbers[row]}: {self.header[position]} = '{cell}'"
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
        found = {number: row for number, row in enumerate(reader, start=1) if row}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; is a quote open?") from None
    numbers, (header, *rows) = list(found)[1:], list(found.values()) or [[]]
    header = [name.strip() for name in header]
    if len(set(header)) < len(header):
        raise UserError(f"{path} names a column twice; rename one")
    if not rows:
        raise UserError(f"{path} needs a header and at least one row")
    table = Table(path, header, rows, numbers, delimiter)
    _check_lengths(table)
    return table


def _check_lengths(table: Table) -> None:
    for number, row in zip(table.numbers, table.rows, strict=True):
        if len(row) != len(table.header):
            counts = f"{len(row)} cells under {len(table.header)} columns"
            raise UserError(f"{table.path}, row {number}: {counts}")
