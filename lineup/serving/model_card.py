"""What explains an exported model: its card, and an example that runs without this project."""

from __future__ import annotations

from typing import Any

from lineup.model_info import ModelInfo
from lineup.templating import render

MEASURES = ("test_accuracy", "test_loss", "test_mae", "test_r2", "val_accuracy", "val_loss")
INT8_MEASURES = ("test_accuracy", "test_loss", "size_bytes")


def example(info: ModelInfo) -> str:
    """Return a script that uses the ONNX file without this project."""
    return render("example.py.jinja", info=info)


def model_card(
    info: ModelInfo,
    scores: dict[str, float],
    speed: dict[str, float],
    size_bytes: int,
    int8: dict[str, Any] | None,
    shared_files: int = 0,
) -> str:
    """Return the model card, in Markdown: what it is, how good, how fast, how it is used.

    `shared_files` is how many test pictures are also in training or validation.
    """
    known = {key: scores[key] for key in MEASURES if key in scores}
    known |= {"parameters": info.parameters, "size_bytes": size_bytes, **speed}
    measures = {key: _readable(value) for key, value in known.items()}
    if "test_accuracy_low" in scores:
        low, high = scores["test_accuracy_low"], scores["test_accuracy_high"]
        measures["test_accuracy"] += f" ({low:.4f} to {high:.4f})"
    if int8:
        measures |= {f"{key} of model.int8.onnx": _readable(int8[key]) for key in INT8_MEASURES}
    return render("model_card.md.jinja", info=info, measures=measures, shared_files=shared_files)


def _readable(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
