"""A picture file of any kind → 8-bit pixels, upright."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 250_000_000  # what claims more is an error or a decompression bomb
LARGE = 16_000_000  # pixels; larger ones are read one at a time, and reduced at once
COLOUR_SIDE = 64  # pixels; colours are looked for in a small version, where no noise is left
COLOUR_LEVELS = 16  # by which the channels of a coloured pixel differ
SUBMITTED_AT_ONCE = 10_000  # pictures: each that waits takes memory
BIT_DEPTHS = (8, 10, 12, 14, 16)
_DEEP_COLOUR = 16  # of 256: Pillow gives the upper 8 of 16 bits, nearly nothing of 12-bit values

Image.MAX_IMAGE_PIXELS = MAX_PIXELS
_one_large_at_a_time = Lock()
Picture = TypeVar("Picture")
Result = TypeVar("Result")


class UnreadablePictureError(ValueError):
    """Why a file is no picture that we can take."""


def map_pictures(
    work: Callable[[Picture], Result], pictures: Iterable[Picture], threads: int | None
) -> Iterator[Result | UnreadablePictureError]:
    """Yield in order what `work`, done on several threads, makes of each, or why it can't."""

    def attempt(picture: Picture) -> Result | UnreadablePictureError:
        try:
            return work(picture)
        except UnreadablePictureError as error:
            return error

    rest = iter(pictures)
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(rest, SUBMITTED_AT_ONCE)):
            yield from pool.map(attempt, some)


@dataclass(frozen=True)
class PictureFacts:
    """What must be known of every picture of a set before the first one is decoded."""

    largest: int = 255  # value of a pixel; 255 for 8-bit files, whatever they hold
    frames: int = 1
    size: tuple[int, int] = (1, 1)  # width and height
    may_have_colour: bool = False


def is_picture(path: Path) -> bool:
    """Tell whether the content of a file, not its name, is a picture in a format that we read."""
    if not path.is_file():  # a pipe would block
        return False
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # a parser may fail on foreign bytes in any way
        return False


def inspect_picture(path: Path) -> PictureFacts:
    """Return what a picture holds; only of files deeper than 8 bits are the pixels read."""
    with _opened(path) as image:
        largest = 255
        if image.mode.startswith("I"):
            with _turn(image):
                largest = int(np.asarray(image).max())  # getextrema fails on big-endian ones
        may_have_colour = image.mode not in ("1", "L", "LA", "La", "F") and largest == 255
        may_have_colour &= not image.mode.startswith("I")
        return PictureFacts(largest, getattr(image, "n_frames", 1), image.size, may_have_colour)


def has_colour(path: Path) -> bool:
    """Tell whether a picture shows other colours than greys; no, where it is unreadable."""
    try:
        picture = read_picture(path, channels=3, enough=COLOUR_SIDE)
    except UnreadablePictureError:
        return False
    picture.thumbnail((COLOUR_SIDE, COLOUR_SIDE))
    pixels = np.asarray(picture).astype(int)  # (H, W, 3)
    return bool((pixels.max(2) - pixels.min(2)).max() > COLOUR_LEVELS)


def full_scale(largest: int) -> int:
    """Return 2ⁿ - 1 for the least of 8, 10, 12, 14 or 16 bits that holds `largest`."""
    scales = [2**bits - 1 for bits in BIT_DEPTHS]
    return next((scale for scale in scales if largest <= scale), scales[-1])


def read_picture(
    source: Path | BinaryIO, channels: int, largest: int = 255, enough: int | None = None
) -> Image.Image:
    """Return the first frame, upright, as 8-bit grey or RGB.

    `largest` is the value that becomes 255 in files deeper than 8 bits. A JPEG and a large picture
    may come reduced to `enough` pixels or more on the shorter side. Raises UnreadablePictureError
    if it is no picture, damaged, absurdly large, or deeper than `largest`.
    """
    with _opened(source) as image:
        is_deep_colour = ";16" in str(image.tile) and not image.mode.startswith("I")
        if enough:
            image.draft(None, (enough, enough))
        with _turn(image):
            image.load()
            if is_deep_colour and _find_brightest(image) < _DEEP_COLOUR:
                problem = "16-bit colour whose values are all below 4,096"
                raise UnreadablePictureError(f"{problem}: save it with 8 bits")
            _turn_upright(image)
            picture = _reduce(image, enough) if _is_large(image) and enough else image
            return to_eight_bits(picture, channels, largest)


def _find_brightest(image: Image.Image) -> int:
    """Return the largest value of a colour, 0–255, whatever is transparent."""
    colours = image.convert("RGB") if image.mode in ("RGBA", "LA") else image
    return int(np.asarray(colours).max())


def _is_large(image: Image.Image) -> bool:
    return image.width * image.height > LARGE


def _turn(image: Image.Image) -> AbstractContextManager[bool | None]:
    """Return what a large picture waits for, so that one at a time is in memory."""
    return _one_large_at_a_time if _is_large(image) else nullcontext()


def _turn_upright(image: Image.Image) -> None:
    """Turn an image as its EXIF block says; a garbled one says nothing, as in every viewer."""
    with suppress(Exception):  # it may be garbled in any way
        ImageOps.exif_transpose(image, in_place=True)


def _reduce(image: Image.Image, enough: int) -> Image.Image:
    """Return an image averaged down to `enough` pixels or more on its shorter side."""
    scale = enough / min(image.size)
    if scale > 0.5 or image.mode.startswith("I;"):
        return image
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    size = [round(side * scale) for side in image.size]
    return image.resize(size, Image.Resampling.BOX)


def _stream(source: Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    """Open a file: what Pillow opens by its name it may map, and turned TIFFs come out garbled."""
    return source.open("rb") if isinstance(source, Path) else nullcontext(source)


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture; whatever fails here or in the block becomes an UnreadablePictureError."""
    if isinstance(source, Path) and not source.is_file():
        raise UnreadablePictureError("a broken link" if source.is_symlink() else "not a file")
    try:
        with _stream(source) as stream, Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} × {image.height}"
                raise UnreadablePictureError(f"more than {MAX_PIXELS:,} pixels ({size})")
            yield image
    except UnreadablePictureError:
        raise
    except Image.UnidentifiedImageError:
        formats = "PNG, JPEG, GIF, BMP, TIFF, WebP, PPM"
        raise UnreadablePictureError(f"not an image that we read ({formats})") from None
    except Image.DecompressionBombError as error:
        count = int(re.search(r"\d+", str(error))[0])
        raise UnreadablePictureError(f"more than {MAX_PIXELS:,} pixels ({count:,})") from None
    except Exception as error:  # a decoder may stumble over damaged bytes in any way
        raise UnreadablePictureError(str(error) or type(error).__name__) from None


def to_eight_bits(image: Image.Image, channels: int, largest: int = 255) -> Image.Image:
    """Return the image as 8-bit grey or RGB, deeper grey scaled, transparency over white."""
    if image.mode.startswith("I"):
        image = _scale_down(np.asarray(image), largest)
    if image.mode == "F":
        raise UnreadablePictureError("floating-point pixels: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _scale_down(deep: np.ndarray, largest: int) -> Image.Image:
    """Return grey values 0…largest, integers (H, W), as 8 bits."""
    if deep.min() < 0 or deep.max() > 65535:
        raise UnreadablePictureError("32-bit pixels: save it with 8 or 16 bits")
    if deep.max() > largest:
        limit = f"the pictures of the training end at {largest:,}"
        raise UnreadablePictureError(f"values up to {deep.max():,}, and {limit}")
    scaled = np.empty(deep.shape, np.uint8)
    for row, values in zip(scaled, deep, strict=True):  # one by one: a large picture is large twice
        row[:] = values.astype(np.uint32) * 255 // largest
    return Image.fromarray(scaled)
