"""What fetch and split wrote in the current folder, in short words."""

import torch

from lineup.data.dataset import Dataset, Split, split_digest
from lineup.data.dataset import load as load_split_of_task
from lineup.files import sha256, write_json, write_text
from lineup.paths import DATA_REPORT, DATASET_JSON, FILES_CSV, INDICES, RAW_REPORT, SPLIT_JSON, raw
from lineup.task import Task
from lineup.tensors import write_tensors

describe = Dataset.read
load_split = Split.read


def load(split):
    """Return inputs and targets of the train or test split."""
    return load_split_of_task(split, Dataset.read().task)


def write_dataset(name, task, classes, **splits):
    """Write data/raw as fetch does; `splits` maps train and test to inputs and targets."""
    task = Task(task)
    for split, (inputs, targets) in splits.items():
        write_tensors(raw(split), {task.inputs: inputs, task.targets: targets})
    digests = {split: sha256(raw(split)) for split in splits}
    shape = list(next(iter(splits.values()))[0].shape[1:])
    write_json(DATASET_JSON, Dataset(name, task, classes, shape, digests).to_json())
    write_text(FILES_CSV, "split,index,file,label\n")
    write_json(RAW_REPORT, {"findings": []})


def write_split(count):
    """Write data/split as split does: every fifth example is for validation."""
    numbers = torch.arange(count)
    is_validation = numbers % 5 == 0
    tensors = {"train": numbers[~is_validation], "validation": numbers[is_validation]}
    statistics = {"mean": torch.tensor([0.3]), "std": torch.tensor([0.35])}
    write_tensors(INDICES, tensors | statistics)
    data = Dataset.read().digests["train"]
    write_json(SPLIT_JSON, {"digest": split_digest(data), "data": data})
    write_json(DATA_REPORT, {"findings": []})
