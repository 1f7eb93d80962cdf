"""Small convolutional network: 5×5 convolutions with max pooling, one linear layer (29k)."""

from typing import Annotated

from pydantic import Field
from torch import nn

from lineup.architectures import average_mirror, image_shape


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)],
    batch_norm: bool = True,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    mirror: Annotated[bool, Field(strict=True)] = False,
) -> nn.Module:
    """Return Conv 5×5 → MaxPool 2 → (BatchNorm) → ReLU for each of `channels`, then Linear."""
    depth, height, width = image_shape("cnn", shape, smallest=2 ** len(channels))
    layers: list[nn.Module] = []
    for features in channels:
        layers += [
            nn.Conv2d(depth, features, kernel_size=5, padding=2, bias=not batch_norm),
            nn.MaxPool2d(2),
        ]
        if batch_norm:
            layers.append(nn.BatchNorm2d(features))
        layers.append(nn.ReLU())  # after the pooling it costs a quarter, and the result is the same
        depth, height, width = features, height // 2, width // 2
    layers.append(nn.Flatten())
    if dropout:
        layers.append(nn.Dropout(dropout))
    model = nn.Sequential(*layers, nn.Linear(depth * height * width, outputs))
    return average_mirror(model) if mirror else model
