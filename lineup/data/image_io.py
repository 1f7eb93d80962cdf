"""A picture file of any kind → 8-bit pixels, upright."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 80_000_000  # what claims more is an error or a decompression bomb
BIT_DEPTHS = (8, 10, 12, 14, 16)

# we refuse what Pillow warns of
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadablePictureError(ValueError):
    """Why a file is no picture that we can take."""


@dataclass(frozen=True)
class PictureFacts:
    """What must be known of every picture of a set before the first one is decoded."""

    largest: int  # value of a pixel; 255 for 8-bit files, whatever they hold
    frames: int


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
            largest = int(np.asarray(image).max())
        return PictureFacts(largest, getattr(image, "n_frames", 1))


def full_scale(largest: int) -> int:
    """Return 2ⁿ - 1 for the least of 8, 10, 12, 14 or 16 bits that holds `largest`."""
    scales = [2**bits - 1 for bits in BIT_DEPTHS]
    return next((scale for scale in scales if largest <= scale), scales[-1])


def read_picture(
    source: Path | BinaryIO, channels: int, largest: int = 255, enough: int | None = None
) -> Image.Image:
    """Return the first frame, upright, as 8-bit grey or RGB.

    `largest` is the value that becomes 255 in files deeper than 8 bits. A large JPEG may come
    reduced to `enough` pixels or more on its shorter side. Raises UnreadablePictureError if it is
    no picture, damaged, absurdly large, or deeper than `largest`.
    """
    with _opened(source) as image:
        is_deep_colour = ";16" in str(image.tile) and not image.mode.startswith("I")
        if enough:
            image.draft(None, (enough, enough))
        picture = to_eight_bits(ImageOps.exif_transpose(image), channels, largest)
        if is_deep_colour and not np.asarray(image).any():
            problem = "16-bit colour whose values are all below 256"
            raise UnreadablePictureError(f"{problem}: save it with 8 bits")
        return picture


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture; whatever fails here or in the block becomes an UnreadablePictureError."""
    if isinstance(source, Path) and not source.is_file():
        raise UnreadablePictureError("a broken link" if source.is_symlink() else "not a file")
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} × {image.height}"
                raise UnreadablePictureError(f"more than {MAX_PIXELS:,} pixels ({size})")
            yield image
    except UnreadablePictureError:
        raise
    except Image.UnidentifiedImageError:
        formats = "PNG, JPEG, GIF, BMP, TIFF, WebP, PPM"
        raise UnreadablePictureError(f"not an image that we read ({formats})") from None
    except Image.DecompressionBombError:
        raise UnreadablePictureError(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # a decoder may stumble over damaged bytes in any way
        raise UnreadablePictureError(str(error) or type(error).__name__) from None


def to_eight_bits(image: Image.Image, channels: int, largest: int = 255) -> Image.Image:
    """Return the image as 8-bit grey or RGB, deeper grey scaled, transparency over white."""
    if image.mode.startswith("I"):
        image = _scale_down(np.asarray(image).astype(np.int64), largest)
    if image.mode == "F":
        raise UnreadablePictureError("floating-point pixels: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _scale_down(deep: np.ndarray, largest: int) -> Image.Image:
    """Return grey values 0…largest, int64 (H, W), as 8 bits."""
    if deep.min() < 0 or deep.max() > 65535:
        raise UnreadablePictureError("32-bit pixels: save it with 8 or 16 bits")
    if deep.max() > largest:
        limit = f"the pictures of the training end at {largest:,}"
        raise UnreadablePictureError(f"values up to {deep.max():,}, and {limit}")
    return Image.fromarray((deep * 255 // largest).astype(np.uint8))
