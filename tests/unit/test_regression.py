"""Regression is a task of its own: squared error, its metrics, gradient descent as by hand."""

import csv
import shutil

import pytest
import torch
from helpers.project import ROOT, Project
from helpers.training import recipe, run, weights
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from lineup import architectures
from lineup.errors import UserError
from lineup.evaluation import metrics
from lineup.evaluation.scores import regression_scores
from lineup.model_info import ModelInfo
from lineup.params import load_params
from lineup.task import Task
from lineup.tensors import read_tensors
from lineup.training.batches import Batches
from lineup.training.setup import set_up
from lineup.training.trainer import Epoch, Trainer
from stages import fetch, split, train

STEPS = 100


def yields():
    """Return the weather (5, 3) of five regions, and their yields of both fruits (5, 2)."""
    with (ROOT / "data" / "yields" / "yields.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [[float(value) for value in row.values()] for row in rows]
    targets = [list(rows[0]).index(name) for name in ("apples", "oranges")]
    inputs = [column for column in range(len(rows[0])) if column not in targets]
    table = torch.tensor(values)
    return table[:, inputs], table[:, targets]


def make(inputs=None, targets=None, name="linear", hyperparameters=None, **changes):
    """Return a trainer on the yields, or on the table given, all rows at once."""
    if inputs is None:
        inputs, targets = yields()
    part = Batches(inputs, targets, torch.zeros(1), torch.ones(1))
    torch.manual_seed(4)
    shape, outputs = inputs.shape[1:], targets.shape[1]
    model = architectures.build(name, shape, outputs, hyperparameters or {})
    settings = {"batch_size": len(inputs), "learning_rate": 1e-5} | changes
    return Trainer(model, part, part, recipe(**settings), seed=2)


def by_hand(weight, bias):
    """Yield weight and bias, and again after each step of the tutorial's own gradient descent."""
    inputs, targets = yields()
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in (weight, bias))
    while True:
        yield weight.detach().clone(), bias.detach().clone()
        difference = inputs @ weight.t() + bias - targets
        loss = (difference * difference).sum() / difference.numel()
        loss.backward()
        with torch.no_grad():
            for tensor in (weight, bias):
                tensor -= tensor.grad * 1e-5
                tensor.grad.zero_()


def test_linear_on_yields_follows_gradient_descent_written_by_hand_step_by_step():
    """Equal to float32's rounding: sums run in another order, and the fused step may round
    w − lr·g once, not twice.
    """
    trainer = make(epochs=STEPS)
    layer = trainer.model[1]
    descent = by_hand(layer.weight, layer.bias)
    next(descent)
    losses = []
    for event in trainer.fit():  # an epoch is a step
        if isinstance(event, Epoch):
            weight, bias = next(descent)
            assert torch.allclose(layer.weight, weight, rtol=1e-5, atol=1e-7), len(losses)
            assert torch.allclose(layer.bias, bias, rtol=1e-5, atol=1e-7), len(losses)
            losses.append(event.row["train_loss"])
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 10


def test_one_step_from_the_same_gradient_is_the_hand_written_one_bit_for_bit():
    trainer = make(epochs=1)
    layer = trainer.model[1]
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    next(trainer.fit())
    gradient, after = layer.weight.grad, layer.weight
    inputs, targets = yields()
    difference = (inputs @ before.t() + bias - targets).double()
    expected = 2 * difference.t() @ inputs.double() / 10  # a mean over all elements, not over rows
    assert torch.allclose(gradient.double(), expected, rtol=1e-5)
    twice_rounded = before - gradient * 1e-5
    once_rounded = (before.double() - 1e-5 * gradient.double()).float()
    assert ((after == twice_rounded) | (after == once_rounded)).all()


def test_metrics_are_those_of_scikit_learn():
    trainer = make(epochs=1)
    (row,) = run(trainer).epochs
    inputs, targets = yields()
    outputs = trainer.model(inputs).detach()
    assert list(row) == ["epoch", "train_loss", "val_loss", "val_mae", "val_r2", "learning_rate"]
    assert row["val_loss"] == pytest.approx(mean_squared_error(targets, outputs))
    assert row["val_mae"] == pytest.approx(mean_absolute_error(targets, outputs))
    assert row["val_r2"] == pytest.approx(r2_score(targets, outputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [2, 10, 1000])
@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, 0.0])
def test_training_and_evaluation_agree_on_r2_also_for_a_constant_target(value, rows, dtype):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(rows, 3, generator=generator, dtype=dtype)
    targets[:, 1] = value
    outputs = targets + torch.randn(rows, 3, generator=generator, dtype=dtype)
    for constant, expected in ((outputs[:, 1], 0), (targets[:, 1], 1)):
        outputs[:, 1] = constant
        others = r2_score(targets[:, ::2], outputs[:, ::2])
        in_training = regression_scores(outputs, targets)["r2"]
        assert in_training == pytest.approx((2 * others + expected) / 3, rel=1e-4)
        assert metrics.regression(outputs, targets)["r2"] == metrics.significant(in_training)


def test_r2_of_a_single_row_is_0_in_training_unless_it_is_exact():
    targets = torch.tensor([[3.0, 4.0]])
    assert regression_scores(targets + 1, targets)["r2"] == 0
    assert regression_scores(targets, targets)["r2"] == 1


def test_a_short_last_batch_counts_by_its_rows():
    (row,) = run(make(batch_size=3, learning_rate=1e-12, epochs=1)).epochs
    assert row["train_loss"] == pytest.approx(row["val_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("monitor", "column", "best"), [("auto", "val_loss", min), ("val_r2", "val_r2", max)]
)
def test_the_lowest_loss_chooses_the_best_epoch_or_the_highest_r2(monitor, column, best):
    trainer = make(monitor=monitor, epochs=3)
    rows = run(trainer).epochs
    assert trainer.progress.best_row[column] == best(row[column] for row in rows)


def test_an_mlp_learns_noise_by_heart():
    generator = torch.Generator().manual_seed(0)
    table = (torch.randn(64, count, generator=generator) for count in (1000, 10))
    network = {"name": "mlp", "hyperparameters": {"hidden": [100], "batch_norm": False}}
    trainer = make(*table, **network, optimizer="adam", learning_rate=1e-3, epochs=60)
    before = weights(trainer.model)
    first, *_, last = run(trainer).epochs
    assert last["val_loss"] < first["val_loss"] / 20 and last["val_r2"] > 0.95
    assert not torch.equal(weights(trainer.model), before)


@pytest.fixture
def table_project(tmp_path, monkeypatch):
    """Return a function that makes a project with a table, fetched and split, to train linear."""
    monkeypatch.setenv("LINEUP_TRACKING", "off")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def make_project(dataset, **settings):
        shutil.copy(ROOT / "params.yaml", tmp_path)
        shutil.copytree(ROOT / "data" / dataset, tmp_path / "data" / dataset)
        Project(tmp_path).set(
            dataset=dataset, model="linear", architectures=["linear"], models__linear={}, **settings
        )
        fetch.main()
        split.main()
        return tmp_path

    yield make_project
    torch.set_deterministic_debug_mode("default")


@pytest.mark.parametrize(
    ("dataset", "shapes"), [("yields", {(2, 3), (2,)}), ("noise", {(10, 1000), (10,)})]
)
def test_the_stages_train_on_a_table_and_say_nothing_of_classes(
    dataset, shapes, table_project, capsys
):
    folder = table_project(dataset, train__epochs=2) / "models" / "linear"
    train.main("linear")
    assert "accuracy" not in "".join(capsys.readouterr())
    info = ModelInfo.read(folder)
    assert info.task is Task.REGRESSION
    assert set(info.validation) == {"val_loss", "val_mae", "val_r2"}
    assert "accuracy" not in (folder / "history.csv").read_text()
    tensors = read_tensors(folder / "model.safetensors")
    assert {tuple(tensor.shape) for tensor in tensors.values()} == shapes


def test_a_table_is_trained_on_as_exactly_as_it_is_written_unless_somebody_asks(
    table_project, monkeypatch
):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    folder = table_project("yields", train__epochs=1)
    assert set_up(load_params(), "linear").trainer.recipe.precision == "float32"
    Project(folder).set(train__precision="bfloat16")
    assert set_up(load_params(), "linear").trainer.recipe.precision == "bfloat16"


def test_a_monitor_of_classification_is_refused_and_nothing_is_written(table_project):
    folder = table_project("yields", train__monitor="val_accuracy")
    message = r"train\.monitor = 'val_accuracy' is no metric of this task; try val_loss"
    with pytest.raises(UserError, match=message):
        train.main("linear")
    assert not (folder / "models").exists()
