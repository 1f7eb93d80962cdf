"""Stratified splits, and the statistics of a training split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from torch import Tensor

from lineup.errors import UserError

Indices = tuple[Tensor, Tensor]  # of the rest and of what was drawn, int64, each ascending


@dataclass(frozen=True)
class Draw:
    """What is drawn at random, with the words for the error about a class with too few images."""

    split: str  # test or validation
    key: str  # its setting in params.yaml
    fraction: float
    seed: int
    in_test: Sequence[int] = ()  # images per class that the test has taken already


def stratified_split(
    labels: Tensor,
    draw: Draw,
    classes: Sequence[str],
    originals: Tensor | None = None,
    groups: Tensor | None = None,
) -> Indices:
    """Split 0…N-1 at random, stratified by `labels` int64 (N,).

    Images of one group, int64 (N,), are on one side, and so are copies: `originals`, int64 (N,),
    holds the index of the first of each. UserError names a class with too few images for that.
    """
    if originals is None:
        originals = torch.arange(len(labels))
    if groups is not None:
        drawn = _draw_groups(labels, _join(groups, originals), draw)
    else:
        firsts = originals.unique()
        drawn = torch.isin(originals, firsts[_draw_images(labels[firsts], draw, classes)])
    indices = (~drawn).nonzero().flatten(), drawn.nonzero().flatten()
    if min(len(labels[side].unique()) for side in indices) < len(classes):
        raise _too_few(labels, draw, classes)
    return indices


def _draw_images(labels: Tensor, draw: Draw, classes: Sequence[str]) -> Tensor:
    numbers = range(len(labels))
    try:
        _, drawn = train_test_split(
            numbers, test_size=draw.fraction, random_state=draw.seed, stratify=labels.numpy()
        )
    except ValueError:
        raise _too_few(labels, draw, classes) from None
    return torch.tensor(drawn)


def _draw_groups(labels: Tensor, groups: Tensor, draw: Draw) -> Tensor:
    """Return which images are drawn, bool (N,): the fold with most classes, then best in size."""
    folds = max(2, round(1 / draw.fraction))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=draw.seed)
    candidates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rare classes: we look at each fold
        for rest, drawn in splitter.split(np.zeros(len(labels)), labels.numpy(), groups.numpy()):
            present = min(len(labels[torch.from_numpy(side)].unique()) for side in (rest, drawn))
            excess = abs(len(drawn) / len(labels) - draw.fraction)
            candidates.append((-present, excess, drawn))
    _, _, drawn = min(candidates, key=lambda candidate: candidate[:2])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.from_numpy(drawn)] = True
    return chosen


def _join(groups: Tensor, originals: Tensor) -> Tensor:
    """Return groups that also hold together what is connected by copies."""
    count = len(groups)
    firsts = torch.full((int(groups.max()) + 1,), count).scatter_reduce(
        0, groups, torch.arange(count), "amin"
    )
    rows = np.concatenate([np.arange(count), np.arange(count)])
    columns = np.concatenate([firsts[groups].numpy(), originals.numpy()])
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, joined = connected_components(graph, directed=False)
    return torch.from_numpy(joined).long()


def _too_few(labels: Tensor, draw: Draw, classes: Sequence[str]) -> UserError:
    counts = torch.bincount(labels, minlength=len(classes))
    smallest = int(counts.argmin())
    count = int(counts[smallest])
    taken = draw.in_test[smallest] if draw.in_test else 0
    where = f", {taken} of them in the test" if taken else ""
    return UserError(
        f"class '{classes[smallest]}' has {count + taken} images{where}: too few for a "
        f"{draw.split} split of {draw.fraction:.0%} in which every class occurs; add images, or "
        f"change {draw.key} in params.yaml"
    )


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std per channel, float32 (C,), of uint8 (N, C, H, W), in pixel / 255."""
    values = torch.arange(256, dtype=torch.float64) / 255
    channels = range(images.shape[1])
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in channels])
    weights = counts / counts.sum(dim=1, keepdim=True, dtype=torch.float64)
    mean = weights @ values
    std = (weights * (values - mean.unsqueeze(1)) ** 2).sum(dim=1).sqrt()
    return mean.float(), std.where(std > 0, 1).float()  # a channel of one value is left at zero
