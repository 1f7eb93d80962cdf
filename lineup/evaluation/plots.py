"""Charts of numbers: architectures side by side, classes one by one, a regression's values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogitLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from scipy.special import expit, logit
from torch import Tensor

from lineup.evaluation.plot_style import (
    BLUE,
    CENTERED,
    GREY,
    ORANGE,
    drawing,
    line_styles,
    percent,
    shorten,
)
from lineup.evaluation.text_tables import readable_p

_TITLES = {
    "val_accuracy": "Validation accuracy",
    "val_r2": "Validation R²",
    "val_loss": "Loss (training dotted)",
}
_FORMATS = {"val_accuracy": "{:.2%}", "val_r2": "{:.3f}", "val_loss": "{:.4g}"}
_LOSSES = (
    "The training's loss includes label smoothing, dropout and augmentation "
    "where the recipe has them; the validation's has none."
)
_ACCURACY_TICKS = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99]
_ACCURACY_TICKS += [0.995, 0.998, 0.999, 0.9995, 0.9999]
_MAX_TARGETS = 6  # of a regression, a panel each
_MARGIN = 0.14  # of an accuracy axis, in logits


def draw_learning_curves(
    histories: Mapping[str, pd.DataFrame | list[dict[str, Any]]], path: Path
) -> None:
    """Draw every architecture's validation score and losses per epoch."""
    frames = [pd.DataFrame(history).astype(float) for history in histories.values()]
    score = _common_score(frames)
    curves = []
    for name, frame, style in zip(histories, frames, line_styles(histories), strict=True):
        best = frame[score].min() if score == "val_loss" else frame[score].max()
        label = f"{name} {_FORMATS[score].format(best)}"
        curves.append((best, frame, style | {"label": label}))
    curves.sort(key=itemgetter(0), reverse=score != "val_loss")
    columns = list(dict.fromkeys([score, "val_loss"]))
    with drawing(path, height=3.1 + 0.5 * len(columns)) as figure:
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            for _, frame, style in curves:
                _plot_history(axes, frame, column, style)
            axes.set(title=_TITLES[column], xlabel="epoch")
            axes.grid(True)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _add_legend(figure, panels[0])
        if score == "val_accuracy":
            _scale_accuracies(panels[0])
        for _, frame, style in curves:
            _plot_train_loss(panels[-1], frame, style["color"])
        _scale_losses(panels[-1])


def _common_score(frames: Iterable[pd.DataFrame]) -> str:
    shared = set.intersection(*(set(frame) for frame in frames))
    return next((key for key in ("val_accuracy", "val_r2") if key in shared), "val_loss")


def _plot_history(axes: Axes, frame: pd.DataFrame, column: str, style: dict[str, Any]) -> None:
    every = max(1, len(frame) // 8)
    axes.plot(frame["epoch"], frame[column], markersize=5, markevery=every, **style)


def _plot_train_loss(axes: Axes, frame: pd.DataFrame, color: str) -> None:
    marker = "," if len(frame) > 1 else "_"  # a single epoch makes no line
    style = {"color": color, "linewidth": 1.2, "marker": marker}
    axes.plot(frame["epoch"], frame["train_loss"], ":", **style)


def _add_legend(figure: Figure, axes: Axes) -> None:
    lines = axes.get_lines()
    legend = figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=min(3, len(lines)),
        title=_LOSSES,  # the one place that the layout keeps clear of the legend
        title_fontsize=8.5,
    )
    legend.get_title().set_color("0.35")


def _values(axes: Axes) -> np.ndarray:
    return np.concatenate([line.get_ydata() for line in axes.get_lines()])


def _scale_accuracies(axes: Axes) -> None:
    """Spread what is close to 100 % on a logit scale, which itself has neither 0 nor 1."""
    values = _values(axes)
    inside = logit(values[(values > 0) & (values < 1)])
    low = min(inside, default=logit(0.9))
    high = max(inside, default=logit(0.99))
    ticks = _accuracy_ticks(expit(low - _MARGIN), expit(high + _MARGIN))
    labels = {tick: percent(tick) for tick in ticks}
    zero, one = expit(low - 0.7), expit(high + 0.7)  # where they are drawn
    if 0 in values:
        low, labels[zero] = logit(zero), "0 %"
    if 1 in values:
        high, labels[one] = logit(one), "100 %"
    for line in axes.get_lines():
        line.set_ydata(np.clip(line.get_ydata(), zero, one))
    axes.relim()
    axes.set_yscale("logit")
    axes.set_ylim(expit(low - _MARGIN), expit(high + _MARGIN))
    axes.set_yticks(list(labels), list(labels.values()))
    axes.minorticks_off()


def _accuracy_ticks(low: float, high: float) -> list[float]:
    for candidates in (_ACCURACY_TICKS, LogitLocator(nbins=5).tick_values(low, high)):
        ticks = [tick for tick in candidates if low <= tick <= high]
        if len(ticks) > 2:
            break
    return ticks


def _scale_losses(axes: Axes) -> None:
    """Make a loss axis logarithmic where its values are positive, finite and far apart."""
    values = _values(axes)
    low, high = values.min(), values.max()
    if 0 < 3 * low < high < np.inf:
        axes.set_yscale("log")
        subs = (1, 2, 5) if high < 1000 * low else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")


def draw_leaderboard(rows: Sequence[Mapping[str, Any]], confidence: float, path: Path) -> None:
    """Draw the line-up in the order of `rows`, dictionaries with the columns of leaderboard.csv."""
    table = pd.DataFrame(rows)
    score = "accuracy" if "test_accuracy" in table else "loss"
    colors = [style["color"] for style in line_styles(table["architecture"])]
    with drawing(path, height=0.4 * len(table) + 1.15) as figure:
        axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
        if score == "accuracy":
            ends = table["test_accuracy_low"], table["test_accuracy_high"]
            axes.hlines(table.index, *ends, color=colors, linewidth=4, alpha=0.4)
            axes.set_xlabel(f"accuracy: ● test with {percent(confidence)} interval, ◇ validation")
            axes.xaxis.set_major_formatter(percent)
        else:
            axes.set_xlabel("mean squared error: ● test, ◇ validation")
        diamond = {"marker": "D", "facecolor": "none", "edgecolor": "0.25"}
        axes.scatter(table[f"test_{score}"], table.index, 64, colors, zorder=3)
        axes.scatter(table[f"val_{score}"], table.index, 36, zorder=3, **diamond)
        names = [shorten(name, 18) for name in table["architecture"]]
        axes.set_yticks(table.index, names)
        axes.set_ylim(len(table) - 0.5, -1.1)
        axes.grid(True, axis="x")
        axes.locator_params(axis="x", nbins=5)
        axes.tick_params(axis="y", length=0)
        _write_columns(beside, _leaderboard_texts(table))


def _write_columns(axes: Axes, texts: pd.DataFrame) -> None:
    """Write a column of texts after the other, right-aligned, a row per unit of y."""
    axes.set_axis_off()
    axes.set_xlim(0.35, len(texts.columns))
    for number, column in enumerate(texts, start=1):
        place = {"x": number, "ha": "right", "va": "center"}
        axes.text(y=-0.75, s=column, color="0.35", **place)
        for row, text in enumerate(texts[column]):
            axes.text(y=row, s=text, weight="bold" if number == 1 else "normal", **place)


def _leaderboard_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cells beside the plot."""
    key, test = ("accuracy", "{:.2%}") if "test_accuracy" in table else ("loss", "{:.4g}")
    texts = pd.DataFrame()
    texts["test"] = table[f"test_{key}"].map(test.format)
    texts["parameters"] = table["parameters"].map("{:,}".format)
    texts["µs each"] = table["time_per_image_us"].map("{:,.0f}".format)
    if "p_vs_first" in table:
        p_values = table["p_vs_first"].map(readable_p, na_action="ignore")
        texts["p vs. first"] = p_values.fillna("–")
    return texts


def draw_confusion(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw counts (K, K), actual by predicted: correct ones in grey, every error in orange."""
    count = len(classes)
    diagonal = np.eye(count, dtype=bool)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    errors = np.where(diagonal | (matrix == 0), np.nan, shares)
    highest = np.nanmax(errors, initial=1e-9)
    side = min(6.2, 2.2 + 0.42 * count)
    with drawing(path, height=side, width=side + 1) as figure:
        axes = figure.subplots()
        axes.imshow(np.where(diagonal, 1, np.nan), cmap="Greys", vmin=0, vmax=8)
        image = axes.imshow(errors, cmap="Oranges", vmin=0, vmax=highest)
        if count <= 20:
            _write_counts(axes, matrix, dark=errors > 0.6 * highest)
        _name_classes(axes, [shorten(name, 14) for name in classes])
        axes.set(xlabel="predicted", ylabel="actual")
        axes.spines[:].set_visible(False)
        if not np.isnan(errors).all():
            bar = figure.colorbar(image, ax=axes, shrink=0.6, format=percent)
            bar.set_label("errors, of the actual class")
            bar.outline.set_visible(False)


def _write_counts(axes: Axes, matrix: np.ndarray, dark: np.ndarray) -> None:
    size = 10 if len(matrix) <= 10 else 7
    for actual, predicted in np.argwhere(matrix):
        color = "white" if dark[actual, predicted] else "black"
        text = str(matrix[actual, predicted])
        axes.text(predicted, actual, text, color=color, size=size, **CENTERED)


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    step = math.ceil(len(names) / 40)
    places = range(0, len(names), step)
    shown = names[::step]
    few = len(names) <= 20
    upright = few and max(map(len, names)) <= 3
    axes.set_xticks(places, shown, rotation=0 if upright else 90)
    axes.set_yticks(places, shown)
    axes.tick_params(labelsize=10 if few else 7, length=0 if few else 2)


def draw_per_class(table: pd.DataFrame, path: Path, most: int = 40) -> None:
    """Draw recall and its interval from columns class, recall, low, high, images.

    Of more than `most` classes the lowest are drawn.
    """
    shown = table[table["images"] > 0]
    label = "accuracy per class"
    if len(shown) > most:
        shown = shown.sort_values("recall", kind="stable").head(most)
        label += f", the {most} lowest of {len(table)}"
    overall = np.average(table["recall"], weights=table["images"])
    pairs = zip(shown["class"], shown["images"], strict=True)
    names = [f"{shorten(name, 22)}  ({images:,})" for name, images in pairs]
    places = range(len(shown))
    with drawing(path, height=0.24 * len(shown) + 1) as figure:
        axes = figure.subplots()
        bars = {"color": BLUE, "linewidth": 3, "alpha": 0.4}
        axes.hlines(places, shown["low"], shown["high"], **bars)
        axes.plot(shown["recall"], places, "o", color=BLUE)
        axes.axvline(overall, color=ORANGE, linestyle="--", linewidth=1)
        above = {"va": "bottom", "transform": axes.get_xaxis_transform()}
        axes.text(overall, 1, f"all {percent(overall)}", color=ORANGE, **above)
        axes.set_yticks(places, names)
        axes.set_xlabel(label)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(percent)
        axes.grid(True, axis="x")


def draw_calibration(bins: pd.DataFrame, error: float, path: Path) -> None:
    """Draw a reliability diagram of `metrics.calibration`; `error` is the calibration error."""
    filled = bins[bins["images"] > 0]
    confidence, accuracy = filled["confidence"], filled["accuracy"]
    widths = bins["high"] - bins["low"]
    with drawing(path, height=4.2, width=6) as figure:
        diagram, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        diagram.plot((0, 1), (0, 1), "--", color=GREY, linewidth=1)
        diagram.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=4, alpha=0.5)
        diagram.plot(confidence, accuracy, "o-", color=BLUE, linewidth=1)
        diagram.set(ylabel="accuracy", ylim=(-0.02, 1.02), xlim=(0, 1.02))
        diagram.set_title(f"Expected calibration error {error:.4f}")
        diagram.grid(True)
        style = {"align": "edge", "color": GREY, "edgecolor": "w"}
        histogram.bar(bins["low"], bins["images"], widths, **style)
        histogram.set(xlabel="confidence", ylabel="images", yscale="log", ylim=(0.5, None))
        histogram.yaxis.set_major_formatter("{x:,.0f}")
        histogram.yaxis.set_minor_formatter(NullFormatter())
        histogram.grid(True)


def draw_table(inputs: Tensor, targets: Tensor, names: Sequence[str], path: Path) -> None:
    """Draw the first rows of inputs (N, F) and targets (N, T); `names` are of the last columns."""
    features = inputs.shape[1]
    outputs = targets.shape[1]
    unnamed = features + outputs - len(names)
    headers = [f"input {number + 1}" for number in range(unnamed)]
    headers += [shorten(name, 10) for name in names]
    values = torch.cat([inputs, targets], 1)[:12]
    table = pd.DataFrame(values.numpy(), columns=headers)
    text = table.to_string(index=False, max_cols=8, float_format="{:.4g}".format)
    title = f"{len(inputs)} rows: {features} inputs, {outputs} targets"
    with drawing(path, height=0.17 * len(table) + 0.65) as figure:
        figure.suptitle(title, x=0.02, ha="left", weight="bold", size=11)
        figure.text(0.02, 0.02, text, family="monospace")


def draw_predictions(outputs: Tensor, targets: Tensor, names: Sequence[str], path: Path) -> None:
    """Draw outputs (N, T) against targets (N, T), a panel for each of the first targets."""
    count, names = len(names), names[:_MAX_TARGETS]
    columns = min(len(names), 3)
    rows = math.ceil(len(names) / columns)
    with drawing(path, 2.6 * rows + 0.4, width=2.7 * columns if columns > 1 else 4) as figure:
        if count > len(names):
            figure.suptitle(f"{count} targets; {len(names)} shown")
        for place, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, place + 1)
            target = targets[:, place]
            output = outputs[:, place]
            both = torch.cat([target, output])
            ends = both.min(), both.max()
            axes.plot(ends, ends, "--", color=GREY, linewidth=1)
            axes.plot(target, output, "o", color=BLUE, alpha=0.7, markersize=5)
            axes.set(title=shorten(name, 22), xlabel="target", ylabel="output")
            axes.grid(True)
