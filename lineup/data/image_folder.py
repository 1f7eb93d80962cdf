"""Pictures of one's own → square uint8 tensors, split into train and test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from lineup.cli import progress
from lineup.data.copies import count_shared, find_equal_files, find_tied_images
from lineup.data.dataset_yaml import Images
from lineup.data.findings import Finding, check_groups, check_linked_folders
from lineup.data.image_io import (
    PictureFacts,
    UnreadablePictureError,
    full_scale,
    has_colour,
    inspect_picture,
    map_pictures,
)
from lineup.data.layouts import Pictures, find_pictures
from lineup.data.preprocessing import Preprocessing
from lineup.data.splitting import Draw, find_units, stratified_split
from lineup.errors import UserError, listed
from lineup.params import Data
from lineup.tensors import Rows, scratch_tensor

AUTO_SIZES = (16, 64)  # least for four stages of pooling; more takes longer than a first run should
TEST_SEED = 0
Picture = TypeVar("Picture")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images as tensors, and what is known of its files."""

    classes: list[str]
    train: tuple[Rows, Tensor]  # images uint8 (N, C, S, S), labels int64 (N,)
    test: tuple[Rows, Tensor]
    preprocessing: Preprocessing
    files: list[dict[str, Any]]  # a row per picture: split, index, file, label
    shared_files: int  # test pictures that are also in train, byte for byte
    extra: dict[str, Tensor]  # groups and validation of the training images, where the set has them
    sizes: list[tuple[int, int]]  # width and height of each picture, in the order of `files`
    folder_findings: list[Finding]


def read_images(folder: Path, settings: Images, data: Data) -> ImageFolder:
    """Return the folder as tensors; UserError names what is wrong with it.

    Where it has no test, the fraction `data.test` of each class is held out with a fixed seed.
    """
    data = _complete(data, settings)
    pictures = find_pictures(folder, settings)
    groups = _find_groups(folder, pictures, data.group) if data.group else None
    shared = _count_shared_files(pictures, data)
    facts = _inspect(pictures.paths)
    preprocessing = _choose_preprocessing(folder.name, pictures.paths, facts, data)
    images = _decode_files(pictures.paths, preprocessing)

    originals = find_tied_images(images, groups)
    train, test = pictures.indices("train"), pictures.indices("test")
    validation = pictures.indices("validation")
    if not len(test):
        draw = Draw("test", "data.test", data.test, TEST_SEED)
        train, test = _draw_test(folder.name, pictures, draw, originals, groups)
    training = torch.cat([train, validation])  # one file holds both
    extra, findings = {}, check_linked_folders(folder, pictures.paths)
    if len(validation):
        extra["validation"] = torch.arange(len(training)) >= len(train)
    if groups is not None:
        extra["groups"] = groups[training]
        findings += check_groups(groups[training], groups[test], "test")
    order = torch.cat([training, test]).tolist()
    return ImageFolder(
        pictures.classes,
        (Rows(images, training), pictures.labels[training]),
        (Rows(images, test), pictures.labels[test]),
        preprocessing,
        _file_rows("train", training, pictures) + _file_rows("test", test, pictures),
        shared,
        extra,
        [facts[i].size for i in order],
        findings,
    )


def _complete(data: Data, settings: Images) -> Data:
    """Return settings in which dataset.yaml fills what params.yaml leaves open."""
    size = settings.size if data.size == "auto" else data.size
    channels = settings.channels if data.channels == "auto" else data.channels
    group = data.group or settings.group
    return data.model_copy(update={"size": size, "channels": channels, "group": group})


def _find_groups(folder: Path, pictures: Pictures, pattern: str) -> Tensor:
    """Return what holds pictures of one thing together, int64 (N,): the match on their paths.

    A part of the pattern in parentheses is what counts. A picture without a match is on its own.
    """
    numbers: dict[str, int] = {}
    groups, unmatched = [], 0
    for path in pictures.paths:
        name = path.relative_to(folder).as_posix()
        found = re.search(pattern, name)
        unmatched += found is None
        key = f"alone: {name}" if found is None else _find_key(found)
        groups.append(numbers.setdefault(key, len(numbers)))
    if unmatched == len(groups):
        raise UserError(
            f"data.group = '{pattern}' matches no path, such as "
            f"'{pictures.paths[0].relative_to(folder).as_posix()}'; it is a regular expression"
        )
    rest = f"; {unmatched} match nothing, and each counts as one" if unmatched else ""
    print(f"{folder.name}: {len(numbers):,} groups of pictures by data.group{rest}")
    return torch.tensor(groups)


def _find_key(found: re.Match[str]) -> str:
    parts = found.groups()
    return str(parts if any(part is not None for part in parts) else found[0])


def _count_shared_files(pictures: Pictures, data: Data) -> int:
    test = pictures.indices("test")
    if not len(test):
        return 0
    others = len(pictures.paths) - len(test)  # the test comes last
    originals = find_equal_files(pictures.paths)
    return count_shared(pictures.paths, originals, others, data.allow_duplicates)


def _draw_test(
    name: str, pictures: Pictures, draw: Draw, originals: Tensor, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the indices of train and test, drawn from what no folder says is for validation."""
    pool = pictures.indices("train")
    validation = pictures.indices("validation")
    units = find_units(originals, groups)
    is_bound = torch.isin(units[pool], units[validation])  # to what validation holds
    bound, pool = pool[is_bound], pool[~is_bound]
    lost = set(pictures.labels[bound].tolist()) - set(pictures.labels[pool].tolist())
    if lost:
        raise UserError(
            f"{name}: all training pictures of '{pictures.classes[min(lost)]}' are copies of "
            "pictures in the validation folder, or of their groups, so that none is left for "
            "a test; add a folder test, or change data.group in params.yaml"
        )
    labels, own = pictures.labels[pool], torch.searchsorted(pool, originals[pool])
    if copies := len(own) - len(own.unique()):
        print(f"{name}: {copies} pictures are copies of others; copies are on one side")
    some_groups = None if groups is None else groups[pool]
    train, test = stratified_split(labels, draw, pictures.classes, own, some_groups)
    return torch.cat([pool[train], bound]).sort().values, pool[test]


def _file_rows(split: str, indices: Tensor, pictures: Pictures) -> list[dict[str, Any]]:
    rows = []
    for row, number in enumerate(indices.tolist()):
        file = pictures.paths[number].as_posix()
        label = pictures.classes[pictures.labels[number]]
        rows.append({"split": split, "index": row, "file": file, "label": label})
    return rows


# --- what the pictures are like -------------------------------------------------------------------


def _inspect(paths: Sequence[Path]) -> list[PictureFacts]:
    """Return what each picture holds; those that are unreadable are named when all are decoded."""
    results = _map("Inspecting", inspect_picture, paths)
    return [fact if isinstance(fact, PictureFacts) else PictureFacts() for fact in results]


def _choose_preprocessing(
    name: str, paths: Sequence[Path], facts: Sequence[PictureFacts], data: Data
) -> Preprocessing:
    """Return how all pictures of a set become tensors; say what was chosen, and why."""
    largest = max(fact.largest for fact in facts)
    scale = full_scale(largest)
    if largest > 255:
        depth = scale.bit_length()
        values = f"largest value {largest:,}"
        print(f"{name}: {depth}-bit pictures ({values}): 0–{scale:,} becomes 0–255")
    animated = sum(fact.frames > 1 for fact in facts)
    if animated:
        print(f"{name}: {animated} pictures hold several frames or pages; the first is taken")
    size, why_size = _choose_size(facts, data)
    channels, why_channels = _choose_channels(paths, facts, data)
    colour = "grey" if channels == 1 else "colour"
    print(f"{name}: {size} × {size} pixels ({why_size}), {colour} ({why_channels})")
    return Preprocessing((size, size), channels, scale)


def _choose_size(facts: Sequence[PictureFacts], data: Data) -> tuple[int, str]:
    """Return pixels a side, and why."""
    if data.size != "auto":
        return data.size, "as set"
    middle = round(median(max(fact.size) for fact in facts))
    least, most = AUTO_SIZES
    size = min(max(middle, least), most)
    limit = "" if size == middle else f", at {'most' if size < middle else 'least'} {size}"
    return size, f"auto: the median picture has {middle}{limit}"


def _choose_channels(
    paths: Sequence[Path], facts: Sequence[PictureFacts], data: Data
) -> tuple[int, str]:
    """Return 1 or 3, and why."""
    if data.channels != "auto":
        return data.channels, "as set"
    may_have = [path for path, fact in zip(paths, facts, strict=True) if fact.may_have_colour]
    results = map_pictures(has_colour, may_have, os.cpu_count())
    with progress(unit="images") as bar:
        shown = bar.track(results, total=len(may_have), description="Looking for colours")
        for path, is_coloured in zip(may_have, shown, strict=True):
            if is_coloured:
                return 3, f"auto: {path.parent.name}/{path.name} has colours"
    return 1, "auto: no picture has colours"


# --- decoding -------------------------------------------------------------------------------------


def _decode_files(paths: Sequence[Path], preprocessing: Preprocessing) -> Tensor:
    """Decode in parallel into uint8 (N, C, S, S); UserError lists the files which are no good."""
    shape = (len(paths), preprocessing.channels, *preprocessing.size)
    images = scratch_tensor(shape)

    def decode(numbered: tuple[int, Path]) -> None:
        index, path = numbered
        images[index] = torch.from_numpy(preprocessing.tensor(path))

    results = zip(paths, _map("Decoding", decode, list(enumerate(paths))), strict=True)
    failures = [f"{path}: {result}" for path, result in results if result is not None]
    if failures:
        count = f"{len(failures)} of {len(paths)} files are unreadable"
        raise UserError(f"{count}; fix or remove:{listed(failures, lines=True)}")
    return images


def _map(
    what: str, work: Callable[[Picture], Result], pictures: Sequence[Picture]
) -> list[Result | UnreadablePictureError]:
    """Return the result of `work` on each picture, done on all cores, or why it is unreadable."""
    results = map_pictures(work, pictures, os.cpu_count())
    with progress(unit="images") as bar:
        return list(bar.track(results, total=len(pictures), description=what))
