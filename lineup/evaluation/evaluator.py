"""One trained model: its deployable file, made and verified, its scores, predictions and plots."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from lineup.data.dataset import Dataset, Split, load
from lineup.data.file_table import read_files
from lineup.errors import UserError
from lineup.evaluation import image_plots, metrics, plots
from lineup.evaluation.activations import record_activations
from lineup.evaluation.flops import count_flops
from lineup.evaluation.inference import evaluation_batch
from lineup.evaluation.text_tables import as_text
from lineup.files import explain_damage, write_json, write_text
from lineup.other_load import OtherLoad, watch_others
from lineup.params import Evaluate
from lineup.paths import (
    EVALUATION,
    EXAMPLE,
    HISTORY,
    MODELS,
    ONNX,
    PICTURES,
    PREDICTIONS,
    SCORES,
    VALIDATION,
)
from lineup.serving.deployable import (
    Deployable,
    check_data,
    load_deployable,
    predict_onnx,
    read_onnx,
    verify,
    write_onnx,
)
from lineup.task import Task
from lineup.tensors import Rows, write_tensors

EXAMPLE_INPUTS = 2


@dataclass(frozen=True)
class Examples:
    """The test and the validation split of a dataset."""

    dataset: Dataset
    test: tuple[Tensor, Tensor]  # raw inputs and targets
    validation: tuple[Rows, Tensor]
    trained_on: int  # examples of the training split
    most_frequent: int | None  # their most frequent class; None of a regression

    @classmethod
    def read(cls) -> Examples:
        """Return what evaluation needs of the data; UserError before fetch and split have run."""
        dataset, split = Dataset.read(), Split.read()
        inputs, targets = load("train", dataset.task)
        validation = Rows(inputs, split.validation), targets[split.validation]
        is_classification = dataset.task is Task.CLASSIFICATION
        most_frequent = int(targets[split.train].mode().values) if is_classification else None
        test = load("test", dataset.task)
        return cls(dataset, test, validation, len(split.train), most_frequent)


@dataclass(frozen=True)
class Scored:
    """What a model's deployable file says of every example, and how good that is."""

    scores: dict[str, float]
    outputs: Tensor  # on the test split, (N, K)
    on_validation: Tensor  # likewise
    microseconds: float  # per test input
    others: OtherLoad  # while that was measured


@dataclass(frozen=True)
class Evaluation:
    """What the leaderboard needs of one model."""

    row: dict[str, Any]  # architecture, scores, microseconds per image
    outputs: Tensor  # on the test split, (N, K)
    confusion: pd.DataFrame | None  # of a classifier


def load_models(names: list[str]) -> dict[str, Deployable]:
    """Return the trained models by name; UserError if one was trained on other data."""
    models = {name: load_deployable(MODELS / name) for name in names}
    for name, model in models.items():
        check_data(model.info, MODELS / name)
    return models


def evaluate_model(
    name: str, model: Deployable, examples: Examples, settings: Evaluate
) -> Evaluation:
    """Write evaluation/<name>/: the file that ships, verified and scored; UserError if not."""
    folder = EVALUATION / name
    scored = score_model(name, model, folder / ONNX, examples, settings)
    model.info.write(folder)

    scores, outputs, (inputs, targets) = scored.scores, scored.outputs, examples.test
    write_json(folder / SCORES, scores)
    write_tensors(folder / PREDICTIONS, {model.info.task.outputs: outputs})
    _write_validation(folder / VALIDATION, model, scored.on_validation, examples.validation[1])
    np.save(folder / EXAMPLE, _bright_examples(inputs))
    draw_model(name, model, inputs)
    if scored.others.is_notable:
        print(f"{name}: the time per input was measured {scored.others}")
    row = {"architecture": name, **scores, "time_per_image_us": round(scored.microseconds, 1)}
    row["training_flops"] = _training_flops(name, model, examples)
    if model.is_classification:
        return Evaluation(row, outputs, explain_classes(name, outputs, examples, settings))
    plots.draw_predictions(
        outputs, targets, examples.dataset.classes, PICTURES / name / "predictions.png"
    )
    return Evaluation(row, outputs, confusion=None)


def score_model(
    name: str, model: Deployable, path: Path, examples: Examples, settings: Evaluate
) -> Scored:
    """Write the file that ships to `path`, verify it, and score what it says; UserError if not."""
    write_onnx(model, path)
    session = read_onnx(path)

    inputs, targets = examples.test
    predict_onnx(session, inputs[: evaluation_batch(inputs.shape[1:])])  # the first takes longer
    with watch_others() as others:
        start = time.perf_counter()
        outputs = predict_onnx(session, inputs)
        microseconds = 1e6 * (time.perf_counter() - start) / len(inputs)
    _check_finite(name, outputs)
    verify(session, model, inputs, outputs)
    on_validation = predict_onnx(session, examples.validation[0])

    scores = _scores(model, outputs, targets, "test_", settings)
    scores |= _scores(model, on_validation, examples.validation[1], "val_", settings)
    scores |= {"parameters": model.info.parameters, "epoch": model.info.epoch}
    return Scored(scores, outputs, on_validation, microseconds, others)


def _training_flops(name: str, model: Deployable, examples: Examples) -> int:
    """Return the floating-point operations of all products in all epochs, with nothing frozen."""
    with explain_damage(MODELS / name / HISTORY):
        epochs = len(pd.read_csv(MODELS / name / HISTORY))
    return count_flops(model.network, model.info.shape) * epochs * examples.trained_on


def _check_finite(name: str, outputs: Tensor) -> None:
    if not outputs.isfinite().all():
        raise UserError(
            f"{name} answers with numbers that are not finite; lower models.{name}.learning_rate, "
            "then dvc repro"
        )


def _scores(
    model: Deployable, outputs: Tensor, targets: Tensor, prefix: str, settings: Evaluate
) -> dict[str, float]:
    if model.is_classification:
        top_k = model.info.recipe["top_k"]
        scores = metrics.classification(outputs, targets, top_k, settings.confidence)
    else:
        scores = metrics.regression(outputs, targets)
    if prefix == "val_":  # of these, only what training reports too
        trained = model.info.validation
        scores = {key: value for key, value in scores.items() if f"val_{key}" in trained}
    return {f"{prefix}{key}": value for key, value in scores.items()}


def _write_validation(path: Path, model: Deployable, outputs: Tensor, targets: Tensor) -> None:
    """Write what the gate compares: outputs, and which examples are right, or how far off."""
    if model.is_classification:
        judged = {"correct": (outputs.argmax(1) == targets).byte()}
    else:
        judged = {"error": (outputs - targets).square().mean(1)}
    write_tensors(path, {model.info.task.outputs: outputs, **judged})


def _bright_examples(inputs: Tensor) -> np.ndarray:
    """Return the brightest of the first inputs: dark ones would look like all zeros."""
    first = inputs[:100]
    brightness = first.flatten(1).float().mean(1)
    chosen = brightness.argsort(descending=True, stable=True)[:EXAMPLE_INPUTS]
    return first[chosen].numpy()


# --- what explains a model ------------------------------------------------------------------------


def draw_model(name: str, model: Deployable, inputs: Tensor) -> None:
    """Draw what the first layer looks for, and what every layer makes of the first input."""
    weight = next(weight for weight in model.network.parameters() if weight.ndim > 1)
    image_plots.draw_filters(weight, model.info.shape, PICTURES / name / "filters.png")
    activations = record_activations(model, inputs[:1])
    image_plots.draw_activations(inputs[0], activations, PICTURES / name / "activations.png")


def explain_classes(
    name: str, outputs: Tensor, examples: Examples, settings: Evaluate
) -> pd.DataFrame:
    """Write a classifier's scores per class, predictions and plots; return its confusion table."""
    (images, labels), classes = examples.test, examples.dataset.classes
    folder = PICTURES / name
    per_class = metrics.per_class(outputs, labels, classes, settings.confidence)
    write_text(EVALUATION / name / "per_class.csv", per_class.map(as_text).to_csv(index=False))
    _write_predictions(name, outputs, labels, classes)
    matrix = metrics.confusion(outputs, labels)
    bins = metrics.calibration(outputs, labels)
    errors = worst_errors(outputs, images, labels, classes, settings.mistakes)
    plots.draw_confusion(matrix, classes, folder / "confusion.png")
    image_plots.draw_errors(errors, len(images), folder / "errors.png")
    plots.draw_per_class(per_class, folder / "per_class.png")
    error = metrics.calibration_error(bins)
    plots.draw_calibration(bins, error, folder / "calibration.png")
    return confusion_table(name, matrix, classes)


def _write_predictions(name: str, outputs: Tensor, labels: Tensor, classes: list[str]) -> None:
    """Write a row per test picture: its file where it has one, label, prediction, confidence."""
    names = read_files("test")["file"].tolist()
    confidences, predicted = outputs.max(1)
    table = pd.DataFrame(
        {
            "index": range(len(labels)),
            "file": names or "",
            "label": [classes[label] for label in labels],
            "prediction": [classes[label] for label in predicted],
            "confidence": [f"{confidence:.6f}" for confidence in confidences],
            "correct": (predicted == labels).tolist(),
        }
    )
    write_text(EVALUATION / name / "predictions.csv", table.map(as_text).to_csv(index=False))


def worst_errors(
    probabilities: Tensor, images: Tensor, labels: Tensor, classes: list[str], most: int
) -> list[tuple[Tensor, str, str, float]]:
    """Return the most confident errors, worst first: image, label, prediction, confidence."""
    confidences, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = confidences[wrong].argsort(descending=True, stable=True)[:most]
    return [
        (images[i], classes[labels[i]], classes[predicted[i]], confidences[i].item())
        for i in wrong[order].tolist()
    ]


def confusion_table(name: str, matrix: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Return counts by actual and predicted class; the diagonal first keeps the classes' order."""
    count = len(classes)
    off_diagonal = [(i, j) for i in range(count) for j in range(count) if i != j and matrix[i, j]]
    pairs = [(i, i) for i in range(count)] + off_diagonal
    table = [(name, classes[i], classes[j], matrix[i, j]) for i, j in pairs]
    return pd.DataFrame(table, columns=["architecture", "actual", "predicted", "images"])
