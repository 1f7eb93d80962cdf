"""What each layer of a network makes of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_SILENT = (nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity, nn.BatchNorm1d, nn.BatchNorm2d)


def record_activations(module: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Return each layer's output: features (N, …), of a recurrent layer (steps, N, hidden)."""
    activations: dict[str, Tensor] = {}
    handles = []
    for name, layer in module.named_modules():
        if list(layer.children()) or isinstance(layer, _SILENT):
            continue
        title = f"{type(layer).__name__} ({name.removeprefix('network.')})"
        handles.append(layer.register_forward_hook(_recorder(activations, title)))
    try:
        with torch.inference_mode():
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return activations


def _recorder(activations: dict[str, Tensor], title: str) -> Callable[..., None]:
    def record(layer: nn.Module, _: Any, output: Any) -> None:  # noqa: ANN401
        features = output[0] if isinstance(output, tuple) else output
        if isinstance(layer, nn.RNNBase) and layer.batch_first:
            features = features.transpose(0, 1)
        if isinstance(features, Tensor) and 2 <= features.ndim <= 4:  # what can be drawn
            activations.setdefault(title, features.detach().clone())  # then may come the mirror's

    return record
