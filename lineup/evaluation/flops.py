"""The computation that a training takes, counted rather than timed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(model: nn.Module, shape: Sequence[int]) -> int:
    """Return the floating-point operations of a step on one example: forward and backward."""
    network = copy.deepcopy(model).train()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, *shape)).sum().backward()  # norms need two
    return counter.get_total_flops() // 2
