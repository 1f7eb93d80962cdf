"""No run stays RUNNING after its process is gone, however it went."""

import shutil
import signal
from pathlib import Path

import psutil
import pytest
from helpers.project import ROOT
from helpers.store import points, runs, stage
from helpers.waiting import wait_for

from lineup.files import read_json

EPOCHS = 2500
TRAIN = ("python", "-m", "stages.train", "linear")
SAVING_SOON = ("python", str(ROOT / "tests/programs/train_saving_often.py"), "linear")


@pytest.fixture
def long_training(project):
    """A project with an empty registry of trainings whose linear model takes long to train."""
    project.set(architectures=["linear"], model="linear", train__epochs=EPOCHS)
    shutil.rmtree(".lineup")
    client = project.client()
    for run in runs(client).values():
        client.delete_run(run.info.run_id)
    return project


def run_of(project):
    return runs(project.client()).get("linear")


def start(project):
    """Return a training of which MLflow has the first epochs, and a checkpoint a state."""
    training = project.start(*SAVING_SOON, SECONDS_BETWEEN_SAVES="0.5")
    training.pause_after("epoch 2/")
    wait_for(lambda: "val_loss" in run_of(project).data.metrics)
    training.go_on()
    (progress,) = Path(".lineup/checkpoints").glob("*/progress.json")
    wait_for(lambda: "file" in read_json(progress))  # moved last: a save is whole with it
    return training


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_is_killed_in_mlflow_at_once_and_goes_on_in_its_run(
    number, long_training
):
    training = start(long_training)
    training.process.send_signal(number)
    wait_for(lambda: run_of(long_training).info.status == "KILLED", 20)
    before = run_of(long_training).info
    training.process.wait()
    resumed = long_training.start(*TRAIN)
    resumed.pause_after("val_loss")
    wait_for(lambda: run_of(long_training).info.status == "RUNNING")
    resumed.go_on()
    assert "resumes at epoch" in resumed.output()
    run = run_of(long_training)
    assert (run.info.run_id, run.info.status) == (before.run_id, "FINISHED")
    steps = [step for step, *_ in points(long_training.client(), run, "val_loss")]
    assert steps == list(range(1, EPOCHS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sync", "train mlp"])
def test_where_the_mirror_was_killed_too_the_next_command_closes_the_run(command, long_training):
    training = start(long_training)
    (follower,) = psutil.Process(training.process.pid).children()
    follower.kill()
    training.process.kill()
    training.process.wait()
    assert run_of(long_training).info.status == "RUNNING"
    long_training.set(architectures=["linear", "mlp"], train__epochs=1)
    long_training.run("python", "-m", f"stages.{command.split()[0]}", *command.split()[1:])
    assert run_of(long_training).info.status == "KILLED"


@pytest.mark.slow
def test_an_error_behind_the_loop_fails_the_run_and_leaves_no_model_pending(long_training):
    long_training.set(train__epochs=2)
    Path("models/linear/model.safetensors").unlink()
    Path("models/linear/model.safetensors").mkdir()  # in the way of the outputs
    result = long_training.run(*TRAIN, check=False)
    assert result.returncode != 0
    run = run_of(long_training)
    assert run.info.status == "FAILED" and "models/linear" in run.data.tags["lineup.error"]
    client = long_training.client()
    models = client.search_logged_models([run.info.experiment_id])
    assert {str(model.status) for model in models} == {"READY"}  # of the trainings before
    Path("models/linear/model.safetensors").rmdir()
    long_training.run(*TRAIN)
    run = run_of(long_training)
    assert run.info.status == "FINISHED" and "lineup.error" not in run.data.tags


def test_a_loss_that_is_not_finite_fails_the_run_and_says_why(long_training):
    diverging = {"learning_rate": 1e38, "optimizer": "sgd", "schedule": "constant"}
    long_training.set(models__linear=diverging, train__epochs=2)
    result = long_training.run(*TRAIN, check=False)
    assert result.returncode == 2 and "not finite" in result.stderr
    run = run_of(long_training)
    assert run.info.status == "FAILED"
    assert "not finite at epoch 1" in run.data.tags["lineup.error"]
    stage("sync")
    assert run_of(long_training).info.status == "FAILED"
