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
from lineup.data.strokes import extract_strokes

MIN_CONTRAST = 32  # grey levels; what stands out less from the background is nothing


@dataclass(frozen=True)
class Framing:
    """What all pictures of a set have in common because somebody made them so."""

    background: Literal["dark", "light"]
    content: int | None = None  # pixels of its longer side, centred by mass; None: not centred


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
        if image.size == (width, height):
            return _to_array(image)
        if self.framing:
            return _to_array(_frame(image, self.size, self.framing))
        return _to_array(_letterbox(image, self.size))


def _letterbox(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale the image into `size` (height, width), on a ground of its border's median colour."""
    height, width = size
    scale = min(height / image.height, width / image.width)
    scaled = _scale(image, scale, Image.Resampling.BILINEAR)
    colour = np.median(_border(np.asarray(image)), axis=0).astype(int)
    ground = Image.new(image.mode, (width, height), tuple(np.atleast_1d(colour).tolist()))
    ground.paste(scaled, ((width - scaled.width) // 2, (height - scaled.height) // 2))
    return ground


def _frame(image: Image.Image, size: tuple[int, int], framing: Framing) -> Image.Image:
    """Return a grey picture inverted, cropped, scaled and centred as the set declares."""
    strokes = _crop_and_scale(image, framing.content) if framing.content else None
    if strokes:
        return _centre(strokes, size, framing)
    if _background(image) not in (framing.background, None):
        image = ImageOps.invert(image)
    return _letterbox(image, size)


def _crop_and_scale(image: Image.Image, content: int) -> Image.Image | None:
    """Return the strokes of a grey picture, white on black, their longer side `content`."""
    strokes = extract_strokes(image, MIN_CONTRAST)
    if strokes is None:
        return None
    scaled = _scale(strokes, content / max(strokes.size), Image.Resampling.LANCZOS)
    return scaled if np.asarray(scaled).any() else None  # specks may vanish


def _centre(strokes: Image.Image, size: tuple[int, int], framing: Framing) -> Image.Image:
    """Put the centre of mass of strokes, white on black, at the centre of the set's background."""
    height, width = size
    offset = np.array([height / 2, width / 2]) - _mass_centre(np.asarray(strokes))
    row, column = np.round(offset).astype(int).tolist()
    canvas = Image.new("L", (width, height))
    canvas.paste(strokes, (column, row))
    return ImageOps.invert(canvas) if framing.background == "light" else canvas


def _scale(image: Image.Image, scale: float, resampling: Image.Resampling) -> Image.Image:
    return image.resize([max(1, round(side * scale)) for side in image.size], resampling)


def _background(image: Image.Image) -> str | None:
    """Return what a grey picture's border is, dark or light; None if it is in between."""
    level = np.median(_border(np.asarray(image)))
    if level < 64:
        return "dark"
    return "light" if level > 191 else None


def _mass_centre(image: np.ndarray) -> np.ndarray:
    """Return the row and column of the centre of mass of an image (H, W)."""
    weights = image.astype(np.float64)
    height, width = weights.shape
    row = weights.sum(axis=1) @ np.arange(height)
    column = weights.sum(axis=0) @ np.arange(width)
    return np.array([row, column]) / weights.sum()


def _border(pixels: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of an image (H, W) or (H, W, C), as (n,) or (n, C)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _to_array(image: Image.Image) -> np.ndarray:
    """Return an 8-bit image as uint8 (C, H, W)."""
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()
