"""Every architecture on the test set: scores, pictures, and a leaderboard that says what "better" means."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lineup.cli import run
from lineup.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from lineup.data.dataset import Dataset
    from lineup.params import Evaluate
    from lineup.serving.deployable import Deployed

EVALUATION = Path("evaluation")
PLOTS = EVALUATION / "plots"  # what `dvc plots` shows beside the curves
MODELS = Path("models")
DISAGREEMENTS = 10  # images in their picture


def main() -> None:
    """Evaluate each of params.yaml's architectures on the test set and write evaluation/."""
    import os
    import shutil

    from lineup import tracking
    from lineup.cli import progress
    from lineup.data import dataset as datasets
    from lineup.params import load_params
    from lineup.serving import deployable as deployment
    from lineup.training import checkpoints

    params = load_params()
    if "DVC_STAGE" in os.environ:  # then DVC has the outputs of the trainings now
        for name in params.architectures:
            checkpoints.remove_finished(MODELS / name)
    dataset = datasets.describe()
    inputs, truth = datasets.load("test")
    modules = {name: deployment.load(MODELS / name) for name in params.architectures}
    for name, module in modules.items():
        check_fits(name, module, dataset)
    shutil.rmtree(EVALUATION, ignore_errors=True)

    rows, answers, tables = [], {}, []
    with progress(unit="architectures") as bar:
        for name, module in bar.track(
            modules.items(), description="Evaluating", total=len(modules)
        ):
            outputs, microseconds = predict(name, module, inputs)
            scores = score(module.description, outputs, truth, params.evaluate.confidence)
            write_results(name, scores, outputs)
            write_predictions(name, outputs, truth, dataset)
            if dataset.task == "classification":
                answers[name] = outputs.argmax(1)
                tables.append(
                    explain_classes(
                        name, outputs, inputs, truth, dataset, params.evaluate, scores["test_ece"]
                    )
                )
            else:
                explain_values(name, outputs, truth, dataset)
            explain_network(name, module, inputs)
            rows.append({"architecture": name, **scores, "time_per_image_us": microseconds})

    rows.sort(key=rank)
    write_learning_curves([row["architecture"] for row in rows])
    if dataset.task == "classification":
        write_confusion(tables)
        compare(rows, answers, truth)
        draw_disagreements(rows, answers, inputs, truth, dataset)
    write_leaderboard(rows, params.evaluate.confidence, dataset)
    tracking.record_evaluations(params.architectures)
    show(rows, params.evaluate.confidence, params.model)
    if warning := describe_shared_files(dataset):
        print(warning)


def check_fits(name: str, module: "Deployed", dataset: "Dataset") -> None:
    """Raise UserError where a model was made for other classes or another shape than the dataset's."""
    made_for = (module.description["classes"], module.description["shape"])
    if made_for != (dataset.classes, dataset.shape):
        raise UserError(
            f"{MODELS / name} was not trained on the present '{dataset.name}'; run: dvc repro"
        )


def predict(name: str, module: "Deployed", inputs: "Tensor") -> "tuple[Tensor, float]":
    """Return the outputs for all inputs and the microseconds that one of them took, in large batches."""
    from time import perf_counter

    from lineup.data import dataset as datasets
    from lineup.serving import deployable as deployment

    deployment.predict(module, inputs[: datasets.evaluation_batch(inputs.shape[1:])])  # warm up
    start = perf_counter()
    outputs = deployment.predict(module, inputs)
    microseconds = 1e6 * (perf_counter() - start) / len(inputs)
    if not outputs.isfinite().all():
        raise UserError(
            f"{name} answers with numbers that are not finite; lower models.{name}.learning_rate, then dvc repro"
        )
    return outputs, round(microseconds, 1)


def score(
    description: dict[str, Any], outputs: "Tensor", truth: "Tensor", confidence: float
) -> dict[str, float]:
    """Return a model's test scores, validation scores, size and best epoch, by metric name."""
    from lineup.evaluation import metrics

    if description["task"] == "classification":
        scores = metrics.classification(outputs, truth, description["recipe"]["top_k"], confidence)
    else:
        scores = metrics.regression(outputs, truth)
    known = {"parameters": description["parameters"], "epoch": description["epoch"]}
    return (
        {f"test_{key}": value for key, value in scores.items()} | description["validation"] | known
    )


def write_results(name: str, scores: dict[str, float], outputs: "Tensor") -> None:
    """Write an architecture's scores and outputs."""
    from lineup.files import write_json, write_tensors

    kind = "probabilities" if "test_accuracy" in scores else "outputs"
    write_json(EVALUATION / name / "metrics.json", scores)
    write_tensors(EVALUATION / name / "predictions.safetensors", {kind: outputs})


def write_predictions(name: str, outputs: "Tensor", truth: "Tensor", dataset: "Dataset") -> None:
    """Write a row per test picture: its file where it has one, label, prediction, confidence."""
    import pandas as pd

    from lineup.data.dataset import FILES
    from lineup.files import write_text

    if dataset.task != "classification":
        return
    files = pd.read_csv(FILES, dtype=str, keep_default_na=False)
    files = files[files["split"] == "test"]["file"].tolist() or [""] * len(truth)
    confidences, predicted = outputs.max(1)
    columns = {
        "index": range(len(truth)),
        "file": files,
        "label": [dataset.classes[label] for label in truth],
        "prediction": [dataset.classes[label] for label in predicted],
        "confidence": [f"{confidence:.6f}" for confidence in confidences],
        "correct": (predicted == truth).tolist(),
    }
    write_text(EVALUATION / name / "predictions.csv", pd.DataFrame(columns).to_csv(index=False))


def explain_classes(
    name: str,
    probabilities: "Tensor",
    images: "Tensor",
    labels: "Tensor",
    dataset: "Dataset",
    settings: "Evaluate",
    calibration_error: float,
) -> "pd.DataFrame":
    """Write a classifier's scores per class and its pictures; return its confusion, a row per pair of classes."""
    from lineup.evaluation import metrics
    from lineup.evaluation import plots as figures
    from lineup.files import write_text

    per_class = metrics.per_class(probabilities, labels, dataset.classes, settings.confidence)
    write_text(EVALUATION / name / "per_class.csv", per_class.to_csv(index=False))
    matrix = metrics.confusion(probabilities, labels)
    mistakes = worst_mistakes(probabilities, images, labels, dataset.classes, settings.mistakes)

    folder = PLOTS / name
    figures.draw_confusion(matrix, dataset.classes, folder / "confusion.png")
    figures.draw_mistakes(mistakes, len(images), folder / "mistakes.png")
    figures.draw_per_class(per_class, folder / "per_class.png")
    figures.draw_calibration(
        metrics.calibration(probabilities, labels), calibration_error, folder / "calibration.png"
    )
    return confusion_table(name, matrix, dataset.classes)


def worst_mistakes(
    probabilities: "Tensor", images: "Tensor", labels: "Tensor", classes: list[str], most: int
) -> "list[tuple[Tensor, str, str, float]]":
    """Return the most confident mistakes, most confident first: image, truth, prediction, confidence."""
    confidences, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[confidences[wrong].argsort(descending=True, stable=True)][:most].tolist()
    return [
        (images[i], classes[labels[i]], classes[predicted[i]], confidences[i].item()) for i in worst
    ]


def confusion_table(name: str, matrix: "np.ndarray", classes: list[str]) -> "pd.DataFrame":
    """Return counts by actual and predicted class, the diagonal first so that plots keep the order of the classes."""
    import pandas as pd

    pairs = [(i, i) for i in range(len(classes))]
    pairs += [
        (i, j) for i in range(len(classes)) for j in range(len(classes)) if i != j and matrix[i, j]
    ]
    table = [
        (name, classes[actual], classes[predicted], matrix[actual, predicted])
        for actual, predicted in pairs
    ]
    return pd.DataFrame(table, columns=["architecture", "actual", "predicted", "images"])


def explain_values(name: str, outputs: "Tensor", targets: "Tensor", dataset: "Dataset") -> None:
    """Draw a regression's outputs against its targets."""
    from lineup.evaluation import plots as figures

    figures.draw_predictions(outputs, targets, dataset.classes, PLOTS / name / "predictions.png")


def explain_network(name: str, module: "Deployed", inputs: "Tensor") -> None:
    """Draw what the first layer looks for, and what every layer makes of the first test example."""
    from lineup.evaluation import plots as figures

    weight = next(weight for weight in module.network.parameters() if weight.ndim > 1)
    figures.draw_filters(weight, module.description["shape"], PLOTS / name / "filters.png")
    activations = figures.record_activations(module, inputs[:1])
    figures.draw_activations(inputs[0], activations, PLOTS / name / "activations.png")


def rank(row: dict[str, Any]) -> tuple[float, float, str]:
    """Return what the leaderboard is sorted by: validation score, then validation loss, then name."""
    return -row.get("val_accuracy", 0), row["val_loss"], row["architecture"]


def write_learning_curves(names: list[str]) -> None:
    """Write and draw all histories in one table with an architecture column."""
    import pandas as pd

    from lineup.evaluation import plots as figures
    from lineup.files import write_text

    histories = {name: pd.read_csv(MODELS / name / "history.csv", dtype=str) for name in names}
    table = pd.concat([history.assign(architecture=name) for name, history in histories.items()])
    columns = ["architecture", *table.columns.drop("architecture")]
    write_text(EVALUATION / "learning_curves.csv", table[columns].to_csv(index=False))
    figures.draw_learning_curves(histories, EVALUATION / "learning_curves.png")


def write_confusion(tables: "list[pd.DataFrame]") -> None:
    """Write the confusion of all architectures as one table for `dvc plots`."""
    import pandas as pd

    from lineup.files import write_text

    write_text(PLOTS / "confusion.csv", pd.concat(tables).to_csv(index=False))


def compare(rows: list[dict[str, Any]], answers: "dict[str, Tensor]", labels: "Tensor") -> None:
    """Write the exact McNemar test of every pair of architectures; the leaders' p-values also go into `rows`."""
    from itertools import combinations

    import pandas as pd

    from lineup.evaluation import metrics
    from lineup.files import write_text

    table = []
    for first, second in combinations(rows, 2):
        a, b = first["architecture"], second["architecture"]
        test = metrics.mcnemar(answers[a] == labels, answers[b] == labels)
        table.append({"a": a, "b": b, **test})
        if first is rows[0]:
            second["p_vs_first"] = test["p_two_sided"]
    columns = ["a", "b", "only_a", "only_b", "p_one_sided", "p_two_sided"]
    write_text(
        EVALUATION / "comparisons.csv", pd.DataFrame(table, columns=columns).to_csv(index=False)
    )


def draw_disagreements(
    rows: list[dict[str, Any]],
    answers: "dict[str, Tensor]",
    images: "Tensor",
    labels: "Tensor",
    dataset: "Dataset",
) -> None:
    """Draw the images on which the architectures differ most; nothing where there is only one."""
    import torch

    from lineup.evaluation import plots as figures

    names = [row["architecture"] for row in rows]
    if len(names) == 1:
        return
    votes = torch.stack([answers[name] for name in names])  # (architectures, N)
    chosen = most_disputed(votes, labels)[:DISAGREEMENTS].tolist()
    figures.draw_disagreements(
        [images[i] for i in chosen],
        [dataset.classes[labels[i]] for i in chosen],
        {name: [dataset.classes[answers[name][i]] for i in chosen] for name in names},
        PLOTS / "disagreements.png",
    )


def most_disputed(votes: "Tensor", labels: "Tensor") -> "Tensor":
    """Return the indices of disputed examples: most different answers first, then those that half get right."""
    import torch

    distinct = 1 + votes.sort(0).values.diff(dim=0).ne(0).sum(0)
    imbalance = (2 * (votes == labels).sum(0) - len(votes)).abs()
    keys = distinct * (len(votes) + 1) - imbalance
    order = torch.argsort(keys, descending=True, stable=True)
    return order[distinct[order] > 1]


def write_leaderboard(rows: list[dict[str, Any]], confidence: float, dataset: "Dataset") -> None:
    """Write the leaderboard as CSV, Markdown and picture."""
    import pandas as pd

    from lineup.evaluation import plots as figures
    from lineup.files import write_text

    write_text(EVALUATION / "leaderboard.csv", pd.DataFrame(rows).to_csv(index=False))
    warning = describe_shared_files(dataset)
    text = markdown(readable(rows, confidence)) + (f"\n{warning}\n" if warning else "")
    write_text(EVALUATION / "leaderboard.md", text)
    figures.draw_leaderboard(rows, confidence, EVALUATION / "leaderboard.png")


def describe_shared_files(dataset: "Dataset") -> str:
    """Return a line about test pictures that training saw; an empty text where there are none."""
    if not dataset.shared_files:
        return ""
    return f"{dataset.shared_files:,} test pictures are also in train/ (data.allow_duplicates): the test says little."


def readable(rows: list[dict[str, Any]], confidence: float) -> list[dict[str, str]]:
    """Return the leaderboard as people read it, a text per cell."""
    from lineup.evaluation.plots import readable_p

    table = []
    for row in rows:
        cells = {"architecture": row["architecture"], "parameters": f"{row['parameters']:,}"}
        if "test_accuracy" in row:
            ends = (f"{100 * row[f'test_accuracy_{end}']:.2f}" for end in ("low", "high"))
            cells["validation"] = f"{100 * row['val_accuracy']:.2f} %"
            cells["test"] = f"{100 * row['test_accuracy']:.2f} %"
            cells[f"{100 * confidence:g} % interval"] = "–".join(ends)
            cells["p vs. 1st"] = readable_p(row["p_vs_first"]) if "p_vs_first" in row else "–"
        else:
            cells |= {
                "validation MSE": f"{row['val_loss']:.4g}",
                "test MSE": f"{row['test_loss']:.4g}",
            }
            cells |= {
                "test MAE": f"{row['test_mae']:.4g}",
                "test R²": f"{row['test_r2']:.4f}" if "test_r2" in row else "–",
            }
        cells["µs each"] = f"{row['time_per_image_us']:,.0f}"
        table.append(cells)
    return table


def markdown(table: list[dict[str, str]]) -> str:
    """Return a Markdown table whose columns line up as plain text; all but the first are aligned to the right."""
    widths = {head: max(len(head), 3, *(len(cells[head]) for cells in table)) for head in table[0]}
    first, *others = widths
    lines = [{head: head for head in widths}, *table]
    body = [
        [cells[first].ljust(widths[first]), *(cells[head].rjust(widths[head]) for head in others)]
        for cells in lines
    ]
    body.insert(1, ["-" * widths[first], *("-" * (widths[head] - 1) + ":" for head in others)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in body)


def show(rows: list[dict[str, Any]], confidence: float, model: str) -> None:
    """Print the leaderboard and the next commands."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = readable(rows, confidence)
    table = Table(
        title="Leaderboard, by validation score",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for head in cells[0]:
        table.add_column(head, justify="left" if head == "architecture" else "right", no_wrap=True)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row.values()))
    Console().print(table)
    best = rows[0]["architecture"]
    print(f"Next: dvc plots show · make report · {EVALUATION}/")
    if best != model:
        print(f"      dvc exp run -S model={best}   ships {best}; params.yaml ships {model}")


if __name__ == "__main__":
    run(main)
