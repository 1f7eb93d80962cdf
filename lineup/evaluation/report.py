"""One HTML page of everything that evaluate found: no server, no other files, no links outside."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pandas as pd

from lineup.data.dataset import Dataset, Split
from lineup.data.findings import read_findings
from lineup.errors import UserError
from lineup.evaluation.text_tables import readable_p
from lineup.files import explain_damage, read_json
from lineup.model_info import ModelInfo
from lineup.paths import (
    DATA_REPORT,
    EVALUATION,
    FINDINGS_PNG,
    LEADERBOARD_CSV,
    PICTURES,
    PLOTS,
    RAW,
    SAMPLES,
    SCORES,
    SPLIT,
)
from lineup.templating import render

CAPTIONS = {  # plots of an architecture, in this order
    "confusion": "Confusion on the test set: correct in grey, errors in orange",
    "errors": "The errors it was surest of",
    "per_class": "Accuracy of each class with its interval, and how many images it has",
    "calibration": "Reliability: is it right as often as it is sure?",
    "predictions": "Outputs against targets",
    "filters": "What the first layer looks for",
    "activations": "What each layer makes of the first test example",
}


def make_report() -> str:
    """Return the page; UserError before evaluate has run."""
    if not (EVALUATION / "leaderboard.md").exists():
        raise UserError(f"{EVALUATION}/ holds no leaderboard yet; run: dvc repro evaluate")
    with explain_damage(LEADERBOARD_CSV):
        names = list(pd.read_csv(LEADERBOARD_CSV)["architecture"])
    infos = {name: ModelInfo.read(EVALUATION / name) for name in names}
    dataset, split = Dataset.read(), Split.read()
    if {(info.dataset, info.split) for info in infos.values()} != {(dataset.name, split.digest)}:
        raise UserError(f"{EVALUATION}/ is of other data than {RAW} and {SPLIT}; run: dvc repro")
    leaderboard, notes = _read_leaderboard(EVALUATION / "leaderboard.md")
    return render(
        "report.html.jinja",
        dataset=dataset,
        leaderboard=leaderboard,
        notes=notes,
        comparisons=_read_comparisons(EVALUATION / "comparisons.csv"),
        architectures=[_describe(name, info) for name, info in infos.items()],
        findings=read_findings(DATA_REPORT),
        pictures={
            "leaderboard": _embed(PLOTS / "leaderboard.png"),
            "curves": _embed(EVALUATION / "learning_curves.png"),
            "disagreements": _embed(PICTURES / "disagreements.png"),
            "samples": _embed(SAMPLES),
            "findings": _embed(FINDINGS_PNG),
        },
    )


def _read_leaderboard(path: Path) -> tuple[list[list[str]], list[str]]:
    """Return the cells of a Markdown table, its head and then its rows, and the notes below it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head, _, *rows = [line for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("| ").split("|")] for row in (head, *rows)]
    return cells, [line for line in lines if line and not line.startswith("|")]


def _read_comparisons(path: Path) -> list[list[str]]:
    """Return the tests of all pairs as table cells; nothing where there was nothing to compare."""
    if not path.exists():
        return []
    tests = pd.read_csv(path).to_dict("records")
    rows = [
        [
            f"{test['a']} – {test['b']}",
            test["only_a"],
            test["only_b"],
            readable_p(test["p_two_sided"]),
        ]
        for test in tests
    ]
    head = ["pair", "only the first is right", "only the second", "p"]
    return [head, *rows] if rows else []


def _describe(name: str, info: ModelInfo) -> dict[str, Any]:
    """Return what the page shows of one architecture: scores, plots by caption, recipe."""
    recipe = {
        "hyperparameters": info.hyperparameters,
        "recipe": info.recipe,
        "seed": info.seed,
        "epoch": info.epoch,
    }
    scores = read_json(EVALUATION / name / SCORES)
    plots = {caption: _embed(PICTURES / name / f"{key}.png") for key, caption in CAPTIONS.items()}
    return {
        "name": name,
        "scores": {key: _readable(value) for key, value in scores.items()},
        "pictures": {caption: image for caption, image in plots.items() if image},
        "recipe": json.dumps(recipe, indent=2, ensure_ascii=False),
    }


def _readable(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _embed(path: Path) -> str:
    """Return a PNG file as a data URI; an empty text where there is no such file."""
    if not path.exists():
        return ""
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
