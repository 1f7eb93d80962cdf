"""One trial of a search: a training that ends early where others of its study are better."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass

import optuna
from rich.progress import Progress

from lineup.errors import UserError
from lineup.params import Params
from lineup.tracking.search_recorder import SearchRecorder
from lineup.training.checkpoints import Checkpoint, fingerprint
from lineup.training.device import reset_threads
from lineup.training.interruption import Interruption
from lineup.training.session import drive
from lineup.training.setup import Setup, set_up
from lineup.training.trainer import Epoch, Event, Step


class Pruned(Exception):
    """At this epoch the median of the other trials is better."""


@dataclass(frozen=True)
class Outcome:
    """How a trial went."""

    score: float | None  # of its best epoch, on validation; None if it did not end
    text: str


@dataclass(frozen=True)
class Trials:
    """What all trials of a search share."""

    architecture: str
    bar: Progress
    interruption: Interruption
    deadline: float  # by time.monotonic()
    recorder: SearchRecorder | None

    def train(self, trial: optuna.Trial, params: Params) -> Outcome:
        """Train, resuming where a trial was killed; raises Interrupted."""
        reset_threads()
        try:
            setup = set_up(params, self.architecture)
            return self._train(trial, params, setup)
        except UserError as error:  # a loss that is not finite, a network larger than the memory
            return Outcome(None, str(error))

    def _train(self, trial: optuna.Trial, params: Params, setup: Setup) -> Outcome:
        owner = {"study": trial.study.study_name, "trial": trial.number}
        checkpoint = Checkpoint(fingerprint(setup.config | owner))
        is_pruned = False
        with checkpoint.lock(), ExitStack() as stack:
            checkpoint.resume(setup.trainer)
            listeners = [stack.enter_context(_Watch(trial, setup, self))]
            if self.recorder:
                recorded = self.recorder.trial(trial.number, setup, params, checkpoint)
                listeners.append(stack.enter_context(recorded))
            try:
                drive(setup.trainer, checkpoint, listeners, self.interruption)
            except Pruned:
                is_pruned = True
            shutil.rmtree(checkpoint.folder)
        progress, monitor = setup.trainer.progress, setup.trainer.monitor
        score = progress.best_row[monitor]
        text = f"{readable(score, monitor)} in epoch {progress.best_epoch}"
        if is_pruned:
            return Outcome(None, f"{text}, ended after {progress.epoch}")
        return Outcome(score, f"{text} of {progress.epoch}")


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
