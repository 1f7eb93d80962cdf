"""uint8 tensors → normalised float batches on the device, shuffled and augmented as whole batches."""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lineup.params import Augment


class Batches:
    """The examples of one part of a dataset, on the device, with the statistics that normalise them."""

    def __init__(self, inputs: Tensor, targets: Tensor, mean: Tensor, std: Tensor) -> None:
        """Take images uint8 (N, C, H, W) or features float32 (N, F), targets (N) or (N, T), and mean and std (C,)."""
        self.inputs, self.targets = inputs, targets
        self.is_image = inputs.dtype == torch.uint8
        scale = 255.0 if self.is_image else 1.0
        self.mean = (mean * scale).view(1, -1, 1, 1).to(inputs.device)
        self.std = (std * scale).view(1, -1, 1, 1).to(inputs.device)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.inputs)

    def batch(self, index: Tensor | slice, augment: Augment | None = None) -> tuple[Tensor, Tensor]:
        """Return float32 inputs and their targets; images come augmented, normalised and channels-last."""
        inputs, targets = self.inputs[index], self.targets[index]
        if not self.is_image:
            return inputs, targets
        images = inputs.float()
        if augment is not None:
            images = augmented(images, augment)
        images = images.sub_(self.mean).div_(self.std)
        return images.contiguous(memory_format=torch.channels_last), targets


class Purpose(IntEnum):
    """What random numbers are drawn for; each purpose has its own streams."""

    WEIGHTS = 0
    ORDER = 1
    STEP = 2


def draw_seed(seed: int, purpose: Purpose, number: int) -> int:
    """Return a generator's seed (64 bits) for one draw; `seed` and `number` are below 2**32.

    All three reach its low 32 bits: torch's CPU generator takes no others, CUDA's takes all 64.
    """
    words = np.array((seed, purpose, number), dtype=np.uint32)  # always three: (5,) equals (5, 0)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch: a permutation int64 (count,) that depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(draw_seed(seed, Purpose.ORDER, epoch))
    return torch.randperm(count, generator=generator)


def augmented(images: Tensor, settings: Augment) -> Tensor:
    """Return float images (N, C, H, W) changed at random, each on its own, as `settings` say."""
    if settings.rotate or settings.shift or settings.scale or settings.shear:
        images = warped(images, settings)
    if settings.flip:
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    if settings.erase:
        images = erased(images, settings.erase)
    return images


def warped(images: Tensor, settings: Augment) -> Tensor:
    """Return images turned, shifted, scaled and sheared by one random affine map each; the border goes on outwards."""
    count, device = len(images), images.device

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, device=device) * 2 - 1) * limit

    angle = uniform(math.radians(settings.rotate))
    scale = 1 + uniform(settings.scale, 2)
    shear = uniform(settings.shear)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(
        count, 2, 2
    )
    stretch = torch.diag_embed(scale)
    stretch[:, 0, 1] = shear
    shift = uniform(2 * settings.shift, 2, 1)  # the grid spans -1 to 1
    plain = functional.affine_grid(
        torch.eye(2, 3, device=device)[None], [1, *images.shape[1:]], align_corners=False
    )
    # One product for all images: affine_grid itself makes one per image, and takes five times as long.
    grid = torch.addmm(
        shift.view(-1, 1), (rotation @ stretch).view(-1, 2), plain.view(-1, 2).T
    )  # (N·2, H·W)
    grid = grid.view(count, 2, *images.shape[2:]).permute(0, 2, 3, 1)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def erased(images: Tensor, probability: float) -> Tensor:
    """Return images of which some have a random rectangle blanked (random erasing, Zhong et al., 2017).

    The rectangle covers 2 to 33 % of the area, its sides have a ratio of 0.3 to 3.3; it takes the image's own mean.
    """
    count, _, height, width = images.shape
    device = images.device
    area = torch.empty(count, device=device).uniform_(0.02, 0.33)
    ratio = torch.empty(count, device=device).uniform_(math.log(0.3), math.log(3.3)).exp()
    half_height, half_width = (area * ratio).sqrt() * height / 2, (area / ratio).sqrt() * width / 2
    middle = torch.rand(2, count, device=device)
    rows = (
        torch.arange(height, device=device) + 0.5 - middle[0, :, None] * height
    ).abs() < half_height[:, None]
    columns = (
        torch.arange(width, device=device) + 0.5 - middle[1, :, None] * width
    ).abs() < half_width[:, None]
    chosen = torch.rand(count, device=device) < probability
    blank = (rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]).unsqueeze(1)
    return torch.where(blank, images.mean((1, 2, 3), keepdim=True), images)
