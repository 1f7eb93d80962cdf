"""Which files of a folder are its pictures: one list, for fetch and for predict."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from lineup.data.image_io import is_picture
from lineup.errors import UserError, listed

IGNORED_NAMES = {  # what systems and servers leave behind, beside all that begins with a dot
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "lost+found",
}

NOT_PICTURES = {"PDF", "EPS", "HDF5", "MPEG", "BUFR", "GRIB"}  # formats that Pillow lists too


@dataclass
class Listing:
    """What lies in a folder, each in order of the names."""

    pictures: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)  # visible files that are no pictures
    ignored: list[Path] = field(default_factory=list)  # hidden, or left behind by systems
    misplaced: list[Path] = field(default_factory=list)  # links that lead into another class

    @property
    def files(self) -> list[Path]:
        """Return every visible file, picture or not."""
        return sorted(self.pictures + self.others)

    def extend(self, other: Listing) -> None:
        """Add what lies in another folder."""
        self.pictures += other.pictures
        self.others += other.others
        self.ignored += other.ignored
        self.misplaced += other.misplaced

    def sort(self) -> None:
        """Put each list in order of the names."""
        for paths in (self.pictures, self.others, self.ignored, self.misplaced):
            paths.sort()


def list_tree(folder: Path) -> Listing:
    """Return the pictures of `folder` at any depth; its sub-folders are taken for classes."""
    listing = list_loose(folder)
    for path in sub_folders(folder):
        listing.extend(list_pictures(path, folder))
    check_links(folder, listing.misplaced)
    return listing


def list_loose(folder: Path) -> Listing:
    """Return what lies directly in `folder`, without its sub-folders."""
    listing = Listing(ignored=_ignored(folder))
    for path in _visible(folder):
        if not path.is_dir():
            _add_file(path, listing)
    return listing


def list_pictures(folder: Path, root: Path) -> Listing:
    """Return the pictures of the class `folder` of the set `root`, links followed.

    Links that end inside the set, but outside their class, are misplaced.
    """
    listing = Listing()
    own = root.resolve() / folder.relative_to(root)
    _walk(folder, own, root.resolve(), (), listing)
    listing.sort()
    return listing


def check_links(root: Path, misplaced: Sequence[Path]) -> None:
    """UserError names the links of the set `root` that would give pictures another label."""
    if misplaced:
        links = listed([f"{path} → {path.readlink()}" for path in misplaced], lines=True)
        raise UserError(
            f"{len(misplaced)} links inside {root} lead out of their class, so their pictures "
            f"would get two labels; remove these, or all links (find {root}/ -type l -delete):"
            f"{links}"
        )


def _walk(path: Path, own: Path, root: Path, above: tuple[Path, ...], listing: Listing) -> None:
    if not path.exists():  # a broken link, or one to itself, which resolve() fails on
        _add_file(path, listing)
        return
    target = path.resolve()
    if path.is_symlink() and _leads_into_another_class(target, own, root):
        listing.misplaced.append(path)
        return
    if not path.is_dir():
        _add_file(path, listing)
        return
    if target in above:  # a link back up within the class
        return
    listing.ignored += _ignored(path)
    for child in _visible(path):
        _walk(child, own, root, (*above, target), listing)


def _leads_into_another_class(target: Path, own: Path, root: Path) -> bool:
    meets_the_set = target.is_relative_to(root) or root.is_relative_to(target)
    return meets_the_set and not target.is_relative_to(own)


def _add_file(path: Path, listing: Listing) -> None:
    has_picture_name = path.suffix.lower() in _picture_suffixes()
    if has_picture_name or is_picture(path):
        listing.pictures.append(path)
    else:
        listing.others.append(path)


@cache
def _picture_suffixes() -> set[str]:
    """Return what names of pictures end with."""
    known = Image.registered_extensions().items()
    return {suffix for suffix, name in known if name not in NOT_PICTURES}


def sub_folders(folder: Path) -> list[Path]:
    """Return the visible folders in `folder`, links followed, in order of their names."""
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """Return what lies in `folder` and is not ignored, in order; UserError if not UTF-8."""
    found = sorted(path for path in _everything(folder) if not _is_ignored(path))
    for path in found:
        check_utf8(str(path))
    return found


def _ignored(folder: Path) -> list[Path]:
    return [path for path in _everything(folder) if _is_ignored(path)]


def _everything(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} can't be listed: {error.strerror}") from None


def _is_ignored(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in IGNORED_NAMES


def check_utf8(name: str) -> None:
    """Raise UserError where the name of a file is not UTF-8, which could not be printed."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"the name {name!r} is not UTF-8; rename it") from None


def class_of(path: Path, folder: Path, classes: Iterable[str]) -> str | None:
    """Return the class that the folders between `folder` and a picture name, or None."""
    known = set(classes)
    folders = path.relative_to(folder).parent.parts
    names = [unicodedata.normalize("NFC", name) for name in folders]
    return next((name for name in names if name in known), None)


def describe_left_out(listing: Listing) -> str:
    """Return one line that counts what is no part of the set; an empty text where that is all."""
    counts = []
    if listing.ignored:
        names = sorted({path.name for path in listing.ignored})
        counts.append(f"{len(listing.ignored)} hidden or made by systems ({listed(names, most=4)})")
    if listing.others:
        names = [path.name for path in listing.others]
        counts.append(f"{len(listing.others)} other files ({listed(names, most=4)})")
    return f"left out: {', '.join(counts)}" if counts else ""
