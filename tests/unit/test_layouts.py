"""Sets as people have them: folders per class, given splits, tables of labels."""

from pathlib import Path

import pandas as pd
import pytest
from helpers.datasets import describe, load, load_split
from helpers.own_images import FLOWERS, choose, refusal
from helpers.picture_sets import flowers, paint

from lineup.paths import FILES_CSV
from stages import fetch, split


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choose()
    return tmp_path


def grounds(root, **levels):
    """Write ten pictures per class on a ground of some level."""
    for name, level in levels.items():
        paint(root / name, colour=(level, level, level))


def files(part):
    table = pd.read_csv(FILES_CSV, dtype=str)
    return table[table["split"] == part].set_index("file")["label"].to_dict()


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_a_validation_folder_is_used_as_such(name):
    grounds(FLOWERS / "train", iris=10, rose=240)
    grounds(FLOWERS / name, iris=60, rose=200)
    grounds(FLOWERS / "Test", iris=110, rose=150)
    fetch.main()
    split.main()
    images, _ = load("train")
    means = images.float().mean((1, 2, 3)).round()
    found = load_split()
    assert set(means[found.train].tolist()) == {10, 240}
    assert set(means[found.validation].tolist()) == {60, 200}
    assert set(load("test")[0].float().mean((1, 2, 3)).round().tolist()) == {110, 150}


def test_without_a_test_folder_the_test_is_drawn_from_training_alone():
    grounds(FLOWERS / "train", iris=10, rose=240)
    grounds(FLOWERS / "val", iris=60, rose=200)
    fetch.main()
    split.main()
    assert len(load("test")[0]) == 4 and len(load_split().validation) == 20
    assert all("/train/" in file for file in files("test"))


def test_a_class_that_is_in_one_part_only_is_named_with_it():
    flowers(FLOWERS / "train")
    grounds(FLOWERS / "test", iris=60, rose=200)
    paint(FLOWERS / "train" / "eel", colour=(90, 90, 90))
    paint(FLOWERS / "test" / "yew", colour=(90, 90, 90))
    message = refusal()
    assert "only train/ has eel" in message and "only test/ has yew" in message


def test_a_test_folder_without_labels_is_named():
    flowers(FLOWERS / "train")
    paint(FLOWERS / "test", colour=(90, 90, 90))
    assert "test/ has no folder per class, so that nothing says what" in refusal()


def test_what_belongs_to_a_validation_picture_is_not_drawn_for_the_test():
    grounds(FLOWERS / "train", iris=10, rose=240)
    for part in ("train", "val"):
        for name in ("iris", "rose"):
            paint(FLOWERS / part / name / "box7", 5, colour=(70 + 5 * len(part), 9, 9))
    choose(group=r"box\d")
    fetch.main()
    assert files("test") and not [file for file in files("test") if "box7" in file]


def test_a_class_all_of_which_belongs_to_validation_is_named():
    grounds(FLOWERS / "train", iris=10, rose=240)
    grounds(FLOWERS / "val", iris=10, rose=200)
    assert "all training pictures of 'iris' are copies" in refusal()


def test_a_link_to_itself_is_a_broken_link():
    flowers(FLOWERS)
    link = FLOWERS / "iris" / "loop.png"
    link.symlink_to(link.name)
    assert f"{link}: a broken link" in refusal()


def test_folders_below_a_class_belong_to_it():
    paint(FLOWERS / "iris" / "2024" / "may", colour=(10, 10, 10))
    paint(FLOWERS / "rose", colour=(240, 240, 240))
    fetch.main()
    assert describe().classes == ["iris", "rose"] and len(load("train")[0]) == 16


# --- tables ---------------------------------------------------------------------------------------


def write_table(text, settings="table: labels.csv\n"):
    (FLOWERS / "dataset.yaml").write_text(settings)
    (FLOWERS / "labels.csv").write_text(text, encoding="utf-8")


@pytest.fixture
def pictures():
    """Twenty pictures in a folder: 000.png to 009.png are dark, 010.png to 019.png are bright."""
    for first, level in ((0, 10), (10, 240)):
        for path in paint(Path("painted"), colour=(level, level, level)).iterdir():
            target = FLOWERS / "images" / f"{first + int(path.stem):03}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)


@pytest.mark.parametrize(
    "spelling", ["{:03}", "{:03}.png", "images/{:03}.png", "./images/{:03}", "images\\{:03}.png"]
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_names_files_with_or_without_folder_and_suffix(pictures, spelling, delimiter):
    rows = [(spelling.format(n), "iris" if n < 10 else "rose, wild") for n in range(20)]
    lines = [f'"{name}"{delimiter}"{label}"' for name, label in rows]
    write_table("\n".join([f"file{delimiter}label", *lines]))
    fetch.main()
    assert describe().classes == ["iris", "rose, wild"]
    found = files("train") | files("test")
    assert len(found) == 20
    assert all((label == "iris") == (int(Path(name).stem) < 10) for name, label in found.items())
    images, labels = load("train")
    assert ((images.float().mean((1, 2, 3)) > 100) == (labels == 1)).all()


def test_columns_are_chosen_by_name_where_there_are_more_than_two(pictures):
    rows = [f"{n},{n:03},{'iris' if n < 10 else 'rose'},x" for n in range(20)]
    text = "\n".join(["row,id,breed,note", *rows])
    write_table(text)
    message = refusal()
    assert "has no column 'file' (row, id, breed, note)" in message and "file: NAME" in message
    write_table(text, "table: labels.csv\nfile: id\nlabel: breed\n")
    fetch.main()
    assert describe().classes == ["iris", "rose"] and len(load("train")[0]) == 16


@pytest.mark.parametrize(
    ("header", "settings"),
    [
        ("label,file", ""),
        ("breed,file", ""),
        ("label,id", ""),
        ("breed,id", "file: id\n"),
        ("breed,id", "label: breed\n"),
        ("breed,file", "label: breed\n"),
    ],
)
def test_the_label_may_come_first_where_a_name_says_so(pictures, header, settings):
    rows = [f"{'iris' if n < 10 else 'rose'},{n:03}" for n in range(20)]
    write_table("\n".join([header, *rows]), "table: labels.csv\n" + settings)
    fetch.main()
    assert describe().classes == ["iris", "rose"]


def test_one_column_is_not_both_file_and_label(pictures):
    rows = [f"{n:03},{'iris' if n < 10 else 'rose'},x" for n in range(20)]
    write_table("\n".join(["id,breed,note", *rows]), "table: labels.csv\nfile: id\nlabel: id\n")
    assert "file and label are both 'id'; name two columns" in refusal()


def test_what_lies_beside_each_picture_is_not_taken_for_it(pictures):
    for path in list((FLOWERS / "images").iterdir()):
        path.with_suffix(".json").write_text("{}")
    rows = [f"{n:03},{'iris' if n < 10 else 'rose'}" for n in range(20)]
    write_table("\n".join(["file,label", *rows]))
    fetch.main()
    assert len(files("train") | files("test")) == 20


def test_cells_may_hold_line_separators_and_an_open_quote_is_named(pictures):
    rows = [f"{n:03},{'ir|is' if n < 10 else 'rose'}".replace("|", "\u2028") for n in range(20)]
    write_table("\n".join(["file,label", *rows]))
    assert "names of classes must be readable text" in refusal()
    rows = [f"{n:03},{'iris' if n < 10 else 'rose'}" for n in range(20)]
    write_table("\n".join(["file,label", '000,"iris', *rows * 2000]))
    assert "is a quote open?" in refusal()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("099,iris", "row 22: '099' is no file here"),
        ("000.png,iris", "names files twice"),
        ("000,", "row 22: 'label' is empty"),
        ("000", "row 22: 1 cells under 2 columns"),
    ],
)
def test_a_row_that_fits_no_picture_is_named(pictures, row, message):
    rows = [f"{n:03},{'iris' if n < 10 else 'rose'}" for n in range(20)]
    write_table("\n".join(["file,label", *rows, row]))
    assert message in refusal()


def test_a_name_of_two_files_is_refused_with_both(pictures):
    (FLOWERS / "more").mkdir()
    (FLOWERS / "images/000.png").rename(FLOWERS / "images/more.png")
    for folder in ("images", "more"):
        (FLOWERS / folder / "000.png").write_bytes((FLOWERS / "images/more.png").read_bytes())
    write_table("file,label\n000,iris\n010,rose\n")
    message = refusal()
    assert "could be" in message and "more/000.png" in message and "images/000.png" in message


def test_a_whole_name_means_that_file_also_where_another_ends_so(pictures):
    (FLOWERS / "backup/images").mkdir(parents=True)
    copy = (FLOWERS / "images/001.png").read_bytes()
    (FLOWERS / "backup/images/000.png").write_bytes(copy)
    rows = [f"images/{n:03}.png,{'iris' if n < 10 else 'rose'}" for n in range(20)]
    write_table("\n".join(["file,label", *rows]))
    fetch.main()
    assert len(files("train") | files("test")) == 20


def test_a_table_without_a_header_is_refused(pictures):
    write_table("000.png,iris\n010.png,rose\n020.png,iris\n")
    assert "labels.csv begins without a header: 000.png is a picture; write a" in refusal()


def test_pictures_that_the_table_does_not_name_are_counted(pictures, capsys):
    rows = [f"{n:03},{'iris' if n < 10 else 'rose'}" for n in range(5, 20)]
    write_table("\n".join(["file,label", *rows]))
    fetch.main()
    assert "left out: 5 other files" in capsys.readouterr().out


def test_a_table_that_is_not_there_is_named():
    FLOWERS.mkdir(parents=True)
    (FLOWERS / "dataset.yaml").write_text("table: labels.csv\n")
    assert "labels.csv is missing, the table that" in refusal()
