"""Two or three trainings at once on one machine, with turns and without.

python tests/benchmarks/sharing.py --rounds 5 --architectures linear,mlp,cnn,rnn

Seconds are those of the training loop, as the training prints them. A round runs alone, then
together, with turns and without; the table has medians: the longest loop together ÷ the sum of as
many loops alone. `--busy 1` adds a program that computes all the time. `--queue` measures two experiments
of mlp, start to end, with `dvc queue start -j 1` and `-j 2`.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import typer

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.project import Project, copy_downloads, copy_sources  # noqa: E402

EPOCHS = {"linear": 6, "mlp": 6, "cnn": 1, "rnn": 1, "simplenet": 1, "alexnet": 1}


def make_project(folder: Path) -> Project:
    """Return a copy of this repository with MNIST fetched and split."""
    project = Project(folder)
    copy_sources(folder)
    project.environment.pop("OMP_NUM_THREADS")
    project.environment |= {"LINEUP_TRACKING": "off"}
    copy_downloads(folder)
    for stage in ("fetch", "split"):
        project.run("python", "-m", f"stages.{stage}")
    return project


def loops(project: Project, name: str, count: int, has_turns: bool) -> list[float]:
    """Train `count` copies at once, each with a seed of its own; return the seconds of each loop."""
    cache = project.folder / ("cache" if has_turns else "params.yaml")  # a file: no place for locks
    copies = []
    for number in range(count):
        folder = project.folder.with_name(f"copy{number}")
        shutil.rmtree(folder, ignore_errors=True)
        copy_sources(folder)
        (folder / "data" / "raw").symlink_to(project.folder / "data" / "raw")
        (folder / "data" / "split").symlink_to(project.folder / "data" / "split")
        copies.append(Project(folder))
        copies[-1].environment = project.environment | {"XDG_CACHE_HOME": str(cache)}
        copies[-1].set(seed=number, **{f"models__{name}__epochs": EPOCHS[name]})
    started = [copy.start("python", "-m", "stages.train", name) for copy in copies]
    return [float(re.search(r"in (\d+\.\d) s", one.output())[1]) for one in started]


def queue_seconds(folder: Path, jobs: int) -> float:
    """Return how long two queued experiments take, with all stages and DVC's own work."""
    project = make_project(folder)
    project.set(architectures=["mlp"], model="mlp", models__mlp__epochs=EPOCHS["mlp"])
    project.run("git", "init", "--quiet")
    project.run("git", "config", "user.email", "bench@example.org")
    project.run("git", "config", "user.name", "Bench")
    project.commit()
    for seed in range(2):
        project.run("dvc", "exp", "run", "--queue", "-S", f"seed={seed}")
    start = time.perf_counter()
    project.run("dvc", "queue", "start", "-j", str(jobs))
    while (shown := project.run("dvc", "queue", "status").stdout).count("Success") < 2:
        assert "Failed" not in shown, shown
        time.sleep(1)
    return time.perf_counter() - start


def measure_queue(rounds: int) -> None:
    """Print how long two experiments take with two workers ÷ with one."""
    ratios = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as temporary:
            one, two = (queue_seconds(Path(temporary, str(jobs)), jobs) for jobs in (1, 2))
        ratios.append(two / one)
        print(f"-j 1 {one:.0f} s, -j 2 {two:.0f} s", flush=True)
    print(f"dvc queue start -j 2 ÷ -j 1: {statistics.median(ratios):.2f} ({rounds} rounds)")


def main(
    rounds: int = 3,
    architectures: str = "linear,mlp,cnn,rnn",
    count: int = 2,
    busy: int = 0,
    queue: bool = False,
) -> None:
    """Print the ratios of each architecture, or of DVC's queue."""
    if queue:
        measure_queue(rounds)
        return
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as temporary:
            project = make_project(Path(temporary, "project"))
            for _ in range(rounds):
                for name in architectures.split(","):
                    (alone,) = loops(project, name, 1, has_turns=True)
                    (plain,) = loops(project, name, 1, has_turns=False)
                    found[name, "alone, with ÷ without turns"].append(alone / plain)
                    for has_turns, words in ((True, "with turns"), (False, "without")):
                        together = max(loops(project, name, count, has_turns))
                        found[name, f"{count} at once, {words}"].append(together / count / plain)
    finally:
        for process in others:
            process.kill()
    print(f"{os.cpu_count()} cores, {rounds} rounds, {busy} other programs")
    for (name, words), ratios in found.items():
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(f"{name:10} {words:30} {statistics.median(ratios):5.2f}  ({spread})")


if __name__ == "__main__":
    typer.run(main)
