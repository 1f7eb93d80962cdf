"""A registered or exported model as its users meet it: pictures in, probabilities out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnxruntime
import yaml
from PIL import Image

from lineup.data.preprocessing import Preprocessing
from lineup.errors import UserError, lacks_memory
from lineup.files import read_json
from lineup.paths import DATASET_JSON, MODEL_JSON, ONNX, PARAMS, SPLIT_JSON, WEIGHTS
from lineup.task import Task
from lineup.tracking.names import registered_name
from lineup.tracking.sqlite_tables import find_model_locally
from lineup.yaml_file import read_yaml

HOW_TO_NAME = (
    "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/NAME, "
    "or a folder or .onnx file that export made"
)
VALUES_AT_ONCE = 2**20  # of images: large ones fill the memory, as in evaluation_batch
JSON_KEYS = ("classes", "shape", "preprocessing")


@dataclass(frozen=True)
class Classifier:
    """A model, and what is known of it: the metadata of its ONNX file, or its model.json."""

    run: Callable[[np.ndarray], np.ndarray]  # uint8 (N, C, H, W) → float32 (N, K)
    metadata: dict[str, Any]
    version: str = ""  # in the registry, where it is from there

    @property
    def title(self) -> str:
        """Return what this is, and what pictures it was trained on."""
        channels, height, width = self.metadata["shape"]
        dataset = self.metadata.get("dataset", "an unnamed set")
        version = f" version {self.version}" if self.version else ""
        colour = "grey" if channels == 1 else "colour"
        name = self.metadata.get("architecture", "a network")
        return f"{dataset}{version}: {name}, trained on {height} × {width} {colour} pictures"

    @property
    def is_of_other_data(self) -> bool:
        """Tell whether the dataset here has changed since this model was trained on it."""
        if not (SPLIT_JSON.exists() and DATASET_JSON.exists()):
            return False
        is_same_set = self.metadata.get("dataset") == read_json(DATASET_JSON)["name"]
        known = self.metadata.get("split", "")
        return is_same_set and known not in ("", read_json(SPLIT_JSON)["digest"])

    @property
    def classes(self) -> list[str]:
        """Return the classes' names, in the order of the outputs."""
        return self.metadata["classes"]

    @property
    def is_outdated(self) -> bool:
        """Tell whether the model was made before it carried its preprocessing."""
        return not self.metadata.get("preprocessing")

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Return how a picture becomes the tensor that training saw."""
        if self.is_outdated:
            channels, height, width = self.metadata["shape"]
            return Preprocessing((height, width), channels)
        return Preprocessing.from_json(self.metadata["preprocessing"])

    def preprocess(self, picture: Path | BinaryIO | Image.Image) -> np.ndarray:
        """Return a picture as training saw it, uint8 (C, H, W); raises UnreadablePictureError."""
        return self.preprocessing.tensor(picture)

    def classify(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return probabilities float32 (N, K) of images as `preprocess` returns them."""
        count = max(1, VALUES_AT_ONCE // images[0].size)
        starts = range(0, len(images), count)
        return np.concatenate([self.run(np.stack(images[i : i + count])) for i in starts])


def open_classifier(model: str | None) -> Classifier:
    """Open a model by MLflow URI or by path, the champion by default; UserError if none."""
    model = model or champion_uri()
    folder, version = _find(model)
    classifier = replace(_open(folder), version=version)
    if classifier.metadata["task"] != Task.CLASSIFICATION:
        raise UserError(f"{model} takes rows of numbers, not pictures; see the model card there")
    return classifier


def champion_uri() -> str:
    """Return the URI of the champion of params.yaml's dataset; UserError where that is open."""
    if PARAMS.exists():
        params = read_yaml(PARAMS)
        if isinstance(params, dict) and "dataset" in params:
            return f"models:/{registered_name(str(params['dataset']))}@champion"
    from lineup.tracking.catalog import only_registered_name  # imports MLflow: 1 s

    return f"models:/{only_registered_name(HOW_TO_NAME)}@champion"


def _find(model: str) -> tuple[Path, str]:
    """Return the folder or file of a model, and its version in the registry."""
    if ":/" not in model:
        return Path(model), ""
    found = find_model_locally(model)
    if found:
        return found
    from lineup.tracking.store import download  # imports MLflow: 1 s

    folder = download(model)
    note = folder / "registered_model_meta"  # MLflow's
    version = yaml.safe_load(note.read_text())["model_version"] if note.exists() else None
    return folder, str(version or "")  # a model that was logged has none


def _open(path: Path) -> Classifier:
    """Open an ONNX file, or a folder as export, evaluate, train or MLflow leave it."""
    if path.suffix == ".onnx" and path.is_file():
        return _open_onnx(path)
    if (path / ONNX).is_file():
        return _open_onnx(path / ONNX)
    if (path / WEIGHTS).is_file() and (path / MODEL_JSON).is_file():
        return _open_weights(path)
    if (path / "MLmodel").is_file():
        raise UserError(
            f"{path} holds no {ONNX}: it was registered by an older version; to renew it: dvc repro"
        )
    raise UserError(f"no model at '{path}'; name it as {HOW_TO_NAME}")


def _open_onnx(path: Path) -> Classifier:
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        if lacks_memory(error):
            raise
        raise UserError(f"{path} is not an ONNX file that can be used: {error}") from None
    metadata = session.get_modelmeta().custom_metadata_map
    if not {"task", "classes", "shape"} <= metadata.keys():
        missing = "its metadata lack task, classes or shape"
        raise UserError(f"{path} does not say what it classifies: {missing}")
    decoded = {key: json.loads(metadata[key]) for key in JSON_KEYS if key in metadata}
    name = session.get_inputs()[0].name
    return Classifier(lambda images: session.run(None, {name: images})[0], metadata | decoded)


def _threads() -> int:
    """Return what OMP_NUM_THREADS says, which bounds torch too; 0 is all cores."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(first) if first.isdecimal() else 0


def _open_weights(folder: Path) -> Classifier:
    from lineup.serving.weights import run_weights  # imports torch: 2 s

    return Classifier(*run_weights(folder))
