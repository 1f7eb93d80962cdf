"""The one way from a picture to a tensor, for training and for use alike.

MNIST's digits are white on black, scaled to fit 20 × 20 pixels, and placed with their centre of
mass at the centre of 28 × 28 (LeCun et al., "Gradient-based learning applied to document
recognition", 1998). A set may declare such a framing in its dataset.yaml; then a photo or a scan
that has another size is framed likewise before it is classified.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps

from lineup.data.image_io import read_picture, to_eight_bits

BACKGROUND_RANGE = (
    0.2  # of the range from background to brightest pixel: still background in a photo
)
MIN_CONTRAST = 32  # grey levels; what stands out less from the background is nothing


@dataclass(frozen=True)
class Framing:
    """What all pictures of a set have in common because somebody made them so."""

    background: Literal["dark", "light"]
    content: int | None = (
        None  # pixels of the longer side of what is shown, centred by mass; None: not centred
    )


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a tensor: fixed by fetch, kept with the data and with every model."""

    size: tuple[int, int]  # height, width
    channels: int  # 1 grey, 3 colour
    largest: int = 255  # the value that becomes 255 in files deeper than 8 bits
    framing: Framing | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Preprocessing:
        """Return what `to_json` described."""
        framing = Framing(**content["framing"]) if content["framing"] else None
        return cls(**content | {"size": tuple(content["size"]), "framing": framing})

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON's types."""
        return asdict(self) | {"size": list(self.size)}

    def tensor(self, picture: Path | BinaryIO | Image.Image) -> np.ndarray:
        """Return a picture as uint8 (C, H, W); raises UnreadablePictureError.

        One that has the size is taken as it is, any other is fitted whole and in proportion.
        """
        if isinstance(picture, Image.Image):
            image = to_eight_bits(picture, self.channels, self.largest)
        else:
            enough = None if self.framing else 2 * max(self.size)
            image = read_picture(picture, self.channels, self.largest, enough)
        height, width = self.size
        if image.size != (width, height):
            image = (
                frame(image, self.size, self.framing)
                if self.framing
                else letterbox(image, self.size)
            )
        return _to_array(image)


def letterbox(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale the image into `size` (height, width), on a ground of its border's median colour."""
    height, width = size
    colour = np.median(_border(np.asarray(image)), axis=0).astype(int).tolist()
    scale = min(height / image.height, width / image.width)
    scaled = image.resize(
        [max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR
    )
    ground = Image.new(
        image.mode, (width, height), tuple(colour) if isinstance(colour, list) else colour
    )
    ground.paste(scaled, ((width - scaled.width) // 2, (height - scaled.height) // 2))
    return ground


def frame(image: Image.Image, size: tuple[int, int], framing: Framing) -> Image.Image:
    """Return a grey picture inverted, cropped, scaled and centred as the set declares."""
    background = _tone(float(np.median(_border(np.asarray(image)))))
    if background not in (framing.background, None):
        image = ImageOps.invert(image)
    if framing.content is None:
        return letterbox(image, size)
    return centre(image, size, framing)


def centre(image: Image.Image, size: tuple[int, int], framing: Framing) -> Image.Image:
    """Crop what a grey image shows, scale it to framing.content, put its mass at the centre."""
    is_light = framing.background == "light"
    pixels = np.asarray(ImageOps.invert(image) if is_light else image).astype(np.float32)
    pixels -= np.median(_border(pixels))
    if pixels.max() < MIN_CONTRAST:
        return letterbox(image, size)
    pixels = (
        np.clip(pixels / pixels.max() - BACKGROUND_RANGE, 0, None) / (1 - BACKGROUND_RANGE) * 255
    )
    shown = Image.fromarray(pixels.round().astype(np.uint8)).crop(_bounding_box(pixels >= 1))
    scale = framing.content / max(shown.size)
    shown = shown.resize(
        [max(1, round(side * scale)) for side in shown.size], Image.Resampling.LANCZOS
    )
    if not np.asarray(shown).any():  # specks that scaling made vanish
        return letterbox(image, size)
    height, width = size
    row, column = (
        np.round(np.array([height / 2, width / 2]) - _mass_centre(np.asarray(shown)))
        .astype(int)
        .tolist()
    )
    ground = Image.new("L", (width, height))
    ground.paste(shown, (column, row))
    return ImageOps.invert(ground) if is_light else ground


def _tone(level: float) -> str | None:
    """Name a grey level 0…255, unless it is in between."""
    return "dark" if level < 64 else "light" if level > 191 else None


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the true pixels of (H, W), the latter two exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _mass_centre(image: np.ndarray) -> np.ndarray:
    """Return the row and column of the centre of mass of an image (H, W)."""
    weights = image.astype(np.float64)
    sums = [weights.sum(axis=1 - axis) @ np.arange(image.shape[axis]) for axis in (0, 1)]
    return np.array(sums) / weights.sum()


def _border(pixels: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of an image (H, W) or (H, W, C), as (n,) or (n, C)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _to_array(image: Image.Image) -> np.ndarray:
    """Return an 8-bit image as uint8 (C, H, W)."""
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()
