"""Image files of any kind, and folders of them → square uint8 tensors."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stages.lib.datasets import draw_part
from stages.lib.params import Data
from stages.lib.terminal import UserError, progress

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
LARGEST = 80_000_000  # pixels; what claims more is a mistake or a decompression bomb
DROPPINGS = {"thumbs.db", "desktop.ini", "__macosx", "icon\r"}  # of operating systems, beside all hidden files
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
TEST_SEED = 0
LISTED = 20  # files that an error names before it counts the rest
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # we refuse what Pillow warns of


class UnreadableImageError(ValueError):
    """Why a file is no image that we can take."""


def decode_image(source: Path | BinaryIO, size: int, channels: int) -> Tensor:
    """Return the picture, whole, upright and in proportion, as uint8 (channels, size, size).

    Raises UnreadableImageError if it is no image, damaged, or absurdly large.
    """
    if isinstance(source, Path) and not source.is_file():
        raise UnreadableImageError("a broken link" if source.is_symlink() else "not a file")
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise UnreadableImageError(f"more than {LARGEST:,} pixels ({image.width} × {image.height})")
            image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
            return to_tensor(fit(to_eight_bits(ImageOps.exif_transpose(image), channels), size))
    except UnreadableImageError:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("not an image that we read (PNG, JPEG, GIF, BMP, TIFF, WebP, PPM)") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"more than {LARGEST:,} pixels") from None
    except Exception as error:  # a decoder may stumble over damaged bytes in any way
        raise UnreadableImageError(str(error) or type(error).__name__) from None


def to_eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """Return the image as 8-bit grey or RGB; 16-bit is scaled, transparency is laid over white."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise UnreadableImageError("32-bit pixels: save it with 8 or 16 bits")
        image = Image.fromarray((wide // 257).astype(np.uint8))
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scale the longer side to `size` and centre the image on a square of its border's median colour."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0).astype(int).tolist()
    scale = size / max(image.size)
    scaled = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    square = Image.new(image.mode, (size, size), tuple(colour) if isinstance(colour, list) else colour)
    square.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
    return square


def to_tensor(image: Image.Image) -> Tensor:
    """Return an 8-bit image as uint8 (C, H, W)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


# A folder of images per class


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
        except UnreadableImageError as error:
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
