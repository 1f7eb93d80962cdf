"""Scratch projects: copies of this repository with a small dataset, driven by the real dvc and the real MLflow."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from helpers.waiting import wait_for

ROOT = Path(__file__).parents[2]
READING = shutil.ignore_patterns("mlflow.db-*")  # files of who reads a store just now
QUICK = {"epochs": 2, "batch_size": 64, "log_every": 2}


class Project:
    """A scratch repository and the commands that a person runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Command] = []
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DVC_", "MLFLOW_"))
        }
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": "",
        }
        self.environment.pop("LINEUP_TRACKING", None)

    def run(self, *command: str, check: bool = True, cwd: Path | None = None, **environment: str):
        """Run a command here; with `check` a failure shows its output."""
        command = [sys.executable if word == "python" else word for word in command]
        result = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
        )
        assert not check or result.returncode == 0, (
            f"{command}\n{result.stdout[-6000:]}\n{result.stderr[-6000:]}"
        )
        return result

    def start(self, *command: str, **environment: str) -> "Command":
        """Start a command here and go on."""
        self.started.append(Command(self, command, self.environment | environment))
        return self.started[-1]

    def set(self, **changes) -> None:
        """Change params.yaml: keys with dots written as double underscores."""
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            section = params
            for parent in parents:
                section = section[parent]
            section[last] = value
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def commit(self) -> None:
        """Commit everything."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "work")

    def client(self):
        """Return a client of this project's default store."""
        from mlflow import MlflowClient

        uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        return MlflowClient(uri, uri)

    def read(self, name: str) -> str:
        """Return the text of a file."""
        return (self.folder / name).read_text()


class Command:
    """A command that runs; a file takes its output: a pipe that is full would stop it."""

    def __init__(self, project: Project, command: tuple[str, ...], environment: dict) -> None:
        words = [sys.executable if word == "python" else word for word in command]
        self.file = project.folder / f"output-{time.monotonic_ns()}"
        with self.file.open("wb") as out:
            self.process = subprocess.Popen(
                words, cwd=project.folder, env=environment, stdout=out, stderr=out
            )

    def pause_after(self, text: str) -> None:
        """Stop the process for a while once it printed `text`: it is not over too soon then."""
        wait_for(lambda: text in self.file.read_text())
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue after a pause."""
        self.process.send_signal(signal.SIGCONT)

    def output(self, code: int = 0) -> str:
        """Wait for the end and return what was printed."""
        assert self.process.wait(400) == code, self.file.read_text()[-3000:]
        return self.file.read_text()


def end(process: subprocess.Popen) -> None:
    """Kill a process, and all that it started, if it still runs."""
    if process.poll() is None:
        for each in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.kill()


def copy_sources(folder: Path) -> None:
    """Copy this repository's files, committed or not, to `folder`; what Git ignores stays behind."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        if (ROOT / name).is_file() and name not in ("dvc.lock", "metrics.json"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)


def copy_downloads(folder: Path) -> None:
    """Give `folder` what this repository has downloaded, if anything."""
    downloads = ROOT / ".lineup" / "downloads"
    if downloads.exists():
        shutil.copytree(downloads, folder / ".lineup" / "downloads")


def write_digits(folder: Path, count: int) -> None:
    """Write scikit-learn's handwritten digits (8×8, grey) as PNG files, a folder per class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(
        zip(digits.images[:count], digits.target[:count], strict=True)
    ):
        path = folder / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).save(path)


def make_project(folder: Path, images: int = 300) -> Project:
    """Return a committed scratch project on small digits, with two architectures and two epochs."""
    copy_sources(folder)
    write_digits(folder / "data" / "digits", images)
    project = Project(folder)
    project.set(dataset="digits", data__size=8, architectures=["linear", "mlp"])
    project.set(**{f"train__{key}": value for key, value in QUICK.items()})
    params = yaml.safe_load(project.read("params.yaml"))
    for section in params["models"].values():
        section.pop("batch_size", None)  # linear's is larger than the whole set
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project.run("git", "init", "--quiet")
    project.run("git", "config", "user.email", "tests@example.org")
    project.run("git", "config", "user.name", "Tests")
    project.commit()
    return project
