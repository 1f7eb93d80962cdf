"""What a person sees of a training: why so long, what has no effect, how long the rest takes."""

import time
from types import SimpleNamespace

import pytest
import torch
from helpers.training import make_small_project, make_trainer

from lineup.architectures import average_mirror
from lineup.cli import duration
from lineup.params import load_params
from lineup.training import console as console_module
from lineup.training.console import Console, ema_warning
from lineup.training.setup import set_up
from lineup.training.trainer import Step


@pytest.fixture
def make_console(tmp_path, monkeypatch):
    """Return a function that makes the console of a small training, with its params."""

    def make(is_resumed=False, **train):
        make_small_project(tmp_path, **train)
        monkeypatch.chdir(tmp_path)
        params = load_params()
        setup = set_up(params, "mlp")
        return Console(setup, tmp_path / "train.log", is_resumed), params

    yield make
    torch.set_deterministic_debug_mode("default")


def test_the_first_lines_tell_size_epochs_and_why_in_the_terminal_and_in_the_log(
    make_console, capsys
):
    console, params = make_console(epochs="auto")
    console.introduce(params, "the checkpoint is damaged")
    size, epochs, warning = capsys.readouterr().out.splitlines()
    assert size.startswith("mlp: 676 parameters on 80 examples (cpu, ")
    reason = (
        "auto: train.passes = 12 is for 48,000 examples of 28 × 28, less takes more, at most 200"
    )
    assert epochs == f"mlp: 200 epochs ({reason})"
    assert warning == "mlp: warning: the checkpoint is damaged"
    log = console.log_file.read_text()
    assert all(line in log for line in (size, epochs, warning)) and "Linear" in log


def test_the_summary_in_the_log_is_of_a_step_and_changes_no_weight(make_console):
    console, params = make_console()
    model = console.trainer.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average_mirror(model)  # which would show each layer twice
    console.introduce(params, "")
    assert "recursive" not in console.log_file.read_text()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_resumed_training_says_where_and_that_its_time_is_of_the_last_piece(make_console, capsys):
    console, params = make_console(is_resumed=True, epochs=3)
    trainer = console.trainer
    trainer.progress.step = 2
    console.introduce(params, "")
    assert "mlp: 3 epochs (train.epochs)\nmlp: resumes at epoch 1, step 2\n" in (
        capsys.readouterr().out
    )
    trainer.progress.step = 0
    with console:
        for event in trainer.fit():
            console.record(event)
    console.finish(console.log_file.parent)
    *epochs, best = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in epochs] == [f"mlp: epoch {n}/3" for n in (1, 2, 3)]
    assert all(" val_accuracy " in line for line in epochs)
    row = trainer.progress.best_row
    scores = f"best epoch {row['epoch']}, val_loss {row['val_loss']:.4g}, val_accuracy "
    assert scores in best and best.endswith(" s since it resumed")


def test_keys_of_train_without_effect_are_named(make_console, capsys):
    console, params = make_console(epochs=1)
    console.introduce(params, "")
    assert "no effect" not in capsys.readouterr().out
    section = {"hidden": [16], "learning_rate": 0.1, "weight_decay": 0}
    console.introduce(params.model_copy(update={"models": {"mlp": section}}), "")
    expected = "mlp: no effect: train.learning_rate, train.weight_decay, since every section of"
    assert expected in capsys.readouterr().out


def test_the_time_left_is_estimated_once_and_without_the_slow_first_step(
    make_console, monkeypatch, capsys
):
    console, _ = make_console(epochs=3)  # 240 examples
    clock = SimpleNamespace(seconds=0.0, monotonic=lambda: clock.seconds, strftime=time.strftime)
    monkeypatch.setattr(console_module, "time", clock)
    with console:
        for seconds in (1000, 2, 2, 2, 2, 2):
            clock.seconds += seconds
            console.record(Step(16))
    assert capsys.readouterr().out == "mlp: about 24 s left\n"  # after 48 examples, 32 in 4 s


def test_a_full_disk_silences_the_log_and_not_the_terminal(make_console, capsys):
    console, _ = make_console(epochs=1)
    console.log_file.mkdir()
    console.say("hello")
    assert capsys.readouterr().out == "mlp: hello\n"


@pytest.mark.parametrize(("epochs", "fitting"), [(300, "0.99"), (30, "0.9"), (4, "0.2")])
def test_an_average_longer_than_the_training_is_warned_of(epochs, fitting):
    warning = ema_warning(make_trainer(ema=0.9999, epochs=epochs))  # three steps an epoch
    assert warning.startswith("ema = 0.9999 averages the weights of the last 10,000 steps")
    assert f"this training has {3 * epochs}: " in warning
    assert f"try ema = {fitting}, or 0 (off)" in warning
    assert not ema_warning(make_trainer(ema=float(fitting), epochs=epochs))


def test_an_average_as_long_as_the_training_needs_no_warning_and_one_step_more_does():
    settings = {"epochs": 1, "batch_size": 4}  # ten steps
    assert not ema_warning(make_trainer(ema=0, **settings))
    assert not ema_warning(make_trainer(ema=0.9, **settings))
    assert "try ema = 0 (off)" in ema_warning(make_trainer(ema=1 - 1 / 11, **settings))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (740, "12 min"),
        (5400, "1.5 h"),
        (36e3, "10.0 h"),
    ],
)
def test_a_length_of_time_is_rounded_to_what_a_person_plans_with(seconds, words):
    assert duration(seconds) == words
