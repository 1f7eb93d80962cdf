"""What is written in a grey picture: strokes on a ground, dark or light, under uneven light.

The ground is what a morphological closing makes of the picture, or an opening where strokes are
lighter than it: strokes vanish, while slopes and edges of shadows stay. (Serra, "Image Analysis and
Mathematical Morphology", 1982; the difference is known as the top-hat transform.)
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

LONGEST = 640  # pixels a side: larger pictures are reduced first
SMALL = 64  # pixels a side of the version in which the ground is looked for
STROKE = 0.4  # of the shorter side: narrower than this is a stroke, wider is ground
SURROUNDINGS = 0.5  # of the shorter side: of what most pixels are, strokes differ
NOISE = 16  # grey levels that are no stroke
FAINT = 0.45  # of a stroke's contrast: fainter is a ruled line, a trace of a shadow, a soft edge
GROUND = 0.2  # of a stroke's contrast: fainter than this is ground at a soft edge too
EDGE = 0.05  # of the longer side of what is written: so far a soft edge may reach
SPECK = 0.1  # of the largest shape: smaller ones are dirt


def find_ink(image: Image.Image, least: float) -> Image.Image | None:
    """Return the strokes of a grey image, white on black, cut out; None where nothing is written.

    `least` is how many grey levels a stroke differs from the ground at the least.
    """
    image = image.copy()
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    contrast = _contrast(image)
    if contrast.max() < least / 255:
        return None
    contrast /= np.percentile(contrast[contrast > 0], 95)
    shapes = _large_shapes(np.where(contrast > FAINT, contrast, 0))
    edge = round(EDGE * max(_crop(shapes).shape))
    strokes = np.clip((contrast - GROUND) / (1 - GROUND), 0, 1)
    strokes *= ndimage.maximum_filter(shapes, 2 * edge + 1)
    return Image.fromarray((255 * _crop(strokes)).round().astype(np.uint8))


def _crop(pixels: np.ndarray) -> np.ndarray:
    """Return the part of (H, W) outside of which all is zero."""
    (found,) = ndimage.find_objects((pixels > 0).astype(int))
    return pixels[found]


def _contrast(image: Image.Image) -> np.ndarray:
    """Return by which part of the ground's light each pixel differs from it, float32 (H, W)."""
    small = image.copy()
    small.thumbnail((SMALL, SMALL), Image.Resampling.BOX)
    common = small.filter(ImageFilter.MedianFilter(_window(small, SURROUNDINGS)))
    difference = _values(small) - _values(common)
    is_dark = difference[np.abs(difference) >= NOISE].sum() < 0
    filters = [ImageFilter.MaxFilter, ImageFilter.MinFilter]
    for extreme in filters if is_dark else filters[::-1]:
        small = small.filter(extreme(_window(small, STROKE)))
    ground = _values(small.resize(image.size, Image.Resampling.BILINEAR))
    if is_dark:
        difference, light = ground - _values(image), ground
    else:
        difference, light = _values(image) - ground, 255 - ground
    return np.where(difference < NOISE, 0, difference) / np.maximum(light, 1)


def _window(image: Image.Image, part: float) -> int:
    """Return the side of a filter's window, odd, as a part of an image's shorter side."""
    return max(3, round(part * min(image.size)) | 1)


def _values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float32)


def _large_shapes(strokes: np.ndarray) -> np.ndarray:
    """Return where strokes (H, W) hang together to more than a speck, bool (H, W)."""
    shapes, count = ndimage.label(strokes > 0, structure=np.ones((3, 3)))
    weights = ndimage.sum_labels(strokes, shapes, np.arange(count + 1))
    return (weights >= SPECK * weights.max())[shapes] & (shapes > 0)
