"""The dataset as uint8 tensors: found, downloaded or decoded, always verified."""

import os
import sys
from pathlib import Path

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lineup.cli import run


def main() -> None:
    """Write data/raw: the training and the test part of the dataset that params.yaml names."""
    from dataclasses import asdict

    import pandas as pd

    from lineup.data.dataset import FILES, RAW, Dataset
    from lineup.data.sources import read_source
    from lineup.files import sha256, write_json, write_tensors, write_text
    from lineup.params import load_params

    params = load_params()
    source = read_source(params.dataset, params.data)

    names = ("images", "labels") if source.task == "classification" else ("inputs", "targets")
    digests = {}
    for part in ("train", "test"):
        path = RAW / f"{part}.safetensors"
        write_tensors(path, dict(zip(names, getattr(source, part), strict=True)))
        digests[part] = sha256(path)
    shape = list(source.train[0].shape[1:])
    preprocessing = source.preprocessing.to_json() if source.preprocessing else None
    dataset = Dataset(
        params.dataset,
        source.task,
        source.classes,
        shape,
        digests,
        source.inputs,
        preprocessing,
        source.shared_files,
    )
    write_json(RAW / "dataset.json", asdict(dataset))
    table = pd.DataFrame(source.files, columns=["split", "index", "file", "label"])
    write_text(FILES, table.to_csv(index=False))

    kind = (
        f"{len(source.classes)} classes"
        if source.task == "classification"
        else f"{len(source.classes)} targets"
    )
    counts = f"{len(source.train[0]):,} training and {len(source.test[0]):,} test"
    print(
        f"{params.dataset}: {counts} {names[0]} of {' × '.join(map(str, shape))}, {kind} → {RAW}/"
    )
    if "DVC_STAGE" not in os.environ:
        print("Next: dvc repro")


if __name__ == "__main__":
    run(main)
