"""The mirror: MLflow is made equal to a run's folder, whatever happened to either."""

import io
import math
import os
import socket
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers.project import ROOT, Project
from helpers.store import contents, points, runs, use_store
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from lineup.files import write_json
from lineup.tensors import read_tensors, write_tensors
from lineup.tracking.follower_process import follow_run
from lineup.tracking.mirror import Mirror, close_abandoned_runs, is_abandoned
from lineup.tracking.names import RESTORED
from lineup.tracking.reachability import summary
from lineup.tracking.run_log import RunLog
from lineup.tracking.store import client as connect

RUN_ID = "a" * 32


@pytest.fixture
def client(here, monkeypatch):
    """A new store."""
    use_store(monkeypatch)
    return connect()


def begin(run_id=RUN_ID, lock="", **changes):
    """Return the log of a run that has begun."""
    log = RunLog(run_id)
    start = {"experiment": "e", "name": "n", "params": {"p": 1}, "datasets": {}}
    log.begin(start | {"tags": {"lineup.lock": str(lock)} if lock else {}} | changes)
    return log


def mirror(log, client, **options):
    Mirror(log, client, **options).update()
    return runs(client, "e").get("n")


def test_values_that_are_none_not_finite_or_beyond_mlflows_limits_are_recorded(client):
    params = {
        "long": "x" * 20_000,
        "list": list(range(5000)),
        "empty": "",
        "none": None,
        "ü/k": "ä",
    }
    log = begin(params=params | {f"p{number}": number for number in range(250)})
    log.add_point(1, {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "small": 5e-324})
    log.set_status("FAILED", "é" * 20_000)
    run = mirror(log, client)
    assert run.info.status == "FAILED" and run.data.tags["lineup.error"].startswith("ééé")
    assert run.data.params["long"] == "x" * 6000 and run.data.params["p249"] == "249"
    metrics = run.data.metrics
    assert math.isnan(metrics["nan"]) and metrics["inf"] > 1e300 and metrics["minus"] < -1e300


def test_a_run_during_which_the_clock_was_set_back_has_each_point_once_and_no_time_below_zero(
    client, monkeypatch
):
    log = begin()
    log.add_point(1, {"loss": 2.0})
    yesterday = time.time_ns() - 24 * 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: yesterday)
    log.add_point(2, {"loss": 1.0})
    log.set_status("FINISHED")
    for _ in range(2):
        run = mirror(log, client)
    found = sorted((step, value) for step, _, value in points(client, run, "loss"))
    assert found == [(1, 2.0), (2, 1.0)]
    assert run.data.metrics["loss"] == 1.0
    assert run.info.end_time == run.info.start_time


def test_a_kept_epoch_is_a_model_with_its_step_and_its_scores_made_once(client):
    log = begin()
    for epoch in (1, 2, 3):
        log.add_point(epoch, {"train_loss": 1.0, "val_accuracy": epoch / 10})
    write_tensors(log.kept_epochs / "epoch-002.safetensors", {"weight": torch.ones(3)})
    for _ in range(2):
        run = mirror(log, client)
    log.folder.joinpath("mirrors").rename("lost")  # what was sent must be asked of the store
    mirror(log, client)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.name == "epoch-002" and str(model.status) == "READY"
    assert {metric.key: metric.value for metric in model.metrics}["val_accuracy"] == 0.2
    steps = {output.step for output in client.get_run(run.info.run_id).outputs.model_outputs}
    assert steps == {2} and model.source_run_id == run.info.run_id
    (path,) = Path(model.artifact_location.removeprefix("file://")).glob("*")
    assert read_tensors(path)["weight"].tolist() == [1, 1, 1]
    accuracies = [(step, value) for step, _, value in points(client, run, "val_accuracy")]
    assert accuracies == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_mirror_beside_the_training_sends_what_was_added_since(client):
    log = begin()
    log.set_status("RUNNING")
    live = Mirror(log, client, is_live=True)
    for step in (1, 2, 3):
        log.add_point(step, {"loss": 1 / step}, at=step)
        log.add_artifact(Path(__file__), f"step-{step}")
        live.update()
        run = runs(client, "e")["n"]
        sent = [(number, number, 1 / number) for number in range(1, step + 1)]
        assert points(client, run, "loss") == sent
        assert len(client.list_artifacts(run.info.run_id)) == step
        assert run.info.status == "RUNNING"
    log.set_status("FINISHED")
    live.update()
    run = runs(client, "e")["n"]
    assert (run.info.status, run.info.end_time) == ("FINISHED", log.status["time"])


def test_the_process_beside_a_training_imports_no_torch(here, tmp_path):
    log = begin()
    log.set_status("FINISHED")
    command = ["python", "-X", "importtime", "-m", "stages.sync", "--follow", RUN_ID]
    result = Project(tmp_path).run(*command, PYTHONPATH=str(ROOT), DVC_ROOT=str(tmp_path))
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "lineup.tracking.mirror" in imported
    assert not {"torch", "scipy.stats", "matplotlib", "onnx", "sklearn"} & imported


def test_data_that_two_runs_name_at_one_moment_are_named(client, monkeypatch):
    log, log_inputs = begin(datasets={"train": {"name": "e", "digest": "1"}}), client.log_inputs
    refusals = iter([MlflowException("UNIQUE constraint failed: dataset", BAD_REQUEST)])

    def refuse_once(*arguments):
        for refusal in refusals:
            raise refusal
        log_inputs(*arguments)

    monkeypatch.setattr(client, "log_inputs", refuse_once)
    (data,) = mirror(log, client).inputs.dataset_inputs
    assert data.dataset.digest == "1"


def test_a_training_of_another_user_is_left_alone(tmp_path):
    theirs = tmp_path / "theirs" / "checkpoints"
    theirs.mkdir(parents=True)
    (theirs / "a.lock").touch(mode=0o600)
    assert is_abandoned(theirs / "a.lock") and not is_abandoned(tmp_path / "gone" / "a.lock")
    theirs.parent.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # who may look everywhere
            os.seteuid(65534)
        assert not is_abandoned(theirs / "a.lock")
    finally:
        os.seteuid(user)
        theirs.parent.chmod(0o700)


def test_a_failure_is_told_without_the_servers_password():
    text = "API request to http://ann:secret@host:5000/api failed: connection refused"
    assert summary(MlflowException(text)) == text.replace("secret", "***")


def test_a_restored_run_of_which_one_request_failed_is_completed(client, monkeypatch):
    log = begin(tags={RESTORED: "true"})
    log.add_point(1, {"loss": 0.5})
    log.set_status("FINISHED")
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(client, "log_batch", refuse)
        mirror(log, client)
    run = mirror(log, client)
    assert run.data.params == {"p": "1"} and run.data.metrics == {"loss": 0.5}
    assert run.info.status == "FINISHED"


def test_a_run_stays_where_it_is_when_its_experiment_gets_another_name(client):
    log = begin()
    mirror(log, client)
    experiment = client.get_experiment_by_name("e")
    client.rename_experiment(experiment.experiment_id, "e of autumn")
    log.add_point(1, {"loss": 0.5})
    log.set_status("FINISHED")
    assert mirror(log, client) is None and not client.get_experiment_by_name("e")  # no new "e"
    run = runs(client, "e of autumn")["n"]
    assert run.data.metrics == {"loss": 0.5} and run.info.status == "FINISHED"
    client.delete_experiment(experiment.experiment_id)
    assert mirror(log, client).data.metrics == {"loss": 0.5}  # deleted: a new "e" gets all


def refuse(*_, **__):
    raise ConnectionError("the server is gone")


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_what_is_deleted_while_the_end_is_sent_fails_nothing(client, monkeypatch, what):
    log = begin()
    mirror(log, client, is_live=True)
    log.set_status("FINISHED")
    end_run, run = MlflowClient.set_terminated, runs(client, "e")["n"].info

    def delete_first(client, *arguments):
        monkeypatch.setattr(MlflowClient, "set_terminated", end_run)
        if what == "run":
            client.delete_run(run.run_id)
        else:
            client.delete_experiment(run.experiment_id)
        end_run(client, *arguments)

    monkeypatch.setattr(MlflowClient, "set_terminated", delete_first)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # the training is over
    assert follow_run(RUN_ID) == 0
    known = client.get_run(run.run_id).info
    expected = ("deleted", "RUNNING") if what == "run" else ("active", "FINISHED")
    assert (known.lifecycle_stage, known.status) == expected


def test_ten_thousand_points_are_sent_once(client, monkeypatch):
    log = begin()
    lines = [
        f'{{"time": {step}, "step": {step}, "values": {{"loss": 1}}}}\n' for step in range(10_000)
    ]
    log.points_file.write_text("".join(lines))
    log.set_status("FINISHED")
    run = mirror(log, client)
    assert len(points(client, run, "loss")) == 10_000
    before = contents(client, "e")
    monkeypatch.setattr(client, "log_batch", refuse)  # it sends none again
    mirror(log, client)
    assert contents(client, "e") == before


def test_a_changed_artifact_is_sent_again_and_an_equal_one_is_not(client):
    log = begin()
    for text in ("one", "two"):
        (log.artifacts / "a").parent.mkdir(exist_ok=True)
        (log.artifacts / "a").write_text(text)
        run = mirror(log, client)
        path = Path(client.download_artifacts(run.info.run_id, "a"))
        assert path.read_text() == text
    changed = path.stat().st_mtime_ns
    mirror(log, client)
    assert path.stat().st_mtime_ns == changed


def test_a_changed_param_raises(client):
    log = begin()
    mirror(log, client)
    write_json(log.start_file, log.start | {"params": {"p": 2}})
    with pytest.raises(MlflowException, match="param"):
        mirror(log, client)


def test_a_run_whose_training_died_is_killed_and_one_that_goes_on_is_running_again(
    client, tmp_path
):
    lock = FileLock(tmp_path / "lock")
    log = begin(lock=tmp_path / "lock")
    log.set_status("RUNNING")
    with lock:
        assert mirror(log, client).info.status == "RUNNING"
    killed = mirror(log, client)
    assert killed.info.status == "KILLED"
    assert mirror(log, client).info.end_time == killed.info.end_time
    with lock:
        assert mirror(log, client, is_live=True).info.status == "RUNNING"
        log.set_status("FINISHED")
        assert mirror(log, client, is_live=True).info.end_time == log.status["time"]


def test_the_error_of_a_failed_run_goes_when_the_same_run_succeeds(client):
    log = begin()
    log.set_status("FAILED", "no memory")
    assert mirror(log, client).data.tags["lineup.error"] == "no memory"
    log.set_status("FINISHED")
    run = mirror(log, client)
    assert "lineup.error" not in run.data.tags and run.info.status == "FINISHED"


def test_runs_of_dead_trainings_are_closed_and_others_left_alone(client, tmp_path):
    experiment = client.create_experiment("load")
    host = socket.gethostname()

    def start(host, lock):
        tags = {"host": host, "lineup.lock": str(lock)} if host else {}
        return client.create_run(experiment, tags=tags).info.run_id

    dead = [start(host, tmp_path / f"dead-{number}.lock") for number in range(3)]
    living = [start(host, tmp_path / "alive"), start("else", tmp_path / "x"), start("", "")]
    with FileLock(tmp_path / "alive"):
        close_abandoned_runs(client, host)
    assert {client.get_run(run).info.status for run in dead} == {"KILLED"}
    assert {client.get_run(run).info.status for run in living} == {"RUNNING"}
