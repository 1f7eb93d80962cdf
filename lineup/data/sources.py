"""A folder of data/ → tensors: found or downloaded, verified, decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lineup.data.dataset_yaml import (
    DATASET_YAML,
    DeclaredFraming,
    Files,
    Images,
    Noise,
    read_dataset_yaml,
)
from lineup.data.downloads import find_files
from lineup.data.findings import Finding, SplitImages, check_dataset
from lineup.data.formats import make_noise, read_cifar, read_idx, read_table
from lineup.data.image_folder import read_images
from lineup.data.preprocessing import Framing, Preprocessing
from lineup.errors import UserError, nearest
from lineup.params import Data
from lineup.paths import DATA, RAW, SPLIT
from lineup.task import Task
from lineup.tensors import Rows

RESERVED = (RAW.name, SPLIT.name)
READERS = {"idx": read_idx, "cifar": read_cifar}


@dataclass(frozen=True)
class Source:
    """A dataset as tensors: images uint8 (N, C, H, W) and labels int64 (N,), or float32 rows."""

    task: Task
    classes: list[str]  # regression: the targets' names
    train: tuple[Tensor | Rows, Tensor]
    test: tuple[Tensor | Rows, Tensor]
    inputs: list[str] = field(default_factory=list)  # regression: the inputs' names, if any
    preprocessing: Preprocessing | None = None  # of pictures
    files: list[dict[str, Any]] = field(default_factory=list)  # split, index, file, label
    shared_files: int = 0  # test pictures that are also in train, byte for byte
    extra: dict[str, Tensor] = field(default_factory=dict)  # groups and validation of train
    sizes: list[tuple[int, int]] = field(default_factory=list)  # of the pictures in `files`
    folder_findings: list[Finding] = field(default_factory=list)

    def findings(self) -> list[Finding]:
        """Return what a person should know of these images; nothing of a regression."""
        if self.task is not Task.CLASSIFICATION:
            return []
        train, test = self._split_images("train"), self._split_images("test")
        return check_dataset(train, test, self.classes, self.sizes) + self.folder_findings

    def _split_images(self, split: Literal["train", "test"]) -> SplitImages:
        names = {"train": "training", "test": "test"}
        files = [row["file"] for row in self.files if row["split"] == split]
        return SplitImages(names[split], *getattr(self, split), files)


def read_source(name: str, data: Data) -> Source:
    """Return the set in the folder data/`name`; UserError if there is none or it can't be had."""
    folder = _find_folder(name)
    path = folder / DATASET_YAML
    settings = read_dataset_yaml(path) if path.exists() else Images()
    if isinstance(settings, Images):
        return Source(Task.CLASSIFICATION, **vars(read_images(folder, settings, data)))
    _print_ignored_settings(name, data)
    if isinstance(settings, Files):
        return _read_files(name, path, settings)
    if isinstance(settings, Noise):
        rows, inputs, targets = make_noise(settings)
    else:
        rows, inputs, targets = read_table(folder, settings)
    return Source(Task.REGRESSION, targets, rows, rows, inputs)


def _print_ignored_settings(name: str, data: Data) -> None:
    """Say which settings have no effect on this set: they are for folders of pictures."""
    settings = {"data.size": data.size, "data.channels": data.channels, "data.group": data.group}
    ignored = [key for key, value in settings.items() if value not in ("auto", None)]
    if ignored:
        print(f"{name}: no effect: {', '.join(ignored)}, which are for folders of pictures")


def _read_files(name: str, path: Path, settings: Files) -> Source:
    train, test = READERS[settings.format](find_files(name, settings))
    for images, labels in (train, test):
        if len(images) != len(labels) or labels.max() >= len(settings.classes):
            raise UserError(f"{path}: its files do not fit each other, or not its classes")
    preprocessing = _declared_preprocessing(train[0], settings.framing)
    task = Task.CLASSIFICATION
    return Source(task, settings.classes, train, test, preprocessing=preprocessing)


def _declared_preprocessing(images: Tensor, declared: DeclaredFraming | None) -> Preprocessing:
    """Return how a picture becomes a tensor like these, uint8 (N, C, H, W), framed as declared."""
    channels, height, width = images.shape[1:]
    if declared is None:
        return Preprocessing((height, width), channels)
    if channels != 1:
        raise UserError("dataset.yaml: framing is for grey pictures; remove it")
    content = None if declared.content == "none" else declared.content
    return Preprocessing((height, width), channels, framing=Framing(declared.background, content))


def _find_folder(name: str) -> Path:
    """Return data/`name`; UserError with the nearest names if it is not a dataset."""
    folder = DATA / name
    if name in RESERVED:
        place = f"the pipeline's own data/{name}/"
        raise UserError(f"dataset: '{name}' is reserved for {place}; rename your folder")
    if name.startswith(".") or set(name) & set("?#%"):
        rule = "no leading dot, no ?, # or %"
        raise UserError(f"dataset: '{name}' cannot name a dataset: {rule}; rename the folder")
    if folder.is_dir():
        return folder
    if folder.is_symlink():
        target = folder.readlink()
        raise UserError(f"data/{name} is a link to {target}, which is no folder here")
    if folder.with_name(f"{name}.dvc").exists():
        hint = "run `dvc checkout` or `dvc pull`"
        raise UserError(f"data/{name} is not here, only its data/{name}.dvc: {hint}")
    folders = [path.name for path in DATA.glob("[!.]*") if path.is_dir()]
    known = [found for found in folders if found not in RESERVED]
    raise UserError(f"dataset: no folder data/{name}; {nearest(name, known)}")
