"""The training loop: every part of the recipe does what its name says, and the numbers are right."""

import itertools
import math
import platform
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from helpers.project import ROOT
from helpers.training import make_trainer, pictures, recipe, run, weights
from torch import nn
from torch.nn import functional

from lineup.errors import UserError
from lineup.evaluation.inference import evaluation_batch
from lineup.training import trainer as trainer_module
from lineup.training.batches import Batches
from lineup.training.device import explain_memory, resolve_device, resolve_precision
from lineup.training.tensorboard import TensorBoard
from lineup.training.trainer import Epoch, Step, Trainer

NO_STEP = {"learning_rate": 1e-12}  # weights stay as they are
MLP = {"name": "mlp", "hyperparameters": {"hidden": [8]}}


def logits_of(trainer, batches):
    """Return logits and labels of all examples, as the model stands."""
    images, labels = batches.batch(slice(None))
    with torch.no_grad():
        return trainer.model(images), labels


# --- gradient, loss, average ----------------------------------------------------------------------


def test_clipping_bounds_the_step():
    clipped = make_trainer(clip_norm=0.01, learning_rate=1.0)
    free = make_trainer(learning_rate=1.0)
    before = weights(clipped.model)
    next(clipped.fit()), next(free.fit())
    assert (weights(clipped.model) - before).norm() == pytest.approx(0.01, rel=1e-3)
    assert (weights(free.model) - before).norm() > 0.1


def test_label_smoothing_softens_the_training_loss_alone():
    trainer = make_trainer(label_smoothing=0.2, epochs=1, **NO_STEP)
    (row,) = run(trainer).epochs
    logits, labels = logits_of(trainer, trainer.train)
    soft = torch.full((40, 4), 0.2 / 4).scatter_(1, labels[:, None], 0.8 + 0.2 / 4)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert row["train_loss"] == pytest.approx(float(expected), rel=1e-5)
    plain = functional.cross_entropy(*logits_of(trainer, trainer.validation))
    assert row["val_loss"] == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize(
    ("plain", "changed"),
    [
        (
            {"name": "mlp", "hyperparameters": {"hidden": [32], "batch_norm": False}},
            {"hyperparameters": {"hidden": [32], "batch_norm": False, "dropout": 0.9}},
        ),
        ({}, {"augment": {"erase": 1.0}}),
    ],
    ids=["dropout", "augmentation"],
)
def test_what_disturbs_training_leaves_validation_alone(plain, changed):
    rows = [
        run(make_trainer(**settings, epochs=1, **NO_STEP)).epochs[0]
        for settings in (plain, plain | changed)
    ]
    assert abs(rows[0]["train_loss"] - rows[1]["train_loss"]) > 1e-3
    assert rows[0]["val_loss"] == pytest.approx(rows[1]["val_loss"], abs=1e-5)


def test_the_moving_average_is_what_is_validated_and_kept():
    trainer = make_trainer(ema=0.6, epochs=1)
    expected = None
    for event in trainer.fit():
        if isinstance(event, Step):
            now = weights(trainer.model)
            expected = now if expected is None else 0.6 * expected + 0.4 * now
    kept = torch.cat([tensor.flatten() for tensor in trainer.best.values()])
    assert torch.allclose(kept, expected, atol=1e-6) and not torch.allclose(kept, now, atol=1e-3)
    trainer.model.load_state_dict(trainer.best)
    loss = functional.cross_entropy(*logits_of(trainer, trainer.validation))
    assert trainer.progress.history[0]["val_loss"] == pytest.approx(float(loss), abs=1e-5)


def test_the_moving_average_follows_the_statistics_of_batch_norm_too():
    trainer = make_trainer(ema=0.5, epochs=1, **MLP)
    initial = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    run(trainer)
    statistics = [name for name in initial if "running" in name]
    assert len(statistics) == 2
    for name in statistics:
        assert (trainer.weights()[name] != initial[name]).any()


# --- what fine-tuning and rare classes need -------------------------------------------------------


def uneven_pictures():
    """Return 40 images, of which most are of class 0."""
    even = pictures(40)
    rows = torch.cat([torch.arange(0, 40, 4).repeat(3)[:25], torch.arange(1, 16)])
    statistics = torch.tensor([0.4]), torch.tensor([0.2])
    return Batches(even.inputs[rows], even.targets[rows], *statistics)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_class_weights_give_each_class_the_same_part_of_the_loss(smoothing):
    train = uneven_pictures()
    changes = {"class_weights": "balanced", "label_smoothing": smoothing}
    trainer = make_trainer(train, batch_size=8, epochs=1, **changes, **NO_STEP)
    (row,) = run(trainer).epochs
    logits, labels = logits_of(trainer, train)
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    of_classes = [losses[labels == label].mean() for label in range(4)]
    assert row["train_loss"] == pytest.approx(float(sum(of_classes)) / 4, rel=1e-5)
    assert row["train_loss"] != pytest.approx(float(losses.mean()), rel=1e-2)


def test_a_frequent_class_is_still_recognised_beside_a_rare_one_of_balanced_weight():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(606) % 101 == 0).long()  # one in a hundred
    noise = torch.randint(40, (606, 1, 6, 6), dtype=torch.uint8, generator=generator)
    images = noise + (labels * 150).byte().view(-1, 1, 1, 1)
    train = Batches(images, labels, torch.tensor([0.4]), torch.tensor([0.2]))
    changes = {"class_weights": "balanced", "label_smoothing": 0.05, "optimizer": "adam"}
    trainer = make_trainer(train, train, epochs=20, learning_rate=0.02, **changes)
    assert run(trainer).epochs[-1]["val_accuracy"] == 1


def test_frozen_epochs_train_the_last_layer_alone_and_then_everything():
    trainer = make_trainer(freeze_epochs=1, epochs=2, **MLP)
    before = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    head = list(before)[-2:]

    def moved():
        return {
            name for name, old in before.items() if not torch.equal(trainer.weights()[name], old)
        }

    events = trainer.fit()
    next(event for event in events if isinstance(event, Epoch))
    assert moved() == set(head)
    next(event for event in events if isinstance(event, Epoch))
    assert moved() == set(before)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_the_backbones_learning_rate_is_a_part_of_the_last_layers(optimizer):
    settings = {"optimizer": optimizer, "epochs": 1, "batch_size": 40, "learning_rate": 0.01}
    moves = {}
    for factor in (1, 0.1):
        trainer = make_trainer(backbone_lr_factor=factor, **settings, **MLP)
        before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        next(trainer.fit())
        after = trainer.model.parameters()
        moves[factor] = [new.detach() - old for new, old in zip(after, before, strict=True)]
    *backbone, head, bias = zip(moves[1], moves[0.1], strict=True)
    for whole, part in backbone:
        assert torch.allclose(0.1 * whole, part, rtol=1e-2, atol=1e-6)
    for whole, same in (head, bias):
        assert torch.equal(whole, same)


# --- the seed -------------------------------------------------------------------------------------

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def drawn(seed, step, device):
    """Return the images and the dropout mask of a step; the weights are always the same.

    So are the examples, whatever the order: there is one, 40 times.
    """
    one = pictures(1)
    inputs = one.inputs.repeat(40, 1, 1, 1).to(device)
    statistics = torch.tensor([0.4]), torch.tensor([0.2])
    train = Batches(inputs, one.targets.repeat(40).to(device), *statistics)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 4))
    augment = {"rotate": 20, "shift": 0.2, "erase": 0.5}
    settings = recipe(device=device, augment=augment, epochs=1000)
    trainer = Trainer(model, train, train, settings, seed)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].cpu()))
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.cpu() == 0))
    trainer.progress.epoch, trainer.progress.step = divmod(step, trainer.steps_per_epoch)
    next(trainer.fit())
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


def test_two_trainings_with_one_seed_give_the_same_bytes_and_events_and_another_seed_others():
    def trained(seed):
        settings = {"optimizer": "muon", "ema": 0.9, "augment": {"rotate": 10, "erase": 0.5}}
        trainer = make_trainer(log_every=1, keep_every=1, **settings, **MLP)
        trainer.seed = seed
        record = run(trainer)
        return safetensors.torch.save(trainer.best), record.steps, record.epochs

    torch.manual_seed(0)
    first = trained(3)
    torch.manual_seed(1)  # the global generator has no say
    assert trained(3) == first
    assert all(mine != other for mine, other in zip(first, trained(4), strict=True))


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_are_sums_over_all_examples_divided_once_whatever_the_last_batch():
    trainer = make_trainer(**NO_STEP)  # 40 examples: 16, 16, 8
    record = run(trainer)
    row = record.epochs[-1]
    for part, batches in (("train", trainer.train), ("val", trainer.validation)):
        logits, labels = logits_of(trainer, batches)
        loss = float(functional.cross_entropy(logits, labels))
        assert row[f"{part}_loss"] == pytest.approx(loss, rel=1e-5)
        accuracy = float((logits.argmax(1) == labels).float().mean())
        assert row[f"{part}_accuracy"] == pytest.approx(accuracy, abs=1e-7)
    top = (logits.topk(2, 1).indices == labels[:, None]).any(1)
    assert row["val_top2_accuracy"] == pytest.approx(float(top.float().mean()), abs=1e-7)
    assert record.examples == [16, 16, 8] * 2


def test_validation_in_several_batches_counts_each_example_once(monkeypatch):
    whole = make_trainer(validation=pictures(50, seed=1)).validate()
    monkeypatch.setattr(trainer_module, "evaluation_batch", lambda shape: 16)
    assert make_trainer(validation=pictures(50, seed=1)).validate() == pytest.approx(whole)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((784,), 500), ((1, 28, 28), 500), ((3, 224, 224), 6), ((3, 1024, 1024), 1)],
)
def test_large_images_are_validated_in_small_batches(shape, expected):
    assert evaluation_batch(shape) == expected


def test_the_history_has_a_row_of_the_same_columns_for_each_epoch():
    trainer = make_trainer(epochs=3)
    rows = run(trainer).epochs
    names = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top2_accuracy"]
    assert [list(row) for row in rows] == [["epoch", *names, "learning_rate"]] * 3
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows == trainer.progress.history


def test_steps_are_reported_every_so_often_and_at_the_end_of_each_epoch():
    record = run(make_trainer(log_every=2))  # three steps an epoch
    assert [step for step, _, _ in record.steps] == [2, 3, 5, 6]
    (_, *first), (_, *second) = record.steps[:2]
    loss, accuracy = ((a * 32 + b * 8) / 40 for a, b in zip(first, second, strict=True))
    assert record.epochs[0]["train_loss"] == pytest.approx(loss)
    assert record.epochs[0]["train_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("count", "batches"), [(33, [16, 17]), (17, [17]), (34, [16, 16, 2]), (5, [5])]
)
def test_a_lone_last_example_joins_the_batch_before_it_since_batch_norm_needs_two(count, batches):
    record = run(make_trainer(train=pictures(count), epochs=1, log_every=1, **MLP))
    assert record.examples == batches
    total = sum(loss * size for (_, loss, _), size in zip(record.steps, batches, strict=True))
    assert record.epochs[0]["train_loss"] == pytest.approx(total / count)


def test_top_k_of_more_classes_than_there_are_is_always_right():
    assert run(make_trainer(top_k=9)).epochs[0]["val_top9_accuracy"] == 1


# --- the best epoch, early stop, kept epochs ------------------------------------------------------


def scripted(trainer, values, metric="val_loss"):
    """Let validation report `values`, epoch by epoch."""
    values = iter(values)
    honest = trainer.validate
    trainer.validate = lambda: honest() | {metric: next(values)}
    return trainer


def saturated(losses, **changes):
    """Return a trainer whose validation accuracy is always 1, with losses as given."""
    trainer = make_trainer(epochs=len(losses), monitor="auto", **changes)
    return scripted(scripted(trainer, itertools.repeat(1.0), "val_accuracy"), losses)


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("val_loss", [3.0, 1.0, 2.0], 2),
        ("val_accuracy", [0.3, 0.5, 0.9], 3),
        ("val_loss", [2.0, 1.0, 1.0], 2),  # the first of equals
    ],
)
def test_the_best_epoch_is_chosen_by_monitor_and_its_weights_are_kept(monitor, values, best):
    trainer = make_trainer(epochs=3, keep_every=1, monitor=monitor)
    record = run(scripted(trainer, values, monitor))
    assert trainer.progress.best_epoch == best
    assert trainer.progress.best_row[monitor] == values[best - 1]
    for epoch, kept in record.kept.items():
        same = all(torch.equal(kept[name], tensor) for name, tensor in trainer.best.items())
        assert same == (epoch == best)


def test_by_default_accuracy_chooses_the_best_epoch_and_a_lower_loss_does_not_outweigh_it():
    trainer = make_trainer(epochs=3, monitor="auto")
    scripted(trainer, [0.3, 0.9, 0.8], "val_accuracy")
    run(scripted(trainer, [0.5, 0.4, 0.1]))
    assert trainer.progress.best_epoch == 2


@pytest.mark.parametrize(("losses", "best"), [([1.3, 0.5, 0.4, 0.7], 3), ([0.6, 0.5, 0.5], 2)])
def test_of_epochs_with_equal_scores_the_one_with_the_lowest_loss_is_the_best(losses, best):
    trainer = saturated(losses, keep_every=1)
    kept = run(trainer).kept[best]
    assert trainer.progress.best_epoch == best
    assert all(torch.equal(kept[name], tensor) for name, tensor in trainer.best.items())


def test_training_stops_after_patience_epochs_without_improvement():
    trainer = scripted(make_trainer(epochs=9, patience=2), [3.0, 1.0, 2.0, 0.5, 0.6, 0.5, 0.1])
    assert len(run(trainer).epochs) == 6
    assert trainer.progress.best_epoch == 4 and trainer.progress.finished


def test_a_lower_loss_at_an_equal_score_starts_patience_anew():
    trainer = saturated([1.3, 1.2, 1.1, 1.0, 1.1, 1.1, 0.1], patience=2)
    assert len(run(trainer).epochs) == 6 and trainer.progress.best_epoch == 4


def test_patience_zero_trains_to_the_end():
    assert len(run(scripted(make_trainer(epochs=4), [1.0, 2.0, 3.0, 4.0])).epochs) == 4


def test_every_nth_epoch_is_kept_when_asked_for():
    assert list(run(make_trainer(epochs=5, keep_every=2)).kept) == [2, 4]
    assert not run(make_trainer()).kept


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step_named():
    trainer, calls = make_trainer(epochs=3), []

    def spoil(model, inputs, outputs):
        calls.append(model.training)
        return outputs * (math.nan if calls.count(True) == 5 else 1)

    trainer.model.register_forward_hook(spoil)
    with pytest.raises(UserError, match=r"not finite at epoch 2, step 2.*learning_rate"):
        run(trainer)


def test_a_learning_rate_far_too_high_ends_in_that_message_and_not_in_a_result():
    with pytest.raises(UserError, match="not finite"):
        run(make_trainer(learning_rate=1e38, epochs=3))


def test_a_monitor_or_a_batch_that_does_not_fit_is_refused_before_training():
    with pytest.raises(UserError, match=r"train\.monitor = 'val_r2'.*val_loss"):
        make_trainer(monitor="val_r2")
    with pytest.raises(UserError, match="batch_size = 1 is too small for batch norm"):
        make_trainer(batch_size=1, **MLP)
    with pytest.raises(UserError, match="one training example is too few for batch norm"):
        make_trainer(pictures(1), **MLP)


# --- device and precision -------------------------------------------------------------------------


def test_auto_takes_the_accelerator_that_is_there():
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert resolve_device("auto") == (accelerator or torch.device("cpu"))
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_steps_use_the_memory_of_those_before():
    script = """
import resource, itertools, torch
from helpers.training import make_trainer, recipe
from lineup.training.batches import Batches
from lineup.training.device import prepare_machine
from lineup.training.trainer import Step
prepare_machine(recipe())
images, half = torch.zeros(2048, 1, 28, 28, dtype=torch.uint8), torch.tensor([0.5])
train = Batches(images, torch.arange(2048) % 4, half, half)
trainer = make_trainer(train, train, batch_size=512, epochs=99, augment={"rotate": 3})
steps = (event for event in trainer.fit() if isinstance(event, Step))
list(itertools.islice(steps, 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
list(itertools.islice(steps, 30))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, check=True)
    assert int(done.stdout) < 30 * 40  # one tensor of a batch has 400 pages


def test_an_error_that_says_what_to_do_is_left_as_it_is():
    with pytest.raises(UserError, match=r"^out of memory: do this$"), explain_memory():
        raise UserError("out of memory: do this")


def test_a_network_larger_than_the_memory_is_an_error_with_a_way_out():
    message = r"memory is too small.*batch_size.*4000000000000000 bytes"
    with pytest.raises(UserError, match=message), explain_memory():
        nn.Linear(10**9, 10**6)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), explain_memory():
        nn.Linear(2, 2)(torch.zeros(3, 3))


@pytest.mark.parametrize("name", ["cuda", "cuda:63", f"cuda:{10**30}", "mps"])
def test_a_device_that_is_not_there_is_named_with_the_way_out(name, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with pytest.raises(UserError, match=rf"train\.device = '{name}'.*try auto"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("device", "has", "expected"),
    [
        ("cpu", {"amx_bf16": True}, "bfloat16"),
        ("cpu", {"avx512_bf16": True}, "bfloat16"),
        ("cpu", {"avx2": True}, "float32"),
        ("cuda", (7, 5), "float32"),
        ("cuda", (9, 0), "bfloat16"),
    ],
)
def test_auto_precision_is_bfloat16_where_the_hardware_computes_in_it(
    device, has, expected, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: has)
    assert resolve_precision("auto", torch.device(device)) == expected
    for name in ("float32", "bfloat16"):
        assert resolve_precision(name, torch.device(device)) == name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_the_layers_while_weights_and_loss_stay_float32(
    precision, monkeypatch
):
    trainer, seen = make_trainer(precision=precision, **MLP), []
    honest = functional.cross_entropy

    def loss(outputs, targets, **settings):
        seen.append(outputs.dtype)
        return honest(outputs, targets, **settings)

    monkeypatch.setattr(functional, "cross_entropy", loss)
    trainer.model[1].register_forward_hook(lambda layer, inputs, out: seen.append(out.dtype))
    next(trainer.fit())
    assert seen == [getattr(torch, precision), torch.float32]
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


# --- TensorBoard ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "folder"), [(".", "runs/linear"), ("copy", "runs/bold-wren/linear")]
)
def test_tensorboard_holds_the_points_at_their_steps_also_after_a_resume(
    work, folder, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_EXP_NAME", "bold-wren")
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / work)
    for epoch, is_resumed, loss in ((9, False, 9.0), (1, False, 0.5), (2, True, 0.375)):
        board = TensorBoard("linear", is_resumed)
        board.record(Epoch({"epoch": epoch, "val_loss": loss, "val_accuracy": 1 - loss}, None))
        board.finish(tmp_path)
    events = EventAccumulator(str(tmp_path / folder)).Reload()
    found = {
        name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]
    }
    assert found == {"val_loss": [(1, 0.5), (2, 0.375)], "val_accuracy": [(1, 0.5), (2, 0.625)]}
