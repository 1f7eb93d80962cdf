"""A training as it is sent to another machine, and what comes back from there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lineup import paths
from lineup.params import Train
from lineup.task import Task
from lineup.tensors import read_tensors
from lineup.training.batches import load_batches
from lineup.training.checkpoints import State
from lineup.training.device import explain_memory
from lineup.training.trainer import Epoch, Event, Means, Trainer

SECONDS_BETWEEN_BUNDLES = 0.25
SECONDS_BETWEEN_STATES = 3.0
MOST_FOR_STATES = 1 / 20  # of the time


@dataclass(frozen=True)
class Bundle:
    """Events since the bundle before, and now and then the state of the training after them."""

    events: list[Event]
    state: State | None


@dataclass(frozen=True)
class Job:
    """A training, without its data."""

    data: str  # stands for its data, which are sent to a node once
    model: nn.Module
    asked: Train  # the recipe as params.yaml has it
    recipe: Train  # what the machine made of it
    seed: int
    task: Task
    mean: Tensor
    std: Tensor

    def train(self, state: State, folder: Path) -> Iterator[Bundle]:
        """Train on from `state` with the data in `folder`."""
        os.chdir(folder)
        with explain_memory():
            trainer = self._make_trainer()
            trainer.restore(*state)
            events, bundle_at = [], time.monotonic() + SECONDS_BETWEEN_BUNDLES
            state_at = time.monotonic() + SECONDS_BETWEEN_STATES
            for event in trainer.fit():
                events.append(_on_cpu(event))
                now = time.monotonic()
                if now < bundle_at or isinstance(event, Means):  # its step comes after it
                    continue
                is_due = now > state_at
                yield Bundle(events, trainer.state() if is_due else None)
                events, bundle_at = [], now + SECONDS_BETWEEN_BUNDLES
                if is_due:
                    took = time.monotonic() - now
                    state_at = now + max(SECONDS_BETWEEN_STATES, took / MOST_FOR_STATES)
            yield Bundle(events, trainer.state())

    def _make_trainer(self) -> Trainer:
        indices = read_tensors(paths.INDICES)
        device = torch.device(self.recipe.device)
        train, validation = (
            load_batches(self.task, indices[part], self.mean, self.std, device)
            for part in ("train", "validation")
        )
        return Trainer(self.model, train, validation, self.recipe, self.seed)


def _on_cpu(event: Event) -> Event:
    """Return an event whose weights the next step does not change, and any machine can read."""
    if isinstance(event, Epoch) and event.weights:
        weights = {name: tensor.cpu().clone() for name, tensor in event.weights.items()}
        return replace(event, weights=weights)
    return event
