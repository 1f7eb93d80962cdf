"""What every layer of a network makes of an input, recorded by forward hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SILENT_LAYERS = (  # they show nothing that the layer before does not
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
)


def record_activations(module: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Return each layer's features (N, …), of a recurrent layer (steps, N, hidden), by its name."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, layer in module.named_modules():
        if not list(layer.children()) and not isinstance(layer, SILENT_LAYERS):
            title = f"{type(layer).__name__} ({name.removeprefix('network.')})"
            handles.append(layer.register_forward_hook(_recorder(title, seen)))
    try:
        with torch.inference_mode():
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _recorder(title: str, seen: dict[str, Tensor]) -> Callable[..., None]:
    def record(layer: nn.Module, _: Any, output: Any) -> None:  # noqa: ANN401
        features = output[0] if isinstance(output, tuple) else output
        if isinstance(layer, nn.RNNBase) and layer.batch_first:
            features = features.transpose(0, 1)
        seen[title] = features.detach().clone()

    return record
