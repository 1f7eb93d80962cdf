"""What training saw is what a user gets: every file of a set, given to predict, is the very tensor of training."""

import csv
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import models, picture_sets
from helpers.datasets import describe, load
from helpers.project import ROOT
from PIL import Image

from lineup.architectures import build
from lineup.data.folder_listing import list_tree
from lineup.errors import UserError
from lineup.serving.classifier import open_classifier
from lineup.serving.deployable import write_onnx
from stages import fetch

BOTH_WAYS = [(name, own_test) for name in picture_sets.SETS for own_test in (False, True)]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def choose(**data):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {
        "dataset": "mine",
        "data": params["data"] | data,
        "architectures": ["mlp"],
        "model": "mlp",
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))


def fetched():
    """Return (row of files.csv, tensor that training or test holds) for every picture."""
    fetch.main()
    with Path("data/raw/files.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    images = {split: load(split)[0] for split in ("train", "test")}
    labels = {split: load(split)[1] for split in ("train", "test")}
    classes = describe().classes
    for row in rows:
        assert row["label"] == classes[labels[row["split"]][int(row["index"])]]
    assert len(rows) == len(images["train"]) + len(images["test"])
    return [(row, images[row["split"]][int(row["index"])].numpy()) for row in rows]


def classifier():
    """Return an untrained classifier for the fetched set, opened from its ONNX file as a user's is."""
    dataset = describe()
    network = build("linear", dataset.shape, len(dataset.classes), {})
    model = models.deployable(
        network,
        classes=dataset.classes,
        shape=dataset.shape,
        mean=[0.5] * dataset.shape[0],
        std=[0.25] * dataset.shape[0],
        preprocessing=dataset.preprocessing,
    )
    write_onnx(model, Path("model.onnx"))
    return open_classifier("model.onnx")


def assert_predict_sees_what_training_saw(found):
    model = classifier()
    for row, tensor in found:
        np.testing.assert_array_equal(
            model.preprocess(Path(row["file"])), tensor, err_msg=row["file"]
        )


@pytest.mark.parametrize(("name", "own_test"), BOTH_WAYS)
def test_predict_sees_every_file_as_training_saw_it(name, own_test):
    choose()
    picture_sets.make(name, Path("data/mine"), own_test)
    found = fetched()
    assert_predict_sees_what_training_saw(found)
    parts = [Path("data/mine/train"), Path("data/mine/test")] if own_test else [Path("data/mine")]
    listed = [path.as_posix() for part in parts for path in list_tree(part).pictures]
    assert sorted(listed) == sorted(row["file"] for row, _ in found)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 40])
def test_every_format_mode_size_and_orientation_is_read_in_one_way(size, channels):
    choose(size=size, channels=channels)
    random = np.random.default_rng(0)
    count = 0
    modes = {
        "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "jpg": ("L", "RGB", "CMYK"),
        "gif": ("L", "P"),
        "bmp": ("1", "L", "RGB"),
        "tiff": ("L", "RGB", "RGBA", "I;16", "CMYK"),
        "webp": ("RGB", "RGBA"),
        "ppm": ("1", "L", "RGB"),
    }
    for suffix, names in modes.items():
        for mode in names:
            for wide, tall in ((size, size), (31, 57), (300, 170)):
                for orientation in (None, 3, 6, 7) if suffix in ("jpg", "png", "tiff") else (None,):
                    colours = random.integers(0, 256, (tall, wide, 4), dtype=np.uint8)
                    picture = Image.fromarray(colours, "RGBA")
                    if mode == "I;16":
                        picture = Image.fromarray(colours[..., 0].astype(np.uint16) * 250)
                    else:
                        picture = (
                            picture.convert("RGB").convert(mode)
                            if mode in ("CMYK", "P")
                            else picture.convert(mode)
                        )
                    exif = Image.Exif()
                    options = {}
                    if orientation:
                        exif[0x0112] = orientation
                        options["exif"] = exif
                    folder = Path("data/mine") / "ab"[count % 2]
                    folder.mkdir(parents=True, exist_ok=True)
                    picture.save(folder / f"{count}.{suffix}", **options)
                    count += 1
    found = fetched()
    assert len(found) == count
    assert_predict_sees_what_training_saw(found)


def test_a_set_of_twelve_bits_keeps_its_range_and_refuses_what_goes_beyond(capsys):
    choose(size=48)
    picture_sets.make("camera_values", Path("data/mine"), own_test=False)
    found = fetched()
    assert "12-bit" in capsys.readouterr().out
    levels = torch.cat([load(split)[0].flatten() for split in ("train", "test")]).unique()
    assert describe().preprocessing["largest"] == 4095
    assert len(levels) > 20 and levels.min() < 30 and levels.max() > 200
    Image.fromarray(np.full((48, 48), 5000, np.uint16)).save("beyond.png")
    with pytest.raises(ValueError, match=r"up to 5,000.*4,095"):
        classifier().preprocess(Path("beyond.png"))
    assert len(found) == 40


def test_eight_bit_values_in_sixteen_bit_files_stay_as_they_are():
    choose(size=48)
    for kind in ("disc", "box"):
        for number in range(10):
            pixels = np.asarray(picture_sets.shape(kind, number)).astype(np.uint16)
            picture_sets.save(Image.fromarray(pixels), Path("data/mine") / kind / f"{number}.png")
    for row, tensor in fetched():
        np.testing.assert_array_equal(tensor[0], np.asarray(Image.open(row["file"])))


def test_sixteen_bit_colour_of_which_nothing_would_be_left_is_refused():
    choose()
    picture_sets.make("spellings", Path("data/mine"), own_test=False)
    write_deep_colour_png(Path("data/mine/disc/deep.png"), 200)
    with pytest.raises(UserError, match=r"deep.png: 16-bit colour"):
        fetch.main()
    write_deep_colour_png(Path("data/mine/disc/deep.png"), 40_000)
    fetch.main()


def write_deep_colour_png(path, value):
    """Write 16-bit colour by hand: Pillow writes none."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    rows = (b"\0" + struct.pack(">3H", value, value, value) * 9) * 9
    header = struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_pictures_of_several_frames_are_counted_in_one_line(capsys):
    choose()
    for kind in ("disc", "box"):
        for number in range(10):
            frames = [picture_sets.shape(kind, number + step) for step in (0, 20)]
            path = Path("data/mine") / kind / f"{number}.{'gif' if number % 2 else 'webp'}"
            picture_sets.save(frames[0], path, save_all=True, append_images=frames[1:], duration=80)
    assert_predict_sees_what_training_saw(fetched())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "frames" in line]
    assert "20 pictures" in line and "first" in line


def test_what_notebooks_and_servers_leave_behind_is_no_part_of_a_set_and_counted(capsys):
    choose()
    picture_sets.make("spellings", Path("data/mine"), own_test=False)
    expected = list_tree(Path("data/mine")).pictures
    for kind in ("disc", "box"):
        thumbnail = Path("data/mine") / kind / "@eaDir" / "0.jpg" / "SYNOFILE_THUMB_M.jpg"
        picture_sets.save(picture_sets.shape(kind, 0, 32), thumbnail)
        checkpoint = Path("data/mine") / kind / ".ipynb_checkpoints" / "0-checkpoint.jpg"
        picture_sets.save(picture_sets.shape(kind, 0), checkpoint)
    assert list_tree(Path("data/mine")).pictures == expected
    assert len(fetched()) == len(expected)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert "4 hidden or made by systems" in line and "@eaDir" in line


@pytest.mark.parametrize(
    ("link", "target"), [("disc/up", ".."), ("disc/other", "../box"), ("more", "disc")]
)
def test_a_link_that_would_give_pictures_a_second_label_is_refused(link, target):
    choose()
    picture_sets.make("spellings", Path("data/mine"), own_test=False)
    (Path("data/mine") / link).symlink_to(target)
    with pytest.raises(UserError, match=f"{link} is a link to {target}"):
        fetch.main()
    with pytest.raises(UserError, match=f"{link} is a link to {target}"):
        list_tree(Path("data/mine"))


def test_class_folders_that_are_links_are_read_by_fetch_and_predict_alike(project):
    choose()
    picture_sets.make("spellings", project / "elsewhere", own_test=False)
    Path("data/mine").mkdir(parents=True)
    for kind in ("disc", "box"):
        (Path("data/mine") / kind).symlink_to(project / "elsewhere" / kind)
    found = fetched()
    assert sorted(row["file"] for row, _ in found) == [
        p.as_posix() for p in list_tree(Path("data/mine")).pictures
    ]


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8))


def test_a_test_folder_with_pictures_of_train_is_refused_and_can_be_allowed():
    choose()
    for label in "ab":
        for number in range(15):
            for part in ("train", "test"):
                picture_sets.save(
                    noise(number + 100 * (label == "b")),
                    Path("data/mine") / part / label / f"{number}.png",
                )
    with pytest.raises(UserError) as error:
        fetch.main()
    message = str(error.value)
    assert (
        "30 files of test/" in message
        and "and 10 more" in message
        and "allow_duplicates" in message
    )
    assert "data/mine/test/a/0.png = data/mine/train/a/0.png" in message
    choose(allow_duplicates=True)
    fetch.main()
    assert describe().shared_files == 30


def test_copies_of_a_file_lie_on_one_side_of_the_test(capsys):
    choose()
    for label in "ab":
        for number in range(20):
            for copy in range(3 if number < 10 else 1):
                path = Path("data/mine") / label / f"{number}-{copy}.png"
                picture_sets.save(noise(number + 100 * (label == "b")), path)
    found = fetched()
    assert "40 files are copies" in capsys.readouterr().out
    sides = {}
    for row, _ in found:
        path = Path(row["file"])
        sides.setdefault((row["label"], path.stem.split("-")[0]), set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {"test"} for side in sides.values()) == 8


def test_a_set_without_copies_keeps_the_split_it_always_had():
    choose()
    for label in "ab":
        for number in range(10):
            picture_sets.save(
                noise(number + 100 * (label == "b")), Path("data/mine") / label / f"{number}.png"
            )
    held_out = sorted(row["file"] for row, _ in fetched() if row["split"] == "test")
    assert held_out == [f"data/mine/{name}.png" for name in ("a/0", "a/5", "b/4", "b/7")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "own_test"), BOTH_WAYS)
def test_the_accuracy_of_predict_on_the_test_files_is_the_leaderboards(name, own_test, monkeypatch):
    monkeypatch.setenv("LINEUP_TRACKING", "off")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    choose()
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"]["epochs"] = 2  # far from perfect: then a difference would show
    Path("params.yaml").write_text(yaml.safe_dump(params))
    picture_sets.make(name, Path("data/mine"), own_test)
    for stage in ("fetch", "split", "train", "evaluate"):
        arguments = ["mlp"] if stage == "train" else []
        subprocess.run(
            [sys.executable, "-m", f"stages.{stage}", *arguments], check=True, capture_output=True
        )
    with Path("evaluation/mlp/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    command = [
        sys.executable,
        "-m",
        "stages.predict",
        "--model",
        "models/mlp",
        "--json",
        *[row["file"] for row in rows],
    ]
    answers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    right = [answer["class"] == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert right == [row["correct"] == "True" for row in rows]
    metrics = json.loads(Path("evaluation/mlp/metrics.json").read_text())
    assert np.mean(right) == pytest.approx(metrics["test_accuracy"], abs=1e-6)
