"""A search: settings drawn from ranges, trained, judged on validation; it survives a kill."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import typer
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from lineup.cli import progress
from lineup.data.dataset import Split
from lineup.errors import ClusterError, UserError
from lineup.paths import state_dir
from lineup.search.space import Space
from lineup.search.trial import Outcome, TrialRunner
from lineup.search.workers import work_at_once
from lineup.tracking.search_recorder import SearchRecorder
from lineup.training.checkpoints import fingerprint
from lineup.training.interruption import Interruption
from lineup.training.session import Interrupted
from lineup.training.setup import Setup, set_up

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
RUNGS = {"min_resource": 2, "reduction_factor": 3}  # after epochs 2, 6, 18 … the best third goes on
MACHINE = {"device", "precision", "threads"}  # settings in which machines of one study may differ

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", "The reported value is ignored")  # of an epoch done twice


class Search:
    """A study of Optuna; processes of other machines may work at it too."""

    def __init__(self, space: Space, storage: optuna.storages.RDBStorage, owner: str) -> None:
        """Open the study of this space, or make it; `owner` marks the trials of this repository."""
        self.space, self.owner = space, owner
        nothing = (event for event in ())  # its own may hold a worker of a cluster
        self.setup = replace(set_up(space.params, space.architecture), events=nothing)
        trainer = self.setup.trainer
        self.monitor = trainer.monitor
        self.study = optuna.create_study(
            storage=storage,
            study_name=_study_name(self.setup, space),
            direction="maximize" if trainer.highest_is_best else "minimize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(**RUNGS),
            load_if_exists=True,
        )
        self.turn = threading.Lock()  # of threads that ask and tell
        self.at_work: set[int] = set()  # numbers of trials
        self.lock_file = state_dir() / "search" / f"{self.study.study_name}.lock"

    @property
    def introduction(self) -> str:
        """Return the study's name, and what it has already."""
        if self.study.trials:
            count = len(self.study.get_trials(deepcopy=False, states=FINISHED))
            return f"{self.study.study_name}: goes on, {count} trials are finished"
        return f"{self.study.study_name}: a new study, of these ranges, settings, data and code"

    @property
    def has_failed(self) -> bool:
        """Tell whether trials are finished, and every one of them failed."""
        trials = self.study.get_trials(deepcopy=False, states=FINISHED)
        return bool(trials) and all("has_failed" in trial.user_attrs for trial in trials)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Allow one process of this repository: its unfinished trials were interrupted."""
        lock = FileLock(self.lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError("another process is at this search already") from None
        with lock:
            yield

    def recorder(self) -> SearchRecorder:
        """Return what records this search in MLflow, as one run wherever it goes on."""
        if "run_id" not in self.study.user_attrs:
            self.study.set_user_attr("run_id", uuid.uuid4().hex)
        run_id = self.study.user_attrs["run_id"]
        ranges = {key: str(limits) for key, limits in self.space.ranges.items()}
        return SearchRecorder(run_id, self.setup, self.space.params, ranges, self.lock_file)

    def run(
        self, trials: int, minutes: float, recorder: SearchRecorder | None, jobs: int = 1
    ) -> None:
        """Try settings until the study has `trials` of them or time is up; raises Interrupted.

        On a cluster `jobs` are tried at a time.
        """
        if jobs > 1 and not self.setup.machine.node:
            raise UserError("this machine tries one at a time; for --jobs set LINEUP_RAY")
        current = self.space.current(self.setup.config["hyperparameters"])
        if current and not self.study.trials:
            self.study.enqueue_trial(current)
        deadline = time.monotonic() + 60 * minutes
        with Interruption() as interruption, progress(unit="images") as bar:
            runner = TrialRunner(self.space, bar, interruption, deadline, recorder, self.turn)
            try:
                if self.setup.machine.node:
                    work_at_once(jobs, lambda: self._work(trials, runner), interruption, deadline)
                else:
                    self._work(trials, runner)
            except Interrupted:
                if time.monotonic() < deadline:
                    raise

    def _work(self, trials: int, runner: TrialRunner) -> None:
        """Try one setting after the other."""
        while time.monotonic() < runner.deadline:
            if Split.read().digest != self.setup.split.digest:
                raise UserError("the data have changed since this search began; run it again")
            with self.turn:
                if self._taken() >= trials:
                    return
                trial, settings = self._draw()
                self.at_work.add(trial.number)
            try:
                self._try(trial, settings, runner)
            finally:
                self.at_work.remove(trial.number)

    def _taken(self) -> int:
        """Return how many trials are finished, or at work here or on other machines."""
        trials = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING, *FINISHED])
        return sum(trial.state in FINISHED or not self._is_left(trial) for trial in trials)

    def _is_left(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial that runs is one of ours that was interrupted."""
        is_ours = trial.user_attrs.get("owner") == self.owner
        return is_ours and trial.number not in self.at_work

    def _ask(self) -> optuna.Trial:
        """Return a trial of ours that was interrupted, else a new one."""
        for found in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if self._is_left(found):
                return optuna.Trial(self.study, found._trial_id)
        trial = self.study.ask()
        trial.set_user_attr("owner", self.owner)
        return trial

    def _draw(self) -> tuple[optuna.Trial, dict[str, Any]]:
        """Return a trial and its settings."""
        trial = self._ask()
        self.study.sampler = self._sampler(trial.number)
        settings = self.space.draw(trial)
        trial.set_user_attr("settings", json.dumps(settings))
        return trial, settings

    def _try(self, trial: optuna.Trial, settings: dict[str, Any], runner: TrialRunner) -> None:
        """Train with settings, and tell the study how good they are."""
        start = time.monotonic()
        try:
            outcome = self._known(trial) or runner.train(trial, settings)
        except (Interrupted, ClusterError):  # the same command goes on with it
            raise
        except Exception:
            self.study.tell(trial, state=TrialState.FAIL)  # so that it is not tried for ever
            raise
        trial.set_user_attr("seconds", time.monotonic() - start)
        with self.turn:
            self._tell(trial, outcome, runner.recorder)
        words = ", ".join(f"{key} {value}" for key, value in settings.items())
        typer.echo(f"trial {trial.number}: {outcome.text} · {words}")

    def _tell(self, trial: optuna.Trial, outcome: Outcome, recorder: SearchRecorder | None) -> None:
        if outcome.has_failed:
            trial.set_user_attr("has_failed", True)
        if outcome.score is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, outcome.score)
        if outcome.checkpoint:
            shutil.rmtree(outcome.checkpoint, ignore_errors=True)
        complete = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if recorder and complete:
            recorder.add_best(len(complete), {self.monitor: self.study.best_value})

    def _sampler(self, number: int) -> optuna.samplers.TPESampler:
        """Return a sampler seeded by the trial's number, so that a resumed study repeats none."""
        words = np.random.SeedSequence((self.space.params.seed, number)).generate_state(1)
        return optuna.samplers.TPESampler(seed=int(words[0]), constant_liar=True)

    def _known(self, trial: optuna.Trial) -> Outcome | None:
        """Return the outcome of a finished trial with the same settings: some ranges hold few."""
        for other in self.study.get_trials(deepcopy=False, states=FINISHED):
            if other.params == trial.params:
                score = other.value if other.state == TrialState.COMPLETE else None
                has_failed = "has_failed" in other.user_attrs
                return Outcome(f"as trial {other.number}", score, has_failed)
        return None


def _study_name(setup: Setup, space: Space) -> str:
    """Return a name that stands for ranges, recipe, data and code, and for no machine."""
    recipe, hyperparameters = space.params.recipe(space.architecture)
    shaping = {key: setup.config[key] for key in ("seed", "data", "split", "code", "pretrained")}
    shaping |= {"recipe": recipe.model_dump(exclude=MACHINE), "ranges": space.ranges}
    return f"{space.architecture}-{fingerprint(shaping | hyperparameters)[:8]}"
