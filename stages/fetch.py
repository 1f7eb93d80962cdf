"""The dataset as uint8 tensors: found, downloaded or decoded, always verified."""

import os

from lineup.cli import run
from lineup.files import sha256, write_json, write_text
from lineup.params import load_params
from lineup.paths import DATASET_JSON, FILES_CSV, RAW, RAW_REPORT, raw
from lineup.process import end_with_parent
from lineup.task import Task


def main() -> None:
    """Write data/raw: the training and the test split of the dataset that params.yaml names."""
    params = load_params()
    end_with_parent()

    import pandas as pd

    from lineup.data.dataset import Dataset
    from lineup.data.findings import to_json
    from lineup.data.sources import read_source
    from lineup.tensors import write_tensors

    source = read_source(params.dataset, params.data)
    task = source.task

    DATASET_JSON.unlink(missing_ok=True)  # so that it never stands beside other tensors
    for split, (inputs, targets) in {"train": source.train, "test": source.test}.items():
        extra = source.extra if split == "train" else {}
        write_tensors(raw(split), {task.inputs: inputs, task.targets: targets, **extra})
    digests = {split: sha256(raw(split)) for split in ("train", "test")}
    preprocessing = source.preprocessing.to_json() if source.preprocessing else None
    dataset = Dataset(
        name=params.dataset,
        task=task,
        classes=source.classes,
        shape=list(source.train[0].shape[1:]),
        digests=digests,
        inputs=source.inputs,
        preprocessing=preprocessing,
        shared_files=source.shared_files,
    )
    write_json(DATASET_JSON, dataset.to_json())
    files = pd.DataFrame(source.files, columns=["split", "index", "file", "label"])
    write_text(FILES_CSV, files.to_csv(index=False))
    findings = source.findings()
    write_json(RAW_REPORT, to_json(findings))

    shape = " × ".join(map(str, dataset.shape))
    counts = f"{len(source.train[0]):,} training and {len(source.test[0]):,} test {task.inputs}"
    kind = "classes" if task is Task.CLASSIFICATION else "targets"
    print(f"{dataset.name}: {counts} of {shape}, {len(source.classes)} {kind} → {RAW}/")
    for finding in findings:
        print(f"look: {finding.text}")
    if "DVC_STAGE" not in os.environ:
        print("Next: dvc repro")


if __name__ == "__main__":
    run(main)
