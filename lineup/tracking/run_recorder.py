"""Writes a training's run folder, while a process beside it mirrors that folder to MLflow."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from lineup.evaluation.plots import draw_learning_curves
from lineup.files import write_json
from lineup.params import Params
from lineup.paths import HISTORY
from lineup.tensors import write_tensors
from lineup.tracking import lineage
from lineup.tracking.follower import Follower
from lineup.tracking.run_log import RunLog, copy
from lineup.tracking.run_start import describe_lineage, describe_run
from lineup.tracking.system_metrics import SystemMetrics
from lineup.training.checkpoints import Checkpoint
from lineup.training.session import Interrupted
from lineup.training.setup import Setup
from lineup.training.trainer import Epoch, Event, Means


class RunWriter:
    """Appends what happens in a training to its run folder."""

    def __init__(self, setup: Setup, run_id: str) -> None:
        self.setup, self.log = setup, RunLog(run_id)
        self.system_metrics = SystemMetrics()

    def record_history(self) -> None:
        """Append the epochs that were trained in a time without tracking."""
        for row in self.setup.trainer.progress.history:
            self.record(Epoch(row, weights=None))

    def record(self, event: Event) -> None:
        """Append what happened to the run log."""
        match event:
            case Means(step, values):
                self.log.add_point(step, values)
                if not self.setup.machine.node and (used := self.system_metrics.sample()):
                    self.log.add_point(step, used)
            case Epoch(row, weights):
                values = {name: value for name, value in row.items() if name != "epoch"}
                self.log.add_point(int(row["epoch"]), values)
                if weights is not None:
                    name = f"epoch-{row['epoch']:03d}.safetensors"
                    write_tensors(self.log.kept_epochs / name, weights)

    def flush(self) -> None:
        """Bring the run log to disk: a checkpoint must not know more than it."""
        self.log.sync_to_disk()


class RunRecorder(RunWriter):
    """The run of one training: a context around its loop."""

    def __init__(
        self, setup: Setup, params: Params, checkpoint: Checkpoint, is_resumed: bool
    ) -> None:
        super().__init__(setup, checkpoint.run_id)
        self.checkpoint, self.is_resumed = checkpoint, is_resumed
        if not self.log.is_started:
            patch = lineage.changes()
            record_lineage(self.log, setup, patch)
            self.log.begin(describe_run(setup, params, checkpoint.lock_file, patch))
        self.record_history()
        self.log.set_status("RUNNING")

    def __enter__(self) -> RunRecorder:
        self.started_at = time.monotonic()
        self.follower = Follower(self.log)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.log.set_status(*how_it_ended(error))
        self.follower.close()

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


def how_it_ended(error: BaseException | None) -> tuple[str, str]:
    """Return MLflow's status for what ended with `error`, and the text of a failure."""
    if error is None:
        return "FINISHED", ""
    if isinstance(error, (Interrupted, SystemExit, KeyboardInterrupt)):
        return "KILLED", ""
    return "FAILED", str(error) or type(error).__name__


def record_lineage(log: RunLog, setup: Setup, patch: bytes | None) -> None:
    """Log where a run comes from; `patch` is what changed since the last commit."""
    write_json(log.artifacts / "lineage" / "lineage.json", describe_lineage(setup))
    if patch is None:
        text = f"warning: what changed since the last commit is {lineage.TOO_LARGE}"
        print(f"{text}; commit or ignore it")
    if patch:
        (log.artifacts / "lineage" / "changes.patch").write_bytes(patch)
