"""Size, channels and groups are chosen by looking at the pictures, and said in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import describe, load, load_split
from helpers.own_images import FLOWERS, choose, refusal
from helpers.picture_sets import flowers, png, save
from helpers.project import ROOT, Project
from PIL import Image

from lineup.data.copies import find_equal_images, find_near_copies
from lineup.data.image_io import UnreadablePictureError, read_picture
from lineup.data.preprocessing import Preprocessing
from lineup.data.splitting import Draw, stratified_split
from lineup.errors import UserError
from lineup.params import load_params
from lineup.training.setup import set_up
from stages import fetch, split


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choose(size="auto", channels="auto")
    return tmp_path


def random_pictures(folder, count=10, size=(40, 30), channels=3, seed=0):
    generator = np.random.default_rng([seed, *folder.name.encode()])
    for number in range(count):
        pixels = generator.integers(0, 256, (*size[::-1], channels), dtype=np.uint8)
        save(Image.fromarray(pixels.squeeze()), folder / f"{number}.png")


@pytest.mark.parametrize(
    ("pixels", "expected", "words"),
    [
        (40, 40, "the median picture has 40)"),
        (300, 64, "the median picture has 300, at most 64)"),
        (9, 16, "the median picture has 9, at least 16)"),
    ],
)
def test_the_size_is_that_of_the_median_picture_within_limits(pixels, expected, words, capsys):
    for name in ("iris", "rose"):
        random_pictures(FLOWERS / name, 7, (pixels, pixels // 2))
        random_pictures(FLOWERS / name / "odd", 3, (7, 90))
    fetch.main()
    assert describe().shape == [3, expected, expected]
    assert words in capsys.readouterr().out


def test_grey_pictures_saved_in_colour_are_grey_and_one_in_colour_makes_the_set_so(capsys):
    for name in ("iris", "rose"):
        random_pictures(FLOWERS / name, channels=1)
        for path in (FLOWERS / name).iterdir():
            Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
            path.unlink()
    fetch.main()
    assert describe().shape[0] == 1
    assert "grey (auto: no picture has colours)" in capsys.readouterr().out
    save(Image.new("RGB", (40, 40), "orange"), FLOWERS / "rose" / "sunset.png")
    fetch.main()
    assert describe().shape[0] == 3
    assert "colour (auto: rose/sunset.png has colours)" in capsys.readouterr().out


@pytest.mark.parametrize(("channels", "flip"), [(1, False), (3, True)])
def test_pictures_in_colour_are_mirrored_and_grey_ones_are_not(channels, flip):
    for name in ("iris", "rose"):
        random_pictures(FLOWERS / name, channels=channels)
    fetch.main()
    split.main()

    def resolved():
        return set_up(load_params(), "linear").config["recipe"]["augment"]["flip"]

    assert resolved() == flip
    Project(Path()).set(train__augment__flip=not flip)
    assert resolved() != flip


def test_a_number_is_obeyed_and_dataset_yaml_holds_where_params_leave_it_open():
    flowers(FLOWERS)
    (FLOWERS / "dataset.yaml").write_text("size: 24\nchannels: 3\n")
    fetch.main()
    assert describe().shape == [3, 24, 24]
    choose(size=12, channels=1)
    fetch.main()
    assert describe().shape == [1, 12, 12]


@pytest.mark.parametrize("part", [0.2, 0.4])
def test_the_test_takes_the_part_that_is_set(part):
    flowers(FLOWERS)
    choose(test=part)
    fetch.main()
    count = len(load("test")[1])
    assert count == round(part * (count + len(load("train")[1])))


def test_a_mistake_in_dataset_yaml_is_named():
    flowers(FLOWERS)
    (FLOWERS / "dataset.yaml").write_text("sise: 24\n")
    assert "unknown key 'sise'; did you mean 'size'?" in refusal()


# --- groups ---------------------------------------------------------------------------------------


def patients(count=12, each=5):
    """Write pictures of patients, of whom some are ill on some pictures, copies among them."""
    for patient in range(count):
        for number in range(each):
            name = "ill" if (patient + number) % 4 == 0 else "well"
            random_pictures(
                FLOWERS / name / f"patient{patient:02}-{number}", 1, (16, 16), 1, patient
            )


def groups_of(part, files):
    return {Path(row["file"]).parent.name[:9] for row in files if row["split"] == part}


def test_pictures_of_a_group_are_on_one_side_of_both_splits():
    import pandas as pd

    patients()
    choose(group=r"patient\d+", channels=1)
    fetch.main()
    split.main()
    files = pd.read_csv("data/raw/files.csv", dtype=str)
    names = files["file"].str.extract(r"(patient\d+)")[0]
    in_test = set(names[files["split"] == "test"])
    in_train = names[files["split"] == "train"].tolist()
    found = load_split()
    training = {in_train[i] for i in found.train}
    validation = {in_train[i] for i in found.validation}
    assert in_test and validation and training
    assert not (in_test & training or in_test & validation or training & validation)
    for part in (
        load("test")[1],
        *(load("train")[1][rows] for rows in (found.train, found.validation)),
    ):
        assert set(part.tolist()) == {0, 1}


def test_blank_pictures_tie_no_groups_together():
    patients()
    blank = Image.new("L", (16, 16), 255)
    for folder in FLOWERS.glob("*/*-0"):
        blank.save(folder / "blank.png")
    choose(group=r"patient\d+", channels=1)
    fetch.main()
    split.main()
    assert 0.1 < len(load("test")[1]) / (len(load("test")[1]) + len(load("train")[1])) < 0.35


def test_a_pattern_of_which_no_part_in_parentheses_matched_is_the_whole_match(capsys):
    patients(8)
    choose(group=r"patient\d+(x)?", channels=1)
    fetch.main()
    assert "8 groups of pictures by data.group" in capsys.readouterr().out


def test_links_to_folders_within_a_set_are_named_as_dvc_looks_behind_none(tmp_path, capsys):
    flowers(FLOWERS)
    fetch.main()
    assert "links to folders" not in capsys.readouterr().out
    name = next(path for path in FLOWERS.iterdir() if path.is_dir())
    name.rename(tmp_path / "elsewhere")
    name.symlink_to(tmp_path / "elsewhere")
    fetch.main()
    assert f"look: {name}: links to folders, behind which DVC sees no" in capsys.readouterr().out


def test_a_pattern_that_matches_nothing_is_refused_with_a_path_it_should_match():
    patients(2)
    choose(group="person")
    assert "matches no path, such as 'ill/patient00-0/0.png'" in refusal()


def test_without_groups_the_tensors_hold_images_and_labels_alone():
    from lineup.tensors import read_tensors

    flowers(FLOWERS)
    fetch.main()
    assert set(read_tensors(Path("data/raw/train.safetensors"))) == {"images", "labels"}


def test_groups_and_copies_together_stay_on_one_side():
    labels = torch.tensor([0, 1] * 30)
    groups = torch.arange(60) // 2
    originals = torch.arange(60)
    originals[10] = 3  # joins the groups 1 and 5
    for seed in range(5):
        draw = Draw("test", "data.test", 0.2, seed)
        sides = stratified_split(labels, draw, ["a", "b"], originals, groups)
        assert sorted(torch.cat(sides).tolist()) == list(range(60))
        for one, other in ((0, 1), (2, 3), (3, 10), (10, 11)):
            assert (one in sides[0]) == (other in sides[0])
        assert len(sides[1]) == pytest.approx(12, abs=4)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.2, 0.3, 0.35, 0.6, 0.9])
def test_groups_are_drawn_in_the_fraction_that_is_asked_for(fraction):
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(200, (1000,), generator=generator)
    labels = (groups + torch.arange(1000) // 500) % 3
    for seed in range(3):
        draw = Draw("test", "data.test", fraction, seed)
        rest, drawn = stratified_split(labels, draw, ["a", "b", "c"], None, groups)
        assert len(drawn) == pytest.approx(max(fraction, 0.05) * 1000, abs=40)
        assert not set(groups[rest].tolist()) & set(groups[drawn].tolist())


@pytest.mark.parametrize("count", [3, 4, 5, 7])
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.15, 0.2])
def test_few_groups_with_many_pictures_each_are_split(count, fraction):
    groups = torch.arange(count).repeat_interleave(20)
    labels = torch.arange(20 * count) % 2  # everybody is in both classes
    draw = Draw("test", "data.test", fraction, 0)
    rest, drawn = stratified_split(labels, draw, ["a", "b"], None, groups)
    assert (len(rest), len(drawn)) == (20 * (count - 1), 20)


@pytest.mark.parametrize("fraction", [0.1, 0.2])
@pytest.mark.parametrize(("classes", "count"), [(2, 3), (3, 3), (5, 3), (10, 3), (10, 4), (10, 5)])
def test_few_groups_of_each_class_are_on_both_sides(classes, count, fraction):
    groups = torch.arange(classes * count).repeat_interleave(10)
    labels = groups % classes
    draw = Draw("test", "data.test", fraction, 0)
    rest, drawn = stratified_split(labels, draw, list("abcdefghij"[:classes]), None, groups)
    assert len(labels[rest].unique()) == len(labels[drawn].unique()) == classes
    assert len(drawn) <= max(10 * classes, fraction * len(labels) + 10)  # one group of each class


def test_rare_classes_of_two_groups_do_not_swell_the_part_that_is_drawn():
    sizes = [100] * 5 + [2] * 3
    labels = torch.arange(8).repeat_interleave(torch.tensor(sizes) * 10)
    groups = torch.arange(sum(sizes)).repeat_interleave(10)
    draw = Draw("test", "data.test", 0.1, 0)
    rest, drawn = stratified_split(labels, draw, list("abcdefgh"), None, groups)
    assert len(labels[rest].unique()) == len(labels[drawn].unique()) == 8
    assert len(drawn) / len(labels) == pytest.approx(0.1, abs=0.02)


def test_two_small_classes_of_lone_pictures_are_split_by_groups_too():
    labels, groups = torch.tensor([0, 1] * 4), torch.arange(8)
    draw = Draw("test", "data.test", 0.2, 0)
    rest, drawn = stratified_split(labels, draw, ["a", "b"], None, groups)
    assert (len(rest), len(drawn)) == (6, 2)


def test_a_class_of_one_group_or_of_copies_is_named_with_the_reason():
    labels = torch.tensor([0] * 50 + [1] * 30)
    one_patient = torch.cat([torch.zeros(50), torch.arange(1, 31)]).long()
    draw, classes = Draw("test", "data.test", 0.2, 0), ["night", "rare"]
    words = r"'night' has 50 images, 1 that may be apart \(copies, and groups"
    with pytest.raises(UserError, match=words):
        stratified_split(labels, draw, classes, None, one_patient)
    copies = torch.cat([torch.zeros(50), torch.arange(50, 80)]).long()
    with pytest.raises(UserError, match=words):
        stratified_split(labels, draw, classes, copies)


def test_the_message_about_a_small_class_counts_what_the_folder_holds():
    random_pictures(FLOWERS / "iris", 30)
    random_pictures(FLOWERS / "rose", 4)
    fetch.main()
    with pytest.raises(UserError, match=r"class 'rose' has 4 images, 1 of them in the test"):
        choose(size="auto", channels="auto")
        Project(Path()).set(split__validation=0.02)
        split.main()


# --- copies ---------------------------------------------------------------------------------------


def test_equal_images_have_one_original_and_near_ones_are_told_from_others():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8, generator=generator)
    images = torch.nn.functional.interpolate(images.float(), 32).byte()
    assert find_equal_images(images).tolist() == list(range(20))
    assert find_equal_images(images[[3, 5, 3]]).tolist() == [0, 1, 0]
    noise = torch.randint(0, 3, images.shape, generator=generator)
    near = (images.int() + noise).clamp(0, 255).byte()
    assert find_near_copies(near[:10], images).all()
    assert not find_near_copies(images[:10], images[:10]).any()  # these are equal
    assert not find_near_copies(images[:10], images[10:]).any()
    blank = torch.full_like(images[:2], 7)
    assert not find_near_copies(blank + 1, blank).any()


# --- files as they are ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_picture_with_a_garbled_exif_block_is_taken_upright(suffix):
    picture = Image.effect_noise((30, 20), 90)
    path = Path(f"garbled.{suffix}")
    picture.save(
        path, exif=b"Exif\x00\x00no TIFF at all", **({"lossless": True} if suffix == "webp" else {})
    )
    assert np.array_equal(np.asarray(read_picture(path, 1)), np.asarray(picture))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_large_picture_with_alpha_takes_little_more_memory_than_its_pixels():
    Image.new("RGBA", (9000, 9000), (200, 30, 30, 128)).save("large.png", compress_level=1)
    program = ROOT / "tests/programs/read_large.py"
    command = [sys.executable, str(program), "large.png"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(),
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    megabytes, pixel = done.stdout.split()
    assert int(megabytes) < 900  # of the picture's 324, three threads
    assert pixel == "[227,142,142]"


def test_a_large_picture_looks_like_its_small_copy():
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    small.resize((5000, 5000), Image.Resampling.BICUBIC).save("large.png", compress_level=1)
    small.resize((500, 500), Image.Resampling.BICUBIC).save("small.png")
    prepare = Preprocessing((32, 32), 3).tensor
    large, expected = prepare(Path("large.png")).astype(int), prepare(Path("small.png")).astype(int)
    assert abs(large - expected).max() <= 4


def test_a_picture_of_too_many_pixels_is_named_with_its_size():
    rows = b""
    Path("bomb.png").write_bytes(png(20_000, 20_000, 8, 0, rows))
    with pytest.raises(
        UnreadablePictureError, match=r"more than 250,000,000 pixels \(20000 × 20000\)"
    ):
        read_picture(Path("bomb.png"), 1)
