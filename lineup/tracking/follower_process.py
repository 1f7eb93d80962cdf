"""What the follower process does: mirror one run until its training is over."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from lineup.tracking.location import host, store_uri
from lineup.tracking.reachability import check_store, summary
from lineup.tracking.run_log import RunLog

if TYPE_CHECKING:
    from lineup.tracking.mirror import Mirror

SECONDS_BETWEEN_UPDATES = 2.0
SECONDS_AFTER_FAILURE = 15.0
SECONDS_TO_COME_BACK = 5.0  # a store that failed so short ago is not asked again at the end


class _Session:
    """A mirror that survives failures of the store; the first one is reported."""

    def __init__(self, log: RunLog) -> None:
        self.log = log
        self.mirror: Mirror | None = None
        self.has_warned = False
        self.failed_at: float | None = None

    @property
    def has_failed(self) -> bool:
        """Tell whether the last update did not reach the store."""
        return self.failed_at is not None

    @property
    def has_just_failed(self) -> bool:
        """Tell whether that was so short ago that another try would only take time."""
        return self.has_failed and time.monotonic() - self.failed_at < SECONDS_TO_COME_BACK

    def update(self, is_over: bool = False) -> None:
        """Send what is new, unless the store fails."""
        try:
            if self.mirror is None:
                check_store()
                self.mirror = _open_mirror(self.log)
            self.mirror.is_live = not is_over
            self.mirror.update()
            self.failed_at = None
        except Exception as error:  # a store can fail in any way
            self.failed_at = time.monotonic()
            self.mirror = None  # the store may be another one when it is back
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self.has_warned:
            self.has_warned = True
            failure = f"MLflow at {store_uri()} fails ({summary(error)})"
            print(f"{failure}; nothing is lost, training goes on", file=sys.stderr, flush=True)


def _open_mirror(log: RunLog) -> Mirror:
    from lineup.tracking.mirror import Mirror, close_abandoned_runs  # MLflow: seconds
    from lineup.tracking.store import client

    connected = client()
    close_abandoned_runs(connected, host())
    return Mirror(log, connected, is_live=True)


def follow_run(run_id: str) -> int:
    """Mirror a run now and then until standard input closes, then the rest; exit code 1 if not."""
    session = _Session(RunLog(run_id))
    is_over = threading.Event()
    threading.Thread(target=_wait_for_end, args=[is_over], daemon=True).start()
    while not is_over.is_set():
        if session.log.is_started:
            session.update()
        is_over.wait(SECONDS_AFTER_FAILURE if session.has_failed else SECONDS_BETWEEN_UPDATES)
    if not session.has_just_failed:
        session.update(is_over=True)
    return 1 if session.has_failed else 0


def _wait_for_end(is_over: threading.Event) -> None:
    sys.stdin.buffer.read()
    is_over.set()
