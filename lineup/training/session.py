"""Drives a training: passes events on, saves its state, stops on signals."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from lineup.training.checkpoints import Checkpoint
from lineup.training.device import explain_memory
from lineup.training.interruption import Interruption
from lineup.training.trainer import Event, Trainer


class Listener(Protocol):
    """Who hears of a training; its result never depends on them."""

    def record(self, event: Event) -> None:
        """Note an event."""

    def flush(self) -> None:
        """Bring what was noted to disk."""

    def finish(self, folder: Path) -> None:
        """Conclude a training whose outputs lie in `folder`."""


class Interrupted(Exception):
    """The training was asked to stop, and has saved where it stands."""


@explain_memory()
def drive(
    events: Generator[Event],
    trainer: Trainer,
    checkpoint: Checkpoint,
    listeners: Sequence[Listener],
    interruption: Interruption,
) -> None:
    """Train to the end of `events`, saving now and then; raises Interrupted after a signal."""

    def save() -> None:
        for listener in listeners:  # a checkpoint must not know more than they do
            listener.flush()
        checkpoint.save(trainer.state())

    with closing(events):
        for event in events:
            for listener in listeners:
                listener.record(event)
            if checkpoint.should_save() or interruption.requested:
                save()
            if interruption.requested and not trainer.progress.finished:
                raise Interrupted
    save()
