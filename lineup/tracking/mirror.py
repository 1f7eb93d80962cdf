"""Makes MLflow equal to a run's folder; repeating it changes nothing.

A cursor per store remembers what was sent, so that repeating is quick. It counts only together
with the very experiment and run it was made for: a store that was made anew gets everything again.
A run log that was made from outputs (after `dvc pull`) adds nothing to a run that is there already.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import (
    DatasetInput,
    Experiment,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    Param,
    Run,
    ViewType,
)
from mlflow.exceptions import MlflowException

from lineup.errors import DamagedError
from lineup.files import read_json, sha256, write_json
from lineup.tracking.kept_epochs import send_epoch
from lineup.tracking.location import store_key
from lineup.tracking.names import RESTORED, RUN_ID, WEIGHTS_TAG
from lineup.tracking.points import log_metrics, to_metrics
from lineup.tracking.run_log import RunLog, now_ms
from lineup.tracking.store import open_experiment

MAX_POINTS = 500  # sent between two moves of the cursor; each has several metrics
MAX_PARAMS = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000
SECONDS_TO_DIE = 0.5  # a killed process closes its pipes before its locks


class Mirror:
    """The mirror of one run in one store."""

    def __init__(self, log: RunLog, client: MlflowClient, is_live: bool = False) -> None:
        self.log, self.client = log, client
        self.is_live = is_live  # the training goes on while this mirror is used
        self.note = ""  # what a person should know
        store = hashlib.sha256(store_key().encode()).hexdigest()[:16]
        self.cursor_file = log.folder / "mirrors" / f"{store}.json"
        self.lock = FileLock(log.folder / "mirrors" / f"{store}.lock")
        self.cursor_file.parent.mkdir(parents=True, exist_ok=True)
        self.experiment = self._find_experiment() or self._open_experiment()
        self.run: Run | None = None
        self.cursor: dict[str, Any] = {}
        self.status_sent = ""
        self.stamps: dict[str, tuple[int, int]] = {}  # of artifacts that need no second look
        self.known_times: dict[tuple[str, int], int] = {}  # of a clone's run

    def _find_experiment(self) -> Experiment | None:
        """Return the experiment that has this run, by whatever name, unless it was deleted."""
        birth = self._read_cursor().get("experiment")
        if birth is None:
            return None
        try:
            found = self.client.get_experiment(birth.partition("-")[0])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # it was purged
                return None
            raise
        is_same = _describe_birth(found) == birth and found.lifecycle_stage == "active"
        return found if is_same else None

    def _open_experiment(self) -> Experiment:
        name = self.log.start["experiment"]
        experiment, change = open_experiment(self.client, name)
        if change:
            self.note = f"experiment '{name}' was {change}"
        return experiment

    @property
    def experiment_id(self) -> str:
        """Return the id of the run's experiment."""
        return self.experiment.experiment_id

    @property
    def is_deleted(self) -> bool:
        """Tell whether somebody deleted this run, alone: it stays deleted."""
        return self.run is None

    def update(self) -> None:
        """Send what the store lacks: the run, its params, points, artifacts, status."""
        with self.lock:
            if self.run is None:
                self.run = self._find_or_create_run()
            if self.run is None:
                return
            if not self.cursor["is_guest"]:
                self._send_points()
                self._send_status()
                self._send_kept_epochs()
            self._send_artifacts()

    # --- the run ----------------------------------------------------------------------------------

    def _find_or_create_run(self) -> Run | None:
        cursor = self._read_cursor()
        born = _describe_birth(self.experiment)
        run = find_run(self.client, self.experiment_id, self.log.run_id)
        if run is not None and run.info.lifecycle_stage == "deleted":
            return None
        is_known_here = cursor.get("experiment") == born
        if run is None and is_known_here:  # and purged: somebody deleted it
            return None
        is_guest = run is not None and RESTORED in self.log.start["tags"]
        if run is None:
            run = self._create_run()
        if not is_known_here or cursor["run"] != run.info.run_id:
            cursor = {"experiment": born, "run": run.info.run_id, "points": 0, "artifacts": {}}
            cursor["is_guest"] = is_guest
        if not cursor["points"] and not cursor["is_guest"] and RESTORED in run.data.tags:
            self.known_times = self.find_times(run)  # a clone was faster
        self.cursor = cursor
        write_json(self.cursor_file, cursor)  # what follows may fail, and the run is ours
        if not cursor["is_guest"]:
            self._send_params(run)
            self._link_start(run)
        return run

    def find_times(self, run: Run | None = None) -> dict[tuple[str, int], int]:
        """Return the first time of each point of a run, this one by default, by name and step."""
        run = run or self.run
        found = [
            (name, metric.step, metric.timestamp)
            for name in run.data.metrics
            for metric in self.client.get_metric_history(run.info.run_id, name)
        ]
        return {(name, step): time for name, step, time in sorted(found, reverse=True)}

    def _read_cursor(self) -> dict[str, Any]:
        try:
            return read_json(self.cursor_file)
        except (FileNotFoundError, DamagedError):  # then all is sent once more
            return {}

    def _create_run(self) -> Run:
        start = self.log.start
        name = start.get("source", "stages/train.py")
        source = {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}
        if commit := start["tags"].get("git_commit"):
            source["mlflow.source.git.commit"] = commit
        if "parent" in start:
            parent = find_run(self.client, self.experiment_id, start["parent"])
            source["mlflow.parentRunId"] = parent.info.run_id if parent else ""
        tags = {RUN_ID: self.log.run_id, **source, **start["tags"]}
        return self.client.create_run(self.experiment_id, start["time"], tags, start["name"])

    def _send_params(self, run: Run) -> None:
        """Send params that the run lacks, and its datasets; a changed one raises in MLflow."""
        start, run_id = self.log.start, run.info.run_id
        values = {key: str(value)[:MAX_PARAM_LENGTH] for key, value in start["params"].items()}
        known = run.data.params
        params = [Param(key, value) for key, value in values.items() if known.get(key) != value]
        for first in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(run_id, params=params[first : first + MAX_PARAMS])
        if not run.inputs.dataset_inputs:
            self._send_datasets(run_id)

    def _send_datasets(self, run_id: str) -> None:
        """Name the data of a run; a database refuses those that two runs name at one moment."""
        datasets = [_dataset_input(*dataset) for dataset in self.log.start["datasets"].items()]
        try:
            self.client.log_inputs(run_id, datasets)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            self.client.log_inputs(run_id, datasets)

    def _link_start(self, run: Run) -> None:
        """Name the model whose weights the training started from, where this store has it."""
        digest = self.log.start["params"].get("pretrained.sha256")
        if not digest or run.inputs.model_inputs:
            return
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        query = f"tags.`{WEIGHTS_TAG}` = '{digest}'"
        found = self.client.search_logged_models(experiments, query, max_results=1)
        if found:
            start = LoggedModelInput(found[0].model_id)
            self.client.log_inputs(run.info.run_id, models=[start])

    # --- what grows -------------------------------------------------------------------------------

    def _send_points(self) -> None:
        points, end = self.log.read_points(self.cursor["points"], MAX_POINTS)
        while points:  # the cursor moves often: whoever waits sees that something is sent
            metrics = to_metrics(points)
            new = [one for one in metrics if (one.key, one.step) not in self.known_times]
            log_metrics(self.client, self.run.info.run_id, new)
            self._move_cursor(points=end)
            points, end = self.log.read_points(end, MAX_POINTS)

    def _send_artifacts(self) -> None:
        """Send files that the manifest lacks or has otherwise: MLflow lists no digests."""
        manifest = dict(self.cursor["artifacts"])
        for path in sorted(self.log.artifacts.rglob("*")):
            if not path.is_file() or path.name.endswith(".tmp"):
                continue
            name = path.relative_to(self.log.artifacts).as_posix()
            stamp = path.stat().st_mtime_ns, path.stat().st_size
            if self.stamps.get(name) == stamp:
                continue
            digest = sha256(path)
            if manifest.get(name) != digest:
                folder = str(Path(name).parent)
                place = None if folder == "." else folder
                self.client.log_artifact(self.run.info.run_id, str(path), place)
                manifest[name] = digest
                self._move_cursor(artifacts=dict(manifest))
            self.stamps[name] = stamp

    def _send_kept_epochs(self) -> None:
        """Make a LoggedModel of each epoch whose weights were kept, with its step and scores."""
        sent = self.cursor.get("epochs", [])
        for path in sorted(self.log.kept_epochs.glob("epoch-*.safetensors")):
            if path.name not in sent:
                send_epoch(self.client, self.run, self.log, path)
                sent = [*sent, path.name]
                self._move_cursor(epochs=sent)

    def _send_status(self) -> None:
        status, info = self._status(), self.run.info
        if status["status"] == self.status_sent:
            return
        self._send_error(status["error"])
        if status["status"] == "RUNNING":
            if info.status != "RUNNING":  # it was killed, and goes on
                self.client.update_run(info.run_id, status="RUNNING")
                self.run = self.client.get_run(info.run_id)
        else:
            end = max(status["time"], info.start_time)  # the clock may have been set back
            if (info.status, info.end_time) != (status["status"], end):
                self.client.set_terminated(info.run_id, status["status"], end)
        self.status_sent = status["status"]

    def _send_error(self, error: str) -> None:
        run_id = self.run.info.run_id
        if error:
            self.client.set_tag(run_id, "lineup.error", error[:MAX_TAG_LENGTH])
        elif "lineup.error" in self.run.data.tags:  # of a try before
            self.client.delete_tag(run_id, "lineup.error")

    def _status(self) -> dict[str, Any]:
        """Return the last status; KILLED where the training is gone without a word."""
        status = self.log.status
        if status["status"] != "RUNNING" or self.is_live:
            return status
        lock = self.log.start["tags"].get("lineup.lock")
        if lock and is_locked(Path(lock), SECONDS_TO_DIE):
            return status
        killed_before = self.run.info.status == "KILLED"
        time = self.run.info.end_time if killed_before else now_ms()
        return {"status": "KILLED", "time": time, "error": ""}

    def _move_cursor(self, **changes: Any) -> None:  # noqa: ANN401
        self.cursor |= changes
        write_json(self.cursor_file, self.cursor)

    # --- the model --------------------------------------------------------------------------------

    def find_model(self) -> LoggedModel | None:
        """Return the run's LoggedModel, finished or not."""
        query = f"tags.`{RUN_ID}` = '{self.log.run_id}'"
        found = self.client.search_logged_models([self.experiment_id], query)
        return next(iter(found), None)


def _describe_birth(experiment: Experiment) -> str:
    """Return what tells an experiment from all others, also from one of its number before it."""
    return f"{experiment.experiment_id}-{experiment.creation_time}"


def find_run(client: MlflowClient, experiment_id: str, run_id: str) -> Run | None:
    """Return the run with our id, deleted or not; one that lives comes first."""
    query = f"tags.`{RUN_ID}` = '{run_id}'"
    for view in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY):
        found = client.search_runs([experiment_id], query, view, max_results=1)
        if found:
            return found[0]
    return None


def _dataset_input(split: str, facts: dict[str, str]) -> DatasetInput:
    """Describe a split from name and digest alone: reading the data would take minutes."""
    made_by = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "stages/fetch.py"}
    source = CodeDatasetSource(made_by)
    dataset = MetaDataset(source, name=facts["name"], digest=facts["digest"])
    tag = InputTag("mlflow.data.context", split)
    return DatasetInput(dataset._to_mlflow_entity(), [tag])


def close_abandoned_runs(client: MlflowClient, host: str) -> None:
    """Mark runs of this host as KILLED whose training is gone: nobody holds its lock."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.host = '{host}'"
    for run in client.search_runs(experiments, query):
        if is_abandoned(Path(run.data.tags.get("lineup.lock", ""))):
            client.set_terminated(run.info.run_id, "KILLED")


def is_abandoned(lock: Path) -> bool:
    """Tell whether nobody holds the lock of a training; False for what can't be known."""
    try:
        return lock.is_absolute() and lock.parent.is_dir() and not is_locked(lock)
    except PermissionError:  # another user's
        return False


def is_locked(path: Path, timeout: float = 0) -> bool:
    """Tell whether a process holds a lock file, and goes on holding it for `timeout` seconds."""
    if not path.parent.is_dir():
        return False
    lock = FileLock(path, timeout=timeout)
    try:
        lock.acquire()
    except TimeoutError:
        return True
    lock.release()
    return False
