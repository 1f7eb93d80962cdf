"""Kill a real `dvc repro` at random instants until it ends by itself, as if undisturbed.

python tests/benchmarks/kill_campaign.py --kills 200
python tests/benchmarks/kill_campaign.py --kills 10 --dataset mnist --architecture mlp --every 6
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil
import torch
import typer
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.project import Project, copy_downloads, copy_sources  # noqa: E402

from lineup.files import sha256  # noqa: E402

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
TARGETS = ["training", "follower", "dvc", "both"]  # both: dvc and the training
MARKS = {"training": "train_saving_often.py", "follower": "--follow"}  # in their command lines
KILLS_PER_TRAINING = 6
OUTPUTS = ["model.safetensors", "history.csv", "model.json"]
HUNG_AFTER_SECONDS = 1800  # a busy machine is slow


# --- the project ----------------------------------------------------------------------------------


def make_template(
    folder: Path, dataset: str, architecture: str, epochs: int, every: float
) -> Project:
    """Return a project that trains one architecture, saving every `every` seconds, up to split."""
    copy_sources(folder)
    copy_downloads(folder)
    project = Project(folder)
    project.environment |= {"DVC_NO_ANALYTICS": "1", "SECONDS_BETWEEN_SAVES": str(every)}
    often = "python tests/programs/train_saving_often.py"
    pipeline = project.read("dvc.yaml").replace("python -m stages.train", often)
    (folder / "dvc.yaml").write_text(pipeline)
    project.set(dataset=dataset, model=architecture, architectures=[architecture])
    settings = {"log_every": 10, "ema": 0.9, "device": "cpu", "keep_every": max(1, epochs // 2)}
    project.set(**{f"train__{key}": value for key, value in settings.items()})
    project.set(**{f"models__{architecture}__epochs": epochs})
    if dataset == "pictures":
        draw_pictures(folder / "data" / dataset)
        project.set(data__size=12, train__batch_size=16)
    project.run("git", "init", "--quiet")
    project.run("git", "config", "user.email", "tests@example.org")
    project.run("git", "config", "user.name", "Tests")
    project.commit()
    project.run("python", "-m", "dvc", "repro", "split")
    return project


def draw_pictures(folder: Path, per_class: int = 200) -> None:
    """Write three classes of small noisy pictures."""
    generator = torch.Generator().manual_seed(0)
    for label, shade in enumerate((60, 120, 180)):
        (folder / f"class-{label}").mkdir(parents=True)
        for number in range(per_class):
            pixels = (torch.randn(12, 12, generator=generator) * 60 + shade).clamp(0, 255).byte()
            Image.fromarray(pixels.numpy()).save(folder / f"class-{label}" / f"{number}.png")


@dataclass
class Outcome:
    """What a finished training left behind: files, and the contents of MLflow's store."""

    files: dict[str, str]
    points: list[tuple[Any, ...]]  # (name, step, value), each row of the table
    runs: list[str]  # their status
    kept: list[str]  # digests of the epochs' weights

    def differences(self, other: "Outcome") -> list[str]:
        """Name what differs from `other`."""
        names = [field.name for field in fields(self)]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def read_outcome(folder: Path, architecture: str) -> Outcome:
    """Return all that must not depend on kills: the elapsed time does."""
    files = {name: sha256(folder / "models" / architecture / name) for name in OUTPUTS}
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        query = "SELECT key, step, value FROM metrics WHERE key != 'training_seconds'"
        points = sorted(database.execute(query))
        runs = [status for (status,) in database.execute("SELECT status FROM runs")]
    kept = [sha256(path) for path in (folder / "mlartifacts").rglob("epoch-*.safetensors")]
    return Outcome(files, points, runs, sorted(kept))


# --- one training ---------------------------------------------------------------------------------


@dataclass
class Round:
    """One training, killed again and again until it ends by itself."""

    project: Project
    architecture: str
    kills: list[str] = field(default_factory=list)
    resumed: int = 0
    torn: int = 0  # times that a kill cut off DVC's own lock file
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = self.project.folder.with_suffix(".log")

    def live(
        self, instant: float | None, target: str = "", number: signal.Signals = signal.SIGKILL
    ) -> bool:
        """Run `dvc repro`, kill `target` at `instant` (None: never); tell whether all is over."""
        with self.log.open("ab") as log:
            before = log.tell()
            dvc = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", f"train@{self.architecture}"],
                cwd=self.project.folder,
                env=self.project.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        killed = ""
        try:
            dvc.wait(HUNG_AFTER_SECONDS if instant is None else instant)
        except subprocess.TimeoutExpired:
            if instant is not None:
                killed = send(dvc.pid, target, number)
                self.kills += [f"{instant:.1f}s {killed} {number.name[3:]}"] if killed else []
            self.wait(dvc)
        if dvc.returncode and b"Unable to read RWLock-file" in self.log.read_bytes()[before:]:
            # DVC does not replace it atomically, and asks for this
            (self.project.folder / ".dvc/tmp/rwlock").unlink()
            self.torn += 1
        elif dvc.returncode and not killed:
            self.faults.append(f"dvc repro failed with {dvc.returncode}")
        return dvc.returncode == 0 or bool(self.faults)

    def wait(self, dvc: subprocess.Popen) -> None:
        """Wait for the end of `dvc repro`, or note that it hangs."""
        try:
            dvc.wait(HUNG_AFTER_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(dvc.pid, signal.SIGKILL)
            dvc.wait()
            self.faults.append("dvc repro hangs")

    def outcome(self) -> Outcome:
        """Return what the training left, after `make sync`: a killed follower leaves the rest."""
        self.project.run("python", "-m", "stages.sync")
        return read_outcome(self.project.folder, self.architecture)


def send(dvc: int, target: str, number: signal.Signals) -> str:
    """Send a signal; return whom it hit: `dvc` where the target is not there, "" after the end."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if target == "both":
            os.killpg(dvc, number)
            return "both"
        for process in psutil.Process(dvc).children(recursive=True):
            words = " ".join(process.cmdline())
            if process.name() != "sh" and MARKS.get(target, "no target") in words:
                process.send_signal(number)
                return target
        os.kill(dvc, number)
        return "dvc"
    return ""


# --- the campaign ---------------------------------------------------------------------------------


class Campaign:
    """Rounds until there were enough kills; some may run at the same time."""

    def __init__(self, template: Project, architecture: str, seed: int) -> None:
        self.template, self.architecture, self.seed = template, architecture, seed
        self.rounds: list[Round] = []
        self.mutex = threading.Lock()
        started = time.monotonic()
        undisturbed = self.fresh("undisturbed")
        undisturbed.live(None)
        self.duration = time.monotonic() - started
        if undisturbed.faults:
            sys.exit(f"the undisturbed run fails, see {undisturbed.log}")
        self.expected = undisturbed.outcome()

    @property
    def kills(self) -> list[str]:
        """Return the kills of all rounds."""
        return [kill for each in self.rounds for kill in each.kills]

    def fresh(self, name: str) -> Round:
        """Return a round in a new copy of the template."""
        project = Project(self.template.folder.with_name(name))
        shutil.copytree(self.template.folder, project.folder, symlinks=True)
        project.environment = dict(self.template.environment)
        project.environment["DVC_SITE_CACHE_DIR"] = str(project.folder / "site-cache")
        return Round(project, self.architecture)

    def play(self, index: int) -> None:
        """Play one round, and say how it ended."""
        chance = random.Random(f"{self.seed}-{index}")
        game, is_over = self.fresh(f"round-{index}"), False
        while not is_over and len(game.kills) < KILLS_PER_TRAINING:
            instant = chance.uniform(0, self.duration)
            is_over = game.live(instant, chance.choice(TARGETS), chance.choice(SIGNALS))
        while not is_over:
            is_over = game.live(None)
        game.resumed = game.log.read_text(errors="replace").count(": resumes at")
        game.faults = game.faults or game.outcome().differences(self.expected)
        with self.mutex:
            self.rounds.append(game)
            verdict = "same"
            if game.faults:
                verdict = f"FAILED: {', '.join(game.faults)}, see {game.log}"
            kills = ", ".join(game.kills)
            count = len(self.kills)
            print(f"{count:4d} kills  {verdict}  [{kills}] resumed {game.resumed}×", flush=True)
        if not game.faults:
            shutil.rmtree(game.project.folder)
            game.log.unlink()

    def summary(self) -> str:
        """Return the counts of the campaign."""
        failures = sum(bool(game.faults) for game in self.rounds)
        resumed, torn = (
            sum(getattr(game, key) for game in self.rounds) for key in ("resumed", "torn")
        )
        words = [*TARGETS, *(number.name[3:] for number in SIGNALS)]
        hits = ", ".join(f"{word} {sum(word in kill for kill in self.kills)}" for word in words)
        return (
            f"{failures} failures in {len(self.kills)} kills of {len(self.rounds)} trainings, "
            f"{resumed} resumes; {hits}; "
            f"{torn} times DVC's own .dvc/tmp/rwlock was torn and deleted"
        )


def main(
    kills: int = 200,
    dataset: str = "pictures",
    architecture: str = "cnn",
    epochs: int = 40,
    every: float = 0.3,
    jobs: int = 1,
    seed: int = 0,
    minutes: float = 1e9,
) -> None:
    """Kill KILLS times; a training saves every EVERY seconds, and MINUTES end the campaign."""
    scratch = Path(tempfile.mkdtemp(prefix="campaign-"))
    template = make_template(scratch / "template", dataset, architecture, epochs, every)
    campaign = Campaign(template, architecture, seed)
    points = f"{len(campaign.expected.points)} metric points"
    print(f"undisturbed: {campaign.duration:.1f} s, {points}, saves every {every} s", flush=True)
    begun = time.monotonic()

    def play(index: int) -> None:
        if len(campaign.kills) < kills and time.monotonic() - begun < 60 * minutes:
            campaign.play(index)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(play, range(kills * 2)))
    took = (time.monotonic() - begun) / 60
    print(f"{campaign.summary()}; {took:.1f} minutes, load {os.getloadavg()[1]:.1f}")
    if any(game.faults for game in campaign.rounds):
        sys.exit(1)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    typer.run(main)
