"""Images that are the same, or nearly: none may be on both sides of a test."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lineup.errors import UserError, listed
from lineup.files import sha256
from lineup.tensors import Rows, chunks

THUMBNAIL = 8  # pixels a side, in which near copies are compared
NEAR = 3.0  # grey levels, root mean square, between the thumbnails of two near copies
BLANK = 4.0  # grey levels, standard deviation, of what shows nothing
MOST_COMPARED = 200_000_000  # pairs: about three seconds
ROWS_AT_ONCE = 1024


def find_equal_files(paths: Sequence[Path]) -> Tensor:
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


def find_equal_images(*parts: Tensor | Rows) -> Tensor:
    """Return for each image the index of the first equal one, int64 (N,).

    They may come in several tensors, uint8 (n, C, H, W); the indices count through all of them.
    """
    first: dict[bytes, int] = {}
    images = (image for part in parts for chunk in chunks(part) for image in chunk.numpy())
    digests = (hashlib.blake2b(image.tobytes(), digest_size=16) for image in images)
    originals = [first.setdefault(digest.digest(), i) for i, digest in enumerate(digests)]
    return torch.tensor(originals)


def find_tied_images(images: Tensor | Rows, groups: Tensor | None) -> Tensor:
    """Return for each image the index of the first equal one, int64 (N,), both on one side.

    Where there are groups, blank images, which all look alike, tie none of them together.
    """
    originals = find_equal_images(images)
    if groups is None:
        return originals
    own = torch.arange(len(originals))
    copies = (originals != own).nonzero().flatten().tolist()
    blank = [i for i in copies if images[i].float().flatten(1).std(1).max() < BLANK]
    return originals.index_copy(0, own[blank], own[blank])


def find_near_copies(images: Tensor | Rows, others: Tensor | Rows) -> Tensor | None:
    """Return which images (N, C, H, W) look nearly like one of `others`, bool (N,).

    Equal ones do not count, nor blank ones, which all look alike. None where there are too many.
    """
    if len(images) * len(others) > MOST_COMPARED:
        return None
    thumbnails, other_thumbnails = _thumbnails(images), _thumbnails(others)
    is_near = torch.zeros(len(images), dtype=torch.bool)
    for start in range(0, len(images), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        distances = torch.cdist(thumbnails[rows], other_thumbnails) / THUMBNAIL
        nearest, other = distances.min(1)
        for row in (nearest < NEAR).nonzero().flatten().tolist():
            is_near[start + row] = not torch.equal(images[start + row], others[int(other[row])])
    return is_near & (thumbnails.std(1) > BLANK)


def _thumbnails(images: Tensor | Rows) -> Tensor:
    """Return small grey versions, float32 (N, 64)."""
    batches = (chunk.float() for chunk in chunks(images))
    small = [functional.adaptive_avg_pool2d(batch, THUMBNAIL).mean(1) for batch in batches]
    return torch.cat(small).flatten(1)


def count_shared(paths: Sequence[Path], originals: Tensor, train_count: int, allowed: bool) -> int:
    """Return how many files of test/ are elsewhere, too; UserError names them unless `allowed`."""
    in_test = range(train_count, len(paths))
    shared = [index for index in in_test if originals[index] < train_count]
    pairs = [f"{paths[index]} = {paths[originals[index]]}" for index in shared]
    if pairs and not allowed:
        raise UserError(
            f"{len(pairs)} files of test/ are also in training or validation, byte for byte, so "
            "that the test would say nothing; remove them, or set data.allow_duplicates: true:"
            f"{listed(pairs, lines=True)}"
        )
    return len(pairs)
