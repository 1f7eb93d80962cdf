"""What every command shares: how it starts, how it ends with an error, its progress bar."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lineup.errors import UserError, lacks_memory
from lineup.paths import DATA, EVALUATION, EXPORT, MODELS

DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
MADE_BY_STAGES = tuple(f"{folder}/" for folder in (DATA, MODELS, EVALUATION, EXPORT))
NO_ACCESS_ERRNOS = {errno.EACCES, errno.EISDIR, errno.ENOTDIR}
READ_ONLY_ERRNOS = {errno.EROFS, errno.EACCES}


def run(main: Callable[..., None]) -> None:
    """Run `main` as a Typer command; UserError ends with code 2, files and memory with 1."""
    gc.set_threshold(100_000)  # garbage collection took a fifth of the time of the imports
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages: convolutions 2 to 15 % faster
    os.environ["MPLBACKEND"] = "agg"  # a notebook's fails on import where its package is missing
    _check_code()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except UserError as error:
        _fail(str(error), code=2)
    except Exception as error:
        message = _explain(error)
        if not message:
            raise
        _fail(message, code=1)


def _explain(error: Exception) -> str:
    """Return what is wrong and what to do; "" where that is unknown."""
    if lacks_memory(error):
        detail = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        hint = "close other programs and run the same command again; what was finished is kept"
        return f"the memory is too small ({detail}); {hint}"
    if not isinstance(error, OSError):
        return ""
    path = Path(error.filename or "")
    if error.errno in READ_ONLY_ERRNOS and error.filename and not path.is_file():
        return f"{path.parent}: {error.strerror}; work in a folder that you may write to"
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in DISK_FULL_ERRNOS:
        hint = "make room there and run the same command again; what was finished is kept"
    elif error.errno in NO_ACCESS_ERRNOS and place:
        hint = "move it away, or make it readable, and run the same command again"
    elif error.errno == errno.ENOENT and str(error.filename).startswith(MADE_BY_STAGES):
        hint = "run: dvc repro"
    else:
        return ""
    return f"{place}{error.strerror}; {hint}"


def _check_code() -> None:
    """End where another clone's code runs, as with PYTHONSAFEPATH: DVC would record this one's."""
    here, running = Path("lineup", "cli.py"), Path(__file__)
    if here.exists() and not here.samefile(running):
        hint = "run `python -m stages.NAME` without PYTHONSAFEPATH, in this folder's environment"
        _fail(f"the code that runs is {running}, not {here.absolute()}; {hint}", code=2)


def _fail(message: str, code: int) -> None:
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    sys.exit(code)


def progress(*columns: str, unit: str = "") -> Progress:
    """Return a progress bar, silent where standard error is no terminal.

    `columns` are templates of a task's fields.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        *[TextColumn(column) for column in columns],
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def duration(seconds: float) -> str:
    """Return a rounded length of time, such as 42 s, 12 min or 1.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
