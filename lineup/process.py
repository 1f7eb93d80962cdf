"""A stage ends when the dvc that started it dies: an orphan would overwrite later results."""

from __future__ import annotations

import os
import threading
import time

import psutil

SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"}
INIT_PROCESSES = {"systemd", "init", "launchd", "tini", "dumb-init", "docker-init"}
SECONDS_BETWEEN_LOOKS = 0.3
TERMINATED = 143  # the exit code of a process that SIGTERM ended


def end_with_parent() -> None:
    """Under DVC, end this process as soon as the `dvc` that started it is gone."""
    if "DVC_STAGE" not in os.environ:
        return
    ancestors = _ancestors_up_to_dvc()
    if _is_orphan(ancestors[-1]):  # dvc died while this process was starting
        os._exit(TERMINATED)

    def watch() -> None:
        while all(map(is_alive, ancestors)):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(TERMINATED)

    threading.Thread(target=watch, daemon=True).start()


def _ancestors_up_to_dvc() -> list[psutil.Process]:
    """Return the shells that started this process, and behind them what started these."""
    ancestors = []
    for ancestor in psutil.Process().parents():
        ancestors.append(ancestor)
        if ancestor.name() not in SHELLS:
            break
    return ancestors


def _is_orphan(ancestor: psutil.Process) -> bool:
    if ancestor.name() in INIT_PROCESSES:
        return True
    return ancestor.pid == 1 and "dvc" not in " ".join(ancestor.cmdline())


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process lives: its id not reused, and no zombie that nobody waited for."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
