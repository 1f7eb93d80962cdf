"""What the demo's page says of a picture; how it looks is tried with a browser."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.demo import FRAMING, write_models
from helpers.models import deployable
from PIL import Image, ImageDraw

from lineup.architectures import build
from lineup.errors import UserError
from lineup.serving.classifier import open_classifier
from lineup.serving.deployable import write_onnx
from stages import demo

pytest.importorskip("gradio")

from gradio.data_classes import ImageData

from lineup.serving.demo_page import MAGNIFIED, build_page, look


@pytest.fixture(scope="module", params=["framed", "whole"])
def models(request, tmp_path_factory):
    """The paths of two models of drawings, framed as MNIST's are, and of two of photos."""
    framing = FRAMING if request.param == "framed" else None
    return write_models(tmp_path_factory.mktemp("models"), framing)


@pytest.fixture
def classifiers(models):
    return {path.stem: open_classifier(str(path)) for path in models}


def test_every_model_answers_with_the_probability_of_every_class(classifiers):
    ink = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(ink).line([(60, 40), (140, 40), (100, 160)], "black", 20)
    seen, *answers = look(ink, list(classifiers.values()))
    assert seen.size == (MAGNIFIED, MAGNIFIED)
    is_inverted = classifiers["mlp"].preprocessing.framing is not None
    assert seen.getpixel((0, 0)) == (0 if is_inverted else 255)
    assert [len(answer) for answer in answers] == [10, 10]
    assert [sum(answer.values()) for answer in answers] == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(
    "blank", [None, Image.new("RGB", (9, 9), "white"), Image.new("RGBA", (9, 9), (0, 0, 0, 0))]
)
def test_an_empty_canvas_has_no_answer(classifiers, blank):
    assert look(blank, list(classifiers.values())) == [None, None, None]


def test_only_a_set_that_declares_a_framing_can_be_drawn_for(classifiers):
    blocks = build_page(classifiers).blocks.values()
    (canvas_tab,) = [block for block in blocks if getattr(block, "label", "") == "Draw"]
    assert canvas_tab.visible == (classifiers["mlp"].preprocessing.framing is not None)


def test_a_dropped_picture_reaches_the_models_as_the_file_that_it_is(classifiers, tmp_path):
    path = tmp_path / "photo.jpg"
    Image.effect_noise((64, 48), 90).convert("RGB").save(path)
    blocks = build_page(classifiers).blocks.values()
    (drop,) = [block for block in blocks if getattr(block, "elem_id", "") == "file"]
    handed_over = drop.preprocess(ImageData(path=str(path), orig_name="photo.jpg"))
    assert handed_over == str(path)


def test_what_is_no_picture_is_told_with_the_reason_and_clears_the_answers(
    classifiers, tmp_path, monkeypatch
):
    warnings = []
    monkeypatch.setattr("gradio.Warning", warnings.append)
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    blocks = build_page(classifiers).blocks.values()
    (drop,) = [block for block in blocks if getattr(block, "elem_id", "") == "file"]
    handed_over = drop.preprocess(ImageData(path=str(path), orig_name="notes.png"))
    assert look(Path(handed_over), list(classifiers.values())) == [None, None, None]
    assert len(warnings) == 1 and "not an image that we read (PNG" in warnings[0]


def test_of_registered_models_those_of_the_newest_ones_size_are_shown(classifiers, capsys):
    first, second, *_ = classifiers.values()
    other = replace(first, metadata=first.metadata | {"shape": [1, 8, 8]}, version="2")
    found = {"old": other, "cnn": replace(second, version="11"), "mlp": replace(first, version="3")}
    assert list(demo._choose_one_size(found)) == ["cnn", "mlp"]
    assert "left out, of another size of pictures: old;" in capsys.readouterr().out
    del found["old"]
    assert demo._choose_one_size(found) == found and not capsys.readouterr().out


def test_models_for_pictures_of_different_sizes_are_refused(models, tmp_path):
    small = deployable(build("linear", [1, 8, 8], 2, {}), classes=["a", "b"], shape=[1, 8, 8])
    write_onnx(small, tmp_path / "small.onnx")
    with pytest.raises(UserError, match="pictures of different sizes"):
        demo.main([str(models[0]), str(tmp_path / "small.onnx")])
