import logging
from contextlib import contextmanager

import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from lineup import architectures
from lineup.evaluation import metrics
from lineup.evaluation import plots as figures
from lineup.evaluation.activations import record_activations

pytestmark = pytest.mark.filterwarnings("error")  # missing glyphs must not spam
NAMES = [
    "Äpfel & Birnen",
    "花",
    "кошка",
    "$x_1$",
    "قطة",
    "🙂",
    "a\\frac",
    "a very long name of a class indeed",
    "",
    "9",
]


def named(count):
    return [f"{NAMES[index % len(NAMES)]} {index}" for index in range(count)]


def images(count, channels=1, height=28, width=28):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8
    )


def guesses(count, classes):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(torch.randn(count, classes, generator=generator), 1)
    return probabilities, torch.randint(0, classes, (count,), generator=generator)


def size(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def history(epochs, **metrics):
    row = {"train_loss": 0.5, "val_loss": 0.4, **metrics}
    return [{"epoch": epoch, **row} for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize(
    ("classes", "shape"), [(1, (3, 400, 90)), (10, (1, 28, 28)), (100, (3, 20, 45))]
)
def test_samples_of_any_data_make_a_picture_that_fits_a_page(tmp_path, classes, shape):
    batch = images(4, *shape)
    figures.draw_samples(
        {name: batch[: 1 + index % 4] for index, name in enumerate(named(classes))},
        tmp_path / "a.png",
    )
    width, height = size(tmp_path / "a.png")
    assert width <= 1300 and height <= 3000


def test_a_class_name_is_written_as_it_is_even_where_no_font_has_it(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for name in NAMES:
            figures.draw_samples({name: images(1)}, tmp_path / "a.png")
    assert not caplog.records


@pytest.mark.parametrize("classes", [1, 2, 10, 100])
def test_every_picture_about_classes_is_drawn_for_any_number_of_them(tmp_path, classes):
    probabilities, labels = guesses(300, classes)
    figures.draw_confusion(
        metrics.confusion(probabilities, labels), named(classes), tmp_path / "confusion.png"
    )
    figures.draw_per_class(
        metrics.per_class(probabilities, labels, named(classes), 0.95), tmp_path / "per_class.png"
    )
    figures.draw_calibration(
        metrics.calibration(probabilities, labels), 0.1, tmp_path / "calibration.png"
    )
    for path in tmp_path.iterdir():
        assert min(size(path)) > 150


def test_mistakes_are_drawn_large_or_small_and_their_absence_is_said(tmp_path):
    mistake = (images(1, 3, 30, 60)[0], NAMES[0], NAMES[4], 0.99999)
    for count in (0, 1, 25, 60):
        figures.draw_errors([mistake] * count, 1000, tmp_path / f"{count}.png")
    assert size(tmp_path / "0.png")[1] < size(tmp_path / "1.png")[1] < size(tmp_path / "25.png")[1]


@pytest.mark.parametrize(
    "histories",
    [
        {"cnn": history(1, val_accuracy=0.5)},
        {"cnn": history(3, val_accuracy=1.0), "mlp": history(2, val_accuracy=0.0)},
        {"linear": history(300, val_r2=-3.0)},
        {"linear": history(2)},
        {f"a{index}": pd.DataFrame(history(5, val_accuracy="0.9")) for index in range(23)},
    ],
    ids=["one epoch", "perfect and hopeless", "regression", "loss only", "many, as text"],
)
def test_learning_curves_are_drawn_for_any_histories(tmp_path, histories):
    figures.draw_learning_curves(histories, tmp_path / "curves.png")
    assert size(tmp_path / "curves.png")[0] == 1280


@pytest.fixture
def drawn(monkeypatch):
    """Return a list that takes every figure that is drawn."""
    figures_drawn, drawing = [], figures.drawing

    @contextmanager
    def remember(*arguments, **settings):
        with drawing(*arguments, **settings) as figure:
            figures_drawn.append(figure)
            yield figure

    monkeypatch.setattr(figures, "drawing", remember)
    return figures_drawn


@pytest.mark.parametrize("count", [1, 6, 23])
def test_learning_curves_say_what_only_the_trainings_loss_includes(tmp_path, drawn, count):
    histories = {f"simplenet {index}": history(9, val_accuracy=0.9) for index in range(count)}
    figures.draw_learning_curves(histories, tmp_path / "curves.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    texts = figure.findobj(Text)
    (caption,) = (text for text in texts if "label smoothing, dropout" in text.get_text())
    place = caption.get_window_extent()
    assert min(place.x0, place.y0) >= 0 and place.x1 <= figure.bbox.x1
    others = [*figure.axes, *(axes.xaxis.label for axes in figure.axes)]
    others += [text for legend in figure.legends for text in legend.get_texts()]
    assert not any(place.overlaps(other.get_window_extent()) for other in others)


def test_the_line_up_is_drawn_with_one_architecture_and_with_many(tmp_path):
    row = {
        "architecture": "cnn",
        "test_accuracy": 0.99,
        "test_accuracy_low": 0.98,
        "test_accuracy_high": 0.995,
    }
    row |= {"val_accuracy": 0.98, "parameters": 29034, "time_per_image_us": 12.3}
    figures.draw_leaderboard([row], 0.95, tmp_path / "one.png")
    figures.draw_leaderboard([row, *[row | {"p_vs_first": 0.03}] * 11], 0.95, tmp_path / "many.png")
    assert size(tmp_path / "one.png")[1] < size(tmp_path / "many.png")[1]


def test_tables_and_predictions_of_a_regression_are_drawn_however_wide(tmp_path):
    inputs, targets = torch.randn(64, 1000), torch.randn(64, 10)
    figures.draw_table(inputs, targets, named(10), tmp_path / "table.png")
    figures.draw_predictions(targets, targets, named(10), tmp_path / "predictions.png")
    assert max(*size(tmp_path / "table.png"), *size(tmp_path / "predictions.png")) <= 1300


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("linear", {}),
        ("mlp", {"hidden": [16]}),
        ("cnn", {"channels": [4, 8]}),
        ("rnn", {"hidden": 15, "layers": 2}),
    ],
)
def test_filters_and_activations_are_drawn_for_every_kind_of_network(
    tmp_path, name, hyperparameters
):
    network = architectures.build(name, (3, 16, 20), 4, hyperparameters).eval()
    weight = next(weight for weight in network.parameters() if weight.ndim > 1)
    figures.draw_filters(weight, (3, 16, 20), tmp_path / "filters.png")
    activations = record_activations(network, torch.randn(1, 3, 16, 20))
    figures.draw_activations(images(1, 3, 16, 20)[0], activations, tmp_path / "activations.png")
    assert list(activations.values())[-1].shape == (1, 4)
    assert size(tmp_path / "activations.png")[0] == 1280


def test_a_hook_sees_a_recurrent_layer_as_steps_batch_hidden_and_is_removed():
    network = architectures.build("rnn", (1, 28, 28), 10, {"hidden": 150, "layers": 3}).eval()
    activations = record_activations(network, torch.randn(128, 1, 28, 28))
    assert [features.shape for features in activations.values()] == [(28, 128, 150), (128, 10)]
    assert not any(module._forward_hooks for module in network.modules())


def test_disagreements_are_drawn_or_their_absence_is_said(tmp_path):
    answers = {"cnn": NAMES, "mlp": NAMES[::-1]}
    figures.draw_disagreements(list(images(10, 3, 50, 20)), NAMES, answers, tmp_path / "some.png")
    figures.draw_disagreements([], [], {"cnn": [], "mlp": []}, tmp_path / "none.png")
    assert size(tmp_path / "none.png")[1] < size(tmp_path / "some.png")[1]


def test_the_same_data_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        figures.draw_learning_curves(
            {"cnn": history(3, val_accuracy=0.5)}, tmp_path / f"{name}.png"
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(KeyError):
        figures.draw_learning_curves({"cnn": [{"epoch": 1}]}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
