"""From params and data to a trainer, and to the config that its result depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lineup import architectures
from lineup.data.dataset import Dataset, Split, load
from lineup.errors import UserError
from lineup.params import Augment, Params, Train
from lineup.tensors import Rows
from lineup.training.batches import Batches
from lineup.training.checkpoints import code_digests
from lineup.training.device import (
    check_portable,
    explain_memory,
    make_deterministic,
    resolve_device,
    resolve_precision,
)
from lineup.training.draws import Purpose, draw_seed
from lineup.training.pretrained import find_pretrained, load_fitting
from lineup.training.trainer import Trainer


@dataclass(frozen=True)
class Setup:
    """One training, ready to begin."""

    architecture: str
    dataset: Dataset
    split: Split
    trainer: Trainer
    mean: Tensor  # float32 (C,), what images are normalised with, in units of pixel / 255
    std: Tensor
    random_weights: list[str]  # those that pretrained ones did not replace
    config: dict[str, Any]  # all that shapes the result: what the fingerprint stands for


@explain_memory()
def set_up(params: Params, architecture: str) -> Setup:
    """Return the training of `architecture` with everything resolved; UserError on misfits."""
    recipe, hyperparameters = params.recipe(architecture)
    dataset, split = Dataset.read(), Split.read()
    recipe = recipe.model_copy(update=_resolve(params, architecture, dataset, split))
    device = torch.device(recipe.device)
    _prepare_torch(recipe, device)

    torch.manual_seed(draw_seed(params.seed, Purpose.WEIGHTS, 0))
    hyperparameters = architectures.complete(architecture, hyperparameters)
    outputs = len(dataset.classes)
    model = architectures.build(architecture, dataset.shape, outputs, hyperparameters)
    mean, std, random = split.mean, split.std, []
    pretrained = find_pretrained(recipe.weights, architecture, dataset.shape, hyperparameters)
    if pretrained:
        mean, std = pretrained.statistics or (mean, std)
        random = load_fitting(model, pretrained)
    inputs, targets = load("train", dataset.task)
    train, validation = (
        Batches(Rows(inputs, part).to(device), targets[part].to(device), mean, std)
        for part in (split.train, split.validation)
    )
    trainer = Trainer(model, train, validation, recipe, params.seed)

    known = recipe.model_dump(exclude={"passes"})  # has done its work: epochs is a number
    config = {
        "architecture": architecture,
        "hyperparameters": hyperparameters,
        "recipe": known | {"device": device.type},
        "pretrained": pretrained and {"name": pretrained.name, "sha256": pretrained.sha256},
        "seed": params.seed,
        "data": dataset.digests["train"],
        "split": split.digest,
        "code": code_digests("train", architecture),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return Setup(architecture, dataset, split, trainer, mean, std, random, config)


def _resolve(params: Params, architecture: str, dataset: Dataset, split: Split) -> dict[str, Any]:
    """Return the settings that the machine and the data decide, none of them auto."""
    recipe, _ = params.recipe(architecture)
    device = torch.device("cpu")
    if recipe.precision != "portable":
        device = resolve_device(recipe.device)
    epochs, _ = params.epochs(architecture, len(split.train), dataset.shape)
    if recipe.freeze_epochs >= epochs:
        raise UserError(
            f"params.yaml: freeze_epochs = {recipe.freeze_epochs} leaves none of {epochs} epochs "
            "for the layers before the last; set it lower"
        )
    return {
        "device": str(device),
        "precision": resolve_precision(recipe.precision, device),
        "epochs": epochs,
        "augment": _resolve_augment(recipe.augment, dataset.shape),
    }


def _prepare_torch(recipe: Train, device: torch.device) -> None:
    make_deterministic()
    if recipe.precision == "portable":
        check_portable()
    if recipe.threads != "auto":
        torch.set_num_threads(recipe.threads)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def _resolve_augment(settings: Augment, shape: list[int]) -> Augment:
    """Return settings of which none is auto: pictures in colour are mirrored, grey ones not.

    Grey ones are characters and scans more often, which a mirror spoils.
    """
    is_colour = len(shape) == 3 and shape[0] == 3
    flip = is_colour if settings.flip == "auto" else settings.flip
    return settings.model_copy(update={"flip": flip})
