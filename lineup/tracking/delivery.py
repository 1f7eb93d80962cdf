"""Brings journals to the store: each event in order, each exactly once, whatever is left over at the next occasion."""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

from lineup.errors import UserError
from lineup.tracking.gate import handle_promote
from lineup.tracking.journal import Event, Journal, Records, trainings
from lineup.tracking.registry import handle_evaluation, handle_model
from lineup.tracking.runs import (
    BATCH,
    Context,
    find_run,
    handle_artifact,
    handle_end,
    handle_metrics,
    handle_resume,
    handle_start,
)
from lineup.tracking.store import connect, store_uri, summary
from lineup.training.checkpoints import checkpoint_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

SECONDS_FOR_FAILURES = 10.0  # of one evaluate, export or sync; the rest waits for make sync


def handle_restore(context: Context, events: list[Event]) -> None:
    """Record a training from its files where the store does not know it: a new clone or server, a deleted run."""
    event = events[0]
    run = find_run(context.client, context.experiment, context.journal.training)
    if run is None:
        handle_start(context, events)
        with (context.file("model") / "history.csv").open(encoding="utf-8") as file:
            rows = [
                {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)
            ]
        points = [
            {"values": row, "time": event["time"], "step": int(row.pop("epoch"))} for row in rows
        ]
        handle_metrics(context, points)
    if context.version is None:
        handle_model(context, [{"file": "model"}])
    if run is None:
        handle_end(context, [{"time": event["time"], "status": "FINISHED", "error": ""}])


HANDLERS: dict[str, Callable[[Context, list[Event]], None]] = {
    "start": handle_start,
    "resume": handle_resume,
    "metrics": handle_metrics,
    "artifact": handle_artifact,
    "model": handle_model,
    "end": handle_end,
    "restore": handle_restore,
    "evaluation": handle_evaluation,
    "promote": handle_promote,
}


def deliver(records: Records, client: MlflowClient) -> None:
    """Bring a journal's pending events to the store, in order; raises where the store fails, to be called again."""
    with records.delivery_lock:
        records.read()
        if not records.pending:
            return
        context = Context(client, records)
        while records.pending:
            events = records.events[records.delivered :]
            first = events[0]["do"]
            same = next(list(group) for do, group in groupby(events, key=lambda event: event["do"]))
            same = same[: BATCH // 10] if first == "metrics" else same[:1]
            HANDLERS[first](context, same)
            records.delivered += len(same)


class Outage:
    """What failures of the store cost this process so far: seconds, and lines already printed."""

    seconds = 0.0
    told: set[str] = set()


def attempt(journal: Journal) -> int:
    """Deliver a journal, remove it if complete, return how much is still pending; if the store fails, say so once."""
    start = time.monotonic()
    if Outage.seconds < SECONDS_FOR_FAILURES:
        try:
            deliver(journal, connect())
        except UserError:
            raise
        except Exception as error:
            Outage.seconds += time.monotonic() - start
            line = f"warning: MLflow at {store_uri()} fails ({summary(error)}); nothing is lost"
            if line not in Outage.told:
                Outage.told.add(line)
                print(line)
    pending = journal.pending
    if not pending and not checkpoint_of(journal.training):
        journal.remove()
    return pending


def sync() -> int:
    """Deliver every journal; remove those that are complete; return the number of events still pending."""
    from filelock import Timeout

    pending = 0
    for training in trainings():
        with (
            contextlib.suppress(Timeout),
            Journal(training, timeout=0) as journal,
        ):  # who has it open delivers it
            try:
                pending += attempt(journal)
            except UserError as error:
                print(f"warning: training {training}: {error}")
                pending += journal.pending
    return pending
