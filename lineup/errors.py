"""The one kind of error that a user can fix, and the words to say it with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

MAX_LISTED = 20  # items that a message names before it counts the rest
MEMORY_WORDS = (  # of libraries that raise no MemoryError
    "out of memory",
    "allocate memory",  # torch, and the system's ENOMEM
    "bad allocation",  # ONNX Runtime
    "could not create a primitive",  # oneDNN
    "can't start new thread",
    "failed to map segment",  # an import
)


class UserError(Exception):
    """An error that the user can fix: shown without a traceback, exit code 2."""

    def __reduce__(self) -> tuple:
        """Reach another process as these words, however a subclass is made."""
        return UserError, (str(self),)


class ClusterError(UserError):
    """Something is wrong with the machines, not with the training."""


class DamagedError(UserError, ValueError):
    """A file of ours that is not as it was written."""

    def __init__(
        self, path: Path, problem: Exception, advice: str, what: str = "is damaged"
    ) -> None:
        self.problem = f"{type(problem).__name__}: {problem}"
        super().__init__(f"{path} {what} ({self.problem}); {advice}")


def lacks_memory(error: Exception) -> bool:
    """Tell whether a library raised this, or what it wrapped, because the memory is too small."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in MEMORY_WORDS):
        return True
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return isinstance(cause, Exception) and lacks_memory(cause)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint: the closest valid choice if one is close, else all of them."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(choices) or 'none'}"


def listed(items: Sequence[object], *, lines: bool = False, most: int = MAX_LISTED) -> str:
    """Return the first items, and how many more there are."""
    words = [str(item).encode(errors="replace").decode() for item in items[:most]]
    if len(items) > most:
        words.append(f"and {len(items) - most} more")
    return "".join(f"\n       {word}" for word in words) if lines else ", ".join(words)
