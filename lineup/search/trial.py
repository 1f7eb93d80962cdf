"""One trial of a search: a training that ends early where others of its study are better."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from rich.progress import Progress

from lineup.errors import ClusterError, UserError
from lineup.search.space import Space
from lineup.tracking.search_recorder import SearchRecorder
from lineup.training.checkpoints import Checkpoint, fingerprint
from lineup.training.device import reset_threads
from lineup.training.interruption import Interruption
from lineup.training.session import Listener, drive
from lineup.training.setup import Setup, set_up
from lineup.training.trainer import Epoch, Event, Step, Trainer


@dataclass(frozen=True)
class Outcome:
    """How a trial went."""

    text: str
    score: float | None = None  # of its best epoch, on validation; None if it ended early
    has_failed: bool = False
    checkpoint: Path | None = None  # to be removed when the study knows the score


@dataclass(frozen=True)
class TrialRunner:
    """Trains with the settings of one trial after the other."""

    space: Space
    bar: Progress
    interruption: Interruption
    deadline: float  # by time.monotonic()
    recorder: SearchRecorder | None
    turn: threading.Lock  # of threads that ask, tell or record
    setting_up: threading.Lock = field(default_factory=threading.Lock)

    def train(self, trial: optuna.Trial, settings: dict[str, Any]) -> Outcome:
        """Train, going on where a trial was interrupted; raises Interrupted."""
        reset_threads()
        folder = None
        try:
            with self.setting_up:  # all draw their weights from one generator
                setup = set_up(self.space.changed(settings), self.space.architecture)
            owner = {"study": trial.study.study_name, "trial": trial.number}
            checkpoint = Checkpoint(fingerprint(setup.config | owner))
            folder = checkpoint.folder
            rows, is_pruned = self._drive(trial, setup, checkpoint)
        except ClusterError:
            raise
        except UserError as error:  # a loss that is not finite, a network larger than the memory
            return Outcome(f"failed: {error}", has_failed=True, checkpoint=folder)
        monitor = setup.trainer.monitor
        best = min(rows, key=setup.trainer.rank)
        text = f"{readable(best[monitor], monitor)} in epoch {best['epoch']}"
        if is_pruned:
            return Outcome(f"{text}, ended after {len(rows)}", checkpoint=folder)
        return Outcome(f"{text} of {len(rows)}", best[monitor], checkpoint=folder)

    def _drive(
        self, trial: optuna.Trial, setup: Setup, checkpoint: Checkpoint
    ) -> tuple[list[dict[str, float]], bool]:
        """Train to the end; return the history, and whether the trial was pruned before."""
        with checkpoint.lock(), ExitStack() as stack:
            checkpoint.resume(setup.trainer)
            listeners: list[Listener] = []
            if self.recorder:
                with self.turn:
                    recorder = self.recorder.trial(
                        trial.number, setup, self.space.params, checkpoint
                    )
                listeners.append(stack.enter_context(recorder))
            watch = stack.enter_context(_Watch(trial, setup.trainer, self))
            listeners.append(watch)  # it prunes
            try:
                drive(setup.events, setup.trainer, checkpoint, listeners, self.interruption)
            except optuna.TrialPruned:
                return watch.rows, True
        return watch.rows, False


def readable(score: float, monitor: str) -> str:
    """Return an accuracy as a percentage, any other score as a number."""
    return f"{score:.2%}" if monitor == "val_accuracy" else f"{score:.4g}"


class _Watch:
    """Shows how far a trial is, reports its epochs, and ends it when it lags or time is up."""

    def __init__(self, trial: optuna.Trial, trainer: Trainer, runner: TrialRunner) -> None:
        self.trial, self.trainer, self.runner = trial, trainer, runner
        self.rows = [*trainer.progress.history]  # of a cluster, more than the trainer knows yet

    def __enter__(self) -> _Watch:
        done, total = self.trainer.examples
        name = f"trial {self.trial.number}"
        self.task = self.runner.bar.add_task(name, total=total, completed=done)
        return self

    def __exit__(self, *error: object) -> None:
        self.runner.bar.remove_task(self.task)

    def record(self, event: Event) -> None:
        """Show a step; report an epoch, and raise TrialPruned if the trial shall end with it."""
        if time.monotonic() > self.runner.deadline:
            self.runner.interruption.requested = True
        match event:
            case Step(examples):
                self.runner.bar.advance(self.task, examples)
            case Epoch(row):
                self.rows.append(row)
                self.trial.report(row[self.trainer.monitor], row["epoch"])
                last = self.trainer.recipe.epochs
                is_last = row["epoch"] == last or self.trainer.progress.finished
                if not is_last and self.trial.should_prune():
                    raise optuna.TrialPruned

    def flush(self) -> None:
        """Do nothing: a study keeps what it is told at once."""
