"""Small trainings: in one process, and as projects whose stages run as processes of their own."""

import shutil
from contextlib import chdir

import torch
import yaml

from helpers.datasets import write_dataset, write_split
from helpers.project import ROOT, Project
from lineup import architectures
from lineup.params import load_params
from lineup.training.batches import Batches
from lineup.training.trainer import Epoch, Means, Step, Trainer

OFF = {"rotate": 0, "shift": 0, "scale": 0, "shear": 0, "flip": False, "erase": 0}
OFF |= {"vertical_flip": False, "crop": 0, "color": 0}
PLAIN = yaml.safe_load(
    """
    {epochs: 2, batch_size: 16, optimizer: sgd, learning_rate: 0.1, momentum: 0.0, nesterov: false,
    class_weights: none, weights: none, freeze_epochs: 0, backbone_lr_factor: 1, weight_decay: 0.0, schedule: constant, clip_norm: 0, label_smoothing: 0.0, ema: 0,
    monitor: val_loss, patience: 0, keep_every: 0, top_k: 2, log_every: 100,
    precision: float32, threads: auto, device: cpu}
    """
)


def recipe(**changes):
    """Return a recipe without refinements but `changes`."""
    train = load_params(ROOT / "params.yaml").train
    augment = train.augment.model_copy(update=OFF | changes.pop("augment", {}))
    return train.model_copy(update=PLAIN | changes | {"augment": augment})


def pictures(count=40, classes=4, seed=0):
    """Return images of which each class has its own brightness, as Batches."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randint(60, (count, 1, 6, 6), dtype=torch.uint8, generator=generator)
    images = noise + (labels * 40).byte().view(-1, 1, 1, 1)
    return Batches(images, labels, torch.tensor([0.4]), torch.tensor([0.2]))


def make_trainer(train=None, validation=None, name="linear", hyperparameters=None, **changes):
    """Return a trainer of three steps an epoch, with seed 5."""
    train = train or pictures()
    torch.manual_seed(1)
    model = architectures.build(name, train.inputs.shape[1:], 4, hyperparameters or {})
    return Trainer(model, train, validation or pictures(20, seed=1), recipe(**changes), seed=5)


class Recorder:
    """A listener that remembers."""

    def __init__(self):
        self.steps, self.epochs, self.examples, self.kept = [], [], [], {}

    def record(self, event):
        match event:
            case Step(examples):
                self.examples.append(examples)
            case Means(step, values):
                self.steps.append((step, values["step_loss"], values.get("step_accuracy")))
            case Epoch(row, weights):
                self.epochs.append(row)
                if weights is not None:
                    copies = {name: tensor.clone() for name, tensor in weights.items()}
                    self.kept[int(row["epoch"])] = copies

    def flush(self):
        pass


def run(trainer):
    """Train to the end; return what was told."""
    record = Recorder()
    for event in trainer.fit():
        record.record(event)
    return record


def weights(module):
    """Return all parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def make_small_project(folder, **train):
    """Return a folder with params.yaml and data whose trainings, of an MLP, take five steps an epoch.

    Its code is that of this repository: nothing is copied.
    """
    shutil.copy(ROOT / "params.yaml", folder)
    project = Project(folder)
    project.environment |= {"DVC_ROOT": str(folder), "PYTHONPATH": str(ROOT)}
    settings = {"batch_size": 16, "log_every": 2, "device": "cpu"} | train
    project.set(**{f"train__{key}": value for key, value in settings.items()})
    project.set(dataset="shades", model="mlp", architectures=["mlp"])
    project.set(models__mlp={"hidden": [16], "dropout": 0.1})
    images = pictures(100)
    parts = {part: (images.inputs, images.targets) for part in ("train", "test")}
    with chdir(folder):
        write_dataset("shades", "classification", list("abcd"), **parts)
        write_split(100)
    return project
