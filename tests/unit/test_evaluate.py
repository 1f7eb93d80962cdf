"""Evaluate on real digits (scikit-learn's, 8 × 8), with models written as train writes them."""

import csv
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from helpers.datasets import write_split
from helpers.evaluations import (
    CLASSES,
    digits,
    nearest_mean,
    write_digits,
    write_project,
    write_regression,
)
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss

from lineup.architectures import linear
from lineup.errors import UserError
from lineup.evaluation import evaluator, inference
from lineup.files import sha256
from lineup.paths import LEADERBOARD_CSV, raw
from lineup.serving import deployable
from lineup.tensors import write_tensors
from stages import evaluate, export


def read_csv(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder, but=()):
    return {
        str(path): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.stem not in but
    }


def test_scores_in_the_files_are_those_of_the_written_predictions(evaluated):
    labels = digits()[1]
    probabilities = load_file("evaluation/linear/predictions.safetensors")["probabilities"].double()
    scores = json.loads(Path("evaluation/linear/metrics.json").read_text())
    assert scores["test_accuracy"] == pytest.approx(
        accuracy_score(labels, probabilities.argmax(1)), rel=1e-5
    )
    assert scores["test_loss"] == pytest.approx(
        log_loss(labels, probabilities / probabilities.sum(1, keepdim=True)), 1e-4
    )
    assert scores["test_accuracy_low"] < scores["test_accuracy"] < scores["test_accuracy_high"]
    assert scores["test_accuracy"] > 0.85 and scores["parameters"] == 650
    row = next(row for row in read_csv(LEADERBOARD_CSV) if row["architecture"] == "linear")
    products, trained_on = 2 * 64 * 10, sum(number % 5 > 0 for number in range(len(labels)))
    epochs = len(read_csv("models/linear/history.csv"))
    assert int(row["training_flops"]) == 2 * products * epochs * trained_on  # and back
    validation = load_file("evaluation/linear/validation.safetensors")
    correct = validation["probabilities"].argmax(1) == labels[::5]
    assert torch.equal(validation["correct"].bool(), correct)
    assert scores["val_accuracy"] == pytest.approx(float(correct.float().mean()), rel=1e-5)
    assert "time_per_image_us" not in scores


def test_the_leaderboard_is_sorted_by_validation_score_and_says_whether_differences_are_real(
    evaluated, evaluation
):
    rows = read_csv("evaluation/leaderboard.csv")
    assert [row["architecture"] for row in rows] == ["linear", "mlp"]
    assert rows[0]["p_vs_first"] == "" and float(rows[1]["p_vs_first"]) < 1e-9
    assert [(row["a"], row["b"]) for row in read_csv("evaluation/comparisons.csv")] == [
        ("linear", "mlp")
    ]
    lines = Path("evaluation/leaderboard.md").read_text().splitlines()
    *table, _, note = lines
    assert len({len(line) for line in table}) == 1 and table[2].startswith("| linear ")
    labels = digits()[1]
    most = labels[torch.arange(len(labels)) % 5 > 0].bincount().argmax()
    part = 100 * (labels == most).float().mean()
    assert f"{part:.2f} %" in table[4] and table[4].startswith("| most frequent ")
    name = CLASSES[most]
    assert note == f"most frequent: always says '{name}', the most frequent class in training."
    assert "95 % interval" in evaluation[1]


@pytest.mark.slow
def test_order_batch_size_and_a_short_last_batch_change_no_figure(evaluated, monkeypatch):
    whole = {
        name: Path(f"evaluation/{name}/metrics.json").read_text() for name in ("linear", "mlp")
    }
    confusion = Path("evaluation/plots/confusion.csv").read_text()
    monkeypatch.setattr(deployable, "evaluation_batch", lambda shape: 7)
    monkeypatch.setattr(inference, "evaluation_batch", lambda shape: 7)
    images, labels = digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    write_tensors(raw("test"), {"images": images[order], "labels": labels[order]})
    evaluate.main()
    assert whole == {
        name: Path(f"evaluation/{name}/metrics.json").read_text() for name in ("linear", "mlp")
    }
    assert confusion == Path("evaluation/plots/confusion.csv").read_text()


def test_the_intervals_are_of_the_confidence_that_is_set(evaluated):
    def interval():
        scores = json.loads(Path("evaluation/mlp/metrics.json").read_text())
        return scores["test_accuracy_low"], scores["test_accuracy_high"]

    low, high = interval()
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["evaluate"]["confidence"] = 0.5
    Path("params.yaml").write_text(yaml.safe_dump(params))
    evaluate.main()
    assert low < interval()[0] < interval()[1] < high


def test_two_evaluations_differ_in_nothing_but_the_time_per_image(evaluated):
    def timeless():
        table = pd.read_csv(LEADERBOARD_CSV).drop(columns="time_per_image_us")
        return table.to_csv(), contents("evaluation", but=["leaderboard"])

    first = timeless()
    evaluate.main()
    assert first == timeless()


def test_confusion_counts_every_test_image_once_and_keeps_the_order_of_the_classes(evaluated):
    rows = [
        row for row in read_csv("evaluation/plots/confusion.csv") if row["architecture"] == "linear"
    ]
    assert sum(int(row["images"]) for row in rows) == len(digits()[1])
    assert (
        [row["actual"] for row in rows[:10]] == [row["predicted"] for row in rows[:10]] == CLASSES
    )


def test_only_the_architectures_of_params_are_evaluated_and_older_results_go(evaluated):
    params = yaml.safe_load(Path("params.yaml").read_text()) | {"architectures": ["mlp"]}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("models/stray").mkdir()
    evaluate.main()
    assert {row["architecture"] for row in read_csv("evaluation/learning_curves.csv")} == {"mlp"}
    assert (
        not Path("evaluation/linear").exists()
        and not Path("evaluation/pictures/disagreements.png").exists()
    )
    assert read_csv("evaluation/comparisons.csv") == []


@pytest.mark.slow
def test_an_architecture_without_mistakes_is_evaluated(here):
    write_digits()
    images, labels = digits()
    right = nearest_mean(images, labels)(((images.float() / 255) - 0.3) / 0.35).argmax(1) == labels
    write_tensors(raw("test"), {"images": images[right], "labels": labels[right]})
    evaluate.main()
    assert json.loads(Path("evaluation/linear/metrics.json").read_text())["test_accuracy"] == 1
    assert Path("evaluation/pictures/linear/errors.png").exists()


def test_a_model_of_other_data_is_refused_and_the_results_stay(evaluated):
    images, labels = digits()
    write_project(["mlp"], "classification", [*CLASSES, "ten"], images, labels)
    with pytest.raises(UserError, match="models/mlp was trained on other data"):
        evaluate.main()
    assert Path("evaluation/linear/metrics.json").exists()


def test_a_model_of_another_split_of_the_same_data_is_refused_by_evaluate_and_export(here):
    write_digits()
    evaluate.main()
    count = len(digits()[0])
    write_split(count - 1)
    for stage in (evaluate, export):
        with pytest.raises(UserError, match="or another split, than data/ holds; run: dvc repro"):
            stage.main()
    assert not Path("export").exists()


def test_a_model_that_is_missing_is_named(here):
    write_digits()
    shutil.rmtree("models/linear")
    with pytest.raises(UserError, match="models/linear"):
        evaluate.main()


def test_a_regression_has_errors_and_no_words_of_classification(here, capsys):
    write_regression()
    evaluate.main()
    scores = json.loads(Path("evaluation/linear/metrics.json").read_text())
    assert scores["test_loss"] < 1 and scores["test_mae"] < 1 and scores["test_r2"] > 0.99
    texts = [
        capsys.readouterr().out,
        *(
            path.read_text()
            for path in Path("evaluation").rglob("*.[cmj]*[vdn]")
            if path.name != "model.json"
        ),
    ]
    assert len(texts) >= 5 and "nothing about other rows" in texts[0]
    names = [str(path) for path in Path("evaluation").rglob("*")]
    assert not re.search("accura|confus|class|mistake", " ".join(texts + names), re.IGNORECASE)


def test_two_exports_of_a_model_are_the_same_bytes(evaluated):
    first = sha256(Path("evaluation/mlp/model.onnx"))
    deployable.write_onnx(deployable.load_deployable(Path("models/mlp")), Path("again.onnx"))
    assert sha256(Path("again.onnx")) == first


@pytest.mark.parametrize("batches", ["whole", "in batches of 7"])
def test_a_file_that_is_not_the_trained_model_does_not_ship(evaluated, monkeypatch, batches):
    def slightly_off(session, inputs, batch_size=None):
        outputs = honest(session, inputs, batch_size).clone()
        outputs[5] += 1e-4 if (batch_size == 7) == (batches != "whole") else 0
        return outputs

    honest = deployable.predict_onnx
    monkeypatch.setattr(deployable, "predict_onnx", slightly_off)
    monkeypatch.setattr(evaluator, "predict_onnx", slightly_off)
    with pytest.raises(
        UserError, match=r"the ONNX file of mlp.* is not the trained model: test input 5"
    ):
        evaluate.main()
    assert not Path("evaluation/leaderboard.csv").exists()


def test_an_architecture_that_onnx_can_not_express_is_named(evaluated, monkeypatch):
    class Fickle(torch.nn.Sequential):
        def forward(self, images):
            outputs = super().forward(images)
            return outputs if outputs.mean() > 0 else -outputs

    builder = linear.build
    monkeypatch.setattr(linear, "build", lambda *given, **more: Fickle(*builder(*given, **more)))
    with pytest.raises(
        UserError, match=r"^'linear' can't be written as ONNX: .*; write its forward"
    ):
        evaluate.main()


def test_the_worst_input_is_named_and_a_tie_is_no_error():
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    tied = expected + torch.tensor([[-2e-6, 2e-6, 0.0], [0, 0, 0], [0, 0, 0]])
    assert not difference(tied, expected)
    wrong = expected.clone()
    wrong[1, 0] += 2e-5
    wrong[2, 2] -= 3e-5
    assert "test input 2 is off by 3e-05, and 1e-05 is allowed" in difference(wrong, expected)
    assert "finite" in difference(expected * float("nan"), expected)
    assert "shape (2, 3)" in difference(expected[:2], expected)


def test_a_regression_may_differ_as_float32_rounds_its_largest_values():
    expected = torch.tensor([[2000.0, 1.0], [0.0, 1.0]])
    assert not difference(expected + torch.tensor([4e-4, 0]), expected)
    far = difference(expected + torch.tensor([0.1, 0]), expected)
    assert "is off by 0.1, and 0.02 is allowed" in far
    assert "1e-05 is allowed" in difference(expected + torch.tensor([0, 4e-4]), expected)


def difference(outputs, expected):
    return deployable.difference(outputs, expected, deployable.allowed_difference(expected))


def test_each_architectures_validation_score_has_a_name_of_its_own(evaluated):
    scores = json.loads(Path("evaluation/validation.json").read_text())
    metrics = {
        name: json.loads(Path(f"evaluation/{name}/metrics.json").read_text()) for name in scores
    }
    assert scores == {name: metrics[name]["val_accuracy"] for name in ("linear", "mlp")}
