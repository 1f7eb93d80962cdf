"""The run of a search, and those of its trials, which are its children in MLflow."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from lineup.params import Params
from lineup.tracking import lineage
from lineup.tracking.follower import Follower
from lineup.tracking.run_log import RunLog
from lineup.tracking.run_recorder import RunWriter, how_it_ended, record_lineage
from lineup.tracking.run_start import describe_run
from lineup.training.checkpoints import Checkpoint
from lineup.training.setup import Setup

SOURCE = "stages/search.py"


class SearchRecorder:
    """A context around a search: what it found, and a process that mirrors all of its runs."""

    def __init__(
        self, run_id: str, setup: Setup, params: Params, ranges: dict[str, str], lock_file: Path
    ) -> None:
        self.log, self.patch = RunLog(run_id), lineage.changes()
        if not self.log.is_started:
            record_lineage(self.log, setup, self.patch)
            start = describe_run(setup, params, lock_file, self.patch)
            texts = {f"search.{key}": text for key, text in ranges.items()}
            name = f"search {setup.architecture}"
            self.log.begin(start | {"name": name, "params": texts, "source": SOURCE})
        self.log.set_status("RUNNING")

    def __enter__(self) -> SearchRecorder:
        self.follower = Follower(self.log)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.set_status(*how_it_ended(error))
        self.follower.close()

    def trial(
        self, number: int, setup: Setup, params: Params, checkpoint: Checkpoint
    ) -> TrialRecorder:
        """Return what records one trial."""
        recorder = TrialRecorder(setup, checkpoint.run_id)
        if not recorder.log.is_started:
            start = describe_run(setup, params, checkpoint.lock_file, self.patch)
            name = f"{setup.architecture} trial {number}"
            child = {"name": name, "parent": self.log.run_id, "source": SOURCE}
            recorder.log.begin(start | child)
        recorder.record_history()
        self.follower.add(recorder.log)
        return recorder

    def add_best(self, count: int, best: dict[str, float]) -> None:
        """Record the best score of `count` whole trials, by the name of its metric."""
        self.log.add_point(count, best)

    def add_results(self, folder: Path) -> None:
        """Log the files of `folder`."""
        for path in sorted(folder.glob("*")):
            self.log.add_artifact(path)


class TrialRecorder(RunWriter):
    """A context around the loop of one trial."""

    def __enter__(self) -> TrialRecorder:
        self.log.set_status("RUNNING")
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        progress = self.setup.trainer.progress
        if error is None and progress.history:
            # MLflow shows the last values: here those that the trial is judged by
            self.log.add_point(progress.epoch, progress.best_scores)
        self.log.set_status(*how_it_ended(error))
