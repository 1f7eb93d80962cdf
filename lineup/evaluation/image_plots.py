"""Plots made of images: samples, errors, disagreements, classifications, the inside of networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from rich.cells import cell_len
from torch import Tensor
from torch.nn.functional import interpolate

from lineup.evaluation.plot_style import (
    BLUE,
    CENTERED,
    ORANGE,
    WIDTH,
    canvas,
    draw_message,
    drawing,
    shorten,
)

_LTR = "\u200e"  # keeps marks and numbers on their side of an Arabic name
_GAP = 0.04  # inches between images
_TITLE = 0.36  # inches
_MAX_PIXELS = 160  # per side of an image: more are not seen
_MAX_ARCHITECTURES = 7  # side by side: more would be too small to read
_MAX_FILTERS, _MAX_MAPS, _MAX_LAYERS, _MAX_WEIGHTS = 64, 16, 6, 200


class _Size(NamedTuple):
    width: float
    height: float


class _Box(NamedTuple):
    """A place on a canvas, in inches from its top left corner."""

    left: float
    top: float
    size: _Size

    @property
    def bottom(self) -> float:
        return self.top + self.size.height

    @property
    def center(self) -> float:
        return self.left + self.size.width / 2

    @property
    def middle(self) -> float:
        return self.top + self.size.height / 2


def _draw_grid(
    axes: Axes, images: Sequence[np.ndarray], columns: int, first: _Box, gap: _Size
) -> list[_Box]:
    """Draw images (H, W) or (H, W, 3) row by row on a canvas; return where each one is."""
    shading = _shading(np.stack(images))
    width, height = first.size
    boxes = []
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left = first.left + column * (width + gap.width)
        top = first.top + row * (height + gap.height)
        extent = (left, left + width, top + height, top)
        axes.imshow(image, extent=extent, aspect="auto", **shading)
        boxes.append(_Box(left, top, first.size))
    return boxes


def _shading(values: np.ndarray) -> dict[str, Any]:
    """Return imshow's settings: white at zero, orange above, violet below; colours as they are."""
    if values.dtype == np.uint8:
        return {}
    largest = max(np.abs(values).max(), 1e-12)
    if values.min() < 0:
        return {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest}
    return {"cmap": "Oranges", "vmin": 0, "vmax": largest}


def _fit(image: np.ndarray, width: float, height: float) -> _Size:
    """Return the largest size of an image (H, W, …) within `width` and `height`."""
    rows, columns = image.shape[:2]
    scale = min(width / columns, height / rows)
    return _Size(scale * columns, scale * rows)


def _to_rgb(image: Tensor | np.ndarray) -> np.ndarray:
    """Return a uint8 image (C, H, W) as (H, W, 3), no larger than needed; grey unless C is 3."""
    pixels = torch.as_tensor(image).float()
    shrink = _MAX_PIXELS / max(pixels.shape[1:])
    if shrink < 1:
        size = [max(1, int(side * shrink)) for side in pixels.shape[1:]]
        pixels = interpolate(pixels[None], size, mode="area")[0].round()
    if len(pixels) != 3:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    return pixels.to(torch.uint8).permute(1, 2, 0).numpy()


def draw_samples(images_by_class: Mapping[str, Tensor], path: Path) -> None:
    """Draw a row of images per class; a class name maps to uint8 (n, C, H, W)."""
    count = len(images_by_class)
    blocks = 1 if count <= 12 else 2 if count <= 36 else 4  # side by side
    rows = math.ceil(count / blocks)
    most = 12 // blocks
    groups = [[_to_rgb(image) for image in group[:most]] for group in images_by_class.values()]
    letters, font_size = (14, 10) if blocks < 4 else (9, 8)
    style = {"ha": "right", "va": "center", "size": font_size}
    names = [shorten(name, letters) for name in images_by_class]
    label = 0.15 + 0.09 * max(map(cell_len, names))
    columns = max(map(len, groups))
    room = (WIDTH / blocks - label) / columns - _GAP
    side = 1.2 / blocks**0.5
    tile = _fit(groups[0][0], min(room, side), side)
    width = label + columns * (tile.width + _GAP)
    height = tile.height + _GAP
    with canvas(path, rows * height + _GAP, blocks * width) as axes:
        for index, (name, images) in enumerate(zip(names, groups, strict=True)):
            block, row = divmod(index, rows)
            first = _Box(block * width + label, row * height + _GAP, tile)
            _draw_grid(axes, images, columns, first, _Size(_GAP, _GAP))
            axes.text(first.left - 0.07, first.middle, name, **style)


def draw_errors(
    errors: Sequence[tuple[Tensor, str, str, float]], examples: int, path: Path
) -> None:
    """Draw (image uint8 (C, H, W), label, prediction, confidence) of the errors on `examples`."""
    if not errors:
        return draw_message(f"No errors on {examples:,} images", path)
    large = len(errors) <= 25
    columns, letters = (5, 17) if large else (8, 13)
    style = CENTERED | {"size": 9 if large else 7.5}
    pitch, caption = WIDTH / columns, 0.5
    images = [_to_rgb(image) for image, *_ in errors]
    tile = _fit(images[0], pitch - 0.5, pitch - 0.5)
    gap = _Size(pitch - tile.width, caption)
    rows = math.ceil(len(errors) / columns)
    with canvas(path, rows * (tile.height + caption)) as axes:
        first = _Box(gap.width / 2, _GAP, tile)
        boxes = _draw_grid(axes, images, columns, first, gap)
        for box, (_, label, prediction, confidence) in zip(boxes, errors, strict=True):
            correct = f"{_LTR}✓ {shorten(label, letters)}"
            wrong = f"{_LTR}✗ {shorten(prediction, letters - 5)}"
            sure = f"{_LTR}, {confidence:.0%}"
            axes.text(box.center, box.bottom + 0.1, correct, color=BLUE, **style)
            axes.text(box.center, box.bottom + 0.28, wrong + sure, color=ORANGE, **style)
    return None


def draw_disagreements(
    images: Sequence[Tensor],
    labels: Sequence[str],
    predictions: Mapping[str, Sequence[str]],
    path: Path,
) -> None:
    """Draw a row per image (C, H, W): its label, and what the first architectures predict."""
    if not images:
        return draw_message("The architectures agree on every image", path)
    pictures = [_to_rgb(image) for image in images]
    shown = dict(islice(predictions.items(), _MAX_ARCHITECTURES))
    row, column, head = 0.62, 1.1, 0.38
    tile = _fit(pictures[0], 0.57, 0.57)
    with canvas(path, head + row * len(images), 0.75 + column * (1 + len(shown))) as axes:
        gap = _Size(0, row - tile.height)
        boxes = _draw_grid(axes, pictures, 1, _Box(0.05, head, tile), gap)
        if len(shown) < len(predictions):
            axes.text(0.05, 0.2, f"{len(shown)} of {len(predictions)}", va="center")
        for index, (name, values) in enumerate([("label", labels), *shown.items()]):
            x = 0.75 + column * (index + 0.5)
            axes.text(x, 0.2, shorten(name, 11), weight="bold", **CENTERED)
            for box, value, label in zip(boxes, values, labels, strict=True):
                mark, style = _mark(value == label) if index else ("", {})
                text = mark + shorten(value, 9)
                axes.text(x, box.middle, text, **style, **CENTERED)
    return None


def _mark(correct: bool) -> tuple[str, dict[str, Any]]:
    mark, color, shade = ("✓", BLUE, "#e3eef6") if correct else ("✗", ORANGE, "#fbe3d3")
    box = {"boxstyle": "round,pad=0.35", "facecolor": shade, "linewidth": 0}
    return f"{_LTR}{mark} ", {"color": color, "bbox": box}


def draw_classifications(
    classifications: Sequence[tuple[str, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    path: Path,
    most: int = 10,
) -> None:
    """Draw a row per (name, image uint8 (C, H, W), probabilities (K,)): image, best classes."""
    shown = min(len(classes), most)
    with drawing(path, height=len(classifications) * (0.24 * shown + 0.5)) as figure:
        rows = figure.subplots(len(classifications), 2, width_ratios=(1, 1.6), squeeze=False)
        for (left, right), (name, image, probabilities) in zip(rows, classifications, strict=True):
            left.imshow(_to_rgb(image))
            left.set_title(shorten(name, 32), loc="center", weight="normal", size=9)
            left.axis("off")
            best = (-probabilities).argsort(kind="stable")[:shown]
            names = [shorten(classes[index], 24) for index in best]
            _plot_probabilities(right, probabilities[best], names)


def _plot_probabilities(axes: Axes, probabilities: np.ndarray, names: Sequence[str]) -> None:
    places = range(len(names))
    bars = axes.barh(places, probabilities, color="0.7")
    bars[0].set_color(BLUE)
    axes.bar_label(bars, fmt=lambda value: f"{100 * value:.1f} %", padding=4, size=9)
    axes.set_yticks(places, names)
    axes.set(xlim=(0, 1.15), xticks=[])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines.bottom.set_visible(False)
    axes.tick_params(length=0)


def draw_filters(weight: Tensor, shape: Sequence[int], path: Path) -> None:
    """Draw a first layer's weights, (out, C, h, w) or (out, features), for inputs of `shape`."""
    weight = weight.detach().float().cpu()
    if len(shape) == 3 and weight.shape[1:] == (math.prod(shape),):
        weight = weight.reshape(-1, *shape)
    if weight.ndim == 4:
        _draw_filter_grid(weight, path)
    else:
        _draw_weight_matrix(weight.flatten(1).numpy(), path)


def _draw_filter_grid(weight: Tensor, path: Path) -> None:
    units, channels, height, width = weight.shape
    title = f"{units} first-layer filters, {channels} × {height} × {width}"
    title += f"; {_MAX_FILTERS} shown" if units > _MAX_FILTERS else ""
    title += "; mean over channels" if channels > 1 else ""
    filters = weight[:_MAX_FILTERS].mean(1).numpy()
    columns = min(len(filters), 16 if len(filters) > 32 else 8)
    rows = math.ceil(len(filters) / columns)
    gap = 0.08
    room = (WIDTH - 1) / columns - gap
    tile = _fit(filters[0], min(1.2, room), 1.2)
    with canvas(path, _TITLE + max(1.2, rows * (tile.height + gap))) as axes:
        axes.text(0.05, _TITLE / 2, title, va="center", weight="bold", size=11)
        first = _Box(0.05, _TITLE, tile)
        _draw_grid(axes, filters, columns, first, _Size(gap, gap))
        scale = axes.figure.add_axes((0.89, 0.08, 0.015, 0.7))
        bar = axes.figure.colorbar(axes.images[0], cax=scale)
        bar.outline.set_visible(False)


def _draw_weight_matrix(matrix: np.ndarray, path: Path) -> None:
    matrix = matrix[:_MAX_WEIGHTS, :_MAX_WEIGHTS]
    units, inputs = matrix.shape
    title = f"Weights of {units} units by {inputs} inputs"
    with drawing(path, height=min(4.5, max(2, 0.8 + 0.3 * units))) as figure:
        axes = figure.subplots()
        image = axes.imshow(matrix, aspect="auto", **_shading(matrix))
        axes.set(title=title, xlabel="input", ylabel="unit")
        axes.locator_params(integer=True)
        figure.colorbar(image, ax=axes).outline.set_visible(False)


def draw_activations(image: Tensor, activations: Mapping[str, Tensor], path: Path) -> None:
    """Draw an input and what some evenly spaced layers make of it; see `record_activations`."""
    outputs = list(activations.items())
    count = min(_MAX_LAYERS, len(outputs))
    places = np.linspace(0, len(outputs) - 1, count).round()
    layers = [_layer(*outputs[int(place)]) for place in places]
    if image.ndim == 3:
        shape = " × ".join(map(str, image.shape))
        picture = _to_rgb(image)
        size = _fit(picture, WIDTH, 1)
        layers.insert(0, (f"input   {shape}", [picture], size))
    top = 0.0
    with canvas(path, sum(size.height + _TITLE for *_, size in layers)) as axes:
        for title, images, size in layers:
            axes.text(0.05, top + _TITLE / 2, title, va="center", weight="bold")
            first = _Box(0.05, top + 0.3, size)
            _draw_grid(axes, images, _MAX_MAPS, first, _Size(_GAP, _GAP))
            top = first.bottom + 0.06


def _layer(name: str, output: Tensor) -> tuple[str, np.ndarray, _Size]:
    """Return a title, images and their size: feature maps, the states of all steps, or units."""
    values = output.float().cpu().numpy()
    width = WIDTH - 0.1
    if values.ndim == 4:  # (1, C, H, W)
        images = values[0, :_MAX_MAPS]
        shape = " × ".join(map(str, values.shape[1:]))
        size = _fit(images[0], width / len(images) - _GAP, 1.5)
    elif values.ndim == 3:  # (steps, 1, units), or (1, steps, units)
        images = values.swapaxes(0, 1) if values.shape[1] == 1 else values
        shape = f"{images.shape[1]} steps × {images.shape[2]} units"
        size = _Size(width, 1.5)
    else:  # (1, units)
        images = values[None]
        shape = f"{values.shape[1]} units"
        size = _Size(width, 0.3)
    return f"{name}   {shape}", images, size
