"""Where the pictures of a set lie, what each shows, and which split it was put in."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from lineup.data.dataset_yaml import DATASET_YAML, Images
from lineup.data.folder_listing import (
    Listing,
    check_links,
    describe_left_out,
    list_loose,
    list_pictures,
    list_tree,
    sub_folders,
)
from lineup.data.tables import Table, read_csv
from lineup.errors import UserError, listed

SPLITS = {  # names of folders, in lower case
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
LAYOUTS = (
    "a sub-folder of images per class; train/ that holds such sub-folders, with validation/ and "
    "test/ if you have them; or a table of files and labels that dataset.yaml names"
)
_UNREADABLE = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of characters, ends of lines


@dataclass(frozen=True)
class Pictures:
    """The pictures of a set, in an order that the names of the files alone decide."""

    classes: list[str]
    paths: list[Path]
    labels: Tensor  # int64 (N,)
    splits: list[str]  # train, validation or test; all train where the set does not say

    def indices(self, split: str) -> Tensor:
        """Return which pictures were put in a split, int64 (n,)."""
        return torch.tensor([i for i, name in enumerate(self.splits) if name == split]).long()


def find_pictures(folder: Path, settings: Images) -> Pictures:
    """Return the pictures of a set; UserError names what is wrong with its layout."""
    if settings.table:
        return _find_in_table(folder, settings)
    return _find_in_folders(folder)


# --- a sub-folder per class -----------------------------------------------------------------------


def _find_in_folders(folder: Path) -> Pictures:
    roots = _find_splits(folder)
    classes = list(_find_classes(roots["train"]))
    _check_same_classes(folder, roots, classes)
    listings = {split: _list_images(root, folder, classes) for split, root in roots.items()}
    _say_what_is_left_out(folder, list(roots.values()), listings.values())
    found = [
        (path, label, split)
        for split, by_class in listings.items()
        for label, listing in enumerate(by_class)
        for path in listing.files
    ]
    paths, labels, splits = zip(*found, strict=True)
    return Pictures(classes, list(paths), torch.tensor(labels), list(splits))


def _find_splits(folder: Path) -> dict[str, Path]:
    """Return what holds the classes, by split: the folder itself, or folders in it."""
    inside = sub_folders(folder)
    splits = [SPLITS.get(path.name.lower()) if sub_folders(path) else None for path in inside]
    if not any(splits):
        return {"train": folder}
    found = dict(zip(splits, inside, strict=True))
    if None in splits or len(found) < len(inside) or "train" not in found:
        names = listed([f"{path.name}/" for path in inside])
        flat = [path for path in inside if path.name.lower() in SPLITS and not sub_folders(path)]
        if flat and "train" in found:
            what = listed([f"{path.name}/" for path in flat])
            reason = "has no folder per class, so that nothing says what its pictures show"
            raise UserError(f"{folder}: {what} {reason}; move it out of {folder}")
        raise UserError(f"{folder} holds {names}; a set is {LAYOUTS}")
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _find_classes(folder: Path) -> dict[str, Path]:
    """Return the class folders by name, sorted as torchvision's ImageFolder does."""
    folders = sub_folders(folder)
    classes = {unicodedata.normalize("NFC", path.name): path for path in folders}
    if len(classes) < 2:
        found = f"only '{next(iter(classes))}'" if classes else "none"
        wanted = "a sub-folder of images for each of two or more classes"
        raise UserError(f"{folder} needs {wanted}; found {found}. A set is {LAYOUTS}")
    if len(classes) < len(folders):
        raise UserError(f"{folder} holds two sub-folders whose names look the same; rename one")
    _check_names(folder, list(classes))
    if stray := list_loose(folder).pictures:
        names = listed(stray, lines=True)
        raise UserError(f"images lie outside the class folders; move or remove them:{names}")
    return classes


def _check_names(place: Path, classes: Sequence[str]) -> None:
    if strange := [name for name in classes if set(map(unicodedata.category, name)) & _UNREADABLE]:
        names = listed(strange, lines=True)
        raise UserError(f"{place}: names of classes must be readable text; rename:{names}")


def _check_same_classes(folder: Path, roots: dict[str, Path], classes: Sequence[str]) -> None:
    found = {root.name: _find_classes(root) for root in roots.values()}
    lone: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set().union(*found.values())):
        holders = [f"{part}/" for part, inside in found.items() if name in inside]
        if len(holders) < len(roots):
            lone[" and ".join(holders)].append(name)
    if lone:
        parts = [f"only {part} has {listed(names)}" for part, names in lone.items()]
        raise UserError(f"{folder}: all parts must hold the same classes; {'; '.join(parts)}")


def _list_images(root: Path, folder: Path, classes: Sequence[str]) -> list[Listing]:
    """Return a listing per class of a split of the set `folder`; UserError if one has no file."""
    folders = _find_classes(root)
    listings = [list_pictures(folders[name], folder) for name in classes]
    check_links(folder, [path for listing in listings for path in listing.misplaced])
    pairs = zip(classes, listings, strict=True)
    if empty := [folders[name] for name, listing in pairs if not listing.files]:
        raise UserError(f"no images in; fill or remove:{listed(empty, lines=True)}")
    return listings


def _say_what_is_left_out(
    folder: Path, roots: Sequence[Path], listings: Iterable[Sequence[Listing]]
) -> None:
    left_out = Listing()
    for place in dict.fromkeys([folder, *roots]):
        left_out.extend(list_loose(place))
    for by_class in listings:
        for listing in by_class:
            left_out.ignored += listing.ignored
    left_out.others += left_out.pictures  # beside train/ and test/
    left_out.others = [path for path in left_out.others if path != folder / DATASET_YAML]
    if line := describe_left_out(left_out):
        print(f"{folder.name}: {line}")


# --- a table of files and labels ------------------------------------------------------------------


def _find_in_table(folder: Path, settings: Images) -> Pictures:
    table = read_csv(folder / settings.table)
    file_column, label_column = _choose_columns(table, settings)
    listing = list_tree(folder)
    if Path(file_column).name in {path.name for path in listing.pictures}:
        advice = f"{file_column} is a picture; write a header above it, such as file,label"
        raise UserError(f"{table.path} begins without a header: {advice}")
    labels = [unicodedata.normalize("NFC", name) for name in table.texts(label_column)]
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise UserError(f"{table.path}: column '{label_column}' needs two or more classes")
    _check_names(table.path, classes)

    paths = _match_files(table, table.texts(file_column), folder, listing)
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        names = listed(twice, lines=True)
        raise UserError(f"{table.path} names files twice; keep one row of:{names}")
    own = {*paths, table.path, folder / DATASET_YAML}
    others = [path for path in listing.files if path not in own]
    if line := describe_left_out(Listing(others=others, ignored=listing.ignored)):
        print(f"{folder.name}: {line}")
    numbers = {name: number for number, name in enumerate(classes)}
    found = sorted(zip(paths, (numbers[name] for name in labels), strict=True))
    paths, targets = zip(*found, strict=True)
    return Pictures(classes, list(paths), torch.tensor(targets), ["train"] * len(paths))


def _choose_columns(table: Table, settings: Images) -> tuple[str, str]:
    """Return the columns of files and labels.

    They are those that dataset.yaml names, else those called so, else the first and the second of
    two.
    """
    file, label = settings.file or "file", settings.label or "label"
    if len(table.header) == 2:
        first, second = table.header
        if file not in table.header:
            file = second if label == first else first
        if label not in table.header:
            label = second if file == first else first
    if file == label:
        raise UserError(f"{DATASET_YAML}: file and label are both '{file}'; name two columns")
    for key, name in {"file": file, "label": label}.items():
        if name not in table.header:
            columns = listed(table.header)
            raise UserError(
                f"{table.path} has no column '{name}' ({columns}); say which it is in "
                f"{DATASET_YAML}, as {key}: NAME"
            )
    return file, label


def _match_files(table: Table, names: Sequence[str], folder: Path, listing: Listing) -> list[Path]:
    """Return the file of each name, which may lack the folder, the suffix, or both.

    A picture's whole name counts first. Of files that are no pictures only the whole name counts:
    an annotation may lie beside each.
    """
    pictures = _by_spelling(folder, listing.pictures, most=1)
    others = _by_spelling(folder, listing.others, most=1)
    known = _by_spelling(folder, listing.pictures)
    found, errors = [], []
    for row, name in zip(table.numbers, names, strict=True):
        plain = _plain(name)
        matches = pictures.get(plain) or known.get(plain) or others.get(plain, [])
        if len(matches) == 1:
            found.append(matches[0])
        else:
            problem = f"could be {listed(matches)}" if matches else "is no file here"
            errors.append(f"row {row}: '{name}' {problem}")
    if errors:
        raise UserError(
            f"{table.path}: {len(errors)} of {len(names)} names fit no single file in "
            f"{folder}/ or a folder in it, with or without suffix:{listed(errors, lines=True)}"
        )
    return found


def _by_spelling(
    folder: Path, paths: Sequence[Path], most: int | None = None
) -> dict[str, list[Path]]:
    """Return the files that a name in a table may mean, by that name: the first `most` of each."""
    known: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        for spelling in islice(_spellings(path.relative_to(folder)), most):
            known[spelling].append(path)
    return known


def _spellings(path: Path) -> Iterator[str]:
    """Yield the names that a table may give a file, the whole one first."""
    parts = path.parts
    for start in range(len(parts)):
        tail = PurePosixPath(*parts[start:])
        yield _plain(str(tail))
        if tail.suffix:
            yield _plain(str(tail.with_suffix("")))


def _plain(name: str) -> str:
    name = unicodedata.normalize("NFC", name).replace("\\", "/")
    return name.removeprefix("./")
