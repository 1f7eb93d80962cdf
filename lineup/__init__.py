"""A line-up of image classifiers: trained by a DVC pipeline, tracked and registered in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def load(model: str) -> nn.Module:
    """Rebuild a model from its weights, to train it on: raw inputs in, probabilities out.

    `model` is an MLflow URI such as models:/mnist@cnn, or a folder. UserError if there is none, or
    if today's code gives other outputs than the model had.
    """
    # Imported here, so that `import lineup` takes no seconds.
    from lineup.paths import ONNX, WEIGHTS
    from lineup.serving.deployable import check_same_outputs, load_deployable
    from lineup.tracking.store import download

    folder = download(model) if ":/" in model else Path(model)
    found = next(folder.rglob(WEIGHTS), folder / WEIGHTS)
    loaded = load_deployable(found.parent)
    if (folder / ONNX).exists():
        check_same_outputs(loaded, folder / ONNX)
    return loaded
