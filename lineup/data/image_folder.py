"""A folder of images per class → square uint8 tensors."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lineup.cli import progress
from lineup.errors import UserError
from lineup.data.splitting import stratified_split as draw_part
from lineup.data.folder_listing import (
    Listing,
    describe_left_out,
    list_loose,
    list_pictures,
    listed,
    sub_folders,
)
from lineup.data.image_io import (
    PictureFacts,
    UnreadablePictureError,
    full_scale,
    inspect_picture,
)
from lineup.data.preprocessing import Preprocessing
from lineup.files import sha256
from lineup.params import Data

SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}
TEST_SEED = 0
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
    """Return the folder as tensors; raises UserError that names what is wrong with it.

    Where there is no test/, the part `data.test` of each class is held out with a fixed seed.
    """
    parts = find_parts(folder)
    classes = list(find_classes(parts[0]))
    files = [list_images(part, folder, classes) for part in parts]
    _say_what_is_left_out(folder, parts, files)

    paths = [path for by_class in files for listing in by_class for path in listing.files]
    labels = torch.tensor([label for by_class in files for label in _labels(by_class)])
    originals = find_originals(paths)
    shared = 0
    if len(parts) == 2:
        train, test = torch.arange(len(paths)).split([len(_labels(by_class)) for by_class in files])
        shared = check_shared(paths, originals, len(train), data.allow_duplicates)
    else:
        train, test = hold_out(folder.name, labels, originals, classes, data.test)

    facts = _map("Inspecting", lambda _, path: inspect_picture(path), paths)
    readable = [fact for fact in facts if isinstance(fact, PictureFacts)]
    preprocessing = choose_preprocessing(folder, readable, data)
    images = decode_files(paths, preprocessing)
    return ImageFolder(
        classes,
        (images[train], labels[train]),
        (images[test], labels[test]),
        preprocessing,
        _rows({"train": train, "test": test}, paths, labels, classes),
        shared,
    )


def _labels(by_class: Sequence[Listing]) -> list[int]:
    return [label for label, listing in enumerate(by_class) for _ in listing.files]


def _rows(
    splits: dict[str, Tensor], paths: Sequence[Path], labels: Tensor, classes: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "split": split,
            "index": index,
            "file": paths[number].as_posix(),
            "label": classes[labels[number]],
        }
        for split, numbers in splits.items()
        for index, number in enumerate(numbers.tolist())
    ]


def find_parts(folder: Path) -> list[Path]:
    """Return [folder], or [train] or [train, test] below it: what holds the classes; raises UserError if unclear."""
    inside = sub_folders(folder)
    parts = [path.name for path in inside if path.name.lower() in SPLIT_NAMES and sub_folders(path)]
    if not parts:
        return [folder]
    if [path.name for path in inside] not in (["train"], ["test", "train"]):
        raise UserError(
            f"{folder} holds {listed([path.name + '/' for path in inside])}: make it one sub-folder per class, or "
            f"train/ and test/ that hold these (the validation part is drawn from train/)"
        )
    return [folder / name for name in sorted(parts, reverse=True)]


def find_classes(folder: Path) -> dict[str, Path]:
    """Return the class folders by name, sorted as torchvision's ImageFolder does; raises UserError if below two."""
    classes = {unicodedata.normalize("NFC", path.name): path for path in sub_folders(folder)}
    if len(classes) < 2:
        found = f"only '{next(iter(classes))}'" if classes else "none"
        raise UserError(
            f"{folder} needs a sub-folder of images for each of two or more classes; found {found}"
        )
    if len(classes) < len(sub_folders(folder)):
        raise UserError(f"{folder} holds two sub-folders whose names look the same; rename one")
    strange = [name for name in classes if not name.isprintable()]
    if strange:
        raise UserError(
            f"{folder}: names of classes must be readable text; rename:{listed(strange, lines=True)}"
        )
    stray = list_loose(folder).pictures
    if stray:
        raise UserError(
            f"images lie outside the class folders; move or remove them:{listed(stray, lines=True)}"
        )
    return classes


def list_images(part: Path, root: Path, classes: Sequence[str]) -> list[Listing]:
    """Return a listing per class of a part of the set `root`; raises UserError if a class has no pictures."""
    folders = find_classes(part)
    if set(folders) != set(classes):
        lone = sorted(set(folders) ^ set(classes))
        raise UserError(
            f"{root}: train/ and test/ must hold the same classes; only one has {listed(lone)}"
        )
    listings = [list_pictures(folders[name], root) for name in classes]
    empty = [
        folders[name] for name, listing in zip(classes, listings, strict=True) if not listing.files
    ]
    if empty:
        raise UserError(f"no images in; fill or remove:{listed(empty, lines=True)}")
    return listings


def _say_what_is_left_out(
    folder: Path, parts: Sequence[Path], files: Sequence[Sequence[Listing]]
) -> None:
    """Print one line that counts what lies in the folder and is no part of the set."""
    left_out = Listing()
    for place in dict.fromkeys([folder, *parts]):
        left_out.extend(list_loose(place))
    for by_class in files:
        for listing in by_class:
            left_out.ignored += listing.ignored
    left_out.others += left_out.pictures  # beside train/ and test/
    if line := describe_left_out(left_out):
        print(f"{folder.name}: {line}")


def find_originals(paths: Sequence[Path]) -> Tensor:
    """Return for each file the index of the first one with the same bytes, int64 (N,)."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        if path.is_file():
            by_size[path.stat().st_size].append(index)
    originals = list(range(len(paths)))
    for indices in by_size.values():
        first: dict[str, int] = {}
        for index in indices if len(indices) > 1 else []:
            originals[index] = first.setdefault(sha256(paths[index]), index)
    return torch.tensor(originals)


def hold_out(
    name: str, labels: Tensor, originals: Tensor, classes: Sequence[str], fraction: float
) -> tuple[Tensor, Tensor]:
    """Return the indices of train and test, stratified; all copies of a file are on one side."""
    distinct = originals.unique()
    copies = len(originals) - len(distinct)
    if copies:
        print(
            f"{name}: {copies} files are copies of others, byte for byte; all copies of a file are on one side"
        )
    copied = sorted(set(range(len(classes))) - set(labels[distinct].tolist()))
    if copied:
        raise UserError(
            f"every file of class '{classes[copied[0]]}' is a copy of another class's, byte for byte"
        )
    _, drawn = draw_part(labels[distinct], fraction, TEST_SEED, classes, "test", "data.test")
    is_test = torch.isin(originals, distinct[drawn])
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()


def check_shared(paths: Sequence[Path], originals: Tensor, train_count: int, allowed: bool) -> int:
    """Return how many files of test/ are also in train/; raises UserError with their names unless `allowed`."""
    pairs = [
        f"{paths[index]} = {paths[originals[index]]}"
        for index in range(train_count, len(paths))
        if originals[index] < train_count
    ]
    if pairs and not allowed:
        raise UserError(
            f"{len(pairs)} files of test/ are also in train/, byte for byte, so that the test would say nothing; "
            f"remove them, or set data.allow_duplicates: true:{listed(pairs, lines=True)}"
        )
    return len(pairs)


def choose_preprocessing(folder: Path, facts: Sequence[PictureFacts], data: Data) -> Preprocessing:
    """Return how all pictures of a set become tensors; says what is not obvious: their depth, and frames."""
    largest = max((fact.largest for fact in facts), default=255)
    scale = full_scale(largest)
    if largest > 255:
        depth = (scale + 1).bit_length() - 1
        print(
            f"{folder.name}: {depth}-bit pictures (largest value {largest:,}): 0–{scale:,} becomes 0–255"
        )
    animated = sum(fact.frames > 1 for fact in facts)
    if animated:
        print(
            f"{folder.name}: {animated} pictures hold several frames or pages; the first of each is taken"
        )
    return Preprocessing((data.size, data.size), data.channels, scale)


def decode_files(paths: Sequence[Path], preprocessing: Preprocessing) -> Tensor:
    """Decode in parallel into uint8 (N, C, S, S); raises UserError that lists the files which are no good."""
    images = torch.empty(len(paths), preprocessing.channels, *preprocessing.size, dtype=torch.uint8)

    def decode(index: int, path: Path) -> None:
        images[index] = torch.from_numpy(preprocessing.tensor(path))

    results = _map("Decoding", decode, paths)
    failures = [
        f"{path}: {result}"
        for path, result in zip(paths, results, strict=True)
        if isinstance(result, UnreadablePictureError)
    ]
    if failures:
        raise UserError(
            f"{len(failures)} of {len(paths)} files are unreadable; fix or remove:{listed(failures, lines=True)}"
        )
    return images


def _map(
    what: str, work: Callable[[int, Path], Result], paths: Sequence[Path]
) -> list[Result | UnreadablePictureError]:
    """Return the result of `work` on the index and path of each file, done in parallel, or why it is unreadable."""

    def attempt(index: int) -> Result | UnreadablePictureError:
        try:
            return work(index, paths[index])
        except UnreadablePictureError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(unit="images") as bar:
        return list(
            bar.track(pool.map(attempt, range(len(paths))), total=len(paths), description=what)
        )
