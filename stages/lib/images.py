"""A folder of images per class → square uint8 tensors."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stages.lib.datasets import draw_part
from stages.lib.params import Data
from stages.lib.pictures import UnreadablePictureError, fit, read_picture, to_array
from stages.lib.terminal import UserError, progress

DROPPINGS = {"thumbs.db", "desktop.ini", "__macosx", "icon\r"}  # of operating systems, beside all hidden files
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
TEST_SEED = 0
LISTED = 20  # files that an error names before it counts the rest


def read_folder(folder: Path, data: Data) -> tuple[list[str], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return class names and (images uint8 (N, C, S, S), labels int64 (N,)) of both parts; raises UserError.

    Where there is no test/, the part `data.test` of each class is held out with a fixed seed.
    """
    parts = find_parts(folder)
    classes = list(find_classes(parts[0]))
    files = [list_images(part, classes) for part in parts]
    images = decode_files([path for part in files for path, _ in part], data)
    labels = torch.tensor([label for part in files for _, label in part])
    if len(parts) == 2:
        train, test = torch.arange(len(images)).split([len(part) for part in files])
    else:
        train, test = draw_part(labels, data.test, TEST_SEED, classes, "test", "data.test")
    return classes, (images[train], labels[train]), (images[test], labels[test])


def find_parts(folder: Path) -> list[Path]:
    """Return [folder], or [train] or [train, test] below it: what holds the classes; raises UserError if unclear."""
    inside = sub_folders(folder)
    parts = [path.name for path in inside if path.name.lower() in PARTS and sub_folders(path)]
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
        raise UserError(f"{folder} needs a sub-folder of images for each of two or more classes; found {found}")
    if len(classes) < len(sub_folders(folder)):
        raise UserError(f"{folder} holds two sub-folders whose names look the same; rename one")
    strange = [name for name in classes if not name.isprintable()]
    if strange:
        raise UserError(f"{folder}: names of classes must be readable text; rename:{listed(strange, lines=True)}")
    stray = [path for path in visible(folder) if path.suffix.lower() in Image.registered_extensions()]
    if stray:
        raise UserError(f"images lie outside the class folders; move or remove them:{listed(stray, lines=True)}")
    return classes


def list_images(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return every file below the class folders with its class's number; raises UserError if a class has none."""
    folders = find_classes(folder)
    if set(folders) != set(classes):
        lone = sorted(set(folders) ^ set(classes))
        raise UserError(f"{folder.parent}: train/ and test/ must hold the same classes; only one has {listed(lone)}")
    files = {name: sorted(walk(folders[name])) for name in classes}
    empty = [folders[name] for name in classes if not files[name]]
    if empty:
        raise UserError(f"no images in; fill or remove:{listed(empty, lines=True)}")
    return [(path, label) for label, name in enumerate(classes) for path in files[name]]


def decode_files(paths: Sequence[Path], data: Data) -> Tensor:
    """Decode in parallel into uint8 (N, C, S, S); raises UserError that lists the files which are no good."""
    images = torch.empty(len(paths), data.channels, data.size, data.size, dtype=torch.uint8)
    failures = []

    def decode(index: int) -> None:
        try:
            images[index] = decode_image(paths[index], data.size, data.channels)
        except UnreadablePictureError as error:
            failures.append((index, f"{paths[index]}: {error}"))

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(unit="images") as bar:
        task = bar.add_task("Decoding", total=len(paths))
        for _ in pool.map(decode, range(len(paths))):
            bar.advance(task)
    if failures:
        lines = [line for _, line in sorted(failures)]
        raise UserError(
            f"{len(lines)} of {len(paths)} files are unreadable; mend or remove:{listed(lines, lines=True)}"
        )
    return images


def decode_image(path: Path, size: int, channels: int) -> Tensor:
    """Return the picture, whole and in proportion, as uint8 (channels, size, size); raises UnreadablePictureError."""
    return torch.from_numpy(to_array(fit(read_picture(path, channels, enough=2 * size), size)))


def sub_folders(folder: Path) -> list[Path]:
    """Return the visible folders in `folder`, links followed, in order of their names."""
    return [path for path in visible(folder) if path.is_dir()]


def visible(folder: Path) -> list[Path]:
    """Return what lies in `folder`, in order of the names, without hidden files and the droppings of systems."""
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name.lower() not in DROPPINGS)


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield every visible file below `folder`; links are followed, save those that lead back up."""
    if folder.resolve() in above:
        return
    for path in visible(folder):
        if path.is_dir():
            yield from walk(path, (*above, folder.resolve()))
        else:
            yield path


def listed(items: Sequence[object], *, lines: bool = False) -> str:
    """Return the first items, and how many more there are."""
    words = [str(item).encode(errors="replace").decode() for item in items[:LISTED]]
    if len(items) > LISTED:
        words.append(f"and {len(items) - LISTED} more")
    return "".join(f"\n       {word}" for word in words) if lines else ", ".join(words)
