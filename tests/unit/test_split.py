"""The split is disjoint, complete, stratified and seeded, and knows nothing but the training part."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.datasets import describe, load, load_split, write_dataset
from helpers.project import Project
from PIL import Image

from lineup.errors import UserError
from lineup.files import read_json, sha256
from lineup.paths import SPLIT
from stages import split

ROOT = Path(__file__).parents[2]
COUNTS = [100, 50, 30]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    return tmp_path


def set_split(**settings):
    params = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(params | {"split": params["split"] | settings}))


def write_images(counts=COUNTS, channels=3):
    """Write a dataset of noise images in which the red plane is darker than the others."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (sum(counts), channels, 6, 5), dtype=torch.uint8, generator=generator
    )
    images[:, 0] //= 4
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    write(
        images,
        labels,
        "classification",
        [f"class {n}" for n in range(len(counts))],
    )
    return images, labels


def write(inputs, targets, task, classes):
    write_dataset("noise", task, classes, train=(inputs, targets), test=(inputs, targets))


def test_the_parts_are_disjoint_and_complete(project):
    write_images()
    split.main()
    parts = load_split()
    assert parts.train.dtype == parts.validation.dtype == torch.int64
    assert torch.equal(
        torch.cat([parts.train, parts.validation]).sort().values, torch.arange(sum(COUNTS))
    )


@pytest.mark.parametrize("part", [0.2, 0.5])
def test_every_class_gives_the_same_part_to_validation(project, part):
    _, labels = write_images()
    set_split(validation=part)
    split.main()
    counts = torch.bincount(labels[load_split().validation])
    assert counts.tolist() == [round(count * part) for count in COUNTS]


def test_a_seed_gives_the_same_files_and_another_seed_another_split(project):
    write_images()
    split.main()
    first = {path.name: path.read_bytes() for path in SPLIT.iterdir()}
    shutil.rmtree(SPLIT)
    split.main()
    assert first == {path.name: path.read_bytes() for path in SPLIT.iterdir()}
    assert set(first) == {"indices.safetensors", "split.json", "samples.png"}
    before = load_split()
    set_split(seed=4)
    split.main()
    assert not torch.equal(before.validation, load_split().validation)
    assert before.digest != load_split().digest


def test_mean_and_std_are_those_of_the_training_part(project):
    images, _ = write_images()
    split.main()
    parts = load_split()
    pixels = images[parts.train].double() / 255
    assert torch.allclose(parts.mean.double(), pixels.mean((0, 2, 3)), atol=1e-7)
    assert torch.allclose(parts.std.double(), pixels.std((0, 2, 3), correction=0), atol=1e-7)
    assert parts.mean.shape == (3,) and parts.mean[0] < 0.2 < parts.mean[1]


def test_validation_images_do_not_enter_the_statistics(project):
    images, labels = write_images()
    split.main()
    before = load_split()
    images[before.validation] = 255
    write(
        images,
        labels,
        "classification",
        [f"class {n}" for n in range(len(COUNTS))],
    )
    split.main()
    assert torch.equal(load_split().mean, before.mean) and torch.equal(load_split().std, before.std)


def test_a_channel_of_one_value_can_be_normalised(project):
    images, labels = write_images()
    images[:, 1] = 7
    write(
        images,
        labels,
        "classification",
        [f"class {n}" for n in range(len(COUNTS))],
    )
    split.main()
    assert load_split().std[1] == 1 and load_split().mean[1] == pytest.approx(7 / 255)


def test_split_json_tells_people_and_programs_what_was_done(project):
    write_images()
    split.main()
    content = read_json(SPLIT / "split.json")
    assert (content["train"], content["validation"], content["seed"]) == (144, 36, 3)
    assert content["digest"] == sha256(SPLIT / "indices.safetensors")
    assert content["mean"] == load_split().mean.tolist()


def test_the_picture_of_samples_is_a_picture(project):
    write_images(channels=1)
    split.main()
    with Image.open(SPLIT / "samples.png") as picture:
        picture.load()
        assert min(picture.size) > 100


def test_a_stage_that_draws_runs_with_the_backend_of_a_notebook(project):
    write_images()
    notebook = "module://matplotlib_inline.backend_inline"
    Project(project).run("python", "-m", "stages.split", MPLBACKEND=notebook, PYTHONPATH=str(ROOT))
    assert (SPLIT / "samples.png").stat().st_size


@pytest.mark.parametrize(("smallest", "part"), [(1, 0.2), (3, 0.05)])
def test_a_class_with_too_few_images_is_named(project, smallest, part):
    write_images([50, smallest, 50])
    set_split(validation=part)
    with pytest.raises(UserError, match=f"'class 1' has {smallest} images.*split.validation"):
        split.main()
    assert not SPLIT.exists()


def test_every_row_of_a_regression_is_used_for_both(project):
    inputs = torch.arange(15, dtype=torch.float32).reshape(5, 3)
    write(inputs, inputs[:, :2] * 2, "regression", ["apples", "oranges"])
    split.main()
    parts = load_split()
    assert parts.train.tolist() == parts.validation.tolist() == [0, 1, 2, 3, 4]
    assert parts.mean.tolist() == [0] and parts.std.tolist() == [1]
    assert (SPLIT / "samples.png").exists()


@pytest.mark.parametrize("read", [describe, lambda: load("train"), load_split])
def test_what_is_not_made_yet_names_the_stage_that_makes_it(project, read):
    with pytest.raises(UserError, match=r"dvc repro (fetch|split)"):
        read()
