"""Files of equal bytes: none may be on both sides of the test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lineup.data.splitting import stratified_split
from lineup.errors import UserError, listed
from lineup.files import sha256

TEST_SEED = 0


def find_originals(paths: Sequence[Path]) -> Tensor:
    """Return for each file the index of the first one with the same bytes, int64 (N,)."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        if path.is_file():
            by_size[path.stat().st_size].append(index)
    originals = list(range(len(paths)))
    for indices in by_size.values():
        first: dict[str, int] = {}
        for index in indices if len(indices) > 1 else []:
            originals[index] = first.setdefault(sha256(paths[index]), index)
    return torch.tensor(originals)


def hold_out(
    labels: Tensor, originals: Tensor, classes: Sequence[str], fraction: float
) -> tuple[Tensor, Tensor]:
    """Return the indices of train and test, stratified; all copies of a file are on one side."""
    distinct = originals.unique()
    missing = sorted(set(range(len(classes))) - set(labels[distinct].tolist()))
    if missing:
        name = classes[missing[0]]
        raise UserError(f"every file of class '{name}' is a copy of another class's, byte for byte")
    _, drawn = stratified_split(labels[distinct], fraction, TEST_SEED, classes, "test", "data.test")
    is_test = torch.isin(originals, distinct[drawn])
    return (~is_test).nonzero().flatten(), is_test.nonzero().flatten()


def count_shared(paths: Sequence[Path], originals: Tensor, train_count: int, allowed: bool) -> int:
    """Return how many files of test/ are also in train/; UserError names them unless `allowed`."""
    in_test = range(train_count, len(paths))
    shared = [index for index in in_test if originals[index] < train_count]
    pairs = [f"{paths[index]} = {paths[originals[index]]}" for index in shared]
    if pairs and not allowed:
        raise UserError(
            f"{len(pairs)} files of test/ are also in train/, byte for byte, so that the test "
            "would say nothing; remove them, or set data.allow_duplicates: true:"
            f"{listed(pairs, lines=True)}"
        )
    return len(pairs)
