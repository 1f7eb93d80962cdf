"""One recipe with several seeds: how far a score, or a difference of two, is chance."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from lineup.cli import progress
from lineup.errors import listed
from lineup.evaluation.evaluator import Examples, score_model
from lineup.evaluation.plot_style import percent
from lineup.evaluation.seed_plots import draw_seeds
from lineup.evaluation.text_tables import markdown, readable_p, show
from lineup.files import write_text
from lineup.params import Evaluate
from lineup.paths import ONNX, SEEDS
from lineup.serving.deployable import load_deployable

ROUNDING = 1e-9  # of a difference: so far apart are equal ones
SPLITS = {"val": "validation", "test": "test"}
Cells = list[dict[str, str]]  # a table as people read it


def score_all(folders: Sequence[Path], settings: Evaluate) -> list[dict[str, float]]:
    """Open the test set, and return what evaluate would say of the training in each folder."""
    examples, found = Examples.read(), []
    with progress(unit="trainings") as bar, tempfile.TemporaryDirectory() as temporary:
        for folder in bar.track(folders, description="Scoring"):
            model, path = load_deployable(folder), Path(temporary) / ONNX
            name = model.info.architecture
            found.append(score_model(name, model, path, examples, settings).scores)
    return found


def score_of(table: pd.DataFrame) -> str:
    """Return what the models are compared by: accuracy, or the loss of a regression."""
    return "accuracy" if "val_accuracy" in table else "loss"


def summarise(table: pd.DataFrame) -> Cells:
    """Return mean ± standard deviation per setting of a table with a row per training.

    Its columns: architecture, setting, seed, seconds, and scores of validation (and of the test).
    """
    score, rows = score_of(table), []
    for (architecture, setting), group in table.groupby(["architecture", "setting"], sort=False):
        row = {"architecture": architecture}
        if table["setting"].nunique() > 1:
            row["setting"] = setting
        row["n"] = str(len(group))
        for prefix, split in SPLITS.items():
            if f"{prefix}_{score}" in group:
                row[split] = _spread(group[f"{prefix}_{score}"], score)
        row["seconds"] = f"{group['seconds'].mean():.1f}" if group["seconds"].notna().any() else "–"
        rows.append(row)
    return rows


def _spread(values: pd.Series, score: str) -> str:
    if score == "loss":
        return f"{values.mean():.4g} ± {values.std():.2g}"
    return f"{100 * values.mean():.2f} ± {100 * values.std():.2f} %"


def compare_settings(table: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return per architecture how much larger validation's score is with the second setting.

    Columns: architecture, n, difference, low, high, p; accuracies in points. Interval and p-value
    (two-sided) are those of a paired t test over the seeds; NaN where all differences are equal.
    """
    score, rows = score_of(table), []
    first, second = table["setting"].unique()
    for architecture, group in table.groupby("architecture", sort=False):
        values = group.pivot(index="seed", columns="setting", values=f"val_{score}")
        values *= 100 if score == "accuracy" else 1
        differences = values[second] - values[first]
        row = {"architecture": architecture, "n": len(differences)}
        row["difference"] = differences.mean()
        if np.ptp(differences) > ROUNDING * differences.abs().max():
            test = ttest_rel(values[second], values[first])
            row["low"], row["high"] = test.confidence_interval(confidence)
            row["p"] = test.pvalue
        rows.append(row)
    columns = ["architecture", "n", "difference", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns)


def readable_differences(differences: pd.DataFrame, score: str, confidence: float) -> Cells:
    """Return what `compare_settings` found as people read it."""
    unit = "points of accuracy" if score == "accuracy" else "mean squared error"
    rows = []
    for found in differences.to_dict("records"):
        row = {"architecture": found["architecture"], "n": str(found["n"])}
        row[f"difference, {unit}"] = f"{found['difference']:+.3g}"
        is_tested = not math.isnan(found["p"])
        ends = f"{found['low']:+.3g} to {found['high']:+.3g}"
        row[f"{percent(confidence)} interval"] = ends if is_tested else "–"
        row["p"] = readable_p(found["p"]) if is_tested else "–"
        rows.append(row)
    return rows


def verdicts(differences: pd.DataFrame, score: str, confidence: float) -> list[str]:
    """Say of each architecture whether the change makes a difference that chance does not."""
    lines = []
    for found in differences.to_dict("records"):
        is_better = (found["difference"] > 0) == (score == "accuracy")
        if found["p"] < 1 - confidence:
            text = f"the change is {'better' if is_better else 'worse'}"
        elif math.isnan(found["p"]) and found["difference"]:
            text = "the same difference with every seed, so that no test applies; try more seeds"
        else:
            text = "no difference that these seeds can show"
        lines.append(f"{found['architecture']}: {text}")
    return lines


def report(rows: list[dict[str, Any]], title: str, change: str, confidence: float) -> None:
    """Write and print mean ± standard deviation; of a change, what difference it makes too."""
    table = pd.DataFrame(rows)
    write_text(SEEDS / "seeds.csv", table.to_csv(index=False))
    draw_seeds(table, score_of(table), SEEDS / "seeds.png")
    tables, notes = {title: summarise(table)}, []
    processors = sorted(table["processor"].unique())
    if len(processors) > 1:  # of a cluster
        text = "trained on several processors, whose results may differ slightly"
        notes = [f"{text}: {listed(processors)}"]
    if change:
        differences = compare_settings(table, confidence)
        score = score_of(table)
        cells = readable_differences(differences, score, confidence)
        tables["Validation changed, less validation as it was, seed by seed"] = cells
        notes += [f"changed: {change}", *verdicts(differences, score, confidence)]
    left = ("architecture", "setting")
    texts = [f"{title}\n\n{markdown(cells, left)}" for title, cells in tables.items()]
    write_text(SEEDS / "seeds.md", "\n".join(texts + [f"{note}\n" for note in notes]))
    for title, cells in tables.items():
        show(title, cells, left)
    for note in notes:
        print(note)
