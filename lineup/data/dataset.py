"""The dataset that fetch and split made: tensors, class names, the training and validation part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lineup.cli import UserError
from lineup.files import read_json, read_tensors

RAW = Path("data/raw")
FILES = RAW / "files.csv"
SPLIT = Path("data/split")


@dataclass(frozen=True)
class Dataset:
    """What data/raw/dataset.json says."""

    name: str
    task: Literal["classification", "regression"]
    classes: list[str]  # regression: the targets' names
    shape: list[int]  # (C, H, W) of an image, (F,) of a row
    digests: dict[str, str]  # sha256 of train.safetensors and test.safetensors, by part
    inputs: list[str] = field(
        default_factory=list
    )  # regression: the inputs' names, where they have any
    preprocessing: dict[str, Any] | None = (
        None  # how a picture becomes a tensor, see preprocessing.py
    )
    shared_files: int = 0  # test pictures that are also in train, byte for byte


@dataclass(frozen=True)
class Split:
    """What data/split holds."""

    train: Tensor  # int64 (n,), ascending
    validation: Tensor  # int64 (m,), ascending
    mean: Tensor  # float32 (C,), of the training part, in units of pixel / 255
    std: Tensor  # float32 (C,), likewise
    digest: str  # sha256 of indices.safetensors


def describe() -> Dataset:
    """Return the dataset's description; raises UserError before fetch has run."""
    return Dataset(**read_json(made_by("fetch", RAW / "dataset.json")))


def load(part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Return images uint8 (N, C, H, W) and labels int64 (N,), or inputs float32 (N, F) and targets float32 (N, T)."""
    tensors = read_tensors(made_by("fetch", RAW / f"{part}.safetensors"))
    if "images" in tensors:
        return tensors["images"], tensors["labels"]
    return tensors["inputs"], tensors["targets"]


def evaluation_batch(shape: Sequence[int]) -> int:
    """Return how many inputs of `shape` a model takes at once outside training; large images would fill the memory."""
    return max(
        1, min(500, 2**20 // math.prod(shape))
    )  # 1000 MNIST images at once take a fifth longer than 500


def load_split() -> Split:
    """Return the training and validation part; raises UserError before split has run."""
    facts = read_json(made_by("split", SPLIT / "split.json"))
    tensors = read_tensors(made_by("split", SPLIT / "indices.safetensors"))
    return Split(**tensors, digest=facts["digest"])


def made_by(stage: str, path: Path) -> Path:
    """Return `path`; raises UserError that names the stage which makes it."""
    if not path.exists():
        raise UserError(f"{path} is missing: `dvc repro {stage}` makes it")
    return path


def draw_part(
    labels: Tensor, fraction: float, seed: int, classes: Sequence[str], part: str, key: str
) -> tuple[Tensor, Tensor]:
    """Split 0…N-1 at random, stratified by `labels` int64 (N,), into (rest, drawn), each ascending; raises UserError.

    `part` and `key` name the drawn part and its setting in the error about a class with too few images for it.
    """
    from sklearn.model_selection import train_test_split

    counts = torch.bincount(labels, minlength=len(classes))
    smallest = int(counts.argmin())
    too_few = UserError(
        f"class '{classes[smallest]}' has {counts[smallest]} images: too few for a {part} part of {fraction:.0%} in "
        f"which every class occurs; add images, or change {key} in params.yaml"
    )
    try:
        parts = train_test_split(
            range(len(labels)), test_size=fraction, random_state=seed, stratify=labels.numpy()
        )
    except ValueError:
        raise too_few from None
    rest, drawn = (torch.tensor(sorted(part)) for part in parts)
    if min(len(labels[indices].unique()) for indices in (rest, drawn)) < len(classes):
        raise too_few
    return rest, drawn
