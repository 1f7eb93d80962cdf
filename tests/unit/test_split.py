"""The split is disjoint, complete, stratified and seeded, and knows training images alone."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from helpers.datasets import describe, load, load_split, write_dataset, write_split
from helpers.project import ROOT, Project
from PIL import Image

from lineup.errors import UserError
from lineup.files import read_json, sha256
from lineup.paths import INDICES, SAMPLES, SPLIT, SPLIT_JSON
from stages import split

COUNTS = [100, 50, 30]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    return tmp_path


def set_split(**settings):
    Project(Path()).set(**{f"split__{key}": value for key, value in settings.items()})


def write_images(counts=COUNTS, channels=3):
    """Write a dataset of noise images in which the red plane is darker than the others."""
    generator = torch.Generator().manual_seed(0)
    shape = (sum(counts), channels, 6, 5)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    images[:, 0] //= 4
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    write(images, labels)
    return images, labels


def write(images, labels):
    classes = [f"class {label}" for label in range(int(labels.max()) + 1)]
    both = (images, labels)
    write_dataset("noise", "classification", classes, train=both, test=both)


def files():
    return {path.name: path.read_bytes() for path in SPLIT.iterdir()}


def test_the_splits_are_disjoint_and_complete(project):
    write_images()
    split.main()
    found = load_split()
    assert found.train.dtype == found.validation.dtype == torch.int64
    every = torch.cat([found.train, found.validation]).sort().values
    assert torch.equal(every, torch.arange(sum(COUNTS)))


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_every_class_gives_the_same_fraction_to_validation(project, fraction):
    _, labels = write_images()
    set_split(validation=fraction)
    split.main()
    counts = torch.bincount(labels[load_split().validation])
    assert counts.tolist() == [round(count * fraction) for count in COUNTS]


def test_a_seed_gives_the_same_files_and_another_seed_another_split(project):
    write_images()
    split.main()
    first, before = files(), load_split()
    pictures = {"samples.png", "findings.png"}
    assert set(first) == {"indices.safetensors", "split.json", "data_report.json"} | pictures
    shutil.rmtree(SPLIT)
    split.main()
    assert files() == first
    set_split(seed=4)
    split.main()
    assert not torch.equal(before.validation, load_split().validation)
    assert before.digest != load_split().digest


def test_mean_and_std_are_those_of_the_training_split(project):
    images, _ = write_images()
    split.main()
    found = load_split()
    pixels = images[found.train].double() / 255
    assert torch.allclose(found.mean.double(), pixels.mean((0, 2, 3)), atol=1e-7)
    assert torch.allclose(found.std.double(), pixels.std((0, 2, 3), correction=0), atol=1e-7)
    assert found.mean.shape == (3,) and found.mean[0] < 0.2 < found.mean[1]


def test_validation_images_do_not_enter_the_statistics(project):
    images, labels = write_images()
    split.main()
    before = load_split()
    images[before.validation] //= 2
    write(images, labels)
    split.main()
    assert torch.equal(load_split().mean, before.mean) and torch.equal(load_split().std, before.std)


def test_a_channel_of_one_value_can_be_normalised(project):
    images, labels = write_images()
    images[:, 1] = 7
    write(images, labels)
    split.main()
    assert load_split().std[1] == 1 and load_split().mean[1] == pytest.approx(7 / 255)


def test_split_json_tells_people_and_programs_what_was_done(project):
    write_images()
    split.main()
    content = read_json(SPLIT_JSON)
    assert (content["train"], content["validation"], content["seed"]) == (144, 36, 3)
    both = f"{sha256(INDICES)} {describe().digests['train']}"
    assert content["digest"] == hashlib.sha256(both.encode()).hexdigest()
    assert content["mean"] == load_split().mean.tolist()


def test_the_picture_of_samples_is_a_picture(project):
    write_images(channels=1)
    split.main()
    with Image.open(SAMPLES) as picture:
        picture.load()
        assert min(picture.size) > 100


def test_a_stage_that_draws_runs_with_the_backend_of_a_notebook(project):
    write_images()
    notebook = "module://matplotlib_inline.backend_inline"
    Project(project).run("python", "-m", "stages.split", MPLBACKEND=notebook, PYTHONPATH=str(ROOT))
    assert (SAMPLES).stat().st_size


def test_the_digest_stands_for_the_indices_and_for_what_they_point_into(project):
    images, labels = write_images()
    split.main()
    indices, first = load_split(), load_split().digest
    split.main()
    assert load_split().digest == first
    label = labels[indices.validation[0]]
    same = indices.validation[labels[indices.validation] == label]
    images[same[0]] = images[same[0]].flip(-1)  # a validation image: no statistics change
    write(images, labels)
    split.main()
    again = load_split()
    assert torch.equal(again.validation, indices.validation) and torch.equal(again.std, indices.std)
    assert again.digest != first


@pytest.mark.parametrize(
    ("smallest", "fraction", "advice"),
    [
        (1, 0.2, "20% .*one for each of training, validation and test"),
        (3, 0.005, "0.5% .*change split.validation"),
    ],
)
def test_a_class_with_too_few_images_is_named(project, smallest, fraction, advice):
    write_images([50, smallest, 50])
    set_split(validation=fraction)
    with pytest.raises(UserError, match=f"'class 1' has {smallest} images.*{advice}"):
        split.main()
    assert not SPLIT.exists()


def test_every_row_of_a_regression_is_used_for_both(project):
    inputs = torch.arange(15, dtype=torch.float32).reshape(5, 3)
    rows = (inputs, inputs[:, :2] * 2)
    write_dataset("rows", "regression", ["apples", "oranges"], train=rows, test=rows)
    split.main()
    found = load_split()
    assert found.train.tolist() == found.validation.tolist() == [0, 1, 2, 3, 4]
    assert found.mean.tolist() == [0] and found.std.tolist() == [1]
    assert (SAMPLES).exists()


@pytest.mark.parametrize("read", [describe, lambda: load("train"), load_split])
def test_what_is_not_made_yet_names_the_stage_that_makes_it(project, read):
    with pytest.raises(UserError, match=r"dvc repro (fetch|split)"):
        read()


def test_a_split_of_other_data_is_refused_with_the_command_that_makes_a_new_one(project):
    labels = torch.arange(40) % 4
    images = torch.randint(256, (40, 1, 6, 6), dtype=torch.uint8)
    write_dataset("shades", "classification", list("abcd"), train=(images, labels))
    write_split(40)
    assert len(load_split().validation) == 8
    write_dataset("shades", "classification", list("abcd"), train=(255 - images, labels))
    with pytest.raises(
        UserError, match=r"data/split was drawn from other data than data/raw.*repro split"
    ):
        load_split()
