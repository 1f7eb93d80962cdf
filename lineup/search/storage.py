"""Where Optuna keeps studies: a file of this repository, or a database that machines share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from lineup.errors import UserError
from lineup.files import write_text
from lineup.paths import state_dir
from lineup.tracking.location import without_password


@contextmanager
def open_storage(address: str | None) -> Iterator[RDBStorage]:
    """Yield the storage, .lineup/search/studies.db by default; UserError where it fails."""
    folder = state_dir() / "search"
    folder.mkdir(parents=True, exist_ok=True)
    address = address or f"sqlite:///{folder / 'studies.db'}"
    name = without_password(address)
    try:
        make_url(address)
    except (SQLAlchemyError, ValueError):  # ValueError: the port is no number
        hint = "write one such as postgresql://user@host/database"
        raise UserError(f"--storage {name} is no database's address; {hint}") from None
    try:
        yield _connect(address, name)
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        hint = "the same command goes on when it works again; a damaged file is to be moved away"
        raise UserError(f"the studies in {name} can't be used ({reason}); {hint}") from None


def _connect(address: str, name: str) -> RDBStorage:
    try:
        return RDBStorage(address)
    except ImportError as error:
        hint = "install its driver, for PostgreSQL: pip install 'psycopg[binary]'"
        raise UserError(f"--storage {name}: {error}; {hint}") from None


def owner_of_trials(address: str | None) -> str:
    """Return by what trials of this repository are known in a database that others use too."""
    file = state_dir() / "search" / "owner"
    if address and not file.exists():
        write_text(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8") if address else "this repository"
