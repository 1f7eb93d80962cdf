"""Kill a real `dvc repro` at random instants until it ends by itself, and hold the result against an undisturbed one.

python tests/benchmarks/kill_campaign.py --kills 200
python tests/benchmarks/kill_campaign.py --kills 10 --dataset mnist --architecture mlp --every 6
"""

import os
import random
import re
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
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import torch
import typer
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
VICTIMS = ["training", "courier", "dvc", "both"]
KILLS_PER_TRAINING = 6
OUTPUTS = ["model.safetensors", "history.csv", "model.json"]
PATIENCE = 1800  # seconds until a `dvc repro` counts as hung: a busy machine is slow


def copy_project(folder: Path, every: float) -> None:
    """Make `folder` a project of its own whose trainings save every `every` seconds."""
    ignored = shutil.ignore_patterns("__pycache__", "raw", "split")
    for name in ("stages", "data", ".dvc"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored if name != ".dvc" else None)
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    if (ROOT / ".lineup/downloads").exists():
        shutil.copytree(ROOT / ".lineup/downloads", folder / ".lineup/downloads")
    module = folder / "stages/lib/checkpoints.py"
    module.write_text(
        re.sub(r"(?m)^SECONDS_BETWEEN = .*", f"SECONDS_BETWEEN = {every}", module.read_text())
    )


def draw_images(folder: Path, per_class: int = 200) -> None:
    """Write three classes of small noisy pictures."""
    generator = torch.Generator().manual_seed(0)
    for label, shade in enumerate((60, 120, 180)):
        (folder / f"class-{label}").mkdir(parents=True)
        for number in range(per_class):
            pixels = (torch.randn(12, 12, generator=generator) * 60 + shade).clamp(0, 255).byte()
            Image.fromarray(pixels.numpy()).save(folder / f"class-{label}" / f"{number}.png")


def write_params(folder: Path, dataset: str, architecture: str, epochs: int) -> None:
    """Let params.yaml train `architecture` alone."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params |= {"dataset": dataset, "model": architecture, "architectures": [architecture]}
    params["models"][architecture] |= {"epochs": epochs}
    params["train"] |= {
        "log_every": 10,
        "ema": 0.9,
        "device": "cpu",
        "keep_every": max(1, epochs // 2),
    }
    if dataset == "pictures":
        params["data"]["size"] = 12
        params["train"]["batch_size"] = 16
    path.write_text(yaml.safe_dump(params), encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of every command: the local MLflow store, DVC's caches inside `folder`."""
    unwanted = ("DVC_", "MLFLOW_", "LINEUP_", "GIT_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    name = {
        f"GIT_{who}_{what}": "campaign"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    return (
        clean
        | name
        | {"PATH": path, "DVC_SITE_CACHE_DIR": str(folder / "site-cache"), "DVC_NO_ANALYTICS": "1"}
    )


def command(folder: Path, *arguments: str) -> None:
    """Run a command in `folder`; show what it printed if it fails."""
    result = subprocess.run(
        arguments, cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{result.stdout}{result.stderr}")


@dataclass
class Outcome:
    """What a finished training left behind: files, and the contents of MLflow's database."""

    files: dict[str, str]
    points: list[tuple[Any, ...]]  # (name, step, value), each row of the table
    runs: list[str]  # their status
    versions: int

    def differences(self, other: "Outcome") -> list[str]:
        """Name what differs from `other`."""
        return [name for name in self.__dict__ if getattr(self, name) != getattr(other, name)]


def read_outcome(project: Path, architecture: str) -> Outcome:
    """Return hashes of the outputs, every metric point but the elapsed time, the runs' status, the versions."""
    folder = project / "models" / architecture
    files = {name: sha256((folder / name).read_bytes()).hexdigest() for name in OUTPUTS}
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        points = database.execute(
            "select key, step, value from metrics where key != 'training_seconds'"
        ).fetchall()
        runs = [status for (status,) in database.execute("select status from runs")]
        ((versions,),) = database.execute("select count(*) from model_versions").fetchall()
    return Outcome(files, sorted(points), runs, versions)


@dataclass
class Round:
    """One training, killed again and again until it ends by itself."""

    project: Path
    architecture: str
    kills: list[str] = field(default_factory=list)
    resumed: int = 0
    torn: int = 0  # times that DVC's own lock file was cut off by the kill before, and deleted here
    faults: list[str] = field(default_factory=list)

    def live(
        self, instant: float | None, victim: str = "", number: signal.Signals = signal.SIGKILL
    ) -> bool:
        """Run `dvc repro`, kill `victim` at `instant` (None: never), and tell whether the stage came to its end."""
        path = self.project.with_suffix(".log")
        log, before = path.open("ab"), path.stat().st_size
        dvc = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", f"train@{self.architecture}"],
            cwd=self.project,
            env=environment(self.project),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        killed = False
        try:
            dvc.wait(PATIENCE if instant is None else instant)
        except subprocess.TimeoutExpired:
            if instant is None:
                os.killpg(dvc.pid, signal.SIGKILL)
                self.faults.append("dvc repro hangs")
                return True
            victim = send(dvc.pid, victim, number)
            killed = bool(victim)
            self.kills += [f"{instant:.1f}s {victim} {number.name[3:]}"] * killed
            dvc.wait(PATIENCE)
        if dvc.returncode and b"Unable to read RWLock-file" in path.read_bytes()[before:]:
            (
                self.project / ".dvc/tmp/rwlock"
            ).unlink()  # DVC does not replace it atomically, and asks for this
            self.torn += 1
        elif dvc.returncode and not killed:
            self.faults.append(f"dvc repro failed with {dvc.returncode}")
        return dvc.returncode == 0 or bool(self.faults)

    def outcome(self) -> Outcome:
        """Return what the training left, after `make sync`: a killed courier leaves its journal to that."""
        command(self.project, sys.executable, "-m", "stages.sync")
        return read_outcome(self.project, self.architecture)


def send(dvc: int, victim: str, number: signal.Signals) -> str:
    """Send a signal and return whom it hit: `dvc` where the victim is not there yet, nobody where all is over."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if victim == "both":
            os.killpg(dvc, number)
            return "both"
        children = psutil.Process(dvc).children(recursive=True)
        trainings = [
            child for child in children if "stages.train" in child.cmdline()
        ]  # and its fork, the courier
        position = {"training": 0, "courier": 1}.get(victim, len(trainings))
        if position < len(trainings):
            trainings[position].send_signal(number)
            return victim
        os.kill(dvc, number)
        return "dvc"
    return ""


def main(
    kills: int = 200,
    dataset: str = "pictures",
    architecture: str = "cnn",
    epochs: int = 12,
    every: float = 0.3,
    jobs: int = 1,
    seed: int = 0,
    minutes: float = 1e9,
) -> None:
    """Kill KILLS times; the default data set is small, and EVERY how many seconds a training saves."""
    scratch = Path(tempfile.mkdtemp(prefix="campaign-"))
    template = scratch / "template"
    copy_project(template, every)
    if dataset == "pictures":
        draw_images(template / "data/pictures")
    write_params(template, dataset, architecture, epochs)
    command(template, "git", "init", "-q")
    command(template, "git", "add", "-A")
    command(template, "git", "commit", "-qm", "campaign")
    command(template, sys.executable, "-m", "dvc", "repro", "split")

    def fresh(name: str) -> Round:
        shutil.copytree(template, scratch / name)
        return Round(scratch / name, architecture)

    undisturbed = fresh("undisturbed")
    started = time.monotonic()
    undisturbed.live(None)
    duration = time.monotonic() - started
    if undisturbed.faults:
        sys.exit(f"the undisturbed run fails, see {scratch}/undisturbed.log")
    expected = undisturbed.outcome()
    print(
        f"undisturbed: {duration:.1f} s, {len(expected.points)} metric points, saves every {every} s",
        flush=True,
    )

    mutex, total, rounds, begun = threading.Lock(), 0, [], time.monotonic()

    def play(index: int) -> None:
        nonlocal total
        if total >= kills or time.monotonic() - begun > 60 * minutes:
            return
        chance = random.Random(f"{seed}-{index}")
        game = fresh(f"round-{index}")
        ended = False
        while not ended and len(game.kills) < KILLS_PER_TRAINING:
            ended = game.live(
                chance.uniform(0, duration), chance.choice(VICTIMS), chance.choice(SIGNALS)
            )
        while not ended:
            ended = game.live(None)
        game.resumed = (
            game.project.with_suffix(".log").read_text(errors="replace").count(": resumes at")
        )
        game.faults = game.faults or game.outcome().differences(expected)
        with mutex:
            total += len(game.kills)
            rounds.append(game)
            verdict = (
                f"FAILED: {', '.join(game.faults)}, see {game.project}" if game.faults else "same"
            )
            print(
                f"{total:4d} kills  {verdict}  [{', '.join(game.kills)}] resumed {game.resumed}×",
                flush=True,
            )
        if not game.faults:
            shutil.rmtree(game.project)
            game.project.with_suffix(".log").unlink()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(play, range(kills * 2)))
    failures = sum(bool(game.faults) for game in rounds)
    resumed, torn = (sum(getattr(game, name) for game in rounds) for name in ("resumed", "torn"))
    hits = {
        name: sum(name in kill for game in rounds for kill in game.kills)
        for name in [*VICTIMS, *names()]
    }
    print(
        f"{failures} failures in {total} kills of {len(rounds)} trainings, {resumed} resumes; "
        f"{', '.join(f'{name} {count}' for name, count in hits.items())}; "
        f"{torn} times DVC's own .dvc/tmp/rwlock was torn and deleted; "
        f"{(time.monotonic() - begun) / 60:.1f} minutes, load {os.getloadavg()[1]:.1f}"
    )
    if not failures:
        shutil.rmtree(scratch)
    sys.exit(min(failures, 1))


def names() -> list[str]:
    """Return the signals' short names."""
    return [number.name[3:] for number in SIGNALS]


if __name__ == "__main__":
    typer.run(main)
