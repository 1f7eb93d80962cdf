"""The training and the validation split, with mean and standard deviation of the training split."""

import os

from lineup.cli import run
from lineup.files import sha256, write_json
from lineup.paths import INDICES, SAMPLES, SPLIT_JSON
from lineup.task import Task

SAMPLES_PER_CLASS = 10


def main() -> None:
    """Write data/split: indices, mean and standard deviation, a picture of samples."""
    from lineup.params import load_params

    settings = load_params().split

    import torch

    from lineup.data.dataset import Dataset, load
    from lineup.data.splitting import channel_statistics, stratified_split
    from lineup.evaluation.image_plots import draw_samples
    from lineup.evaluation.plots import draw_table
    from lineup.tensors import write_tensors

    dataset = Dataset.read()
    inputs, targets = load("train", dataset.task)

    if dataset.task is Task.CLASSIFICATION:
        names = dataset.classes, "validation", "split.validation"
        train, validation = stratified_split(targets, settings.validation, settings.seed, *names)
        mean, std = channel_statistics(inputs[train])
        samples = {
            name: inputs[train][targets[train] == label][:SAMPLES_PER_CLASS]
            for label, name in enumerate(dataset.classes)
        }
        draw_samples(samples, SAMPLES)
    else:
        train = validation = torch.arange(len(inputs))  # in-sample: every row is in both
        mean, std = torch.zeros(1), torch.ones(1)
        draw_table(inputs, targets, [*dataset.inputs, *dataset.classes], SAMPLES)

    tensors = {"train": train, "validation": validation.clone(), "mean": mean, "std": std}
    write_tensors(INDICES, tensors)
    content = {
        "train": len(train),
        "validation": len(validation),
        "seed": settings.seed,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "digest": sha256(INDICES),
    }
    write_json(SPLIT_JSON, content)
    counts = f"{len(train):,} for training, {len(validation):,} for validation"
    print(f"{dataset.name}: {counts}; see {SAMPLES}")
    if "DVC_STAGE" not in os.environ:
        print("Next: dvc repro")


if __name__ == "__main__":
    run(main)
