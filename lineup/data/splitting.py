"""Stratified splits, and the statistics of a training split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from lineup.errors import UserError


def stratified_split(
    labels: Tensor, fraction: float, seed: int, classes: Sequence[str], split: str, key: str
) -> tuple[Tensor, Tensor]:
    """Split 0…N-1 at random, stratified by `labels` int64 (N,), into (rest, drawn), each ascending.

    `split` and `key` name what is drawn and its setting in the UserError about a class with too
    few images for it.
    """
    counts = torch.bincount(labels, minlength=len(classes))
    smallest = int(counts.argmin())
    too_few = UserError(
        f"class '{classes[smallest]}' has {counts[smallest]} images: too few for a {split} split "
        f"of {fraction:.0%} in which every class occurs; add images, or change {key} in params.yaml"
    )
    numbers = range(len(labels))
    try:
        splits = train_test_split(
            numbers, test_size=fraction, random_state=seed, stratify=labels.numpy()
        )
    except ValueError:
        raise too_few from None
    rest, drawn = (torch.tensor(sorted(indices)) for indices in splits)
    if min(len(labels[indices].unique()) for indices in (rest, drawn)) < len(classes):
        raise too_few
    return rest, drawn


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std per channel, float32 (C,), of uint8 (N, C, H, W), in pixel / 255."""
    values = torch.arange(256, dtype=torch.float64) / 255
    channels = range(images.shape[1])
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in channels])
    weights = counts / counts.sum(dim=1, keepdim=True, dtype=torch.float64)
    mean = weights @ values
    std = (weights * (values - mean.unsqueeze(1)) ** 2).sum(dim=1).sqrt()
    return mean.float(), std.where(std > 0, 1).float()  # a channel of one value is left at zero
