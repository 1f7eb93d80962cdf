"""Small all-convolutional network: stages of 3×3 convolutions, and a global average at the end."""

from typing import Annotated

from pydantic import Field
from torch import nn

from lineup.architectures import average_mirror, image_shape

Widths = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[Widths], Field(min_length=1)],
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    mirror: Annotated[bool, Field(strict=True)] = False,
) -> nn.Module:
    """Return convolutions per stage of `channels`, MaxPool 2 between stages, then Linear.

    The pooling stands right behind a stage's last convolution: norm and ReLU then cost a quarter.
    """
    depth, _, _ = image_shape("simplenet", shape, smallest=2 ** len(channels))
    layers: list[nn.Module] = []
    for number, widths in enumerate(channels, start=1):
        for position, features in enumerate(widths, start=1):
            layers.append(nn.Conv2d(depth, features, 3, padding=1, bias=False))
            if position == len(widths) and number < len(channels):
                layers.append(nn.MaxPool2d(2))
            layers += [
                nn.BatchNorm2d(features),
                nn.ReLU(inplace=True),
            ]  # in place: 6 % of a step, the same bits
            depth = features
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    model = nn.Sequential(*layers, nn.Linear(depth, outputs))
    return average_mirror(model) if mirror else model
