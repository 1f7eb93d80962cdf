"""What a person should know of their data before they believe a number about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lineup.data.copies import BLANK, find_equal_images, find_near_copies
from lineup.errors import listed
from lineup.files import read_json
from lineup.tensors import Rows, chunks

FEW = 20  # images of a class, below which its scores are mostly chance
IMBALANCE = 10  # times the smallest class
TINY = 16  # pixels of a picture's longer side
SIZE_RANGE = 8  # times the smallest picture, leaving out a twentieth at either end
MOST_NAMED = 20  # files per finding


@dataclass(frozen=True)
class Finding:
    """One thing about the data, in a sentence."""

    kind: str
    text: str
    files: list[str] = field(default_factory=list)  # the first ones that it is about
    images: list[int] = field(default_factory=list)  # and of which training images


@dataclass(frozen=True)
class SplitImages:
    """The images of one split."""

    name: str  # as a sentence calls it
    images: Tensor | Rows  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    files: Sequence[str]  # a name each; empty where they have none

    def describe(self, index: int) -> str:
        """Return how a person finds an image."""
        return self.files[index] if self.files else f"{self.name} image {index}"


def read_findings(path: Path) -> list[Finding]:
    """Return the findings of a data report."""
    return [Finding(**finding) for finding in read_json(path)["findings"]]


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return a data report."""
    return {"findings": [asdict(finding) for finding in findings]}


def check_dataset(
    train: SplitImages, test: SplitImages, classes: Sequence[str], sizes: Sequence[tuple[int, int]]
) -> list[Finding]:
    """Return all that can be found before the validation split; `sizes` are of train, then test."""
    findings = check_classes(torch.cat([train.labels, test.labels]), classes)
    if sizes:
        findings += check_sizes(sizes, [*train.files, *test.files])
    return findings + check_images(train) + check_copies(train, test)


def check_classes(labels: Tensor, classes: Sequence[str]) -> list[Finding]:
    """Return what is wrong with the sizes of the classes; `labels` are those of all images."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    findings = []
    small = [f"{name}: {count}" for name, count in zip(classes, counts, strict=True) if count < FEW]
    if small:
        text = f"{len(small)} classes have fewer than {FEW} images: {listed(small, most=5)}"
        findings.append(Finding("small classes", text))
    most, least = max(counts), min(counts)
    if most > IMBALANCE * least:
        largest, smallest = classes[counts.index(most)], classes[counts.index(least)]
        text = (
            f"'{largest}' has {most:,} images and '{smallest}' {least:,}: "
            "accuracy says little about rare classes; look at macro F1 and per_class.csv"
        )
        findings.append(Finding("imbalance", text))
    return findings


def check_sizes(sizes: Sequence[tuple[int, int]], files: Sequence[str]) -> list[Finding]:
    """Return what is wrong with the widths and heights of the pictures."""
    findings = []
    longer = torch.tensor([max(size) for size in sizes])
    tiny = (longer < TINY).nonzero().flatten().tolist()
    if tiny:
        text = f"{len(tiny)} pictures have fewer than {TINY} pixels a side"
        findings.append(Finding("tiny", text, [files[i] for i in tiny[:MOST_NAMED]]))
    ordered = longer.sort().values
    low, high = (int(ordered[round(part * (len(ordered) - 1))]) for part in (0.05, 0.95))
    if high > SIZE_RANGE * low:
        text = f"sizes differ widely: from {low} to {high} pixels, and 5 % beyond at either end"
        findings.append(Finding("sizes", text))
    return findings


def check_images(train: SplitImages) -> list[Finding]:
    """Return what is wrong within the training images: blank ones, copies under two labels."""
    findings = []
    planes = (chunk.flatten(2).float() for chunk in chunks(train.images))  # (n, C, H·W)
    is_blank = torch.cat([plane.std(2).amax(1) < BLANK for plane in planes])
    blank = is_blank.nonzero().flatten().tolist()
    if blank:
        text = f"{len(blank)} {train.name} images are blank: one colour, or nearly"
        findings.append(_finding("blank", text, train, blank))
    originals = find_equal_images(train.images)
    contradictory = train.labels != train.labels[originals]
    if contradictory.any():
        rows = contradictory.nonzero().flatten().tolist()
        text = f"{len(rows)} {train.name} images are copies of others with another label"
        pairs = [f"{train.describe(i)} = {train.describe(int(originals[i]))}" for i in rows]
        findings.append(Finding("two labels", text, pairs[:MOST_NAMED], _pairs(rows, originals)))
    return findings


def _pairs(rows: Sequence[int], originals: Tensor) -> list[int]:
    return [index for row in rows[: MOST_NAMED // 2] for index in (int(originals[row]), row)]


def check_copies(train: SplitImages, others: SplitImages) -> list[Finding]:
    """Return which images of the other split are, or nearly are, training images too."""
    count = len(train.images)
    originals = find_equal_images(train.images, others.images)[count:]
    findings = []
    equal = (originals < count).nonzero().flatten().tolist()
    if equal:
        text = f"{len(equal)} {others.name} images are copies of {train.name} images"
        first = [int(originals[i]) for i in equal]
        pairs = zip(equal, first, strict=True)
        files = [f"{others.describe(i)} = {train.describe(j)}" for i, j in pairs]
        kind = f"copies in {others.name}"
        findings.append(Finding(kind, text, files[:MOST_NAMED], first[:MOST_NAMED]))
    near = find_near_copies(others.images, train.images)
    kind = f"near copies in {others.name}"
    if near is None and others.files:
        text = f"near copies of {train.name} images in {others.name}: too many to look for"
        findings.append(Finding(kind, text))
    elif near is not None and near.any():
        rows = near.nonzero().flatten().tolist()
        text = f"{len(rows)} {others.name} images look nearly like a {train.name} image (a hint)"
        if others.files:
            text += ": if they show the same thing, data.group keeps it on one side"
        findings.append(Finding(kind, text, [others.describe(i) for i in rows[:MOST_NAMED]]))
    return findings


def check_groups(groups: Tensor, others: Tensor, name: str) -> list[Finding]:
    """Return what is wrong with given splits: groups, int64 (N,), that are in training and `name`.

    Splits that we draw have none.
    """
    count = int(torch.isin(others, groups).sum())
    if not count:
        return []
    text = f"{count} {name} images are of a group (data.group) that is in training too"
    return [Finding(f"groups in {name}", text)]


def check_linked_folders(folder: Path, paths: Sequence[Path]) -> list[Finding]:
    """Return which folders within a set are links: DVC sees no change behind them."""
    own = {path.parent for path in paths}
    inside = {place for each in own for place in (each, *each.parents) if folder in place.parents}
    links = sorted(place for place in inside if place.is_symlink())
    if not links:
        return []
    text = (
        f"{listed(links, most=3)}: links to folders, behind which DVC sees no change; after a "
        "change there: dvc repro --force fetch && dvc repro"
    )
    return [Finding("links", text, [str(link) for link in links[:MOST_NAMED]])]


def _finding(kind: str, text: str, split: SplitImages, rows: Sequence[int]) -> Finding:
    rows = list(rows[:MOST_NAMED])
    return Finding(kind, text, [split.describe(i) for i in rows], rows)
