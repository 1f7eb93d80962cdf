"""The training loop: every part of the recipe does what its name says, and the numbers are right."""

import itertools
import math

import pytest
import torch
from helpers.training import make_trainer as make
from helpers.training import pictures, recipe, run, weights
from torch import nn
from torch.nn import functional

from lineup import architectures
from lineup.errors import UserError
from lineup.evaluation.inference import evaluation_batch
from lineup.evaluation.scores import classification_scores
from lineup.training import trainer as training
from lineup.training.batches import Batches, shuffle
from lineup.training.console import ema_warning
from lineup.training.device import resolve_device, resolve_precision
from lineup.training.optimizers import learning_rate_at, make_optimizers, newton_schulz
from lineup.training.tensorboard import TensorBoard
from lineup.training.trainer import Epoch, Trainer

# --- optimizers -------------------------------------------------------------------------------------------------------


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
    loop = make(learning_rate=0.01, epochs=3, **settings)
    torch.manual_seed(1)
    model = architectures.build("linear", (1, 6, 6), 4, {})
    optimizer = reference(model.parameters())
    for epoch in range(3):
        for index in shuffle(40, 5, epoch).split(16):
            images, labels = loop.train.batch(index)
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    run(loop)
    assert torch.allclose(weights(loop.model), weights(model), atol=1e-5)
    assert not torch.allclose(weights(loop.model), weights(make().model), atol=1e-3)


def test_nesterov_without_momentum_is_plain_sgd():
    plain, odd = make(nesterov=False), make(nesterov=True)
    run(plain), run(odd)
    assert torch.equal(weights(plain.model), weights(odd.model))


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_takes_the_steps_of_torchs_own_on_all_matrices_but_the_last_and_adamws_elsewhere(
    nesterov,
):
    torch.manual_seed(0)
    ours, theirs = (
        nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 8), nn.Linear(8, 4)) for _ in range(2)
    )
    theirs.load_state_dict(ours.state_dict())
    start = {name: weight.clone() for name, weight in ours.state_dict().items()}
    settings = {"momentum": 0.9, "nesterov": nesterov}
    optimizers = make_optimizers(ours, recipe(optimizer="muon", learning_rate=0.01, **settings))
    hidden, others = (
        [theirs[0].weight, theirs[1].weight],
        [theirs[0].bias, theirs[1].bias, *theirs[2].parameters()],
    )
    settings |= {"weight_decay": 0, "adjust_lr_fn": "match_rms_adamw"}
    references = [
        torch.optim.Muon(hidden, 0.01, **settings),
        torch.optim.AdamW(others, 0.01, weight_decay=0),
    ]
    for _ in range(5):
        for weight, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
            weight.grad = torch.randn(weight.shape)
            reference.grad = weight.grad.clone()
        for optimizer in optimizers + references:
            optimizer.step()
    for (name, weight), reference in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        moved, expected = weight - start[name], reference - start[name]
        assert float((moved - expected).norm() / expected.norm()) < 0.03, (
            name
        )  # torch's own rounds to bfloat16


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonalisation_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left @ torch.diag(torch.linspace(0.2, 5, min(shape))) @ right
    inside = left.T @ newton_schulz(matrix) @ right.T
    assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-5)
    assert float(inside.diagonal().min()) > 0.65 and float(inside.diagonal().max()) < 1.25
    assert torch.equal(newton_schulz(torch.zeros(shape)), torch.zeros(shape))


@pytest.mark.parametrize("outputs", [4, 40])
@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_sees_a_convolution_as_a_row_per_output_channel(channels_last, outputs):
    model = nn.Sequential(nn.Conv2d(3, outputs, 3, bias=False), nn.Flatten(), nn.Linear(outputs, 2))
    model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    before, gradient = model[0].weight.detach().clone(), torch.randn(outputs, 3, 3, 3)
    muon, _ = make_optimizers(
        model, recipe(optimizer="muon", learning_rate=0.1, momentum=0, weight_decay=0.5)
    )
    model[0].weight.grad = gradient.clone()
    muon.step()
    step = (
        0.1
        * 0.2
        * max(outputs, 27) ** 0.5
        * newton_schulz(gradient.reshape(outputs, 27)).view_as(gradient)
    )
    assert torch.allclose(model[0].weight, before * (1 - 0.1 * 0.5) - step, atol=1e-6)


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
        elif (
            name == "adam"
        ):  # the decay joins the gradient, which Adam scales to a step of the learning rate
            assert torch.allclose(after, before[key] - 0.5 * before[key].sign(), atol=1e-4)
        else:
            assert torch.allclose(after, before[key] * (1 - 0.5 * 0.1))


# --- schedules --------------------------------------------------------------------------------------------------------


def rates(**changes):
    settings = recipe(epochs=6, learning_rate=0.5, **changes)
    return [learning_rate_at(settings, step, steps_per_epoch=7) for step in range(42)]


def torchs(make_schedule):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.5)
    schedule = make_schedule(optimizer)
    found = []
    for _ in range(42):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_constant_schedule_is_constant():
    assert rates(schedule="constant") == [0.5] * 42


def test_the_step_schedule_is_torchs():
    expected = torchs(lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2 * 7, gamma=0.3))
    assert rates(schedule="step", step_epochs=2, step_factor=0.3) == pytest.approx(expected)


def test_the_cosine_schedule_is_torchs():
    expected = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=42))
    assert rates(schedule="cosine") == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.2, 0.5])
def test_one_cycle_is_torchs_with_its_last_rate_at_zero(warmup):
    peak = round(warmup * 42)
    expected = torchs(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o,
            0.5,
            total_steps=43,
            pct_start=(peak + 1) / 43,
            final_div_factor=1e30,
            cycle_momentum=False,
        )
    )
    found = rates(schedule="one_cycle", warmup=warmup)
    assert found == pytest.approx(expected, abs=1e-9)
    assert (
        found[0] == pytest.approx(0.5 / 25)
        and found[peak] == max(found) == 0.5
        and found[-1] < 0.003
    )


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_the_shortest_training_has_a_rate_above_zero(schedule, epochs):
    settings = recipe(schedule=schedule, epochs=epochs)
    assert all(learning_rate_at(settings, step, 1) > 0 for step in range(epochs))


def test_the_schedule_drives_the_optimizer_and_the_history():
    loop = make(schedule="step", step_epochs=1, step_factor=0.1, epochs=3)
    assert [row["learning_rate"] for row in run(loop).epochs] == pytest.approx([0.1, 0.01, 0.001])


# --- gradient, loss, average ------------------------------------------------------------------------------------------


def test_clipping_bounds_the_step():
    loop, free = make(clip_norm=0.01, learning_rate=1.0), make(learning_rate=1.0)
    before = weights(loop.model)
    for each in (loop, free):
        each._train_step(torch.arange(16))
    assert (weights(loop.model) - before).norm() == pytest.approx(0.01, rel=1e-3)
    assert (weights(free.model) - before).norm() > 0.1


def test_label_smoothing_softens_the_training_loss_alone():
    loop = make(label_smoothing=0.2)
    outputs, targets = torch.randn(9, 4), torch.arange(9) % 4
    soft = torch.full((9, 4), 0.2 / 4).scatter_(1, targets[:, None], 0.8 + 0.2 / 4)
    assert torch.allclose(
        loop._loss(outputs, targets), -(soft * outputs.log_softmax(1)).sum(1).mean()
    )
    plain = float(functional.cross_entropy(outputs, targets))
    assert classification_scores(outputs, targets, 2)["loss"] == pytest.approx(plain)


def test_dropout_acts_in_training_and_not_in_validation():
    hyperparameters = {"hidden": [32], "batch_norm": False}
    dropped = make(
        name="mlp", hyperparameters=hyperparameters | {"dropout": 0.9}, epochs=1, learning_rate=1e-9
    )
    plain = make(name="mlp", hyperparameters=hyperparameters, epochs=1, learning_rate=1e-9)
    first, second = run(dropped).epochs[0], run(plain).epochs[0]
    assert abs(first["train_loss"] - second["train_loss"]) > 0.01
    assert first["val_loss"] == pytest.approx(second["val_loss"], abs=1e-5)


def test_the_moving_average_is_what_is_validated_and_kept():
    loop = make(ema=0.6, epochs=1)
    expected = None
    for step in range(3):
        loop.progress.step = step
        loop._train_step(torch.arange(step, step + 16))
        now = weights(loop.model)
        expected = now if expected is None else 0.6 * expected + 0.4 * now
    loop._finish_epoch()
    kept = torch.cat([tensor.flatten() for tensor in loop.best.values()])
    assert torch.allclose(kept, expected, atol=1e-6) and not torch.allclose(kept, now, atol=1e-3)
    outputs = loop.average.module(loop.validation.batch(slice(None))[0]).detach()
    expected_loss = float(functional.cross_entropy(outputs, loop.validation.targets))
    assert loop.progress.history[0]["val_loss"] == pytest.approx(expected_loss, abs=1e-5)


def test_the_moving_average_follows_the_statistics_of_batch_norm_too():
    loop = make(ema=0.5, name="mlp", hyperparameters={"hidden": [8]}, epochs=1)
    run(loop)
    buffers = {name: tensor for name, tensor in loop.weights().items() if "running" in name}
    initial = {"running_mean": 0.0, "running_var": 1.0}
    assert buffers and all(
        (tensor != initial[name.split(".")[-1]]).any() for name, tensor in buffers.items()
    )


def test_training_images_are_augmented_and_validation_images_are_not():
    loop = make(augment={"erase": 1.0}, learning_rate=1e-9, epochs=1)
    row, plain = run(loop).epochs[0], run(make(learning_rate=1e-9, epochs=1)).epochs[0]
    assert row["train_loss"] != pytest.approx(plain["train_loss"], abs=1e-3)
    assert row["val_loss"] == pytest.approx(plain["val_loss"], abs=1e-6)


# --- the seed ---------------------------------------------------------------------------------------------------------

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def drawn(seed, step, device):
    """Return images and dropout mask of a step; weights and examples are always the same."""
    whole = pictures()
    statistics = torch.tensor([0.4]), torch.tensor([0.2])
    train = Batches(whole.inputs.to(device), whole.targets.to(device), *statistics)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 4))
    augment = {"rotate": 20, "shift": 0.2, "erase": 0.5}
    loop = Trainer(model, train, train, recipe(device=device, augment=augment), seed)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].cpu()))
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.cpu() == 0))
    loop.progress.epoch, loop.progress.step = divmod(step, loop.steps_per_epoch)
    loop._train_step(torch.arange(16, device=device))
    return seen


@pytest.mark.parametrize("device", DEVICES)
def test_each_seed_has_augmentations_and_dropout_masks_of_its_own_at_every_step(device):
    keys = list(itertools.product((0, 1, 3, 2**32 - 1), (0, 1, 1000)))  # seeds, steps
    draws = [drawn(*key, device) for key in keys]
    for (images, mask), (other_images, other_mask) in itertools.combinations(draws, 2):
        assert not torch.equal(images, other_images) and not torch.equal(mask, other_mask)
    for key, (images, mask) in zip(keys, draws, strict=True):
        same_images, same_mask = drawn(*key, device)
        assert torch.equal(images, same_images) and torch.equal(mask, same_mask), key


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_are_sums_over_all_examples_divided_once_whatever_the_last_batch():
    loop = make(learning_rate=1e-12, batch_size=16)  # 40 examples: 16, 16, 8
    record = run(loop)
    for part, batches in (("train", loop.train), ("val", loop.validation)):
        images, labels = batches.batch(slice(None))
        with torch.no_grad():
            logits = loop.model(images)
        hits = logits.argmax(1) == labels
        row = record.epochs[-1]
        assert row[f"{part}_loss"] == pytest.approx(
            float(functional.cross_entropy(logits, labels)), rel=1e-5
        )
        assert row[f"{part}_accuracy"] == pytest.approx(float(hits.float().mean()), abs=1e-7)
    top = (logits.topk(2, 1).indices == labels[:, None]).any(1)
    assert row["val_top2_accuracy"] == pytest.approx(float(top.float().mean()), abs=1e-7)
    assert record.examples == [16, 16, 8] * 2


def test_validation_in_several_batches_counts_each_example_once(monkeypatch):
    whole = make(validation=pictures(50, seed=1)).validate()
    monkeypatch.setattr(training, "evaluation_batch", lambda shape: 16)
    assert make(validation=pictures(50, seed=1)).validate() == pytest.approx(whole)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((784,), 500), ((1, 28, 28), 500), ((3, 224, 224), 6), ((3, 1024, 1024), 1)],
)
def test_large_images_are_validated_in_small_batches(shape, expected):
    assert evaluation_batch(shape) == expected


def test_the_history_has_a_row_of_the_same_columns_for_each_epoch():
    loop = make(epochs=3)
    rows = run(loop).epochs
    names = [
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
        "val_top2_accuracy",
        "learning_rate",
    ]
    assert [list(row) for row in rows] == [["epoch", *names]] * 3
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows == loop.progress.history


def test_steps_are_reported_every_so_often_and_at_the_end_of_each_epoch():
    record = run(make(log_every=2))  # three steps an epoch
    assert [step for step, _, _ in record.steps] == [2, 3, 5, 6]
    epoch_loss = (record.steps[0][1] * 32 + record.steps[1][1] * 8) / 40
    epoch_accuracy = (record.steps[0][2] * 32 + record.steps[1][2] * 8) / 40
    assert record.epochs[0]["train_loss"] == pytest.approx(epoch_loss)
    assert record.epochs[0]["train_accuracy"] == pytest.approx(epoch_accuracy)


@pytest.mark.parametrize(
    ("count", "batches"), [(33, [16, 17]), (17, [17]), (34, [16, 16, 2]), (5, [5])]
)
def test_a_lone_last_example_joins_the_batch_before_it_since_batch_norm_needs_two(count, batches):
    loop = make(
        train=pictures(count), name="mlp", hyperparameters={"hidden": [8]}, epochs=1, log_every=1
    )
    record = run(loop)
    assert record.examples == batches
    total = sum(loss * size for (_, loss, _), size in zip(record.steps, batches, strict=True))
    assert record.epochs[0]["train_loss"] == pytest.approx(total / count)


def test_top_k_of_more_classes_than_there_are_is_always_right():
    assert run(make(top_k=9)).epochs[0]["val_top9_accuracy"] == 1


# --- the best epoch, early stop, kept epochs --------------------------------------------------------------------------


def scripted(loop, values, metric="val_loss"):
    """Let validation report `values`, epoch by epoch."""
    values = iter(values)
    honest = loop.validate
    loop.validate = lambda: honest() | {metric: next(values)}
    return loop


@pytest.mark.parametrize(
    ("monitor", "mode", "values", "best"),
    [
        ("val_loss", "min", [3.0, 1.0, 2.0], 2),
        ("val_accuracy", "max", [0.3, 0.5, 0.9], 3),
        ("val_loss", "min", [2.0, 1.0, 1.0], 2),  # the first of equals
    ],
)
def test_the_best_epoch_is_chosen_by_monitor_and_mode_and_its_weights_are_kept(
    monitor, mode, values, best
):
    loop = scripted(make(epochs=3, keep_every=1, monitor=monitor, mode=mode), values, monitor)
    record = run(loop)
    assert loop.progress.best_epoch == best
    assert loop.progress.best_row[monitor] == values[best - 1]
    for epoch, kept in record.kept.items():
        same = all(torch.equal(kept[name], tensor) for name, tensor in loop.best.items())
        assert same == (epoch == best)


def test_by_default_accuracy_chooses_the_best_epoch():
    loop = scripted(make(epochs=3, monitor="auto", mode="auto"), [0.3, 0.9, 0.5], "val_accuracy")
    run(loop)
    assert loop.progress.best_epoch == 2


def test_training_stops_after_patience_epochs_without_improvement():
    loop = scripted(make(epochs=9, patience=2), [3.0, 1.0, 2.0, 0.5, 0.6, 0.5, 0.1])
    assert len(run(loop).epochs) == 6 and loop.progress.best_epoch == 4 and loop.progress.finished


def saturated(losses, **changes):
    """Return a loop whose validation accuracy is always 1, with losses as given."""
    loop = make(epochs=len(losses), monitor="auto", mode="auto", **changes)
    loop = scripted(loop, itertools.repeat(1.0), "val_accuracy")
    return scripted(loop, losses, "val_loss")


@pytest.mark.parametrize(("losses", "best"), [([1.3, 0.5, 0.4, 0.7], 3), ([0.6, 0.5, 0.5], 2)])
def test_of_epochs_with_equal_scores_the_one_with_the_lowest_loss_is_the_best(losses, best):
    loop = saturated(losses, keep_every=1)
    record = run(loop)
    assert loop.progress.best_epoch == best
    assert all(torch.equal(record.kept[best][name], tensor) for name, tensor in loop.best.items())


def test_a_lower_loss_at_an_equal_score_starts_patience_anew():
    loop = saturated([1.3, 1.2, 1.1, 1.0, 1.1, 1.1, 0.1], patience=2)
    assert len(run(loop).epochs) == 6 and loop.progress.best_epoch == 4


def test_a_higher_score_wins_over_a_lower_loss():
    loop = make(epochs=3, monitor="auto", mode="auto")
    loop = scripted(loop, [0.9, 0.8, 0.9], "val_accuracy")
    run(scripted(loop, [0.5, 0.1, 0.4], "val_loss"))
    assert loop.progress.best_epoch == 3


def test_patience_zero_trains_to_the_end():
    assert len(run(scripted(make(epochs=4), [1.0, 2.0, 3.0, 4.0])).epochs) == 4


def test_every_nth_epoch_is_kept_when_asked_for():
    assert list(run(make(epochs=5, keep_every=2)).kept) == [2, 4]
    assert not run(make()).kept


def test_a_monitor_that_the_task_does_not_have_is_refused_before_training():
    with pytest.raises(UserError, match=r"train\.monitor = 'val_r2'.*val_loss"):
        make(monitor="val_r2")


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step_named():
    loop = make(epochs=3, log_every=100)
    honest, calls = loop._loss, []

    def loss(outputs, targets):
        calls.append(1)
        return honest(outputs, targets) * (math.nan if len(calls) == 5 else 1)

    loop._loss = loss
    with pytest.raises(UserError, match=r"not finite at epoch 2, step 2.*learning_rate"):
        run(loop)


def test_a_learning_rate_far_too_high_ends_in_that_message_and_not_in_a_result():
    with pytest.raises(UserError, match="not finite"):
        run(make(learning_rate=1e38, epochs=3))


# --- device and precision ---------------------------------------------------------------------------------------------


def test_auto_takes_the_accelerator_that_is_there():
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert resolve_device("auto") == (accelerator or torch.device("cpu"))
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:63", "mps"])
def test_a_device_that_is_not_there_is_named_with_the_way_out(name, monkeypatch):
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: None
    )
    with pytest.raises(UserError, match=rf"train\.device = '{name}'.*try auto"):
        resolve_device(name)


def test_auto_precision_is_bfloat16_where_the_processor_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, expected in [
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": True}, "bfloat16"),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert resolve_precision("auto", cpu) == expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert resolve_precision("auto", cpu) == "float32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert resolve_precision("auto", torch.device("cuda")) == "float32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_precision("auto", torch.device("cuda")) == "bfloat16"
    assert resolve_precision("float32", cpu) == "float32"
    assert resolve_precision("bfloat16", cpu) == "bfloat16"


def test_a_batch_too_small_for_batch_norm_is_refused():
    with pytest.raises(UserError, match="batch_size = 1 is too small for batch norm"):
        make(name="mlp", hyperparameters={"hidden": [8]}, batch_size=1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_the_layers_while_weights_and_loss_stay_float32(precision):
    loop = make(precision=precision, name="mlp", hyperparameters={"hidden": [8]})
    seen = []
    loop.model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    honest = loop._loss
    loop._loss = lambda outputs, targets: seen.append(outputs.dtype) or honest(outputs, targets)
    loop._train_step(torch.arange(16))
    assert seen == [getattr(torch, precision), torch.float32]
    assert {parameter.dtype for parameter in loop.model.parameters()} == {torch.float32}


# --- the first lines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "fitting"), [(300, "0.99"), (30, "0.9"), (4, "0.2")])
def test_an_average_longer_than_the_training_is_warned_of(epochs, fitting):
    warning = ema_warning(make(ema=0.9999, epochs=epochs))  # three steps an epoch
    assert warning.startswith("ema = 0.9999 averages the weights of the last 10,000 steps")
    assert f"this training has {3 * epochs}: " in warning
    assert f"try ema = {fitting}, or 0 (off)" in warning
    assert not ema_warning(make(ema=float(fitting), epochs=epochs))


def test_an_average_as_long_as_the_training_needs_no_warning_and_one_step_more_does():
    settings = {"epochs": 1, "batch_size": 4}  # ten steps
    assert not ema_warning(make(ema=0, **settings))
    assert not ema_warning(make(ema=0.9, **settings))
    assert "try ema = 0 (off)" in ema_warning(make(ema=1 - 1 / 11, **settings))


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_tensorboard_events_hold_the_points_and_their_steps_also_after_a_resume(
    tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    trainings = ((9, False, (9, 9)), (1, False, (0.5, 0.25)), (2, True, (0.375, 0.75)))
    for epoch, is_resumed, values in trainings:
        board = TensorBoard("linear", is_resumed)
        row = {"epoch": epoch, **dict(zip(("val_loss", "val_accuracy"), values, strict=True))}
        board.record(Epoch(row, None))
        board.finish(tmp_path)
    events = EventAccumulator(str(tmp_path / "runs" / "linear")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("val_loss")] == [
        (1, 0.5),
        (2, 0.375),
    ]
    assert [(event.step, event.value) for event in events.Scalars("val_accuracy")] == [
        (1, 0.25),
        (2, 0.75),
    ]
