"""Writes a training's run folder, while a process beside it mirrors that folder to MLflow."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from lineup.evaluation.plots import draw_learning_curves
from lineup.params import Params
from lineup.paths import HISTORY
from lineup.tensors import write_tensors
from lineup.tracking import lineage
from lineup.tracking.follower import Follower
from lineup.tracking.run_log import RunLog, copy
from lineup.tracking.run_start import describe_run
from lineup.training.checkpoints import Checkpoint
from lineup.training.setup import Setup
from lineup.training.trainer import Epoch, Event, Means


class RunRecorder:
    """The run of one training: a context around its loop."""

    def __init__(
        self, setup: Setup, params: Params, checkpoint: Checkpoint, is_resumed: bool
    ) -> None:
        self.setup, self.checkpoint, self.is_resumed = setup, checkpoint, is_resumed
        self.log = RunLog(checkpoint.run_id)
        if not self.log.is_started:
            self._begin(params)
        self.log.set_status("RUNNING")

    def _begin(self, params: Params) -> None:
        patch = lineage.changes()
        if patch is None:
            text = f"warning: what changed since the last commit is {lineage.TOO_LARGE}"
            print(f"{text}; commit or ignore it")
        if patch:
            path = self.log.artifacts / "lineage" / "changes.patch"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(patch)
        self.log.begin(describe_run(self.setup, params, self.checkpoint.lock_file, patch))
        for row in self.setup.trainer.progress.history:  # of a time when tracking was off
            self.record(Epoch(row, weights=None))

    def __enter__(self) -> RunRecorder:
        self.started_at = time.monotonic()
        self.follower = Follower(self.log)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            self.log.set_status("KILLED")
        elif error is not None:
            self.log.set_status("FAILED", str(error) or type(error).__name__)
        self.follower.close()

    def record(self, event: Event) -> None:
        """Append what happened to the run log."""
        match event:
            case Means(step, values):
                self.log.add_point(step, values)
            case Epoch(row, weights):
                values = {name: value for name, value in row.items() if name != "epoch"}
                self.log.add_point(int(row["epoch"]), values)
                if weights is not None:
                    name = f"epoch-{row['epoch']:03d}.safetensors"
                    write_tensors(self.log.artifacts / "epochs" / name, weights)

    def flush(self) -> None:
        """Bring the run log to disk: a checkpoint must not know more than it."""
        self.log.sync_to_disk()

    def finish(self, folder: Path) -> None:
        """Add outputs, curves and log file, and close the run."""
        progress = self.setup.trainer.progress
        if not self.is_resumed:  # else the time is that of the last piece alone
            seconds = time.monotonic() - self.started_at
            self.log.add_point(progress.epoch, {"training_seconds": seconds})
        curves = self.log.artifacts / "plots" / "learning_curves.png"
        draw_learning_curves({self.setup.architecture: progress.history}, curves)
        self.log.add_artifact(self.checkpoint.log_file, "log")
        self.log.add_artifact(folder / HISTORY)
        copy(folder, self.log.outputs)
        self.log.set_status("FINISHED")
        self.flush()
