"""Files that are whole or not there: written beside their place, flushed to disk, then moved."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from lineup.errors import DamagedError, UserError
from lineup.paths import state_dir

REPRO = "run: dvc repro"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block succeeds, and vanishes if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `path` when the block succeeds.

    Of several at one time the last one stays. A kill leaves the old folder, the new one, or, within
    the moment between two renames, none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}-", dir=path.parent, ignore_cleanup_errors=True
    ) as temporary:
        new, old = Path(temporary, path.name), Path(temporary, "old")
        new.mkdir()
        yield new
        with FileLock(state_dir() / "replace.lock"):
            with suppress(FileNotFoundError):
                path.rename(old)
            new.rename(path)


def flush(path: Path) -> None:
    """Wait until a file is on the disk: then a power failure does not empty it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401
    """Write JSON atomically, for people: indented, Unicode as it is, a newline at the end."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, advice: str = REPRO) -> Any:  # noqa: ANN401
    """Read a JSON file; DamagedError with `advice` where it is none."""
    with explain_damage(path, advice):
        return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def explain_damage(path: Path, advice: str = REPRO) -> Iterator[None]:
    """Turn what a damaged file makes its reader raise into an error that names it."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(path, error, advice) from None


def sha256(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_own_digest(path: Path) -> bool:
    """Tell whether a file's name ends with the first digits, 8 or more, of its SHA-256.

    torch's hub names files so: model-1a2b3c4d.pth.
    """
    digits = path.stem.rpartition("-")[2]
    return len(digits) >= 8 and sha256(path).startswith(digits)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of equal keys atomically as CSV; numbers keep every digit."""
    lines = [_csv_line(rows[0]), *(_csv_line(row.values()) for row in rows)]
    write_text(path, "".join(lines))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to what write_rows wrote, or begin a file; a reader sees whole rows."""
    if not path.exists():
        write_rows(path, [row])
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(_csv_line(row.values()))


def _csv_line(cells: Iterable[Any]) -> str:
    return ",".join(str(cell) for cell in cells) + "\n"
