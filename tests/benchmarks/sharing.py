"""Two or three trainings at once on one machine, with turns and without.

python tests/benchmarks/sharing.py --rounds 5 --architectures linear,mlp,cnn,rnn

Seconds are those of the training loop, as the training prints them. A round runs alone, then
together, with turns and without; the table has medians: the longest loop together ÷ the sum of as
many loops alone. `--busy 1` adds a program that computes all the time.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
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


def main(
    rounds: int = 3, architectures: str = "linear,mlp,cnn,rnn", count: int = 2, busy: int = 0
) -> None:
    """Print the ratios of each architecture."""
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
