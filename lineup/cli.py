"""What a person sees in the terminal: errors, progress bars, next commands."""

from __future__ import annotations

import difflib
import errno
import gc
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # a disk that takes nothing more


class UserError(Exception):
    """A mistake that the user can mend: shown without a traceback, exit code 2."""


def run(main: Callable[..., None]) -> None:
    """Run `main` as a Typer command; a UserError becomes one message and exit code 2, a full disk one and code 1."""
    import typer

    gc.set_threshold(100_000)  # a fifth of the time that imports take went into looking for garbage
    os.environ.setdefault(
        "THP_MEM_ALLOC_ENABLE", "1"
    )  # large pages for tensors: 2 to 15 % of a step of convolutions
    os.environ["MPLBACKEND"] = "agg"  # a notebook's fails on import where its package is missing
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except UserError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        place = f"{error.filename}: " if error.filename else ""
        hint = "make room there and run the same command again; what was finished before is kept"
        typer.secho(f"error: {place}{error.strerror}; {hint}", fg=typer.colors.RED, err=True)
        sys.exit(1)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint: the closest valid choice if one is close, else all of them."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(choices)}"


def duration(seconds: float) -> str:
    """Return a rounded length of time, such as 42 s, 12 min or 1.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def progress(*columns: str, unit: str = "") -> Progress:
    """Return a progress bar, silent where standard error is no terminal; `columns` are templates of task fields."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

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
