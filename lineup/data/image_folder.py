"""A folder of images per class → square uint8 tensors."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lineup.cli import progress
from lineup.data.copies import count_shared, find_originals, hold_out
from lineup.data.folder_listing import (
    Listing,
    describe_left_out,
    list_loose,
    list_pictures,
    sub_folders,
)
from lineup.data.image_io import (
    PictureFacts,
    UnreadablePictureError,
    full_scale,
    inspect_picture,
)
from lineup.data.preprocessing import Preprocessing
from lineup.errors import UserError, listed
from lineup.params import Data

SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images as tensors, and what is known of its files."""

    classes: list[str]
    train: tuple[Tensor, Tensor]  # images uint8 (N, C, S, S), labels int64 (N,)
    test: tuple[Tensor, Tensor]
    preprocessing: Preprocessing
    files: list[dict[str, Any]]  # a row per picture: split, index, file, label
    shared_files: int  # test pictures that are also in train, byte for byte


def read_folder(folder: Path, data: Data) -> ImageFolder:
    """Return the folder as tensors; UserError names what is wrong with it.

    Where there is no test/, the fraction `data.test` of each class is held out with a fixed seed.
    """
    roots = _find_splits(folder)
    classes = list(_find_classes(roots[0]))
    listings = [_list_images(root, folder, classes) for root in roots]
    _say_what_is_left_out(folder, roots, listings)
    paths = [path for split in listings for listing in split for path in listing.files]
    labels = torch.tensor([label for split in listings for label in _labels(split)])

    originals, shared = find_originals(paths), 0
    copies = len(paths) - len(originals.unique())
    if len(roots) == 2:
        train_count = len(_labels(listings[0]))
        shared = count_shared(paths, originals, train_count, data.allow_duplicates)
        train, test = torch.arange(len(paths)).tensor_split([train_count])
    else:
        train, test = hold_out(labels, originals, classes, data.test)
        if copies:
            print(f"{folder.name}: {copies} files are copies of others; copies are on one side")

    preprocessing = _choose_preprocessing(folder.name, paths, data)
    images = _decode_files(paths, preprocessing)
    rows = _file_rows("train", train, paths, labels, classes)
    rows += _file_rows("test", test, paths, labels, classes)
    splits = ((images[indices], labels[indices]) for indices in (train, test))
    return ImageFolder(classes, *splits, preprocessing, rows, shared)


def _labels(listings: Sequence[Listing]) -> list[int]:
    return [label for label, listing in enumerate(listings) for _ in listing.files]


def _file_rows(
    split: str, indices: Tensor, paths: Sequence[Path], labels: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for row, number in enumerate(indices.tolist()):
        file, label = paths[number].as_posix(), classes[labels[number]]
        rows.append({"split": split, "index": row, "file": file, "label": label})
    return rows


# --- what lies where ------------------------------------------------------------------------------


def _find_splits(folder: Path) -> list[Path]:
    """Return what holds the classes: [folder], or [train] or [train, test] below it."""
    inside = sub_folders(folder)
    is_split = [path.name.lower() in SPLIT_NAMES and bool(sub_folders(path)) for path in inside]
    if not any(is_split):
        return [folder]
    names = [path.name for path in inside]
    if names not in (["train"], ["test", "train"]):
        raise UserError(
            f"{folder} holds {listed([f'{name}/' for name in names])}: make it one sub-folder per "
            "class, or train/ and test/ that hold these (validation is drawn from train/)"
        )
    return [folder / name for name in sorted(names, reverse=True)]


def _find_classes(folder: Path) -> dict[str, Path]:
    """Return the class folders by name, sorted as torchvision's ImageFolder does."""
    folders = sub_folders(folder)
    classes = {unicodedata.normalize("NFC", path.name): path for path in folders}
    if len(classes) < 2:
        found = f"only '{next(iter(classes))}'" if classes else "none"
        wanted = "a sub-folder of images for each of two or more classes"
        raise UserError(f"{folder} needs {wanted}; found {found}")
    if len(classes) < len(folders):
        raise UserError(f"{folder} holds two sub-folders whose names look the same; rename one")
    if strange := [name for name in classes if not name.isprintable()]:
        names = listed(strange, lines=True)
        raise UserError(f"{folder}: names of classes must be readable text; rename:{names}")
    if stray := list_loose(folder).pictures:
        names = listed(stray, lines=True)
        raise UserError(f"images lie outside the class folders; move or remove them:{names}")
    return classes


def _list_images(root: Path, folder: Path, classes: Sequence[str]) -> list[Listing]:
    """Return a listing per class of a split of the set `folder`; UserError if one has no file."""
    folders = _find_classes(root)
    if lone := sorted(set(folders) ^ set(classes)):
        problem = "train/ and test/ must hold the same classes"
        raise UserError(f"{folder}: {problem}; only one has {listed(lone)}")
    listings = [list_pictures(folders[name], folder) for name in classes]
    pairs = zip(classes, listings, strict=True)
    if empty := [folders[name] for name, listing in pairs if not listing.files]:
        raise UserError(f"no images in; fill or remove:{listed(empty, lines=True)}")
    return listings


def _say_what_is_left_out(
    folder: Path, roots: Sequence[Path], listings: Sequence[Sequence[Listing]]
) -> None:
    left_out = Listing()
    for place in dict.fromkeys([folder, *roots]):
        left_out.extend(list_loose(place))
    for split in listings:
        for listing in split:
            left_out.ignored += listing.ignored
    left_out.others += left_out.pictures  # beside train/ and test/
    if line := describe_left_out(left_out):
        print(f"{folder.name}: {line}")


# --- decoding -------------------------------------------------------------------------------------


def _choose_preprocessing(name: str, paths: Sequence[Path], data: Data) -> Preprocessing:
    """Return how all pictures of a set become tensors; say what is not obvious about them."""
    results = _map("Inspecting", lambda _, path: inspect_picture(path), paths)
    facts = [result for result in results if isinstance(result, PictureFacts)]
    largest = max((fact.largest for fact in facts), default=255)
    scale = full_scale(largest)
    if largest > 255:
        depth = scale.bit_length()
        values = f"largest value {largest:,}"
        print(f"{name}: {depth}-bit pictures ({values}): 0–{scale:,} becomes 0–255")
    animated = sum(fact.frames > 1 for fact in facts)
    if animated:
        print(f"{name}: {animated} pictures hold several frames or pages; the first is taken")
    return Preprocessing((data.size, data.size), data.channels, scale)


def _decode_files(paths: Sequence[Path], preprocessing: Preprocessing) -> Tensor:
    """Decode in parallel into uint8 (N, C, S, S); UserError lists the files which are no good."""
    shape = (len(paths), preprocessing.channels, *preprocessing.size)
    images = torch.empty(shape, dtype=torch.uint8)

    def decode(index: int, path: Path) -> None:
        images[index] = torch.from_numpy(preprocessing.tensor(path))

    results = zip(paths, _map("Decoding", decode, paths), strict=True)
    failures = [f"{path}: {result}" for path, result in results if result is not None]
    if failures:
        count = f"{len(failures)} of {len(paths)} files are unreadable"
        raise UserError(f"{count}; fix or remove:{listed(failures, lines=True)}")
    return images


def _map(
    what: str, work: Callable[[int, Path], Result], paths: Sequence[Path]
) -> list[Result | UnreadablePictureError]:
    """Return the result of `work` on each file, done in parallel, or why it is unreadable."""

    def attempt(index: int) -> Result | UnreadablePictureError:
        try:
            return work(index, paths[index])
        except UnreadablePictureError as error:
            return error

    count = len(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(unit="images") as bar:
        results = pool.map(attempt, range(count))
        return list(bar.track(results, total=count, description=what))
