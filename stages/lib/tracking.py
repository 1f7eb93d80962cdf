"""The only module that knows MLflow: delivers a training's journal to the tracking store and keeps the model registry.

Every handler below may be called again after a crash: runs, models and versions are looked up by the training's id
before they are made, and points keep the time at which they were measured.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from stages.lib.checkpoints import private_folder
from stages.lib.files import read_json
from stages.lib.journal import Event, Journal, journals

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

TRAINING = "lineup.training"  # the tag by which runs, models and versions are found
BATCH = 1000  # MLflow's limit of metrics per request
SECONDS_BETWEEN_TRIES = 15.0
SECONDS_TO_FINISH = 20.0


def enabled() -> bool:
    """Tell whether tracking is on; LINEUP_TRACKING=off turns it off."""
    return os.environ.get("LINEUP_TRACKING", "on").lower() not in ("off", "0", "false", "no")


# --- the store --------------------------------------------------------------------------------------------------------


def store_root() -> Path:
    """Return the folder that holds mlflow.db and mlartifacts/: the repository's root."""
    return private_folder().parent


def store_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the SQLite store of this repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store_root() / 'mlflow.db'}"


def connect() -> MlflowClient:
    """Return a client of the store that fails fast; creates the SQLite store under a lock, in write-ahead mode."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = store_uri()
    check_reachable(uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if uri.startswith("sqlite:///") and not os.environ.get("MLFLOW_TRACKING_URI"):
        create_store(uri)
    return mlflow.MlflowClient(uri, uri)


def check_reachable(uri: str) -> None:
    """Raise ConnectionError at once if nothing listens where an HTTP store should be."""
    address = urlparse(uri)
    if address.scheme in ("http", "https"):
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=3).close()


def create_store(uri: str) -> None:
    """Create the SQLite store once, whatever number of processes come at the same time."""
    import sqlite3

    from filelock import FileLock

    path = Path(uri.removeprefix("sqlite:///"))
    with FileLock(private_folder() / "store.lock"):
        if path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        new = path.with_suffix(".db.new")
        new.unlink(missing_ok=True)
        SqlAlchemyStore(f"sqlite:///{new}", str(store_root() / "mlartifacts")).engine.dispose()
        with contextlib.closing(sqlite3.connect(new)) as database:
            database.execute("PRAGMA journal_mode=WAL")
        new.rename(path)


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of the experiment, made if need be with an absolute place for its artifacts, restored if deleted."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = not os.environ.get("MLFLOW_TRACKING_URI")
        try:
            return client.create_experiment(name, str(store_root() / "mlartifacts") if local else None)
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


# --- delivery ---------------------------------------------------------------------------------------------------------


def deliver(journal: Journal, client: MlflowClient) -> None:
    """Bring the journal's pending events to the store, in order; raises where the store fails, to be called again."""
    with journal.lock() as mine:
        if not mine:
            return
        context = Context(client, journal)
        while journal.pending:
            events = journal.events[journal.delivered :]
            first = events[0]["do"]
            same = next(list(group) for do, group in groupby(events, key=lambda event: event["do"]))
            same = same[: BATCH // 10] if first == "metrics" else same[:1]
            HANDLERS[first](context, same)
            journal.delivered += len(same)


class Context:
    """What the handlers of one journal share."""

    def __init__(self, client: MlflowClient, journal: Journal) -> None:
        self.client, self.journal = client, journal
        self.start = next(event for event in journal.events if event["do"] == "start")
        self.experiment = experiment_id(client, self.start["experiment"])
        self.registered = self.start["experiment"]

    def file(self, name: str) -> Path:
        """Return the journal's copy of a file."""
        return self.journal.files / name

    @property
    def run(self) -> Run:
        """Return the training's run."""
        run = find_run(self.client, self.experiment, self.journal.training)
        if run is None:
            raise LookupError(f"the run of training {self.journal.training} is gone from the tracking store")
        return run

    @property
    def model_id(self) -> str | None:
        """Return the id of the training's LoggedModel, if it is complete."""
        found = self.client.search_logged_models([self.experiment], f"tags.`{TRAINING}` = '{self.journal.training}'")
        return next((model.model_id for model in found if model.status == "READY"), None)

    @property
    def version(self) -> ModelVersion | None:
        """Return the training's registered version."""
        return find_version(self.client, self.registered, self.journal.training)


def find_run(client: MlflowClient, experiment: str, training: str) -> Run | None:
    """Return the run with this training's id, unless it was deleted."""
    return next(iter(client.search_runs([experiment], f"tags.`{TRAINING}` = '{training}'", max_results=1)), None)


def find_version(client: MlflowClient, name: str, training: str) -> ModelVersion | None:
    """Return the version of a registered model with this training's id."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{TRAINING}` = '{training}'", max_results=1)
    return next(iter(found), None)


# --- handlers: what a journal's events do -------------------------------------------------------------------------------


def handle_start(context: Context, events: list[Event]) -> None:
    """Create the run with its params, tags and datasets, or find it."""
    from mlflow.entities import DatasetInput, InputTag, Param

    event, client = events[0], context.client
    run = find_run(client, context.experiment, context.journal.training)
    if run is None:
        tags = {TRAINING: context.journal.training, **event["tags"]}
        run = client.create_run(context.experiment, event["time"], tags, event["name"])
    run_id = run.info.run_id
    params = [Param(key, str(value)[:6000]) for key, value in event["params"].items() if key not in run.data.params]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    inputs = [
        DatasetInput(dataset_entity(event, part), [InputTag("mlflow.data.context", part)]) for part in event["datasets"]
    ]
    client.log_inputs(run_id, inputs)


def dataset_entity(start: Event, part: str) -> Any:  # noqa: ANN401
    """Return MLflow's description of a part of the data, from name and digest alone, so that it is instant."""
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    facts = start["datasets"][part]
    source = HTTPDatasetSource(facts["source"])
    return MetaDataset(source, name=facts["name"], digest=facts["digest"])._to_mlflow_entity()


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


def handle_model(context: Context, events: list[Event]) -> None:
    """Log the model as pt2 and register it as a version, unless a former try did."""
    from mlflow.exceptions import MlflowException

    description = read_json(context.file(events[0]["file"]) / "model.json")
    model_id = context.model_id or log_model(context, context.file(events[0]["file"]), description)
    if context.version is None:
        with contextlib.suppress(MlflowException):  # it exists
            context.client.create_registered_model(
                context.registered, description=f"Image classifiers trained on {context.registered}."
            )
        context.client.create_model_version(
            context.registered,
            source=f"models:/{model_id}",
            run_id=context.run.info.run_id,
            model_id=model_id,
            tags={TRAINING: context.journal.training, **version_tags(description)},
        )


def version_tags(description: dict[str, Any]) -> dict[str, str]:
    """Return what a version says of itself."""
    facts = {
        "architecture": description["architecture"],
        "parameters": description["parameters"],
        "split": description["split"],
        **description["validation"],
    }
    return {key: str(value) for key, value in facts.items()}


def log_model(context: Context, folder: Path, description: dict[str, Any]) -> str:
    """Log a models/<architecture> folder as a LoggedModel: pt2, signature, input example, pinned requirements."""
    import mlflow
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from stages.lib import deployment

    module = deployment.load(folder)
    example = module.example(2).numpy()
    answer = np.dtype("float32"), (-1, len(description["classes"]))
    signature = ModelSignature(
        Schema([TensorSpec(example.dtype, (-1, *description["shape"]))]), Schema([TensorSpec(*answer)])
    )
    mlflow.set_experiment(experiment_id=context.experiment)
    with mlflow.start_run(run_id=context.run.info.run_id):
        return mlflow.pytorch.log_model(
            module,
            name=description["architecture"],
            serialization_format="pt2",
            signature=signature,
            input_example=example,
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
                f"numpy=={np.__version__}",
            ],
            extra_files=[str(folder / "model.json")],
            tags={TRAINING: context.journal.training, **version_tags(description)},
        ).model_id


def handle_end(context: Context, events: list[Event]) -> None:
    """Close the run with its status; a failed one says why."""
    event, run_id = events[0], context.run.info.run_id
    if event["error"]:
        context.client.set_tag(run_id, "lineup.error", event["error"][:5000])
    context.client.set_terminated(run_id, event["status"], event["time"])


HANDLERS: dict[str, Callable[[Context, list[Event]], None]] = {
    "start": handle_start,
    "resume": handle_resume,
    "metrics": handle_metrics,
    "artifact": handle_artifact,
    "model": handle_model,
    "end": handle_end,
}


# --- during a training --------------------------------------------------------------------------------------------------


class Courier:
    """Delivers a journal while the training goes on, in a thread of its own; what fails waits for a later try."""

    def __init__(self, journal: Journal, warn: Callable[[str], None]) -> None:
        self.journal, self.warn = journal, warn
        self.client: MlflowClient | None = None
        self.failed_at: float | None = None
        self.warned = False
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)

    def start(self) -> None:
        """Import MLflow here, before the training's first step, and deliver from now on."""
        import mlflow  # noqa: F401

        self.thread.start()

    def work(self) -> None:
        """Deliver every second; after a failure only now and then."""
        while not self.closing.wait(1.0):
            if self.failed_at is None or time.monotonic() - self.failed_at > SECONDS_BETWEEN_TRIES:
                self.attempt()

    def attempt(self) -> None:
        """Deliver what is pending; a failure is reported once."""
        try:
            if self.client is None:
                client = connect()
                end_abandoned_runs(client)
                self.client = client
            deliver(self.journal, self.client)
            self.failed_at = None
        except Exception as error:
            self.failed_at = time.monotonic()
            if not self.warned:
                self.warned = True
                self.warn(
                    f"MLflow at {store_uri()} can't be reached ({summary(error)}); the training goes on, all is kept"
                )

    def finish(self) -> None:
        """Deliver the rest, as long as the store answers."""
        self.closing.set()
        self.thread.join(SECONDS_TO_FINISH)
        if not self.thread.is_alive() and self.failed_at is None:
            self.attempt()
        if self.journal.pending:
            self.warn(f"{self.journal.pending} events of this training are not in MLflow yet; later: make sync")


def summary(error: Exception) -> str:
    """Return the first line of an error's text, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def end_abandoned_runs(client: MlflowClient) -> None:
    """Mark runs of this host as KILLED whose training is running no more: nobody holds its lock."""
    from filelock import FileLock, Timeout

    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    host = socket.gethostname()
    for run in client.search_runs(experiments, f"attributes.status = 'RUNNING' and tags.host = '{host}'"):
        lock = Path(run.data.tags.get("lineup.lock", ""))
        if not lock.is_absolute() or not lock.parent.is_dir():
            continue
        with contextlib.suppress(Timeout), FileLock(lock, timeout=0):
            client.set_terminated(run.info.run_id, "KILLED")


# --- after a training ---------------------------------------------------------------------------------------------------


def sync() -> int:
    """Deliver every journal; remove those that are complete and no longer needed; return the number of pending events."""
    pending, client = 0, None
    for journal in journals():
        if journal.pending:
            client = client or connect()
            deliver(journal, client)
        pending += journal.pending
    return pending
