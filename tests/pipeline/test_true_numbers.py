"""The leaderboard's numbers are true: predict finds the same classes in the same files."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture_sets
from helpers.project import ROOT, Project

from stages import evaluate, fetch, predict, split, train

BOTH_WAYS = [(name, own_test) for name in picture_sets.SETS for own_test in (False, True)]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An MLP on data/mine: two epochs, far from perfect, so that a difference would show."""
    monkeypatch.setenv("LINEUP_TRACKING", "off")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    Project(tmp_path).set(dataset="mine", architectures=["mlp"], model="mlp", train__epochs=2)
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "own_test"), BOTH_WAYS)
def test_the_accuracy_of_predict_on_the_test_files_is_the_leaderboards(name, own_test, capsys):
    picture_sets.make(name, Path("data/mine"), own_test)
    fetch.main()
    split.main()
    train.main("mlp")
    evaluate.main()
    with Path("evaluation/mlp/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    capsys.readouterr()
    predict.main([row["file"] for row in rows], model="models/mlp", as_json=True)
    answers = json.loads(capsys.readouterr().out)
    pairs = zip(answers, rows, strict=True)
    correct = [answer["class"] == row["label"] for answer, row in pairs]
    assert correct == [row["correct"] == "True" for row in rows]
    metrics = json.loads(Path("evaluation/mlp/metrics.json").read_text())
    assert np.mean(correct) == pytest.approx(metrics["test_accuracy"], abs=1e-6)
