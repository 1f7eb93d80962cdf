"""What we ask MLflow's SQLite tables directly; a test says so when MLflow changes them.

Importing MLflow takes longer than all that `predict` does, and MLflow can't move a store.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from lineup.tracking.location import artifact_root, database, registry_uri, store_uri

TIMEOUT_SECONDS = 20
LOCATION_COLUMNS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
FIND_VERSION = """
    SELECT storage_location, version FROM model_versions
    WHERE name = :name AND version = coalesce(:number, (
        SELECT version FROM registered_model_aliases WHERE name = :name AND alias = :alias))
"""
FIND_OUR_EXPERIMENT = """  -- not the one that `mlflow ui` makes, without a path
    SELECT artifact_location FROM experiments
    WHERE artifact_location LIKE '/%/mlartifacts' OR artifact_location LIKE '/%/mlartifacts/%'
    ORDER BY experiment_id LIMIT 1
"""
FIND_MODEL = "SELECT artifact_location FROM logged_models WHERE model_id = ?"


@contextmanager
def _connection(path: Path, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    uri = f"{path.as_uri()}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=TIMEOUT_SECONDS)) as connection, connection:
        yield connection


def find_model_locally(uri: str) -> tuple[Path, str] | None:
    """Return folder and version of a registered model in this repository's own store, if there.

    Whatever is unusual is left to MLflow.
    """
    file, root = database(), artifact_root()
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not (file and file.exists() and parts and registry_uri() == store_uri()):
        return None
    name, alias, number = parts.groups()
    try:
        with _connection(file, "ro") as connection:
            keys = {"name": name, "alias": alias, "number": number}
            found = connection.execute(FIND_VERSION, keys).fetchone()
            location, version = found or ("", "")
            if location and location.startswith("models:/"):  # a version of a LoggedModel
                found = connection.execute(FIND_MODEL, [location.removeprefix("models:/")])
                location = (found.fetchone() or [""])[0]
    except sqlite3.Error:
        return None
    folder = Path(location or "/nowhere")
    is_usual = folder.is_dir() and folder.is_relative_to(root)
    return (folder, str(version)) if is_usual else None


def use_write_ahead_log(path: Path) -> None:
    """Put a store in the mode in which readers block nobody."""
    with closing(sqlite3.connect(path, timeout=TIMEOUT_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def relocate(path: Path) -> None:
    """Tell a store that was moved or copied where its artifacts are: MLflow keeps full paths."""
    here = str(path.parent / "mlartifacts")
    with _connection(path) as connection:
        found = connection.execute(FIND_OUR_EXPERIMENT).fetchone()
        before = re.sub(r"/\d+$", "", found[0]) if found else here
        if not _has_moved(before, here):
            return
        for table, column in LOCATION_COLUMNS.items():
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE substr({column}, 1, ?) = ?",
                (here, len(before) + 1, len(before), before),
            )


def _has_moved(before: str, here: str) -> bool:
    is_ours = before.startswith("/") and before.endswith("/mlartifacts")
    is_elsewhere_by_choice = Path(before).is_dir() and not Path(here).is_dir()
    return before != here and is_ours and not is_elsewhere_by_choice
