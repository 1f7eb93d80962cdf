"""Deterministic and unkillable: whatever stops a training, the next one ends with the same bytes."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import psutil
import pytest
import torch
from helpers.project import ROOT, end
from helpers.training import Recorder, make_small_project, pictures, recipe, run
from helpers.waiting import wait_for

from lineup import architectures
from lineup.data.dataset import Dataset, Split
from lineup.errors import UserError
from lineup.files import read_json
from lineup.params import load_params
from lineup.process import is_alive
from lineup.training.checkpoints import Checkpoint, code_digests, fingerprint
from lineup.training.device import prepare_machine
from lineup.training.interruption import Interruption
from lineup.training.session import Interrupted, drive
from lineup.training.setup import set_up
from lineup.training.trainer import Trainer

OUTPUTS = ["model.safetensors", "history.csv", "model.json"]
PROGRAMS = ROOT / "tests" / "programs"
EPOCHS = 20
SMALL = {
    "linear": {},
    "mlp": {"hidden": [8], "dropout": 0.2},
    "cnn": {"channels": [3, 4]},
    "rnn": {"hidden": 6, "layers": 2},
    "simplenet": {"channels": [[3], [4]]},
    "alexnet": {"channels": [3, 4, 4, 4, 3], "hidden": 8},
}
LONG = 300  # seconds, on a busy machine
STARTED = []


# --- the trainer ----------------------------------------------------------------------------------


def make_trainer(name, **changes):
    """Return a trainer with all that is random, three steps an epoch."""
    images = pictures(40)
    images.inputs = images.inputs.repeat(1, 2, 2, 2)[:, :, :9, :9]
    torch.manual_seed(1)
    model = architectures.build(name, [2, 9, 9], 4, SMALL[name])
    settings = {"optimizer": "adamw", "schedule": "one_cycle", "weight_decay": 0.1, "ema": 0.9}
    augment = {"rotate": 10, "flip": True, "erase": 0.5, "crop": 0.3, "color": 0.2}
    settings |= {"learning_rate": 0.01, "augment": augment, "log_every": 2} | changes
    return Trainer(model, images, images, recipe(**settings), seed=5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "sgd", "momentum": 0.9, "ema": 0},
        {"optimizer": "muon", "momentum": 0.9},
        {"freeze_epochs": 1, "backbone_lr_factor": 0.1, "class_weights": "balanced"},
    ],
    ids=["adamw", "sgd", "muon", "frozen"],
)
@pytest.mark.parametrize("name", SMALL)
def test_a_training_resumed_after_any_event_ends_with_the_same_bits(
    name, settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    checkpoint, whole, saved = Checkpoint("f" * 32), make_trainer(name, **settings), []
    with checkpoint.lock():
        checkpoint.load()
        for _ in whole.fit():
            checkpoint.save(whole.state())
            progress, tensors = Checkpoint("f" * 32).load()  # the disk knows no memory layout
            saved.append((json.loads(json.dumps(progress)), tensors))
    assert len(saved) == 2 * (3 + 2 + 1)  # steps, means and the end of each epoch
    expected = whole.state()[1]
    for progress, tensors in saved:
        resumed = make_trainer(name, **settings)
        resumed.restore(progress, tensors)
        run(resumed)
        assert resumed.progress == whole.progress
        found = resumed.state()[1]
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_a_training_asked_to_stop_saves_after_the_step_and_repeats_no_event(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    whole, record, pieces = run(make_trainer("linear")), Recorder(), 0
    checkpoint, interruption = Checkpoint("f" * 32), Interruption()
    interruption.requested = True
    with checkpoint.lock():
        while True:
            trainer = make_trainer("linear")
            checkpoint.resume(trainer)
            pieces += 1
            try:
                drive(trainer.fit(), trainer, checkpoint, [record], interruption)
                break
            except Interrupted:
                continue
    assert trainer.progress.finished and pieces > 2 * 3
    assert record.steps == whole.steps and record.epochs == whole.epochs


# --- the checkpoint -------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Return a checkpoint with one save, as the next process finds it."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    checkpoint = Checkpoint("a" * 32)
    with checkpoint.lock():
        assert checkpoint.load() is None and not checkpoint.warning
        checkpoint.save(({"epoch": 3}, {"weight": torch.arange(100.0)}))
    return checkpoint


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def tensor_file(checkpoint):
    return checkpoint.folder / read_json(checkpoint.progress_file)["file"]


def test_what_was_saved_is_what_is_loaded_and_the_training_keeps_its_id(saved):
    (saved.folder / "state-12345678.safetensors").write_bytes(b"of a kill while")
    (saved.folder / ".progress.json.12.tmp").write_bytes(b"something was saved")
    later = Checkpoint("a" * 32)
    state, tensors = later.load()
    assert state == {"epoch": 3} and torch.equal(tensors["weight"], torch.arange(100.0))
    assert later.run_id == saved.run_id and len(later.run_id) == 32 and not later.warning
    later.discard()
    assert [path.name for path in later.folder.iterdir()] == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: flip_a_bit(tensor_file(c)),
        lambda c: tensor_file(c).unlink(),
        lambda c: tensor_file(c).write_bytes(b""),
        lambda c: c.progress_file.write_text("{"),
        lambda c: c.progress_file.write_text("[]"),
        lambda c: c.progress_file.write_text("{}"),
        lambda c: c.progress_file.write_bytes(b"\xff\x00"),
    ],
    ids=["a bit", "no tensors", "empty tensors", "half JSON", "a list", "nothing in it", "no text"],
)
def test_a_damaged_checkpoint_is_reported_and_ignored(saved, damage):
    damage(saved)
    later = Checkpoint("a" * 32)
    assert later.load() is None
    assert str(later.folder) in later.warning and "training starts again" in later.warning
    assert len(later.run_id) == 32 and not list(later.folder.glob("state-*"))


@pytest.mark.parametrize(
    ("error", "told"),
    [(MemoryError(), MemoryError), (OSError(errno.ESTALE, "Stale file handle"), UserError)],
)
def test_a_checkpoint_that_can_not_be_read_just_now_stays(saved, error, told, monkeypatch):
    def fail(path):
        raise error

    with monkeypatch.context() as patch, pytest.raises(told):
        patch.setattr("lineup.training.checkpoints.read_tensors", fail)
        Checkpoint("a" * 32).load()
    state, _ = Checkpoint("a" * 32).load()
    assert state == {"epoch": 3}


def test_only_the_last_save_takes_space(saved):
    for epoch in range(4):
        saved.save(({"epoch": epoch}, {"weight": torch.zeros(3)}))
    assert len(list(saved.folder.glob("state-*"))) == 1


def test_all_that_shapes_the_result_shapes_the_fingerprint_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = make_small_project(tmp_path, epochs="auto")
    config = set_up(load_params(), "mlp").config
    assert fingerprint(config) == fingerprint(dict(reversed(config.items())))
    project.set(train__epochs=200)  # what auto resolves to
    assert fingerprint(config) == fingerprint(set_up(load_params(), "mlp").config)
    for key, value in [("seed", 4), ("train__learning_rate", 0.1), ("models__mlp__hidden", [9])]:
        project.set(**{key: value})
        changed = set_up(load_params(), "mlp").config
        assert fingerprint(changed) != fingerprint(config)
        config = changed
    machine = prepare_machine(load_params().recipe("mlp")[0])
    for change in (
        {"threads": 77},
        {"torch": "2.0"},
        {"processor": "another"},
        {"precision": "bfloat16" if machine.precision == "float32" else "float32"},
    ):
        with monkeypatch.context() as patch:
            other = replace(machine, **change)
            patch.setattr("lineup.training.setup.prepare_machine", lambda _, other=other: other)
            assert fingerprint(set_up(load_params(), "mlp").config) != fingerprint(config)
    assert config["split"] == Split.read().digest
    assert config["data"] == Dataset.read().digests["train"]
    assert config["code"] == code_digests("train", "mlp")
    code = set(code_digests("train", "mlp"))
    shaping = {"stages/train.py", "lineup/training/trainer.py", "lineup/architectures/mlp.py"}
    assert shaping < code and "lineup/architectures/cnn.py" not in code
    assert not [name for name in code if "tracking" in name]


# --- real processes -------------------------------------------------------------------------------


def make_project(folder):
    return make_small_project(folder, epochs=EPOCHS, ema=0.9)


def outputs(project):
    return {name: (project.folder / "models/mlp" / name).read_bytes() for name in OUTPUTS}


def files(project):
    return sorted(path.name for path in (project.folder / "models/mlp").iterdir())


def run_id(project):
    return read_json(project.folder / "models/mlp/run.json")["run_id"]


def train(project, tracking="off"):
    return project.run("python", "-m", "stages.train", "mlp", LINEUP_TRACKING=tracking).stdout


def start(project, *command, **environment):
    """Start a training that saves at every step, or another command, without waiting for it."""
    command = command or (str(PROGRAMS / "train_saving_often.py"), "mlp")
    STARTED.append(
        subprocess.Popen(
            [sys.executable, *command],
            cwd=project.folder,
            env=project.environment | {"LINEUP_TRACKING": "off"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    return STARTED[-1]


def start_and_stop(project, epoch, **environment):
    """Start a training that stops for a while as soon as it has saved that epoch."""
    process = start(project, STOP_AT_EPOCH=str(epoch), **environment)
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, LONG)
    return process


@pytest.fixture(autouse=True)
def nothing_is_left():
    """End what a test that failed left running, or stopped."""
    yield
    while STARTED:
        end(STARTED.pop())


def saved_epoch(project):
    """Return the epoch of the last save on disk, -1 if there is none."""
    files = (project.folder / ".lineup/checkpoints").glob("*/progress.json")
    return max((read_json(path).get("state", {"epoch": -1})["epoch"] for path in files), default=-1)


def recorded(project):
    """Return status and all points of the only run in MLflow, each of which is there once."""
    assert (project.folder / "mlflow.db").exists()  # it is the training's to make
    client = project.client()
    (found,) = client.search_runs([client.get_experiment_by_name("shades").experiment_id])
    names = set(found.data.metrics) - {"training_seconds"}
    points = [
        (name, point.step, point.value)
        for name in names
        for point in client.get_metric_history(found.info.run_id, name)
    ]
    assert max(Counter(points).values()) == 1
    return found.info.status, sorted(points)


def assert_recorded_once(project):
    status, points = recorded(project)
    counts = Counter(name for name, _, _ in points)
    assert status == "FINISHED" and counts["val_loss"] == EPOCHS
    assert counts["step_loss"] == 3 * EPOCHS  # of five steps each second one, and the last
    return points


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return a project with a finished training that nothing disturbed."""
    project = make_project(tmp_path_factory.mktemp("undisturbed"))
    assert "resumes" not in train(project)
    return project


@pytest.mark.slow
def test_killed_by_every_signal_in_turn_a_training_ends_as_if_nothing_had_happened(
    tmp_path, undisturbed
):
    project = make_project(tmp_path)
    kills = [(2, signal.SIGKILL), (6, signal.SIGKILL), (10, signal.SIGTERM), (14, signal.SIGINT)]
    for epoch, number in kills:
        process = start_and_stop(project, epoch, LINEUP_TRACKING="on")
        wait_for(lambda: recorded(project)[0] == "RUNNING", LONG)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=LONG)
        assert process.returncode == (-number if number == signal.SIGKILL else 130), output
        assert number == signal.SIGKILL or "the same command resumes there" in output
        assert "Traceback" not in output and files(project) == ["history.csv"]
        assert recorded(project)[0] == "KILLED", output
        assert epoch <= saved_epoch(project) < EPOCHS
    assert "resumes at epoch" in train(project, tracking="on")
    assert outputs(project) == outputs(undisturbed)
    points = assert_recorded_once(project)

    before = run_id(project)  # dvc died before it wrote dvc.lock: all over again
    (project.folder / "models/mlp/model.safetensors").unlink()
    train(project, tracking="on")
    assert outputs(project) == outputs(undisturbed) and run_id(project) == before
    assert assert_recorded_once(project) == points


def test_ctrl_c_after_the_last_step_ends_the_command_behind_this_training(tmp_path, undisturbed):
    project = make_project(tmp_path)
    process = start_and_stop(project, EPOCHS)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == 130 and "this training is finished" in output
    assert outputs(project) == outputs(undisturbed)  # and no other one begins behind it


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_a_follower_that_is_killed_or_hangs_costs_neither_the_training_nor_a_point(
    number, tmp_path, undisturbed
):
    project = make_project(tmp_path)
    process = start_and_stop(project, 2, LINEUP_TRACKING="on")
    (follower,) = psutil.Process(process.pid).children()
    assert "--follow" in follower.cmdline()
    follower.send_signal(number)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0
    assert "MLflow lacks a part of this run, and nothing is lost; later: make sync" in output
    assert not is_alive(follower)
    assert outputs(project) == outputs(undisturbed)
    project.run("python", "-m", "stages.sync")
    assert_recorded_once(project)


def test_two_runs_write_the_same_bytes_and_a_damaged_checkpoint_is_reported(tmp_path, undisturbed):
    project = make_project(tmp_path)
    train(project)
    assert outputs(project) == outputs(undisturbed)
    (path,) = (tmp_path / ".lineup/checkpoints").glob("*/state-*")
    flip_a_bit(path)
    output = train(project)
    assert "warning: the checkpoint in" in output and "resumes" not in output
    assert outputs(project) == outputs(undisturbed)


@pytest.mark.slow
def test_of_two_trainings_of_the_same_the_second_waits_and_both_end_alike(tmp_path, undisturbed):
    project = make_project(tmp_path)
    first = start_and_stop(project, 1)
    second = start(project)
    assert second.stdout.readline() == "another process trains just this; waiting\n"
    first.send_signal(signal.SIGCONT)
    texts = [process.communicate(timeout=LONG)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], texts
    assert [f"epoch {EPOCHS}/{EPOCHS}" in text for text in texts] == [True, False]
    assert outputs(project) == outputs(undisturbed)


@pytest.mark.slow
def test_other_params_never_meet_the_checkpoint(tmp_path, undisturbed):
    project = make_project(tmp_path)
    process = start_and_stop(project, 1)
    process.kill()
    process.communicate()
    rate = load_params(tmp_path / "params.yaml").train.learning_rate
    project.set(train__learning_rate=rate / 2)
    assert "resumes" not in train(project)
    project.set(train__learning_rate=rate)
    assert "resumes" in train(project)
    assert outputs(project) == outputs(undisturbed)


# --- the parent of a training ---------------------------------------------------------------------


def start_below(parent, before, after, *, shell=False, dvc=True):
    """Start a program that ends with its parent, below another program."""
    child = [sys.executable, str(PROGRAMS / "end_with_parent.py"), str(before), str(after)]
    if shell:
        child = ["sh", "-c", '"$@"; true', "sh", *child]
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"DVC_STAGE": "train@mlp"} if dvc else {})
    command = [sys.executable, str(PROGRAMS / "start_command.py"), *parent, *child]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("shell", [False, True], ids=["direct", "through a shell"])
def test_under_dvc_a_training_ends_when_its_parent_is_killed_even_if_nobody_reaps_it(shell):
    parent = start_below([], 0, 600, shell=shell)
    assert parent.stdout.readline() == "on\n"
    below = psutil.Process(parent.pid).children(recursive=True)
    (training,) = [process for process in below if process.name() != "sh"]
    parent.kill()  # and no wait(): it stays a zombie
    wait_for(lambda: not is_alive(training))
    parent.wait()


def test_without_dvc_a_training_outlives_its_parent():
    parent = start_below([], 0, 2, dvc=False)
    assert parent.stdout.readline() == "on\n"
    parent.kill()
    assert parent.stdout.readline() == "end\n"
    parent.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a process that is adopted by init")
def test_a_training_whose_dvc_died_before_it_could_look_ends_at_once():
    parent = start_below(["--leave"], 1, 600)
    assert parent.communicate(timeout=LONG)[0] == ""  # returns when the orphan closed its output


@pytest.mark.slow
def test_killing_dvc_alone_ends_its_training_and_the_next_repro_resumes_it(project_factory):
    project = project_factory("killed-dvc")
    project.set(architectures=["mlp"], model="mlp", train__epochs=2000, train__log_every=50)
    pipeline = project.folder / "dvc.yaml"
    program = "python tests/programs/train_saving_often.py"
    pipeline.write_text(project.read("dvc.yaml").replace("python -m stages.train", program))
    often = {"SECONDS_BETWEEN_SAVES": "0.2"}
    repro = ["-m", "dvc", "repro", "train@mlp"]
    dvc = start(project, *repro, LINEUP_TRACKING="on", **often)
    wait_for(lambda: saved_epoch(project) >= 20, LONG)
    below = psutil.Process(dvc.pid).children(recursive=True)
    started = [process for process in below if process.name() != "sh"]
    assert len(started) == 2  # the training and its follower
    started[0].suspend()
    epochs = len(project.read("models/mlp/history.csv").splitlines()) - 1
    assert shown_epochs(project) == epochs and 20 <= epochs < 2000
    dvc.kill()
    started[0].resume()
    wait_for(lambda: not any(map(is_alive, started)))
    dvc.communicate()
    assert saved_epoch(project) < 2000 and files(project) == ["history.csv"]
    assert "mlp: resumes at epoch" in project.run("python", *repro, **often).stdout
    assert len(project.read("models/mlp/history.csv").splitlines()) == 2001
    assert shown_epochs(project) == 2000


def shown_epochs(project):
    """Return of how many epochs `dvc plots show` has a point in the plot of the training."""
    shown = project.run("dvc", "plots", "show", "--json")
    (plot,) = json.loads(shown.stdout)["data"]["models/mlp/history.csv"]
    return len(plot["content"]["data"]["values"])
