"""The architecture that ships: the very file that evaluate verified and scored, with its card."""

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from lineup.cli import run
from lineup.errors import UserError

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors")


def main() -> None:
    """Write export/ and metrics.json for params.yaml's model, and let the gate decide on it."""
    from lineup.params import load_params

    params = load_params()

    from lineup.data.dataset import Split, load
    from lineup.files import read_json, sha256, write_json, write_text
    from lineup.model_info import ModelInfo
    from lineup.paths import (
        EVALUATION,
        EXPORT,
        INT8_ONNX,
        METRICS_JSON,
        MODEL_JSON,
        MODELS,
        ONNX,
        SCORES,
        WEIGHTS,
    )
    from lineup.serving.model_card import example, model_card
    from lineup.serving.quantization import quantize
    from lineup.serving.speed import measure_speed
    from lineup.task import Task
    from lineup.tracking.location import enabled

    trained, evaluated = MODELS / params.model, EVALUATION / params.model
    if not (evaluated / ONNX).exists():
        raise UserError(f"{evaluated / ONNX} is missing; run: dvc repro evaluate")
    info, scores = ModelInfo.read(evaluated), read_json(evaluated / SCORES)
    if info.weights_sha256 != sha256(trained / WEIGHTS):
        raise UserError(f"{evaluated} is of another training; run: dvc repro evaluate")
    if params.export.quantize != "none" and info.task is not Task.CLASSIFICATION:
        raise UserError("params.yaml: export.quantize is for classifiers; set it to none")

    test = load("test", info.task)
    with tempfile.TemporaryDirectory(
        prefix=".export-", dir=".", ignore_cleanup_errors=True
    ) as temp:
        folder = Path(temp) / EXPORT.name
        folder.mkdir()
        shutil.copyfile(trained / WEIGHTS, folder / WEIGHTS)
        shutil.copyfile(evaluated / ONNX, folder / ONNX)
        int8 = None
        if params.export.quantize != "none":
            images = load("train", info.task)[0][Split.read().train]
            int8 = quantize(folder / ONNX, folder / INT8_ONNX, params.export, images, test)
        speed = measure_speed(folder / ONNX, test[0])
        write_text(folder / "example.py", example(info))
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        known = {"scores": scores, "speed": speed, "int8": int8, "files": files}
        known["versions"] = {package: version(package) for package in PACKAGES}
        write_json(folder / MODEL_JSON, info.to_json() | known)
        size = (folder / ONNX).stat().st_size
        write_text(folder / "README.md", model_card(info, scores, speed, size, int8))
        shutil.rmtree(EXPORT, ignore_errors=True)
        folder.rename(EXPORT)

    shipped = ("test_accuracy", "test_loss", "val_accuracy", "val_loss", "parameters")
    if info.task is Task.CLASSIFICATION:
        shipped = ("test_accuracy", "val_accuracy", "parameters")
    write_json(METRICS_JSON, {key: scores[key] for key in shipped if key in scores})
    print(f"{EXPORT}/ holds {params.model}, equal to the trained model on every test input")
    if enabled():
        from lineup.tracking.recording import record_export

        print(record_export(params.model, params.export.model_dump()))
    print(f"Next: python {EXPORT}/example.py · python -m stages.predict --model {EXPORT} PICTURE")


if __name__ == "__main__":
    run(main)
