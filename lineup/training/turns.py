"""Trainings of one machine take turns where it has too few cores for all of them at once.

OpenMP's threads wait for each other at every operation, busily: two trainings with a thread per
core take several times as long side by side as one after the other. The turns change no result.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import BinaryIO, TypeVar

import platformdirs

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TURN_SECONDS = 0.2
MOST_SECONDS = 10.0  # of waiting: then a training with a turn is stopped, say by Ctrl-Z
PAUSE_SECONDS = 30.0  # without turns after that
SECONDS_BETWEEN_LOOKS = 0.002


T = TypeVar("T")


def in_turns(steps: Iterator[T], threads: int) -> Iterator[T]:
    """Yield from `steps`, each computed with `threads` threads; others have their turns between."""
    with ExitStack() as stack:
        turns = Turns(threads, stack)
        for step in steps:
            yield step
            turns.pass_on()


class Turns:
    """A training's claim on as many cores as it has threads, by locks that die with the process."""

    def __init__(self, threads: int, stack: ExitStack) -> None:
        """Take what closes the files of the locks at the end."""
        count = os.cpu_count() or 1
        self.needed = min(threads, count)
        self.cores: list[BinaryIO] = []
        self.taken: list[BinaryIO] = []
        self.began = -TURN_SECONDS
        with suppress(OSError):  # a home that is read-only: no turns
            folder = platformdirs.user_cache_path("lineup") / f"turns-{platform.node()}"
            folder.mkdir(parents=True, exist_ok=True)
            names = ["next", *(f"core-{number}" for number in range(count))]
            self.next, *self.cores = [stack.enter_context((folder / n).open("ab")) for n in names]

    def pass_on(self) -> None:
        """Let those that wait compute, once the turn is over; call between two steps."""
        is_off = fcntl is None or not self.cores
        if is_off or time.monotonic() - self.began < TURN_SECONDS:
            return
        try:
            self._release()
            self._wait()
            is_alone = len(self.taken) < self.needed
            if is_alone:
                self._release()
            self.began = time.monotonic() + (PAUSE_SECONDS if is_alone else 0)
        except OSError:  # a file system without locks
            self.cores = []

    def _wait(self) -> None:
        """Take cores; who waits for `next` comes behind who waits for cores."""
        deadline = time.monotonic() + MOST_SECONDS
        while not _lock(self.next):
            if time.monotonic() > deadline:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)
        while not self._take() and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        fcntl.flock(self.next, fcntl.LOCK_UN)

    def _take(self) -> bool:
        """Take what is free and needed; tell whether it is enough."""
        for core in self.cores:
            if len(self.taken) < self.needed and core not in self.taken and _lock(core):
                self.taken.append(core)
        return len(self.taken) == self.needed

    def _release(self) -> None:
        for core in self.taken:
            fcntl.flock(core, fcntl.LOCK_UN)
        self.taken = []


def _lock(file: BinaryIO) -> bool:
    """Lock a file unless another process has it; tell whether it is locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
