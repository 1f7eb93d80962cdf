"""The far end: a process on a node of a Ray cluster, which has this package and receives the data.

torch must not be loaded here before its instructions are limited: `job`, which needs it, is not
imported at the top.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray
from filelock import FileLock

from lineup.params import Train
from lineup.training.portable import limit_instructions

if TYPE_CHECKING:
    from lineup.cluster.job import Bundle, Job
    from lineup.training.checkpoints import State
    from lineup.training.device import Machine

RECEIVED = Path(__file__).parents[2] / "received"  # beside Ray's copy of this package


@ray.remote
class Worker:
    """One training at a time on one node; it dies with the process that made it."""

    def prepare(self, recipe: Train) -> Machine:
        """Return what this node makes of the settings that leave something to it."""
        if recipe.precision == "portable":
            limit_instructions()
        from lineup.training.device import prepare_machine, reset_threads  # torch

        reset_threads()
        return replace(prepare_machine(recipe), node=socket.gethostname())

    def has_data(self, name: str) -> bool:
        """Tell whether this node has the data; if not, the caller sends them, and others wait."""
        RECEIVED.mkdir(exist_ok=True)
        self.lock = FileLock(RECEIVED / f"{name}.lock")
        self.lock.acquire()
        if not (RECEIVED / name).exists():
            return False
        self.lock.release()
        return True

    def receive(self, name: str, path: str, start: int, content: np.ndarray) -> None:
        """Write a piece of a file."""
        file = RECEIVED / f"{name}.partial" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            stream.write(content)

    def keep_data(self, name: str) -> None:
        """Conclude what was received: all files are whole."""
        (RECEIVED / f"{name}.partial").rename(RECEIVED / name)
        self.lock.release()

    def train(self, job: Job, state: State) -> Iterator[Bundle]:
        """Train on from `state`."""
        yield from job.train(state, RECEIVED / job.data)
