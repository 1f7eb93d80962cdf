"""Evaluate on real digits (scikit-learn's, 8 × 8), with models written as train writes them."""

import csv
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss

from lineup import architectures, files
from lineup.errors import UserError
from stages import evaluate

ROOT = Path(__file__).resolve().parents[1]
CLASSES = [
    "zero",
    "one & only",
    "two",
    "trois",
    "четыре",
    "五",
    "$six$",
    "seven",
    "<b>eight</b>",
    'nine, "9"',
]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """One evaluation of both models, never changed: the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        enter(folder, patch)
        write_digits()
        evaluate.main()
    return folder, printed.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    enter(tmp_path, monkeypatch)


@pytest.fixture
def evaluated(evaluation, here):
    """A folder to work in with both models, evaluated."""
    shutil.copytree(evaluation[0], ".", dirs_exist_ok=True)


def enter(folder, patch):
    patch.setenv("LINEUP_TRACKING", "off")
    patch.setenv("DVC_ROOT", str(folder))
    patch.chdir(folder)


def digits():
    data = load_digits()
    images = torch.from_numpy(data.images * 15.9).to(torch.uint8).unsqueeze(1)
    return images, torch.from_numpy(data.target)


def write_project(names, task, classes, inputs, truth):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"architectures": names, "model": names[0]}
    files.write_text(Path("params.yaml"), yaml.safe_dump(params))
    keys = ("images", "labels") if task == "classification" else ("inputs", "targets")
    tensors.write_tensors(
        Path("data/raw/test.safetensors"), dict(zip(keys, (inputs, truth), strict=True))
    )
    facts = {"name": "digits", "task": task, "classes": classes, "shape": list(inputs.shape[1:])}
    files.write_json(
        Path("data/raw/dataset.json"), facts | {"digests": {"train": "0", "test": "1"}}
    )


def write_model(name, network, hyperparameters, epochs=2, **validation):
    facts = files.read_json(Path("data/raw/dataset.json"))
    folder = Path("models") / name
    tensors.write_tensors(folder / "model.safetensors", network.state_dict())
    digest = files.sha256(folder / "model.safetensors")
    statistics = (
        {"mean": [0.3], "std": [0.35]}
        if facts["task"] == "classification"
        else {"mean": [0], "std": [1]}
    )
    files.write_json(
        folder / "model.json",
        {
            "architecture": name,
            "hyperparameters": hyperparameters,
            **{key: facts[key] for key in ("task", "classes", "shape")},
            "dataset": facts["name"],
            **statistics,
            "parameters": sum(weight.numel() for weight in network.parameters()),
            "epoch": epochs,
            "validation": validation,
            "recipe": {"top_k": 3},
            "seed": 3,
            "weights_sha256": digest,
            "data": facts["digests"],
        },
    )
    files.write_json(folder / "run.json", {"training": "0" * 32})
    row = {"train_loss": 0.5, **validation, "learning_rate": 0.01}
    lines = [
        ",".join(["epoch", *row]),
        *(",".join(map(str, [epoch, *row.values()])) for epoch in range(1, epochs + 1)),
    ]
    files.write_text(folder / "history.csv", "\n".join(lines) + "\n")


def nearest_mean(images, labels):
    """Softmax regression whose weights are known: the nearest class mean."""
    inputs = (images.float() / 255 - 0.3).flatten(1) / 0.35
    means = torch.stack([inputs[labels == label].mean(0) for label in range(len(CLASSES))])
    network = architectures.build("linear", images.shape[1:], len(CLASSES), {})
    network.load_state_dict({"1.weight": means / 8, "1.bias": -means.square().sum(1) / 16})
    return network


def write_digits():
    images, labels = digits()
    torch.manual_seed(0)
    write_project(["mlp", "linear"], "classification", CLASSES, images, labels)
    untrained = architectures.build("mlp", (1, 8, 8), 10, {"hidden": [16]})
    write_model(
        "mlp",
        untrained,
        {"hidden": [16]},
        epochs=1,
        val_loss=2.3,
        val_accuracy=0.1,
        val_top3_accuracy=0.3,
    )
    write_model(
        "linear",
        nearest_mean(images, labels),
        {},
        val_loss=0.4,
        val_accuracy=0.9,
        val_top3_accuracy=0.98,
    )


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
    assert (
        scores["test_accuracy"] > 0.85
        and scores["parameters"] == 650
        and scores["val_accuracy"] == 0.9
    )
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
    assert len({len(line) for line in lines}) == 1 and lines[2].startswith("| linear ")
    assert "95 % interval" in evaluation[1]


def test_order_batch_size_and_a_short_last_batch_change_no_figure(evaluated, monkeypatch):
    whole = {
        name: Path(f"evaluation/{name}/metrics.json").read_text() for name in ("linear", "mlp")
    }
    confusion = Path("evaluation/plots/confusion.csv").read_text()
    monkeypatch.setattr(deployment, "evaluation_batch", lambda shape: 7)
    images, labels = digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    tensors.write_tensors(
        Path("data/raw/test.safetensors"), {"images": images[order], "labels": labels[order]}
    )
    evaluate.main()
    assert whole == {
        name: Path(f"evaluation/{name}/metrics.json").read_text() for name in ("linear", "mlp")
    }
    assert confusion == Path("evaluation/plots/confusion.csv").read_text()


def test_two_evaluations_differ_in_nothing_but_the_time_per_image(evaluated):
    first = contents("evaluation", but=["leaderboard"])
    evaluate.main()
    assert first == contents("evaluation", but=["leaderboard"])


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
        and not Path("evaluation/plots/disagreements.png").exists()
    )
    assert read_csv("evaluation/comparisons.csv") == []


def test_an_architecture_without_mistakes_is_evaluated(here):
    write_digits()
    images, labels = digits()
    right = nearest_mean(images, labels)(((images.float() / 255) - 0.3) / 0.35).argmax(1) == labels
    tensors.write_tensors(
        Path("data/raw/test.safetensors"), {"images": images[right], "labels": labels[right]}
    )
    evaluate.main()
    assert json.loads(Path("evaluation/linear/metrics.json").read_text())["test_accuracy"] == 1
    assert Path("evaluation/plots/linear/mistakes.png").exists()


def test_a_model_of_other_data_is_refused_and_the_results_stay(evaluated):
    images, labels = digits()
    write_project(["mlp"], "classification", [*CLASSES, "ten"], images, labels)
    with pytest.raises(
        UserError, match="models/mlp was not trained on the present 'digits'; run: dvc repro"
    ):
        evaluate.main()
    assert Path("evaluation/linear/metrics.json").exists()


def test_a_model_that_is_missing_is_named(here):
    write_digits()
    shutil.rmtree("models/linear")
    with pytest.raises(UserError, match="models/linear"):
        evaluate.main()


def write_regression():
    inputs = torch.tensor(
        [[73.0, 67, 43], [91, 88, 64], [87, 134, 58], [102, 43, 37], [69, 96, 70]]
    )
    targets = torch.tensor([[56.0, 70], [81, 101], [119, 133], [22, 37], [103, 119]])
    write_project(["linear"], "regression", ["apples", "oranges"], inputs, targets)
    network = architectures.build("linear", (3,), 2, {})
    solution = torch.linalg.lstsq(torch.cat([inputs, torch.ones(5, 1)], 1), targets).solution
    network.load_state_dict({"1.weight": solution[:3].T, "1.bias": solution[3]})
    write_model("linear", network, {}, val_loss=0.5, val_mae=0.5, val_r2=0.99)


def test_a_regression_has_errors_and_no_words_of_classification(here, capsys):
    write_regression()
    evaluate.main()
    scores = json.loads(Path("evaluation/linear/metrics.json").read_text())
    assert scores["test_loss"] < 1 and scores["test_mae"] < 1 and scores["test_r2"] > 0.99
    texts = [
        capsys.readouterr().out,
        *(path.read_text() for path in Path("evaluation").rglob("*.[cmj]*[vdn]")),
    ]
    assert len(texts) >= 5
    names = [str(path) for path in Path("evaluation").rglob("*")]
    assert not re.search("accura|confus|class|mistake", " ".join(texts + names), re.IGNORECASE)


def dvc(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=True
    )
    assert "WARNING" not in done.stdout + done.stderr and "failed" not in done.stderr, done.stderr
    return done.stdout


def commit(message):
    subprocess.run(["git", "add", "--all", "--force", "evaluation", "dvc.yaml", ".dvc"], check=True)
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *name, "commit", "--quiet", "--message", message], check=True)


def test_dvc_plots_show_and_diff_work_with_fewer_architectures_and_with_a_regression(evaluated):
    subprocess.run(["git", "init", "--quiet"], check=True)
    dvc("init", "--quiet")
    shutil.copytree(ROOT / ".dvc" / "plots", ".dvc/plots")
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    Path("dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    commit("both")
    params = yaml.safe_load(Path("params.yaml").read_text()) | {"architectures": ["mlp"]}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    evaluate.main()
    commit("fewer")
    write_regression()
    evaluate.main()

    dvc("plots", "show", "--out", "show")
    assert "confusion" not in Path("show/index.html").read_text()
    dvc("plots", "diff", "HEAD", "workspace", "--out", "tasks")
    dvc("plots", "diff", "HEAD~1", "HEAD", "--out", "fewer")
    page = Path("fewer/index.html").read_text()
    assert (
        '"architecture": "linear"' in page
        and "Confusion on the test set" in page
        and "mistakes.png" in page
    )
    assert "<DVC_METRIC" not in page
