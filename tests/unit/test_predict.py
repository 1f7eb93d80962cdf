import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import write_dataset, write_split
from helpers.models import write_model
from helpers.photos import photograph
from PIL import Image, ImageDraw, ImageOps

from lineup.architectures import build
from lineup.errors import UserError
from lineup.files import read_json
from lineup.paths import SPLIT_JSON
from lineup.serving.classifier import Classifier, open_classifier
from stages import predict

ROOT = Path(__file__).parents[2]
MNIST_LIKE = {
    "size": [28, 28],
    "channels": 1,
    "largest": 255,
    "framing": {"background": "dark", "content": 20},
}


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits framed like MNIST's: 20 pixels on the longer side, centred by mass, uint8 (N, 1, 28, 28)."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = np.zeros((600, 1, 28, 28), np.uint8)
    for target, image in zip(images, source.images, strict=False):
        rows, columns = np.nonzero(image)
        shown = Image.fromarray((image * 15.9).astype(np.uint8))
        shown = shown.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        shown = shown.resize(
            [round(side * 20 / max(shown.size)) for side in shown.size], Image.Resampling.BICUBIC
        )
        weights = np.asarray(shown, dtype=float)
        row = round(14 - (weights.sum(axis=1) @ np.arange(shown.height)) / weights.sum())
        column = round(14 - (weights.sum(axis=0) @ np.arange(shown.width)) / weights.sum())
        target[0, row : row + shown.height, column : column + shown.width] = weights
    return images, source.target[:600]


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    """A folder with a trained softmax regression for these digits, as train and export leave it."""
    images, labels = torch.from_numpy(digits[0]), torch.from_numpy(digits[1])
    torch.manual_seed(1)
    network = build("linear", [1, 28, 28], 10, {})
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    inputs = (images / 255 - 0.2) / 0.3
    for _ in range(50):
        loss = torch.nn.functional.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, network, onnx=True, preprocessing=MNIST_LIKE)
    return folder


@pytest.fixture
def pictures(digits, tmp_path):
    """A folder with the first five digits as PNG files of 28×28 pixels, one folder down."""
    for number, image in enumerate(digits[0][:5]):
        path = tmp_path / "pictures" / "more" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    return tmp_path / "pictures"


def on_paper(image, seed):
    """Return a digit as dark ink on unevenly lit, noisy grey paper, large and off-centre, as a colour JPEG."""
    random = np.random.default_rng(seed)
    size = int(random.integers(60, 160))
    ink = Image.new("L", (size * 3, size * 2))
    ink.paste(
        Image.fromarray(image).resize((size, size)),
        (int(random.integers(size * 2)), int(random.integers(size))),
    )
    paper = 230 - 0.75 * np.asarray(ink, dtype=float)
    paper += np.linspace(0, 20, paper.shape[1]) + random.normal(0, 4, paper.shape)
    file = io.BytesIO()
    Image.fromarray(paper.clip(0, 255).astype(np.uint8)).convert("RGB").save(
        file, "JPEG", quality=85
    )
    file.seek(0)
    return file


def test_a_picture_of_the_models_size_is_taken_as_it_is(model, digits, tmp_path):
    classifier = open_classifier(str(model))
    for pixels in (digits[0][0, 0], 255 - digits[0][0, 0]):
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        np.testing.assert_array_equal(classifier.preprocess(tmp_path / "picture.png")[0], pixels)


@pytest.mark.parametrize("invert", [False, True])
def test_a_model_sees_digits_on_paper_as_it_sees_its_training_images(model, digits, invert):
    images, labels = digits[0][:40], digits[1][:40]
    if invert:  # white chalk on a blackboard
        sources = [invert_file(on_paper(image[0], seed)) for seed, image in enumerate(images)]
    else:
        sources = [on_paper(image[0], seed) for seed, image in enumerate(images)]
    classifier = open_classifier(str(model))
    seen = [classifier.preprocess(source) for source in sources]
    assert np.mean(classifier.classify(seen).argmax(axis=1) == labels) > 0.9
    assert np.mean(classifier.classify(images).argmax(axis=1) == labels) > 0.9


@pytest.mark.parametrize("grey", [120, 150, 170, 190, 200, 250])
@pytest.mark.parametrize("fall", [0, 0.5])
def test_grey_paper_and_a_gradient_leave_a_digit_as_it_is(model, digits, grey, fall):
    classifier = open_classifier(str(model))
    clean = digits[0][7][0]
    ink = np.asarray(Image.fromarray(clean).resize((420, 420), Image.Resampling.BICUBIC)) / 255
    page = np.zeros((800, 1000))
    page[200:620, 300:720] = ink
    photo = grey * (1 - 0.8 * page) * np.linspace(1, 1 - fall, 1000)
    seen = classifier.preprocess(png(photo))[0]
    assert np.corrcoef(seen.ravel(), clean.ravel())[0, 1] > 0.9
    assert seen.max() > 200 and np.median(seen) == 0


@pytest.mark.parametrize("noise", [0, 2])
@pytest.mark.parametrize(("width", "pencil"), [(1, 120), (2, 160), (4, 190), (12, 190)])
def test_a_thin_or_faint_stroke_is_found(model, noise, width, pencil):
    classifier, generator = open_classifier(str(model)), np.random.default_rng(1)
    seen = []
    for colour in (pencil, 0):
        page = Image.new("L", (1000, 800), 230)
        ImageDraw.Draw(page).ellipse((300, 200, 600, 600), outline=colour, width=width)
        pixels = np.asarray(page) + generator.normal(0, noise, (800, 1000))
        seen.append(classifier.preprocess(png(pixels)).ravel())
    assert np.corrcoef(*seen)[0, 1] > 0.9


@pytest.mark.parametrize("grey", [128, 200, 240])
def test_noise_on_an_empty_page_is_no_stroke(model, grey):
    pixels = np.random.default_rng(1).normal(grey, 5, (800, 1000))
    assert np.ptp(open_classifier(str(model)).preprocess(png(pixels)).astype(int)) < 32


def test_photos_with_shadows_lines_and_pens_are_read_as_the_clean_digits(model, digits):
    classifier, generator = open_classifier(str(model)), np.random.default_rng(7)
    images, labels = digits[0][:100], digits[1][:100]
    is_right = classifier.classify(list(images)).argmax(axis=1) == labels
    photos = [photograph(image[0], generator, tilt=5) for image in images[is_right]]
    answers = classifier.classify([classifier.preprocess(photo) for photo in photos]).argmax(axis=1)
    assert is_right.mean() > 0.95 and np.mean(answers == labels[is_right]) > 0.95


def png(pixels):
    """Return pixels, of any number type, as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


def invert_file(file):
    """Return a picture with its colours inverted, as a PNG file."""
    return png(ImageOps.invert(Image.open(file)))


@pytest.mark.parametrize("specks", [[], [(100, 100), (1500, 1100)]])
def test_a_page_that_is_blank_or_shows_specks_alone_is_answered_too(model, specks):
    file, page = io.BytesIO(), Image.new("L", (1600, 1200), 240)
    for place in specks:
        page.putpixel(place, 0)
    page.save(file, "PNG")
    file.seek(0)
    assert open_classifier(str(model)).preprocess(file).shape == (1, 28, 28)


@pytest.mark.parametrize(("side", "most"), [(28, 300), (512, 4)])
def test_large_images_go_through_a_model_few_at_a_time(side, most):
    taken = []

    def run(images):
        taken.append(len(images))
        return images[:, 0, 0, :1].astype("float32")

    images = [np.full((1, side, side), number, np.uint8) for number in range(10)]
    answers = Classifier(run, {}).classify(images)
    assert answers.tolist() == [[number] for number in range(10)]
    assert max(taken) == min(most, 10) and sum(taken) == 10


def test_a_model_of_colour_photos_gets_the_whole_picture_in_proportion(tmp_path):
    torch.manual_seed(0)
    preprocessing = {"size": [16, 16], "channels": 3, "largest": 255, "framing": None}
    network = build("linear", [3, 16, 16], 10, {})
    facts = {"shape": [3, 16, 16], "mean": [0.5] * 3, "std": [0.2] * 3}
    write_model(tmp_path, network, onnx=True, preprocessing=preprocessing, **facts)
    picture = Image.new("RGB", (64, 32), (200, 220, 240))
    picture.paste((250, 10, 20), (0, 0, 32, 32))
    picture.save(tmp_path / "wide.png")
    seen = open_classifier(str(tmp_path)).preprocess(tmp_path / "wide.png")
    assert seen.shape == (3, 16, 16)
    assert seen[:, 8, 2].tolist() == [250, 10, 20]
    assert seen[:, 8, 13].tolist() == [200, 220, 240]


def test_json_names_the_best_classes_of_every_picture_of_a_folder(model, pictures, digits, capsys):
    predict.main([str(pictures)], model=str(model), top_k=2, as_json=True)
    answers = json.loads(capsys.readouterr().out)
    assert [Path(answer["picture"]).name for answer in answers] == [
        f"{number}.png" for number in range(5)
    ]
    assert [answer["class"] for answer in answers] == [f"digit {label}" for label in digits[1][:5]]
    assert all(next(iter(answer["probabilities"])) == answer["class"] for answer in answers)
    assert all(len(answer["probabilities"]) == 2 for answer in answers)


def test_csv_has_a_row_per_picture_and_class(model, pictures, capsys):
    predict.main(
        [str(pictures / "more/1.png"), str(pictures / "more/2.png")], model=str(model), as_csv=True
    )
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2
    assert [rows[0]["class"], rows[3]["class"]] == ["digit 1", "digit 2"]
    assert float(rows[0]["probability"]) > float(rows[1]["probability"])


def test_the_table_shows_every_picture(model, pictures, capsys):
    predict.main([str(pictures)], model=str(model))
    table = capsys.readouterr().out
    assert all(f"digit {label}" in table for label in range(5))
    assert "%" in table


def test_the_table_shows_names_as_they_are(model, pictures, capsys):
    (pictures / "more/0.png").rename(pictures / "scan [final].png")
    (pictures / "more/1.png").rename(pictures / f"{'long ' * 30}.png")
    predict.main([str(pictures)], model=str(model))
    table = capsys.readouterr().out
    assert "[final]" in table and "…" not in table


def test_more_classes_than_there_are_is_all_of_them(model, pictures, capsys):
    predict.main([str(pictures / "more/1.png")], model=str(model), top_k=99, as_json=True)
    assert len(json.loads(capsys.readouterr().out)[0]["probabilities"]) == 10


def test_every_form_of_a_model_gives_the_same_answer(model, pictures, tmp_path):
    image = open_classifier(str(model)).preprocess(pictures / "more/3.png")
    onnx_file = open_classifier(str(model / "model.onnx")).classify([image])
    for name in ("model.safetensors", "model.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    np.testing.assert_allclose(
        onnx_file, open_classifier(str(tmp_path)).classify([image]), atol=1e-6
    )


def test_an_explanation_is_a_picture_with_a_row_per_picture(model, pictures, tmp_path):
    heights = []
    for number in (1, 3):
        names = [str(pictures / f"more/{index}.png") for index in range(number)]
        predict.main(names, model=str(model), explain=tmp_path / "why.png")
        with Image.open(tmp_path / "why.png") as image:
            assert image.format == "PNG"
            heights.append(image.height)
            assert len(image.convert("L").getcolors(256)) > 20
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.01)


def test_what_is_no_picture_is_named_after_the_answers_to_the_others(model, pictures, capsys):
    (pictures / "notes.png").write_text("not a picture")
    whole = (pictures / "more/4.png").read_bytes()
    (pictures / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as error:
        predict.main([str(pictures)], model=str(model), as_json=True)
    assert len(json.loads(capsys.readouterr().out)) == 5
    assert "notes.png: not an image" in str(error.value)
    assert "half.png: " in str(error.value)


def test_a_model_made_before_says_that_it_is_outdated_and_how_to_renew_it(
    model, pictures, tmp_path, capsys
):
    write_model(
        tmp_path / "old", build("linear", [1, 28, 28], 10, {}), onnx=True, preprocessing=None
    )
    predict.main([str(pictures)], model=str(tmp_path / "old"))
    (warning,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")
    ]
    assert "dvc repro" in warning
    predict.main([str(pictures)], model=str(model))
    assert "warning" not in capsys.readouterr().err


def test_it_says_which_pictures_the_model_was_trained_on(
    model, pictures, digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    name = read_json(model / "model.json")["dataset"]
    images, labels = (torch.from_numpy(array) for array in digits)
    write_dataset(name, "classification", list("0123456789"), train=(images, labels))
    write_split(len(images))
    facts = {"preprocessing": MNIST_LIKE, "split": read_json(SPLIT_JSON)["digest"]}
    write_model(tmp_path / "here", build("linear", [1, 28, 28], 10, {}), onnx=True, **facts)
    for folder, is_other in ((model, True), (tmp_path / "here", False)):
        predict.main([str(pictures)], model=str(folder))
        said = capsys.readouterr().err
        assert f"{name}: linear, trained on 28 × 28 grey pictures" in said
        assert ("trained on another split of the data" in said) == is_other
        assert "champion" not in said


def test_a_folder_per_class_ends_with_how_many_are_right(model, digits, tmp_path, capsys):
    for number in range(20):
        label = 9 if number == 0 else digits[1][number]  # one under a wrong name
        path = tmp_path / "set" / f"digit {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits[0][number, 0]).save(path)
    predict.main([str(tmp_path / "set")], model=str(model))
    assert capsys.readouterr().out.splitlines()[-1] == "19 of 20 right"
    predict.main([str(tmp_path / "set")], model=str(model), as_json=True)
    output = capsys.readouterr()
    assert len(json.loads(output.out)) == 20 and "19 of 20 right" in output.err
    predict.main([str(tmp_path / "set/digit 3")], model=str(model))
    assert "right" not in capsys.readouterr().out


def test_a_file_named_twice_is_answered_twice(model, pictures, capsys):
    picture = str(pictures / "more/1.png")
    predict.main([picture, picture], model=str(model), as_json=True)
    assert len(json.loads(capsys.readouterr().out)) == 2


@pytest.mark.parametrize(
    ("picture", "options", "message"),
    [
        ("nothing.png", {}, "there is no file or folder 'nothing.png'"),
        (".", {}, "holds no picture"),
        ("caf\udce9.png", {}, r"the name 'caf\\udce9.png' is not UTF-8; rename it"),
        ("-", {"as_json": True, "as_csv": True}, "choose one of --json and --csv"),
        ("a.png", {"model": "export"}, "no model at 'export'; name it as models:/"),
        ("a.png", {"model": "a.png"}, "no model at 'a.png'"),
        ("a.png", {"model": "wrong.onnx"}, "wrong.onnx is not an ONNX file"),
    ],
)
def test_mistakes_are_explained(picture, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if picture == "a.png":
        Image.new("L", (28, 28)).save("a.png")
        Path("wrong.onnx").write_text("wrong")
    with pytest.raises(UserError, match=message):
        predict.main([picture], **options)


def test_memory_that_is_too_small_for_a_model_is_no_mistake_in_its_file(model, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("bad allocation")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with pytest.raises(RuntimeError, match="bad allocation"):
        open_classifier(str(model))


def test_a_regression_is_refused(tmp_path):
    facts = {"task": "regression", "classes": ["apples"], "shape": [3], "mean": [0.0], "std": [1.0]}
    write_model(tmp_path, build("linear", [3], 1, {}), onnx=True, **facts)
    with pytest.raises(UserError, match="takes rows of numbers, not pictures"):
        open_classifier(str(tmp_path))


def test_a_picture_on_standard_input_is_answered_without_torch_or_mlflow(model, pictures):
    program = [sys.executable, ROOT / "tests/programs/predict_lightly.py"]
    with (pictures / "more/4.png").open("rb") as picture:
        done = subprocess.run(
            [*program, "-", "--json", "--model", model],
            stdin=picture,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)[0]["class"] == "digit 4"
