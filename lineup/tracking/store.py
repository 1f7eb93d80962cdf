"""A client of the tracking store that answers or fails within seconds."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.exc import SQLAlchemyError

from lineup.errors import UserError, lacks_memory
from lineup.paths import state_dir
from lineup.tracking import location, sqlite_tables
from lineup.tracking.reachability import StoreError, check_store, summary

FAST_FAILURE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a repeated POST makes a second run or version
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
for _name, _value in FAST_FAILURE.items():
    os.environ.setdefault(_name, _value)
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # errors are raised, and reported by us


def client() -> MlflowClient:
    """Return a client of the store; makes the SQLite store if it is not there. StoreError."""
    check_store()
    uri, registry_uri = location.store_uri(), location.registry_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(registry_uri)
    with store_lock():
        file = location.database()
        if file and file.is_dir():
            hint = "move it away, and make sync records all runs anew"
            raise StoreError(f"{file.name} is a folder; {hint}")
        if file:
            _create_store(file)
        try:
            connected = MlflowClient(uri, registry_uri)
        except MlflowException as error:
            raise StoreError(_explain(error)) from None
        except (ImportError, SQLAlchemyError) as error:
            hint = "is the address right, and the database's driver installed?"
            raise StoreError(f"{error}; {hint}") from None
        if file:
            sqlite_tables.relocate(file)
    return connected


def client_for_user() -> MlflowClient:
    """Return a client for a person who waits for an answer: UserError if the store fails.

    Reading makes no store: there is none in any other folder than the project's.
    """
    file = location.database()
    if file and not file.exists():
        hint = "run this in the project's root folder, after dvc repro or make sync"
        raise UserError(f"{file} is not here, and so no registered model; {hint}")
    try:
        connected = client()
        connected.search_registered_models(max_results=1)  # a server may refuse this user
    except Exception as error:  # of MLflow, a database's driver, an artifact store's client
        if isinstance(error, UserError) or lacks_memory(error):
            raise
        raise UserError(f"MLflow at {location.shown_uri()}: {summary(error)}") from None
    return connected


def _explain(error: MlflowException) -> str:
    if "db upgrade" in str(error):
        upgrade = f"mlflow db upgrade {location.shown_uri()}"
        return f"an older MLflow made it; keep a copy, then run: {upgrade}"
    return summary(error)


def store_lock() -> FileLock:
    """Return the lock to open the store under: SQLite migrations must not run concurrently."""
    return FileLock(state_dir() / "store.lock")


def registry_lock() -> FileLock:
    """Return the lock under which processes of this repository move aliases."""
    return FileLock(state_dir() / "registry.lock")


def _create_store(path: Path) -> None:
    if not path.exists():
        new = path.with_suffix(".db.new")
        new.unlink(missing_ok=True)
        SqlAlchemyStore(f"sqlite:///{new}", str(path.parent / "mlartifacts")).engine.dispose()
        for suffix in ("-wal", "-shm"):  # of a deleted store: SQLite would replay them
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        sqlite_tables.use_write_ahead_log(new)
        _move_unless_there(new, path)
    sqlite_tables.use_write_ahead_log(path)


def _move_unless_there(new: Path, path: Path) -> None:
    """Move a file, unless somebody's `mlflow ui` made a store there meanwhile, and has it open."""
    try:
        path.hardlink_to(new)
    except FileExistsError:
        new.unlink()
    except OSError:  # a file system without links
        new.rename(path)
    else:
        new.unlink()


def open_experiment(connected: MlflowClient, name: str) -> tuple[Experiment, str]:
    """Return the experiment, and what had to be done to have it: "", "made" or "restored"."""
    found = connected.get_experiment_by_name(name)
    if found is None:
        root = location.artifact_root()
        try:
            connected.create_experiment(name, str(root) if root else None)
        except MlflowException:
            found = connected.get_experiment_by_name(name)
            if found is None:
                raise
            return found, ""  # another process was faster
        return connected.get_experiment_by_name(name), "made"
    if found.lifecycle_stage == "deleted":
        connected.restore_experiment(found.experiment_id)
        return found, "restored"
    return found, ""


def download(uri: str) -> Path:
    """Return a local folder with the files of a registered or logged model; UserError if none."""
    found = sqlite_tables.find_model_locally(uri)
    if found:
        return found[0]
    connected = client_for_user()
    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except Exception as error:
        if isinstance(error, UserError) or lacks_memory(error):
            raise
        names = sorted(model.name for model in connected.search_registered_models())
        known = ", ".join(names) or "none yet: run dvc repro, or make sync after dvc pull"
        where = location.shown_uri()
        text = f"{uri} could not be loaded from {where} ({summary(error)}); registered: {known}"
        raise UserError(text) from None
