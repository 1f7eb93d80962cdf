"""What is to be recorded of a training, in order and on disk, so that no death of a server or a process loses it.

.lineup/journal/<training>/ holds events.jsonl (append-only), files/ (copies of what is to be logged) and the number of
events already delivered. An event has a key; appending a key again changes nothing: a resumed training may repeat itself.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.lib.checkpoints import private_folder
from stages.lib.files import write_text

Event = dict[str, Any]


class Journal:
    """The journal of one training."""

    def __init__(self, training: str) -> None:
        self.training = training
        self.folder = private_folder() / "journal" / training
        self.path = self.folder / "events.jsonl"
        self.files = self.folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.mutex = threading.Lock()
        self.decision = ""  # of the gate, in words
        self.events = self.read()
        self.keys = {event["key"] for event in self.events}
        self.file = self.path.open("ab")

    def read(self) -> list[Event]:
        """Return the events on disk; a torn last line, left by a kill, is cut off."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def append(self, key: str, do: str, **arguments: Any) -> None:  # noqa: ANN401
        """Add the event `do` unless its key is known; it carries the time in milliseconds."""
        with self.mutex:
            if key in self.keys:
                return
            event = {"key": key, "do": do, "time": time.time_ns() // 1_000_000, **arguments}
            self.file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
            self.file.flush()
            self.events.append(event)
            self.keys.add(key)

    def copy(self, source: Path, name: str) -> str:
        """Copy a file or folder into the journal and return its name there."""
        target = self.files / name
        if not target.exists():
            temporary = self.folder / f".{name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, temporary)
            temporary.rename(target)
        return name

    def flush(self) -> None:
        """Bring what was appended safely to disk."""
        with self.mutex:
            os.fsync(self.file.fileno())

    @property
    def delivered(self) -> int:
        """Return how many events the tracking store has."""
        path = self.folder / "delivered"
        return int(path.read_text()) if path.exists() else 0

    @delivered.setter
    def delivered(self, count: int) -> None:
        write_text(self.folder / "delivered", str(count))

    @property
    def pending(self) -> int:
        """Return how many events the tracking store lacks."""
        return len(self.events) - self.delivered

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Yield whether this process may deliver now: one at a time does."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder.with_suffix(".lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def remove(self) -> None:
        """Remove the journal and its lock."""
        self.file.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_suffix(".lock").unlink(missing_ok=True)


def journals() -> list[Journal]:
    """Return every journal of this repository, oldest first."""
    folders = [path for path in (private_folder() / "journal").glob("*") if path.is_dir()]
    return [Journal(path.name) for path in sorted(folders, key=lambda path: path.stat().st_ctime)]
