"""Every seed as a dot: how far the trainings of one recipe lie apart."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pandas as pd

from lineup.evaluation.plot_style import BLUE, drawing, percent, shorten

# prefix → where beside the middle of a row, which marker, its face, its edge
_LOOKS = {"val": (-0.13, "D", "none", "0.25"), "test": (0.13, "o", BLUE, BLUE)}


def draw_seeds(table: pd.DataFrame, score: str, path: Path) -> None:
    """Draw accuracy or loss of seeds.csv: a row per setting, a dot per seed, a line at the mean."""
    has_one = table["setting"].nunique() == 1
    groups = list(table.groupby(["architecture", "setting"], sort=False))
    shown = [prefix for prefix in _LOOKS if f"{prefix}_{score}" in table]
    with drawing(path, height=0.45 * len(groups) + 1.1) as figure:
        axes = figure.subplots()
        for (row, (_, group)), prefix in product(enumerate(groups), shown):
            beside, marker, face, edge = _LOOKS[prefix]
            values, y = group[f"{prefix}_{score}"], row + beside
            axes.scatter(values, [y] * len(values), 36, face, marker=marker, edgecolor=edge)
            axes.vlines(values.mean(), y - 0.13, y + 0.13, edge, linewidth=2)
        names = [name if has_one else f"{name}, {setting}" for (name, setting), _ in groups]
        axes.set_yticks(range(len(groups)), [shorten(name, 40) for name in names])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        dots = "◇ validation, ● test" if "test" in shown else "◇ validation"
        name = "accuracy" if score == "accuracy" else "mean squared error"
        axes.set_xlabel(f"{name} of each seed: {dots}, | mean")
        if score == "accuracy":
            axes.xaxis.set_major_formatter(percent)
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
