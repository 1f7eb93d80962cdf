"""export/: the very file that evaluate verified and scored, with all that a consumer needs."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from lineup.data.dataset import Dataset, Split, load
from lineup.errors import UserError
from lineup.files import explain_damage, read_json, replacing_folder, sha256, write_json, write_text
from lineup.model_info import ModelInfo
from lineup.params import BEST, Export, Params
from lineup.paths import EXPORT, INT8_ONNX, LEADERBOARD_CSV, MODEL_JSON, ONNX, SCORES, WEIGHTS
from lineup.serving.deployable import check_data
from lineup.serving.model_card import example, model_card
from lineup.serving.quantization import quantize
from lineup.serving.speed import measure_speed
from lineup.task import Task
from lineup.tensors import Rows

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors")
SHIPPED_SCORES = {
    Task.CLASSIFICATION: ("test_accuracy", "val_accuracy", "parameters"),
    Task.REGRESSION: ("test_loss", "val_loss", "parameters"),
}


def choose_architecture(params: Params) -> str:
    """Return the architecture that ships; of `auto`, the first of the leaderboard.

    UserError where evaluate has not run.
    """
    if params.model != BEST:
        return params.model
    if not LEADERBOARD_CSV.exists():
        raise UserError(f"{LEADERBOARD_CSV} is missing; run: dvc repro evaluate")
    with explain_damage(LEADERBOARD_CSV):
        return pd.read_csv(LEADERBOARD_CSV)["architecture"][0]


def export_model(trained: Path, evaluated: Path, settings: Export) -> dict[str, float]:
    """Replace export/ by the model of these folders; return the few scores of what ships.

    UserError where evaluate has not run, and where 8 bits cost too much: then export/ stays.
    """
    if not (evaluated / ONNX).exists():
        raise UserError(f"{evaluated / ONNX} is missing; run: dvc repro evaluate")
    info, scores = ModelInfo.read(evaluated), read_json(evaluated / SCORES)
    is_same = info.digest == ModelInfo.read(trained).digest and (trained / WEIGHTS).exists()
    if not is_same or info.weights_sha256 != sha256(trained / WEIGHTS):
        raise UserError(f"{evaluated} is of another training; run: dvc repro evaluate")
    check_data(info, trained)
    test = load("test", info.task)
    with replacing_folder(EXPORT) as folder:
        shutil.copyfile(trained / WEIGHTS, folder / WEIGHTS)
        shutil.copyfile(evaluated / ONNX, folder / ONNX)
        int8 = _quantize(folder, info, settings, test)
        _write_documents(folder, info, scores, int8, measure_speed(folder / ONNX, test[0]))
    return {key: scores[key] for key in SHIPPED_SCORES[info.task]}


def _quantize(
    folder: Path, info: ModelInfo, settings: Export, test: tuple[Tensor, Tensor]
) -> dict[str, Any] | None:
    """Write the file in 8 bits if asked for; return its method, size and scores."""
    if settings.quantize == "none":
        return None
    if info.task is not Task.CLASSIFICATION:
        raise UserError("params.yaml: export.quantize is for classifiers; set it to none")
    images, _ = load("train", info.task)
    calibration = Rows(images, Split.read().train)
    return quantize(folder / ONNX, folder / INT8_ONNX, settings, calibration, test)


def _write_documents(
    folder: Path,
    info: ModelInfo,
    scores: dict[str, float],
    int8: dict[str, Any] | None,
    speed: dict[str, float],
) -> None:
    """Write example.py, the model card, and model.json with the digest of every other file."""
    write_text(folder / "example.py", example(info))
    known = {
        "scores": scores,
        "speed": speed,
        "int8": int8,
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        "versions": {package: version(package) for package in PACKAGES},
    }
    write_json(folder / MODEL_JSON, info.to_json() | known)
    size_bytes = (folder / ONNX).stat().st_size
    shared = Dataset.read().shared_files
    write_text(folder / "README.md", model_card(info, scores, speed, size_bytes, int8, shared))
