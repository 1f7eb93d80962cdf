"""What is drawn in a grey picture: strokes on a background, dark or light, under uneven light.

The background is what a morphological closing makes of the picture, or an opening where strokes are
lighter than it: strokes vanish, while slopes and edges of shadows stay. (Serra, "Image Analysis and
Mathematical Morphology", 1982; the difference is known as the top-hat transform.)
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

_MAX_SIDE = 640  # pixels: larger pictures are reduced first
_BACKGROUND_SIDE = 64  # pixels a side of the version in which the background is estimated
_STROKE_WIDTH = 0.4  # of the shorter side: what is wider is background
_NEIGHBOURHOOD = 0.5  # of the shorter side: strokes differ from what most pixels in it are
_NOISE = 16  # grey levels
_MIN_STROKE = 0.45  # of the strokes' contrast: fainter are ruled lines, and traces of shadows
_MIN_EDGE = 0.2  # of the strokes' contrast: fainter than this is background at a soft edge too
_EDGE_WIDTH = 0.05  # of the longer side of the drawing: so far a soft edge may reach
_MIN_PART = 0.1  # of the largest connected part: smaller ones are dirt


def extract_strokes(image: Image.Image, min_contrast: float) -> Image.Image | None:
    """Return the strokes of a grey image, white on black, cropped; None where nothing is drawn.

    Strokes differ from the background by `min_contrast` grey levels somewhere.
    """
    image = image.copy()
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.BOX)
    difference, light = _subtract_background(image)
    if difference.max() < min_contrast:
        return None
    contrast = np.where(difference < _NOISE, 0, difference) / np.maximum(light, 1)
    contrast /= np.percentile(contrast[contrast > 0], 95)
    parts = _large_parts(np.where(contrast > _MIN_STROKE, contrast, 0))
    edge = round(_EDGE_WIDTH * max(_crop(parts).shape))
    strokes = np.clip((contrast - _MIN_EDGE) / (1 - _MIN_EDGE), 0, 1)
    strokes *= ndimage.maximum_filter(parts, 2 * edge + 1)
    return Image.fromarray((255 * _crop(strokes)).round().astype(np.uint8))


def _subtract_background(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return how much strokes differ from the background, and its light, float32 (H, W) each.

    The light is what a stroke can differ by at the most.
    """
    small = image.copy()
    small.thumbnail((_BACKGROUND_SIDE, _BACKGROUND_SIDE), Image.Resampling.BOX)
    common = small.filter(ImageFilter.MedianFilter(_window(small, _NEIGHBOURHOOD)))
    pixels = _values(image)
    difference = pixels - _values(common.resize(image.size, Image.Resampling.BILINEAR))
    is_dark = difference[np.abs(difference) >= _NOISE].sum() < 0
    filters = [ImageFilter.MaxFilter, ImageFilter.MinFilter]
    for extreme in filters if is_dark else filters[::-1]:
        small = small.filter(extreme(_window(small, _STROKE_WIDTH)))
    background = _values(small.resize(image.size, Image.Resampling.BILINEAR))
    if is_dark:
        return background - pixels, background
    return pixels - background, 255 - background


def _window(image: Image.Image, part: float) -> int:
    """Return the side of a filter's window, odd, as a part of an image's shorter side."""
    return max(3, round(part * min(image.size)) | 1)


def _values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float32)


def _large_parts(strokes: np.ndarray) -> np.ndarray:
    """Return where strokes (H, W) hang together to more than dirt, bool (H, W).

    Of those at the border the largest alone can count: others are corners of shadows.
    """
    parts, count = ndimage.label(strokes > 0, structure=np.ones((3, 3)))
    weights = ndimage.sum_labels(strokes, parts, np.arange(count + 1))
    at_border = [parts[0], parts[-1], parts[:, 0], parts[:, -1]]
    weights[np.setdiff1d(np.concatenate(at_border), weights.argmax())] = 0
    return (weights >= _MIN_PART * weights.max())[parts] & (parts > 0)


def _crop(pixels: np.ndarray) -> np.ndarray:
    """Return the part of (H, W) outside of which all is zero."""
    (found,) = ndimage.find_objects((pixels > 0).astype(int))
    return pixels[found]
