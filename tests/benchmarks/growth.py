"""How time and memory grow: ten times the images; a store of 10,000 runs.

python tests/benchmarks/growth.py images     # MNIST, and ten of it, each moved by a pixel more
python tests/benchmarks/growth.py runs       # what a training, an export and a search take beside them
"""

import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
import typer
from mlflow import MlflowClient

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.memory import seconds_and_megabytes  # noqa: E402
from helpers.project import Project, copy_downloads, copy_sources, make_project  # noqa: E402

from lineup.files import read_json, sha256, write_json  # noqa: E402
from lineup.tensors import read_tensors, write_tensors  # noqa: E402

STAGES = ("split", "train mlp", "evaluate")
ASKS = ("train linear", "evaluate", "export", "search of the newest 100 runs")  # the store
TABLES = ("tags", "params", "metrics", "latest_metrics")  # of a run in MLflow's store

app = typer.Typer(add_completion=False)


def multiply(folder: Path, times: int) -> None:
    """Make data/raw hold every image so many times, moved by a pixel more each time."""
    description = read_json(folder / "dataset.json")
    for split in ("train", "test"):
        path = folder / f"{split}.safetensors"
        tensors = read_tensors(path)
        images = torch.cat([tensors["images"].roll(number, -1) for number in range(times)])
        write_tensors(path, {"images": images, "labels": tensors["labels"].repeat(times)})
        description["digests"][split] = sha256(path)
    write_json(folder / "dataset.json", description)


@app.command()
def images(times: int = 10, rounds: int = 5) -> None:
    """Print seconds and anonymous memory of the stages, and what an image more costs."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = Project(Path(folder) / "few"), Project(Path(folder) / "many")
        for project in (few, many):
            copy_sources(project.folder)
            copy_downloads(project.folder)
            project.set(architectures=["mlp"], model="mlp", models__mlp__epochs=1)
            project.run("python", "-m", "stages.fetch")
        multiply(many.folder / "data" / "raw", times)
        found = [[run_stages(project) for project in (few, many)] for _ in range(rounds)]
    print(f"medians of {rounds} rounds\n")
    print(f"| | 60,000 images | {60 * times:,},000 images | ms a thousand more |")
    print("|---|---:|---:|---:|")
    for stage, *medians in zip(STAGES, *np.median(found, axis=0), strict=True):
        cells = [f"{seconds:.1f} s, {megabytes:.0f} MB" for seconds, megabytes in medians]
        (short, _), (long, _) = medians
        more = 1000 * (long - short) / (60 * (times - 1))
        print(f"| {stage} | {' | '.join(cells)} | {more:.1f} |")


def run_stages(project: Project) -> list[tuple[float, float]]:
    """Run all stages; return the seconds and megabytes of each."""
    project.run("rm", "-rf", "models", ".lineup/runs", ".lineup/checkpoints")
    return [
        seconds_and_megabytes(
            project, sys.executable, "-m", *f"stages.{stage}".split(), LINEUP_TRACKING="off"
        )
        for stage in STAGES
    ]


def copy_runs(database: Path, count: int) -> None:
    """Add copies of the newest run to a store, until it has `count` more."""
    with closing(sqlite3.connect(database)) as connection, connection:
        (source,) = connection.execute(
            "SELECT run_uuid FROM runs ORDER BY start_time DESC LIMIT 1"
        ).fetchone()
        names = [uuid4().hex for _ in range(count)]
        for table in ("runs", *TABLES):
            info = connection.execute(f"PRAGMA table_info({table})").fetchall()
            columns = [column for _, column, *_ in info]
            values = ", ".join("?" if column == "run_uuid" else column for column in columns)
            query = f"INSERT INTO {table} SELECT {values} FROM {table} WHERE run_uuid = ?"
            connection.executemany(query, [(name, source) for name in names])


@app.command()
def runs(count: int = 10_000, rounds: int = 5) -> None:
    """Print seconds of a training, an export and a search, beside few runs and beside many."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = (make_project(Path(folder) / name) for name in ("few", "many"))
        for project in (few, many):
            project.run("dvc", "repro")
        copy_runs(many.folder / "mlflow.db", count)
        found = [[measure(project) for project in (few, many)] for _ in range(rounds)]
    print(f"medians of {rounds} rounds\n")
    print(f"| | a few runs | {count:,} more | ratio |\n|---|---:|---:|---:|")
    for what, before, after in zip(ASKS, *np.median(found, axis=0), strict=True):
        print(f"| {what} | {before:.2f} s | {after:.2f} s | {after / before:.2f} |")


def measure(project: Project) -> list[float]:
    """Return the seconds of all that asks the store."""
    project.run("rm", "-rf", "models/linear", ".lineup/runs", ".lineup/checkpoints")
    seconds = []
    for stage in ASKS[:-1]:
        command = [sys.executable, "-m", *f"stages.{stage}".split()]
        seconds.append(seconds_and_megabytes(project, *command)[0])
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'digits'")
    start = time.perf_counter()
    client.search_runs([experiment.experiment_id], max_results=100)
    return [*seconds, time.perf_counter() - start]


if __name__ == "__main__":
    app()
