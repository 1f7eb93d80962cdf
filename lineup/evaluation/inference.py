"""Outputs of a model for many inputs, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lineup.tensors import Rows


def evaluation_batch(shape: Sequence[int]) -> int:
    """Return how many inputs of `shape` a model takes at once: large images fill the memory.

    1000 MNIST images at once take a fifth longer than 500.
    """
    return max(1, min(500, 2**20 // math.prod(shape)))


@torch.inference_mode()
def predict(
    module: Callable[[Tensor], Tensor], inputs: Tensor | Rows, batch_size: int | None = None
) -> Tensor:
    """Return the module's outputs, float32 (N, K), computed without gradients."""
    batch_size = batch_size or evaluation_batch(inputs.shape[1:])
    outputs = torch.empty(0)
    for start in range(0, len(inputs), batch_size):
        batch = module(inputs[start : start + batch_size])
        if start == 0:  # one block for all: small ones between large would fragment the heap
            outputs = batch.new_empty(len(inputs), *batch.shape[1:])
        outputs[start : start + batch_size] = batch
    return outputs
