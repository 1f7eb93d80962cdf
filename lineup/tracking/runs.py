"""A training's run: made, continued, filled with points and files, and ended, as its journal says."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineup.tracking.journal import Event, Records
from lineup.tracking.store import experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

TRAINING = "lineup.training"  # the tag by which runs, models and versions are found
BATCH = 1000  # MLflow's limit of metrics per request


class Context:
    """What the handlers of one journal share."""

    def __init__(self, client: MlflowClient, journal: Records) -> None:
        self.client, self.journal = client, journal
        self.start = next(event for event in journal.events if event["do"] in ("start", "restore"))
        self.experiment = experiment_id(client, self.start["experiment"])
        self.registered = registered_name(self.start["experiment"])

    def file(self, name: str) -> Path:
        """Return the journal's copy of a file."""
        return self.journal.files / name

    @property
    def run(self) -> Run:
        """Return the training's run; one that was deleted meanwhile is made again."""
        found = find_run(self.client, self.experiment, self.journal.training)
        if found is None:
            handle_start(self, [self.start])
            found = find_run(self.client, self.experiment, self.journal.training)
        return found

    @property
    def model_id(self) -> str | None:
        """Return the id of the training's LoggedModel, if it is complete."""
        found = self.client.search_logged_models(
            [self.experiment], f"tags.`{TRAINING}` = '{self.journal.training}'"
        )
        return next((model.model_id for model in found if model.status == "READY"), None)

    @property
    def version(self) -> ModelVersion | None:
        """Return the training's registered version."""
        return find_version(self.client, self.registered, self.journal.training)


def registered_name(dataset: str) -> str:
    """Return the name of a dataset's registered model: what would break a models:/ address becomes a hyphen."""
    return re.sub(r"[^\w .-]", "-", dataset)


def find_run(client: MlflowClient, experiment: str, training: str) -> Run | None:
    """Return the run with this training's id, unless it was deleted."""
    return next(
        iter(client.search_runs([experiment], f"tags.`{TRAINING}` = '{training}'", max_results=1)),
        None,
    )


def find_version(client: MlflowClient, name: str, training: str) -> ModelVersion | None:
    """Return the version of a registered model with this training's id."""
    found = client.search_model_versions(
        f"name = '{name}' and tags.`{TRAINING}` = '{training}'", max_results=1
    )
    return next(iter(found), None)


def handle_start(context: Context, events: list[Event]) -> None:
    """Create the run with its params, tags and datasets, or find it."""
    from mlflow.entities import DatasetInput, InputTag, Param

    event, client = events[0], context.client
    run = find_run(client, context.experiment, context.journal.training)
    if run is None:
        source = {"mlflow.source.name": "stages/train.py", "mlflow.source.type": "LOCAL"}
        if commit := event["tags"].get("git_commit"):
            source["mlflow.source.git.commit"] = commit
        tags = {TRAINING: context.journal.training, **source, **event["tags"]}
        run = client.create_run(context.experiment, event["time"], tags, event["name"])
    run_id = run.info.run_id
    params = [
        Param(key, str(value)[:6000])
        for key, value in event["params"].items()
        if key not in run.data.params
    ]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    inputs = [
        DatasetInput(dataset_entity(event, part), [InputTag("mlflow.data.context", part)])
        for part in event["datasets"]
    ]
    client.log_inputs(run_id, inputs)


def dataset_entity(start: Event, part: str) -> Any:  # noqa: ANN401
    """Return MLflow's description of a part of the data, from name and digest alone, so that it is instant."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    facts = start["datasets"][part]
    made_by = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "stages/fetch.py"}
    return MetaDataset(
        CodeDatasetSource(made_by), name=facts["name"], digest=facts["digest"]
    )._to_mlflow_entity()


def handle_resume(context: Context, events: list[Event]) -> None:
    """Open the run again after a kill."""
    context.client.update_run(context.run.info.run_id, status="RUNNING")


def handle_metrics(context: Context, events: list[Event]) -> None:
    """Log points, each with its own time and step."""
    from mlflow.entities import Metric

    points = [
        Metric(name, float(value), event["time"], event["step"])
        for event in events
        for name, value in event["values"].items()
    ]
    run_id = context.run.info.run_id
    for start in range(0, len(points), BATCH):
        context.client.log_batch(run_id, metrics=points[start : start + BATCH])


def handle_artifact(context: Context, events: list[Event]) -> None:
    """Log a file or a folder of the journal."""
    event, run_id = events[0], context.run.info.run_id
    path = context.file(event["file"])
    if path.is_dir():
        context.client.log_artifacts(run_id, str(path), event["folder"])
    else:
        context.client.log_artifact(run_id, str(path), event["folder"])


def handle_end(context: Context, events: list[Event]) -> None:
    """Close the run with its status; a failed one says why."""
    event, run = events[0], context.run
    run_id = run.info.run_id
    if event["error"]:
        context.client.set_tag(run_id, "lineup.error", event["error"][:5000])
    elif "lineup.error" in run.data.tags:  # of a try before
        context.client.delete_tag(run_id, "lineup.error")
    context.client.set_terminated(run_id, event["status"], event["time"])


def end_abandoned_runs(client: MlflowClient) -> None:
    """Mark runs of this host as KILLED whose training is running no more: nobody holds its lock."""
    from filelock import FileLock, Timeout

    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    host = socket.gethostname()
    for run in client.search_runs(
        experiments, f"attributes.status = 'RUNNING' and tags.host = '{host}'"
    ):
        lock = Path(run.data.tags.get("lineup.lock", ""))
        if not lock.is_absolute() or not lock.parent.is_dir():
            continue
        with contextlib.suppress(Timeout), FileLock(lock, timeout=0):
            client.set_terminated(run.info.run_id, "KILLED")
