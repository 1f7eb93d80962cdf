"""The optimizers take the steps that their papers and torch's own take; schedules are torch's."""

import subprocess
import sys

import pytest
import torch
from helpers.project import ROOT
from helpers.training import make_trainer, recipe, run, weights
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

from lineup import architectures
from lineup.training.batches import shuffle
from lineup.training.optimizers import learning_rate_at, make_optimizers, newton_schulz

# --- optimizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, 0.01)),
        ({"optimizer": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
        (
            {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
            lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
        ),
        ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, 0.01)),
        ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0)),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adamw"],
)
def test_each_optimizer_takes_the_steps_of_torchs_own(settings, reference):
    trainer = make_trainer(learning_rate=0.01, epochs=3, **settings)
    torch.manual_seed(1)
    model = architectures.build("linear", (1, 6, 6), 4, {})
    optimizer = reference(model.parameters())
    for epoch in range(3):
        for index in shuffle(40, 5, epoch).split(16):
            images, labels = trainer.train.batch(index)
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    run(trainer)
    assert torch.allclose(weights(trainer.model), weights(model), atol=1e-5)
    assert not torch.allclose(weights(trainer.model), weights(make_trainer().model), atol=1e-3)


def test_training_does_not_load_torchs_compiler():
    script = """
import sys
from helpers.training import make_trainer, run
for name in ("sgd", "adam", "adamw", "muon"):
    trainer = make_trainer(name="mlp", hyperparameters={"hidden": [8]}, optimizer=name, clip_norm=1)
    run(trainer)
    trainer.restore(*trainer.state())
assert "torch._dynamo" not in sys.modules  # two seconds
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT / "tests", check=True)


def test_nesterov_without_momentum_is_plain_sgd():
    plain, odd = make_trainer(nesterov=False), make_trainer(nesterov=True)
    run(plain), run(odd)
    assert torch.equal(weights(plain.model), weights(odd.model))


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_steps_as_torchs_own_on_hidden_matrices_and_as_adamw_elsewhere(nesterov):
    torch.manual_seed(0)
    layers = [(12, 20), (20, 8), (8, 4)]
    ours, theirs = (nn.Sequential(*[nn.Linear(*sizes) for sizes in layers]) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    start = [weight.detach().clone() for weight in ours.parameters()]
    settings = {"momentum": 0.9, "nesterov": nesterov}
    optimizers = make_optimizers(ours, recipe(optimizer="muon", learning_rate=0.01, **settings))
    hidden = [theirs[0].weight, theirs[1].weight]
    others = [theirs[0].bias, theirs[1].bias, *theirs[2].parameters()]
    settings |= {"weight_decay": 0, "adjust_lr_fn": "match_rms_adamw"}
    optimizers.append(torch.optim.Muon(hidden, 0.01, **settings))
    optimizers.append(torch.optim.AdamW(others, 0.01, weight_decay=0))
    for _ in range(5):
        for weight, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
            weight.grad = torch.randn(weight.shape)
            reference.grad = weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for before, weight, reference in zip(
        start, ours.parameters(), theirs.parameters(), strict=True
    ):
        difference, expected = weight - reference, reference - before
        assert difference.norm() / expected.norm() < 0.03  # torch's own rounds to bfloat16


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_newton_schulz_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left @ torch.diag(torch.linspace(0.2, 5, min(shape))) @ right
    inside = left.T @ newton_schulz(matrix) @ right.T
    assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-5)
    assert inside.diagonal().min() > 0.65 and inside.diagonal().max() < 1.25
    assert torch.equal(newton_schulz(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.parametrize("outputs", [4, 40])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_sees_a_convolution_as_a_row_per_output_channel(memory_format, outputs):
    model = nn.Sequential(nn.Conv2d(3, outputs, 3, bias=False), nn.Flatten(), nn.Linear(outputs, 2))
    weight = model.to(memory_format=memory_format)[0].weight
    before, gradient = weight.detach().clone(), torch.randn(outputs, 3, 3, 3)
    settings = recipe(optimizer="muon", learning_rate=0.1, momentum=0, weight_decay=0.5)
    muon, _ = make_optimizers(model, settings)
    weight.grad = gradient.clone()
    muon.step()
    direction = newton_schulz(gradient.reshape(outputs, 27)).view_as(gradient)
    step = 0.1 * 0.2 * max(outputs, 27) ** 0.5 * direction
    assert torch.allclose(weight, before * (1 - 0.1 * 0.5) - step, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_weight_decay_pulls_matrices_towards_zero_and_spares_vectors(name):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    settings = recipe(optimizer=name, weight_decay=0.1, learning_rate=0.5)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in make_optimizers(model, settings):
        optimizer.step()
    for key, after in model.named_parameters():
        if after.ndim == 1:
            assert torch.equal(after, before[key])
        elif name == "adam":  # scales the gradient, decay included, to a step of the learning rate
            assert torch.allclose(after, before[key] - 0.5 * before[key].sign(), atol=1e-4)
        else:
            assert torch.allclose(after, before[key] * (1 - 0.5 * 0.1))


# --- schedules ------------------------------------------------------------------------------------


def rates(**changes):
    """Return the learning rate of each step of six epochs of seven steps."""
    settings = recipe(epochs=6, learning_rate=0.5, **changes)
    return [learning_rate_at(settings, step, steps_per_epoch=7) for step in range(42)]


def rates_of_torch(schedule, **settings):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.5)
    scheduler = schedule(optimizer, **settings)
    found = []
    for _ in range(42):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_constant_step_and_cosine_are_torchs():
    assert rates(schedule="constant") == [0.5] * 42
    expected = rates_of_torch(StepLR, step_size=2 * 7, gamma=0.3)
    assert rates(schedule="step", step_epochs=2, step_factor=0.3) == pytest.approx(expected)
    assert rates(schedule="cosine") == pytest.approx(rates_of_torch(CosineAnnealingLR, T_max=42))


@pytest.mark.parametrize("warmup", [0.2, 0.5])
def test_one_cycle_is_torchs_with_its_last_rate_at_zero(warmup):
    peak = round(warmup * 42)
    settings = {"total_steps": 43, "pct_start": (peak + 1) / 43, "final_div_factor": 1e30}
    expected = rates_of_torch(OneCycleLR, max_lr=0.5, cycle_momentum=False, **settings)
    found = rates(schedule="one_cycle", warmup=warmup)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found[0] == pytest.approx(0.5 / 25) and found[-1] < 0.003
    assert found[peak] == max(found) == 0.5


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_the_shortest_training_has_a_rate_above_zero(schedule, epochs):
    settings = recipe(schedule=schedule, epochs=epochs)
    assert all(learning_rate_at(settings, step, 1) > 0 for step in range(epochs))


def test_the_schedule_drives_the_optimizer_and_the_history():
    trainer = make_trainer(schedule="step", step_epochs=1, step_factor=0.1, epochs=3)
    rows = run(trainer).epochs
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.01, 0.001])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)
