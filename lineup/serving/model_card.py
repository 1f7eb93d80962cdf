"""What explains an exported model to people: the model card, and an example that runs without this project."""

from __future__ import annotations

from typing import Any

EXAMPLE = """\
\"\"\"Use model.onnx with nothing but numpy and onnxruntime: python example.py [inputs.npy]\"\"\"
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
inputs = np.load(sys.argv[1]) if sys.argv[1:] else np.zeros((1, {sizes}), np.{dtype})  # {meaning}
for outputs in session.run(None, {{session.get_inputs()[0].name: inputs}})[0]:
    print({{name: round(float(output), 4) for name, output in zip(names, outputs)}})
"""

CARD = """\
# {architecture} for {dataset}

{task_name}: takes {takes}, gives {gives}
for: {names}.
Whatever the network needs in between (scaling, normalisation, softmax) is inside the files.

| measure | value |
|---|---|
{table}

Scores are of the test part, which was used for no choice; `val_` scores are of the validation part, on which the epoch
was chosen. Latency is ONNX Runtime's for one input on one thread, throughput is for batches of 256, both on the machine
that exported.

## Files

`model.onnx` (any batch size), `model.pt2` (`torch.export`), `model.safetensors` (weights as trained) and `model.json`
(architecture, recipe, class names, digests, versions: all that rebuilds, reads and verifies them). Before it was
published, each format was compared with the trained model on every test input: outputs within 1e-5, also in
batches of 1 and 7.

## Commands

```bash
{commands}
```

## Intended use and limits

{limits}
The scores hold for the test part of `{dataset}` and for no other data. Trained with seed {seed}, best epoch {epoch};
weights `{weights_sha256}`.
"""

COMMANDS = [
    "python example.py                                      # needs numpy and onnxruntime only",
    "python -m stages.predict --model export PICTURE...     # in the project that made it",
]

CLASSIFIER_LIMITS = """\
Made for pictures like those of `{dataset}`: same subject, framing and size. It answers with one of its classes to any
picture, also where none of them is to be seen; what it says about such pictures means nothing."""

REGRESSION_LIMITS = """\
Made for values in the range of those of `{dataset}`; what it says beyond that range means nothing."""


def example(description: dict[str, Any]) -> str:
    """Return a script that uses the ONNX file without this project."""
    classifies = description["task"] == "classification"
    return EXAMPLE.format(
        sizes=", ".join(map(str, description["shape"])),
        dtype="uint8" if classifies else "float32",
        meaning="pixels 0-255, (N, C, H, W)" if classifies else "(N, F)",
    )


def model_card(
    description: dict[str, Any], evaluated: dict[str, float], metrics: dict[str, float]
) -> str:
    """Return the model card, in Markdown: what the model is, how good, how fast, for what, and how it is used."""
    classifies = description["task"] == "classification"
    rows = score_rows(description, evaluated, metrics)
    sizes = ", ".join(map(str, description["shape"]))
    return CARD.format(
        **description,
        table="\n".join(f"| {measure} | {value} |" for measure, value in rows.items()),
        task_name="Image classifier" if classifies else "Regression model",
        takes=f"`uint8` pixels (0–255) of shape (N, {sizes})"
        if classifies
        else f"`float32` values of shape (N, {sizes})",
        gives=f"`float32` {'probabilities' if classifies else 'values'} of shape (N, {len(description['classes'])})",
        names=", ".join(description["classes"]),
        commands="\n".join(COMMANDS if classifies else COMMANDS[:1]),
        limits=(CLASSIFIER_LIMITS if classifies else REGRESSION_LIMITS).format(**description),
    )


def score_rows(
    description: dict[str, Any], evaluated: dict[str, float], metrics: dict[str, float]
) -> dict[str, str]:
    """Return the rows of the card's table: metrics.json, the interval of the accuracy, the int8 file."""
    rows = {
        key: f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
        for key, value in metrics.items()
    }
    if "test_accuracy_low" in evaluated:
        rows["test_accuracy"] += (
            f" ({evaluated['test_accuracy_low']:.4f} to {evaluated['test_accuracy_high']:.4f})"
        )
    if int8 := description["int8"]:
        for key in ("test_accuracy", "test_loss", "size_bytes"):
            value = int8[key]
            rows[f"{key} of model.int8.onnx"] = (
                f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
            )
    return rows
