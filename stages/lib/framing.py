"""How a dataset frames what its pictures show, and the same framing for a picture of your own.

MNIST's digits are white on black, scaled to fit 20 × 20 pixels, and placed with their centre of mass at the centre of
28 × 28 (LeCun et al., "Gradient-based learning applied to document recognition", 1998). Such a habit is measured on the
training images, travels with the model, and is imitated before a photo or a scan is classified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from stages.lib.pictures import border, fit

SAMPLE = 2000  # images that tell a dataset's habit
COMMON = 0.95  # part of the images that makes a habit
INK = 0.2  # part of the range from background to brightest pixel that is still background in a photo
FAINTEST = 32  # what stands out less from the background is nothing


def measure(images: np.ndarray) -> dict[str, Any]:
    """Return {"background": "dark" | "light" | None, "content": pixels | None} of images uint8 (N, C, H, W).

    Only grey images have such habits, and a habit is what 95 % of them share. `content` is the longer side of what an
    image shows, if its centre of mass is at the centre.
    """
    background, content = None, None
    if images.shape[1] == 1:
        sample = images[:: max(1, len(images) // SAMPLE), 0]
        tones = [tone(border(image).mean()) for image in sample]
        background = next((name for name in ("dark", "light") if tones.count(name) >= COMMON * len(tones)), None)
        if background:
            content = content_side(sample if background == "dark" else 255 - sample)
    return {"background": background, "content": content}


def tone(level: float) -> str | None:
    """Name a grey level 0…255, unless it is in between."""
    return "dark" if level < 64 else "light" if level > 191 else None


def content_side(images: np.ndarray) -> int | None:
    """Return the longer side of bright content on black (N, H, W), if most share it and are centred by mass."""
    found = [(bounding_box(image > 0), mass_centre(image)) for image in images if image.any()]
    if not found:
        return None
    sides = np.array([max(bottom - top, right - left) for (left, top, right, bottom), _ in found])
    offsets = np.array([centre for _, centre in found]) - np.array(images.shape[1:]) / 2
    side = int(np.median(sides))
    regular = np.mean((abs(sides - side) <= 1) & (abs(offsets) <= 1).all(axis=1)) >= COMMON
    return side if regular and side < min(images.shape[1:]) else None


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the true pixels of (H, W), the latter two exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mass_centre(image: np.ndarray) -> np.ndarray:
    """Return the row and column of the centre of mass of an image (H, W)."""
    weights = image.astype(np.float64)
    return np.array([weights.sum(axis=1 - axis) @ np.arange(image.shape[axis]) for axis in (0, 1)]) / weights.sum()


def frame(image: Image.Image, shape: Sequence[int], framing: dict[str, Any] | None) -> Image.Image:
    """Return an 8-bit picture in a model's size, framed like its training images (`shape` is theirs: C, H, W).

    One that has this size already is left as it is. Of others, a grey one with the opposite background is inverted, and
    what it shows is cropped, scaled and centred, where that was done to all training images.
    """
    if image.size == (shape[2], shape[1]):
        return image
    background, content = (framing or {}).get("background"), (framing or {}).get("content")
    if background and tone(float(np.median(border(np.asarray(image))))) not in (background, None):
        image = ImageOps.invert(image)
    return centre(image, content, background, shape[1]) if content else fit(image, shape[1])


def centre(image: Image.Image, content: int, background: str, size: int) -> Image.Image:
    """Crop what a grey image shows, scale its longer side to `content`, put its mass at the centre of size × size."""
    flip = background == "light"
    pixels = np.asarray(ImageOps.invert(image) if flip else image).astype(np.float32)
    pixels -= np.median(border(pixels))
    if pixels.max() < FAINTEST:
        return fit(image, size)
    pixels = np.clip(pixels / pixels.max() - INK, 0, None) / (1 - INK) * 255  # uneven paper becomes background
    shown = Image.fromarray(pixels.round().astype(np.uint8)).crop(bounding_box(pixels >= 1))
    scale = content / max(shown.size)
    shown = shown.resize([max(1, round(side * scale)) for side in shown.size], Image.Resampling.LANCZOS)
    if not np.asarray(shown).any():  # specks that scaling made vanish
        return fit(image, size)
    row, column = np.round(size / 2 - mass_centre(np.asarray(shown))).astype(int).tolist()
    square = Image.new("L", (size, size))
    square.paste(shown, (column, row))
    return ImageOps.invert(square) if flip else square
