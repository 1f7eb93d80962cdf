"""One trial of a search: a training that ends early where others of its study are better."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass

import optuna
from rich.progress import Progress

from lineup.params import Params
from lineup.tracking.search_recorder import SearchRecorder
from lineup.training.checkpoints import Checkpoint, fingerprint
from lineup.training.device import reset_threads
from lineup.training.interruption import Interruption
from lineup.training.session import drive
from lineup.training.setup import Setup, set_up
from lineup.training.trainer import Epoch, Event, Step, Trainer


class Pruned(Exception):
    """At this epoch the median of the other trials is better."""


@dataclass(frozen=True)
class Outcome:
    """How a trial went."""

    score: float  # of its best epoch, on validation
    text: str
    is_pruned: bool


@dataclass(frozen=True)
class Trials:
    """What all trials of a search share."""

    architecture: str
    bar: Progress
    interruption: Interruption
    deadline: float  # by time.monotonic()
    recorder: SearchRecorder | None

    def train(self, trial: optuna.Trial, params: Params) -> Outcome:
        """Train, resuming where a trial was killed; raises Interrupted, and UserError."""
        reset_threads()
        setup = set_up(params, self.architecture)
        owner = {"study": trial.study.study_name, "trial": trial.number}
        checkpoint = Checkpoint(fingerprint(setup.config | owner))
        with checkpoint.lock(), ExitStack() as stack:
            checkpoint.resume(setup.trainer)
            listeners = [stack.enter_context(_Watch(trial, setup, self))]
            if self.recorder:
                recorded = self.recorder.trial(trial.number, setup, params, checkpoint)
                listeners.append(stack.enter_context(recorded))
            is_pruned = False
            try:
                drive(setup.trainer, checkpoint, listeners, self.interruption)
            except Pruned:
                is_pruned = True
            shutil.rmtree(checkpoint.folder)
        return _outcome(setup.trainer, is_pruned)


def _outcome(trainer: Trainer, is_pruned: bool) -> Outcome:
    progress = trainer.progress
    score, epochs = progress.best_row[trainer.monitor], trainer.recipe.epochs
    text = f"{readable(score, trainer.monitor)} in epoch {progress.best_epoch} of {epochs}"
    if is_pruned:
        text += f", stopped after {progress.epoch}"
    return Outcome(score, text, is_pruned)


def readable(score: float, monitor: str) -> str:
    """Return an accuracy as a percentage, any other score as a number."""
    return f"{score:.2%}" if monitor == "val_accuracy" else f"{score:.4g}"


class _Watch:
    """Shows how far a trial is, reports its epochs, and ends it when it lags or time is up."""

    def __init__(self, trial: optuna.Trial, setup: Setup, trials: Trials) -> None:
        self.trial, self.trainer, self.trials = trial, setup.trainer, trials

    def __enter__(self) -> _Watch:
        trainer, progress = self.trainer, self.trainer.progress
        per_epoch = len(trainer.train)
        done = progress.epoch * per_epoch + progress.step * trainer.recipe.batch_size
        total = trainer.recipe.epochs * per_epoch
        name = f"trial {self.trial.number}"
        self.task = self.trials.bar.add_task(name, total=total, completed=done)
        return self

    def __exit__(self, *error: object) -> None:
        self.trials.bar.remove_task(self.task)

    def record(self, event: Event) -> None:
        """Show a step; report an epoch, and raise Pruned if the trial shall end with it."""
        match event:
            case Step(examples):
                self.trials.bar.advance(self.task, examples)
                if time.monotonic() > self.trials.deadline:
                    self.trials.interruption.requested = True
            case Epoch(row):
                self.trial.report(row[self.trainer.monitor], row["epoch"])
                if not self.trainer.progress.finished and self.trial.should_prune():
                    raise Pruned

    def flush(self) -> None:
        """Do nothing: a study keeps what it is told at once."""
