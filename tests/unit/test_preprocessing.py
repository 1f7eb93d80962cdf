"""What training saw is what a user gets: predict makes the very tensor of training of a file."""

import csv
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import models, picture_sets
from helpers.datasets import describe, load
from helpers.picture_sets import png, save, shape
from helpers.project import ROOT, Project
from PIL import Image

from lineup.architectures import build
from lineup.data.folder_listing import list_tree
from lineup.data.image_io import read_picture, to_eight_bits
from lineup.errors import UserError
from lineup.serving.classifier import open_classifier
from lineup.serving.deployable import write_onnx
from stages import fetch

BOTH_WAYS = [(name, own_test) for name in picture_sets.SETS for own_test in (False, True)]
MINE = Path("data/mine")
KINDS = ("disc", "box")
MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "jpg": ("L", "RGB", "CMYK"),
    "gif": ("L", "P"),
    "bmp": ("1", "L", "RGB"),
    "tiff": ("L", "RGB", "RGBA", "I;16", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "ppm": ("1", "L", "RGB"),
}
ORIENTATION = 0x0112  # the tag of a camera's orientation


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def choose(**data):
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    settings = {f"data__{key}": value for key, value in data.items()}
    Project(Path()).set(dataset="mine", **settings)


def fetched():
    """Return (row of files.csv, tensor that training or test holds) for every picture."""
    fetch.main()
    with Path("data/raw/files.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    splits = {name: load(name) for name in ("train", "test")}
    classes = describe().classes
    found = []
    for row in rows:
        images, labels = splits[row["split"]]
        index = int(row["index"])
        assert row["label"] == classes[labels[index]]
        found.append((row, images[index].numpy()))
    assert len(rows) == sum(len(images) for images, _ in splits.values())
    return found


def classifier():
    """Return an untrained classifier for the fetched set, opened from its ONNX file."""
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
        seen = model.preprocess(Path(row["file"]))
        np.testing.assert_array_equal(seen, tensor, err_msg=row["file"])


@pytest.mark.parametrize(("name", "own_test"), BOTH_WAYS)
def test_predict_sees_every_file_as_training_saw_it(name, own_test):
    choose()
    picture_sets.make(name, MINE, own_test)
    found = fetched()
    assert_predict_sees_what_training_saw(found)
    roots = [MINE / "train", MINE / "test"] if own_test else [MINE]
    listed = [path.as_posix() for root in roots for path in list_tree(root).pictures]
    assert sorted(listed) == sorted(row["file"] for row, _ in found)


TURNS = {  # EXIF 2.3, 4.6.4: what makes a picture of such an orientation upright
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def draw(mode, width, height, random):
    """Return noise as a picture of a mode of Pillow's."""
    colours = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(colours[..., 0].astype(np.uint16) * 250)
    picture = Image.fromarray(colours, "RGBA")
    if mode in ("CMYK", "P"):
        picture = picture.convert("RGB")
    return picture.convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 40])
def test_every_format_mode_size_and_orientation_is_read_in_one_way(size, channels):
    choose(size=size, channels=channels)
    random = np.random.default_rng(0)
    count = 0
    for suffix, modes in MODES.items():
        orientations = (None, 3, 6, 7) if suffix in ("jpg", "png", "tiff") else (None,)
        sizes = ((size, size), (31, 57), (300, 170))
        for mode, (width, height), orientation in product(modes, sizes, orientations):
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            options = {"exif": exif} if orientation else {}
            path = MINE / "ab"[count % 2] / f"{count}.{suffix}"
            save(draw(mode, width, height, random), path, **options)
            count += 1
    found = fetched()
    assert len(found) == count
    assert_predict_sees_what_training_saw(found)


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_turned_tiff_shows_what_a_viewer_shows(mode, orientation, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    drawn = draw(mode, 31, 57, np.random.default_rng(0))
    drawn.save(tmp_path / "turned.tiff", exif=exif)
    turn = TURNS.get(orientation)
    upright = to_eight_bits(drawn.transpose(turn) if turn else drawn, 3, 65535)
    found = read_picture(tmp_path / "turned.tiff", 3, 65535)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(upright))


def test_deep_pictures_are_read_in_either_byte_order():
    choose(size=48)
    for kind in KINDS:
        for number in range(10):
            pixels = (np.asarray(shape(kind, number)).astype(int) * 16).astype(">u2")
            save(
                Image.frombytes("I;16B", (48, 48), pixels.tobytes()), MINE / kind / f"{number}.tiff"
            )
    fetched()
    assert describe().preprocessing["largest"] == 4095
    assert load("train")[0].max() > 200


def test_a_set_of_twelve_bits_keeps_its_range_and_refuses_what_goes_beyond(capsys):
    choose(size=48)
    picture_sets.make("camera_values", MINE, own_test=False)
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
    for kind in KINDS:
        for number in range(10):
            pixels = np.asarray(shape(kind, number)).astype(np.uint16)
            save(Image.fromarray(pixels), MINE / kind / f"{number}.png")
    for row, tensor in fetched():
        np.testing.assert_array_equal(tensor[0], np.asarray(Image.open(row["file"])))


def deep_colour_png(value):
    """Return a PNG of 16-bit colour."""
    row = b"\0" + value.to_bytes(2, "big") * 3 * 9
    return png(9, 9, bits=16, colour_type=2, rows=row * 9)


def deep_grey_and_alpha_png(value):
    """Return a PNG of 16-bit grey that is opaque everywhere."""
    row = b"\0" + (value.to_bytes(2, "big") + b"\xff\xff") * 9
    return png(9, 9, bits=16, colour_type=4, rows=row * 9)


def test_sixteen_bit_colour_of_which_nothing_would_be_left_is_refused():
    choose()
    picture_sets.make("spellings", MINE, own_test=False)
    path = MINE / "disc/deep.png"
    for content in (deep_colour_png(200), deep_colour_png(4095), deep_grey_and_alpha_png(200)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"deep.png: 16-bit colour"):
            fetch.main()
    path.write_bytes(deep_colour_png(40_000))
    fetch.main()


def test_pictures_of_several_frames_are_counted_in_one_line(capsys):
    choose()
    for kind in KINDS:
        for number in range(10):
            frames = [shape(kind, number + step) for step in (0, 20)]
            path = MINE / kind / f"{number}.{'gif' if number % 2 else 'webp'}"
            save(frames[0], path, save_all=True, append_images=frames[1:], duration=80)
    assert_predict_sees_what_training_saw(fetched())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "frames" in line]
    assert "20 pictures" in line and "first" in line


def test_what_notebooks_and_servers_leave_behind_is_left_out_and_counted(capsys):
    choose()
    picture_sets.make("spellings", MINE, own_test=False)
    expected = list_tree(MINE).pictures
    for kind in KINDS:
        thumbnail = MINE / kind / "@eaDir" / "0.jpg" / "SYNOFILE_THUMB_M.jpg"
        save(shape(kind, 0, 32), thumbnail)
        checkpoint = MINE / kind / ".ipynb_checkpoints" / "0-checkpoint.jpg"
        save(shape(kind, 0), checkpoint)
    assert list_tree(MINE).pictures == expected
    assert len(fetched()) == len(expected)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert "4 hidden or made by systems" in line and "@eaDir" in line


@pytest.mark.parametrize(
    ("link", "target"), [("disc/up", ".."), ("disc/other", "../box"), ("more", "disc")]
)
def test_a_link_that_would_give_pictures_a_second_label_is_refused(link, target):
    choose()
    picture_sets.make("spellings", MINE, own_test=False)
    (MINE / link).symlink_to(target)
    (MINE / "box/also").symlink_to("../disc")
    for command in (fetch.main, lambda: list_tree(MINE)):
        with pytest.raises(UserError, match="2 links inside") as error:
            command()
        assert f"{link} → {target}" in str(error.value) and "box/also → ../disc" in str(error.value)


def test_class_folders_that_are_links_are_read_by_fetch_and_predict_alike(project):
    choose()
    picture_sets.make("spellings", project / "elsewhere", own_test=False)
    MINE.mkdir(parents=True)
    for kind in KINDS:
        (MINE / kind).symlink_to(project / "elsewhere" / kind)
    found = fetched()
    listed = [path.as_posix() for path in list_tree(MINE).pictures]
    assert sorted(row["file"] for row, _ in found) == listed


def noise(label, number):
    """Return noise that no other label or number has."""
    random = np.random.default_rng(number + 100 * (label == "b"))
    return Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8))


def test_a_test_folder_with_pictures_of_train_is_refused_and_can_be_allowed():
    choose()
    for label, number, root in product("ab", range(15), ("train", "test")):
        save(noise(label, number), MINE / root / label / f"{number}.png")
    with pytest.raises(UserError) as error:
        fetch.main()
    message = str(error.value)
    assert "30 files of test/" in message and "and 10 more" in message
    assert "allow_duplicates" in message
    assert "data/mine/test/a/0.png = data/mine/train/a/0.png" in message
    choose(allow_duplicates=True)
    fetch.main()
    assert describe().shared_files == 30


def test_copies_of_a_file_lie_on_one_side_of_the_test(capsys):
    choose()
    for label, number in product("ab", range(20)):
        for copy in range(3 if number < 10 else 1):
            save(noise(label, number), MINE / label / f"{number}-{copy}.png")
    found = fetched()
    assert "40 pictures are copies" in capsys.readouterr().out
    sides = {}
    for row, _ in found:
        number = Path(row["file"]).stem.split("-")[0]
        sides.setdefault((row["label"], number), set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {"test"} for side in sides.values()) == 8


def test_a_set_without_copies_keeps_the_split_it_always_had():
    choose()
    for label, number in product("ab", range(10)):
        save(noise(label, number), MINE / label / f"{number}.png")
    held_out = sorted(row["file"] for row, _ in fetched() if row["split"] == "test")
    assert held_out == [f"data/mine/{name}.png" for name in ("a/0", "a/5", "b/4", "b/7")]
