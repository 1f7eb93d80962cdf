"""What a person names to be classified: files, folders, standard input."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lineup.data.folder_listing import check_utf8, class_of, describe_left_out, list_tree
from lineup.errors import UserError

STDIN = "-"


@dataclass(frozen=True)
class Source:
    """A picture to classify, and the folder it was found in."""

    name: str
    folder: Path | None = None

    def open(self) -> Path | BinaryIO:
        """Return the path of the picture, or the bytes on standard input."""
        return io.BytesIO(sys.stdin.buffer.read()) if self.name == STDIN else Path(self.name)

    def label(self, classes: Sequence[str]) -> str | None:
        """Return the class that the picture's folders name, if they do."""
        return class_of(Path(self.name), self.folder, classes) if self.folder else None


def find_sources(names: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Return the pictures behind names, folders at any depth, and notes on what was left out."""
    sources, notes = [], []
    for name in names:
        path = Path(name)
        check_utf8(name)
        if name != STDIN and not path.exists():
            raise UserError(f"there is no file or folder '{name}'")
        if name == STDIN or not path.is_dir():
            sources.append(Source(name))
            continue
        listing = list_tree(path)
        if not listing.pictures:
            raise UserError(f"folder '{name}' holds no picture")
        sources += [Source(str(file), path) for file in listing.pictures]
        if line := describe_left_out(listing):
            notes.append(f"{name}: {line}")
    return sources, notes
