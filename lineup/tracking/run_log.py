"""What a run leaves behind, as files: the truth that MLflow mirrors.

.lineup/runs/<run id>/ holds
    start.json     experiment, name, params, tags, datasets, time, order, parent: written once
    points.jsonl   metrics, a line per step; append-only
    status.jsonl   RUNNING, FINISHED or FAILED, a line per change; append-only
    artifacts/     what is logged on the run, in its folders
    epochs/        weights of the epochs that the recipe keeps
    outputs/       weights, model.json and history, as train wrote them
    evaluation/    the deployable model, its scores and predictions, as evaluate wrote them
    evaluation.json digest and time of it
    promotion.json the wish of export to ship it
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from lineup.errors import DamagedError
from lineup.files import (
    explain_damage,
    flush,
    read_json,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)
from lineup.paths import run_dir, state_dir

LEFT_OUT = "its run is left out"


def now_ms() -> int:
    """Return the time in milliseconds, as MLflow counts it."""
    return time.time_ns() // 1_000_000


def next_ms() -> int:
    """Return the time in milliseconds, or later than any time before where the clock was set back.

    What is newest is decided by it: the version of an alias, the export that the gate obeys.
    """
    file = state_dir() / "clock"
    with FileLock(file.with_suffix(".lock")):
        last = 0
        with suppress(OSError, ValueError):  # there is none, or it is damaged
            last = int(file.read_text(encoding="utf-8"))
        moment = max(now_ms(), last + 1)
        write_text(file, str(moment))
    return moment


class RunLog:
    """The folder of one run. Only one process at a time appends points: who trains or scores it."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.folder = run_dir(run_id)
        self.start_file = self.folder / "start.json"
        self.points_file = self.folder / "points.jsonl"
        self.status_file = self.folder / "status.jsonl"
        self.artifacts = self.folder / "artifacts"
        self.kept_epochs = self.folder / "epochs"
        self.outputs = self.folder / "outputs"
        self.evaluation = self.folder / "evaluation"
        self.evaluation_note = self.folder / "evaluation.json"
        self.promotion_file = self.folder / "promotion.json"
        self._known_points: dict[tuple[int, str], dict[str, float]] | None = None

    @property
    def is_started(self) -> bool:
        """Tell whether the run has begun."""
        return self.start_file.exists()

    @property
    def start(self) -> dict[str, Any]:
        """Return the content of start.json."""
        return read_json(self.start_file, LEFT_OUT)

    def begin(self, start: dict[str, Any]) -> None:
        """Write start.json, once."""
        if not self.is_started:
            write_json(self.start_file, {"time": now_ms(), "order": next_ms()} | start)

    def add_point(self, step: int, values: dict[str, float], at: int | None = None) -> None:
        """Append metrics of a step; a resumed training may repeat them, which changes nothing."""
        if self._known_values(step, values) is None:
            self._append_point(step, values, at)

    def renew_point(self, step: int, values: dict[str, float]) -> None:
        """Append metrics of a step, measured anew, unless they are as they were."""
        if self._known_values(step, values) != values:
            self._append_point(step, values)

    def _known_values(self, step: int, values: dict[str, float]) -> dict[str, float] | None:
        """Return the last values of these metrics at a step."""
        if self._known_points is None:
            self._known_points = self._open_points()
        return self._known_points.get(_key(step, values))

    def _append_point(self, step: int, values: dict[str, float], at: int | None = None) -> None:
        self._known_points[_key(step, values)] = values
        _append(self.points_file, {"time": at or now_ms(), "step": step, "values": values})

    def _open_points(self) -> dict[tuple[int, str], dict[str, float]]:
        """Cut off a line that a kill left torn; return the values of the points that are there."""
        if not self.points_file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            return {}
        points, size = self.read_points()
        os.truncate(self.points_file, size)
        return {_key(point["step"], point["values"]): point["values"] for point in points}

    def read_points(
        self, offset: int = 0, most: int | None = None
    ) -> tuple[list[dict[str, Any]], int]:
        """Return points from byte `offset` on, without a torn last line, and where they end."""
        if not self.points_file.exists():
            return [], 0
        with self.points_file.open("rb") as file:
            file.seek(offset)
            content = file.read()
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)[:most]
        with explain_damage(self.points_file, LEFT_OUT):
            return [json.loads(line) for line in lines], offset + sum(map(len, lines))

    def set_status(self, status: str, error: str = "") -> None:
        """Append a status."""
        _append(self.status_file, {"time": now_ms(), "status": status, "error": error})

    @property
    def status(self) -> dict[str, Any]:
        """Return the last status: time, status, error."""
        if not self.status_file.exists():
            return {"time": self.start["time"], "status": "RUNNING", "error": ""}
        with explain_damage(self.status_file, LEFT_OUT):
            lines = self.status_file.read_text(encoding="utf-8").split("\n")[:-1]
            return json.loads(lines[-1])

    def add_artifact(self, source: Path, place: str = "") -> None:
        """Copy a file or folder to be logged on the run, in its folder `place`."""
        copy(source, self.artifacts / place / source.name)

    def sync_to_disk(self) -> None:
        """Bring what was appended safely to disk; a checkpoint is saved after it."""
        if self.points_file.exists():
            flush(self.points_file)


def _key(step: int, values: dict[str, float]) -> tuple[int, str]:
    return step, ",".join(values)


def _append(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder to `target`, whole or not at all, in place of what is there."""
    if source.is_dir():
        with replacing_folder(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
    else:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)


def run_logs() -> list[RunLog]:
    """Return the runs of this repository that have begun, oldest first."""
    times = {}
    for path in (state_dir() / "runs").glob("*/start.json"):
        log = RunLog(path.parent.name)
        try:
            times[log] = log.start.get("order", log.start["time"])  # an older Lineup wrote none
        except DamagedError as error:
            print(f"warning: {error}")
    return sorted(times, key=times.get)
