"""The architecture that ships: proven equal to the trained model, then published with its model card and its speed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lineup.cli import run
from lineup.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lineup.params import Export
    from lineup.serving.deployable import Deployed

    Predict = Callable[
        ..., Tensor
    ]  # raw inputs, and a batch size if a special one is wanted → outputs (N, K)

EXPORT = Path("export")
METRICS = Path("metrics.json")
SMALL_BATCHES = {1: 20, 7: 20}  # batch size → how many such batches are tried too
PATIENCE = 10  # seconds for one measurement of speed
CALIBRATION = 500  # training images for static quantization


def main() -> None:
    """Write export/ and metrics.json for params.yaml's model, if every format equals it on every test input."""
    from lineup.params import load_params

    params = load_params()
    trained = Path("models") / params.model

    import tempfile

    from lineup import tracking
    from lineup.data import dataset as datasets
    from lineup.files import read_json, write_json
    from lineup.serving import deployable as deployment

    scored = Path("evaluation") / params.model / "metrics.json"
    if not scored.exists():
        raise UserError(f"{scored} is missing; run: dvc repro evaluate")
    evaluated = read_json(scored)
    module = deployment.load(trained)
    inputs, targets = datasets.load("test")
    reference = deployment.predict(module, inputs)

    with tempfile.TemporaryDirectory(
        prefix=".export-", dir=".", ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(temporary) / "export"
        write_formats(module, trained, folder)
        for name, predict in formats(folder).items():
            if mistake := compare(name, predict, inputs, reference, targets):
                sys.exit(f"export: {mistake}. Nothing was published.")
        scores = score(reference, targets)
        if mistake := contradiction(scores, evaluated, ties(reference)):
            sys.exit(f"export: {mistake} after {scored}. Nothing was published.")
        description = module.description | {
            "files": {},
            "int8": quantize(module, folder, params.export, inputs, targets, scores),
            "speed": measure_speed(folder / "model.onnx", inputs),
            "versions": versions(),
        }
        metrics = summary(description, evaluated, (folder / "model.onnx").stat().st_size)
        write_documents(folder, description, evaluated, metrics)
        publish(folder)
    write_json(METRICS, metrics)
    print(
        f"{EXPORT}/ holds {params.model}, equal to the trained model on {len(inputs):,} test inputs in every format"
    )
    print(tracking.record_export(params.model, params.export.model_dump()))
    print(f"Next: python {EXPORT}/example.py · python -m stages.predict --model {EXPORT} PICTURE")


def write_formats(module: "Deployed", trained: Path, folder: Path) -> None:
    """Write the module in every format, the trained weights as they are."""
    import shutil

    from lineup.serving import deployable as deployment

    folder.mkdir()
    for name in ("model.safetensors", "model.json"):
        shutil.copyfile(trained / name, folder / name)
    deployment.write_pt2(module, folder / "model.pt2")
    deployment.write_onnx(module, folder / "model.onnx")


def formats(folder: Path) -> "dict[str, Predict]":
    """Return how each format, read back from its file, predicts."""
    from functools import partial

    from lineup.serving import deployable as deployment

    session = deployment.read_onnx(folder / "model.onnx")
    return {
        "model.safetensors": partial(deployment.predict, deployment.load(folder)),
        "model.pt2": partial(deployment.predict, deployment.read_pt2(folder / "model.pt2")),
        "model.onnx": partial(deployment.predict_onnx, session),
    }


def compare(
    name: str, predict: "Predict", inputs: "Tensor", reference: "Tensor", targets: "Tensor"
) -> str | None:
    """Return how a format differs from the trained model, on every input and in small batches too."""
    from lineup.serving.deployable import difference

    outputs = predict(inputs)
    scores, expected = score(outputs, targets), score(reference, targets)
    if mistake := difference(outputs, reference) or contradiction(
        scores, expected, ties(reference)
    ):
        return f"{name} is not the trained model: {mistake}"
    for batch_size, batches in SMALL_BATCHES.items():
        some = slice(batches * batch_size)
        if mistake := difference(predict(inputs[some], batch_size), reference[some]):
            return f"{name}, in batches of {batch_size}, is not the trained model: {mistake}"
    return None


def ties(outputs: "Tensor") -> float:
    """Return the part of the inputs whose two best outputs are so close that rounding may choose between them."""
    from lineup.serving.deployable import TOLERANCE

    if outputs.shape[1] < 2:
        return 0.0
    best = outputs.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1] <= 2 * TOLERANCE).double().mean().item()


def score(outputs: "Tensor", targets: "Tensor") -> dict[str, float]:
    """Return test loss, and accuracy where targets are classes."""
    from lineup.evaluation import metrics

    if targets.is_floating_point():
        return {"test_loss": metrics.regression(outputs, targets)["loss"]}
    accuracy = (outputs.argmax(dim=1) == targets).double().mean().item()
    return {"test_loss": metrics.cross_entropy(outputs, targets), "test_accuracy": accuracy}


def contradiction(found: dict[str, float], expected: dict[str, float], tied: float) -> str | None:
    """Return the first score that is not the expected one; accuracy may differ by the part that is tied."""
    from lineup.serving.deployable import TOLERANCE

    for key, value in found.items():
        allowed = TOLERANCE * max(1, abs(expected[key])) + (tied if key == "test_accuracy" else 0)
        if abs(value - expected[key]) > allowed:
            return f"{key} is {value:.6f}, and {expected[key]:.6f} was expected"
    return None


def quantize(
    module: "Deployed",
    folder: Path,
    settings: "Export",
    inputs: "Tensor",
    targets: "Tensor",
    scores: dict[str, float],
) -> dict[str, Any] | None:
    """Write model.int8.onnx if asked for, and return its size and scores; UserError if it costs too much accuracy."""
    if settings.quantize == "none":
        return None
    if not module.classifies:
        raise UserError(
            "params.yaml: export.quantize is for classifiers; set it to none for a regression"
        )
    from lineup.data import dataset as datasets
    from lineup.serving import deployable as deployment

    path = folder / "model.int8.onnx"
    images = datasets.load("train")[0][datasets.load_split().train]
    deployment.write_int8(
        folder / "model.onnx",
        path,
        settings.quantize,
        images[:: max(1, len(images) // CALIBRATION)],
    )
    found = score(deployment.predict_onnx(deployment.read_onnx(path), inputs), targets)
    drop = scores["test_accuracy"] - found["test_accuracy"]
    if drop > settings.max_drop:
        raise UserError(
            f"int8 ({settings.quantize}) has a test accuracy of {found['test_accuracy']:.4f}, float32 "
            f"{scores['test_accuracy']:.4f}: it drops by {drop:.4f}, export.max_drop allows {settings.max_drop}; "
            f"raise it, or try -S export.quantize={'static' if settings.quantize == 'dynamic' else 'dynamic'} or none"
        )
    return {"quantize": settings.quantize, "size_bytes": path.stat().st_size, **found}


def measure_speed(path: Path, inputs: "Tensor") -> dict[str, float]:
    """Return ONNX Runtime's milliseconds for one input on one thread, and inputs per second in batches of 256."""
    import numpy as np

    from lineup.serving import deployable as deployment

    single, parallel = deployment.read_onnx(path, threads=1), deployment.read_onnx(path)
    name, outputs = single.get_inputs()[0].name, [single.get_outputs()[0].name]
    one, batch = (
        {name: np.resize(inputs.numpy(), (count, *inputs.shape[1:]))} for count in (1, 256)
    )
    p50, p99 = np.percentile(durations(lambda: single.run(outputs, one), 1000), [50, 99])
    speed = {
        "latency_ms_p50": 1000 * p50,
        "latency_ms_p99": 1000 * p99,
        "images_per_second": 256 / np.median(durations(lambda: parallel.run(outputs, batch), 20)),
        "images_per_second_1thread": 256
        / np.median(durations(lambda: single.run(outputs, batch), 20)),
    }
    rounded = {key: float(f"{value:.3g}") for key, value in speed.items()}
    return {key: int(value) if value >= 100 else value for key, value in rounded.items()}


def durations(work: "Callable[[], object]", repetitions: int) -> Any:  # noqa: ANN401
    """Return the seconds of each repetition, without a first tenth to warm up, as an array; of slow work fewer."""
    import time

    import numpy as np

    times = [time.perf_counter()]
    while len(times) <= 1.1 * repetitions and (len(times) < 3 or times[-1] - times[0] < PATIENCE):
        work()
        times.append(time.perf_counter())
    return np.diff(times)[len(times) // 11 or 1 :]


def versions() -> dict[str, str]:
    """Return the versions of what wrote the files."""
    from importlib.metadata import version

    return {
        package: version(package)
        for package in ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors")
    }


def summary(
    description: dict[str, Any], evaluated: dict[str, float], size: int
) -> dict[str, float]:
    """Return the content of metrics.json: few keys, rounded, the most important first."""
    wanted = ("test_accuracy", "test_loss", "test_mae", "test_r2")
    scores = {key: evaluated[key] for key in wanted if key in evaluated}
    validation = {
        key: value
        for key, value in description["validation"].items()
        if key in ("val_accuracy", "val_mae")
    }
    rounded = {key: round(value, 6) for key, value in (scores | validation).items()}
    return rounded | {
        "latency_ms_p50": description["speed"]["latency_ms_p50"],
        "parameters": description["parameters"],
        "size_bytes": size,
        **description["speed"],
    }


def write_documents(
    folder: Path,
    description: dict[str, Any],
    evaluated: dict[str, float],
    metrics: dict[str, float],
) -> None:
    """Write example.py, the model card, and model.json with the digest of every other file."""
    from lineup.files import sha256, write_json, write_text
    from lineup.serving.model_card import example, model_card

    write_text(folder / "example.py", example(description))
    description["files"] = {
        path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != "model.json"
    }
    write_json(folder / "model.json", description)
    write_text(folder / "README.md", model_card(description, evaluated, metrics))


def publish(folder: Path) -> None:
    """Put the proven folder in the place of export/."""
    import shutil

    shutil.rmtree(EXPORT, ignore_errors=True)
    folder.rename(EXPORT)


if __name__ == "__main__":
    run(main)
