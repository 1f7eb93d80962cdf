"""Folders of models as train leaves them, without a training."""

from pathlib import Path

from lineup.files import sha256, write_json, write_rows
from lineup.model_info import ModelInfo
from lineup.serving.deployable import Deployable, load_deployable, write_onnx
from lineup.task import Task
from lineup.tensors import write_tensors

DEFAULTS = {
    "architecture": "linear",
    "hyperparameters": {},
    "task": "classification",
    "dataset": "digits",
    "classes": [f"digit {label}" for label in range(10)],
    "shape": [1, 28, 28],
    "mean": [0.2],
    "std": [0.3],
    "preprocessing": None,
    "parameters": 0,
    "epoch": 1,
    "validation": {"val_loss": 1.0, "val_accuracy": 0.5, "val_top3_accuracy": 0.9},
    "recipe": {"top_k": 3},
    "seed": 0,
    "weights_sha256": "",
    "data": {"train": "0", "test": "1"},
    "split": "2",
}


def model_info(**facts) -> ModelInfo:
    """Return a model's info with defaults for all that is not given."""
    known = DEFAULTS | facts
    return ModelInfo(**known | {"task": Task(known["task"])})


def deployable(network, **facts) -> Deployable:
    """Return a network as it would ship."""
    return Deployable(network, model_info(**facts)).eval()


def write_model(folder, network, onnx=False, **facts) -> ModelInfo:
    """Write weights, model.json, run.json and history.csv; with `onnx` the deployable file too."""
    folder = Path(folder)
    write_tensors(folder / "model.safetensors", network.state_dict())
    facts = {"parameters": sum(weight.numel() for weight in network.parameters())} | facts
    info = model_info(**facts | {"weights_sha256": sha256(folder / "model.safetensors")})
    info.write(folder)
    scores = {"train_loss": 0.5, **info.validation, "learning_rate": 0.01}
    write_rows(
        folder / "history.csv", [{"epoch": epoch + 1, **scores} for epoch in range(info.epoch)]
    )
    run_id = sha256(folder / "model.json")[:32]
    write_json(folder / "run.json", {"run_id": run_id})
    if onnx:
        write_onnx(load_deployable(folder), folder / "model.onnx")
    return info
