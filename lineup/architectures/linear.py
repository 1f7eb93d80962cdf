"""Softmax regression, or linear regression: one linear layer on the flattened input."""

import math

from torch import nn


def build(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return Linear(features, outputs)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))
