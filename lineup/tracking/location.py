"""Where the tracking store is: the repository's own SQLite file, or MLFLOW_TRACKING_URI."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from lineup.paths import repository

SQLITE = "sqlite:///"
# Read once: MLflow sets the variables itself later.
_TRACKING_URI = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
_REGISTRY_URI = os.environ.get("MLFLOW_REGISTRY_URI", "")


def enabled() -> bool:
    """Tell whether tracking is on; LINEUP_TRACKING=off turns it off."""
    return os.environ.get("LINEUP_TRACKING", "on").lower() not in ("off", "0", "false", "no")


def host() -> str:
    """Return this machine's name: runs carry it, and only here it is known which still train."""
    return platform.node()


def database() -> Path | None:
    """Return the file of the SQLite store; None where the store is something else."""
    return _file(_TRACKING_URI)


def _file(uri: str) -> Path | None:
    if not uri.startswith(SQLITE):
        return None
    name, _, _ = uri.removeprefix(SQLITE).partition("?")
    return repository() / name


def artifact_root() -> Path | None:
    """Return the folder of the SQLite store's artifacts; a server keeps them where it likes."""
    file = database()
    return file.parent / "mlartifacts" if file else None


def store_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or this repository's SQLite store, as an absolute address."""
    return _absolute(_TRACKING_URI)


def shown_uri() -> str:
    """Return the store's address as messages name it: without its password."""
    return without_password(store_uri())


def without_password(address: str) -> str:
    """Return an address, or a sentence that names some, as people may read it."""
    hidden = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", address)
    return re.sub(r"(password=)[^&\s]*", r"\1***", hidden)


def store_key() -> str:
    """Return the store's address without options, the same after the repository was moved."""
    file = database()
    if file and file.is_relative_to(repository()):
        return file.relative_to(repository()).as_posix()
    return store_uri().partition("?")[0]


def registry_uri() -> str:
    """Return MLFLOW_REGISTRY_URI, or the store's address."""
    return _absolute(_REGISTRY_URI) if _REGISTRY_URI else store_uri()


def _absolute(uri: str) -> str:
    """Return an address that is the same from everywhere: DVC trains in temporary folders too."""
    file = _file(uri)
    _, mark, options = uri.partition("?")
    return f"{SQLITE}{file}{mark}{options}" if file else uri
