"""The far end: a process on a node of a Ray cluster, which has this package and receives the data.

torch must not be loaded there before its instructions are limited: this file imports nothing that
needs it.
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

import lineup
from lineup.params import Train
from lineup.training.portable import limit_instructions

if TYPE_CHECKING:
    from lineup.training.checkpoints import State
    from lineup.training.device import Machine
    from lineup.training.job import Bundle, Job


def received(name: str) -> Path:
    """Return the place of data on this node: beside Ray's copies of this package, for all."""
    return Path(lineup.__file__).parents[2] / "lineup-data" / name


@ray.remote
class Worker:
    """One training on one node; it dies with the process that made it.

    Ray sends this class as it is where it was made: what depends on the node is in functions.
    """

    def prepare(self, recipe: Train) -> Machine:
        """Return what this node makes of the settings that leave something to it."""
        if recipe.precision == "portable":
            limit_instructions()
        from lineup.training.device import prepare_machine  # torch

        return replace(prepare_machine(recipe), node=socket.gethostname())

    def lock_data(self, name: str) -> bool:
        """Tell whether the data are here; if not, the caller sends them, while others wait."""
        received(name).parent.mkdir(exist_ok=True)
        self.lock = FileLock(received(f"{name}.lock"))
        self.lock.acquire()
        if not received(name).exists():
            return False
        self.lock.release()
        return True

    def receive(self, name: str, path: str, start: int, content: np.ndarray) -> None:
        """Write a piece of a file."""
        file = received(f"{name}.partial") / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            stream.write(content)

    def keep_data(self, name: str) -> None:
        """Conclude what was received: all files are whole."""
        received(f"{name}.partial").rename(received(name))
        self.lock.release()

    def train(self, job: Job, state: State) -> Iterator[Bundle]:
        """Train on from `state`."""
        yield from job.train(state, received(job.data))
