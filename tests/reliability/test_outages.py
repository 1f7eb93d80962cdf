"""Stores that fail in every way: a command loses seconds, and no point; `make sync` brings all."""

import os
import shutil
import time
from pathlib import Path

import pytest
from helpers.servers import broken_server, mlflow_server, slow_server
from helpers.store import assert_complete, contents, runs, stage, use_store
from helpers.waiting import wait_for
from mlflow import MlflowClient

from lineup.errors import UserError
from lineup.tracking.follower_process import SECONDS_TO_COME_BACK
from lineup.tracking.sync import record_evaluations, record_export

SETTINGS = {"promote": "gate", "level": 0.05, "margin": 0.002}
TRAIN = ("python", "-m", "stages.train", "linear")
LIMIT = 10  # seconds that an outage may cost a command
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", ["refuses", pytest.param("hangs", marks=slow), pytest.param("answers 500", marks=slow)]
)
def test_a_server_that(kind, unrecorded, monkeypatch, capsys):
    start = time.monotonic()
    unrecorded.run(*TRAIN, LINEUP_TRACKING="off")
    untracked = time.monotonic() - start
    shutil.rmtree(".lineup")
    with broken_server(kind) as address:
        start = time.monotonic()
        result = unrecorded.run(*TRAIN, MLFLOW_TRACKING_URI=address)
        assert time.monotonic() - start < untracked + LIMIT + 5  # a busy machine imports slowly
        assert result.stderr.count("fails (") == 1
        assert "nothing is lost; later: make sync" in result.stdout
        use_store(monkeypatch, address)
        for record in (
            lambda: record_evaluations(["linear"]),
            lambda: print(record_export("linear", SETTINGS)),
        ):
            start = time.monotonic()
            record()
            assert time.monotonic() - start < LIMIT
            printed = capsys.readouterr().out
            assert printed.count("fails (") == 1 and "nothing is lost" in printed
        with pytest.raises(UserError, match="nothing is lost, run make sync again later"):
            stage("sync")
    use_store(monkeypatch)  # another store takes what the first one missed
    stage("sync")
    assert_complete(unrecorded.client())


def test_many_models_wait_for_a_hanging_server_once(project, monkeypatch, capsys):
    before = contents(project.client())
    monkeypatch.setattr("lineup.tracking.reachability.ANSWER_TIMEOUT_SECONDS", 1.0)
    with broken_server("hangs") as address:
        use_store(monkeypatch, address)
        start = time.monotonic()
        record_evaluations(["linear", "mlp"] * 3)
        assert time.monotonic() - start < 3  # seconds
    assert capsys.readouterr().out.count("fails (") == 1
    use_store(monkeypatch)
    stage("sync")
    assert contents(project.client()) == before


def start(project, client, epochs=1500, **environment):
    """Return a training that is paused, and whose first points the client's store has."""
    project.set(train__epochs=epochs)
    training = project.start(*TRAIN, **environment)
    training.pause_after("epoch 2/")
    wait_for(lambda: "val_loss" in runs(client)["linear"].data.metrics)
    return training


def start_on(server, project, epochs=1500):
    """Start such a training with a server; return its client and the training."""
    client = MlflowClient(server.address, server.address)
    return client, start(project, client, epochs, MLFLOW_TRACKING_URI=server.address)


@slow
def test_a_server_that_dies_in_the_middle_and_comes_back_has_every_point_once(
    unrecorded, tmp_path, monkeypatch
):
    with mlflow_server(tmp_path / "server") as server:
        client, training = start_on(server, unrecorded)
        server.stop()
        training.go_on()
        output = training.output()
        assert output.count("fails (") == 1 and "make sync" in output
        server.start()
        unrecorded.run("python", "-m", "stages.sync", MLFLOW_TRACKING_URI=server.address)
        assert_complete(client, is_registered=False)


@slow
def test_a_server_that_comes_back_during_the_training_gets_the_rest_at_once(unrecorded, tmp_path):
    with mlflow_server(tmp_path / "server") as server:
        client, training = start_on(server, unrecorded, epochs=6000)
        server.stop()
        training.go_on()
        training.pause_after("training goes on")
        server.start()
        time.sleep(SECONDS_TO_COME_BACK)
        training.go_on()
        assert "make sync" not in training.output()
        assert_complete(client, is_registered=False)


@slow
def test_a_server_that_is_slow_costs_no_training_and_sync_waits_for_it(unrecorded, tmp_path):
    with (
        mlflow_server(tmp_path / "server") as server,
        slow_server(server, seconds=6, slow_requests=4) as address,
    ):
        printed = unrecorded.run(*TRAIN, MLFLOW_TRACKING_URI=address).stdout
        assert "nothing is lost; later: make sync" in printed
        unrecorded.run("python", "-m", "stages.sync", MLFLOW_TRACKING_URI=address)
        assert_complete(MlflowClient(server.address, server.address), is_registered=False)


@slow
def test_a_request_that_is_answered_too_late_is_not_made_twice(unrecorded, tmp_path):
    with (
        mlflow_server(tmp_path / "server") as server,
        slow_server(server, seconds=12, slow_requests=1, path="runs/create") as address,
    ):
        unrecorded.run(*TRAIN, MLFLOW_TRACKING_URI=address)
        client = MlflowClient(server.address, server.address)
        wait_for(lambda: "linear" in runs(client))
        unrecorded.run("python", "-m", "stages.sync", MLFLOW_TRACKING_URI=address)
        assert_complete(client, is_registered=False)
        experiment = client.get_experiment_by_name("digits")
        assert len(client.search_runs([experiment.experiment_id])) == 1


@slow
def test_a_run_that_is_deleted_during_its_training_stays_deleted(unrecorded):
    client = unrecorded.client()
    training = start(unrecorded, client)
    run = runs(client)["linear"]
    client.delete_run(run.info.run_id)
    training.go_on()
    assert "make sync" not in training.output()  # the store has all that it shall have
    unrecorded.run("python", "-m", "stages.sync")
    assert client.get_run(run.info.run_id).info.lifecycle_stage == "deleted" and not runs(client)


@slow
def test_an_experiment_that_is_deleted_during_a_training_comes_back_whole(unrecorded):
    client = unrecorded.client()
    training = start(unrecorded, client)
    client.delete_experiment(client.get_experiment_by_name("digits").experiment_id)
    training.go_on()
    training.output()
    unrecorded.run("python", "-m", "stages.sync")
    assert_complete(client, is_registered=False)


@slow
@pytest.mark.parametrize("damage", ["garbage", "cut", "emptied", "folder"])
def test_a_damaged_database_costs_no_training_and_is_made_anew_when_it_is_away(damage, project):
    database = Path("mlflow.db")
    before = database.read_bytes()
    for path in Path().glob("mlflow.db*"):
        path.unlink()
    if damage == "folder":
        database.mkdir()
    else:
        contents = {"garbage": b"no database" * 1000, "cut": before[: len(before) // 2]}
        database.write_bytes(contents.get(damage, b""))
    project.set(seed=8, architectures=["linear"], model="linear")
    output = project.run("dvc", "repro").stdout
    done = project.run("python", "-m", "stages.sync", check=False)
    assert "Traceback" not in output + done.stderr
    if damage != "emptied":  # which is a database without tables
        assert "nothing is lost" in output and done.returncode == 2
        assert "mlflow.db" in done.stderr and "move it away" in done.stderr
        database.rename("damaged")
        for path in Path().glob("mlflow.db-*"):
            path.unlink()
        project.run("python", "-m", "stages.sync")
    aliases = project.client().get_registered_model("digits").aliases
    assert {"linear", "mlp", "champion"} <= set(aliases)


@slow
@pytest.mark.parametrize("kibibytes", [1, 16])  # which the first file needs, or the last
def test_a_full_disk_stops_a_training_with_one_line_and_the_next_one_completes_it(
    unrecorded, kibibytes
):
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    limited = f"ulimit -f {kibibytes}; exec python -m stages.train linear"
    result = unrecorded.run("bash", "-c", limited, check=False, **environment)
    assert result.returncode == 1
    assert "make room there and run the same command again" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    unrecorded.run(*TRAIN)
    stage("sync")
    assert_complete(unrecorded.client(), is_registered=False)


@slow
def test_a_full_disk_of_the_store_is_an_error_and_later_nothing_is_missing(unrecorded, monkeypatch):
    unrecorded.run(*TRAIN, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    unrecorded.run(
        "python", "-m", "stages.sync", MLFLOW_TRACKING_URI="http://127.0.0.1:9", check=False
    )
    limited = "ulimit -f 6; exec python -m stages.sync"
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    for _ in range(2):
        result = unrecorded.run("bash", "-c", limited, check=False, **environment)
        assert result.returncode == 2 and "nothing is lost" in result.stderr, result.stderr
    record_export("linear", SETTINGS)
    stage("sync")
    assert_complete(unrecorded.client())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody without rights")
def test_a_store_that_cannot_be_written_is_a_warning_and_everything_is_kept(project, capsys):
    client = project.client()
    before = contents(client)
    number = client.get_model_version_by_alias("digits", "mlp").version
    client.delete_model_version("digits", number)
    for path in (project.folder, *project.folder.parents[:-2]):
        path.chmod(path.stat().st_mode | 0o555)
    for path in (Path(".lineup"), *Path(".lineup").rglob("*")):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        record_evaluations(["mlp"])
    finally:
        os.seteuid(0)
    printed = capsys.readouterr().out
    assert "fails (" in printed and "nothing is lost, later: make sync" in printed
    project.run("python", "-m", "stages.sync")
    assert contents(client) == before
