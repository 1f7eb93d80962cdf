"""Several trials at a time: each is trained on a cluster, and a thread here drives it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lineup.training.interruption import Interruption
from lineup.training.session import Interrupted

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_SAVE = 10.0  # for what trains; who waits for a node then is left behind


def work_at_once(
    jobs: int, work: Callable[[], None], interruption: Interruption, deadline: float
) -> None:
    """Do `work` in `jobs` threads; the first error stops all.

    Raises Interrupted after a signal, or where not all is done at `deadline`, by time.monotonic().
    """
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
            interruption.requested = True

    threads = [threading.Thread(target=guarded, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not interruption.requested:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        interruption.requested |= time.monotonic() > deadline
    until = time.monotonic() + SECONDS_TO_SAVE
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    errors.sort(key=lambda error: isinstance(error, Interrupted))  # it is the least of them
    if errors:
        raise errors[0]
    if interruption.requested:
        raise Interrupted
