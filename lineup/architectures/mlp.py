"""Multi-layer perceptron; with hidden: [256] the 784-256-10 network of the MNIST tutorials."""

import math
from typing import Literal

from torch import nn

from lineup.architectures import Dropout, Widths

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "silu": nn.SiLU}


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    hidden: Widths,
    activation: Literal["relu", "sigmoid", "gelu", "silu"] = "relu",
    batch_norm: bool = True,
    dropout: Dropout = 0.0,
) -> nn.Module:
    """Return Linear → (BatchNorm) → activation → (Dropout) per hidden width, then Linear."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for units in hidden:
        layers.append(nn.Linear(width, units, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(units))
        layers.append(ACTIVATIONS[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = units
    return nn.Sequential(*layers, nn.Linear(width, outputs))
