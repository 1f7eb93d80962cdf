"""An ONNX file in 8 bits, where its accuracy allows it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
from torch import Tensor

from lineup.errors import UserError
from lineup.evaluation import metrics
from lineup.evaluation.scores import top_accuracy
from lineup.files import replacing
from lineup.params import Export
from lineup.serving.deployable import predict_onnx, read_onnx
from lineup.tensors import Rows

CALIBRATION_IMAGES = 500  # of the training split
CALIBRATION_BATCH = 100


def quantize(
    source: Path, path: Path, settings: Export, calibration: Rows, test: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Write `source` in 8 bits to `path`; return its size and scores, UserError if it loses more.

    `calibration` (uint8 images) fixes the ranges of activations of method `static`; `test` holds
    images and labels.
    """
    images = calibration[:: math.ceil(len(calibration) / CALIBRATION_IMAGES)]
    _write(source, path, settings.quantize, images)
    expected, found = (_score(model, *test) for model in (source, path))
    drop = round(
        expected["test_accuracy"] - found["test_accuracy"], 9
    )  # as floats 0.99 - 0.985 > 0.005
    if drop > settings.max_drop:
        other = "static" if settings.quantize == "dynamic" else "dynamic"
        raise UserError(
            f"int8 ({settings.quantize}) has a test accuracy of {found['test_accuracy']:.4f}, "
            f"float32 {expected['test_accuracy']:.4f}: it drops by {drop:.4f}, export.max_drop "
            f"allows {settings.max_drop}; raise it, or try -S export.quantize={other} or none"
        )
    return {"quantize": settings.quantize, "size_bytes": path.stat().st_size, **found}


def _score(path: Path, images: Tensor, labels: Tensor) -> dict[str, float]:
    probabilities = predict_onnx(read_onnx(path), images)
    return {
        "test_accuracy": top_accuracy(probabilities, labels, 1),
        "test_loss": metrics.cross_entropy(probabilities, labels),
    }


def _write(source: Path, path: Path, method: str, images: Tensor) -> None:
    model = onnx.load(source)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    del model.graph.value_info[:]  # the quantizer transposes weights and trips over their shapes
    settings = {
        "op_types_to_quantize": ["Conv", "Gemm", "MatMul"],
        "weight_type": QuantType.QInt8,
    }
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a preparation that these models do not need
    try:
        with replacing(path) as temporary:
            if method == "dynamic":
                quantize_dynamic(model, temporary, **settings)
            else:
                reader = _ImageReader(images)
                quantize_static(model, temporary, reader, per_channel=True, **settings)
            quantized = onnx.load(temporary)
            onnx.helper.set_model_props(quantized, metadata)
            onnx.checker.check_model(quantized)
            onnx.save(quantized, temporary)
    finally:
        root.setLevel(level)


class _ImageReader:
    """What ONNX Runtime's calibration reads: images uint8 (N, C, H, W) in batches."""

    def __init__(self, images: Tensor) -> None:
        self.batches = iter(images.split(CALIBRATION_BATCH))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs, or None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}
