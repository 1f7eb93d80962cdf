"""Synthetic photos of handwritten digits: paper, light, shadow, pen, ruled lines, a camera held askew."""

import io

import numpy as np
from PIL import Image, ImageFilter

WIDTH, HEIGHT = 1000, 800


def photograph(digit, generator, tilt=15):
    """Return a JPEG of a digit, uint8 (28, 28), white on black, as dark ink on paper; `tilt` in degrees."""
    mask = _written(digit, generator, tilt)
    paper = np.full((HEIGHT, WIDTH), float(generator.integers(120, 251)))
    if generator.random() < 0.4:
        step, strength = int(generator.integers(40, 90)), generator.uniform(10, 35)
        for start in range(int(generator.integers(0, step)), HEIGHT, step):
            paper[start : start + 2] -= strength
    pen = np.minimum(generator.uniform(20, 60), paper - 70)
    photo = (paper * (1 - mask) + pen * mask) * _light(generator)
    photo += generator.normal(0, generator.uniform(1, 5), photo.shape)
    file = io.BytesIO()
    Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    file.seek(0)
    return file


def _written(digit, generator, tilt):
    """Return how much ink there is, float (H, W), of a pen of some width, somewhere on the page."""
    side, width = int(generator.integers(180, 560)), int(generator.integers(70, 150))
    ink = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    ink = ink.filter(ImageFilter.GaussianBlur(side / 60)).point(lambda value: 255 * (value > width))
    ink = ink.rotate(generator.uniform(-tilt, tilt), Image.Resampling.BILINEAR, expand=True)
    ink = ink.filter(ImageFilter.GaussianBlur(1.5))
    page = Image.new("L", (WIDTH, HEIGHT))
    room = [end - size for end, size in zip(page.size, ink.size, strict=True)]
    page.paste(ink, [int(generator.integers(0, max(1, most))) for most in room])
    return np.asarray(page) / 255


def _light(generator):
    """Return the light on a page, float (H, W): from one side, and with the soft shadow of a hand."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / WIDTH
    light = np.ones((HEIGHT, WIDTH))
    if generator.random() < 0.6:
        angle = generator.uniform(0, 2 * np.pi)
        slope = (x - 0.5) * np.cos(angle) + (y - 0.4) * np.sin(angle)
        light *= 1 - generator.uniform(0.2, 0.6) * (slope - slope.min()) / np.ptp(slope)
    if generator.random() < 0.4:
        angle, offset = generator.uniform(0, 2 * np.pi), generator.uniform(-0.2, 0.2)
        inside = (x - 0.5) * np.cos(angle) + (y - 0.4) * np.sin(angle) - offset
        depth, softness = generator.uniform(0.2, 0.45), generator.uniform(20, 150)
        light *= 1 - depth / (1 + np.exp(-inside * softness))
    return light
