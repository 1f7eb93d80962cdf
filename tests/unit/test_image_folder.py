"""A folder of images per class becomes tensors; what cannot is named, never dropped."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture_sets
from helpers.datasets import describe, load, load_split
from helpers.own_images import FLOWERS, choose, refusal
from helpers.picture_sets import paint, png, save
from helpers.project import write_digits
from PIL import Image

from lineup.data.folder_listing import list_tree
from lineup.data.image_io import UnreadablePictureError
from lineup.data.preprocessing import Preprocessing
from lineup.errors import UserError
from stages import fetch, split

NOBODY = 65534  # the user's number on every Unix


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choose()
    return tmp_path


def flowers(root=FLOWERS):
    return picture_sets.flowers(root)


def test_sub_folders_are_the_classes_and_a_stratified_fraction_is_held_out():
    flowers()
    fetch.main()
    assert (describe().name, describe().shape) == ("flowers", [1, 16, 16])
    assert describe().classes == ["iris", "rose"]
    for name, count in (("train", 8), ("test", 2)):
        images, labels = load(name)
        assert images.dtype == torch.uint8 and torch.bincount(labels).tolist() == [count, count]
        assert torch.allclose(images.float().mean((1, 2, 3)), labels * 230.0 + 10, atol=0.1)
    split.main()
    assert len(load_split().validation) >= 2


def test_the_same_folder_gives_the_same_bytes():
    flowers()
    fetch.main()
    first = {path.name: path.read_bytes() for path in Path("data/raw").iterdir()}
    fetch.main()
    assert first == {path.name: path.read_bytes() for path in Path("data/raw").iterdir()}


def test_no_image_is_lost_between_train_and_test_nor_in_both():
    for name, offset in {"a": 0, "b": 100}.items():
        for value in range(20):
            save(Image.new("L", (4, 4), value + offset), FLOWERS / name / f"{value}.png")
    fetch.main()
    values = torch.cat([load(name)[0][:, 0, 0, 0] for name in ("train", "test")])
    assert sorted(values.tolist()) == [*range(20), *range(100, 120)]


def test_train_and_test_folders_are_kept_as_they_are():
    flowers(FLOWERS / "train")
    paint(FLOWERS / "test/iris", 3)
    paint(FLOWERS / "test/rose", 4)
    fetch.main()
    assert torch.bincount(load("train")[1]).tolist() == [10, 10]
    assert torch.bincount(load("test")[1]).tolist() == [3, 4]


def test_a_train_folder_alone_gives_a_fraction_to_the_test():
    flowers(FLOWERS / "train")
    fetch.main()
    assert describe().classes == ["iris", "rose"] and len(load("test")[1]) == 4


def test_train_may_be_a_class_beside_other_vehicles():
    paint(FLOWERS / "train")
    paint(FLOWERS / "bus", colour=(9, 9, 90))
    fetch.main()
    assert describe().classes == ["bus", "train"]


@pytest.mark.parametrize(
    "others", [("test",), ("validation", "test"), ("train", "holdout"), ("train", "val", "valid")]
)
def test_a_folder_of_no_known_layout_is_refused_with_those_that_are(others):
    for name in others:
        flowers(FLOWERS / name)
    message = refusal()
    assert f"holds {', '.join(sorted(f'{name}/' for name in others))}; a set is" in message
    assert "a sub-folder of images per class; train/" in message and "table" in message


def test_splits_with_different_classes_are_refused_with_their_names():
    flowers(FLOWERS / "train")
    flowers(FLOWERS / "test")
    paint(FLOWERS / "test/tulip", 2)
    assert "tulip" in refusal()


PERSIAN = "گل\u200cها"  # flowers: it needs a letter that has no width


def test_names_of_classes_may_hold_spaces_and_any_script():
    for level, name in enumerate(("water lily", "Gänseblümchen", "バラ", "🌷", PERSIAN)):
        paint(FLOWERS / name, colour=(level, level, level))
    fetch.main()
    assert describe().classes == ["Gänseblümchen", "water lily", PERSIAN, "バラ", "🌷"]
    split.main()


def test_a_class_has_one_name_however_its_accents_are_encoded():
    spellings = {form: unicodedata.normalize(form, "Gänseblümchen") for form in ("NFC", "NFD")}
    for level, (split_name, form) in enumerate((("train", "NFC"), ("test", "NFD"))):
        paint(FLOWERS / split_name / spellings[form], colour=(level, 0, 0))
        paint(FLOWERS / split_name / "rose", colour=(level, 9, 0))
    fetch.main()
    assert describe().classes == [spellings["NFC"], "rose"]


def test_linked_folders_and_files_are_followed_also_in_a_ring(project):
    elsewhere = flowers(project / "elsewhere")
    Path("data").mkdir()
    FLOWERS.symlink_to(elsewhere)
    (elsewhere / "tulip").symlink_to(paint(project / "tulips", colour=(90, 9, 9)))
    (elsewhere / "rose/more").mkdir()
    (elsewhere / "rose/more/link.png").symlink_to(project / "tulips/0.png")
    (elsewhere / "rose/ring").symlink_to(elsewhere / "rose")
    fetch.main()
    assert describe().classes == ["iris", "rose", "tulip"]
    assert len(load("train")[1]) + len(load("test")[1]) == 31


def test_a_link_to_nowhere_is_named():
    Path("data").mkdir()
    FLOWERS.symlink_to("nowhere")
    assert "nowhere" in refusal()


@pytest.fixture
def ordinary_user(project):
    """Let the test run as somebody to whom permissions apply: root may read everything."""
    project.chmod(0o755)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    yield
    if is_root:
        os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_named(request):
    flowers(FLOWERS)
    (FLOWERS / "rose").chmod(0)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(UserError, match="data/flowers/rose can't be listed: Permission denied"):
        list_tree(FLOWERS)


def test_hidden_files_and_those_of_systems_are_ignored():
    flowers()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".hidden/0.png"):
        path = FLOWERS / "rose" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not a picture")
    (FLOWERS / "__MACOSX").mkdir()
    (FLOWERS / ".ipynb_checkpoints").mkdir()
    (FLOWERS / "LICENSE.txt").write_text("Be kind.")
    fetch.main()
    assert describe().classes == ["iris", "rose"] and len(load("train")[1]) == 16


def test_empty_classes_are_all_named():
    flowers()
    (FLOWERS / "tulip").mkdir()
    (FLOWERS / "lily").mkdir()
    message = refusal()
    assert "data/flowers/tulip" in message and "data/flowers/lily" in message
    assert "rose" not in message


def test_one_class_is_refused():
    paint(FLOWERS / "rose")
    assert "two or more classes; found only 'rose'" in refusal()


def test_a_folder_without_sub_folders_is_refused():
    paint(FLOWERS)
    assert "two or more classes; found none" in refusal()


def test_a_document_beside_the_class_folders_is_no_picture(capsys):
    flowers()
    Path(FLOWERS, "license.pdf").write_bytes(b"%PDF-1.7")
    fetch.main()
    assert "license.pdf" in capsys.readouterr().out


def test_images_beside_the_class_folders_are_named():
    paint(flowers(), 1)
    assert "outside the class folders" in refusal() and "data/flowers/0.png" in refusal()


def test_a_class_too_small_to_be_split_is_named_with_its_count():
    flowers()
    paint(FLOWERS / "tulip", 1)
    message = refusal()
    assert "'tulip' has 1 images" in message and "one for each of training" in message


def bomb(side):
    """A PNG that claims to be enormous and holds nearly nothing."""
    return png(side, side, bits=8, colour_type=0, rows=b"\0" * 99)


REASONS = {
    "truncated.jpg": "truncated",
    "notes.txt": "not an image",
    "empty.png": "not an image",
    "bomb.png": "more than 250,000,000 pixels (3,600,000,000)",
    "large.png": "more than 250,000,000 pixels",
    "page.png": "not an image",
    "gone.png": "broken link",
    "pipe.png": "not a file",
}


def test_every_file_that_is_no_good_is_named_with_the_reason():
    rose = flowers() / "rose"
    Image.effect_noise((200, 200), 90).save(rose / "whole.jpg")
    (rose / "truncated.jpg").write_bytes((rose / "whole.jpg").read_bytes()[:3000])
    (rose / "notes.txt").write_text("water twice a week")
    (rose / "empty.png").touch()
    (rose / "bomb.png").write_bytes(bomb(60_000))
    (rose / "large.png").write_bytes(bomb(16_000))
    (rose / "page.png").write_text("<html>404</html>")
    (rose / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(rose / "pipe.png")
    message = refusal()
    assert "8 of 29 files" in message
    lines = message.splitlines()
    for name, reason in REASONS.items():
        (line,) = [line for line in lines if f"data/flowers/rose/{name}: " in line]
        assert reason in line
    assert "whole.jpg" not in message


def test_a_long_list_of_bad_files_ends_with_a_count():
    flowers()
    for number in range(50):
        (FLOWERS / f"rose/bad{number:02}.png").write_text("no")
    message = refusal()
    assert "50 of 70" in message and "and 30 more" in message
    assert "bad19" in message and "bad20" not in message


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_of_mixed_sizes_and_formats_become_one_tensor(channels):
    choose(channels=channels, size=32)
    colours = {"iris": (200, 30, 30), "rose": (30, 30, 200)}
    for suffix in ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm", "JPEG"):
        for size in ((5, 9), (64, 48)):
            for name, colour in colours.items():
                paint(FLOWERS / name / f"{size[0]}", 1, colour, suffix, size)
    fetch.main()
    images, labels = load("train")
    assert images.shape[1:] == (channels, 32, 32)
    if channels == 3:
        red, blue = (images[labels == label].float().mean((0, 2, 3)) for label in (0, 1))
        assert red[0] > 150 > red[2] and blue[2] > 150 > blue[0]


def decode_image(path, size, channels, largest=255):
    return torch.from_numpy(Preprocessing((size, size), channels, largest).tensor(path))


def saved(image, name="image.png", **options):
    image.save(name, **options)
    return Path(name)


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for name in ("image.png", "image.tiff"):
        pixels = decode_image(saved(Image.fromarray(ramp), name), 16, 1, largest=65535)
        assert torch.equal(pixels.flatten(), torch.arange(256, dtype=torch.uint8))


def test_floating_point_pixels_are_refused():
    path = saved(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "image.tiff")
    with pytest.raises(UnreadablePictureError, match="floating-point"):
        decode_image(path, 16, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    path = saved(image.convert(mode), **({"transparency": 0} if mode == "P" else {}))
    assert decode_image(path, 8, 3).min() == 255


def test_a_palette_gives_its_colours():
    image = Image.new("RGB", (8, 8), (200, 10, 60)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode_image(saved(image), 8, 3)[:, 0, 0].tolist() == [200, 10, 60]


def test_cmyk_gives_its_colours():
    image = Image.new("RGB", (16, 16), (250, 0, 0)).convert("CMYK")
    red, green, blue = decode_image(saved(image, "image.jpg"), 16, 3)[:, 8, 8].tolist()
    assert red > 200 and green < 40 and blue < 40


def test_a_photograph_is_turned_upright():
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[:, :8] = 255  # the left half is bright, and the camera was held so that left is up
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_image(saved(Image.fromarray(pixels), exif=exif), 16, 1)
    assert upright[0, :8].min() == 255 and upright[0, 8:].max() == 0


def test_proportions_are_kept_on_a_ground_of_the_border_colour():
    pixels = np.full((40, 20), 200, dtype=np.uint8)
    pixels[10:30, 5:15] = 0
    fitted = decode_image(saved(Image.fromarray(pixels)), 40, 1)[0]
    assert fitted.shape == (40, 40)
    assert fitted[:, :10].unique().tolist() == [200] and fitted[:, 30:].unique().tolist() == [200]
    assert fitted[20, 15:25].max() == 0  # the middle is where it was, as wide as it was


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (1, 1)])
def test_absurd_proportions_still_fit(size):
    assert decode_image(saved(Image.new("L", size, 9)), 16, 1).unique().tolist() == [9]


def test_a_large_photograph_looks_like_its_small_copy():
    gradient = Image.linear_gradient("L").resize((2000, 1500))
    large = decode_image(saved(gradient, "large.jpg"), 32, 1).float()
    small = decode_image(saved(gradient.resize((200, 150)), "small.png"), 32, 1).float()
    assert (large - small).abs().mean() < 3


def test_the_walk_through_with_digits_works():
    write_digits(Path("data/digits"), 300)
    choose("digits")
    fetch.main()
    split.main()
    assert describe().classes == list("0123456789")
    assert len(load("train")[1]) == 240 and len(load("test")[1]) == 60
    shutil.rmtree("data/digits/7")
    fetch.main()
    assert len(describe().classes) == 9
