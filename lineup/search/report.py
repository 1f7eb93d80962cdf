"""What a search found: all trials as a table and a picture, the best ones on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from matplotlib.axes import Axes
from optuna.importance import get_param_importances
from optuna.study import StudyDirection
from optuna.trial import TrialState

from lineup.evaluation.plot_style import BLUE, CENTERED, ORANGE, drawing, percent, shorten
from lineup.evaluation.text_tables import show
from lineup.files import write_text
from lineup.search.trial import readable

SHOWN = 5  # trials on the terminal
ENOUGH = 5  # whole trials, for importances to mean anything
COLUMNS = ("trial", "state", "score", "epochs_done", "seconds")  # then the settings
LOOKS = {"complete": (BLUE, "whole"), "pruned": ("none", "ended early")}


def tabulate(study: optuna.Study) -> pd.DataFrame:
    """Return a row per trial that has begun: the columns above, then a column per setting.

    `score` is that of the best epoch on validation, None for a trial without one.
    """
    best = max if study.direction == StudyDirection.MAXIMIZE else min
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if settings := trial.user_attrs.get("settings"):
            scores = list(trial.intermediate_values.values())
            score = best(scores) if scores else trial.value
            state = "failed" if "has_failed" in trial.user_attrs else trial.state.name.lower()
            seconds = trial.user_attrs.get("seconds")
            values = trial.number, state, score, len(scores), seconds
            rows.append(dict(zip(COLUMNS, values, strict=True)) | json.loads(settings))
    return pd.DataFrame(rows)


def report(study: optuna.Study, monitor: str, folder: Path) -> dict[str, Any] | None:
    """Write `folder` and print the best trials; return the settings of the best, if any is whole.

    A trial's seconds are those since it was resumed, if it was.
    """
    table = tabulate(study)
    write_text(folder / "trials.csv", table.to_csv(index=False))
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if not complete:
        return None
    _draw(table, study, monitor, folder / "search.png")
    is_lowest_best = study.direction == StudyDirection.MINIMIZE
    whole = table[table["state"] == "complete"]
    best = whole.sort_values("score", ascending=is_lowest_best, kind="stable")
    title = f"{study.study_name}: the best of {len(table)} trials, {len(whole)} of them whole"
    rows = [_cells(row, monitor) for row in best.head(SHOWN).to_dict("records")]
    show(title, rows, left=("settings",), wrapped="settings")
    return json.loads(study.best_trial.user_attrs["settings"])


def _cells(row: dict[str, Any], monitor: str) -> dict[str, str]:
    """Return a row of the table as people read it, its score by the name of its metric."""
    settings = ", ".join(f"{key} {row[key]}" for key in list(row)[len(COLUMNS) :])
    score = {monitor: readable(row["score"], monitor), "seconds": f"{row['seconds']:.0f}"}
    return {"trial": str(row["trial"]), **score, "settings": settings}


def _draw(table: pd.DataFrame, study: optuna.Study, monitor: str, path: Path) -> None:
    """Draw each trial's score and the best so far; beside it, how much each setting matters."""
    with drawing(path, height=3.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_trials(left, table, study.direction == StudyDirection.MAXIMIZE, monitor)
        _draw_importances(right, study)


def _draw_trials(axes: Axes, table: pd.DataFrame, is_highest_best: bool, monitor: str) -> None:
    for state, (face, words) in LOOKS.items():
        group = table[table["state"] == state]
        axes.scatter(group["trial"], group["score"], 24, face, edgecolor=BLUE, label=words)
    whole = table[table["state"] == "complete"]
    scores = whole["score"]
    best = scores.cummax() if is_highest_best else scores.cummin()
    axes.step(whole["trial"], best, color=ORANGE, where="post", label="best so far")
    end, middle = (scores.max() if is_highest_best else scores.min()), table["score"].median()
    margin = 0.05 * (end - middle) or 0.01
    axes.set_ylim(*sorted((middle - margin, end + margin)))  # without the worse half
    if monitor == "val_accuracy":
        axes.yaxis.set_major_formatter(percent)
    axes.set(xlabel="trial", title=f"{monitor} of the best epoch")
    axes.grid(True, axis="y")
    axes.figure.legend(loc="outside lower left", ncols=3, fontsize="small")


def _draw_importances(axes: Axes, study: optuna.Study) -> None:
    importances = _importances(study)
    names = [shorten(name, 30) for name in importances]
    axes.barh(names, list(importances.values()), color=BLUE)
    axes.invert_yaxis()
    axes.set(title="importance of each setting", xlim=(0, None))
    if not importances:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "too few trials to tell", transform=axes.transAxes, **CENTERED)


def _importances(study: optuna.Study) -> dict[str, float]:
    """Return each setting's part in the scores of the whole trials (PED-ANOVA); {} for too few."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(complete) < ENOUGH or len({trial.value for trial in complete}) == 1:
        return {}
    return get_param_importances(study)
