"""Where the tracking store is: the repository's own SQLite file, or MLFLOW_TRACKING_URI."""

from __future__ import annotations

import os
from pathlib import Path

from lineup.paths import repository

SQLITE = "sqlite:///"
# Read once: MLflow sets the variables itself later.
_TRACKING_URI = os.environ.get("MLFLOW_TRACKING_URI", "")
_REGISTRY_URI = os.environ.get("MLFLOW_REGISTRY_URI", "")


def enabled() -> bool:
    """Tell whether tracking is on; LINEUP_TRACKING=off turns it off."""
    return os.environ.get("LINEUP_TRACKING", "on").lower() not in ("off", "0", "false", "no")


def database() -> Path | None:
    """Return the file of the SQLite store; None where the store is something else."""
    if _TRACKING_URI and not _TRACKING_URI.startswith(SQLITE):
        return None
    name, _, _ = _TRACKING_URI.removeprefix(SQLITE).partition("?")
    return repository() / (name or "mlflow.db")


def artifact_root() -> Path | None:
    """Return the folder of the SQLite store's artifacts; a server keeps them where it likes."""
    file = database()
    return file.parent / "mlartifacts" if file else None


def store_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or this repository's SQLite store, as an absolute address."""
    file = database()
    if file is None:
        return _TRACKING_URI
    _, mark, options = _TRACKING_URI.partition("?")
    return f"{SQLITE}{file}{mark}{options}"


def registry_uri() -> str:
    """Return MLFLOW_REGISTRY_URI, or the store's address."""
    return _REGISTRY_URI or store_uri()
