"""Pictures of a data set: some of each class, and what stands out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lineup.data.dataset import Dataset, load
from lineup.data.findings import Finding
from lineup.evaluation.image_plots import draw_samples
from lineup.evaluation.plot_style import draw_message
from lineup.evaluation.plots import draw_table
from lineup.paths import FINDINGS_PNG, SAMPLES
from lineup.task import Task
from lineup.tensors import Rows

SAMPLES_PER_CLASS = 10


def draw_dataset(dataset: Dataset, rows: Tensor, findings: Sequence[Finding]) -> None:
    """Draw samples of the training split, whose indices are `rows`, and each finding's images."""
    inputs, targets = load("train", dataset.task)
    if dataset.task is Task.REGRESSION:
        draw_table(inputs, targets, [*dataset.inputs, *dataset.classes], SAMPLES)
        draw_message("No images", FINDINGS_PNG)
        return
    draw_samples(_choose_samples(Rows(inputs, rows), targets[rows], dataset.classes), SAMPLES)
    found = {finding.kind: inputs[finding.images] for finding in findings if finding.images}
    if found:
        draw_samples(found, FINDINGS_PNG)
    else:
        draw_message("No image stands out", FINDINGS_PNG)


def _choose_samples(images: Rows, labels: Tensor, classes: Sequence[str]) -> dict[str, Tensor]:
    """Return images of every class, from all over it: neighbours are often of one kind."""
    samples = {}
    for label, name in enumerate(classes):
        rows = (labels == label).nonzero().flatten()
        count = min(SAMPLES_PER_CLASS, len(rows))
        samples[name] = images[rows[torch.linspace(0, len(rows) - 1, count).long()]]
    return samples
