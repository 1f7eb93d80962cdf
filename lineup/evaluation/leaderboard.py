"""All architectures side by side: the table, and whether a difference between two is real."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lineup.evaluation import image_plots, plots
from lineup.evaluation.comparisons import mcnemar
from lineup.evaluation.evaluator import Evaluation, Examples
from lineup.evaluation.metrics import interval
from lineup.evaluation.text_tables import as_text, markdown, readable_p, show
from lineup.files import explain_damage, write_json, write_text
from lineup.paths import EVALUATION, HISTORY, LEADERBOARD_CSV, MODELS, PICTURES, PLOTS

DISAGREEMENTS = 10  # images in their picture
FAR = 0.02  # of accuracy, between validation and test
COMPARISON = ["a", "b", "only_a", "only_b", "p_one_sided", "p_two_sided"]
Row = dict[str, Any]


def rank(evaluation: Evaluation) -> tuple[float, float, str]:
    """Return what the leaderboard is sorted by: validation score, validation loss, name."""
    row = evaluation.row
    return -row.get("val_accuracy", 0), row["val_loss"], row["architecture"]


def write_leaderboard(rows: list[Row], confidence: float, examples: Examples) -> None:
    """Write the leaderboard as CSV, Markdown and picture, and the scores for `dvc exp show`."""
    write_text(LEADERBOARD_CSV, pd.DataFrame(rows).to_csv(index=False))
    notes = "".join(f"\n{note}\n" for note in _notes(rows[0], confidence, examples))
    table = _readable(rows, confidence, examples)
    write_text(EVALUATION / "leaderboard.md", markdown(table) + notes)
    plots.draw_leaderboard(rows, confidence, PLOTS / "leaderboard.png")
    scores = {row["architecture"]: row.get("val_accuracy", row["val_loss"]) for row in rows}
    write_json(EVALUATION / "validation.json", scores)


def _notes(first: Row, confidence: float, examples: Examples) -> list[str]:
    """Return what a person must know to read the table."""
    notes = []
    if shared := examples.dataset.shared_files:
        count = f"{shared:,} test pictures are also in training or validation"
        notes.append(f"{count} (data.allow_duplicates): the test says little.")
    if examples.most_frequent is not None:
        name = examples.dataset.classes[examples.most_frequent]
        notes.append(f"most frequent: always says '{name}', the most frequent class in training.")
    if "test_accuracy" in first:
        notes += _compare_with_validation(first, confidence, len(examples.validation[1]))
    else:
        trained_on = "All scores are of the rows that were trained on"
        notes.append(f"{trained_on}: they say nothing about other rows.")
    return notes


def _compare_with_validation(first: Row, confidence: float, count: int) -> list[str]:
    """Say what it usually means where validation, `count` images, stands far outside the test."""
    validation, test = first["val_accuracy"], first["test_accuracy"]
    low, high = interval(round(validation * count), count, confidence)
    scores = f"{first['architecture']} has {validation:.1%} on validation and {test:.1%} on test"
    if abs(validation - test) < FAR:
        return []
    if low > first["test_accuracy_high"]:
        return [
            f"{scores}. That usually means that pictures of one thing (a person, a film, a series) "
            "are in both training and validation, but not in the test: believe the test, and set "
            "data.group."
        ]
    if high < first["test_accuracy_low"]:
        return [f"{scores}. That usually means that the test's pictures are easier than others."]
    return []


def _readable(rows: list[Row], confidence: float, examples: Examples) -> list[dict[str, str]]:
    """Return the leaderboard as people read it, a text per cell."""
    table = []
    for row in rows:
        cells = {"architecture": row["architecture"], "parameters": f"{row['parameters']:,}"}
        is_classification = "test_accuracy" in row
        cells |= _accuracy_cells(row, confidence) if is_classification else _error_cells(row)
        cells["µs each"] = f"{row['time_per_image_us']:,.0f}"
        table.append(cells)
    if examples.most_frequent is not None:
        table.append(_baseline_cells(table[0], confidence, examples))
    return table


def _baseline_cells(
    others: dict[str, str], confidence: float, examples: Examples
) -> dict[str, str]:
    """Return the row of who always says the most frequent class: any network must beat it."""
    row: Row = {}
    for prefix, (_, labels) in {"val_": examples.validation, "test_": examples.test}.items():
        correct = int((labels == examples.most_frequent).sum())
        low, high = interval(correct, len(labels), confidence)
        row |= {f"{prefix}accuracy": correct / len(labels)}
        row |= {f"{prefix}accuracy_low": low, f"{prefix}accuracy_high": high}
    cells = {"architecture": "most frequent"} | _accuracy_cells(row, confidence)
    return {key: cells.get(key, "–") for key in others}


def _accuracy_cells(row: Row, confidence: float) -> dict[str, str]:
    low, high = (f"{100 * row[f'test_accuracy_{end}']:.2f}" for end in ("low", "high"))
    return {
        "validation": f"{100 * row['val_accuracy']:.2f} %",
        "test": f"{100 * row['test_accuracy']:.2f} %",
        f"{100 * confidence:g} % interval": f"{low}–{high}",
        "p vs. 1st": readable_p(row["p_vs_first"]) if "p_vs_first" in row else "–",
    }


def _error_cells(row: Row) -> dict[str, str]:
    return {
        "validation MSE": f"{row['val_loss']:.4g}",
        "test MSE": f"{row['test_loss']:.4g}",
        "test MAE": f"{row['test_mae']:.4g}",
        "test R²": f"{row['test_r2']:.4f}" if "test_r2" in row else "–",
    }


def show_leaderboard(rows: list[Row], confidence: float, examples: Examples) -> None:
    """Print the leaderboard."""
    show("Leaderboard, by validation score", _readable(rows, confidence, examples))
    for note in _notes(rows[0], confidence, examples):
        print(note)


# --- curves and comparisons -----------------------------------------------------------------------


def _read_history(path: Path) -> pd.DataFrame:
    with explain_damage(path):
        return pd.read_csv(path, dtype=str)


def write_learning_curves(names: list[str]) -> None:
    """Write and draw all histories in one table with an architecture column."""
    histories = {name: _read_history(MODELS / name / HISTORY) for name in names}
    table = pd.concat([history.assign(architecture=name) for name, history in histories.items()])
    columns = ["architecture", *table.columns.drop("architecture")]
    write_text(EVALUATION / "learning_curves.csv", table[columns].to_csv(index=False))
    plots.draw_learning_curves(histories, EVALUATION / "learning_curves.png")


def write_confusion(evaluations: list[Evaluation]) -> None:
    """Write all confusions in one table with an architecture column."""
    table = pd.concat([evaluation.confusion for evaluation in evaluations])
    write_text(PLOTS / "confusion.csv", table.map(as_text).to_csv(index=False))


def compare(evaluations: list[Evaluation], examples: Examples) -> None:
    """Test whether classifiers, sorted by rank, differ, and draw where they do.

    The p-values against the first one also go into their rows.
    """
    rows = [evaluation.row for evaluation in evaluations]
    predictions = {e.row["architecture"]: e.outputs.argmax(1) for e in evaluations}
    images, labels = examples.test
    _compare_pairs(rows, predictions, labels)
    _draw_disagreements(predictions, images, labels, examples.dataset.classes)


def _compare_pairs(rows: list[Row], predictions: Mapping[str, Tensor], labels: Tensor) -> None:
    """Write the exact McNemar test of every pair; the leader's p-values also go into `rows`."""
    table = []
    for first, second in combinations(rows, 2):
        a, b = first["architecture"], second["architecture"]
        test = mcnemar(predictions[a] == labels, predictions[b] == labels)
        table.append({"a": a, "b": b, **test})
        if first is rows[0]:
            second["p_vs_first"] = test["p_two_sided"]
    comparisons = pd.DataFrame(table, columns=COMPARISON)
    write_text(EVALUATION / "comparisons.csv", comparisons.to_csv(index=False))


def _draw_disagreements(
    predictions: Mapping[str, Tensor], images: Tensor, labels: Tensor, classes: list[str]
) -> None:
    """Draw the images on which the architectures differ most; nothing where there is only one."""
    if len(predictions) == 1:
        return
    chosen = most_disputed(torch.stack(list(predictions.values())), labels)[:DISAGREEMENTS].tolist()
    answers = {
        name: [classes[predicted[i]] for i in chosen] for name, predicted in predictions.items()
    }
    image_plots.draw_disagreements(
        [images[i] for i in chosen],
        [classes[labels[i]] for i in chosen],
        answers,
        PICTURES / "disagreements.png",
    )


def most_disputed(votes: Tensor, labels: Tensor) -> Tensor:
    """Return the indices of disputed examples, of votes int64 (architectures, N).

    Most different answers come first, then those that half get right.
    """
    distinct = 1 + votes.sort(0).values.diff(dim=0).ne(0).sum(0)
    imbalance = (2 * (votes == labels).sum(0) - len(votes)).abs()
    keys = distinct * (len(votes) + 1) - imbalance
    order = torch.argsort(keys, descending=True, stable=True)
    return order[distinct[order] > 1]
