import logging

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import nn

from lineup import architectures
from lineup.evaluation import image_plots, metrics, plots
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
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


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


@pytest.fixture
def path(tmp_path):
    return tmp_path / "plot.png"


@pytest.fixture
def drawn(monkeypatch):
    """Return a list that takes every figure that is drawn."""
    figures, save = [], Figure.savefig

    def remember(figure, *arguments, **settings):
        figures.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize(
    ("classes", "shape"), [(1, (3, 400, 90)), (10, (1, 28, 28)), (100, (3, 20, 45))]
)
def test_samples_of_any_data_make_a_picture_that_fits_a_page(path, classes, shape):
    batch = images(4, *shape)
    samples = {name: batch[: 1 + index % 4] for index, name in enumerate(named(classes))}
    image_plots.draw_samples(samples, path)
    width, height = size(path)
    assert width <= 1300 and height <= 3000


def test_a_class_name_is_written_as_it_is_even_where_no_font_has_it(path, drawn, caplog):
    with caplog.at_level(logging.WARNING):
        for name in NAMES:
            image_plots.draw_samples({name: images(1)}, path)
    assert not caplog.records
    assert "$x_1$" in texts(drawn[3])


@pytest.mark.parametrize("classes", [1, 2, 10, 100])
def test_every_picture_about_classes_is_drawn_for_any_number_of_them(tmp_path, classes):
    probabilities, labels = guesses(300, classes)
    matrix = metrics.confusion(probabilities, labels)
    table = metrics.per_class(probabilities, labels, named(classes), 0.95)
    bins = metrics.calibration(probabilities, labels)
    plots.draw_confusion(matrix, named(classes), tmp_path / "confusion.png")
    plots.draw_per_class(table, tmp_path / "per_class.png")
    plots.draw_calibration(bins, 0.1, tmp_path / "calibration.png")
    for file in tmp_path.iterdir():
        assert min(size(file)) > 150


def test_a_calibration_of_few_images_is_labelled_in_plain_numbers(path, drawn):
    probabilities, labels = guesses(6, 3)
    plots.draw_calibration(metrics.calibration(probabilities, labels), 0.1, path)
    assert not [text for text in texts(drawn[0]) if "$" in text]


def test_a_confusion_without_errors_has_no_scale_of_them(path, drawn):
    plots.draw_confusion(np.diag([3, 4]), ["cat", "dog"], path)
    assert len(drawn[0].axes) == 1
    plots.draw_confusion(np.array([[3, 1], [0, 4]]), ["cat", "dog"], path)
    assert len(drawn[1].axes) == 2


def test_errors_are_drawn_large_or_small_and_their_absence_is_said(tmp_path):
    error = (images(1, 3, 30, 60)[0], NAMES[0], NAMES[4], 0.99999)
    for count in (0, 1, 25, 60):
        image_plots.draw_errors([error] * count, 1000, tmp_path / f"{count}.png")
    heights = [size(tmp_path / f"{count}.png")[1] for count in (0, 1, 25)]
    assert heights == sorted(set(heights))


def test_an_error_shows_the_label_and_the_prediction_with_its_confidence(path, drawn):
    image_plots.draw_errors([(images(1)[0], "cat", "قطة", 0.987)], 10, path)
    written = [text.replace("\u200e", "") for text in texts(drawn[0])]
    assert written == ["✓ cat", "✗ قطة, 99%"]


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
def test_learning_curves_are_drawn_for_any_histories(path, histories):
    plots.draw_learning_curves(histories, path)
    assert size(path)[0] == 1280


@pytest.mark.parametrize("other", [1.0, 0.97, 0.0])
def test_an_accuracy_of_1_or_0_is_drawn_within_the_logit_scale(path, drawn, other):
    histories = {"cnn": history(3, val_accuracy=1.0), "mlp": history(3, val_accuracy=other)}
    plots.draw_learning_curves(histories, path)
    axes = drawn[0].axes[0]
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "logit"
    for line in axes.get_lines():
        assert all(low < value < high for value in line.get_ydata())
    labels = dict(
        zip(axes.get_yticks(), [t.get_text() for t in axes.get_yticklabels()], strict=True)
    )
    assert labels[axes.get_lines()[0].get_ydata()[0]] == "100 %"


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.42), (0.9, 0.9957), (0.984, 0.986), (0.5, 0.5)])
def test_an_accuracy_axis_has_round_ticks_wherever_the_accuracies_lie(path, drawn, low, high):
    histories = {"a": history(2, val_accuracy=low), "b": history(2, val_accuracy=high)}
    plots.draw_learning_curves(histories, path)
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert 2 <= len(labels) <= 9
    assert all(len(label) <= len("99.95 %") for label in labels)


@pytest.mark.parametrize("count", [1, 6, 23])
def test_learning_curves_say_what_only_the_trainings_loss_includes(path, drawn, count):
    histories = {f"simplenet {index}": history(9, val_accuracy=0.9) for index in range(count)}
    plots.draw_learning_curves(histories, path)
    (figure,) = drawn
    figure.draw_without_rendering()
    written = figure.findobj(Text)
    (caption,) = (text for text in written if "label smoothing, dropout" in text.get_text())
    place = caption.get_window_extent()
    assert min(place.x0, place.y0) >= 0 and place.x1 <= figure.bbox.x1
    others = [*figure.axes, *(axes.xaxis.label for axes in figure.axes)]
    others += [text for legend in figure.legends for text in legend.get_texts()]
    assert not any(place.overlaps(other.get_window_extent()) for other in others)


def test_the_line_up_is_drawn_with_one_architecture_and_with_many(tmp_path, drawn):
    row = {
        "architecture": "cnn",
        "test_accuracy": 0.99,
        "test_accuracy_low": 0.98,
        "test_accuracy_high": 0.995,
        "val_accuracy": 0.98,
        "parameters": 29034,
        "time_per_image_us": 12.3,
    }
    rows = [row, *[row | {"p_vs_first": 0.03}] * 11]
    plots.draw_leaderboard([row], 0.95, tmp_path / "one.png")
    plots.draw_leaderboard(rows, 0.95, tmp_path / "many.png")
    assert size(tmp_path / "one.png")[1] < size(tmp_path / "many.png")[1]
    one, many = (texts(figure) for figure in drawn)
    assert {"99.00%", "29,034", "12"} <= set(one) and "p vs. first" not in one
    assert {"99.00%", "29,034", "12", "–", "0.03", "p vs. first"} <= set(many)


def test_the_leaderboard_of_a_regression_shows_losses(path, drawn):
    row = {"architecture": "linear", "test_loss": 3.25, "val_loss": 4}
    plots.draw_leaderboard([row | {"parameters": 8, "time_per_image_us": 1}], 0.95, path)
    assert {"3.25", "8", "1"} <= set(texts(drawn[0]))


def test_the_states_of_all_steps_are_one_picture_whichever_comes_first(path, drawn):
    layers = {"LSTM (1)": torch.randn(20, 1, 30), "Linear (2)": torch.randn(1, 20, 30)}
    image_plots.draw_activations(images(1, 1, 9, 9)[0], layers, path)
    said = texts(drawn[0])
    assert [text for text in said if "20 steps × 30 units" in text] == [
        "LSTM (1)   20 steps × 30 units",
        "Linear (2)   20 steps × 30 units",
    ]


def test_tables_and_predictions_of_a_regression_are_drawn_however_wide(tmp_path, drawn):
    inputs, targets = torch.randn(64, 1000), torch.randn(64, 10)
    plots.draw_table(inputs, targets, named(10), tmp_path / "table.png")
    plots.draw_predictions(targets, targets, named(10), tmp_path / "predictions.png")
    assert "10 targets; 6 shown" in texts(drawn[-1])
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
    activations = record_activations(network, torch.randn(1, 3, 16, 20))
    image_plots.draw_filters(weight, (3, 16, 20), tmp_path / "filters.png")
    image_plots.draw_activations(images(1, 3, 16, 20)[0], activations, tmp_path / "layers.png")
    assert list(activations.values())[-1].shape == (1, 4)
    assert size(tmp_path / "layers.png")[0] == size(tmp_path / "filters.png")[0] == 1280


class Unusual(nn.Module):
    """A layer whose output can't be drawn."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, inputs):
        return self.output(inputs)


def test_what_no_picture_can_show_is_left_out_of_the_activations():
    network = nn.Sequential(
        Unusual(lambda inputs: [inputs]),
        Unusual(lambda found: found[0][None]),
        nn.Flatten(),
        nn.ReLU(),
    )
    assert list(record_activations(network, torch.ones(1, 3, 4, 4))) == ["ReLU (3)"]


def test_a_recurrent_layer_is_recorded_as_steps_batch_hidden_and_no_hook_remains():
    network = architectures.build("rnn", (1, 28, 28), 10, {"hidden": 150, "layers": 3}).eval()
    activations = record_activations(network, torch.randn(128, 1, 28, 28))
    assert [features.shape for features in activations.values()] == [(28, 128, 150), (128, 10)]
    assert not any(module._forward_hooks for module in network.modules())


def test_disagreements_are_drawn_or_their_absence_is_said(tmp_path):
    predictions = {"cnn": NAMES, "mlp": NAMES[::-1]}
    some = list(images(10, 3, 50, 20))
    image_plots.draw_disagreements(some, NAMES, predictions, tmp_path / "some.png")
    image_plots.draw_disagreements([], [], {"cnn": [], "mlp": []}, tmp_path / "none.png")
    assert size(tmp_path / "none.png")[1] < size(tmp_path / "some.png")[1]


def test_of_many_architectures_as_many_disagree_in_the_picture_as_can_be_read(path, drawn):
    predictions = {f"architecture {index}": ["9"] for index in range(20)}
    image_plots.draw_disagreements([images(1)[0]], ["7"], predictions, path)
    assert size(path)[0] <= 1600 and "7 of 20" in texts(drawn[0])


def test_a_classification_shows_the_image_and_its_best_classes_first(path, drawn):
    probabilities = np.array([0.1, 0.7, 0.2], dtype=np.float32)
    row = ("folder/a.png", images(1)[0].numpy(), probabilities)
    image_plots.draw_classifications([row], ["cat", "$dog$", "花"], path, most=2)
    written = texts(drawn[0])
    assert written.index("$dog$") < written.index("花") and "cat" not in written
    assert {"folder/a.png", "70.0 %", "20.0 %"} <= set(written)


def test_the_same_data_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        histories = {"cnn": history(3, val_accuracy=0.5)}
        plots.draw_learning_curves(histories, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_that_fails_leaves_no_file(path):
    with pytest.raises(KeyError):
        plots.draw_learning_curves({"cnn": [{"epoch": 1}]}, path)
    assert not list(path.parent.iterdir())
