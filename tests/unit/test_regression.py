"""Regression is a task of its own: squared error, its own metrics, and gradient descent as one writes it by hand."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from helpers.project import Project, copy_sources
from helpers.training import recipe, run, weights
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from lineup import architectures
from lineup.errors import UserError
from lineup.evaluation import metrics
from lineup.evaluation.scores import regression_scores
from lineup.files import read_json
from lineup.tensors import read_tensors
from lineup.training.batches import Batches
from lineup.training.trainer import Trainer

YIELDS = Path(__file__).parents[2] / "data" / "yields" / "yields.csv"
STEPS = 100


def yields():
    """Return temperature, rainfall and humidity (5, 3) of five regions, and their yields of both fruits (5, 2)."""
    with YIELDS.open() as file:
        rows = list(csv.DictReader(file))
    values = [[float(value) for value in row.values()] for row in rows]
    targets = [list(rows[0]).index(name) for name in ("apples", "oranges")]
    inputs = [column for column in range(len(rows[0])) if column not in targets]
    table = torch.tensor(values)
    return table[:, inputs], table[:, targets]


def make(name="linear", hyperparameters=None, **changes):
    inputs, targets = yields()
    part = Batches(inputs, targets, torch.zeros(1), torch.ones(1))
    torch.manual_seed(4)
    model = architectures.build(name, [3], 2, hyperparameters or {})
    return Trainer(
        model, part, part, recipe(**{"batch_size": 5, "learning_rate": 1e-5, **changes}), seed=2
    )


def by_hand(weight, bias):
    """Yield weight and bias after each step of the tutorial's own gradient descent."""
    inputs, targets = yields()
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in (weight, bias))
    while True:
        difference = inputs @ weight.t() + bias - targets
        loss = (difference * difference).sum() / difference.numel()
        loss.backward()
        with torch.no_grad():
            for tensor in (weight, bias):
                tensor -= tensor.grad * 1e-5
                tensor.grad.zero_()
        yield weight.detach().clone(), bias.detach().clone()


def test_the_table_is_the_tutorials():
    inputs, targets = yields()
    assert inputs.tolist() == [
        [73, 67, 43],
        [91, 88, 64],
        [87, 134, 58],
        [102, 43, 37],
        [69, 96, 70],
    ]
    assert targets.tolist() == [[56, 70], [81, 101], [119, 133], [22, 37], [103, 119]]


def test_linear_on_yields_follows_gradient_descent_written_by_hand_step_by_step():
    """Equal to float32's rounding: sums run in another order, and the fused step may round w − lr·g once, not twice."""
    loop = make(epochs=STEPS)
    layer = loop.model[1]
    descent = by_hand(layer.weight, layer.bias)
    losses = []
    for step in range(STEPS):
        weight, bias = next(
            descent
        )  # before the loop's step: it starts from the loop's first weights
        list(loop._fit_epoch())
        assert torch.allclose(layer.weight, weight, rtol=1e-5, atol=1e-7), step
        assert torch.allclose(layer.bias, bias, rtol=1e-5, atol=1e-7), step
        losses.append(loop.progress.history[-1]["train_loss"])
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 10


def test_one_step_from_the_same_gradient_is_the_hand_written_one_bit_for_bit():
    loop = make(epochs=1)
    layer = loop.model[1]
    (optimizer,) = loop.optimizers
    optimizer.step = lambda: None  # leaves the gradient for us to look at
    loop._train_step(torch.arange(5))
    gradient, before = layer.weight.grad.clone(), layer.weight.detach().clone()
    inputs, targets = yields()
    difference = (inputs @ before.t() + layer.bias.detach() - targets).double()
    by_formula = (
        2 * difference.t() @ inputs.double() / difference.numel()
    )  # a mean over all 10 elements, not over rows
    assert torch.allclose(gradient.double(), by_formula, rtol=1e-5)
    del optimizer.step
    optimizer.step()
    twice_rounded = before - gradient * 1e-5
    once_rounded = (before.double() - 1e-5 * gradient.double()).float()
    assert ((layer.weight == twice_rounded) | (layer.weight == once_rounded)).all()


def test_the_loss_is_the_mean_over_all_elements():
    loop = make()
    outputs, targets = torch.randn(5, 2), torch.randn(5, 2)
    assert torch.allclose(loop._loss(outputs, targets), (outputs - targets).square().sum() / 10)


def test_metrics_are_those_of_scikit_learn():
    loop = make(epochs=1)
    row = run(loop).epochs[0]
    inputs, targets = yields()
    outputs = loop.model(inputs).detach()
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
    loop = make(batch_size=3, learning_rate=1e-12, epochs=1)
    row = run(loop).epochs[0]
    assert row["train_loss"] == pytest.approx(row["val_loss"], rel=1e-5)


def test_a_monitor_of_classification_is_refused():
    with pytest.raises(
        UserError, match=r"train\.monitor = 'val_accuracy' is no metric of this task; try val_loss"
    ):
        make(monitor="val_accuracy")


def test_by_default_the_lowest_loss_chooses_the_best_epoch():
    loop = make(monitor="auto", mode="auto", epochs=3)
    run(loop)
    lowest = min(row["val_loss"] for row in loop.progress.history)
    assert loop.progress.best_row["val_loss"] == lowest


def test_r2_can_choose_the_best_epoch():
    loop = make(monitor="val_r2", mode="max", epochs=3)
    run(loop)
    highest = max(row["val_r2"] for row in loop.progress.history)
    assert loop.progress.best_row["val_r2"] == highest


def test_an_mlp_learns_noise_by_heart():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (
        torch.randn(64, 1000, generator=generator),
        torch.randn(64, 10, generator=generator),
    )
    part = Batches(inputs, targets, torch.zeros(1), torch.ones(1))
    torch.manual_seed(0)
    model = architectures.build("mlp", [1000], 10, {"hidden": [100], "batch_norm": False})
    loop = Trainer(
        model,
        part,
        part,
        recipe(optimizer="adam", learning_rate=1e-3, epochs=60, batch_size=64),
        seed=0,
    )
    before = weights(loop.model)
    rows = run(loop).epochs
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] / 20 and rows[-1]["val_r2"] > 0.95
    assert not torch.equal(weights(loop.model), before)


@pytest.mark.parametrize("dataset", ["yields", "noise"])
def test_the_stages_train_on_a_table_and_say_nothing_of_classes(dataset, tmp_path):
    copy_sources(tmp_path)
    project = Project(tmp_path)
    project.set(dataset=dataset, model="linear", architectures=["linear"], train__epochs=2)
    for stage in ("fetch", "split", "train linear"):
        output = project.run("python", "-m", *f"stages.{stage}".split(), LINEUP_TRACKING="off")
        assert "accuracy" not in output.stdout + output.stderr
    folder = tmp_path / "models" / "linear"
    description = read_json(folder / "model.json")
    assert description["task"] == "regression" and set(description["validation"]) == {
        "val_loss",
        "val_mae",
        "val_r2",
    }
    assert "accuracy" not in (folder / "history.csv").read_text()
    shapes = {tuple(tensor.shape) for tensor in read_tensors(folder / "model.safetensors").values()}
    assert shapes == ({(2, 3), (2,)} if dataset == "yields" else {(10, 1000), (10,)})


def test_the_stage_refuses_a_monitor_on_accuracy_with_one_line_and_exit_code_2(tmp_path):
    copy_sources(tmp_path)
    project = Project(tmp_path)
    project.set(dataset="yields", model="linear", architectures=["linear"], models__linear={})
    params = yaml.safe_load(project.read("params.yaml"))
    params["train"] |= {"monitor": "val_accuracy", "mode": "max"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in ("fetch", "split"):
        project.run("python", "-m", f"stages.{stage}")
    result = project.run(
        "python", "-m", "stages.train", "linear", check=False, LINEUP_TRACKING="off"
    )
    assert (
        result.returncode == 2
        and "val_accuracy" in result.stderr
        and "Traceback" not in result.stderr
    )
    assert not (tmp_path / "models").exists()
