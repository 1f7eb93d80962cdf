"""AlexNet (Krizhevsky et al., 2012) for small images: five convolutions, three fully connected layers, dropout."""

from typing import Annotated

from pydantic import Field
from torch import nn

from stages.lib.architectures import image_shape


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=5, max_length=5)] = [32, 64, 96, 96, 64],  # noqa: B006
    hidden: Annotated[int, Field(ge=1)] = 512,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
) -> nn.Module:
    """Return AlexNet with pooling after convolutions 1, 2 and 5."""
    depth, height, width = image_shape("alexnet", shape, smallest=8)
    layers: list[nn.Module] = []
    for index, features in enumerate(channels):
        layers += [nn.Conv2d(depth, features, 3, padding=1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
        if index in (0, 1, 4):
            layers.append(nn.MaxPool2d(2))
        depth = features
    flat = depth * (height // 8) * (width // 8)
    layers.append(nn.Flatten())
    for inputs in (flat, hidden):
        layers += [nn.Dropout(dropout), nn.Linear(inputs, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))
