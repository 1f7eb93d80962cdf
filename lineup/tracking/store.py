"""Where MLflow's store is, and a client of it: the repository's own SQLite file, or MLFLOW_TRACKING_URI."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lineup.errors import UserError
from lineup.training.checkpoints import private_folder

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

SERVER = os.environ.get(
    "MLFLOW_TRACKING_URI", ""
)  # read once: MLflow sets the variable itself later
SECONDS_TO_ANSWER = 5.0


def enabled() -> bool:
    """Tell whether tracking is on; LINEUP_TRACKING=off turns it off."""
    return os.environ.get("LINEUP_TRACKING", "on").lower() not in ("off", "0", "false", "no")


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


def import_mlflow() -> None:
    """Import what `connect` needs, set to fail fast and to unpickle nothing: a second or two of work."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised, and reported by us
    if database():
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def connect() -> MlflowClient:
    """Return a client of the store that fails fast; creates the SQLite store under a lock, in write-ahead mode."""
    import_mlflow()
    import mlflow

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
            raise ConnectionError(
                f"an older MLflow made it; keep a copy, then run: {command}"
            ) from None
        if file:
            relocate(file)
    return client


def reach() -> MlflowClient:
    """Return a client for a person who waits for an answer: UserError if the store fails."""
    try:
        return connect()
    except ConnectionError as error:
        raise UserError(f"MLflow at {store_uri()}: {error}") from None


def check_reachable(uri: str) -> None:
    """Raise ConnectionError within seconds if nothing answers where an HTTP store should be."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    with contextlib.suppress(
        requests.exceptions.SSLError
    ):  # something answers; MLflow has settings for this
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
    for suffix in ("-wal", "-shm"):  # of a deleted store: SQLite would replay them into the new one
        path.with_name(path.name + suffix).unlink(missing_ok=True)
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
        found = connection.execute(
            "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
        ).fetchone()
        before = found[0].removesuffix("/0") if found else here
        if before == here or not before.startswith("/") or not before.endswith("/mlartifacts"):
            return
        if (
            Path(before).is_dir() and not Path(here).is_dir()
        ):  # a store of somebody else, who keeps them elsewhere
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
            return client.create_experiment(
                name, str(file.parent / "mlartifacts") if file else None
            )
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id


def download(uri: str) -> Path:
    """Return a local folder with the files of a registered or logged model; UserError if there is none."""
    return find_locally(uri) or fetch(uri)


def find_locally(uri: str) -> Path | None:
    """Return the folder of a registered model in this repository's own store, if it is there.

    Asks SQLite itself: importing MLflow takes longer than all that predict does. Whatever is unusual is left to MLflow.
    """
    import sqlite3

    file, parts = database(), re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not (file and file.exists() and parts):
        return None
    name, alias, number = parts.groups()
    query = """SELECT storage_location FROM model_versions WHERE name = :name AND version = coalesce(
        :number, (SELECT version FROM registered_model_aliases WHERE name = :name AND alias = :alias))"""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=20)
        ) as connection:
            found = connection.execute(
                query, {"name": name, "alias": alias, "number": number}
            ).fetchone()
    except sqlite3.Error:
        return None
    folder = Path(found[0]) if found and found[0] else None
    return (
        folder
        if folder and folder.is_dir() and folder.is_relative_to(file.parent / "mlartifacts")
        else None
    )


def fetch(uri: str) -> Path:
    """Return a local copy of a model's files, by MLflow; UserError if there is none."""
    client = reach()
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except MlflowException as error:
        names = (
            ", ".join(sorted(model.name for model in client.search_registered_models()))
            or "none yet: run dvc repro"
        )
        raise UserError(
            f"no model at {uri} in {store_uri()} ({summary(error)}); registered: {names}"
        ) from None


def summary(error: Exception) -> str:
    """Return the first line of an error's text, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
