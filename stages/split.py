"""The training and the validation part, with mean and standard deviation of the training part."""

import os
import sys
from pathlib import Path

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from typing import TYPE_CHECKING

from lineup.cli import run

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 10  # images per class in the picture


def main() -> None:
    """Write data/split: indices of both parts, mean and standard deviation, a picture of samples."""
    import torch

    from lineup.data.dataset import SPLIT, describe, draw_part, load
    from lineup.evaluation import plots as figures
    from lineup.files import sha256, write_json, write_tensors
    from lineup.params import load_params

    settings = load_params().split
    dataset = describe()
    inputs, targets = load("train")

    picture = SPLIT / "samples.png"
    if dataset.task == "classification":
        train, validation = draw_part(
            targets,
            settings.validation,
            settings.seed,
            dataset.classes,
            "validation",
            "split.validation",
        )
        mean, std = measure(inputs[train])
        figures.draw_samples(pick_samples(inputs[train], targets[train], dataset.classes), picture)
    else:
        train, validation = (
            torch.arange(len(inputs)),
            torch.arange(len(inputs)),
        )  # in-sample: all rows are both
        mean, std = torch.zeros(1), torch.ones(1)
        figures.draw_table(inputs, targets, [*dataset.inputs, *dataset.classes], picture)

    indices = SPLIT / "indices.safetensors"
    write_tensors(indices, {"train": train, "validation": validation, "mean": mean, "std": std})
    write_json(
        SPLIT / "split.json",
        {
            "train": len(train),
            "validation": len(validation),
            "seed": settings.seed,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "digest": sha256(indices),
        },
    )
    print(
        f"{dataset.name}: {len(train):,} for training, {len(validation):,} for validation; see {picture}"
    )
    if "DVC_STAGE" not in os.environ:
        print("Next: dvc repro")


def measure(images: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return mean and standard deviation per channel, float32 (C,), of uint8 (N, C, H, W), in units of pixel / 255."""
    import torch

    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
    )
    weights = counts / counts.sum(dim=1, keepdim=True, dtype=torch.float64)
    mean = weights @ values
    std = (weights * (values - mean.unsqueeze(1)) ** 2).sum(dim=1).sqrt()
    return mean.float(), std.where(
        std > 0, 1
    ).float()  # a channel of one value only is left at zero


def pick_samples(images: "Tensor", labels: "Tensor", classes: "list[str]") -> "dict[str, Tensor]":
    """Return the first training images of each class by its name."""
    return {
        name: images[(labels == label).nonzero().flatten()[:SAMPLES]]
        for label, name in enumerate(classes)
    }


if __name__ == "__main__":
    run(main)
