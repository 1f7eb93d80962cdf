"""What is to be recorded of a training, in order and on disk, so that no death of a server or a process loses it.

.lineup/journal/<training>/ holds events.jsonl (append-only), files/ (copies of what is to be logged) and the number of
events already delivered. An event has a key; appending a key again changes nothing: a resumed training may repeat
itself. One process at a time has a training's journal open to append, and one at a time delivers from it; others wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from lineup.files import flush, write_text
from lineup.training.checkpoints import private_folder

Event = dict[str, Any]


class Records:
    """What the journal of one training holds, as one who delivers it sees it."""

    def __init__(self, training: str) -> None:
        from filelock import FileLock

        self.training = training
        self.folder = private_folder() / "journal" / training
        self.path = self.folder / "events.jsonl"
        self.files = self.folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.delivery_lock = FileLock(self.folder.with_suffix(".delivery.lock"))
        self.decision = ""  # of the gate, in words
        self.events: list[Event] = []
        self.bytes = 0  # of the events, on disk

    def read(self) -> None:
        """Read the events that others added meanwhile; a torn last line, left by a kill, is none."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.bytes)
            added = file.read()
        added = added[: added.rfind(b"\n") + 1]
        self.events += [json.loads(line) for line in added.splitlines()]
        self.bytes += len(added)

    def flush(self) -> None:
        """Bring what was appended safely to disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    @property
    def delivered(self) -> int:
        """Return how many events the tracking store has."""
        path = self.folder / "delivered"
        return int(path.read_text()) if path.exists() else 0

    @delivered.setter
    def delivered(self, count: int) -> None:
        self.flush()  # or a power failure could leave fewer events than were delivered
        write_text(self.folder / "delivered", str(count))

    @property
    def pending(self) -> int:
        """Return how many events the tracking store lacks."""
        return len(self.events) - self.delivered


class Journal(Records):
    """A journal to append to, locked until `close`; filelock's Timeout if another process keeps it for longer."""

    def __init__(self, training: str, timeout: float = -1) -> None:
        from filelock import FileLock

        folder = private_folder() / "journal"
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / f"{training}.lock", thread_local=False)
        self.lock.acquire(timeout)
        super().__init__(training)
        self.read()
        self.file = self.path.open("ab")
        self.file.truncate(self.bytes)
        self.keys = {event["key"] for event in self.events}

    def append(self, key: str, do: str, **arguments: Any) -> None:  # noqa: ANN401
        """Add the event `do` unless its key is known; it carries the time in milliseconds."""
        if key in self.keys:
            return
        event = {"key": key, "do": do, "time": time.time_ns() // 1_000_000, **arguments}
        self.bytes += self.file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
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
            for path in [temporary, *temporary.rglob("*")]:
                if path.is_file():
                    flush(path)
            temporary.rename(target)
        return name

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes open the journal."""
        self.file.close()
        self.lock.release()

    def remove(self) -> None:
        """Remove the journal and its lock, and close it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for suffix in (".lock", ".delivery.lock"):
            self.folder.with_suffix(suffix).unlink(missing_ok=True)
        self.close()


def trainings() -> list[str]:
    """Return the trainings that have a journal in this repository, oldest first."""
    begun = {}
    for path in (private_folder() / "journal").glob("*/events.jsonl"):
        with (
            path.open(encoding="utf-8") as file,
            contextlib.suppress(ValueError),
        ):  # a first line cut off by a kill
            begun[path.parent.name] = json.loads(file.readline())["time"]
    return sorted(begun, key=begun.get)
