"""What is known of a trained model: the typed content of its model.json."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lineup.errors import UserError
from lineup.files import read_json, write_json
from lineup.paths import MODEL_JSON
from lineup.task import Task


@dataclass(frozen=True)
class ModelInfo:
    """All that rebuilds, reads and verifies a model beside its weights."""

    architecture: str
    hyperparameters: dict[str, Any]
    task: Task
    dataset: str
    classes: list[str]  # regression: the targets' names
    shape: list[int]  # (C, H, W) of an image, (F,) of a row
    mean: list[float]  # per channel, of the training split, in units of pixel / 255
    std: list[float]
    preprocessing: dict[str, Any] | None  # how a picture becomes a tensor
    parameters: int
    epoch: int  # the best one
    validation: dict[str, float]  # its scores, by metric name
    recipe: dict[str, Any]
    seed: int
    weights_sha256: str
    data: dict[str, str]  # sha256 of the train and test tensors
    split: str  # the digest of the split and its data

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ModelInfo:
        """Return the typed content of a model.json; keys of other programs are left out."""
        known = {field.name: content[field.name] for field in fields(cls)}
        return cls(**known | {"task": Task(content["task"])})

    @classmethod
    def read(cls, folder: Path) -> ModelInfo:
        """Return what a model's folder says; UserError where it holds no trained model."""
        try:
            return cls.from_json(read_json(folder / MODEL_JSON))
        except FileNotFoundError:
            raise UserError(f"{folder} holds no trained model; run: dvc repro") from None
        except KeyError as error:
            message = (
                f"{folder / MODEL_JSON} lacks {error}: another version wrote it; run: dvc repro"
            )
            raise UserError(message) from None

    @property
    def digest(self) -> str:
        """Return what models share that answer alike; equal weights may be read otherwise."""
        network = [self.architecture, self.hyperparameters, self.weights_sha256]
        inputs = [self.shape, self.mean, self.std, self.preprocessing]
        text = json.dumps([*network, *inputs, self.task, self.classes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON's types."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write model.json."""
        write_json(folder / MODEL_JSON, self.to_json())
