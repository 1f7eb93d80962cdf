"""Ours beside Lightning, Keras 3 on torch, and scikit-learn: start to saved model, and accuracy.

uv pip install --target .lineup/peers --no-deps absl-py h5py keras lightning lightning-utilities \\
    ml-dtypes namex optree torchmetrics
python tests/benchmarks/peers.py --rounds 3 --architectures linear,mlp,cnn

Every training is a process of its own, on MNIST, with the recipe of params.yaml; seconds are medians
of rounds that alternate. scikit-learn has no counterpart for images but linear and mlp.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.project import Project, copy_downloads, copy_sources  # noqa: E402

PROGRAM = Path(__file__).with_name("peer_trainings.py")
PACKAGES = ROOT / ".lineup" / "peers"
TOOLS = ("lightning", "keras", "sklearn")
OURS = """
from pathlib import Path
from sys import argv
from lineup.data.dataset import load
from lineup.evaluation.inference import predict
from lineup.evaluation.scores import top_accuracy
from lineup.serving.deployable import load_deployable
from lineup.task import Task
images, labels = load("test", Task.CLASSIFICATION)
model = load_deployable(Path("models", argv[1]))
print("accuracy", top_accuracy(predict(model, images), labels, 1))
"""


def train(tool: str, name: str, project: Project) -> tuple[float, float]:
    """Train; return seconds and test accuracy."""
    start = time.time()
    if tool == "ours":
        project.run("rm", "-rf", "models", ".lineup/checkpoints", ".lineup/runs")
        start = time.time()
        project.run("python", "-m", "stages.train", name)
        seconds = time.time() - start
        return seconds, read(r"accuracy (\S+)", project.run("python", "-c", OURS, name).stdout)
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.run(
            [sys.executable, str(PROGRAM), tool, name, folder],
            cwd=project.folder,
            env=project.environment | {"PYTHONPATH": str(PACKAGES), "KERAS_BACKEND": "torch"},
            capture_output=True,
            text=True,
        )
    assert output.returncode == 0, output.stderr[-2000:]
    return read(r"saved (\S+)", output.stdout) - start, read(r"accuracy (\S+)", output.stdout)


def read(pattern: str, text: str) -> float:
    """Return the number that a pattern finds last."""
    return float(re.findall(pattern, text)[-1])


def main(
    rounds: int = 3,
    architectures: str = "linear,mlp,cnn,rnn,simplenet,alexnet",
    tools: str = ",".join(TOOLS),
) -> None:
    """Print a table of seconds and test accuracies."""
    contenders = ["ours", *tools.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder, "project"))
        copy_sources(project.folder)
        copy_downloads(project.folder)
        for stage in ("fetch", "split"):
            project.run("python", "-m", f"stages.{stage}")
        print(f"{os.cpu_count()} cores, {rounds} rounds: seconds, test accuracy\n")
        print(f"| | {' | '.join(contenders)} |\n|---|{'---:|' * len(contenders)}", flush=True)
        for name in architectures.split(","):
            able = [t for t in contenders if t != "sklearn" or name in ("linear", "mlp")]
            found = {tool: [] for tool in able}
            for _ in range(rounds):
                for tool in able:
                    found[tool].append(train(tool, name, project))
            cells = [cell(found.get(tool), found["ours"]) for tool in contenders]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def cell(scores: list[tuple[float, float]] | None, ours: list[tuple[float, float]]) -> str:
    """Return the median seconds, by how much ours is faster, and the mean accuracy."""
    if scores is None:
        return "–"
    seconds, own = (statistics.median(one for one, _ in some) for some in (scores, ours))
    accuracy = statistics.mean(one for _, one in scores)
    return f"{seconds:.1f} s ({seconds / own:.1f} ×), {100 * accuracy:.2f} %"


if __name__ == "__main__":
    typer.run(main)
