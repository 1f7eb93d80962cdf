"""What the follower process does: mirror a run, and those it is told of, until they are over."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from lineup.errors import DamagedError
from lineup.tracking.location import host, shown_uri
from lineup.tracking.reachability import StoreError, check_store, summary
from lineup.tracking.run_log import RunLog

if TYPE_CHECKING:
    from lineup.tracking.mirror import Mirror

SECONDS_BETWEEN_UPDATES = 2.0
SECONDS_AFTER_FAILURE = 15.0
ENDS = {"FINISHED", "FAILED"}  # statuses; one that was killed may go on
REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}  # what is deleted, MLflow says
SECONDS_TO_COME_BACK = 5.0  # a server that was down so short ago is not asked at the end


class _Session:
    """A mirror that survives failures of the store; the first one is reported."""

    def __init__(self, log: RunLog) -> None:
        self.log = log
        self.mirror: Mirror | None = None
        self.has_warned = False
        self.has_failed = False
        self.was_refused = False
        self.is_damaged = False  # the run's folder
        self.silent_since: float | None = None  # no server answered

    @property
    def is_down(self) -> bool:
        """Tell whether no server answered, so short ago that another try would only take time."""
        since = self.silent_since
        return since is not None and time.monotonic() - since < SECONDS_TO_COME_BACK

    @property
    def has_ended(self) -> bool:
        """Tell whether there is nothing more to send than what is there now."""
        mirror = self.mirror
        is_known = mirror is not None and (mirror.is_deleted or mirror.status_sent in ENDS)
        return is_known or self.is_damaged

    def update(self, is_over: bool = False) -> None:
        """Send what is new, unless the store fails."""
        try:
            if self.mirror is None:
                check_store()
                self.mirror = _open_mirror(self.log)
            self.mirror.is_live = not is_over
            self.mirror.update()
            self.has_failed, self.was_refused, self.silent_since = False, False, None
        except DamagedError as error:
            self.is_damaged = True
            print(f"warning: {error}", file=sys.stderr, flush=True)
        except Exception as error:  # a store can fail in any way
            self.has_failed = True
            self.was_refused = getattr(error, "error_code", "") in REFUSED
            self.silent_since = time.monotonic() if isinstance(error, StoreError) else None
            self.mirror = None  # the store may be another one when it is back
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self.has_warned:
            self.has_warned = True
            failure = f"MLflow at {shown_uri()} fails ({summary(error)})"
            print(f"{failure}; nothing is lost, training goes on", file=sys.stderr, flush=True)


def _open_mirror(log: RunLog) -> Mirror:
    from lineup.tracking.mirror import Mirror, close_abandoned_runs  # MLflow: seconds
    from lineup.tracking.store import client

    connected = client()
    close_abandoned_runs(connected, host())
    return Mirror(log, connected, is_live=True)


def follow_run(run_id: str) -> int:
    """Mirror a run now and then until standard input closes, then the rest; exit code 1 if not.

    Runs that standard input names are mirrored too.
    """
    sessions, is_over = [_Session(RunLog(run_id))], threading.Event()
    threading.Thread(target=_listen, args=[sessions, is_over], daemon=True).start()
    while not is_over.is_set():
        has_failed = not _update(sessions)
        is_over.wait(SECONDS_AFTER_FAILURE if has_failed else SECONDS_BETWEEN_UPDATES)
    if any(session.is_down for session in sessions):
        return 1
    is_complete = _update(sessions, is_over=True)
    if any(session.was_refused for session in sessions):  # deleted just now: looked up anew
        is_complete = _update(sessions, is_over=True)
    return 0 if is_complete else 1


def _listen(sessions: list[_Session], is_over: threading.Event) -> None:
    for line in sys.stdin:
        sessions.append(_Session(RunLog(line.strip())))
    is_over.set()


def _update(sessions: list[_Session], is_over: bool = False) -> bool:
    """Send what is new of all runs, forget those that are over; tell whether the store works."""
    for session in list(sessions):
        had_ended = session.has_ended  # so that this update brings the very last of it
        if session.log.is_started:
            session.update(is_over)
        if session.has_failed:
            return False
        if had_ended:
            sessions.remove(session)
    return True
