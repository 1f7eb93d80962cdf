"""Small all-convolutional network: 3×3 convolutions with batch norm, pooled by stages, global average at the end."""

from typing import Annotated

from pydantic import Field
from torch import nn

from stages.lib.architectures import image_shape


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [32, 64, 128],  # noqa: B006
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Return two Conv 3×3 → BatchNorm → ReLU per entry of `channels`, MaxPool 2 between them, then Linear."""
    depth, _, _ = image_shape("simplenet", shape, smallest=2 ** len(channels))
    layers: list[nn.Module] = []
    for index, features in enumerate(channels):
        if index:
            layers.append(nn.MaxPool2d(2))
        for _ in range(2):
            layers += [nn.Conv2d(depth, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
            depth = features
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(depth, outputs))
