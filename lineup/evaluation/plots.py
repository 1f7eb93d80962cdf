"""Every plot: a function and a PNG each, legible at 900 pixels, safe for colour-blind eyes."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor
from torch.nn.functional import interpolate

from lineup.evaluation.comparisons import readable_p
from lineup.files import replacing

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
LOSSES = (
    "The training's loss includes label smoothing, dropout and augmentation "
    "where the recipe has them; the validation's has none."
)
ACCURACY_TICKS = (
    0,
    0.25,
    0.5,
    0.75,
    0.9,
    0.95,
    0.97,
    0.98,
    0.99,
    0.995,
    0.998,
    0.999,
    0.9995,
    0.9999,
)


@contextmanager
def drawing(path: Path, height: float, width: float = WIDTH) -> Iterator[Figure]:
    """Yield an empty figure, in inches, that is written to `path` when the block succeeds."""
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
    blocks = 1 if len(images_by_class) <= 12 else 2 if len(images_by_class) <= 36 else 4
    names = [shorten(name, 14 if blocks < 4 else 9) for name in images_by_class]
    rows = -(-len(names) // blocks)
    label = 0.15 + 0.09 * max(text_width(name) for name in names)  # inches
    per_row = min(max(len(images) for images in images_by_class.values()), 12 // blocks)
    _, _, tall, wide = next(iter(images_by_class.values())).shape
    tile = min(
        (WIDTH / blocks - label) / per_row, *(1.2 / blocks**0.5 * side for side in (1, wide / tall))
    )
    pitch = tile * tall / wide + 0.04
    with drawing(
        path, height=rows * pitch + 0.06, width=blocks * (label + per_row * tile) + 0.02
    ) as figure:
        axes = canvas_axes(figure)
        for index, (name, images) in enumerate(zip(names, images_by_class.values(), strict=True)):
            left, top = (
                index // rows * (label + per_row * tile) + label,
                index % rows * pitch + 0.05,
            )
            axes.text(
                left - 0.07,
                top + pitch / 2,
                name,
                ha="right",
                va="center",
                size=10 if blocks < 4 else 8,
            )
            for column, image in enumerate(images[:per_row]):
                place(axes, image, left + column * tile, top, tile - 0.04, pitch - 0.04)


def draw_table(inputs: Tensor, targets: Tensor, names: Sequence[str], path: Path) -> None:
    """Draw the first rows of inputs (N, F) and targets (N, T); `names` name the last columns."""
    rows, features, outputs = min(len(inputs), 12), inputs.shape[1], targets.shape[1]
    headers = [f"input {number + 1}" for number in range(features + outputs - len(names))] + list(
        names
    )
    columns = [*abridged(range(features), 6), *abridged(range(features, features + outputs), 4)]
    table = [[*inputs[row].tolist(), *targets[row].tolist()] for row in range(rows)]
    with drawing(path, height=0.28 * (rows + 1) + 0.3) as figure:
        axes = figure.subplots()
        axes.axis("off")
        axes.set_title(f"{len(inputs)} rows: {features} inputs, {outputs} targets")
        drawn = axes.table(
            [
                ["…" if column is None else f"{values[column]:.4g}" for column in columns]
                for values in table
            ],
            colLabels=[
                "…" if column is None else shorten(headers[column], 12) for column in columns
            ],
            cellLoc="right",
            colLoc="right",
            bbox=(0, 0, 1, 1),
            edges="horizontal",
        )
        drawn.auto_set_font_size(False)
        for (row, _), cell in drawn.get_celld().items():
            cell.set(edgecolor="0.85")
            cell.set_text_props(weight="bold" if row == 0 else "normal")


def draw_learning_curves(
    histories: Mapping[str, pd.DataFrame | list[dict[str, Any]]], path: Path
) -> None:
    """Draw every architecture's history: validation score and loss, the training's loss dotted."""
    frames = {name: pd.DataFrame(history).astype(float) for name, history in histories.items()}
    score = next(
        (
            key
            for key in ("val_accuracy", "val_r2")
            if all(key in frame for frame in frames.values())
        ),
        None,
    )
    order = sorted(frames, key=lambda name: best_score(frames[name], score), reverse=True)
    looks = line_looks(list(frames))
    with drawing(path, height=4.1 if score else 3.6) as figure:
        panels = figure.subplots(1, 2 if score else 1, squeeze=False)[0]
        for name in order:
            frame, look = frames[name], looks[name]
            look["markevery"] = max(1, len(frame) // 8)
            if score:
                values = 1 - frame[score] if score == "val_accuracy" else frame[score]
                panels[0].plot(frame["epoch"], values, label=name, **look)
            panels[-1].plot(frame["epoch"], frame["val_loss"], label=name, **look)
            training = {
                "color": look["color"],
                "linestyle": ":",
                "linewidth": 1.2,
                "marker": "," if len(frame) > 1 else "_",
            }
            panels[-1].plot(frame["epoch"], frame["train_loss"], **training)
        if score == "val_accuracy":
            scale_as_accuracy(panels[0])
        if score:
            panels[0].set_title(
                "Validation accuracy" if score == "val_accuracy" else "Validation R²"
            )
        panels[-1].set_title("Loss (training dotted)")
        spread_losses(panels[-1])
        for axes in panels:
            axes.set_xlabel("epoch")
            axes.grid(True)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        handles, labels = panels[0].get_legend_handles_labels()
        labels = [f"{name} {describe_best(frames[name], score)}" for name in labels]
        legend = figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(3, len(labels)),
            title=LOSSES,  # the one place that the layout keeps clear of the legend
            title_fontsize=8.5,
        )
        legend.get_title().set_color("0.35")


def draw_leaderboard(rows: Sequence[Mapping[str, Any]], confidence: float, path: Path) -> None:
    """Draw the line-up in the order of `rows`, dictionaries with the columns of leaderboard.csv."""
    classifies = "test_accuracy" in rows[0]
    score = "accuracy" if classifies else "loss"
    show = "{:.2%}".format if classifies else "{:.4g}".format
    columns = {
        "test": lambda row: show(row[f"test_{score}"]),
        "parameters": lambda row: f"{row['parameters']:,}",
    }
    columns["µs each"] = lambda row: f"{row['time_per_image_us']:,.0f}"
    if any("p_vs_first" in row for row in rows):
        columns["p vs. first"] = lambda row: (
            readable_p(row["p_vs_first"]) if "p_vs_first" in row else "–"
        )
    looks = line_looks([row["architecture"] for row in rows])
    with drawing(path, height=0.4 * len(rows) + 1.15) as figure:
        axes, texts = figure.subplots(1, 2, sharey=True, width_ratios=(1, 0.28 * len(columns)))
        for index, row in enumerate(rows):
            color, value = looks[row["architecture"]]["color"], row[f"test_{score}"]
            ends = [row.get(f"test_{score}_{end}", value) for end in ("low", "high")]
            axes.plot(
                ends, [index, index], color=color, linewidth=4, alpha=0.4, solid_capstyle="butt"
            )
            axes.plot(value, index, marker="o", color=color, markersize=8)
            axes.plot(
                row[f"val_{score}"],
                index,
                marker="D",
                color="none",
                markeredgecolor="0.25",
                markersize=6,
            )
            for column, (head, text) in enumerate(columns.items()):
                weight = "bold" if head == "test" else "normal"
                texts.text(column + 0.9, index, text(row), ha="right", va="center", weight=weight)
        for column, head in enumerate(columns):
            texts.text(column + 0.9, -0.75, head, ha="right", va="center", color="0.35")
        texts.set_xlim(0, len(columns))
        texts.axis("off")
        axes.set(ylim=(len(rows) - 0.5, -1.1))
        axes.set_yticks(range(len(rows)), [shorten(row["architecture"], 18) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")
        axes.locator_params(axis="x", nbins=5)
        if classifies:
            axes.xaxis.set_major_formatter(lambda value, _: percent(value))
            axes.set_xlabel(f"accuracy: ● test with {percent(confidence)} interval, ◇ validation")
        else:
            axes.set_xlabel("mean squared error: ● test, ◇ validation")


def draw_confusion(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw counts (K, K), actual by predicted: correct in grey, every kind of error in orange."""
    count = len(classes)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    mistakes = np.where(np.eye(count, dtype=bool), np.nan, share)
    highest = max(np.nan_to_num(mistakes).max(), 1e-9)
    names = [shorten(name, 14) for name in classes]
    side = min(6.2, 2.2 + 0.42 * count)
    with drawing(path, height=side, width=side + 1) as figure:
        axes = figure.subplots()
        axes.imshow(np.where(np.eye(count, dtype=bool), 1, np.nan), cmap="Greys", vmin=0, vmax=8)
        image = axes.imshow(
            np.where(mistakes > 0, mistakes, np.nan), cmap="Oranges", vmin=0, vmax=highest
        )
        if count <= 20:
            for actual, predicted in np.argwhere(matrix):
                dark = actual != predicted and share[actual, predicted] > 0.6 * highest
                style = {"color": "white" if dark else "black", "size": 10 if count <= 10 else 7}
                axes.text(
                    predicted,
                    actual,
                    f"{matrix[actual, predicted]}",
                    ha="center",
                    va="center",
                    **style,
                )
        step = -(-count // 40)
        upright = max(map(len, names)) <= 3 and count <= 20
        axes.set_xticks(range(0, count, step), names[::step], rotation=0 if upright else 90)
        axes.set_yticks(range(0, count, step), names[::step])
        axes.tick_params(labelsize=10 if count <= 20 else 7, length=0 if count <= 20 else 2)
        axes.set(xlabel="predicted", ylabel="actual")
        axes.spines[:].set_visible(False)
        if np.nansum(mistakes) > 0:
            bar = figure.colorbar(
                image, ax=axes, shrink=0.6, format=lambda value, _: percent(value)
            )
            bar.set_label("errors, of the actual class")
            bar.outline.set_visible(False)


def draw_errors(
    mistakes: Sequence[tuple[Tensor, str, str, float]], examples: int, path: Path
) -> None:
    """Draw (image uint8 (C, H, W), label, prediction, confidence) of errors on `examples`."""
    if not mistakes:
        return draw_message(f"No errors on {examples:,} images", path)
    columns = 5 if len(mistakes) <= 25 else 8
    pitch, room = WIDTH / columns, 19 if columns == 5 else 15
    tall, wide = mistakes[0][0].shape[1:]
    side = pitch - 0.5
    height = side * min(1, tall / wide)
    row = height + 0.5
    with drawing(path, height=-(-len(mistakes) // columns) * row) as figure:
        axes = canvas_axes(figure)
        for index, (image, truth, prediction, confidence) in enumerate(mistakes):
            middle, top = (index % columns + 0.5) * pitch, index // columns * row + 0.04
            width = side * min(1, wide / tall)
            place(axes, image, middle - width / 2, top, width, height)
            style = {"ha": "center", "va": "center", "size": 9 if columns == 5 else 7.5}
            axes.text(
                middle, top + height + 0.1, f"is {shorten(truth, room - 3)}", color=GOOD, **style
            )
            sure = f", {confidence:.0%}"
            mark = "\u200e"  # keeps Arabic in its place
            said = f"said {shorten(prediction, room - 5 - len(sure))}{mark}{sure}"
            axes.text(middle, top + height + 0.28, said, color=BAD, **style)
    return None


def draw_per_class(table: pd.DataFrame, path: Path, most: int = 40) -> None:
    """Draw recall and its interval (columns class, recall, low, high, images), the lowest."""
    shown = table[table["images"] > 0]
    if len(shown) > most:
        shown = shown.sort_values("recall", kind="stable").head(most)
    with drawing(path, height=0.24 * len(shown) + 1) as figure:
        axes = figure.subplots()
        places = range(len(shown))
        axes.hlines(places, shown["low"], shown["high"], color=GOOD, linewidth=3, alpha=0.4)
        axes.plot(shown["recall"], places, "o", color=GOOD)
        overall = (table["recall"] * table["images"]).sum() / table["images"].sum()
        axes.axvline(overall, color=BAD, linestyle="--", linewidth=1)
        axes.annotate(
            f"all {percent(overall)}",
            (overall, 1),
            xycoords=("data", "axes fraction"),
            color=BAD,
            va="bottom",
        )
        names = [
            f"{shorten(name, 22)}  ({images:,})"
            for name, images in zip(shown["class"], shown["images"], strict=True)
        ]
        axes.set_yticks(places, names)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        axes.grid(True, axis="x")
        axes.set_xlabel(
            "accuracy per class"
            + (f", the {most} lowest of {len(table)}" if len(shown) < len(table) else "")
        )


def draw_calibration(bins: pd.DataFrame, error: float, path: Path) -> None:
    """Draw a reliability diagram from columns low, high, confidence, accuracy, images."""
    filled = bins[bins["images"] > 0]
    with drawing(path, height=4.2, width=6) as figure:
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.plot((0, 1), (0, 1), color=QUIET, linestyle="--", linewidth=1)
        axes.vlines(
            filled["confidence"],
            filled["confidence"],
            filled["accuracy"],
            color=BAD,
            linewidth=4,
            alpha=0.5,
        )
        axes.plot(filled["confidence"], filled["accuracy"], "o-", color=GOOD, linewidth=1)
        axes.set(ylabel="accuracy", ylim=(-0.02, 1.02), xlim=(0, 1.02))
        axes.set_title(f"Expected calibration error {error:.4f}")
        counts.bar(
            bins["low"],
            bins["images"],
            width=bins["high"] - bins["low"],
            align="edge",
            color=QUIET,
            edgecolor="w",
        )
        counts.set(xlabel="confidence", ylabel="images", yscale="log", ylim=(0.5, None))
        counts.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        for panel in (axes, counts):
            panel.grid(True)
            panel.set_axisbelow(True)


def draw_predictions(outputs: Tensor, targets: Tensor, names: Sequence[str], path: Path) -> None:
    """Draw a regression's outputs (N, T) against its targets (N, T), one panel per target."""
    shown = min(len(names), 6)
    columns = min(shown, 3)
    rows = -(-shown // columns)
    with drawing(
        path, height=2.6 * rows + 0.2, width=2.7 * columns if columns > 1 else 4
    ) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for index, axes in enumerate(panels):
            if index >= shown:
                axes.axis("off")
                continue
            actual, predicted = targets[:, index].numpy(), outputs[:, index].numpy()
            ends = [min(actual.min(), predicted.min()), max(actual.max(), predicted.max())]
            axes.plot(ends, ends, color=QUIET, linestyle="--", linewidth=1)
            axes.plot(actual, predicted, "o", color=GOOD, alpha=0.7, markersize=5)
            axes.set(title=shorten(names[index], 22), xlabel="target", ylabel="output")
            axes.grid(True)


def draw_disagreements(
    images: Sequence[Tensor],
    truths: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    path: Path,
) -> None:
    """Draw images (C, H, W) as rows with their label and each architecture's prediction."""
    if not images:
        return draw_message("The architectures agree on every image", path)
    columns = {"truth": list(truths), **{name: list(answer) for name, answer in answers.items()}}
    tall, wide = images[0].shape[1:]
    row, width = 0.62, 0.75 + 1.1 * len(columns)
    side, pitch = row - 0.05, (width - 0.75) / len(columns)
    room = int(pitch * 11) - 3
    with drawing(path, height=row * len(images) + 0.4, width=width) as figure:
        axes = canvas_axes(figure)
        for index, image in enumerate(images):
            place(
                axes,
                image,
                0.05,
                0.38 + index * row,
                side * min(1, wide / tall),
                side * min(1, tall / wide),
            )
        for column, (name, values) in enumerate(columns.items()):
            style = {"x": 0.75 + (column + 0.5) * pitch, "ha": "center", "va": "center"}
            axes.text(y=0.2, s=shorten(name, room + 2), weight="bold", **style)
            for index, (value, truth) in enumerate(zip(values, truths, strict=True)):
                if column:
                    color, shade, mark = (
                        (GOOD, "#e3eef6", "✓ ") if value == truth else (BAD, "#fbe3d3", "✗ ")
                    )
                    style |= {
                        "color": color,
                        "bbox": {"boxstyle": "round,pad=0.35", "facecolor": shade, "linewidth": 0},
                    }
                axes.text(
                    y=0.38 + index * row + side / 2,
                    s=(mark if column else "") + shorten(value, room),
                    **style,
                )
    return None


def draw_filters(weight: Tensor, shape: Sequence[int], path: Path, most: int = 64) -> None:
    """Draw a first layer's weights, (out, C, h, w) or (out, features), for inputs of `shape`."""
    weight = weight.detach().float().cpu()
    if weight.ndim == 2 and len(shape) == 3 and weight.shape[1] == shape[0] * shape[1] * shape[2]:
        weight = weight.reshape(-1, *shape)
    if weight.ndim != 4:
        return draw_matrix(
            weight.reshape(len(weight), -1)[:200, :200].numpy(), "Weights of", "input", "unit", path
        )
    units, channels = min(len(weight), most), weight.shape[1]
    title = f"{len(weight)} first-layer filters, {channels} × {weight.shape[2]} × {weight.shape[3]}"
    title += f"; {units} shown" if units < len(weight) else ""
    title += "; mean over channels" if channels > 1 else ""
    weight = weight[:units].mean(1)
    columns = min(units, 16 if units > 32 else 8)
    rows = -(-units // columns)
    side = min(1.2, (WIDTH - 0.9) / columns)
    with drawing(
        path, height=max(1.6, rows * side * weight.shape[1] / weight.shape[2] + 0.5)
    ) as figure:
        axes = figure.subplots()
        image = axes.imshow(montage(weight, columns), **shades(weight.numpy()))
        axes.set_title(title)
        axes.axis("off")
        figure.colorbar(image, ax=axes, shrink=0.8).outline.set_visible(False)
    return None


def draw_matrix(matrix: np.ndarray, what: str, x: str, y: str, path: Path) -> None:
    """Draw a matrix (rows, columns) of signed values as a heat map."""
    rows, columns = matrix.shape
    with drawing(path, height=min(4.5, max(2, 0.8 + 0.3 * rows))) as figure:
        axes = figure.subplots()
        image = axes.imshow(matrix, aspect="auto", **shades(matrix))
        axes.set(title=f"{what} {rows} {y}s by {columns} {x}s", xlabel=x, ylabel=y)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=axes).outline.set_visible(False)


def draw_activations(
    image: Tensor, activations: Mapping[str, Tensor], path: Path, most: int = 6
) -> None:
    """Draw what each layer makes of one input: feature maps, states of every step, or units."""
    names, count = list(activations), min(most, len(activations))
    layers = [
        names[round(index * (len(names) - 1) / max(count - 1, 1))] for index in range(count)
    ]  # evenly spaced
    rows = [("input", (1, *image.shape), to_rgb(image), 1.0)] if image.ndim == 3 else []
    for name in layers:
        grid = activation_grid(activations[name])
        inches = WIDTH * grid.shape[0] / grid.shape[1] if activations[name].ndim == 4 else 0.3
        rows.append(
            (name, activations[name].shape, grid, 1.5 if activations[name].ndim == 3 else inches)
        )
    with drawing(path, height=sum(inches + 0.36 for *_, inches in rows)) as figure:
        axes, top = canvas_axes(figure), 0.0
        for name, shape, grid, inches in rows:
            width = inches * grid.shape[1] / grid.shape[0] if name == "input" else WIDTH - 0.1
            axes.text(
                0.05, top + 0.18, f"{name}   {describe_shape(shape)}", va="center", weight="bold"
            )
            axes.imshow(
                grid,
                extent=(0.05, 0.05 + width, top + 0.3 + inches, top + 0.3),
                aspect="auto",
                **shades(grid),
            )
            top += inches + 0.36


def activation_grid(activation: Tensor) -> np.ndarray:
    """Return the first features, (1, C, H, W), (steps, 1, hidden) or (1, F), as one image."""
    activation = activation.float().cpu()
    if activation.ndim == 4:
        return montage(activation[0, :16], 16)
    return (activation[:, 0] if activation.ndim == 3 else activation[:1]).numpy()


def describe_shape(shape: Sequence[int]) -> str:
    """Return the shape of one example's features in words."""
    if len(shape) == 4:
        return f"{shape[1]} × {shape[2]} × {shape[3]}"
    return f"{shape[0]} steps × {shape[2]} units" if len(shape) == 3 else f"{shape[1]} units"


def draw_classifications(
    answers: Sequence[tuple[str, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    path: Path,
    most: int = 10,
) -> None:
    """Draw a row per (name, image uint8 (C, H, W), probabilities (K,)): image and best classes."""
    shown = min(len(classes), most)
    with drawing(path, height=len(answers) * (0.24 * shown + 0.5)) as figure:
        rows = figure.subplots(len(answers), 2, width_ratios=[1, 1.6], squeeze=False)
        for (left, right), (name, image, probabilities) in zip(rows, answers, strict=True):
            left.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
            left.set_title(shorten(name, 32), loc="center", weight="normal", size=9)
            left.axis("off")
            best = probabilities.argsort(kind="stable")[::-1][:shown]
            bars = right.barh(
                range(shown), probabilities[best], color=[GOOD, *["0.7"] * (shown - 1)]
            )
            right.bar_label(
                bars, [f"{100 * value:.1f} %" for value in probabilities[best]], padding=4, size=9
            )
            right.set_yticks(range(shown), [shorten(classes[index], 24) for index in best])
            right.set(xlim=(0, 1.15), ylim=(shown - 0.4, -0.6), xticks=[])
            right.spines.bottom.set_visible(False)
            right.tick_params(length=0)


def draw_message(text: str, path: Path) -> None:
    """Draw one line of text, where a picture has nothing to show."""
    with drawing(path, height=1, width=6) as figure:
        figure.text(0.5, 0.5, text, ha="center", va="center", size=12)


def best_score(frame: pd.DataFrame, score: str | None) -> float:
    """Return a history's highest score, or its lowest loss as a negative number."""
    return frame[score].max() if score else -frame["val_loss"].min()


def describe_best(frame: pd.DataFrame, score: str | None) -> str:
    """Return a history's best score for a legend."""
    best = best_score(frame, score)
    return f"{best:.2%}" if score == "val_accuracy" else f"{best:.3f}" if score else f"{-best:.4g}"


def line_looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker per name, the same in every figure of one line-up."""
    colors = matplotlib.color_sequences["petroff10"]
    return {
        name: {
            "color": colors[i % len(colors)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 5,
        }
        for i, name in enumerate(names)
    }


def scale_as_accuracy(axes: Axes) -> None:
    """Make an axis of error rates read as accuracy, on a scale that spreads the end at 100 %."""
    values = [value for line in axes.get_lines() for value in line.get_ydata()]
    errors = [value for value in values if value > 0]
    lowest, highest = min(errors, default=0.01), max(errors, default=0.1)
    perfect = lowest / 2  # where 100 % is drawn: the scale has no zero
    for line in axes.get_lines():
        line.set_ydata([value or perfect for value in line.get_ydata()])
    low = perfect if 0 in values else lowest
    ticks = {
        1 - tick: percent(tick)
        for tick in ACCURACY_TICKS
        if lowest / 1.15 <= 1 - tick <= highest * 1.15
    }
    if len(ticks) < 3:
        ticks = {error: percent(1 - error) for error in (lowest, (lowest + highest) / 2, highest)}
    if 0 in values:
        ticks[perfect] = "100 %"
    axes.set_ylim(min(highest * 1.15, 1.05), low / 1.15)
    axes.set_yscale("log")
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()


def spread_losses(axes: Axes) -> None:
    """Make a loss axis logarithmic where its values are positive, finite and far apart."""
    values = [value for line in axes.get_lines() for value in line.get_ydata()]
    if not 0 < 3 * min(values) < max(values) < float("inf"):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,))
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def percent(value: float) -> str:
    """Return a fraction as a percentage without needless zeros: 0.995 → 99.5 %."""
    return f"{100 * value:.4g} %"


def canvas_axes(figure: Figure) -> Axes:
    """Return axes that fill the figure, measured in inches from its top left corner."""
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0), autoscale_on=False)
    axes.axis("off")
    return axes


def place(axes: Axes, image: Tensor, left: float, top: float, width: float, height: float) -> None:
    """Draw an image (C, H, W) into a rectangle of canvas axes."""
    axes.imshow(to_rgb(image), extent=(left, left + width, top + height, top), aspect="auto")


def text_width(text: str) -> int:
    """Return how many columns of Latin letters a text takes."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def to_rgb(image: Tensor) -> np.ndarray:
    """Return a uint8 image (C, H, W) as uint8 (H, W, 3), no larger than needed."""
    if max(image.shape[1:]) > 160:
        size = [max(1, side * 160 // max(image.shape[1:])) for side in image.shape[1:]]
        image = interpolate(image[None].float(), size, mode="area")[0].round().to(torch.uint8)
    if image.shape[0] != 3:
        image = image.float().mean(0, keepdim=True).to(torch.uint8).expand(3, -1, -1)
    return image.permute(1, 2, 0).numpy()


def shorten(name: str, most: int) -> str:
    """Return a name cut to the width of `most` Latin letters."""
    if text_width(name) <= most:
        return name
    while name and text_width(name) >= most:
        name = name[:-1]
    return name + "…"


def abridged(numbers: Sequence[int], most: int) -> list[int | None]:
    """Return all numbers, or of more than `most` the first ones, None and the last one."""
    return list(numbers) if len(numbers) <= most else [*numbers[: most - 2], None, numbers[-1]]


def montage(maps: Tensor, columns: int) -> np.ndarray:
    """Return maps (n, h, w) side by side in rows of `columns`, with gaps of NaN."""
    count, tall, wide = maps.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (tall + 1) - 1, min(count, columns) * (wide + 1) - 1), np.nan, dtype=np.float32
    )
    for index, values in enumerate(maps):
        top, left = index // columns * (tall + 1), index % columns * (wide + 1)
        canvas[top : top + tall, left : left + wide] = values
    return canvas


def shades(values: np.ndarray) -> dict[str, Any]:
    """Return imshow's settings for values: white at zero, orange above, violet below."""
    largest = max(np.nanmax(np.abs(values)), 1e-12)
    if np.nanmin(values) < 0:
        return {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest}
    return {"cmap": "Oranges", "vmin": 0, "vmax": largest}
