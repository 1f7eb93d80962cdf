"""Every picture: one function each, one PNG each, legible at 900 pixels and safe for colour-blind eyes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.files import replacing

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

WIDTH = 8.0  # inches; at 160 dots per inch sharp also where a README scales it to 900 pixels
STYLE = {
    "text.parse_math": False,  # class names may hold dollar signs
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "0.4",
    "grid.color": "0.9",
    "legend.frameon": False,
}
FALLBACK_FONTS = (  # for names in scripts that DejaVu lacks; those installed are used
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "Yu Gothic",
    "Malgun Gothic",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Noto Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
)
GOOD, BAD, QUIET = "#0072b2", "#d55e00", "0.55"  # blue and vermilion of the Okabe-Ito palette
MARKERS = "osD^vP*X<>"
ACCURACY_TICKS = (0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)


@contextmanager
def drawing(path: Path, height: float, width: float = WIDTH) -> Iterator[Figure]:
    """Yield an empty figure of `width` × `height` inches that is written to `path` when the block succeeds."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    fonts = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    with matplotlib.rc_context({**STYLE, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(Glyph|Matplotlib currently does not support)")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})


def draw_samples(images_by_class: Mapping[str, Tensor], path: Path) -> None:
    """Draw a row of images per class; `images_by_class` maps a class name to uint8 (n, C, H, W)."""
    classes = list(images_by_class)
    blocks = next(count for most, count in ((12, 1), (36, 2), (10**9, 4)) if len(classes) <= most)
    rows = -(-len(classes) // blocks)
    label = (1.2, 1.0, 0.9, 0.9)[blocks - 1]
    per_class = min(max(len(images) for images in images_by_class.values()), 10 // blocks + 1)
    _, _, tall, wide = next(iter(images_by_class.values())).shape
    tile = min((WIDTH / blocks - label) / max(per_class, 4), 1.2)
    pitch = tile * tall / wide + 0.04
    with drawing(path, height=rows * pitch + 0.1) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(rows * pitch + 0.05, -0.05))
        axes.axis("off")
        for index, (name, images) in enumerate(images_by_class.items()):
            left, top = index // rows * WIDTH / blocks + label, index % rows * pitch
            axes.text(left - 0.08, top + pitch / 2, shorten(name, 14), ha="right", va="center", size=10 - blocks // 2)
            for column, image in enumerate(images[:per_class]):
                x = left + column * tile
                axes.imshow(to_rgb(image), extent=(x, x + tile - 0.04, top + pitch - 0.04, top), aspect="auto")
        axes.set(xlim=(0, WIDTH), ylim=(rows * pitch + 0.05, -0.05))


def draw_table(inputs: Tensor, targets: Tensor, names: Sequence[str], path: Path) -> None:
    """Draw the first rows of a regression's table: inputs (N, F), then targets (N, T), of which `names` are the names."""
    rows, features, outputs = min(len(inputs), 12), inputs.shape[1], targets.shape[1]
    headers = [f"input {number + 1}" for number in range(features + outputs - len(names))] + list(names)
    columns = [*abridged(range(features), 6), *abridged(range(features, features + outputs), 4)]
    table = [[*inputs[row].tolist(), *targets[row].tolist()] for row in range(rows)]
    with drawing(path, height=0.28 * (rows + 1) + 0.3) as figure:
        axes = figure.subplots()
        axes.axis("off")
        axes.set_title(f"{len(inputs)} rows: {features} inputs, {outputs} targets")
        drawn = axes.table(
            [["…" if column is None else f"{values[column]:.4g}" for column in columns] for values in table],
            colLabels=["…" if column is None else shorten(headers[column], 12) for column in columns],
            cellLoc="right",
            bbox=(0, 0, 1, 1),
            edges="horizontal",
        )
        drawn.auto_set_font_size(False)
        for (row, index), cell in drawn.get_celld().items():
            is_target = columns[index] is not None and columns[index] >= features
            cell.set(edgecolor="0.85", facecolor="#eef4fa" if is_target else "white")
            cell.set_text_props(weight="bold" if row == 0 else "normal")


def draw_learning_curves(histories: Mapping[str, pd.DataFrame | list[dict[str, Any]]], path: Path) -> None:
    """Draw every architecture's history: validation score and loss per epoch, the training's loss dotted."""
    import pandas as pd

    frames = {name: pd.DataFrame(history).astype(float) for name, history in histories.items()}
    score = next((key for key in ("val_accuracy", "val_r2") if all(key in frame for frame in frames.values())), None)
    order = sorted(frames, key=lambda name: best_score(frames[name], score), reverse=True)
    looks = line_looks(list(frames))
    with drawing(path, height=3.9 if score else 3.4) as figure:
        panels = figure.subplots(1, 2 if score else 1, squeeze=False)[0]
        for name in order:
            frame, look = frames[name], looks[name]
            look["markevery"] = max(1, len(frame) // 8)
            if score:
                values = 1 - frame[score] if score == "val_accuracy" else frame[score]
                panels[0].plot(frame["epoch"], values, label=name, **look)
            panels[-1].plot(frame["epoch"], frame["val_loss"], label=name, **look)
            training = {"color": look["color"], "linestyle": ":", "linewidth": 1.2, "marker": "," if len(frame) > 1 else "_"}
            panels[-1].plot(frame["epoch"], frame["train_loss"], **training)
        if score == "val_accuracy":
            scale_as_accuracy(panels[0])
        if score:
            panels[0].set_title("Validation accuracy" if score == "val_accuracy" else "Validation R²")
        panels[-1].set_title("Loss: validation, and training (dotted)")
        spread_losses(panels[-1])
        for axes in panels:
            axes.set_xlabel("epoch")
            axes.grid(True)
            axes.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = panels[0].get_legend_handles_labels()
        labels = [f"{name} {describe_best(frames[name], score)}" for name in labels]
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))


def best_score(frame: pd.DataFrame, score: str | None) -> float:
    """Return a history's highest score, or its lowest loss as a negative number."""
    return frame[score].max() if score else -frame["val_loss"].min()


def describe_best(frame: pd.DataFrame, score: str | None) -> str:
    """Return a history's best score for a legend."""
    best = best_score(frame, score)
    return f"{best:.2%}" if score == "val_accuracy" else f"{best:.3f}" if score else f"{-best:.4g}"


def line_looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker per name, the same in every figure of one line-up."""
    import matplotlib

    colors = matplotlib.color_sequences["petroff10"]
    return {
        name: {"color": colors[i % len(colors)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        for i, name in enumerate(names)
    }


def scale_as_accuracy(axes: Axes) -> None:
    """Make an axis of error rates read as accuracy, on a scale that spreads what is close to 100 %."""
    errors = [value for line in axes.get_lines() for value in line.get_ydata() if value > 0]
    low, high = min(errors, default=0.01), max(errors, default=0.1)
    floor = low / 2 if any(value <= 0 for line in axes.get_lines() for value in line.get_ydata()) else low
    for line in axes.get_lines():
        line.set_ydata([max(value, floor) for value in line.get_ydata()])
    axes.set_ylim(min(high * 1.15, 1.05), floor / 1.15)
    axes.set_yscale("log")
    ticks = [tick for tick in ACCURACY_TICKS if floor / 1.15 <= 1 - tick <= high * 1.15]
    if len(ticks) < 3:
        ticks = [1 - (floor + (high - floor) * part) for part in ((0, 0.5, 1) if high > floor else (0,))]
    axes.set_yticks([1 - tick for tick in ticks], [percent(tick) for tick in ticks])
    axes.minorticks_off()


def spread_losses(axes: Axes) -> None:
    """Make a loss axis logarithmic where every value is positive and finite."""
    values = [value for line in axes.get_lines() for value in line.get_ydata()]
    if values and min(values) > 0 and max(values) < float("inf"):
        axes.set_yscale("log")


def percent(value: float) -> str:
    """Return a fraction as a percentage without needless zeros: 0.995 → 99.5 %."""
    return f"{100 * value:.4g} %"


def to_rgb(image: Tensor) -> np.ndarray:
    """Return a uint8 image (C, H, W) as uint8 (H, W, 3), no larger than a picture needs; grey unless C is 3."""
    import torch
    from torch.nn.functional import interpolate

    if max(image.shape[1:]) > 160:
        size = [max(1, side * 160 // max(image.shape[1:])) for side in image.shape[1:]]
        image = interpolate(image[None].float(), size, mode="area")[0].round().to(torch.uint8)
    if image.shape[0] != 3:
        image = image.float().mean(0, keepdim=True).to(torch.uint8).expand(3, -1, -1)
    return image.permute(1, 2, 0).numpy()


def shorten(name: str, most: int) -> str:
    """Return a name cut to `most` characters."""
    return name if len(name) <= most else name[: most - 1] + "…"


def abridged(numbers: Sequence[int], most: int) -> list[int | None]:
    """Return all numbers, or the first ones, None and the last where there are more than `most`."""
    return list(numbers) if len(numbers) <= most else [*numbers[: most - 2], None, numbers[-1]]
