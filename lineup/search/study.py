"""A search: settings drawn from ranges, trained, judged on validation; it survives a kill."""

from __future__ import annotations

import json
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import optuna
import typer
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from lineup.cli import progress
from lineup.errors import UserError
from lineup.paths import repository, state_dir
from lineup.search.space import Space, describe
from lineup.search.trial import Outcome, Trials
from lineup.tracking.location import host
from lineup.tracking.search_recorder import SearchRecorder
from lineup.training.checkpoints import fingerprint
from lineup.training.interruption import Interruption
from lineup.training.session import Interrupted
from lineup.training.setup import Setup, set_up

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
UNPRUNED = 5  # trials that run to their end, before others are held against them
MACHINE = {"device", "precision", "threads"}  # settings in which machines of one study may differ

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", "The reported value is ignored")  # of an epoch done twice


@contextmanager
def opened(storage: str | None) -> Iterator[optuna.storages.RDBStorage]:
    """Yield where studies are kept, .lineup/search/ or a database; UserError where it fails."""
    folder = state_dir() / "search"
    folder.mkdir(parents=True, exist_ok=True)
    address = storage or f"sqlite:///{folder / 'studies.db'}"
    try:
        name = make_url(address).render_as_string(hide_password=True)
    except SQLAlchemyError:
        hint = "write one such as postgresql://user@host/database"
        raise UserError(f"--storage {address} is no database's address; {hint}") from None
    try:
        yield optuna.storages.RDBStorage(address)
    except ImportError as error:
        raise UserError(f"--storage {name}: {error}") from None
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        hint = "what it has is kept, and the same command goes on when it answers"
        raise UserError(f"the studies in {name} can't be used ({reason}); {hint}") from None


class Search:
    """A study of Optuna that other machines may share."""

    def __init__(self, space: Space, storage: optuna.storages.RDBStorage) -> None:
        self.space, self.owner = space, f"{host()}:{repository()}"
        self.setup = set_up(space.params, space.architecture)
        trainer = self.setup.trainer
        self.monitor = trainer.monitor
        self.study = optuna.create_study(
            storage=storage,
            study_name=_study_name(self.setup, space),
            direction="maximize" if trainer.highest_is_best else "minimize",
            pruner=optuna.pruners.MedianPruner(UNPRUNED, n_warmup_steps=1),
            load_if_exists=True,
        )
        self.lock_file = state_dir() / "search" / f"{self.study.study_name}.lock"

    @property
    def introduction(self) -> str:
        """Return the study's name, and what it has already."""
        count = len(self.study.get_trials(deepcopy=False, states=FINISHED))
        if count:
            return f"{self.study.study_name}: goes on after {count} trials"
        return f"{self.study.study_name}: a new study, of these ranges, settings, data and code"

    def recorder(self) -> SearchRecorder:
        """Return what records this search in MLflow, as one run wherever it goes on."""
        if "run_id" not in self.study.user_attrs:
            self.study.set_user_attr("run_id", uuid.uuid4().hex)
        ranges = {key: describe(limits) for key, limits in self.space.ranges.items()}
        run_id = self.study.user_attrs["run_id"]
        return SearchRecorder(run_id, self.setup, self.space.params, ranges, self.lock_file)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study: whatever of this machine is unfinished in it was interrupted."""
        lock = FileLock(self.lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError("another process is at this search already") from None
        with lock:
            yield

    def run(self, trials: int, minutes: float, recorder: SearchRecorder | None) -> None:
        """Try settings until the study has `trials` of them or time is up; raises Interrupted."""
        current = self.space.current()
        if current and not self.study.trials:
            self.study.enqueue_trial(current)
        deadline = time.monotonic() + 60 * minutes
        with Interruption() as interruption, progress(unit="images") as bar:
            shared = Trials(self.space.architecture, bar, interruption, deadline, recorder)
            while self._taken() < trials and time.monotonic() < deadline:
                try:
                    self._try(self._ask(), shared)
                except Interrupted:
                    if time.monotonic() < deadline:
                        raise

    def _taken(self) -> int:
        """Return how many trials are finished, or in the hands of other machines."""
        trials = self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING, *FINISHED])
        return sum(trial.state in FINISHED or not self._is_ours(trial) for trial in trials)

    def _is_ours(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs.get("owner") == self.owner

    def _ask(self) -> optuna.Trial:
        """Return a trial of ours that was interrupted, else a new one."""
        for found in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if self._is_ours(found):
                return optuna.Trial(self.study, found._trial_id)
        trial = self.study.ask()
        trial.set_user_attr("owner", self.owner)
        return trial

    def _try(self, trial: optuna.Trial, shared: Trials) -> None:
        """Draw settings, train with them, and tell the study how good they are."""
        self.study.sampler = self._sampler(trial.number)
        settings = self.space.draw(trial)
        trial.set_user_attr("settings", json.dumps(settings))
        outcome = self._known(trial) or shared.train(trial, self.space.changed(settings))
        if outcome.score is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, outcome.score)
            if shared.recorder:
                best = {self.monitor: self.study.best_value}
                shared.recorder.note(trial.number, outcome.score, best)
        words = ", ".join(f"{key} {value}" for key, value in settings.items())
        typer.echo(f"trial {trial.number}: {outcome.text} · {words}")

    def _sampler(self, number: int) -> optuna.samplers.TPESampler:
        """Return the sampler of one trial: with one for all, a resumed study would draw anew."""
        words = np.random.SeedSequence((self.space.params.seed, number)).generate_state(1)
        return optuna.samplers.TPESampler(seed=int(words[0]), constant_liar=True)

    def _known(self, trial: optuna.Trial) -> Outcome | None:
        """Return the outcome of a finished trial with the same settings: some ranges hold few."""
        for other in self.study.get_trials(deepcopy=False, states=FINISHED):
            if other.params == trial.params:
                score = other.value if other.state == TrialState.COMPLETE else None
                return Outcome(score, f"as trial {other.number}")
        return None


def _study_name(setup: Setup, space: Space) -> str:
    """Return a name that stands for ranges, recipe, data and code, and for no machine."""
    recipe, hyperparameters = space.params.recipe(space.architecture)
    shaping = {key: setup.config[key] for key in ("seed", "data", "split", "code")}
    shaping |= {"recipe": recipe.model_dump(exclude=MACHINE), "ranges": space.ranges}
    return f"{space.architecture}-{fingerprint(shaping | hyperparameters)[:8]}"
