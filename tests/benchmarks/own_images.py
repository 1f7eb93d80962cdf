"""Lineup on folders of pictures, with nothing set but their name, beside other systems.

python tests/benchmarks/own_images.py emoji --seeds 3
python tests/benchmarks/own_images.py photos --others ~/others/bin/python
python tests/benchmarks/own_images.py ~/pictures/flowers --architectures simplenet,cnn

emoji: npm's emoji-datasource, four vendors, the category is the class, split by emoji. photos:
crops of the photographs that scikit-image and scikit-learn ship, the left part for training, the
right for the test. Each seed draws another validation split. The forest gets the tensors of the
training split. The other systems get the same files in train/, val/ and test/, and are trained
from scratch with the first seed; `--others` names a Python that has them (pip install fastai
ultralytics). Each
network is that of its best epoch by validation; seconds are of the whole command, the
forest's of its fit.
"""

import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import sklearn
import typer
from PIL import Image
from sklearn.ensemble import RandomForestClassifier

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.project import Project, copy_sources  # noqa: E402

from lineup.paths import FILES_CSV, INDICES, raw  # noqa: E402
from lineup.tensors import read_tensors  # noqa: E402

VENDORS = ["google", "twitter", "apple", "facebook"]
PHOTOS = """astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png
gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg
text.png"""
OTHERS = {"fastai": "resnet18, fastai", "ultralytics": "yolo11n-cls, Ultralytics"}
Scores = tuple[float, float, float]  # accuracy on validation and test, seconds


# --- the sets -------------------------------------------------------------------------------------


def make_emoji(folder: Path, downloads: Path) -> None:
    """Write a folder per category of emoji, and a dataset.yaml that keeps an emoji together."""
    names = ["emoji-datasource", *(f"emoji-datasource-{vendor}" for vendor in VENDORS)]
    subprocess.run(["npm", "pack", "--silent", *names], cwd=downloads, check=True)
    archives = [next(downloads.glob(f"{name}-[0-9]*.tgz")) for name in names]
    with tarfile.open(archives[0]) as archive:
        table = json.load(archive.extractfile("package/emoji.json"))
    categories = {row["image"]: row["category"].replace(" ", "-") for row in table}
    for vendor, path in zip(VENDORS, archives[1:], strict=True):
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                category = categories.get(name, "Component")
                if f"/img/{vendor}/64/" in member.name and category != "Component":
                    target = folder / category / f"{vendor}-{name}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.extractfile(member).read())
    (folder / "dataset.yaml").write_text("group: '/[a-z]+-([^/]+)$'\n")


def make_photos(folder: Path, downloads: Path) -> None:
    """Write crops of each photograph, 48 to 96 pixels a side, from its left and its right part."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "scikit-image"]
    subprocess.run([*pip, "--dest", str(downloads)], check=True)
    (wheel,) = downloads.glob("scikit_image-*.whl")
    photos = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in PHOTOS.split():
            with archive.open(f"skimage/data/{name}") as file:
                photos[Path(name).stem] = Image.open(file).convert("RGB")
    for name in ("china", "flower"):
        photos[name] = Image.open(Path(sklearn.__file__).parent / f"datasets/images/{name}.jpg")
    generator = random.Random(0)
    for name, photo in photos.items():
        width, height = photo.size
        middle = int(width * 0.65)
        for split, left, right, count in (("train", 0, middle, 120), ("test", middle, width, 40)):
            path = folder / split / name
            path.mkdir(parents=True)
            for number in range(count):
                side = generator.randint(48, min(96, height, right - left))
                x, y = generator.randint(left, right - side), generator.randint(0, height - side)
                photo.crop((x, y, x + side, y + side)).save(path / f"{number:03}.png")


MAKERS = {"emoji": make_emoji, "photos": make_photos}


def make_project(folder: Path, source: str, architectures: list[str]) -> Project:
    """Return a project whose dataset is one of ours, or a folder of pictures."""
    copy_sources(folder)
    project = Project(folder)
    project.environment.pop("OMP_NUM_THREADS")
    project.environment |= {"LINEUP_TRACKING": "off"}
    name = Path(source).name
    if source in MAKERS:
        downloads = folder / "downloads"
        downloads.mkdir()
        MAKERS[source](folder / "data" / name, downloads)
    else:
        (folder / "data" / name).symlink_to(Path(source).expanduser().resolve())
    project.set(dataset=name, architectures=architectures)
    print(project.run("python", "-m", "stages.fetch").stdout, flush=True)
    return project


# --- the contestants ------------------------------------------------------------------------------


def train_ours(project: Project, names: list[str]) -> dict[str, Scores]:
    """Train each architecture as `dvc repro` does; return its scores by name."""
    seconds = {}
    for name in names:
        start = time.perf_counter()
        project.run("python", "-m", "stages.train", name)
        seconds[name] = time.perf_counter() - start
    project.run("python", "-m", "stages.evaluate")
    table = pd.read_csv(project.folder / "evaluation/leaderboard.csv").set_index("architecture")
    rows = table.loc[names, ["val_accuracy", "test_accuracy"]].itertuples()
    return {row.Index: (row.val_accuracy, row.test_accuracy, seconds[row.Index]) for row in rows}


def train_forest(project: Project) -> Scores:
    """Fit a forest to the pixels of the training split."""
    train, test = (read_tensors(project.folder / raw(split)) for split in ("train", "test"))
    indices = read_tensors(project.folder / INDICES)
    pixels = train["images"].flatten(1).numpy()
    labels = train["labels"].numpy()
    rows, held_out = indices["train"].numpy(), indices["validation"].numpy()
    start = time.perf_counter()
    forest = RandomForestClassifier(200, random_state=0, n_jobs=-1).fit(pixels[rows], labels[rows])
    seconds = time.perf_counter() - start
    validation = forest.score(pixels[held_out], labels[held_out])
    return validation, forest.score(test["images"].flatten(1), test["labels"]), seconds


def link_files(project: Project, folder: Path) -> None:
    """Make train/, val/ and test/ of links to the files that our splits hold."""
    files = pd.read_csv(project.folder / FILES_CSV, dtype=str, keep_default_na=False)
    files = files.set_index(["split", "index"])
    indices = read_tensors(project.folder / INDICES)
    tests = range(len(files.loc["test"]))
    rows = {"train": indices["train"], "val": indices["validation"], "test": tests}
    for split, numbers in rows.items():
        known = files.loc["test" if split == "test" else "train"]
        for number in map(int, numbers):
            row = known.loc[str(number)]
            source = (project.folder / row["file"]).absolute()
            link = folder / split / row["label"] / f"{number}{source.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)


def train_others(project: Project, python: Path, epochs: str) -> dict[str, Scores]:
    """Train the other systems on the files of our splits, in their own Python."""
    folder = project.folder.with_name("files")
    link_files(project, folder)
    results = {}
    for system, count in zip(OTHERS, epochs.split(","), strict=True):
        program = Path(__file__).with_name("other_systems.py")
        command = [str(python.expanduser()), str(program), system, str(folder), count]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        seconds = time.perf_counter() - start
        scores = json.loads(done.stdout.splitlines()[-1])
        results[f"{OTHERS[system]}, {count} epochs"] = scores["validation"], scores["test"], seconds
    return results


# --- side by side ---------------------------------------------------------------------------------


def main(
    dataset: Annotated[str, typer.Argument(help="emoji, photos, or a folder of pictures.")],
    seeds: Annotated[int, typer.Option(help="How many, from 1 on.")] = 1,
    architectures: Annotated[str, typer.Option(help="Separated by commas.")] = "simplenet",
    others: Annotated[Path | None, typer.Option(help="A Python with the other systems.")] = None,
    epochs: Annotated[str, typer.Option(help="Of fastai and Ultralytics.")] = "12,12",
) -> None:
    """Print a table of accuracies, mean and standard deviation over the seeds, and seconds."""
    found: dict[str, list[Scores]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        names = architectures.split(",")
        project = make_project(Path(temporary) / "project", dataset, names)
        for seed in range(1, seeds + 1):
            project.set(seed=seed, split__seed=seed)
            project.run("python", "-m", "stages.split")
            results = train_ours(project, names) | {"random forest": train_forest(project)}
            if others and seed == 1:
                results |= train_others(project, others, epochs)
            for name, scores in results.items():
                found[name].append(scores)
                words = f"validation {scores[0]:.2%}, test {scores[1]:.2%}, {scores[2]:.0f} s"
                print(f"seed {seed}  {name}: {words}", flush=True)
    print_table(found)
    print(f"\n{seeds} seeds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def print_table(found: dict[str, list[Scores]]) -> None:
    """Print means and standard deviations, as Markdown."""
    print("\n| | validation | test | seconds |\n|---|---:|---:|---:|")
    for name, scores in found.items():
        mean = np.mean(scores, 0)
        spread = (
            [f" ± {100 * s:.2f}" for s in np.std(scores, 0, ddof=1)] if scores[1:] else [""] * 3
        )
        cells = [f"{100 * mean[i]:.2f}{spread[i]} %" for i in (0, 1)]
        print(f"| {name} | {cells[0]} | {cells[1]} | {mean[2]:.0f} |")


if __name__ == "__main__":
    typer.run(main)
