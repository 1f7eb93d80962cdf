"""A process beside a training that brings its journal to the store: the training neither waits for it nor slows down.

It is told the training's id, then to deliver, at last to end; if the line goes dead before, the training died.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from lineup.tracking.delivery import deliver
from lineup.tracking.journal import Journal, Records
from lineup.tracking.runs import end_abandoned_runs
from lineup.tracking.store import connect, import_mlflow, store_uri, summary

if TYPE_CHECKING:
    from mlflow import MlflowClient

START = (
    "fork" if sys.platform == "linux" else "spawn"
)  # elsewhere system libraries do not survive a fork
SECONDS_BETWEEN_TRIES = 15.0
SECONDS_TO_REST = (1.0, 10.0)  # between deliveries, at least and at most
REST_PER_WORK = 50.0
SECONDS_FOR_ONE_EVENT = 300.0  # at the end; it may be a large model on its way to a far server


class Courier:
    """The training's end of the line. To be made when torch is imported, which a fork has then, and not used yet."""

    def __init__(self) -> None:
        context = multiprocessing.get_context(START)
        self.line, far_end = context.Pipe()
        self.process = context.Process(target=work, args=(far_end, self.line), daemon=True)
        self.process.start()
        far_end.close()

    def follow(self, journal: Journal, warn: Callable[[str], None]) -> None:
        """Have the journal delivered from now on; `warn` gets what the process has to say."""
        self.journal, self.warn = journal, warn
        self.say(journal.training)
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        """Pass on what the process says, until it ends."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self.warn(self.line.recv_bytes().decode())

    def say(self, word: str) -> None:
        """Tell the process a word, if it lives."""
        with contextlib.suppress(ConnectionError):
            self.line.send_bytes(word.encode())

    def hurry(self) -> None:
        """Have it deliver now what is pending."""
        self.say("deliver")

    def finish(self) -> None:
        """Wait until the rest is delivered, the store fails, nothing moves for minutes, or the user presses Ctrl-C."""
        self.say("end")
        before = -1
        with contextlib.suppress(KeyboardInterrupt):
            while self.process.is_alive() and self.journal.pending != before:
                before = self.journal.pending
                self.process.join(SECONDS_FOR_ONE_EVENT)
        self.process.kill()
        self.listener.join()
        if self.journal.pending:
            self.warn(
                f"{self.journal.pending} events of this training are not in MLflow yet; later: make sync"
            )
        self.journal.close()


def work(line: Connection, trainings_end: Connection) -> None:
    """Do the process's work: deliver the journal that the training names, until it says the end or is no more."""
    trainings_end.close()
    os.setsid()  # Ctrl-C is the training's to answer
    threading.Thread(target=end_with_training, daemon=True).start()
    import torch

    torch.set_num_threads(
        1
    )  # OpenMP waits forever for threads that did not come along with the fork
    with contextlib.suppress(Exception):  # the first attempt will say what fails
        import_mlflow()
    with contextlib.suppress(EOFError, ConnectionError):
        Round(line, Records(line.recv_bytes().decode())).go()


def end_with_training() -> None:
    """End this process as soon as the training is dead: who continues it delivers the rest."""
    multiprocessing.parent_process().join()
    os._exit(1)


class Round:
    """The courier's deliveries of one journal, as often as the store and the other work allow."""

    def __init__(self, line: Connection, records: Records) -> None:
        self.line, self.records = line, records
        self.client: MlflowClient | None = None
        self.failed = self.warned = False
        self.rest = 0.0  # seconds until the next attempt

    def go(self) -> None:
        """Deliver now and then while the training goes on, and the rest at its end unless the store just failed."""
        word = b""
        while True:
            if not (word and self.failed):
                self.attempt()
            if word == b"end":
                return
            word = self.line.recv_bytes() if self.line.poll(self.rest) else b""

    def attempt(self) -> None:
        """Deliver what is pending; a failure is reported once."""
        start = time.process_time()
        try:
            if self.client is None:
                client = connect()
                end_abandoned_runs(client)
                self.client = client
            deliver(self.records, self.client)
            shortest, longest = SECONDS_TO_REST
            self.failed, self.rest = (
                False,
                min(max(REST_PER_WORK * (time.process_time() - start), shortest), longest),
            )
        except Exception as error:
            self.failed, self.rest = True, SECONDS_BETWEEN_TRIES
            if not self.warned:
                self.warned = True
                failure = f"MLflow at {store_uri()} fails ({summary(error)}); nothing is lost, training goes on"
                self.line.send_bytes(failure.encode())
