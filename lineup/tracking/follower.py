"""The process beside a training that mirrors its run: `python -m stages.sync --follow RUN`.

It imports no torch, so a training neither waits for MLflow nor shares Python's lock with it. Its
standard input is a pipe from the training: a line names another run to mirror, and when the pipe
closes, the training ended or was killed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress

import psutil

from lineup.tracking.run_log import RunLog

END_TIMEOUT_SECONDS = 10.0  # for the rest at the end; what is missing then, make sync brings
CPU_SECONDS = 0.5  # of computing, which is progress, too: a busy machine imports MLflow slowly
MOST_SECONDS = 60.0  # without anything sent


class Follower:
    """The training's side of that process."""

    def __init__(self, log: RunLog) -> None:
        self.logs = [log]
        command = [sys.executable, "-m", "stages.sync", "--follow", log.run_id]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the training's to answer
        )

    def add(self, log: RunLog) -> None:
        """Mirror another run too, from now on."""
        self.logs.append(log)
        with suppress(OSError):  # it was killed; make sync brings what it lacks
            self.process.stdin.write(f"{log.run_id}\n".encode())
            self.process.stdin.flush()

    def close(self) -> None:
        """Wait until the rest is mirrored, the store fails, or the user presses Ctrl-C."""
        with suppress(KeyboardInterrupt):
            self._wait()
        self.process.kill()
        if self.process.wait() != 0:
            print("MLflow lacks a part of this run, and nothing is lost; later: make sync")

    def _wait(self) -> None:
        with suppress(OSError):
            self.process.stdin.close()
        sent, computed = self._sent(), self._computed()
        sent_at = moved_at = now = time.monotonic()
        while now - moved_at < END_TIMEOUT_SECONDS and now - sent_at < MOST_SECONDS:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
                return
            now = time.monotonic()
            if self._sent() != sent:
                sent, sent_at, moved_at = self._sent(), now, now
            elif self._computed() > computed + CPU_SECONDS:
                computed, moved_at = self._computed(), now

    def _sent(self) -> list[int]:
        """Return what changes whenever something was sent."""
        folders = [log.folder / "mirrors" for log in self.logs]
        return [path.stat().st_mtime_ns for folder in folders for path in folder.glob("*.json")]

    def _computed(self) -> float:
        """Return the seconds that the process computed, 0 once it ended."""
        with suppress(psutil.Error):
            return sum(psutil.Process(self.process.pid).cpu_times()[:2])  # by itself, in the kernel
        return 0.0
