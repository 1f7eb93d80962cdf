"""What the follower process does: mirror one run until its training is over."""

from __future__ import annotations

import sys
import threading

from lineup.tracking.location import host, store_uri
from lineup.tracking.mirror import Mirror, close_abandoned_runs
from lineup.tracking.run_log import RunLog
from lineup.tracking.store import client, summary

SECONDS_BETWEEN_UPDATES = 2.0
SECONDS_AFTER_FAILURE = 15.0


class _Session:
    """A mirror that survives failures of the store; the first one is reported."""

    def __init__(self, log: RunLog) -> None:
        self.log = log
        self.mirror: Mirror | None = None
        self.has_failed = self.has_warned = False

    def update(self, is_over: bool = False) -> None:
        """Send what is new, unless the store fails."""
        try:
            if self.mirror is None:
                connected = client()
                close_abandoned_runs(connected, host())
                self.mirror = Mirror(self.log, connected, is_live=True)
            self.mirror.is_live = not is_over
            self.mirror.update()
            self.has_failed = False
        except Exception as error:  # a store can fail in any way
            self.has_failed = True
            self.mirror = None  # the store may be another one when it is back
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self.has_warned:
            self.has_warned = True
            failure = f"MLflow at {store_uri()} fails ({summary(error)})"
            print(f"{failure}; nothing is lost, training goes on", file=sys.stderr, flush=True)


def follow_run(run_id: str) -> int:
    """Mirror a run now and then until standard input closes, then the rest; exit code 1 if not."""
    session = _Session(RunLog(run_id))
    is_over = threading.Event()
    threading.Thread(target=_wait_for_end, args=[is_over], daemon=True).start()
    has_just_failed = False
    while not is_over.is_set():
        if session.log.is_started:
            session.update()
        has_just_failed = session.has_failed and is_over.is_set()
        is_over.wait(SECONDS_AFTER_FAILURE if session.has_failed else SECONDS_BETWEEN_UPDATES)
    if not has_just_failed:  # the store may be back since the last try
        session.update(is_over=True)
    return 1 if session.has_failed else 0


def _wait_for_end(is_over: threading.Event) -> None:
    sys.stdin.buffer.read()
    is_over.set()
