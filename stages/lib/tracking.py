"""The only module that knows MLflow: delivers a training's journal to the tracking store and keeps the model registry.

Every handler below may be called again after a crash: runs, models and versions are looked up by the training's id
before they are made, and points keep the time at which they were measured.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import logging
import os
import re
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.checkpoints import checkpoint_of, private_folder
from stages.lib.files import read_json, read_tensors, sha256
from stages.lib.journal import Event, Journal, trainings
from stages.lib.lineage import dataset_facts, flattened
from stages.lib.terminal import UserError, progress

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from torch import Tensor

SERVER = os.environ.get("MLFLOW_TRACKING_URI", "")  # read once: MLflow sets the variable itself later
TRAINING = "lineup.training"  # the tag by which runs, models and versions are found
BATCH = 1000  # MLflow's limit of metrics per request
SECONDS_BETWEEN_TRIES = 15.0
SECONDS_TO_ANSWER = 5.0
SECONDS_FOR_FAILURES = 10.0  # of one evaluate, export or sync; the rest waits for make sync


def enabled() -> bool:
    """Tell whether tracking is on; LINEUP_TRACKING=off turns it off."""
    return os.environ.get("LINEUP_TRACKING", "on").lower() not in ("off", "0", "false", "no")


# --- the store --------------------------------------------------------------------------------------------------------


def store_root() -> Path:
    """Return the folder that holds mlflow.db and mlartifacts/: the repository's root."""
    return private_folder().parent


def database() -> Path | None:
    """Return the file of the SQLite store, the repository's own unless MLFLOW_TRACKING_URI names another store."""
    if SERVER and not SERVER.startswith("sqlite:///"):
        return None
    return store_root() / (SERVER.removeprefix("sqlite:///") or "mlflow.db")


def store_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the SQLite store of this repository, as an absolute address."""
    return f"sqlite:///{database()}" if database() else SERVER


def connect() -> MlflowClient:
    """Return a client of the store that fails fast; creates the SQLite store under a lock, in write-ahead mode."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised, and reported by us
    uri = store_uri()
    check_reachable(uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with store_lock():
        if file := database():
            create_store(file)
        try:
            client = mlflow.MlflowClient(uri, uri)
        except mlflow.exceptions.MlflowException as error:
            if "db upgrade" not in str(error):
                raise
            command = f"mlflow db upgrade {uri}"
            raise ConnectionError(f"an older MLflow made it; keep a copy, then run: {command}") from None
        if file:
            relocate(file)
    return client


def check_reachable(uri: str) -> None:
    """Raise ConnectionError within seconds if nothing answers where an HTTP store should be."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    with contextlib.suppress(requests.exceptions.SSLError):  # something answers; MLflow has settings for this
        try:
            requests.head(uri, timeout=SECONDS_TO_ANSWER)
        except requests.exceptions.Timeout:
            raise ConnectionError(f"no answer within {SECONDS_TO_ANSWER:.0f} s") from None
        except requests.exceptions.ConnectionError:
            raise ConnectionError("nothing listens there") from None


def store_lock() -> FileLock:
    """Return the lock under which processes of this repository open the store: migrations do not bear company."""
    from filelock import FileLock

    return FileLock(private_folder() / "store.lock")


def create_store(path: Path) -> None:
    """Create the SQLite store if it is not there; have it in write-ahead mode, in which readers block nobody."""
    import sqlite3

    if path.exists():
        with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_suffix(".db.new")
    new.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{new}", str(path.parent / "mlartifacts")).engine.dispose()
    with contextlib.closing(sqlite3.connect(new)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    new.rename(path)


def relocate(path: Path) -> None:
    """Tell the store of a repository that was moved or copied where its artifacts are now: MLflow keeps full paths."""
    import sqlite3

    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    here = str(path.parent / "mlartifacts")
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        found = connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()
        before = found[0].removesuffix("/0") if found else here
        if before == here or not before.startswith("/") or not before.endswith("/mlartifacts"):
            return
        for table, column in columns.items():
            moved = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
            connection.execute(moved, (here, len(before) + 1, len(before), before))


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of the experiment: found, restored, or made with an absolute place for its artifacts."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            file = database()
            return client.create_experiment(name, str(file.parent / "mlartifacts") if file else None)
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


# --- delivery ---------------------------------------------------------------------------------------------------------


def deliver(journal: Journal, client: MlflowClient) -> None:
    """Bring the journal's pending events to the store, in order; raises where the store fails, to be called again."""
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
        found = self.client.search_logged_models([self.experiment], f"tags.`{TRAINING}` = '{self.journal.training}'")
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
    return next(iter(client.search_runs([experiment], f"tags.`{TRAINING}` = '{training}'", max_results=1)), None)


def find_version(client: MlflowClient, name: str, training: str) -> ModelVersion | None:
    """Return the version of a registered model with this training's id."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{TRAINING}` = '{training}'", max_results=1)
    return next(iter(found), None)


# --- handlers: what a journal's events do ---------------------------------------------------------------------------


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
    params = [Param(key, str(value)[:6000]) for key, value in event["params"].items() if key not in run.data.params]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    inputs = [
        DatasetInput(dataset_entity(event, part), [InputTag("mlflow.data.context", part)]) for part in event["datasets"]
    ]
    client.log_inputs(run_id, inputs)


def dataset_entity(start: Event, part: str) -> Any:  # noqa: ANN401
    """Return MLflow's description of a part of the data, from name and digest alone, so that it is instant."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    facts = start["datasets"][part]
    made_by = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "stages/fetch.py"}
    return MetaDataset(CodeDatasetSource(made_by), name=facts["name"], digest=facts["digest"])._to_mlflow_entity()


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
                context.registered, description=f"Models that Lineup trained on {context.registered}."
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
    with warnings.catch_warnings(), mlflow.start_run(run_id=context.run.info.run_id):
        warnings.filterwarnings("ignore", "The tensor attributes")  # an RNN's flat weights
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
    event, run = events[0], context.run
    run_id = run.info.run_id
    if event["error"]:
        context.client.set_tag(run_id, "lineup.error", event["error"][:5000])
    elif "lineup.error" in run.data.tags:  # of a try before
        context.client.delete_tag(run_id, "lineup.error")
    context.client.set_terminated(run_id, event["status"], event["time"])


def handle_restore(context: Context, events: list[Event]) -> None:
    """Record a training from its files where the store does not know it: a new clone or server, a deleted run."""
    event = events[0]
    run = find_run(context.client, context.experiment, context.journal.training)
    if run is None:
        handle_start(context, events)
        with (context.file("model") / "history.csv").open(encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        points = [{"values": row, "time": event["time"], "step": int(row.pop("epoch"))} for row in rows]
        handle_metrics(context, points)
    if context.version is None:
        handle_model(context, [{"file": "model"}])
    if run is None:
        handle_end(context, [{"time": event["time"], "status": "FINISHED", "error": ""}])


def handle_evaluation(context: Context, events: list[Event]) -> None:
    """Add metrics and pictures to the run, prove the registered version and let @<architecture> point to it."""
    from mlflow.entities import Metric

    event, client, run = events[0], context.client, context.run
    folder, version, model_id = context.file(event["folder"]), context.version, context.model_id
    if run.data.tags.get("lineup.evaluation") != event["digest"]:
        scores = read_json(folder / "metrics.json")
        test = {
            "model_id": model_id,
            "dataset_name": event["test_name"],
            "dataset_digest": event["test_digest"],
        }
        points = [
            Metric(name, float(value), event["time"], 0, **test) for name, value in scores.items() if "test_" in name
        ]
        client.log_batch(run.info.run_id, metrics=points)
        client.log_artifacts(run.info.run_id, str(folder), "evaluation")
        client.log_artifacts(run.info.run_id, str(context.file(event["pictures"])), "pictures")
        tags = {name: str(value) for name, value in scores.items()}
        client.set_logged_model_tags(model_id, tags)
        for name, value in tags.items():
            client.set_model_version_tag(version.name, version.version, name, value)
        log_onnx(context)
        prove(context, version, event)
        client.set_tag(run.info.run_id, "lineup.evaluation", event["digest"])
    with registry_lock():
        client.set_registered_model_alias(version.name, event["architecture"], version.version)
    describe_version(context)


def log_onnx(context: Context) -> None:
    """Add model.onnx to the registered model, for consumers without torch."""
    from stages.lib import deployment

    with tempfile.TemporaryDirectory() as folder:
        deployment.write_onnx(deployment.load(context.file("model")), Path(folder) / "model.onnx")
        context.client.log_model_artifacts(context.model_id, folder)


def prove(context: Context, version: ModelVersion, event: Event) -> None:
    """Load the registered version as a consumer would and hold its answers on the test images against the evaluation.

    Where data/raw holds other data by now, the trained model's own answers on an example stand in.
    """
    import mlflow
    import torch

    from stages.lib import datasets, deployment

    if datasets.RAW.exists() and datasets.describe().digests["test"][:32] == event["test_digest"]:
        (expected,) = read_tensors(context.file(event["folder"]) / "predictions.safetensors").values()
        inputs, _ = datasets.load("test")
    else:
        trained = deployment.load(context.file("model"))
        inputs = trained.example(256)
        expected = deployment.predict(trained, inputs, 1000)
    path = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}")
    reloaded = deployment.read_pt2(Path(path) / "data" / "model.pt2")
    answers = deployment.predict(reloaded, inputs, 1000)
    difference = float((answers - expected).abs().max())
    session = deployment.read_onnx(Path(path) / "model.onnx")
    onnx_answers = deployment.predict_onnx(session, inputs, 1000)
    difference = max(difference, float((onnx_answers - expected).abs().max()))
    if not torch.isfinite(answers).all() or difference > 1e-5:
        raise UserError(f"version {version.version} is not the trained model, it differs by {difference:.1e}")
    context.client.set_model_version_tag(version.name, version.version, "proven", f"equal within {difference:.0e}")


def handle_promote(context: Context, events: list[Event]) -> None:
    """Let the gate decide whether this training's version becomes the champion or the challenger."""
    client, event = context.client, events[0]
    if event.get("once") and (decision := context.version.tags.get("gate")):
        context.journal.decision = f"version {context.version.version} was decided about before: {decision}"
        return
    with registry_lock():
        version = context.version
        champion = aliased(client, version.name, "champion")
        passed, why = decide(context, version, champion, event)
        alias = "champion" if passed else "challenger"
        client.set_registered_model_alias(version.name, alias, version.version)
        if passed and (other := aliased(client, version.name, "challenger")) and other.version == version.version:
            client.delete_registered_model_alias(version.name, "challenger")
        if not (champion and champion.version == version.version) or "gate" not in version.tags:
            client.set_model_version_tag(version.name, version.version, "gate", f"{alias}: {why}")
        if passed and "val_accuracy" in version.tags:
            best = max(best_champion(client, version), float(version.tags["val_accuracy"]))
            client.set_registered_model_tag(version.name, f"best_champion.{version.tags['split'][:12]}", str(best))
        if aliased(client, version.name, alias).version != version.version:
            raise ConnectionError(f"another process moved @{alias} at the same time")
    describe_version(context)
    context.journal.decision = f"{version.name} version {version.version} is the {alias}: {why}"


def decide(
    context: Context, version: ModelVersion, champion: ModelVersion | None, settings: dict[str, Any]
) -> tuple[bool, str]:
    """Return whether `version` may be champion, and why, with the numbers."""
    if champion and champion.version == version.version:
        return True, "it was the champion already"
    if settings["promote"] != "gate":
        return settings["promote"] == "always", f"export.promote is '{settings['promote']}'"
    if champion is None:
        return True, "there was no champion"
    if champion.tags.get("split") != version.tags["split"]:
        return False, f"champion version {champion.version} was trained on another split, so they can't be compared"
    hits, champion_hits = compare(context, champion)
    from stages.lib.metrics import mcnemar

    test = mcnemar(hits, champion_hits)
    numbers = (
        f"of {len(hits)} validation examples only it gets {test['only_a']} right, only champion version "
        f"{champion.version} {test['only_b']}, p = {test['p_one_sided']:.3g}"
    )
    if test["p_one_sided"] < settings["level"]:
        return False, f"significantly worse: {numbers}"
    best, accuracy = best_champion(context.client, version), float(version.tags.get("val_accuracy", "nan"))
    if accuracy < best - settings["margin"]:
        far = f"more than {settings['margin']} below the best champion's {best:.4f}"
        return False, f"validation accuracy {accuracy:.4f} is {far}"
    return True, f"not significantly worse: {numbers}"


def compare(context: Context, champion: ModelVersion) -> tuple[Tensor, Tensor]:
    """Return for each validation example whether this model, and whether the champion, is right (or nearer)."""
    import mlflow

    from stages.lib import datasets, deployment

    split = datasets.load_split()
    inputs, targets = (tensor[split.validation] for tensor in datasets.load("train"))
    if context.version.tags["split"] != split.digest:
        raise UserError("data/split is not the split of this training; run: dvc repro")
    path = mlflow.artifacts.download_artifacts(f"models:/{champion.name}/{champion.version}")
    models = deployment.load(context.file("model")), deployment.read_pt2(Path(path) / "data" / "model.pt2")
    answers = [deployment.predict(model, inputs, 1000) for model in models]
    if targets.is_floating_point():
        mine, other = ((answer - targets).square().mean(1) for answer in answers)
        return mine < other, other < mine
    mine, other = (answer.argmax(1) == targets for answer in answers)
    return mine, other


def best_champion(client: MlflowClient, version: ModelVersion) -> float:
    """Return the highest validation accuracy of any champion so far on this version's split."""
    tags = client.get_registered_model(version.name).tags
    return float(tags.get(f"best_champion.{version.tags['split'][:12]}", "-inf"))


def aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Return the version that an alias points to, if there is one."""
    number = client.get_registered_model(name).aliases.get(alias)
    return client.get_model_version(name, str(number)) if number else None


def registry_lock() -> FileLock:
    """Return the lock under which processes of this repository move aliases."""
    from filelock import FileLock

    return FileLock(private_folder() / "registry.lock")


def describe_version(context: Context) -> None:
    """Write on the version, in Markdown, what it is, how good, and how to get and to reproduce it."""
    client, version, run = context.client, context.version, context.run
    tags, lineage = version.tags, run.data.tags
    scores = {name: float(value) for name, value in tags.items() if name.startswith(("val_", "test_"))}
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(scores.items()))
    dirty = lineage.get("git_dirty") == "true"
    patch = "git apply changes.patch  # lineage/changes.patch of the run\n    " if dirty else ""
    number = version.version
    text = f"""**{tags["architecture"]}** trained on **{version.name}**, {int(tags["parameters"]):,} parameters.

| metric | value |
|---|---|
{table}

{tags.get("gate", "Not exported yet.")}

Takes raw inputs as the signature says (images: uint8 pixels) and answers for those like the training data; on anything
else it is as sure and wrong as any network. To load it:

    mlflow.pyfunc.load_model("models:/{version.name}/{number}").predict(inputs)

To reproduce it:

    git checkout {lineage.get("git_commit", "<commit unknown>")}
    {patch}dvc repro train@{tags["architecture"]}
"""
    client.update_model_version(version.name, number, text)


HANDLERS: dict[str, Callable[[Context, list[Event]], None]] = {
    "start": handle_start,
    "resume": handle_resume,
    "metrics": handle_metrics,
    "artifact": handle_artifact,
    "model": handle_model,
    "end": handle_end,
    "restore": handle_restore,
    "evaluation": handle_evaluation,
    "promote": handle_promote,
}


# --- during a training --------------------------------------------------------------------------------------


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
                self.warn(f"MLflow at {store_uri()} fails ({summary(error)}); nothing is lost, training goes on")

    def finish(self) -> None:
        """Deliver the rest, as long as the store answers: every request to it has a time limit.

        The thread must have ended before the interpreter does: torch's C++ threads abort the process otherwise.
        """
        self.closing.set()
        self.thread.join()
        if self.failed_at is None:
            self.attempt()
        if self.journal.pending:
            self.warn(f"{self.journal.pending} events of this training are not in MLflow yet; later: make sync")
        self.journal.close()


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


# --- after a training --------------------------------------------------------------------------------------------


def record_evaluations(architectures: list[str]) -> None:
    """Record evaluation/ on the run of each training, and what else the store lacks of it."""
    if enabled():
        with progress(unit="runs") as bar:
            pending = sum(map(record_evaluation, bar.track(architectures, description="Recording")))
        if pending:
            print(f"{pending} events are not in MLflow yet; later: make sync")


def record_evaluation(architecture: str) -> int:
    """Record evaluation/<architecture> and its pictures on the training's run; return how many events are pending."""
    folder, pictures = Path("evaluation") / architecture, Path("evaluation") / "plots" / architecture
    files = [*sorted(folder.glob("*")), *sorted(pictures.glob("*"))]
    digest = hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest()
    description = read_json(Path("models") / architecture / "model.json")
    with restoring_journal(architecture) as journal:
        journal.append(
            f"evaluation:{digest}",
            "evaluation",
            architecture=architecture,
            folder=journal.copy(folder, f"evaluation-{digest[:12]}"),
            pictures=journal.copy(pictures, f"pictures-{digest[:12]}"),
            digest=digest,
            test_name=f"{description['dataset']}-test",
            test_digest=description["data"]["test"][:32],
        )
        return attempt(journal)


def record_export(architecture: str, settings: dict[str, Any], once: bool = False) -> str:
    """Let the gate decide about the training's version, again unless `once`; return the decision in words."""
    if not enabled():
        return "tracking is off: no registered model was touched"
    with restoring_journal(architecture) as journal:
        journal.append(f"promote:{time.time_ns()}", "promote", once=once, **settings)
        attempt(journal)
        return journal.decision or "the registry can't be reached: the gate decides at the next make sync"


def restoring_journal(architecture: str) -> Journal:
    """Return the journal of the training in models/<architecture>, with all that is needed to record it anew."""
    folder = Path("models") / architecture
    description = read_json(folder / "model.json")
    journal = Journal(read_json(folder / "run.json")["training"])
    journal.copy(folder, "model")
    digests = {
        "training": description["split"],
        "validation": description["split"][::-1],
        "test": description["data"]["test"],
    }
    facts = {name: description[name] for name in ("architecture", "hyperparameters", "recipe", "seed", "dataset")}
    journal.append(
        "restore",
        "restore",
        experiment=description["dataset"],
        name=architecture,
        params=flattened(facts),
        tags={
            "lineup.restored": "true",
            "architecture": architecture,
            "sha256.split": description["split"],
            **{f"sha256.{part}": digest for part, digest in description["data"].items()},
        },
        datasets=dataset_facts(description["dataset"], digests),
    )
    return journal


class Outage:
    """What failures of the store cost this process so far: seconds, and lines already printed."""

    seconds = 0.0
    told: set[str] = set()


def attempt(journal: Journal) -> int:
    """Deliver a journal, remove it if complete, return how much is still pending; if the store fails, say so once."""
    start = time.monotonic()
    if Outage.seconds < SECONDS_FOR_FAILURES:
        try:
            deliver(journal, connect())
        except UserError:
            raise
        except Exception as error:
            Outage.seconds += time.monotonic() - start
            line = f"warning: MLflow at {store_uri()} fails ({summary(error)}); nothing is lost"
            if line not in Outage.told:
                Outage.told.add(line)
                print(line)
    pending = journal.pending
    if not pending and not checkpoint_of(journal.training):
        journal.remove()
    return pending


def sync() -> int:
    """Deliver every journal; remove those that are complete; return the number of events still pending."""
    from filelock import Timeout

    pending = 0
    for training in trainings():
        with contextlib.suppress(Timeout), Journal(training, timeout=0) as journal:  # who has it open delivers it
            try:
                pending += attempt(journal)
            except UserError as error:
                print(f"warning: training {training}: {error}")
                pending += journal.pending
    return pending


def download(uri: str) -> Path:
    """Return a local folder with the files of a registered or logged model; UserError if there is none."""
    client = connect()
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except MlflowException as error:
        names = (
            ", ".join(sorted(model.name for model in client.search_registered_models())) or "none yet: run dvc repro"
        )
        raise UserError(f"no model at {uri} in {store_uri()} ({summary(error)}); registered: {names}") from None
