"""AlexNet (Krizhevsky et al., 2012) for small images: five convolutions, three linear layers."""

from typing import Annotated

from pydantic import Field
from torch import nn

from lineup.architectures import Count, Dropout, Switch, average_mirror, image_shape

POOLED = (0, 1, 4)  # the convolutions that are followed by pooling, as in the original


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: Annotated[list[Count], Field(min_length=5, max_length=5)],
    hidden: Count,
    dropout: Dropout = 0.5,
    mirror: Switch = False,
) -> nn.Module:
    """Return Conv → (MaxPool 2) → BatchNorm → ReLU ×5, Dropout → Linear → ReLU ×2, Linear."""
    depth, height, width = image_shape("alexnet", shape, smallest=8)
    layers: list[nn.Module] = []
    for index, features in enumerate(channels):
        kernel = 3 if index else 5
        layers.append(nn.Conv2d(depth, features, kernel, padding=kernel // 2, bias=False))
        if index in POOLED:
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.BatchNorm2d(features))
        layers.append(nn.ReLU(inplace=True))  # in place: 3 % of a step, the same bits
        depth = features
    layers.append(nn.Flatten())
    for inputs in (depth * (height // 8) * (width // 8), hidden):
        layers += [nn.Dropout(dropout), nn.Linear(inputs, hidden), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(hidden, outputs))
    return average_mirror(model) if mirror else model
