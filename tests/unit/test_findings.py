"""What a person is told about their pictures before they believe a number about them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.own_images import FLOWERS, choose
from helpers.picture_sets import save
from helpers.project import Project
from PIL import Image

from lineup.data.findings import (
    SplitImages,
    check_classes,
    check_copies,
    check_groups,
    check_images,
    check_sizes,
    read_findings,
)
from lineup.paths import DATA_REPORT, FINDINGS_PNG, RAW_REPORT, SAMPLES
from stages import fetch, split


def noise(*labels, seed=0):
    """Return images of smooth noise, of which no two look alike, with these labels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(256, (len(labels), 1, 8, 8), generator=generator)
    images = torch.nn.functional.interpolate(coarse.float(), 16).byte()
    return SplitImages(f"split {seed}", images, torch.tensor(labels), [])


def kinds(findings):
    return [finding.kind for finding in findings]


def test_a_good_set_gives_no_finding():
    training, test = noise(*[0, 1] * 30), noise(*[0, 1] * 10, seed=1)
    assert check_classes(training.labels, ["a", "b"]) == []
    assert check_sizes([(64, 48)] * 60, ["x"] * 60) == []
    assert check_images(training) == [] and check_copies(training, test) == []


def test_rare_classes_and_imbalance_are_counted():
    labels = torch.tensor([0] * 300 + [1] * 12)
    small, imbalance = check_classes(labels, ["cat", "lynx"])
    assert small.text == "1 classes have fewer than 20 images: lynx: 12"
    assert "'cat' has 300 images and 'lynx' 12" in imbalance.text


def test_tiny_pictures_and_wildly_different_sizes_are_named():
    sizes = [(12, 9)] * 10 + [(20, 20)] * 40 + [(900, 700)] * 50
    tiny, differ = check_sizes(sizes, [f"{n}.png" for n in range(100)])
    assert tiny.text.startswith("10 pictures") and tiny.files == [f"{n}.png" for n in range(10)]
    assert "from 12 to 900 pixels" in differ.text


def test_blank_images_and_one_image_under_two_labels_are_named():
    training = noise(0, 1, 0, 1)
    training.images[2] = 7
    training.images[3] = training.images[0]
    blank, contradictory = check_images(training)
    assert (blank.kind, blank.files, blank.images) == ("blank", ["split 0 image 2"], [2])
    assert contradictory.files == ["split 0 image 3 = split 0 image 0"]
    assert contradictory.images == [0, 3]


def test_an_image_of_one_colour_is_blank_though_its_red_differs_from_its_green():
    training = noise(0, 1, 0, 1)
    colour = training.images.repeat(1, 3, 1, 1)
    colour[2] = torch.tensor([200, 7, 90]).byte().view(3, 1, 1)
    (blank,) = check_images(replace(training, images=colour))
    assert blank.images == [2]


def test_copies_and_near_copies_across_splits_are_named():
    training, test = noise(*[0] * 6), noise(*[0] * 4, seed=1)
    test.images[1] = training.images[5]
    test.images[2] = (training.images[4].int() + 1).clamp(0, 255).byte()
    copies, near = check_copies(training, test)
    assert copies.files == ["split 1 image 1 = split 0 image 5"] and copies.images == [5]
    assert near.kind == "near copies in split 1" and near.files == ["split 1 image 2"]


def test_too_many_images_to_compare_are_not_passed_over_in_silence(monkeypatch):
    monkeypatch.setattr("lineup.data.copies.MOST_COMPARED", 20)
    training, test = noise(*[0] * 6), noise(*[0] * 4, seed=1)
    assert check_copies(training, test) == []
    (finding,) = check_copies(training, replace(test, files=list("abcd")))
    assert "too many to look for" in finding.text


def test_groups_that_given_splits_share_are_counted():
    (finding,) = check_groups(torch.tensor([1, 1, 2]), torch.tensor([2, 3, 2]), "test")
    assert finding.text == "2 test images are of a group (data.group) that is in training too"
    assert check_groups(torch.tensor([1]), torch.tensor([2]), "test") == []


# --- on disk --------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paint(name, count, colour, seed):
    """Write noisy pictures whose mean rises with their number."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        pixels = generator.integers(0, 50, (20, 20, 3)) + np.array(colour) + 2 * number
        save(Image.fromarray(pixels.astype(np.uint8)), FLOWERS / name / f"{number:02}.png")


def test_fetch_and_split_report_and_draw_what_stands_out(project, capsys):
    choose(channels=3, group=r"box\d")
    for part, seed in (("train", 0), ("val", 50), ("test", 100)):
        paint(f"{part}/iris", 25, (90, 30, 60), seed)
        paint(f"{part}/rose", 25, (20, 90, 40), seed + 1)
    same = (FLOWERS / "train/iris/03.png").read_bytes()
    (FLOWERS / "train/rose/box1.png").write_bytes(same)
    save(Image.new("RGB", (20, 20), "white"), FLOWERS / "val/rose/box1.png")
    fetch.main()
    assert "look: 1 training images are copies of others with another label" in (
        capsys.readouterr().out
    )
    assert {"two labels", "blank"} <= set(kinds(read_findings(RAW_REPORT)))
    split.main()
    assert {"two labels", "blank", "groups in validation"} <= set(kinds(read_findings(DATA_REPORT)))
    with Image.open(FINDINGS_PNG) as picture:
        assert picture.height > 100


def test_samples_are_from_all_over_a_class(project):
    choose(channels=3, size=20)
    Project(Path()).set(split__validation=0.1)
    paint("iris", 100, (10, 0, 10), 0)
    paint("rose", 100, (0, 0, 10), 1)
    fetch.main()
    split.main()
    with Image.open(SAMPLES) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    is_picture = pixels.max(2) < 255 - 20  # the ground is white
    reds = pixels[..., 0][is_picture]
    assert np.percentile(reds, 5) < 60 and np.percentile(reds, 95) > 180
