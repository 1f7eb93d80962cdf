"""Training from the weights of another task beside training from scratch, 20 images per class.

python tests/benchmarks/transfer.py digits --seeds 5
python tests/benchmarks/transfer.py emoji --seeds 5

digits: MNIST, then the 8 × 8 digits that scikit-learn ships. emoji: the category of an emoji, then
its vendor, on pictures that the first training had in its test. Every seed draws other 20 pictures
per class and another start of the random weights; validation is a part of the 20, which chooses the
epoch. The recipe is that of params.yaml for all. Differences are paired by seed.
"""

import os
import random
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import typer
from own_images import ROOT, make_emoji, print_table
from PIL import Image
from scipy.stats import ttest_rel
from sklearn.datasets import load_digits

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.project import Project, copy_downloads, copy_sources  # noqa: E402

from lineup.files import sha256  # noqa: E402
from lineup.paths import FILES_CSV  # noqa: E402

PER_CLASS = 20
MOST_TESTED = 250  # per class


def train_first(project: Project, dataset: str, architecture: str) -> str:
    """Train on the first task; return the file of weights, named by what it holds."""
    project.set(dataset=dataset, architectures=[architecture])
    for stage in ("fetch", "split", f"train {architecture}"):
        project.run("python", "-m", *f"stages.{stage}".split())
    trained = project.folder / "models" / architecture / "model.safetensors"
    start = Path("pretrained", f"{dataset}-{architecture}-{sha256(trained)[:8]}.safetensors")
    (project.folder / start).parent.mkdir(exist_ok=True)
    shutil.copy(trained, project.folder / start)
    return start.as_posix()


def find_digits(folder: Path) -> dict[str, list[Path]]:
    """Write scikit-learn's digits as pictures; return those of each class."""
    digits = load_digits()
    found = defaultdict(list)
    folder.mkdir()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / f"{number:04}.png"
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(path)
        found[str(label)].append(path)
    return found


def find_vendors(project: Project) -> dict[str, list[Path]]:
    """Return the test pictures of each vendor."""
    files = pd.read_csv(project.folder / FILES_CSV, dtype=str)
    found = defaultdict(list)
    for file in files[files["split"] == "test"]["file"]:
        found[Path(file).name.partition("-")[0]].append(project.folder / file)
    return found


def draw_task(folder: Path, pictures: dict[str, list[Path]], seed: int) -> None:
    """Link 20 pictures per class for training, and others for the test."""
    shutil.rmtree(folder, ignore_errors=True)
    for label, paths in pictures.items():
        drawn = random.Random(seed).sample(paths, min(len(paths), PER_CLASS + MOST_TESTED))
        for number, path in enumerate(drawn):
            split = "train" if number < PER_CLASS else "test"
            link = folder / split / label / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def train_second(project: Project, architecture: str, weights: str) -> tuple[float, float, float]:
    """Train on the second task; return accuracy on validation and test, and seconds."""
    project.set(train__weights=weights)
    project.run("python", "-m", "stages.train", architecture)
    project.run("python", "-m", "stages.evaluate")
    (row,) = pd.read_csv(project.folder / "evaluation/leaderboard.csv").to_dict("records")[:1]
    history = pd.read_csv(project.folder / "models" / architecture / "history.csv")
    return row["val_accuracy"], row["test_accuracy"], float(len(history))


def main(task: str, seeds: int = 5, architecture: str = "simplenet") -> None:
    """Print accuracies, mean and standard deviation over the seeds, epochs, and the difference."""
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        project = Project(Path(temporary, "project"))
        copy_sources(project.folder)
        project.environment.pop("OMP_NUM_THREADS")
        project.environment |= {"LINEUP_TRACKING": "off"}
        if task == "digits":
            copy_downloads(project.folder)
            start = train_first(project, "mnist", architecture)
            pictures = find_digits(Path(temporary, "digits"))
        else:
            Path(temporary, "downloads").mkdir()
            make_emoji(project.folder / "data" / "emoji", Path(temporary, "downloads"))
            start = train_first(project, "emoji", architecture)
            pictures = find_vendors(project)
        shape = {"data__size": 28} if task == "digits" else {}
        project.set(dataset="few", data__allow_duplicates=True, **shape)
        for seed in range(1, seeds + 1):
            draw_task(project.folder / "data" / "few", pictures, seed)
            project.set(seed=seed, split__seed=seed)
            project.run("python", "-m", "stages.fetch")
            project.run("python", "-m", "stages.split")
            for weights in ("none", start):
                scores = train_second(project, architecture, weights)
                found["from scratch" if weights == "none" else start].append(scores)
                words = f"validation {scores[0]:.2%}, test {scores[1]:.2%}"
                print(f"seed {seed}  {weights}: {words}", flush=True)
    print_table(found)
    scratch, transferred = ([scores[1] for scores in values] for values in found.values())
    difference = np.subtract(transferred, scratch)
    p = ttest_rel(transferred, scratch, alternative="greater").pvalue
    print(
        f"\ntransfer − scratch on test: {100 * difference.mean():+.2f} ± "
        f"{100 * difference.std(ddof=1):.2f} points, paired t-test p = {p:.2g}, n = {seeds}; "
        f"{os.cpu_count()} cores"
    )


if __name__ == "__main__":
    typer.run(main)
