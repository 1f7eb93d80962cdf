"""Ctrl-C and SIGTERM as a request that a training answers after its current step."""

from __future__ import annotations

import signal

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended


class Interruption:
    """A context in which signals are noted instead of ending the process."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interruption:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.handlers = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
