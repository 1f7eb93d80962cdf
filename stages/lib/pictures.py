"""A picture file of any kind → 8-bit pixels, upright, on a square."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
LARGEST = 80_000_000  # pixels; what claims more is a mistake or a decompression bomb
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # we refuse what Pillow warns of


class UnreadablePictureError(ValueError):
    """Why a file is no picture that we can take."""


def read_picture(source: Path | BinaryIO, channels: int, enough: int | None = None) -> Image.Image:
    """Return the picture, upright, as 8-bit grey or RGB; a large JPEG may come reduced to `enough` pixels or more.

    Raises UnreadablePictureError if it is no picture, damaged, or absurdly large.
    """
    if isinstance(source, Path) and not source.is_file():
        raise UnreadablePictureError("a broken link" if source.is_symlink() else "not a file")
    try:
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > LARGEST:
                raise UnreadablePictureError(f"more than {LARGEST:,} pixels ({image.width} × {image.height})")
            if enough:
                image.draft(None, (enough, enough))
            return to_eight_bits(ImageOps.exif_transpose(image), channels)
    except UnreadablePictureError:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadablePictureError("not an image that we read (PNG, JPEG, GIF, BMP, TIFF, WebP, PPM)") from None
    except Image.DecompressionBombError:
        raise UnreadablePictureError(f"more than {LARGEST:,} pixels") from None
    except Exception as error:  # a decoder may stumble over damaged bytes in any way
        raise UnreadablePictureError(str(error) or type(error).__name__) from None


def to_eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """Return the image as 8-bit grey or RGB; 16-bit is scaled, transparency is laid over white."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise UnreadablePictureError("32-bit pixels: save it with 8 or 16 bits")
        image = Image.fromarray((wide // 257).astype(np.uint8))
    if image.mode == "F":
        raise UnreadablePictureError("floating-point pixels: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scale the longer side to `size` and centre the image on a square of its border's median colour."""
    colour = np.median(border(np.asarray(image)), axis=0).astype(int).tolist()
    scale = size / max(image.size)
    scaled = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    square = Image.new(image.mode, (size, size), tuple(colour) if isinstance(colour, list) else colour)
    square.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
    return square


def border(pixels: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of an image (H, W) or (H, W, C), as (n,) or (n, C)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def to_array(image: Image.Image) -> np.ndarray:
    """Return an 8-bit image as uint8 (C, H, W)."""
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()
