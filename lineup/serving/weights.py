"""A model folder without ONNX, as train leaves it: run by torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lineup.evaluation.inference import predict
from lineup.serving.deployable import load_deployable


def run_weights(folder: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Return a function from raw images to probabilities, and what is known of the model."""
    model = load_deployable(folder)

    def run(images: np.ndarray) -> np.ndarray:
        return predict(model, torch.from_numpy(images), len(images)).numpy()

    return run, model.info.to_json()
