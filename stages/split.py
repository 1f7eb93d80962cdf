"""The training and the validation split, with mean and standard deviation of the training split."""

import os

from lineup.cli import run
from lineup.files import write_json
from lineup.params import load_params
from lineup.paths import DATA_REPORT, INDICES, SAMPLES, SPLIT_JSON
from lineup.process import end_with_parent
from lineup.task import Task


def main() -> None:
    """Write data/split: indices, mean and standard deviation, what was found, pictures of both."""
    settings = load_params().split
    end_with_parent()

    from lineup.data.dataset import Dataset, split_digest
    from lineup.data.findings import to_json
    from lineup.data.validation import split_images, split_rows
    from lineup.evaluation.data_plots import draw_dataset
    from lineup.tensors import write_tensors

    dataset = Dataset.read()
    is_classification = dataset.task is Task.CLASSIFICATION
    split, findings = (split_images if is_classification else split_rows)(dataset, settings)
    draw_dataset(dataset, split["train"], findings)

    write_tensors(INDICES, split)
    data = dataset.digests["train"]
    content = {
        "train": len(split["train"]),
        "validation": len(split["validation"]),
        "seed": settings.seed,
        "mean": split["mean"].tolist(),
        "std": split["std"].tolist(),
        "digest": split_digest(data),
        "data": data,
    }
    write_json(SPLIT_JSON, content)
    write_json(DATA_REPORT, to_json(findings))

    counts = f"{content['train']:,} for training, {content['validation']:,} for validation"
    print(f"{dataset.name}: {counts}; see {SAMPLES}")
    if findings:
        print(f"{len(findings)} things to know about the data: {DATA_REPORT}, make report")
    if "DVC_STAGE" not in os.environ:
        print("Next: dvc repro")


if __name__ == "__main__":
    run(main)
