"""What fetch and split made: the tensors, their description, the training and validation split."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lineup import paths
from lineup.errors import UserError
from lineup.files import explain_damage, read_json, sha256
from lineup.task import Task
from lineup.tensors import read_tensors


@dataclass(frozen=True)
class Dataset:
    """What data/raw/dataset.json says."""

    name: str
    task: Task
    classes: list[str]  # regression: the targets' names
    shape: list[int]  # (C, H, W) of an image, (F,) of a row
    digests: dict[str, str]  # sha256 of the train and test tensors
    inputs: list[str] = field(default_factory=list)  # regression: the inputs' names, if any
    preprocessing: dict[str, Any] | None = None  # how a picture becomes a tensor
    shared_files: int = 0  # test pictures that are also in train, byte for byte

    @classmethod
    def read(cls, name: str | None = None) -> Dataset:
        """Return the description; UserError before fetch has run, or if `name` is another's."""
        path = made_by("fetch", paths.DATASET_JSON)
        content = read_json(path)
        with explain_damage(path):
            dataset = cls(**content | {"task": Task(content["task"])})
        if name not in (None, dataset.name):
            holds = f"{paths.RAW} holds '{dataset.name}', and {paths.PARAMS} names '{name}'"
            raise UserError(f"{holds}; run: dvc repro split")
        return dataset

    def to_json(self) -> dict[str, Any]:
        """Return this as JSON's types."""
        return asdict(self)


@dataclass(frozen=True)
class Split:
    """What data/split holds."""

    train: Tensor  # int64 (n,), ascending
    validation: Tensor  # int64 (m,), ascending
    mean: Tensor  # float32 (C,), of the training split, in units of pixel / 255
    std: Tensor  # float32 (C,), likewise
    digest: str  # sha256 that stands for the indices and for what they point into

    @classmethod
    def read(cls) -> Split:
        """Return the training and validation split; UserError before split has run on this data."""
        content = read_json(made_by("split", paths.SPLIT_JSON))
        if content.get("data") != Dataset.read().digests["train"]:
            other = f"{paths.SPLIT} was drawn from other data than {paths.RAW} holds"
            raise UserError(f"{other}; run: dvc repro split")
        tensors, digest = read_tensors(made_by("split", paths.INDICES)), content.get("digest")
        if digest != split_digest(content["data"]):
            raise UserError(f"{paths.SPLIT} is not as it was written; run: dvc repro split")
        with explain_damage(paths.INDICES):
            return cls(**tensors, digest=digest)


def split_digest(data: str) -> str:
    """Return what stands for the indices and for the training tensors, whose digest is `data`."""
    return hashlib.sha256(f"{sha256(paths.INDICES)} {data}".encode()).hexdigest()


def load(split: Literal["train", "test"], task: Task) -> tuple[Tensor, Tensor]:
    """Return images uint8 (N, C, H, W) and labels int64 (N,), or float32 (N, F) and (N, T)."""
    tensors = read_tensors(made_by("fetch", paths.raw(split)))
    return tensors[task.inputs], tensors[task.targets]


def made_by(stage: str, path: Path) -> Path:
    """Return `path`; raises UserError that names the stage which makes it."""
    if not path.exists():
        raise UserError(f"{path} is missing: `dvc repro {stage}` makes it")
    return path
