"""From params and data to a trainer, and to the config that its result depends on."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lineup import architectures
from lineup.data.dataset import Dataset, Split
from lineup.errors import UserError
from lineup.params import Augment, Params
from lineup.task import Task
from lineup.training.batches import load_batches
from lineup.training.checkpoints import code_digests
from lineup.training.device import Machine, explain_memory, prepare_machine
from lineup.training.draws import Purpose, draw_seed
from lineup.training.job import Job
from lineup.training.pretrained import find_pretrained, load_fitting
from lineup.training.trainer import Event, Trainer
from lineup.training.turns import in_turns

if TYPE_CHECKING:  # Ray, an extra
    from lineup.cluster.driver import Cluster


@dataclass(frozen=True)
class Setup:
    """One training, ready to begin."""

    architecture: str
    dataset: Dataset
    split: Split
    machine: Machine  # which computes
    trainer: Trainer
    events: Generator[Event]  # of the training, wherever it computes
    mean: Tensor  # float32 (C,), what images are normalised with, in units of pixel / 255
    std: Tensor
    random_weights: list[str]  # those that pretrained ones did not replace
    config: dict[str, Any]  # all that shapes the result: what the fingerprint stands for


@explain_memory()
def set_up(params: Params, architecture: str) -> Setup:
    """Return the training of `architecture` with everything resolved; UserError on misfits."""
    asked, hyperparameters = params.recipe(architecture)
    dataset, split = Dataset.read(params.dataset), Split.read()
    cluster = _cluster()
    machine = cluster.prepare(asked) if cluster else prepare_machine(asked)
    recipe = asked.model_copy(update=_resolve(params, architecture, dataset, split, machine))
    device = torch.device("cpu" if cluster else machine.device)

    torch.manual_seed(draw_seed(params.seed, Purpose.WEIGHTS, 0))
    hyperparameters = architectures.complete(architecture, hyperparameters)
    outputs = len(dataset.classes)
    model = architectures.build(architecture, dataset.shape, outputs, hyperparameters)
    _check_mirror(architecture, hyperparameters, recipe.augment)
    mean, std, random = split.mean, split.std, []
    pretrained = find_pretrained(recipe.weights, architecture, dataset.shape, hyperparameters)
    if pretrained:
        mean, std = pretrained.statistics or (mean, std)
        random = load_fitting(model, pretrained)
    train, validation = (
        load_batches(dataset.task, part, mean, std, device)
        for part in (split.train, split.validation)
    )
    trainer = Trainer(model, train, validation, recipe, params.seed)
    if cluster:
        job = Job(split.digest, model, asked, recipe, params.seed, dataset.task, mean, std)
        events = cluster.fit(job, trainer, machine)
    elif device.type == "cpu":
        events = in_turns(trainer.fit(), machine.threads)
    else:
        events = trainer.fit()

    config = {
        "architecture": architecture,
        "hyperparameters": hyperparameters,
        "recipe": recipe.model_dump(exclude={"passes"})  # it has done its work: epochs is a number
        | {"device": torch.device(machine.device).type},
        "pretrained": pretrained and {"name": pretrained.name, "sha256": pretrained.sha256},
        "seed": params.seed,
        "data": dataset.digests["train"],
        "split": split.digest,
        "code": code_digests("train", architecture),
        "threads": machine.threads,
        "torch": machine.torch,
        "processor": machine.processor,
    }
    return Setup(architecture, dataset, split, machine, trainer, events, mean, std, random, config)


def _cluster() -> Cluster | None:
    """Return the Ray cluster on which trainings shall compute, if there is one."""
    if not os.environ.get("LINEUP_RAY"):
        return None
    try:
        from lineup.cluster.driver import connect  # Ray, an extra
    except ModuleNotFoundError as error:
        raise UserError(
            f"LINEUP_RAY is set, but {error.name} is missing; run: make cluster"
        ) from None
    return connect()


def _resolve(
    params: Params, architecture: str, dataset: Dataset, split: Split, machine: Machine
) -> dict[str, Any]:
    """Return the settings that the machine and the data decide, none of them auto."""
    recipe, _ = params.recipe(architecture)
    is_table = dataset.task is Task.REGRESSION  # bfloat16 keeps three digits of its values
    precision = "float32" if is_table and recipe.precision == "auto" else machine.precision
    epochs, _ = params.epochs(architecture, len(split.train), dataset.shape)
    if recipe.freeze_epochs >= epochs:
        raise UserError(
            f"params.yaml: freeze_epochs = {recipe.freeze_epochs} leaves none of {epochs} epochs "
            "for the layers before the last; set it lower"
        )
    return {
        "device": machine.device,
        "precision": precision,
        "epochs": epochs,
        "augment": _resolve_augment(recipe.augment, dataset.shape),
    }


def _check_mirror(architecture: str, hyperparameters: dict[str, Any], augment: Augment) -> None:
    if hyperparameters.get("mirror") and not augment.flip:
        raise UserError(
            f"params.yaml: models.{architecture}.mirror = true asks for mirror images, which this "
            "training never shows; set flip: true in train.augment (or in models."
            f"{architecture}.augment), or mirror: false"
        )


def _resolve_augment(settings: Augment, shape: list[int]) -> Augment:
    """Return settings of which none is auto: pictures in colour are mirrored, grey ones not.

    Grey ones are characters and scans more often, which a mirror spoils.
    """
    is_colour = len(shape) == 3 and shape[0] == 3
    flip = is_colour if settings.flip == "auto" else settings.flip
    return settings.model_copy(update={"flip": flip})
