"""Waiting for something to happen elsewhere."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def wait_for(condition: Callable[[], Result], seconds: float = 180) -> Result:
    """Return what `condition` returns as soon as it is true; errors are failures until then."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := condition():
                return found
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
