"""Training on a Ray cluster beside training here: what it costs, and what it survives.

python tests/benchmarks/cluster.py overhead --rounds 3   # seconds of a loop and around it, far and near
python tests/benchmarks/cluster.py data                  # how long the data take to a node
python tests/benchmarks/cluster.py loss --rounds 3       # what a lost node costs
python tests/benchmarks/cluster.py kills --kills 50      # of nodes and drivers, at random instants

The cluster lies in a network of its own on this machine: a head without cores, and nodes of one.
"""

import random
import re
import resource
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import typer

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.cluster import RayCluster  # noqa: E402
from helpers.project import Project, copy_downloads, copy_sources, make_project  # noqa: E402
from helpers.waiting import wait_for  # noqa: E402

from lineup.files import sha256  # noqa: E402

TRAIN = ("python", "-m", "stages.train")
SENDING = """
import sys, time
from lineup import paths
from lineup.cluster.driver import connect
from lineup.params import load_params
cluster = connect()
cluster.prepare(load_params().recipe("mlp")[0])
start = time.perf_counter()
list(cluster._send_data("first"))
middle = time.perf_counter()
list(cluster._send_data("first"))
print(middle - start, time.perf_counter() - middle)
"""
app = typer.Typer(add_completion=False)


@contextmanager
def ray_cluster(nodes: int):
    """Yield a cluster, which ends with the block."""
    cluster = RayCluster()
    try:
        for _ in range(nodes):
            cluster.add_node()
        yield cluster
    finally:
        cluster.close()


def forget(project: Project) -> None:
    """Remove what a training left, so that it begins anew."""
    project.run("rm", "-rf", "models", ".lineup/checkpoints", ".lineup/runs")


def seconds_of(project: Project, *command: str, **environment: str) -> tuple[float, float, float]:
    """Train; return the seconds from the end of the first epoch to the last one's, and all others.

    The third number is the time that processors here spent on it.
    """
    forget(project)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    project.run(*command, **environment)
    whole, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (log,) = project.folder.glob(".lineup/runs/*/points.jsonl")
    times = [int(re.search(r'"time": (\d+)', line)[1]) for line in log.open() if "val_loss" in line]
    loop = (times[-1] - times[0]) / 1000
    return loop, whole - loop, computed


@app.command()
def overhead(rounds: int = 3, architecture: str = "mlp", epochs: int = 90) -> None:
    """Print how long a training on MNIST takes far and near, with one thread each."""
    with tempfile.TemporaryDirectory() as folder, ray_cluster(1) as cluster:
        project = Project(Path(folder))
        copy_sources(project.folder)
        copy_downloads(project.folder)
        project.set(**{f"models__{architecture}__epochs": epochs})
        for stage in ("fetch", "split"):
            project.run("python", "-m", f"stages.{stage}")
        command = (*TRAIN, architecture)
        found = {"near": [], "far": []}
        for _ in range(rounds):
            found["near"].append(seconds_of(project, *command))
            far = seconds_of(project, *cluster.inside(*command), **cluster.environment)
            found["far"].append(far)
            print({where: pairs[-1] for where, pairs in found.items()}, flush=True)
    loops, around, computed = (
        {where: statistics.median(one[part] for one in all_) for where, all_ in found.items()}
        for part in (0, 1, 2)
    )
    print(f"loop: {loops['near']:.1f} s near, far ÷ near {loops['far'] / loops['near']:.3f}")
    print(f"around it: {around['near']:.1f} s near, {around['far'] - around['near']:+.1f} s far")
    print(f"processors of the driver: {computed['far']:.1f} s, with MLflow's mirror")


@app.command()
def data(gigabytes: float = 3.0) -> None:
    """Print how long MNIST's size of data, and a large one, takes to a node, and if it is there."""
    for size in (60_000 * 785, int(gigabytes * 1e9)):
        with tempfile.TemporaryDirectory() as folder, ray_cluster(1) as cluster:
            project = Project(Path(folder))
            copy_sources(project.folder)
            (project.folder / "data" / "raw").mkdir(parents=True)
            (project.folder / "data" / "split").mkdir()
            block = np.random.default_rng(0).bytes(2**24)
            with (project.folder / "data" / "raw" / "train.safetensors").open("wb") as file:
                for _ in range(0, size, len(block)):
                    file.write(block[: size - file.tell()])
            (project.folder / "data" / "split" / "indices.safetensors").write_bytes(block[:480_000])
            command = cluster.inside("python", "-c", SENDING)
            seconds = project.run(*command, **cluster.environment).stdout.split()
            print(
                f"{size / 1e6:,.0f} MB: {seconds[0]} s; already there: {seconds[1]} s", flush=True
            )


@app.command()
def loss(rounds: int = 3, epochs: int = 5000, seed: int = 0) -> None:
    """Print by how much a training takes longer whose node is killed at a random instant."""
    draw, found = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder, ray_cluster(2) as cluster:
        project = make_project(Path(folder))
        project.set(train__epochs=epochs)
        project.environment |= {"LINEUP_TRACKING": "off"} | cluster.environment
        for stage in ("fetch", "split"):
            project.run("python", "-m", f"stages.{stage}")
        for _ in range(rounds):
            seconds = {}
            for what in ("undisturbed", "killed"):
                forget(project)
                start = time.perf_counter()
                training = project.start(*cluster.inside(*TRAIN, "linear"))
                if what == "killed":
                    time.sleep(seconds["undisturbed"] * draw.uniform(0.4, 0.9))
                    cluster.worker().parent().kill()
                assert ("is lost" in training.output()) == (what == "killed")
                seconds[what] = time.perf_counter() - start
            cluster.add_node()
            found.append(seconds["killed"] - seconds["undisturbed"])
            print({what: round(value, 1) for what, value in seconds.items()}, flush=True)
    spread = f"{min(found):.1f} to {max(found):.1f}"
    print(f"a lost node costs {statistics.median(found):.1f} s ({spread}), lost work included")


@app.command()
def kills(kills: int = 50, seed: int = 0, epochs: int = 4000) -> None:
    """Kill nodes and drivers at random instants, and compare what comes out with a quiet training."""
    draw = random.Random(seed)
    done = trainings = differences = 0
    with tempfile.TemporaryDirectory() as folder, ray_cluster(2) as cluster:
        project = make_project(Path(folder))
        project.set(train__epochs=epochs, train__keep_every=epochs // 2)
        project.environment |= {"LINEUP_TRACKING": "off"}
        for stage in ("fetch", "split"):
            project.run("python", "-m", f"stages.{stage}")
        files = ("model.safetensors", "history.csv", "model.json")
        project.run(*TRAIN, "linear")
        expected = [sha256(project.folder / "models" / "linear" / file) for file in files]
        while done < kills:
            forget(project)
            trainings += 1
            training = None
            while training is None or training.process.wait() != 0:
                command = cluster.inside(*TRAIN, "linear")
                training = project.start(*command, **cluster.environment)
                while training.process.poll() is None and done < kills:
                    time.sleep(draw.uniform(0.5, 12))
                    target = draw.choice(["node", "driver"])
                    if training.process.poll() is not None:
                        break
                    if target == "driver":
                        training.process.kill()
                    elif workers := cluster.workers():
                        workers[0].parent().kill()
                        cluster.add_node()
                    else:
                        continue
                    done += 1
                    print(f"kill {done}: {target}", flush=True)
                assert training.process.wait(300) in (0, -9), training.file.read_text()[-2000:]
            found = [sha256(project.folder / "models" / "linear" / file) for file in files]
            differences += found != expected
            wait_for(lambda: not cluster.workers())
            print(
                f"training {trainings}: {'same' if found == expected else 'DIFFERENT'}", flush=True
            )
    print(f"{done} kills, {trainings} trainings, {differences} differences")


if __name__ == "__main__":
    app()
