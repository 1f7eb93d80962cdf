"""A registered or exported model as its users meet it: pictures in, probabilities out; torch only without ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml
from PIL import Image

from lineup.errors import UserError
from lineup.data.preprocessing import Preprocessing
from lineup.files import read_json

PARAMS = Path("params.yaml")
GATE_ALIASES = {"champion", "challenger"}
HOW_TO_NAME = "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/NAME, or a folder or .onnx file that export made"


@dataclass(frozen=True)
class Classifier:
    """A model, and what is known of it: the content of its model.json, or the metadata of its ONNX file."""

    run: Callable[[np.ndarray], np.ndarray]  # uint8 (N, C, H, W) → float32 (N, K)
    description: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """Return the classes' names, in the order of the outputs."""
        return self.description["classes"]

    @property
    def is_outdated(self) -> bool:
        """Tell whether the model was made before it carried its preprocessing."""
        return not self.description.get("preprocessing")

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Return how a picture becomes the tensor that training saw."""
        if self.is_outdated:
            channels, height, width = self.description["shape"]
            return Preprocessing((height, width), channels)
        return Preprocessing.from_json(self.description["preprocessing"])

    def preprocess(self, picture: Path | BinaryIO | Image.Image) -> np.ndarray:
        """Return a picture as the model's training saw it, uint8 (C, H, W); raises UnreadablePictureError."""
        return self.preprocessing.tensor(picture)

    def classify(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return probabilities float32 (N, K) of images as `preprocess` returns them."""
        return self.run(np.stack(images))


def open_classifier(model: str | None) -> Classifier:
    """Open a model by MLflow URI or by path, the dataset's champion by default; UserError where there is none."""
    model = model or default_model()
    if ":/" in model:
        from lineup import tracking

        folder = tracking.download(model)
    else:
        folder = Path(model)
    classifier = read_files(folder)
    if classifier.description["task"] != "classification":
        raise UserError(
            f"{model} takes rows of numbers, not pictures; see the model card beside it"
        )
    return classifier


def default_model() -> str:
    """Return the URI of the champion."""
    return f"models:/{registered_name()}@champion"


def registered_architectures() -> dict[str, str]:
    """Return the URI of each architecture's newest proven version, by architecture; UserError where there is none."""
    from lineup import tracking

    name = registered_name()
    found = {model.name: model for model in tracking.reach().search_registered_models()}
    aliases = sorted(found[name].aliases) if name in found else []
    uris = {alias: f"models:/{name}@{alias}" for alias in aliases if alias not in GATE_ALIASES}
    if not uris:
        raise UserError(
            f"{tracking.store_uri()} holds no proven architecture of '{name}'; run: dvc repro"
        )
    return uris


def registered_name() -> str:
    """Return the registered model of params.yaml's dataset, or the store's only one; UserError where that is open."""
    from lineup import tracking

    if PARAMS.exists():
        params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
        if isinstance(params, dict) and "dataset" in params:
            return tracking.registered_name(str(params["dataset"]))
    names = [model.name for model in tracking.reach().search_registered_models()]
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise UserError(
            f"name the model: {HOW_TO_NAME} (registered in {tracking.store_uri()}: {found})"
        )
    return names[0]


def read_files(path: Path) -> Classifier:
    """Open an ONNX file, or a folder as export, train or MLflow leave it; UserError if it is none of these."""
    if path.suffix == ".onnx" and path.is_file():
        return read_onnx(path)
    if (path / "model.onnx").is_file():
        return read_onnx(path / "model.onnx")
    if (path / "model.safetensors").is_file() or (path / "data" / "model.pt2").is_file():
        return read_torch(path)
    raise UserError(f"no model at '{path}'; name it as {HOW_TO_NAME}")


def read_onnx(path: Path) -> Classifier:
    """Open an ONNX file; what it says of itself is in its metadata."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise UserError(f"{path} is not an ONNX file that can be used: {error}") from None
    metadata = session.get_modelmeta().custom_metadata_map
    if not {"task", "classes", "shape"} <= metadata.keys():
        raise UserError(
            f"{path} does not say what it classifies: its metadata lack task, classes or shape"
        )
    description = {
        key: json.loads(metadata[key])
        for key in ("classes", "shape", "preprocessing")
        if key in metadata
    }
    name = session.get_inputs()[0].name
    return Classifier(lambda images: session.run(None, {name: images})[0], metadata | description)


def read_torch(folder: Path) -> Classifier:
    """Open a folder without ONNX: safetensors as train writes them, or the pt2 that MLflow keeps."""
    import torch

    from lineup.serving import deployable as deployment

    if (folder / "model.safetensors").is_file():
        module = deployment.load(folder)
        description = module.description
    else:
        module = deployment.read_pt2(folder / "data" / "model.pt2")
        description = read_json(folder / "extra_files" / "model.json")
    return Classifier(
        lambda images: deployment.predict(module, torch.from_numpy(images), len(images)).numpy(),
        description,
    )
