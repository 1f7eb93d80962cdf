"""The near end: finds a node, sends data and state there, hears what happens, survives its loss."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from lineup import paths
from lineup.cluster.worker import Worker
from lineup.errors import ClusterError, UserError
from lineup.params import Train
from lineup.training.device import Machine
from lineup.training.job import Job
from lineup.training.trainer import Event, Notice, Trainer, Waiting

ENVIRONMENT = {
    "THP_MEM_ALLOC_ENABLE": "1",  # as lineup.cli sets it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # no GPU but those that were asked for
}
LEFT_OUT = shutil.ignore_patterns("__pycache__")
DATA = (paths.raw("train"), paths.INDICES)
PIECE = 2**26  # bytes, sent at once
SECONDS_TO_CONNECT = 5.0
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_START = 15.0  # before it says that it waits
SECONDS_BETWEEN_TRIES = 5.0
MOST_LOSSES = 3  # of workers, without a state between them
MOST_BUNDLES = 8  # on their way


def connect() -> Cluster:
    """Return a way to the cluster that LINEUP_RAY names; UserError where there is none."""
    resources = _resources()
    _join(os.environ["LINEUP_RAY"])
    return Cluster(resources)


@cache
def _join(address: str) -> None:
    """Make this process a driver of the cluster, once."""
    ray._private.worker.print_to_stdstream = lambda *_, **__: None  # twenty lines for a lost node
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray itself waits for two minutes, and ends this process
            socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
        with tempfile.TemporaryDirectory() as folder:  # as py_modules, the code of a node that has
            # this project's path would run in place of this one
            shutil.copytree(paths.CODE / "lineup", Path(folder, "lineup"), ignore=LEFT_OUT)
            ray.init(
                address,
                runtime_env={"working_dir": folder, "env_vars": ENVIRONMENT},
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"LINEUP_RAY={address}: {reason}; `ray status --address {address}` says what is there"
        ) from None


def _resources() -> dict[str, Any]:
    """Return what a training needs of a node: one core, unless LINEUP_RAY_RESOURCES says else."""
    text = os.environ.get("LINEUP_RAY_RESOURCES", "{}")
    try:
        resources = {"num_cpus": 1} | json.loads(text)
        Worker.options(**resources)
    except (TypeError, ValueError) as error:
        hint = """try '{"num_cpus": 4}' or '{"num_gpus": 1}'"""
        raise UserError(f"LINEUP_RAY_RESOURCES={text}: {error}; {hint}") from None
    return resources


class Cluster:
    """One process's way to the nodes of a cluster: a worker there, and another when it is lost."""

    def __init__(self, resources: dict[str, Any]) -> None:
        self.resources = resources
        self.worker: Any = None

    def prepare(self, recipe: Train) -> Machine:
        """Return what a node makes of `recipe`; waits until one has room."""
        search = self._find(recipe)
        while True:
            try:
                event = next(search)
            except StopIteration as found:
                return found.value
            except RayTaskError as error:
                raise ClusterError(f"on a node: {_cause(error)}") from None
            if isinstance(event, Notice):
                print(event.text, flush=True)

    def fit(self, job: Job, trainer: Trainer, machine: Machine) -> Iterator[Event]:
        """Yield what happens in a training on `machine` or its like, as `trainer.fit` does.

        `trainer` stays behind, and is given the state of the far one every few seconds. Where a
        worker is lost another one goes on from there, and what was heard already is heard once.
        """
        heard, losses = _Heard(), 0
        try:
            while not trainer.progress.finished:
                before = trainer.progress
                try:
                    if self.worker is None:
                        yield from self._find_like(machine, job.asked)
                    yield from self._run(job, trainer, heard)
                except RayTaskError as error:
                    raise _cause(error) from None
                except RayError as error:
                    losses = losses + 1 if trainer.progress is before else 1
                    if losses > MOST_LOSSES:
                        raise ClusterError(
                            f"{losses} workers were lost ({_reason(error)}); what was trained is "
                            "kept, and the same command goes on"
                        ) from None
                    yield Notice(f"a worker is lost ({_reason(error)}); another one goes on")
                    self._release()
        finally:
            self._release()

    def _run(self, job: Job, trainer: Trainer, heard: _Heard) -> Iterator[Event]:
        """Train on the worker from where `trainer` is."""
        yield from self._send_data(job.data)
        heard.position = 0
        train = self.worker.train.options(_generator_backpressure_num_objects=MOST_BUNDLES)
        bundles = train.remote(job, trainer.state())
        while True:
            yield from _wait(bundles)
            try:
                bundle = ray.get(next(bundles))
            except StopIteration:
                return
            yield from heard.new(bundle.events)
            if bundle.state:
                trainer.restore(*bundle.state)
                heard.forget()

    def _send_data(self, name: str) -> Iterator[Event]:
        """Send the training's files to the node, unless it has them."""
        if (yield from _result(self.worker.lock_data.remote(name))):
            return
        for path in DATA:
            content = np.memmap(path, np.uint8, "r").view(np.ndarray)
            for start in range(0, len(content), PIECE):
                piece = content[start : start + PIECE]
                yield from _result(self.worker.receive.remote(name, str(path), start, piece))
        yield from _result(self.worker.keep_data.remote(name))

    def _find(self, recipe: Train) -> Generator[Event, None, Machine]:
        """Return what a node makes of `recipe`; yields while none has room."""
        for _ in range(MOST_LOSSES):
            try:
                return (yield from self._prepare_worker(recipe))
            except RayTaskError:
                raise
            except RayError as error:  # a node that just died, or can't run this package
                reason = _reason(error)
                self._release()
        raise ClusterError(f"the cluster has no working node: {reason}")

    def _prepare_worker(self, recipe: Train) -> Generator[Event, None, Machine]:
        self.worker = Worker.options(scheduling_strategy="SPREAD", **self.resources).remote()
        machine = self.worker.prepare.remote(recipe)
        began, has_said = time.monotonic(), False
        while not _is_there(machine):
            if not has_said and time.monotonic() - began > SECONDS_TO_START:
                has_said = True
                yield Notice(self._why_it_waits())
            yield Waiting()
        return ray.get(machine)

    def _find_like(self, machine: Machine, recipe: Train) -> Iterator[Event]:
        """Find a node that computes as `machine` does."""
        has_said = False
        while other := (yield from self._differences(machine, recipe)):
            if not has_said:
                has_said = True
                yield Notice(
                    f"a node would compute otherwise ({other}); waits for one like {machine.node}. "
                    "Or stop this, and the same command starts anew there"
                )
            self._release()
            until = time.monotonic() + SECONDS_BETWEEN_TRIES
            while time.monotonic() < until:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                yield Waiting()

    def _differences(self, machine: Machine, recipe: Train) -> Generator[Event, None, str]:
        """Find a node; return in what it differs from `machine`."""
        try:
            found = yield from self._find(recipe)
        except RayTaskError as error:  # it has no GPU, say
            return str(_cause(error))
        return ", ".join(found.differences(machine))

    def _why_it_waits(self) -> str:
        """Say what a training needs, and what the cluster has."""
        free = ray.available_resources()
        total = {
            name: f"{free.get(name, 0):g} of {count:g} {name} free"
            for name, count in ray.cluster_resources().items()
            if name.isalnum() and name != "memory"
        }
        needed = json.dumps(self.resources)
        return (
            f"waits for a node with {needed}; the cluster has {', '.join(total.values()) or 'none'}"
        )

    def _release(self) -> None:
        """End the worker, and with it what it computes."""
        with suppress(RayError):
            if self.worker is not None:
                ray.kill(self.worker)
        self.worker = None


class _Heard:
    """Which events listeners know: a training that goes on from a state repeats those after it."""

    def __init__(self) -> None:
        self.count = 0  # of events after the state
        self.position = 0  # of a training that goes on from there

    def new(self, events: list[Event]) -> Iterator[Event]:
        """Yield those that nobody heard before."""
        for event in events:
            self.position += 1
            if self.position > self.count:
                self.count = self.position
                yield event

    def forget(self) -> None:
        """Count from a new state on."""
        self.count -= self.position
        self.position = 0


def _is_there(ref: Any) -> bool:  # noqa: ANN401
    """Wait a moment for a result, or for the next one of a generator."""
    return bool(ray.wait([ref], timeout=SECONDS_BETWEEN_LOOKS)[0])


def _wait(ref: Any) -> Iterator[Event]:  # noqa: ANN401
    """Yield until a result is there, so that who drives the training can stop it."""
    while not _is_there(ref):
        yield Waiting()


def _result(ref: ray.ObjectRef) -> Generator[Event, None, Any]:
    """Return a result; yields until it is there."""
    yield from _wait(ref)
    return ray.get(ref)


def _cause(error: RayTaskError) -> Exception:
    """Return what went wrong on a node, with its traceback if that is needed."""
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, ImportError) or "failed to import" in str(cause):
        return ClusterError(f"a node lacks packages of requirements-cluster.lock: {cause}")
    if isinstance(cause, OSError):
        return ClusterError(f"on a node: {cause}")
    return error


def _reason(error: RayError) -> str:
    """Return the sentence of Ray's text that says why."""
    lines = str(error).strip().splitlines()
    return next((line.strip() for line in lines if "because" in line), lines[0])[:300]
