"""Stratified splits, and the statistics of a training split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from torch import Tensor

from lineup.errors import UserError
from lineup.tensors import Rows, chunks

MOST_FOLDS = 20  # of groups; a finer fraction takes longer than it is worth
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
    units = find_units(originals, groups)
    draw_units = _draw_images if groups is None else _draw_groups
    drawn = draw_units(labels, units, draw)
    sides = labels[~drawn], labels[drawn]
    absent = [i for i in range(len(classes)) if not all((side == i).any() for side in sides)]
    if absent:
        raise _too_few(labels, units, absent, draw, classes)
    return (~drawn).nonzero().flatten(), drawn.nonzero().flatten()


def _draw_images(labels: Tensor, originals: Tensor, draw: Draw) -> Tensor:
    """Return which images are drawn, bool (N,), copies with their original; none if too few."""
    firsts = originals.unique()
    numbers, some = range(len(firsts)), labels[firsts].numpy()
    try:
        _, drawn = train_test_split(
            numbers, test_size=draw.fraction, random_state=draw.seed, stratify=some
        )
    except ValueError:
        drawn = []
    return torch.isin(originals, firsts[torch.tensor(drawn, dtype=torch.long)])


def _draw_groups(labels: Tensor, groups: Tensor, draw: Draw) -> Tensor:
    """Return which images are drawn, bool (N,): neighbouring folds, as many as the fraction takes.

    Of all such choices the one with most classes on both sides wins, then the one best in size.
    Where a side lacks a class, a group of that class moves there.
    """
    part = Fraction(draw.fraction).limit_denominator(MOST_FOLDS)
    most = min(int(torch.bincount(labels).max()), len(groups.unique()))
    folds = min(max(2, part.denominator), most)
    if part in (0, 1):
        folds = min(MOST_FOLDS, most)
    if folds < 2:
        return torch.zeros(len(labels), dtype=torch.bool)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=draw.seed)
    fold_of = torch.empty(len(labels), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of rare classes: we look at each choice
        pairs = splitter.split(np.zeros(len(labels)), labels.numpy(), groups.numpy())
        for number, (_, rows) in enumerate(pairs):
            fold_of[torch.from_numpy(rows)] = number
    count = min(max(1, round(draw.fraction * folds)), folds - 1)
    choices = [(fold_of - start) % folds < count for start in range(folds)]

    def badness(drawn: Tensor) -> tuple[int, float]:
        present = min(len(labels[side].unique()) for side in (drawn, ~drawn))
        return -present, abs(drawn.double().mean().item() - draw.fraction)

    return _with_all_classes(min(choices, key=badness), labels, groups)


def _with_all_classes(drawn: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Move the smallest group of each class that a side lacks, if the other keeps its classes."""
    for side, label in product((True, False), labels.unique()):
        if (drawn[labels == label] == side).any():
            continue
        members, sizes = groups[labels == label].unique(return_counts=True)
        for group in members[sizes.argsort(stable=True)]:
            moved = torch.where(groups == group, side, drawn)
            if set(labels[drawn != side].tolist()) == set(labels[moved != side].tolist()):
                drawn = moved
                break
    return drawn


def find_units(originals: Tensor, groups: Tensor | None) -> Tensor:
    """Return a number per image, int64 (N,), equal where copies or groups must be on one side.

    Without groups it is the index of each image's original.
    """
    if groups is None:
        return originals
    count = len(groups)
    firsts = torch.full((int(groups.max()) + 1,), count).scatter_reduce(
        0, groups, torch.arange(count), "amin"
    )
    rows = np.concatenate([np.arange(count), np.arange(count)])
    columns = np.concatenate([firsts[groups].numpy(), originals.numpy()])
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, joined = connected_components(graph, directed=False)
    return torch.from_numpy(joined).long()


def _too_few(
    labels: Tensor, units: Tensor, absent: Sequence[int], draw: Draw, classes: Sequence[str]
) -> UserError:
    """Return an error about the class of `absent` that can be divided least."""
    parts = {label: len(units[labels == label].unique()) for label in absent}
    label = min(absent, key=lambda label: parts[label])
    count = int((labels == label).sum())
    taken = draw.in_test[label] if draw.in_test else 0
    where = f", {taken} of them in the test" if taken else ""
    if 0 < parts[label] < count:
        what = f"{parts[label]} that may be apart (copies, and groups of data.group, stay together)"
        where += f", {what}"
    advice = f"add images, or change {draw.key} in params.yaml"
    if parts[label] < 2:
        advice = "add images: one for each of training, validation and test is the least"
    return UserError(
        f"class '{classes[label]}' has {count + taken} images{where}: too few for a "
        f"{draw.split} split of {100 * draw.fraction:.3g}% in which every class occurs; {advice}"
    )


def channel_statistics(images: Tensor | Rows) -> tuple[Tensor, Tensor]:
    """Return mean and std per channel, float32 (C,), of uint8 (N, C, H, W), in pixel / 255."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(images.shape[1], 256, dtype=torch.long)
    for chunk in chunks(images):
        for own, channel in zip(counts, chunk.unbind(1), strict=True):
            own += torch.bincount(channel.flatten(), minlength=256)
    weights = counts / counts.sum(dim=1, keepdim=True, dtype=torch.float64)
    mean = weights @ values
    variance = (weights * (values - mean.unsqueeze(1)) ** 2).sum(dim=1)
    std = torch.from_numpy(np.sqrt(variance.numpy()))  # torch's rounds by the kind of processor
    return mean.float(), std.where(std > 0, 1).float()  # a channel of one value is left at zero
