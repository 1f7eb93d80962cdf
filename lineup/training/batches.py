"""uint8 tensors → normalised float batches on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from lineup.data.dataset import load
from lineup.params import Augment
from lineup.task import Task
from lineup.tensors import Rows
from lineup.training.augmentation import augment
from lineup.training.draws import Purpose, draw_seed


class Batches:
    """The examples of one split, on the device, with the statistics that normalise them."""

    def __init__(self, inputs: Tensor | Rows, targets: Tensor, mean: Tensor, std: Tensor) -> None:
        """Take uint8 (N, C, H, W) or float32 (N, F), targets (N) or (N, T), mean and std (C,)."""
        self.inputs, self.targets = inputs, targets
        self.is_image = inputs.dtype == torch.uint8
        scale = 255.0 if self.is_image else 1.0
        self.mean = (mean * scale).view(1, -1, 1, 1).to(inputs.device)
        self.std = (std * scale).view(1, -1, 1, 1).to(inputs.device)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)

    def batch(self, index: Tensor | slice, changes: Augment | None = None) -> tuple[Tensor, Tensor]:
        """Return float32 inputs and targets; images augmented, normalised and channels-last."""
        inputs, targets = self.inputs[index], self.targets[index]
        if not self.is_image:
            return inputs, targets
        images = inputs.float()
        if changes is not None:
            images = augment(images, changes)
        images = images.sub_(self.mean).div_(self.std)
        return images.contiguous(memory_format=torch.channels_last), targets


def load_batches(
    task: Task, part: Tensor, mean: Tensor, std: Tensor, device: torch.device
) -> Batches:
    """Return the examples of data/raw/train whose numbers are `part`, int64 (n,)."""
    inputs, targets = load("train", task)
    return Batches(Rows(inputs, part).to(device), targets[part].to(device), mean, std)


def shuffle(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch, int64 (count,); it depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(draw_seed(seed, Purpose.ORDER, epoch))
    return torch.randperm(count, generator=generator)
