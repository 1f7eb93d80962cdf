"""How much of the processors other programs use while something is timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

NOTABLE = 0.25  # cores
_SHORTEST = 0.2  # seconds, as the system counts in hundredths


@dataclass
class OtherLoad:
    """What other programs used, in cores, from the beginning of a block to its end."""

    cores: float = 0.0

    def __str__(self) -> str:
        return f"while other programs used {self.cores:.1f} cores" if self.is_notable else ""

    @property
    def is_notable(self) -> bool:
        """Tell whether it makes measured times worse."""
        return self.cores > NOTABLE


@contextmanager
def watch_others() -> Iterator[OtherLoad]:
    """Yield what is known after the block: how busy other programs were."""
    load, start, before = OtherLoad(), time.perf_counter(), _seconds_of_others()
    yield load
    used, elapsed = _seconds_of_others() - before, time.perf_counter() - start
    if elapsed > _SHORTEST:
        load.cores = round(max(0.0, used / elapsed), 2)


def _seconds_of_others() -> float:
    """Return the seconds that all processes but this one have computed."""
    total, own = psutil.cpu_times(), psutil.Process().cpu_times()
    niced = getattr(total, "nice", 0.0)  # Linux: apart from user, but part of it in a process
    return total.user + niced + total.system - own.user - own.system
