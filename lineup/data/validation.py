"""The validation split of a dataset, and what there is to know about it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lineup.data.copies import find_tied_images
from lineup.data.dataset import Dataset, load, made_by
from lineup.data.file_table import read_files
from lineup.data.findings import Finding, SplitImages, check_copies, check_groups, read_findings
from lineup.data.splitting import Draw, channel_statistics, stratified_split
from lineup.files import explain_damage
from lineup.params import Split
from lineup.paths import FILES_CSV, RAW_REPORT, raw
from lineup.tensors import Rows, read_tensors

Result = tuple[dict[str, Tensor], list[Finding]]  # tensors of indices.safetensors


def split_images(dataset: Dataset, settings: Split) -> Result:
    """Split training images, as their folders say or else at random."""
    tensors = read_tensors(made_by("fetch", raw("train")))
    images, labels = tensors["images"], tensors["labels"]
    if "validation" in tensors:
        is_validation = tensors["validation"].bool()
        train, validation = (mask.nonzero().flatten() for mask in (~is_validation, is_validation))
    else:
        in_test = _count_test(dataset.classes)
        draw = Draw("validation", "split.validation", settings.validation, settings.seed, in_test)
        groups = tensors.get("groups")
        originals = find_tied_images(images, groups)
        train, validation = stratified_split(labels, draw, dataset.classes, originals, groups)
    mean, std = channel_statistics(Rows(images, train))

    splits = {"training": train, "validation": validation}
    findings = read_findings(made_by("fetch", RAW_REPORT))
    findings += check_copies(*(_choose(name, splits[name], tensors) for name in splits))
    if (groups := tensors.get("groups")) is not None:
        findings += check_groups(groups[train], groups[validation], "validation")
    return {"train": train, "validation": validation, "mean": mean, "std": std}, findings


def split_rows(dataset: Dataset, settings: Split) -> Result:
    """Use every row of a regression for both: it is scored in-sample, as the tutorials do."""
    inputs, _ = load("train", dataset.task)
    rows = torch.arange(len(inputs))
    tensors = {"mean": torch.zeros(1), "std": torch.ones(1)}
    return {"train": rows, "validation": rows.clone()} | tensors, []


def _count_test(classes: Sequence[str]) -> list[int]:
    """Return how many pictures of each class the test has."""
    counts = read_files("test")["label"].value_counts()
    return [int(counts.get(name, 0)) for name in classes]


def _choose(name: str, rows: Tensor, tensors: dict[str, Tensor]) -> SplitImages:
    names = read_files("train")["file"].tolist()
    with explain_damage(FILES_CSV):  # one that was cut off has fewer rows
        chosen = [names[row] for row in rows.tolist()] if names else []
    return SplitImages(name, Rows(tensors["images"], rows), tensors["labels"][rows], chosen)
