"""Projects in the current folder that are ready to be evaluated, on scikit-learn's digits (8 × 8)."""

from pathlib import Path

import torch
import yaml
from sklearn.datasets import load_digits

from helpers.datasets import describe, load_split, write_dataset, write_split
from helpers.models import write_model
from helpers.project import ROOT
from lineup import architectures
from lineup.files import write_text

CLASSES = [
    "zero",
    "one & only",
    "two",
    "trois",
    "четыре",
    "五",
    "$six$",
    "seven",
    "<b>eight</b>",
    'nine, "9"',
]
FACTS = {"dataset": "digits", "mean": [0.3], "std": [0.35]}


def enter(folder, patch):
    """Work in a folder, without tracking."""
    patch.setenv("LINEUP_TRACKING", "off")
    patch.setenv("DVC_ROOT", str(folder))
    patch.chdir(folder)


def digits():
    """Return images uint8 (N, 1, 8, 8) and labels."""
    data = load_digits()
    images = torch.from_numpy(data.images * 15.9).to(torch.uint8).unsqueeze(1)
    return images, torch.from_numpy(data.target)


def write_project(names, task, classes, inputs, targets):
    """Write params.yaml and the data of fetch and split."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"architectures": names, "model": names[0]}
    write_text(Path("params.yaml"), yaml.safe_dump(params))
    write_dataset("digits", task, classes, train=(inputs, targets), test=(inputs, targets))
    write_split(len(inputs))


def nearest_mean(images, labels):
    """Return a softmax regression whose weights are known: the nearest class mean."""
    inputs = (images.float() / 255 - 0.3).flatten(1) / 0.35
    means = torch.stack([inputs[labels == label].mean(0) for label in range(len(CLASSES))])
    network = architectures.build("linear", images.shape[1:], len(CLASSES), {})
    network.load_state_dict({"1.weight": means / 8, "1.bias": -means.square().sum(1) / 16})
    return network


def write_digits():
    """Write a project with a good linear model and an untrained mlp."""
    images, labels = digits()
    torch.manual_seed(0)
    write_project(["mlp", "linear"], "classification", CLASSES, images, labels)
    facts = FACTS | {"classes": CLASSES, "shape": [1, 8, 8]}
    facts |= {"data": describe().digests, "split": load_split().digest}
    mlp = {"hyperparameters": {"hidden": [16]}, "architecture": "mlp"}
    untrained = architectures.build("mlp", (1, 8, 8), 10, {"hidden": [16]})
    write_model("models/mlp", untrained, **facts, **mlp)
    write_model("models/linear", nearest_mean(images, labels), **facts, epoch=2)


def write_regression():
    """Write a project with the least-squares solution of the yields."""
    inputs = torch.tensor(
        [[73.0, 67, 43], [91, 88, 64], [87, 134, 58], [102, 43, 37], [69, 96, 70]]
    )
    targets = torch.tensor([[56.0, 70], [81, 101], [119, 133], [22, 37], [103, 119]])
    write_project(["linear"], "regression", ["apples", "oranges"], inputs, targets)
    network = architectures.build("linear", (3,), 2, {})
    solution = torch.linalg.lstsq(torch.cat([inputs, torch.ones(5, 1)], 1), targets).solution
    network.load_state_dict({"1.weight": solution[:3].T, "1.bias": solution[3]})
    write_model(
        "models/linear",
        network,
        task="regression",
        dataset="digits",
        classes=["apples", "oranges"],
        shape=[3],
        data=describe().digests,
        split=load_split().digest,
        mean=[0.0],
        std=[1.0],
        validation={"val_loss": 0.5, "val_mae": 0.5, "val_r2": 0.99},
    )
